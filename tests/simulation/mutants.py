"""The daemon with one rule broken, to see that the simulation notices. Each replaces a piece of the product, nothing else."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
from pyiceberg.schema import Schema

import dolake.buffer.wal
import dolake.datafiles
import dolake.ingest.service
import dolake.writer.flush
import dolake.writer.main
import dolake.writer.report
from dolake.buffer.recovery import Recovered, recover
from dolake.buffer.segment import LogState, read_whole, scan_segment, segment_names
from dolake.buffer.sources import apply_entries
from dolake.buffer.tail import LogReader
from dolake.errors import CommitConflict
from dolake.iceberg.commit import CommitOutcome, Committer
from dolake.iceberg.judging import Verdict
from dolake.iceberg.metadata import LoadedTable
from dolake.iceberg.partition import Spec
from dolake.iceberg.plan import Delta
from dolake.iceberg.transforms import partition_values
from dolake.ingest.lane import Lane, Submission
from dolake.model import Entry, SourceState, TableName
from dolake.storage.disk import Disk, SharedCounter
from dolake.writer.flight import Flight
from dolake.writer.flush import Flusher, FlushResult
from dolake.writer.letters import DeadLetters, Verdicts
from dolake.writer.table import Table
from tests.simulation.compactionmutants import COMPACTION_MUTANTS
from tests.simulation.cutmutants import CUT_MUTANTS
from tests.simulation.disk import DiskDoor, SimFile
from tests.simulation.logmutants import LOG_MUTANTS
from tests.simulation.mirrormutants import MIRROR_MUTANTS
from tests.simulation.world import ROOT, Rules


class _DoorWithoutLogSync(DiskDoor):
    """fdatasync of the log's files does nothing."""

    def create(self, path: str) -> SimFile:
        file = super().create(path)
        if path.startswith(f"{ROOT}/log"):
            file.sync = lambda: self.enter("no sync", path)
        return file


class _DoorWithoutWarehouseSync(DiskDoor):
    """fdatasync of the warehouse's files does nothing."""

    def create(self, path: str) -> SimFile:
        file = super().create(path)
        if path.startswith(f"{ROOT}/warehouse"):
            file.sync = lambda: self.enter("no sync", path)
        return file


class _DoorWithoutWarehouseNames(DiskDoor):
    """fsync of the warehouse's directories does nothing."""

    def sync_directory(self, path: str) -> None:
        if path.startswith(f"{ROOT}/warehouse"):
            self.enter("no sync_directory", path)
        else:
            super().sync_directory(path)


class _DoorThatRetries(DiskDoor):
    """A sync that failed is tried again, and believed."""

    def create(self, path: str) -> SimFile:
        file = super().create(path)
        sync = file.sync

        def sync_twice() -> None:
            try:
                sync()
            except OSError:
                sync()

        file.sync = sync_twice
        return file


def _recover_without_sources(disk: Disk, directory: str, counter: SharedCounter) -> Recovered:
    """What the log knows of its sources is gone after each start."""
    found = recover(disk, directory, counter)
    found.state.sources.clear()
    return found


@dataclass
class _Answered:
    """A batch that was acked already."""

    entry: Entry

    def durable(self, offset: int, state: SourceState) -> None: ...

    def failed(self, reason: Any, message: str) -> None: ...


class _HastyLane(Lane):
    """Acks leave before the group is on disk."""

    def submit(self, submission: Submission) -> None:
        super().submit(submission)
        self._waiting[-1] = _Answered(submission.entry)
        state = LogState(self.log_id, sources=dict(self.log.sources))
        apply_entries(state, [submission.entry])
        submission.durable(self.log.next_offset, state.sources[submission.entry.source])


def _end_of_what_is_there(reader: LogReader) -> int:
    """LogReader._published_end: everything that looks valid, synced or not."""
    try:
        name = segment_names(reader._disk.list(reader.directory))[-1]
        path = f"{reader.directory}/{name.file}"
        return scan_segment(read_whole(reader._disk, path), path, name).end
    except (FileNotFoundError, IndexError):
        return 0


class _DeafCommitter(Committer):
    """A lost answer or a conflict is taken for a failure: the same delta is committed again on whatever is there."""

    async def commit(self, delta: Delta) -> CommitOutcome:
        self._failed_once = False
        return await super().commit(delta)

    def _judge(self, base: LoadedTable | None, delta: Delta) -> Verdict:
        if self._failed_once and base is not None:
            return Verdict.COMMIT
        return super()._judge(base, delta)

    def _pause_s(self, error: Exception, attempt: int) -> float:
        self._failed_once = True
        return super()._pause_s(error, attempt)


class _RefreshingCommitter(Committer):
    """What was checked is not what is swapped: once the manifests are written the table is loaded anew, and they are rebased."""

    async def _commit_once(self, base: LoadedTable, delta: Delta) -> LoadedTable:
        await self.manifests.write(base, delta)
        fresh = await self._load(delta.table)
        return await super()._commit_once(fresh or base, delta)


class _TrustingCommitter(Committer):
    """Neither the owner nor the offsets are checked, beyond whether all of the delta has landed."""

    def _judge(self, base: LoadedTable | None, delta: Delta) -> Verdict:
        if base is None:
            return super()._judge(base, delta)
        landed = all(base.offsets().get(log, 0) >= span.end for log, span in delta.ranges.items())
        return Verdict.LANDED if landed else Verdict.COMMIT


class _TidyCommitter(Committer):
    """Deletes the delta's files when an attempt has failed."""

    async def _commit_once(self, base: LoadedTable, delta: Delta) -> LoadedTable:
        try:
            return await super()._commit_once(base, delta)
        except CommitConflict:
            for file in delta.files:
                self._store.delete(file.location)
            raise


class _ForgetfulLetters(DeadLetters):
    """What was decided before is not looked at: every event that is read again is judged again."""

    async def verdicts(self, table: TableName, committed: Mapping[str, int]) -> Verdicts:
        return replace(await super().verdicts(table, committed), places={})


class _TardyFlusher(Flusher):
    """Letters are committed behind the rows of their table."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._late: dict[TableName, Flight] = {}

    async def _commit_letters(self, table: Table, flight: Flight, base: LoadedTable) -> LoadedTable | None:
        self._late[table.name] = flight
        return base

    async def run_flush(self, table: Table, cuts: Callable[[], dict[str, int]]) -> FlushResult | None:
        result = await super().run_flush(table, cuts)
        flight = self._late.pop(table.name, None)
        if flight is not None and result is not None and result.landed and table.base is not None:
            await super()._commit_letters(table, flight, table.base)
        return result


def _low_as_read(positions: dict[str, int], pins: Sequence[Any]) -> tuple[dict[str, int], dict[str, dict[str, int]]]:
    """plan_low: what was read may be trimmed, committed or not."""
    return dict(positions), {log: {} for log in positions}


def _values_of_other_rows(table: str, rows: pa.Table, schema: Schema, spec: Spec) -> list[pa.ChunkedArray]:
    return [values.take(pa.array(range(rows.num_rows - 1, -1, -1))) for values in partition_values(table, rows, schema, spec)]


_ZOMBIES = {"strikes": 12, "strike_kinds": ("zombie one", "zombie both")}
_MISFITS = {"misfits": 0.4, "strikes": 12}

MUTANTS: dict[str, Rules] = {
    "fsync removed": Rules(door=_DoorWithoutLogSync),
    "ack before fsync": Rules(patches=((dolake.ingest.service, "Lane", _HastyLane),)),
    "failed sync retried": Rules(door=_DoorThatRetries),
    "numbering forgotten by recovery": Rules(patches=((dolake.buffer.wal, "recover", _recover_without_sources),)),
    "writer reads past the synced end": Rules(patches=((LogReader, "_published_end", _end_of_what_is_there),)),
    "warehouse bytes not synced": Rules(door=_DoorWithoutWarehouseSync),
    "warehouse names not synced": Rules(door=_DoorWithoutWarehouseNames),
    "trim before commit": Rules(patches=((dolake.writer.report, "plan_low", _low_as_read),)),
    "unknown outcome taken for failure": Rules(patches=((dolake.writer.main, "Committer", _DeafCommitter),)),
    "check and swap on different metadata": Rules(patches=((dolake.writer.main, "Committer", _RefreshingCommitter),)),
    "fencing and offset check both off": Rules(patches=((dolake.writer.main, "Committer", _TrustingCommitter),), profile=_ZOMBIES),
    "rows in other rows' partitions": Rules(patches=((dolake.datafiles, "partition_values", _values_of_other_rows),)),
    "verdicts ignored at load": Rules(patches=((dolake.writer.flush, "DeadLetters", _ForgetfulLetters),), profile=_MISFITS),
    "letters committed behind rows": Rules(patches=((dolake.writer.main, "Flusher", _TardyFlusher),), profile=_MISFITS),
    "files deleted after a failed commit": Rules(patches=((dolake.writer.main, "Committer", _TidyCommitter),)),
    **LOG_MUTANTS,
    **MIRROR_MUTANTS,
    **CUT_MUTANTS,
    **COMPACTION_MUTANTS,
}
