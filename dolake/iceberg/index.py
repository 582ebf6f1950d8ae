"""The key index of a mirror table: key hash → the data file and the row that hold it.

It is derived: what it says follows from the data and delete files of one snapshot, so it can be brought to another snapshot by
the files that the two do not share, and made anew from the table at any time. Every row of every indexed file has a number; an
entry is a hash and such a number, and one flag a row says whether a position delete has taken it out. Entries of rows that are
gone are passed over, and dropped when their run is merged: nothing has to be found by its place to be deleted.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from dolake.iceberg.index_runs import Flags, Places, Rows, Run, Words, find, joined, merged, renumbered, row_type, sorted_run

# A run is merged into the one before it unless that is this many times as long: the fewer runs, the more often entries move.
GROWTH = 4
# A merge of more than this goes to disk.
MEMORY_ENTRIES_MAX = 1 << 19
_FIRST_SPACE = 1 << 10
# Rows are numbered anew when the numbers of files that have left are more than this, and more than those in use: what a table has
# ever been through takes no memory.
_GAP_ROWS_MAX = 1 << 16
# A run of which this part of the entries moves is written anew: what stays is copied for it.
_MOVED_SHARE = 4

RowNumbers = npt.NDArray[np.int64]
# By the location of a file that left, for each of its rows where it is now; negative for one that was deleted.
Moves = Mapping[str, npt.NDArray[np.signedinteger[Any]]]
# Writes the pieces of one run somewhere they need no memory. Raises OSError.
Spill = Callable[[Iterator[Run]], Run]


@dataclass(frozen=True)
class IndexedFile:
    """A data file: where its rows' numbers begin, and where it stands in its table (`partition` as manifests store it).

    `sources`: the rows from which on another source's begin, and that source's name; empty where nobody knows.
    """

    location: str
    row_count: int
    spec_id: int
    partition: tuple[Any, ...] = ()
    sources: tuple[tuple[int, str], ...] = ()
    first: int = 0


@dataclass(frozen=True)
class Hits:
    """Living rows of keys that were looked up: which of the keys, and the row's number."""

    keys: Places
    rows: RowNumbers


@dataclass
class KeyIndex:
    """One table's index. `key` names the key's columns by field id, `seed` is that of the hashes. Not for two threads at once."""

    table_uuid: str
    key: tuple[int, ...]
    seed: int
    snapshot_id: int | None = None
    spill: Spill | None = None
    runs: list[Run] = field(default_factory=list)
    files: dict[str, IndexedFile] = field(default_factory=dict)
    delete_files: set[str] = field(default_factory=set)
    space: int = 0  # row numbers that were given so far
    dead: Flags = field(default_factory=lambda: np.zeros(_FIRST_SPACE, np.bool_))
    dead_count: int = 0
    unspilled: str = ""  # why the last merge stayed in memory
    _order: list[IndexedFile] = field(default_factory=list)
    _source_codes: dict[str, int] = field(default_factory=lambda: {"": 0})

    def __post_init__(self) -> None:
        self._order = sorted(self.files.values(), key=lambda file: file.first)

    @property
    def live_count(self) -> int:
        return self.space - self.dead_count

    @property
    def size_bytes(self) -> int:
        """What runs and flags take, in memory and in mapped files."""
        return sum(run.size_bytes for run in self.runs) + self.space

    @property
    def memory_bytes(self) -> int:
        """What of it is in memory."""
        return sum(run.size_bytes for run in self.runs if not run.name) + len(self.dead)

    # -- asking

    def lookup(self, high: Words, low: Words) -> Hits:
        """The living rows of these keys; a key may have none, and several where others have written the table too."""
        order = np.argsort(high)
        high, low = high[order], low[order]
        keys: list[Places] = [order[:0]]
        rows: list[RowNumbers] = [np.zeros(0, np.int64)]
        for run in self.runs:
            found, its_rows = find(run, high, low)
            living = ~self.dead[its_rows]
            keys.append(order[found[living]])
            rows.append(its_rows[living].astype(np.int64))
        return Hits(np.concatenate(keys), np.concatenate(rows))

    def located(self, rows: RowNumbers) -> Iterator[tuple[IndexedFile, Places]]:
        """Row numbers by file, in the files' order: each file with the rows' places in it, rising."""
        rows = np.sort(rows)
        starts = np.array([file.first for file in self._order], np.int64)
        owners = np.searchsorted(starts, rows, side="right") - 1
        bounds = np.flatnonzero(np.diff(owners, prepend=-1))
        for begin, end in zip(bounds, [*bounds[1:], len(rows)], strict=True):
            file = self._order[owners[begin]]
            yield file, rows[begin:end] - file.first

    def owners(self, rows: RowNumbers) -> npt.NDArray[np.int32]:
        """Who wrote each row, as a `source_code`; 0 where it is not known."""
        starts = [file.first + first for file in self._order for first, _ in file.sources or ((0, ""),)]
        codes = [self.source_code(name) for file in self._order for _, name in file.sources or ((0, ""),)]
        places = np.searchsorted(np.array(starts, np.int64), rows, side="right") - 1
        return np.array(codes, np.int32)[places]

    def source_code(self, name: str) -> int:
        """A number that stands for a source as long as this index lives; 0 for the empty name."""
        return self._source_codes.setdefault(name, len(self._source_codes))

    def numbers_of(self, location: str, places: Places) -> RowNumbers:
        """The numbers of a file's rows; none if it is not indexed."""
        file = self.files.get(location)
        if file is None:
            return np.zeros(0, np.int64)
        return places[(places >= 0) & (places < file.row_count)].astype(np.int64) + file.first

    # -- changing

    def add(self, file: IndexedFile, high: Words, low: Words) -> None:
        """A file with one hash for each of its rows."""
        self.add_files([(file, high, low)])

    def add_files(self, files: Sequence[tuple[IndexedFile, Words, Words]]) -> None:
        """Files whose entries become one run."""
        highs, lows, rows = [], [], []
        for file, high, low in files:
            placed = replace(file, first=self.space)
            self._grow(file.row_count)
            self.files[file.location] = placed
            self._order.append(placed)
            highs.append(high)
            lows.append(low)
            rows.append(np.arange(placed.first, self.space, dtype=np.uint64))
        if rows and sum(map(len, rows)):
            pieces = merged([sorted_run(np.concatenate(highs), np.concatenate(lows), np.concatenate(rows))], self.dead, self.space)
            self.runs.append(joined(pieces, self.space))
            self._settle()

    def delete(self, rows: RowNumbers) -> int:
        """Position deletes took these rows out; how many of them were not out before."""
        fresh = np.unique(rows[~self.dead[rows]])
        self.dead[fresh] = True
        self.dead_count += len(fresh)
        return len(fresh)

    def remove(self, locations: Iterable[str]) -> None:
        """Files that are not in the table any more."""
        self._drop(locations)
        self._close_gaps()

    def move(self, moves: Moves, files: Sequence[IndexedFile]) -> None:
        """Files were rewritten as others: `moves` says for each row of an old one where it is now, counted over all `files` in their order.

        No key is hashed again: an entry gets the number of its row's new place. What is deleted of an old file is so in the new ones.
        Raises ValueError, with nothing changed, where `moves` leave out a row that lives.
        """
        gone = [self.files[location] for location in moves]
        first, space = self.space, self.space + sum(file.row_count for file in files)
        living, inside = np.zeros(space - first, np.bool_), np.zeros(self.space, np.bool_)
        for file in gone:
            alive = ~self.dead[file.first : file.first + file.row_count]
            places = moves[file.location][alive]
            if (places < 0).any():
                raise ValueError("a living row has not come with the file that it was in")
            living[places] = True
            inside[file.first : file.first + file.row_count] = alive
        runs = self._moved(gone, moves, inside, space)
        for file in files:
            placed = replace(file, first=self.space)
            self._grow(file.row_count)
            self.files[file.location] = placed
            self._order.append(placed)
        self.delete(np.flatnonzero(~living) + first)
        self._drop(file.location for file in gone)
        self.runs = runs
        if runs:
            self._settle()
        self._close_gaps()

    def _moved(self, gone: Sequence[IndexedFile], moves: Moves, inside: Flags, space: int) -> list[Run]:
        """The runs with the new numbers of rows that are `inside` these files.

        A run that many of them are in gets them where they stand: their keys' order is what it was. What few others have makes a run
        of its own, and is dropped from theirs when they are merged.
        """
        offsets = np.cumsum([0, *(file.row_count for file in gone)])
        starts = np.array([file.first for file in gone], np.int64)
        order = np.lexsort((np.diff(offsets), starts))  # An empty file begins where another does: the other's the rows are.
        targets = np.concatenate([np.zeros(0, np.int64), *(moves[file.location] for file in gone)]) + self.space

        def numbers_now(rows: Rows) -> Rows:
            numbers = rows.astype(np.int64)
            owners = order[np.searchsorted(starts[order], numbers, side="right") - 1]
            now: Rows = targets[offsets[owners] + numbers - starts[owners]].astype(row_type(space))
            return now

        kept: list[Run] = []
        taken: list[Run] = []
        for run in self.runs:
            count = int(np.count_nonzero(inside[run.rows]))
            if _MOVED_SHARE * count >= run.count > 0:
                kept.append(self._stored(partial(renumbered, run, inside, self.dead, numbers_now, space), run.count))
                continue
            kept.append(run)
            if count:
                found = np.flatnonzero(inside[run.rows])
                taken.append(Run(run.high[found], run.low[found], numbers_now(run.rows[found])))
        if taken:
            loose = joined(taken, space)
            kept.append(sorted_run(loose.high, loose.low, loose.rows))
        return kept

    def clear(self) -> None:
        """All files have left the table."""
        self.runs, self.files, self.delete_files, self._order = [], {}, set(), []
        self.space, self.dead, self.dead_count = 0, np.zeros(_FIRST_SPACE, np.bool_), 0

    def _drop(self, locations: Iterable[str]) -> None:
        for file in [self.files.pop(location) for location in locations]:
            self.delete(np.arange(file.first, file.first + file.row_count, dtype=np.int64))
        self._order = [file for file in self._order if file.location in self.files]

    def _close_gaps(self) -> None:
        """Numbers the rows anew, in their order, where most numbers, and not few, are those of files that have left."""
        in_use = sum(file.row_count for file in self._order)
        if self.space - in_use <= max(_GAP_ROWS_MAX, in_use):
            return
        firsts = np.cumsum([0, *(file.row_count for file in self._order)])[:-1]
        starts = np.array([file.first for file in self._order], np.int64)

        def numbers_now(rows: Rows) -> Rows:
            owners = np.searchsorted(starts, rows, side="right") - 1
            now: Rows = (rows.astype(np.int64) - starts[owners] + firsts[owners]).astype(row_type(in_use))
            return now

        everywhere = np.ones(self.space, np.bool_)
        runs = [self._stored(partial(renumbered, run, everywhere, self.dead, numbers_now, in_use), run.count) for run in self.runs]
        dead = [self.dead[file.first : file.first + file.row_count] for file in self._order]
        placed = [replace(file, first=int(first)) for file, first in zip(self._order, firsts, strict=True)]
        self.files, self._order = {file.location: file for file in placed}, placed
        self.space, self.dead = in_use, np.concatenate([*dead, np.zeros(_FIRST_SPACE, np.bool_)])
        self.dead_count = int(np.count_nonzero(self.dead))
        self.runs = [run for run in runs if run.count]

    def _grow(self, row_count: int) -> None:
        self.space += row_count
        if self.space > len(self.dead):
            grown = np.zeros(max(self.space, len(self.dead) * 3 // 2), np.bool_)
            grown[: len(self.dead)] = self.dead
            self.dead = grown

    def _settle(self) -> None:
        """Merges the youngest runs until each is much longer than all that are younger."""
        together = self.runs[-1].count
        first = len(self.runs) - 1
        while first and self.runs[first - 1].count < GROWTH * together:
            first -= 1
            together += self.runs[first].count
        if first < len(self.runs) - 1:
            self.runs[first:] = [self._merge(self.runs[first:], together)]

    def _merge(self, runs: Sequence[Run], entries: int) -> Run:
        return self._stored(partial(merged, runs, self.dead, self.space), entries)

    def _stored(self, pieces: Callable[[], Iterator[Run]], entries: int) -> Run:
        """Those pieces as one run: on disk where they are many."""
        if entries > MEMORY_ENTRIES_MAX and self.spill is not None:
            try:
                run = self.spill(pieces())
            except OSError as error:
                self.unspilled = error.strerror or str(error)
            else:
                self.unspilled = ""
                return run
        return joined(pieces(), self.space)

    def file_at(self, row: int) -> IndexedFile:
        """The file that a row number is of."""
        return self._order[bisect.bisect_right(self._order, row, key=lambda file: file.first) - 1]
