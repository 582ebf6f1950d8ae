"""A disk that keeps its promises and not one more.

Bytes live twice: in the cache, which every process sees, and on the platter, which is all that a power cut leaves. A
512-byte block reaches the platter by `sync`, or by chance at a power cut; blocks that did not are old, zero, or what an
earlier file left there. A sync that fails marks its blocks clean all the same: they are read back, no later sync writes
them, and the cache may drop them at any moment. It may also take its time. A name (create, rename, unlink, make directory) is durable after
`sync_directory`; before, a power cut keeps a prefix or any subset of the changes. A shared counter survives the death of a
process, and after a power cut is its last value, an earlier one, or 0.
"""

from __future__ import annotations

import errno
import os
import posixpath
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tests.simulation.faults import Chaos, fingerprint
from tests.simulation.loop import Process

BLOCK = 512
SLOW_S_MAX = 3.0


class Inode:
    """One file: bytes as processes see them, bytes on the platter, and the blocks that differ and will be written."""

    def __init__(self) -> None:
        self.cached = bytearray()
        self.durable = bytearray()
        self.dirty: set[int] = set()

    def write(self, position: int, data: bytes | memoryview) -> None:
        end = position + len(data)
        if len(self.cached) < end:
            self.cached.extend(bytes(end - len(self.cached)))
        self.cached[position:end] = data
        if end > position:
            self.dirty.update(range(position // BLOCK, (end - 1) // BLOCK + 1))

    def settle(self, blocks: set[int]) -> None:
        """Writes these blocks to the platter."""
        for block in sorted(blocks):
            start, end = block * BLOCK, min((block + 1) * BLOCK, len(self.cached))
            if len(self.durable) < end:
                self.durable.extend(bytes(end - len(self.durable)))
            self.durable[start:end] = self.cached[start:end]

    def sync(self) -> None:
        self.settle(self.dirty)
        self.dirty = set()

    def fail_sync(self, chaos: Chaos) -> None:
        """Some blocks are written, the others forgotten: clean in the cache, not on the platter."""
        self.settle({block for block in sorted(self.dirty) if chaos.random.random() < 0.3})
        self.dirty = set()

    def evict(self) -> None:
        """The cache lets go of clean blocks: what is read next is the platter's."""
        for start in range(0, len(self.cached), BLOCK):
            if start // BLOCK not in self.dirty:
                end = min(start + BLOCK, len(self.cached))
                self.cached[start:end] = self.durable[start:end].ljust(end - start, b"\0")

    def cut_power(self, chaos: Chaos, cut: Cut, recycled: bytes, area: str) -> None:
        dirty = sorted(self.dirty)
        if cut.in_order and not cut.drop_all:
            lost = set(dirty[chaos.random.randint(0, len(dirty)) :])
        else:
            lost = {block for block in dirty if cut.drop_all or chaos.random.random() < cut.block_loss}
        if lost:
            chaos.count("blocks lost")
            chaos.count(f"blocks {_fate([block not in lost for block in dirty])} of {area}")
        before = len(self.durable)
        self.settle(self.dirty - lost)
        # The length may have been journalled ahead of the bytes: what lies between is zero, or an earlier file's.
        if lost and not cut.drop_all and chaos.random.random() < 0.5:
            self.durable.extend(bytes(max(0, len(self.cached) - len(self.durable))))
            if recycled and chaos.random.random() < 0.5:
                chaos.count("recycled blocks")
                for block in sorted(lost):
                    start, end = block * BLOCK, min((block + 1) * BLOCK, len(self.durable))
                    if start >= before:
                        self.durable[start:end] = (recycled[start:end] + bytes(BLOCK))[: end - start]
        self.cached = bytearray(self.durable)
        self.dirty = set()


class CounterNode:
    def __init__(self) -> None:
        self.values = [0]


class DirectoryNode:
    pass


Node = Inode | CounterNode | DirectoryNode
Changes = dict[str, Node | None]


@dataclass(frozen=True)
class Cut:
    """How a power cut treats what was not synced. `names`: all, none, prefix, or any subset of the changes are lost.

    `in_order`: of each file's blocks the later ones are lost, as where a file is written from its beginning.
    """

    drop_all: bool = False
    block_loss: float = 0.5
    names: str = "subset"
    in_order: bool = False


AREAS = ("log", "warehouse", "index", "parked")


def _fate(kept: list[bool]) -> str:
    """What a power cut made of changes, in their order: all gone, the later ones gone, or one gone that a kept one follows."""
    if not any(kept):
        return "dropped"
    return "torn" if kept == sorted(kept, reverse=True) else "reordered"


class SimDisk:
    """The machine's one file system; processes come in through their own `DiskDoor`."""

    def __init__(self, chaos: Chaos, root: str, capacity: int = 1 << 40, latency_s: float = 0.0) -> None:
        """`latency_s`: what a sync takes at most."""
        self.chaos, self.capacity, self.latency_s = chaos, capacity, latency_s
        self.root = root
        self.names: dict[str, Node] = {root: DirectoryNode()}
        self.durable_names: dict[str, Node] = dict(self.names)
        self._pending: dict[str, list[Changes]] = {}
        self.locks: dict[str, Process] = {}
        self._recycled = b""
        self.on_unlink: Callable[[str, Inode], None] = lambda path, inode: None

    def change(self, directory: str, changes: Changes) -> None:
        """Applies one change of names in a directory; durable when it is synced."""
        for name, node in changes.items():
            if node is None:
                del self.names[name]
            else:
                self.names[name] = node
        self._pending.setdefault(directory, []).append(changes)

    def sync_names(self, directory: str) -> None:
        for changes in self._pending.pop(directory, []):
            self._settle_names(changes)

    def cut_power(self, cut: Cut) -> None:
        self.chaos.count("power cut")
        self.locks.clear()
        for directory, changes in self._pending.items():
            kept = self._kept(cut, len(changes))
            if not all(kept):
                self.chaos.count("names lost")
                self.chaos.count(f"names {_fate(kept)} of {self.area(directory)}")
            for keep, change in zip(kept, changes, strict=True):
                if keep:
                    self._settle_names(change)
        self._pending.clear()
        self.names = {self.root: self.durable_names[self.root]}
        for path in sorted(self.durable_names, key=lambda path: (path.count("/"), path)):
            if posixpath.dirname(path) in self.names:  # A name whose directory is gone is gone with it.
                self.names[path] = self.durable_names[path]
        self.durable_names = dict(self.names)
        for path in sorted(self.names):
            node = self.names[path]
            if isinstance(node, Inode):
                node.cut_power(self.chaos, cut, self._recycled, self.area(path))
            elif isinstance(node, CounterNode):
                node.values = [self.chaos.random.choice([0, node.values[-1], self.chaos.random.choice(node.values)])]

    def is_durable(self, path: str) -> bool:
        """Whether the name, and those of all directories above it, would survive a power cut."""
        while path != self.root:
            if path not in self.durable_names:
                return False
            path = posixpath.dirname(path)
        return True

    def area(self, path: str) -> str:
        """What of the product a path belongs to: log, warehouse, index, parked; other files are `data`."""
        first = path[len(self.root) + 1 :].split("/", 1)[0].rstrip("0123456789")
        return first if first in AREAS else "data"

    def used(self) -> int:
        return sum(len(node.cached) for node in self.names.values() if isinstance(node, Inode))

    def _kept(self, cut: Cut, count: int) -> list[bool]:
        if cut.names in ("all", "none"):
            return [cut.names == "none"] * count
        if cut.names == "prefix":
            kept = self.chaos.random.randint(0, count)
            return [index < kept for index in range(count)]
        return [self.chaos.random.random() < 0.5 for _ in range(count)]

    def _settle_names(self, changes: Changes) -> None:
        for name, node in changes.items():
            if node is not None:
                self.durable_names[name] = node
            elif name in self.durable_names:
                gone = self.durable_names.pop(name)
                if isinstance(gone, Inode):
                    self._recycled = bytes(gone.durable)


class DiskDoor:
    """storage.disk.Disk for one process: gives way, counts down to its death, and fails as the chaos says."""

    def __init__(self, disk: SimDisk, process: Process) -> None:
        self.disk, self.process = disk, process

    def create(self, path: str) -> SimFile:
        self.enter("create", path)
        self._need_directory(path)
        if path in self.disk.names:
            raise _error(errno.EEXIST, path)
        self.fail_maybe(path, "create_eio", "create_enospc")
        self.fail_index("index_create_eio", path)
        inode = Inode()
        self._change(path, {path: inode})
        return SimFile(self, path, inode, writable=True)

    def open(self, path: str) -> SimFile:
        self.enter("open", path)
        inode = self.disk.names.get(path)
        if not isinstance(inode, Inode):
            raise _error(errno.ENOENT, path)
        return SimFile(self, path, inode, writable=False)

    def map(self, path: str) -> memoryview:
        self.enter("map", path)
        inode = self.disk.names.get(path)
        if not isinstance(inode, Inode):
            raise _error(errno.ENOENT, path)
        self.fail_maybe(path, "read_eio")
        self.fail_index("index_read_eio", path)
        return memoryview(bytes(inode.cached))

    def list(self, directory: str) -> list[str]:
        self.enter("list", directory)
        if not isinstance(self._node(directory), DirectoryNode):
            raise _error(errno.ENOTDIR, directory)
        start = len(directory) + 1
        within = [path[start:] for path in self.disk.names if path.startswith(directory + "/")]
        return sorted(name for name in within if "/" not in name)

    def exists(self, path: str) -> bool:
        self.enter("exists", path)
        return path in self.disk.names

    def rename(self, old: str, new: str) -> None:
        self.enter("rename", f"{old} {new}")
        if posixpath.dirname(old) != posixpath.dirname(new):
            raise _error(errno.EXDEV, new)
        self.fail_maybe(old, "rename_eio", "rename_enospc")
        self.fail_index("index_rename_eio", old)
        self._change(new, {new: self._node(old), old: None})

    def unlink(self, path: str) -> None:
        self.enter("unlink", path)
        node = self._node(path)
        if isinstance(node, Inode):
            self.disk.on_unlink(path, node)
        self._change(path, {path: None})

    def make_directories(self, path: str) -> None:
        self.enter("make_directories", path)
        missing = []
        while path not in self.disk.names and path not in ("", "/"):
            missing.append(path)
            path = posixpath.dirname(path)
        for directory in reversed(missing):
            self._change(directory, {directory: DirectoryNode()})

    def sync_directory(self, path: str) -> None:
        self.enter("sync_directory", path)
        if self.disk.root.startswith(path.rstrip("/") + "/"):
            return  # Above all that is simulated: there before, and durable.
        if not isinstance(self.disk.names.get(path), DirectoryNode):
            raise _error(errno.ENOENT, path)
        self.fail_maybe(path, "sync_directory_eio", "sync_directory_enospc")
        self.disk.sync_names(path)

    def lock(self, path: str) -> SimLock:
        self.enter("lock", path)
        self._need_directory(path)
        if path not in self.disk.names:
            self._change(path, {path: Inode()})
        holder = self.disk.locks.get(path)
        if holder is not None and holder.alive and not holder.detached:
            raise BlockingIOError(errno.EWOULDBLOCK, os.strerror(errno.EWOULDBLOCK), path)
        self.disk.locks[path] = self.process
        return SimLock(self, path)

    def counter(self, path: str, *, writable: bool) -> SimCounter:
        self.enter("counter", path)
        node = self.disk.names.get(path)
        if node is None and writable:
            self._need_directory(path)
            node = CounterNode()
            self._change(path, {path: node})
        if not isinstance(node, CounterNode):
            raise _error(errno.ENOENT, path)
        return SimCounter(self, node, writable=writable)

    def usage(self, path: str) -> tuple[int, int]:
        self.enter("usage", path)
        return self.disk.capacity, max(0, self.disk.capacity - self.disk.used())

    def fail_index(self, name: str, path: str) -> None:
        """Faults of key indexes alone: nothing else may suffer from them."""
        if _is_of_index(path):
            self.fail_maybe(path, name)

    def fail_maybe(self, path: str, *names: str) -> None:
        """Raises what the fault that happens is called after, if one does."""
        if (fault := self.draw(path, *names)) is not None:
            raise _error(_number_of(fault), path)

    def draw(self, path: str, *names: str) -> str | None:
        """The fault that happens to this file, counted for what it belongs to as well."""
        fault = self.disk.chaos.draw(*names)
        if fault is not None:
            self.disk.chaos.count(f"{fault} of {self.disk.area(path)}")
        return fault

    def enter(self, operation: str, detail: str) -> None:
        self.process.step(operation, detail)
        self.check_attached(detail)

    def check_attached(self, path: str) -> None:
        if self.process.detached:
            raise _error(errno.EIO, path)

    def _change(self, path: str, changes: Changes) -> None:
        self.disk.change(posixpath.dirname(path), changes)

    def _node(self, path: str) -> Node:
        node = self.disk.names.get(path)
        if node is None:
            raise _error(errno.ENOENT, path)
        return node

    def _need_directory(self, path: str) -> None:
        if not isinstance(self.disk.names.get(posixpath.dirname(path)), DirectoryNode):
            raise _error(errno.ENOENT, path)


class SimFile:
    def __init__(self, door: DiskDoor, path: str, inode: Inode, *, writable: bool) -> None:
        self._door, self._path, self._inode, self._writable = door, path, inode, writable
        self._open = True

    def write_at(self, position: int, parts: Sequence[bytes | memoryview]) -> int:
        data = b"".join(parts)
        self._enter("write", f"{position}+{len(data)}#{fingerprint(data)}")
        if not self._writable:
            raise _error(errno.EBADF, self._path)
        disk = self._door.disk
        room = disk.capacity - disk.used() + max(0, len(self._inode.cached) - position)
        names = ("write_eio", "write_enospc", "index_write_enospc") if _is_of_index(self._path) else ("write_eio", "write_enospc")
        failure = self._door.draw(self._path, *names)
        if failure is None and len(data) > room:
            disk.chaos.count("disk full")
            failure = "write_enospc"
        # The system may take a part and the process may die before it offers the rest: both leave a prefix.
        first = disk.chaos.random.randint(0, len(data)) if failure or disk.chaos.draw("write_split") else len(data)
        self._inode.write(position, data[: min(first, max(0, room))])
        if failure is not None:
            raise _error(_number_of(failure), self._path)
        if first < len(data):
            self._enter("write the rest", "")
            self._inode.write(position, data)
        return len(data)

    def read_at(self, position: int, size: int) -> bytes:
        self._enter("read", f"{position}+{size}")
        disk = self._door.disk
        if disk.chaos.draw("cache_evicted"):
            self._inode.evict()
        self._door.fail_maybe(self._path, "read_eio")
        return bytes(self._inode.cached[position : position + size])

    def sync(self) -> None:
        self._enter("sync", "")
        self._door.process.hold(SLOW_S_MAX if self._door.draw(self._path, "sync_slow") else self._door.disk.latency_s)
        self._door.check_attached(self._path)
        if (fault := self._door.draw(self._path, "sync_eio", "sync_enospc")) is not None:
            self._inode.fail_sync(self._door.disk.chaos)
            raise _error(_number_of(fault), self._path)
        self._inode.sync()

    def size(self) -> int:
        self._enter("size", "")
        return len(self._inode.cached)

    def close(self) -> None:
        self._open = False

    def _enter(self, operation: str, detail: str) -> None:
        if not self._open:
            raise _error(errno.EBADF, self._path)
        self._door.enter(operation, f"{self._path} {detail}")


class SimLock:
    def __init__(self, door: DiskDoor, path: str) -> None:
        self._door, self._path = door, path

    def release(self) -> None:
        if self._door.disk.locks.get(self._path) is self._door.process:
            del self._door.disk.locks[self._path]


class SimCounter:
    def __init__(self, door: DiskDoor, node: CounterNode, *, writable: bool) -> None:
        self._door, self._node, self._writable = door, node, writable

    def set(self, value: int) -> None:
        self._door.process.check()
        if not self._writable:
            raise TypeError("a counter opened to read")
        if not self._door.process.detached:  # A zombie's page is no longer anybody else's.
            self._door.process.loop.trace(self._door.process.name, "counter", str(value))
            self._node.values.append(value)

    def get(self) -> int:
        self._door.process.check()
        return self._node.values[-1]

    def close(self) -> None:
        pass


def _is_of_index(path: str) -> bool:
    return "/index/" in path


def _number_of(fault: str) -> int:
    return errno.ENOSPC if fault.endswith("enospc") else errno.EIO


def _error(number: int, path: str) -> OSError:
    return OSError(number, os.strerror(number), path)
