"""The updates of a REST commit that concern snapshots: adding, naming, removing them, and what is known about them."""

from __future__ import annotations

from typing import Any

from dolake.iceberg.metadata import MAIN, NO_SNAPSHOT, Update
from dolake.iceberg.rest_errors import bad_request, commit_failed
from dolake.iceberg.table_change import TableChange

_OPERATIONS = ("append", "replace", "overwrite", "delete")
_LATER_FIELDS = ("first-row-id", "added-rows", "key-id")
# How far a writer's clock may be behind the table's last change; Iceberg's readers refuse a table that goes back further.
_BEHIND_MS_MAX = 60_000


def add_snapshot(change: TableChange, update: Update) -> None:
    """A snapshot that no ref names yet; only one that is added right after the table's last change."""
    snapshot = update["snapshot"]
    _require_whole(change, snapshot)
    snapshot_id, number, last = snapshot["snapshot-id"], snapshot["sequence-number"], change.metadata["last-sequence-number"]
    if change.snapshot(snapshot_id) is not None:
        raise bad_request(f"add-snapshot: there is a snapshot {snapshot_id} already")
    # These are so because somebody else has committed meanwhile: the client may look and try again.
    if number <= last:
        raise commit_failed(
            f"add-snapshot: its sequence number must be above the table's last, {last} (got {number}): load the table again"
        )
    parent = snapshot.get("parent-snapshot-id")
    if parent is not None and change.snapshot(parent) is None:
        raise commit_failed(f"add-snapshot: its parent {parent} is no snapshot of the table any more: load the table again")
    if snapshot["timestamp-ms"] < change.metadata["last-updated-ms"] - _BEHIND_MS_MAX:
        raise commit_failed(
            f"add-snapshot: its time {snapshot['timestamp-ms']} is more than a minute before the table's last change, "
            f"{change.metadata['last-updated-ms']}: set this writer's clock"
        )
    change.append("snapshots", snapshot)
    change.metadata["last-sequence-number"] = number
    change.metadata["last-updated-ms"] = max(change.metadata["last-updated-ms"], snapshot["timestamp-ms"])
    change.added_snapshots[snapshot_id] = snapshot["timestamp-ms"]


def _require_whole(change: TableChange, snapshot: dict[str, Any]) -> None:
    for later in _LATER_FIELDS:
        if later in snapshot:
            raise bad_request(f"add-snapshot: `{later}` belongs to format version 3: tables here have version 2")
    if not change.items("schemas") or not change.items("partition-specs") or not change.items("sort-orders"):
        raise bad_request("add-snapshot: a schema, a partition spec and a sort order come first")
    if "sequence-number" not in snapshot:
        raise bad_request("add-snapshot: `sequence-number` is missing; format version 2 has one for each snapshot")
    if snapshot["summary"].get("operation") not in _OPERATIONS:
        raise bad_request(f"add-snapshot: its summary's `operation` must be one of {', '.join(_OPERATIONS)}")
    if "schema-id" in snapshot and snapshot["schema-id"] not in change.ids("schemas", "schema-id"):
        raise bad_request(f"add-snapshot: there is no schema {snapshot['schema-id']}")
    change.require_inside(snapshot["manifest-list"], "add-snapshot: manifest-list")


def set_snapshot_ref(change: TableChange, update: Update) -> None:
    """A branch or tag, new or moved; `main` is the table's current snapshot."""
    name, snapshot_id = update["ref-name"], update["snapshot-id"]
    change.require_snapshot(snapshot_id, f"set-snapshot-ref: {name}")
    if name == MAIN and update["type"] != "branch":
        raise bad_request("set-snapshot-ref: `main` is a branch")
    if update["type"] == "tag" and ("min-snapshots-to-keep" in update or "max-snapshot-age-ms" in update):
        raise bad_request(f"set-snapshot-ref: {name}: only branches have `min-snapshots-to-keep` and `max-snapshot-age-ms`")
    ref = {key: value for key, value in update.items() if key not in ("action", "ref-name")}
    refs = change.metadata.get("refs") or {}
    before = refs.get(name)
    if before == ref:
        return
    if before is not None and before["type"] != ref["type"]:
        raise bad_request(f"set-snapshot-ref: {name} is a {before['type']}: remove it first")
    change.metadata["refs"] = {**refs, name: ref}
    if name == MAIN and change.metadata.get("current-snapshot-id") != snapshot_id:
        change.metadata["current-snapshot-id"] = snapshot_id
        time_ms = max(change.added_snapshots.get(snapshot_id, change.now_ms), change.metadata["last-updated-ms"])
        change.append("snapshot-log", {"snapshot-id": snapshot_id, "timestamp-ms": time_ms})
        change.metadata["last-updated-ms"] = time_ms


def remove_snapshot_ref(change: TableChange, update: Update) -> None:
    """One that is gone already is fine, as in Iceberg's own catalogs: two may clean up at once."""
    name = update["ref-name"]
    change.metadata["refs"] = {one: ref for one, ref in (change.metadata.get("refs") or {}).items() if one != name}
    if name == MAIN:
        change.metadata["current-snapshot-id"] = NO_SNAPSHOT
        change.metadata["snapshot-log"] = []


def remove_snapshots(change: TableChange, update: Update) -> None:
    """Those that are gone already are fine; one that a branch or tag names is not: that goes first, by name."""
    gone = set(update["snapshot-ids"])
    for name, ref in (change.metadata.get("refs") or {}).items():
        if ref["snapshot-id"] in gone:
            raise bad_request(f"remove-snapshots: {ref['type']} {name} names snapshot {ref['snapshot-id']}: remove or move it first")
    change.metadata["snapshots"] = [one for one in change.items("snapshots") if one["snapshot-id"] not in gone]
    log = change.items("snapshot-log")
    # A gap would make an older snapshot look current for longer than it was, so what precedes the last gap goes too.
    last_gap = max((place for place, entry in enumerate(log) if entry["snapshot-id"] in gone), default=-1)
    change.metadata["snapshot-log"] = log[last_gap + 1 :]
    for key in ("statistics", "partition-statistics"):
        if change.metadata.get(key):
            change.metadata[key] = [one for one in change.items(key) if one["snapshot-id"] not in gone]


def set_statistics(change: TableChange, update: Update) -> None:
    statistics = update["statistics"]
    if update.get("snapshot-id") not in (None, statistics["snapshot-id"]):
        raise bad_request("set-statistics: its snapshot-id and that of its `statistics` differ")
    _replace_file(change, "statistics", statistics, "set-statistics")


def set_partition_statistics(change: TableChange, update: Update) -> None:
    _replace_file(change, "partition-statistics", update["partition-statistics"], "set-partition-statistics")


def remove_statistics(change: TableChange, update: Update) -> None:
    _remove_file(change, "statistics", update["snapshot-id"])


def remove_partition_statistics(change: TableChange, update: Update) -> None:
    _remove_file(change, "partition-statistics", update["snapshot-id"])


def _replace_file(change: TableChange, key: str, file: dict[str, Any], what: str) -> None:
    change.require_snapshot(file["snapshot-id"], what)
    change.require_inside(file["statistics-path"], f"{what}: statistics-path")
    _remove_file(change, key, file["snapshot-id"])
    change.append(key, file)


def _remove_file(change: TableChange, key: str, snapshot_id: int) -> None:
    if change.metadata.get(key):
        change.metadata[key] = [one for one in change.items(key) if one["snapshot-id"] != snapshot_id]
