"""Parquet's bytes → columns, by the calling thread alone.

Arrow's own threads may still hold what they were given when the interpreter ends. Where that is a Python object the process then
aborts or hangs, with all its work done (apache/arrow 34314, 50482). So no Python file is handed to it, and no thread is asked for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pyarrow as pa
import pyarrow.parquet as pq


def column_names(data: bytes) -> list[str]:
    """The names of a file's columns, in its order. Raises pa.ArrowException."""
    return list(_open(data).schema_arrow.names)


def read_columns(data: bytes, columns: Sequence[str] | None = None, dictionaries: Sequence[str] = ()) -> pa.Table:
    """A whole file, or those columns of it in the file's order; `dictionaries` come as such. Raises pa.ArrowException."""
    return _open(data, dictionaries=dictionaries).read(None if columns is None else list(columns), use_threads=False)


def read_checked(data: bytes) -> Iterator[pa.RecordBatch]:
    """A file piece by piece, each page against its checksum. Raises pa.ArrowException, OSError."""
    yield from _open(data, page_checksum_verification=True).iter_batches(use_threads=False)


def _open(data: bytes, *, dictionaries: Sequence[str] = (), page_checksum_verification: bool = False) -> pq.ParquetFile:
    return pq.ParquetFile(
        pa.BufferReader(data),
        read_dictionary=list(dictionaries),
        pre_buffer=False,
        page_checksum_verification=page_checksum_verification,
    )
