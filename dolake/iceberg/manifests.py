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
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson
from pyiceberg.avro.file import AvroOutputFile
from pyiceberg.manifest import (
    MANIFEST_LIST_FILE_SCHEMAS,
    ManifestContent,
    ManifestEntry,
    ManifestFile,
    ManifestListWriterV2,
    ManifestWriterV2,
)

from dolake.iceberg.avro import CODEC, AvroLayout, OneBlockFile
from dolake.iceberg.entries import TableShape, fetch_entries, fetch_manifests, is_live
from dolake.iceberg.file_io import StoreFileIO
from dolake.iceberg.metadata import LoadedTable

MERGE_COUNT = 10
# Larger ones are left alone: a merge of more would cost one commit too much, and readers gain nothing by it.
MERGE_FILES_MAX = 1000
# Entries of small manifests are kept for their merge; those of larger ones are read back, once in a hundred commits or so.
_REMEMBERED_FILES_MAX = 99
# The current list, and those of attempts whose outcome is not known yet.
_REMEMBERED_LISTS = 4
_REMEMBERED_SHAPES = 8
# As many as are held in memory at once where all of a table's files leave it.
_REMOVED_FILES_MAX = 10_000
_LIST_LAYOUT = AvroLayout.of(MANIFEST_LIST_FILE_SCHEMAS[2], "manifest_file")


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
        memory.remember_list(location, fetch_manifests(io, location))
    return memory.lists[location]


def plan_merge(manifests: Sequence[ManifestFile]) -> tuple[ManifestFile, ...]:
    """The manifests that this commit should rewrite as one, oldest first; none is the usual answer.

    Only manifests of one content, one spec and one size class go together: at least `MERGE_COUNT`, of the smallest such class.
    """
    classes: dict[tuple[int, int, int], list[ManifestFile]] = {}
    for manifest in manifests:
        files = live_file_count(manifest)
        if 0 < files < MERGE_FILES_MAX:
            classes.setdefault((len(str(files)), manifest.content, manifest.partition_spec_id), []).append(manifest)
    for _, group in sorted(classes.items(), key=lambda item: item[0]):
        if len(group) >= MERGE_COUNT:
            return tuple(sorted(group, key=lambda manifest: manifest.sequence_number)[:MERGE_COUNT])
    return ()


def plan_removal(manifests: Sequence[ManifestFile]) -> Iterator[tuple[ManifestFile, ...]]:
    """The manifests whose files go, in groups that one manifest each can record: of one content and spec, and not too many files."""
    kinds: dict[tuple[int, int], list[ManifestFile]] = {}
    for manifest in manifests:
        if live_file_count(manifest):
            kinds.setdefault((manifest.content, manifest.partition_spec_id), []).append(manifest)
    for kind in kinds.values():
        group: list[ManifestFile] = []
        for manifest in kind:
            if group and sum(map(live_file_count, group)) + live_file_count(manifest) > _REMOVED_FILES_MAX:
                yield tuple(group)
                group = []
            group.append(manifest)
        yield tuple(group)


def live_file_count(manifest: ManifestFile) -> int:
    return (manifest.added_files_count or 0) + (manifest.existing_files_count or 0)


def read_entries(memory: TableMemory, io: StoreFileIO, manifest: ManifestFile) -> list[ManifestEntry]:
    """The live entries of a manifest, with the sequence numbers and snapshot that they inherit from it filled in."""
    known = memory.entries.get(manifest.manifest_path)
    if known is not None:
        return known
    return [entry for entry in fetch_entries(io, manifest) if is_live(entry)]


def write_manifest(
    io: StoreFileIO,
    location: str,
    shape: TableShape,
    snapshot_id: int,
    content: ManifestContent = ManifestContent.DATA,
    *,
    added: Sequence[ManifestEntry] = (),
    existing: Sequence[ManifestEntry] = (),
    removed: Sequence[ManifestEntry] = (),
) -> ManifestFile:
    """Writes and puts one manifest, of data or of delete files. Raises what the store raises."""
    with _ManifestWriter(shape, io, location, snapshot_id, content) as writer:
        for entry in added:
            writer.add(entry)
        for entry in existing:
            writer.existing(entry)
        for entry in removed:
            writer.delete(entry)
    return writer.to_manifest_file()


def write_manifest_list(
    io: StoreFileIO, location: str, snapshot_id: int, parent_id: int | None, sequence_number: int, manifests: Sequence[ManifestFile]
) -> tuple[ManifestFile, ...]:
    """Writes and puts a manifest list; returns its manifests with the sequence numbers that new ones got by it."""
    with _ManifestListWriter(io.new_output(location), snapshot_id, parent_id, sequence_number, CODEC) as writer:
        prepared = [writer.prepare_manifest(manifest) for manifest in manifests]
        writer._writer.write_block(prepared)
    return tuple(prepared)


class _ManifestWriter(ManifestWriterV2):
    def __init__(self, shape: TableShape, io: StoreFileIO, location: str, snapshot_id: int, content: ManifestContent) -> None:
        super().__init__(shape.spec, shape.schema, io.new_output(location), snapshot_id, CODEC)
        self._shape, self._content = shape, content

    def content(self) -> ManifestContent:
        return self._content

    def new_writer(self) -> AvroOutputFile[ManifestEntry]:
        if self._content not in self._shape.headers:
            said = "deletes" if self._content == ManifestContent.DELETES else "data"
            self._shape.headers[self._content] = {**self._meta, "content": said}
        return OneBlockFile(self._shape.layout(self._content), self._output_file, self._shape.headers[self._content])


class _ManifestListWriter(ManifestListWriterV2):
    def __enter__(self) -> _ManifestListWriter:
        self._writer = OneBlockFile(_LIST_LAYOUT, self._output_file, self._meta)
        self._writer.__enter__()
        return self
