"""Many who ask one store: how often a dead one is asked, who hears of its return, and what is no absence at all."""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from dolake.clock import Runtime, SystemRandomness
from dolake.errors import CatalogUnreachable, CommitConflict, ObjectDamaged, ObjectMissing, StoreUnreachable
from dolake.iceberg.access import CATALOG, DAMAGED_TRIES_MAX, STORE, LakeAccess
from dolake.iceberg.breaker import FAILURES_MAX, Circuit
from tests.iceberg.lake import InlineTasks


class WheelClock:
    """Everybody sleeps until it is their turn; time goes on when nobody has anything left to do."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []
        self._number = itertools.count()

    def now_ms(self) -> int:
        return int(self.now_s * 1000)

    def monotonic_s(self) -> float:
        return self.now_s

    async def sleep(self, seconds: float) -> None:
        woken = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self.now_s + seconds, next(self._number), woken))
        await woken

    async def turn_to(self, end_s: float) -> None:
        while True:
            for _ in range(6):
                await asyncio.sleep(0)
            if not self._sleepers or self._sleepers[0][0] > end_s:
                self.now_s = end_s
                return
            self.now_s, _, woken = heapq.heappop(self._sleepers)
            if not woken.done():
                woken.set_result(None)


class Scene:
    def __init__(self) -> None:
        self.clock = WheelClock()
        self.access = LakeAccess(Runtime(clock=self.clock, random=SystemRandomness(), tasks=InlineTasks()))
        self.said: dict[str, str] = {}
        self.access.observe = self.said.__setitem__
        self.error: Exception | None = None
        self.asked_s: list[float] = []

    def ask(self) -> str:
        self.asked_s.append(self.clock.now_s)
        if self.error is not None:
            raise self.error
        return "well"

    def askers(self, count: int, part: str = STORE) -> list[asyncio.Task[Any]]:
        return [asyncio.create_task(self.access.until_answered(part, self.ask)) for _ in range(count)]


def played(work: Callable[[Scene], Coroutine[Any, Any, None]]) -> None:
    async def scene() -> None:
        await work(Scene())

    asyncio.run(scene())


@pytest.mark.parametrize("count", [1, 2, 20])
def test_a_dead_store_is_asked_once_at_each_step_however_many_wait_for_it(count: int) -> None:
    async def scene(play: Scene) -> None:
        play.error = StoreUnreachable("away", code="no_answer")
        tasks = play.askers(count)
        await play.clock.turn_to(60)
        at_once = [moment for moment in play.asked_s if moment < 0.5]
        steps = play.asked_s[len(at_once) :]
        assert len(at_once) <= max(FAILURES_MAX, count) + 4  # While it was closed, and the first steps of the backoff.
        pauses_s = [after - before for before, after in itertools.pairwise(steps)]
        assert min(pauses_s[4:]) >= 2, "more than one request within a step"
        assert max(pauses_s) <= 4.2
        assert play.access.failures[STORE] == len(play.asked_s)
        assert play.access.breakers[STORE].state is Circuit.OPEN
        assert play.said == {STORE: "away"}

        play.error = None
        await play.clock.turn_to(65)
        assert [await task for task in tasks] == ["well"] * count
        assert play.access.breakers[STORE].state is Circuit.CLOSED
        assert play.said == {STORE: ""}
        back_s = [moment for moment in play.asked_s if moment > 60]
        assert max(back_s) - min(back_s) <= 0.11, "some still slept when it had answered"

    played(scene)


def test_one_that_fails_alone_does_not_stop_the_others() -> None:
    async def scene(play: Scene) -> None:
        def refused() -> None:
            raise StoreUnreachable("this one object is too large")

        alone = asyncio.create_task(play.access.until_answered(STORE, refused))
        for number in range(1, 30):
            (task,) = play.askers(1)
            await play.clock.turn_to(number * 10)
            assert await task == "well"
            assert play.asked_s[-1] <= number * 10 - 10 + 8.4, "the one that always fails was before it twice"
        assert not alone.done()
        alone.cancel()

    played(scene)


def test_a_catalog_that_meets_a_dead_store_waits_for_the_store() -> None:
    async def scene(play: Scene) -> None:
        play.error = StoreUnreachable("away")
        tasks = play.askers(3, CATALOG)
        await play.clock.turn_to(60)
        assert play.access.breakers[STORE].state is Circuit.OPEN
        assert play.access.breakers[CATALOG].state is Circuit.CLOSED
        assert len(play.asked_s) < 40
        assert play.said == {STORE: "away"}
        play.error = CatalogUnreachable("locked")
        await play.clock.turn_to(120)
        assert play.said[CATALOG] == "locked"
        play.error = None
        await play.clock.turn_to(130)
        assert [await task for task in tasks] == ["well"] * 3
        assert play.said == {STORE: "", CATALOG: ""}

    played(scene)


@pytest.mark.parametrize("answer", [ObjectMissing("gone"), CommitConflict("another was first")])
def test_a_refusal_is_an_answer(answer: Exception) -> None:
    async def scene(play: Scene) -> None:
        play.error = StoreUnreachable("away")
        waiting = play.askers(1)
        await play.clock.turn_to(30)
        play.error = answer
        await play.clock.turn_to(35)
        with pytest.raises(type(answer)):
            await waiting[0]
        assert play.access.breakers[STORE].state is Circuit.CLOSED

    played(scene)


def test_what_was_spoilt_on_its_way_is_read_again_and_what_stays_so_is_told() -> None:
    async def scene(play: Scene) -> None:
        play.error = ObjectDamaged("s3://lake/x: other bytes")
        (task,) = play.askers(1)
        await play.clock.turn_to(1)
        assert play.access.breakers[STORE].state is Circuit.CLOSED, "one object is not the store"
        assert play.said == {STORE: "s3://lake/x: other bytes"}
        play.error = None
        await play.clock.turn_to(5)
        assert await task == "well"
        play.error, play.asked_s = ObjectDamaged("s3://lake/x: other bytes"), []
        (task,) = play.askers(1)
        await play.clock.turn_to(120)
        with pytest.raises(ObjectDamaged, match="s3://lake/x"):
            await task
        assert len(play.asked_s) == DAMAGED_TRIES_MAX
        assert play.said == {STORE: ""}

    played(scene)


def test_who_only_looks_leaves_the_steps_to_those_who_need_them() -> None:
    async def scene(play: Scene) -> None:
        assert play.access.may_look(STORE)
        play.error = StoreUnreachable("away")
        (task,) = play.askers(1)
        for tenth in range(1, 300):
            await play.clock.turn_to(tenth / 10)
            assert not play.access.may_look(STORE) or tenth < 10
        task.cancel()
        await play.clock.turn_to(40)
        assert play.access.may_look(STORE), "nobody tries it any more"
        assert play.access.breakers[STORE].state is Circuit.OPEN

    played(scene)


def test_a_try_that_is_cancelled_gives_its_step_back() -> None:
    async def scene(play: Scene) -> None:
        play.error = StoreUnreachable("away")
        first = play.askers(1)[0]
        await play.clock.turn_to(10)
        first.cancel()
        await play.clock.turn_to(11)

        async def hang() -> None:
            async with play.access.turn([STORE]):
                await play.clock.sleep(1000)

        hanging = asyncio.create_task(hang())
        await play.clock.turn_to(20)
        assert play.access.breakers[STORE].state is Circuit.HALF_OPEN
        play.error = None
        waiting = play.askers(1)[0]
        await play.clock.turn_to(60)
        assert not waiting.done()
        hanging.cancel()
        await play.clock.turn_to(61)
        assert await waiting == "well"

    played(scene)
