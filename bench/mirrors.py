"""Mirror tables: inserts, updates and deletes into tables that are large already, and what reading costs afterwards.

60 % inserts, 30 % updates and 10 % deletes of rows that are there, the rows chosen uniformly or as Zipf has it (few again and
again). A flush every 100,000 events. Beside it the same work by PyIceberg's own delete and append, batch by batch.
"""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from bench.events import COLUMNS, TABLE, batch, batch_of, event, framed, schema
from bench.machine import cpu_seconds, sampled_memory
from bench.sender import Connection
from dolake.clock import real_runtime
from dolake.config import Settings
from dolake.iceberg.index import KeyIndex
from dolake.iceberg.lake import open_catalog, open_warehouse
from dolake.metrics import Metrics
from dolake.model import TableName
from dolake.parquet.keys import key_hashes
from dolake.storage.disk import LocalDisk
from dolake.writer.indexes import Indexes
from tests.harness.daemon import HALVES, Daemon
from tests.harness.lake import Lake

BATCH_EVENTS = 1000
WINDOW = 32
FLUSH_EVENTS = 100_000
_SLICE_EVENTS = 500_000
_OPERATIONS = (b"INSERT", b"UPDATE", b"DELETE")
_SHARES = (0.6, 0.3, 0.1)
_ZIPF = 1.2


class Changes:
    """A stream of changes to a table that begins with rows 1 … `rows`. The same for the same seed."""

    def __init__(self, rows: int, *, zipf: bool) -> None:
        self._random = np.random.default_rng(7)
        self._rows, self._zipf = rows, zipf

    def next(self, first: int, count: int) -> list[bytes]:
        """Events `first` … `first + count - 1`; an insert is of the row of its own number."""
        return [event(first + place, _OPERATIONS[operation], key) for place, (operation, key) in enumerate(self.drawn(first, count))]

    def drawn(self, first: int, count: int) -> Iterator[tuple[int, int]]:
        """Operation (a place in `_OPERATIONS`) and key of each."""
        operations = self._random.choice(len(_OPERATIONS), count, p=_SHARES)
        keys = np.where(operations == 0, np.arange(first, first + count), self._keys(first, count))
        return zip(operations.tolist(), keys.tolist(), strict=True)

    def _keys(self, first: int, count: int) -> npt.NDArray[np.int64]:
        if not self._zipf:
            return self._random.integers(1, first, count)
        ranks = self._random.zipf(_ZIPF, count) % (first - 1)
        return 1 + (ranks * 2654435761) % (first - 1)  # The busy rows lie anywhere in the table.


class Sending:
    """One source into one daemon."""

    def __init__(self, connection: Connection) -> None:
        self._connection, self._sequence, self._next = connection, 1, 1

    async def declare(self) -> None:
        await self._connection.send_window([framed(schema(self._sequence))], WINDOW)

    async def fill(self, rows: int) -> None:
        """Inserts; prepared and sent slice by slice, since all of them would not fit into memory."""
        for first in range(1, rows + 1, _SLICE_EVENTS):
            stop = min(first + _SLICE_EVENTS, rows + 1)
            frames = []
            for start in range(first, stop, BATCH_EVENTS):
                self._sequence += 1
                frames.append(framed(batch(self._sequence, start, min(BATCH_EVENTS, stop - start))))
            await self._connection.send_window(frames, WINDOW)
        self._next = rows + 1
        await self._connection.flush()

    def prepare(self, changes: Changes, count: int) -> list[bytes]:
        frames = []
        for first in range(self._next, self._next + count, BATCH_EVENTS):
            self._sequence += 1
            frames.append(framed(batch_of(self._sequence, first, changes.next(first, min(BATCH_EVENTS, self._next + count - first)))))
        self._next += count
        return frames

    async def run(self, frames: Sequence[bytes]) -> None:
        await self._connection.send_window(frames, WINDOW)
        await self._connection.flush()


async def run_mirror(directory: Path, rows: int, events: int, *, zipf: bool) -> dict[str, Any]:
    name = f"mirror-{rows}-{'zipf' if zipf else 'uniform'}"
    settings = {"DOLAKE_FLUSH_AGE_S": "3600", "DOLAKE_FLUSH_ROWS": str(FLUSH_EVENTS)}
    with Daemon(directory / name, settings, mode="mirror", spare=True) as daemon, Lake(daemon.data) as lake:
        pids = {role: pid for role, pid in daemon.start().wait_ready().pids.items() if role in HALVES}
        connection = await Connection.open(daemon.wait_ready().cdc)
        await connection.greet()
        sending = Sending(connection)
        await sending.declare()
        await sending.fill(rows)
        frames = sending.prepare(Changes(rows, zipf=zipf), events)
        before = {role: cpu_seconds(pid) for role, pid in pids.items()}
        async with sampled_memory(lambda: pids) as memory:
            began_s = time.monotonic()
            await sending.run(frames)
            seconds = time.monotonic() - began_s
        used = {role: cpu_seconds(pid) - before[role] for role, pid in pids.items()}
        connection.close()
        snapshot = lake.snapshots(TABLE)[-1]["summary"]
        live = int(snapshot["total-records"]) - int(snapshot["total-position-deletes"])
        if lake.row_count(TABLE) != live:
            raise AssertionError(f"{lake.row_count(TABLE)} rows, the snapshot says {live}: the figures are void")
        return {
            "rows_before": rows,
            "events": events,
            "committed_events_per_s": round(events / seconds),
            "flushes": len(lake.snapshots(TABLE)),
            "delete_files": int(snapshot["total-delete-files"]),
            "rows_after": live,
            **index_figures(daemon),
            **{f"{role}_cpu_us_per_event": round(cpu_s / events * 1e6, 3) for role, cpu_s in used.items()},
            **{f"{role}_rss_mib_max": round(memory.bytes_max(role) / 2**20) for role in HALVES},
        }


def index_figures(daemon: Daemon) -> dict[str, Any]:
    """The key index by itself, after the daemon: saved and loaded, made anew from the table, and asked for 100,000 keys."""
    daemon.stop()
    settings = Settings.model_validate({"data": str(daemon.data)})
    runtime, store = real_runtime(), open_warehouse(settings)
    catalog = open_catalog(settings, store, runtime)
    base = catalog.load(TableName.parse(TABLE))
    assert base is not None
    (key,) = [column["id"] for column in base.schema["fields"] if column["name"] == "id"]
    timings: dict[str, float] = {}

    def timed(what: str) -> KeyIndex:
        indexes = Indexes(runtime, LocalDisk(), str(daemon.data), store, Metrics())
        began_s = time.monotonic()
        index = indexes.at_head(base, [key])
        timings[what] = time.monotonic() - began_s
        return index

    timed("load")
    shutil.rmtree(daemon.data / "index")
    index = timed("rebuild")
    catalog.close()
    chance = np.random.default_rng(8)
    keys = np.concatenate([chance.integers(1, max(2, index.space), 60_000), chance.integers(1 << 40, 1 << 50, 40_000)])
    hashes = key_hashes([pa.array(keys)], index.seed)
    asked = []
    for _ in range(5):
        began_s = time.monotonic()
        hits = index.lookup(hashes.high, hashes.low)
        asked.append(time.monotonic() - began_s)
    return {
        "index_bytes_per_row": round(index.size_bytes / index.live_count, 1),
        "index_memory_bytes_per_row": round(index.memory_bytes / index.live_count, 1),
        "index_load_s": round(timings["load"], 3),
        "index_rebuild_s": round(timings["rebuild"], 3),
        "index_rebuild_rows_per_s": round(index.space / timings["rebuild"]),
        "index_lookup_keys_per_s": round(len(keys) / min(asked)),
        "index_lookup_hits": len(hits.rows),
    }


async def run_read_cost(directory: Path, rows: int, flushes: int, flush_events: int) -> dict[str, Any]:
    """Seconds of a full scan by DuckDB after many flushes, and of the same rows freshly written as one table."""
    settings = {"DOLAKE_FLUSH_AGE_S": "3600", "DOLAKE_FLUSH_ROWS": str(flush_events)}
    with Daemon(directory / "read-cost", settings, mode="mirror", spare=True) as daemon, Lake(daemon.data) as lake:
        connection = await Connection.open(daemon.start().wait_ready().cdc)
        await connection.greet()
        sending = Sending(connection)
        await sending.declare()
        await sending.fill(rows)
        changes = Changes(rows, zipf=False)
        for _ in range(flushes):
            await sending.run(sending.prepare(changes, flush_events))
        connection.close()
        catalog = lake.catalog()
        flushed = catalog.load_table(TABLE)
        fresh = catalog.create_table("bench.fresh", flushed.schema(), location=f"{flushed.location()}-fresh")
        fresh.append(lake.read_duckdb(TABLE).cast(fresh.schema().as_arrow()))
        query = "SELECT count(*), sum(amount), max(note), sum(qty) FROM iceberg_scan('{}')"
        spent = {}
        for what, table in (("after_flushes", TABLE), ("freshly_written", "bench.fresh")):
            sql, times = query.format(lake.metadata_location(table)), []
            for _ in range(3):
                began_s = time.monotonic()
                answer = lake.query(sql)
                times.append(time.monotonic() - began_s)
            spent[what] = (min(times), answer)
        if round(spent["after_flushes"][1][0][1], 2) != round(spent["freshly_written"][1][0][1], 2):
            raise AssertionError(f"the two differ: {spent}")
        summary = lake.snapshots(TABLE)[-1]["summary"]
        catalog.close()
        return {
            "flushes": flushes,
            "data_files": int(summary["total-data-files"]),
            "delete_files": int(summary["total-delete-files"]),
            **{f"scan_{what}_s": round(seconds, 3) for what, (seconds, _) in spent.items()},
            "times_as_long": round(spent["after_flushes"][0] / spent["freshly_written"][0], 1),
        }


def run_pyiceberg(directory: Path, rows: int, batches: int, batch_events: int) -> dict[str, Any]:
    """The same changes by `delete` and `append` of PyIceberg, on rows that are decoded and folded already."""
    from pyiceberg.catalog.sql import SqlCatalog
    from pyiceberg.expressions import In

    place = directory / "pyiceberg-mirror"
    place.mkdir(parents=True)
    types = {"long": pa.int64(), "int": pa.int32(), "double": pa.float64(), "string": pa.string(), "boolean": pa.bool_()}
    arrow = pa.schema([(name, types.get(kind, pa.timestamp("us", tz="UTC"))) for name, kind in COLUMNS.items()])
    catalog = SqlCatalog("baseline", uri=f"sqlite:///{place}/catalog.db", warehouse=f"file://{place}/warehouse")
    catalog.create_namespace("bench")
    table = catalog.create_table(TABLE, arrow)
    for part in _filled(rows, arrow):
        table.append(part)
    changes, first = Changes(rows, zipf=False), rows + 1
    began_s = time.monotonic()
    for _ in range(batches):
        written, touched = _folded(changes, first, batch_events)
        table.delete(In("id", touched))
        table.append(_rows(written, arrow))
        first += batch_events
    seconds = time.monotonic() - began_s
    catalog.close()
    return {"rows_before": rows, "batch_events": batch_events, "committed_events_per_s": round(batches * batch_events / seconds)}


def _filled(rows: int, arrow: pa.Schema) -> Iterator[pa.Table]:
    for first in range(1, rows + 1, FLUSH_EVENTS):
        yield _rows(list(range(first, min(first + FLUSH_EVENTS, rows + 1))), arrow)


def _rows(keys: Sequence[int], arrow: pa.Schema) -> pa.Table:
    columns = {name: pa.nulls(len(keys), arrow.field(name).type) for name in arrow.names}
    texts = pa.array([f"left at the door {key}" for key in keys])
    return pa.table({**columns, "id": pa.array(keys, pa.int64()), "note": texts}, schema=arrow)


def _folded(changes: Changes, first: int, count: int) -> tuple[list[int], list[int]]:
    """Keys of the rows that a batch leaves, and of all it touches."""
    last = {key: operation for operation, key in changes.drawn(first, count)}
    return [key for key, operation in last.items() if _OPERATIONS[operation] != b"DELETE"], list(last)


def mirrors(
    directory: Path, sizes: Sequence[int], events: int, hour: tuple[int, int, int], by_pyiceberg: tuple[int, int, int]
) -> dict[str, Any]:
    """`sizes`: rows before; `hour`: rows before, flushes, events of each; `by_pyiceberg`: rows before, batches, events of each."""
    found: dict[str, Any] = {}
    for rows in sizes:
        for zipf in (False, True):
            found[f"{rows:,} rows {'zipf' if zipf else 'uniform'}"] = asyncio.run(run_mirror(directory, rows, events, zipf=zipf))
    slowest = min(one["committed_events_per_s"] for one in found.values())
    found["pyiceberg"] = run_pyiceberg(directory, *by_pyiceberg)
    found["times_pyiceberg"] = round(slowest / found["pyiceberg"]["committed_events_per_s"], 1)
    found["read cost"] = asyncio.run(run_read_cost(directory, *hour))
    return found
