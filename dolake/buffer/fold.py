"""The fold: of all that happens to a key within one flush the last counts.

Decides only. A *touch* is what one event does to one key: an insert or update leaves a row of it, a delete leaves none, and an
update that changes the key touches two, the old one first. Keys are 128-bit hashes, in two arrays.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Words = npt.NDArray[np.uint64]
Places = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Touches:
    """What happens to keys, in its order: `rows` are the events, `leaves` whether a row of the key is left, `sources` who did it."""

    high: Words
    low: Words
    rows: Places
    leaves: Flags
    sources: npt.NDArray[np.int32]


@dataclass(frozen=True)
class Folded:
    """Each key that was touched, once: the last event that left a row of it (`rows`, -1 where none is left), and who touched it.

    `contested` keys were touched by more than one source.
    """

    high: Words
    low: Words
    rows: Places
    sources: npt.NDArray[np.int32]
    contested: Flags


def fold(touches: Touches) -> Folded:
    """Vectorised: a sort of the hashes' upper halves, and of the lower ones where two of those are equal."""
    order, first = grouped(touches.high, touches.low)
    last = np.append(first[1:], True) if len(first) else first
    kept = order[last]
    rows = np.where(touches.leaves[kept], touches.rows[kept], -1)
    sources = touches.sources[order]
    contested = np.zeros(len(kept), np.bool_)
    starts = np.flatnonzero(first)
    if len(starts) and sources.min() != sources.max():
        contested = np.minimum.reduceat(sources, starts) != np.maximum.reduceat(sources, starts)
    return Folded(touches.high[kept], touches.low[kept], rows, touches.sources[kept], contested)


def grouped(high: Words, low: Words) -> tuple[Places, Flags]:
    """An order in which equal hashes stand together, as they came, and where each begins."""
    order = np.argsort(high, kind="stable")
    ordered_high, ordered_low = high[order], low[order]
    same_high = ordered_high[1:] == ordered_high[:-1]
    if np.any(same_high & (ordered_low[1:] != ordered_low[:-1])):
        order = np.lexsort((low, high))  # It is stable too.
        ordered_high, ordered_low = high[order], low[order]
        same_high = ordered_high[1:] == ordered_high[:-1]
    first = np.ones(len(order), np.bool_)
    first[1:] = ~(same_high & (ordered_low[1:] == ordered_low[:-1]))
    return order, first
