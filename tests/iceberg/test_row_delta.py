"""Rows added and deleted in one snapshot: every snapshot in history reads as a dictionary kept beside it says, in both readers."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from dolake import failpoints
from dolake.errors import StoreUnreachable, TableStopped
from dolake.iceberg.commit import Landed, Replan
from dolake.iceberg.contents import ContentsReader, LiveFile
from dolake.iceberg.plan import CommitPolicy, Delta
from dolake.iceberg.purge import named_files, purge
from dolake.storage.local import LocalStore
from tests.iceberg import foreign
from tests.iceberg.lake import Lake, replace_metadata
from tests.iceberg.mirror import Mirror, replanned
from tests.iceberg.unreliable import UnreliableCatalog, commit_meanwhile

FAULTS = ["request lost", "answer lost", "answered 409", "late: load", "late: after load", "late: swap", "late: after swap"]
UNPARTITIONED: dict[str, Any] = {"spec-id": 0, "fields": []}
BY_NAME = {"spec-id": 0, "fields": [{"source-id": 2, "field-id": 1000, "name": "name", "transform": "identity"}]}
BY_BUCKET = {"spec-id": 0, "fields": [{"source-id": 1, "field-id": 1001, "name": "id_bucket", "transform": "bucket[3]"}]}


def summary(lake: Lake) -> dict[str, str]:
    head = lake.current().head
    assert head is not None
    return {key: value for key, value in head["summary"].items() if not key.startswith(("dolake.", "total-"))}


def files_of(lake: Lake) -> tuple[LiveFile, ...]:
    head = lake.current().head
    assert head is not None
    return ContentsReader(lake.store).read(head).files


def size_of(files: Sequence[LiveFile]) -> str:
    return str(sum(file.size_bytes for file in files))


def test_rows_that_are_upserted_and_deleted_are_right_in_every_snapshot(lake: Lake) -> None:
    mirror = Mirror(lake)
    committer = lake.committer()
    for number in range(30):
        mirror.change({number: f"n{number}", number // 2: f"again {number}"}, [number - 7], committer=committer)
    assert mirror.breaches() == []


@pytest.mark.parametrize("restarts", [False, True])
def test_deletes_reach_files_of_every_partition_and_every_spec_the_table_ever_had(tmp_path: Path, restarts: bool) -> None:
    lake = Lake(tmp_path)
    mirror = Mirror(lake)
    committer = lake.committer()
    specs = [UNPARTITIONED, BY_NAME, BY_BUCKET, BY_NAME]
    values = [lambda *_: (), lambda _, name: (name,), lambda key, _: (key % 3,), lambda _, name: (name,)]
    for number in range(48):
        mirror.spec, mirror.partition_of = specs[number // 12], values[number // 12]  # type: ignore[assignment]
        # Rows of five commits ago and of the beginning go, others are written anew, in other partitions.
        upserts = {key: f"p{(key + number) % 3}" for key in (number, number * 7 % 48, number // 3)}
        mirror.change(upserts, [number - 5, number * 5 % 48], committer=lake.committer() if restarts else committer)
    assert mirror.breaches() == []
    deletes = [file for file in files_of(lake) if file.kind == "position deletes"]
    assert {file.spec_id for file in deletes} == {0, 1, 2}
    assert len({(file.spec_id, file.partition) for file in deletes}) > 5
    assert all(found.content.value == 0 or (found.existing_files_count or 0) < 60 for found in foreign.manifests_of(lake))
    lake.close()


def test_a_truncate_takes_out_every_file_and_history_keeps_them(lake: Lake) -> None:
    mirror = Mirror(lake)
    committer = lake.committer()
    for number in range(13):
        mirror.change({number: f"n{number}"}, [number - 2], committer=committer)
    before = files_of(lake)
    mirror.change({100: "after"}, truncate=True, committer=committer)
    (after,) = files_of(lake)
    deletes = [file for file in before if file.kind != "data"]
    assert summary(lake) == {
        "operation": "overwrite",
        "added-data-files": "1",
        "added-records": "1",
        "added-files-size": str(after.size_bytes),
        "deleted-data-files": "13",
        "deleted-records": "13",
        "removed-files-size": size_of(before),
        "removed-delete-files": str(len(deletes)),
        "removed-position-delete-files": str(len(deletes)),
        "removed-position-deletes": "11",
        "changed-partition-count": "1",
    }
    for number in range(13):
        mirror.change({number: f"n{number}"}, [number - 2, 100], committer=committer)
    assert mirror.breaches() == []
    mirror.change({}, truncate=True)
    assert (files_of(lake), summary(lake)["operation"]) == ((), "delete")
    mirror.change({}, truncate=True)
    assert (summary(lake), foreign.manifests_of(lake)) == ({"operation": "append"}, [])
    assert mirror.breaches() == []


def test_removed_files_are_recorded_once_with_the_numbers_they_had(lake: Lake) -> None:
    mirror = Mirror(lake)
    committer = lake.committer()
    for number in range(13):
        mirror.change({number: f"n{number}"}, [number - 2], committer=committer)
    before = {file.location: file.sequence_number for file in files_of(lake)}
    mirror.change({}, truncate=True, committer=committer)
    manifests = foreign.manifests_of(lake)
    assert [(found.content.value, found.deleted_files_count) for found in manifests] == [(0, 13), (1, 11)]
    entries = [entry for found in manifests for entry in found.fetch_manifest_entry(lake.plain_table().io, discard_deleted=False)]
    assert {entry.data_file.file_path: entry.sequence_number for entry in entries} == before
    assert {(entry.snapshot_id, entry.status.name) for entry in entries} == {(lake.current().head_id, "DELETED")}
    mirror.change({1: "a"}, committer=committer)
    assert [found.deleted_files_count for found in foreign.manifests_of(lake)] == [0]


def test_a_truncate_takes_out_what_others_wrote_meanwhile_too(lake: Lake) -> None:
    mirror = Mirror(lake)
    mirror.change({1: "a"})
    catalog = UnreliableCatalog(lake.catalog, between=lambda: foreign.append(lake, {7: "foreign"}))
    delta = mirror.delta({2: "b"}, truncate=True, on_head_only=False)
    assert isinstance(lake.commit(delta, lake.committer(catalog=catalog)), Landed)
    assert lake.ids() == [2]
    assert summary(lake)["deleted-data-files"] == "2"


def test_what_was_looked_up_under_another_head_is_planned_again_and_nothing_is_committed(lake: Lake) -> None:
    mirror = Mirror(lake)
    mirror.change({1: "a", 2: "b"})
    moments: list[str] = []

    def meanwhile() -> None:
        foreign.append(lake, {7: "foreign"})
        moments.append(lake.current().metadata_location)

    outcome = replanned(lake.commit(mirror.delta({1: "c"}), lake.committer(catalog=UnreliableCatalog(lake.catalog, between=meanwhile))))
    assert outcome.moved
    assert outcome.reason == "somebody else committed to it meanwhile: plan again on top of that"
    assert [outcome.base.metadata_location] == moments == [lake.current().metadata_location]
    mirror.took_in()
    mirror.change({1: "c"}, [7])
    assert mirror.breaches() == []
    assert lake.ids() == [1, 2]


def test_a_delta_that_was_planned_anew_for_another_reason_has_not_moved(lake: Lake) -> None:
    mirror = Mirror(lake)
    mirror.change({1: "a"})
    lake.store.delete((delta := mirror.delta({1: "c"})).deletes[0].location)
    assert not replanned(lake.commit(delta)).moved


@pytest.mark.parametrize("fault", FAULTS)
def test_an_unknown_outcome_of_a_row_delta_becomes_exactly_one_snapshot(lake: Lake, fault: str) -> None:
    mirror = Mirror(lake)
    mirror.change({1: "a", 2: "b", 3: "c"})
    mirror.change({1: "d"}, [3], committer=lake.committer(catalog=UnreliableCatalog(lake.catalog, [fault])))
    assert len(lake.current().metadata["snapshots"]) == 2
    mirror.change({5: "e"}, truncate=True, committer=lake.committer(catalog=UnreliableCatalog(lake.catalog, [fault])))
    assert len(lake.current().metadata["snapshots"]) == 3
    assert mirror.breaches() == []


@pytest.mark.parametrize("truncate", [False, True])
@pytest.mark.parametrize("point", sorted(name for name in failpoints.POINTS if name.startswith(("commit.", "catalog."))))
def test_trouble_at_any_step_of_a_row_delta_leads_to_one_snapshot(lake: Lake, point: str, truncate: bool) -> None:
    mirror = Mirror(lake)
    mirror.change({1: "a", 2: "b"})
    failpoints.REGISTRY.arm(point, "1*raise")
    if point == "commit.resolve":
        failpoints.REGISTRY.arm("commit.load", "1*raise")
    try:
        mirror.change({1: "c"}, [2], truncate=truncate)
    finally:
        failpoints.REGISTRY.disarm()
    assert len(lake.current().metadata["snapshots"]) == 2
    assert mirror.breaches() == []


def test_a_row_delta_found_landed_after_a_crash_is_not_repeated(lake: Lake) -> None:
    mirror = Mirror(lake)
    mirror.change({1: "a", 2: "b"})
    again = mirror.delta({1: "c"}, [2], epoch=2, instance="writer-2")
    mirror.change({1: "c"}, [2])
    assert lake.commit(again) == Landed(lake.current())
    assert mirror.breaches() == []


def test_a_zombies_row_delta_that_still_lands_is_seen_and_not_repeated(lake: Lake) -> None:
    mirror = Mirror(lake)
    mirror.change({1: "a", 2: "b"})
    zombies = mirror.delta({1: "c"}, [2])
    ours = mirror.delta({1: "c"}, [2], epoch=2, instance="writer-2")
    catalog = UnreliableCatalog(lake.catalog, between=lambda: commit_meanwhile(lake, lake.committer(), zombies))
    assert isinstance(lake.commit(ours, lake.committer(catalog=catalog)), Landed)
    mirror.took({1: "c"}, [2])
    assert mirror.breaches() == []
    assert lake.current().owner_epoch == 1


def test_a_zombie_deletes_nothing(lake: Lake) -> None:
    mirror = Mirror(lake)
    mirror.change({1: "a", 2: "b"})
    zombies = [mirror.delta({}, [2]), mirror.delta({}, truncate=True)]
    mirror.change({3: "c"}, epoch=2, instance="writer-2")
    mirror.offset -= 1
    for delta in zombies:
        with pytest.raises(TableStopped, match="fenced"):
            lake.commit(delta)
    assert mirror.breaches() == []


def damaged(delta: Delta, store: LocalStore) -> None:
    location = delta.deletes[0].location
    left = store.get(location)[:-1]
    store.delete(location)
    store.put(location, left)


@pytest.mark.parametrize("damage", [damaged, lambda delta, store: store.delete(delta.deletes[0].location)], ids=["short", "gone"])
def test_a_delete_file_that_is_not_whole_in_the_store_never_gets_into_a_snapshot(
    lake: Lake, damage: Callable[[Delta, LocalStore], None]
) -> None:
    mirror = Mirror(lake)
    mirror.change({1: "a", 2: "b"})
    damage(delta := mirror.delta({1: "c"}), lake.store)
    assert delta.deletes[0].location in replanned(lake.commit(delta)).reason
    assert mirror.breaches() == []


def test_deletes_whose_names_would_not_sync_are_written_anew(lake: Lake) -> None:
    class Failing(LocalStore):
        def settle(self, locations: Sequence[str]) -> None:
            if any(location.endswith("-deletes.parquet") for location in locations):
                raise StoreUnreachable("the directory could not be synced")
            super().settle(locations)

    mirror = Mirror(lake)
    mirror.change({1: "a", 2: "b"})
    assert isinstance(lake.commit(mirror.delta({}, [1]), lake.committer(store=Failing(lake.store.root))), Replan)
    assert mirror.breaches() == []


def test_history_that_has_had_its_time_goes_and_the_rest_reads_as_it_was(lake: Lake) -> None:
    mirror = Mirror(lake)
    committer = lake.committer(policy=CommitPolicy(snapshots_kept=5, tags_kept_days=0))
    for number in range(40):
        mirror.change({number % 9: f"n{number}"}, [(number * 5 + 2) % 9], truncate=number == 20, committer=committer)
    assert len(lake.current().metadata["snapshots"]) == 5
    assert mirror.breaches() == []


def test_a_purge_finds_delete_files_and_what_a_truncate_took_out(tmp_path: Path) -> None:
    lake = Lake(tmp_path)
    mirror = Mirror(lake)
    for number in range(4):
        mirror.change({number: "x"}, [number - 1], committer=lake.committer(policy=CommitPolicy(snapshots_kept=1, tags_kept_days=0)))
    mirror.change({9: "y"}, truncate=True, committer=lake.committer(policy=CommitPolicy(snapshots_kept=1, tags_kept_days=0)))
    metadata = lake.current().metadata_location
    lake.catalog.drop(lake.current())
    purge(lake.store, named_files(lake.store, metadata))
    assert [location for location, _ in lake.store.list(f"{lake.table.location}/data/")] == []
    lake.close()


def test_readers_pass_by_a_delete_file_that_cannot_speak_of_a_data_file(lake: Lake) -> None:
    mirror = Mirror(lake)
    for number in range(5):
        mirror.change({number: "x", number + 10: "y"})
    paths = {key: mirror.places[key].location for key in range(5)}
    by_path = sorted(range(5), key=lambda key: paths[key])
    mirror.change({}, [by_path[0], by_path[2]])
    mirror.change({}, [by_path[3]])
    tasks = {task.file.file_path: len(task.delete_files) for task in lake.plain_table().scan().plan_files()}
    assert [tasks[path] for path in sorted(tasks)] == [1, 1, 1, 1, 0]
    bounds = [(file.lower_bounds, file.upper_bounds) for file in files_of(lake) if file.kind == "position deletes"]
    wanted = [[paths[by_path[place]] for place in places] for places in ((3, 3), (0, 2))]
    assert bounds == [tuple({2147483546: path.encode()} for path in pair) for pair in wanted]


def test_what_a_snapshot_changed_is_counted_by_partition(tmp_path: Path) -> None:
    lake = Lake(tmp_path, spec=BY_NAME)
    mirror = Mirror(lake, spec=BY_NAME, partition_of=lambda _, name: (name,))
    mirror.change({1: "a", 2: "b", 3: "c", 4: "a"})
    before = files_of(lake)
    mirror.change({1: "b", 5: "d"}, [2, 4])
    new = [file for file in files_of(lake) if file.location not in {one.location for one in before}]
    assert summary(lake) == {
        "operation": "overwrite",
        "added-data-files": "2",
        "added-records": "2",
        "added-files-size": size_of(new),
        "added-delete-files": "2",
        "added-position-delete-files": "2",
        "added-position-deletes": "3",
        "changed-partition-count": "3",
    }
    mirror.change({}, [3])
    assert summary(lake) | {"added-files-size": ""} == {
        "operation": "delete",
        "added-files-size": "",
        "added-delete-files": "1",
        "added-position-delete-files": "1",
        "added-position-deletes": "1",
        "changed-partition-count": "1",
    }
    mirror.change({}, truncate=True)
    assert (summary(lake)["changed-partition-count"], summary(lake)["removed-position-deletes"]) == ("4", "4")
    assert mirror.breaches() == []
    lake.close()


def test_deletes_of_files_whose_partition_values_have_no_type_any_more_stop_the_table(tmp_path: Path) -> None:
    lake = Lake(tmp_path, spec=BY_NAME)
    mirror = Mirror(lake, spec=BY_NAME, partition_of=lambda _, name: (name,))
    mirror.change({1: "a", 2: "b"})
    replace_metadata(lake, lambda text: text.replace('"transform":"identity"', '"transform":"theirs"'))
    mirror.spec, mirror.partition_of = UNPARTITIONED, lambda *_: ()
    mirror.change({3: "c"})
    with pytest.raises(TableStopped, match=r"partition spec 0.*rewrite_data_files"):
        mirror.change({}, [1])
    mirror.change({4: "d"}, truncate=True)
    assert lake.plain_table().scan().to_arrow()["id"].to_pylist() == [4]  # DuckDB refuses such a table.
    assert (summary(lake)["deleted-data-files"], summary(lake)["deleted-records"]) == ("3", "3")
    lake.close()


@pytest.mark.parametrize("seed", range(4))
def test_any_order_of_changes_by_anybody_reads_as_the_dictionary_says(tmp_path: Path, seed: int) -> None:
    lake = Lake(tmp_path)
    mirror = Mirror(lake)
    drawn = random.Random(seed)
    committer = lake.committer(policy=CommitPolicy(snapshots_kept=20))
    for number in range(45):
        keys = drawn.sample(range(30), drawn.randint(1, 6))
        what = drawn.choices(
            ["change", "append", "delete", "truncate", "foreign", "theirs", "restart", "partition"], [9, 3, 4, 1, 2, 2, 1, 2]
        )[0]
        if what == "foreign" and mirror.spec is None:
            added = {key: f"foreign {number}" for key in keys if key not in mirror.rows}
            if added and mirror.at:
                foreign.append(lake, added)
                mirror.took_in()
        elif what == "theirs" and mirror.rows:
            place = mirror.places[drawn.choice(sorted(mirror.rows))]
            if lake.current().spec["fields"] == [] and place.spec_id == lake.current().spec["spec-id"]:
                foreign.position_delete(lake, place.location, [place.position])
                mirror.took_in()
        elif what == "restart":
            committer = lake.committer(policy=CommitPolicy(snapshots_kept=20))
        elif what == "partition":
            mirror.spec = drawn.choice([UNPARTITIONED, BY_BUCKET])
            mirror.partition_of = (lambda *_: ()) if mirror.spec is UNPARTITIONED else (lambda key, _: (key % 3,))
        upserts = dict.fromkeys(keys, f"n{number}") if what in ("change", "append", "truncate") else {}
        deletes = [key for key in drawn.sample(range(30), 5) if key not in upserts] if what in ("change", "delete") else []
        mirror.change(upserts, deletes, truncate=what == "truncate", committer=committer)
    assert mirror.breaches() == []
    lake.close()
