"""What other programs do to a table, in tests: equality deletes and position deletes as engines write them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
from pyiceberg.avro.file import AvroOutputFile
from pyiceberg.manifest import (
    DataFile,
    DataFileContent,
    FileFormat,
    ManifestContent,
    ManifestEntry,
    ManifestEntryStatus,
    ManifestFile,
    ManifestWriterV2,
    data_file_with_partition,
    manifest_entry_schema_with_data_file,
    read_manifest_list,
)
from pyiceberg.partitioning import PartitionSpec
from pyiceberg.schema import Schema
from pyiceberg.typedef import Record
from pyiceberg.types import NestedField, StringType, StructType

from dolake.clock import SystemRandomness
from dolake.iceberg.file_io import StoreFileIO
from dolake.iceberg.manifests import write_manifest_list
from tests.iceberg.lake import Lake, encode


class _DeleteManifest(ManifestWriterV2):
    """As PyIceberg declares `equality_ids`, and with the field that Iceberg's Java adds to version 2."""

    def content(self) -> ManifestContent:
        return ManifestContent.DELETES

    @property
    def _meta(self) -> dict[str, str]:
        return {**super()._meta, "content": "deletes"}

    def new_writer(self) -> AvroOutputFile[ManifestEntry]:
        partition = self._spec.partition_type(self._schema)
        fields = (*data_file_with_partition(partition, 2).fields, NestedField(143, "referenced_data_file", StringType(), required=False))
        schemas = [
            manifest_entry_schema_with_data_file(2, struct) for struct in (StructType(*fields), data_file_with_partition(partition, 3))
        ]
        return AvroOutputFile(self._output_file, schemas[0], "manifest_entry", schemas[1], self._meta)


def append(lake: Lake, rows: Mapping[int, str]) -> None:
    table = pa.table({"id": pa.array(list(rows), pa.int64()), "name": list(rows.values())})
    lake.plain_table().append(table)


def equality_delete(lake: Lake, keys: Sequence[int]) -> str:
    """Deletes every row with one of these ids, by value; returns the delete file's location."""
    data, _ = encode([{"id": key} for key in keys], pa.schema([pa.field("id", pa.int64(), metadata={"PARQUET:field_id": "1"})]))
    described = {"content": DataFileContent.EQUALITY_DELETES, "record_count": len(keys), "equality_ids": [1]}
    return _commit(lake, data, described, {"total-equality-deletes": len(keys)})


def position_delete(lake: Lake, path: str, positions: Sequence[int]) -> str:
    """Deletes rows of one data file, named as recent engines do: by `referenced_data_file`."""
    fields = [("file_path", pa.string(), "2147483546"), ("pos", pa.int64(), "2147483545")]
    schema = pa.schema([pa.field(name, kind, nullable=False, metadata={"PARQUET:field_id": number}) for name, kind, number in fields])
    data, _ = encode([{"file_path": path, "pos": position} for position in positions], schema)
    described = {"content": DataFileContent.POSITION_DELETES, "record_count": len(positions), "referenced_data_file": path}
    return _commit(lake, data, described, {"total-position-deletes": len(positions)})


def _commit(lake: Lake, data: bytes, described: Mapping[str, Any], more: Mapping[str, int]) -> str:
    """As an engine that knows nothing of dolake: its own file names, no offsets in its summary."""
    base = lake.current()
    head = base.head
    assert head is not None
    number = SystemRandomness().bits(62)
    location = f"{base.location}/data/foreign-{number}-deletes.parquet"
    lake.store.put(location, data)
    file = DataFile.from_args(
        _table_format_version=3,
        file_path=location,
        file_format=FileFormat.PARQUET,
        partition=Record(),
        file_size_in_bytes=len(data),
        **described,
    )
    io = StoreFileIO(lake.store)
    output = io.new_output(f"{base.location}/metadata/foreign-{number}-m0.avro")
    spec, schema = PartitionSpec.model_validate(base.spec), Schema.model_validate(base.schema)
    with _DeleteManifest(spec, schema, output, number, "deflate") as writer:
        writer.add(ManifestEntry.from_args(status=ManifestEntryStatus.ADDED, snapshot_id=number, data_file=file))
    manifests = [writer.to_manifest_file(), *read_manifest_list(io.new_input(head["manifest-list"]))]
    sequence = base.metadata["last-sequence-number"] + 1
    write_manifest_list(io, f"{base.location}/metadata/foreign-{number}-list.avro", number, base.head_id, sequence, manifests)
    more = {**more, "total-delete-files": 1, "total-files-size": len(data)}
    totals = {key: str(int(value) + more.get(key, 0)) for key, value in head["summary"].items() if key.startswith("total-")}
    snapshot = {
        "snapshot-id": number,
        "parent-snapshot-id": base.head_id,
        "sequence-number": sequence,
        "timestamp-ms": base.metadata["last-updated-ms"] + 1,
        "manifest-list": f"{base.location}/metadata/foreign-{number}-list.avro",
        "schema-id": base.schema["schema-id"],
        "summary": {"operation": "delete", **totals},
    }
    set_head = {"action": "set-snapshot-ref", "ref-name": "main", "type": "branch", "snapshot-id": number}
    lake.catalog.swap(base, [], [{"action": "add-snapshot", "snapshot": snapshot}, set_head])
    return location


def manifests_of(lake: Lake) -> list[ManifestFile]:
    """Of the head snapshot, as its list has them."""
    head = lake.current().head
    assert head is not None
    return list(read_manifest_list(StoreFileIO(lake.store).new_input(head["manifest-list"])))
