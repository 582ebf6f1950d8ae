"""What decoding a table's events needs to know, made once: its columns, their types in JSON and in Arrow.

Both ways of decoding, `fast` and `exact`, make a table of `Layout.event_schema`: the columns that come from the events
themselves. `rows` adds those that are the same for a whole chunk.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import overload

import pyarrow as pa
from pyiceberg.schema import Schema

from dolake.column_types import ColumnType
from dolake.parquet.letters import Place
from dolake.parquet.schema import RESERVED_NAMES, InferredColumn, arrow_schema
from dolake.parquet.types import DECLARED, Origin, arrow_type, column_type_of, origin_of, plain_arrow_type

# The same for every row of a chunk, or known without looking into the events.
CHUNK_NAMES = frozenset({"_cdc_source", "_cdc_epoch", "_cdc_log", "_cdc_offset", "_cdc_index"})


class LaterEvents(Sequence[bytes]):
    """`count` events that are taken out of their batches only if somebody looks at one."""

    def __init__(self, count: int, take: Callable[[], list[bytes]]) -> None:
        self._count, self._take = count, take
        self._events: list[bytes] | None = None

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, place: int) -> bytes: ...

    @overload
    def __getitem__(self, place: slice) -> list[bytes]: ...

    def __getitem__(self, place: int | slice) -> bytes | list[bytes]:
        if self._events is None:
            self._events = self._take()
        return self._events[place]


@dataclass(frozen=True)
class EventChunk:
    """Events of one table from one log record, in order: each a raw JSON object, valid JSON as the ingest half checked it.

    `indexes` are their places in the record. `batch` is the whole message as received, where all its events are in this chunk.
    `originals`: for dead letters that are sent again, where each of them lay first; `source` and `epoch` are its own then.
    """

    log: str
    offset: int
    source: str
    epoch: str
    events: Sequence[bytes]
    indexes: Sequence[int]
    batch: bytes | None = None
    originals: tuple[Place, ...] = ()

    def part(self, start: int, stop: int) -> EventChunk:
        """Its events from one place up to, not with, another."""
        originals = self.originals[start:stop]
        return replace(self, events=self.events[start:stop], indexes=self.indexes[start:stop], batch=None, originals=originals)

    def only(self, places: Sequence[int]) -> EventChunk:
        """Its events at these places, in this order."""
        if len(places) == len(self.events):
            return self
        return replace(
            self,
            events=[self.events[n] for n in places],
            indexes=[self.indexes[n] for n in places],
            batch=None,
            originals=tuple(self.originals[n] for n in places) if self.originals else (),
        )


@dataclass(frozen=True)
class Column:
    """A table's column: what it is called, what its JSON must be, what Arrow holds, and where its type comes from.

    `default` is the JSON text of the value of rows that do not have it.
    """

    name: str
    kind: ColumnType
    type: pa.DataType
    origin: Origin = DECLARED
    default: str | None = None

    @classmethod
    def inferred(cls, column: InferredColumn) -> Column:
        return cls(column.name, column.kind, plain_arrow_type(column.kind), Origin(True, column.beside))


def columns_of(schema: Schema, defaults: Mapping[str, str]) -> tuple[Column, ...]:
    """The columns that are not dolake's own. Raises ValueError for a type dolake does not write."""
    return tuple(
        Column(column.name, column_type_of(column), arrow_type(column.field_type), origin_of(column), defaults.get(column.name))
        for column in schema.fields
        if column.name not in RESERVED_NAMES
    )


@dataclass(frozen=True)
class Layout:
    """How a table's events are laid out: the Arrow schema of its rows, and where each column comes from."""

    table: str
    schema: pa.Schema
    event_schema: pa.Schema
    columns: tuple[Column, ...]
    primary_key: tuple[str, ...]

    @classmethod
    def of(cls, table: str, schema: Schema, primary_key: Sequence[str], defaults: Mapping[str, str] | None = None) -> Layout:
        """Raises ValueError when the table has a column of a type dolake does not write."""
        arrow = arrow_schema(schema)
        columns = columns_of(schema, defaults or {})
        known = {column.name for column in columns}
        # A key with a column the table does not have can never be compared: it is no key.
        key = tuple(primary_key) if known.issuperset(primary_key) else ()
        return cls(table, arrow, pa.schema([field for field in arrow if field.name not in CHUNK_NAMES]), columns, key)


def storage_type(kind: pa.DataType) -> pa.DataType:
    """`kind` with uuids as 16 bytes: Arrow cannot build nested arrays of extension types from values."""
    if isinstance(kind, pa.BaseExtensionType):
        return kind.storage_type
    if pa.types.is_map(kind):
        return pa.map_(_storage_field(kind.key_field), _storage_field(kind.item_field))
    if pa.types.is_list(kind):
        return pa.list_(_storage_field(kind.value_field))
    if pa.types.is_struct(kind):
        return pa.struct([_storage_field(field) for field in kind])
    return kind


def _storage_field(field: pa.Field) -> pa.Field:
    return field.with_type(storage_type(field.type))


def from_storage(array: pa.Array, kind: pa.DataType) -> pa.Array:
    """The array of `kind` over one of its `storage_type`. Not for slices."""
    if isinstance(kind, pa.BaseExtensionType):
        return pa.ExtensionArray.from_storage(kind, array)
    if storage_type(kind) == kind:
        return array
    if pa.types.is_map(kind):
        keys, items = from_storage(array.keys, kind.key_type), from_storage(array.items, kind.item_type)
        return pa.MapArray.from_arrays(array.offsets, keys, items, type=kind, mask=array.is_null())
    if pa.types.is_list(kind):
        values = from_storage(array.values, kind.value_type)
        return pa.ListArray.from_arrays(array.offsets, values, type=kind, mask=array.is_null())
    children = [from_storage(array.field(place), field.type) for place, field in enumerate(kind)]
    return pa.StructArray.from_arrays(children, fields=list(kind), mask=array.is_null())
