"""The rows of a SQL catalog: namespaces and tables, as PyIceberg's SqlCatalog keeps them.

A namespace is there when it has a row of properties, when a table is in it, or when one below it is there. One that is made
here has the row `exists`, which two that make it at once cannot both insert, and which stays when its other properties go;
it is not shown. Every function is given a connection, so that several make one transaction.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from pyiceberg.catalog.sql import IcebergNamespaceProperties, IcebergTables
from sqlalchemy import ColumnElement, Connection, delete, func, insert, or_, select, union, update
from sqlalchemy.exc import IntegrityError, SQLAlchemyError

from dolake.errors import CatalogUnreachable, DolakeError
from dolake.iceberg.catalog import SqlTableCatalog
from dolake.iceberg.database import file_behind, opened_file, said
from dolake.iceberg.identifiers import Identifier, Namespace

MARKER = "exists"
_TABLE = "TABLE"


class OutcomeUnknown(DolakeError):
    """The database did not answer a transaction's end: it may be done or not. Look."""

    exit_code = 3


class NameTaken(DolakeError):
    """A row of this name is there already."""

    exit_code = 5


class CatalogRows:
    """Reads and changes rows. Safe to call from several threads."""

    def __init__(self, catalog: SqlTableCatalog) -> None:
        self._engine = catalog.engine
        self._name, self._have_types = catalog.name, catalog.rows_have_types

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """Raises CatalogUnreachable."""
        try:
            with self._engine.connect() as connection:
                yield connection
        except SQLAlchemyError as error:
            raise CatalogUnreachable(f"the catalog could not be read: {said(error)}") from error

    @contextmanager
    def changing(self) -> Iterator[Connection]:
        """One transaction: all of it, or nothing where the body raises.

        Raises NameTaken, CatalogUnreachable (nothing was done), OutcomeUnknown.
        """
        try:
            with self._engine.connect() as connection:
                transaction, file = connection.begin(), opened_file(connection)
                yield connection  # Where it raises, closing the connection rolls back.
                try:
                    transaction.commit()
                except SQLAlchemyError as error:
                    raise OutcomeUnknown(f"the catalog did not answer whether the transaction is done: {said(error)}") from error
            if file != file_behind(self._engine):
                raise OutcomeUnknown("the catalog was replaced while it was written")
        except IntegrityError as error:
            raise NameTaken("a row of this name is there already") from error
        except SQLAlchemyError as error:
            raise CatalogUnreachable(f"the catalog could not be written: {said(error)}") from error

    def namespaces(self, connection: Connection) -> set[Namespace]:
        """Every one that is there, those above them included."""
        stored = union(
            select(IcebergTables.table_namespace).where(IcebergTables.catalog_name == self._name),
            select(IcebergNamespaceProperties.namespace).where(IcebergNamespaceProperties.catalog_name == self._name),
        )
        found = {Namespace.stored(text) for text in connection.execute(stored).scalars()}
        return {Namespace(one.levels[:depth]) for one in found for depth in range(1, len(one.levels) + 1)}

    def has_namespace(self, connection: Connection, namespace: Namespace) -> bool:
        tables = select(1).where(IcebergTables.catalog_name == self._name, _within(IcebergTables.table_namespace, namespace))
        properties = select(1).where(
            IcebergNamespaceProperties.catalog_name == self._name, _within(IcebergNamespaceProperties.namespace, namespace)
        )
        return any(connection.execute(one.limit(1)).first() is not None for one in (properties, tables))

    def properties(self, connection: Connection, namespace: Namespace) -> dict[str, str]:
        columns = select(IcebergNamespaceProperties.property_key, IcebergNamespaceProperties.property_value)
        found = {str(key): str(value) for key, value in connection.execute(columns.where(*self._namespace_row(namespace)))}
        return {key: value for key, value in found.items() if key != MARKER}

    def insert_properties(self, connection: Connection, namespace: Namespace, properties: Mapping[str, str]) -> None:
        values = [
            {"catalog_name": self._name, "namespace": str(namespace), "property_key": key, "property_value": value}
            for key, value in properties.items()
        ]
        if values:
            connection.execute(insert(IcebergNamespaceProperties), values)

    def delete_properties(self, connection: Connection, namespace: Namespace, keys: Sequence[str] | None = None) -> int:
        """All of them unless `keys` says which; how many rows went."""
        statement = delete(IcebergNamespaceProperties).where(*self._namespace_row(namespace))
        if keys is not None:
            statement = statement.where(IcebergNamespaceProperties.property_key.in_(list(keys)))
        return connection.execute(statement).rowcount

    def table_names(self, connection: Connection, namespace: Namespace) -> list[str]:
        statement = select(IcebergTables.table_name).where(
            IcebergTables.catalog_name == self._name, IcebergTables.table_namespace == str(namespace), *self._tables_only()
        )
        return sorted(connection.execute(statement).scalars())

    def location(self, connection: Connection, identifier: Identifier) -> str | None:
        """Where the table's current metadata is; None if there is no such table."""
        statement = select(IcebergTables.metadata_location).where(*self._table_row(identifier), *self._tables_only())
        found: str | None = connection.scalar(statement)
        return found

    def all_locations(self, connection: Connection) -> Iterator[tuple[str, str, str]]:
        """(namespace, name, metadata location) of every table."""
        columns = select(IcebergTables.table_namespace, IcebergTables.table_name, IcebergTables.metadata_location)
        for namespace, name, location in connection.execute(columns.where(IcebergTables.catalog_name == self._name)):
            yield str(namespace), str(name), str(location or "")

    def insert_table(self, connection: Connection, identifier: Identifier, location: str) -> None:
        row: dict[str, Any] = {
            "catalog_name": self._name,
            "table_namespace": str(identifier.namespace),
            "table_name": identifier.name,
            "metadata_location": location,
            "previous_metadata_location": None,
        }
        if self._have_types:
            row["iceberg_type"] = _TABLE
        connection.execute(insert(IcebergTables).values(**row))

    def swap(self, connection: Connection, identifier: Identifier, before: str, after: str) -> bool:
        """Whether the table was at `before`, and is at `after` with this transaction."""
        values = {"metadata_location": after} if before == after else {"metadata_location": after, "previous_metadata_location": before}
        statement = update(IcebergTables).where(*self._table_row(identifier), IcebergTables.metadata_location == before).values(**values)
        return connection.execute(statement).rowcount == 1

    def rename(self, connection: Connection, source: Identifier, at: str, destination: Identifier) -> bool:
        """Whether the table was at `at`, and has its new name with this transaction."""
        statement = (
            update(IcebergTables)
            .where(*self._table_row(source), IcebergTables.metadata_location == at)
            .values(table_namespace=str(destination.namespace), table_name=destination.name)
        )
        return connection.execute(statement).rowcount == 1

    def delete_table(self, connection: Connection, identifier: Identifier, at: str) -> bool:
        """Whether the table was at `at`, and is gone with this transaction."""
        statement = delete(IcebergTables).where(*self._table_row(identifier), IcebergTables.metadata_location == at)
        return connection.execute(statement).rowcount == 1

    def _namespace_row(self, namespace: Namespace) -> tuple[ColumnElement[bool], ...]:
        return (IcebergNamespaceProperties.catalog_name == self._name, IcebergNamespaceProperties.namespace == str(namespace))

    def _table_row(self, identifier: Identifier) -> tuple[ColumnElement[bool], ...]:
        return (
            IcebergTables.catalog_name == self._name,
            IcebergTables.table_namespace == str(identifier.namespace),
            IcebergTables.table_name == identifier.name,
        )

    def _tables_only(self) -> tuple[ColumnElement[bool], ...]:
        kind = IcebergTables.iceberg_type
        return (or_(kind == _TABLE, kind.is_(None)),) if self._have_types else ()


def _within(column: Any, namespace: Namespace) -> ColumnElement[bool]:
    """The namespace or one below it. Not by LIKE: SQLite's takes large letters for small ones."""
    below = f"{namespace}."
    return or_(column == str(namespace), func.substr(column, 1, len(below)) == below)
