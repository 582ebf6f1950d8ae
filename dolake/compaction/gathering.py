"""Rows of many row groups in their new order, a slice of it at a time: never more of them in memory than one slice has."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from dolake.compaction.job import RowNumbers
from dolake.compaction.placing import Placing
from dolake.compaction.reading import Input
from dolake.parquet.encode import rows_a_group
from dolake.parquet.recast import by_id, field_id

# A row group of which less than this share is in a slice is not held whole until the slice is put together.
_SHARE_MIN = 0.8

Flags = npt.NDArray[np.bool_]


@dataclass
class Piece:
    """A row group some rows of which are kept: where it lies in its input. `rows` are all of it, as long as they are held."""

    source: Input
    number: int
    start: int
    stop: int
    rows: pa.Table | None = None

    @property
    def is_last(self) -> bool:
        """Whether no row group of its input comes after it."""
        return self.number == len(self.source.groups.row_counts) - 1

    @property
    def kept(self) -> Flags:
        return self.source.kept[self.start : self.stop]

    def read(self, wanted: pa.Schema) -> pa.Table:
        """Its columns as the table has them. Raises RewriteRefused."""
        if self.rows is not None:
            return self.rows.select(wanted.names)
        return self.source.read(self.number, wanted)


@dataclass
class _Found:
    """Rows of one piece that are in a slice: `here` tells which of `rows`, `numbers` what they are now."""

    rows: pa.Table
    here: Flags
    numbers: RowNumbers


def pieces_of(inputs: Sequence[Input]) -> list[Piece]:
    """What has to be decoded at all: a row group whose rows are all deleted is passed over."""
    return [Piece(one, number, start, stop) for one in inputs for number, start, stop in one.starts() if one.kept[start:stop].any()]


def with_dictionaries(wanted: pa.Schema, inputs: Sequence[Input]) -> pa.Schema:
    """Texts that repeat themselves in every input stay the dictionaries that they are, which is less to hold, to move and to encode."""
    holding = [one for one in inputs if len(one.kept)]
    fields = []
    for field in wanted:
        kind = field.type.value_type if pa.types.is_dictionary(field.type) else field.type
        if (pa.types.is_string(kind) or pa.types.is_binary(kind)) and all(_repeats(one, field, kind) for one in holding):
            kind = pa.dictionary(pa.int32(), kind)
        fields.append(field.with_type(kind))
    found = pa.schema(fields)
    for one in holding:
        known = by_id(one.groups.schema)
        ids = [field_id(field) for field in found if pa.types.is_dictionary(field.type)]
        one.groups.as_dictionaries([known[column].name for column in ids if column in known])
    return found


def _repeats(one: Input, field: pa.Field, kind: pa.DataType) -> bool:
    have = by_id(one.groups.schema).get(field_id(field))
    return have is None or (have.type == kind and have.name in one.groups.repeating())


def arrow_bytes(one: Input, wanted: pa.Schema) -> int:
    """About what all rows of an input take, decoded."""
    known = by_id(one.groups.schema)
    have = {field_id(field): known[field_id(field)].name for field in wanted if field_id(field) in known}
    codes = [have[field_id(field)] for field in wanted if pa.types.is_dictionary(field.type) and field_id(field) in have]
    missing = sum(_width(field.type) for field in wanted if field_id(field) not in have)
    return one.groups.arrow_bytes(set(have.values()), codes) + missing * len(one.kept)


def _width(kind: pa.DataType) -> int:
    try:
        return max(1, int(kind.bit_width) // 8)
    except ValueError:
        return 4  # Where a text or a list begins.


def slices(pieces: Sequence[Piece], placing: Placing, wanted: pa.Schema, count: int) -> Iterator[tuple[int, pa.Table]]:
    """All rows in their new order, in parts: the number of each one's first row, and its rows.

    Where rows stay in the order that they have, a few pieces after the other; else in `count` slices of the order, for each of which
    all pieces that have rows in it are decoded. What pieces hold, and inputs that are not read again, are given away.
    """
    ordered = sorted(pieces, key=lambda piece: int(_kept_numbers(piece, placing)[0]))
    if _is_in_row(ordered, placing):
        yield from _in_row(ordered, placing, wanted)
        return
    bounds = [placing.row_count * place // count for place in range(count + 1)]
    for start, stop in itertools.pairwise(bounds):
        found = []
        for piece in pieces:
            numbers = placing.numbers[piece.source.first + piece.start : piece.source.first + piece.stop]
            here = (numbers >= start) & (numbers < stop)
            wanted_count = int(np.count_nonzero(here))
            if not wanted_count:
                continue
            rows = piece.read(wanted)
            piece.rows = None  # Or it would be held until all slices are made.
            if wanted_count < _SHARE_MIN * len(here):
                rows, numbers, here = rows.filter(pa.array(here)), numbers[here], np.ones(wanted_count, np.bool_)
            found.append(_Found(rows, here, numbers[here]))
            if count == 1 and piece.is_last:
                piece.source.groups.release()
        if found:
            yield from _gathered(found, start)


def _kept_numbers(piece: Piece, placing: Placing) -> RowNumbers:
    return placing.numbers[piece.source.first + piece.start : piece.source.first + piece.stop][piece.kept]


def _is_in_row(ordered: Sequence[Piece], placing: Placing) -> bool:
    done = 0
    for piece in ordered:
        numbers = _kept_numbers(piece, placing)
        if int(numbers[0]) != done or int(numbers[-1]) != done + len(numbers) - 1 or not np.all(numbers[1:] > numbers[:-1]):
            return False
        done += len(numbers)
    return True


def _in_row(ordered: Sequence[Piece], placing: Placing, wanted: pa.Schema) -> Iterator[tuple[int, pa.Table]]:
    """Rows that need not be moved, only filtered: of as many pieces as make a row group."""
    parts: list[pa.Table] = []
    step = done = waiting = 0
    for piece in ordered:
        rows = piece.read(wanted)
        piece.rows = None
        step = step or rows_a_group(rows, placing.row_count)
        parts.append(rows if piece.kept.all() else rows.filter(pa.array(piece.kept)))
        waiting += parts[-1].num_rows
        if waiting >= step or piece is ordered[-1]:
            yield done, pa.concat_tables(parts)
            parts.clear()
            done, waiting = done + waiting, 0


def _gathered(found: list[_Found], start: int) -> Iterator[tuple[int, pa.Table]]:
    """Rows of all of a slice, taken step by step: that needs the room of one row group, and that room again and again."""
    schema = found[0].rows.schema
    places = np.empty(sum(len(one.numbers) for one in found), np.int64)
    offset = 0
    for one in found:
        places[one.numbers - start] = np.flatnonzero(one.here) + offset
        offset += len(one.here)
    columns = [[one.rows.column(place) for one in found] for place in range(len(schema))]
    found.clear()
    together = []
    while columns:  # Each lets go of what it was made of before the next is made.
        column = pa.chunked_array([chunk for part in columns.pop() for chunk in part.chunks]).unify_dictionaries()
        together.append(pa.concat_arrays(column.chunks))
        del column
    together.reverse()
    count = math.ceil(len(places) / rows_a_group(pa.table(together, schema=schema)))
    bounds = [len(places) * number // count for number in range(count + 1)]
    for begin, end in itertools.pairwise(bounds):
        indices = pa.array(places[begin:end])
        yield start + begin, pa.table([pc.take(column, indices, boundscheck=False) for column in together], schema=schema)
