"""A mirror table's columns, and how its events' rows become its rows.

Events are read in one way for both kinds of table: into rows that begin with dolake's own columns (`schema.RESERVED`). A
changelog keeps them all; a mirror keeps the source's columns, and the row id where that is the key. A column has the same name and
field id in both.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import pyarrow as pa
from pyiceberg.schema import Schema
from pyiceberg.types import DoubleType, FloatType

from dolake.column_types import SimpleType
from dolake.model import ROW_ID_COLUMN
from dolake.parquet.layout import Column, columns_of, from_storage, storage_type
from dolake.parquet.schema import RESERVED, RESERVED_NAMES
from dolake.parquet.types import holds_json
from dolake.parquet.values import Misfit, parsed, raw_reader, reader

_ROW_ID = next(column for column in RESERVED if column.name == ROW_ID_COLUMN)


class _RawEvent(msgspec.Struct, gc=False):
    row_id: msgspec.Raw = msgspec.field(name="rowId", default=msgspec.Raw(b"null"))  # In a union with None text is refused.
    before: dict[str, msgspec.Raw] | None = None
    after: dict[str, msgspec.Raw] | None = None


_RAW_EVENT = msgspec.json.Decoder(_RawEvent)
_RAW_KEY = msgspec.json.Decoder(dict[str, msgspec.Raw])


@dataclass(frozen=True)
class MirrorKey:
    """What tells a mirror's rows apart: columns as the events' rows call them, and their field ids."""

    names: tuple[str, ...]
    ids: tuple[int, ...]


def mirror_key(schema: Schema, primary_key: Sequence[str]) -> MirrorKey:
    """`schema` is that of the events' rows. Without a primary key, or where a column of it is yet to come, the row id is the key."""
    ids = {column.name: column.field_id for column in schema.fields}
    if not primary_key or not all(name in ids for name in primary_key):
        return MirrorKey((ROW_ID_COLUMN,), (_ROW_ID.field_id,))
    return MirrorKey(tuple(primary_key), tuple(ids[name] for name in primary_key))


def mirror_schema(events: Schema, key: MirrorKey, required: Collection[int]) -> Schema:
    """The table's own schema; `required` are the field ids of columns that are never null.

    The key is its identifier where its columns are required and of types that Iceberg allows there.
    """
    row_id = _ROW_ID.model_copy(update={"required": _ROW_ID.field_id in required})
    fields = [row_id] if key.ids == (_ROW_ID.field_id,) else []
    for column in events.fields:
        if column.name not in RESERVED_NAMES:
            fields.append(column.model_copy(update={"required": column.field_id in required}))
    kinds = [column.field_type for column in fields if column.field_id in key.ids and column.required]
    fit = len(kinds) == len(key.ids) and all(kind.is_primitive and not isinstance(kind, FloatType | DoubleType) for kind in kinds)
    return Schema(*fields, schema_id=events.schema_id, identifier_field_ids=list(key.ids) if fit else [])


def events_schema(table: Schema) -> Schema:
    """The schema of the events' rows for a table of `mirror_schema`. Raises ValueError where the table keeps dolake's own columns."""
    columns = []
    for column in table.fields:
        if (column.field_id, column.name) == (_ROW_ID.field_id, ROW_ID_COLUMN):
            continue
        if column.name in RESERVED_NAMES:
            raise ValueError(f"{column.name} is a changelog's column, and the table is a mirror; give it another name")
        columns.append(column.model_copy(update={"required": False}))
    return Schema(*RESERVED, *columns, schema_id=table.schema_id)


def is_mirror(table: Schema) -> bool:
    """Whether a table's columns are a mirror's; one without any of dolake's own may become one."""
    return not any(column.name in RESERVED_NAMES and column.name != ROW_ID_COLUMN for column in table.fields)


def event_keys(event: bytes, key: MirrorKey) -> list[str]:
    """The keys that an event speaks of, as `_cdc_key_before` has them: of the row it is about, and of that it was before."""
    if key.ids == (_ROW_ID.field_id,):
        row_id = bytes(_RAW_EVENT.decode(event).row_id).decode()
        return [] if row_id == "null" else [f'{{"{ROW_ID_COLUMN}":{row_id}}}']
    found = []
    raw = _RAW_EVENT.decode(event)
    for image in (raw.before, raw.after):
        if image is not None and all(bytes(image.get(name, b"null")).strip() != b"null" for name in key.names):
            parts = (f"{json.dumps(name, ensure_ascii=False)}:{bytes(image[name]).decode().strip()}" for name in key.names)
            found.append("{" + ",".join(parts) + "}")
    return found


def old_key_columns(texts: Sequence[str], names: Sequence[str], schema: Schema) -> tuple[list[int], list[pa.Array]]:
    """`_cdc_key_before` texts as columns of the key `names`, and which of the texts could be read so.

    A source that uses former names writes them in the key's order. What does not fit the key's columns is no key of any row.
    """
    row_id = Column(ROW_ID_COLUMN, SimpleType("string"), pa.string())
    by_name = {ROW_ID_COLUMN: row_id, **{column.name: column for column in columns_of(schema, {})}}
    columns = [by_name[name] for name in names]
    readers = [_reader(column) for column in columns]
    places: list[int] = []
    values: list[list[Any]] = [[] for _ in columns]
    for place, text in enumerate(texts):
        try:
            found = [read(raw) for read, raw in zip(readers, _in_order(text, names), strict=True)]
        except (Misfit, ValueError):
            continue
        places.append(place)
        for known, value in zip(values, found, strict=True):
            known.append(value)
    arrays = [from_storage(pa.array(known, storage_type(column.type)), column.type) for known, column in zip(values, columns, strict=True)]
    return places, arrays


def _in_order(text: str, names: Sequence[str]) -> list[bytes]:
    raw: Mapping[str, msgspec.Raw] = _RAW_KEY.decode(text)
    ordered = [raw[name] for name in names] if all(name in raw for name in names) else list(raw.values())
    return [bytes(value).strip() for value in ordered]


def _reader(column: Column) -> Callable[[bytes], Any]:
    if holds_json(column.kind):
        return raw_reader(column.kind)
    read = reader(column.kind)
    return lambda raw: read(parsed(raw))
