"""The lake that settings name: its warehouse and its catalog."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dolake.clock import Runtime
from dolake.config import Settings
from dolake.iceberg.catalog import SqlTableCatalog
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


def open_catalog(settings: Settings, store: ObjectStore, runtime: Runtime) -> SqlTableCatalog:
    """The SQLite catalog of the data directory, made if need be. Raises CatalogUnreachable."""
    return SqlTableCatalog(f"sqlite:///{settings.catalog_path}", store, runtime)
