"""Rows into Parquet files, whole in memory, and rows by partition.

Files carry field ids, statistics, a checksum on every page (design: readers that rewrite must be able to tell a flipped
bit), and the Parquet types Iceberg asks for: microseconds, uuid in 16 bytes, decimals as integers where they fit.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

COMPRESSION: Mapping[str, Any] = {"compression": "zstd", "compression_level": 1}
# Bytes in Arrow of a row group; a reader's unit of work and of skipping. Small rows: DuckDB wants at least 122,880 of them.
_GROUP_BYTES = 32 * 1024 * 1024
_GROUP_ROWS_MAX = 1024 * 1024
_SAMPLE_ROWS = 1024
# Rows that the encoder looks at before it asks whether a page is full, where rows are small: its own default is a tenth (a gain of 4 %).
_BATCH_ROWS_MIN, _BATCH_ROWS_MAX, _BATCH_BYTES = 1024, 16 * 1024, 1024 * 1024
# A dictionary pays while values repeat: above this share of distinct values in the sample it only costs time (measured).
_DISTINCT_SHARE_MAX = 0.25


@dataclass(frozen=True)
class EncodedFile:
    """A whole Parquet file: its bytes (a buffer, not copied), its footer, its row count."""

    data: memoryview
    metadata: pq.FileMetaData
    row_count: int


def encode_parquet(table: pa.Table, metadata: Mapping[str, str] | None = None) -> EncodedFile:
    """One file of all rows of `table`, whose schema carries the field ids (`schema.arrow_schema`). Blocking, no I/O.

    `metadata` goes into the footer.
    """
    encoding = Encoding(table)
    encoding.write(table)
    return encoding.finish(metadata)


class Appended(Protocol):
    """A file that is only appended to, and read as a whole in the end."""

    @property
    def closed(self) -> bool: ...

    def write(self, data: bytes) -> int: ...

    def tell(self) -> int: ...

    def flush(self) -> None: ...

    def close(self) -> None: ...

    def view(self) -> memoryview: ...


class Encoding:
    """A file that is made of several tables of one schema, one after the other: never more of its rows in memory than one has.

    `first`, the first of them, shows which columns repeat themselves. `into`: what takes the bytes, in place of a stream of Arrow's;
    the interpreter is asked at every page then, which a thread by itself does not wait for. Blocking, no I/O.
    """

    def __init__(self, first: pa.Table, into: Appended | None = None) -> None:
        self._into = into
        self._sink = pa.BufferOutputStream() if into is None else pa.PythonFile(into, "w")
        self._row_count = 0
        self._writer = pq.ParquetWriter(
            self._sink,
            first.schema,
            version="2.6",
            **COMPRESSION,
            use_dictionary=_dictionary_columns(first),
            write_page_checksum=True,
            write_batch_size=max(_BATCH_ROWS_MIN, min(_BATCH_ROWS_MAX, _BATCH_BYTES // _bytes_a_row(first))),
            write_statistics=True,
            store_decimal_as_integer=True,
            # Arrow's own schema in the footer would make readers give back our dictionaries instead of the table's types.
            store_schema=False,
        )

    def write(self, table: pa.Table) -> None:
        self._writer.write_table(table.unify_dictionaries(), row_group_size=rows_a_group(table))
        self._row_count += table.num_rows

    def finish(self, metadata: Mapping[str, str] | None = None) -> EncodedFile:
        if metadata:
            self._writer.add_key_value_metadata(dict(metadata))
        self._writer.close()
        data = memoryview(self._sink.getvalue()) if self._into is None else self._into.view()
        return EncodedFile(data, pq.read_metadata(pa.BufferReader(pa.py_buffer(data))), self._row_count)


def rows_a_group(table: pa.Table, count: int | None = None) -> int:
    """How many rows are a row group where there are `count` like the table's (its own otherwise), so that all are of about one size."""
    count = table.num_rows if count is None else count
    rows = max(1, min(_GROUP_ROWS_MAX, _GROUP_BYTES // _bytes_a_row(table)))
    return math.ceil(count / math.ceil(count / rows)) if count else rows


def _bytes_a_row(table: pa.Table) -> int:
    size: int = max(1, table.nbytes // max(1, table.num_rows))
    return size


def _dictionary_columns(table: pa.Table) -> list[str]:
    """Parquet paths of the columns worth a dictionary: those that are one in Arrow, and those whose sample repeats itself."""
    found = []
    for field in table.schema:
        kind = field.type
        if pa.types.is_dictionary(kind) or _repeats(table.column(field.name), kind):
            found.append(field.name)
        elif field.name == "_cdc_unchanged":
            found.append(f"{field.name}.list.element")
    return found


def _repeats(column: pa.ChunkedArray, kind: pa.DataType) -> bool:
    """Whether values of some length repeat often; numbers are as quick and nearly as small without."""
    if not (pa.types.is_string(kind) or pa.types.is_binary(kind) or pa.types.is_decimal(kind)):
        return False
    sample = _sample(column)
    present = len(sample) - sample.null_count
    distinct: int = pc.count_distinct(sample).as_py()
    return bool(distinct <= max(1, present * _DISTINCT_SHARE_MAX))


def _sample(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Values at equal distances. Chunk by chunk: taken from all of them at once they would be copied into one array first."""
    step = max(1, len(column) // _SAMPLE_ROWS)
    first, taken = 0, []
    for chunk in column.chunks:
        taken.append(chunk.take(pa.arange(-first % step, len(chunk), step)) if -first % step < len(chunk) else chunk.slice(0, 0))
        first += len(chunk)
    return pa.chunked_array(taken, column.type)


def split_by_partition(table: pa.Table, keys: Sequence[pa.ChunkedArray]) -> list[tuple[tuple[Any, ...], pa.Table]]:
    """The rows of each partition, their order kept; partitions in order of first appearance.

    `keys` hold each row's partition values, a column for each field of the spec. They come back as `NewFile` takes them: dates
    as days and timestamps as microseconds (exact in any year), the rest as Python has them (times as datetime.time, uuids as
    uuid.UUID); None for null. Rows are gathered once for all partitions, so that many cost no more than few.
    """
    if not keys or not table.num_rows:
        return [((), table)] if not keys else []
    names = [str(place) for place in range(len(keys))]
    places = pa.table([*(_plain(key) for key in keys), pa.arange(0, table.num_rows)], [*names, "row"])
    rows_of = places.group_by(names, use_threads=False).aggregate([("row", "list")]).column("row_list").combine_chunks()
    firsts = rows_of.values.take(rows_of.offsets[:-1])
    values = zip(*([_partition_value(scalar) for scalar in key.take(firsts)] for key in keys), strict=True)
    if len(firsts) == 1:
        return [(next(values), table)]
    gathered = table.unify_dictionaries().take(rows_of.values)
    starts = rows_of.offsets.to_pylist()
    return [(value, gathered.slice(start, end - start)) for value, start, end in zip(values, starts, starts[1:], strict=False)]


def _plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """The column in a type that Arrow can group by."""
    if isinstance(column.type, pa.BaseExtensionType):
        return pa.chunked_array([chunk.storage for chunk in column.chunks], column.type.storage_type)
    return column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column


def _partition_value(scalar: pa.Scalar) -> Any:
    if not scalar.is_valid:
        return None
    kind = scalar.type
    if pa.types.is_date(kind) or pa.types.is_timestamp(kind):
        return scalar.value
    return scalar.as_py()
