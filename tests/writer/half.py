"""A writer half over a real log, store and catalog, and a hand that writes the log."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
from pyiceberg.catalog.sql import SqlCatalog

from dolake.buffer.wal import Log, LogSettings
from dolake.clock import Runtime, SystemClock, real_runtime
from dolake.compaction.compactor import Rewriter, SparkCaller, rewriter_here
from dolake.compaction.job import Job, Rewritten
from dolake.config import Settings
from dolake.iceberg.lake import open_catalog, open_warehouse
from dolake.iceberg.plan import CommitPolicy
from dolake.model import Entry, RecordKind, TableName, TransactionMark
from dolake.storage.disk import LocalDisk
from dolake.writer.main import make_service
from dolake.writer.service import WriterService
from tests.iceberg.lake import duckdb_with_iceberg

COLUMNS = [{"name": "id", "type": "long", "nullable": False}, {"name": "note", "type": "string", "nullable": True}]


@dataclass
class Hand:
    """Appends to one log what sources would have sent; sequences count up by source."""

    log: Log
    sequences: dict[str, itertools.count[int]] = field(default_factory=dict)
    numbers: dict[str, itertools.count[int]] = field(default_factory=dict)

    def _next(self, source: str) -> int:
        return next(self.sequences.setdefault(source, itertools.count()))

    def declare(
        self, table: str = "t", columns: Sequence[dict[str, Any]] = COLUMNS, *, source: str = "s", key: Sequence[str] = ("id",)
    ) -> int:
        body = {
            "type": "schema",
            "sourceDoId": source,
            "sequenceNumber": 0,
            "table": table,
            "primaryKey": list(key),
            "columns": list(columns),
        }
        payload = json.dumps(body).encode()
        entry = Entry(RecordKind.SCHEMA, source, "", self._next(source), 0, 0, payload, {table: 0})
        return self.log.append_group([entry]).start

    def insert(
        self, *rows: dict[str, Any], table: str = "t", source: str = "s", transaction: TransactionMark | None = None, lsn: str = ""
    ) -> int:
        return self.batch([(table, row) for row in rows], source=source, transaction=transaction, lsn=lsn)

    def change(self, *events: dict[str, Any], table: str = "t", source: str = "s", transaction: TransactionMark | None = None) -> int:
        """One batch of events as they are, but for their numbers, times and table. An `orjson.Fragment` in them goes as it is."""
        number = self.numbers.setdefault(source, itertools.count())
        stated = [{"sequence": next(number), "timestamp": 1767225600000, "table": table, **event} for event in events]
        payload = orjson.dumps({"type": "cdc_batch", "events": stated})
        entry = Entry(
            RecordKind.BATCH, source, "", self._next(source), len(stated), 0, payload, {table: len(stated)}, transaction=transaction
        )
        return self.log.append_group([entry]).start

    def batch(
        self, rows: Sequence[tuple[str, dict[str, Any]]], *, source: str = "s", transaction: TransactionMark | None = None, lsn: str = ""
    ) -> int:
        number = self.numbers.setdefault(source, itertools.count())
        events = [
            {"sequence": next(number), "timestamp": 1767225600000, "operation": "INSERT", "table": table, "rowId": "r", "after": row}
            for table, row in rows
        ]
        tables: dict[str, int] = {}
        for table, _ in rows:
            tables[table] = tables.get(table, 0) + 1
        payload = json.dumps({"type": "cdc_batch", "events": events}).encode()
        entry = Entry(
            RecordKind.BATCH, source, "", self._next(source), len(events), 0, payload, tables, last_lsn=lsn, transaction=transaction
        )
        return self.log.append_group([entry]).start


@dataclass
class Half:
    path: Path
    settings: Settings
    runtime: Runtime
    log: Log
    hand: Hand
    service: WriterService
    reports: list[dict[str, Any]]
    running: asyncio.Task[None]

    def until(self) -> dict[str, int]:
        return {self.log.log_id: self.log.synced_end}

    async def flush(self, *tables: str) -> dict[str, Any]:
        names = [TableName.parse(table) for table in tables] or None
        return await self.service.flush(names, self.until(), timeout_s=10)

    def rows(self, table: str = "default.t") -> list[dict[str, Any]]:
        """By PyIceberg, in the order of the log."""
        rows: pa.Table = self.catalog().load_table(table).scan().to_arrow()
        return rows.sort_by([("_cdc_offset", "ascending"), ("_cdc_index", "ascending")]).to_pylist()

    def mirrored(self, table: str = "default.t", key: str = "id") -> dict[Any, dict[str, Any]]:
        """A mirror's rows by key, as PyIceberg and DuckDB read them; fails where the two differ, or a key has two rows."""
        loaded = self.catalog().load_table(table)
        rows: list[dict[str, Any]] = loaded.scan().to_arrow().to_pylist()
        other = duckdb_with_iceberg().execute(f"SELECT * FROM iceberg_scan('{loaded.metadata_location}')").to_arrow_table().to_pylist()
        found = {row[key]: row for row in rows}
        assert len(found) == len(rows), f"{len(rows)} rows of {len(found)} keys"
        assert sorted(map(repr, rows)) == sorted(map(repr, other))
        return found

    def values(self, table: str = "default.t", column: str = "id") -> list[Any]:
        return [row[column] for row in self.rows(table)]

    def catalog(self) -> SqlCatalog:
        return SqlCatalog("dolake", uri=f"sqlite:///{self.settings.catalog_path}", warehouse=self.settings.warehouse.uri)


@dataclass
class ClockAhead(SystemClock):
    ahead_ms: int

    def now_ms(self) -> int:
        return super().now_ms() + self.ahead_ms


def settings_of(path: Path, *, mode: str | None = "changelog", **sections: Any) -> Settings:
    """`mode` is that of every table for which `tables` says nothing more specific than `*.*`; None leaves it to the default."""
    tables = {**({} if mode is None else {"*.*": {"mode": mode}}), **sections.pop("tables", {})}
    compaction = {"spare_share": 0, **sections.pop("compaction", {})}  # Who looks at files would find others whenever the machine is slow.
    return Settings.model_validate({"data": str(path), "flush": {"age_s": 3600}, "tables": tables, "compaction": compaction, **sections})


def open_log(path: Path) -> Log:
    directory = str(path / "log")
    disk, random, settings = LocalDisk(), real_runtime().random, LogSettings(segment_bytes=4096)
    return Log.open(disk, directory, settings, random) if Path(directory).exists() else Log.create(disk, directory, settings, random)


@contextlib.asynccontextmanager
async def half(
    path: Path,
    *,
    stop_cleanly: bool = True,
    clock_ahead_ms: int = 0,
    clock: SystemClock | None = None,
    snapshots_kept: int = 100,
    around: Callable[[Half, Rewriter], Rewriter] | None = None,
    spark: Callable[[Half], SparkCaller] | None = None,
    **sections: Any,
) -> AsyncIterator[Half]:
    """Starts on what is there. Leaves by flushing, or (`stop_cleanly` False) by dropping everything in memory.

    `clock_ahead_ms`: how far its wall clock is off; or `clock` is its clock. `around`: what else happens when files are rewritten.
    `sections`, and `mode` among them, as for `settings_of`.
    """
    settings, runtime = settings_of(path, **sections), replace(real_runtime(), clock=clock or ClockAhead(clock_ahead_ms))
    log = open_log(path)
    store = open_warehouse(settings)
    catalog = open_catalog(settings, store, runtime)
    rewriter = rewriter_here(runtime, store)

    async def rewrite(job: Job) -> Rewritten:
        return await (rewriter if around is None else around(found, rewriter))(job)

    async def call(statements: Sequence[str]) -> None:
        assert spark is not None
        await spark(found)(statements)

    policy = CommitPolicy(snapshots_kept=snapshots_kept)
    service = make_service(runtime, LocalDisk(), catalog, store, policy, settings, rewrite, call if spark else None)
    reports: list[dict[str, Any]] = []
    service.report = reports.append
    stop = asyncio.Event()
    running = asyncio.get_running_loop().create_task(service.run(stop))
    try:
        found = Half(path, settings, runtime, log, Hand(log), service, reports, running)
        yield found
        if stop_cleanly:
            stop.set()
            await running
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        log.close()
        catalog.close()


@contextlib.asynccontextmanager
async def other_writer(h: Half, *, snapshots_kept: int = 100, **sections: Any) -> AsyncIterator[Half]:
    """A second writer half over the same log, store and catalog: whichever commits last, the other was replaced by it."""
    settings = settings_of(h.path, **sections)
    store = open_warehouse(settings)
    catalog = open_catalog(settings, store, h.runtime)
    service = make_service(h.runtime, LocalDisk(), catalog, store, CommitPolicy(snapshots_kept=snapshots_kept), settings)
    running = asyncio.get_running_loop().create_task(service.run(asyncio.Event()))
    try:
        yield replace(h, settings=settings, service=service, running=running)
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        catalog.close()


async def until(condition: Any) -> None:
    """Waits for the writer to get there; a test that waits in vain is ended by its own time limit."""
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 -- what is waited for has no event of its own
            await asyncio.sleep(0.005)


def letters(half: Half) -> list[dict[str, Any]]:
    """The dead letters, by PyIceberg, in the order of the log."""
    table = half.catalog().load_table("dolake.dead_letters")
    return table.scan().to_arrow().sort_by([("_cdc_offset", "ascending"), ("_cdc_index", "ascending")]).to_pylist()
