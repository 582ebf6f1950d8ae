"""Log records' events into a changelog table's rows, and dead letters for those that no row can be made of.

The fast way reads some megabytes of events at once; where it gives no answer each chunk is tried alone, then its halves, and
what is left is read exactly, event by event. Both ways give the same rows, so which one ran shows only in the time it took.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa
from pyiceberg.schema import Schema

from dolake.parquet.columns import Columns
from dolake.parquet.exact import ExactDecoder, arrays_of
from dolake.parquet.fast import FastDecoder
from dolake.parquet.layout import EventChunk, LaterEvents, Layout
from dolake.parquet.letters import Letter

__all__ = ["ChangelogDecoder", "Decoded", "EventChunk"]

# Enough events to make the cost of a call small, few enough to stay in the cache and to read again (measured: 4–16 MiB).
_GROUP_BYTES = 8 * 1024 * 1024
# Fewer are not worth another try by the column: they are read one by one.
_EXACT_EVENTS = 32
_COLUMNS_MAX = 1000

Aliases = Mapping[str, str]
_Part = tuple[Sequence[EventChunk], pa.Table]


@dataclass(frozen=True)
class Decoded:
    """`rows` have the Arrow schema of `schema` (`schema.arrow_schema`), which may have grown by what the events brought."""

    rows: pa.Table
    letters: tuple[Letter, ...]
    schema: Schema


class ChangelogDecoder:
    """Decodes the events of one table as long as nothing about it is declared anew; `schema` grows meanwhile.

    Not to be called from two threads at once. `defaults`: column → JSON text. Raises ValueError when the table has a column of
    a type dolake does not write.
    """

    def __init__(
        self,
        table: str,
        schema: Schema,
        primary_key: Sequence[str] = (),
        *,
        defaults: Mapping[str, str] | None = None,
        columns_max: int = _COLUMNS_MAX,
        last_column_id: int = 0,
    ) -> None:
        self._table, self._primary_key, self._defaults = table, tuple(primary_key), defaults or {}
        self._columns = Columns(schema, columns_max=columns_max, last_column_id=last_column_id, defaults=self._defaults)
        self._settle()

    def _settle(self) -> None:
        self.schema = self._columns.schema()
        self._layout = Layout.of(self._table, self.schema, self._primary_key, self._defaults)
        self._fast: dict[tuple[tuple[str, str], ...], FastDecoder] = {}
        # The whole key: its columns may only be coming with the events.
        self._exact = ExactDecoder(self._columns, self._primary_key)

    def decode(self, chunks: Sequence[EventChunk], aliases: Mapping[str, Aliases] | None = None) -> Decoded:
        """The rows of `chunks`, in their order. `aliases`: source → former column names it still uses → names now.

        Blocking, no I/O; releases the GIL for most of its time.
        """
        letters: list[Letter] = []
        parts: list[_Part] = []
        for group in _groups([chunk for chunk in chunks if len(chunk.events)], aliases or {}):
            parts += self._decode_group(group, (aliases or {}).get(group[0].source, {}), letters)
        tables = [_widened(rows, self._layout.event_schema) for _, rows in parts]
        # Not `Schema.empty_table`: it cannot make nested uuids.
        nothing = [pa.nulls(0, field.type) for field in self._layout.event_schema]
        events = pa.concat_tables([*tables, pa.Table.from_arrays(nothing, schema=self._layout.event_schema)])
        rows = _with_places(self._layout, events, [chunk for kept, _ in parts for chunk in kept])
        return Decoded(rows, tuple(letters), self.schema)

    def _decode_group(self, group: Sequence[EventChunk], aliases: Aliases, letters: list[Letter]) -> list[_Part]:
        """From whole batches, if that will do: taking each event out of its batch is a fifth of all work."""
        events = LaterEvents(sum(len(chunk.events) for chunk in group), lambda: [event for chunk in group for event in chunk.events])
        batches = [chunk.batch for chunk in group if chunk.batch is not None]
        for fast in self._ways(aliases):
            found = fast.decode_batches(batches, events) if len(batches) == len(group) else None
            found = fast.decode(events) if found is None else found
            if found is not None:
                return [(group, found)]
        return [part for chunk in group for part in self._decode_chunk(chunk, aliases, letters, tried=len(group) == 1)]

    def _decode_chunk(self, chunk: EventChunk, aliases: Aliases, letters: list[Letter], *, tried: bool) -> list[_Part]:
        """By halves: so a few bad events cost their neighbours little."""
        ways = self._ways(aliases)
        for fast in () if tried else ways:
            if (found := fast.decode(chunk.events)) is not None:
                return [([chunk], found)]
        middle = len(chunk.events) // 2
        if len(chunk.events) > _EXACT_EVENTS and ways[0].able:
            first = self._decode_chunk(chunk.part(0, middle), aliases, letters, tried=False)
            return first + self._decode_chunk(chunk.part(middle, len(chunk.events)), aliases, letters, tried=False)
        readings = self._exact.read(chunk, aliases)
        letters += readings.letters
        if self._columns.schema() is not self.schema:
            self._settle()
        rows = arrays_of(readings.rows, self._layout.event_schema)
        return [([chunk.only(readings.places)], rows)] if readings.rows else []

    def _ways(self, aliases: Aliases) -> list[FastDecoder]:
        """By the names of now and, for a source that may still use former ones, by those."""
        found = []
        for names in ({}, aliases) if aliases else ({},):
            key = tuple(sorted(names.items()))
            if key not in self._fast:
                self._fast[key] = FastDecoder(self._layout, names)
            found.append(self._fast[key])
        return found


def _groups(chunks: Sequence[EventChunk], aliases: Mapping[str, Aliases]) -> Iterator[list[EventChunk]]:
    """Chunks to be read together: some megabytes of sources that use the same names."""
    group: list[EventChunk] = []
    size_bytes = 0
    for chunk in chunks:
        if group and aliases and aliases.get(group[0].source, {}) != aliases.get(chunk.source, {}):
            yield group
            group, size_bytes = [], 0
        group.append(chunk)
        # About: events of one record are much alike, and a group may be somewhat larger.
        size_bytes += 8 * sum(map(len, chunk.events[::8])) if chunk.batch is None else len(chunk.batch)
        if size_bytes >= _GROUP_BYTES:
            yield group
            group, size_bytes = [], 0
    if group:
        yield group


def _widened(rows: pa.Table, schema: pa.Schema) -> pa.Table:
    """Rows that were read before the table got its newest columns."""
    if rows.schema.equals(schema):
        return rows
    have = set(rows.schema.names)
    columns = [rows.column(field.name) if field.name in have else pa.nulls(rows.num_rows, field.type) for field in schema]
    return pa.Table.from_arrays(columns, schema=schema)


def _with_places(layout: Layout, events: pa.Table, chunks: Sequence[EventChunk]) -> pa.Table:
    """Adds the columns that say where each event came from and where it lies: the same for a chunk, but for the index."""
    places = {
        "_cdc_source": _repeated([chunk.source for chunk in chunks], chunks),
        "_cdc_epoch": _repeated([chunk.epoch for chunk in chunks], chunks),
        "_cdc_log": _repeated([chunk.log for chunk in chunks], chunks),
        "_cdc_offset": _joined([pa.repeat(pa.scalar(chunk.offset, pa.int64()), len(chunk.events)) for chunk in chunks], pa.int64()),
        "_cdc_index": _joined([_indexes(chunk.indexes) for chunk in chunks], pa.int32()),
    }
    columns = [places[name] if name in places else events.column(name) for name in layout.schema.names]
    return pa.Table.from_arrays(columns, schema=layout.schema)


def _joined(parts: Sequence[pa.Array], kind: pa.DataType) -> pa.Array:
    return pa.concat_arrays(parts) if parts else pa.array([], kind)


def _repeated(values: Sequence[str], chunks: Sequence[EventChunk]) -> pa.Array:
    """A dictionary column with one value for the whole of each chunk."""
    known = {value: place for place, value in enumerate(dict.fromkeys(values))}
    dictionary = pa.array(known, pa.string())
    indices = [pa.repeat(pa.scalar(known[value], pa.int32()), len(chunk.events)) for value, chunk in zip(values, chunks, strict=True)]
    return pa.DictionaryArray.from_arrays(_joined(indices, pa.int32()), dictionary)


def _indexes(indexes: Sequence[int]) -> pa.Array:
    if isinstance(indexes, range) and indexes.step == 1:
        return pa.arange(indexes.start, indexes.stop).cast(pa.int32())
    return pa.array(indexes, pa.int32())
