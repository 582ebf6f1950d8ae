"""`dolake tables park|unpark|drop`: a table's events wait elsewhere, come back, or go for good."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dolake.cli.confirm import Yes, confirmed
from dolake.cli.options import Config, Data, Json, settings_from
from dolake.errors import ConfigurationError, DaemonUnreachable, DolakeError, Mistake, RequestRefused
from dolake.model import TableName

if TYPE_CHECKING:
    from dolake.cli.lake import Lake
    from dolake.config import Settings

_PARTLY_DONE = 6
Name = Annotated[str, typer.Argument(metavar="TABLE", help="The table, as `dolake tables` calls it.")]


def park(table: Name, data: Data = None, config: Config = None, as_json: Json = False) -> int:
    """Let a table's events wait in a log of their own under DIR, so that it does not hold the log for everybody else.

    For a table that has stopped, or that cannot be committed for a while. Its events go on being accepted; they are in the table
    once it is back: `dolake tables unpark TABLE`. Asks the daemon that runs on DIR.
    """
    result = _ask(settings_from(data, config), "park", table)
    records = f"{result['records']:,} records, {_size(result['bytes'])}"
    _say(result, as_json, f"{result['table']} is parked ({records}); `dolake tables unpark {result['table']}` brings it back")
    return 0


def unpark(table: Name, data: Data = None, config: Config = None, as_json: Json = False) -> int:
    """Bring a parked table back: the events that waited go in first, each once, then it follows the logs again.

    Ends with 5 if it stops again at what has stopped it before; then it stays parked, and nothing is lost.
    """
    result = _ask(settings_from(data, config), "unpark", table)
    _say(result, as_json, f"{result['table']} follows the logs again")
    return 0


def drop(
    table: Name,
    purge: Annotated[bool, typer.Option("--purge", help="Also delete the files that the table's metadata names.")] = False,
    data: Data = None,
    config: Config = None,
    as_json: Json = False,
    yes: Yes = False,
) -> int:
    """Take a table out of the catalog, with its events in the log that are not committed yet. Later events make it anew.

    Its files stay unless --purge is given. With a daemon on DIR or without one.
    """
    from dolake.cli.lake import open_lake

    name, settings = _name(table), settings_from(data, config)
    lake = open_lake(settings)
    if not confirmed(_loss(lake, name, purge), yes=yes):
        print("nothing was changed", file=sys.stderr)
        return RequestRefused.exit_code
    metadata = _drop(settings, lake, name)
    result: dict[str, Any] = {"table": str(name), "metadata": metadata, "filesDeleted": 0}
    trouble = ""
    if purge and metadata:
        try:
            result["filesDeleted"] = _purge(lake, metadata)
        except DolakeError as error:
            trouble = f"{name} is dropped, but not all of its files are deleted: {error}; what is left is named by {metadata}"
    deleted = f", {result['filesDeleted']:,} files are deleted" if purge else f"; its files stay, named by {metadata}" if metadata else ""
    if not trouble or as_json:
        _say(result, as_json, f"{name} is dropped{deleted}")
    if trouble:
        print(f"dolake: {trouble}", file=sys.stderr)
    return _PARTLY_DONE if trouble else 0


def _drop(settings: Settings, lake: Lake, name: TableName) -> str:
    """By the daemon if there is one. The location of the metadata that the table had."""
    from dolake.clock import real_runtime
    from dolake.storage.disk import LocalDisk
    from dolake.writer.dropping import drop_here

    try:
        return str(_ask(settings, "drop", str(name))["metadata"])
    except DaemonUnreachable:
        if lake.catalog is None:
            raise RequestRefused(f"there is no table {name}; `dolake tables` lists them") from None
        return drop_here(LocalDisk(), settings, lake.catalog, name, real_runtime().random)


def _purge(lake: Lake, metadata: str) -> int:
    from dolake.iceberg.purge import named_files, purge

    locations = named_files(lake.store, metadata)
    with _counted(len(locations)) as progress:
        purge(lake.store, locations, progress)
    return len(locations)


def _ask(settings: Settings, what: str, table: str) -> dict[str, Any]:
    """Raises DaemonUnreachable where none runs, RequestRefused."""
    from dolake.clock import real_runtime
    from dolake.control import ask_once

    name = str(_name(table))
    with _waiting(f"{what} {name}"):
        answer = asyncio.run(ask_once(settings.control_path, what, runtime=real_runtime(), timeout_s=None, table=name))
    result: dict[str, Any] = answer["result"]
    return result


def _name(text: str) -> TableName:
    try:
        return TableName.in_lake(text)
    except ValueError as error:
        raise ConfigurationError([Mistake("TABLE", text, str(error))]) from None


def _loss(lake: Lake, name: TableName, purge: bool) -> str:
    """What dropping it means, for whoever has to decide."""
    from dolake.iceberg.summary import count_rows

    loaded = lake.catalog.load(name) if lake.catalog is not None else None
    uncommitted = "its events in the log that are not committed yet are lost"
    if loaded is None:
        return f"{name} was never committed: {uncommitted}"
    summary = loaded.head["summary"] if loaded.head is not None else {}
    rows = count_rows(summary).total
    files = int(summary.get("total-data-files", 0)) + int(summary.get("total-delete-files", 0))
    what = "are deleted with it" if purge else "stay, but no table names them any more"
    return f"{name} goes from the catalog with {rows:,} rows; {files:,} files below {loaded.location} {what}, and {uncommitted}"


def _say(result: dict[str, Any], as_json: bool, text: str) -> None:
    print(json.dumps(result) if as_json else text)


def _size(size_bytes: int) -> str:
    from dolake.cli.screen import byte_size

    return byte_size(size_bytes)


@contextlib.contextmanager
def _waiting(text: str) -> Iterator[None]:
    """On a terminal it is seen that something is being waited for."""
    if not sys.stderr.isatty():
        yield
        return
    from rich.console import Console

    with Console(stderr=True).status(f"{text} …"):
        yield


@contextlib.contextmanager
def _counted(total: int) -> Iterator[Callable[[int], None]]:
    if not sys.stderr.isatty():
        yield lambda done: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("deleting files", total=total)
        yield lambda done: bar.update(task, completed=done)
