"""Parquet's bytes → columns, by the calling thread alone.

Arrow's own threads may still hold what they were given when the interpreter ends. Where that is a Python object the process then
aborts or hangs, with all its work done (apache/arrow 34314, 50482). So no Python file is handed to it, and no thread is asked for.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

import pyarrow as pa
import pyarrow.parquet as pq


def column_names(data: bytes) -> list[str]:
    """The names of a file's columns, in its order. Raises pa.ArrowException."""
    return list(_open(data).schema_arrow.names)


def read_columns(data: bytes, columns: Sequence[str] | None = None, dictionaries: Sequence[str] = ()) -> pa.Table:
    """A whole file, or those columns of it in the file's order; `dictionaries` come as such. Raises pa.ArrowException."""
    return _open(data, dictionaries=dictionaries).read(None if columns is None else list(columns), use_threads=False)


def read_fields(data: bytes, ids: Collection[int]) -> dict[int, pa.ChunkedArray]:
    """The top-level columns with these field ids, whatever they are called; those that the file has. Raises pa.ArrowException."""
    file = _open(data)
    names = {int((field.metadata or {}).get(b"PARQUET:field_id", b"-1")): field.name for field in file.schema_arrow}
    wanted = {field_id: names[field_id] for field_id in ids if field_id in names}
    read = file.read(list(wanted.values()), use_threads=False)
    return {field_id: read[name] for field_id, name in wanted.items()}


def file_metadata(data: bytes) -> dict[str, str]:
    """What the footer says beside columns. Raises pa.ArrowException."""
    stated = _open(data).metadata.metadata or {}
    return {key.decode(errors="replace"): value.decode(errors="replace") for key, value in stated.items()}


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
