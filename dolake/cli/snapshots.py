"""`dolake snapshots TABLE`: a table's history, newest first: when, what changed, how far it is committed, what names it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import orjson
import typer

from dolake.cli.options import Config, Data, Json, settings_from

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dolake.iceberg.metadata import LoadedTable

app = typer.Typer(add_completion=False)


@app.command()
def snapshots(
    table: Annotated[str, typer.Argument(metavar="TABLE", help="`name` or `namespace.name`.")],
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="At most so many.")] = None,
    data: Data = None,
    config: Config = None,
    as_json: Json = False,
) -> int:
    """List the snapshots of a table, of every branch, newest first: what each may be named by in `--at`, and what it did.

    The mark says what it was where it was no flush: a rollback, a rewind, a claim, a cut of its group in which nothing was
    said of it, a rewrite of files, or somebody else's commit.
    """
    from dolake.cli.lake import open_lake

    loaded = open_lake(settings_from(data, config)).table(table)
    found = described(loaded)[:limit]
    if as_json:
        print(orjson.dumps(found, option=orjson.OPT_INDENT_2).decode())
    else:
        _print(found)
    return 0


def described(table: LoadedTable) -> list[dict[str, Any]]:
    """Every retained snapshot of a table, newest first."""
    from dolake.iceberg.metadata import ancestry, offsets_in
    from dolake.iceberg.points import LSN_PREFIX
    from dolake.iceberg.summary import count_rows

    names: dict[int, list[dict[str, str]]] = {}
    for name, ref in sorted((table.metadata.get("refs") or {}).items()):
        names.setdefault(ref["snapshot-id"], []).append({"name": name, "type": ref["type"]})
    on_main = {one["snapshot-id"] for one in ancestry(table.metadata, table.head_id)}
    found = []
    for snapshot in table.metadata.get("snapshots") or ():
        summary = snapshot.get("summary") or {}
        rows = count_rows(summary)
        found.append(
            {
                "id": snapshot["snapshot-id"],
                "parent": snapshot.get("parent-snapshot-id"),
                "time": snapshot["timestamp-ms"],
                "operation": summary.get("operation"),
                "addedRows": rows.added,
                "deletedRows": rows.deleted,
                "totalRows": rows.total,
                "offsets": offsets_in(summary),
                "lsns": {key.removeprefix(LSN_PREFIX): lsn for key, lsn in summary.items() if key.startswith(LSN_PREFIX)},
                "refs": names.get(snapshot["snapshot-id"], []),
                "onMain": snapshot["snapshot-id"] in on_main,
                "mark": _mark(summary),
            }
        )
    return sorted(found, key=lambda one: (one["time"], one["id"]), reverse=True)


def _mark(summary: Mapping[str, str]) -> str:
    from dolake.iceberg.metadata import CUT, EPOCH
    from dolake.iceberg.points import REWIND, ROLLBACK

    if ROLLBACK in summary:
        return f"{'rewind' if REWIND in summary else 'rollback'} to {summary[ROLLBACK]}"
    if summary.get("operation") == "replace":
        return "rewrite"
    if EPOCH not in summary:
        return "foreign"
    if any(key.startswith(("added-", "deleted-", "removed-")) for key in summary):
        return ""
    return "cut" if CUT in summary else "claim"


def _print(found: list[dict[str, Any]]) -> None:
    from dolake.cli.screen import plain_table, stdout_console
    from dolake.iceberg.points import time_in_words

    headers = ["snapshot", "time", "operation", "rows added", "deleted", "rows", "offsets", "lsns", "refs", "mark"]
    shown = plain_table(headers, right=headers[3:6])
    for one in found:
        refs = ", ".join(ref["name"] if ref["type"] == "branch" else f"tag {ref['name']}" for ref in one["refs"])
        shown.add_row(
            str(one["id"]),
            time_in_words(one["time"]),
            one["operation"] or "",
            *(f"{one[key]:,}" for key in ("addedRows", "deletedRows", "totalRows")),
            "\n".join(f"{log}: {offset}" for log, offset in sorted(one["offsets"].items())),
            "\n".join(f"{source}: {lsn}" for source, lsn in sorted(one["lsns"].items())),
            refs,
            one["mark"],
        )
    console = stdout_console()
    if found:
        console.print(shown, markup=False)
    else:
        console.print("no snapshots yet")
