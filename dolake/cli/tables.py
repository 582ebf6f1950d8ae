"""`dolake tables`: every table, how far it is committed, and why one has stopped; `park`, `unpark`, `drop` (`cli.changing`)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import orjson
import typer

from dolake.cli import changing
from dolake.cli.options import Config, Data, Json, settings_from
from dolake.model import RESERVED_NAMESPACE

if TYPE_CHECKING:
    from rich.console import Console

    from dolake.iceberg.metadata import LoadedTable

app = typer.Typer(add_completion=False)
app.command("park")(changing.park)
app.command("unpark")(changing.unpark)
app.command("drop")(changing.drop)

DEAD_COUNT, MODE = "dolake.count.dead-lettered", "dolake.mode"


@app.callback(invoke_without_command=True)
def tables(context: typer.Context, data: Data = None, config: Config = None, as_json: Json = False) -> int:
    """List the tables: mirror or changelog, rows, snapshots, files, and the first offset of each log that is not committed yet.

    A running daemon is asked which tables have stopped, and where: log, offset, field and rule; and which declared columns
    could not be had, and why.
    """
    from dolake.cli.lake import ask_daemon_for_tables, open_lake

    if context.invoked_subcommand is not None:
        return 0
    settings = settings_from(data, config)
    committed = {str(table.name): _committed(table) for table in open_lake(settings).tables()}
    live = ask_daemon_for_tables(settings)
    found = [_described(name, committed.get(name), live) for name in sorted({*committed, *(live or {})})]
    if as_json:
        print(orjson.dumps(found, option=orjson.OPT_INDENT_2).decode())
    else:
        _print(found, live is not None)
    return 0


def _committed(table: LoadedTable) -> dict[str, Any]:
    """What the catalog says of a table."""
    from dolake.iceberg.summary import count_rows

    head = table.head
    summary = head["summary"] if head is not None else {}
    return {
        "mode": _mode(table),
        "rows": count_rows(summary).total,
        "snapshots": len(table.metadata.get("snapshots") or ()),
        "files": int(summary.get("total-data-files", 0)),
        "deleteFiles": int(summary.get("total-delete-files", 0)),
        "deletedRows": int(summary.get("total-position-deletes", 0)),
        "bytes": int(summary.get("total-files-size", 0)),
        "offsets": table.offsets(),
        "lastCommitTime": head["timestamp-ms"] if head is not None else None,
        "ownerEpoch": table.owner_epoch,
        "cut": _cut(table),
        "deadLetters": int(table.properties.get(DEAD_COUNT, "0")),
    }


def _mode(table: LoadedTable) -> str | None:
    """As it says itself; older tables, and those without rows yet, show it in their columns. None: no source's rows are in it."""
    if table.name.namespace == RESERVED_NAMESPACE:
        return None
    if (stated := table.properties.get(MODE)) is not None:
        return stated
    if any(column["name"] == "_cdc_log" for column in table.schema["fields"]):
        return "changelog"
    return "mirror" if table.offsets() else None


def _cut(table: LoadedTable) -> dict[str, Any] | None:
    """The last one that it was committed in with the others of its group."""
    from dolake.iceberg.metadata import CUT, GROUP

    number = table.properties.get(CUT)
    return None if number is None else {"group": table.properties.get(GROUP, ""), "number": int(number)}


def _described(name: str, committed: dict[str, Any] | None, live: dict[str, Any] | None) -> dict[str, Any]:
    """`live` is what the writer says of all tables; None without one. A table may be in either alone."""
    nothing: dict[str, Any] = {
        "rows": 0, "snapshots": 0, "files": 0, "deleteFiles": 0, "deletedRows": 0, "bytes": 0, "offsets": {}, "lastCommitTime": None,
        "ownerEpoch": 0, "cut": None, "deadLetters": 0,
    }  # fmt: skip
    said = (live or {}).get(name) or {}
    return {
        "table": name,
        "mode": said.get("mode") or None,
        **(committed or nothing),
        "pendingRows": said.get("pending_rows"),
        "state": said.get("state", "idle") if live is not None else None,
        "stopped": said.get("stopped"),
        "parked": said.get("parked"),
        "deadLetters": said.get("dead_letters", (committed or nothing)["deadLetters"]),
        "troubles": said.get("troubles") if live is not None else None,
    }


def _print(found: list[dict[str, Any]], answered: bool) -> None:
    from dolake.cli.screen import byte_size, moment, plain_table, stdout_console

    console = stdout_console()
    if not found:
        console.print("no tables yet")
    else:
        headers = ["table", "mode", "rows", "pending", "snapshots", "files", "bytes", "last commit", "epoch", "state"]
        shown = plain_table(headers, right=[*headers[2:7], "epoch"])
        for table in found:
            pending = table["pendingRows"]
            shown.add_row(
                table["table"],
                table["mode"] or "",
                f"{table['rows']:,}",
                "" if pending is None else f"{pending:,}",
                f"{table['snapshots']:,}",
                f"{table['files']:,}",
                byte_size(table["bytes"]),
                moment(table["lastCommitTime"]),
                str(table["ownerEpoch"]),
                table["state"] or "",
            )
        console.print(shown)
        for table in found:
            offsets = ", ".join(f"log {log} below offset {offset}" for log, offset in sorted(table["offsets"].items()))
            console.print(f"{table['table']}: committed {offsets or 'nothing'}", soft_wrap=True)
            if table["cut"]:
                console.print(f"{table['table']}: cut {table['cut']['number']} of group {table['cut']['group']}", soft_wrap=True)
            if table["deletedRows"]:
                what = f"{table['deletedRows']:,} deleted rows are still in its files, {table['deleteFiles']:,} files say which"
                console.print(f"{table['table']}: {what}", soft_wrap=True)
            _print_stop(console, table)
            _print_parked(console, table)
            _print_troubles(console, table)
    if not answered:
        console.print("no writer runs on this data directory: what is pending, and what has stopped, is not known", soft_wrap=True)


def _print_troubles(console: Console, table: dict[str, Any]) -> None:
    from rich.markup import escape

    if table["deadLetters"]:
        console.print(f"{table['table']}: {table['deadLetters']:,} events kept out as dead letters", soft_wrap=True)
    for column, rule in (table["troubles"] or {}).items():
        console.print(f"[bold yellow]{table['table']}[/]: declared column {escape(column)}: {escape(rule)}", soft_wrap=True)


def _print_parked(console: Console, table: dict[str, Any]) -> None:
    from rich.markup import escape

    from dolake.cli.screen import byte_size

    parked = table["parked"]
    if parked is None:
        return
    what = f"{parked['records']:,} records, {byte_size(parked['bytes'])}, wait; `dolake tables unpark {table['table']}` brings it back"
    console.print(f"[bold yellow]{table['table']} is parked:[/] {what}", soft_wrap=True)
    if parked["trouble"]:
        console.print(f"[bold red]{table['table']} cannot be parked further:[/] {escape(parked['trouble'])}", soft_wrap=True)


def _print_stop(console: Console, table: dict[str, Any]) -> None:
    from rich.markup import escape

    stopped = table["stopped"]
    if stopped is None:
        return
    what = stopped["reason"]
    if stopped.get("log") and stopped["index"] < 0:
        what += f"; it takes nothing from log {stopped['log']}, offset {stopped['offset']} on"
    elif stopped.get("log"):
        got = f" (got {stopped['value']})" if stopped.get("value") else ""
        what = f"log {stopped['log']}, offset {stopped['offset']}, event {stopped['index']}: {stopped['field']}: {stopped['rule']}{got}"
    console.print(f"[bold red]{table['table']} has stopped:[/] {escape(what)}", soft_wrap=True)
