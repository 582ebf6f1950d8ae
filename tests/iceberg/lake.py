"""A table to commit to, in tests: files with rows, deltas over them, and what two independent readers find."""

from __future__ import annotations

import asyncio
import contextlib
import io
import sqlite3
import sysconfig
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import duckdb
import google_crc32c
import pyarrow as pa
import pyarrow.parquet as pq
from pyiceberg.catalog.sql import SqlCatalog
from pyiceberg.table import StaticTable

from dolake.clock import Runtime, SystemRandomness
from dolake.iceberg.catalog import SqlTableCatalog, TableCatalog
from dolake.iceberg.commit import CommitOutcome, Committer
from dolake.iceberg.metadata import LoadedTable, new_table
from dolake.iceberg.names import data_file_location
from dolake.iceberg.plan import CommitPolicy, Delta, NewFile
from dolake.model import OffsetRange, TableName
from dolake.storage.local import LocalStore
from dolake.storage.store import ObjectStore

T = TypeVar("T")
TABLE = TableName("shop", "orders")
LOG = "log-a"
SCHEMA: dict[str, Any] = {
    "type": "struct",
    "schema-id": 0,
    "fields": [
        {"id": 1, "name": "id", "required": False, "type": "long"},
        {"id": 2, "name": "name", "required": False, "type": "string"},
    ],
}
START_MS = 1_750_000_000_000


class HandClock:
    """Time goes on when somebody sleeps, or when a test says so."""

    def __init__(self) -> None:
        self.ms = START_MS
        self.slept_s: list[float] = []

    def now_ms(self) -> int:
        return self.ms

    def monotonic_s(self) -> float:
        return self.ms / 1000

    async def sleep(self, seconds: float) -> None:
        self.slept_s.append(seconds)
        self.ms += int(seconds * 1000)
        await asyncio.sleep(0)


class InlineTasks:
    """Blocking work done at once, on the loop: what comes between two steps is only what a test puts there."""

    def spawn(self, name: str, work: Any) -> asyncio.Task[Any]:
        return asyncio.get_running_loop().create_task(work, name=name)

    async def run(self, work: Callable[..., T], *arguments: Any) -> T:
        await asyncio.sleep(0)
        return work(*arguments)


def hand_runtime() -> Runtime:
    return Runtime(clock=HandClock(), random=SystemRandomness(), tasks=InlineTasks())


class Lake:
    """One table in one warehouse, written through dolake and read by others."""

    def __init__(
        self,
        directory: Path,
        *,
        spec: Mapping[str, Any] | None = None,
        schema: Mapping[str, Any] = SCHEMA,
        open_catalog: Callable[[ObjectStore, Runtime], Any] | None = None,
    ) -> None:
        """`open_catalog`: another one than the SQLite file in the directory."""
        self.runtime = hand_runtime()
        self.uri = f"sqlite:///{directory}/catalog.db"
        self.store = LocalStore(f"file://{directory}/warehouse")
        self.open = open_catalog or (lambda store, runtime: SqlTableCatalog(self.uri, store, runtime))
        self.catalog = self.open(self.store, self.runtime)
        self.table = self.catalog.create(TABLE, make_metadata(self.store, self.runtime, spec=spec, schema=schema))

    def close(self) -> None:
        self.catalog.close()

    def committer(
        self,
        *,
        catalog: TableCatalog | None = None,
        store: ObjectStore | None = None,
        kind: type[Committer] = Committer,
        policy: CommitPolicy | None = None,
    ) -> Committer:
        return kind(self.runtime, catalog or self.catalog, store or self.store, policy or CommitPolicy())

    def current(self) -> LoadedTable:
        table = self.catalog.load(TABLE)
        assert table is not None
        return table

    def commit(self, delta: Delta, committer: Committer | None = None) -> CommitOutcome:
        return asyncio.run((committer or self.committer()).commit(delta))

    def delta(self, start: int, end: int, **other: Any) -> Delta:
        """Rows with the ids `start`..`end`-1, from those offsets of the log."""
        rows = other.pop("rows", [{"id": number, "name": f"n{number}"} for number in range(start, end)])
        return make_delta(self.store, self.table, start, end, rows=rows, **other)

    def ids(self) -> list[int]:
        """What PyIceberg reads, opened by nothing but the metadata's address; the same as DuckDB reads."""
        found = sorted(StaticTable.from_metadata(self.current().metadata_location).scan().to_arrow()["id"].to_pylist())
        assert found == sorted(row[0] for row in self.query("SELECT id FROM iceberg_scan('{table}')"))
        return found

    def plain_table(self) -> Any:
        """As PyIceberg opens it by the SQLite file's address, to write as well."""
        plain = SqlCatalog("dolake", uri=self.uri)
        try:
            return plain.load_table(str(TABLE))
        finally:
            plain.engine.dispose()

    def query(self, sql: str, *parameters: Any) -> list[tuple[Any, ...]]:
        """Asks DuckDB; `{table}` stands for the current metadata file."""
        return duckdb_with_iceberg().execute(sql.format(table=self.current().metadata_location), parameters).fetchall()


@cache
def duckdb_with_iceberg() -> duckdb.DuckDBPyConnection:
    connection = duckdb.connect()
    packages = Path(sysconfig.get_paths()["purelib"])
    for name in ("avro", "iceberg"):
        (extension,) = packages.glob(f"duckdb_extension_{name}/extensions/*/{name}.duckdb_extension")
        connection.execute(f"LOAD '{extension}'")
    return connection


def make_metadata(
    store: ObjectStore, runtime: Runtime, *, spec: Mapping[str, Any] | None = None, schema: Mapping[str, Any] = SCHEMA
) -> dict[str, Any]:
    location = f"{store.root}/{TABLE.namespace}/{TABLE.name}"
    return new_table(uuid=runtime.random.uuid(), location=location, schema=schema, spec=spec, now_ms=runtime.clock.now_ms())


def put_file(
    store: ObjectStore,
    table: LoadedTable,
    rows: Sequence[Mapping[str, Any]],
    *,
    epoch: int = 1,
    partition: tuple[Any, ...] = (),
    **other: Any,
) -> NewFile:
    data, parquet = encode(rows, **other)
    location = data_file_location(table.location, epoch, SystemRandomness().uuid(), google_crc32c.value(data))
    store.put(location, data)
    return NewFile(location, len(data), len(rows), parquet, partition)


def encode(rows: Sequence[Mapping[str, Any]], arrow: pa.Schema | None = None) -> tuple[bytes, pq.FileMetaData]:
    arrow = arrow or pa.schema(
        [
            pa.field("id", pa.int64(), metadata={"PARQUET:field_id": "1"}),
            pa.field("name", pa.string(), metadata={"PARQUET:field_id": "2"}),
        ]
    )
    buffer = io.BytesIO()
    with pq.ParquetWriter(buffer, arrow, compression="zstd") as writer:
        writer.write_table(pa.Table.from_pylist(list(rows), schema=arrow))
    return buffer.getvalue(), pq.read_metadata(io.BytesIO(buffer.getvalue()))


def make_delta(
    store: ObjectStore,
    table: LoadedTable,
    start: int,
    end: int,
    *,
    rows: Sequence[Mapping[str, Any]],
    log: str = LOG,
    epoch: int = 1,
    instance: str = "writer-1",
    **other: Any,
) -> Delta:
    files = (put_file(store, table, rows, epoch=epoch),) if rows else ()
    settings: dict[str, Any] = {
        "table": table.name,
        "table_uuid": table.uuid,
        "ranges": {log: OffsetRange(start, end)},
        "files": files,
        "schema": table.schema,
        "base_schema_id": table.schema["schema-id"],
        "spec_id": table.spec["spec-id"],
        "epoch": epoch,
        "instance": instance,
        "commit_id": SystemRandomness().uuid(),
    }
    return Delta(**{**settings, **other})


def replace_metadata(lake: Lake, change: Any) -> None:
    """As a program does that writes a metadata file of its own and names it in the catalog."""
    location = lake.current().metadata_location
    theirs = location.replace(".metadata.json", "-theirs.metadata.json")
    lake.store.put(theirs, change(lake.store.get(location).decode()).encode())
    with contextlib.closing(sqlite3.connect(lake.uri.removeprefix("sqlite:///"))) as catalog:
        catalog.execute("UPDATE iceberg_tables SET metadata_location = ?", (theirs,))
        catalog.commit()
