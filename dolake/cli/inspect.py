"""`dolake inspect TABLE`: one table as its metadata has it: schema, partitions, snapshots, files, offsets."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import orjson
import typer

from dolake.cli.options import Config, Data, Json, settings_from

if TYPE_CHECKING:
    from dolake.iceberg.metadata import LoadedTable
    from dolake.storage.store import ObjectStore

app = typer.Typer(add_completion=False)


@app.command()
def inspect(
    table: Annotated[str, typer.Argument(metavar="TABLE", help="`name` or `namespace.name`.")],
    data: Data = None,
    config: Config = None,
    as_json: Json = False,
) -> int:
    """Show one table: its schema, partition spec, snapshots with what dolake noted in each, and the files of the last."""
    from dolake.cli.lake import open_lake

    lake = open_lake(settings_from(data, config))
    described = _described(lake.table(table), lake.store)
    if as_json:
        print(orjson.dumps(described, option=orjson.OPT_INDENT_2).decode())
    else:
        _print(described)
    return 0


def _described(table: LoadedTable, store: ObjectStore) -> dict[str, Any]:
    from dolake.iceberg.contents import ContentsReader

    head = table.head
    files = ContentsReader(store).read(head).files if head is not None else ()
    return {
        "table": str(table.name),
        "location": table.location,
        "metadata": table.metadata_location,
        "uuid": table.uuid,
        "ownerEpoch": table.owner_epoch,
        "instance": table.instance,
        "offsets": table.offsets(),
        "columns": [
            {"id": field["id"], "name": field["name"], "type": _type_text(field["type"]), "required": field["required"]}
            for field in table.schema["fields"]
        ],
        "partitionedBy": [f"{field['transform']}({_column_name(table, field['source-id'])})" for field in table.spec["fields"]],
        "snapshots": [_snapshot(snapshot) for snapshot in table.metadata.get("snapshots") or ()],
        "files": [{"location": file.location, "kind": file.kind, "rows": file.row_count, "bytes": file.size_bytes} for file in files],
    }


def _snapshot(snapshot: Any) -> dict[str, Any]:
    from dolake.iceberg.summary import count_rows

    summary = snapshot["summary"]
    rows = count_rows(summary)
    return {
        "id": snapshot["snapshot-id"],
        "time": snapshot["timestamp-ms"],
        "operation": summary.get("operation"),
        "addedRows": rows.added,
        "deletedRows": rows.deleted,
        "totalRows": rows.total,
        "dolake": {key.removeprefix("dolake."): value for key, value in summary.items() if key.startswith("dolake.")},
    }


def _type_text(kind: Any) -> str:
    """A type of Iceberg's JSON in the notation of `schema` messages."""
    if isinstance(kind, str):
        return kind
    if kind["type"] == "list":
        return f"list<{_type_text(kind['element'])}>"
    if kind["type"] == "map":
        return f"map<{_type_text(kind['key'])}, {_type_text(kind['value'])}>"
    return "struct<" + ", ".join(f"{field['name']}: {_type_text(field['type'])}" for field in kind["fields"]) + ">"


def _column_name(table: LoadedTable, field_id: int) -> str:
    return next((str(field["name"]) for field in table.schema["fields"] if field["id"] == field_id), f"field {field_id}")


def _print(table: dict[str, Any]) -> None:
    from dolake.cli.screen import byte_size, moment, plain_table, stdout_console

    console = stdout_console()
    for label, value in (
        ("table", table["table"]),
        ("location", table["location"]),
        ("metadata", table["metadata"]),
        ("owner", f"epoch {table['ownerEpoch']}, instance {table['instance'] or 'none'}"),
        ("partitioned by", ", ".join(table["partitionedBy"]) or "nothing"),
        ("committed", ", ".join(f"log {log} below offset {offset}" for log, offset in sorted(table["offsets"].items())) or "nothing"),
    ):
        console.print(f"{label:<15} {value}", soft_wrap=True, markup=False)

    columns = plain_table(["id", "column", "type", "required"], right=["id"], title="\nschema")
    for column in table["columns"]:
        columns.add_row(str(column["id"]), column["name"], column["type"], "yes" if column["required"] else "")
    console.print(columns)

    headers = ["snapshot", "time", "operation", "rows added", "deleted", "rows", "dolake"]
    snapshots = plain_table(headers, right=["rows added", "deleted", "rows"], title="snapshots")
    for snapshot in table["snapshots"]:
        notes = "\n".join(f"{key}={value}" for key, value in sorted(snapshot["dolake"].items()))
        counts = [f"{snapshot[key]:,}" for key in ("addedRows", "deletedRows", "totalRows")]
        snapshots.add_row(str(snapshot["id"]), moment(snapshot["time"]), snapshot["operation"] or "", *counts, notes)
    console.print(snapshots)

    files = plain_table(["file", "kind", "rows", "bytes"], right=["rows", "bytes"], title="files")
    for file in table["files"]:
        location = file["location"].removeprefix(table["location"] + "/")
        files.add_row(location, file["kind"], f"{file['rows']:,}", byte_size(file["bytes"]))
    console.print(files)
