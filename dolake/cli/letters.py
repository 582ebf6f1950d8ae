"""`dolake dead-letters`: events that were kept out of their tables: which, why, and sending them again."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dolake.cli.options import Ca, Certificate, CertificateKey, Config, Data, Json, Token, dial_with, settings_from
from dolake.errors import ConfigurationError, Mistake

if TYPE_CHECKING:
    from dolake.cli.replaying import KnownLetter
    from dolake.model import TableName

app = typer.Typer(add_completion=False, no_args_is_help=True, help="Events that fit nowhere: which, why, and sending them again.")

_NOT_ALL = 6
_SENT_AGAIN = ("dead", "replayed", "superseded")  # what can come of it
_STATES = (*_SENT_AGAIN, "expired")
Table = Annotated[str | None, typer.Option("--table", metavar="TABLE", help="Only those of one table.")]


@app.command("list")
def list_letters(
    table: Table = None,
    state: Annotated[str, typer.Option("--state", help="dead, replayed, superseded, expired or all.")] = "dead",
    limit: Annotated[int, typer.Option("--limit", min=0, help="Show at most so many; 0 shows all.")] = 100,
    data: Data = None,
    config: Config = None,
    as_json: Json = False,
) -> int:
    """List dead letters with the rule that each breaks."""
    if state not in (*_STATES, "all"):
        raise ConfigurationError([Mistake("--state", state, f"must be one of {', '.join(_STATES)}, all")])
    letters = [letter for letter in _letters(data, config, table) if state in ("all", letter.state)]
    shown = letters[:limit] if limit else letters
    if as_json:
        print(json.dumps([_described(letter) for letter in shown], ensure_ascii=False))
        return 0
    _print(shown)
    if len(shown) < len(letters):
        print(f"{len(letters) - len(shown):,} more; --limit 0 shows all")
    return 0


@app.command("show")
def show(
    id: Annotated[str, typer.Argument(metavar="ID", help="As `list` shows it.")],
    data: Data = None,
    config: Config = None,
    as_json: Json = False,
) -> int:
    """Show one dead letter: every verdict on it, and the event as it was received."""
    from dolake.cli.replaying import require

    (letter,) = require(_letters(data, config, None), [id])
    event = bytes(letter.newest["event"]).decode(errors="backslashreplace")
    if as_json:
        print(
            json.dumps({**_described(letter), "verdicts": [_verdict(one) for one in letter.verdicts], "event": event}, ensure_ascii=False)
        )
        return 0
    for name, value in _described(letter).items():
        print(f"{name:12} {value}")
    for verdict in letter.verdicts:
        print(f"{_moment(verdict['judged_at'])}  {verdict['outcome']}: {verdict['rule'] or 'it is in its table'}")
    print(event or "the event is not kept any longer")
    return 0


@app.command("replay")
def replay(
    ids: Annotated[
        list[str] | None, typer.Argument(metavar="[ID]...", help="As `list` shows them; all that are dead unless given.")
    ] = None,
    table: Table = None,
    to: Annotated[str | None, typer.Option("--to", metavar="URL", help="ws://host:port/cdc; DIR/ready.json says it unless given.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be sent.")] = False,
    retry_s: Annotated[float, typer.Option("--retry-s", min=0.0, help="How long to try for a connection.")] = 30.0,
    token: Token = None,
    ca: Ca = None,
    certificate: Certificate = None,
    certificate_key: CertificateKey = None,
    data: Data = None,
    config: Config = None,
    as_json: Json = False,
) -> int:
    """Send dead letters again, once their cause is mended. Each is applied once, as its own source's event.

    One that a later event of its key has overtaken is superseded. Ends with 6 if some are still kept out.
    """
    from dolake.cli.replaying import dead_letters_producer, require, send_again
    from dolake.cli.send import url_of
    from dolake.daemon.diagnostics import configure_logging

    letters = _letters(data, config, table)
    asked = require(letters, ids) if ids else letters
    expired = [letter for letter in asked if letter.state == "expired"] if ids else []
    if expired:
        rule = "has expired: its event is not kept any longer, see `maintenance.dead_letters_s`"
        raise ConfigurationError([Mistake("ID", letter.id, rule) for letter in expired])
    chosen = [letter for letter in asked if letter.state == "dead"]
    if not dry_run and chosen:
        configure_logging("dead-letters")
        url = to or url_of(data, config)
        dial = dial_with(url, token, ca, certificate, certificate_key)
        producer = dead_letters_producer(url, unreachable_s_max=retry_s, dial=dial)
        asyncio.run(send_again(producer, chosen))
    after = {letter.id: letter.state for letter in _letters(data, config, table)}
    counts = Counter(after[letter.id] for letter in chosen)
    summary = {"sent": 0 if dry_run else len(chosen), **{state: counts[state] for state in _SENT_AGAIN}}
    if as_json:
        print(json.dumps(summary))
    elif dry_run:
        print(f"{len(chosen):,} dead letters would be sent again")
    else:
        found = f"{counts['replayed']:,} applied, {counts['superseded']:,} superseded, {counts['dead']:,} still dead"
        print(f"sent {len(chosen):,} again: {found}")
    return _NOT_ALL if counts["dead"] and not dry_run else 0


def _letters(data: str | None, config: str | None, table: str | None) -> list[KnownLetter]:
    from dolake.cli.lake import open_lake
    from dolake.cli.replaying import known_letters

    return known_letters(open_lake(settings_from(data, config)), _table(table))


def _table(text: str | None) -> TableName | None:
    from dolake.model import TableName

    try:
        return None if text is None else TableName.in_lake(text)
    except ValueError as error:
        raise ConfigurationError([Mistake("--table", str(text), str(error))]) from None


def _described(letter: KnownLetter) -> dict[str, Any]:
    why = letter.why
    return {
        "id": letter.id,
        "table": why["table_name"],
        "state": letter.state,
        "source": why["_cdc_source"],
        "sequence": why["_cdc_sequence"],
        "operation": why["_cdc_operation"],
        "reason": why["reason"],
        "field": why["field"],
        "rule": why["rule"],
        "value": why["value"],
        "judgedAt": _moment(letter.newest["judged_at"]),
    }


def _verdict(row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "judgedAt": _moment(row["judged_at"]),
        "outcome": row["outcome"],
        "reason": row["reason"],
        "field": row["field"],
        "rule": row["rule"],
    }


def _moment(when: datetime) -> str:
    return when.isoformat(timespec="milliseconds")


def _print(letters: Sequence[KnownLetter]) -> None:
    from dolake.cli.screen import plain_table, stdout_console

    console = stdout_console()
    if not letters:
        console.print("no dead letters")
        return
    shown = plain_table(["id", "source", "operation", "field", "rule", "value", "state"])
    for letter in letters:
        about = _described(letter)
        shown.add_row(*(_plain(about[name]) for name in ("id", "source", "operation", "field", "rule", "value", "state")))
    console.print(shown)


def _plain(text: str) -> str:
    from rich.markup import escape

    return escape(text)
