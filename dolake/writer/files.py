"""Rows into a data file under a name of its own: bytes and everything a commit says of them, not stored yet."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import google_crc32c
import pyarrow as pa

from dolake.iceberg.names import data_file_location
from dolake.iceberg.plan import NewFile
from dolake.parquet.encode import encode_parquet

_DIGEST_BYTES = 1 << 20


@dataclass(frozen=True)
class EncodedDataFile:
    """A data file that nobody has put into the store yet."""

    location: str
    data: Any
    parquet: Any
    rows: int
    partition: tuple[Any, ...]

    def as_new_file(self) -> NewFile:
        return NewFile(self.location, len(self.data), self.rows, self.parquet, self.partition)


def encode_file(table_location: str, partition: tuple[Any, ...], rows: pa.Table, epoch: int, unique: str) -> EncodedDataFile:
    """Blocks, mostly without the GIL."""
    file = encode_parquet(rows)
    location = data_file_location(table_location, epoch, unique, _digest(file.data))
    return EncodedDataFile(location, file.data, file.metadata, file.row_count, partition)


def _digest(data: memoryview) -> int:
    """CRC32C; piece by piece, since the library takes only bytes and a file is large."""
    digest = 0
    for start in range(0, len(data), _DIGEST_BYTES):
        digest = google_crc32c.extend(digest, data[start : start + _DIGEST_BYTES].tobytes())
    return digest
