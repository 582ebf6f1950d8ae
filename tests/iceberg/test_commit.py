"""The commit loop against a real catalog file and warehouse: once, whatever happens to requests and answers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pyarrow as pa
import pytest
from pyiceberg.types import LongType

from dolake import failpoints
from dolake.clock import Runtime, SystemRandomness, ThreadTasks
from dolake.errors import StoreUnreachable, TableStopped
from dolake.iceberg.catalog import SqlTableCatalog
from dolake.iceberg.commit import Committer, Landed, Replan, Trouble
from dolake.iceberg.plan import Delta
from dolake.model import OffsetRange
from dolake.storage.local import LocalStore
from tests.iceberg.lake import LOG, SCHEMA, TABLE, HandClock, Lake, make_metadata, put_file
from tests.iceberg.unreliable import UnreliableCatalog, breaches, commit_meanwhile

FAULTS = ["request lost", "answer lost", "answered 409", "late: load", "late: after load", "late: swap", "late: after swap"]


@pytest.mark.acceptance("AT-54")
@pytest.mark.parametrize("fault", FAULTS)
def test_an_unknown_outcome_becomes_exactly_one_snapshot(lake: Lake, fault: str) -> None:
    first = lake.delta(0, 5)
    assert isinstance(lake.commit(first), Landed)
    catalog = UnreliableCatalog(lake.catalog, [fault])
    outcome = lake.commit(lake.delta(5, 9), lake.committer(catalog=catalog))
    assert isinstance(outcome, Landed)
    assert outcome.base.offsets() == {LOG: 9}
    assert breaches(lake, list(range(9))) == []
    assert len(lake.current().metadata["snapshots"]) == 2
    assert lake.ids() == list(range(9))


@pytest.mark.acceptance("AT-54")
def test_many_unknown_outcomes_in_a_row_still_become_one_snapshot(lake: Lake) -> None:
    catalog = UnreliableCatalog(lake.catalog, ["request lost", "late: after load", "request lost", "answered 409"])
    assert isinstance(lake.commit(lake.delta(0, 5), lake.committer(catalog=catalog)), Landed)
    assert breaches(lake, list(range(5))) == []
    assert len(lake.current().metadata["snapshots"]) == 1


def test_no_path_deletes_a_file(lake: Lake) -> None:
    class Keeping(LocalStore):
        def delete(self, location: str) -> None:
            raise AssertionError(f"{location} was deleted")

    store = Keeping(lake.store.root)
    for start, fault in enumerate(FAULTS):
        committer = lake.committer(catalog=UnreliableCatalog(lake.catalog, [fault]), store=store)
        assert isinstance(lake.commit(lake.delta(start, start + 1), committer), Landed)


def test_a_commit_found_landed_after_a_crash_is_not_repeated(lake: Lake) -> None:
    delta = lake.delta(0, 5)
    lake.commit(delta)
    again = lake.delta(0, 5, epoch=2, instance="writer-2")
    assert lake.commit(again) == Landed(lake.current())
    assert breaches(lake, list(range(5))) == []


def test_the_first_commit_claims_the_table_in_its_own_snapshot(lake: Lake) -> None:
    lake.commit(lake.delta(0, 5))
    outcome = lake.commit(lake.delta(5, 6, epoch=2, instance="writer-2"))
    assert isinstance(outcome, Landed)
    assert (outcome.base.owner_epoch, outcome.base.instance) == (2, "writer-2")
    head = outcome.base.head
    assert head is not None
    assert (head["summary"]["dolake.epoch"], head["summary"]["dolake.instance"]) == ("2", "writer-2")
    assert len(outcome.base.metadata["snapshots"]) == 2


@pytest.mark.parametrize(("epoch", "instance"), [(1, "writer-1"), (2, "writer-3")])
def test_a_zombie_is_fenced(lake: Lake, epoch: int, instance: str) -> None:
    lake.commit(lake.delta(0, 5))
    lake.commit(lake.delta(5, 6, epoch=2, instance="writer-2"))
    with pytest.raises(TableStopped, match="fenced"):
        lake.commit(lake.delta(6, 7, epoch=epoch, instance=instance))
    assert breaches(lake, list(range(6))) == []


def test_a_zombies_commit_that_still_lands_is_seen_and_not_repeated(lake: Lake) -> None:
    lake.commit(lake.delta(0, 5))
    zombie = lake.committer()
    catalog = UnreliableCatalog(lake.catalog, between=lambda: commit_meanwhile(lake, zombie, lake.delta(5, 8)))
    outcome = lake.commit(lake.delta(5, 8, epoch=2, instance="writer-2"), lake.committer(catalog=catalog))
    assert isinstance(outcome, Landed)
    assert breaches(lake, list(range(8))) == []


def test_a_delta_of_which_a_part_landed_is_planned_anew(lake: Lake) -> None:
    lake.commit(lake.delta(0, 5))
    outcome = lake.commit(lake.delta(0, 8, epoch=2, instance="writer-2"))
    assert isinstance(outcome, Replan)
    assert outcome.base.offsets() == {LOG: 5}
    assert breaches(lake, list(range(5))) == []


def test_a_commit_moves_several_logs_at_once_or_none(lake: Lake) -> None:
    both = {LOG: OffsetRange(0, 5), "log-b": OffsetRange(0, 7)}
    outcome = lake.commit(lake.delta(0, 5, ranges=both))
    assert isinstance(outcome, Landed)
    assert outcome.base.offsets() == {LOG: 5, "log-b": 7}
    one_moved = {LOG: OffsetRange(5, 6), "log-b": OffsetRange(6, 9)}
    assert isinstance(lake.commit(lake.delta(5, 6, ranges=one_moved)), Replan)


def test_a_rollback_behind_dolakes_back_stops_the_table(lake: Lake) -> None:
    lake.commit(lake.delta(0, 5))
    lake.commit(lake.delta(5, 8))
    plain = lake.plain_table()
    first = sorted(plain.metadata.snapshots, key=lambda snapshot: snapshot.sequence_number)[0]
    plain.manage_snapshots().rollback_to_snapshot(first.snapshot_id).commit()
    with pytest.raises(TableStopped, match="rewound"):
        lake.commit(lake.delta(8, 9))


def test_offsets_set_back_by_hand_stop_the_table(lake: Lake) -> None:
    lake.commit(lake.delta(0, 5))
    lake.plain_table().transaction().set_properties({f"dolake.offset.{LOG}": "3"}).commit_transaction()
    with pytest.raises(TableStopped, match="rewound"):
        lake.commit(lake.delta(5, 6))


def test_a_table_recreated_under_the_same_name_stops_its_writer(lake: Lake) -> None:
    delta = lake.delta(0, 5)
    lake.catalog.drop(lake.current())
    with pytest.raises(TableStopped, match="dropped"):
        lake.commit(delta)
    lake.catalog.create(TABLE, make_metadata(lake.store, lake.runtime))
    with pytest.raises(TableStopped, match="another table took its name"):
        lake.commit(delta)


def test_a_foreign_append_in_between_is_built_upon(lake: Lake) -> None:
    lake.commit(lake.delta(0, 3))
    foreign = pa.table({"id": pa.array([100], pa.int64()), "name": ["foreign"]})
    committer = lake.committer(catalog=UnreliableCatalog(lake.catalog, between=lambda: lake.plain_table().append(foreign)))
    assert isinstance(lake.commit(lake.delta(3, 5), committer), Landed)
    assert lake.ids() == [0, 1, 2, 3, 4, 100]
    lake.plain_table().append(foreign)
    assert isinstance(lake.commit(lake.delta(5, 6), committer), Landed)
    head = lake.current().head
    assert head is not None
    assert (head["summary"]["total-records"], head["summary"]["total-data-files"]) == ("8", "5")


def test_a_foreign_compaction_keeps_the_offsets(lake: Lake) -> None:
    for start in range(4):
        lake.commit(lake.delta(start, start + 1))
    plain = lake.plain_table()
    plain.overwrite(plain.scan().to_arrow())
    assert isinstance(lake.commit(lake.delta(4, 5)), Landed)
    assert lake.ids() == [0, 1, 2, 3, 4]


def test_a_schema_that_moved_under_the_encoded_files_is_planned_anew(lake: Lake) -> None:
    delta = lake.delta(0, 5)
    with lake.plain_table().update_schema() as change:
        change.add_column("extra", LongType())
    outcome = lake.commit(delta)
    assert isinstance(outcome, Replan)
    assert outcome.base.schema["schema-id"] == 1


def test_a_commit_can_change_the_schema_and_old_rows_get_nulls(lake: Lake) -> None:
    lake.commit(lake.delta(0, 2))
    wider = {**SCHEMA, "fields": [*SCHEMA["fields"], {"id": 3, "name": "extra", "required": False, "type": "long"}]}
    arrow = pa.schema([pa.field(name, kind, metadata={"PARQUET:field_id": str(place)}) for place, (name, kind) in enumerate(
        [("id", pa.int64()), ("name", pa.string()), ("extra", pa.int64())], start=1)])  # fmt: skip
    file = put_file(lake.store, lake.table, [{"id": 2, "name": "n2", "extra": 7}], arrow=arrow)
    outcome = lake.commit(lake.delta(2, 3, rows=[], files=(file,), schema=wider))
    assert isinstance(outcome, Landed)
    assert outcome.base.head is not None
    assert outcome.base.head["schema-id"] == outcome.base.schema["schema-id"] == 1
    assert outcome.base.metadata["last-column-id"] == 3
    assert lake.query("SELECT id, extra FROM iceberg_scan('{table}') ORDER BY id") == [(0, None), (1, None), (2, 7)]
    assert sorted(lake.plain_table().scan().to_arrow()["extra"].to_pylist(), key=str) == [7, None, None]


def test_a_commit_without_files_is_an_empty_snapshot_that_moves_the_offset(lake: Lake) -> None:
    outcome = lake.commit(lake.delta(0, 5, rows=[]))
    assert isinstance(outcome, Landed)
    assert outcome.base.offsets() == {LOG: 5}
    assert lake.ids() == []
    assert isinstance(lake.commit(lake.delta(5, 6)), Landed)
    assert lake.ids() == [5]


def test_a_commit_without_offsets_is_known_by_its_name(lake: Lake) -> None:
    lake.commit(lake.delta(0, 2))
    claim = lake.delta(0, 0, rows=[], ranges={}, epoch=2, instance="writer-2")
    committer = lake.committer(catalog=UnreliableCatalog(lake.catalog, ["answer lost"]))
    outcome = lake.commit(claim, committer)
    assert isinstance(outcome, Landed)
    assert outcome.base.owner_epoch == 2
    assert len(outcome.base.metadata["snapshots"]) == 2


@pytest.mark.parametrize("damage", [lambda data: data[:-1], lambda data: None])
def test_a_data_file_that_is_not_whole_in_the_store_never_gets_into_a_snapshot(lake: Lake, damage: Callable[[bytes], bytes | None]) -> None:
    delta = lake.delta(0, 5)
    location = delta.files[0].location
    left = damage(lake.store.get(location))
    lake.store.delete(location)
    if left is not None:
        lake.store.put(location, left)
    outcome = lake.commit(delta)
    assert isinstance(outcome, Replan)
    assert location in outcome.reason
    assert lake.current().head is None


def test_data_whose_names_would_not_sync_is_written_anew(lake: Lake) -> None:
    class Failing(LocalStore):
        def settle(self, locations: Sequence[str]) -> None:
            raise StoreUnreachable("the directory could not be synced")

    outcome = lake.commit(lake.delta(0, 5), lake.committer(store=Failing(lake.store.root)))
    assert isinstance(outcome, Replan)
    assert lake.current().head is None


@pytest.mark.parametrize("point", sorted(name for name in failpoints.POINTS if name.startswith(("commit.", "catalog."))))
def test_trouble_at_any_step_leads_to_one_snapshot(lake: Lake, point: str) -> None:
    troubles: list[Trouble] = []
    committer = Committer(lake.runtime, lake.catalog, lake.store, on_trouble=troubles.append)
    failpoints.REGISTRY.arm(point, "1*raise")
    if point == "commit.resolve":
        failpoints.REGISTRY.arm("commit.load", "1*raise")
    try:
        assert isinstance(asyncio.run(committer.commit(lake.delta(0, 5))), Landed)
    finally:
        failpoints.REGISTRY.disarm()
    assert troubles
    assert breaches(lake, list(range(5))) == []
    assert len(lake.current().metadata["snapshots"]) == 1


def test_pauses_grow_and_are_bounded(lake: Lake) -> None:
    catalog = UnreliableCatalog(lake.catalog, ["request lost"] * 16, clock=lake.runtime.clock)
    assert isinstance(lake.commit(lake.delta(0, 5), lake.committer(catalog=catalog)), Landed)
    pauses_s = [after - before for before, after in pairwise(catalog.swapped_s)]
    assert len(pauses_s) == 16
    assert 0 < pauses_s[0] <= 0.1
    assert max(pauses_s) <= 4.2  # Waiters look at the breaker ten times a second.
    assert pauses_s[-1] >= 2


def test_a_cancelled_commit_ends(lake: Lake) -> None:
    async def run() -> None:
        task = asyncio.create_task(
            lake.committer(catalog=UnreliableCatalog(lake.catalog, ["request lost"] * 1000)).commit(lake.delta(0, 5))
        )
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(run())


def test_of_eight_writers_of_the_same_rows_one_commits_and_the_rest_are_fenced(lake: Lake) -> None:
    outcomes = race(lake, [lake.delta(0, 5, instance=f"writer-{number}") for number in range(8)])
    assert sum(isinstance(outcome, Landed) for outcome in outcomes) == 1
    assert sum(isinstance(outcome, TableStopped) for outcome in outcomes) == 7
    assert breaches(lake, list(range(5))) == []


def test_eight_logs_committed_side_by_side_all_land_once(lake: Lake) -> None:
    deltas = [lake.delta(0, 1, log=f"log-{number}", rows=[{"id": number, "name": ""}]) for number in range(8)]
    assert all(isinstance(outcome, Landed) for outcome in race(lake, deltas))
    assert lake.ids() == list(range(8))
    assert len(lake.current().metadata["snapshots"]) == 8


def race(lake: Lake, deltas: Sequence[Delta]) -> list[Any]:
    """Each delta from a writer of its own: its own catalog connections, memory and threads."""
    runtime = Runtime(clock=HandClock(), random=SystemRandomness(), tasks=ThreadTasks(len(deltas)))
    catalogs = [SqlTableCatalog(lake.uri, lake.store, runtime) for _ in deltas]

    async def run() -> list[Any]:
        committers = [Committer(runtime, catalog, lake.store) for catalog in catalogs]
        return await asyncio.gather(*(c.commit(d) for c, d in zip(committers, deltas, strict=True)), return_exceptions=True)

    try:
        return asyncio.run(run())
    finally:
        for catalog in catalogs:
            catalog.close()


def test_a_replaced_delta_keeps_its_name(lake: Lake) -> None:
    delta = lake.delta(0, 5)
    outcome = lake.commit(replace(delta, commit_id="named"))
    assert isinstance(outcome, Landed)
    assert outcome.base.head is not None
    assert outcome.base.head["summary"]["dolake.commit-id"] == "named"
