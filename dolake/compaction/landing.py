"""What was rewritten becomes a snapshot with the very rows of the one under it, whatever has landed since the inputs were read.

Rows that were deleted meanwhile stand in the new files, and are deleted there by the same commit: a position delete that speaks of an
input is taken apart, its positions there go to where the rows are now, its positions elsewhere stay. So nothing is ever left that
speaks of a file that is gone, totals stay exact, and no rewrite is thrown away because a flush has landed. What is thrown away is a
rewrite of a file that somebody has taken out of the table (a TRUNCATE, another program's own compaction).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from dolake.compaction.job import Job, Rewritten
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
_Place = tuple[int, tuple[object, ...]]  # spec id, partition as stored


@dataclass(frozen=True)
class ToLand:
    """A job that was done, or delete files that are to be put together (`merges`, their locations), or both.

    `sequence_number` is that of the snapshot on which it was planned.
    """

    table_uuid: str
    sequence_number: int
    job: Job | None
    rewritten: Rewritten | None
    merges: frozenset[str] = frozenset()

    @property
    def inputs(self) -> frozenset[str]:
        return frozenset() if self.job is None else frozenset(file.location for file in self.job.data)


@dataclass(frozen=True)
class GivenUp:
    """The work does not fit the table any more, as when files it was of have left it: it is planned again if it is still worth it."""

    reason: str


@dataclass(frozen=True)
class Landing:
    """What a commit on top of exactly `base` brings. `deletes`: what is to be deleted in its snapshot instead of by `deletes_gone`, a group
    for each file; `carried_count` of these rows were deleted since the inputs were read."""

    base: LoadedTable
    work: ToLand
    deletes: tuple[FileDeletes, ...]
    deletes_gone: tuple[LiveFile, ...]
    carried_count: int

    def delta(self, deletes: Sequence[EncodedDeletes], *, epoch: int, instance: str, commit_id: str, maintenance: str) -> Delta:
        """`deletes` are those of this landing, put."""
        base, job, done = self.base, self.work.job, self.work.rewritten
        inputs = () if job is None else job.data
        gone = (*inputs, *self.deletes_gone)
        replacement = Replacement(
            removed=frozenset(file.location for file in gone),
            removed_sequence_max=max((file.sequence_number for file in gone), default=0),
            sequence_number=self.work.sequence_number,
            schema=base.schema if job is None else job.schema,
            spec_id=base.spec["spec-id"] if job is None else job.spec["spec-id"],
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
            summary={**noted_in(base.properties), **newest_lsns(base, base.head_id), MAINTENANCE: maintenance},
            deletes=tuple(file.as_new_deletes() for file in deletes),
            replaces=replacement,
            on_head_only=True,
            head_id=base.head_id,
        )


class Lander:
    """Prepares the landing of one work, again on each new head. What it has read of manifests and delete files it does not read again.

    Blocks. Raises ObjectMissing, ObjectDamaged, StoreUnreachable, pa.ArrowException for delete files that nobody can read.
    """

    def __init__(self, store: ObjectStore, work: ToLand) -> None:
        self._store, self._work = store, work
        self._contents = ContentsReader(store)
        self._deletes: dict[str, dict[str, Positions]] = {}

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
        return Landing(base, self._work, tuple(moved.groups()), tuple(file for file, _ in touched), moved.carried_count)

    def _candidates(self, files: Iterable[LiveFile], data: Mapping[str, LiveFile]) -> Iterator[tuple[LiveFile, Mapping[str, Positions]]]:
        """Delete files that may speak of an input, or are to be merged, with what they say."""
        inputs = [data[location] for location in self._work.inputs]
        oldest = min((file.sequence_number for file in inputs), default=0)
        places = {(file.spec_id, file.partition) for file in inputs}
        for file in files:
            may_speak = (file.spec_id, file.partition) in places and file.sequence_number >= oldest
            if file.kind == "position deletes" and (may_speak or file.location in self._work.merges):
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

    def add(self, file: LiveFile, positions: Positions) -> None:
        """Positions of a live data file, in whatever delete file."""
        if file.location not in self.work.inputs:
            self._note((file.spec_id, file.partition), file.location, positions)
            return
        assert self.work.rewritten is not None  # Or there would be no inputs.
        numbers = self.work.rewritten.moves[file.location]
        numbers = numbers[positions[positions < len(numbers)]]
        numbers = np.sort(numbers[numbers >= 0])
        self.carried_count += len(numbers)
        outputs = [output.indexed for output in self.work.rewritten.outputs]
        for output, places in _by_output(outputs, numbers):
            self._note((output.spec_id, output.partition), output.location, places)

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
