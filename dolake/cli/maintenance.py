"""`dolake maintenance [TABLE]`: what lies in tables' folders that no snapshot needs any more, and with --purge its end."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dolake.cli.options import Config, Data, Json, settings_from
from dolake.errors import DaemonUnreachable, DolakeError, RequestRefused

if TYPE_CHECKING:
    from dolake.cli.lake import Lake
    from dolake.config import Settings
    from dolake.iceberg.commit import Trouble
    from dolake.iceberg.metadata import LoadedTable
    from dolake.writer.maintain_here import Cleaning

app = typer.Typer(add_completion=False)
_PARTLY_DONE = 6


@app.command()
def maintenance(
    table: Annotated[str | None, typer.Argument(metavar="TABLE", help="One table; all of dolake's unless given.")] = None,
    purge: Annotated[bool, typer.Option("--purge", help="Delete it. Without this nothing is changed.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Change nothing, as without --purge.")] = False,
    data: Data = None,
    config: Config = None,
    as_json: Json = False,
) -> int:
    """Say what could be deleted: rows that have expired by their table's ttl, files of old snapshots, of commits that failed, old metadata.

    Only what dolake named, what no snapshot that is left needs, and what no commit under way can name: age alone decides nothing.
    The daemon does the same by itself, with a time of grace for queries that are still reading; --purge gives none. With a daemon on
    DIR or without one. Ends with 6 where a table could not be looked through.
    """
    settings = settings_from(data, config)
    results = _each(settings, table, purge and not dry_run)
    if as_json:
        print(json.dumps(results if table is None else results[0]))
    else:
        print("\n".join(map(_in_words, results)) if results else "no tables yet")
    return _PARTLY_DONE if any("error" in result for result in results) else 0


def _each(settings: Settings, table: str | None, purge: bool) -> list[dict[str, Any]]:
    from dolake.cli.lake import open_lake

    lake = open_lake(settings)
    if table is not None:
        return [_one(settings, lake, lake.table(table), purge)]
    return [_one_of_all(settings, lake, loaded, purge) for loaded in lake.tables() if loaded.owner_epoch]


def _one_of_all(settings: Settings, lake: Lake, loaded: LoadedTable, purge: bool) -> dict[str, Any]:
    """One that cannot be looked through does not keep the others from it."""
    try:
        return _one(settings, lake, loaded, purge)
    except DolakeError as error:
        return {"table": str(loaded.name), "error": str(error)}


def _one(settings: Settings, lake: Lake, loaded: LoadedTable, purge: bool) -> dict[str, Any]:
    """By the daemon if there is one; else here, which claims the table."""
    from dolake.clock import real_runtime
    from dolake.control import ask_once
    from dolake.writer.maintain_here import look_here, purge_here

    cleaning = _cleaning(settings, lake)
    if not purge:
        return asyncio.run(look_here(cleaning, loaded.name))
    try:
        asking = ask_once(settings.control_path, "maintain", runtime=real_runtime(), timeout_s=None, table=str(loaded.name))
        result: dict[str, Any] = asyncio.run(asking)["result"]
        return result
    except DaemonUnreachable:
        return asyncio.run(purge_here(cleaning, loaded.name))


def _cleaning(settings: Settings, lake: Lake) -> Cleaning:
    from dolake.clock import real_runtime
    from dolake.iceberg.lake import commit_policy
    from dolake.storage.disk import LocalDisk
    from dolake.writer.maintain_here import Cleaning

    if lake.catalog is None:
        raise RequestRefused("there is no table yet")
    return Cleaning(real_runtime(), LocalDisk(), settings, lake.catalog, lake.store, commit_policy(settings), _say_trouble)


def _say_trouble(trouble: Trouble) -> None:
    print(f"dolake: {trouble.table}: {trouble.error}; trying again", file=sys.stderr)


def _in_words(result: dict[str, Any]) -> str:
    from dolake.cli.screen import byte_size

    if "error" in result:
        return f"{result['table']}: {result['error']}"
    expired = _expired_in_words(result["table"], result.get("expired"), result["purged"] is not None)
    kinds = ", ".join(f"{one['objects']:,} {kind} ({byte_size(one['bytes'])})" for kind, one in result["unreferenced"].items())
    stays = f"{result['reachable']:,} needed"
    stays += "".join(
        f", {result[key]:,} {what}"
        for key, what in (("unfinished", "of commits under way"), ("of_others", "of other tables"), ("left", "that dolake did not name"))
        if result[key]
    )
    if result["purged"] is not None:
        gone = f"{result['purged']['objects']:,} objects deleted ({byte_size(result['purged']['bytes'])})"
        return f"{result['table']}: {expired}{gone}; {stays}"
    return f"{result['table']}: {expired}{kinds or 'nothing'} could be deleted; {stays}"


def _expired_in_words(table: str, expired: dict[str, Any] | None, is_done: bool) -> str:
    from dolake.model import DEAD_LETTERS_TABLE

    if expired is None:
        return ""
    is_letters = table == str(DEAD_LETTERS_TABLE)
    if expired["put_off"]:
        return f"no {'events' if is_letters else 'rows'} expire for now ({expired['put_off']}); "
    if is_letters:
        return f"{expired['rows']:,} events of dead letters {'have expired' if is_done else 'would expire'}; "
    return f"{expired['rows']:,} rows {'have expired' if is_done else 'would expire'}, {expired['files']:,} files with all of theirs; "
