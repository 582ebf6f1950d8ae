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
        self.held: list[asyncio.Handle] = []
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


class SimLoop(asyncio.BaseEventLoop):
    """asyncio on virtual time, the next callback drawn by chance. No I/O, no threads."""

    def __init__(self, seed: str, *, trace: Callable[[str, str, str], None], time_s_max: float = 3600.0) -> None:
        super().__init__()
        self._ready: list[asyncio.Handle] = []
        self._random = random.Random(seed)
        self._now = 0.0
        self._time_s_max = time_s_max
        self._hasty = self._random.random() < 0.5
        self.trace = trace
        self.worker: Worker | None = None
        self.step_count = 0
        self.complaints: list[str] = []
        self.set_exception_handler(self._complain)

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
        if self.worker is not None:
            self.worker.give_way(self.pause_s())

    def run_in_executor(self, *_: Any) -> Any:
        raise AssertionError("work beside the loop goes through runtime.tasks.run")

    def _write_to_self(self) -> None:
        pass

    def _run_once(self) -> None:
        ready, scheduled = self._ready, self._scheduled
        while scheduled and (scheduled[0]._cancelled or scheduled[0]._when <= self._now):
            self._take_timer()
        while not ready:
            if not scheduled or self._now > self._time_s_max:
                raise Stuck(f"after {self._now:.1f} virtual seconds")
            self._now = max(self._now, scheduled[0]._when)
            while scheduled and (scheduled[0]._cancelled or scheduled[0]._when <= self._now):
                self._take_timer()
        self.step_count += 1
        chosen = int(self._random.random() * len(ready))
        ready[chosen], ready[-1] = ready[-1], ready[chosen]
        handle = ready.pop()
        if handle._cancelled:
            return
        process = handle._context.get(_PROCESS)
        if process is None:
            handle._run()
        elif process.frozen_until > self._now:
            self._thaw(process, handle)
        elif process.alive:
            handle._run()

    def _thaw(self, process: Process, handle: asyncio.Handle) -> None:
        """Keeps a callback of a frozen process until it is frozen no more."""
        if not process.held:
            self.call_at(process.frozen_until, lambda: (self._ready.extend(process.held), process.held.clear()), context=Context())
        process.held.append(handle)

    def _take_timer(self) -> None:
        timer = heapq.heappop(self._scheduled)
        timer._scheduled = False
        if timer._cancelled:
            self._timer_cancelled_count = max(0, self._timer_cancelled_count - 1)
        else:
            self._ready.append(timer)

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
        await asyncio.sleep(seconds)


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
