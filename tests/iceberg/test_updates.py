"""Every update of the REST catalog: what it makes of a table, and when it is refused. No catalog and no files here."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from pyiceberg.table.metadata import TableMetadataUtil

from dolake.iceberg.metadata import LoadedTable, new_table
from dolake.iceberg.requirements import breached
from dolake.iceberg.rest_errors import CatalogRefusal
from dolake.iceberg.rest_requests import REQUIREMENTS, UPDATES, decode_commit
from dolake.iceberg.updates import change_table, create_table
from dolake.model import TableName

ROOT = "file:///lake"
LOCATION = f"{ROOT}/shop/orders"
UUID = "6f8c8a3e-7d7a-4c0e-9a4b-1d2f3a4b5c6d"
NOW_MS = 1_750_000_100_000
BIG = 2**62 + 1
FIELDS: list[dict[str, Any]] = [
    {"id": 1, "name": "id", "required": True, "type": "long"},
    {"id": 2, "name": "name", "required": False, "type": "string"},
    {"id": 3, "name": "at", "required": False, "type": "timestamptz"},
]
SCHEMA = {"type": "struct", "schema-id": 0, "fields": FIELDS}
WIDER = {"type": "struct", "schema-id": 7, "fields": [*FIELDS, {"id": 4, "name": "qty", "required": False, "type": "long"}]}
SPEC = {"fields": [{"source-id": 3, "transform": "day", "name": "at_day"}]}
ORDER = {"order-id": 5, "fields": [{"source-id": 1, "transform": "identity", "direction": "asc", "null-order": "nulls-first"}]}
STATISTICS = {
    "snapshot-id": BIG,
    "statistics-path": f"{LOCATION}/metadata/stats.puffin",
    "file-size-in-bytes": 10,
    "file-footer-size-in-bytes": 5,
    "blob-metadata": [],
}
PARTITION_STATISTICS = {"snapshot-id": BIG, "statistics-path": f"{LOCATION}/metadata/stats.parquet", "file-size-in-bytes": 10}


def snapshot(number: int = 2, **more: Any) -> dict[str, Any]:
    """A snapshot on top of `base()`'s."""
    made = {
        "snapshot-id": BIG + number,
        "parent-snapshot-id": BIG,
        "sequence-number": number,
        "timestamp-ms": NOW_MS + number,
        "manifest-list": f"{LOCATION}/metadata/snap-{number}.avro",
        "summary": {"operation": "append"},
        "schema-id": 0,
        **more,
    }
    return {key: value for key, value in made.items() if value is not ...}


def base(**more: Any) -> LoadedTable:
    """One snapshot on main, a tag on it."""
    metadata = new_table(uuid=UUID, location=LOCATION, schema=SCHEMA, properties={"a": "1"}, now_ms=NOW_MS - 1000)
    first = snapshot(1, **{"snapshot-id": BIG, "parent-snapshot-id": ..., "timestamp-ms": NOW_MS - 500})
    metadata |= {
        "snapshots": [first],
        "current-snapshot-id": BIG,
        "last-sequence-number": 1,
        "last-updated-ms": NOW_MS - 500,
        "refs": {"main": {"type": "branch", "snapshot-id": BIG}, "v1": {"type": "tag", "snapshot-id": BIG}},
        "snapshot-log": [{"snapshot-id": BIG, "timestamp-ms": NOW_MS - 500}],
        **more,
    }
    return LoadedTable(TableName("shop", "orders"), metadata, f"{LOCATION}/metadata/00001-x.metadata.json")


def update(action: str, **fields: Any) -> dict[str, Any]:
    return {"action": action, **{name.replace("_", "-"): value for name, value in fields.items()}}


def changed(*updates: dict[str, Any], table: LoadedTable | None = None) -> dict[str, Any]:
    """The metadata after the updates, as they come off the wire; PyIceberg reads it, and what was before is as it was."""
    import orjson

    table = table or base()
    before = copy.deepcopy(table.metadata)
    sent = decode_commit(orjson.dumps({"requirements": [], "updates": list(updates)})).updates
    after = change_table(table, sent, ROOT, NOW_MS)
    assert table.metadata == before
    TableMetadataUtil.parse_obj(copy.deepcopy(after))
    return after


TO_NEW = update("set-snapshot-ref", ref_name="main", type="branch", snapshot_id=BIG + 2)
ADD = update("add-snapshot", snapshot=snapshot())


def test_a_snapshot_is_added_and_becomes_the_current_one() -> None:
    after = changed(ADD, TO_NEW)
    assert [one["snapshot-id"] for one in after["snapshots"]] == [BIG, BIG + 2]
    assert (after["current-snapshot-id"], after["last-sequence-number"], after["last-updated-ms"]) == (BIG + 2, 2, NOW_MS + 2)
    assert after["snapshot-log"][-1] == {"snapshot-id": BIG + 2, "timestamp-ms": NOW_MS + 2}
    assert after["metadata-log"] == [{"metadata-file": base().metadata_location, "timestamp-ms": NOW_MS - 500}]


def test_a_snapshot_may_be_staged_without_a_name() -> None:
    after = changed(ADD)
    assert after["current-snapshot-id"] == BIG
    assert len(after["snapshots"]) == 2
    assert after["snapshot-log"] == base().metadata["snapshot-log"]


def test_a_schema_gets_the_next_id_and_the_one_that_is_there_is_used_again() -> None:
    after = changed(update("add-schema", schema=WIDER), update("set-current-schema", schema_id=-1))
    assert [one["schema-id"] for one in after["schemas"]] == [0, 1]
    assert (after["current-schema-id"], after["last-column-id"]) == (1, 4)
    again = LoadedTable(TableName("shop", "orders"), after, "x")
    back = changed(update("add-schema", schema={**SCHEMA, "schema-id": 9}), update("set-current-schema", schema_id=-1), table=again)
    assert [one["schema-id"] for one in back["schemas"]] == [0, 1]
    assert (back["current-schema-id"], back["last-column-id"]) == (0, 4)


def test_a_spec_gets_field_ids_and_those_of_a_field_that_was_there_are_kept() -> None:
    after = changed(update("add-spec", spec=SPEC), update("set-default-spec", spec_id=-1))
    assert after["partition-specs"][-1] == {
        "spec-id": 1,
        "fields": [{"source-id": 3, "field-id": 1000, "transform": "day", "name": "at_day"}],
    }
    assert (after["default-spec-id"], after["last-partition-id"]) == (1, 1000)
    again = LoadedTable(TableName("shop", "orders"), after, "x")
    wider = {"fields": [*SPEC["fields"], {"source-id": 1, "transform": "bucket[4]", "name": "id_bucket"}]}
    both = changed(update("add-spec", spec=wider), table=again)
    assert [field["field-id"] for field in both["partition-specs"][-1]["fields"]] == [1000, 1001]
    assert both["last-partition-id"] == 1001
    same = changed(update("add-spec", spec=SPEC), update("set-default-spec", spec_id=-1), table=again)
    assert len(same["partition-specs"]) == 2


def test_a_sort_order_gets_the_next_id_and_0_is_for_none() -> None:
    after = changed(update("add-sort-order", sort_order=ORDER), update("set-default-sort-order", sort_order_id=-1))
    assert [one["order-id"] for one in after["sort-orders"]] == [0, 1]
    assert after["default-sort-order-id"] == 1
    again = LoadedTable(TableName("shop", "orders"), after, "x")
    none = {"order-id": 3, "fields": []}
    back = changed(update("add-sort-order", sort_order=none), update("set-default-sort-order", sort_order_id=-1), table=again)
    assert (len(back["sort-orders"]), back["default-sort-order-id"]) == (2, 0)


def test_refs_are_set_moved_and_removed() -> None:
    branch = update("set-snapshot-ref", ref_name="dev", type="branch", snapshot_id=BIG, min_snapshots_to_keep=3, max_ref_age_ms=None)
    after = changed(branch, update("remove-snapshot-ref", ref_name="v1"), update("remove-snapshot-ref", ref_name="never"))
    assert after["refs"] == {
        "main": {"type": "branch", "snapshot-id": BIG},
        "dev": {"type": "branch", "snapshot-id": BIG, "min-snapshots-to-keep": 3},
    }
    gone = changed(update("remove-snapshot-ref", ref_name="main"))
    assert (gone["current-snapshot-id"], gone["snapshot-log"]) == (-1, [])


def test_removed_snapshots_take_their_statistics_and_the_log_before_them_along() -> None:
    table = LoadedTable(TableName("shop", "orders"), changed(ADD, TO_NEW), "x")
    table = LoadedTable(table.name, changed(update("set-statistics", statistics=STATISTICS), table=table), "x")
    untag = update("remove-snapshot-ref", ref_name="v1")
    after = changed(untag, update("remove-snapshots", snapshot_ids=[BIG, 5]), table=table)
    assert [one["snapshot-id"] for one in after["snapshots"]] == [BIG + 2]
    assert (after["statistics"], [one["snapshot-id"] for one in after["snapshot-log"]]) == ([], [BIG + 2])


def test_statistics_are_set_replaced_and_removed() -> None:
    larger = {**STATISTICS, "file-size-in-bytes": 11}
    updates = (
        *(update("set-statistics", statistics=STATISTICS), update("set-statistics", statistics=larger, snapshot_id=BIG)),
        update("set-partition-statistics", partition_statistics=PARTITION_STATISTICS),
    )
    after = changed(*updates)
    assert (after["statistics"], after["partition-statistics"]) == ([larger], [PARTITION_STATISTICS])
    table = LoadedTable(TableName("shop", "orders"), after, "x")
    gone = changed(update("remove-statistics", snapshot_id=BIG), update("remove-partition-statistics", snapshot_id=BIG), table=table)
    assert (gone["statistics"], gone["partition-statistics"]) == ([], [])


def test_properties_and_the_location_change() -> None:
    moved = update("set-location", location=f"{ROOT}/shop/elsewhere/")
    after = changed(update("set-properties", updates={"b": "2"}), update("remove-properties", removals=["a", "never"]), moved)
    assert (after["properties"], after["location"], after["last-updated-ms"]) == ({"b": "2"}, f"{ROOT}/shop/elsewhere", NOW_MS)


def test_specs_and_schemas_that_are_not_in_force_may_go() -> None:
    table = LoadedTable(TableName("shop", "orders"), changed(update("add-schema", schema=WIDER), update("add-spec", spec=SPEC)), "x")
    after = changed(update("remove-schemas", schema_ids=[1]), update("remove-partition-specs", spec_ids=[1]), table=table)
    assert ([one["schema-id"] for one in after["schemas"]], [one["spec-id"] for one in after["partition-specs"]]) == ([0], [0])


def test_what_changes_nothing_may_be_said() -> None:
    after = changed(update("assign-uuid", uuid=UUID.upper()), update("upgrade-format-version", format_version=2))
    assert (after["table-uuid"], after["format-version"]) == (UUID, 2)


def test_a_table_of_version_1_is_upgraded_and_not_changed_before() -> None:
    old = base(**{"format-version": 1, "schema": SCHEMA, "partition-spec": [], "schemas": [], "partition-specs": [], "sort-orders": []})
    metadata = {key: value for key, value in old.metadata.items() if key not in ("last-sequence-number", "sort-orders")}
    metadata["snapshots"] = [{key: value for key, value in one.items() if key != "sequence-number"} for one in metadata["snapshots"]]
    table = LoadedTable(old.name, metadata, old.metadata_location)
    with pytest.raises(CatalogRefusal, match="format version 1: upgrade it first"):
        change_table(table, [update("set-properties", updates={})], ROOT, NOW_MS)
    after = changed(update("upgrade-format-version", format_version=2), ADD, TO_NEW, table=table)
    assert (after["format-version"], after["last-sequence-number"], after["current-snapshot-id"]) == (2, 2, BIG + 2)
    assert after["schemas"][0]["fields"] == FIELDS


def test_the_history_of_metadata_is_as_long_as_the_table_says() -> None:
    metadata = dict(base().metadata) | {"properties": {"write.metadata.previous-versions-max": "3"}}
    for number in range(10):
        metadata = change_table(LoadedTable(TableName("a", "b"), metadata, f"m{number}"), [], ROOT, NOW_MS)
    assert [entry["metadata-file"] for entry in metadata["metadata-log"]] == ["m7", "m8", "m9"]


def test_a_table_is_made_of_updates_alone() -> None:
    updates = [
        *(update("assign-uuid", uuid=UUID), update("upgrade-format-version", format_version=2)),
        *(update("add-schema", schema=SCHEMA, last_column_id=3), update("set-current-schema", schema_id=-1)),
        *(update("add-spec", spec=SPEC), update("set-default-spec", spec_id=-1)),
        *(update("add-sort-order", sort_order=ORDER), update("set-default-sort-order", sort_order_id=-1)),
        *(update("set-location", location=LOCATION), update("set-properties", updates={"a": "b"})),
        update("add-snapshot", snapshot=snapshot(1, **{"parent-snapshot-id": ...})),
        update("set-snapshot-ref", ref_name="main", type="branch", snapshot_id=BIG + 1),
    ]
    made = create_table(updates, uuid="other", location="other", root=ROOT, now_ms=NOW_MS)
    TableMetadataUtil.parse_obj(copy.deepcopy(made))
    assert (made["table-uuid"], made["location"], made["current-snapshot-id"], made["last-column-id"]) == (UUID, LOCATION, BIG + 1, 3)
    assert (made["default-spec-id"], made["default-sort-order-id"], made["current-schema-id"]) == (0, 1, 0)


def test_a_table_that_is_made_without_spec_and_order_has_none() -> None:
    updates = [update("add-schema", schema=SCHEMA), update("set-current-schema", schema_id=-1)]
    made = create_table(updates, uuid=UUID, location=LOCATION, root=ROOT, now_ms=NOW_MS)
    TableMetadataUtil.parse_obj(copy.deepcopy(made))
    assert (made["partition-specs"], made["sort-orders"]) == ([{"spec-id": 0, "fields": []}], [{"order-id": 0, "fields": []}])


def field(**more: Any) -> dict[str, Any]:
    return {"source-id": 1, "transform": "identity", "name": "id_part", **more}


# (what is sent, status, words of the answer)
REFUSED: list[tuple[list[dict[str, Any]], int, str]] = [
    ([update("assign-uuid", uuid="nonsense")], 400, "not a uuid"),
    ([update("assign-uuid", uuid=UUID.replace("6", "7"))], 400, "keeps the uuid"),
    ([update("upgrade-format-version", format_version=3)], 400, "only to 2"),
    ([update("upgrade-format-version", format_version=1)], 400, "only to 2"),
    ([update("add-schema", schema={"type": "struct"})], 400, "`fields` is missing"),
    ([update("add-schema", schema={"type": "struct", "fields": [{"id": 1, "name": "x", "required": False}]})], 400, "schema"),
    ([update("add-schema", schema={"type": "struct", "fields": [{**FIELDS[0], "type": "complex"}]})], 400, "schema"),
    ([update("add-schema", schema={"type": "struct", "fields": [*FIELDS, {**FIELDS[0], "id": 9}]})], 400, "schema"),
    ([update("add-schema", schema={"type": "struct", "fields": [*FIELDS, {**FIELDS[0], "name": "x"}]})], 400, "stands for one field only"),
    ([update("add-schema", schema={"type": "struct", "fields": [{**FIELDS[0], "type": "timestamp_ns"}]})], 400, "schema"),
    ([update("add-schema", schema={"type": "struct", "fields": [{**FIELDS[0], "initial-default": 1}]})], 400, "version 3"),
    ([update("add-schema", schema={**SCHEMA, "identifier-field-ids": [99]})], 400, "schema"),
    ([update("add-schema", schema=WIDER, last_column_id=3)], 400, "below the schema's own"),
    ([update("set-current-schema", schema_id=5)], 400, "none with the id 5"),
    ([update("set-current-schema", schema_id=-1)], 400, "this commit adds none"),
    ([update("add-spec", spec={"fields": [field(transform="magic")]}), update("set-default-spec", spec_id=-1)], 400, "partition spec"),
    ([update("add-spec", spec={"fields": [field(**{"source-id": 77})]}), update("set-default-spec", spec_id=-1)], 400, "in force"),
    ([update("add-spec", spec={"fields": [field(), field()]})], 400, "two of its fields have one name"),
    ([update("add-spec", spec={"fields": [field(**{"field-id": 1}), field(name="x", **{"field-id": 1})]})], 400, "have one id"),
    ([update("add-spec", spec={"fields": [{"source-id": 1, "transform": "identity"}]})], 400, "partition spec"),
    ([update("add-spec", spec=SPEC), update("add-spec", spec={"fields": [field(**{"field-id": 1000})]})], 400, "never for something else"),
    ([update("set-default-spec", spec_id=3)], 400, "none with the id 3"),
    ([update("add-sort-order", sort_order={"fields": [{"source-id": 1}]})], 400, "sort order"),
    ([update("set-default-sort-order", sort_order_id=8)], 400, "none with the id 8"),
    (
        [
            update("add-sort-order", sort_order={"fields": [{**ORDER["fields"][0], "source-id": 55}]}),  # type: ignore[index]
            update("set-default-sort-order", sort_order_id=-1),
        ],
        400,
        "sort order in force",
    ),
    ([update("add-schema", schema={"type": "struct", "fields": FIELDS[:1]}), update("add-spec", spec=SPEC),
      update("set-default-spec", spec_id=-1), update("set-current-schema", schema_id=-1)], 400, "partition spec in force"),
    ([ADD, ADD], 400, "already"),
    ([update("add-snapshot", snapshot=snapshot(1, **{"snapshot-id": 3}))], 409, "above the table's last, 1"),
    ([update("add-snapshot", snapshot=snapshot(2, **{"parent-snapshot-id": 3}))], 409, "parent 3 is no snapshot"),
    ([update("add-snapshot", snapshot=snapshot(2, **{"timestamp-ms": NOW_MS - 70_000}))], 409, "set this writer's clock"),
    ([update("add-snapshot", snapshot=snapshot(2, **{"sequence-number": ...}))], 400, "`sequence-number` is missing"),
    ([update("add-snapshot", snapshot=snapshot(2, **{"schema-id": 6}))], 400, "no schema 6"),
    ([update("add-snapshot", snapshot=snapshot(2, **{"first-row-id": 0}))], 400, "`first-row-id` belongs to format version 3"),
    ([update("add-snapshot", snapshot=snapshot(2, summary={"operation": "merge"}))], 400, "`operation` must be one of"),
    ([update("add-snapshot", snapshot=snapshot(2, summary={}))], 400, "`operation` must be one of"),
    ([update("add-snapshot", snapshot=snapshot(2, **{"manifest-list": "file:///etc/passwd"}))], 400, "does not lie in the warehouse"),
    ([update("add-snapshot", snapshot=snapshot(2, **{"manifest-list": "file:/etc/passwd"}))], 400, "does not lie in the warehouse"),
    ([update("add-snapshot", snapshot=snapshot(2, **{"manifest-list": f"{ROOT}/../x"}))], 400, "`..` parts"),
    ([update("set-snapshot-ref", ref_name="x", type="branch", snapshot_id=4)], 400, "no snapshot 4"),
    ([update("set-snapshot-ref", ref_name="main", type="tag", snapshot_id=BIG)], 400, "`main` is a branch"),
    ([update("set-snapshot-ref", ref_name="v1", type="branch", snapshot_id=BIG)], 400, "v1 is a tag"),
    ([update("set-snapshot-ref", ref_name="t", type="tag", snapshot_id=BIG, min_snapshots_to_keep=1)], 400, "only branches"),
    ([update("set-snapshot-ref", ref_name="t", type="branch", snapshot_id=BIG, max_ref_age_ms=0)], 400, "max-ref-age-ms"),
    ([update("set-snapshot-ref", ref_name="t", type="twig", snapshot_id=BIG)], 400, "twig"),
    ([update("remove-snapshots", snapshot_ids=[BIG])], 400, "names snapshot"),
    ([update("remove-schemas", schema_ids=[0])], 400, "the one in force"),
    ([update("remove-schemas", schema_ids=[4])], 400, "none with the id 4"),
    ([update("remove-partition-specs", spec_ids=[0])], 400, "the one in force"),
    ([update("remove-partition-specs", spec_ids=[4])], 400, "none with the id 4"),
    ([update("set-statistics", statistics={**STATISTICS, "snapshot-id": 9})], 400, "no snapshot 9"),
    ([update("set-statistics", statistics=STATISTICS, snapshot_id=9)], 400, "differ"),
    ([update("set-statistics", statistics={**STATISTICS, "statistics-path": "s3://x/y"})], 400, "does not lie in the warehouse"),
    ([update("set-partition-statistics", partition_statistics={**PARTITION_STATISTICS, "snapshot-id": 9})], 400, "no snapshot 9"),
    ([update("set-location", location="file:///elsewhere")], 400, "does not lie in the warehouse"),
    ([update("set-location", location=f"{ROOT}/shop/../../evil")], 400, "`..` parts"),
    ([update("set-location", location=f"{ROOT}-evil/x")], 400, "does not lie in the warehouse"),
    ([update("set-location", location=ROOT)], 400, "does not lie in the warehouse"),
    ([update("set-properties", updates={"write.metadata.previous-versions-max": "many"})], 400, "whole number"),
    ([update("set-properties", updates={"a": 1})], 400, "Expected `str`"),
    ([update("add-encryption-key", encryption_key={})], 400, "`add-encryption-key` belongs to format version 3"),
    ([update("remove-encryption-key", key_id="k")], 400, "`remove-encryption-key` belongs to format version 3"),
    ([update("add-view-version", view_version={})], 400, "`add-view-version` is one of views"),
    ([update("invent-something")], 400, "`invent-something` is not known"),
    ([{"updates": {}}], 400, "each update has a `action`"),
    ([update("set-location", location=f"{ROOT}/x", more=1)], 400, "unknown field `more`"),
    ([update("set-location")], 400, "missing required field `location`"),
    ([update("remove-snapshots", snapshot_ids=[2**63])], 400, "snapshot-ids"),
    ([update("remove-snapshots", snapshot_ids=[1.5])], 400, "snapshot-ids"),
    ([update("remove-snapshots", snapshot_ids=["1"])], 400, "snapshot-ids"),
]  # fmt: skip


@pytest.mark.parametrize(("updates", "status", "words"), REFUSED, ids=lambda value: value if isinstance(value, str) else "")
def test_a_wrong_update_is_refused_and_says_why(updates: list[dict[str, Any]], status: int, words: str) -> None:
    with pytest.raises(CatalogRefusal) as caught:
        changed(*updates)
    assert (caught.value.status, words in str(caught.value)) == (status, True), str(caught.value)


def test_every_update_is_both_made_and_refused_here() -> None:
    """A list that grows with the code: an update without a rule of its own would be one that nobody looked at."""
    refused = {one["action"] for updates, _, _ in REFUSED for one in updates if "action" in one}
    # These are harmless by construction: removing what is not there does nothing.
    assert set(UPDATES) - refused == {"remove-snapshot-ref", "remove-properties", "remove-statistics", "remove-partition-statistics"}


def test_version_3_is_left_alone() -> None:
    with pytest.raises(CatalogRefusal, match="format version 3"):
        change_table(base(**{"format-version": 3}), [update("set-properties", updates={})], ROOT, NOW_MS)


MET: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"type": "assert-table-uuid", "uuid": UUID.upper()}, {"uuid": UUID.replace("6", "7")}),
    ({"type": "assert-ref-snapshot-id", "ref": "main", "snapshot-id": BIG}, {"snapshot-id": BIG - 1}),
    ({"type": "assert-ref-snapshot-id", "ref": "none", "snapshot-id": None}, {"ref": "main"}),
    ({"type": "assert-last-assigned-field-id", "last-assigned-field-id": 3}, {"last-assigned-field-id": 2}),
    ({"type": "assert-current-schema-id", "current-schema-id": 0}, {"current-schema-id": 1}),
    ({"type": "assert-last-assigned-partition-id", "last-assigned-partition-id": 999}, {"last-assigned-partition-id": 1000}),
    ({"type": "assert-default-spec-id", "default-spec-id": 0}, {"default-spec-id": 1}),
    ({"type": "assert-default-sort-order-id", "default-sort-order-id": 0}, {"default-sort-order-id": 1}),
]


@pytest.mark.parametrize(("met", "change"), MET, ids=lambda value: value.get("type", ""))
def test_a_requirement_is_met_or_it_is_not(met: dict[str, Any], change: dict[str, Any]) -> None:
    assert breached(base().metadata, [met]) == []
    (sentence,) = breached(base().metadata, [{**met, **change}])
    assert sentence.startswith(f"{met['type']}: wanted ")
    assert breached(None, [met]) == [f"{met['type']}: there is no table"]


def test_a_table_that_is_there_is_not_made() -> None:
    create = {"type": "assert-create"}
    assert breached(None, [create]) == []
    assert breached(base().metadata, [create]) == ["assert-create: the table exists"]
    assert {one["type"] for one, _ in MET} | {"assert-create"} == set(REQUIREMENTS)
