"""Rows into data and delete files under names of their own: bytes and everything a commit says of them, not stored yet."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import google_crc32c
import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pyiceberg.schema import Schema

from dolake.iceberg.index import IndexedFile
from dolake.iceberg.names import data_file_location, delete_file_location
from dolake.iceberg.partition import Spec, stored_partition
from dolake.iceberg.plan import NewDeletes, NewFile
from dolake.iceberg.transforms import partition_values
from dolake.parquet.align import schema_as_json
from dolake.parquet.deletes import encode_deletes
from dolake.parquet.encode import EncodedFile, encode_parquet, split_by_partition

Places = npt.NDArray[np.int64]

SOURCES_METADATA = "dolake.sources"
_DIGEST_BYTES = 1 << 20
_ROW = "\0row"  # no column's name


@dataclass(frozen=True)
class FileDeletes:
    """Rows of data files of one spec and partition: `places[i]` of `files[file_places[i]]`."""

    spec_id: int
    partition: tuple[object, ...]
    files: tuple[str, ...]
    file_places: Places
    places: Places


@dataclass(frozen=True)
class EncodedDataFile:
    """A data file that nobody has put into the store yet. `places`: which of a mirror plan's rows it holds."""

    location: str
    data: Any
    parquet: Any
    rows: int
    partition: tuple[Any, ...]
    places: Places | None = None
    sources: tuple[tuple[int, str], ...] = ()

    def as_new_file(self) -> NewFile:
        return NewFile(self.location, len(self.data), self.rows, self.parquet, self.partition)

    def as_indexed(self, schema: Schema, spec: Spec) -> IndexedFile:
        """`spec` as the table has it by now."""
        partition = stored_partition(schema_as_json(schema), spec, self.partition)
        return IndexedFile(self.location, self.rows, spec["spec-id"], partition, self.sources)


@dataclass(frozen=True)
class EncodedDeletes:
    """A file of position deletes that nobody has put into the store yet."""

    location: str
    data: Any
    deletes: FileDeletes

    def as_new_deletes(self) -> NewDeletes:
        return NewDeletes(
            location=self.location,
            size_bytes=len(self.data),
            row_count=len(self.deletes.places),
            first_path=min(self.deletes.files),
            last_path=max(self.deletes.files),
            spec_id=self.deletes.spec_id,
            partition=self.deletes.partition,
        )


def encode_file(
    table_location: str, partition: tuple[Any, ...], rows: pa.Table, epoch: int, unique: str, metadata: Mapping[str, str] | None = None
) -> EncodedDataFile:
    """Blocks, mostly without the GIL."""
    return named_file(table_location, partition, encode_parquet(rows, metadata), epoch, unique)


def named_file(
    table_location: str, partition: tuple[Any, ...], file: EncodedFile, epoch: int, unique: str, sources: tuple[tuple[int, str], ...] = ()
) -> EncodedDataFile:
    """A file that is encoded, under the name that its bytes give it; `sources` are what its footer says."""
    location = data_file_location(table_location, epoch, unique, _digest(file.data))
    return EncodedDataFile(location, file.data, file.metadata, file.row_count, partition, sources=sources)


def encode_delete_file(table_location: str, deletes: FileDeletes, epoch: int, unique: str) -> EncodedDeletes:
    file = encode_deletes(deletes.files, deletes.file_places, deletes.places)
    return EncodedDeletes(delete_file_location(table_location, epoch, unique, _digest(file.data)), file.data, deletes)


def split_rows(name: str, rows: pa.Table, schema: Schema, spec: Spec) -> list[tuple[tuple[Any, ...], pa.Table, Places]]:
    """By partition, with each row's place in `rows`. Blocks."""
    places = np.arange(rows.num_rows)
    if not spec["fields"]:
        return [((), rows, places)] if rows.num_rows else []
    numbered = rows.append_column(_ROW, pa.array(places))
    parts = split_by_partition(numbered, partition_values(name, rows, schema, spec))
    return [(partition, part.drop_columns([_ROW]), np.asarray(part[_ROW].combine_chunks())) for partition, part in parts]


def _digest(data: memoryview) -> int:
    """CRC32C; piece by piece, since the library takes only bytes and a file is large."""
    digest = 0
    for start in range(0, len(data), _DIGEST_BYTES):
        digest = google_crc32c.extend(digest, data[start : start + _DIGEST_BYTES].tobytes())
    return digest


def sources_metadata(sources: Sequence[tuple[int, str]]) -> Mapping[str, str]:
    """What a data file says of who wrote its rows: from which row on, and the source."""
    return {SOURCES_METADATA: json.dumps(sources, ensure_ascii=False)}


def sources_in(metadata: Mapping[str, str]) -> tuple[tuple[int, str], ...]:
    """The same, read back; nothing where nobody has noted it."""
    try:
        return tuple((int(first), str(name)) for first, name in json.loads(metadata.get(SOURCES_METADATA, "[]")))
    except (ValueError, TypeError):
        return ()
