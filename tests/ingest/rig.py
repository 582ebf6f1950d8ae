"""The ingest half in this process, without sockets, over a real disk whose syncs can be held up or made to fail."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import threading
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

from dolake.auth.principal import ANYBODY, Principal
from dolake.clock import Runtime, SystemClock, SystemRandomness, ThreadTasks
from dolake.config import Settings
from dolake.ingest.connection import Connection
from dolake.ingest.service import IngestService
from dolake.storage.disk import File, LocalDisk, Lock, SharedCounter
from tests.cdc.samples import CONNECT, frame

ANSWER_S_MAX = 10.0


class QuickClock(SystemClock):
    """Real time, in which waiting is short: what backs off for seconds does so for milliseconds."""

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(min(seconds, 0.002))


def quick_runtime() -> Runtime:
    return Runtime(clock=QuickClock(), random=SystemRandomness(), tasks=ThreadTasks(4))


class TroubledDisk:
    """A local disk. Below `broken` directories every write, sync and open fails; while `held`, syncs of segments wait."""

    def __init__(self) -> None:
        self._disk = LocalDisk()
        self.broken: set[str] = set()
        self.full: set[str] = set()
        self.sync_failures = 0
        self.unheld = threading.Event()
        self.unheld.set()
        self.sync_waits = threading.Event()
        self.sync_count = 0
        self.size_bytes = 1 << 40

    def check(self, path: str) -> None:
        if any(path.startswith(directory) for directory in self.broken):
            raise OSError(errno.EIO, os.strerror(errno.EIO), path)

    def create(self, path: str) -> File:
        self.check(path)
        return TroubledFile(self, path, self._disk.create(path))

    def open(self, path: str) -> File:
        self.check(path)
        return TroubledFile(self, path, self._disk.open(path))

    def list(self, directory: str) -> list[str]:
        self.check(directory)
        return self._disk.list(directory)

    def exists(self, path: str) -> bool:
        return self._disk.exists(path)

    def rename(self, old: str, new: str) -> None:
        self.check(old)
        self._disk.rename(old, new)

    def unlink(self, path: str) -> None:
        self.check(path)
        self._disk.unlink(path)

    def make_directories(self, path: str) -> None:
        self._disk.make_directories(path)

    def sync_directory(self, path: str) -> None:
        self.check(path)
        self._disk.sync_directory(path)

    def lock(self, path: str) -> Lock:
        return self._disk.lock(path)

    def counter(self, path: str, *, writable: bool) -> SharedCounter:
        return self._disk.counter(path, writable=writable)

    def usage(self, path: str) -> tuple[int, int]:
        return self.size_bytes, self.size_bytes


class TroubledFile:
    def __init__(self, disk: TroubledDisk, path: str, file: File) -> None:
        self._disk, self._path, self._file = disk, path, file

    def write_at(self, position: int, parts: Sequence[bytes | memoryview]) -> int:
        self._disk.check(self._path)
        if any(self._path.startswith(directory) for directory in self._disk.full):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self._path)
        return self._file.write_at(position, parts)

    def read_at(self, position: int, size: int) -> bytes:
        return self._file.read_at(position, size)

    def sync(self) -> None:
        self._disk.sync_waits.set()
        if not self._disk.unheld.wait(ANSWER_S_MAX):
            raise AssertionError("a held sync was forgotten")
        self._disk.check(self._path)
        if self._disk.sync_failures:
            self._disk.sync_failures -= 1
            raise OSError(errno.EIO, os.strerror(errno.EIO), self._path)
        self._file.sync()
        self._disk.sync_count += 1

    def size(self) -> int:
        return self._file.size()

    def close(self) -> None:
        self._file.close()


class Peer:
    """A client of the service: what it sent is answered in `answers`; `ended` says how the server closed it."""

    def __init__(self, service: IngestService, principal: Principal = ANYBODY) -> None:
        self.answers: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.ended: tuple[int, str] | None = None
        self.connection: Connection = service.connect(self._take, self._end, principal)

    def _take(self, sent: bytes) -> None:
        self.answers.put_nowait({"pong": True} if sent == b"pong" else json.loads(sent))

    def _end(self, code: int, reason: str) -> None:
        self.ended = code, reason

    async def send(self, message: dict[str, Any] | bytes) -> None:
        await self.connection.receive(message if isinstance(message, bytes) else frame(message))

    async def answer(self) -> dict[str, Any]:
        async with asyncio.timeout(ANSWER_S_MAX):
            return await self.answers.get()

    async def ask(self, message: dict[str, Any] | bytes) -> dict[str, Any]:
        await self.send(message)
        return await self.answer()

    async def greet(self, source: str = "orders-db-3", **more: Any) -> dict[str, Any]:
        return await self.ask({**CONNECT, "sourceDoId": source, **more})


def ingest_settings(directory: Path, **sections: Any) -> Settings:
    return Settings.model_validate({"data": str(directory), **sections})


@contextlib.asynccontextmanager
async def serving(directory: Path, *, disk: TroubledDisk | None = None, **sections: Any) -> AsyncIterator[IngestService]:
    """A service that has started; stopped in order at the end."""
    service = IngestService(quick_runtime(), disk or TroubledDisk(), ingest_settings(directory, **sections))
    await service.start()
    try:
        yield service
    finally:
        await service.stop()


async def eventually(holds: Any) -> None:
    """Waits until `holds()` is true; fails after a long while."""
    async with asyncio.timeout(ANSWER_S_MAX):
        while not holds():  # noqa: ASYNC110 - what is waited for has no event of its own
            await asyncio.sleep(0.001)
