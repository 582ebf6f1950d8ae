"""Rows by where they stand in a table's files, and whether they hold what they should, value by value."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from dolake.iceberg.contents import LiveFile
from dolake.iceberg.metadata import LoadedTable
from dolake.iceberg.objects import read_file
from dolake.parquet.align import align_columns, schema_from_json
from dolake.parquet.decode import read_columns
from dolake.parquet.schema import arrow_schema
from dolake.storage.store import ObjectStore

_FILES_KEPT = 8


class RowLoader:
    """Reads a table's rows as its present schema has them; the last files are kept. Blocks."""

    def __init__(self, store: ObjectStore, table: LoadedTable) -> None:
        self.schema = pa.schema([_plain_field(one) for one in arrow_schema(schema_from_json(table.schema))])
        self._store = store
        self._files: OrderedDict[str, pa.Table] = OrderedDict()

    def rows(self, places: Sequence[tuple[LiveFile, int]]) -> pa.Table:
        """In the order given."""
        if not places:
            return no_rows(self.schema)
        by_file: dict[str, list[int]] = {}
        for number, (file, _) in enumerate(places):
            by_file.setdefault(file.location, []).append(number)
        pieces = [
            self._file(location).take(pa.array([places[number][1] for number in numbers], pa.int64()))
            for location, numbers in by_file.items()
        ]
        order = np.argsort([number for numbers in by_file.values() for number in numbers])
        return pa.concat_tables(pieces).take(pa.array(order))

    def _file(self, location: str) -> pa.Table:
        if location not in self._files:
            self._files[location] = align_columns(read_columns(read_file(self._store, location)), self.schema)
            if len(self._files) > _FILES_KEPT:
                self._files.popitem(last=False)
        self._files.move_to_end(location)
        return self._files[location]


def no_rows(schema: pa.Schema) -> pa.Table:
    """Not `Schema.empty_table`: it cannot make nested uuids."""
    return pa.Table.from_arrays([pa.nulls(0, field.type) for field in schema], schema=schema)


def differing(
    expected: pa.Table, found: pa.Table, skipped: Callable[[int, str], bool], once_floats: Collection[str] = ()
) -> Iterator[tuple[int, str]]:
    """(row, column) of each value that is another one. Both have the same columns; `skipped` says which are not compared.

    `once_floats`: columns of doubles that were floats when some rows were written.
    """
    for name in expected.column_names:
        wanted, there = _whole(expected[name]), _whole(found[name])
        if wanted.equals(there):
            continue
        for number, (one, other) in enumerate(zip(wanted.to_pylist(), there.to_pylist(), strict=True)):
            if same(one, other) or skipped(number, name):
                continue
            if name in once_floats and isinstance(one, float) and same(float(np.float32(one)), other):
                continue
            yield number, name


def same(one: Any, other: Any) -> bool:
    """Exactly the same value; there is one NaN."""
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[name], other[name]) for name in one)
    return bool(one == other or (one != one and other != other))  # Only NaN differs from itself.


def _plain_field(field: pa.Field) -> pa.Field:
    nullable = field.with_nullable(True)
    return nullable.with_type(field.type.value_type) if pa.types.is_dictionary(field.type) else nullable


def _whole(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    combined = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    return pa.concat_arrays(combined.chunks) if isinstance(combined, pa.ChunkedArray) else combined
