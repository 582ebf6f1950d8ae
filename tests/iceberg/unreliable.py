"""What may happen between dolake and its catalog, and what must hold whatever did."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from dolake.clock import Clock
from dolake.errors import CatalogUnreachable, CommitConflict
from dolake.iceberg.catalog import Swap, TableCatalog
from dolake.iceberg.commit import Committer
from dolake.iceberg.metadata import LoadedTable, Requirement, Update, snapshots_by_id
from dolake.iceberg.plan import Delta
from dolake.model import TableName
from tests.iceberg.lake import LOG, Lake

T = TypeVar("T")


class UnreliableCatalog:
    """A catalog behind a bad network: each swap takes the next of `faults`, and is well when there are none left.

    `late` requests land just before the call that they are named for. `between` happens once: after the first load has been
    answered, before anything is done with it.
    """

    def __init__(
        self,
        real: TableCatalog,
        faults: Sequence[str] = (),
        between: Callable[[], None] | None = None,
        clock: Clock | None = None,
    ) -> None:
        """With a `clock`, `swapped_s` says when each swap came."""
        self.real, self.faults, self.between, self.clock = real, list(faults), between, clock
        self.swapped_s: list[float] = []
        self.late: dict[str, Callable[[], Any]] = {}

    def load(self, table: TableName) -> LoadedTable | None:
        self._arrive("load")
        loaded = self.real.load(table)
        if self.between is not None:
            between, self.between = self.between, None
            between()
        self._arrive("after load")
        return loaded

    def create(self, table: TableName, metadata: dict[str, Any]) -> LoadedTable:
        return self.real.create(table, metadata)

    def swap(self, base: LoadedTable, requirements: Sequence[Requirement], updates: Sequence[Update]) -> LoadedTable:
        return self._swapped(lambda: self.real.swap(base, requirements, updates))

    def swap_together(self, swaps: Sequence[Swap]) -> list[LoadedTable]:
        return self._swapped(lambda: self.real.swap_together(swaps))

    def _swapped(self, request: Callable[[], T]) -> T:
        self._arrive("swap")
        if self.clock is not None:
            self.swapped_s.append(self.clock.monotonic_s())
        fault = self.faults.pop(0) if self.faults else ""
        if fault.startswith("late: "):
            self.late[fault.removeprefix("late: ")] = request
        if fault == "request lost" or fault.startswith("late: "):
            raise CatalogUnreachable("no answer")
        landed = request()
        self._arrive("after swap")
        if fault == "answer lost":
            raise CatalogUnreachable("no answer")
        if fault == "answered 409":
            raise CommitConflict("our own request, sent twice on the way")
        return landed

    def list_tables(self) -> list[TableName]:
        return self.real.list_tables()

    def drop(self, base: LoadedTable) -> None:
        self.real.drop(base)

    def _arrive(self, moment: str) -> None:
        request = self.late.pop(moment, None)
        if request is not None:
            try:
                request()
            except CommitConflict:
                return


def breaches(lake: Lake, expected_ids: list[int]) -> list[str]:
    """Everything that exactly-once means for one table, a sentence for each breach."""
    table = lake.current()
    found = Counter(row["id"] for row in lake.plain_table().scan().to_arrow().to_pylist())
    said = [f"row {number} is there {count} times" for number, count in found.items() if count != 1]
    said += [f"row {number} is missing" for number in expected_ids if number not in found]
    said += [f"row {number} is nobody's" for number in found if number not in expected_ids]
    snapshots = sorted(snapshots_by_id(table.metadata).values(), key=lambda snapshot: snapshot["sequence-number"])
    offsets = [int(snapshot["summary"].get(f"dolake.offset.{LOG}", 0)) for snapshot in snapshots if "dolake.epoch" in snapshot["summary"]]
    if offsets != sorted(set(offsets)):
        said.append(f"offsets do not rise: {offsets}")
    names = Counter(snapshot["summary"].get("dolake.commit-id") for snapshot in snapshots)
    return said + [f"commit {name} landed {count} times" for name, count in names.items() if name and count > 1]


def commit_meanwhile(lake: Lake, committer: Committer, delta: Delta) -> None:
    """A whole commit from inside another's step: on a loop of its own, in a thread of its own."""
    thread = threading.Thread(target=lambda: asyncio.run(committer.commit(delta)))
    thread.start()
    thread.join()
