"""Which files go together by size: size classes, and bins that hold as much as one file should. Pure.

A class is a factor of 4 wide: class 0 is within a factor of 4 of the target, class 1 that of 4 times smaller files, and so on; a
file of three quarters of the target or more is full, and of no class. Four files of one class sum up to a file of the class
above it, or to a full one. Wider classes would rewrite a row less often and leave readers more files to open: with a factor of 8 a
third of the rewrites is saved, and up to seven files of a class stand instead of three.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from dolake.iceberg.contents import LiveFile

Weight = Callable[[LiveFile], int]
CLASS_FACTOR = 4
# A first fit looks at so many bins only: more would cost time, and hardly fill any better.
_OPEN_BINS_MAX = 16


def is_full(weight: int, target: int) -> bool:
    return 4 * weight >= 3 * target


def size_class(weight: int, target: int) -> int:
    """How many times a factor of 4 below the target."""
    level = 0
    while max(weight, 1) * CLASS_FACTOR ** (level + 1) <= target:
        level += 1
    return level


def bins_by_class(files: Sequence[LiveFile], weight: Weight, target: int, inputs_min: int) -> Iterator[list[LiveFile]]:
    """Bins of one class each, of the classes that have `inputs_min` files or fill the target. None of `files` is full."""
    classes: dict[int, list[LiveFile]] = {}
    for file in files:
        classes.setdefault(size_class(weight(file), target), []).append(file)
    for _, members in sorted(classes.items()):
        if len(members) >= inputs_min or sum(map(weight, members)) >= target:
            for bin_ in packed(members, weight, target):
                if len(bin_) > 1 and (len(bin_) >= inputs_min or _fills(list(map(weight, bin_)), target)):
                    yield bin_


def _fills(weights: Sequence[int], target: int) -> bool:
    """A full file; or half a one out of less than halves, else files of a third or more would stay: no row comes into two such."""
    return is_full(sum(weights), target) or 2 * max(weights) < target <= 2 * sum(weights)


def packed(files: Iterable[LiveFile], weight: Weight, target: int) -> list[list[LiveFile]]:
    """All files in bins whose sum is at most `target`, each file in the first bin that takes it; a larger file has one to itself."""
    bins: list[list[LiveFile]] = []
    open_: list[tuple[int, int]] = []  # Of each bin that may take more: what it holds, and its place.
    for file in files:
        size = weight(file)
        at = next((at for at, (held, _) in enumerate(open_) if held + size <= target), None)
        if at is not None:
            held, place = open_[at]
            bins[place].append(file)
            open_[at] = held + size, place
        else:
            open_.append((size, len(bins)))
            bins.append([file])
            del open_[:-_OPEN_BINS_MAX]
    return bins
