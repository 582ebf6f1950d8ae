"""The door to a disk: what the log needs of a file system, and nothing more.

Paths are strings. Every method may raise OSError as the system did. Nothing here is durable until `sync` (a file's bytes)
and `sync_directory` (its name) have returned: the simulated disk of the tests takes away whatever was not.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import struct
from collections.abc import Sequence
from typing import Protocol

_WRITEV_PARTS_MAX = 512  # below IOV_MAX, which is 1,024 on Linux


class File(Protocol):
    """An open file of the log."""

    def write_at(self, position: int, parts: Sequence[bytes | memoryview]) -> int:
        """Writes all parts one after the other from `position`; returns their length. On error any prefix may be there."""
        ...

    def read_at(self, position: int, size: int) -> bytes:
        """At most `size` bytes; fewer only at the end of the file."""
        ...

    def sync(self) -> None:
        """fdatasync. If it raises, the bytes' fate is unknown for good: never call it again on this file."""
        ...

    def size(self) -> int: ...

    def close(self) -> None: ...


class Lock(Protocol):
    def release(self) -> None: ...


class SharedCounter(Protocol):
    """One unsigned 64-bit number that another process reads as it changes."""

    def set(self, value: int) -> None: ...

    def get(self) -> int: ...

    def close(self) -> None: ...


class Disk(Protocol):
    """A file system, as far as the log needs one."""

    def create(self, path: str) -> File:
        """A new file for reading and writing; FileExistsError if the name is taken."""
        ...

    def open(self, path: str) -> File:
        """An existing file, to read."""
        ...

    def map(self, path: str) -> memoryview:
        """An existing file's bytes, read where they are needed; it must not be written any more. An empty one has none."""
        ...

    def list(self, directory: str) -> list[str]:
        """Names in a directory, sorted; FileNotFoundError if there is none."""
        ...

    def exists(self, path: str) -> bool: ...

    def rename(self, old: str, new: str) -> None: ...

    def unlink(self, path: str) -> None: ...

    def make_directories(self, path: str) -> None: ...

    def sync_directory(self, path: str) -> None: ...

    def lock(self, path: str) -> Lock:
        """An exclusive advisory lock, gone with the process; BlockingIOError if another holds it."""
        ...

    def counter(self, path: str, *, writable: bool) -> SharedCounter:
        """Opens, or if writable creates (as 0), a shared counter."""
        ...

    def usage(self, path: str) -> tuple[int, int]:
        """(bytes in all, bytes free to us) of the file system that holds `path`."""
        ...


class LocalFile:
    """A file of the machine's own file system. It owns its descriptor: who drops it unclosed, on an error's way out, leaks none."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def write_at(self, position: int, parts: Sequence[bytes | memoryview]) -> int:
        start = position
        views = [memoryview(part) for part in parts if len(part)]
        first = 0
        while first < len(views):
            written = os.pwritev(self._descriptor, views[first : first + _WRITEV_PARTS_MAX], position)
            position += written
            while first < len(views) and written >= len(views[first]):
                written -= len(views[first])
                first += 1
            if written:  # A short write: the system took part of a piece; go on behind it.
                views[first] = views[first][written:]
        return position - start

    def read_at(self, position: int, size: int) -> bytes:
        pieces = []
        while size > 0:
            piece = os.pread(self._descriptor, size, position)
            if not piece:
                break
            pieces.append(piece)
            position, size = position + len(piece), size - len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def sync(self) -> None:
        os.fdatasync(self._descriptor)

    def size(self) -> int:
        return os.fstat(self._descriptor).st_size

    def detach(self) -> int:
        """Its descriptor, which is the caller's from now on."""
        descriptor, self._descriptor = self._descriptor, -1
        return descriptor

    def close(self) -> None:
        if (descriptor := self.detach()) >= 0:
            os.close(descriptor)

    __del__ = close


class LocalLock:
    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def release(self) -> None:
        os.close(self._descriptor)


class LocalCounter:
    """Eight bytes, little endian, in a memory-mapped file: an aligned store is seen whole by the other process."""

    _FORMAT = struct.Struct("<Q")

    def __init__(self, descriptor: int, *, writable: bool) -> None:
        self._map = mmap.mmap(descriptor, self._FORMAT.size, access=mmap.ACCESS_WRITE if writable else mmap.ACCESS_READ)
        self._words = memoryview(self._map).cast("Q")

    def set(self, value: int) -> None:
        self._words[0] = value

    def get(self) -> int:
        return int(self._words[0])

    def close(self) -> None:
        self._words.release()
        self._map.close()


class LocalDisk:
    """The machine's own file system."""

    def create(self, path: str) -> LocalFile:
        return LocalFile(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644))

    def open(self, path: str) -> LocalFile:
        return LocalFile(os.open(path, os.O_RDONLY | os.O_CLOEXEC))

    def map(self, path: str) -> memoryview:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            size = os.fstat(descriptor).st_size
            return memoryview(mmap.mmap(descriptor, size, access=mmap.ACCESS_READ)) if size else memoryview(b"")
        finally:
            os.close(descriptor)

    def list(self, directory: str) -> list[str]:
        return sorted(os.listdir(directory))

    def exists(self, path: str) -> bool:
        return os.path.exists(path)

    def rename(self, old: str, new: str) -> None:
        os.rename(old, new)

    def unlink(self, path: str) -> None:
        os.unlink(path)

    def make_directories(self, path: str) -> None:
        os.makedirs(path, exist_ok=True)

    def sync_directory(self, path: str) -> None:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def lock(self, path: str) -> LocalLock:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(descriptor)
            raise
        return LocalLock(descriptor)

    def counter(self, path: str, *, writable: bool) -> LocalCounter:
        flags = os.O_RDWR | os.O_CREAT if writable else os.O_RDONLY
        descriptor = os.open(path, flags | os.O_CLOEXEC, 0o644)
        try:
            if writable:  # Its own bytes again: a block that is only promised would end the process when the disk has none left.
                size = LocalCounter._FORMAT.size
                os.pwrite(descriptor, os.pread(descriptor, size, 0).ljust(size, b"\0"), 0)
            return LocalCounter(descriptor, writable=writable)
        finally:
            os.close(descriptor)

    def usage(self, path: str) -> tuple[int, int]:
        figures = os.statvfs(path)
        return figures.f_blocks * figures.f_frsize, figures.f_bavail * figures.f_frsize
