"""What a commit will say, decided from a loaded table and a delta alone: no I/O, no clock, no randomness.

`plan_commit` turns a loaded table and the delta into requirements and updates, once `judging.judge` has said that it is to be
committed. Both must be given the same `LoadedTable`: a check on one state and a swap against another is how a stale writer doubles rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from dolake.iceberg.history import plan_history
from dolake.iceberg.metadata import (
    COMMIT_ID,
    EPOCH,
    INSTANCE,
    MAIN,
    OFFSET_PREFIX,
    LoadedTable,
    Requirement,
    Update,
    same_schema,
)
from dolake.iceberg.partition import same_spec, schema_of_spec, stored_partition
from dolake.iceberg.summary import NO_FILES, FileCounts, summarize
from dolake.model import OffsetRange, TableName

_ALL = 1 << 31  # more snapshots than there can be


@dataclass(frozen=True)
class NewFile:
    """A Parquet file that lies in the store and is in no snapshot yet.

    `partition` holds one Python value for each field of the spec, in its order; `parquet` is the `pyarrow.parquet.FileMetaData`
    that its encoder made.
    """

    location: str
    size_bytes: int
    row_count: int
    parquet: Any
    partition: tuple[Any, ...] = ()


@dataclass(frozen=True)
class NewDeletes:
    """A Parquet file of position deletes that lies in the store and is in no snapshot yet.

    All data files that it names are of one spec and partition: the table's spec `spec_id`, and `partition` as manifests store it
    (`LiveFile.partition`, `stored_partition`), not in Python values. `first_path` and `last_path` are the lowest and the highest
    `file_path` in it, whole; `row_count` is how many rows it deletes.
    """

    location: str
    size_bytes: int
    row_count: int
    first_path: str
    last_path: str
    spec_id: int
    partition: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Replacement:
    """Files that leave the table for others with the very same rows (compaction), or with fewer (`same_rows` False: a TTL).

    `removed` are locations of data and delete files that are live in the base, none with a higher data sequence number than
    `removed_sequence_max`. The data files that come have the number `sequence_number`, that of the snapshot they were read from:
    equality deletes that somebody else has committed since then still hold. They are of the table's schema `schema` and spec `spec_id`.
    """

    removed: frozenset[str]
    removed_sequence_max: int
    sequence_number: int
    schema: Mapping[str, Any]
    spec_id: int
    same_rows: bool = True


@dataclass(frozen=True)
class Delta:
    """One flush of one table: the rows of `ranges`, to be applied once.

    `ranges`: log id → offsets; `start` is what the writer last knew committed (0 for a log that never fed the table), `end`
    what will be. `schema` and `spec` (Iceberg JSON) are those that `files` were written with; `base_schema_id` and `spec_id`
    were the table's when the flush was planned, and `spec` None is that one. `epoch` and `instance` are the writer's; its first
    flush of a table carries the table's epoch + 1, and claims it. `commit_id` names this delta through all attempts.
    `only_as_named`: the same offsets committed under another name were decided by somebody else, perhaps otherwise.
    `known`: the table's offsets in all logs when the flush was planned, where what it says beside its rows (counts, schemas)
    holds on top of exactly those; None where others' logs do not matter.
    `deletes` come in with `files`, in one snapshot. `removes_all`: whatever is live in the base leaves the table with it.
    `restores`: the snapshot becomes what that one was, file by file, and nothing else comes with it; `offsets` are then what the
    table's are set to, lower ones too.
    `replaces`: some files go and others come in their place; with `on_head_only`.
    `tag`: what else names the snapshot, a tag of that name; empty for none.
    `expires`: older snapshots go with it, if there are more than are kept; their age counts in any case.
    `on_head_only`: what is deleted was looked up in snapshot `head_id` (None: in a table without one), and is right on top of
    no other.
    """

    table: TableName
    table_uuid: str
    ranges: Mapping[str, OffsetRange]
    files: tuple[NewFile, ...]
    schema: Mapping[str, Any]
    base_schema_id: int
    spec_id: int
    epoch: int
    instance: str
    commit_id: str
    spec: Mapping[str, Any] | None = None
    properties: Mapping[str, str] = field(default_factory=dict)
    summary: Mapping[str, str] = field(default_factory=dict)
    only_as_named: bool = False
    known: Mapping[str, int] | None = None
    deletes: tuple[NewDeletes, ...] = ()
    removes_all: bool = False
    restores: int | None = None
    replaces: Replacement | None = None
    offsets: Mapping[str, int] = field(default_factory=dict)
    on_head_only: bool = False
    head_id: int | None = None
    tag: str = ""
    expires: bool = True

    @property
    def is_claim(self) -> bool:
        """Whether it says nothing but whose the table is."""
        return self.is_still and not self.offsets and all(span.end == span.start for span in self.ranges.values())

    @property
    def is_still(self) -> bool:
        """Whether its snapshot has the very rows of the one before."""
        return not (self.files or self.deletes or self.removes_all or self.restores is not None or self.replaces is not None)

    def objects(self) -> dict[str, int]:
        """Location → size in bytes of every file that it brings."""
        data = {file.location: file.size_bytes for file in self.files}
        return data | {deletes.location: deletes.size_bytes for deletes in self.deletes}


@dataclass(frozen=True)
class CommitPolicy:
    """How much history a table keeps: the newest snapshots of `main`, and one tagged snapshot an hour.

    Snapshots older than `snapshots_age_s_max` are not kept for being among the newest; 0: whatever their age.
    """

    snapshots_kept: int = 100
    tags_kept_days: int = 7
    snapshots_age_s_max: int = 0


@dataclass(frozen=True)
class CommitPlan:
    requirements: tuple[Requirement, ...]
    updates: tuple[Update, ...]


def find_spec(base: LoadedTable, delta: Delta, spec_id: int) -> Mapping[str, Any] | None:
    """Of the table's, or the one that the delta brings."""
    specs = (*base.metadata["partition-specs"], plan_spec(base, delta)[0])
    return next((spec for spec in specs if spec["spec-id"] == spec_id), None)


def shape_of_spec(base: LoadedTable, delta: Delta, spec_id: int) -> tuple[Mapping[str, Any], Mapping[str, Any]] | None:
    """A schema that tells the types of the spec's partition values, and the spec. None where nobody knows them any more."""
    spec = find_spec(base, delta, spec_id)
    schema = None if spec is None else schema_of_spec(base.metadata, spec, plan_schema(base, delta)[0])
    return None if spec is None or schema is None else (schema, spec)


def plan_schema(base: LoadedTable, delta: Delta) -> tuple[Mapping[str, Any], list[Update]]:
    """The schema as the table will hold it, with its id, and the updates that make it current."""
    if same_schema(base.schema, delta.schema):
        return base.schema, []
    for known in base.metadata["schemas"]:
        if same_schema(known, delta.schema):
            return known, [{"action": "set-current-schema", "schema-id": known["schema-id"]}]
    next_id = max(known["schema-id"] for known in base.metadata["schemas"]) + 1
    schema = {**delta.schema, "schema-id": next_id}
    return schema, [{"action": "add-schema", "schema": schema}, {"action": "set-current-schema", "schema-id": -1}]


def plan_spec(base: LoadedTable, delta: Delta) -> tuple[Mapping[str, Any], list[Update]]:
    """The partition spec the snapshot's files have, with the id it has or gets, and the updates that make it the table's."""
    if delta.spec is None or same_spec(base.spec, delta.spec):
        return base.spec, []
    for known in base.metadata["partition-specs"]:
        if same_spec(known, delta.spec):
            return known, [{"action": "set-default-spec", "spec-id": known["spec-id"]}]
    next_id = max(known["spec-id"] for known in base.metadata["partition-specs"]) + 1
    spec = {**delta.spec, "spec-id": next_id}
    return spec, [{"action": "add-spec", "spec": spec}, {"action": "set-default-spec", "spec-id": -1}]


def plan_commit(
    base: LoadedTable,
    delta: Delta,
    *,
    snapshot_id: int,
    manifest_list: str,
    now_ms: int,
    policy: CommitPolicy,
    removed: FileCounts = NO_FILES,
    restored: FileCounts = NO_FILES,
) -> CommitPlan:
    """One snapshot with the delta's files, its offsets and its claim, and with it the history that has had its time.

    `removed` are the files that the snapshot's manifests take out of the table, `restored` those that they bring back.
    """
    schema, schema_updates = plan_schema(base, delta)
    _, spec_updates = plan_spec(base, delta)
    # Never backwards, whatever the clock does: Spark refuses a table whose snapshots go back in time.
    timestamp_ms = max(now_ms, base.metadata["last-updated-ms"] + 1)
    offsets = {**base.offsets(), **{log: span.end for log, span in delta.ranges.items()}, **delta.offsets}
    stated = {
        **{OFFSET_PREFIX + log: str(offset) for log, offset in sorted(offsets.items())},
        EPOCH: str(delta.epoch),
        INSTANCE: delta.instance,
    }
    snapshot = {
        "snapshot-id": snapshot_id,
        "sequence-number": base.metadata["last-sequence-number"] + 1,
        "timestamp-ms": timestamp_ms,
        "manifest-list": manifest_list,
        "schema-id": schema["schema-id"],
        "summary": {**delta.summary, **_counts(base, delta, removed, restored), **stated, COMMIT_ID: delta.commit_id},
    }
    if base.head_id is not None:
        snapshot["parent-snapshot-id"] = base.head_id
    updates: list[Update] = [
        *schema_updates,
        *spec_updates,
        {"action": "add-snapshot", "snapshot": snapshot},
        {"action": "set-snapshot-ref", "ref-name": MAIN, "type": "branch", **_branch_retention(base), "snapshot-id": snapshot_id},
        *([{"action": "set-snapshot-ref", "ref-name": delta.tag, "type": "tag", "snapshot-id": snapshot_id}] if delta.tag else ()),
        *plan_history(
            base,
            snapshot,
            snapshots_kept=policy.snapshots_kept if delta.expires else _ALL,
            tags_kept_days=policy.tags_kept_days,
            age_s_max=policy.snapshots_age_s_max,
            tags=not delta.is_claim,
        ),
        {"action": "set-properties", "updates": {**delta.properties, **stated}},
    ]
    return CommitPlan(tuple(_requirements(base, changes_spec=bool(spec_updates))), tuple(updates))


def _requirements(base: LoadedTable, *, changes_spec: bool) -> list[Requirement]:
    requirements: list[Requirement] = [
        {"type": "assert-table-uuid", "uuid": base.uuid},
        {"type": "assert-ref-snapshot-id", "ref": MAIN, "snapshot-id": base.head_id},
    ]
    if changes_spec:  # The head does not move where somebody else partitions the table anew.
        requirements += [
            {"type": "assert-default-spec-id", "default-spec-id": base.metadata["default-spec-id"]},
            {"type": "assert-last-assigned-partition-id", "last-assigned-partition-id": base.metadata["last-partition-id"]},
        ]
    return requirements


def shape_of_files(base: LoadedTable, delta: Delta) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Schema and spec of the data files that come in, with their ids."""
    if delta.replaces is None:
        return plan_schema(base, delta)[0], plan_spec(base, delta)[0]
    spec = find_spec(base, delta, delta.replaces.spec_id)
    assert spec is not None  # A table keeps the specs of its files, and the judgement has looked.
    return delta.replaces.schema, spec


def _counts(base: LoadedTable, delta: Delta, removed: FileCounts, restored: FileCounts) -> dict[str, str]:
    schema, spec = shape_of_files(base, delta)
    partitions = {(spec["spec-id"], stored_partition(schema, spec, file.partition)) for file in delta.files}
    added = FileCounts(
        data_files=len(delta.files),
        rows=sum(file.row_count for file in delta.files),
        size_bytes=sum(delta.objects().values()),
        position_delete_files=len(delta.deletes),
        position_deletes=sum(deletes.row_count for deletes in delta.deletes),
        partitions=frozenset(partitions | {(deletes.spec_id, deletes.partition) for deletes in delta.deletes}),
    )
    if base.head is None or delta.removes_all:  # What is removed is all that there was, whatever the snapshot before says.
        return summarize(added, removed, removed.totals())
    counts = summarize(added + restored, removed, base.head["summary"])
    if delta.replaces is not None and delta.replaces.same_rows:
        return {**counts, "operation": "replace"}
    # Whatever came and went: files that come back are old ones, which nobody finds who looks for what was appended.
    return counts if delta.restores is None else {**counts, "operation": "overwrite"}


def _branch_retention(base: LoadedTable) -> dict[str, Any]:
    """What somebody set for how long `main`'s snapshots live: setting the ref anew must not lose it."""
    ref = (base.metadata.get("refs") or {}).get(MAIN, {})
    return {key: value for key, value in ref.items() if key not in ("snapshot-id", "type")}
