"""Opening a log after whatever happened: verify every segment, rebuild the state, give the unsealed one a safe copy.

A file whose sync may have failed is not believed although it reads well: its pages can be clean in memory and missing on
the disk. So the verified records of the unsealed segment are written into a new file, synced and sealed under the
segment's name; only then does the old file go. The copy is byte for byte the same plus its footer, so that a recovery
that is interrupted and run again ends in the same bytes.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from itertools import pairwise

import xxhash

from dolake.buffer import reserve
from dolake.buffer.record import FOOTER_KIND, BadFrame, Frame, decode_stored, parse_frame
from dolake.buffer.segment import (
    NEW,
    OPEN,
    QUARANTINE,
    SEALED,
    TRAILER_SIZE,
    LogState,
    ScannedSegment,
    SegmentName,
    decode_footer,
    encode_footer,
    footer_size,
    read_whole,
    scan_segment,
    segment_names,
)
from dolake.buffer.sources import apply_entries
from dolake.buffer.synced import publish_end, read_end
from dolake.buffer.unsealed import SealedSegment, is_full
from dolake.errors import LogCorrupt, LogRefused
from dolake.failpoints import hit
from dolake.storage.disk import Disk, SharedCounter

_VERIFY_CHUNK = 4 << 20


@dataclass
class Recovered:
    """A log as recovery left it: sealed segments only. `lost_count`: offsets that had been synced and are not there."""

    state: LogState
    end: int
    segments: list[SealedSegment] = field(default_factory=list)
    torn_tail_count: int = 0
    lost_count: int = 0


@dataclass
class _Found:
    segment: ScannedSegment
    data: bytes


def recover(disk: Disk, directory: str, counter: SharedCounter) -> Recovered:
    """Raises LogCorrupt (the bad segment was renamed `.quarantine`), LogRefused, OSError. The log must be locked."""
    files = disk.list(directory)
    for file in files:
        if file.endswith(NEW):
            disk.unlink(f"{directory}/{file}")
    names = segment_names(files)
    refuse_quarantined(disk, directory, names)
    if not names:
        raise LogRefused(f"{directory}: there is no log here")
    kept, leftovers = _scan_all(disk, directory, names)
    last = kept[-1].segment
    state, end = last.state, last.end
    check_complete([found.segment for found in kept], state.bound)
    lost_count = _lost(disk, directory, state.log_id, end, unsealed=last.name.state == OPEN)
    recovered = Recovered(state, end, lost_count=lost_count, torn_tail_count=sum(found.segment.torn for found in kept))
    for found in kept:
        sealed = _safe_copy(disk, directory, found) if found.segment.name.state == OPEN else _as_sealed(found)
        # An empty one only keeps the state until its successor takes its name: a trim of it would unlink that one.
        if sealed.end > sealed.first_offset:
            recovered.segments.append(sealed)
    # Before the old file goes: without it a higher number would mean that a segment was lost (_lost).
    publish_end(counter, state.log_id, end)
    if leftovers:
        # Their sealed copies may have names that are in the cache alone: who made them may have died before it synced those.
        disk.sync_directory(directory)
    old = [found.segment for found in kept if found.segment.name.state == OPEN] + leftovers
    for segment in old:
        hit("recover.unlink_old", segment.path)
        disk.unlink(segment.path)
    if old:
        disk.sync_directory(directory)
    hit("recover.done", directory)
    return recovered


def refuse_quarantined(disk: Disk, directory: str, names: list[SegmentName]) -> None:
    """Raises LogCorrupt while a quarantined segment lies there: somebody has to put a good copy in its place first."""
    for name in names:
        if name.quarantined:
            path = f"{directory}/{name.file}"
            data = read_whole(disk, path)
            scan_segment(data, path, name)
            original = name._replace(quarantined=False).file
            raise LogCorrupt(path=path, position=0, end=len(data), reason=f"quarantined; it verifies now: rename it to {original}")


def verify_sealed(disk: Disk, segment: SealedSegment) -> None:
    """Reads a sealed segment again, whole, against its own footer. Raises LogCorrupt."""
    digest = xxhash.xxh3_128()
    file = disk.open(segment.path)
    try:
        size = file.size()
        body_end = max(0, size - (footer_size(file.read_at(max(0, size - TRAILER_SIZE), TRAILER_SIZE)) or 0))
        for position in range(0, body_end, _VERIFY_CHUNK):
            digest.update(file.read_at(position, min(_VERIFY_CHUNK, body_end - position)))
        tail = file.read_at(body_end, size - body_end)
    finally:
        file.close()
    try:
        frame = parse_frame(tail, 0)
    except BadFrame as error:
        raise LogCorrupt(path=segment.path, position=body_end, end=size, reason=f"the footer: {error.reason}") from None
    footer = decode_footer(frame.payload) if frame.kind == FOOTER_KIND else None
    if footer is None or (footer.first_offset, footer.end, footer.digest) != (segment.first_offset, segment.end, digest.digest()):
        raise LogCorrupt(path=segment.path, position=0, end=size, reason="the bytes are not those that were sealed")


def apply_frame(path: str) -> _Visitor:
    """A visitor for scan_segment that moves the segment's state on and refuses what it does not know."""
    return _Visitor(path)


class _Visitor:
    def __init__(self, path: str) -> None:
        self._path = path

    def __call__(self, state: LogState, frame: Frame) -> None:
        apply_entries(state, [decode_stored(frame, self._path)])


def _scan_all(disk: Disk, directory: str, names: list[SegmentName]) -> tuple[list[_Found], list[ScannedSegment]]:
    """The segments that make up the log, and unsealed ones whose sealed copy is there already."""
    kept: list[_Found] = []
    leftovers: list[ScannedSegment] = []
    for name in names:
        path = f"{directory}/{name.file}"
        hit("recover.scan", path)
        data = read_whole(disk, path)
        try:
            segment = scan_segment(data, path, name, apply_frame(path))
        except LogCorrupt:
            disk.rename(path, path + QUARANTINE)
            disk.sync_directory(directory)
            raise
        if kept and kept[0].segment.state.log_id != segment.state.log_id:
            raise LogRefused(f"{path}: belongs to log {segment.state.log_id}, the segments before it to {kept[0].segment.state.log_id}")
        before = kept[-1].segment if kept else None
        if before is not None and before.name.first_offset == name.first_offset:
            if segment.end <= before.end:
                leftovers.append(segment)
                continue
            if before.record_count:
                raise LogCorrupt(path=path, position=0, end=len(data), reason=f"it holds more than its sealed copy {before.path}")
            kept.pop()  # An empty one only kept the state; the copy takes its name.
        kept.append(_Found(segment, data if name.state == OPEN else b""))
    return kept, leftovers


def check_complete(segments: list[ScannedSegment], bound: int) -> None:
    """Raises LogCorrupt if offsets at or above the bound of the last trim are missing, or are there twice."""
    first = segments[0]
    if first.name.first_offset > bound:
        reason = f"offsets {bound}..{first.name.first_offset} are gone: the log was trimmed below {bound} only"
        raise LogCorrupt(path=first.path, position=0, end=first.size_bytes, reason=reason)
    for before, after in pairwise(segments):
        first_offset = after.name.first_offset
        # Below the bound any of them may have gone, in any order: a power cut keeps what it likes of unlinks.
        if first_offset < before.end or (first_offset > before.end and first_offset > bound):
            reason = f"it begins with offset {first_offset} where {before.end} belongs"
            raise LogCorrupt(path=after.path, position=0, end=after.size_bytes, reason=reason)


def _lost(disk: Disk, directory: str, log_id: str, end: int, *, unsealed: bool) -> int:
    """How many offsets had been published as synced and are not there. A missing file is corruption; a torn tail is told."""
    published = read_end(disk, directory, log_id)
    if published is None or published <= end:
        return 0
    if not unsealed:
        raise LogCorrupt(path=directory, position=0, end=0, reason=f"the newest segment, with offsets {end}..{published}, is gone")
    return published - end


def _as_sealed(found: _Found) -> SealedSegment:
    segment = found.segment
    return SealedSegment(segment.path, segment.name.first_offset, segment.end, segment.size_bytes, segment.tables)


def _safe_copy(disk: Disk, directory: str, found: _Found) -> SealedSegment:
    """On a full disk with the room that is kept for making room: the old file goes right after, and gives more than it took."""
    try:
        return _seal_copy(disk, directory, found)
    except OSError as error:
        if not is_full(error) or not reserve.release(disk, directory):
            raise
        return _seal_copy(disk, directory, found)


def _seal_copy(disk: Disk, directory: str, found: _Found) -> SealedSegment:
    segment = found.segment
    body = memoryview(found.data)[: segment.valid_end]
    first_offset = segment.name.first_offset
    _, footer = encode_footer(
        first_offset=first_offset,
        end=segment.end,
        digest=xxhash.xxh3_128_digest(body),
        tables=segment.tables,
        salt=segment.salt,
        previous=segment.crc,
    )
    path = f"{directory}/{SegmentName(first_offset, SEALED, False).file}"
    hit("recover.copy", path)
    file = disk.create(path + NEW)
    try:
        file.write_at(0, [body, *footer])
        hit("recover.copy_written", path)
        file.sync()
        hit("recover.copy_sync", path)
    except OSError:
        with suppress(OSError):
            disk.unlink(path + NEW)
        raise
    finally:
        file.close()
    disk.rename(path + NEW, path)
    hit("recover.copy_rename", path)
    disk.sync_directory(directory)
    hit("recover.copy_dirsync", path)
    return SealedSegment(path, first_offset, segment.end, len(body) + sum(map(len, footer)), segment.tables)
