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

from dolake.compaction.job import Places
from dolake.compaction.placing import Placing
from dolake.compaction.reading import Input
from dolake.parquet.encode import rows_a_group
from dolake.parquet.recast import by_id, field_id

# So many rows at a time are gathered: those that they are taken from lie in the processor's cache then, and next to nothing is held
# twice. Fewer would be more slices of many pieces than it saves (measured).
_WINDOW_ROWS = 128 << 10

Flags = npt.NDArray[np.bool_]


@dataclass
class Piece:
    """A row group some rows of which are kept: where it lies in its input.

    `rows` are all of it, as long as they are held; `keys` some columns of those that are kept, which need not be decoded again.
    """

    source: Input
    number: int
    start: int
    stop: int
    rows: pa.Table | None = None
    keys: pa.Table | None = None

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

    def read_kept(self, wanted: pa.Schema) -> pa.Table:
        """The same of the rows that are kept. What was held is given away."""
        known, self.keys = self.keys, None
        unknown = wanted if known is None else pa.schema([field for field in wanted if field.name not in known.column_names])
        if not len(unknown):
            assert known is not None
            return known.select(wanted.names)
        rows = self.read(unknown)
        self.rows = None
        rows = rows if self.kept.all() else rows.filter(pa.array(self.kept))
        if known is None:
            return rows
        columns = [(known if field.name in known.column_names else rows).column(field.name) for field in wanted]
        return pa.table(columns, schema=wanted)


@dataclass(frozen=True)
class _Found:
    """Rows of one piece that are in a slice, in the order of the numbers that they have now."""

    rows: pa.Table
    numbers: Places

    @classmethod
    def of(cls, rows: pa.Table, numbers: Places) -> _Found:
        """`numbers` of all these rows, in their order."""
        if np.all(numbers[1:] > numbers[:-1]):
            return cls(rows, numbers)
        order = np.argsort(numbers)
        return cls(rows.take(pa.array(order)), numbers[order])

    def between(self, begin: int, end: int) -> tuple[pa.Table, Places]:
        """Those that get these numbers: a stretch, which is not copied."""
        first, last = np.searchsorted(self.numbers, np.array([begin, end], np.int32))
        return self.rows.slice(first, last - first), self.numbers[first:last]


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
    """About what an input's rows that are kept take, decoded."""
    known = by_id(one.groups.schema)
    have = {field_id(field): known[field_id(field)].name for field in wanted if field_id(field) in known}
    codes = [have[field_id(field)] for field in wanted if pa.types.is_dictionary(field.type) and field_id(field) in have]
    missing = sum(_width(field.type) for field in wanted if field_id(field) not in have)
    whole = one.groups.arrow_bytes(set(have.values()), codes) + missing * len(one.kept)
    return whole * int(np.count_nonzero(one.kept)) // max(1, len(one.kept))


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
    ordered = sorted(pieces, key=lambda piece: int(placing.numbers[piece.source.first + piece.start + int(np.argmax(piece.kept))]))
    if _is_in_row(ordered, placing):
        yield from _in_row(ordered, placing, wanted)
        return
    for start, stop in _parts(0, placing.row_count, count):
        found = []
        for piece in pieces:
            numbers = placing.numbers[piece.source.first + piece.start : piece.source.first + piece.stop]
            here = (numbers >= start) & (numbers < stop)
            if not here.any():
                continue
            rows = piece.read_kept(wanted) if count == 1 else piece.read(wanted).filter(pa.array(here))
            found.append(_Found.of(rows, numbers[here]))
            if count == 1 and piece.is_last:
                piece.source.groups.release()
        yield from _gathered(found, start, stop)


def _parts(start: int, stop: int, count: int) -> Iterator[tuple[int, int]]:
    bounds = [start + (stop - start) * place // count for place in range(count + 1)]
    return ((begin, end) for begin, end in itertools.pairwise(bounds) if begin < end)


def _kept_numbers(piece: Piece, placing: Placing) -> Places:
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
    last = {piece.source.first: piece for piece in ordered}
    for piece in ordered:
        rows = piece.read_kept(wanted)
        if piece is last[piece.source.first]:
            piece.source.groups.release()
        step = step or rows_a_group(rows, placing.row_count)
        parts.append(rows)
        waiting += parts[-1].num_rows
        if waiting >= step or piece is ordered[-1]:
            yield done, pa.concat_tables(parts)
            parts.clear()
            done, waiting = done + waiting, 0


def _gathered(found: Sequence[_Found], start: int, stop: int) -> Iterator[tuple[int, pa.Table]]:
    """All of a slice, as many rows at a time as make a row group: what they are gathered in is needed again for the next."""
    if not found:
        return
    count = math.ceil((stop - start) / rows_a_group(found[0].rows, stop - start))
    for begin, end in _parts(start, stop, count):
        windows = [_window(found, *bounds) for bounds in _parts(begin, end, math.ceil((end - begin) / _WINDOW_ROWS))]
        yield begin, pa.concat_tables(windows)


def _window(found: Sequence[_Found], begin: int, end: int) -> pa.Table:
    parts: list[pa.Table] = []
    taken: list[Places] = []
    for one in found:
        rows, numbers = one.between(begin, end)
        if len(numbers):
            taken.append(numbers)
            parts.append(rows)
    places = np.empty(end - begin, np.int32)
    places[np.concatenate(taken) - np.int32(begin)] = np.arange(end - begin, dtype=np.int32)
    together = pa.concat_tables(parts).unify_dictionaries()
    del parts
    indices = pa.array(places)
    columns = [pc.take(pa.concat_arrays(column.chunks), indices, boundscheck=False) for column in together.columns]
    return pa.table(columns, schema=together.schema)


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
