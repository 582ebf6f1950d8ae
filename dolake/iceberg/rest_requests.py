"""The bodies of REST catalog requests: what they may hold, to the letter.

Bodies stay the dicts that were sent, so that nothing is lost or turned into something else on its way into a table's metadata;
the classes here only say which dicts are good. (PyIceberg's models of the same drop fields they do not know, take text for a
number, and make up what is missing: `set-current-schema` without an id.) An update or requirement that is not known, or has
a field that is not, is refused by name, as the specification asks: what is ignored would be lost.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

import msgspec
import orjson

from dolake.iceberg.rest_errors import CatalogRefusal, bad_request

T = TypeVar("T")
Int32 = Annotated[int, msgspec.Meta(ge=-(2**31), le=2**31 - 1)]
Int64 = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
Positive = Annotated[int, msgspec.Meta(ge=1, le=2**63 - 1)]
Text = Annotated[str, msgspec.Meta(min_length=1, max_length=4096)]
Strings = dict[str, str]

_OF_LATER_FORMATS = ("add-encryption-key", "remove-encryption-key")
_OF_VIEWS = ("add-view-version", "set-current-view-version", "assert-view-uuid")


class _Known(msgspec.Struct, rename=lambda name: name.rstrip("_").replace("_", "-"), forbid_unknown_fields=True):
    """Every field is known: one that is not is refused."""


class _Open(msgspec.Struct, rename=lambda name: name.replace("_", "-")):
    """An envelope: what is not known may stand beside."""


class TableIdentifier(_Open):
    namespace: list[str]
    name: str


class SnapshotSent(_Known):
    """`first-row-id`, `added-rows` and `key-id` belong to format version 3."""

    snapshot_id: Int64
    timestamp_ms: Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
    manifest_list: Text
    summary: Strings
    parent_snapshot_id: Int64 | None = None
    sequence_number: Int64 | None = None
    schema_id: Int32 | None = None
    first_row_id: Int64 | None = None
    added_rows: Int64 | None = None
    key_id: str | None = None


class Blob(_Known):
    type: str
    snapshot_id: Int64
    sequence_number: Int64
    fields: list[Int32]
    properties: Strings | None = None


class Statistics(_Known):
    snapshot_id: Int64
    statistics_path: Text
    file_size_in_bytes: Int64
    file_footer_size_in_bytes: Int64
    blob_metadata: list[Blob]
    key_metadata: str | None = None


class PartitionStatistics(_Known):
    snapshot_id: Int64
    statistics_path: Text
    file_size_in_bytes: Int64


class AssignUuid(_Known, tag_field="action", tag="assign-uuid"):
    uuid: str


class UpgradeFormatVersion(_Known, tag_field="action", tag="upgrade-format-version"):
    format_version: Int32


class AddSchema(_Known, tag_field="action", tag="add-schema"):
    schema: dict[str, Any]
    last_column_id: Int32 | None = None


class SetCurrentSchema(_Known, tag_field="action", tag="set-current-schema"):
    schema_id: Int32


class AddSpec(_Known, tag_field="action", tag="add-spec"):
    spec: dict[str, Any]


class SetDefaultSpec(_Known, tag_field="action", tag="set-default-spec"):
    spec_id: Int32


class AddSortOrder(_Known, tag_field="action", tag="add-sort-order"):
    sort_order: dict[str, Any]


class SetDefaultSortOrder(_Known, tag_field="action", tag="set-default-sort-order"):
    sort_order_id: Int32


class AddSnapshot(_Known, tag_field="action", tag="add-snapshot"):
    snapshot: SnapshotSent


class SetSnapshotRef(_Known, tag_field="action", tag="set-snapshot-ref"):
    ref_name: Text
    type: Literal["tag", "branch"]
    snapshot_id: Int64
    max_ref_age_ms: Positive | None = None
    max_snapshot_age_ms: Positive | None = None
    min_snapshots_to_keep: Positive | None = None


class RemoveSnapshots(_Known, tag_field="action", tag="remove-snapshots"):
    snapshot_ids: list[Int64]


class RemoveSnapshotRef(_Known, tag_field="action", tag="remove-snapshot-ref"):
    ref_name: Text


class SetLocation(_Known, tag_field="action", tag="set-location"):
    location: Text


class SetProperties(_Known, tag_field="action", tag="set-properties"):
    updates: Strings


class RemoveProperties(_Known, tag_field="action", tag="remove-properties"):
    removals: list[str]


class SetStatistics(_Known, tag_field="action", tag="set-statistics"):
    statistics: Statistics
    snapshot_id: Int64 | None = None


class RemoveStatistics(_Known, tag_field="action", tag="remove-statistics"):
    snapshot_id: Int64


class SetPartitionStatistics(_Known, tag_field="action", tag="set-partition-statistics"):
    partition_statistics: PartitionStatistics


class RemovePartitionStatistics(_Known, tag_field="action", tag="remove-partition-statistics"):
    snapshot_id: Int64


class RemovePartitionSpecs(_Known, tag_field="action", tag="remove-partition-specs"):
    spec_ids: list[Int32]


class RemoveSchemas(_Known, tag_field="action", tag="remove-schemas"):
    schema_ids: list[Int32]


class AssertCreate(_Known, tag_field="type", tag="assert-create"):
    pass


class AssertTableUuid(_Known, tag_field="type", tag="assert-table-uuid"):
    uuid: str


class AssertRefSnapshotId(_Known, tag_field="type", tag="assert-ref-snapshot-id"):
    ref: str
    snapshot_id: Int64 | None  # null: there must be no such ref. It is said, never left out.


class AssertLastAssignedFieldId(_Known, tag_field="type", tag="assert-last-assigned-field-id"):
    last_assigned_field_id: Int32


class AssertCurrentSchemaId(_Known, tag_field="type", tag="assert-current-schema-id"):
    current_schema_id: Int32


class AssertLastAssignedPartitionId(_Known, tag_field="type", tag="assert-last-assigned-partition-id"):
    last_assigned_partition_id: Int32


class AssertDefaultSpecId(_Known, tag_field="type", tag="assert-default-spec-id"):
    default_spec_id: Int32


class AssertDefaultSortOrderId(_Known, tag_field="type", tag="assert-default-sort-order-id"):
    default_sort_order_id: Int32


_UpdateSent = (
    *(AssignUuid, UpgradeFormatVersion, AddSchema, SetCurrentSchema, AddSpec, SetDefaultSpec, AddSortOrder, SetDefaultSortOrder),
    *(AddSnapshot, SetSnapshotRef, RemoveSnapshots, RemoveSnapshotRef, SetLocation, SetProperties, RemoveProperties, SetStatistics),
    *(RemoveStatistics, SetPartitionStatistics, RemovePartitionStatistics, RemovePartitionSpecs, RemoveSchemas),
)
_RequirementSent = (
    *(AssertCreate, AssertTableUuid, AssertRefSnapshotId, AssertLastAssignedFieldId, AssertCurrentSchemaId),
    *(AssertLastAssignedPartitionId, AssertDefaultSpecId, AssertDefaultSortOrderId),
)
UPDATES = {str(kind.__struct_config__.tag): kind for kind in _UpdateSent}
REQUIREMENTS = {str(kind.__struct_config__.tag): kind for kind in _RequirementSent}


class CommitTable(_Open):
    """Whether the updates and requirements are good is asked of each, by its name."""

    requirements: list[dict[str, Any]]
    updates: list[dict[str, Any]]
    identifier: TableIdentifier | None = None


class CommitTransaction(_Open):
    table_changes: list[CommitTable]


class CreateTable(_Open):
    name: str
    schema: dict[str, Any]
    location: str | None = None
    partition_spec: dict[str, Any] | None = None
    write_order: dict[str, Any] | None = None
    stage_create: bool | None = None
    properties: Strings | None = None


class RegisterTable(_Open):
    name: str
    metadata_location: Text
    overwrite: bool | None = None


class RenameTable(_Open):
    source: TableIdentifier
    destination: TableIdentifier


class CreateNamespace(_Open):
    namespace: list[str]
    properties: Strings | None = None


class UpdateNamespaceProperties(_Open):
    removals: list[str] | None = None
    updates: Strings | None = None


class ScanReport(_Open, tag_field="report-type", tag="scan-report"):
    table_name: str
    snapshot_id: Int64
    filter: Any
    schema_id: Int32
    projected_field_ids: list[Int32]
    projected_field_names: list[str]
    metrics: dict[str, Any]
    metadata: Strings | None = None


class CommitReport(_Open, tag_field="report-type", tag="commit-report"):
    table_name: str
    snapshot_id: Int64
    sequence_number: Int64
    operation: str
    metrics: dict[str, Any]
    metadata: Strings | None = None


Report = ScanReport | CommitReport


def decode(body: bytes, kind: Any) -> Any:
    """A body as the class that it must be. Raises CatalogRefusal (400) that says what is wrong, and where."""
    try:
        value = orjson.loads(body)  # Exact up to 64 bits; a larger number becomes a float, which no field of ours is.
    except ValueError as error:
        raise bad_request(f"the body is not JSON: {error}") from None
    return _converted(value, kind, "the body")


def decode_commit(body: bytes) -> CommitTable:
    """One table's commit. Raises CatalogRefusal (400)."""
    commit: CommitTable = decode(body, CommitTable)
    _require_known(commit)
    return commit


def decode_transaction(body: bytes) -> list[CommitTable]:
    """The commits of a transaction, each with its identifier. Raises CatalogRefusal (400)."""
    transaction: CommitTransaction = decode(body, CommitTransaction)
    for commit in transaction.table_changes:
        if commit.identifier is None:
            raise bad_request("each of `table-changes` has an `identifier`")
        _require_known(commit)
    return transaction.table_changes


def _require_known(commit: CommitTable) -> None:
    commit.requirements = [_known(one, "type", "requirement", REQUIREMENTS) for one in commit.requirements]
    commit.updates = [_known(one, "action", "update", UPDATES) for one in commit.updates]


def _known(value: Mapping[str, Any], field: str, what: str, kinds: Mapping[str, type]) -> dict[str, Any]:
    name = value.get(field)
    if not isinstance(name, str):
        raise bad_request(f"each {what} has a `{field}` (got {list(value)[:10]})")
    if name in _OF_LATER_FORMATS:
        raise bad_request(f"the {what} `{name}` belongs to format version 3: tables here have version 2")
    if name in _OF_VIEWS:
        raise bad_request(f"the {what} `{name}` is one of views: there are none here")
    if name not in kinds:
        raise bad_request(f"the {what} `{name[:100]}` is not known here")
    _converted(value, kinds[name], f"the {what} `{name}`")
    # null is how some clients leave an optional field out; in metadata it would stop others from reading it.
    return {key: _without_nulls(item) for key, item in value.items() if item is not None or key == "snapshot-id"}


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value


def _converted(value: Any, kind: Any, what: str) -> Any:
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise _unfit(what, str(error)) from None


def _unfit(what: str, words: str) -> CatalogRefusal:
    """msgspec's words, but for the path's form: `$.snapshot.snapshot-id` is `snapshot.snapshot-id`."""
    sentence = re.sub(r"`\$\.?(.*?)`", lambda match: f"`{match[1]}`" if match[1] else "its top", words)
    return bad_request(f"{what} is wrong: {sentence[:1000]}")
