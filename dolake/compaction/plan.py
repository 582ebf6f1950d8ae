"""Decides what of a table is worth rewriting, from its manifests alone. Values in, values out.

Small data files are rewritten together by size class: a class is a factor of 4 wide, and four files of one class make one of a
higher class, or fill the target. So a row is rewritten once for each class that its file rises through, O(log n) times while a
table grows to n flushes, and a table at rest keeps fewer than four files of each class. Files that lost many rows are rewritten
even when full; delete files that no rewrite uses up are merged by the same classes, of their rows, and the small ones of them,
which cost a reader as much and a rewrite next to nothing, as one class.

Files are only ever taken together within one spec and partition. What position deletes may speak of is `reach`'s to say.
A partition with equality deletes is left alone: a rewritten file would be newer than they are, and its deleted rows come back.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

from dolake.compaction.choice import Choice, Left, Why, in_bytes, in_numbers, read_s
from dolake.compaction.reach import Reach, by_age
from dolake.compaction.sizes import bins_by_class, is_full, packed
from dolake.iceberg.contents import LiveFile

__all__ = ["Choice", "CompactionPolicy", "Left", "Plan", "Why", "plan_compaction"]

_MIB = 1 << 20
# A delete file of more rows than 3/4 of it is full; a position takes some 16 bytes in the memory of whoever merges them.
_DELETE_ROWS_TARGET = 8 << 20
# Those of fewer rows are of one class: merging them again and again costs less than opening them.
_DELETE_ROWS_SMALL = 128 << 10
# Files that lost many rows are rewritten without waiting for more of them if together they hold so much of the target.
_WORTHWHILE_SHARE = 1 / 8
# Delete files that may speak of several data files must be read with each of these: beyond so many they are merged before.
_WIDE_DELETES_MAX = 256


@dataclass(frozen=True)
class CompactionPolicy:
    """When files are worth a rewrite, and what is aimed at.

    `inputs_min` files of one size class are rewritten together, and no fewer unless they fill a file of `target_bytes`. A file
    with more than `deleted_share_max` of its rows deleted is rewritten by itself, small ones with others like it. A file larger
    than `input_bytes_max` cannot be read whole in the memory that there is. `wait_for_more` False is for when a person asks: all
    small files are rewritten at once, two are enough, and one that lost any row or is of an older spec.
    """

    target_bytes: int = 128 * _MIB
    inputs_min: int = 4
    deleted_share_max: float = 0.2
    input_bytes_max: int = 512 * _MIB
    wait_for_more: bool = True


@dataclass(frozen=True)
class Plan:
    """What to rewrite, best gain for its cost first; and what is left alone."""

    choices: tuple[Choice, ...]
    left: tuple[Left, ...]

    @property
    def debt_bytes(self) -> int:
        """Bytes of all files that the choices would replace, those of deletes they only read left out."""
        return sum(file.size_bytes for choice in self.choices for file in choice.rewritten)


def plan_compaction(
    files: Sequence[LiveFile],
    policy: CompactionPolicy,
    *,
    spec_id: int,
    resting: Collection[tuple[int, tuple[Any, ...]]] = (),
    busy: Collection[str] = (),
) -> Plan:
    """What of a table is worth rewriting now. Does not depend on the order of `files`, all live ones of the table's head.

    `spec_id` is the table's spec now. `resting`: (spec id, partition) of those that nothing has been written to for a while:
    they wait for no more files, as if a person asked. `busy`: locations of files that are being rewritten; they are in no choice,
    and neither is a data file that a busy delete file may speak of.
    """
    partitions, twice, equality_everywhere = _gathered(files)
    rests, busy = {_key(*one) for one in resting}, frozenset(busy)
    choices: list[Choice] = []
    left: list[Left] = []
    for key, partition in partitions.items():
        partition.is_of_other_spec = partition.spec_id != spec_id
        why = _untouchable(partition, twice, equality_everywhere)
        if why is not None:
            left.append(partition.left(why, partition.files))
            continue
        eager = key in rests or not policy.wait_for_more
        found, left_here = _Planning(partition, policy, eager, busy).plan()
        choices += found
        left += left_here
    choices.sort(key=lambda choice: (-choice.worth, by_age(choice.rewritten[0])))
    left.sort(key=lambda one: (by_age(one.files[0]), one.why))
    return Plan(tuple(choices), tuple(left))


@dataclass
class _Partition:
    """All live files of one partition of one spec, oldest first."""

    spec_id: int
    values: tuple[Any, ...]
    files: list[LiveFile] = field(default_factory=list)
    is_of_other_spec: bool = False

    def of(self, kind: str) -> list[LiveFile]:
        return [file for file in self.files if file.kind == kind]

    def left(self, why: str, files: Sequence[LiveFile]) -> Left:
        return Left(self.spec_id, self.values, why, tuple(files))


def _gathered(files: Sequence[LiveFile]) -> tuple[dict[Any, _Partition], set[str], bool]:
    """(partitions by key, locations named more than once, whether equality deletes speak of every partition)."""
    partitions: dict[Any, _Partition] = {}
    named: set[str] = set()
    twice: set[str] = set()
    everywhere = False
    for file in sorted(files, key=by_age):
        partitions.setdefault(_key(file.spec_id, file.partition), _Partition(file.spec_id, file.partition)).files.append(file)
        (twice if file.location in named else named).add(file.location)
        # Of an unpartitioned spec they speak of all data. So is a spec of void fields only, whose values cannot be told from nulls.
        everywhere |= file.kind == "equality deletes" and all(value is None for value in file.partition)
    return partitions, twice, everywhere


def _key(spec_id: int, partition: tuple[Any, ...]) -> tuple[Any, ...]:
    """Equal for one partition only: NaN is equal to nothing, and 0.0 to -0.0, which Iceberg tells apart."""
    return (spec_id, *(value.hex() if isinstance(value, float) else value for value in partition))


def _untouchable(partition: _Partition, twice: set[str], equality_everywhere: bool) -> str | None:
    if partition.of("equality deletes"):
        return "equality deletes are in the partition, and a rewritten file would be newer than they are"
    if equality_everywhere:
        return "equality deletes that are in no partition speak of all, and a rewritten file would be newer than they are"
    if any(file.location in twice for file in partition.files):
        return "a file is named more than once, and would leave the table more than once"
    return None


class _Planning:
    """One partition's choices. `eager`: it waits for no more files."""

    def __init__(self, partition: _Partition, policy: CompactionPolicy, eager: bool, busy: Collection[str]) -> None:
        self._partition, self._policy, self._eager, self._busy = partition, policy, eager, busy
        # A person wants the older specs gone, so that there one small file is enough.
        self._alone = partition.is_of_other_spec and not policy.wait_for_more
        self._reach = Reach(partition.of("data"), partition.of("position deletes"))
        self._left: list[Left] = []

    def plan(self) -> tuple[list[Choice], list[Left]]:
        deletes = self._partition.of("position deletes")
        self._leave("being rewritten already", [file for file in self._partition.files if file.location in self._busy])
        readable = [file for file in deletes if file.location not in self._busy and not self._is_too_large(file)]
        self._leave(self._too_large, [file for file in deletes if file.location not in self._busy and self._is_too_large(file)])
        bins = self._data_bins(self._rewritable(readable))
        if bins and len(self._reach.wide) > _WIDE_DELETES_MAX:
            wide = {file.location for file in self._reach.wide}
            merges = self._delete_choices([file for file in readable if file.location in wide], eager=True)
            if merges:
                first = f"{in_numbers(len(wide), 'delete file')} may speak of many data files each, and are merged first"
                self._leave(first, [file for bin_ in bins for file in bin_.files])
                return merges, self._left
        choices = [self._data_choice(bin_) for bin_ in bins]
        used = {file.location for choice in choices for file in choice.deletes}
        return choices + self._delete_choices([file for file in readable if file.location not in used], self._eager), self._left

    def _leave(self, why: str, files: Sequence[LiveFile]) -> None:
        if files:
            self._left.append(self._partition.left(why, files))

    def _is_too_large(self, file: LiveFile) -> bool:
        return file.size_bytes > self._policy.input_bytes_max

    @property
    def _too_large(self) -> str:
        return f"larger than {in_bytes(self._policy.input_bytes_max)}, which is what can be read whole in the memory that there is"

    def _is_small(self, file: LiveFile) -> bool:
        return not is_full(file.size_bytes, self._policy.target_bytes)

    def _lost_many(self, file: LiveFile) -> bool:
        return self._reach.share(file) > self._policy.deleted_share_max

    def _rewritable(self, readable: Sequence[LiveFile]) -> list[LiveFile]:
        """Data files that a rewrite could be wanted of, that are not too large, and all of whose deletes can be read."""
        names = {file.location for file in readable}
        unread = self._reach.spoken_of([file for file in self._partition.of("position deletes") if file.location not in names])
        wanted = [
            file
            for file in self._partition.of("data")
            if file.location not in self._busy and (self._is_small(file) or self._lost_many(file))
        ]
        self._leave(self._too_large, [file for file in wanted if self._is_too_large(file)])
        fitting = [file for file in wanted if not self._is_too_large(file)]
        why = "a delete file that may speak of it is being rewritten, or is too large to be read"
        self._leave(why, [file for file in fitting if file.location in unread])
        return [file for file in fitting if file.location not in unread]

    def _data_bins(self, files: Sequence[LiveFile]) -> list[_Bin]:
        """What goes into one file each, and why. Empty files go along with the first of them, else together if there are enough."""
        bins = self._eager_bins(files) if self._eager else self._patient_bins([file for file in files if file.row_count])
        taken = {file.location for bin_ in bins for file in bin_.files}
        empty = [file for file in files if not file.row_count and file.location not in taken]
        if bins:
            bins[0].files.extend(empty)
        elif empty and len(empty) >= self._policy.inputs_min:
            bins.append(_Bin(Why.SMALL_FILES, empty))
        return bins

    def _eager_bins(self, files: Sequence[LiveFile]) -> list[_Bin]:
        bins = []
        for pack in packed(files, _size_bytes, self._policy.target_bytes):
            if self._partition.is_of_other_spec and (len(pack) > 1 or self._alone):
                bins.append(_Bin(Why.OTHER_SPEC, pack))
            elif any(map(self._lost_many, pack)) or (len(pack) == 1 and self._reach.rows_deleted(pack[0])):
                bins.append(_Bin(Why.DELETED_ROWS, pack))
            elif len(pack) > 1:
                bins.append(_Bin(Why.SMALL_FILES, pack))
        return bins

    def _patient_bins(self, files: Sequence[LiveFile]) -> list[_Bin]:
        target, inputs_min = self._policy.target_bytes, self._policy.inputs_min
        # Where rows come and go quickly, each flush empties the small files before it: those wait for their like, or it would
        # take a rewrite after every flush.
        packs = packed(filter(self._lost_many, files), _size_bytes, target)
        packs = [pack for pack in packs if len(pack) >= inputs_min or sum(map(_size_bytes, pack)) >= _WORTHWHILE_SHARE * target]
        taken = {file.location for pack in packs for file in pack}
        small = [file for file in files if file.location not in taken]
        bins = [_Bin(Why.DELETED_ROWS, pack) for pack in packs]
        return bins + [_Bin(Why.SMALL_FILES, pack) for pack in bins_by_class(small, _size_bytes, target, inputs_min)]

    def _data_choice(self, bin_: _Bin) -> Choice:
        deletes, removed = self._reach.deletes_of(bin_.files)
        data_bytes = sum(map(_size_bytes, bin_.files))
        written = sum(map(self._reach.bytes_kept, bin_.files))
        saved = len(bin_.files) - (1 if written else 0)
        return Choice(
            spec_id=self._partition.spec_id,
            partition=self._partition.values,
            why=bin_.why,
            data=tuple(bin_.files),
            deletes=deletes,
            deletes_removed=removed,
            bytes_read=data_bytes + sum(map(_size_bytes, deletes)),
            bytes_written=written,
            files_saved=saved,
            delete_files_saved=len(removed),
            deleted_rows=sum(map(self._reach.rows_deleted, bin_.files)),
            read_s_saved=read_s(saved + len(removed), data_bytes - written + sum(map(_size_bytes, removed))),
        )

    def _delete_choices(self, files: Sequence[LiveFile], eager: bool) -> list[Choice]:
        """Those that can speak of no row any more, at once; the others by their rows."""
        enough = 2 if eager else self._policy.inputs_min
        spent = [file for file in files if self._reach.is_spent(file)]
        small = [file for file in files if not self._reach.is_spent(file) and not is_full(file.row_count, _DELETE_ROWS_TARGET)]
        if eager:
            bins = [pack for pack in packed(small, _row_count, _DELETE_ROWS_TARGET) if len(pack) > 1]
        else:
            bins = list(bins_by_class(small, _class_rows, _DELETE_ROWS_TARGET, enough))
        choices = [self._delete_choice(pack, sum(map(_size_bytes, pack))) for pack in bins]
        return choices + ([self._delete_choice(spent, 0)] if spent and len(spent) >= enough else [])

    def _delete_choice(self, files: Sequence[LiveFile], size_bytes: int) -> Choice:
        saved = len(files) - (1 if size_bytes else 0)
        return Choice(
            spec_id=self._partition.spec_id,
            partition=self._partition.values,
            why=Why.DELETE_FILES,
            data=(),
            deletes=tuple(files),
            deletes_removed=tuple(files),
            bytes_read=size_bytes,
            bytes_written=size_bytes,
            files_saved=0,
            delete_files_saved=saved,
            deleted_rows=0,
            read_s_saved=read_s(saved, sum(map(_size_bytes, files)) - size_bytes),
        )


@dataclass
class _Bin:
    """Data files for one choice."""

    why: Why
    files: list[LiveFile]


def _size_bytes(file: LiveFile) -> int:
    return file.size_bytes


def _row_count(file: LiveFile) -> int:
    return file.row_count


def _class_rows(file: LiveFile) -> int:
    return max(file.row_count, _DELETE_ROWS_SMALL)
