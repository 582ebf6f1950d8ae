"""The lake that settings name: its warehouse and its catalog."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dolake.clock import Runtime
from dolake.config import Settings
from dolake.errors import ConfigurationError, Mistake
from dolake.iceberg.catalog import SqlTableCatalog, TableCatalog, has_catalog
from dolake.iceberg.plan import CommitPolicy
from dolake.storage.local import LocalStore
from dolake.storage.store import ObjectStore
from dolake.storage.warehouse import open_store

if TYPE_CHECKING:
    from dolake.storage.s3 import S3Store


def open_warehouse(settings: Settings, *, tries: int = 1) -> LocalStore | S3Store:
    """The warehouse, not asked anything yet. `tries`: see `open_store`."""
    if not settings.warehouse.uri.startswith("s3://"):
        return open_store(settings.warehouse.uri)
    from dolake.storage.s3 import S3Access

    return open_store(settings.warehouse.uri, S3Access(**settings.s3.model_dump()), tries=tries)


def commit_policy(settings: Settings) -> CommitPolicy:
    """The history that every commit leaves, whoever makes it."""
    commit = settings.commit
    return CommitPolicy(commit.snapshots_kept, commit.tags_kept_days, commit.snapshots_age_s)


def open_catalog(settings: Settings, store: ObjectStore, runtime: Runtime) -> TableCatalog:
    """The catalog, made if need be where it is a database of ours. Raises CatalogUnreachable, ConfigurationError."""
    if settings.catalog.type == "sql":
        return open_sql_catalog(settings, store, runtime)
    from dolake.iceberg.pyiceberg_catalog import open_by_pyiceberg

    return open_by_pyiceberg(settings.catalog, store)


def open_sql_catalog(settings: Settings, store: ObjectStore, runtime: Runtime) -> SqlTableCatalog:
    """The same for who works on its rows. Raises CatalogUnreachable, ConfigurationError for a catalog that is no database of ours."""
    if settings.catalog.type != "sql":
        rule = "must be sql for dolake to serve the REST catalog: ask the catalog that the tables are in"
        raise ConfigurationError([Mistake("catalog.type", settings.catalog.type, rule)])
    return SqlTableCatalog(settings.catalog_uri, store, runtime, name=settings.catalog.name)


def find_catalog(settings: Settings, store: ObjectStore, runtime: Runtime) -> TableCatalog | None:
    """The catalog, for those who only read: None where none was ever made. Raises CatalogUnreachable, ConfigurationError."""
    if settings.catalog.type == "sql" and not has_catalog(settings.catalog_uri):
        return None
    return open_catalog(settings, store, runtime)
