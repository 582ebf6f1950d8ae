"""The log, its sources and commits with one rule broken, as in `mutants`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import xxhash

import dolake.buffer.recovery
import dolake.buffer.segment
import dolake.buffer.tail
import dolake.buffer.wal
import dolake.writer.main
from dolake.buffer.record import FIXED, FIXED_SIZE, BadFrame, Frame
from dolake.buffer.segment import SEALED, SegmentName, encode_footer
from dolake.buffer.unsealed import SealedSegment
from dolake.cdc.numbering import New, Numbering, Repeat
from dolake.errors import CatalogUnreachable
from dolake.iceberg.commit import CommitOutcome, Committer, Landed
from dolake.iceberg.metadata import LoadedTable
from dolake.iceberg.plan import Delta
from tests.simulation.disk import DiskDoor
from tests.simulation.world import ROOT, Rules

_judge = Numbering.judge


class _DoorWithoutLogNames(DiskDoor):
    """fsync of the log's directories does nothing."""

    def sync_directory(self, path: str) -> None:
        if path.startswith(f"{ROOT}/log"):
            self.enter("no sync_directory", path)
        else:
            super().sync_directory(path)


def _seal_in_place(disk: Any, directory: str, found: Any) -> SealedSegment:
    """recovery._safe_copy: what reads well is believed, and the same file goes on, whose failed sync nobody knows of."""
    segment = found.segment
    _, footer = encode_footer(
        first_offset=segment.name.first_offset,
        end=segment.end,
        digest=xxhash.xxh3_128_digest(found.data[: segment.valid_end]),
        tables=segment.tables,
        salt=segment.salt,
        previous=segment.crc,
    )
    inode = disk.disk.names[segment.path]
    del inode.cached[segment.valid_end :]
    inode.write(segment.valid_end, b"".join(footer))
    inode.sync()
    path = f"{directory}/{SegmentName(segment.name.first_offset, SEALED, False).file}"
    disk.disk.change(directory, {path: inode})
    disk.sync_directory(directory)
    return SealedSegment(path, segment.name.first_offset, segment.end, len(inode.cached), segment.tables)


def _parse_whatever(data: bytes, position: int) -> Frame:
    """record.parse_frame: a frame is whatever has its lengths right."""
    available = len(data) - position
    if available < FIXED_SIZE:
        raise BadFrame(position, "too short for a frame", short=FIXED_SIZE)
    fields = FIXED.unpack_from(data, position)
    length, sizes = fields[3], fields[14:19]
    head_size = FIXED_SIZE + sum(sizes)
    if length < head_size:
        raise BadFrame(position, "no frame begins here")
    if length > available:
        raise BadFrame(position, "the frame ends behind the end of the file", short=length)
    head, payload = data[position + 4 : position + head_size], data[position + head_size : position + length]
    return Frame._make((position, *fields[:7], *fields[8:14], sizes, head, payload))


def _never_a_repeat(numbering: Numbering, *arguments: Any) -> Any:
    """What was sent again is taken for new."""
    verdict = _judge(numbering, *arguments)
    return New() if isinstance(verdict, Repeat) else verdict


class _SplitCommitter(Committer):
    """Rows come with one commit, the offsets that they reach to with the next."""

    async def _commit_once(self, base: LoadedTable, delta: Delta) -> CommitOutcome:
        if delta.files and delta.ranges:
            rows = await super()._commit_once(base, replace(delta, ranges={}))
            if not isinstance(rows, Landed):
                return rows
            base, delta = rows.table, replace(delta, files=())
        return await super()._commit_once(base, delta)


class _TidyOnUnknownCommitter(Committer):
    """Deletes the delta's files when no answer to an attempt has come."""

    async def _commit_once(self, base: LoadedTable, delta: Delta) -> CommitOutcome:
        try:
            return await super()._commit_once(base, delta)
        except CatalogUnreachable:
            for file in delta.files:
                self._store.delete(file.location)
            raise


_FAILING_SYNCS = {"chances": {"sync_eio": 0.05, "cache_evicted": 0.05}, "strikes": 4}
_TORN_TAILS = {"strikes": 12, "strike_kinds": ("cut power",), "strike_at_changes": True, "steps_between_strikes": 40}

LOG_MUTANTS: dict[str, Rules] = {
    "log names not synced": Rules(door=_DoorWithoutLogNames),
    "unsealed tail reused on recovery": Rules(patches=((dolake.buffer.recovery, "_safe_copy", _seal_in_place),), profile=_FAILING_SYNCS),
    "record checksum off": Rules(
        patches=tuple(
            (module, "parse_frame", _parse_whatever) for module in (dolake.buffer.segment, dolake.buffer.tail, dolake.buffer.recovery)
        ),
        profile=_TORN_TAILS,
    ),
    "repeats taken for new": Rules(patches=((Numbering, "judge", _never_a_repeat),)),
    "offsets in another commit than their rows": Rules(patches=((dolake.writer.main, "Committer", _SplitCommitter),)),
    "files deleted on an unknown outcome": Rules(patches=((dolake.writer.main, "Committer", _TidyOnUnknownCommitter),)),
    # No world damages a sealed segment: bits that rot are told apart from power cuts, and end a log. So a scenario does.
    "trim judged by a damaged prefix": Rules(
        patches=((dolake.buffer.wal, "verify_sealed", lambda disk, segment: None),), scenario="a trim meets a damaged segment"
    ),
}
