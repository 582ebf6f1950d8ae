"""What was rewritten becomes a snapshot with the very rows of the one under it, whatever has landed since the inputs were read.

Rows that were deleted meanwhile stand in the new files, and are deleted there by the same commit: a position delete that speaks of an
input is taken apart, its positions there go to where the rows are now, its positions elsewhere stay. So nothing is ever left that
speaks of a file that is gone, totals stay exact, and no rewrite is thrown away because a flush has landed. What is thrown away is a
rewrite of a file that somebody has taken out of the table (a TRUNCATE, another program's own compaction).

Files whose rows have all expired leave the same way, with nothing in their place: what was deleted of them leaves with them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from dolake.compaction.job import GONE, Job, Rewritten
from dolake.datafiles import EncodedDeletes, FileDeletes
from dolake.iceberg.contents import ContentsReader, LiveFile
from dolake.iceberg.index import IndexedFile
from dolake.iceberg.metadata import LoadedTable
from dolake.iceberg.notes import noted_in
from dolake.iceberg.objects import read_file
from dolake.iceberg.plan import Delta, Replacement
from dolake.iceberg.points import newest_lsns
from dolake.parquet.deletes import decode_deletes, positions_by_file
from dolake.storage.store import ObjectStore

MAINTENANCE = "dolake.maintenance"  # in a summary: what of it was done; whoever follows changes passes such a snapshot by
_DELETES_READ_MAX = 64 << 20  # of decoded positions that are kept between two looks

Positions = npt.NDArray[np.int64]
_NONE = np.zeros(0, np.int64)
_Place = tuple[int, tuple[object, ...]]  # spec id, partition as stored


@dataclass(frozen=True)
class ToLand:
    """A job that was done, or delete files that are to be put together (`merges`, their locations), or both; or rows that are to go.

    `sequence_number` is that of the snapshot on which it was planned. `removed`: data files that leave with all their rows;
    `expired`: of data files that stay, the rows to be deleted, whether or not they are already.
    """

    table_uuid: str
    sequence_number: int
    job: Job | None
    rewritten: Rewritten | None
    merges: frozenset[str] = frozenset()
    removed: frozenset[str] = frozenset()
    expired: Mapping[str, Positions] = field(default_factory=dict)

    @property
    def inputs(self) -> frozenset[str]:
        """Data files that leave."""
        return self.removed if self.job is None else self.removed | {file.location for file in self.job.data}


@dataclass(frozen=True)
class GivenUp:
    """The work does not fit the table any more: files it was of have left it, or rows that it left out for being deleted live again.

    It is planned again if it is still worth it.
    """

    reason: str


@dataclass(frozen=True)
class Landing:
    """What a commit on top of exactly `base` brings. `deletes`: what is to be deleted in its snapshot instead of by `deletes_gone`, a group
    for each file; `carried_count` of these rows were deleted since the inputs were read. `removed`: files that leave with all their
    rows; `expired`: those deleted in files that stay, by file; `expired_count`: rows that lived until now, of both."""

    base: LoadedTable
    work: ToLand
    deletes: tuple[FileDeletes, ...]
    deletes_gone: tuple[LiveFile, ...]
    carried_count: int
    removed: tuple[LiveFile, ...] = ()
    expired: Mapping[str, Positions] = field(default_factory=dict)
    expired_count: int = 0

    def delta(
        self,
        deletes: Sequence[EncodedDeletes],
        *,
        epoch: int,
        instance: str,
        commit_id: str,
        maintenance: str,
        properties: Mapping[str, str] | None = None,
    ) -> Delta:
        """`deletes` are those of this landing, put; `properties` are set with it."""
        base, job, done = self.base, self.work.job, self.work.rewritten
        stated = dict(properties or {})
        inputs = () if job is None else job.data
        gone = (*inputs, *self.removed, *self.deletes_gone)
        replacement = Replacement(
            removed=frozenset(file.location for file in gone),
            removed_sequence_max=max((file.sequence_number for file in gone), default=0),
            sequence_number=self.work.sequence_number,
            schema=base.schema if job is None else job.schema,
            spec_id=base.spec["spec-id"] if job is None else job.spec["spec-id"],
            same_rows=not self.expired_count,
        )
        return Delta(
            table=base.name,
            table_uuid=self.work.table_uuid,
            ranges={},
            files=() if done is None else tuple(output.file for output in done.outputs),
            schema=base.schema,
            base_schema_id=base.schema["schema-id"],
            spec_id=base.spec["spec-id"],
            epoch=epoch,
            instance=instance,
            commit_id=commit_id,
            properties=stated,
            summary={**noted_in({**base.properties, **stated}), **newest_lsns(base, base.head_id), MAINTENANCE: maintenance},
            deletes=tuple(file.as_new_deletes() for file in deletes),
            replaces=replacement,
            on_head_only=True,
            head_id=base.head_id,
        )


class Lander:
    """Prepares the landing of one work, again on each new head. What it has read of manifests and delete files it does not read again.

    `contents` and `deletes`: what somebody else has read of them.

    Blocks. Raises ObjectMissing, ObjectDamaged, StoreUnreachable, pa.ArrowException for delete files that nobody can read.
    """

    def __init__(
        self,
        store: ObjectStore,
        work: ToLand,
        contents: ContentsReader | None = None,
        deletes: dict[str, dict[str, Positions]] | None = None,
    ) -> None:
        self._store, self._work = store, work
        self._contents = ContentsReader(store) if contents is None else contents
        self._deletes = {} if deletes is None else deletes

    def prepare(self, base: LoadedTable) -> Landing | GivenUp:
        files = () if base.head is None else self._contents.read(base.head).files
        data = {file.location: file for file in files if file.kind == "data"}
        if missing := sorted(self._work.inputs - data.keys()):
            return GivenUp(f"{len(missing)} of its files have left the table, as {missing[0]}")
        touched = [(file, spoken) for file, spoken in self._candidates(files, data) if self._is_touched(file, spoken)]
        moved = _Moved(self._work)
        for _, spoken in touched:
            for location, positions in spoken.items():
                if location in data:
                    moved.add(data[location], positions)
        if (count := moved.living_again()) > 0:
            return GivenUp(f"{count} rows live again in its files that were deleted when they were read: the table was taken back")
        removed = tuple(data[location] for location in sorted(self._work.removed))
        living = sum(file.row_count for file in removed) - moved.left_count()
        expired = self._expired(files, data)
        for location, positions in expired.items():
            moved.delete(data[location], positions)
        gone = tuple(file for file, _ in touched)
        count = living + sum(map(len, expired.values()))
        return Landing(base, self._work, tuple(moved.groups()), gone, moved.carried_count, removed, expired, count)

    def _expired(self, files: Iterable[LiveFile], data: Mapping[str, LiveFile]) -> dict[str, Positions]:
        """Rows that are to be deleted in files that stay: those that live. One that is deleted twice would be counted twice."""
        wanted = {location: positions for location, positions in self._work.expired.items() if location in data}
        dead: dict[str, list[Positions]] = {}
        for _, spoken in self._speaking(files, [data[location] for location in wanted]):
            for location in wanted.keys() & spoken.keys():
                dead.setdefault(location, []).append(spoken[location])
        fresh = {
            location: np.setdiff1d(positions, np.concatenate([_NONE, *dead.get(location, ())])) for location, positions in wanted.items()
        }
        return {location: positions for location, positions in fresh.items() if len(positions)}

    def _candidates(self, files: Iterable[LiveFile], data: Mapping[str, LiveFile]) -> Iterator[tuple[LiveFile, Mapping[str, Positions]]]:
        """Delete files that may speak of an input, or are to be merged, with what they say."""
        return self._speaking(files, [data[location] for location in self._work.inputs], self._work.merges)

    def _speaking(
        self, files: Iterable[LiveFile], inputs: Sequence[LiveFile], also: Set[str] = frozenset()
    ) -> Iterator[tuple[LiveFile, Mapping[str, Positions]]]:
        oldest = min((file.sequence_number for file in inputs), default=0)
        places = {(file.spec_id, file.partition) for file in inputs}
        for file in files:
            may_speak = (file.spec_id, file.partition) in places and file.sequence_number >= oldest
            if file.kind == "position deletes" and (may_speak or file.location in also):
                yield file, self._read(file)

    def _read(self, file: LiveFile) -> Mapping[str, Positions]:
        known = self._deletes.get(file.location)
        if known is None:
            known = positions_by_file([decode_deletes(read_file(self._store, file.location, file.size_bytes))])
            if sum(positions.nbytes for spoken in self._deletes.values() for positions in spoken.values()) < _DELETES_READ_MAX:
                self._deletes[file.location] = known
        return known

    def _is_touched(self, file: LiveFile, spoken: Mapping[str, Positions]) -> bool:
        return file.location in self._work.merges or not self._work.inputs.isdisjoint(spoken)


@dataclass
class _Moved:
    """Position deletes as they stand once the work has landed, by the spec and partition of the data files they speak of."""

    work: ToLand
    carried_count: int = 0
    found: dict[_Place, dict[str, list[Positions]]] = field(default_factory=dict)
    left: dict[str, list[Positions]] = field(default_factory=dict)  # what was deleted of files that leave with their rows
    dropped: dict[str, list[Positions]] = field(default_factory=dict)  # what is deleted of files that were rewritten

    def add(self, file: LiveFile, positions: Positions) -> None:
        """Positions of a live data file, in whatever delete file."""
        if file.location in self.work.removed:
            self.left.setdefault(file.location, []).append(positions[positions < file.row_count])
            return
        if file.location not in self.work.inputs:
            self.delete(file, positions)
            return
        assert self.work.rewritten is not None  # Or there would be no inputs.
        self.dropped.setdefault(file.location, []).append(positions)
        moved = self.work.rewritten.moves[file.location]
        moved = moved[positions[positions < len(moved)]]
        numbers = np.sort(moved[moved >= 0]).astype(np.int64)
        self.carried_count += len(numbers)
        outputs = [output.indexed for output in self.work.rewritten.outputs]
        for output, places in _by_output(outputs, numbers):
            self._note((output.spec_id, output.partition), output.location, places)

    def living_again(self) -> int:
        """Rows that the rewrite left out for being deleted, and that are deleted no more."""
        moves = {} if self.work.rewritten is None else self.work.rewritten.moves
        left_out = {location: np.flatnonzero(numbers == GONE) for location, numbers in moves.items()}
        return sum(
            len(np.setdiff1d(places, np.concatenate([_NONE, *self.dropped.get(location, ())]))) for location, places in left_out.items()
        )

    def delete(self, file: LiveFile, positions: Positions) -> None:
        """Rows of a file that stays."""
        self._note((file.spec_id, file.partition), file.location, positions)

    def left_count(self) -> int:
        """Rows of files that leave which were deleted before."""
        return sum(len(np.unique(np.concatenate(parts))) for parts in self.left.values())

    def _note(self, place: _Place, location: str, positions: Positions) -> None:
        self.found.setdefault(place, {}).setdefault(location, []).append(positions)

    def groups(self) -> Iterator[FileDeletes]:
        for (spec_id, partition), spoken in self.found.items():
            places = [np.unique(np.concatenate(parts)) for parts in spoken.values()]
            if any(map(len, places)):
                file_places = np.repeat(np.arange(len(places)), [len(one) for one in places])
                yield FileDeletes(spec_id, partition, tuple(spoken), file_places, np.concatenate(places))


def _by_output(outputs: Sequence[IndexedFile], numbers: Positions) -> Iterator[tuple[IndexedFile, Positions]]:
    """Row numbers over all outputs, rising, as places in each."""
    ends = np.cumsum([output.row_count for output in outputs])
    bounds = np.searchsorted(numbers, ends)
    start = 0
    for output, end, bound in zip(outputs, ends.tolist(), bounds.tolist(), strict=True):
        if bound > start:
            yield output, numbers[start:bound] - (end - output.row_count)
        start = bound
