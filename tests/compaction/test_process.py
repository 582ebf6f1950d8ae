"""Rewrites in processes of their own: reused for small jobs, replaced when they are killed, ended with their pipe."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest
from pyiceberg.schema import Schema
from pyiceberg.types import LongType, NestedField

from dolake.clock import SystemClock
from dolake.compaction import process
from dolake.compaction.job import GONE
from dolake.compaction.process import Pace, RewriteProcesses
from dolake.config import Settings
from dolake.errors import RewriteFailed, RewriteRefused
from tests.compaction.rewriting import Table, rows_of
from tests.harness.daemon import children_of
from tests.harness.waiting import wait_until

SCHEMA = Schema(NestedField(1, "id", LongType(), required=True))


@pytest.fixture
def table(tmp_path: Path) -> Table:
    table = Table(tmp_path / "warehouse", SCHEMA)
    for first in (0, 10):
        file = table.add(rows_of(SCHEMA, [{"id": first + place} for place in range(5)]))
    table.delete({file.location: [1, 3]})
    return table


def processes(tmp_path: Path) -> RewriteProcesses:
    return RewriteProcesses(Settings.model_validate({"data": str(tmp_path)}))


def children() -> set[int]:
    return set(children_of(os.getpid()))


def test_the_same_comes_back_as_from_here_and_small_jobs_share_a_process(table: Table, tmp_path: Path) -> None:
    before = children()

    async def main() -> None:
        apart = processes(tmp_path)
        first = await apart.rewrite(table.job((1,)))
        (pid,) = children() - before
        second = await apart.rewrite(table.job((1,)))
        assert children() - before == {pid}
        await apart.close()
        for done in (first, second):
            assert [output.file.row_count for output in done.outputs] == [8]
            assert {path: moves.tolist() for path, moves in done.moves.items()} == {
                table.data[0].location: [0, 1, 2, 3, 4],
                table.data[1].location: [5, GONE, 6, GONE, 7],
            }
            assert table.store.size(done.outputs[0].file.location) == done.outputs[0].file.size_bytes
        assert first.outputs[0].file.parquet.num_rows == 8  # A commit takes its statistics from this.
        assert children() == before

    asyncio.run(main())


def test_a_large_job_gives_its_memory_back(table: Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "_SMALL_BYTES_MAX", 0)
    before = children()

    async def main() -> None:
        await processes(tmp_path).rewrite(table.job((1,)))
        assert children() == before

    asyncio.run(main())


def test_one_that_waits_for_long_ends(table: Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "_IDLE_S", 0.01)
    before = children()

    async def main() -> None:
        await processes(tmp_path).rewrite(table.job((1,)))
        async with asyncio.timeout(20):
            while children() != before:  # noqa: ASYNC110 -- a process that ends has no event here
                await asyncio.sleep(0.01)

    asyncio.run(main())


def test_one_that_was_killed_fails_its_job_and_the_next_has_another(table: Table, tmp_path: Path) -> None:
    before = children()

    async def main() -> None:
        apart = processes(tmp_path)
        killing = asyncio.ensure_future(apart.rewrite(table.job((1,))))
        while not children() - before:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        for pid in children() - before:
            os.kill(pid, signal.SIGKILL)
        with pytest.raises(RewriteFailed, match="ended with -9"):
            await killing
        assert (await apart.rewrite(table.job((1,)))).row_count == 8
        for pid in children() - before:  # One that waits may be killed too.
            os.kill(pid, signal.SIGKILL)
        await asyncio.to_thread(wait_until, lambda: children() == before, "it to be gone")
        assert (await apart.rewrite(table.job((1,)))).row_count == 8
        await apart.close()
        assert children() == before

    asyncio.run(main())


def test_a_file_that_is_not_there_is_named_and_the_process_goes_on(table: Table, tmp_path: Path) -> None:
    async def main() -> None:
        apart = processes(tmp_path)
        job = table.job((1,))
        lost = table.data[0].location
        data = table.store.get(lost)
        table.store.delete(lost)
        with pytest.raises(RewriteRefused) as refused:
            await apart.rewrite(job)
        assert refused.value.file == lost
        table.store.put(lost, data)
        assert (await apart.rewrite(job)).row_count == 8
        await apart.close()

    asyncio.run(main())


class _Clock(SystemClock):
    def __init__(self) -> None:
        self.now_s, self.paused_s = 100.0, [0.0]

    def monotonic_s(self) -> float:
        return self.now_s

    def pause(self, seconds: float) -> None:
        self.paused_s.append(seconds)
        self.now_s += seconds


def test_a_pace_keeps_to_its_bytes_a_second() -> None:
    clock = _Clock()
    pace = Pace(1000, clock)
    for _ in range(10):
        pace.spend(500)
    assert clock.now_s == pytest.approx(105.0)
    clock.now_s += 60  # What was not spent meanwhile is there to be spent.
    pace.spend(500)
    assert clock.now_s == pytest.approx(165.0)
    free = Pace(None, clock)
    free.spend(10**12)
    assert clock.now_s == pytest.approx(165.0)
