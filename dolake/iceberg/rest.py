"""The REST catalog over one SQL catalog and one warehouse: every request that the HTTP part takes, as a blocking call.

    rest_requests   bodies, and which are good           identifiers, paging   names, pages
    updates, snapshot_updates, structure, requirements   what a commit makes of a table's metadata
    ownership       what only dolake may change          rest_errors           answers that are none
    rest_namespaces, rest_reading, rest_commit, rest_tables    do it, over the rows (`catalog_rows`) and the store

Whatever a database or a store does not answer is told apart by what it leaves behind: nothing (503, try again), or nobody
knows (500, CommitStateUnknownException: look).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from dolake.clock import Runtime
from dolake.config import Settings
from dolake.errors import CatalogUnreachable, StoreUnreachable
from dolake.iceberg.catalog import SqlTableCatalog
from dolake.iceberg.catalog_rows import CatalogRows, OutcomeUnknown
from dolake.iceberg.lake import open_sql_catalog, open_warehouse
from dolake.iceberg.rest_commit import RestCommits
from dolake.iceberg.rest_errors import state_unknown, unavailable
from dolake.iceberg.rest_namespaces import RestNamespaces
from dolake.iceberg.rest_reading import MetadataFiles, RestReading, Vending
from dolake.iceberg.rest_tables import RestTables
from dolake.storage.store import ObjectStore

T = TypeVar("T")
_REGION = "us-east-1"


class RestCatalog:
    """Safe to call from several threads."""

    def __init__(self, catalog: SqlTableCatalog, store: ObjectStore, runtime: Runtime, vending: Vending | None = None) -> None:
        rows, files = CatalogRows(catalog), MetadataFiles(store)
        self._catalog = catalog
        self.root = store.root
        self.namespaces = RestNamespaces(rows)
        self.reading = RestReading(rows, files, store.root, vending or Vending())
        self.commits = RestCommits(catalog, rows, self.reading, files, store.root, runtime)
        self.tables = RestTables(rows, self.reading, self.commits, store, runtime)

    def close(self) -> None:
        self._catalog.close()


def open_rest_catalog(settings: Settings, runtime: Runtime) -> RestCatalog:
    """The catalog that settings name, made if need be. Blocks. Raises CatalogUnreachable."""
    store = open_warehouse(settings)
    return RestCatalog(open_sql_catalog(settings, store, runtime), store, runtime, vending_of(settings))


def answered(work: Callable[..., T], *arguments: object) -> T:
    """`work`, with what did not answer turned into what a client can act on."""
    try:
        return work(*arguments)
    except (CatalogUnreachable, StoreUnreachable) as error:
        raise unavailable(f"{error}; nothing was done: try again") from error
    except OutcomeUnknown as error:
        raise state_unknown(str(error)) from error


def vending_of(settings: Settings) -> Vending:
    """What clients are told of the bucket; nothing unless `[catalog] vend` says so, and of a local warehouse nothing at all."""
    vended, s3 = settings.catalog, settings.s3
    if vended.vend == "nothing" or not settings.warehouse.uri.startswith("s3://"):
        return Vending()
    endpoint = vended.endpoint or s3.endpoint
    config = {"s3.region": s3.region or _REGION, "client.region": s3.region or _REGION}
    if endpoint is not None:
        config |= {"s3.endpoint": endpoint, "s3.path-style-access": "true"}
    if vended.vend == "endpoint":
        return Vending(config)
    keys = {"s3.access-key-id": vended.access_key or s3.access_key, "s3.secret-access-key": vended.secret_key or s3.secret_key}
    if vended.access_key is None:
        keys["s3.session-token"] = s3.session_token
    return Vending(config, {key: value for key, value in keys.items() if value is not None})
