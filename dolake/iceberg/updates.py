"""Every update that a REST commit may make to a table of format version 2, and what each must not.

As in Iceberg's reference catalog: schemas, specs and sort orders get their ids here (the one that is there already, or the
next), whatever the client called them; -1 is the one last added; an update sees those before it. One that is wrong in
itself is refused (400); one that is only late, because somebody else came first, is a failed commit (409).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from dolake.iceberg import snapshot_updates
from dolake.iceberg.metadata import FORMAT_VERSION, LoadedTable, Metadata, Update, highest_field_id
from dolake.iceberg.rest_errors import bad_request
from dolake.iceberg.structure import checked_order, checked_schema, checked_spec, require_together
from dolake.iceberg.table_change import LAST_ADDED, TableChange, empty_metadata, find_same

_UUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_PREVIOUS_VERSIONS = "write.metadata.previous-versions-max"
_PREVIOUS_VERSIONS_MAX = 100
_UNSORTED = {"order-id": 0, "fields": []}


def change_table(base: LoadedTable, updates: Sequence[Update], root: str, now_ms: int) -> dict[str, Any]:
    """The metadata that follows `base`. Raises CatalogRefusal for updates that are wrong, or late."""
    change = TableChange(dict(base.metadata), root, now_ms)
    _require_version(base.metadata, updates)
    _apply(change, updates)
    entry = {"metadata-file": base.metadata_location, "timestamp-ms": base.metadata["last-updated-ms"]}
    change.metadata["metadata-log"] = [*change.items("metadata-log"), entry][-_kept_versions(change.metadata) :]
    return change.metadata


def create_table(updates: Sequence[Update], *, uuid: str, location: str, root: str, now_ms: int) -> dict[str, Any]:
    """The metadata of a table that a commit makes; `uuid` and `location` are for one that does not say them."""
    change = TableChange(empty_metadata(uuid, location, now_ms), root, now_ms, is_new=True)
    _apply(change, updates)
    if change.metadata["current-schema-id"] == LAST_ADDED:
        raise bad_request("a new table has a schema: add-schema and set-current-schema")
    return change.metadata


def checked_properties(properties: Mapping[str, str]) -> dict[str, str]:
    """What a new table's properties may be, without `format-version`, which asks for one. Raises CatalogRefusal (400)."""
    version = properties.get("format-version", str(FORMAT_VERSION))
    if version != str(FORMAT_VERSION):
        raise bad_request(f"format-version: tables here have version {FORMAT_VERSION} (got {version[:20]!r})")
    kept = {key: value for key, value in properties.items() if key != "format-version"}
    _require_kept_versions(kept)
    return kept


def _apply(change: TableChange, updates: Sequence[Update]) -> None:
    change.metadata["last-updated-ms"] = max(change.metadata["last-updated-ms"], _time_of(change, updates))
    for update in updates:
        _APPLY[update["action"]](change, update)
    if change.is_new:
        _complete(change)
    if change.structure_changed:
        require_together(change.metadata)


def _time_of(change: TableChange, updates: Sequence[Update]) -> int:
    """A snapshot brings its own time, and a change without one has ours."""
    return 0 if any(update["action"] == "add-snapshot" for update in updates) else change.now_ms


def _complete(change: TableChange) -> None:
    """A new table is unpartitioned and unsorted unless it says otherwise."""
    if change.metadata["current-schema-id"] == LAST_ADDED:
        return
    for key, unset, empty in (("partition-specs", "default-spec-id", {"spec-id": 0, "fields": []}), _ORDERS):
        if change.metadata[unset] == LAST_ADDED:
            id_name = next(iter(empty))
            if find_same(change.items(key), id_name, empty) is None:
                change.append(key, {**empty, id_name: _next_id(change, key, id_name)})
            change.metadata[unset] = find_same(change.items(key), id_name, empty)


_ORDERS: tuple[str, str, dict[str, Any]] = ("sort-orders", "default-sort-order-id", _UNSORTED)


def _require_version(metadata: Metadata, updates: Sequence[Update]) -> None:
    version = metadata["format-version"]
    if version > FORMAT_VERSION:
        raise bad_request(f"this table has format version {version}: only tables of version {FORMAT_VERSION} are changed here")
    if version < FORMAT_VERSION and updates and updates[0]["action"] != "upgrade-format-version":
        raise bad_request(f"this table has format version {version}: upgrade it first, by upgrade-format-version to {FORMAT_VERSION}")


def _assign_uuid(change: TableChange, update: Update) -> None:
    uuid = str(update["uuid"]).lower()
    if not _UUID.fullmatch(uuid):
        raise bad_request(f"assign-uuid: not a uuid (got {uuid[:100]!r})")
    if not change.is_new and uuid != str(change.metadata["table-uuid"]).lower():
        raise bad_request("assign-uuid: a table keeps the uuid that it was made with")
    change.metadata["table-uuid"] = uuid


def _upgrade_format_version(change: TableChange, update: Update) -> None:
    if update["format-version"] != FORMAT_VERSION:
        raise bad_request(f"upgrade-format-version: only to {FORMAT_VERSION} (got {update['format-version']})")
    metadata = change.metadata
    if metadata["format-version"] == FORMAT_VERSION:
        return
    schema, fields = metadata.pop("schema", None), metadata.pop("partition-spec", None)
    schema_id = metadata.setdefault("current-schema-id", 0)
    if not metadata.get("schemas"):
        metadata["schemas"] = [{**(schema or {}), "schema-id": schema_id}]
    spec_id = metadata.setdefault("default-spec-id", 0)
    if not metadata.get("partition-specs"):
        metadata["partition-specs"] = [{"spec-id": spec_id, "fields": fields or []}]
    used = [field.get("field-id", 999) for spec in metadata["partition-specs"] for field in spec["fields"]]
    metadata.setdefault("last-partition-id", max(used, default=999))
    metadata.setdefault("sort-orders", [_UNSORTED])
    metadata.setdefault("default-sort-order-id", 0)
    metadata["snapshots"] = [{"sequence-number": 0, **snapshot} for snapshot in change.items("snapshots")]
    metadata.update({"format-version": FORMAT_VERSION, "last-sequence-number": 0})
    change.structure_changed = True


def _add_schema(change: TableChange, update: Update) -> None:
    schema = update["schema"]
    checked_schema(schema)
    highest, last = highest_field_id(schema), change.metadata["last-column-id"]
    said = update.get("last-column-id")
    if said is not None and said < highest:
        raise bad_request(f"add-schema: last-column-id {said} is below the schema's own highest field id, {highest}")
    same = _same_schema_id(change, schema)
    change.added["schemas"] = _next_id(change, "schemas", "schema-id") if same is None else same
    if same is None:
        change.append("schemas", {**schema, "schema-id": change.added["schemas"]})
    change.metadata["last-column-id"] = max(last, highest, said or 0)


def _same_schema_id(change: TableChange, schema: Mapping[str, Any]) -> int | None:
    # Identifier fields that are left out are none.
    for other in change.items("schemas"):
        if other["fields"] == schema["fields"] and (other.get("identifier-field-ids") or []) == (schema.get("identifier-field-ids") or []):
            return int(other["schema-id"])
    return None


def _set_current_schema(change: TableChange, update: Update) -> None:
    chosen = change.chosen(update["schema-id"], "schemas", "schema-id", "set-current-schema")
    change.structure_changed = change.structure_changed or chosen != change.metadata["current-schema-id"]
    change.metadata["current-schema-id"] = chosen


def _add_spec(change: TableChange, update: Update) -> None:
    checked_spec(update["spec"])
    fields = _with_field_ids(change, update["spec"]["fields"])
    same = find_same(change.items("partition-specs"), "spec-id", {"fields": fields})
    change.added["partition-specs"] = _next_id(change, "partition-specs", "spec-id") if same is None else same
    if same is None:
        change.append("partition-specs", {"spec-id": change.added["partition-specs"], "fields": fields})
    last = change.metadata["last-partition-id"]
    change.metadata["last-partition-id"] = max([last, *(field["field-id"] for field in fields)])


def _with_field_ids(change: TableChange, sent: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The fields with an id each: the one that was sent, that of the same field of an earlier spec, or the next."""
    known = {field["field-id"]: field for spec in change.items("partition-specs") for field in spec["fields"]}
    by_use = {(field["source-id"], field["transform"]): number for number, field in known.items()}
    given = [field["field-id"] for field in sent if "field-id" in field]
    if len(set(given)) < len(given):
        raise bad_request("add-spec: two of its fields have one id")
    fields, last = [], max([change.metadata["last-partition-id"], *given])
    for field in sent:
        use = (field["source-id"], field["transform"])
        number = field.get("field-id", by_use.get(use))
        if number is None:
            number = last = last + 1
        before = known.get(number)
        if before is not None and (before["source-id"], before["transform"]) != use:
            raise bad_request(f"add-spec: the field id {number} stands for {before['name']} already, and never for something else")
        fields.append({"source-id": use[0], "field-id": number, "transform": use[1], "name": field["name"]})
    return fields


def _set_default_spec(change: TableChange, update: Update) -> None:
    chosen = change.chosen(update["spec-id"], "partition-specs", "spec-id", "set-default-spec")
    change.structure_changed = change.structure_changed or chosen != change.metadata["default-spec-id"]
    change.metadata["default-spec-id"] = chosen


def _add_sort_order(change: TableChange, update: Update) -> None:
    checked_order(update["sort-order"])
    fields = update["sort-order"]["fields"]
    same = find_same(change.items("sort-orders"), "order-id", {"fields": fields})
    # 0 is the order of what has none, and of nothing else.
    number = same if same is not None else max(1, _next_id(change, "sort-orders", "order-id")) if fields else 0
    change.added["sort-orders"] = number
    if same is None:
        change.append("sort-orders", {"order-id": number, "fields": fields})


def _set_default_sort_order(change: TableChange, update: Update) -> None:
    chosen = change.chosen(update["sort-order-id"], "sort-orders", "order-id", "set-default-sort-order")
    change.structure_changed = change.structure_changed or chosen != change.metadata["default-sort-order-id"]
    change.metadata["default-sort-order-id"] = chosen


def _next_id(change: TableChange, key: str, id_name: str) -> int:
    return max(change.ids(key, id_name), default=-1) + 1


def _remove_schemas(change: TableChange, update: Update) -> None:
    _remove_unused(change, "schemas", "schema-id", set(update["schema-ids"]), "current-schema-id", "remove-schemas")


def _remove_partition_specs(change: TableChange, update: Update) -> None:
    _remove_unused(change, "partition-specs", "spec-id", set(update["spec-ids"]), "default-spec-id", "remove-partition-specs")


def _remove_unused(change: TableChange, key: str, id_name: str, gone: set[int], current: str, what: str) -> None:
    if change.metadata[current] in gone:
        raise bad_request(f"{what}: {change.metadata[current]} is the one in force")
    if unknown := gone - change.ids(key, id_name):
        raise bad_request(f"{what}: there is none with the id {min(unknown)}")
    change.metadata[key] = [item for item in change.items(key) if item[id_name] not in gone]


def _set_location(change: TableChange, update: Update) -> None:
    location = update["location"].rstrip("/")
    change.require_inside(location, "set-location")
    change.metadata["location"] = location


def _set_properties(change: TableChange, update: Update) -> None:
    _require_kept_versions(update["updates"])
    change.metadata["properties"] = {**(change.metadata.get("properties") or {}), **update["updates"]}


def _remove_properties(change: TableChange, update: Update) -> None:
    gone = set(update["removals"])
    properties = change.metadata.get("properties") or {}
    change.metadata["properties"] = {key: value for key, value in properties.items() if key not in gone}


def _require_kept_versions(properties: Mapping[str, str]) -> None:
    """A value that is no number would stop every commit to the table from then on."""
    value = properties.get(_PREVIOUS_VERSIONS)
    if value is not None and not re.fullmatch(r"[0-9]{1,6}", value):
        raise bad_request(f"{_PREVIOUS_VERSIONS} is a whole number below a million (got {value[:50]!r})")


def _kept_versions(metadata: Metadata) -> int:
    value = str((metadata.get("properties") or {}).get(_PREVIOUS_VERSIONS, _PREVIOUS_VERSIONS_MAX))
    return max(1, int(value)) if value.isdigit() else _PREVIOUS_VERSIONS_MAX


_APPLY: dict[str, Callable[[TableChange, Update], None]] = {
    "assign-uuid": _assign_uuid,
    "upgrade-format-version": _upgrade_format_version,
    "add-schema": _add_schema,
    "set-current-schema": _set_current_schema,
    "add-spec": _add_spec,
    "set-default-spec": _set_default_spec,
    "add-sort-order": _add_sort_order,
    "set-default-sort-order": _set_default_sort_order,
    "add-snapshot": snapshot_updates.add_snapshot,
    "set-snapshot-ref": snapshot_updates.set_snapshot_ref,
    "remove-snapshots": snapshot_updates.remove_snapshots,
    "remove-snapshot-ref": snapshot_updates.remove_snapshot_ref,
    "set-location": _set_location,
    "set-properties": _set_properties,
    "remove-properties": _remove_properties,
    "set-statistics": snapshot_updates.set_statistics,
    "remove-statistics": snapshot_updates.remove_statistics,
    "set-partition-statistics": snapshot_updates.set_partition_statistics,
    "remove-partition-statistics": snapshot_updates.remove_partition_statistics,
    "remove-partition-specs": _remove_partition_specs,
    "remove-schemas": _remove_schemas,
}
