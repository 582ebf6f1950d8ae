"""Rows of many row groups in their new order, a slice of it at a time: never more of them in memory than one slice has."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from dolake.compaction.job import RowNumbers
from dolake.compaction.placing import Placing
from dolake.compaction.reading import Input
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
    """All rows in their new order, in so many slices: the number of each one's first row, and its rows.

    What pieces hold they give away.
    """
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
            piece.rows = None
            if wanted_count < _SHARE_MIN * len(here):
                rows, numbers, here = rows.filter(pa.array(here)), numbers[here], np.ones(wanted_count, np.bool_)
            found.append(_Found(rows, here, numbers[here]))
        if found:
            yield start, _gathered(found, start)


def _gathered(found: list[_Found], start: int) -> pa.Table:
    found.sort(key=lambda one: int(one.numbers[0]))
    numbers = np.concatenate([one.numbers for one in found])
    if np.all(numbers[1:] > numbers[:-1]):
        return pa.concat_tables([one.rows if one.here.all() else one.rows.filter(pa.array(one.here)) for one in found])
    places = np.empty(len(numbers), np.int64)
    offset = 0
    for one in found:
        places[one.numbers - start] = np.flatnonzero(one.here) + offset
        offset += len(one.here)
    schema = found[0].rows.schema
    columns = [[one.rows.column(place) for one in found] for place in range(len(schema))]
    found.clear()
    taken = []
    indices = pa.array(places)
    while columns:  # Each lets go of what it was made of before the next is made.
        column = pa.chunked_array([chunk for part in columns.pop() for chunk in part.chunks]).unify_dictionaries()
        taken.append(pc.take(pa.concat_arrays(column.chunks), indices, boundscheck=False))
        del column
    return pa.table(taken[::-1], schema=schema)


def without_unused(rows: pa.Table) -> pa.Table:
    """Dictionaries of texts with those alone that rows have: what was deleted must not stay in the file for nobody to see."""
    for place, field in enumerate(rows.schema):
        if pa.types.is_dictionary(field.type):
            chunks = [_used(chunk) for chunk in rows.column(place).chunks]
            rows = rows.set_column(place, field, pa.chunked_array(chunks, field.type))
    return rows


def _used(texts: pa.DictionaryArray) -> pa.DictionaryArray:
    is_used = np.zeros(len(texts.dictionary), np.bool_)
    is_used[np.asarray(texts.indices.drop_null())] = True
    if is_used.all():
        return texts
    codes = np.maximum(np.cumsum(is_used) - 1, 0).astype(np.int32)  # One that is not used may come first; no row has its code.
    indices = pa.array(codes).take(texts.indices)
    return pa.DictionaryArray.from_arrays(indices, texts.dictionary.filter(pa.array(is_used)))
