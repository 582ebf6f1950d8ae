"""SQL over the committed tables: the door to DuckDB.

`open_connection` gives an in-memory DuckDB in which every table of a catalog is a view over its metadata file as the
catalog names it at that moment, so a query sees whole snapshots and needs no daemon. Bare names are those of `default`.
`run_query` runs one statement that reads, and yields Arrow. The session's time zone is UTC.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import duckdb
import pyarrow as pa

from dolake.errors import DolakeError, NoSuchPoint, QueryRefused
from dolake.iceberg.catalog import TableCatalog
from dolake.iceberg.metadata import CUT, LoadedTable
from dolake.iceberg.points import Point, snapshot_at
from dolake.model import DEFAULT_NAMESPACE, TableName
from dolake.storage.store import ObjectStore

if TYPE_CHECKING:
    from dolake.storage.s3 import S3Access

# The iceberg extension reads manifests through avro's, so the order matters.
_EXTENSIONS = ("avro", "httpfs", "iceberg")
_EXPLAIN = re.compile(r"\s*explain\s+(?:analyze\s+)?(?:\([^)]*\)\s*)?", re.IGNORECASE)
BATCH_ROWS = 10_000
# How often tables that are committed together are looked at, at most, until a look finds what the one before found.
_LOOKS_MAX = 20


class Connection:
    """A DuckDB with its views. `unreadable` says which tables have none, and why; `absent` which had no snapshot at the point asked for."""

    def __init__(self, duck: duckdb.DuckDBPyConnection, unreadable: dict[str, str]) -> None:
        self.duck = duck
        self.unreadable = unreadable
        self.absent: dict[TableName, NoSuchPoint] = {}

    def close(self) -> None:
        self.duck.close()


class Result:
    """Rows as they come. `batches` may be read once."""

    def __init__(self, reader: pa.RecordBatchReader) -> None:
        self._reader = reader
        self.schema: pa.Schema = reader.schema

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Raises QueryRefused when a row that was not reached before cannot be computed."""
        try:
            yield from self._reader
        except (duckdb.Error, pa.ArrowException, OSError) as error:
            raise QueryRefused(str(error)) from error


def open_connection(catalog: TableCatalog | None, store: ObjectStore, at: Point | None = None, now_ms: int = 0) -> Connection:
    """`catalog` None: no tables. With `at` each is as it was at that point of its own history; `now_ms` says what is still to come."""
    duck = duckdb.connect(":memory:", config={"autoinstall_known_extensions": False, "autoload_known_extensions": False})
    for name in _EXTENSIONS:
        duck.load_extension(str(_extension_path(name)))
    duck.execute("SET TimeZone = 'UTC'")
    if store.root.startswith("s3://"):
        from dolake.storage.s3 import S3Store

        assert isinstance(store, S3Store)
        _use_s3(duck, store.access())
    connection = Connection(duck, {})
    duck.execute(f'CREATE SCHEMA IF NOT EXISTS "{DEFAULT_NAMESPACE}"')
    if catalog is not None:
        for table, loaded in _load_all(catalog).items():
            try:
                _create_view(duck, loaded, at, now_ms)
            except NoSuchPoint as error:
                connection.absent[table] = error
            except (duckdb.Error, DolakeError) as error:
                connection.unreadable[str(table)] = str(error)
    duck.execute(f"SET search_path = '\"{DEFAULT_NAMESPACE}\",main'")
    return connection


def run_query(connection: Connection, sql: str) -> Result:
    """Runs one statement. Raises QueryRefused with DuckDB's own words when it is wrong, or does more than read.

    Raises NoSuchPoint where it names a table that was not there at the point asked for.
    """
    try:
        _require_reading(connection.duck, sql)
        return Result(connection.duck.execute(sql).to_arrow_reader(BATCH_ROWS))
    except (duckdb.Error, RuntimeError) as error:
        if absent := next((reason for table, reason in connection.absent.items() if _names(sql, table)), None):
            raise absent from error
        named = [f"\n{table} cannot be read: {reason}" for table, reason in connection.unreadable.items() if table in sql]
        raise QueryRefused(str(error) + "".join(named)) from error


def _require_reading(duck: duckdb.DuckDBPyConnection, sql: str) -> None:
    statements = duck.extract_statements(sql)
    if len(statements) != 1:
        raise QueryRefused(f"one statement is run at a time, and this is {len(statements)}")
    kind = statements[0].type
    if kind == duckdb.StatementType.EXPLAIN:
        # EXPLAIN ANALYZE runs what it explains.
        statements = duck.extract_statements(_EXPLAIN.sub("", sql, count=1))
        kind = statements[0].type if statements else kind
    if kind != duckdb.StatementType.SELECT:
        raise QueryRefused(f"only statements that read are run, and this is {kind.name}")


def _names(sql: str, table: TableName) -> bool:
    """Whether the table may be meant: a statement that fails for want of it is not taken apart."""
    namespace = rf'(?:"?{table.namespace}"?\.){"?" if table.namespace == DEFAULT_NAMESPACE else ""}'
    return re.search(rf'(?<![\w."]){namespace}"?{table.name}(?!\w)', sql, re.IGNORECASE) is not None


def _load_all(catalog: TableCatalog) -> dict[TableName, LoadedTable | DolakeError]:
    """Every table, or why it cannot be loaded; those that are committed together as they were at one moment."""
    found = _load(catalog, catalog.list_tables())
    grouped = [name for name, table in found.items() if isinstance(table, LoadedTable) and CUT in table.properties]
    for _ in range(_LOOKS_MAX if len(grouped) > 1 else 0):
        before, again = [_place(found.get(name)) for name in grouped], _load(catalog, grouped)
        found.update(again)
        if before == [_place(again.get(name)) for name in grouped]:
            break  # None of them has changed between two looks: so they were there all at once.
    return found


def _load(catalog: TableCatalog, names: Iterable[TableName]) -> dict[TableName, LoadedTable | DolakeError]:
    found: dict[TableName, LoadedTable | DolakeError] = {}
    for name in names:
        try:
            if (table := catalog.load(name)) is not None:  # Or it was dropped since it was listed.
                found[name] = table
        except DolakeError as error:
            found[name] = error
    return found


def _place(table: LoadedTable | DolakeError | None) -> str | None:
    return table.metadata_location if isinstance(table, LoadedTable) else None


def _create_view(duck: duckdb.DuckDBPyConnection, loaded: LoadedTable | DolakeError, at: Point | None, now_ms: int) -> None:
    if isinstance(loaded, DolakeError):
        raise loaded
    table = loaded.name
    snapshot = f", snapshot_from_id => {snapshot_at(loaded, at, now_ms)['snapshot-id']}" if at is not None else ""
    duck.execute(f'CREATE SCHEMA IF NOT EXISTS "{table.namespace}"')
    name = f'"{table.namespace}"."{table.name}"'
    duck.execute(f"CREATE VIEW {name} AS SELECT * FROM iceberg_scan({_quoted(loaded.metadata_location)}{snapshot})")


def _use_s3(duck: duckdb.DuckDBPyConnection, access: S3Access) -> None:
    options: dict[str, str | bool] = {"TYPE": "s3", "REGION": access.region or "us-east-1"}
    for name, value in (("KEY_ID", access.access_key), ("SECRET", access.secret_key), ("SESSION_TOKEN", access.session_token)):
        if value is not None:
            options[name] = value
    if access.endpoint is not None:
        scheme, _, host = access.endpoint.rstrip("/").partition("://")
        options |= {"ENDPOINT": host, "URL_STYLE": "path", "USE_SSL": scheme == "https"}
    listed = ", ".join(f"{name} {str(value).lower() if isinstance(value, bool) else _quoted(value)}" for name, value in options.items())
    duck.execute(f"CREATE SECRET warehouse ({listed})")


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _extension_path(name: str) -> Path:
    """The extension as its wheel brought it. Raises QueryRefused if it is not installed."""
    package = importlib.util.find_spec(f"duckdb_extension_{name}")
    root = Path(package.origin).parent if package is not None and package.origin is not None else None
    found = sorted(root.glob(f"extensions/*/{name}.duckdb_extension")) if root is not None else []
    if not found:
        raise QueryRefused(f"DuckDB's {name} extension is missing: pip install duckdb-extension-{name}=={duckdb.__version__}")
    return found[-1]
