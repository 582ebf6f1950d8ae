"""Catalogs: which metadata file is a table's current one, and the one compare-and-swap that changes it.

`TableCatalog` is what dolake needs of any catalog: load afresh, swap once. It never retries and never cleans up: an
answer that was lost may belong to a swap that landed, and only a fresh load tells (`commit.py`).

`SqlTableCatalog` keeps PyIceberg's SQL catalog: the same two tables, so that a plain `SqlCatalog("dolake", uri=…)` reads
and writes the same file. It swaps with one UPDATE whose WHERE names the metadata location that the caller's plan was
made from; PyIceberg's own `commit_table` would load the table once more and so check one state and swap another.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Protocol

from pyiceberg.catalog.sql import IcebergTables, SqlCatalog
from sqlalchemy import Connection, Engine, delete, insert, select, update
from sqlalchemy.exc import IntegrityError, SQLAlchemyError

from dolake import failpoints
from dolake.clock import Runtime
from dolake.errors import CatalogUnreachable, CommitConflict, MetadataMissing, ObjectDamaged, ObjectMissing, TableStopped
from dolake.iceberg.database import file_behind, has_tables, open_database, opened_file, said, shown
from dolake.iceberg.file_io import decoding
from dolake.iceberg.metadata import LoadedTable, Requirement, Update, apply_updates, from_bytes, to_bytes, unmet_requirements
from dolake.iceberg.names import lies_within, metadata_location, metadata_version
from dolake.model import TABLE_PART, TableName
from dolake.storage.store import ObjectStore

CATALOG_NAME = "dolake"


@dataclass(frozen=True)
class Swap:
    """One table's part of several that change together: `updates` on top of exactly `base`."""

    base: LoadedTable
    requirements: Sequence[Requirement]
    updates: Sequence[Update]


class TableCatalog(Protocol):
    """Calls block and run beside the loop. Any of them may raise StoreUnreachable, from the metadata file behind it."""

    def load(self, table: TableName) -> LoadedTable | None:
        """The table as the catalog holds it now, never from a cache; None if there is none.

        Raises CatalogUnreachable, MetadataMissing and ObjectDamaged where what the catalog names is not what it was, and
        TableStopped for a table whose files lie outside of the warehouse: somebody else's.
        """
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

    def swap_together(self, swaps: Sequence[Swap]) -> list[LoadedTable]:
        """The same for several tables in one transaction: all of them or none. Raises as `swap` does.

        Raises TableStopped where the catalog has no such transaction: `config.rules` lets nobody ask it.
        """
        ...

    def list_tables(self) -> list[TableName]: ...

    def drop(self, base: LoadedTable) -> None:
        """Forgets a table; its files stay. Raises CommitConflict if it is not at `base` any more, CatalogUnreachable as `swap` does."""
        ...


class SqlTableCatalog:
    """Tables in a SQL database, as PyIceberg's SqlCatalog keeps them: SQLite or PostgreSQL. Safe to call from several threads."""

    def __init__(self, uri: str, store: ObjectStore, runtime: Runtime, *, name: str = CATALOG_NAME) -> None:
        """Opens the catalog at `sqlite:////path` or `postgresql://…` and creates its two tables if need be. Raises CatalogUnreachable.

        `name` keeps it apart from other catalogs in the same database.
        """
        self._shown, self._store, self._runtime, self.name = shown(uri), store, runtime, name
        # Metadata files never change, so the last one of each table needs no second read.
        self._loaded: dict[TableName, LoadedTable] = {}
        with self._reported("opened"):
            self._catalog: SqlCatalog = open_database(name, uri, store.root)
        self._engine = self._catalog.engine

    @property
    def engine(self) -> Engine:
        """The database, for who changes more than one row at once (`catalog_rows`)."""
        return self._engine

    @property
    def rows_have_types(self) -> bool:
        """Whether rows say what they are: those of views are not tables, and databases of old have none."""
        return self._catalog._schema_version != "v0"

    def close(self) -> None:
        self._engine.dispose()

    def load(self, table: TableName) -> LoadedTable | None:
        columns = (IcebergTables.metadata_location, IcebergTables.previous_metadata_location)
        with self._reported("read"), self._engine.connect() as connection:
            row = connection.execute(select(*columns).where(*self._row(table), *self._tables_only())).first()
        if row is None:
            return None
        location, previous = row
        known = self._loaded.get(table)
        if known is not None and known.metadata_location == location:
            return known
        if not location:
            raise ObjectDamaged(f"the row of {table} in {self._shown} names no metadata file; restore the catalog from a copy")
        require_within(table, location, self._store.root, known=previous or "")
        metadata = self._read(table, location)
        require_within(table, metadata["location"], self._store.root, known=location)
        return self._remember(LoadedTable(table, metadata, location))

    def _read(self, table: TableName, location: str) -> dict[str, Any]:
        """The metadata file that the catalog's row names. Blocks. Raises MetadataMissing, ObjectDamaged, StoreUnreachable."""
        try:
            return self._read_metadata(location)
        except ObjectMissing as error:
            raise MetadataMissing(f"{table}: the catalog names {location}, which is not in the warehouse: restore it") from error
        except ValueError as error:
            raise ObjectDamaged(
                f"the row of {table} in {self._shown} names {location}: {error}; restore the catalog from a copy"
            ) from error

    def create(self, table: TableName, metadata: dict[str, Any]) -> LoadedTable:
        created = LoadedTable(table, metadata, self.put_metadata(metadata, version=0))
        with self._reported("written"):
            with suppress(IntegrityError):  # Somebody else has just made it.
                self._catalog.create_namespace_if_not_exists(table.namespace)
            row = self._catalog._create_table_row(table.namespace, table.name, created.metadata_location)
        with self._writing() as connection:
            try:
                connection.execute(insert(IcebergTables).values(**row))
            except IntegrityError as error:
                raise CommitConflict(f"{table}: the catalog has a table of this name already") from error
        return self._remember(created)

    def swap(self, base: LoadedTable, requirements: Sequence[Requirement], updates: Sequence[Update]) -> LoadedTable:
        return self.swap_together([Swap(base, requirements, updates)])[0]

    def swap_together(self, swaps: Sequence[Swap]) -> list[LoadedTable]:
        next_ones = [self._put_next(swap) for swap in swaps]
        failpoints.hit("catalog.before_swap")
        with self._writing() as connection:
            # In the order of their names, so that two who change the same tables never wait for each other.
            for swap, after in sorted(zip(swaps, next_ones, strict=True), key=lambda pair: pair[0].base.name):
                self._swap_row(connection, swap.base, after)
        failpoints.hit("catalog.after_swap")
        return [self._remember(after) for after in next_ones]

    def _put_next(self, swap: Swap) -> LoadedTable:
        # The row's location pins the whole metadata, so that these hold by construction: what is checked here is the plan.
        base = swap.base
        if unmet := unmet_requirements(base.metadata, swap.requirements):
            raise CommitConflict(f"{base.name}: {'; '.join(unmet)}")
        metadata = apply_updates(base, swap.updates, self._runtime.clock.now_ms())
        location = self.put_metadata(metadata, version=metadata_version(base.metadata_location) + 1)
        return LoadedTable(base.name, metadata, location)

    def _swap_row(self, connection: Connection, base: LoadedTable, after: LoadedTable) -> None:
        """Raises CommitConflict, which undoes the transaction."""
        statement = (
            update(IcebergTables)
            .where(*self._row(base.name), IcebergTables.metadata_location == base.metadata_location)
            .values(metadata_location=after.metadata_location, previous_metadata_location=base.metadata_location)
        )
        if connection.execute(statement).rowcount != 1:
            raise CommitConflict(f"{base.name}: the table is not at {base.metadata_location} any more")

    def list_tables(self) -> list[TableName]:
        """Tables with names that dolake can give; others are not ours to touch."""
        columns = (IcebergTables.table_namespace, IcebergTables.table_name)
        with self._reported("read"), self._engine.connect() as connection:
            rows = connection.execute(select(*columns).where(IcebergTables.catalog_name == self.name, *self._tables_only())).all()
        return sorted(TableName(*row) for row in rows if all(TABLE_PART.fullmatch(part) for part in row))

    def neighbours(self, table: TableName) -> list[tuple[str, str]]:
        """(name, location of its metadata) of everything else in the database: views, names of others, other catalogs too."""
        columns = (IcebergTables.catalog_name, IcebergTables.table_namespace, IcebergTables.table_name, IcebergTables.metadata_location)
        with self._reported("read"), self._engine.connect() as connection:
            rows = connection.execute(select(*columns)).all()
        own = (self.name, table.namespace, table.name)
        return [(f"{catalog}: {namespace}.{name}", at or "") for catalog, namespace, name, at in rows if (catalog, namespace, name) != own]

    def drop(self, base: LoadedTable) -> None:
        statement = delete(IcebergTables).where(*self._row(base.name), IcebergTables.metadata_location == base.metadata_location)
        with self._writing() as connection:
            dropped = connection.execute(statement).rowcount
        self._loaded.pop(base.name, None)
        if dropped != 1:
            raise CommitConflict(f"{base.name}: the table is not at {base.metadata_location} any more")

    def put_metadata(self, metadata: dict[str, Any], version: int) -> str:
        """Puts a metadata file under a name of its own; durable when this returns."""
        location = metadata_location(metadata["location"], version, self._runtime.random.uuid())
        failpoints.hit("catalog.before_metadata")
        self._store.put(location, to_bytes(metadata))
        self._store.settle([location])
        return location

    def _read_metadata(self, location: str) -> dict[str, Any]:
        data = self._store.get(location)
        with decoding(location):
            return from_bytes(data)

    def _remember(self, table: LoadedTable) -> LoadedTable:
        self._loaded[table.name] = table
        return table

    def _row(self, table: TableName) -> tuple[Any, ...]:
        return (
            IcebergTables.catalog_name == self.name,
            IcebergTables.table_namespace == table.namespace,
            IcebergTables.table_name == table.name,
        )

    def _tables_only(self) -> tuple[Any, ...]:
        """Views of other programs may stand beside tables."""
        condition = self._catalog._iceberg_type_filter()
        return () if condition is None else (condition,)

    @contextmanager
    def _writing(self) -> Iterator[Connection]:
        """A transaction in the file that lies there, also when it is over. Raises CatalogUnreachable where the outcome is not known."""
        with self._reported("written"), self._engine.begin() as connection:
            file = opened_file(connection)
            yield connection
        if file != file_behind(self._engine):
            raise CatalogUnreachable(f"the catalog {self._shown} was replaced while it was written")

    @contextmanager
    def _reported(self, verb: str) -> Iterator[None]:
        try:
            yield
        except SQLAlchemyError as error:
            raise CatalogUnreachable(f"the catalog {self._shown} could not be {verb}: {said(error)}") from error


def require_within(table: TableName, location: str, root: str, *, known: str = "") -> None:
    """Raises TableStopped for a place outside of the warehouse: a shared catalog knows tables of others, in theirs.

    Raises ObjectDamaged where that cannot be: for what is no place, and for a table that has another, `known` one in the warehouse.
    """
    if lies_within(location, root):
        return
    reason = f"the catalog keeps its files at {location}, outside of the warehouse {root}"
    if "://" in location and not (known and lies_within(known, root)):
        raise TableStopped(str(table), f"{reason}: set warehouse.uri to a folder that holds both", field="location")
    damaged = f"the row of {table}, or the metadata that it names, is damaged"
    raise ObjectDamaged(f"{damaged}: {reason}; restore the catalog from a copy")


def has_catalog(uri: str) -> bool:
    """Whether a catalog was ever made there; makes none. Raises CatalogUnreachable."""
    try:
        return has_tables(uri)
    except SQLAlchemyError as error:
        raise CatalogUnreachable(f"the catalog {shown(uri)} could not be read: {said(error)}") from error


__all__ = ["CATALOG_NAME", "LoadedTable", "SqlTableCatalog", "Swap", "TableCatalog", "has_catalog", "require_within"]
