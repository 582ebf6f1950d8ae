"""Compaction beside the writer: the same rows in fewer files, whatever is flushed, deleted and committed while it runs."""

from __future__ import annotations

import asyncio
import itertools
import os
import random
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from dolake.compaction.compactor import Rewriter
from dolake.compaction.job import Job, Rewritten
from dolake.compaction.within import Within
from dolake.errors import RequestRefused, RewriteFailed, StoreUnreachable
from dolake.failpoints import REGISTRY
from dolake.iceberg.lake import open_warehouse
from dolake.model import TableName
from tests.verify.damage import verified
from tests.writer.half import Half, half, until
from tests.writer.test_dead_letters import breaches
from tests.writer.test_mirrors import TRUNCATE, Event, delete, insert, notes, run, summary, update

T = TableName.parse("t")
OFF = {"compaction": {"enabled": False}}


async def compact(h: Half, table: TableName = T) -> dict[str, Any]:
    return await h.service.compacting.compact(table, dry_run=False)


def files(h: Half, table: str = "default.t") -> tuple[int, int]:
    """Data files and delete files of the head, by PyIceberg."""
    inspected = h.catalog().load_table(table).inspect
    return inspected.data_files().num_rows, inspected.delete_files().num_rows


def meanwhile(work: Callable[[Half], Awaitable[None]]) -> Callable[[Half, Rewriter], Rewriter]:
    """A rewriter beside which something happens once, when it has read its files already."""
    done: list[bool] = []

    def around(h: Half, rewriter: Rewriter) -> Rewriter:
        async def rewrite(job: Job) -> Rewritten:
            rewritten = await rewriter(job)
            if not done:
                done.append(True)
                await work(h)
            return rewritten

        return rewrite

    return around


def before_and_after(work: Callable[[Half], Awaitable[None]]) -> Callable[[Half, Rewriter], Rewriter]:
    """A rewriter beside which something happens before it begins, and again when it has read its files, each time."""

    def around(h: Half, rewriter: Rewriter) -> Rewriter:
        async def rewrite(job: Job) -> Rewritten:
            await work(h)
            rewritten = await rewriter(job)
            await work(h)
            return rewritten

        return rewrite

    return around


async def flushed(h: Half, *events: Event, source: str = "s") -> None:
    h.hand.change(*events, source=source)
    assert (await h.flush())["success"]


@pytest.mark.acceptance("AT-63", "AT-85")
def test_many_small_files_become_one_with_the_rows_and_the_offsets_that_were(tmp_path: Path) -> None:
    async def main() -> None:
        async with half(tmp_path, mode="mirror", **OFF) as h:
            h.hand.declare()
            for number in range(10):
                await flushed(h, *(insert(key, f"at {number}") for key in range(number * 10, number * 10 + 30)))
            await flushed(h, delete(3), delete(100))
            rows, offsets = notes(h), h.service.tables[T].committed
            assert files(h)[0] > 5
            done = await compact(h)
            assert [one["state"] for one in done["runs"]] == ["done"], done
            assert files(h) == (1, 0)
            assert notes(h) == rows
            told = summary(h)
            assert (told["operation"], told["dolake.maintenance"], told["total-position-deletes"]) == ("replace", "compaction", "0")
            assert int(told["total-records"]) == len(rows)
            assert h.service.tables[T].committed == offsets
            assert breaches(h) == []
            # The index has followed: what is updated and deleted now is found where it is.
            await flushed(h, update(5, "later"), delete(6), insert(1000, "new"))
            assert notes(h) == {**{key: note for key, note in rows.items() if key != 6}, 5: "later", 1000: "new"}
            assert "dolake_index_repairs_total" not in h.service.metrics.values()
            assert breaches(h) == []

    run(main())


def test_one_partition_is_compacted_and_the_others_are_left(tmp_path: Path) -> None:
    async def main() -> None:
        async with half(tmp_path, mode="mirror", tables={"t": {"partition_by": ["bucket(4, id)"]}}, **OFF) as h:
            h.hand.declare()
            for number in range(4):
                await flushed(h, *(insert(key, f"at {number}") for key in range(number * 40, number * 40 + 40)))
            rows, before = notes(h), files_by_bucket(h)
            assert {len(locations) for locations in before.values()} == {4}
            done = await h.service.compacting.compact(T, dry_run=False, within=Within({"id_bucket_4": "2"}))
            assert [one["state"] for one in done["runs"]] == ["done"], done
            after = files_by_bucket(h)
            assert len(after.pop(2)) == 1
            assert after == {bucket: locations for bucket, locations in before.items() if bucket != 2}
            assert notes(h) == rows
            with pytest.raises(RequestRefused, match=r"id_bucket_4=7; there are id_bucket_4=0; id_bucket_4=1"):
                await h.service.compacting.compact(T, dry_run=False, within=Within({"id_bucket_4": "7"}))

    run(main())


def files_by_bucket(h: Half) -> dict[int, set[str]]:
    """By PyIceberg: the data files of each partition."""
    found: dict[int, set[str]] = {}
    for task in h.catalog().load_table("default.t").scan().plan_files():
        found.setdefault(task.file.partition[0], set()).add(task.file.file_path)
    return found


def test_old_snapshots_read_as_before(tmp_path: Path) -> None:
    async def main() -> None:
        async with half(tmp_path, mode="mirror", **OFF) as h:
            h.hand.declare()
            seen: dict[int, dict[int, str]] = {}
            for number in range(6):
                await flushed(h, *(update(key, f"at {number}") for key in range(number, number + 8)))
                seen[h.catalog().load_table("default.t").current_snapshot().snapshot_id] = notes(h)  # type: ignore[union-attr]
            await compact(h)
            table = h.catalog().load_table("default.t")
            for snapshot_id, rows in seen.items():
                found = table.scan(snapshot_id=snapshot_id).to_arrow().to_pylist()
                assert {row["id"]: row["note"] for row in found} == rows

    run(main())


def test_what_is_updated_and_deleted_while_it_runs_stays_so(tmp_path: Path) -> None:
    async def change(h: Half) -> None:
        await flushed(h, update(1, "meanwhile"), delete(2), insert(50, "new"))
        await flushed(h, update(1, "meanwhile, again"), update(3, "meanwhile"), delete(50))

    async def main() -> None:
        async with half(tmp_path, mode="mirror", around=meanwhile(change), **OFF) as h:
            h.hand.declare()
            for number in range(4):
                await flushed(h, *(insert(key, f"at {number}") for key in range(10)))
            done = await compact(h)
            assert done["runs"][0]["state"] == "done"
            assert done["runs"][0]["rows_carried"] == 3
            wanted = {key: "at 3" for key in range(10) if key != 2} | {1: "meanwhile, again", 3: "meanwhile"}
            assert notes(h) == wanted
            assert breaches(h) == []
            await flushed(h, delete(1), update(3, "last"), update(4, "last"))
            assert notes(h) == {key: note for key, note in wanted.items() if key != 1} | {3: "last", 4: "last"}
            assert breaches(h) == []

    run(main())


def test_a_truncate_meanwhile_makes_it_give_way(tmp_path: Path) -> None:
    async def change(h: Half) -> None:
        await flushed(h, TRUNCATE, insert(7, "after"))

    async def main() -> None:
        async with half(tmp_path, mode="mirror", around=meanwhile(change), **OFF) as h:
            h.hand.declare()
            for number in range(4):
                await flushed(h, insert(number, "before"))
            done = await compact(h)
            assert [one["state"] for one in done["runs"]] == ["given_up"]
            assert notes(h) == {7: "after"}
            assert breaches(h) == []

    run(main())


def test_it_runs_by_itself_and_waits_while_rows_wait_too_long(tmp_path: Path) -> None:
    async def main() -> None:
        compaction = {"interval_s": 0.05, "inputs_min": 4, "lag_s_max": 0.2}
        async with half(tmp_path, mode="mirror", compaction=compaction) as h:
            h.hand.declare()
            for number in range(4):
                await flushed(h, insert(number, "x"))
            await until(lambda: h.service.compacting.runs)
            await until(lambda: h.service.compacting.runs[-1].state == "done")
            assert files(h)[0] == 1
            h.hand.change(insert(9, "waits"))
            await until(h.service.compacting.lags)
            assert h.service.compacting.describe()["waits"]
            await h.flush()
            assert not h.service.compacting.lags()

    run(main())


def test_one_look_round_is_enough_for_all_tables(tmp_path: Path) -> None:
    """One rewrite at a time, and no table waits for the next look because another was worth more: in time there are many tables."""
    tables = [f"default.{letter}" for letter in "pqrst"]

    async def main() -> None:
        compaction = {"enabled": False, "interval_s": 86_400, "inputs_min": 2, "jobs": 1}
        async with half(tmp_path, mode="mirror", compaction=compaction) as h:
            for table in tables:
                h.hand.declare(table)
            for number in range(3):
                for table in tables:
                    h.hand.change(insert(number, "x"), table=table)
                assert (await h.flush())["success"]
            await h.service.compacting._look_round()
            await until(lambda: not h.service.compacting._running)
            assert sorted((found.table, found.state) for found in h.service.compacting.runs) == [(table, "done") for table in tables]
            assert [files(h, table)[0] for table in tables] == [1] * len(tables)

    run(main())


def test_after_a_rewrite_it_looks_again_at_once(tmp_path: Path) -> None:
    """Each look rewrites one partition of a table; with a pause between them, many partitions would never be done."""

    async def main() -> None:
        compaction = {"enabled": False, "interval_s": 86_400, "inputs_min": 2}
        async with half(tmp_path, mode="mirror", tables={"t": {"partition_by": ["note"]}}, compaction=compaction) as h:
            h.hand.declare()
            for number in range(2):
                await flushed(h, *(insert(10 * number + place, f"note {place}") for place in range(5)))
            assert files(h)[0] == 10
            looking = asyncio.create_task(h.service.compacting.run())
            await h.service.compacting._look_round()
            await until(lambda: len(h.service.compacting.runs) == 5 and h.service.compacting.runs[-1].state == "done")
            assert files(h)[0] == 5
            assert len(notes(h)) == 10
            looking.cancel()

    run(main())


@pytest.mark.parametrize("ends", ["for the next look", "for rows that wait"])
def test_a_look_round_begins_nothing_when_it_is_late(ends: str, tmp_path: Path) -> None:
    """What it found is as old as the look, and ingest goes first: of three tables one is rewritten."""
    tables = [f"default.{letter}" for letter in "pqr"]

    def around(h: Half, rewriter: Rewriter) -> Rewriter:
        async def rewrite(job: Job) -> Rewritten:
            h.hand.change(insert(9, "waits"), table=job.table)
            await until(lambda: any(table.memtable.records for table in h.service.tables.values()))
            return await rewriter(job)

        return rewrite

    async def main() -> None:
        late = {"interval_s": 1e-6} if ends == "for the next look" else {"interval_s": 86_400, "lag_s_max": 1e-6}
        async with half(tmp_path, mode="mirror", around=around, compaction={"enabled": False, "inputs_min": 2, **late}) as h:
            for table in tables:
                h.hand.declare(table)
            for number in range(3):
                for table in tables:
                    h.hand.change(insert(number, "x"), table=table)
                assert (await h.flush())["success"]
            await h.service.compacting._look_round()
            await until(lambda: not h.service.compacting._running)
            assert sorted(files(h, table)[0] for table in tables) == [1, 3, 3]

    run(main())


def test_a_rewrite_that_fails_is_told_and_tried_again(tmp_path: Path) -> None:
    """AT-108: running → failed, with its error → running → done."""
    failures = [RewriteFailed("it fell over"), StoreUnreachable("away")]

    def around(h: Half, rewriter: Rewriter) -> Rewriter:
        async def rewrite(job: Job) -> Rewritten:
            if failures:
                raise failures.pop(0)
            return await rewriter(job)

        return rewrite

    async def main() -> None:
        async with half(tmp_path, mode="mirror", around=around, **OFF) as h:
            h.hand.declare()
            for number in range(4):
                await flushed(h, insert(number, "x"))
            for reason in ("it fell over", "away"):
                done = await compact(h)
                assert [(one["state"], one["reason"]) for one in done["runs"]] == [("failed", reason)]
                assert files(h)[0] == 4
            done = await compact(h)
            assert [one["state"] for one in done["runs"]] == ["done"]
            assert [one["state"] for one in done["last"]] == ["failed", "failed"]
            assert notes(h) == dict.fromkeys(range(4), "x")

    run(main())


def test_a_damaged_file_leaves_its_group_and_the_rest_goes_on(tmp_path: Path) -> None:
    async def main() -> None:
        tables = {"default.*": {"partition_by": ["note"]}}
        async with half(tmp_path, mode="mirror", tables=tables, **OFF) as h:
            h.hand.declare()
            for number in range(4):
                await flushed(h, insert(number, "a"), insert(number + 10, "b"))
            paths = h.catalog().load_table("default.t").inspect.data_files()
            victim = next(
                path
                for path, partition in zip(paths["file_path"].to_pylist(), paths["partition"].to_pylist(), strict=True)
                if partition["note"] == "a"
            )
            open_warehouse(h.settings).put(victim, b"PAR1 no more")
            done = await compact(h)
            assert sorted(one["state"] for one in done["runs"]) == ["done", "failed"]
            assert victim in next(one["reason"] for one in done["runs"] if one["state"] == "failed")
            assert files(h)[0] == 5

    run(main())


def test_a_table_that_has_stopped_is_refused_with_its_reason(tmp_path: Path) -> None:
    async def main() -> None:
        async with half(tmp_path, mode="mirror", **OFF) as h:
            with pytest.raises(RequestRefused, match="there is no table default"):
                await compact(h)
            h.hand.declare()
            for number in range(3):
                await flushed(h, insert(number, "x"))
            h.catalog().drop_table("default.t")
            h.hand.change(insert(9, "y"))
            assert not (await h.flush())["success"]
            done = await compact(h)
            assert [one["state"] for one in done["runs"]] == ["failed"]
            assert "it was dropped from the catalog" in done["runs"][0]["reason"]

    run(main())


def test_a_changelog_is_compacted_in_the_order_of_its_events(tmp_path: Path) -> None:
    async def main() -> None:
        async with half(tmp_path, mode="changelog", **OFF) as h:
            h.hand.declare()
            for number in range(6):
                await flushed(h, insert(number, "x"), delete(number - 1))
            rows = h.rows()
            await compact(h)
            assert files(h) == (1, 0)
            assert h.rows() == rows
            scanned = h.catalog().load_table("default.t").scan().to_arrow()
            assert scanned["_cdc_offset"].to_pylist() == sorted(scanned["_cdc_offset"].to_pylist())
            await flushed(h, insert(100, "y"))
            assert breaches(h) == []

    run(main())


@pytest.mark.parametrize(
    "point", ["compact.plan", "compact.before_rewrite", "compact.after_rewrite", "compact.before_commit", "commit.before_swap"]
)
def test_nothing_is_lost_where_it_is_broken_off(point: str, tmp_path: Path) -> None:
    """And the next writer finishes the job."""

    async def first() -> None:
        async with half(tmp_path, stop_cleanly=False, mode="mirror", **OFF) as h:
            h.hand.declare()
            for number in range(5):
                await flushed(h, *(update(key, f"at {number}") for key in range(5)), insert(100 + number, "x"))
            REGISTRY.arm(point, "raise")
            task = asyncio.ensure_future(compact(h))
            before = REGISTRY.hits[point]
            await until(lambda: REGISTRY.hits[point] > before)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    wanted = dict.fromkeys(range(5), "at 4") | dict.fromkeys(range(100, 105), "x")

    async def second() -> None:
        async with half(tmp_path, mode="mirror", **OFF) as h:
            await until(lambda: h.service.tails)
            done = await compact(h)
            assert all(one["state"] == "done" for one in done["runs"]), done
            assert files(h) == (1, 0)
            assert notes(h) == wanted
            await flushed(h, delete(0), update(1, "last"), source="another")
            assert notes(h) == {key: note for key, note in wanted.items() if key != 0} | {1: "last"}
            assert breaches(h) == []

    try:
        run(first())
    finally:
        REGISTRY.disarm()
    run(second())


SEEDS = int(os.environ.get("COMPACTION_SEEDS", "8"))
COMMITS = int(os.environ.get("COMPACTION_COMMITS", "60"))


@pytest.mark.acceptance("AT-64")
@pytest.mark.parametrize("seed", range(SEEDS))
def test_a_writer_of_the_very_keys_that_are_rewritten_loses_and_doubles_nothing(seed: int, tmp_path: Path) -> None:
    """AT-64. Flushes land before a rewrite reads, when it has read, and just before it lands; no rewrite is thrown away for one."""
    chance = random.Random(seed)
    model: dict[int, str] = {}
    serial = iter(range(1_000_000))

    async def some_flushes(h: Half) -> None:
        for _ in range(chance.randrange(3)):
            events: list[Event] = []
            for _ in range(chance.randrange(1, 12)):
                key, note = chance.randrange(15), f"{next(serial)}"
                if chance.random() < 0.3:
                    events.append(delete(key))
                    model.pop(key, None)
                elif key in model and chance.random() < 0.2:
                    moved = chance.randrange(15)
                    events.append(update(moved, note, old=key))
                    model.pop(key)
                    model[moved] = note
                else:
                    events.append(update(key, note))
                    model[key] = note
            await flushed(h, *events)

    async def main() -> None:
        tables = {"default.*": {"partition_by": [] if chance.random() < 0.5 else ["bucket(2, id)"]}}
        kept = chance.choice([1, 3, 1000])
        async with half(tmp_path, mode="mirror", around=before_and_after(some_flushes), tables=tables, snapshots_kept=kept, **OFF) as h:
            h.hand.declare()
            for _ in range(4):
                for _ in range(chance.randrange(2, 5)):
                    await some_flushes(h)
                if "default.t" in {str(name) for name in h.service.tables} and h.service.tables[T].base is not None:
                    done = await compact(h)
                    assert {one["state"] for one in done["runs"]} <= {"done"}, done
                    if chance.random() < 0.5:
                        await h.service.maintaining.maintain(T)
                    assert notes(h) == model
                    assert breaches(h) == []

    run(main())
    assert [str(breach) for breach in verified(tmp_path).breaches] == []


@pytest.mark.acceptance("AT-55")
def test_an_outside_writer_a_flusher_and_compaction_come_out_even(tmp_path: Path) -> None:
    """Some 200 commits to one table: everybody's rows are there once, and nobody's commit fails."""
    chance = random.Random(55)
    model: dict[int, str] = {}
    outside = itertools.count(1_000_000)

    def append(h: Half) -> None:
        key = next(outside)
        rows = pa.table(
            {"id": pa.array([key], pa.int64()), "note": pa.array(["theirs"])},
            schema=pa.schema([("id", pa.int64(), False), ("note", pa.string())]),
        )
        h.catalog().load_table("default.t").append(rows)
        model[key] = "theirs"

    async def some(h: Half) -> None:
        for _ in range(chance.randrange(1, 4)):
            if chance.random() < 0.4:
                await asyncio.to_thread(append, h)
                continue
            events: list[Event] = []
            for key in {chance.randrange(40) for _ in range(5)}:
                model[key] = f"{chance.random()}"
                events.append(update(key, model[key]))
            await flushed(h, *events)

    async def main() -> None:
        async with half(tmp_path, mode="mirror", around=before_and_after(some), snapshots_kept=1000, **OFF) as h:
            h.hand.declare()
            await flushed(h, insert(0, "first"))
            model[0] = "first"
            states: list[str] = []
            while len(h.catalog().load_table("default.t").metadata.snapshots) < COMMITS:
                await some(h)
                if chance.random() < 0.5:
                    states += [one["state"] for one in (await compact(h))["runs"]]
            assert set(states) == {"done"}
            assert len(states) > 10
            assert notes(h) == model
            assert breaches(h) == []

    run(main())


@pytest.mark.acceptance("AT-67")
def test_it_runs_again_and_again_and_never_more_at_once_than_may_be(tmp_path: Path) -> None:
    at_once: list[int] = []
    running: set[str] = set()

    def around(h: Half, rewriter: Rewriter) -> Rewriter:
        async def rewrite(job: Job) -> Rewritten:
            assert job.table not in running
            running.add(job.table)
            at_once.append(len(running))
            rewritten = await rewriter(job)
            await flushed(h, insert(len(at_once), "meanwhile"))
            running.discard(job.table)
            return rewritten

        return rewrite

    async def main() -> None:
        compaction = {"interval_s": 0.02, "inputs_min": 2, "jobs": 2}
        async with half(tmp_path, mode="mirror", around=around, compaction=compaction) as h:
            tables = ["t", "u", "v"]
            for table in tables:
                h.hand.declare(table)
            while len(at_once) < 8:
                for table in tables:
                    h.hand.change(insert(next(numbers), "x"), table=table)
                assert (await h.flush())["success"]

    numbers = itertools.count(100)
    run(main())
    assert max(at_once) == 2


@pytest.mark.parametrize("rewind", [False, True])
def test_rows_that_a_rollback_brings_back_meanwhile_are_not_dropped(rewind: bool, tmp_path: Path) -> None:
    """The files are there still, but rows live in them that had been deleted when they were read: the rewrite gives way."""

    async def change(h: Half) -> None:
        (first, *_) = sorted(h.catalog().load_table("default.t").metadata.snapshots, key=lambda one: one.sequence_number or 0)[1:2]
        await h.service.rolling_back.roll_back(T, first.snapshot_id, rewind, h.until())

    async def main() -> None:
        async with half(tmp_path, mode="mirror", around=meanwhile(change), **OFF) as h:
            h.hand.declare()
            await flushed(h, *(insert(key, "x") for key in range(5)))
            await flushed(h, insert(5, "x"))
            await flushed(h, delete(2))
            done = await compact(h)
            assert "given_up" in [one["state"] for one in done["runs"]]
            if rewind:
                assert (await h.flush())["success"]
            wanted = dict.fromkeys(range(6), "x")
            assert notes(h) == ({key: note for key, note in wanted.items() if key != 2} if rewind else wanted)
            assert breaches(h) == []

    run(main())
