"""`dolake rollback TABLE --to POINT`: an earlier snapshot's rows in a new snapshot, with a rule for the offsets that has to be chosen."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dolake.cli.confirm import Yes, confirmed
from dolake.cli.options import Config, Data, Json, point_of, settings_from
from dolake.errors import ConfigurationError, DaemonUnreachable, Mistake, RequestRefused
from dolake.model import TableName

if TYPE_CHECKING:
    from dolake.cli.lake import Lake
    from dolake.config import Settings
    from dolake.iceberg.commit import Trouble
    from dolake.iceberg.metadata import LoadedTable

app = typer.Typer(add_completion=False)


@app.command()
def rollback(
    table: Annotated[str, typer.Argument(metavar="TABLE", help="The table, as `dolake tables` calls it.")],
    to: Annotated[str, typer.Option("--to", metavar="POINT", help="As for `dolake query --at`; a snapshot in the history of main.")],
    keep_offset: Annotated[bool, typer.Option("--keep-offset", help="The events since are gone: they are not applied again.")] = False,
    rewind: Annotated[bool, typer.Option("--rewind", help="The events since are applied again, from the log.")] = False,
    data: Data = None,
    config: Config = None,
    as_json: Json = False,
    yes: Yes = False,
) -> int:
    """Take a table back to an earlier snapshot. It is a new snapshot: main never moves backwards, and this can be undone the same way.

    Exactly one of the two must be given. --keep-offset: what was accepted up to now stays out, and ingestion goes on after it.
    --rewind: offsets go back with the rows, and the events since are applied again, each once; the log must still hold them
    (`log.retain_s`), or it is refused (5) with the oldest offset there is. With a daemon on DIR or without one.
    """
    from dolake.cli.lake import open_lake
    from dolake.clock import real_runtime
    from dolake.iceberg.points import snapshot_at

    if keep_offset == rewind:
        got = "both" if rewind else "neither"
        raise ConfigurationError([Mistake("--keep-offset, --rewind", got, "exactly one must be given: what becomes of the events since?")])
    settings, name = settings_from(data, config), _name(table)
    lake = open_lake(settings)
    loaded = lake.table(table)
    snapshot = snapshot_at(loaded, point_of(to, "--to"), real_runtime().clock.now_ms())
    if not confirmed(_loss(loaded, snapshot, rewind), yes=yes):
        print("nothing was changed", file=sys.stderr)
        return RequestRefused.exit_code
    result = _roll_back(settings, lake, name, int(snapshot["snapshot-id"]), rewind)
    print(json.dumps(result) if as_json else _in_words(result))
    return 0


def _roll_back(settings: Settings, lake: Lake, name: TableName, target: int, rewind: bool) -> dict[str, Any]:
    """By the daemon if there is one; else here, which claims the table."""
    from dolake.clock import real_runtime
    from dolake.control import ask_once
    from dolake.iceberg.lake import commit_policy
    from dolake.storage.disk import LocalDisk
    from dolake.writer.rolling_back import roll_back_here

    try:
        asking = ask_once(
            settings.control_path, "rollback", runtime=real_runtime(), timeout_s=None, table=str(name), snapshot=target, rewind=rewind
        )
        result: dict[str, Any] = asyncio.run(asking)["result"]
        return result
    except DaemonUnreachable:
        assert lake.catalog is not None  # Or the table would not have been found.
        done = roll_back_here(
            real_runtime(),
            LocalDisk(),
            settings,
            lake.catalog,
            lake.store,
            name,
            target,
            rewinds=rewind,
            policy=commit_policy(settings),
            on_trouble=_say_trouble,
        )
        return asyncio.run(done)


def _say_trouble(trouble: Trouble) -> None:
    print(f"dolake: {trouble.table}: {trouble.error}; trying again", file=sys.stderr)


def _loss(loaded: LoadedTable, snapshot: Any, rewind: bool) -> str:
    """What it means, for whoever has to decide."""
    from dolake.iceberg.points import time_in_words
    from dolake.iceberg.summary import count_rows

    rows = 0 if loaded.head is None else count_rows(loaded.head["summary"]).total
    what = f"{loaded.name} goes from {rows:,} rows to the {count_rows(snapshot['summary']).total:,} of snapshot {snapshot['snapshot-id']}"
    rest = "the events since are applied again" if rewind else "the events since are gone from it"
    return f"{what}, of {time_in_words(snapshot['timestamp-ms'])}; {rest}"


def _in_words(result: dict[str, Any]) -> str:
    offsets = ", ".join(f"log {log} from offset {offset}" for log, offset in sorted(result["offsets"].items()))
    on = f"its events are applied again: {offsets}" if result["rewound"] else f"ingestion goes on: {offsets}"
    return (
        f"{result['table']} is at snapshot {result['to']} again, {result['rows']:,} rows, in the new snapshot {result['snapshot']}; {on}\n"
        f"undo it with `dolake rollback {result['table']} --to {result['from']} --keep-offset`"
    )


def _name(text: str) -> TableName:
    try:
        return TableName.in_lake(text)
    except ValueError as error:
        raise ConfigurationError([Mistake("TABLE", text, str(error))]) from None
