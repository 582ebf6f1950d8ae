"""`dolake tags` and `dolake branches`: names for snapshots of a table, and lines of its history that others write."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import orjson
import typer

from dolake.cli.options import At, Config, Data, Json, point_of, settings_from
from dolake.errors import ConfigurationError, Mistake

if TYPE_CHECKING:
    from dolake.cli.lake import Lake
    from dolake.iceberg.metadata import LoadedTable
    from dolake.iceberg.refs import RefChange

tags_app = typer.Typer(add_completion=False, no_args_is_help=True, help="Names for snapshots of a table: list, create, delete.")
branches_app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    help="Lines of a table's history beside main: list, create, delete, publish. dolake writes main alone, others write branches.",
)

Table = Annotated[str, typer.Argument(metavar="TABLE", help="`name` or `namespace.name`.")]
Name = Annotated[str, typer.Argument(metavar="NAME", help="The name of the tag or branch.")]
KeepDays = Annotated[
    int | None, typer.Option("--keep-days", min=1, max=36500, help="It goes by itself after so many days; it stays unless given.")
]


@tags_app.command("list")
def list_tags(table: Table, data: Data = None, config: Config = None, as_json: Json = False) -> int:
    """List a table's tags, dolake's hourly ones too."""
    return _list(table, "tag", data, config, as_json)


@tags_app.command("create")
def create_tag(
    table: Table,
    name: Name,
    at: At = None,
    keep_days: KeepDays = None,
    data: Data = None,
    config: Config = None,
    as_json: Json = False,
) -> int:
    """Name the newest snapshot, or that of --at. A tagged snapshot does not expire."""
    return _create(table, "tag", name, at, keep_days, data, config, as_json)


@tags_app.command("delete")
def delete_tag(table: Table, name: Name, data: Data = None, config: Config = None, as_json: Json = False) -> int:
    """Take a name away. Its snapshot expires as any other."""
    return _delete(table, "tag", name, data, config, as_json)


@branches_app.command("list")
def list_branches(table: Table, data: Data = None, config: Config = None, as_json: Json = False) -> int:
    """List a table's branches, main too."""
    return _list(table, "branch", data, config, as_json)


@branches_app.command("create")
def create_branch(
    table: Table,
    name: Name,
    at: At = None,
    keep_days: KeepDays = None,
    data: Data = None,
    config: Config = None,
    as_json: Json = False,
) -> int:
    """Begin a branch at the newest snapshot of main, or at that of --at."""
    return _create(table, "branch", name, at, keep_days, data, config, as_json)


@branches_app.command("delete")
def delete_branch(table: Table, name: Name, data: Data = None, config: Config = None, as_json: Json = False) -> int:
    """Take a branch away. Snapshots that are nowhere else expire. main cannot be deleted."""
    return _delete(table, "branch", name, data, config, as_json)


@branches_app.command("publish")
def publish(table: Table, name: Name, data: Data = None, config: Config = None, as_json: Json = False) -> int:
    """Move main forward to the newest snapshot of a branch, in one step; the branch stays.

    Refused (5) where main has snapshots that the branch has not, with what each side has alone. A running daemon goes on from there.
    """
    from dolake.iceberg.refs import plan_publish

    lake, loaded = _table(table, data, config)
    before = loaded.head_id
    after = _change(lake, loaded, lambda base: plan_publish(base, _name(name)))
    result = {"table": str(loaded.name), "branch": name, "snapshot": after.head_id, "before": before}
    moved = f"main is at snapshot {after.head_id} of branch {name}, it was at {before}"
    _say(result, as_json, moved if after.head_id != before else f"main is at the newest snapshot of branch {name} already")
    return 0


def _list(table: str, kind: str, data: str | None, config: str | None, as_json: bool) -> int:
    from dolake.iceberg.metadata import snapshots_by_id

    _, loaded = _table(table, data, config)
    times = {number: snapshot["timestamp-ms"] for number, snapshot in snapshots_by_id(loaded.metadata).items()}
    found = [
        {
            "name": name,
            "snapshot": ref["snapshot-id"],
            "time": times[ref["snapshot-id"]],
            "goesAt": times[ref["snapshot-id"]] + ref["max-ref-age-ms"] if "max-ref-age-ms" in ref else None,
        }
        for name, ref in sorted((loaded.metadata.get("refs") or {}).items())
        if ref["type"] == kind
    ]
    if as_json:
        print(orjson.dumps(found, option=orjson.OPT_INDENT_2).decode())
    else:
        _print(found, kind)
    return 0


def _print(found: list[dict[str, Any]], kind: str) -> None:
    from dolake.cli.screen import moment, plain_table, stdout_console
    from dolake.iceberg.points import time_in_words

    console = stdout_console()
    if not found:
        console.print(f"no {'tags' if kind == 'tag' else 'branches'}")
        return
    shown = plain_table([kind, "snapshot", "of", "goes at"])
    for one in found:
        goes = "" if one["goesAt"] is None else moment(one["goesAt"])
        shown.add_row(one["name"], str(one["snapshot"]), time_in_words(one["time"]), goes)
    console.print(shown, markup=False)


def _create(
    table: str, kind: str, name: str, at: str | None, keep_days: int | None, data: str | None, config: str | None, as_json: bool
) -> int:
    from dolake.clock import real_runtime
    from dolake.errors import NoSuchPoint
    from dolake.iceberg.points import snapshot_at
    from dolake.iceberg.refs import plan_create

    lake, loaded = _table(table, data, config)
    now_ms = real_runtime().clock.now_ms()
    snapshot_id = loaded.head_id if at is None else int(snapshot_at(loaded, point_of(at, "--at"), now_ms)["snapshot-id"])
    if snapshot_id is None:
        raise NoSuchPoint(table=str(loaded.name), point="main", kind="before-first", reason="it has no snapshot yet", oldest=None)
    _change(lake, loaded, lambda base: plan_create(base, kind, _name(name), snapshot_id, keep_days, now_ms))
    _say({"table": str(loaded.name), kind: name, "snapshot": snapshot_id}, as_json, f"{kind} {name} is at snapshot {snapshot_id}")
    return 0


def _delete(table: str, kind: str, name: str, data: str | None, config: str | None, as_json: bool) -> int:
    from dolake.iceberg.refs import plan_delete

    lake, loaded = _table(table, data, config)
    _change(lake, loaded, lambda base: plan_delete(base, kind, name))
    _say({"table": str(loaded.name), kind: name, "deleted": True}, as_json, f"{kind} {name} is deleted")
    return 0


def _change(lake: Lake, loaded: LoadedTable, plan: Callable[[LoadedTable], RefChange]) -> LoadedTable:
    import asyncio

    from dolake.clock import real_runtime
    from dolake.iceberg.refs import change_ref

    assert lake.catalog is not None  # Or the table would not have been found.
    clock, random = real_runtime().clock, real_runtime().random
    return change_ref(lake.catalog, loaded, plan, lambda: asyncio.run(clock.sleep(random.uniform(0.01, 0.1))))


def _table(table: str, data: str | None, config: str | None) -> tuple[Lake, LoadedTable]:
    from dolake.cli.lake import open_lake

    lake = open_lake(settings_from(data, config))
    return lake, lake.table(table)


def _name(text: str) -> str:
    from dolake.iceberg.refs import NAME, NAME_RULE

    if not NAME.fullmatch(text):
        raise ConfigurationError([Mistake("NAME", text, NAME_RULE)])
    return text


def _say(result: dict[str, Any], as_json: bool, text: str) -> None:
    print(json.dumps(result) if as_json else text)
