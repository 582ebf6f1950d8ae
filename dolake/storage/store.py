"""The door to the warehouse: whole objects, put once under names that are never used again.

Locations are absolute URIs under the warehouse root (`file:///…`, `s3://bucket/…`). Calls block and run beside the loop.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol


class ObjectStore(Protocol):
    """A warehouse, local or in a bucket."""

    root: str

    def put(self, location: str, data: bytes | memoryview) -> None:
        """Stores an object. On a local warehouse its bytes are synced when this returns, its name only after `settle`.

        Raises StoreUnreachable; the object may or may not be there then (put again: same bytes, same name).
        """
        ...

    def settle(self, locations: Sequence[str]) -> None:
        """Makes the names of these objects durable (syncs their directories once each). Before a catalog swap names them."""
        ...

    def get(self, location: str) -> bytes:
        """Raises ObjectMissing, StoreUnreachable."""
        ...

    def size(self, location: str) -> int:
        """Raises ObjectMissing, StoreUnreachable."""
        ...

    def list(self, prefix: str) -> Iterator[tuple[str, int]]:
        """(location, size in bytes) of every object below `prefix`."""
        ...

    def delete(self, location: str) -> None:
        """Removes an object; none there is fine."""
        ...
