"""What a snapshot names: its manifests, and the files that are live in it. For whoever checks or describes a table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pyiceberg.exceptions import ValidationError
from pyiceberg.manifest import DataFileContent, ManifestEntry
from pyiceberg.table.metadata import TableMetadataUtil

from dolake.errors import ObjectDamaged
from dolake.iceberg.entries import fetch_entries, fetch_manifests, is_live, partition_of
from dolake.iceberg.file_io import StoreFileIO
from dolake.iceberg.metadata import LoadedTable
from dolake.storage.store import ObjectStore


@dataclass(frozen=True)
class LiveFile:
    """A data or delete file as a manifest names it. `kind` is data, position deletes or equality deletes.

    `partition`, in the order of the fields of spec `spec_id`, and bounds (by field id) are as stored. `sequence_number` is that
    of its data: position deletes speak of data files whose number is theirs or lower, equality deletes of lower ones only.
    `null_counts`, by field id: how many of its rows have nothing there, of the columns of which the manifest says so.
    """

    location: str
    kind: str
    size_bytes: int
    row_count: int
    partition: tuple[Any, ...] = ()
    lower_bounds: Mapping[int, bytes] = field(default_factory=dict)
    upper_bounds: Mapping[int, bytes] = field(default_factory=dict)
    spec_id: int = 0
    sequence_number: int = 0
    null_counts: Mapping[int, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Contents:
    """`metadata` maps the snapshot's manifest list (size 0: nothing records it) and manifests to their sizes in bytes.

    `removed` are the locations of files that its manifests say left the table, with it or not long before.
    """

    metadata: Mapping[str, int]
    files: tuple[LiveFile, ...]
    removed: tuple[str, ...] = ()


_KINDS = {
    DataFileContent.DATA: "data",
    DataFileContent.POSITION_DELETES: "position deletes",
    DataFileContent.EQUALITY_DELETES: "equality deletes",
}


class ContentsReader:
    """Reads snapshots' contents; manifests that several snapshots share are read once. Blocks.

    Raises ObjectMissing, ObjectDamaged or StoreUnreachable.
    """

    def __init__(self, store: ObjectStore) -> None:
        self._io = StoreFileIO(store)
        self._manifests: dict[str, tuple[tuple[LiveFile, ...], tuple[str, ...]]] = {}

    def read(self, snapshot: Mapping[str, Any]) -> Contents:
        location = str(snapshot["manifest-list"])
        metadata = {location: 0}
        files: list[LiveFile] = []
        removed: list[str] = []
        for manifest in fetch_manifests(self._io, location):
            metadata[manifest.manifest_path] = manifest.manifest_length
            if manifest.manifest_path not in self._manifests:
                entries = fetch_entries(self._io, manifest)
                live = tuple(_live_file(entry) for entry in entries if is_live(entry))
                gone = tuple(entry.data_file.file_path for entry in entries if not is_live(entry))
                self._manifests[manifest.manifest_path] = live, gone
            live, gone = self._manifests[manifest.manifest_path]
            files += live
            removed += gone
        return Contents(metadata, tuple(files), tuple(removed))

    def keep_only(self, contents: Contents) -> None:
        """Lets go of manifests that a snapshot does not name, for who goes on to newer ones."""
        self._manifests = {location: found for location, found in self._manifests.items() if location in contents.metadata}


def check_metadata(table: LoadedTable) -> None:
    """Against PyIceberg's model of it: closer than everybody looks who loads a table, and slower. Raises ObjectDamaged."""
    try:
        for snapshot in table.metadata.get("snapshots") or ():
            if "operation" not in snapshot["summary"]:  # PyIceberg would make one up.
                raise ValueError(f"snapshot {snapshot['snapshot-id']} says nothing of its operation")
        TableMetadataUtil.parse_obj(dict(table.metadata))
    except (ValidationError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise ObjectDamaged(f"{table.metadata_location} is no metadata of a table: {type(error).__name__}: {error}; restore it") from error


def _live_file(entry: ManifestEntry) -> LiveFile:
    file = entry.data_file
    return LiveFile(
        location=file.file_path,
        kind=_KINDS[file.content],
        size_bytes=file.file_size_in_bytes,
        row_count=file.record_count,
        partition=partition_of(file),
        lower_bounds=file.lower_bounds or {},
        upper_bounds=file.upper_bounds or {},
        spec_id=file.spec_id,
        sequence_number=entry.sequence_number or 0,
        null_counts=file.null_value_counts or {},
    )
