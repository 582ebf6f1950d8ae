"""The logs on their own (I2, I3) and against what is committed (I5, I6)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from dolake.buffer.inspect import verify_log
from dolake.buffer.sources import trimmed_tables_end
from dolake.buffer.tail import LogReader
from dolake.errors import DolakeError, LogCorrupt
from dolake.iceberg.metadata import LoadedTable
from dolake.model import Record, RecordKind, TableName
from dolake.storage.disk import Disk
from dolake.verify.breach import Breach

READ_BYTES = 16 << 20
TableOf = Callable[[str, str], TableName]


@dataclass(frozen=True)
class LogView:
    """One log as it can be read now: which offsets, and how many events of which table each record holds."""

    directory: str
    log_id: str
    first: int
    end: int
    events: Mapping[tuple[str, int], int]
    trimmed_tables_end: int | None = None  # what was trimmed last held events of tables below this offset; None: none, or not known


def verify_logs(disk: Disk, directories: Sequence[str], table_of: TableOf) -> Iterator[Breach | LogView]:
    """Breaches as they are found, and a view of each log that can be read. `table_of`: the table a source means by a name."""
    for directory in directories:
        for sentence in verify_log(disk, directory):
            yield Breach("I2", directory, sentence)
        try:
            reader = LogReader(disk, directory)
            first, end = reader.first_offset(), reader.synced_end()
            events: Counter[tuple[str, int]] = Counter()
            sequences: dict[tuple[str, str], int] = {}
            position, tables_end = first, None
            while position < end:
                try:
                    records = reader.read(position, READ_BYTES)
                except LogCorrupt:
                    if (following := reader.after_trim(position)) == position:
                        raise
                    # A trim was cut short, and left some of what it may take: what is whole begins behind the last gap.
                    first = position = following
                    events.clear()
                    sequences.clear()
                    continue
                if not records:
                    break
                for record in records:
                    yield from _verify_sequence(directory, record, sequences)
                    if record.entry.kind == RecordKind.TRIM:
                        tables_end = trimmed_tables_end(record.entry)
                    for table, count in record.entry.tables.items():
                        events[str(table_of(record.entry.source, table)), record.offset] += count
                position = records[-1].offset + 1
        except (DolakeError, ValueError) as error:  # ValueError: a name that the settings, changed meanwhile, turn into none.
            yield Breach("I2", directory, str(error))
            continue
        yield LogView(directory, reader.log_id, first, end, events, tables_end)


def _verify_sequence(directory: str, record: Record, sequences: dict[tuple[str, str], int]) -> Iterator[Breach]:
    entry = record.entry
    if entry.kind not in (RecordKind.BATCH, RecordKind.SCHEMA):
        return
    key = (entry.source, entry.epoch)
    before = sequences.get(key)
    if before is not None and entry.sequence != before + 1:
        yield Breach(
            "I3",
            directory,
            f"offset {record.offset}: sequence {entry.sequence} of source {entry.source!r} follows {before}, it must be {before + 1}",
        )
    sequences[key] = entry.sequence


def verify_not_ahead(tables: Sequence[LoadedTable], views: Sequence[LogView]) -> Iterator[Breach]:
    """I5: no table has committed what is not synced."""
    for view in views:
        for table in tables:
            offset = table.offsets().get(view.log_id, 0)
            if offset > view.end:
                sentence = f"has committed log {view.log_id} ({view.directory}) up to {offset}, which is synced only up to {view.end}"
                yield Breach("I5", str(table.name), sentence)


def verify_trimmed(
    tables: Sequence[LoadedTable], views: Sequence[LogView], elsewhere: Sequence[Mapping[str, int]] = ()
) -> Iterator[Breach]:
    """I6, as far as it shows from outside: what is trimmed was committed by somebody. `tables` are all there are.

    Only what tables had in it counts: the log's own records may go as soon as everybody has passed them. `elsewhere`: offsets by
    log below which a table's events wait in its side log, or went with it when it was dropped.
    """
    for view in views:
        known = [table.offsets() for table in tables] + [dict(offsets) for offsets in elsewhere]
        furthest = max((offsets.get(view.log_id, 0) for offsets in known), default=0)
        needed = min(view.first, view.trimmed_tables_end or 0)
        if known and needed > furthest:
            yield Breach("I6", view.directory, f"has lost events up to offset {needed}, and no table has committed further than {furthest}")
