"""An object store that answers late, not at all, or after the fact.

`Warehouse` is the server's side, one for the world; a process comes in through its own `StoreDoor`. What it has accepted
it keeps, also through power cuts. A local warehouse is the product's own LocalStore on the simulated disk; `PlatterStore`
looks at what it has written without passing a door.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextvars import Context
from typing import TypeVar

from dolake.errors import ObjectMissing, StoreUnreachable
from tests.simulation.disk import Inode, SimDisk
from tests.simulation.faults import Chaos, fingerprint
from tests.simulation.loop import Process, SimLoop

T = TypeVar("T")
LATE_S = (0.1, 1.0, 10.0)


class Warehouse:
    """Objects by location."""

    def __init__(
        self, chaos: Chaos, loop: SimLoop, root: str, note: Callable[[str], None], purged: Callable[[str], None] = lambda location: None
    ) -> None:
        """`note` hears of a breach, `purged` of each object that is deleted."""
        self._purged = purged
        self.chaos, self.root, self._loop, self._note = chaos, root, loop, note
        self.objects: dict[str, bytes] = {}
        self.latency_s = 0.0

    def store(self, location: str, data: bytes) -> None:
        known = self.objects.setdefault(location, data)
        if known != data:
            self._note(f"{location} was put twice with different bytes: names are never used again")

    def store_later(self, location: str, data: bytes) -> None:
        self._loop.call_later(self.chaos.random.choice(LATE_S) * self.chaos.random.random(), self.store, location, data, context=Context())

    def get(self, location: str) -> bytes:
        try:
            return self.objects[location]
        except KeyError:
            raise ObjectMissing(location) from None

    def delete(self, location: str) -> None:
        if self.objects.pop(location, None) is not None:
            self.chaos.counts["objects purged"] += 1
            self._purged(location)

    def durable_size(self, location: str) -> int | None:
        """The object's size as a power cut would leave it; None if it would be gone."""
        return len(self.objects[location]) if location in self.objects else None


class StoreDoor:
    """storage.store.ObjectStore for one process."""

    def __init__(self, warehouse: Warehouse, process: Process) -> None:
        self.warehouse, self.process = warehouse, process
        self.root = warehouse.root

    def probe(self, name: str) -> None:
        self._answer("probe", name, lambda: None)

    def put(self, location: str, data: bytes | memoryview) -> None:
        content = bytes(data)
        self.process.step("put", f"{location} {fingerprint(content)}")
        self.process.hold(self.warehouse.latency_s)
        fault = self.warehouse.chaos.draw("put_lost_before", "put_lost_after", "put_late")
        if fault == "put_late":
            self.warehouse.store_later(location, content)
        elif fault != "put_lost_before":
            self.warehouse.store(location, content)
        if fault is not None:
            raise StoreUnreachable(f"{location}: no answer")
        self.process.step("put answered")

    def settle(self, locations: Sequence[str]) -> None:
        self.process.step("settle", " ".join(locations))

    def get(self, location: str) -> bytes:
        return self._answer("get", location, lambda: self.warehouse.get(location))

    def size(self, location: str) -> int:
        return self._answer("size", location, lambda: len(self.warehouse.get(location)))

    def list(self, prefix: str) -> Iterator[tuple[str, int]]:
        objects = self._answer("list", prefix, lambda: dict(self.warehouse.objects))
        return iter(sorted((name, len(data)) for name, data in objects.items() if name.startswith(prefix)))

    def delete(self, location: str) -> None:
        self._answer("delete", location, lambda: self.warehouse.delete(location))

    def _answer(self, operation: str, detail: str, work: Callable[[], T]) -> T:
        self.process.step(operation, detail)
        self.process.hold(self.warehouse.latency_s)
        if self.warehouse.chaos.draw("get_lost"):
            raise StoreUnreachable("no answer")
        return work()


class PlatterStore:
    """A local warehouse as its checks see it: `file://` objects on the simulated disk, past every door."""

    def __init__(self, disk: SimDisk) -> None:
        self._disk = disk

    def get(self, location: str) -> bytes:
        node = self._disk.names.get(location.removeprefix("file://"))
        if not isinstance(node, Inode):
            raise ObjectMissing(location)
        return bytes(node.cached)

    def durable_size(self, location: str) -> int | None:
        path = location.removeprefix("file://")
        node = self._disk.durable_names.get(path)
        if not isinstance(node, Inode) or not self._disk.is_durable(path):
            return None
        return len(node.durable) if node.durable == node.cached else None
