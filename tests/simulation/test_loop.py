"""The loop: one seed is one schedule, threads give way at doors, and the dead run no further."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from tests.simulation.faults import Trace
from tests.simulation.loop import Process, ProcessKilled, SimLoop, Stuck


def run(seed: str, main: Coroutine[Any, Any, Any], loop: SimLoop) -> Any:
    try:
        return loop.run_until_complete(main)
    finally:
        loop.close()


def schedule_of(seed: str) -> str:
    """The trace of four threads that each do three things at a door."""
    trace = Trace()
    loop = SimLoop(seed, trace=trace)
    process = Process(loop, "p", seed)

    def work(name: str) -> str:
        for n in range(3):
            process.step(name, str(n))
        return name

    async def main() -> None:
        runs = [process.runtime.tasks.run(work, name) for name in "abcd"]
        assert await asyncio.gather(*runs) == list("abcd")

    run(seed, main(), loop)
    return trace.digest()


def test_one_seed_is_one_schedule_and_another_is_another() -> None:
    schedules = [schedule_of(str(seed)) for seed in range(20)]
    assert schedules == [schedule_of(str(seed)) for seed in range(20)]
    assert len(set(schedules)) > 15


def test_a_set_of_tasks_has_the_same_order_in_every_run() -> None:
    def order() -> list[str]:
        loop = SimLoop("0", trace=Trace())

        async def main() -> list[str]:
            async def nothing() -> None: ...

            tasks = {loop.create_task(nothing(), name=str(number)) for number in range(50)}
            await asyncio.wait(tasks)
            return [task.get_name() for task in tasks]

        found: list[str] = run("0", main(), loop)
        return found

    first = order()
    kept = [object() for _ in range(1000)]  # Other addresses.
    assert order() == first
    del kept


def test_time_passes_only_when_nothing_is_ready() -> None:
    loop = SimLoop("0", trace=Trace())
    process = Process(loop, "p", "0")

    async def main() -> tuple[float, int]:
        before = process.runtime.clock.now_ms()
        await process.runtime.clock.sleep(100)
        return process.runtime.clock.monotonic_s(), process.runtime.clock.now_ms() - before

    assert run("0", main(), loop) == (100.0, 100_000)


def test_a_wait_that_nobody_ends_is_reported() -> None:
    loop = SimLoop("0", trace=Trace())

    async def main() -> None:
        await loop.create_future()

    with pytest.raises(Stuck):
        run("0", main(), loop)
    for task in asyncio.all_tasks(loop):
        task._log_destroy_pending = False


def test_a_failure_beside_the_loop_comes_back_as_it_was_raised() -> None:
    loop = SimLoop("0", trace=Trace())
    process = Process(loop, "p", "0")

    def work() -> None:
        raise OSError("disk")

    async def main() -> None:
        with pytest.raises(OSError, match="disk"):
            await process.runtime.tasks.run(work)

    run("0", main(), loop)


@pytest.mark.parametrize(("steps", "lines"), [(1, 0), (2, 1), (3, 1), (4, 2), (5, 3)])
def test_a_killed_process_runs_no_further_line_that_matters(steps: int, lines: int) -> None:
    trace = Trace()
    loop = SimLoop("0", trace=trace)
    process = Process(loop, "p", "0")
    process.steps_left, process.on_moment = steps, lambda process: process.die()
    reached: list[str] = []

    def work(name: str) -> None:
        try:
            process.step(name)
            reached.append(name)
        finally:
            process.step(f"{name} cleaned up")

    async def half() -> None:
        await process.runtime.tasks.run(work, "one")
        process.step("between")
        reached.append("between")
        await process.runtime.tasks.run(work, "two")

    async def main() -> None:
        process.spawn(half())
        await asyncio.sleep(10)

    run("0", main(), loop)
    with pytest.raises(ProcessKilled):
        process.step("afterwards")
    process.bury()
    assert reached == ["one", "between", "two"][:lines]
    assert loop.complaints == []
