"""Somebody else's program that writes a mirror table: appends, deletes, rewrites, and deletes by equality, which stops the table."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import pyarrow as pa
from pyiceberg.manifest import (
    DataFile,
    DataFileContent,
    FileFormat,
    ManifestContent,
    ManifestEntry,
    ManifestEntryStatus,
    ManifestFile,
)
from pyiceberg.typedef import Record

from dolake.datafiles import split_rows
from dolake.iceberg.entries import (
    TableShape,
    added_delete_entries,
    added_entries,
    count_files,
    fetch_entries,
    fetch_manifests,
    is_live,
    partition_of,
)
from dolake.iceberg.file_io import StoreFileIO
from dolake.iceberg.manifests import write_manifest, write_manifest_list
from dolake.iceberg.metadata import LoadedTable, Update
from dolake.iceberg.partition import schema_of_spec
from dolake.iceberg.plan import NewDeletes, NewFile
from dolake.iceberg.summary import summarize
from dolake.parquet.align import schema_from_json
from dolake.parquet.deletes import encode_deletes
from dolake.parquet.encode import encode_parquet
from dolake.parquet.schema import arrow_schema
from dolake.storage.store import ObjectStore
from tests.simulation.mirror import KEY, MirrorReader, Values
from tests.simulation.store import Warehouse

EQUALITY = "equality deletes"
KINDS = ("append", "append", "delete", "delete", "rewrite", "rewrite all", EQUALITY)


@dataclass
class _Plain:
    """An object store without faults (only what PyIceberg's file access asks for)."""

    warehouse: Warehouse

    def get(self, location: str) -> bytes:
        return self.warehouse.get(location)

    def put(self, location: str, data: bytes | memoryview) -> None:
        self.warehouse.store(location, bytes(data))


@dataclass
class _Change:
    """What one foreign snapshot does: entries by content and spec."""

    table: LoadedTable
    number: int
    entries: list[tuple[ManifestFile, ManifestEntry]]
    io: StoreFileIO
    added: dict[tuple[ManifestContent, int], list[ManifestEntry]] = field(default_factory=dict)
    gone: set[str] = field(default_factory=set)

    def shape(self, spec_id: int) -> TableShape:
        metadata = self.table.metadata
        spec = next(spec for spec in metadata["partition-specs"] if spec["spec-id"] == spec_id)
        schema = schema_of_spec(metadata, spec, self.table.schema)
        assert schema is not None
        return TableShape.of(schema, spec, {})

    def add(self, content: ManifestContent, spec_id: int, entries: Sequence[ManifestEntry]) -> None:
        self.added.setdefault((content, spec_id), []).extend(entries)

    def manifests(self) -> Iterator[ManifestFile]:
        for place, ((content, spec_id), entries) in enumerate(self.added.items()):
            yield write_manifest(self.io, self.location(f"a{place}.avro"), self.shape(spec_id), self.number, content, added=entries)
        by_path: dict[str, list[tuple[ManifestFile, ManifestEntry]]] = {}
        for manifest, entry in self.entries:
            by_path.setdefault(manifest.manifest_path, []).append((manifest, entry))
        for place, pairs in enumerate(by_path.values()):
            manifest = pairs[0][0]
            removed = [entry for _, entry in pairs if entry.data_file.file_path in self.gone]
            kept = [entry for _, entry in pairs if entry.data_file.file_path not in self.gone]
            if not removed:
                yield manifest
                continue
            shape = self.shape(manifest.partition_spec_id)
            yield write_manifest(
                self.io, self.location(f"k{place}.avro"), shape, self.number, manifest.content, existing=kept, removed=removed
            )

    def location(self, name: str) -> str:
        return f"{self.table.location}/foreign/{self.number}-{name}"


def plan_foreign(table: LoadedTable, kind: str, number: int, draw: random.Random, warehouse: Warehouse) -> list[Update]:
    """The updates that add a snapshot with that change; none where the table has nothing to change."""
    assert table.head is not None
    io = StoreFileIO(cast(ObjectStore, _Plain(warehouse)))
    manifests = fetch_manifests(io, table.head["manifest-list"])
    entries = [(manifest, entry) for manifest in manifests for entry in fetch_entries(io, manifest) if is_live(entry)]
    change = _Change(table, number, entries, io)
    live = MirrorReader(warehouse).live(table)
    _KINDS[kind](change, live, draw)
    if not change.added and not change.gone:
        return []
    sequence_number = table.metadata["last-sequence-number"] + 1
    listed = list(change.manifests())
    location = change.location("list.avro")
    write_manifest_list(io, location, number, table.head_id, sequence_number, listed)
    added = count_files([entry for ones in change.added.values() for entry in ones])
    removed = count_files([entry for _, entry in entries if entry.data_file.file_path in change.gone])
    snapshot = {
        "snapshot-id": number,
        "parent-snapshot-id": table.head_id,
        "sequence-number": sequence_number,
        "timestamp-ms": table.metadata["last-updated-ms"] + 1,
        "manifest-list": location,
        "schema-id": table.schema["schema-id"],
        "summary": summarize(added, removed, table.head["summary"]),
    }
    return [
        {"action": "add-snapshot", "snapshot": snapshot},
        {"action": "set-snapshot-ref", "ref-name": "main", "type": "branch", "snapshot-id": number},
    ]


Live = Mapping[str, tuple[DataFile, list[tuple[int, Values]]]]


def _append(change: _Change, live: Live, draw: random.Random) -> None:
    """Rows of keys that are there, perhaps, and of one that is nobody's."""
    known = [values[KEY] for _, rows in live.values() for _, values in rows if KEY in values]
    keys = draw.sample(known, min(len(known), draw.randint(0, 2)))
    required = {column["name"]: "f" for column in change.table.schema["fields"] if column["required"]}
    rows = [{**required, KEY: key, "n": change.number % 1000} for key in [*keys, f"foreign-{draw.randint(0, 3)}"]]
    _write_rows(change, rows)


def _delete(change: _Change, live: Live, draw: random.Random) -> None:
    victims = [(file, place) for file, rows in live.values() for place, _ in rows]
    if victims:
        file, place = draw.choice(victims)
        _delete_rows(change, file, [place])


def _rewrite(change: _Change, live: Live, draw: random.Random) -> None:
    """One data file's rows in another file. What spoke of its deleted rows may go with it where it spoke of nothing else."""
    if not live:
        return
    path = draw.choice(sorted(live))
    change.gone.add(path)
    _write_rows(change, [values for _, values in live[path][1]])


def _rewrite_all(change: _Change, live: Live, draw: random.Random) -> None:
    """As a compaction: every data file, and no delete file is left."""
    if live:
        change.gone |= {entry.data_file.file_path for _, entry in change.entries}
        _write_rows(change, [values for _, rows in live.values() for _, values in rows])


def _delete_by_equality(change: _Change, live: Live, draw: random.Random) -> None:
    keys = [values[KEY] for _, rows in live.values() for _, values in rows if KEY in values]
    if not keys:
        return
    column = next(column for column in change.table.schema["fields"] if column["name"] == KEY)
    unpartitioned = [spec["spec-id"] for spec in change.table.metadata["partition-specs"] if not spec["fields"]]
    if not unpartitioned:  # Another scope would need as many files as partitions.
        return
    kind = pa.schema([pa.field(KEY, pa.string(), metadata={"PARQUET:field_id": str(column["id"])})])
    encoded = encode_parquet(pa.table({KEY: [draw.choice(keys)]}, schema=kind))
    location = change.location("equality.parquet")
    _put(change, location, encoded.data)
    described = DataFile.from_args(
        _table_format_version=3,
        content=DataFileContent.EQUALITY_DELETES,
        file_path=location,
        file_format=FileFormat.PARQUET,
        partition=Record(),
        record_count=1,
        file_size_in_bytes=len(encoded.data),
        equality_ids=[column["id"]],
    )
    described.spec_id = unpartitioned[0]
    entry = ManifestEntry.from_args(status=ManifestEntryStatus.ADDED, snapshot_id=change.number, data_file=described)
    change.add(ManifestContent.DELETES, unpartitioned[0], [entry])


_KINDS = {
    "append": _append,
    "delete": _delete,
    "rewrite": _rewrite,
    "rewrite all": _rewrite_all,
    EQUALITY: _delete_by_equality,
    f"no {EQUALITY}": lambda change, live, draw: change.gone.update(
        entry.data_file.file_path for _, entry in change.entries if entry.data_file.content == DataFileContent.EQUALITY_DELETES
    ),
}


def _write_rows(change: _Change, rows: Sequence[Values]) -> None:
    schema = schema_from_json(change.table.schema)
    spec = change.table.spec
    aligned = pa.Table.from_pylist(list(rows), schema=arrow_schema(schema))
    if not aligned.num_rows:
        return
    for place, (partition, part, _) in enumerate(split_rows(str(change.table.name), aligned, schema, spec)):
        encoded = encode_parquet(part)
        location = change.location(f"{place}.parquet")
        _put(change, location, encoded.data)
        file = NewFile(location, len(encoded.data), encoded.row_count, encoded.metadata, partition)
        change.add(ManifestContent.DATA, spec["spec-id"], added_entries(change.shape(spec["spec-id"]), [file], change.number))


def _delete_rows(change: _Change, file: DataFile, places: Sequence[int]) -> None:
    encoded = encode_deletes([file.file_path], np.zeros(len(places), np.int32), np.array(places, np.int64))
    location = change.location("deletes.parquet")
    _put(change, location, encoded.data)
    deletes = NewDeletes(
        location, len(encoded.data), len(places), file.file_path, file.file_path, spec_id=file.spec_id, partition=partition_of(file)
    )
    change.add(ManifestContent.DELETES, file.spec_id, added_delete_entries(change.shape(file.spec_id), [deletes], change.number))


def _put(change: _Change, location: str, data: Any) -> None:
    with change.io.new_output(location).create() as stream:
        stream.write(bytes(data))
