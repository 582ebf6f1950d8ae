"""Manifests and manifest lists: written with PyIceberg's Avro classes, remembered so that a commit reads nothing back.

A commit writes one manifest with its new files and one manifest list. Left alone, a thousand commits would leave a
thousand manifests, and each commit would list and each reader open them all. So manifests merge geometrically: whenever
`MERGE_COUNT` of one size class (1–9 files, 10–99, 100–999) stand side by side, one commit rewrites them as one. Every
entry is rewritten at most three times in its life, and a list holds some 27 small manifests plus one for each thousand files.

Merging keeps what Iceberg needs of a file that is not new: status EXISTING, the snapshot that added it, its data and file
sequence numbers. Entries that record a deletion are dropped, as they speak of an older snapshot only.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import orjson
from pyiceberg.avro.file import AvroOutputFile
from pyiceberg.io.pyarrow import (
    StatisticsCollector,
    compute_statistics_plan,
    data_file_statistics_from_parquet_metadata,
    parquet_path_to_id_mapping,
)
from pyiceberg.manifest import (
    MANIFEST_LIST_FILE_SCHEMAS,
    DataFile,
    DataFileContent,
    FileFormat,
    ManifestContent,
    ManifestEntry,
    ManifestEntryStatus,
    ManifestFile,
    ManifestListWriterV2,
    ManifestWriterV2,
    data_file_with_partition,
    manifest_entry_schema_with_data_file,
    read_manifest_list,
)
from pyiceberg.partitioning import PartitionField, PartitionSpec, partition_record_value
from pyiceberg.schema import Schema
from pyiceberg.transforms import IdentityTransform, TruncateTransform
from pyiceberg.typedef import Record

from dolake.iceberg.avro import CODEC, AvroLayout, OneBlockFile
from dolake.iceberg.file_io import StoreFileIO
from dolake.iceberg.metadata import LoadedTable
from dolake.iceberg.plan import NewFile

MERGE_COUNT = 10
# Larger ones are left alone: a merge of more would cost one commit too much, and readers gain nothing by it.
MERGE_FILES_MAX = 1000
# Entries of small manifests are kept for their merge; those of larger ones are read back, once in a hundred commits or so.
_REMEMBERED_FILES_MAX = 99
# The current list, and those of attempts whose outcome is not known yet.
_REMEMBERED_LISTS = 4
_REMEMBERED_SHAPES = 4
_MANIFEST_VERSION: Literal[2] = 2
_LIST_LAYOUT = AvroLayout.of(MANIFEST_LIST_FILE_SCHEMAS[_MANIFEST_VERSION], "manifest_file")


@dataclass(frozen=True)
class TableShape:
    """PyIceberg's view of one schema with one spec, and what is derived from the two: made once, used by every commit."""

    schema: Schema
    spec: PartitionSpec
    collectors: Mapping[int, StatisticsCollector]
    column_ids: Mapping[str, int]
    layout: AvroLayout
    # What a manifest's file says of schema and spec: filled in by the first one that is written.
    header: dict[str, str]

    @classmethod
    def of(cls, schema: Mapping[str, Any], spec: Mapping[str, Any], properties: Mapping[str, str]) -> TableShape:
        parsed, parsed_spec = Schema.model_validate(schema), PartitionSpec.model_validate(spec)
        partitioned = data_file_with_partition(parsed_spec.partition_type(parsed), _MANIFEST_VERSION)
        entry_schema = manifest_entry_schema_with_data_file(_MANIFEST_VERSION, partitioned)
        return cls(
            schema=parsed,
            spec=parsed_spec,
            collectors=compute_statistics_plan(parsed, dict(properties)),
            column_ids=parquet_path_to_id_mapping(parsed),
            layout=AvroLayout.of(entry_schema, "manifest_entry"),
            header={},
        )


@dataclass
class TableMemory:
    """What one writer remembers of one table's manifests. All of it can be read again from the store."""

    lists: OrderedDict[str, tuple[ManifestFile, ...]] = field(default_factory=OrderedDict)
    entries: dict[str, list[ManifestEntry]] = field(default_factory=dict)
    shapes: OrderedDict[tuple[Any, ...], TableShape] = field(default_factory=OrderedDict)

    def remember_list(self, location: str, manifests: tuple[ManifestFile, ...]) -> None:
        self.lists[location] = manifests
        while len(self.lists) > _REMEMBERED_LISTS:
            self.lists.popitem(last=False)
        named = {manifest.manifest_path for known in self.lists.values() for manifest in known}
        for path in self.entries.keys() - named:
            del self.entries[path]

    def remember_entries(self, manifest: ManifestFile, entries: list[ManifestEntry]) -> None:
        if len(entries) <= _REMEMBERED_FILES_MAX:
            self.entries[manifest.manifest_path] = entries

    def shape_of(self, schema: Mapping[str, Any], spec: Mapping[str, Any], properties: Mapping[str, str]) -> TableShape:
        metrics = tuple(sorted(item for item in properties.items() if item[0].startswith("write.metadata.metrics.")))
        # Not by their ids: those of an attempt that came to nothing may be somebody else's now.
        key = (orjson.dumps(schema), orjson.dumps(spec), metrics)
        if key not in self.shapes:
            self.shapes[key] = TableShape.of(schema, spec, properties)
            while len(self.shapes) > _REMEMBERED_SHAPES:
                self.shapes.popitem(last=False)
        return self.shapes[key]


def head_manifests(memory: TableMemory, io: StoreFileIO, base: LoadedTable) -> tuple[ManifestFile, ...]:
    """The manifests that the table's head lists: from memory if this writer put the list there, else read."""
    head = base.head
    if head is None:
        return ()
    location = head["manifest-list"]
    if location not in memory.lists:
        memory.remember_list(location, tuple(read_manifest_list(io.new_input(location))))
    return memory.lists[location]


def plan_merge(manifests: Sequence[ManifestFile]) -> tuple[ManifestFile, ...]:
    """The manifests that this commit should rewrite as one, oldest first; none is the usual answer.

    Only data manifests of one spec and one size class go together: at least `MERGE_COUNT`, of the smallest such class.
    """
    classes: dict[tuple[int, int], list[ManifestFile]] = {}
    for manifest in manifests:
        files = live_file_count(manifest)
        if manifest.content == ManifestContent.DATA and 0 < files < MERGE_FILES_MAX:
            classes.setdefault((len(str(files)), manifest.partition_spec_id), []).append(manifest)
    for _, group in sorted(classes.items(), key=lambda item: item[0]):
        if len(group) >= MERGE_COUNT:
            return tuple(sorted(group, key=lambda manifest: manifest.sequence_number)[:MERGE_COUNT])
    return ()


def live_file_count(manifest: ManifestFile) -> int:
    return (manifest.added_files_count or 0) + (manifest.existing_files_count or 0)


def added_entries(shape: TableShape, files: Iterable[NewFile], snapshot_id: int) -> list[ManifestEntry]:
    """Entries of files that the snapshot adds. Their sequence number is the snapshot's, inherited: it is not written."""
    return [
        ManifestEntry.from_args(status=ManifestEntryStatus.ADDED, snapshot_id=snapshot_id, data_file=data_file(shape, file))
        for file in files
    ]


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


def partition_record(shape: TableShape, values: Sequence[Any]) -> Record:
    """Partition values as Iceberg stores them (a date as days, a timestamp as microseconds)."""
    if len(values) != len(shape.spec.fields):
        raise ValueError(f"{len(values)} partition values for a spec of {len(shape.spec.fields)} fields")
    return Record(*(_stored(shape, part, value) for part, value in zip(shape.spec.fields, values, strict=True)))


def _stored(shape: TableShape, part: PartitionField, value: Any) -> Any:
    """Values of these two are of the source column's type; the others' are integers, or nothing."""
    if isinstance(part.transform, IdentityTransform | TruncateTransform):
        return partition_record_value(part, value, shape.schema)
    return value


def read_entries(memory: TableMemory, io: StoreFileIO, manifest: ManifestFile) -> list[ManifestEntry]:
    """The live entries of a manifest, with the sequence numbers and snapshot that they inherit from it filled in."""
    known = memory.entries.get(manifest.manifest_path)
    if known is not None:
        return known
    return manifest.fetch_manifest_entry(io, discard_deleted=True)


def write_manifest(
    io: StoreFileIO,
    location: str,
    shape: TableShape,
    snapshot_id: int,
    *,
    added: Sequence[ManifestEntry] = (),
    existing: Sequence[ManifestEntry] = (),
) -> ManifestFile:
    """Writes and puts one data manifest. Raises what the store raises."""
    with _ManifestWriter(shape, io, location, snapshot_id) as writer:
        for entry in added:
            writer.add(entry)
        for entry in existing:
            writer.existing(entry)
    return writer.to_manifest_file()


def write_manifest_list(
    io: StoreFileIO, location: str, snapshot_id: int, parent_id: int | None, sequence_number: int, manifests: Sequence[ManifestFile]
) -> tuple[ManifestFile, ...]:
    """Writes and puts a manifest list; returns its manifests with the sequence numbers that new ones got by it."""
    with _ManifestListWriter(io.new_output(location), snapshot_id, parent_id, sequence_number, CODEC) as writer:
        prepared = [writer.prepare_manifest(manifest) for manifest in manifests]
        writer._writer.write_block(prepared)
    return tuple(prepared)


def settled_entries(entries: Iterable[ManifestEntry], sequence_number: int) -> list[ManifestEntry]:
    """Added entries as they will be read once their snapshot has `sequence_number`."""
    return [
        ManifestEntry.from_args(
            status=ManifestEntryStatus.ADDED,
            snapshot_id=entry.snapshot_id,
            sequence_number=sequence_number,
            file_sequence_number=sequence_number,
            data_file=entry.data_file,
        )
        for entry in entries
    ]


class _ManifestWriter(ManifestWriterV2):
    def __init__(self, shape: TableShape, io: StoreFileIO, location: str, snapshot_id: int) -> None:
        super().__init__(shape.spec, shape.schema, io.new_output(location), snapshot_id, CODEC)
        self._shape = shape

    def new_writer(self) -> AvroOutputFile[ManifestEntry]:
        if not self._shape.header:
            self._shape.header.update(self._meta)
        return OneBlockFile(self._shape.layout, self._output_file, self._shape.header)


class _ManifestListWriter(ManifestListWriterV2):
    def __enter__(self) -> _ManifestListWriter:
        self._writer = OneBlockFile(_LIST_LAYOUT, self._output_file, self._meta)
        self._writer.__enter__()
        return self
