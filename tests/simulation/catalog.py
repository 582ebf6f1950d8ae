"""A catalog whose answers get lost, whose requests land late, and which answers its own client's resend with a conflict.

`CatalogServer` holds the truth, one for the world; each process has its own `CatalogDoor`. Two styles: a `row` catalog
compares the metadata location that the client's plan was made from (SQL); a `service` checks the client's requirements
against whatever is current by then (REST). `watch` sees every change before anybody else can.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextvars import Context
from typing import Any, TypeVar

from dolake.errors import CatalogUnreachable, CommitConflict, ObjectMissing
from dolake.iceberg.catalog import Swap
from dolake.iceberg.metadata import LoadedTable, Requirement, Update, apply_updates, to_bytes, unmet_requirements
from dolake.model import TableName
from dolake.storage.store import ObjectStore
from tests.simulation.faults import Chaos, fingerprint
from tests.simulation.loop import START_S, Process, SimLoop

T = TypeVar("T")
Watch = Callable[[LoadedTable | None, LoadedTable], None]
WatchCut = Callable[[Sequence[tuple[LoadedTable | None, LoadedTable]]], None]
PlanForeign = Callable[[LoadedTable, int], list[Update]]
LATE_S = (0.1, 0.5, 3.0, 15.0)
SLOW_S_MAX = 3.0


class CatalogServer:
    def __init__(self, chaos: Chaos, loop: SimLoop, *, style: str, watch: Watch, watch_cut: WatchCut) -> None:
        self.chaos, self.style, self._loop, self._watch, self._watch_cut = chaos, style, loop, watch, watch_cut
        self.rows: dict[TableName, LoadedTable] = {}
        self.latency_s = 0.0
        self._lurking: list[Callable[[], None]] = []
        self.put_foreign: Callable[[str, bytes], None] | None = None
        # What else somebody may do to a table, by its number; and who hears that it is done.
        self.plan_foreign: PlanForeign = lambda table, number: []
        self.heard_foreign: Callable[[LoadedTable], None] = lambda table: None

    def door(self, store: ObjectStore, process: Process) -> CatalogDoor:
        return CatalogDoor(self, store, process)

    def close(self) -> None:
        """Nothing is held."""

    def insert(self, table: LoadedTable) -> LoadedTable:
        if table.name in self.rows:
            raise CommitConflict(f"{table.name} is there already")
        return self._accept(None, table)

    def swap_row(self, base: LoadedTable, after: LoadedTable) -> LoadedTable:
        return self._accept(self._current(base), after)

    def swap_rows(self, pairs: Sequence[tuple[LoadedTable, LoadedTable]]) -> list[LoadedTable]:
        """All of them or none."""
        changes = [(self._current(base), after) for base, after in pairs]
        for before, after in changes:
            self._accept(before, after)
        self._watch_cut(changes)
        return [after for _, after in pairs]

    def _current(self, base: LoadedTable) -> LoadedTable:
        current = self.rows.get(base.name)
        if current is None or current.metadata_location != base.metadata_location:
            raise CommitConflict(f"{base.name} is not at {base.metadata_location} any more")
        return current

    def swap_service(self, name: TableName, location: str, requirements: Sequence[Requirement], updates: Sequence[Update]) -> LoadedTable:
        current = self.rows.get(name)
        if current is None:
            raise CommitConflict(f"{name} is not there")
        if unmet := unmet_requirements(current.metadata, requirements):
            raise CommitConflict("; ".join(unmet))
        now_ms = int((START_S + self._loop.time()) * 1000)
        return self._accept(current, LoadedTable(name, apply_updates(current, updates, now_ms), location))

    def _accept(self, before: LoadedTable | None, after: LoadedTable) -> LoadedTable:
        self.rows[after.name] = after
        self._watch(before, after)
        return after

    def disturb(self, name: TableName, plan: PlanForeign | None = None) -> None:
        """Somebody else's program sets a property, or adds a snapshot, as others may: without rows unless there is a plan."""
        current = self.rows.get(name)
        if current is None or self.put_foreign is None:
            return
        number = self.chaos.random.getrandbits(62)
        updates: list[Update] = [{"action": "set-properties", "updates": {"somebody.else": str(number)}}]
        now_ms = int((START_S + self._loop.time()) * 1000)
        if changes := (plan or self.plan_foreign)(current, number):
            updates += changes
        elif current.head is not None and self.chaos.random.random() < 0.5:
            self.chaos.count("foreign snapshot")
            snapshot = {
                "snapshot-id": number,
                "parent-snapshot-id": current.head_id,
                "sequence-number": current.metadata["last-sequence-number"] + 1,
                "timestamp-ms": max(now_ms, current.metadata["last-updated-ms"] + 1),
                "manifest-list": current.head["manifest-list"],
                "schema-id": current.head["schema-id"],
                "summary": {"operation": "append"},
            }
            updates.append({"action": "add-snapshot", "snapshot": snapshot})
            updates.append({"action": "set-snapshot-ref", "ref-name": "main", "type": "branch", "snapshot-id": number})
        location = f"{current.location}/metadata/foreign-{number}.metadata.json"
        after = LoadedTable(name, apply_updates(current, updates, now_ms), location)
        self.put_foreign(location, to_bytes(after.metadata))
        self.rows[name] = after
        self.heard_foreign(after)

    def land_later(self, request: Callable[[], object]) -> None:
        """Some time later, or at the worst of times: right behind somebody's look at the table."""

        def land() -> None:
            try:
                request()
            except CommitConflict:
                self.chaos.count("late request refused")
            else:
                self.chaos.count("late request landed")

        if self.chaos.random.random() < 0.5:
            self._loop.call_later(self.chaos.random.choice(LATE_S) * self.chaos.random.random(), land, context=Context())
        else:
            self._lurking.append(land)

    def looked_at(self) -> None:
        """A load has been answered."""
        if self._lurking and self.chaos.random.random() < 0.5:
            self._lurking.pop(0)()


class CatalogDoor:
    """iceberg.catalog.TableCatalog for one process."""

    def __init__(self, server: CatalogServer, store: ObjectStore, process: Process) -> None:
        self._server, self._store, self._process = server, store, process

    def load(self, table: TableName) -> LoadedTable | None:
        self._process.step("load", str(table))
        self._process.hold(self._server.latency_s)
        if self._server.chaos.draw("load_lost"):
            raise CatalogUnreachable("no answer")
        if self._server.chaos.draw("foreign_change"):
            self._server.disturb(table)
        row = self._server.rows.get(table)
        if row is not None and self._server.style == "row":
            try:
                self._store.size(row.metadata_location)
            except ObjectMissing as error:
                raise CatalogUnreachable(f"{row.metadata_location} is not in the warehouse") from error
        self._server.looked_at()
        return row

    def create(self, table: TableName, metadata: dict[str, Any]) -> LoadedTable:
        created = LoadedTable(table, metadata, self._location(metadata))
        self._put(created)
        return self._request(f"create {table}", lambda: self._server.insert(created))

    def swap(self, base: LoadedTable, requirements: Sequence[Requirement], updates: Sequence[Update]) -> LoadedTable:
        detail = f"swap {base.name} {fingerprint(repr((requirements, updates)).encode())}"
        if self._server.style == "service":
            location = self._location(base.metadata)
            return self._request(detail, lambda: self._server.swap_service(base.name, location, requirements, updates))
        after = self._next(Swap(base, requirements, updates))
        return self._request(detail, lambda: self._server.swap_row(base, after))

    def swap_together(self, swaps: Sequence[Swap]) -> list[LoadedTable]:
        assert self._server.style == "row", "a service commits table by table"
        detail = f"swap together {fingerprint(repr([(swap.requirements, swap.updates) for swap in swaps]).encode())}"
        pairs = [(swap.base, self._next(swap)) for swap in swaps]
        return self._request(detail, lambda: self._server.swap_rows(pairs))

    def _next(self, swap: Swap) -> LoadedTable:
        location = self._location(swap.base.metadata)
        if unmet := unmet_requirements(swap.base.metadata, swap.requirements):
            raise CommitConflict("; ".join(unmet))
        after = LoadedTable(swap.base.name, apply_updates(swap.base, swap.updates, self._process.runtime.clock.now_ms()), location)
        self._put(after)
        return after

    def list_tables(self) -> list[TableName]:
        self._process.step("list_tables")
        return sorted(self._server.rows)

    def drop(self, base: LoadedTable) -> None:
        self._process.step("drop", str(base.name))
        if self._server.rows.get(base.name) is not base:
            raise CommitConflict(f"{base.name} is not what it was")
        del self._server.rows[base.name]

    def _request(self, detail: str, request: Callable[[], T]) -> T:
        chaos = self._server.chaos
        self._process.step("request", detail)
        if chaos.draw("foreign_change_between"):
            for name in sorted(self._server.rows):
                self._server.disturb(name)
        self._process.hold(SLOW_S_MAX if chaos.draw("swap_slow") else self._server.latency_s)
        fault = chaos.draw("swap_lost_before", "swap_lost_after", "swap_late", "swap_conflict_after_own")
        if fault == "swap_late":
            self._server.land_later(request)
        elif fault != "swap_lost_before":
            answer = request()  # May raise CommitConflict: an honest one.
            if fault is None:
                self._process.step("answer", detail)
                return answer
            if fault == "swap_conflict_after_own":
                raise CommitConflict("the table has moved on (by this very request, which was sent twice)")
        raise CatalogUnreachable("no answer")

    def _put(self, table: LoadedTable) -> None:
        if self._server.style == "row":
            self._store.put(table.metadata_location, to_bytes(table.metadata))
            self._store.settle([table.metadata_location])

    def _location(self, metadata: Mapping[str, Any]) -> str:
        return f"{metadata['location']}/metadata/{self._process.runtime.random.uuid()}.metadata.json"
