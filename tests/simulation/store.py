"""An object store that answers late, not at all, or after the fact; and, as a local warehouse, forgets what was not synced.

`Warehouse` is the server's side, one for the world; a process comes in through its own `StoreDoor`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextvars import Context

from dolake.errors import ObjectMissing, StoreUnreachable
from tests.simulation.faults import Breach, Chaos, fingerprint
from tests.simulation.loop import Process, SimLoop


class Warehouse:
    """Objects by location. `local`: an object is durable only once its name was settled, as on a file system."""

    def __init__(self, chaos: Chaos, loop: SimLoop, root: str, *, local: bool) -> None:
        self.chaos, self.root, self.local = chaos, root, local
        self._loop = loop
        self.objects: dict[str, bytes] = {}
        self.unsettled: set[str] = set()

    def store(self, location: str, data: bytes) -> None:
        known = self.objects.get(location)
        if known is not None and known != data:
            raise Breach(f"{location} was put twice with different bytes: names are never used again")
        if known is None and self.local:
            self.unsettled.add(location)
        self.objects[location] = data

    def store_later(self, location: str, data: bytes) -> None:
        delay_s = self.chaos.random.uniform(0.0, 30.0)
        self._loop.call_later(delay_s, self.store, location, data, context=Context())

    def cut_power(self) -> None:
        """A local warehouse loses the names that were not settled, as they please."""
        for location in sorted(self.unsettled):
            if self.chaos.random.random() < 0.5:
                self.chaos.count("objects lost")
                del self.objects[location]
        self.unsettled.clear()

    def is_durable(self, location: str) -> bool:
        return location in self.objects and location not in self.unsettled


class StoreDoor:
    """storage.store.ObjectStore for one process."""

    def __init__(self, warehouse: Warehouse, process: Process) -> None:
        self.warehouse, self.process = warehouse, process
        self.root = warehouse.root

    def put(self, location: str, data: bytes | memoryview) -> None:
        content = bytes(data)
        self._enter("put", f"{location} {fingerprint(content)}")
        fault = self.warehouse.chaos.draw("put_lost_before", "put_lost_after", "put_late")
        if fault == "put_late" and not self.warehouse.local:
            self.warehouse.store_later(location, content)
        elif fault != "put_lost_before":
            self.warehouse.store(location, content)
        if fault is not None:
            raise StoreUnreachable(f"{location}: no answer")
        self.process.step("put answered")

    def settle(self, locations: Sequence[str]) -> None:
        self._enter("settle", " ".join(locations))
        if self.warehouse.chaos.draw("settle_fails"):
            raise StoreUnreachable("the warehouse's directory cannot be synced")
        for location in locations:
            if location not in self.warehouse.objects:
                raise ObjectMissing(location)
        self.warehouse.unsettled.difference_update(locations)

    def get(self, location: str) -> bytes:
        self._enter("get", location)
        return self._answer(lambda: self._object(location))

    def size(self, location: str) -> int:
        self._enter("size", location)
        return self._answer(lambda: len(self._object(location)))

    def list(self, prefix: str) -> Iterator[tuple[str, int]]:
        self._enter("list", prefix)
        return iter(sorted((name, len(data)) for name, data in self.warehouse.objects.items() if name.startswith(prefix)))

    def delete(self, location: str) -> None:
        self._enter("delete", location)
        self.warehouse.objects.pop(location, None)
        self.warehouse.unsettled.discard(location)

    def _enter(self, operation: str, detail: str) -> None:
        self.process.step(operation, detail)
        if self.process.detached and self.warehouse.local:
            raise StoreUnreachable("the disk is gone")

    def _answer(self, work: Callable[[], object]):
        if self.warehouse.chaos.draw("get_lost"):
            raise StoreUnreachable("no answer")
        return work()

    def _object(self, location: str) -> bytes:
        try:
            return self.warehouse.objects[location]
        except KeyError:
            raise ObjectMissing(location) from None
