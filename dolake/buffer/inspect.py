"""Looking at a log without touching it: no lock, no recovery, daemon running or not. For `dolake log inspect|verify`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from dolake.buffer.codec import Unpacker
from dolake.buffer.record import Frame, decode_record
from dolake.buffer.recovery import check_complete
from dolake.buffer.segment import SEALED, LogState, ScannedSegment, SegmentName, read_whole, scan_segment, segment_names
from dolake.buffer.sources import apply_entries
from dolake.buffer.tail import LogReader
from dolake.errors import DolakeError, LogCorrupt
from dolake.model import Record, RecordKind
from dolake.storage.disk import Disk

_ATTEMPT_COUNT = 8


@dataclass(frozen=True)
class SegmentView:
    """One segment as it stands: offsets `first_offset` ≤ o < `end`; `state` is sealed, open or quarantined.

    `tables`: last offset of each. `torn`: unsealed bytes at the end that are no record, as a crash leaves them.
    `problem` is why it cannot be used, empty if it can; then `records` are those above the damage. Records are without their
    payloads: nobody looks at rows here, and unpacked they may be many times the file.
    """

    path: str
    state: str
    log_id: str
    first_offset: int
    end: int
    size_bytes: int
    torn: bool
    tables: dict[str, int]
    records: list[Record] = field(repr=False)
    problem: str
    standing: LogState | None = field(default=None, repr=False)  # what the log knows after this segment; None where that cannot be said

    @property
    def plain_bytes(self) -> int:
        """What the file would take if no payload in it were packed."""
        return self.size_bytes + sum(record.size_bytes - record.stored_bytes for record in self.records)


def inspect_log(disk: Disk, directory: str) -> Iterator[SegmentView]:
    """Every segment, by first offset; the records of one at a time. An unreadable one is told, and the next one shown."""
    for name in segment_names(disk.list(directory)):
        found = _look(disk, directory, name)
        if found is None:
            continue
        segment, records, error = found
        path = f"{directory}/{name.file}"
        yield SegmentView(
            path=segment.path if segment else path,
            state="quarantined" if name.quarantined else "sealed" if name.state == SEALED else "open",
            log_id=segment.state.log_id if segment else records[0].log_id if records else "",
            first_offset=name.first_offset,
            end=segment.end if segment else records[-1].offset + 1 if records else name.first_offset,
            size_bytes=segment.size_bytes if segment else _size(disk, path),
            torn=bool(segment and segment.torn),
            tables=segment.tables if segment else {},
            records=records,
            problem=str(error) if error else "",
            standing=segment.state if segment else None,
        )


def verify_log(disk: Disk, directory: str) -> Iterator[str]:
    """One sentence for each breach of I2 and I3, with file and bytes. The torn tail of an unsealed segment is none."""
    for _ in range(_ATTEMPT_COUNT):
        names = segment_names(disk.list(directory))
        breaches = list(_breaches(disk, directory, names))
        if not breaches or names == segment_names(disk.list(directory)):
            break  # Else the daemon sealed or trimmed meanwhile: what looked wrong may be only that.
    yield from breaches


def _breaches(disk: Disk, directory: str, names: list[SegmentName]) -> Iterator[str]:
    published = _published(disk, directory)
    kept: list[ScannedSegment] = []
    sequences: dict[tuple[str, str], int] = {}
    for name in names:
        found = _look(disk, directory, name)
        if found is None:
            continue
        segment, records, error = found
        if error is not None:
            yield str(error)
        elif name.quarantined:
            yield f"{directory}/{name.file}: quarantined, and it verifies now: rename it to {name._replace(quarantined=False).file}"
        if segment is None or name.quarantined:
            continue
        if kept and kept[-1].state.log_id != segment.state.log_id:
            yield f"{segment.path}: belongs to log {segment.state.log_id}, the segment before it to {kept[-1].state.log_id}"
        if kept and kept[-1].name.first_offset == name.first_offset:
            if segment.end <= kept[-1].end:  # What a sealed copy was made from; recovery was interrupted before it went.
                continue
            kept.pop()
        if kept and name.first_offset > kept[-1].end:
            sequences.clear()  # Of what is gone in between nothing is known; whether it may be gone is looked at below.
        yield from _sequence_breaches(segment, records, sequences)
        kept.append(segment)
    if not kept:
        return
    try:
        check_complete(kept, kept[-1].state.bound)
    except LogCorrupt as error:
        yield str(error)
    if published > kept[-1].end:
        yield f"{kept[-1].path}: offsets {kept[-1].end}..{published} were synced and are not here"


def _published(disk: Disk, directory: str) -> int:
    """The synced end as published before anything was looked at; 0 where it cannot be known."""
    try:
        reader = LogReader(disk, directory)
    except DolakeError:
        return 0
    try:
        return reader.synced_end()
    finally:
        reader.close()


def _look(disk: Disk, directory: str, name: SegmentName) -> tuple[ScannedSegment | None, list[Record], DolakeError | None] | None:
    """What a segment holds; None if it was trimmed meanwhile. One sealed meanwhile is read under its new name."""
    records: list[Record] = []
    unpacker = Unpacker()
    for _ in range(_ATTEMPT_COUNT):
        path = f"{directory}/{name.file}"

        def visit(state: LogState, frame: Frame, path: str = path) -> None:
            record = decode_record(frame, state.log_id, path, unpacker)
            apply_entries(state, [record.entry])
            records.append(replace(record, entry=replace(record.entry, payload=b"")))

        try:
            data = read_whole(disk, path)
        except FileNotFoundError:
            now = [other for other in segment_names(disk.list(directory)) if other.first_offset == name.first_offset]
            if not now:
                return None
            name = now[0]
            continue
        try:
            return scan_segment(data, path, name, visit), records, None
        except DolakeError as error:
            return None, records, error
    return None


def _sequence_breaches(segment: ScannedSegment, records: list[Record], last: dict[tuple[str, str], int]) -> Iterator[str]:
    """I3: per source and epoch the sequence rises by one. `last` goes on from segment to segment."""
    for record in records:
        entry = record.entry
        if entry.kind not in (RecordKind.BATCH, RecordKind.SCHEMA):
            continue
        key = (entry.source, entry.epoch)
        expected = last.get(key, entry.sequence - 1) + 1
        if entry.sequence != expected:
            what = f"source {entry.source!r} has sequence {entry.sequence} where {expected} belongs (I3)"
            yield f"{segment.path}: offset {record.offset}: {what}"
        last[key] = entry.sequence


def _size(disk: Disk, path: str) -> int:
    try:
        file = disk.open(path)
    except FileNotFoundError:
        return 0
    try:
        return file.size()
    finally:
        file.close()
