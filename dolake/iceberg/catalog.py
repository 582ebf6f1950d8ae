"""Catalogs: which metadata file is a table's current one, and the one compare-and-swap that changes it.

`TableCatalog` is what dolake needs of any catalog: load afresh, swap once. It never retries and never cleans up: an
answer that was lost may belong to a swap that landed, and only a fresh load tells (`commit.py`).

`SqlTableCatalog` keeps PyIceberg's SQL catalog: the same two tables, so that a plain `SqlCatalog("dolake", uri=…)` reads
and writes the same file. It swaps with one UPDATE whose WHERE names the metadata location that the caller's plan was
made from; PyIceberg's own `commit_table` would load the table once more and so check one state and swap another.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from dolake.iceberg.metadata import LoadedTable, Metadata, Requirement, Update
from dolake.model import TableName


class TableCatalog(Protocol):
    """Calls block and run beside the loop."""

    def load(self, table: TableName) -> LoadedTable | None:
        """The table as the catalog holds it now, never from a cache; None if there is none. Raises CatalogUnreachable."""
        ...

    def create(self, table: TableName, metadata: dict[str, Any]) -> LoadedTable:
        """A new table (and its namespace). Raises CommitConflict if the name is taken, CatalogUnreachable if the outcome is unknown."""
        ...

    def swap(self, base: LoadedTable, requirements: Sequence[Requirement], updates: Sequence[Update]) -> LoadedTable:
        """One try to put `updates` on top of exactly `base`.

        Raises CommitConflict if the catalog says that the table is not at `base` any more, CatalogUnreachable for any other
        trouble. After either the swap may have landed (a conflict may be our own first request, answered late): load and look.
        """
        ...

    def list_tables(self) -> list[TableName]: ...

    def drop(self, table: TableName) -> None:
        """Forgets a table; its files stay. None there is fine."""
        ...
