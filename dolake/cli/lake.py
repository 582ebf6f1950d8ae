"""The committed tables, opened for commands that only read: nothing is created, and no daemon is needed."""

from __future__ import annotations

import asyncio
import contextlib
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dolake.clock import real_runtime
from dolake.config import Settings
from dolake.control import ask_once
from dolake.errors import ConfigurationError, DaemonUnreachable, Mistake, RequestRefused, TableStopped
from dolake.model import DEFAULT_NAMESPACE, TABLE_PART, TableName

if TYPE_CHECKING:
    from dolake.iceberg.catalog import TableCatalog
    from dolake.iceberg.metadata import LoadedTable
    from dolake.storage.store import ObjectStore

_ASK_S_MAX = 5.0
_TRIES = 3  # A command asks once, and has no loop of its own.


@dataclass(frozen=True)
class Lake:
    """`catalog` is None where no table was ever committed."""

    store: ObjectStore
    catalog: TableCatalog | None

    def names(self) -> list[TableName]:
        return [] if self.catalog is None else self.catalog.list_tables()

    def tables(self) -> list[LoadedTable]:
        if self.catalog is None:
            return []
        found = []
        for name in self.names():
            with contextlib.suppress(TableStopped):  # A shared catalog knows tables in other warehouses: none of ours.
                found.append(self.catalog.load(name))
        return [table for table in found if table is not None]

    def table(self, text: str) -> LoadedTable:
        """Raises ConfigurationError if there is none of that name. dolake's own tables may be named too."""
        parts = text.split(".") if "." in text else [DEFAULT_NAMESPACE, text]
        valid = len(parts) == 2 and all(TABLE_PART.fullmatch(part) for part in parts)
        loaded = self.catalog.load(TableName(*parts)) if valid and self.catalog is not None else None
        if loaded is None:
            raise ConfigurationError([Mistake("TABLE", text, "there is no such table; `dolake tables` lists them")])
        return loaded


def open_lake(settings: Settings) -> Lake:
    """Raises ConfigurationError if the data directory is not there."""
    from dolake.iceberg.lake import find_catalog, open_warehouse  # Most of the time that a command takes to begin.

    require_data(settings)
    store = open_warehouse(settings, tries=_TRIES)
    return Lake(store, find_catalog(settings, store, real_runtime()))


def require_data(settings: Settings) -> None:
    """Raises ConfigurationError if the data directory is not there."""
    if not os.path.isdir(settings.data):
        raise ConfigurationError([Mistake("data", settings.data, "must be a data directory of dolake; there is none")])


def ask_daemon_for_tables(settings: Settings) -> dict[str, Any] | None:
    """What the writer says of each table; None when no daemon answers, or its writer is away."""
    try:
        answer = asyncio.run(ask_once(settings.control_path, "tables", runtime=real_runtime(), timeout_s=_ASK_S_MAX))
    except (DaemonUnreachable, RequestRefused):
        return None
    tables: dict[str, Any] = answer["tables"]
    return tables if answer["writer"]["connected"] else None
