"""Sorted runs of a key index: 128-bit hashes, and the row each belongs to. Arrays in, arrays out.

A run never changes. New ones are small; those that have grown together are merged, so that their number stays within the
logarithm of the index (`iceberg.index`). A run may lie in memory or in a mapped file: it is the same three arrays.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Words = npt.NDArray[np.uint64]
Places = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]
Rows = npt.NDArray[np.unsignedinteger]

# Entries merged at once: enough to make the calls cheap, few enough to bound what a merge of any size takes.
CHUNK_ENTRIES = 1 << 19
_ROW_32_MAX = 1 << 32


@dataclass(frozen=True)
class Run:
    """Entries by rising `high`. `name` is that of its files, empty for one in memory."""

    high: Words
    low: Words
    rows: Rows
    name: str = ""

    @property
    def count(self) -> int:
        return len(self.high)

    @property
    def is_wide(self) -> bool:
        """Whether row numbers take eight bytes."""
        return self.rows.itemsize == np.dtype(np.uint64).itemsize

    @property
    def size_bytes(self) -> int:
        return int(self.high.nbytes + self.low.nbytes + self.rows.nbytes)


def sorted_run(high: Words, low: Words, rows: Rows) -> Run:
    order = np.argsort(high, kind="stable")
    return Run(high[order], low[order], rows[order])


def find(run: Run, high: Words, low: Words) -> tuple[Places, Rows]:
    """For each entry of one of these keys (by rising `high`): which key it is, and its row."""
    keys: Places = np.arange(len(high))
    places = np.searchsorted(run.high, high)
    found_keys: list[Places] = []
    found_rows: list[Rows] = []
    while len(keys):
        inside = places < run.count
        keys, places = keys[inside], places[inside]
        same = run.high[places] == high[keys]
        keys, places = keys[same], places[same]
        hit = run.low[places] == low[keys]
        found_keys.append(keys[hit])
        found_rows.append(run.rows[places[hit]])
        places = places + 1  # An entry may have equals beside it.
    if not found_keys:
        return keys, run.rows[:0]
    return np.concatenate(found_keys), np.concatenate(found_rows)


def row_type(space: int) -> type[np.uint32] | type[np.uint64]:
    """What holds every row number below `space`."""
    return np.uint32 if space <= _ROW_32_MAX else np.uint64


def merged(runs: Sequence[Run], dead: Flags, space: int) -> Iterator[Run]:
    """The runs' living entries as one run, piece by piece. `dead` says of each row whether it is gone."""
    longest = max(runs, key=lambda run: run.count)
    bounds = longest.high[CHUNK_ENTRIES::CHUNK_ENTRIES]
    cuts = [np.concatenate([[0], np.searchsorted(run.high, bounds), [run.count]]) for run in runs]
    for chunk in range(len(bounds) + 1):
        parts = [(run, slice(cut[chunk], cut[chunk + 1])) for run, cut in zip(runs, cuts, strict=True)]
        rows = np.concatenate([run.rows[part].astype(row_type(space)) for run, part in parts])
        living = ~dead[rows]
        high = np.concatenate([run.high[part] for run, part in parts])[living]
        low = np.concatenate([run.low[part] for run, part in parts])[living]
        yield sorted_run(high, low, rows[living])


def renumbered(run: Run, inside: Flags, dead: Flags, numbers_now: Callable[[Rows], Rows], space: int) -> Iterator[Run]:
    """The run's living entries, piece by piece; rows that are `inside` have the `numbers_now`."""
    for start in range(0, run.count, CHUNK_ENTRIES):
        part = slice(start, start + CHUNK_ENTRIES)
        rows = np.asarray(run.rows[part])
        living = ~dead[rows]
        rows = rows[living]
        numbers: Rows = rows.astype(row_type(space))
        moves = inside[rows]
        numbers[moves] = numbers_now(rows[moves])
        yield Run(run.high[part][living], run.low[part][living], numbers)


def joined(pieces: Iterable[Run], space: int) -> Run:
    """Pieces of one run, in memory."""
    found = list(pieces)
    none = np.zeros(0, np.uint64)
    return Run(
        np.concatenate([none, *(piece.high for piece in found)]),
        np.concatenate([none, *(piece.low for piece in found)]),
        np.concatenate([none.astype(row_type(space)), *(piece.rows for piece in found)]),
    )
