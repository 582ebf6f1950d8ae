"""What a commit says and what a loaded table means, case by case: values in, values out."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from dolake.errors import TableStopped
from dolake.iceberg.judging import Verdict, judge, rewound
from dolake.iceberg.metadata import LoadedTable, apply_updates, new_table, snapshots_by_id, unmet_requirements
from dolake.iceberg.plan import CommitPlan, CommitPolicy, Delta, NewDeletes, NewFile, plan_commit
from dolake.iceberg.summary import FileCounts
from dolake.model import OffsetRange
from tests.iceberg.lake import LOG, SCHEMA, START_MS, TABLE

POLICY = CommitPolicy()
HOUR_MS = 3_600_000
UUID = "6f1b0a52-3c0d-4f53-9b1e-0a1b2c3d4e5f"
OTHER_UUID = UUID[::-1]


def empty_table(**other: Any) -> LoadedTable:
    settings: dict[str, Any] = {"uuid": UUID, "location": "file:///w/t", "schema": SCHEMA, "now_ms": START_MS}
    return LoadedTable(TABLE, new_table(**{**settings, **other}), "file:///w/t/metadata/00000-u.metadata.json")


def delta(start: int, end: int, **other: Any) -> Delta:
    partition = (None,) * len(other.get("spec", UNPARTITIONED)["fields"])
    settings: dict[str, Any] = {
        "table": TABLE,
        "table_uuid": UUID,
        "ranges": {LOG: OffsetRange(start, end)},
        "files": (NewFile(f"file:///w/t/data/{start}.parquet", 100, end - start, None, partition),),
        "schema": SCHEMA,
        "base_schema_id": 0,
        "spec_id": 0,
        "epoch": 1,
        "instance": "writer-1",
        "commit_id": f"commit-{start}",
    }
    return Delta(**{**settings, **other})


def deletes_of(spec_id: int, *partition: Any, rows: int = 7) -> NewDeletes:
    return NewDeletes(f"file:///w/t/data/{spec_id}-{rows}-deletes.parquet", 10, rows, "a", "b", spec_id, partition)


def plan(base: LoadedTable, change: Delta, *, snapshot_id: int = 0, now_ms: int = START_MS, policy: CommitPolicy = POLICY) -> CommitPlan:
    number = snapshot_id or base.metadata["last-sequence-number"] + 1
    return plan_commit(base, change, snapshot_id=number, manifest_list=f"list-{number}", now_ms=now_ms, policy=policy)


def land(base: LoadedTable, change: Delta, **other: Any) -> LoadedTable:
    updates = plan(base, change, **other).updates
    return replace(base, metadata=apply_updates(base, updates, now_ms=0), metadata_location=base.metadata_location + "+")


def grown(count: int, step_ms: int = 1000, policy: CommitPolicy = POLICY) -> LoadedTable:
    table = empty_table()
    for start in range(count):
        table = land(table, delta(start, start + 1), now_ms=START_MS + start * step_ms, policy=policy)
    return table


def property_set(table: LoadedTable, **values: str) -> LoadedTable:
    return replace(table, metadata={**table.metadata, "properties": {**table.properties, **values}})


def head_moved(table: LoadedTable, snapshot_id: int | None) -> LoadedTable:
    return replace(table, metadata={**table.metadata, "current-snapshot-id": snapshot_id})


OTHER_SCHEMA = {**SCHEMA, "fields": [*SCHEMA["fields"], {"id": 3, "name": "x", "required": False, "type": "long"}]}

UNPARTITIONED: dict[str, Any] = {"spec-id": 0, "fields": []}
BY_ID = {"spec-id": 1, "fields": [{"source-id": 1, "field-id": 1000, "name": "id_bucket_4", "transform": "bucket[4]"}]}
BY_NAME = {"spec-id": 1, "fields": [{"source-id": 2, "field-id": 1000, "name": "name", "transform": "identity"}]}


def partitioned() -> LoadedTable:
    return land(grown(3), delta(3, 4, spec=BY_ID))


@pytest.mark.parametrize(
    ("base", "change", "verdict"),
    [
        (empty_table(), delta(0, 3), Verdict.COMMIT),
        (grown(3), delta(3, 5), Verdict.COMMIT),
        (grown(3), delta(3, 5, epoch=2, instance="writer-2"), Verdict.COMMIT),
        (grown(3), delta(0, 3), Verdict.LANDED),
        (grown(3), delta(0, 2), Verdict.LANDED),
        (grown(3), delta(0, 3, epoch=2, instance="writer-2"), Verdict.LANDED),
        (grown(3), delta(2, 5), Verdict.REPLAN),
        (grown(3), delta(3, 5, ranges={LOG: OffsetRange(3, 5), "log-b": OffsetRange(0, 9)}), Verdict.COMMIT),
        (grown(3), delta(3, 5, ranges={LOG: OffsetRange(2, 3), "log-b": OffsetRange(0, 9)}), Verdict.REPLAN),
        (grown(3), delta(3, 5, schema=OTHER_SCHEMA), Verdict.COMMIT),
        (land(grown(3), delta(3, 4, schema=OTHER_SCHEMA)), delta(4, 5), Verdict.REPLAN),
        (land(grown(3), delta(3, 4, schema=OTHER_SCHEMA)), delta(4, 5, schema=OTHER_SCHEMA), Verdict.COMMIT),
        (grown(3), delta(3, 5, known={LOG: 3, "log-b": 0}), Verdict.COMMIT),
        (land(grown(3), delta(3, 3, ranges={"log-b": OffsetRange(0, 2)})), delta(3, 5, known={LOG: 3}), Verdict.REPLAN),
        (grown(3), delta(3, 5, spec_id=1), Verdict.REPLAN),
        (grown(3), delta(3, 5, spec=UNPARTITIONED), Verdict.COMMIT),
        (grown(3), delta(3, 5, spec=BY_ID), Verdict.COMMIT),
        (grown(3), delta(3, 5, spec=BY_ID, spec_id=7), Verdict.REPLAN),
        (partitioned(), delta(4, 5, spec=BY_ID), Verdict.COMMIT),
        (partitioned(), delta(4, 5, spec=BY_ID, spec_id=1), Verdict.COMMIT),
        (partitioned(), delta(4, 5), Verdict.REPLAN),
        (partitioned(), delta(4, 5, spec=UNPARTITIONED), Verdict.REPLAN),
        (partitioned(), delta(4, 5, spec=UNPARTITIONED, spec_id=1), Verdict.COMMIT),
        (partitioned(), delta(4, 5, spec=BY_NAME, spec_id=1), Verdict.REPLAN),
        (grown(3), delta(0, 0, ranges={}, commit_id="commit-2"), Verdict.LANDED),
        (grown(3), delta(0, 0, ranges={}, commit_id="new"), Verdict.COMMIT),
        (grown(3), delta(3, 5, on_head_only=True, head_id=3), Verdict.COMMIT),
        (grown(3), delta(3, 5, on_head_only=True, head_id=2), Verdict.MOVED),
        (grown(3), delta(3, 5, on_head_only=True), Verdict.MOVED),
        (grown(3), delta(3, 5, head_id=2), Verdict.COMMIT),
        (empty_table(), delta(0, 3, on_head_only=True), Verdict.COMMIT),
        (empty_table(), delta(0, 3, on_head_only=True, head_id=2), Verdict.MOVED),
        (grown(3), delta(0, 3, on_head_only=True, head_id=2), Verdict.LANDED),
        (grown(3), delta(2, 5, on_head_only=True, head_id=2), Verdict.REPLAN),
        (grown(3), delta(3, 5, deletes=(deletes_of(0),)), Verdict.COMMIT),
        (grown(3), delta(3, 5, deletes=(deletes_of(0), deletes_of(1))), Verdict.REPLAN),
        (grown(3), delta(3, 5, deletes=(deletes_of(0), deletes_of(1, None)), spec=BY_ID), Verdict.COMMIT),
        (partitioned(), delta(4, 5, deletes=(deletes_of(0), deletes_of(1, None)), spec=BY_ID), Verdict.COMMIT),
    ],
)
def test_a_loaded_table_means_one_thing_for_a_delta(base: LoadedTable, change: Delta, verdict: Verdict) -> None:
    assert judge(base, change) is verdict


@pytest.mark.parametrize(
    ("base", "change", "reason"),
    [
        (None, delta(0, 3), "dropped"),
        (empty_table(uuid=OTHER_UUID), delta(0, 3), "another table took its name"),
        (grown(3), delta(3, 5, epoch=0), "fenced: a newer writer"),
        (grown(3), delta(3, 5, instance="writer-2"), "fenced: writer writer-1 claimed"),
        (grown(3), delta(3, 5, epoch=3), "its epoch is 1, ours is 3"),
        (grown(3), delta(4, 5), "its offset in log log-a is 3, and 4 was committed"),
        (empty_table(), delta(4, 5), "its offset in log log-a is 0, and 4 was committed"),
        (head_moved(grown(3), 2), delta(3, 5), "rewound"),
        (head_moved(grown(3), None), delta(3, 5), "no snapshot of dolake is left"),
        (property_set(grown(3), **{f"dolake.offset.{LOG}": "2"}), delta(2, 5), "rewound"),
        (property_set(grown(3), **{"dolake.offset.log-z": "2"}), delta(3, 5), "rewound"),
    ],
)
def test_a_table_that_is_not_the_writers_to_change_stops(base: LoadedTable | None, change: Delta, reason: str) -> None:
    with pytest.raises(TableStopped, match=reason):
        judge(base, change)


def test_foreign_snapshots_on_top_of_ours_are_no_rewind() -> None:
    table = grown(3)
    foreign = {
        "snapshot-id": 99,
        "parent-snapshot-id": 3,
        "sequence-number": 4,
        "timestamp-ms": START_MS + 9000,
        "summary": {"operation": "append"},
    }
    metadata = {**table.metadata, "snapshots": [*table.metadata["snapshots"], foreign], "current-snapshot-id": 99}
    assert judge(replace(table, metadata=metadata), delta(3, 5)) is Verdict.COMMIT
    only_foreign_left = {**metadata, "snapshots": [{**foreign, "parent-snapshot-id": 98}]}
    assert judge(replace(table, metadata=only_foreign_left), delta(3, 5)) is Verdict.COMMIT
    replaced = {**metadata, "snapshots": [{key: value for key, value in foreign.items() if key != "parent-snapshot-id"}]}
    with pytest.raises(TableStopped, match="rewound"):
        judge(replace(table, metadata=replaced), delta(3, 5))


def test_a_plan_requires_the_table_and_the_head_that_it_was_made_from() -> None:
    assert plan(grown(3), delta(3, 5)).requirements == (
        {"type": "assert-table-uuid", "uuid": UUID},
        {"type": "assert-ref-snapshot-id", "ref": "main", "snapshot-id": 3},
    )
    assert plan(empty_table(), delta(0, 5)).requirements[1]["snapshot-id"] is None


def test_a_snapshot_says_what_it_adds_the_totals_and_where_the_logs_stand() -> None:
    table = land(grown(2), delta(2, 7, summary={"dolake.lsn.db": "0/16"}, properties={"dolake.accepted": "7"}))
    assert table.head is not None
    assert table.head["summary"] == {
        "operation": "append",
        "added-data-files": "1",
        "added-records": "5",
        "added-files-size": "100",
        "changed-partition-count": "1",
        "total-data-files": "3",
        "total-records": "7",
        "total-files-size": "300",
        "total-delete-files": "0",
        "total-position-deletes": "0",
        "total-equality-deletes": "0",
        "dolake.commit-id": "commit-2",
        "dolake.epoch": "1",
        "dolake.instance": "writer-1",
        f"dolake.offset.{LOG}": "7",
        "dolake.lsn.db": "0/16",
    }
    assert table.properties == {f"dolake.offset.{LOG}": "7", "dolake.epoch": "1", "dolake.instance": "writer-1", "dolake.accepted": "7"}
    assert (table.head["sequence-number"], table.head["parent-snapshot-id"], table.head["schema-id"]) == (3, 2, 0)


def test_what_a_delta_says_of_itself_cannot_overrule_the_offsets() -> None:
    forged = {f"dolake.offset.{LOG}": "99", "dolake.epoch": "99", "operation": "delete"}
    table = land(empty_table(), delta(0, 3, summary=forged, properties=forged))
    assert table.head is not None
    assert table.head["summary"]["operation"] == "append"
    assert (table.offsets(), table.owner_epoch) == ({LOG: 3}, 1)


def test_totals_are_left_out_where_the_snapshot_before_states_none() -> None:
    table = grown(1)
    bare = {**table.metadata["snapshots"][0], "summary": {"operation": "append", "dolake.epoch": "1", f"dolake.offset.{LOG}": "1"}}
    after = land(replace(table, metadata={**table.metadata, "snapshots": [bare]}), delta(1, 2))
    assert after.head is not None
    assert not [key for key in after.head["summary"] if key.startswith("total-")]


def test_where_everything_goes_the_totals_are_known_whatever_was_stated_before() -> None:
    table = grown(1)
    bare = {**table.metadata["snapshots"][0], "summary": {"operation": "append", "dolake.epoch": "1", f"dolake.offset.{LOG}": "1"}}
    base = replace(table, metadata={**table.metadata, "snapshots": [bare]})
    removed = FileCounts(data_files=9, rows=90, size_bytes=900, position_delete_files=1, position_deletes=2)
    change = delta(1, 3, removes_all=True, deletes=(deletes_of(0, rows=1),))
    (snapshot,) = [
        update["snapshot"]
        for update in plan_commit(base, change, snapshot_id=2, manifest_list="l", now_ms=START_MS, policy=POLICY, removed=removed).updates
        if update["action"] == "add-snapshot"
    ]
    assert {key: value for key, value in snapshot["summary"].items() if not key.startswith("dolake.")} == {
        "operation": "overwrite",
        "changed-partition-count": "1",
        "added-data-files": "1",
        "added-records": "2",
        "added-files-size": "110",
        "added-delete-files": "1",
        "added-position-delete-files": "1",
        "added-position-deletes": "1",
        "deleted-data-files": "9",
        "deleted-records": "90",
        "removed-files-size": "900",
        "removed-delete-files": "1",
        "removed-position-delete-files": "1",
        "removed-position-deletes": "2",
        "total-data-files": "1",
        "total-records": "2",
        "total-files-size": "110",
        "total-delete-files": "1",
        "total-position-deletes": "1",
        "total-equality-deletes": "0",
    }


@pytest.mark.parametrize(
    ("now_ms", "expected_ms"), [(START_MS + 5000, START_MS + 5000), (START_MS - HOUR_MS, START_MS + 1), (0, START_MS + 1)]
)
def test_snapshot_times_never_go_back(now_ms: int, expected_ms: int) -> None:
    table = land(grown(1), delta(1, 2), now_ms=now_ms)
    assert table.head is not None
    # The first snapshot stands at START_MS + 1, as the table itself was made at START_MS.
    assert table.head["timestamp-ms"] == max(expected_ms, START_MS + 2)
    assert table.metadata["last-updated-ms"] == table.head["timestamp-ms"]


def test_only_the_newest_snapshots_of_main_are_kept() -> None:
    table = grown(150)
    kept = sorted(snapshots_by_id(table.metadata))
    assert kept == [1, *range(51, 151)]  # The first one is the hour's tag.
    assert [entry["snapshot-id"] for entry in table.metadata["snapshot-log"]] == list(range(51, 151))


def test_the_first_snapshot_of_an_hour_is_tagged_and_kept_for_days() -> None:
    policy = CommitPolicy(snapshots_kept=5, tags_kept_days=1)
    table = grown(24 * 6, step_ms=HOUR_MS // 3, policy=policy)  # Two days, three commits an hour.
    tags = sorted(name for name in table.metadata["refs"] if name.startswith("dolake-hour-"))
    assert len(tags) == 25
    head = table.head
    assert head is not None
    tagged = [table.metadata["refs"][name] for name in tags]
    assert all(ref["type"] == "tag" and ref["max-ref-age-ms"] == 24 * HOUR_MS for ref in tagged)
    snapshots = snapshots_by_id(table.metadata)
    assert all(head["timestamp-ms"] - snapshots[ref["snapshot-id"]]["timestamp-ms"] <= 25 * HOUR_MS for ref in tagged)
    assert set(snapshots) == {ref["snapshot-id"] for ref in tagged} | {140, 141, 142, 143, 144}


def test_no_tags_are_made_when_none_are_kept() -> None:
    policy = CommitPolicy(snapshots_kept=3, tags_kept_days=0)
    table = grown(9, step_ms=HOUR_MS, policy=policy)
    assert set(table.metadata["refs"]) == {"main"}
    assert len(table.metadata["snapshots"]) == 3


def test_what_other_branches_and_tags_name_is_kept() -> None:
    policy = CommitPolicy(snapshots_kept=2, tags_kept_days=0)
    table = grown(3, policy=CommitPolicy(tags_kept_days=0))
    refs = {**table.metadata["refs"], "audit": {"type": "branch", "snapshot-id": 2}, "release": {"type": "tag", "snapshot-id": 3}}
    table = replace(table, metadata={**table.metadata, "refs": refs})
    for start in range(3, 9):
        table = land(table, delta(start, start + 1), now_ms=START_MS + start * 1000, policy=policy)
    assert sorted(snapshots_by_id(table.metadata)) == [1, 2, 3, 8, 9]


def test_snapshots_that_are_too_old_go_however_few_are_left() -> None:
    policy = CommitPolicy(tags_kept_days=0, snapshots_age_s_max=3)
    table = grown(9, policy=policy)  # One a second: from START_MS + 5000 on is young enough.
    assert sorted(snapshots_by_id(table.metadata)) == [6, 7, 8, 9]
    assert [entry["snapshot-id"] for entry in table.metadata["snapshot-log"]] == [6, 7, 8, 9]
    table = land(table, delta(9, 10), now_ms=START_MS + HOUR_MS, policy=policy)
    assert sorted(snapshots_by_id(table.metadata)) == [10]
    assert rewound(table) == ""
    assert sorted(snapshots_by_id(grown(9, policy=replace(policy, snapshots_kept=2)).metadata)) == [8, 9]
    assert sorted(snapshots_by_id(grown(9, policy=replace(policy, snapshots_age_s_max=0)).metadata)) == list(range(1, 10))


def test_an_age_is_counted_to_the_new_snapshots_own_time() -> None:
    policy = CommitPolicy(tags_kept_days=0, snapshots_age_s_max=3)
    table = land(grown(3, policy=policy), delta(3, 4), now_ms=0, policy=policy)  # The clock was set back by decades.
    assert sorted(snapshots_by_id(table.metadata)) == [1, 2, 3, 4]


def test_age_takes_nothing_that_a_ref_keeps_and_cut_tags_with_their_snapshots() -> None:
    policy = CommitPolicy(tags_kept_days=1, snapshots_age_s_max=10)
    table = grown(4)
    refs = {
        **table.metadata["refs"],
        "audit": {"type": "branch", "snapshot-id": 2},
        "release": {"type": "tag", "snapshot-id": 3},
        "dolake-cut-7": {"type": "tag", "snapshot-id": 4},
    }
    after = land(replace(table, metadata={**table.metadata, "refs": refs}), delta(4, 5), now_ms=START_MS + 60_000, policy=policy)
    assert sorted(snapshots_by_id(after.metadata)) == [1, 2, 3, 5]
    assert refs.keys() - after.metadata["refs"].keys() == {"dolake-cut-7"}


def test_a_staged_snapshot_goes_by_its_own_age() -> None:
    policy = CommitPolicy(tags_kept_days=0, snapshots_age_s_max=10)
    table = grown(2, policy=policy)
    staged = [{**table.metadata["snapshots"][-1], "snapshot-id": 77, "timestamp-ms": START_MS + at_ms} for at_ms in (2_000, 55_000)]
    staged[1]["snapshot-id"] = 78
    table = replace(table, metadata={**table.metadata, "snapshots": [*table.metadata["snapshots"], *staged]})
    after = land(table, delta(2, 3), now_ms=START_MS + 60_000, policy=policy)
    assert sorted(snapshots_by_id(after.metadata)) == [3, 78]


def test_how_long_somebody_wants_main_kept_is_not_lost() -> None:
    table = grown(1)
    refs = {"main": {**table.metadata["refs"]["main"], "min-snapshots-to-keep": 7}}
    after = land(replace(table, metadata={**table.metadata, "refs": refs}), delta(1, 2))
    assert after.metadata["refs"]["main"] == {"type": "branch", "snapshot-id": 2, "min-snapshots-to-keep": 7}


def test_a_schema_that_the_table_had_before_is_used_again() -> None:
    wide = land(grown(1), delta(1, 2, schema=OTHER_SCHEMA))
    assert (wide.schema["schema-id"], wide.metadata["last-column-id"]) == (1, 3)
    narrow = land(wide, delta(2, 3, schema=SCHEMA, base_schema_id=1))
    assert narrow.schema["schema-id"] == 0
    assert len(narrow.metadata["schemas"]) == 2


def test_another_spec_is_added_once_and_used_again() -> None:
    table = partitioned()
    assert (table.spec, table.metadata["last-partition-id"]) == (BY_ID, 1000)
    assert plan(table, delta(4, 5, spec={**BY_ID, "spec-id": 9})).requirements[2:] == ()
    assert land(table, delta(4, 5, spec={**BY_ID, "spec-id": 9})).metadata["partition-specs"] == [UNPARTITIONED, BY_ID]
    back = land(table, delta(4, 5, spec=UNPARTITIONED, spec_id=1))
    assert (back.spec, back.metadata["partition-specs"]) == (UNPARTITIONED, [UNPARTITIONED, BY_ID])
    assert land(back, delta(5, 6, spec=BY_ID)).spec == BY_ID
    third = {"spec-id": 0, "fields": [*BY_ID["fields"], {**BY_NAME["fields"][0], "field-id": 1001}]}
    table = land(back, delta(5, 6, spec=third))
    assert (table.spec, table.metadata["last-partition-id"]) == ({**third, "spec-id": 2}, 1001)


def test_a_plan_that_partitions_anew_requires_that_nobody_else_has() -> None:
    met = plan(grown(3), delta(3, 4, spec=BY_ID)).requirements
    assert met[2:] == (
        {"type": "assert-default-spec-id", "default-spec-id": 0},
        {"type": "assert-last-assigned-partition-id", "last-assigned-partition-id": 999},
    )
    assert unmet_requirements(grown(3).metadata, met) == []
    unmet = unmet_requirements(partitioned().metadata, met)
    assert unmet[1:] == ["assert-default-spec-id: wanted 0, found 1", "assert-last-assigned-partition-id: wanted 999, found 1000"]
