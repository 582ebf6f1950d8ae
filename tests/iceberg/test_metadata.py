"""Metadata as values: what updates make of it, and that PyIceberg reads the result as what was meant."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from pyiceberg.table.metadata import TableMetadataUtil

from dolake.iceberg.metadata import apply_updates, from_bytes, highest_field_id, new_table, same_schema, to_bytes, unmet_requirements
from tests.iceberg.lake import LOG, SCHEMA, START_MS
from tests.iceberg.test_plan import OTHER_UUID, UUID, delta, empty_table, grown, land, plan

NESTED: dict[str, Any] = {
    "type": "struct",
    "fields": [
        {"id": 1, "name": "a", "required": True, "type": "long"},
        {
            "id": 2,
            "name": "l",
            "required": False,
            "type": {"type": "list", "element-id": 7, "element": "string", "element-required": False},
        },
        {
            "id": 3,
            "name": "m",
            "required": False,
            "type": {
                "type": "map",
                "key-id": 4,
                "key": "string",
                "value-id": 5,
                "value-required": False,
                "value": {"type": "struct", "fields": [{"id": 9, "name": "s", "required": False, "type": "int"}]},
            },
        },
    ],
}


def test_metadata_is_what_pyiceberg_understands() -> None:
    table = grown(130)
    understood = TableMetadataUtil.parse_raw(to_bytes(table.metadata).decode())
    assert understood.current_snapshot_id == 130
    assert understood.properties[f"dolake.offset.{LOG}"] == "130"
    assert len(understood.snapshots) == 101
    assert {name for name in understood.refs if name != "main"} == {"dolake-hour-20250615T15"}
    assert from_bytes(to_bytes(table.metadata)) == table.metadata


def test_updates_never_change_the_metadata_that_they_start_from() -> None:
    table = grown(120)
    before = copy.deepcopy(table.metadata)
    updates = plan(table, delta(120, 121, properties={"a": "b"})).updates
    apply_updates(table, [*updates, {"action": "remove-properties", "removals": ["a"]}], START_MS)
    assert table.metadata == before


def test_what_no_update_touches_is_shared_and_not_copied() -> None:
    table = grown(3)
    after = apply_updates(table, [{"action": "set-properties", "updates": {"a": "b"}}], START_MS)
    assert after["snapshots"] is table.metadata["snapshots"]
    assert after["properties"]["a"] == "b"


def test_the_metadata_log_names_the_files_before_and_stays_short() -> None:
    table = grown(150)
    entries = table.metadata["metadata-log"]
    assert len(entries) == 100
    assert entries[-1]["metadata-file"] + "+" == table.metadata_location


@pytest.mark.parametrize(("wanted", "kept"), [("2", 2), ("0", 1)])
def test_a_table_may_want_a_shorter_metadata_log(wanted: str, kept: int) -> None:
    table = empty_table(properties={"write.metadata.previous-versions-max": wanted})
    for start in range(5):
        table = land(table, delta(start, start + 1))
    assert len(table.metadata["metadata-log"]) == kept


def test_a_change_without_a_snapshot_moves_the_time_but_never_back() -> None:
    table = grown(1)
    change = [{"action": "set-properties", "updates": {"a": "b"}}]
    assert apply_updates(table, change, START_MS + 60_000)["last-updated-ms"] == START_MS + 60_000
    assert apply_updates(table, change, 0)["last-updated-ms"] == table.metadata["last-updated-ms"]


def test_statistics_go_with_their_snapshot() -> None:
    table = grown(2)
    metadata = {**table.metadata, "statistics": [{"snapshot-id": 1}, {"snapshot-id": 2}]}
    after = apply_updates(type(table)(table.name, metadata, "x"), [{"action": "remove-snapshots", "snapshot-ids": [1]}], START_MS)
    assert after["statistics"] == [{"snapshot-id": 2}]
    assert [entry["snapshot-id"] for entry in after["snapshot-log"]] == [2]


def test_an_update_that_dolake_does_not_make_is_refused() -> None:
    with pytest.raises(ValueError, match="upgrade-format-version"):
        apply_updates(grown(1), [{"action": "upgrade-format-version", "format-version": 3}], START_MS)


def test_requirements_are_checked_against_the_metadata() -> None:
    table = grown(2)
    met = plan(table, delta(2, 3)).requirements
    assert unmet_requirements(table.metadata, met) == []
    assert unmet_requirements(grown(3).metadata, met) == ["assert-ref-snapshot-id: wanted 2, found 3"]
    assert unmet_requirements(empty_table(uuid=OTHER_UUID).metadata, met[:1]) == [f"assert-table-uuid: wanted {UUID}, found {OTHER_UUID}"]
    with pytest.raises(ValueError, match="assert-create"):
        unmet_requirements(table.metadata, [{"type": "assert-create"}])


def test_the_highest_field_id_looks_into_nested_types() -> None:
    assert highest_field_id(NESTED) == 9
    assert new_table(uuid="u", location="file:///w/t", schema=NESTED, now_ms=0)["last-column-id"] == 9


def test_schemas_are_compared_without_their_ids() -> None:
    assert same_schema(SCHEMA, {**json.loads(json.dumps(SCHEMA)), "schema-id": 5})
    assert not same_schema(SCHEMA, {**SCHEMA, "identifier-field-ids": [1]})
    assert same_schema({**SCHEMA, "identifier-field-ids": [1, 2]}, {**SCHEMA, "identifier-field-ids": [2, 1]})


def test_a_fresh_table_has_no_owner_and_no_offsets() -> None:
    table = empty_table()
    assert (table.offsets(), table.owner_epoch, table.instance, table.head, table.head_id) == ({}, 0, "", None, None)
    TableMetadataUtil.parse_raw(to_bytes(table.metadata).decode())


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"schemas": [{"fields": []}]}, "schema-id of one of its schemas is missing"),
        ({"schemas": ["x"]}, "schema-id, fields of one of its schemas is missing"),
        ({"partition-specs": [{"spec-id": "0", "fields": []}]}, "spec-id of one of its partition-specs is missing, or not of its kind"),
        ({"snapshots": [7]}, "snapshot-id, timestamp-ms, manifest-list, summary of one of its snapshots is missing"),
        ({"current-schema-id": 64}, "current-schema-id is 64, and none of its schemas is that"),
        ({"default-spec-id": 64}, "default-spec-id is 64, and none of its partition-specs is that"),
        ({"location": None}, "location is missing, or not of its kind"),
    ],
)
def test_metadata_whose_parts_are_not_there_is_none(change: dict[str, Any], says: str) -> None:
    """Whoever loads a table relies on them: each was found by flipping bits, as an error without a name."""
    metadata = new_table(uuid="u", location="file:///lake/t", schema=SCHEMA, now_ms=1)
    with pytest.raises(ValueError, match=says):
        from_bytes(to_bytes({**metadata, **change}))
