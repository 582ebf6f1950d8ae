"""The door to time, randomness, tasks and threads: everything that would make two runs differ.

Whatever waits, draws a number or starts work in parallel is handed a `Runtime`, so that the whole daemon can run in one
process from one seed. Production uses `real_runtime()`; the simulation hands in its own.
"""

from __future__ import annotations

import asyncio
import random
import time
import uuid
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

T = TypeVar("T")


class Clock(Protocol):
    """Wall time for what people read, monotonic time for how long."""

    def now_ms(self) -> int:
        """Milliseconds since the epoch; may jump."""
        ...

    def monotonic_s(self) -> float:
        """Seconds from an arbitrary start; never goes back."""
        ...

    async def sleep(self, seconds: float) -> None: ...


class Randomness(Protocol):
    """Where every random choice comes from."""

    def uniform(self, low: float, high: float) -> float: ...

    def bits(self, count: int) -> int:
        """An integer of `count` random bits, never negative."""
        ...

    def uuid(self) -> str: ...


class Tasks(Protocol):
    """Concurrency: coroutines on the loop, and blocking work beside it."""

    def spawn(self, name: str, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]: ...

    async def run(self, work: Callable[..., T], *arguments: Any) -> T:
        """Runs blocking `work` off the loop. Failures come back as they were raised."""
        ...


@dataclass(frozen=True)
class Runtime:
    clock: Clock
    random: Randomness
    tasks: Tasks


class SystemClock:
    """The machine's own clocks."""

    def now_ms(self) -> int:
        return time.time_ns() // 1_000_000

    def monotonic_s(self) -> float:
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    def pause(self, seconds: float) -> None:
        """Blocks the thread."""
        time.sleep(seconds)


class SystemRandomness:
    """The system's own entropy: nothing here can be guessed or repeated."""

    def __init__(self) -> None:
        self._random = random.SystemRandom()

    def uniform(self, low: float, high: float) -> float:
        return self._random.uniform(low, high)

    def bits(self, count: int) -> int:
        return self._random.getrandbits(count)

    def uuid(self) -> str:
        return str(uuid.uuid4())


class ThreadTasks:
    """Tasks on the running loop; blocking work in a small pool of threads."""

    def __init__(self, thread_count: int = 8) -> None:
        self._pool = ThreadPoolExecutor(thread_count, thread_name_prefix="dolake")

    def spawn(self, name: str, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        return asyncio.get_running_loop().create_task(work, name=name)

    async def run(self, work: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._pool, work, *arguments)


def real_runtime() -> Runtime:
    return Runtime(clock=SystemClock(), random=SystemRandomness(), tasks=ThreadTasks())
