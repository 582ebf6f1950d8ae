"""Dropped tables: what was accepted before does not come back, what comes after makes them anew; whatever is killed on the way."""

from __future__ import annotations

import contextlib
import itertools
import random
from pathlib import Path
from typing import Any

import pytest

from dolake import failpoints
from dolake.buffer.dropped import dropped_tables
from dolake.buffer.parked import parked_tables
from dolake.errors import DolakeError, LogCorrupt, LogRefused, RequestRefused
from dolake.iceberg.lake import open_catalog, open_warehouse
from dolake.iceberg.purge import named_files, purge
from dolake.model import TableName
from dolake.storage.disk import LocalDisk
from dolake.writer.dropping import drop_here
from tests.verify.test_lake import breaches
from tests.writer.half import Half, half, letters
from tests.writer.test_parking import low, park, play, said, state, stop_table
from tests.writer.walk import trim, walk, writes

T, U = TableName.parse("t"), TableName.parse("u")


async def drop(h: Half, name: TableName = T) -> dict[str, Any]:
    return await h.service.dropping.drop(name, h.until())


def test_what_was_accepted_before_does_not_come_back(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with half(tmp_path, stop_cleanly=False) as h:
            h.hand.declare(columns=[{"name": "id", "type": "int", "nullable": False}])
            h.hand.insert({"id": 1})
            await h.flush()
            first = h.catalog().load_table("default.t")
            h.hand.batch([("t", {"id": 2}), ("u", {"id": 2})])  # Accepted, and not committed.
            answer = await drop(h)
            assert answer["metadata"] == first.metadata_location
            assert not h.catalog().table_exists("default.t")
            assert "default.t" not in said(h)["tables"]
            h.hand.insert({"id": 3})
            sequences = h.hand.sequences, h.hand.numbers
        async with half(tmp_path) as h:  # A writer that knows of it by the note alone.
            h.hand.sequences, h.hand.numbers = sequences
            h.hand.insert({"id": 4})
            await h.flush()
            table = h.catalog().load_table("default.t")
            assert table.metadata.table_uuid != first.metadata.table_uuid
            assert h.values() == [3, 4]
            assert h.values("default.u") == [2]
            assert str(table.schema().find_type("id")) == "int", "what the source has declared still holds"
            assert low(h) == h.log.synced_end
        assert breaches(tmp_path) == []

    play(scenario)


def test_a_table_that_has_stopped_is_dropped_too_and_holds_up_nobody_after(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with half(tmp_path) as h:
            h.hand.declare()
            h.hand.insert({"id": 1})
            await h.flush()
            stop_table(h)
            start = h.hand.insert({"id": 2})
            assert not (await h.flush())["success"]
            assert low(h) == start
            await drop(h)
            assert low(h) == h.log.synced_end
            h.hand.insert({"id": 3})
            assert (await h.flush())["success"]
            assert (h.values(), state(h)) == ([3], "following")
        assert breaches(tmp_path) == []

    play(scenario)


def test_dropping_a_parked_table_drops_what_is_parked(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with half(tmp_path) as h:
            h.hand.declare()
            h.hand.insert({"id": 1})
            await h.flush()
            await park(h)
            h.hand.insert({"id": 2})
            await park(h)
            await drop(h)
            assert parked_tables(LocalDisk(), str(tmp_path)) == []
            h.hand.insert({"id": 3})
            await h.flush()
            assert (h.values(), state(h)) == ([3], "following")
        assert breaches(tmp_path) == []

    play(scenario)


def test_who_drops_a_table_hears_that_what_is_parked_could_not_be_removed_and_asks_again(tmp_path: Path) -> None:
    """It stays parked until then; an answer that all is well would leave that to nobody."""

    async def scenario() -> None:
        async with half(tmp_path) as h:
            h.hand.declare()
            h.hand.insert({"id": 1})
            await h.flush()
            await park(h)
            failpoints.REGISTRY.arm("park.before_last_unlink", "1*errno(EIO)")
            metadata = h.catalog().load_table("default.t").metadata_location
            with pytest.raises(RequestRefused) as refused:
                await drop(h)
            assert str(refused.value).startswith(f"default.t is dropped; its files stay, named by {metadata}, but what was parked of it is")
            assert str(refused.value).endswith("could not be removed: Input/output error; ask again")
            assert state(h) == "parked"
            await drop(h)
            h.hand.insert({"id": 2})
            assert (await h.flush())["success"]
            assert (h.values(), state(h)) == ([2], "following")
        assert breaches(tmp_path) == []

    play(scenario)


def test_a_table_that_somebody_made_in_its_place_gets_the_later_events_alone(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with half(tmp_path) as h:
            h.hand.declare()
            h.hand.insert({"id": 1, "note": "a"})
            await h.flush()
            h.hand.insert({"id": 2})
            old = h.catalog().load_table("default.t")
            await drop(h)
            h.catalog().create_table("default.t", old.schema())
            h.hand.insert({"id": 3})
            assert (await h.flush())["success"]
            assert h.values() == [3]
            await drop(h)
            h.hand.insert({"id": 4})
            await h.flush()
            assert h.values() == [4]
        assert breaches(tmp_path) == []

    play(scenario)


def test_dead_letters_of_a_dropped_table_stay_and_count_for_nothing(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with half(tmp_path) as h:
            narrow = [{"name": "id", "type": "int", "nullable": False}]
            h.hand.declare(columns=narrow)
            h.hand.insert({"id": 1}, {"id": 1 << 40})
            await h.flush()
            await drop(h)
            h.hand.insert({"id": 2}, {"id": 1 << 41})
            await h.flush()
            assert h.values() == [2]
            assert [letter["value"] for letter in letters(h)] == [str(1 << 40), str(1 << 41)]
            assert said(h)["tables"]["default.t"]["dead_letters"] == 1
        assert breaches(tmp_path) == []

    play(scenario)


def test_what_cannot_be_dropped_is_refused_and_nothing_changes(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with half(tmp_path) as h:
            h.hand.declare()
            h.hand.insert({"id": 1})
            await h.flush()
            with pytest.raises(RequestRefused, match=r"there is no table default\.u"):
                await drop(h, U)
            with pytest.raises(RequestRefused, match="is dolake's own"):
                await drop(h, TableName("dolake", "dead_letters"))
            h.hand.insert({"id": 2})
            failpoints.REGISTRY.arm("drop.before_note", "errno(ENOSPC)")
            with pytest.raises(DolakeError, match="No space left"):
                await drop(h)
            failpoints.REGISTRY.disarm()
            h.hand.insert({"id": 3})
            await h.flush()
            assert h.values() == [1, 2, 3]
            assert dropped_tables(LocalDisk(), str(tmp_path)) == {}
        assert breaches(tmp_path) == []

    play(scenario)


def test_without_a_writer_it_is_dropped_all_the_same(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with half(tmp_path, stop_cleanly=False) as h:
            h.hand.declare()
            h.hand.insert({"id": 1})
            await h.flush()
            h.hand.insert({"id": 2})
            sequences = h.hand.sequences, h.hand.numbers
            settings, runtime = h.settings, h.runtime
        store = open_warehouse(settings)
        catalog = open_catalog(settings, store, runtime)
        try:
            metadata = drop_here(LocalDisk(), settings, catalog, T, runtime.random)
            named = named_files(store, metadata)
            assert named[-1] == metadata
            assert all(store.size(location) for location in named)
            with pytest.raises(RequestRefused, match="there is no table"):
                drop_here(LocalDisk(), settings, catalog, T, runtime.random)
            lock = LocalDisk().lock(f"{settings.data}/writer.lock")
            with pytest.raises(LogRefused, match="another writer"):
                drop_here(LocalDisk(), settings, catalog, T, runtime.random)
            lock.release()
        finally:
            catalog.close()
        async with half(tmp_path) as h:
            h.hand.sequences, h.hand.numbers = sequences
            h.hand.insert({"id": 3})
            await h.flush()
            purge(store, named)
            left = {location for location, _ in store.list(f"{store.root}/default/t/")}
            assert not left & set(named)
            assert h.values() == [3], "the files of the table that was made anew stay"
        assert breaches(tmp_path) == []

    play(scenario)


def test_a_list_of_dropped_tables_that_cannot_be_read_is_said_and_nothing_comes_back(tmp_path: Path) -> None:
    (tmp_path / "dropped.json").write_text('{"default.t": 5}')
    with pytest.raises(LogCorrupt, match=r"dropped\.json.*no list of dropped tables"):
        dropped_tables(LocalDisk(), str(tmp_path))

    async def scenario() -> None:
        async with half(tmp_path, stop_cleanly=False) as h:
            with pytest.raises(LogCorrupt, match="no list of dropped tables"):
                await h.running

    play(scenario)


def test_the_note_of_a_drop_that_did_not_happen_is_void(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with half(tmp_path, stop_cleanly=False) as h:
            h.hand.declare()
            h.hand.insert({"id": 1})
            await h.flush()
            h.hand.insert({"id": 2})
            sequences = h.hand.sequences, h.hand.numbers
            failpoints.REGISTRY.arm("drop.before_catalog", "1*raise")
            with pytest.raises(failpoints.FailpointRaised):
                await drop(h)
            failpoints.REGISTRY.disarm()
            await h.flush()
            assert h.values() == [1, 2]
            h.hand.insert({"id": 3})
        async with half(tmp_path) as h:
            h.hand.sequences, h.hand.numbers = sequences
            await h.flush()
            assert h.values() == [1, 2, 3]
            await drop(h)
            h.hand.insert({"id": 4})
            await h.flush()
            assert h.values() == [4]
        assert breaches(tmp_path) == []

    play(scenario)


@pytest.mark.parametrize("seed", range(16))
def test_rows_are_there_once_or_were_dropped_whatever_dies_on_the_way(tmp_path: Path, seed: int) -> None:
    """Rows of two tables, drops, parking, flushes, trims; the writer dropped at any of it, or at a failpoint in it.

    After a drop that was answered, no earlier row is there and every later one is; after one that died on the way either all
    earlier rows are there or none.
    """
    chance = random.Random(seed)
    kept: dict[str, list[int]] = {"t": [], "u": []}
    unsure: dict[str, list[list[int]]] = {"t": [], "u": []}  # accepted before each drop of which nobody knows
    points = ["drop.before_note", "drop.after_note", "drop.before_catalog", "drop.after_catalog", "park.before_unlink"]
    write = writes(chance, lambda table, number: kept[table].append(number))

    async def drop_one(h: Half) -> None:
        table = chance.choice("tu")
        unsure[table].append(kept[table])
        kept[table] = []
        with contextlib.suppress(RequestRefused):
            await drop(h, TableName.parse(table))
            unsure[table].clear()

    async def step(h: Half) -> None:
        action = chance.choice(["write", "write", "write", "drop", "drop", "park", "unpark", "flush", "trim", "fail"])
        if action == "write":
            write(h)
        elif action == "drop":
            await drop_one(h)
        elif action == "park":
            await park(h, chance.choice([T, U]))
        elif action == "unpark":
            await h.service.parking.unpark(chance.choice([T, U]))
        elif action == "flush":
            await h.flush()
        elif action == "trim":
            await trim(h)
        else:
            failpoints.REGISTRY.arm(chance.choice(points), "1*raise")

    def check(h: Half) -> None:
        for table in "tu":
            there = h.values(f"default.{table}") if h.catalog().table_exists(f"default.{table}") else []
            lots = [*unsure[table], kept[table]]
            assert there in [list(itertools.chain(*lots[place:])) for place in range(len(lots))], table

    play(lambda: walk(tmp_path, seed, chance, step, check))
