"""Declared schemas as table properties: what the writer must know of a table once the log that said it is trimmed."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import xxhash

from dolake.model import DeclaredColumn, DeclaredSchema

SCHEMA_PROPERTY = "dolake.schema."
# Former column names → field ids, for sources that still use them.
RENAMED_PROPERTY = "dolake.renamed"


def as_property(source: str, declared: DeclaredSchema) -> dict[str, str]:
    """Named by a hash: property names must be short and plain, source names need not be."""
    value = {"source": source, **declared_as_json(declared)}
    return {SCHEMA_PROPERTY + xxhash.xxh3_64_hexdigest(source.encode()): json.dumps(value, ensure_ascii=False)}


def declared_schemas(properties: Mapping[str, str]) -> Iterator[tuple[str, DeclaredSchema]]:
    for key, text in properties.items():
        if key.startswith(SCHEMA_PROPERTY):
            value: dict[str, Any] = json.loads(text)
            yield value["source"], declared_from_json(value)


def declared_as_json(declared: DeclaredSchema) -> dict[str, Any]:
    columns = []
    for column in declared.columns:
        value: dict[str, Any] = {"name": column.name, "type": column.type, "nullable": column.nullable}
        if column.default is not None:
            value["default"] = column.default
        if column.renamed_from is not None:
            value["renamedFrom"] = column.renamed_from
        columns.append(value)
    return {"table": declared.table, "primaryKey": list(declared.primary_key), "columns": columns}


def declared_from_json(value: Mapping[str, Any]) -> DeclaredSchema:
    """A declared schema as a table property carries it."""

    return DeclaredSchema(
        table=value["table"],
        primary_key=tuple(value["primaryKey"]),
        columns=tuple(
            DeclaredColumn(
                name=column["name"],
                type=column["type"],
                nullable=column["nullable"],
                default=column.get("default"),
                renamed_from=column.get("renamedFrom"),
            )
            for column in value["columns"]
        ),
    )


def renamed_as_property(renamed: Mapping[str, int]) -> dict[str, str]:
    return {RENAMED_PROPERTY: json.dumps(renamed, ensure_ascii=False, sort_keys=True)}


def renamed_columns(properties: Mapping[str, str]) -> dict[str, int]:
    found: dict[str, int] = json.loads(properties.get(RENAMED_PROPERTY, "{}"))
    return found
