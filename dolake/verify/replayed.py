"""The events that logs and side logs still hold, by table, each in the order of its log."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass

from dolake.buffer.parked import ParkedRecord, decode_parked, parked_tables, side_directory
from dolake.buffer.tail import LogReader
from dolake.cdc.message import decode_schema, event_tables, replayed_letters, split_events
from dolake.errors import LogCorrupt
from dolake.model import DEAD_LETTERS_SOURCE, RESERVED_SUFFIX, DeclaredSchema, Record, RecordKind, TableName
from dolake.parquet.layout import EventChunk
from dolake.parquet.letters import Place
from dolake.storage.disk import Disk
from dolake.verify.logs import READ_BYTES, LogView, TableOf


class LogTrimmed(Exception):
    """What is to be read was trimmed meanwhile: events are missing between others."""


@dataclass(frozen=True)
class Logged:
    """What one record has for one table: its events, or what a source declares of it."""

    table: TableName
    chunk: EventChunk | None = None
    declared: DeclaredSchema | None = None


def read_events(
    disk: Disk,
    data: str,
    views: Sequence[LogView],
    wanted: Collection[TableName],
    table_of: TableOf,
    progress: Callable[[str], None] = lambda subject: None,
) -> Iterator[Logged]:
    """Of the tables `wanted`, up to the end that each view had. What is parked comes in its place: a log may have lost it since.

    Raises LogTrimmed where a running daemon is quicker, DolakeError for a log that cannot be read.
    """
    sides = [side for table in parked_tables(disk, data) if table in wanted for side in _sides(disk, data, table)]
    logs = {view.log_id for view in views}
    for side in sides:
        if side.log_id not in logs:
            yield from side.read(disk, data)
    for view in views:
        waiting = [side for side in sides if side.log_id == view.log_id]
        beside = list(waiting)
        reader = LogReader(disk, view.directory)
        try:
            position = max(view.first, reader.first_offset())
            while position < view.end and (records := _next(reader, position)):
                progress(f"log {view.log_id}, offset {position} of {view.end}")
                for record in records:
                    for side in [side for side in waiting if side.first <= record.offset]:
                        waiting.remove(side)
                        yield from side.read(disk, data)
                    if record.offset < view.end:
                        for item in _split(record, wanted, table_of):
                            if not any(side.table == item.table and side.first <= record.offset < side.end for side in beside):
                                yield item
                position = records[-1].offset + 1
        finally:
            reader.close()
        for side in waiting:
            yield from side.read(disk, data)


@dataclass(frozen=True)
class _Side:
    """What a side log has of one log: every event of its table from `first` up to, not with, `end`."""

    table: TableName
    log_id: str
    first: int
    end: int

    def read(self, disk: Disk, data: str) -> Iterator[Logged]:
        for parked in _parked(disk, data, self.table):
            record = parked.record
            if record.log_id != self.log_id:
                continue
            if record.entry.kind == RecordKind.SCHEMA:
                yield Logged(self.table, declared=decode_schema(record.entry.payload))
            elif record.entry.kind == RecordKind.BATCH:
                events = split_events(record.entry.payload)
                yield Logged(self.table, _chunk(record, events, range(len(events)) if parked.places is None else parked.places))


def _sides(disk: Disk, data: str, table: TableName) -> list[_Side]:
    found: dict[str, _Side] = {}
    for parked in _parked(disk, data, table):
        record = parked.record
        first = found[record.log_id].first if record.log_id in found else record.offset
        found[record.log_id] = _Side(table, record.log_id, first, record.offset + 1)
    return list(found.values())


def _parked(disk: Disk, data: str, table: TableName) -> Iterator[ParkedRecord]:
    directory = side_directory(data, table)
    reader = LogReader(disk, directory)
    try:
        position, end = reader.first_offset(), reader.synced_end()
        while position < end and (stored := reader.read(position, READ_BYTES)):
            for one in stored:
                yield decode_parked(one, directory)
            position = stored[-1].offset + 1
    finally:
        reader.close()


def _next(reader: LogReader, position: int) -> list[Record]:
    try:
        return reader.read(position, READ_BYTES)
    except LogCorrupt:
        if reader.first_offset() > position:
            raise LogTrimmed(f"log {reader.log_id} was trimmed above offset {position} while it was read") from None
        raise


def _split(record: Record, wanted: Collection[TableName], table_of: TableOf) -> Iterator[Logged]:
    """A changelog beside a mirror has the mirror's events."""
    entry = record.entry
    if entry.kind == RecordKind.SCHEMA:
        declared = decode_schema(entry.payload)
        for table in _heard_by(table_of(entry.source, declared.table), wanted):
            yield Logged(table, declared=declared)
    if entry.kind != RecordKind.BATCH:
        return
    tables = {text: table_of(entry.source, text) for text in entry.tables}
    if not any(_heard_by(name, wanted) for name in tables.values()):
        return
    events, named = split_events(entry.payload), event_tables(entry.payload)
    for name in dict.fromkeys(tables.values()):
        indexes = [index for index, text in enumerate(named) if tables[text] == name]
        chunk = _chunk(record, [events[index] for index in indexes], indexes)
        for table in _heard_by(name, wanted):
            yield Logged(table, chunk)


def _heard_by(name: TableName, wanted: Collection[TableName]) -> list[TableName]:
    return [table for table in (name, TableName(name.namespace, name.name + RESERVED_SUFFIX)) if table in wanted]


def _chunk(record: Record, events: Sequence[bytes], indexes: Sequence[int]) -> EventChunk:
    """Dead letters that were sent again count as their own source's."""
    entry = record.entry
    chunk = EventChunk(record.log_id, record.offset, entry.source, entry.epoch, events, indexes)
    letters = replayed_letters(entry.payload) if entry.source == DEAD_LETTERS_SOURCE else None
    if letters is None or len(letters.places) != len(events):
        return chunk
    originals = tuple(Place(*place) for place in letters.places)
    return EventChunk(record.log_id, record.offset, letters.source, letters.epoch, events, indexes, originals=originals)
