"""The doors of a process, each operation of which passes somebody who may break it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from tests.simulation.loop import Process

# What changes something outside the process, by kind of door; and what only looks.
CHANGES = {
    "disk": frozenset({"create", "rename", "unlink", "make_directories", "sync_directory", "lock"}),
    "file": frozenset({"write_at", "sync"}),
    "store": frozenset({"put", "settle", "delete", "probe"}),
    "catalog": frozenset({"create", "swap", "swap_together", "drop"}),
}
LOOKS = {
    "disk": frozenset({"open", "map", "list", "exists", "usage", "counter"}),
    "file": frozenset({"read_at", "size"}),
    "store": frozenset({"get", "size", "list"}),
    "catalog": frozenset({"load", "list_tables"}),
}


@dataclass(frozen=True)
class Operation:
    """One call through a door: `perform` does it, with what it was given or with other arguments."""

    kind: str
    name: str
    process: Process
    arguments: tuple[Any, ...]
    perform: Callable[..., Any]

    @property
    def changes(self) -> bool:
        return self.name in CHANGES[self.kind]

    def __str__(self) -> str:
        return f"{self.process.name.split('.')[0]} {self.kind} {self.name}"


class Guard(Protocol):
    def operate(self, operation: Operation) -> Any:
        """Performs it, or does not; returns what it returned."""
        ...


class Door:
    """Stands before another door. `kind` names the operations that are watched; the files of a disk are doors too."""

    def __init__(self, inner: Any, kind: str, guard: Guard, process: Process) -> None:
        self._inner, self._kind, self._guard, self._process = inner, kind, guard, process

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._inner, name)
        if name not in CHANGES[self._kind] | LOOKS[self._kind]:
            return found

        def call(*arguments: Any, **options: Any) -> Any:
            def perform(*given: Any) -> Any:
                return found(*given, **options)

            answer = self._guard.operate(Operation(self._kind, name, self._process, arguments, perform))
            if self._kind == "disk" and name in ("create", "open"):
                return Door(answer, "file", self._guard, self._process)
            return answer

        return call
