"""The order that a rewrite gives to rows, found from their keys alone.

A key is compared word by word: a column gives numbers whose order is that of its values (nulls first), a text one number for each
few bytes. Rows are sorted by the first word; those that are equal in it by the next, and so on, so that a second word is only
made for rows that need it. A stable sort of runs that are sorted already is a merge of them, and of one run nothing at all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from dolake.compaction.job import Places

Offsets = npt.NDArray[np.int64]
Words = npt.NDArray[np.int64] | npt.NDArray[np.uint64] | npt.NDArray[np.int8]
# The next word of these rows; of all of them where it is None.
Level = Callable[[Places | None], Words]

_LOW = np.int64(0x7FFFFFFFFFFFFFFF)
# So many words at a time are put together with their places: what that takes beside them is small.
_PACKED_WORDS = 64 << 10
# Bytes of a text in one word; the eighth says how many there are, so that what is shorter comes first.
_TEXT_WORD = 7


@dataclass(frozen=True)
class Order:
    """`places[i]`: the row that is i-th; None where all stay. `fresh[i]`: whether its key differs from that of the row before."""

    places: Places | None
    fresh: npt.NDArray[np.bool_]


def order_of(columns: Sequence[pa.ChunkedArray], count: int) -> Order:
    """Rows by these columns, the first first; equal ones stay as they are. Without columns all stay, and each is a key of its own."""
    if not columns or not count:
        return Order(None, np.ones(count, np.bool_))
    places: Places | None = None
    fresh = np.zeros(count, np.bool_)
    fresh[0] = True
    for column in columns:
        for level in _levels(_plain(column)):
            places = _refine(places, fresh, level)
            if fresh.all():
                return Order(places, fresh)
    return Order(places, fresh)


def _refine(places: Places | None, fresh: npt.NDArray[np.bool_], level: Level) -> Places | None:
    """Sorts rows that were equal so far: where they are then; `fresh` has those that differ now as well."""
    if not fresh[1:].any():  # The first word, or one after words that all rows have in common: none was moved.
        words = level(None)
        if not np.all(words[1:] >= words[:-1]):
            places, words = _sorted(words)
        fresh[1:] = words[1:] != words[:-1]
        return places
    if places is None:
        places = np.arange(len(fresh), dtype=np.int32)
    equal = ~fresh
    tied = equal.copy()
    tied[:-1] |= equal[1:]
    where = np.flatnonzero(tied)
    del equal, tied
    rows, groups = places[where], np.cumsum(fresh)[where]
    words = level(rows)
    order = np.lexsort((words, groups))
    places[where] = rows[order]
    words = words[order]
    fresh[where[1:]] |= words[1:] != words[:-1]
    return places


def _sorted(words: Words) -> tuple[Places, Words]:
    """Places of the words in their order, and the words so; equal ones in the order that they have.

    Where word and place fit into 64 bits together they are sorted as one number: an eighth of the time, and stable by itself.
    """
    count_bits = len(words).bit_length()
    lowest = int(words.min())
    if (int(words.max()) - lowest).bit_length() + count_bits <= 64:
        whole = words if words.dtype == np.uint64 else words.astype(np.int64, copy=False).view(np.uint64)
        packed = whole - np.uint64(lowest & 0xFFFFFFFFFFFFFFFF)
        packed <<= np.uint64(count_bits)
        for start in range(0, len(packed), _PACKED_WORDS):
            stop = min(start + _PACKED_WORDS, len(packed))
            packed[start:stop] |= np.arange(start, stop, dtype=np.uint64)
        packed.sort()
        found = packed.astype(np.int32)
        found &= np.int32((1 << count_bits) - 1)
        packed >>= np.uint64(count_bits)
        return found, packed
    order = np.argsort(words, kind="stable").astype(np.int32)
    return order, words[order]


def _plain(column: pa.ChunkedArray) -> pa.Array:
    """One array, without dictionary and extension."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    array = (
        column.chunk(0) if column.num_chunks == 1 else pa.concat_arrays(column.chunks) if column.num_chunks else pa.nulls(0, column.type)
    )
    return array.storage if isinstance(array, pa.ExtensionArray) else array


def _levels(array: pa.Array) -> Iterator[Level]:
    """What an array's values are compared by."""
    if array.null_count:
        valid = np.asarray(array.is_valid()).astype(np.int8)
        yield lambda rows: valid if rows is None else valid[rows]
    kind = array.type
    if pa.types.is_string(kind) or pa.types.is_binary(kind):
        yield from _text_levels(array)
    elif pa.types.is_fixed_size_binary(kind) and not pa.types.is_decimal(kind):
        yield from _text_levels(array.cast(pa.binary()))
    elif pa.types.is_decimal(kind):
        halves = np.frombuffer(array.buffers()[1], np.int64, 2 * len(array), 16 * array.offset).reshape(len(array), 2)
        if kind.precision > 18:
            yield _taken(_without_nulls(array, np.ascontiguousarray(halves[:, 1])))
            yield _taken(_without_nulls(array, np.ascontiguousarray(halves[:, 0]).view(np.uint64)))
        else:
            yield _taken(_without_nulls(array, np.ascontiguousarray(halves[:, 0])))
    elif pa.types.is_floating(kind):
        yield _taken(_float_words(np.asarray(pc.fill_null(array.cast(pa.float64()), 0.0))))
    else:
        yield _taken(_whole_words(array))


def _taken(words: Words) -> Level:
    return lambda rows: words if rows is None else words[rows]


def _without_nulls(array: pa.Array, words: Words) -> Words:
    """Nulls are all alike, whatever bytes lie there."""
    if array.null_count:
        words = words.copy()
        words[np.asarray(array.is_null())] = 0
    return words


def _whole_words(array: pa.Array) -> Words:
    """Integers, and what Arrow holds as such. Raises TypeError for what has no order."""
    kind = array.type
    if pa.types.is_boolean(kind):
        array = array.cast(pa.int8())
    elif pa.types.is_temporal(kind):
        array = array.view(pa.int32() if kind.bit_width == 32 else pa.int64())
    elif not pa.types.is_integer(kind):
        raise TypeError(f"rows cannot be sorted by {kind}")
    words: Words = np.asarray(pc.fill_null(array, 0) if array.null_count else array)
    return words


def _float_words(values: npt.NDArray[np.float64]) -> Words:
    """As Iceberg sorts them: -0 before 0, one NaN after all."""
    bits = np.where(np.isnan(values), np.nan, values).view(np.int64)
    return np.where(bits < 0, bits ^ _LOW, bits)


def _text_levels(array: pa.Array) -> Iterator[Level]:
    """Texts by their bytes; a word holds seven of them, and how many of those and of what follows there are."""
    large = array.cast(pa.large_binary())
    offsets = np.frombuffer(large.buffers()[1], np.int64, len(large) + 1, 8 * large.offset)
    sizes = np.diff(offsets)
    if large.null_count:
        sizes = np.where(np.asarray(large.is_null()), 0, sizes)
    data = np.frombuffer(large.buffers()[2] or b"", np.uint8)
    for start in range(0, int(sizes.max(initial=0)) + 1, _TEXT_WORD):
        yield partial(_text_words, data, offsets[:-1], sizes, start)


def _text_words(data: npt.NDArray[np.uint8], offsets: Offsets, sizes: Offsets, start: int, rows: Places | None) -> Words:
    begins, left = (offsets, sizes) if rows is None else (offsets[rows], sizes[rows])
    begins, left = begins + start, np.clip(left - start, 0, _TEXT_WORD + 1)
    words = left.astype(np.uint64)
    last = max(len(data) - 1, 0)
    for place in range(_TEXT_WORD):
        there = left > place
        if not there.any():
            break
        values = data[np.minimum(begins + place, last)].astype(np.uint64)
        words |= np.where(there, values, np.uint64(0)) << np.uint64(8 * (_TEXT_WORD - place))
    return words
