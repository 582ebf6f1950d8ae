"""A table's events once more, by the exact decoder, under the schema that the table has now.

What cannot be known any more is told apart, so that it is not compared: values that columns had under other names, defaults that
were declared later or changed, events that the present schema has no place for.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import msgspec
import pyarrow as pa

from dolake.iceberg.metadata import LoadedTable
from dolake.model import ROW_ID_COLUMN, DeclaredSchema
from dolake.parquet.align import schema_from_json
from dolake.parquet.columns import Columns
from dolake.parquet.exact import OPERATIONS, ExactDecoder
from dolake.parquet.layout import EventChunk, from_storage, storage_type
from dolake.parquet.mirror import events_schema, old_key_columns
from dolake.parquet.redact import Redactor
from dolake.parquet.schema import arrow_schema
from dolake.parquet.types import origin_of
from dolake.verify.fold import UNKNOWN, Event, Key
from dolake.verify.keys import TableKey, declared_schemas, is_mirror, renamed_columns

_COLUMNS_MAX = 1_000_000
_MEMBERS = msgspec.json.Decoder(dict[str, msgspec.Raw])
PLACE = "\0place"  # no column's name


@dataclass(frozen=True)
class DecodedEvent:
    """`row` by column name in the values that Arrow's storage types take, with its place under PLACE; UNKNOWN where only the key
    could be read."""

    event: Event
    row: Any


class EventsLost(Exception):
    """An event cannot be read any more, not even its key: what came after it cannot be told."""


class EventReader:
    """One table's events. `key` None: rows are compared by their places, and keys do not matter."""

    def __init__(self, table: LoadedTable, key: TableKey | None, primary_key: Sequence[str], redactor: Redactor | None) -> None:
        committed = schema_from_json(table.schema)
        self._mirror = is_mirror(table)
        self.schema = events_schema(committed) if self._mirror else committed
        self.arrow = arrow_schema(self.schema)
        self._key, self._redactor = key, redactor
        self._key_names = () if key is None else key.names
        self._primary_key = () if self._key_names == (ROW_ID_COLUMN,) else tuple(primary_key)
        self._columns = Columns(self.schema, columns_max=_COLUMNS_MAX)
        self._exact = ExactDecoder(self._columns, self._primary_key)
        names = {column.field_id: column.name for column in self.schema.fields}
        former = {old: names[field_id] for old, field_id in renamed_columns(table).items() if names.get(field_id, old) != old}
        taken = set(names.values())
        self._aliases = {old: new for old, new in former.items() if old not in taken}
        besides = {beside for column in self.schema.fields if (beside := origin_of(column).beside)}
        declared = {column.name for column in self.schema.fields if not origin_of(column).inferred}
        self.unsure_columns = {name for old, new in former.items() if old in taken for name in (old, new)}
        for column in self.schema.fields:  # What did not fit went beside it, and may fit since it was declared.
            if (column.name if column.name in besides else origin_of(column).beside) in declared:
                self.unsure_columns.add(column.name)
        self.defaulted = {one["name"] for said in declared_schemas(table) for one in said["columns"] if "default" in one}
        self._own = self._own_columns()

    def declare(self, declared: DeclaredSchema) -> None:
        """A declaration that is still in the log."""
        self.defaulted |= {column.name for column in declared.columns if column.default is not None}

    def read(self, chunk: EventChunk, first_declared: int | None) -> Iterator[DecodedEvent]:
        """`first_declared`: the offset of the first declaration that the chunk's log still has. Raises EventsLost."""
        if self._redactor is not None:
            clean = self._redactor.events(chunk.events, replayed=bool(chunk.originals))
            chunk = replace(chunk, events=clean.events, batch=None)
        sure = first_declared is None or chunk.offset > first_declared
        readings = self._exact.read(chunk, self._aliases)
        rows: dict[int, dict[str, Any]] = dict(zip(readings.places, readings.rows, strict=True))
        only_key = {place: self._key_of(chunk, place) for place in range(len(chunk.events)) if place not in rows}
        keyed = [rows.get(place) or only_key[place] for place in range(len(chunk.events))]
        keys = self._keys(keyed)
        for place, row in enumerate(keyed):
            row[PLACE] = (chunk.log, chunk.offset, chunk.indexes[place])
            event = Event(
                log=chunk.log,
                source=chunk.source,
                operation=OPERATIONS[row["_cdc_operation"]],
                key=keys[place],
                old_key=self.old_key(row.get("_cdc_key_before")),
                unchanged=self.unchanged(row.get("_cdc_unchanged") or ()),
                row=row if place in rows else UNKNOWN,
                sure=sure or row.get("_cdc_key_before") is None,
            )
            yield DecodedEvent(event, event.row)

    def table_of(self, rows: Sequence[Mapping[str, Any]], names: Collection[str]) -> pa.Table:
        """Rows' columns as Arrow has them."""
        fields = [_nullable(self.arrow.field(name)) for name in names]
        arrays = [_array([_value(field.name, row) for row in rows], field.type) for field in fields]
        return pa.Table.from_arrays(arrays, schema=pa.schema(fields))

    def old_key(self, text: str | None) -> Key | None:
        """The key in a `_cdc_key_before`; None for one that is no key of any row."""
        if text is None or not self._key_names:
            return None
        readable, columns = old_key_columns([text], self._key_names, self.schema)
        return tuple(plain_values(column)[0] for column in columns) if readable else None

    def unchanged(self, names: Sequence[str]) -> tuple[str, ...]:
        """The mirror's columns that an event's names mean, and those beside them that take their values of other types."""
        return tuple(column for name in names for column in self._own.get(self._aliases.get(name, name), ()))

    def _own_columns(self) -> dict[str, list[str]]:
        own = [column for column in self.schema.fields if not column.name.startswith("_cdc_") and column.name not in self._key_names]
        return {one.name: [one.name, *(other.name for other in own if origin_of(other).beside == one.name)] for one in own}

    def _keys(self, rows: Sequence[Mapping[str, Any]]) -> list[Key]:
        table = self.table_of(rows, self._key_names)
        return list(zip(*(plain_values(table[name]) for name in self._key_names), strict=True)) if self._key_names else [()] * len(rows)

    def _key_of(self, chunk: EventChunk, place: int) -> dict[str, Any]:
        """What an event says of its key, whatever else is in it. Raises EventsLost."""
        try:
            members = _MEMBERS.decode(chunk.events[place])
            for image in ("before", "after"):
                if image in members and bytes(members[image]).strip() != b"null":
                    given = _MEMBERS.decode(members[image])
                    kept = {name: raw for name, raw in given.items() if self._aliases.get(name, name) in self._key_names}
                    members[image] = msgspec.Raw(msgspec.json.encode(kept))
            raw = msgspec.json.encode(members)
        except msgspec.MsgspecError as error:
            raise EventsLost(str(error)) from None
        readings = self._exact.read(replace(chunk, events=[raw], indexes=[chunk.indexes[place]], batch=None), self._aliases)
        if not readings.rows:
            raise EventsLost(readings.letters[0].rule)
        return readings.rows[0]


def plain_values(column: pa.ChunkedArray | pa.Array) -> list[Any]:
    """A column's values; uuids as their bytes."""
    chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
    return [value for chunk in chunks for value in (chunk.storage if isinstance(chunk, pa.ExtensionArray) else chunk).to_pylist()]


def column_of(values: Sequence[Any], kind: pa.DataType) -> pa.Array:
    """The reverse of `plain_values`."""
    return _array(list(values), kind)


def _array(values: list[Any], kind: pa.DataType) -> pa.Array:
    return from_storage(pa.array(values, storage_type(kind)), kind)


def _value(name: str, row: Mapping[str, Any]) -> Any:
    value = row.get(name)
    return OPERATIONS[value] if name == "_cdc_operation" and isinstance(value, int) else value


def _nullable(field: pa.Field) -> pa.Field:
    nullable = field.with_nullable(True)
    return nullable.with_type(field.type.value_type) if pa.types.is_dictionary(field.type) else nullable
