"""Several tables in one commit: whatever befalls the request and its answer, all of them are committed once, or none is."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from dolake.errors import ObjectDamaged, TableStopped
from dolake.iceberg.attempt import Manifests, ManifestWriter
from dolake.iceberg.commit import Committer, Held, Landed, Replan
from dolake.iceberg.metadata import LoadedTable, snapshots_by_id
from dolake.iceberg.plan import Delta
from tests.iceberg.catalog_contract import OTHER, advance, second_table
from tests.iceberg.lake import LOG, TABLE, Lake, make_delta
from tests.iceberg.unreliable import UnreliableCatalog

FAULTS = ("request lost", "answer lost", "answered 409", "late: load", "late: after load", "late: swap", "late: after swap")


@pytest.fixture
def lake(tmp_path: Path) -> Iterator[Lake]:
    lake = Lake(tmp_path)
    yield lake
    lake.close()


def deltas(lake: Lake, other: LoadedTable, start: int, end: int, **more: object) -> list[Delta]:
    """One for each of two tables, up to the same offset; of the other nothing was said."""
    return [lake.delta(start, end, **more), make_delta(lake.store, other, start, end, rows=[])]


def together(lake: Lake, both: Sequence[Delta], committer: Committer | None = None) -> list[object]:
    return list(asyncio.run((committer or lake.committer()).commit_together(both)))


def offsets(lake: Lake) -> list[int]:
    return [table.offsets().get(LOG, 0) for table in (lake.catalog.load(TABLE), lake.catalog.load(OTHER)) if table is not None]


def test_both_land_with_one_time_and_a_second_try_finds_them_landed(lake: Lake) -> None:
    both = deltas(lake, second_table(lake), 0, 3)
    for _ in range(2):
        assert all(isinstance(outcome, Landed) for outcome in together(lake, both))
    assert offsets(lake) == [3, 3]
    heads = [table.head for table in (lake.catalog.load(TABLE), lake.catalog.load(OTHER)) if table is not None]
    assert len({head["timestamp-ms"] for head in heads if head is not None}) == 1
    assert lake.ids() == [0, 1, 2]


@pytest.mark.parametrize("faults", [(one,) for one in FAULTS] + list(itertools.product(FAULTS, FAULTS)), ids="-".join)
def test_they_land_once_and_as_one_whatever_befalls_the_request(lake: Lake, faults: tuple[str, ...]) -> None:
    other = second_table(lake)
    catalog = UnreliableCatalog(lake.catalog, faults)
    outcomes = together(lake, deltas(lake, other, 0, 3), lake.committer(catalog=catalog))
    assert all(isinstance(outcome, Landed) for outcome in outcomes)
    assert offsets(lake) == [3, 3]
    assert lake.ids() == [0, 1, 2]
    for name in (TABLE, OTHER):
        table = lake.catalog.load(name)
        assert table is not None
        assert len(snapshots_by_id(table.metadata)) == 1


def test_a_table_that_has_moved_holds_the_other_back(lake: Lake) -> None:
    other = second_table(lake)
    both = deltas(lake, other, 0, 3, on_head_only=True, head_id=None)
    advance(lake, lake.current(), 7)  # Somebody else's snapshot.
    first, second = together(lake, both)
    assert isinstance(first, Replan)
    assert first.moved
    assert isinstance(second, Held)
    assert offsets(lake) == [0, 0]


def test_a_file_that_is_not_in_the_store_holds_the_other_back(lake: Lake) -> None:
    other = second_table(lake)
    first, second = deltas(lake, other, 0, 3)
    lost = replace(first, files=(replace(first.files[0], location=first.files[0].location + ".gone"),))
    outcomes = together(lake, [second, lost])
    assert [type(outcome) for outcome in outcomes] == [Held, Replan]
    assert offsets(lake) == [0, 0]


def test_what_has_landed_by_itself_holds_the_others_back(lake: Lake) -> None:
    """Beside it they would land in another transaction than it, and say that it was one."""
    first, second = deltas(lake, second_table(lake), 0, 3)
    assert isinstance(lake.commit(first), Landed)
    for both in ([first, second], [second, first]):
        outcomes = together(lake, both)
        assert {outcome.base.name: type(outcome) for outcome in outcomes} == {TABLE: Landed, OTHER: Held}
    assert (offsets(lake), lake.ids()) == ([3, 0], [0, 1, 2])


def test_a_fenced_table_stops_by_name_and_nothing_is_committed(lake: Lake) -> None:
    other = second_table(lake)
    first, second = deltas(lake, other, 0, 3)
    claim = {"dolake.epoch": "9", "dolake.instance": "newer"}
    lake.catalog.swap(other, [], [{"action": "set-properties", "updates": claim}])
    with pytest.raises(TableStopped) as stopped:
        together(lake, [first, second])
    assert stopped.value.table == str(OTHER)
    assert offsets(lake) == [0, 0]


def test_what_stays_damaged_names_the_table_that_it_is_of(lake: Lake) -> None:
    other = second_table(lake)
    both = deltas(lake, other, 0, 3)

    class Rotten(ManifestWriter):
        async def write(self, base: LoadedTable, delta: Delta) -> Manifests:
            if base.name == OTHER:
                raise ObjectDamaged("m0.avro has rotted")
            return await super().write(base, delta)

    committer = lake.committer()
    committer.manifests = Rotten(lake.runtime, lake.store)
    with pytest.raises(TableStopped, match=r"m0\.avro has rotted") as stopped:
        together(lake, both, committer)
    assert (stopped.value.table, stopped.value.field) == (str(OTHER), "files")
    assert offsets(lake) == [0, 0]
