"""Where each row of a rewrite goes: the files that come out, which rows each of them gets and in what order."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from dolake.compaction.job import GONE, ROWS_MAX, Places
from dolake.compaction.ordering import order_of
from dolake.compaction.reading import Input, Sources
from dolake.errors import RewriteRefused

# How far above the target a file may be before it becomes two: they are guesses, and one file is better than two small ones.
_TOLERANCE = 1.1
# A cut is moved past rows of an equal key, unless that would be so large a share of the file.
_MOVED_SHARE_MAX = 0.1


@dataclass(frozen=True)
class PlacedFile:
    """A file to be written: the numbers of its first row and of the one behind its last, and who wrote its rows."""

    start: int
    stop: int
    partition: tuple[Any, ...]
    sources: Sources


@dataclass(frozen=True)
class Placing:
    """`numbers`: for each row of the inputs, one input's after the other's, the number that it gets."""

    numbers: Places
    row_count: int
    files: tuple[PlacedFile, ...]


@dataclass(frozen=True)
class Partitions:
    """`codes`: for each row that is kept, which of `values` its partition is; None where there is only one."""

    values: Sequence[tuple[Any, ...]]
    codes: npt.NDArray[np.int32] | None = None


def place_rows(inputs: Sequence[Input], keys: Sequence[pa.ChunkedArray], partitions: Partitions, target_bytes: int) -> Placing:
    """Rows by partition, then by `keys` (of the rows that are kept), cut into files of equal size; in a file by source, then by key.

    So the files of a partition have ranges of keys that do not meet, and each names its sources in a few words. Raises RewriteRefused.
    """
    kept = np.concatenate([one.kept for one in inputs]) if inputs else np.zeros(0, np.bool_)
    if len(kept) > ROWS_MAX:
        raise RewriteRefused(inputs[0].file.location, f"it and the others have {len(kept)} rows together, and a rewrite takes {ROWS_MAX}")
    count = int(np.count_nonzero(kept))
    codes = partitions.codes
    order = order_of([*([] if codes is None else [pa.chunked_array([pa.array(codes)])]), *keys], count)
    places, fresh = order.places, order.fresh if keys else np.ones(count, np.bool_)
    rows_a_file = target_bytes * _TOLERANCE / _bytes_a_row(inputs)
    names, owners = _owners(inputs)
    if len(names) > 1:
        owners = owners[kept]
        places = np.arange(count, dtype=np.int32) if places is None else places
    if codes is not None and places is not None:
        codes = codes[places]
    files = []
    for code, start, stop in _runs(codes, count):
        for begin, end in _cuts(start, stop, rows_a_file, fresh):
            sources = ((0, names[0]),) if places is None or len(names) == 1 else _by_source(places[begin:end], owners, names)
            files.append(PlacedFile(begin, end, partitions.values[code], sources))
    return Placing(_numbers(kept, places, count), count, tuple(files))


def _numbers(kept: npt.NDArray[np.bool_], places: Places | None, count: int) -> Places:
    ranks = np.arange(count, dtype=np.int32)
    if places is not None:
        ordered, ranks = ranks, np.empty(count, np.int32)
        ranks[places] = ordered
        del ordered
    numbers = np.full(len(kept), GONE, np.int32)
    numbers[kept] = ranks
    return numbers


def _bytes_a_row(inputs: Sequence[Input]) -> float:
    return max(1, sum(one.file.size_bytes for one in inputs)) / max(1, sum(len(one.kept) for one in inputs))


def _runs(codes: npt.NDArray[np.int32] | None, count: int) -> Iterator[tuple[int, int, int]]:
    """Equal codes that follow one another: the code, the first place and the one behind the last."""
    if not count:
        return
    starts = np.zeros(1, np.int64) if codes is None else np.flatnonzero(np.diff(codes, prepend=-1))
    for start, stop in zip(starts.tolist(), [*starts[1:].tolist(), count], strict=True):
        yield 0 if codes is None else int(codes[start]), start, stop


def _cuts(start: int, stop: int, rows_max: float, fresh: npt.NDArray[np.bool_]) -> Iterator[tuple[int, int]]:
    count = max(1, math.ceil((stop - start) / rows_max))
    begin = start
    for number in range(1, count):
        end = start + (stop - start) * number // count
        reach = fresh[end : end + math.ceil((stop - start) / count * _MOVED_SHARE_MAX)]
        end += int(np.argmax(reach)) if reach.any() else 0
        if begin < end < stop:
            yield begin, end
            begin = end
    yield begin, stop


def _owners(inputs: Sequence[Input]) -> tuple[list[str], npt.NDArray[np.int32]]:
    """The names of all sources, and which of them wrote each row; "" wrote what nobody is known to have written."""
    ranges = [_ranges(one) for one in inputs]
    names = list(dict.fromkeys(name for one in ranges for _, name in one)) or [""]
    if len(names) == 1:
        return names, np.zeros(0, np.int32)
    parts = []
    for one, known in zip(inputs, ranges, strict=True):
        owners = np.zeros(len(one.kept), np.int32)
        for first, name in known:
            owners[first:] = names.index(name)
        parts.append(owners)
    return names, np.concatenate(parts)


def _ranges(one: Input) -> Sources:
    known = tuple((first, name) for first, name in sorted(one.sources) if 0 <= first < len(one.kept))
    return known if not len(one.kept) or (known and known[0][0] == 0) else ((0, ""), *known)


def _by_source(places: Places, owners: npt.NDArray[np.int32], names: Sequence[str]) -> Sources:
    """Sorts a file's rows by source, in place; from which of them on another source's begin."""
    mine = owners[places]
    if np.any(mine[1:] < mine[:-1]):
        order = np.argsort(mine, kind="stable")
        places[:] = places[order]
        mine = mine[order]
    begins = [0, *(np.flatnonzero(mine[1:] != mine[:-1]) + 1).tolist()]
    return tuple((begin, names[mine[begin]]) for begin in begins)
