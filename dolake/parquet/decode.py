"""Parquet's bytes → columns, by the calling thread alone.

Arrow's own threads may still hold what they were given when the interpreter ends. Where that is a Python object the process then
aborts or hangs, with all its work done (apache/arrow 34314, 50482). So no Python file is handed to it, and no thread is asked for.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

import pyarrow as pa
import pyarrow.parquet as pq

# Bytes of a value in Arrow, by how Parquet holds it; fixed ones as the widest that is usual, a text's code, or where it begins, 4.
_WIDTHS = {"BOOLEAN": 0.125, "INT32": 4, "INT64": 8, "INT96": 8, "FLOAT": 4, "DOUBLE": 8, "FIXED_LEN_BYTE_ARRAY": 16}
_CODE_BYTES = 4
# What a text takes of which a dictionary tells nothing: a guess.
_TEXT_BYTES = 24
# A dictionary that is larger than this holds too many values to be worth being one in Arrow as well.
_DICTIONARY_BYTES = 64 << 10


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
    return _stated(_open(data).metadata)


def read_checked(data: bytes) -> Iterator[pa.RecordBatch]:
    """A file piece by piece, each page against its checksum. Raises pa.ArrowException, OSError."""
    yield from _open(data, page_checksum_verification=True).iter_batches(use_threads=False)


class RowGroups:
    """A file to be read a row group at a time, and what its footer says of it. Raises pa.ArrowException, OSError.

    `verified`: each page is held against its checksum, where it has one.
    """

    def __init__(self, data: bytes, *, verified: bool) -> None:
        self._data, self._verified = pa.py_buffer(data), verified
        self._footer = pq.read_metadata(pa.BufferReader(self._data))
        self._open(())
        self.row_counts = [self._footer.row_group(number).num_rows for number in range(self._footer.num_row_groups)]

    def _open(self, dictionaries: Sequence[str]) -> None:
        self._file = pq.ParquetFile(
            pa.BufferReader(self._data),
            metadata=self._footer,
            read_dictionary=list(dictionaries),
            pre_buffer=False,
            page_checksum_verification=self._verified,
            # As nanoseconds they would wrap around for years that are far away.
            coerce_int96_timestamp_unit="us",
        )
        self.schema: pa.Schema = self._file.schema_arrow

    def as_dictionaries(self, names: Sequence[str]) -> None:
        """From here on these columns of texts come as dictionaries."""
        if names:
            self._open(names)

    def release(self) -> None:
        """Lets go of the file's bytes: nothing more is read."""
        del self._data, self._file

    def read(self, number: int, names: Sequence[str]) -> pa.Table:
        """Some columns of one row group, in the file's order. By the calling thread alone."""
        return self._file.read_row_group(number, list(names), use_threads=False)

    def repeating(self) -> set[str]:
        """Top-level columns of bytes that are dictionaries throughout, by all that the footer tells: they take little room."""
        found: set[str] = set()
        spread: set[str] = set()
        for column in self._columns():
            small = column.total_uncompressed_size <= _CODE_BYTES * column.num_values + _DICTIONARY_BYTES
            whole = column.physical_type == "BYTE_ARRAY" and column.has_dictionary_page and small
            (found if whole else spread).add(column.path_in_schema)
        return (found - spread) & set(self.schema.names)

    def arrow_bytes(self, names: Collection[str], dictionaries: Collection[str]) -> int:
        """About what these columns take in memory; `dictionaries` as such."""
        total = 0
        for column in self._columns():
            path, rows = column.path_in_schema, column.num_values
            if path in dictionaries:
                total += max(_CODE_BYTES * rows, column.total_uncompressed_size)
            elif path.split(".", 1)[0] in names or path in names:
                width = _WIDTHS.get(column.physical_type, _CODE_BYTES)
                if column.physical_type == "BYTE_ARRAY" and column.has_dictionary_page:
                    width += _TEXT_BYTES
                total += max(round(width * rows), column.total_uncompressed_size)
        return total

    def stated(self) -> dict[str, str]:
        """What the footer says beside columns."""
        return _stated(self._footer)

    def _columns(self) -> Iterator[pq.ColumnChunkMetaData]:
        for number in range(self._footer.num_row_groups):
            group = self._footer.row_group(number)
            for place in range(group.num_columns):
                yield group.column(place)


def _stated(footer: pq.FileMetaData) -> dict[str, str]:
    return {key.decode(errors="replace"): value.decode(errors="replace") for key, value in (footer.metadata or {}).items()}


def _open(data: bytes, *, dictionaries: Sequence[str] = (), page_checksum_verification: bool = False) -> pq.ParquetFile:
    return pq.ParquetFile(
        pa.BufferReader(data),
        read_dictionary=list(dictionaries),
        pre_buffer=False,
        page_checksum_verification=page_checksum_verification,
    )
