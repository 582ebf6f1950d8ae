"""Rewrites in processes of their own, at the lowest priority: their memory goes back when they end, their crash is nobody else's.

    parent → child   8 bytes, big-endian: how many follow; then settings as JSON and the job, pickled
    child → parent   8 bytes, and what was rewritten, or what went wrong, pickled

Both are the same program and nobody else's pipe: that is why values are pickled here and nowhere else. To start one costs more than a
small job does, so a process that was given small ones waits for the next for a while; after a large one it ends, and its memory with
it. A child ends at once when the parent's end of the pipe closes: files that it has put by then are named by nobody.
"""

from __future__ import annotations

import asyncio
import os
import pickle
import struct
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

from dolake import failpoints
from dolake.clock import SystemClock, real_runtime
from dolake.compaction.job import Job, Rewritten
from dolake.compaction.rewrite import rewrite
from dolake.config import Settings, process_environment
from dolake.errors import DolakeError, RewriteFailed, RewriteRefused, StoreUnreachable
from dolake.iceberg.lake import open_warehouse

_HEADER = struct.Struct(">Q")
# Ingest and flushes first: a rewrite takes what they leave.
_NICENESS = 15
_IDLE_S = 60.0
_SMALL_BYTES_MAX = 32 << 20


class RewriteProcesses:
    """As many processes as there are rewrites at once; none while nothing is rewritten."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._idle: dict[asyncio.subprocess.Process, asyncio.TimerHandle] = {}

    async def rewrite(self, job: Job) -> Rewritten:
        """Raises RewriteRefused, StoreUnreachable, RewriteFailed for a process that ended before it was done."""
        process = self._take() or await _started()
        answer = b""
        try:
            answer = await _ask(process, pickle.dumps((self._settings.to_json(), job)))
        finally:
            if answer and sum(file.size_bytes for file in job.data) <= _SMALL_BYTES_MAX:
                self._idle[process] = asyncio.get_running_loop().call_later(_IDLE_S, self._let_go, process)
            else:
                await _ended(process)
        if not answer:
            code = process.returncode
            killed = " (it was killed, perhaps for want of memory: lower compaction.memory_bytes)" if code is not None and code < 0 else ""
            raise RewriteFailed(f"the process that rewrites files of {job.table} ended with {code}{killed}")
        return _unpacked(answer)

    def _take(self) -> asyncio.subprocess.Process | None:
        """One that waits, if it is still there."""
        while self._idle:
            process, timer = self._idle.popitem()
            timer.cancel()
            if process.returncode is None:
                return process
        return None

    def _let_go(self, process: asyncio.subprocess.Process) -> None:
        self._idle.pop(process, None)
        _close(process)

    async def close(self) -> None:
        """Those that wait end."""
        while self._idle:
            process, timer = self._idle.popitem()
            timer.cancel()
            _close(process)
            await process.wait()


async def _started() -> asyncio.subprocess.Process:
    command = (sys.executable, "-m", "dolake.compaction.process")
    return await asyncio.create_subprocess_exec(*command, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE)


async def _ask(process: asyncio.subprocess.Process, task: bytes) -> bytes:
    """The answer; nothing from one that has ended."""
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(_HEADER.pack(len(task)) + task)
        await process.stdin.drain()
        (size,) = _HEADER.unpack(await process.stdout.readexactly(_HEADER.size))
        return await process.stdout.readexactly(size)
    except (asyncio.IncompleteReadError, ConnectionError):
        await process.wait()
        return b""


async def _ended(process: asyncio.subprocess.Process) -> None:
    """By its pipe; one that is in the middle of a job nobody waits for is killed."""
    if process.returncode is None:
        process.kill()
    _close(process)
    await process.wait()


def _close(process: asyncio.subprocess.Process) -> None:
    if process.stdin is not None:
        process.stdin.close()


def _unpacked(answer: bytes) -> Rewritten:
    kind, value = pickle.loads(answer)
    if kind == "done":
        assert isinstance(value, Rewritten)
        return value
    raise _ERRORS[kind](*value)


_ERRORS: dict[str, Callable[..., DolakeError]] = {
    "refused": RewriteRefused,
    "unreachable": StoreUnreachable,
    "failed": RewriteFailed,
}


class Pace:
    """Keeps one thread to so many bytes a second, over all it has spent since it began; None is as fast as it can."""

    def __init__(self, bytes_per_s: int | None, clock: SystemClock) -> None:
        self._bytes_per_s, self._clock = bytes_per_s, clock
        self._began_s, self._spent_bytes = clock.monotonic_s(), 0

    def spend(self, size_bytes: int) -> None:
        self._spent_bytes += size_bytes
        if self._bytes_per_s is not None:
            ahead_s = self._began_s + self._spent_bytes / self._bytes_per_s - self._clock.monotonic_s()
            if ahead_s > 0:
                self._clock.pause(ahead_s)


def _do(settings: Settings, job: Job) -> tuple[str, object]:
    try:
        pace = Pace(settings.compaction.bytes_per_s, SystemClock())
        return "done", rewrite(open_warehouse(settings), job, uuid=real_runtime().random.uuid, spent=pace.spend)
    except RewriteRefused as refused:
        return "refused", (refused.file, refused.reason)
    except StoreUnreachable as trouble:
        return "unreachable", (str(trouble),)
    except (DolakeError, MemoryError, OSError, ValueError) as error:
        return "failed", (f"{type(error).__name__}: {error}",)


async def _main() -> None:
    loop, runtime = asyncio.get_running_loop(), real_runtime()
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    waiting: asyncio.Task[Any] = loop.create_task(_task(reader))
    while True:
        text, job = await waiting
        # While it is done the next one is waited for already: so the pipe's end is noticed at once.
        waiting = loop.create_task(_task(reader))
        answer = pickle.dumps(await runtime.tasks.run(partial(_do, Settings.from_json(text), job)))
        sys.stdout.buffer.write(_HEADER.pack(len(answer)) + answer)
        sys.stdout.buffer.flush()


async def _task(reader: asyncio.StreamReader) -> tuple[str, Job]:
    """Ends the process where there is none any more, whatever its threads are at."""
    try:
        (size,) = _HEADER.unpack(await reader.readexactly(_HEADER.size))
        task: tuple[str, Job] = pickle.loads(await reader.readexactly(size))
    except asyncio.IncompleteReadError:
        os._exit(0)
    return task


if __name__ == "__main__":
    os.nice(_NICENESS)
    failpoints.arm_from_environment(process_environment())
    asyncio.run(_main())
