"""`dolake compact [TABLE]`: fewer and larger files with the same rows, now; or, with --dry-run, what would be done and why."""

from __future__ import annotations

import asyncio
import json
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dolake.cli.options import Config, Data, Json, settings_from
from dolake.errors import ConfigurationError, DaemonUnreachable, Mistake, RequestRefused

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dolake.cli.lake import Lake
    from dolake.compaction.plan import Plan
    from dolake.compaction.within import Within
    from dolake.config import Settings
    from dolake.iceberg.commit import Trouble
    from dolake.iceberg.metadata import LoadedTable
    from dolake.writer.compact_here import Offline
    from dolake.writer.compaction_runs import Run

app = typer.Typer(add_completion=False)
_PARTLY_DONE = 6


@app.command()
def compact(
    table: Annotated[str | None, typer.Argument(metavar="TABLE", help="One table; all of dolake's unless given.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Change nothing; say what is worth a rewrite, why, and what it gains.")
    ] = False,
    partition: Annotated[
        list[str] | None,
        typer.Option(
            "--partition", metavar="NAME=VALUE", help="Only where this partition field has this value; several, and all must hold."
        ),
    ] = None,
    data: Data = None,
    config: Config = None,
    as_json: Json = False,
) -> int:
    """Rewrite small files as large ones, and files with many deleted rows without these. Rows and offsets stay as they are.

    The daemon does the same by itself, as far as more files are not about to come; this does not wait for more. With a daemon on DIR
    or without one. Ends with 6 where a rewrite failed; what was done before stays done.
    """
    settings = settings_from(data, config)
    results = _each(settings, table, _within(table, partition or ()), dry_run)
    if as_json:
        print(json.dumps(results if table is None else results[0]))
    else:
        print("\n".join(map(_in_words, results)) if results else "no tables yet")
    failed = any(run["state"] != "done" for result in results for run in result["runs"])
    return _PARTLY_DONE if failed else 0


def _within(table: str | None, texts: Sequence[str]) -> Within | None:
    """Raises ConfigurationError."""
    from dolake.compaction.within import Within

    if texts and table is None:
        raise ConfigurationError([Mistake("--partition", texts[0], "a TABLE must be named with it: partitions are of one table")])
    try:
        return Within.parse(texts) if texts else None
    except ValueError as error:
        raise ConfigurationError([Mistake("--partition", ", ".join(texts), str(error))]) from None


def _each(settings: Settings, table: str | None, within: Within | None, dry_run: bool) -> list[dict[str, Any]]:
    from dolake.cli.lake import open_lake

    lake = open_lake(settings)
    tables = [lake.table(table)] if table is not None else [one for one in lake.tables() if _is_own(one)]
    return [_one(settings, lake, loaded, within, dry_run) for loaded in tables]


def _is_own(loaded: LoadedTable) -> bool:
    from dolake.model import DEAD_LETTERS_TABLE

    return bool(loaded.owner_epoch) and loaded.name != DEAD_LETTERS_TABLE


def _one(settings: Settings, lake: Lake, loaded: LoadedTable, within: Within | None, dry_run: bool) -> dict[str, Any]:
    """By the daemon if there is one; else here, which claims the table."""
    from dolake.clock import real_runtime
    from dolake.control import ask_once
    from dolake.writer.compact_here import compact_here, plan_here

    offline = _offline(settings, lake)
    if dry_run:
        by_itself, asked = asyncio.run(plan_here(offline, loaded.name, within))
        return {**_described(loaded, asked, []), "next": _choices(by_itself), "last": _last_runs(settings, loaded)}
    try:
        more = {"table": str(loaded.name), "partition": None if within is None else within.fields}
        asking = ask_once(settings.control_path, "compact", runtime=real_runtime(), timeout_s=None, **more)
        result: dict[str, Any] = asyncio.run(asking)["result"]
        return result
    except DaemonUnreachable:
        plan, runs = asyncio.run(compact_here(offline, loaded.name, within))
        return _described(loaded, plan, runs)


def _last_runs(settings: Settings, loaded: LoadedTable) -> list[dict[str, Any]]:
    """Of the daemon, if there is one."""
    from dolake.clock import real_runtime
    from dolake.control import ask_once

    try:
        answer = asyncio.run(ask_once(settings.control_path, "state", runtime=real_runtime()))
    except (DaemonUnreachable, RequestRefused):
        return []
    runs: list[dict[str, Any]] = answer["writer"].get("compaction", {}).get("runs", [])
    return [run for run in runs if run["table"] == str(loaded.name)]


def _offline(settings: Settings, lake: Lake) -> Offline:
    from dolake.clock import real_runtime
    from dolake.iceberg.lake import commit_policy
    from dolake.storage.disk import LocalDisk
    from dolake.writer.compact_here import Offline

    if lake.catalog is None:
        raise RequestRefused("there is no table yet")
    return Offline(real_runtime(), LocalDisk(), settings, lake.catalog, lake.store, commit_policy(settings), _say_trouble, _say_progress)


def _say_trouble(trouble: Trouble) -> None:
    print(f"dolake: {trouble.table}: {trouble.error}; trying again", file=sys.stderr)


def _say_progress(run: Run) -> None:
    if run.state == "running" and sys.stderr.isatty():
        print(f"{run.table}: {run.what} …", file=sys.stderr)


def _described(loaded: LoadedTable, plan: Plan, runs: list[Run]) -> dict[str, Any]:
    return {
        "table": str(loaded.name),
        "choices": _choices(plan),
        "next": [],
        "left": [left.in_words() for left in plan.left],
        "debt_bytes": plan.debt_bytes,
        "runs": [asdict(run) for run in runs],
        "last": [],
    }


def _choices(plan: Plan) -> list[str]:
    return [choice.in_words() for choice in plan.choices]


def _in_words(result: dict[str, Any]) -> str:
    """A paragraph for each table."""
    lines = [f"  {_run_in_words(run)}" for run in result["runs"]]
    lines += [f"  last: {_run_in_words(run)}" for run in result["last"][-3:]]
    lines += [f"  next, by the daemon itself: {choice}" for choice in result.get("next", ())]
    lines += [f"  when asked: {choice}" for choice in result["choices"]]
    lines += [f"  {left}" for left in result["left"]]
    if not lines:
        return f"{result['table']}: nothing is worth a rewrite"
    return "\n".join([f"{result['table']}:", *lines])


def _run_in_words(run: dict[str, Any]) -> str:
    from dolake.cli.screen import byte_size

    if run["state"] != "done":
        return f"{run['state'].replace('_', ' ')}: {run['what']}: {run['reason']}"
    sizes = (
        f"{byte_size(run['bytes_before'])} in {run['files_before']:,} files are {byte_size(run['bytes_after'])} in {run['files_after']:,}"
    )
    carried = f"; {run['rows_carried']:,} rows deleted meanwhile" if run["rows_carried"] else ""
    return f"done in {run['seconds']:,.1f} s: {sizes}{carried}"
