"""Purging: what nobody needs goes, and nothing else, whatever the table has been through (I10, I11)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pyiceberg.table import StaticTable

import dolake.compaction.purging as purging
import dolake.compaction.unreferenced as unreferenced
from dolake import failpoints
from dolake.compaction.grace import Grace
from dolake.compaction.purging import PurgeResult, find_unreferenced, purge
from dolake.compaction.unreferenced import Needs, StoredObject, sort_out
from dolake.errors import CommitConflict, ObjectDamaged, ObjectMissing, RequestRefused, StoreUnreachable, TableStopped
from dolake.failpoints import FailpointRaised
from dolake.iceberg.catalog_rows import CatalogRows
from dolake.iceberg.contents import ContentsReader
from dolake.iceberg.identifiers import Identifier, Namespace
from dolake.iceberg.metadata import LoadedTable, ancestry, snapshots_by_id, to_bytes
from dolake.iceberg.names import data_file_location, metadata_location, metadata_version, parse_below
from dolake.iceberg.plan import CommitPlan, CommitPolicy
from dolake.iceberg.purge import named_files
from dolake.model import TableName
from dolake.storage.local import LocalStore
from tests.compaction.history import History, QuickLake, put_rows, reachable
from tests.iceberg.lake import TABLE, make_metadata

UUID = "6f1b0a52-3c0d-4f53-9b1e-0a1b2c3d4e5f"
FOLDER = "file:///w/shop/orders/"


@pytest.fixture
def lake(tmp_path: Path) -> Iterator[QuickLake]:
    with closing(QuickLake(tmp_path)) as lake:
        yield lake


# -- any history


def survive(directory: Path, seed: int) -> list[str]:
    """What is wrong after a table with this seed's history was claimed and purged, with commits under way on either side of the claim."""
    history = History(directory, seed)
    with closing(history.lake):
        return _survive(history)


def _survive(history: History) -> list[str]:
    lake, draw = history.lake, history.draw
    history.run(draw.randint(3, 9))
    offset, head = history.mirror.offset, lake.current().head_id
    # Somebody's commit stands before its swap while the claim lands.
    late = put_rows(lake, lake.current().owner_epoch or 1, {77: "late"}, offset)
    held = lake.prepared(late)
    claimed = lake.claim(history.policy)
    history.mirror.note()
    left = history.leave_attempts()
    # And one of the claim's own epoch has put its files, and perhaps its manifests, before the purge.
    own = put_rows(lake, claimed.owner_epoch, {78: "own"}, offset)
    own_held = lake.prepared(own)
    named, before = reachable(lake), lake.objects()
    own_paths = {location.removeprefix(lake.table.location + "/") for location in own.objects()}
    found = lake.find(claimed)
    result = purge(lake.store, found.objects)
    said = history.breaches()
    after = lake.objects()
    said += [f"{path} is gone, and is not dolake's" for path in sorted(history.foreign - after)]
    said += [f"{path} is gone, and may still be committed" for path in sorted((left.stay | own_paths) - after)]
    said += [f"{path} is there, and nobody needs it" for path in sorted(left.over & after)]
    said += [f"{path} is there, for no reason" for path in sorted(after - named - history.foreign) if _is_over(path, claimed)]
    if (result.objects_count, found.left_count) != (len(before) - len(after), _foreign_count(before)):
        said.append(f"{result} and {found.left_count} left, of {len(before)}: {len(after)} are there")
    said += _land_later(lake, held, own_held)
    said += [f"the table was at {head}, the late commit landed"] if late.commit_id in _commit_ids(lake) else []
    return said


def _land_later(lake: QuickLake, held: tuple[LoadedTable, CommitPlan], own_held: tuple[LoadedTable, CommitPlan]) -> list[str]:
    """The two commits go on: the one from before the claim must fail, the claim's own must land whole."""
    said = []
    try:
        lake.catalog.swap(held[0], held[1].requirements, held[1].updates)
        said.append("a commit from before the claim landed")
    except CommitConflict:
        pass
    lake.catalog.swap(own_held[0], own_held[1].requirements, own_held[1].updates)
    names_it = "is gone, and a commit that landed later names it"
    return said + [f"{path} {names_it}" for path in sorted(reachable(lake) - lake.objects())]


def _is_over(path: str, claimed: LoadedTable) -> bool:
    """Of a path that nothing names, by its name alone."""
    last = path.rsplit("/", 1)[-1]
    if last.endswith(".metadata.json"):
        return int(last[:5]) <= metadata_version(claimed.metadata_location)
    return not last.startswith("e") or int(last[1:9], 16) < claimed.owner_epoch


def _foreign_count(paths: set[str]) -> int:
    return sum(parse_below(path) is None for path in paths)


def _commit_ids(lake: QuickLake) -> set[str]:
    return {snapshot["summary"].get("dolake.commit-id", "") for snapshot in snapshots_by_id(lake.current().metadata).values()}


@pytest.mark.acceptance("AT-68")
@pytest.mark.parametrize("part", range(8))
def test_whatever_a_table_has_been_through_only_what_nobody_needs_is_purged(tmp_path: Path, part: int) -> None:
    for seed in range(part * 25, part * 25 + 25):
        (directory := tmp_path / str(seed)).mkdir()
        assert survive(directory, seed) == [], f"seed {seed}"


# -- mutants: each rule left out, and the histories notice


def _of_main_only(store: Any, base: LoadedTable) -> Any:
    """What tags and other branches keep is forgotten."""
    kept = {snapshot["snapshot-id"] for snapshot in ancestry(base.metadata, base.head_id)}
    snapshots = [snapshot for snapshot in base.metadata["snapshots"] if snapshot["snapshot-id"] in kept]
    refs = {"main": base.metadata["refs"]["main"]}
    return _read_retained(store, replace(base, metadata={**base.metadata, "snapshots": snapshots, "refs": refs}))


def _of_the_head_only(store: Any, base: LoadedTable) -> Any:
    snapshots = [snapshot for snapshot in base.metadata["snapshots"] if snapshot["snapshot-id"] == base.head_id]
    return _read_retained(store, replace(base, metadata={**base.metadata, "snapshots": snapshots, "refs": {}}))


def _without_its_log(store: Any, base: LoadedTable) -> Any:
    return _read_retained(store, replace(base, metadata={**base.metadata, "metadata-log": []}))


def _without_manifests(reach: Any, locations: Any) -> None:
    reach.names.update(location.rsplit("/", 1)[-1] for location in locations if "-m" not in location)


def _parsed_loosely(path: str) -> Any:
    last = path.rsplit("/", 1)[-1]
    return parse_below(f"data/{last}") or parse_below(f"metadata/{last}")


_read_retained = purging._read_retained
LATER = "a commit that landed later"
MUTANTS: dict[str, tuple[Any, str, Any, str]] = {
    "without epoch: what nobody names now goes": (unreferenced, "may_be_named", lambda number, first_open: False, LATER),
    "the claim's own epoch is taken for over": (unreferenced, "may_be_named", lambda number, first_open: number > first_open, LATER),
    "what tags and branches keep is not needed": (purging, "_read_retained", _of_main_only, "a retained snapshot"),
    "what the head does not name is not needed": (purging, "_read_retained", _of_the_head_only, "a retained snapshot"),
    "metadata files in the log are not needed": (purging, "_read_retained", _without_its_log, "metadata.json is gone"),
    "manifests are not needed": (purging._Reach, "_name", _without_manifests, "a retained snapshot"),
    "names are parsed loosely": (unreferenced, "parse_below", _parsed_loosely, "is gone, and is not dolake's"),
    "nothing is ever over": (unreferenced, "may_be_named", lambda number, first_open: True, "nobody needs it"),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_a_rule_left_out_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    module, attribute, mutant, said = MUTANTS[name]
    monkeypatch.setattr(module, attribute, mutant)
    for seed in range(40):
        (directory := tmp_path / str(seed)).mkdir()
        breaches = survive(directory, seed)
        if any(said in breach for breach in breaches):
            return
    pytest.fail(f"nobody noticed: {name}")


# -- killed, cut short, disturbed


@pytest.mark.parametrize("point", ["purge.listed", "purge.before_delete", "purge.after_delete"])
@pytest.mark.parametrize("skipped", [0, 4])
def test_killed_anywhere_the_next_run_finds_the_rest(tmp_path: Path, point: str, skipped: int) -> None:
    history = History(tmp_path, 5)
    with closing(history.lake) as lake:
        history.run(6)
        claimed = lake.claim(history.policy)
        history.mirror.note()
        left = history.leave_attempts()
        failpoints.REGISTRY.arm(point, f"{skipped}*off->1*raise" if skipped else "1*raise")
        try:
            purge(lake.store, lake.find(claimed).objects)
        except FailpointRaised:
            assert history.breaches() == []
        finally:
            failpoints.REGISTRY.disarm()
        purge(lake.store, lake.find(lake.claim(history.policy)).objects)
        history.mirror.note()
        assert left.over & lake.objects() == set()
        # What the first claim had shut out by version or epoch alone is over with the second, unless it is of that one.
        assert lake.find(lake.current()).objects == ()
        assert history.breaches() == []


class _StoreThatFails(LocalStore):
    """Every read from the n-th on comes to nothing."""

    reads_left = 10**9
    gets = 0

    def get(self, location: str) -> bytes:
        self.gets += 1
        self.reads_left -= 1
        if self.reads_left < 0:
            raise StoreUnreachable("gone")
        return super().get(location)


def test_whatever_cannot_be_read_nothing_is_found(tmp_path: Path) -> None:
    history = History(tmp_path, 8)
    with closing(history.lake) as lake:
        history.run(6)
        claimed = lake.claim(history.policy)
        history.leave_attempts()
        store = _StoreThatFails(lake.store.root)
        neighbours = lake.catalog.neighbours(TABLE)
        settings: dict[str, Any] = {"epoch": claimed.owner_epoch, "owns_metadata": True, "neighbours": neighbours}
        assert find_unreferenced(store, claimed, **settings).objects
        assert store.gets > 8
        for reads in range(store.gets):
            store.reads_left = reads
            with pytest.raises(StoreUnreachable):
                find_unreferenced(store, claimed, **settings)


def _contents_paths(lake: QuickLake, kind: str) -> list[str]:
    head = lake.current().head
    assert head is not None
    contents = ContentsReader(lake.store).read(head)
    if kind == "data":
        return [file.location for file in contents.files]
    return [location for location in contents.metadata if ("-list" in location) == (kind == "list")]


@pytest.mark.parametrize("kind", ["data", "manifest", "list"])
@pytest.mark.parametrize("damage", ["gone", "torn"])
def test_a_table_that_lacks_something_is_not_purged(lake: QuickLake, kind: str, damage: str) -> None:
    lake.commit(lake.delta(0, 3))
    claimed = lake.claim()
    location = _contents_paths(lake, kind)[0]
    data = lake.store.get(location)
    lake.store.delete(location)
    if damage == "torn":
        lake.store.put(location, data[: len(data) // 2])
    if (kind, damage) == ("data", "torn"):  # Its bytes are none of ours here.
        assert lake.find(claimed).objects == ()
        return
    with pytest.raises((ObjectMissing, ObjectDamaged)):
        lake.find(claimed)


def test_a_ref_to_a_snapshot_that_is_not_there_stops_it(lake: QuickLake) -> None:
    lake.commit(lake.delta(0, 3))
    claimed = lake.claim()
    lost = {**claimed.metadata, "refs": {**claimed.metadata["refs"], "t": {"type": "tag", "snapshot-id": 5}}}
    with pytest.raises(ObjectDamaged, match="has no snapshot 5"):
        lake.find(replace(claimed, metadata=lost))


@pytest.mark.parametrize("epoch", [1, 3])
def test_without_a_claim_nothing_is_found(lake: QuickLake, epoch: int) -> None:
    lake.commit(lake.delta(0, 3))
    with pytest.raises(TableStopped, match=f"its epoch is 2, ours is {epoch}"):
        lake.find(lake.claim(), epoch=epoch)


def test_a_purge_ends_where_it_should_and_says_so(lake: QuickLake) -> None:
    lake.commit(lake.delta(0, 3))
    for _ in range(5):
        lake.store.put(data_file_location(lake.table.location, 1, lake.runtime.random.uuid(), 0), b"123")
    base = lake.claim()
    done: list[int] = []
    assert purge(lake.store, lake.find(base).objects, count_max=2, progress=done.append) == PurgeResult(2, 6, 3)
    assert purge(lake.store, lake.find(base).objects, spent=lambda: len(done) > 2, progress=done.append) == PurgeResult(1, 3, 2)
    assert purge(lake.store, lake.find(base).objects) == PurgeResult(2, 6, 0)
    assert done == [1, 2, 1]


# -- metadata files


def test_of_metadata_files_those_stay_that_the_current_one_names(lake: QuickLake) -> None:
    lake.catalog.swap(lake.current(), [], [{"action": "set-properties", "updates": {"write.metadata.previous-versions-max": "5"}}])
    for number in range(12):
        lake.commit(lake.delta(number, number + 1))
    base = lake.claim()
    assert len(base.metadata["metadata-log"]) == 5
    purge(lake.store, lake.find(base).objects)
    assert sum(path.endswith(".metadata.json") for path in lake.objects()) == 6
    assert lake.ids() == list(range(12))


def test_the_log_of_metadata_files_is_bounded_by_itself(lake: QuickLake) -> None:
    for number in range(105):
        lake.catalog.swap(lake.current(), [], [{"action": "set-properties", "updates": {"x": str(number)}}])
    base = lake.claim()
    assert len(base.metadata["metadata-log"]) == 100
    purge(lake.store, lake.find(base).objects)
    assert sum(path.endswith(".metadata.json") for path in lake.objects()) == 101


def test_another_catalogs_metadata_files_are_left(lake: QuickLake) -> None:
    lake.commit(lake.delta(0, 3))
    base = lake.claim()
    lake.store.put(metadata_location(base.location, 0, UUID), to_bytes(base.metadata))
    found = lake.find(base, owns_metadata=False, neighbours=None)
    assert (found.objects, found.left_count) == ((), 1)
    assert [one.kind for one in lake.find(base).objects] == ["metadata"]


def test_of_many_metadata_files_few_are_read(lake: QuickLake) -> None:
    for number in range(250):
        lake.catalog.swap(lake.current(), [], [{"action": "set-properties", "updates": {"x": str(number)}}])
    base = lake.claim()
    store = _StoreThatFails(lake.store.root)
    found = find_unreferenced(store, base, epoch=1, owns_metadata=True, neighbours=())
    assert [one.kind for one in found.objects] == ["metadata"] * 151
    assert store.gets <= 4


# -- other tables


def test_half_a_metadata_file_is_left_and_stops_nobody(lake: QuickLake) -> None:
    lake.store.put(metadata_location(lake.table.location, 0, UUID), b'{"format-ver')
    found = lake.find(lake.claim())
    assert (found.objects, found.left_count) == ((), 1)


def test_a_metadata_file_of_another_program_that_cannot_be_read_stops_it(lake: QuickLake) -> None:
    lake.store.put(f"{lake.table.location}/metadata/00003-{UUID}.gz.metadata.json", b"\x1f\x8b")
    with pytest.raises(ObjectDamaged, match="nobody knows what it needs"):
        lake.find(lake.claim())


def _former_life(lake: QuickLake) -> tuple[LoadedTable, set[str], set[str]]:
    """A table of epoch 4 that is dropped, and what it has, and what it left behind below it; a new one stands in its folder."""
    for epoch in range(1, 5):
        lake.commit(lake.delta(epoch - 1, epoch, epoch=epoch), lake.committer(policy=CommitPolicy(snapshots_kept=1, tags_kept_days=0)))
    former = lake.current()
    needed = reachable(lake)
    lake.catalog.drop(former)
    garbage = lake.objects() - needed
    assert garbage  # Lists and manifests of snapshots that have expired.
    lake.table = lake.catalog.create(TABLE, make_metadata(lake.store, lake.runtime))
    return former, needed, garbage


def test_a_dropped_tables_files_stay_and_can_be_registered_again(lake: QuickLake) -> None:
    former, needed, garbage = _former_life(lake)
    lake.commit(lake.delta(0, 3))
    for _ in range(2):  # The present table's epochs 2 and 3: those of the former one's files, and its highest is above.
        base = lake.claim(CommitPolicy(snapshots_kept=1, tags_kept_days=0))
    attempts = {
        epoch: data_file_location(base.location, epoch, lake.runtime.random.uuid(), 0).removeprefix(base.location + "/")
        for epoch in range(1, 6)
    }
    for path in attempts.values():
        lake.store.put(f"{base.location}/{path}", b"x")
    found = lake.find(base)
    purge(lake.store, found.objects)
    after = lake.objects()
    assert needed <= after
    assert {path for path in attempts.values() if path not in after} == {attempts[1], attempts[2]}
    # And the list of the snapshot before its last: as far as can be seen, the last metadata file may be of a swap that was lost.
    assert found.of_others_count == len(needed) + 1
    # What no table names is judged by its own epoch; the former one's highest was 4.
    assert {path for path in garbage & after if "/e" in path} == {
        path for path in garbage if "/e0000000" in path and int(path.split("/e")[1][:8], 16) >= 3
    }
    assert lake.ids() == [0, 1, 2]
    plain = StaticTable.from_metadata(former.metadata_location)
    assert sorted(plain.scan().to_arrow()["id"].to_pylist()) == [0, 1, 2, 3]


def test_a_dropped_table_that_was_purged_half_stops_nobody(lake: QuickLake) -> None:
    former, _, _ = _former_life(lake)
    for location in named_files(lake.store, former.metadata_location)[:-1]:
        lake.store.delete(location)
    found = lake.find(lake.claim())
    assert (found.objects, found.of_others_count) == ((), 1)


def test_where_the_catalog_does_not_say_a_former_table_may_be_one_still(lake: QuickLake) -> None:
    _former_life(lake)
    with pytest.raises(RequestRefused, match="does not say whether it has that one still"):
        lake.find(lake.claim(), neighbours=None)


def test_a_table_that_shares_its_folder_is_not_purged(lake: QuickLake) -> None:
    """Renamed, it keeps its folder, in which later events then make another one."""
    lake.commit(lake.delta(0, 3))
    other = TableName("shop", "renamed")
    rows = CatalogRows(lake.catalog)
    with rows.changing() as connection:
        here, there = (Identifier.of(Namespace((name.namespace,)), name.name) for name in (TABLE, other))
        assert rows.rename(connection, here, lake.current().metadata_location, there)
    lake.table = lake.catalog.create(TABLE, make_metadata(lake.store, lake.runtime))
    with pytest.raises(RequestRefused, match=r"in common with the table dolake: shop\.renamed"):
        lake.find(lake.claim())


def test_tables_nested_in_the_folder_and_around_it_are_left_alone(lake: QuickLake) -> None:
    tables = {}
    for name, below in (("inner", "/data"), ("deeper", "/data/metadata"), ("sibling", "2")):
        metadata = {**make_metadata(lake.store, lake.runtime), "location": lake.table.location + below}
        tables[name] = lake.catalog.create(TableName("shop", name), metadata)
        lake.store.put(data_file_location(tables[name].location, 0, UUID, 0), b"x")
    base = lake.claim()
    found = lake.find(base)
    assert (found.objects, found.left_count) == ((), 4)
    around = find_unreferenced(
        lake.store,
        replace(base, metadata={**base.metadata, "location": base.location + "/data"}),
        epoch=1,
        owns_metadata=True,
        neighbours=[("t", base.metadata_location)],
    )
    assert [one.location for one in around.objects] == [data_file_location(tables["inner"].location, 0, UUID, 0)]


# -- the decision, alone


def names(**kinds: Any) -> Needs:
    return replace(Needs(set(), set(), set(), epoch=3, version=17), **kinds)


@pytest.mark.parametrize(
    ("path", "needs", "fate"),
    [
        (f"data/e00000002-{UUID}-00000000.parquet", names(), "data"),
        (f"data/e00000002-{UUID}-00000000-deletes.parquet", names(), "deletes"),
        (f"metadata/e00000002-{UUID}-m0.avro", names(), "manifest"),
        (f"metadata/e00000002-{UUID}-list.avro", names(), "manifest list"),
        (f"data/e00000003-{UUID}-00000000.parquet", names(), "unfinished"),
        (f"data/e00000004-{UUID}-00000000.parquet", names(), "unfinished"),
        (f"metadata/e00000003-{UUID}-m0.avro", names(), "unfinished"),
        (f"data/e00000002-{UUID}-00000000.parquet", names(retained={f"e00000002-{UUID}-00000000.parquet"}), "reachable"),
        (f"data/e00000002-{UUID}-00000000.parquet", names(of_others={f"e00000002-{UUID}-00000000.parquet"}), "of_others"),
        (f"metadata/00017-{UUID}.metadata.json", names(own_metadata={f"00017-{UUID}.metadata.json"}), "metadata"),
        (f"metadata/00018-{UUID}.metadata.json", names(own_metadata={f"00018-{UUID}.metadata.json"}), "unfinished"),
        (f"metadata/00017-{UUID}.metadata.json", names(), "left"),
        (f"data/e0000002-{UUID}-00000000.parquet", names(), "left"),
        (f"data/E00000002-{UUID}-00000000.parquet", names(), "left"),
        (f"metadata/e00000002-{UUID}-00000000.parquet", names(), "left"),
        (f"data/e00000002-{UUID}-m0.avro", names(), "left"),
        (f"e00000002-{UUID}-m0.avro", names(), "left"),
        (f"data/p=1/e00000002-{UUID}-00000000.parquet", names(), "left"),
        (f"data/e00000002-{UUID}-00000000.parquet.tmp", names(), "left"),
        ("data/00000-0-theirs.parquet", names(), "left"),
    ],
)
def test_an_object_is_judged_by_its_name_and_by_what_is_needed(path: str, needs: Needs, fate: str) -> None:
    found = sort_out([(FOLDER + path, 7)], FOLDER, needs)
    counts = {fate: getattr(found, f"{fate}_count") for fate in ("reachable", "unfinished", "of_others", "left")}
    purged = [one.kind for one in found.objects]
    assert (purged, counts) == ([fate] if fate not in counts else [], {one: int(one == fate) for one in counts})
    assert found.size_bytes == 7 * len(purged)


def test_what_names_others_goes_after_them() -> None:
    paths = ["metadata/e00000001-{}-list.avro", "metadata/e00000001-{}-m0.avro", "data/e00000001-{}-00000000.parquet"]
    found = sort_out([(FOLDER + path.format(UUID), 1) for path in paths], FOLDER, names())
    assert [one.kind for one in found.objects] == ["data", "manifest", "manifest list"]


# -- the time that readers have


def objects(*numbers: int) -> list[StoredObject]:
    return [StoredObject(f"{FOLDER}{number}", 1, "data") for number in numbers]


def test_an_object_waits_from_when_it_was_first_seen() -> None:
    grace = Grace(60)
    assert grace.due(objects(1), 100) == ()
    assert grace.due(objects(1, 2), 159.9) == ()
    assert grace.due(objects(1, 2), 160) == tuple(objects(1))
    assert grace.due(objects(2, 1), 300) == tuple(objects(2, 1))  # Those that are still there are due still.


def test_what_is_gone_or_needed_again_is_forgotten() -> None:
    grace = Grace(60)
    grace.due(objects(1, 2), 0)
    assert grace.due(objects(2), 50) == ()
    assert grace.waiting_count == 1
    assert grace.due(objects(1, 2), 70) == tuple(objects(2))
    assert grace.due(objects(1), 131) == tuple(objects(1))


def test_what_is_remembered_is_bounded_and_all_have_their_turn() -> None:
    grace = Grace(60, objects_max=2)
    waiting, now_s = objects(*range(7)), 0.0
    for _ in range(20):
        due = grace.due(waiting, now_s)
        assert grace.waiting_count <= 2
        waiting = [one for one in waiting if one not in due]
        now_s += 60
    assert waiting == []


def test_without_grace_all_go_at_once() -> None:
    assert Grace(0).due(objects(1, 2), 0) == tuple(objects(1, 2))
