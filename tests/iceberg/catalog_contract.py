"""What dolake needs of a catalog, whichever it is: each rule is a function over a lake in it.

`CONTRACT` is run over every catalog: SQLite and those behind PyIceberg here, PostgreSQL in `e2e`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from dolake.errors import CommitConflict
from dolake.iceberg.catalog import Swap, TableCatalog
from dolake.iceberg.commit import Landed
from dolake.iceberg.metadata import LoadedTable, apply_updates, new_table
from dolake.iceberg.plan import CommitPolicy
from dolake.model import TableName
from tests.iceberg.lake import LOG, START_MS, TABLE, Lake, make_metadata

BIG = 2**63 - 25  # No float, and no JavaScript, holds it.
OTHER = TableName("elsewhere", "nested")
NESTED: dict[str, Any] = {
    "type": "struct",
    "schema-id": 0,
    "identifier-field-ids": [7],
    "fields": [
        # Ids as evolution leaves them: none in the order in which anybody would give them out anew.
        {"id": 7, "name": "id", "required": True, "type": "long"},
        {"id": 3, "name": "at", "required": False, "type": "timestamptz", "doc": "when"},
        {
            "id": 20,
            "name": "place",
            "required": False,
            "type": {
                "type": "struct",
                "fields": [{"id": 12, "name": "lat", "required": False, "type": "decimal(12, 6)"}],
            },
        },
        {
            "id": 5,
            "name": "tags",
            "required": False,
            "type": {"type": "list", "element-id": 9, "element": "string", "element-required": False},
        },
        {
            "id": 30,
            "name": "counts",
            "required": False,
            "type": {"type": "map", "key-id": 31, "key": "string", "value-id": 32, "value": "long", "value-required": False},
        },
    ],
}
DAILY = {"spec-id": 0, "fields": [{"source-id": 3, "field-id": 1000, "name": "at_day", "transform": "day"}]}
# What a catalog may word, number or date as it likes.
_ITS_OWN = ("table-uuid", "last-updated-ms", "metadata-log", "snapshot-log", "sort-orders")


def comparable(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """What must be the same in every catalog; empty parts may be left out."""
    kept = {key: value for key, value in metadata.items() if key not in _ITS_OWN and value not in ([], {}, None)}
    kept["schemas"] = [{**schema, "identifier-field-ids": schema.get("identifier-field-ids") or []} for schema in metadata["schemas"]]
    # PyIceberg forgets the parent of a snapshot when that parent expires; Iceberg's Java does not.
    known = {snapshot["snapshot-id"] for snapshot in metadata.get("snapshots") or ()}
    kept["snapshots"] = [
        {key: value for key, value in snapshot.items() if key != "parent-snapshot-id" or value in known}
        for snapshot in metadata.get("snapshots") or ()
    ]
    return kept


def snapshot_updates(lake: Lake, base: LoadedTable, snapshot_id: int, **properties: str) -> tuple[list[Any], list[Any]]:
    """Requirements and updates of one snapshot on `base`."""
    snapshot = {
        "snapshot-id": snapshot_id,
        "sequence-number": base.metadata["last-sequence-number"] + 1,
        "timestamp-ms": max(START_MS, base.metadata["last-updated-ms"]) + 1,
        "manifest-list": f"{base.location}/metadata/list-{snapshot_id}.avro",
        "schema-id": base.schema["schema-id"],
        "summary": {"operation": "append", "total-records": "0", "dolake.offset.log-a": str(BIG), "dolake.lsn.a source": "0/16B3748"},
    }
    if base.head_id is not None:
        snapshot["parent-snapshot-id"] = base.head_id
    lake.store.put(snapshot["manifest-list"], b"")
    updates = [
        {"action": "add-snapshot", "snapshot": snapshot},
        {
            "action": "set-snapshot-ref",
            "ref-name": "main",
            "type": "branch",
            "snapshot-id": snapshot_id,
            "max-ref-age-ms": BIG,
            "max-snapshot-age-ms": 86_400_000,
            "min-snapshots-to-keep": 3,
        },
        {"action": "set-properties", "updates": {"offset": str(snapshot_id), **properties}},
    ]
    return [{"type": "assert-ref-snapshot-id", "ref": "main", "snapshot-id": base.head_id}], updates


def advance(lake: Lake, base: LoadedTable, snapshot_id: int, **properties: str) -> LoadedTable:
    return lake.catalog.swap(base, *snapshot_updates(lake, base, snapshot_id, **properties))


def a_table_has_the_ids_and_the_partitions_it_was_planned_with(lake: Lake) -> None:
    location = f"{lake.store.root}/elsewhere/nested"
    properties = {"write.parquet.compression-codec": "zstd", "dolake.schema.a": '{"é": "\\u0000"}'}
    wanted = new_table(
        uuid=lake.runtime.random.uuid(), location=location, schema=NESTED, spec=DAILY, properties=properties, now_ms=START_MS
    )
    created = lake.catalog.create(OTHER, wanted)
    assert comparable(created.metadata) == comparable(wanted)
    assert created.head is None
    again = lake.open(lake.store, lake.runtime)
    assert again.load(OTHER) == created
    again.close()


def a_name_is_taken_once(lake: Lake) -> None:
    with pytest.raises(CommitConflict, match="has a table of this name"):
        lake.catalog.create(TABLE, make_metadata(lake.store, lake.runtime))
    assert lake.current().uuid == lake.table.uuid


def a_table_that_is_not_there_is_none(lake: Lake) -> None:
    assert lake.catalog.load(TableName("shop", "nothing")) is None
    assert lake.catalog.load(TableName("nowhere", "nothing")) is None


def every_update_does_what_it_says_and_nothing_of_it_is_lost(lake: Lake) -> None:
    first = advance(lake, lake.current(), BIG, gone="x")
    second = advance(lake, first, 42)
    schema = {
        **first.schema,
        "schema-id": 1,
        "fields": [*first.schema["fields"], {"id": 3, "name": "more", "required": False, "type": "date"}],
    }
    spec = {"spec-id": 1, "fields": [{"source-id": 1, "field-id": 1000, "name": "id_bucket", "transform": "bucket[4]"}]}
    changes = [
        {"action": "add-schema", "schema": schema},
        {"action": "set-current-schema", "schema-id": -1},
        {"action": "add-spec", "spec": spec},
        {"action": "set-default-spec", "spec-id": -1},
        {"action": "set-snapshot-ref", "ref-name": "hourly", "type": "tag", "snapshot-id": 42, "max-ref-age-ms": BIG},
        {"action": "set-snapshot-ref", "ref-name": "short", "type": "tag", "snapshot-id": 42},
        {"action": "remove-snapshot-ref", "ref-name": "short"},
        {"action": "remove-properties", "removals": ["gone"]},
    ]
    requirements, updates = snapshot_updates(lake, second, 43)
    updates = [*changes, *updates, {"action": "remove-snapshots", "snapshot-ids": [BIG]}]
    wanted = apply_updates(second, updates, START_MS)
    landed = lake.catalog.swap(second, requirements, updates)
    assert comparable(landed.metadata) == comparable(wanted)
    assert lake.current() == landed
    assert second.metadata["snapshots"][0]["snapshot-id"] == BIG
    assert first.metadata["refs"]["main"]["max-ref-age-ms"] == BIG


def a_swap_is_made_once_on_what_was_loaded(lake: Lake) -> None:
    base = lake.current()
    landed = advance(lake, base, 1, winner="first")
    with pytest.raises(CommitConflict):
        advance(lake, base, 2, winner="second")
    assert lake.current() == landed
    assert landed.properties["winner"] == "first"


def a_plan_made_from_another_schema_is_refused(lake: Lake) -> None:
    """Even where its author required nothing of the kind."""
    base = lake.current()
    schema = {
        **base.schema,
        "schema-id": 1,
        "fields": [*base.schema["fields"], {"id": 3, "name": "more", "required": False, "type": "date"}],
    }
    evolved = lake.catalog.swap(base, [], [{"action": "add-schema", "schema": schema}, {"action": "set-current-schema", "schema-id": -1}])
    with pytest.raises(CommitConflict):
        advance(lake, base, 1)
    assert lake.current() == evolved


def of_fifty_concurrent_swaps_one_wins_for_each_base(lake: Lake) -> None:
    catalogs = [lake.open(lake.store, lake.runtime) for _ in range(5)]

    def swap(number: int) -> int | None:
        requirements, updates = snapshot_updates(lake, base, number, winner=str(number))
        try:
            return lake_of(number).swap(base, requirements, updates).head_id
        except CommitConflict:
            return None

    def lake_of(number: int) -> TableCatalog:
        return catalogs[number % len(catalogs)]

    with ThreadPoolExecutor(10) as pool:
        for round_number in range(3):
            base = lake.current()
            winners = [won for won in pool.map(swap, range(round_number * 50 + 1, round_number * 50 + 51)) if won is not None]
            assert len(winners) == 1
            after = lake.current()
            assert after.head_id == winners[0]
            assert after.properties["winner"] == str(winners[0])
            assert after.head is not None
            assert after.head.get("parent-snapshot-id") == base.head_id
    for catalog in catalogs:
        catalog.close()


def what_somebody_else_commits_is_seen_at_once(lake: Lake) -> None:
    other = lake.open(lake.store, lake.runtime)
    assert other.load(TABLE) is not None
    landed = advance(lake, lake.current(), 1)
    assert other.load(TABLE) == landed
    other.close()


def tables_are_listed_and_forgotten(lake: Lake) -> None:
    metadata = {**make_metadata(lake.store, lake.runtime), "location": f"{lake.store.root}/elsewhere/nested"}
    other = lake.catalog.create(OTHER, metadata)
    assert lake.catalog.list_tables() == [OTHER, TABLE]
    lake.catalog.drop(other)
    with pytest.raises(CommitConflict):
        lake.catalog.drop(other)
    assert lake.catalog.list_tables() == [TABLE]
    assert lake.catalog.load(OTHER) is None
    assert lake.store.size(other.metadata_location)  # Its files stay.


def a_table_that_has_moved_on_is_not_forgotten(lake: Lake) -> None:
    before = lake.current()
    advance(lake, before, 1)
    with pytest.raises(CommitConflict):
        lake.catalog.drop(before)
    assert lake.catalog.list_tables() == [TABLE]


def commits_land_once_and_history_is_bounded(lake: Lake) -> None:
    """The whole way, as the writer goes it; what others read is what was sent."""
    committer = lake.committer(policy=CommitPolicy(snapshots_kept=5))
    for start in range(12):
        delta = lake.delta(start, start + 1)
        assert isinstance(lake.commit(delta, committer), Landed)
        assert isinstance(lake.commit(delta, committer), Landed)  # Again, as after a lost answer: it is there.
    table = lake.current()
    assert len(table.metadata["snapshots"]) <= 6  # With one more that an hourly tag keeps.
    assert table.offsets() == {LOG: 12}
    assert lake.ids() == list(range(12))


def second_table(lake: Lake) -> LoadedTable:
    metadata = {**make_metadata(lake.store, lake.runtime), "location": f"{lake.store.root}/elsewhere/nested"}
    return lake.catalog.create(OTHER, metadata)


def swap_of(lake: Lake, base: LoadedTable, snapshot_id: int, **properties: str) -> Swap:
    return Swap(base, *snapshot_updates(lake, base, snapshot_id, **properties))


def tables_are_swapped_together_or_not_at_all(lake: Lake) -> None:
    one, other = lake.current(), second_table(lake)
    landed = lake.catalog.swap_together([swap_of(lake, one, 1), swap_of(lake, other, 2)])
    assert [table.head_id for table in landed] == [1, 2]
    assert [lake.catalog.load(table.name) for table in landed] == landed
    # One of them is not where it was: in whatever order they are named, the other stays where it is too.
    for swaps in ([landed[0], other], [other, landed[0]], [one, landed[1]], [landed[1], one]):
        with pytest.raises(CommitConflict):
            lake.catalog.swap_together([swap_of(lake, base, 10 + number) for number, base in enumerate(swaps)])
    with pytest.raises(CommitConflict):  # What was required does not hold: nothing was asked of the catalog.
        lake.catalog.swap_together([swap_of(lake, landed[0], 3), Swap(landed[1], [{"type": "assert-table-uuid", "uuid": "x"}], [])])
    again = lake.open(lake.store, lake.runtime)
    assert [again.load(table.name) for table in landed] == landed
    again.close()


def of_concurrent_swaps_of_the_same_tables_one_wins_whole(lake: Lake) -> None:
    """Named in either order, and none waits for another for ever."""
    second_table(lake)
    catalogs = [lake.open(lake.store, lake.runtime) for _ in range(5)]

    def swap(number: int) -> bool:
        swaps = [swap_of(lake, base, number, winner=str(number)) for base in bases[:: 1 if number % 2 else -1]]
        try:
            catalogs[number % len(catalogs)].swap_together(swaps)
        except CommitConflict:
            return False
        return True

    with ThreadPoolExecutor(10) as pool:
        for round_number in range(3):
            bases = [lake.current(), lake.catalog.load(OTHER)]
            assert sum(pool.map(swap, range(round_number * 50 + 1, round_number * 50 + 51))) == 1
            after = [lake.catalog.load(base.name) for base in bases]
            assert len({table.properties["winner"] for table in after}) == 1
            assert [table.head.get("parent-snapshot-id") for table in after] == [base.head_id for base in bases]
    for catalog in catalogs:
        catalog.close()


# Of databases: PyIceberg has no such door to other catalogs.
TOGETHER: tuple[Callable[[Lake], None], ...] = (
    tables_are_swapped_together_or_not_at_all,
    of_concurrent_swaps_of_the_same_tables_one_wins_whole,
)
CONTRACT: tuple[Callable[[Lake], None], ...] = (
    a_table_has_the_ids_and_the_partitions_it_was_planned_with,
    a_name_is_taken_once,
    a_table_that_is_not_there_is_none,
    every_update_does_what_it_says_and_nothing_of_it_is_lost,
    a_swap_is_made_once_on_what_was_loaded,
    a_plan_made_from_another_schema_is_refused,
    of_fifty_concurrent_swaps_one_wins_for_each_base,
    what_somebody_else_commits_is_seen_at_once,
    tables_are_listed_and_forgotten,
    a_table_that_has_moved_on_is_not_forgotten,
    commits_land_once_and_history_is_bounded,
)
