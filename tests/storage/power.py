"""A warehouse in memory that loses what was not settled when its power is cut."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from dolake.errors import ObjectMissing


class PowerCutStore:
    """An ObjectStore: a name is durable once settled. `deleted` lists what anybody asked to delete."""

    def __init__(self, root: str = "file:///warehouse") -> None:
        self.root = root
        self.objects: dict[str, bytes] = {}
        self.settled: set[str] = set()
        self.deleted: list[str] = []

    def put(self, location: str, data: bytes | memoryview) -> None:
        self._check(location)
        self.objects[location] = bytes(data)

    def settle(self, locations: Sequence[str]) -> None:
        for location in locations:
            self._check(location)
            if location not in self.objects:
                raise ObjectMissing(location)
            self.settled.add(location)

    def get(self, location: str) -> bytes:
        self._check(location)
        try:
            return self.objects[location]
        except KeyError as error:
            raise ObjectMissing(location) from error

    def size(self, location: str) -> int:
        return len(self.get(location))

    def list(self, prefix: str) -> Iterator[tuple[str, int]]:
        self._check(prefix)
        for location in sorted(self.objects):
            if location.startswith(prefix):
                yield location, len(self.objects[location])

    def delete(self, location: str) -> None:
        self._check(location)
        self.deleted.append(location)
        self.objects.pop(location, None)
        self.settled.discard(location)

    def cut_power(self) -> None:
        self.objects = {location: data for location, data in self.objects.items() if location in self.settled}

    def _check(self, location: str) -> None:
        if not location.startswith(self.root + "/") or any(part in (".", "..") for part in location.split("/")):
            raise ValueError(f"{location} does not lie in the warehouse {self.root}")
