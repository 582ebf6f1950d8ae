"""The files of a table that is in no catalog any more: what its metadata names, and nothing else.

A table of the same name may have been made since, in the same folder; its files have other names, and stay.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from dolake.errors import ObjectMissing
from dolake.iceberg.contents import ContentsReader
from dolake.iceberg.metadata import Metadata, from_bytes
from dolake.storage.store import ObjectStore


def named_files(store: ObjectStore, metadata_location: str) -> list[str]:
    """Data first, then what names it; by the metadata file, which goes last, the rest is found. Blocks.

    Raises ObjectMissing where the metadata is gone already, StoreUnreachable.
    """
    metadata = from_bytes(store.get(metadata_location))
    found: dict[str, None] = {}
    for location in [*_contents(store, metadata), *_beside(metadata)]:
        found.setdefault(location)
    found.pop(metadata_location, None)
    return [*found, metadata_location]


def purge(store: ObjectStore, locations: list[str], progress: Callable[[int], None] = lambda done: None) -> None:
    """Deletes them in this order. Blocks. Raises StoreUnreachable; what is gone already is passed over."""
    for done, location in enumerate(locations, 1):
        store.delete(location)
        progress(done)


def _contents(store: ObjectStore, metadata: Metadata) -> Iterator[str]:
    reader = ContentsReader(store)
    names: dict[str, None] = {}
    for snapshot in metadata.get("snapshots") or ():
        try:
            contents = reader.read(snapshot)
        except ObjectMissing:  # An earlier purge came this far: what the missing file named went before it.
            continue
        yield from (file.location for file in contents.files)
        yield from contents.removed  # The snapshots that they were live in may have expired.
        # Manifests before their list.
        names.update(dict.fromkeys(location for location, size in contents.metadata.items() if size))
        names.update(dict.fromkeys(location for location, size in contents.metadata.items() if not size))
    yield from names


def _beside(metadata: Metadata) -> Iterator[str]:
    for kind in ("statistics", "partition-statistics"):
        yield from (str(one["statistics-path"]) for one in metadata.get(kind) or ())
    yield from (str(entry["metadata-file"]) for entry in metadata.get("metadata-log") or ())
