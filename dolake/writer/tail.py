"""Follows one log: reads what is synced, in order, and splits each record into its tables' events."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from dolake.buffer.parked import ParkedRecord
from dolake.buffer.tail import LogReader
from dolake.cdc.message import decode_schema, event_tables, replayed_letters, split_events
from dolake.config.namespaces import TableNames
from dolake.errors import ConfigurationError, LogCorrupt, Mistake
from dolake.model import DEAD_LETTERS_SOURCE, DeclaredSchema, Record, RecordKind, TableName
from dolake.parquet.layout import EventChunk, LaterEvents
from dolake.parquet.letters import Place
from dolake.writer.transactions import OpenTransactions

READ_BYTES = 4 << 20  # More costs more: the pieces of what was read leave the processor's cache (measured).


@dataclass(frozen=True)
class Routed:
    """A record with its events by table, or the schema it declares. Tables are called what they are in the lake."""

    record: Record
    chunks: tuple[tuple[TableName, EventChunk], ...] = ()
    declares: tuple[tuple[TableName, DeclaredSchema], ...] = ()

    def tables(self) -> list[TableName]:
        return [name for name, _ in (*self.chunks, *self.declares)]


@dataclass
class Tail:
    """One log as the writer follows it. `position` is the first offset that no table has been handed yet."""

    directory: str
    reader: LogReader
    position: int
    trouble: str = ""
    transactions: OpenTransactions = field(default_factory=OpenTransactions)

    @property
    def log_id(self) -> str:
        return self.reader.log_id


def read_routed(reader: LogReader, names: TableNames, start: int, size_bytes_max: int = READ_BYTES) -> list[Routed]:
    """The next synced records from `start`, split by table; what was trimmed by now is passed over. Blocks.

    Raises ConfigurationError for a table that the settings, changed since it was accepted, give no name.
    """
    try:
        records = reader.read(start, size_bytes_max)
    except LogCorrupt:
        # Nothing pins offsets that hold no rows: they may go between a look at the log and the reading of it.
        following = reader.after_trim(start)
        if following == start:
            raise
        records = reader.read(following, size_bytes_max)
    return [route(record, names) for record in records]


def route(record: Record, names: TableNames) -> Routed:
    """What a record means for tables: a declaration, or events by table."""
    entry = record.entry
    tables = {text: _table(names, entry.source, text) for text in entry.tables}
    if entry.kind == RecordKind.SCHEMA:
        declared = decode_schema(entry.payload)
        name = _table(names, entry.source, declared.table)
        return Routed(record, declares=tuple((fed, replace(declared, table=str(fed))) for fed in names.fed_by(name)))
    if entry.kind != RecordKind.BATCH or not tables:
        return Routed(record)
    if len(set(tables.values())) == 1 and (again := _sent_again(record)) is not None:  # One table, called `orders` and `default.orders`.
        return Routed(record, tuple((fed, again) for fed in names.fed_by(next(iter(tables.values())))))
    if len(tables) == 1:
        (only,) = tables.values()
        later = LaterEvents(entry.event_count, lambda: split_events(entry.payload))
        chunk = _chunk(record, later, range(entry.event_count), entry.payload)
        return Routed(record, tuple((fed, chunk) for fed in names.fed_by(only)))
    events = split_events(entry.payload)
    places: dict[str, list[int]] = {table: [] for table in entry.tables}
    for place, table in enumerate(event_tables(entry.payload)):
        places[table].append(place)
    merged: dict[TableName, list[int]] = {}
    for text, indexes in places.items():
        name = tables[text]  # `orders` and `default.orders` are one table
        merged[name] = sorted([*merged.get(name, ()), *indexes])
    chunks = [(name, _chunk(record, [events[n] for n in indexes], indexes)) for name, indexes in merged.items()]
    return Routed(record, tuple((fed, chunk) for name, chunk in chunks for fed in names.fed_by(name)))


def part_of(item: Routed, name: TableName) -> ParkedRecord | None:
    """What of a record a side log of this table keeps; None where there is nothing."""
    record = item.record
    if any(table == name for table, _ in item.declares):
        return ParkedRecord(replace(record, entry=replace(record.entry, tables={str(name): 0})))
    for table, chunk in item.chunks:
        if table == name:
            whole = chunk.batch is not None or bool(chunk.originals)  # A batch of letters says beside its events whose they are.
            payload = record.entry.payload if whole else b'{"events":[%b]}' % b",".join(chunk.events)
            entry = replace(record.entry, tables={str(name): len(chunk.indexes)}, event_count=len(chunk.indexes), payload=payload)
            return ParkedRecord(replace(record, entry=entry), None if whole else tuple(chunk.indexes))
    return None


def reroute(parked: ParkedRecord, name: TableName) -> Routed:
    """What `part_of` kept, as it was routed then: whatever the settings call the table now, it is this one."""
    record = parked.record
    entry = record.entry
    if entry.kind == RecordKind.SCHEMA:
        return Routed(record, declares=((name, replace(decode_schema(entry.payload), table=str(name))),))
    if parked.places is None:
        if (again := _sent_again(record)) is not None:
            return Routed(record, ((name, again),))
        later = LaterEvents(entry.event_count, lambda: split_events(entry.payload))
        return Routed(record, ((name, _chunk(record, later, range(entry.event_count), entry.payload)),))
    return Routed(record, ((name, _chunk(record, split_events(entry.payload), parked.places)),))


def _table(names: TableNames, source: str, text: str) -> TableName:
    try:
        return names.of(source, text)
    except ValueError as error:
        raise ConfigurationError([Mistake(f"sources.{source}.namespace", text, str(error))]) from None


def _sent_again(record: Record) -> EventChunk | None:
    """Dead letters that are sent again count as their own source's."""
    entry = record.entry
    letters = replayed_letters(entry.payload) if entry.source == DEAD_LETTERS_SOURCE else None
    if letters is None or len(letters.places) != entry.event_count:
        return None
    places = tuple(Place(*place) for place in letters.places)
    chunk = _chunk(record, split_events(entry.payload), range(entry.event_count))
    return replace(chunk, source=letters.source, epoch=letters.epoch, originals=places)


def _chunk(record: Record, events: Sequence[bytes], indexes: Sequence[int], batch: bytes | None = None) -> EventChunk:
    entry = record.entry
    return EventChunk(
        log=record.log_id, offset=record.offset, source=entry.source, epoch=entry.epoch, events=events, indexes=indexes, batch=batch
    )
