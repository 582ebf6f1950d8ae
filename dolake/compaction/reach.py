"""Which position deletes may speak of which data files of one partition, and how many rows that makes: as manifests tell. Pure.

A delete file names rows by the location of their data file. Manifests hold the lowest and the highest location in it, its
number of rows and its sequence number; so it may speak of every data file of its partition whose location lies between the two
and whose sequence number is not higher (Iceberg v2, "Scan Planning"). How its rows are shared out is not known: here by row count.

Data files stand in the order of their locations, so that what a delete file may speak of is a span of places, less what is newer.
Sums over spans come from a tree, with files taken in the order of their sequence numbers: each costs O(log n), never a look at
every pair.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Collection, Iterable, Sequence
from itertools import accumulate

from dolake.iceberg.contents import LiveFile
from dolake.iceberg.entries import FILE_PATH_ID

# Shares of a file are counted in whole parts: sums of floats would leave traces of what was taken back.
_PARTS = 1 << 40


def by_age(file: LiveFile) -> tuple[int, str]:
    """Oldest first; a total order, so that plans do not depend on the order of manifests."""
    return file.sequence_number, file.location


class Reach:
    """The data files and the position deletes of one partition, each location named once: what speaks of what."""

    def __init__(self, data: Iterable[LiveFile], deletes: Iterable[LiveFile]) -> None:
        placed = sorted((file.location.encode(), file) for file in data)
        self._paths = [path for path, _ in placed]
        self._data = [file for _, file in placed]
        self._places = {file.location: place for place, file in enumerate(self._data)}
        self._oldest_first = sorted(range(len(placed)), key=lambda place: by_age(self._data[place]))
        self._deletes = sorted(deletes, key=by_age)
        self._spans = {file.location: self._span(file) for file in self._deletes}
        self._rows = self._rows_spoken_of()
        # Apart, because there may be as many of the first as data files, and each is of one choice only.
        self._of_one: dict[int, list[LiveFile]] = {}
        self.wide: list[LiveFile] = []
        for file in self._deletes:
            first, end = self._spans[file.location]
            if not self.is_spent(file):
                if end - first == 1:
                    self._of_one.setdefault(first, []).append(file)
                else:
                    self.wide.append(file)
        self._gone = self._sums_over_data(lambda file: file.row_count * _PARTS // self._rows[file.location])

    def is_spent(self, file: LiveFile) -> bool:
        """Whether this delete file can speak of no row that is still there."""
        return not self._rows[file.location] or not file.row_count

    def share(self, file: LiveFile) -> float:
        """How much of a data file's rows is deleted, as estimated: 0 to 1."""
        return self._parts(file) / _PARTS

    def rows_deleted(self, file: LiveFile) -> int:
        return (file.row_count * self._parts(file) + _PARTS // 2) // _PARTS

    def bytes_kept(self, file: LiveFile) -> int:
        """What would be left of a data file, as estimated: as large a share of its bytes as of its rows."""
        return file.size_bytes * (_PARTS - self._parts(file)) // _PARTS if file.row_count else 0

    def spoken_of(self, deletes: Collection[LiveFile]) -> set[str]:
        """Locations of the data files that any of these delete files may speak of."""
        names = {file.location for file in deletes}
        sums = self._sums_over_data(lambda file: file.location in names) if names else []
        return {self._data[place].location for place, sum_ in enumerate(sums) if sum_}

    def deletes_of(self, data: Sequence[LiveFile]) -> tuple[tuple[LiveFile, ...], tuple[LiveFile, ...]]:
        """(delete files that may speak of any of these data files, those of them that can speak of no row elsewhere), by age."""
        places = sorted(self._places[file.location] for file in data)
        found = [file for place in places for file in self._of_one.get(place, ())]
        used_up = list(found)
        lowest = min(self._data[place].sequence_number for place in places)
        rows = [0, *accumulate(self._data[place].row_count for place in places)]
        for file in self.wide[bisect_left(self.wide, lowest, key=lambda wide: wide.sequence_number) :]:
            first, end = (bisect_left(places, bound) for bound in self._spans[file.location])
            if any(self._data[place].sequence_number <= file.sequence_number for place in places[first:end]):
                found.append(file)
                # What is counted first costs nothing and rules out nearly all.
                enough = rows[end] - rows[first] >= self._rows[file.location]
                if enough and self._rows_among(places[first:end], file) == self._rows[file.location]:
                    used_up.append(file)
        return tuple(sorted(found, key=by_age)), tuple(sorted(used_up, key=by_age))

    def _rows_among(self, places: Iterable[int], file: LiveFile) -> int:
        them = (self._data[place] for place in places)
        return sum(data.row_count for data in them if data.sequence_number <= file.sequence_number)

    def _parts(self, file: LiveFile) -> int:
        return min(_PARTS, self._gone[self._places[file.location]]) if file.row_count else 0

    def _span(self, file: LiveFile) -> tuple[int, int]:
        """Places (first, end) of the data files whose locations lie within the bounds of what a delete file names."""
        lower, upper = file.lower_bounds.get(FILE_PATH_ID), file.upper_bounds.get(FILE_PATH_ID)
        first = 0 if lower is None else bisect_left(self._paths, lower)
        return first, max(first, len(self._paths) if upper is None else bisect_right(self._paths, upper))

    def _rows_spoken_of(self) -> dict[str, int]:
        """By delete file the rows of all data files that it may speak of: those that are there when its turn comes."""
        sums, rows, older = _Sums(len(self._data)), {}, 0
        for file in self._deletes:
            while older < len(self._data) and self._data[self._oldest_first[older]].sequence_number <= file.sequence_number:
                place = self._oldest_first[older]
                sums.add(place, self._data[place].row_count)
                older += 1
            first, end = self._spans[file.location]
            rows[file.location] = sums.before(end) - sums.before(first)
        return rows

    def _sums_over_data(self, amount: Callable[[LiveFile], int]) -> list[int]:
        """By place of a data file the sum of `amount` over the delete files that may speak of it and are not spent; newest first."""
        sums, totals = _Sums(len(self._data) + 1), [0] * len(self._data)
        newer = len(self._deletes)
        for place in reversed(self._oldest_first):
            while newer and self._deletes[newer - 1].sequence_number >= self._data[place].sequence_number:
                newer -= 1
                file = self._deletes[newer]
                if not self.is_spent(file):
                    first, end = self._spans[file.location]
                    sums.add(first, amount(file))
                    sums.add(end, -amount(file))
            totals[place] = sums.before(place + 1)
        return totals


class _Sums:
    """Numbers in a row, each changed, and the sum of those before any place told, in O(log n): a Fenwick tree."""

    def __init__(self, count: int) -> None:
        self._tree = [0] * (count + 1)

    def add(self, place: int, amount: int) -> None:
        place += 1
        while place < len(self._tree):
            self._tree[place] += amount
            place += place & -place

    def before(self, end: int) -> int:
        total = 0
        while end:
            total += self._tree[end]
            end &= end - 1
        return total
