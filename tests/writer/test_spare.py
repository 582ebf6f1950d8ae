"""Time to spare goes into rewrites that nothing asks for, as far as they make reads shorter and no further than it goes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dolake.clock import SystemClock
from dolake.errors import RewriteFailed
from tests.writer.half import Half, half, until
from tests.writer.test_compacting import files, flushed
from tests.writer.test_dead_letters import breaches
from tests.writer.test_mirrors import delete, insert, notes, run, update


class Ahead(SystemClock):
    ahead_s = 0.0

    def monotonic_s(self) -> float:
        return super().monotonic_s() + self.ahead_s


def settings(spare_share: float) -> dict[str, Any]:
    """The plan itself takes four files of one size, and looks only when it is told to."""
    return {"enabled": False, "interval_s": 86_400, "inputs_min": 4, "spare_share": spare_share}


async def flushed_files(h: Half, **counts: int) -> None:
    """So many files of each table."""
    for table, count in counts.items():
        h.hand.declare(table)
        for key in range(count):
            h.hand.change(insert(key, "x"), table=table)
            assert (await h.flush())["success"]


async def look_round(h: Half) -> list[tuple[str, str]]:
    """Tables that were rewritten, and how that ended."""
    before = len(h.service.compacting.runs)
    await h.service.compacting._look_round()
    await until(lambda: not h.service.compacting._running)
    return [(found.table, found.state) for found in list(h.service.compacting.runs)[before:]]


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_files_that_are_too_few_for_the_plan_are_put_together_in_time_to_spare(share: float, tmp_path: Path) -> None:
    async def main() -> None:
        async with half(tmp_path, mode="mirror", compaction=settings(share)) as h:
            h.hand.declare()
            await flushed(h, *(insert(key, "x") for key in range(4)))
            await flushed(h, update(1, "y"), delete(2))
            assert files(h) == (2, 1)
            assert await look_round(h) == ([("default.t", "done")] if share else [])
            assert files(h) == ((1, 0) if share else (2, 1))
            assert notes(h) == {0: "x", 1: "y", 3: "x"}
            assert breaches(h) == []

    run(main())


def test_no_more_of_the_time_goes_into_it_than_is_to_spare(tmp_path: Path) -> None:
    async def main() -> None:
        clock = Ahead()
        async with half(tmp_path, mode="mirror", clock=clock, compaction=settings(0.0001)) as h:
            h.hand.declare()
            await flushed(h, insert(1, "x"))
            await flushed(h, insert(2, "x"))
            assert await look_round(h) == [("default.t", "done")]
            took_s = h.service.compacting.runs[-1].seconds
            await flushed(h, insert(3, "x"))
            clock.ahead_s += 5_000 * took_s  # As much again is left: more than this test takes.
            assert await look_round(h) == []
            clock.ahead_s += 5_000 * took_s
            assert await look_round(h) == [("default.t", "done")]
            assert files(h) == (1, 0)

    run(main())


def test_what_the_plan_wants_goes_first(tmp_path: Path) -> None:
    async def main() -> None:
        async with half(tmp_path, mode="mirror", compaction=settings(1.0)) as h:
            await flushed_files(h, t=3, u=4)
            assert await look_round(h) == [("default.u", "done")]
            assert await look_round(h) == [("default.t", "done")]
            assert await look_round(h) == []

    run(main())


def test_the_table_whose_reads_gain_most_goes_first_and_one_that_fails_waits(tmp_path: Path) -> None:
    def around(h: Half, rewriter: Any) -> Any:
        async def rewrite(job: Any) -> Any:
            if job.table == "default.u" and not failed:
                failed.append(job)
                raise RewriteFailed("it fell over")
            return await rewriter(job)

        return rewrite

    failed: list[Any] = []

    async def main() -> None:
        clock = Ahead()
        async with half(tmp_path, mode="mirror", clock=clock, around=around, compaction=settings(1.0)) as h:
            await flushed_files(h, t=2, u=3)
            assert await look_round(h) == [("default.u", "failed")]
            assert await look_round(h) == [("default.t", "done")]
            clock.ahead_s += 61
            assert await look_round(h) == [("default.u", "done")]

    run(main())


def test_what_makes_reads_hardly_shorter_is_left(tmp_path: Path) -> None:
    """One file fewer of two, or of 24."""

    async def main() -> None:
        tables = {"default.*": {"partition_by": ["note"]}}
        async with half(tmp_path, mode="mirror", tables=tables, compaction=settings(1.0)) as h:
            h.hand.declare()
            await flushed(h, *(insert(key, f"note {key}") for key in range(22)))
            await flushed(h, insert(22, "note 0"))
            assert await look_round(h) == []
            for key in range(23, 26):
                await flushed(h, insert(key, f"note {key}"), insert(key + 100, f"note {key % 3}"))
            assert await look_round(h) == [("default.t", "done")]

    run(main())
