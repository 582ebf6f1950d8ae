"""A rewrite in a process of its own, at the lowest priority: its memory goes back when it ends, its crash is nobody else's.

    parent → child   8 bytes, big-endian: how many follow; then settings as JSON, job and pace, pickled. The pipe stays open
    child → parent   what was rewritten, or what went wrong, pickled; then the child ends

Both are the same program and nobody else's pipe: that is why values are pickled here and nowhere else. The child ends at once when the
parent's end of the pipe closes: files that it has put by then are named by nobody.
"""

from __future__ import annotations

import asyncio
import os
import pickle
import struct
import sys
from collections.abc import Callable
from functools import partial

from dolake.clock import SystemClock, real_runtime
from dolake.compaction.job import Job, Rewritten
from dolake.compaction.rewrite import rewrite
from dolake.config import Settings
from dolake.errors import DolakeError, RewriteFailed, RewriteRefused, StoreUnreachable
from dolake.iceberg.lake import open_warehouse

_HEADER = struct.Struct(">Q")
# Ingest and flushes first: a rewrite takes what they leave.
_NICENESS = 15


async def rewrite_apart(settings: Settings, job: Job) -> Rewritten:
    """Raises RewriteRefused, StoreUnreachable, RewriteFailed for a process that ended before it was done."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "dolake.compaction.process"), stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        task = pickle.dumps((settings.to_json(), job))
        process.stdin.write(_HEADER.pack(len(task)) + task)
        answer = await process.stdout.read()
        process.stdin.close()
        code = await process.wait()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if not answer:
        killed = " (it was killed, perhaps for want of memory: lower compaction.memory_bytes)" if code < 0 else ""
        raise RewriteFailed(f"the process that rewrites files of {job.table} ended with {code}{killed}")
    return _unpacked(answer)


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
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    (size,) = _HEADER.unpack(await reader.readexactly(_HEADER.size))
    text, job = pickle.loads(await reader.readexactly(size))
    working = loop.create_task(real_runtime().tasks.run(partial(_do, Settings.from_json(text), job)))
    ending = loop.create_task(reader.read(1))
    await asyncio.wait([working, ending], return_when=asyncio.FIRST_COMPLETED)
    if working.done():
        sys.stdout.buffer.write(pickle.dumps(working.result()))
        sys.stdout.buffer.flush()
    os._exit(0)  # Without waiting for a thread that nobody waits for.


if __name__ == "__main__":
    os.nice(_NICENESS)
    asyncio.run(_main())
