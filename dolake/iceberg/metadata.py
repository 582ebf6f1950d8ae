"""Table metadata as the plain JSON value that Iceberg defines (format version 2), and what an update makes of it.

Metadata is a dict as it stands in `metadata.json`, shared between commits and never changed: `apply_updates` copies the
parts it touches. No classes over it on purpose: validating and copying the whole of it on every commit is what makes a
commit's cost grow with its history.

Updates and requirements are the dicts of the Iceberg REST catalog (`CommitTableRequest`), so that one plan serves a SQL
row and a REST server alike. Only the updates that dolake makes are known here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from dolake.model import TableName

Metadata = Mapping[str, Any]
Update = Mapping[str, Any]
Requirement = Mapping[str, Any]

FORMAT_VERSION = 2
MAIN = "main"
OFFSET_PREFIX = "dolake.offset."
# Of a table whose name another one had that was dropped: the first offset of a log whose events are this one's.
BEGIN_PREFIX = "dolake.begin."
EPOCH = "dolake.epoch"
INSTANCE = "dolake.instance"
COMMIT_ID = "dolake.commit-id"
# Of a snapshot that a group's tables have in common: the group, the cut's number in it, how many tables were committed with it.
GROUP = "dolake.group"
CUT = "dolake.cut"
CUT_TABLES = "dolake.cut.tables"
NO_SNAPSHOT = -1
# Iceberg's `write.metadata.previous-versions-max`; a table's own property wins.
_PREVIOUS_VERSIONS_MAX = 100


@dataclass(frozen=True)
class LoadedTable:
    """A table as the catalog held it at one moment. `metadata` belongs to everybody: never change it."""

    name: TableName
    metadata: Metadata
    metadata_location: str

    @property
    def location(self) -> str:
        return str(self.metadata["location"])

    @property
    def uuid(self) -> str:
        return str(self.metadata["table-uuid"])

    @property
    def properties(self) -> Mapping[str, str]:
        properties: Mapping[str, str] = self.metadata.get("properties") or {}
        return properties

    def offsets(self) -> dict[str, int]:
        """Log id → first offset not yet applied; a log that never fed this table is absent, and its offset is 0."""
        return offsets_in(self.properties)

    def begins(self) -> dict[str, int]:
        """Log id → first offset that counts for this table; 0 for a log that is absent."""
        return {key[len(BEGIN_PREFIX) :]: int(value) for key, value in self.properties.items() if key.startswith(BEGIN_PREFIX)}

    @property
    def owner_epoch(self) -> int:
        """Epoch of the writer that owns the table; 0 before any."""
        return int(self.properties.get(EPOCH, 0))

    @property
    def instance(self) -> str:
        """The writer instance that claimed `owner_epoch`; empty before any."""
        return self.properties.get(INSTANCE, "")

    @property
    def head(self) -> Mapping[str, Any] | None:
        """The snapshot that `main` names."""
        head_id = self.metadata.get("current-snapshot-id")
        if head_id is None or head_id == NO_SNAPSHOT:
            return None
        return snapshots_by_id(self.metadata).get(head_id)

    @property
    def head_id(self) -> int | None:
        head = self.head
        return None if head is None else int(head["snapshot-id"])

    @property
    def schema(self) -> Mapping[str, Any]:
        """The current schema, as JSON."""
        return _by_id(self.metadata["schemas"], "schema-id", self.metadata["current-schema-id"])

    @property
    def spec(self) -> Mapping[str, Any]:
        """The default partition spec, as JSON."""
        return _by_id(self.metadata["partition-specs"], "spec-id", self.metadata["default-spec-id"])

    def is_where(self, other: LoadedTable) -> bool:
        """Whether it is at the same offsets, in the same hands, with the same columns."""
        same_owner = (self.uuid, self.owner_epoch, self.instance) == (other.uuid, other.owner_epoch, other.instance)
        return same_owner and self.offsets() == other.offsets() and self.schema["schema-id"] == other.schema["schema-id"]


def offsets_in(properties: Mapping[str, str]) -> dict[str, int]:
    """Log id → offset, from a table's properties or a snapshot's summary."""
    return {key[len(OFFSET_PREFIX) :]: int(value) for key, value in properties.items() if key.startswith(OFFSET_PREFIX)}


def snapshots_by_id(metadata: Metadata) -> dict[int, Mapping[str, Any]]:
    return {snapshot["snapshot-id"]: snapshot for snapshot in metadata.get("snapshots") or ()}


def ancestry(metadata: Metadata, snapshot_id: int | None) -> Iterator[Mapping[str, Any]]:
    """The retained snapshots from `snapshot_id` back through its parents, newest first; ends where one is gone."""
    snapshots = snapshots_by_id(metadata)
    while snapshot_id is not None and (snapshot := snapshots.get(snapshot_id)) is not None:
        yield snapshot
        snapshot_id = snapshot.get("parent-snapshot-id")


def new_table(
    *,
    uuid: str,
    location: str,
    schema: Mapping[str, Any],
    spec: Mapping[str, Any] | None = None,
    properties: Mapping[str, str] | None = None,
    now_ms: int,
) -> dict[str, Any]:
    """Metadata of a table without snapshots. `schema` and `spec` as Iceberg JSON; ids are taken as given, none means unpartitioned."""
    spec = spec or {"spec-id": 0, "fields": []}
    return {
        "format-version": FORMAT_VERSION,
        "table-uuid": uuid,
        "location": location,
        "last-sequence-number": 0,
        "last-updated-ms": now_ms,
        "last-column-id": highest_field_id(schema),
        "schemas": [{**schema, "schema-id": 0}],
        "current-schema-id": 0,
        "partition-specs": [{**spec, "spec-id": 0}],
        "default-spec-id": 0,
        "last-partition-id": max((field["field-id"] for field in spec["fields"]), default=999),
        "sort-orders": [{"order-id": 0, "fields": []}],
        "default-sort-order-id": 0,
        "properties": dict(properties or {}),
        "refs": {},
        "snapshots": [],
        "snapshot-log": [],
        "metadata-log": [],
    }


def highest_field_id(schema: Mapping[str, Any]) -> int:
    """The highest id of any field, element, key or value in a schema's JSON."""
    return max(field_ids(schema), default=0)


def field_ids(value: Any) -> Iterator[int]:
    """Of every field, element, key and value in a schema's JSON."""
    if isinstance(value, list):
        for item in value:
            yield from field_ids(item)
    elif isinstance(value, Mapping):
        for key in ("id", "element-id", "key-id", "value-id"):
            if key in value:
                yield int(value[key])
        for key in ("fields", "type", "element", "key", "value"):
            yield from field_ids(value.get(key))


def same_schema(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Equal apart from the id that a table gave it."""
    identifiers = (set(schema.get("identifier-field-ids") or ()) for schema in (one, other))
    return one["fields"] == other["fields"] and next(identifiers) == next(identifiers)


def to_bytes(metadata: Metadata) -> bytes:
    return orjson.dumps(metadata)


# What Iceberg requires of every table's metadata ("Table Metadata Fields"), and everybody here relies on.
_PARTS: Mapping[str, type] = {
    "format-version": int,
    "table-uuid": str,
    "location": str,
    "last-updated-ms": int,
    "last-column-id": int,
    "schemas": list,
    "current-schema-id": int,
    "partition-specs": list,
    "default-spec-id": int,
}
_PARTS_OF_EACH: Mapping[str, Mapping[str, type]] = {
    "schemas": {"schema-id": int, "fields": list},
    "partition-specs": {"spec-id": int, "fields": list},
    "snapshots": {"snapshot-id": int, "timestamp-ms": int, "manifest-list": str, "summary": dict},
}
_CHOSEN = (("current-schema-id", "schemas", "schema-id"), ("default-spec-id", "partition-specs", "spec-id"))


def from_bytes(data: bytes) -> dict[str, Any]:
    """Raises ValueError where it is no metadata of a table."""
    metadata: dict[str, Any] = orjson.loads(data)
    if not isinstance(metadata, dict):
        raise ValueError("it is no JSON object")
    if missing := [name for name, kind in _PARTS.items() if not isinstance(metadata.get(name), kind)]:
        raise ValueError(f"{', '.join(missing)} is missing, or not of its kind")
    for several, parts in _PARTS_OF_EACH.items():
        for one in metadata.get(several) or ():
            if missing := [name for name, kind in parts.items() if not isinstance(one, dict) or not isinstance(one.get(name), kind)]:
                raise ValueError(f"{', '.join(missing)} of one of its {several} is missing, or not of its kind")
    for chosen, several, key in _CHOSEN:
        if metadata[chosen] not in (one[key] for one in metadata[several]):
            raise ValueError(f"{chosen} is {metadata[chosen]}, and none of its {several} is that")
    return metadata


def apply_updates(base: LoadedTable, updates: Sequence[Update], now_ms: int) -> dict[str, Any]:
    """The metadata that follows `base`: its parts shared where no update touches them.

    Raises ValueError for an update that is not known here.
    """
    metadata = dict(base.metadata)
    times = [update["snapshot"]["timestamp-ms"] for update in updates if update["action"] == "add-snapshot"]
    # A snapshot brings its own time, which never goes back; without one the clock must not take the table back either.
    metadata["last-updated-ms"] = max([metadata["last-updated-ms"], *(times or [now_ms])])
    for update in updates:
        apply = _APPLY.get(update["action"])
        if apply is None:
            raise ValueError(f"not an update that dolake makes: {update['action']}")
        apply(metadata, update)
    kept = max(1, int((metadata.get("properties") or {}).get("write.metadata.previous-versions-max", _PREVIOUS_VERSIONS_MAX)))
    entry = {"metadata-file": base.metadata_location, "timestamp-ms": base.metadata["last-updated-ms"]}
    metadata["metadata-log"] = [*(metadata.get("metadata-log") or ()), entry][-kept:]
    return metadata


def unmet_requirements(metadata: Metadata, requirements: Sequence[Requirement]) -> list[str]:
    """One sentence for each requirement that `metadata` does not meet."""
    refs = metadata.get("refs") or {}
    unmet = []
    for requirement in requirements:
        if requirement["type"] == "assert-table-uuid":
            found, wanted = metadata["table-uuid"], requirement["uuid"]
        elif requirement["type"] == "assert-ref-snapshot-id":
            found, wanted = refs.get(requirement["ref"], {}).get("snapshot-id"), requirement["snapshot-id"]
        elif requirement["type"] == "assert-default-spec-id":
            found, wanted = metadata["default-spec-id"], requirement["default-spec-id"]
        elif requirement["type"] == "assert-last-assigned-partition-id":
            found, wanted = metadata["last-partition-id"], requirement["last-assigned-partition-id"]
        else:
            raise ValueError(f"not a requirement that dolake makes: {requirement['type']}")
        if found != wanted:
            unmet.append(f"{requirement['type']}: wanted {wanted}, found {found}")
    return unmet


def _add_schema(metadata: dict[str, Any], update: Update) -> None:
    metadata["schemas"] = [*metadata["schemas"], update["schema"]]
    metadata["last-column-id"] = max(metadata["last-column-id"], highest_field_id(update["schema"]))


def _set_current_schema(metadata: dict[str, Any], update: Update) -> None:
    last_added = update["schema-id"] == -1
    metadata["current-schema-id"] = metadata["schemas"][-1]["schema-id"] if last_added else update["schema-id"]


def _add_spec(metadata: dict[str, Any], update: Update) -> None:
    spec = update["spec"]
    metadata["partition-specs"] = [*metadata["partition-specs"], spec]
    last_ids = [metadata["last-partition-id"], *(field["field-id"] for field in spec["fields"])]
    metadata["last-partition-id"] = max(last_ids)


def _set_default_spec(metadata: dict[str, Any], update: Update) -> None:
    last_added = update["spec-id"] == -1
    metadata["default-spec-id"] = metadata["partition-specs"][-1]["spec-id"] if last_added else update["spec-id"]


def _add_snapshot(metadata: dict[str, Any], update: Update) -> None:
    snapshot = update["snapshot"]
    metadata["snapshots"] = [*(metadata.get("snapshots") or ()), snapshot]
    metadata["last-sequence-number"] = snapshot["sequence-number"]


def _set_snapshot_ref(metadata: dict[str, Any], update: Update) -> None:
    ref = {key: value for key, value in update.items() if key not in ("action", "ref-name")}
    metadata["refs"] = {**(metadata.get("refs") or {}), update["ref-name"]: ref}
    if update["ref-name"] == MAIN:
        metadata["current-snapshot-id"] = update["snapshot-id"]
        entry = {"snapshot-id": update["snapshot-id"], "timestamp-ms": metadata["last-updated-ms"]}
        metadata["snapshot-log"] = [*(metadata.get("snapshot-log") or ()), entry]


def _remove_snapshot_ref(metadata: dict[str, Any], update: Update) -> None:
    metadata["refs"] = {name: ref for name, ref in metadata["refs"].items() if name != update["ref-name"]}


def _remove_snapshots(metadata: dict[str, Any], update: Update) -> None:
    gone = set(update["snapshot-ids"])
    metadata["snapshots"] = [snapshot for snapshot in metadata["snapshots"] if snapshot["snapshot-id"] not in gone]
    log = metadata.get("snapshot-log") or []
    # A gap would make an older snapshot look current for longer than it was, so what precedes the last gap goes too (as in Iceberg's Java).
    last_gap = max((place for place, entry in enumerate(log) if entry["snapshot-id"] in gone), default=-1)
    metadata["snapshot-log"] = log[last_gap + 1 :]
    for key in ("statistics", "partition-statistics"):
        if metadata.get(key):
            metadata[key] = [item for item in metadata[key] if item["snapshot-id"] not in gone]


def _set_properties(metadata: dict[str, Any], update: Update) -> None:
    metadata["properties"] = {**(metadata.get("properties") or {}), **update["updates"]}


def _remove_properties(metadata: dict[str, Any], update: Update) -> None:
    gone = set(update["removals"])
    metadata["properties"] = {key: value for key, value in (metadata.get("properties") or {}).items() if key not in gone}


_APPLY: dict[str, Callable[[dict[str, Any], Update], None]] = {
    "add-schema": _add_schema,
    "set-current-schema": _set_current_schema,
    "add-spec": _add_spec,
    "set-default-spec": _set_default_spec,
    "add-snapshot": _add_snapshot,
    "set-snapshot-ref": _set_snapshot_ref,
    "remove-snapshot-ref": _remove_snapshot_ref,
    "remove-snapshots": _remove_snapshots,
    "set-properties": _set_properties,
    "remove-properties": _remove_properties,
}


def _by_id(items: Sequence[Mapping[str, Any]], key: str, wanted: int) -> Mapping[str, Any]:
    return next(item for item in items if item[key] == wanted)
