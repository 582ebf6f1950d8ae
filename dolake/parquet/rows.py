"""Log records' events into a changelog table's rows.

The fast way reads some megabytes of events at once; where it gives no answer each chunk is tried alone, and what is left
is read exactly, event by event. Both ways give the same rows, so which one ran shows only in the time it took.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pyarrow as pa
from pyiceberg.schema import Schema

from dolake.parquet.exact import ExactDecoder
from dolake.parquet.fast import FastDecoder
from dolake.parquet.layout import EventChunk, LaterEvents, Layout

__all__ = ["EventChunk", "decode_changelog"]

# Enough events to make the cost of a call small, few enough to stay in the cache and to read again (measured: 4–16 MiB).
_GROUP_BYTES = 8 * 1024 * 1024


def decode_changelog(table: str, schema: Schema, primary_key: Sequence[str], chunks: Sequence[EventChunk]) -> pa.Table:
    """The rows of `chunks`, in their order, with the table's Arrow schema (`schema.arrow_schema`).

    Raises RowRejected for the first event, in that order, that cannot be read or does not fit; ValueError when the table has
    a column of a type dolake does not write. Blocking, no I/O; releases the GIL for most of its time.
    """
    layout = Layout.of(table, schema, primary_key)
    fast, exact = FastDecoder(layout), ExactDecoder(layout)
    parts: list[pa.Table] = []
    for group in _groups([chunk for chunk in chunks if len(chunk.events)]):
        found = _decode_fast(fast, group)
        if found is not None:
            parts.append(found)
            continue
        for chunk in group:
            alone = fast.decode(chunk.events) if len(group) > 1 else None
            parts.append(exact.decode(chunk) if alone is None else alone)
    # Not `Schema.empty_table`: it cannot make nested uuids.
    nothing = [pa.nulls(0, field.type) for field in layout.event_schema]
    events = pa.concat_tables([*parts, pa.Table.from_arrays(nothing, schema=layout.event_schema)])
    return _with_places(layout, events, [chunk for chunk in chunks if len(chunk.events)])


def _decode_fast(fast: FastDecoder, group: Sequence[EventChunk]) -> pa.Table | None:
    """From whole batches, if that will do: taking each event out of its batch is a fifth of all work."""
    events = LaterEvents(sum(len(chunk.events) for chunk in group), lambda: [event for chunk in group for event in chunk.events])
    batches = [chunk.batch for chunk in group if chunk.batch is not None]
    found = fast.decode_batches(batches, events) if len(batches) == len(group) else None
    return fast.decode(events) if found is None else found


def _groups(chunks: Sequence[EventChunk]) -> Iterator[list[EventChunk]]:
    group: list[EventChunk] = []
    size_bytes = 0
    for chunk in chunks:
        group.append(chunk)
        # About: events of one record are much alike, and a group may be somewhat larger.
        size_bytes += 8 * sum(map(len, chunk.events[::8])) if chunk.batch is None else len(chunk.batch)
        if size_bytes >= _GROUP_BYTES:
            yield group
            group, size_bytes = [], 0
    if group:
        yield group


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
