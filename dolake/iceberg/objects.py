"""Whole data and delete files, read back: never other bytes than were put under their name."""

from __future__ import annotations

import google_crc32c

from dolake.errors import ObjectDamaged
from dolake.iceberg.names import parse_data_file_location
from dolake.storage.store import ObjectStore


def read_file(store: ObjectStore, location: str, size_bytes: int | None = None) -> bytes:
    """A file whole, of the size that its manifest says and with the digest in its name; one that dolake did not name has none. Blocks.

    Raises ObjectMissing, ObjectDamaged, StoreUnreachable.
    """
    data = store.get(location)
    if size_bytes is not None and len(data) != size_bytes:
        raise ObjectDamaged(f"{location} came with {len(data)} bytes and should have {size_bytes}; restore it")
    if not has_its_digest(location, data):
        raise ObjectDamaged(f"{location}: its bytes are not those that were written (digest differs); restore it")
    return data


def has_its_digest(location: str, data: bytes) -> bool:
    """Whether these are the bytes that a file's name promises; True where it promises none."""
    name = parse_data_file_location(location)
    return name is None or google_crc32c.value(data) == name.digest
