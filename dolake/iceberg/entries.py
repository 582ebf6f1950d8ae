"""What a manifest says of one file: made for files that are new, read back for those that are there.

Entries of data files are PyIceberg's of version 2. Those of delete files are its longer ones of version 3, written with the
fields that version 2 has, for two reasons: `referenced_data_file` is one of them, which PyIceberg's version 2 drops; and it
declares the elements of `equality_ids` as longs, where the specification says ints and Iceberg's Java fails on anything else.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from pyiceberg.io.pyarrow import (
    StatisticsCollector,
    compute_statistics_plan,
    data_file_statistics_from_parquet_metadata,
    parquet_path_to_id_mapping,
)
from pyiceberg.manifest import (
    DATA_FILE_TYPE,
    MANIFEST_ENTRY_SCHEMAS,
    MANIFEST_LIST_FILE_SCHEMAS,
    DataFile,
    DataFileContent,
    FileFormat,
    ManifestContent,
    ManifestEntry,
    ManifestEntryStatus,
    ManifestFile,
    PartitionFieldSummary,
    data_file_with_partition,
    manifest_entry_schema_with_data_file,
)
from pyiceberg.partitioning import PartitionSpec
from pyiceberg.schema import Schema
from pyiceberg.typedef import Record
from pyiceberg.types import IntegerType, ListType, NestedField, StructType

from dolake.iceberg.avro import AvroLayout, AvroReading, read_records
from dolake.iceberg.file_io import StoreFileIO, decoding
from dolake.iceberg.partition import parsed, stored_values
from dolake.iceberg.plan import NewDeletes, NewFile
from dolake.iceberg.summary import FileCounts

# Iceberg's reserved ids of a position-delete file's columns.
FILE_PATH_ID = 2147483546
POSITION_ID = 2147483545
_VERSIONS: Mapping[ManifestContent, Literal[2, 3]] = {ManifestContent.DATA: 2, ManifestContent.DELETES: 3}
_EQUALITY_IDS, _REFERENCED_DATA_FILE = 135, 143
_ENTRIES = {
    content: AvroReading(
        MANIFEST_ENTRY_SCHEMAS[version],
        types={-1: ManifestEntry, 2: DataFile},
        enums={0: ManifestEntryStatus, 101: FileFormat, 134: DataFileContent},
    )
    for content, version in _VERSIONS.items()
}
# Lists of version 1 are read as those of version 2 too.
_MANIFESTS = AvroReading(MANIFEST_LIST_FILE_SCHEMAS[2], types={-1: ManifestFile, 508: PartitionFieldSummary}, enums={517: ManifestContent})
_WRITTEN_OF_DELETES = {*(part.field_id for part in DATA_FILE_TYPE[2].fields), _REFERENCED_DATA_FILE}


@dataclass(frozen=True)
class TableShape:
    """PyIceberg's view of one schema with one spec, and what is derived from the two: made once, used by every commit."""

    schema: Schema
    spec: PartitionSpec
    collectors: Mapping[int, StatisticsCollector]
    column_ids: Mapping[str, int]
    # How entries are written, and what a manifest's file says of schema and spec: each worked out by the first that is written.
    layouts: dict[ManifestContent, AvroLayout] = field(default_factory=dict)
    headers: dict[ManifestContent, dict[str, str]] = field(default_factory=dict)

    @classmethod
    def of(cls, schema: Mapping[str, Any], spec: Mapping[str, Any], properties: Mapping[str, str]) -> TableShape:
        its_schema, its_spec = parsed(schema, spec)
        return cls(
            schema=its_schema,
            spec=its_spec,
            collectors=compute_statistics_plan(its_schema, dict(properties)),
            column_ids=parquet_path_to_id_mapping(its_schema),
        )

    def layout(self, content: ManifestContent) -> AvroLayout:
        if content not in self.layouts:
            partition = self.spec.partition_type(self.schema)
            self.layouts[content] = _delete_layout(partition) if content == ManifestContent.DELETES else _data_layout(partition)
        return self.layouts[content]


def _data_layout(partition: StructType) -> AvroLayout:
    entry = manifest_entry_schema_with_data_file(2, data_file_with_partition(partition, 2))
    return AvroLayout.of(entry, "manifest_entry")


def _delete_layout(partition: StructType) -> AvroLayout:
    kept = [_with_int_ids(part) for part in data_file_with_partition(partition, 3).fields]
    written = StructType(*(part for part in kept if part.field_id in _WRITTEN_OF_DELETES))
    entry, record = (manifest_entry_schema_with_data_file(2, struct) for struct in (written, StructType(*kept)))
    return AvroLayout.of(entry, "manifest_entry", record)


def _with_int_ids(part: NestedField) -> NestedField:
    if part.field_id != _EQUALITY_IDS:
        return part
    ids = ListType(element_id=136, element=IntegerType(), element_required=True)
    return NestedField(part.field_id, part.name, ids, required=False, doc=part.doc)


def added_entries(shape: TableShape, files: Iterable[NewFile], snapshot_id: int, sequence_number: int | None = None) -> list[ManifestEntry]:
    """Entries of files that the snapshot adds. Their sequence number is the snapshot's, inherited, unless their data is older."""
    return [_added(data_file(shape, file), snapshot_id, sequence_number) for file in files]


def added_delete_entries(shape: TableShape, files: Iterable[NewDeletes], snapshot_id: int) -> list[ManifestEntry]:
    return [_added(delete_file(shape, file), snapshot_id) for file in files]


def _added(file: DataFile, snapshot_id: int, sequence_number: int | None = None) -> ManifestEntry:
    return ManifestEntry.from_args(
        status=ManifestEntryStatus.ADDED, snapshot_id=snapshot_id, sequence_number=sequence_number, data_file=file
    )


def data_file(shape: TableShape, file: NewFile) -> DataFile:
    """An Iceberg data file: sizes, counts and bounds of each column from the Parquet footer."""
    statistics = data_file_statistics_from_parquet_metadata(file.parquet, dict(shape.collectors), dict(shape.column_ids))
    described = DataFile.from_args(
        content=DataFileContent.DATA,
        file_path=file.location,
        file_format=FileFormat.PARQUET,
        partition=partition_record(shape, file.partition),
        file_size_in_bytes=file.size_bytes,
        sort_order_id=None,
        equality_ids=None,
        key_metadata=None,
        **statistics.to_serialized_dict(),
    )
    described.spec_id = shape.spec.spec_id
    return described


def delete_file(shape: TableShape, file: NewDeletes) -> DataFile:
    """An Iceberg position-delete file. Its bounds let readers pass it by for data files that it does not speak of."""
    if len(file.partition) != len(shape.spec.fields):
        raise ValueError(f"{file.location}: {len(file.partition)} partition values for a spec of {len(shape.spec.fields)} fields")
    described = DataFile.from_args(
        _table_format_version=_VERSIONS[ManifestContent.DELETES],
        content=DataFileContent.POSITION_DELETES,
        file_path=file.location,
        file_format=FileFormat.PARQUET,
        partition=Record(*file.partition),
        record_count=file.row_count,
        file_size_in_bytes=file.size_bytes,
        lower_bounds={FILE_PATH_ID: file.first_path.encode()},
        upper_bounds={FILE_PATH_ID: file.last_path.encode()},
    )
    described.spec_id = shape.spec.spec_id
    return described


def partition_record(shape: TableShape, values: Sequence[Any]) -> Record:
    """Partition values as Iceberg stores them (a date as days, a timestamp as microseconds)."""
    return Record(*stored_values(shape.schema, shape.spec, values))


def partition_of(file: DataFile) -> tuple[Any, ...]:
    """Its values, as stored."""
    return tuple(file.partition[place] for place in range(len(file.partition)))


def settled_entries(entries: Iterable[ManifestEntry], sequence_number: int) -> list[ManifestEntry]:
    """Added entries as they will be read once their snapshot has `sequence_number`."""
    return [
        ManifestEntry.from_args(
            status=ManifestEntryStatus.ADDED,
            snapshot_id=entry.snapshot_id,
            sequence_number=sequence_number if entry.sequence_number is None else entry.sequence_number,
            file_sequence_number=sequence_number,
            data_file=entry.data_file,
        )
        for entry in entries
    ]


def fetch_manifests(io: StoreFileIO, manifest_list: str) -> tuple[ManifestFile, ...]:
    """The manifests that a manifest list names. Blocks. Raises what the store raises, and ObjectDamaged."""
    with decoding(manifest_list):
        return tuple(read_records(io.new_input(manifest_list), _MANIFESTS))


def fetch_entries(io: StoreFileIO, manifest: ManifestFile) -> list[ManifestEntry]:
    """All entries of a manifest, with what they inherit from it filled in (Iceberg v2, "Sequence Number Inheritance").

    Blocks. Raises what the store raises, and ObjectDamaged where the file is not the manifest that was written.
    """
    file = io.new_input(manifest.manifest_path, size_bytes=manifest.manifest_length)
    with decoding(manifest.manifest_path):
        entries: list[ManifestEntry] = read_records(file, _ENTRIES[manifest.content])
        counts = (manifest.added_files_count, manifest.existing_files_count, manifest.deleted_files_count)
        if None not in counts and len(entries) != sum(count or 0 for count in counts):
            raise ValueError(f"it has {len(entries)} entries, its list says {sum(count or 0 for count in counts)}")
    for entry in entries:
        inherits = entry.status == ManifestEntryStatus.ADDED or manifest.sequence_number == 0  # 0: from a table of version 1
        if entry.snapshot_id is None and manifest.added_snapshot_id is not None:
            entry.snapshot_id = manifest.added_snapshot_id
        if entry.sequence_number is None and inherits:
            entry.sequence_number = manifest.sequence_number
        if entry.file_sequence_number is None and inherits:
            entry.file_sequence_number = manifest.sequence_number
        entry.data_file.spec_id = manifest.partition_spec_id
    return entries


def is_live(entry: ManifestEntry) -> bool:
    return entry.status != ManifestEntryStatus.DELETED


def count_files(entries: Iterable[ManifestEntry]) -> FileCounts:
    """The files of these entries, counted as a summary does."""
    files: dict[DataFileContent, int] = dict.fromkeys(DataFileContent, 0)
    rows: dict[DataFileContent, int] = dict.fromkeys(DataFileContent, 0)
    size_bytes = 0
    partitions = set()
    for entry in entries:
        file = entry.data_file
        files[file.content] += 1
        rows[file.content] += file.record_count
        size_bytes += file.file_size_in_bytes
        partitions.add((file.spec_id, partition_of(file)))
    return FileCounts(
        data_files=files[DataFileContent.DATA],
        rows=rows[DataFileContent.DATA],
        size_bytes=size_bytes,
        position_delete_files=files[DataFileContent.POSITION_DELETES],
        position_deletes=rows[DataFileContent.POSITION_DELETES],
        equality_delete_files=files[DataFileContent.EQUALITY_DELETES],
        equality_deletes=rows[DataFileContent.EQUALITY_DELETES],
        partitions=frozenset(partitions),
    )
