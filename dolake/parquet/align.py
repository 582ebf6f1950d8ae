"""Rows that were decoded under an older schema, as a newer schema of the same table has them; and schemas as JSON."""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Any

import orjson
import pyarrow as pa
from pyiceberg.schema import Schema

from dolake.parquet.schema import arrow_schema

_FIELD_ID = b"PARQUET:field_id"


def align(rows: pa.Table, schema: Schema) -> pa.Table:
    """Columns are found by field id, so renamed ones keep their values, widened ones are cast, new ones are null."""
    wanted = arrow_schema(schema)
    if rows.schema.equals(wanted, check_metadata=True):
        return rows
    return align_columns(rows, wanted)


def align_columns(rows: pa.Table, wanted: pa.Schema) -> pa.Table:
    """The columns that `wanted` has, by field id."""
    here = {(field.metadata or {}).get(_FIELD_ID): place for place, field in enumerate(rows.schema)}
    columns = []
    for field in wanted:
        place = here.get(field.metadata[_FIELD_ID])
        if place is None:
            columns.append(pa.chunked_array([pa.nulls(rows.num_rows, field.type)]))
        else:
            column = rows.column(place)
            columns.append(column if column.type == field.type else column.cast(field.type))
    return pa.table(columns, schema=wanted)


def no_rows(schema: pa.Schema) -> pa.Table:
    """Not `Schema.empty_table`: it cannot make nested uuids."""
    return pa.table([pa.nulls(0, field.type) for field in schema], schema=schema)


def schema_as_json(schema: Schema) -> dict[str, Any]:
    """As table metadata holds it."""
    value: dict[str, Any] = json.loads(schema.model_dump_json())
    return value


def schema_from_json(value: Any) -> Schema:
    """Of what table metadata holds. The same object for the same text: PyIceberg derives much from one, and keeps it there."""
    return _parsed(orjson.dumps(value))


@lru_cache(maxsize=64)
def _parsed(text: bytes) -> Schema:
    return Schema.model_validate_json(text)
