"""The product's own SQL catalog over one SQLite file, behind the same faults as the simulated one.

A statement either happens or it does not, and no answer of a local database comes late: what can go wrong is that a process
dies around it, that the database does not answer, and that an answer is lost.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Callable, Sequence
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

from dolake.errors import CatalogUnreachable
from dolake.iceberg.catalog import SqlTableCatalog, Swap
from dolake.iceberg.metadata import LoadedTable, Requirement, Update
from dolake.model import TableName
from dolake.storage.store import ObjectStore
from tests.simulation.catalog import Watch, WatchCut
from tests.simulation.faults import Chaos, fingerprint
from tests.simulation.invariants import cut_names
from tests.simulation.loop import Process

T = TypeVar("T")


class SqlServer:
    """The database; `rows` is what the doors have seen succeed, or found, in the order in which it did."""

    def __init__(self, chaos: Chaos, watch: Watch, watch_cut: WatchCut) -> None:
        self.chaos, self._watch, self._watch_cut = chaos, watch, watch_cut
        # In memory where there is such a folder: SQLite's syncs are real, and nothing here depends on them.
        self._folder = TemporaryDirectory(prefix="simulation-", dir="/dev/shm" if os.path.isdir("/dev/shm") else None)
        self.uri = f"sqlite:///{self._folder.name}/catalog.db"
        self.rows: dict[TableName, LoadedTable] = {}
        self.latency_s = 0.0
        self._catalogs: list[SqlTableCatalog] = []

    def door(self, store: ObjectStore, process: Process) -> SqlDoor:
        catalog = SqlTableCatalog(self.uri, store, process.runtime)
        self._catalogs.append(catalog)
        return SqlDoor(self, catalog, process)

    def accept(self, after: LoadedTable) -> LoadedTable:
        before = self.rows.get(after.name)
        self.rows[after.name] = after
        self._watch(before, after)
        return after

    def is_current(self, table: LoadedTable) -> bool:
        """Whether the database says so now: somebody may have swapped it while its metadata was read."""
        with contextlib.closing(sqlite3.connect(self.uri.removeprefix("sqlite:///"))) as connection:
            found = connection.execute(
                "SELECT metadata_location FROM iceberg_tables WHERE table_namespace = ? AND table_name = ?",
                (table.name.namespace, table.name.name),
            ).fetchone()
        return found is not None and found[0] == table.metadata_location

    def accept_together(self, afters: Sequence[LoadedTable]) -> list[LoadedTable]:
        changes = [(self.rows.get(after.name), self.accept(after)) for after in afters]
        self._watch_cut(changes)
        return [after for _, after in changes]

    def close(self) -> None:
        for catalog in self._catalogs:
            catalog.close()
        self._folder.cleanup()


class SqlDoor:
    """iceberg.catalog.TableCatalog for one process."""

    def __init__(self, server: SqlServer, catalog: SqlTableCatalog, process: Process) -> None:
        self._server, self._catalog, self._process = server, catalog, process

    def load(self, table: TableName) -> LoadedTable | None:
        self._process.step("load", str(table))
        if self._server.chaos.draw("load_lost"):
            raise CatalogUnreachable("database is locked")
        found = self._catalog.load(table)
        known = self._server.rows.get(table)
        if found is not None and (known is None or known.metadata_location != found.metadata_location) and self._server.is_current(found):
            # Whoever has swapped it was killed before its door could tell.
            if cut := cut_names([found]):
                self._server.accept_together([found, *self._others_of(cut, table)])
            else:
                self._server.accept(found)
        return found

    def _others_of(self, cut: set[str], table: TableName) -> list[LoadedTable]:
        """The other tables that were committed in the same transaction and have not moved on since."""
        others = [self._catalog.load(name) for name in self._catalog.list_tables() if name != table]
        return [other for other in others if other is not None and cut_names([other]) == cut and self._server.is_current(other)]

    def create(self, table: TableName, metadata: dict[str, Any]) -> LoadedTable:
        return self._request(f"create {table}", lambda: self._server.accept(self._catalog.create(table, metadata)))

    def swap(self, base: LoadedTable, requirements: Sequence[Requirement], updates: Sequence[Update]) -> LoadedTable:
        detail = f"swap {base.name} {fingerprint(repr((requirements, updates)).encode())}"
        return self._request(detail, lambda: self._server.accept(self._catalog.swap(base, requirements, updates)))

    def swap_together(self, swaps: Sequence[Swap]) -> list[LoadedTable]:
        detail = f"swap together {fingerprint(repr([(swap.requirements, swap.updates) for swap in swaps]).encode())}"
        return self._request(detail, lambda: self._server.accept_together(self._catalog.swap_together(swaps)))

    def list_tables(self) -> list[TableName]:
        self._process.step("list_tables")
        return self._catalog.list_tables()

    def drop(self, base: LoadedTable) -> None:
        self._process.step("drop", str(base.name))
        self._catalog.drop(base)
        self._server.rows.pop(base.name, None)

    def _request(self, detail: str, request: Callable[[], T]) -> T:
        self._process.step("request", detail)
        self._process.hold(self._server.latency_s)
        fault = self._server.chaos.draw("swap_lost_before", "swap_lost_after")
        if fault == "swap_lost_before":
            raise CatalogUnreachable("database is locked")
        after = request()
        if fault is not None:
            raise CatalogUnreachable("disk I/O error")
        self._process.step("answer", detail)
        return after
