"""A table's metadata on its way from one state to the next: what the updates of one commit share.

`updates` has the rules of each update. Nothing of the state before is ever changed: what an update touches is replaced.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dolake.iceberg.metadata import FORMAT_VERSION, NO_SNAPSHOT
from dolake.iceberg.rest_errors import bad_request
from dolake.model import spelled_out

LAST_ADDED = -1
_BEFORE_ANY_PARTITION_FIELD = 999
_NO_PARTS = ("", ".", "..")


@dataclass
class TableChange:
    """`root` is the warehouse's: nothing of a table lies outside it. `added` has the id that each kind of list got last."""

    metadata: dict[str, Any]
    root: str
    now_ms: int
    is_new: bool = False
    added: dict[str, int] = field(default_factory=dict)
    added_snapshots: dict[int, int] = field(default_factory=dict)  # id → timestamp in ms
    structure_changed: bool = False

    def items(self, key: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.metadata.get(key) or []
        return found

    def append(self, key: str, item: Mapping[str, Any]) -> None:
        self.metadata[key] = [*self.items(key), item]

    def ids(self, key: str, id_name: str) -> set[int]:
        return {item[id_name] for item in self.items(key)}

    def snapshot(self, snapshot_id: int) -> Mapping[str, Any] | None:
        return next((one for one in self.items("snapshots") if one["snapshot-id"] == snapshot_id), None)

    def require_snapshot(self, snapshot_id: int, what: str) -> None:
        """Raises CatalogRefusal (400) if the table has no such snapshot."""
        if self.snapshot(snapshot_id) is None:
            raise bad_request(f"{what}: there is no snapshot {snapshot_id}")

    def chosen(self, wanted: int, key: str, id_name: str, what: str) -> int:
        """An id that is there; -1 is the one last added by this commit. Raises CatalogRefusal (400)."""
        if wanted == LAST_ADDED:
            if key not in self.added:
                raise bad_request(f"{what}: -1 means the one last added, and this commit adds none")
            return self.added[key]
        if wanted not in self.ids(key, id_name):
            raise bad_request(f"{what}: there is none with the id {wanted}")
        return wanted

    def require_inside(self, location: str, what: str) -> None:
        """Raises CatalogRefusal (400) for a location that is not below the warehouse's root, however it is spelled."""
        problem = outside(self.root, location)
        if problem is not None:
            raise bad_request(f"{what}: {problem}")


def empty_metadata(uuid: str, location: str, now_ms: int) -> dict[str, Any]:
    """What the updates that make a table are put upon: no schema, no spec, no sort order."""
    return {
        "format-version": FORMAT_VERSION,
        "table-uuid": uuid,
        "location": location,
        "last-sequence-number": 0,
        "last-updated-ms": now_ms,
        "last-column-id": 0,
        "schemas": [],
        "current-schema-id": LAST_ADDED,
        "partition-specs": [],
        "default-spec-id": LAST_ADDED,
        "last-partition-id": _BEFORE_ANY_PARTITION_FIELD,
        "sort-orders": [],
        "default-sort-order-id": LAST_ADDED,
        "properties": {},
        "current-snapshot-id": NO_SNAPSHOT,
        "refs": {},
        "snapshots": [],
        "snapshot-log": [],
        "metadata-log": [],
    }


def outside(root: str, location: str) -> str | None:
    """Why a location does not lie below `root`; None if it does."""
    folder, location = root + "/", spelled_out(location)
    if not location.startswith(folder):
        return f"{location[:200]!r} does not lie in the warehouse {root}: choose a location below it"
    parts = location[len(folder) :].rstrip("/").split("/")
    if any(part in _NO_PARTS for part in parts) or any(letter < " " for letter in location):
        return f"{location[:200]!r} has empty, `.` or `..` parts, or control characters"
    return None


def find_same(items: Sequence[Mapping[str, Any]], id_name: str, wanted: Mapping[str, Any]) -> int | None:
    """The id of an item that is `wanted` but for its id."""
    plain = _without(wanted, id_name)
    return next((int(item[id_name]) for item in items if _without(item, id_name) == plain), None)


def _without(item: Mapping[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in item.items() if name != key}
