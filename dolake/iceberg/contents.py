"""What a snapshot names: its manifests, and the files that are live in it. For whoever checks or describes a table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pyiceberg.manifest import DataFileContent, read_manifest_list

from dolake.iceberg.file_io import StoreFileIO
from dolake.storage.store import ObjectStore


@dataclass(frozen=True)
class LiveFile:
    """A data or delete file as a manifest names it. `kind` is data, position deletes or equality deletes.

    `partition` and bounds (by field id) are as stored.
    """

    location: str
    kind: str
    size_bytes: int
    row_count: int
    partition: tuple[Any, ...] = ()
    upper_bounds: Mapping[int, bytes] = field(default_factory=dict)


@dataclass(frozen=True)
class Contents:
    """`metadata` maps the snapshot's manifest list (size 0: nothing records it) and manifests to their sizes in bytes."""

    metadata: Mapping[str, int]
    files: tuple[LiveFile, ...]


_KINDS = {
    DataFileContent.DATA: "data",
    DataFileContent.POSITION_DELETES: "position deletes",
    DataFileContent.EQUALITY_DELETES: "equality deletes",
}


class ContentsReader:
    """Reads snapshots' contents; manifests that several snapshots share are read once. Blocks.

    Raises ObjectMissing or StoreUnreachable, and ValueError where a file is not what its name says.
    """

    def __init__(self, store: ObjectStore) -> None:
        self._io = StoreFileIO(store)
        self._manifests: dict[str, tuple[LiveFile, ...]] = {}

    def read(self, snapshot: Mapping[str, Any]) -> Contents:
        location = str(snapshot["manifest-list"])
        metadata = {location: 0}
        files: list[LiveFile] = []
        for manifest in read_manifest_list(self._io.new_input(location)):
            metadata[manifest.manifest_path] = manifest.manifest_length
            if manifest.manifest_path not in self._manifests:
                self._manifests[manifest.manifest_path] = tuple(
                    LiveFile(
                        location=entry.data_file.file_path,
                        kind=_KINDS[entry.data_file.content],
                        size_bytes=entry.data_file.file_size_in_bytes,
                        row_count=entry.data_file.record_count,
                        partition=tuple(entry.data_file.partition[place] for place in range(len(entry.data_file.partition))),
                        upper_bounds=entry.data_file.upper_bounds or {},
                    )
                    for entry in manifest.fetch_manifest_entry(self._io, discard_deleted=True)
                )
            files += self._manifests[manifest.manifest_path]
        return Contents(metadata, tuple(files))
