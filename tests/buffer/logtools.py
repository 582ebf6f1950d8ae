"""What the log's tests share: entries, seeded randomness, a disk that fails where told, failpoints armed for a moment."""

from __future__ import annotations

import errno
import os
import random
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import xxhash

from dolake import failpoints
from dolake.buffer.tail import LogReader
from dolake.buffer.wal import Log, LogSettings
from dolake.model import Entry, Record, RecordKind, TransactionMark
from dolake.storage.disk import LocalDisk, LocalFile

SMALL = LogSettings(segment_bytes=4096, reserve_bytes=0)
LARGE = LogSettings(segment_bytes=64 << 20, reserve_bytes=0)


class SeededRandomness:
    def __init__(self, seed: int = 1) -> None:
        self._random = random.Random(seed)

    def uniform(self, low: float, high: float) -> float:
        return self._random.uniform(low, high)

    def bits(self, count: int) -> int:
        return self._random.getrandbits(count)

    def uuid(self) -> str:
        return str(uuid.UUID(int=self._random.getrandbits(128), version=4))


def entry(sequence: int, *, source: str = "orders-db", size: int = 300, table: str = "public.orders", epoch: str = "") -> Entry:
    payload = random.Random(f"{source}/{epoch}/{sequence}").randbytes(size)
    return Entry(
        kind=RecordKind.BATCH,
        source=source,
        epoch=epoch,
        sequence=sequence,
        event_count=3,
        content=xxhash.xxh3_64_intdigest(payload),
        payload=payload,
        tables={table: 3},
        last_event_sequence=sequence * 3 + 2,
        last_lsn=f"0/{sequence:X}",
        transaction=TransactionMark("7", last=False) if sequence % 5 == 4 else None,
    )


def create(directory: object, settings: LogSettings = SMALL, disk: LocalDisk | None = None, seed: int = 1) -> Log:
    return Log.create(disk or HastyDisk(), str(directory), settings, SeededRandomness(seed))


def reopen(directory: object, settings: LogSettings = SMALL, disk: LocalDisk | None = None, seed: int = 2) -> Log:
    return Log.open(disk or HastyDisk(), str(directory), settings, SeededRandomness(seed))


def fill(log: Log, sequences: Sequence[int], **fields: object) -> None:
    """One entry a group."""
    for sequence in sequences:
        log.append_group([entry(sequence, **fields)])


def read_all(directory: object, start: int = 0, size_bytes_max: int = 2000) -> list[Record]:
    """Everything that a reader is given, in small steps, and that it is dense."""
    reader = LogReader(LocalDisk(), str(directory))
    try:
        records: list[Record] = []
        while more := reader.read(start + len(records), size_bytes_max):
            records += more
        assert [record.offset for record in records] == list(range(start, start + len(records)))
        return records
    finally:
        reader.close()


def batches(records: Sequence[Record]) -> list[int]:
    """The sequences of the batches among records."""
    return [record.entry.sequence for record in records if record.entry.kind is RecordKind.BATCH]


def segment_files(directory: object) -> list[str]:
    return [name for name in sorted(os.listdir(str(directory))) if name[0].isdigit()]


def contents(directory: object) -> dict[str, bytes]:
    found = {}
    for name in segment_files(directory):
        with open(os.path.join(str(directory), name), "rb") as file:
            found[name] = file.read()
    return found


def overwrite(path: object, position: int, data: bytes) -> None:
    with open(str(path), "r+b") as file:
        file.seek(position)
        file.write(data)


@contextmanager
def armed(name: str, action: str = "1*raise") -> Iterator[None]:
    failpoints.REGISTRY.arm(name, action)
    try:
        yield
    finally:
        failpoints.REGISTRY.disarm()


class HastyDisk(LocalDisk):
    """A local disk that does not sync: these tests kill processes in thought only. Power cuts are the simulation's."""

    def create(self, path: str) -> LocalFile:
        return HastyFile(super().create(path).detach())

    def sync_directory(self, path: str) -> None:
        pass


class HastyFile(LocalFile):
    def sync(self) -> None:
        pass


class FailingDisk(HastyDisk):
    """A disk whose next writes take only `room_bytes` in all, and whose syncs fail when told."""

    def __init__(self) -> None:
        self.room_bytes: int | None = None
        self.number = errno.ENOSPC
        self.syncs_fail = False
        self.locks_fail = 0

    def create(self, path: str) -> LocalFile:
        if self.room_bytes == 0:
            raise OSError(self.number, os.strerror(self.number), path)
        return FailingFile(super().create(path), self)

    def lock(self, path: str):  # type: ignore[no-untyped-def]
        if self.locks_fail:
            raise OSError(self.locks_fail, os.strerror(self.locks_fail), path)
        return super().lock(path)


class FailingFile(HastyFile):
    def __init__(self, file: LocalFile, disk: FailingDisk) -> None:
        super().__init__(file.detach())
        self._disk = disk

    def write_at(self, position: int, parts: Sequence[bytes | memoryview]) -> int:
        data = b"".join(parts)
        end = position + len(data)
        grows = max(0, end - max(position, self.size()))
        if self._disk.room_bytes is None:
            return super().write_at(position, parts)
        taken = min(grows, self._disk.room_bytes)
        self._disk.room_bytes -= taken
        super().write_at(position, [data[: len(data) - grows + taken]])
        if taken < grows:
            raise OSError(self._disk.number, os.strerror(self._disk.number))
        return len(data)

    def sync(self) -> None:
        if self._disk.syncs_fail:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        super().sync()


class SmallDisk(HastyDisk):
    """A disk of its own for one directory, as large as told: what does not fit is refused after what does."""

    def __init__(self, directory: object, size_bytes: int) -> None:
        self.directory, self.size_bytes = str(directory), size_bytes

    def create(self, path: str) -> LocalFile:
        return SmallFile(super().create(path), self)

    def usage(self, path: str) -> tuple[int, int]:
        used = sum(os.stat(os.path.join(self.directory, name)).st_size for name in os.listdir(self.directory))
        return self.size_bytes, max(0, self.size_bytes - used)


class SmallFile(HastyFile):
    def __init__(self, file: LocalFile, disk: SmallDisk) -> None:
        super().__init__(file.detach())
        self._disk = disk

    def write_at(self, position: int, parts: Sequence[bytes | memoryview]) -> int:
        data = b"".join(parts)
        free = self._disk.usage(self._disk.directory)[1] + max(0, self.size() - position)
        written = super().write_at(position, [data[:free]])
        if written < len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return written
