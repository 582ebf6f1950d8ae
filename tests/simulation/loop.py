"""One thread, one seed: an event loop with virtual time, and the processes and worker threads that run on it.

The loop picks the next ready callback by chance and moves its clock to the next timer when nothing is ready, so that one
seed is one schedule. A `Process` is what a daemon's half is to an operating system: everything it spawned carries it in
its context, and once it has died none of its callbacks run again, not even a `finally`. Blocking work (`tasks.run`) runs
in a greenlet that gives way at every door operation, as a thread would: a reader sees the log between a write and its
sync.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import itertools
import random
import uuid
from collections.abc import Callable, Coroutine
from contextvars import Context, ContextVar, copy_context
from typing import Any, TypeVar

from greenlet import greenlet

from dolake.clock import Runtime

T = TypeVar("T")

START_S = 1_767_225_600.0  # 2026-01-01: what the virtual wall clock begins with


class ProcessKilled(BaseException):
    """Raised out of a door operation of a process that has just died; nothing may catch it."""


class Stuck(Exception):
    """Nothing is ready and no timer is set, or the virtual time allowed is over."""


_PROCESS: ContextVar[Process | None] = ContextVar("process", default=None)


class Process:
    """A half of the daemon, or a producer: what dies at once and takes its tasks, workers and locks along.

    `step` is called before each door operation: it lets others run (in a worker), counts down to the moment that the
    world has drawn for this process (operations named in `counts`, or all), and raises ProcessKilled if it has died. A
    `detached` process is a zombie: it runs on, its disk is gone. Until `frozen_until` a process does nothing at all.
    """

    def __init__(self, loop: SimLoop, name: str, seed: str, clock_off_s: float = 0.0) -> None:
        """`clock_off_s`: how far its wall clock may be off, either way."""
        self.loop, self.name = loop, name
        self.random = random.Random(seed)
        self.alive = True
        self.detached = False
        self.frozen_until = 0.0
        self.held: list[Callback] = []
        self.steps_left: int | None = None
        self.counts: frozenset[str] | None = None
        self.doom = ""
        self.on_moment: Callable[[Process], None] | None = None
        self.on_death: list[Callable[[], None]] = []
        self.tasks: list[asyncio.Task[Any]] = []
        self.workers: list[Worker] = []
        clock = SimClock(self, self.random.uniform(-clock_off_s, clock_off_s) if clock_off_s else 0.0)
        self.runtime = Runtime(clock=clock, random=SimRandom(self.random), tasks=SimTasks(self))

    def step(self, operation: str, detail: str = "") -> None:
        """The moment before a door operation."""
        if self.alive:
            self.loop.give_way()
        self.check()
        self.loop.trace(self.name, operation, detail)
        if self.steps_left is not None and self.on_moment is not None:
            self.steps_left -= self.counts is None or operation in self.counts
            if self.steps_left <= 0:
                self.steps_left = None
                self.on_moment(self)
                self.check()

    def hold(self, longest_s: float) -> None:
        """Keeps a worker waiting, as a slow disk or server does. It may have died meanwhile."""
        if longest_s > 0 and self.loop.worker is not None:
            self.loop.worker.give_way(self.random.uniform(0.0, longest_s))
            self.check()

    def check(self) -> None:
        if not self.alive:
            raise ProcessKilled(self.name)

    def spawn(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """A task of this process, from outside it."""
        context = copy_context()
        context.run(_PROCESS.set, self)
        task = self.loop.create_task(work, context=context)
        self.tasks.append(task)
        return task

    def call_soon(self, callback: Callable[..., object], *arguments: Any) -> None:
        """Runs a callback inside this process, from outside it."""
        context = copy_context()
        context.run(_PROCESS.set, self)
        self.loop.call_soon(callback, *arguments, context=context)

    def die(self) -> None:
        if self.alive:
            self.alive = False
            self.loop.trace(self.name, "died", "")
            for callback in self.on_death:
                callback()

    def bury(self) -> None:
        """At the end of the world: unwinds what the dead process left standing, with its doors closed."""
        self.alive = False
        for worker in self.workers:
            worker.bury()
        for task in self.tasks:
            task._log_destroy_pending = False
            if task.done():
                if not task.cancelled():
                    task.exception()
                continue
            with contextlib.suppress(Exception, ProcessKilled, asyncio.CancelledError):
                task.get_coro().close()


def running_process() -> Process | None:
    """Whose code this is, on the loop or in a worker; None outside every process."""
    return _PROCESS.get()


class Worker:
    """A thread's stand-in: one blocking call, which gives way to the loop at each door operation."""

    def __init__(self, process: Process, work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
        self.process, self._work, self._arguments = process, work, arguments
        self.future: asyncio.Future[Any] = process.loop.create_future()
        self._greenlet = greenlet(self._body)
        self._greenlet.gr_context = copy_context()
        self._outcome: tuple[Any, Exception | None] = (None, None)

    def begin(self) -> None:
        # A call that was cancelled before a thread took it up never runs; later it runs on, unheard.
        if not self.future.cancelled() or self.process.random.random() < 0.5:
            self.process.workers.append(self)
            self.resume()

    def resume(self) -> None:
        loop = self.process.loop
        loop.worker = self
        self._greenlet.switch()
        loop.worker = None
        if self._greenlet.dead:
            self.process.workers.remove(self)
            if self.process.alive:
                loop.call_later(loop.pause_s(), self._deliver)

    def give_way(self, seconds: float) -> None:
        self.process.loop.call_later(seconds, self.resume)
        self._greenlet.parent.switch()

    def bury(self) -> None:
        if not self._greenlet.dead:
            self._greenlet.throw(ProcessKilled)

    def _body(self) -> None:
        try:
            self._outcome = (self._work(*self._arguments), None)
        except ProcessKilled:
            pass
        except Exception as error:
            self._outcome = (None, error)

    def _deliver(self) -> None:
        result, error = self._outcome
        if self.future.done():
            return
        if error is None:
            self.future.set_result(result)
        else:
            self.future.set_exception(error)


class Callback:
    """What asyncio's Handle and TimerHandle are, without what they carry for debugging: a world makes ten thousand."""

    __slots__ = ("arguments", "callback", "context", "is_cancelled", "when_s")

    def __init__(self, callback: Callable[..., object], arguments: tuple[Any, ...], context: Context | None, when_s: float) -> None:
        self.callback, self.arguments, self.when_s = callback, arguments, when_s
        self.context = context if context is not None else copy_context()
        self.is_cancelled = False

    def cancel(self) -> None:
        self.is_cancelled = True

    def cancelled(self) -> bool:
        return self.is_cancelled

    def when(self) -> float:
        return self.when_s


class SimTask(asyncio.Task[Any]):
    """A task whose place in a set is its number: by its address, one seed would be two schedules."""

    def __init__(self, work: Coroutine[Any, Any, Any], loop: SimLoop, number: int, **named: Any) -> None:
        self._number = number
        super().__init__(work, loop=loop, **named)

    def __hash__(self) -> int:
        return self._number


class SimLoop(asyncio.BaseEventLoop):
    """asyncio on virtual time, the next callback drawn by chance. No I/O, no threads."""

    def __init__(self, seed: str, *, trace: Callable[[str, str, str], None], time_s_max: float = 3600.0) -> None:
        super().__init__()
        self._ready: list[Callback] = []
        self._scheduled: list[tuple[float, int, Callback]] = []
        self._numbers = itertools.count()
        self._random = random.Random(seed)
        self._now = 0.0
        self._time_s_max = time_s_max
        self._hasty = self._random.random() < 0.5
        self.trace = trace
        self.worker: Worker | None = None
        self.step_count = 0
        self.complaints: list[str] = []
        self.set_exception_handler(self._complain)
        self.set_task_factory(self._make_task)

    def time(self) -> float:
        return self._now

    def pause_s(self) -> float:
        """How long a thread waits for the processor, or a call for its disk: mostly nothing, now and then long."""
        draw = self._random.random()
        if draw < 0.80 or (self._hasty and draw < 0.97):
            return 0.0
        return self._random.uniform(0.0, 0.01) if draw < 0.995 else self._random.uniform(0.0, 2.0)

    def give_way(self) -> None:
        """Lets others run if the caller is in a worker; on the loop itself nothing can."""
        worker = self.worker
        if worker is None:
            return
        pause_s = self.pause_s()
        if pause_s or self._ready or worker.process.frozen_until > self._now or self._has_timer_due():
            worker.give_way(pause_s)  # Or it would be the next to be drawn: nobody else is ready.

    def _has_timer_due(self) -> bool:
        return bool(self._scheduled) and self._scheduled[0][0] <= self._now

    def run_in_executor(self, *_: Any) -> Any:
        raise AssertionError("work beside the loop goes through runtime.tasks.run")

    def _write_to_self(self) -> None:
        pass

    def _make_task(self, loop: asyncio.AbstractEventLoop, work: Any, **named: Any) -> SimTask:
        return SimTask(work, self, next(self._numbers), **named)

    def call_soon(self, callback: Callable[..., object], *arguments: Any, context: Context | None = None) -> Any:
        made = Callback(callback, arguments, context, self._now)
        self._ready.append(made)
        return made

    def call_later(self, delay: float, callback: Callable[..., object], *arguments: Any, context: Context | None = None) -> Any:
        made = Callback(callback, arguments, context, self._now + delay)
        if delay <= 0:
            self._ready.append(made)
        else:
            heapq.heappush(self._scheduled, (made.when_s, next(self._numbers), made))
        return made

    def call_at(self, when: float, callback: Callable[..., object], *arguments: Any, context: Context | None = None) -> Any:
        made = Callback(callback, arguments, context, when)
        if when <= self._now:
            self._ready.append(made)
        else:
            heapq.heappush(self._scheduled, (when, next(self._numbers), made))
        return made

    def _run_once(self) -> None:
        """Goes on until somebody stops it: asyncio's own loop around this one has nothing to look at in between."""
        ready, scheduled, draw = self._ready, self._scheduled, self._random.random
        while not self._stopping:
            if not ready:
                self._pass_time()
            while scheduled and scheduled[0][0] <= self._now:
                ready.append(heapq.heappop(scheduled)[2])
            self.step_count += 1
            chosen = int(draw() * len(ready))
            ready[chosen], ready[-1] = ready[-1], ready[chosen]
            made = ready.pop()
            if made.is_cancelled:
                continue
            process = made.context.get(_PROCESS)
            if process is not None:
                if process.frozen_until > self._now:
                    self._thaw(process, made)
                    continue
                if not process.alive:
                    continue
            try:
                made.context.run(made.callback, *made.arguments)
            except (SystemExit, KeyboardInterrupt):
                raise
            except BaseException as error:
                self.call_exception_handler({"message": f"Exception in callback {made.callback!r}", "exception": error})

    def _pass_time(self) -> None:
        while self._scheduled and self._scheduled[0][2].is_cancelled:
            heapq.heappop(self._scheduled)
        if not self._scheduled or self._now > self._time_s_max:
            raise Stuck(f"after {self._now:.1f} virtual seconds")
        self._now = max(self._now, self._scheduled[0][0])

    def _thaw(self, process: Process, made: Callback) -> None:
        """Keeps a callback of a frozen process until it is frozen no more."""
        if not process.held:
            self.call_at(process.frozen_until, lambda: (self._ready.extend(process.held), process.held.clear()), context=Context())
        process.held.append(made)

    def _complain(self, _: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if not isinstance(error, ProcessKilled):
            self.complaints.append(f"{context.get('message')}: {error!r}")


class SimClock:
    """One virtual clock for all; a process's own wall clock may stand off it, as real ones do."""

    def __init__(self, process: Process, off_s: float) -> None:
        self._loop = process.loop
        self.off_s = off_s

    def now_ms(self) -> int:
        return int((START_S + self.off_s + self._loop.time()) * 1000)

    def monotonic_s(self) -> float:
        return self._loop.time()

    async def sleep(self, seconds: float) -> None:
        if seconds <= 0:
            await asyncio.sleep(0)
            return
        future = self._loop.create_future()
        timer = self._loop.call_later(seconds, _wake, future)
        try:
            await future
        finally:
            timer.cancel()


def _wake(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


class SimRandom:
    def __init__(self, source: random.Random) -> None:
        self._random = source

    def uniform(self, low: float, high: float) -> float:
        return self._random.uniform(low, high)

    def bits(self, count: int) -> int:
        return self._random.getrandbits(count)

    def uuid(self) -> str:
        return str(uuid.UUID(int=self._random.getrandbits(128), version=4))


class SimTasks:
    def __init__(self, process: Process) -> None:
        self._process = process

    def spawn(self, name: str, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = self._process.loop.create_task(work, name=name)
        self._process.tasks.append(task)
        return task

    async def run(self, work: Callable[..., T], *arguments: Any) -> T:
        worker = Worker(self._process, work, arguments)
        self._process.loop.call_later(self._process.loop.pause_s(), worker.begin)
        result: T = await worker.future
        return result
