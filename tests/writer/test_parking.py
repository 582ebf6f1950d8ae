"""Parked tables: their rows wait in a side log, hold up nobody, and come back once, whatever is killed on the way."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from dolake import failpoints
from dolake.buffer.parked import parked_tables
from dolake.errors import RequestRefused
from dolake.model import TableName, TransactionMark
from dolake.storage.disk import LocalDisk
from tests.verify.test_lake import breaches
from tests.writer.half import COLUMNS, Half, half, until
from tests.writer.walk import trim, walk, writes

T, U = TableName.parse("t"), TableName.parse("u")


def play(scenario: Callable[[], Awaitable[None]]) -> None:
    async def limited() -> None:
        async with asyncio.timeout(120):
            await scenario()

    asyncio.run(limited())


def said(h: Half) -> dict[str, Any]:
    """The report of now. A writer that has died says why."""
    if h.running.done():
        h.running.result()
    h.service.tell()
    return h.reports[-1]


def low(h: Half) -> int:
    """-1 before the writer has found the log."""
    return int(said(h)["logs"].get(h.log.log_id, {"low": -1})["low"])


def state(h: Half, table: str = "default.t") -> str:
    return str(said(h)["tables"].get(table, {"state": "unknown"})["state"])


async def park(h: Half, name: TableName = T) -> dict[str, Any]:
    return await h.service.parking.park(name, h.until())


def stop_table(h: Half, name: str = "default.t") -> Callable[[], None]:
    """Somebody sets the table's offset back: its next flush finds that out. Returns what mends it."""
    key = f"dolake.offset.{h.log.log_id}"
    before = h.catalog().load_table(name).properties[key]

    def put(value: str) -> None:
        with h.catalog().load_table(name).transaction() as change:
            change.set_properties({key: value})

    put("0")
    return lambda: put(before)


def test_a_parked_table_holds_up_nobody_and_comes_back_with_every_row_once(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with half(tmp_path) as h:
            h.hand.declare("t")
            h.hand.declare("u")
            for n in range(3):
                h.hand.batch([("t", {"id": n}), ("u", {"id": n})])
            assert (await h.flush())["success"]
            mend = stop_table(h)
            for n in range(3, 6):
                h.hand.batch([("u", {"id": n}), ("t", {"id": n}), ("t", {"id": n + 100})])
            result = await h.flush()
            assert not result["success"]
            assert "default.t has stopped" in result["error"]
            assert low(h) == 5, "the stopped table pins the log"
            parked = await park(h)
            assert parked["records"] == 3
            h.hand.insert({"id": 6}, table="u")
            h.hand.insert({"id": 6}, table="t")
            assert (await h.flush("u"))["success"]
            await until(lambda: low(h) == h.log.synced_end)
            progress = said(h)
            assert progress["tables"]["default.t"]["state"] == "parked"
            await until(lambda: said(h)["tables"]["default.t"]["parked"]["records"] == 4)
            assert progress["logs"][h.log.log_id]["pending"]["s"] == 5, "what is parked is not committed, and `persisted` waits for it"
            assert h.log.trim(low(h)) or h.log.size_bytes < 4096
            assert "is parked" in (await h.flush("t"))["error"]
            mend()
            assert (await h.service.parking.unpark(T))["table"] == "default.t"
            h.hand.insert({"id": 7}, table="t")
            assert (await h.flush())["success"]
            assert h.values("default.t") == [0, 1, 2, 3, 103, 4, 104, 5, 105, 6, 7]
            assert h.values("default.u") == [0, 1, 2, 3, 4, 5, 6]
            assert [row["_cdc_index"] for row in h.rows("default.t")][3:9] == [1, 2, 1, 2, 1, 2]
            assert state(h) == "following"
            assert parked_tables(LocalDisk(), str(tmp_path)) == []
        assert breaches(tmp_path) == []

    play(scenario)


def test_a_schema_that_comes_meanwhile_applies_where_it_came(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with half(tmp_path) as h:
            h.hand.declare()
            h.hand.insert({"id": 0, "note": "a"})
            await h.flush()
            await park(h)
            h.hand.insert({"id": 1, "note": "b"})
            h.hand.declare(columns=[*COLUMNS, {"name": "late", "type": "int", "nullable": True}])
            h.hand.insert({"id": 2, "note": "c", "late": 5})
            await park(h)
            await h.service.parking.unpark(T)
            await h.flush()
            assert [(row["id"], row["note"], row["late"]) for row in h.rows()] == [(0, "a", None), (1, "b", None), (2, "c", 5)]

    play(scenario)


def test_a_long_way_back_is_committed_in_pieces_that_cut_no_transaction(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with half(tmp_path, flush={"age_s": 3600, "bytes": 20_000}) as h:
            h.hand.declare()
            await h.flush()
            await park(h)
            expected = []
            for n in range(120):
                mark = TransactionMark(f"x{n // 10}", last=n % 10 == 9)
                h.hand.insert({"id": n, "note": "x" * 500}, transaction=mark)
                expected.append(n)
            await park(h)
            before = len(h.catalog().load_table("default.t").snapshots())
            await h.service.parking.unpark(T)
            await h.flush()
            assert h.values() == expected
            counts = [int(one.summary["total-records"]) for one in h.catalog().load_table("default.t").snapshots()[before:]]
            assert len(counts) > 3
            assert all(count % 10 == 0 for count in counts), counts
        assert breaches(tmp_path) == []

    play(scenario)


def test_a_transaction_that_began_in_a_side_log_is_whole_when_its_table_is_back(tmp_path: Path) -> None:
    """Seed 301947: after a restart nothing but the side log has its first batch, and the log ends it."""

    async def scenario() -> None:
        part = TransactionMark("x", last=False)
        async with half(tmp_path) as h:
            h.hand.declare()
            h.hand.insert({"id": 0})
            await h.flush()
            await park(h)
            h.hand.insert({"id": 1}, transaction=part)
            for n in range(40):  # Until the segment with that is sealed, and another one follows.
                h.hand.insert({"id": n, "note": "x" * 300}, table="u", source="other")
            await park(h)
            await h.flush("u")
            await until(lambda: low(h) == h.log.synced_end)
            h.log.trim(low(h))
            assert h.log.first_offset > 2
            sequences = h.hand.sequences, h.hand.numbers
        async with half(tmp_path) as h:
            h.hand.sequences, h.hand.numbers = sequences
            h.hand.insert({"id": 2}, source="third")
            await h.service.parking.unpark(T)
            h.hand.insert({"id": 3}, transaction=part)
            await h.flush()
            assert h.values() == [0], "nothing from its first batch on, before its last one"
            h.hand.insert({"id": 4}, transaction=TransactionMark("x", last=True))
            await h.flush()
            assert h.values() == [0, 1, 2, 3, 4]
        assert breaches(tmp_path) == []

    play(scenario)


def test_a_table_that_stops_again_on_its_way_back_is_parked_again(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with half(tmp_path, flush={"age_s": 3600, "bytes": 2_000}) as h:
            h.hand.declare()
            h.hand.insert({"id": 0})
            await h.flush()
            mend = stop_table(h)
            await park(h)
            for n in range(1, 40):
                h.hand.insert({"id": n, "note": "x" * 300})
            await park(h)
            with pytest.raises(RequestRefused, match="has stopped again and is parked"):
                await h.service.parking.unpark(T)
            assert state(h) == "parked"
            h.hand.insert({"id": 40})
            await park(h)
            assert low(h) == h.log.synced_end
            mend()
            await h.service.parking.unpark(T)
            await h.flush()
            assert h.values() == list(range(41))

    play(scenario)


def test_a_table_that_was_never_committed_may_be_parked_too(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with half(tmp_path) as h:
            h.hand.declare()
            h.hand.insert({"id": 1})
            await park(h)
            await until(lambda: low(h) == h.log.synced_end)
            with pytest.raises(RequestRefused, match="is not parked"):
                await h.service.parking.unpark(U)
            await h.service.parking.unpark(T)
            await h.flush()
            assert h.values() == [1]

    play(scenario)


def test_parked_it_stays_over_a_restart_and_so_does_being_on_its_way_back(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with half(tmp_path, stop_cleanly=False) as h:
            h.hand.declare()
            h.hand.insert({"id": 0})
            await h.flush()
            await park(h)
            h.hand.insert({"id": 1})
            await park(h)
        async with half(tmp_path, stop_cleanly=False) as h:
            await until(lambda: "default.t" in said(h)["tables"] and low(h) == h.log.synced_end)
            assert state(h) == "parked"
            h.hand.insert({"id": 2})
            await park(h)
            await until(lambda: said(h)["tables"]["default.t"]["uncommitted_events"] == 2)
            side = h.service.tables[T].side
            assert side is not None
            side.feed(True)
        async with half(tmp_path) as h:
            h.hand.insert({"id": 3})
            await until(lambda: state(h) == "following")
            await h.flush()
            assert h.values() == [0, 1, 2, 3]

    play(scenario)


def test_a_side_log_without_room_keeps_the_logs_pinned_and_goes_on_when_there_is(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with half(tmp_path) as h:
            h.hand.declare()
            await h.flush()
            await park(h)
            failpoints.REGISTRY.arm("park.before_append", "errno(ENOSPC)")
            start = h.hand.insert({"id": 1})
            await until(lambda: said(h)["tables"]["default.t"]["parked"]["trouble"])
            assert low(h) <= start
            with pytest.raises(RequestRefused, match="No space left") as refusal:
                await park(h)
            assert refusal.value.exit_code == 6
            failpoints.REGISTRY.disarm()
            await until(lambda: low(h) == h.log.synced_end)
            assert said(h)["tables"]["default.t"]["parked"]["trouble"] == ""
            await h.service.parking.unpark(T)
            await h.flush()
            assert h.values() == [1]

    play(scenario)


@pytest.mark.parametrize("seed", range(16))
def test_whatever_comes_in_whatever_order_every_row_is_there_once(tmp_path: Path, seed: int) -> None:
    """Rows of two tables, parking, coming back, flushes, trims; and the writer dropped at any of it, or at a failpoint in it."""
    chance = random.Random(seed)
    sent: dict[str, list[int]] = {"t": [], "u": []}
    write = writes(chance, lambda table, number: sent[table].append(number))

    async def step(h: Half) -> None:
        action = chance.choice(["write", "write", "park", "park", "unpark", "unpark", "flush", "trim", "fail"])
        if action == "write":
            write(h)
        elif action == "park":
            await park(h, chance.choice([T, U]))
        elif action == "unpark":
            await h.service.parking.unpark(chance.choice([T, U]))
        elif action == "flush":
            await h.flush()
        elif action == "trim":
            await trim(h)
        else:
            name = chance.choice(["park.before_switch", "park.before_append", "park.after_append", "park.before_unlink"])
            failpoints.REGISTRY.arm(name, f"{chance.randrange(3)}*off->1*raise" if chance.random() < 0.7 else "1*raise")

    def check(h: Half) -> None:
        for table, ids in sent.items():
            assert h.values(f"default.{table}") == ids, table
        assert parked_tables(LocalDisk(), str(tmp_path)) == []

    play(lambda: walk(tmp_path, seed, chance, step, check))
