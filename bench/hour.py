"""An hour of streaming, a flush every five seconds, or pressed into minutes: three mirrors, compacted as they are written.

Pressed, the next flush comes as soon as compaction has nothing left to do, which it has time for in five seconds.

One is updated evenly, one at few keys again and again, one is partitioned by day and bucket and gets today's rows. What reading costs
after each of the last flushes, against the same tables freshly rewritten; how many files there were at most; what ingest noticed.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from bench.events import COLUMNS, batch_of, framed
from bench.sender import Connection
from tests.harness.daemon import Daemon
from tests.harness.lake import Lake

TABLES = ("bench.even", "bench.hot", "bench.days")
WINDOW = 8
_STATUSES = ("new", "paid", "shipped", "cancelled")
_SETTINGS = '[tables."bench.days"]\npartition_by = ["day(created_at)", "bucket(4, id)"]\n'
_POINTS = 5
PACE_S = 5.0
_LOOK_S = 0.1
_READINGS = 16  # Of the last flushes: files come and go, so one look would be chance.
_BUSY = ("dolake_compaction_running_count", "dolake_compaction_debt_bytes")


class Stream:
    """One table's changes: half inserts, the other half updates and some deletes of rows that are there."""

    def __init__(self, table: str, seed: int) -> None:
        self.table, self.source = table, f"s-{table}"
        self._random = np.random.default_rng(seed)
        self._event, self._batch, self._keys = 1, 1, 0

    def declared(self) -> bytes:
        columns = [{"name": name, "type": kind, "nullable": name != "id"} for name, kind in COLUMNS.items()]
        body = {
            "type": "schema",
            "sourceDoId": self.source,
            "sequenceNumber": 1,
            "table": self.table,
            "primaryKey": ["id"],
            "columns": columns,
        }
        return framed(orjson.dumps(body))

    def next(self, count: int, minute: int) -> bytes:
        events = [orjson.dumps(event) for event in self._events(count, minute)]
        self._batch += 1
        message = batch_of(self._batch, self._event, events, self.source)
        self._event += count
        return framed(message)

    def _events(self, count: int, minute: int) -> Iterator[dict[str, Any]]:
        for place, chance in enumerate(self._random.random(count).tolist()):
            number = self._event + place
            stated = {"sequence": number, "timestamp": 1_767_225_600_000 + number, "table": self.table}
            if self._keys < count or chance < 0.5:
                self._keys += 1
                yield {**stated, "operation": "INSERT", "rowId": str(self._keys), "after": self._row(self._keys, number, minute)}
                continue
            key = self._key()
            if chance < 0.95:
                yield {**stated, "operation": "UPDATE", "rowId": str(key), "after": self._row(key, number, minute)}
            else:
                yield {**stated, "operation": "DELETE", "rowId": str(key), "before": {"id": key}}

    def _key(self) -> int:
        if self.table == "bench.hot":
            return 1 + int(self._random.zipf(1.3)) % self._keys
        return 1 + int(self._random.integers(self._keys))

    def _row(self, key: int, number: int, minute: int) -> dict[str, Any]:
        return {
            "id": key,
            "customer_id": number * 2654435761 % 100_000,
            "status": _STATUSES[number % 4],
            "amount": round(number % 1_000_000 / 100, 2),
            "note": f"left at the door {number * 40503 % 65536}",
            "created_at": f"2026-01-{1 + minute // 30:02d}T12:{minute % 60:02d}:00Z",
            "qty": number % 9,
            "flag": number % 2 == 0,
        }


async def _connected(url: str, stream: Stream) -> Connection:
    connection = await Connection.open(url)
    await connection.greet(stream.source)
    await connection.send_window([stream.declared()], WINDOW)
    return connection


def hour(directory: Path, flushes: int, events: int) -> dict[str, Any]:
    """`events` of each table and flush."""
    return {"hour": asyncio.run(_run(directory / "hour", flushes, events))}


def real_hour(directory: Path, flushes: int, events: int) -> dict[str, Any]:
    """The same in its own time, with dolake's own settings but for the flushes, that are asked for."""
    return {"real hour": asyncio.run(_run(directory / "real-hour", flushes, events, pace_s=PACE_S))}


async def _run(data: Path, flushes: int, events: int, *, pace_s: float = 0.0) -> dict[str, Any]:
    """`pace_s`: a flush every so many seconds; 0: as soon as there is nothing left to compact."""
    settings = {
        "DOLAKE_FLUSH_AGE_S": "3600",
        **({} if pace_s else {"DOLAKE_COMPACTION_INTERVAL_S": str(_LOOK_S)}),
        "DOLAKE_COMMIT_SNAPSHOTS_KEPT": "20",
    }
    with Daemon(data, settings, mode="mirror", table_settings=_SETTINGS, spare=True) as daemon, Lake(daemon.data) as lake:
        url = daemon.start().wait_ready().cdc
        streams = [Stream(table, seed) for seed, table in enumerate(TABLES)]
        connections = [await _connected(url, stream) for stream in streams]
        files = dict.fromkeys(TABLES, 0)
        readings: dict[str, list[tuple[float, float]]] = {table: [] for table in TABLES}
        began_s = time.monotonic()
        for flush in range(flushes):
            for stream, connection in zip(streams, connections, strict=True):
                await connection.send_window([stream.next(events, flush * 60 // flushes)], WINDOW)
            await asyncio.gather(*(connection.flush() for connection in connections))
            if pace_s:
                await asyncio.sleep(max(0.0, began_s + (flush + 1) * pace_s - time.monotonic()))
            else:
                await _at_rest(daemon)
            if flush % 5 == 0:
                files = {table: max(files[table], sum(_files(lake, table))) for table in TABLES}
            if flush >= flushes - _READINGS:
                for table in TABLES:
                    readings[table].append(await asyncio.to_thread(_read_s, lake, table))
        seconds = time.monotonic() - began_s
        acks = sorted(latency for connection in connections for latency in connection.timings.latencies_s())
        for connection in connections:
            connection.close()
        found: dict[str, Any] = {"seconds": round(seconds, 1), "ack_p99_ms": round(acks[len(acks) * 99 // 100] * 1000, 1)}
        before = {table: _files(lake, table) for table in TABLES}
        done = daemon.run("compact", deadline_s=600)
        if done.returncode != 0:
            raise AssertionError(f"the figures are void: {done.stderr}")
        for table in TABLES:
            data_files, delete_files = before[table]
            found[table] = {
                "files_max": max(files[table], data_files + delete_files),
                "data_files": data_files,
                "delete_files": delete_files,
            }
            for name, fresh_s, streamed_s in zip(
                ("scan", "point query"), _read_s(lake, table), zip(*readings[table], strict=True), strict=True
            ):
                found[table] |= {
                    f"{name}, s": round(statistics.median(streamed_s), 4),
                    f"{name}, fresh, s": round(fresh_s, 4),
                    f"{name}, times as long as fresh": round(statistics.median(streamed_s) / fresh_s, 2),
                    f"{name}, times as long as fresh, at most": round(max(streamed_s) / fresh_s, 2),
                }
        return found


async def _at_rest(daemon: Daemon) -> None:
    """Until two looks of compaction have found nothing to do, or as long as it has in an hour."""
    end_s, quiet_s = time.monotonic() + PACE_S, time.monotonic()
    while (now_s := time.monotonic()) < min(end_s, quiet_s + 3 * _LOOK_S):
        metrics = await asyncio.to_thread(daemon.metrics)
        if any(value and name.startswith(_BUSY) for name, value in metrics.items()):
            quiet_s = now_s
        await asyncio.sleep(_LOOK_S / 2)


def _files(lake: Lake, table: str) -> tuple[int, int]:
    summary = max(lake.snapshots(table), key=lambda one: one["sequence-number"])["summary"]
    return int(summary["total-data-files"]), int(summary["total-delete-files"])


def _read_s(lake: Lake, table: str) -> tuple[float, float]:
    """Of a full scan and of a look for one key, by DuckDB: the best of five."""
    location = lake.metadata_location(table)
    scans = [_timed(lake, f"SELECT count(*), sum(amount), max(note), sum(qty) FROM iceberg_scan('{location}')") for _ in range(5)]
    points = [_timed(lake, f"SELECT id, note, amount FROM iceberg_scan('{location}') WHERE id = {key * 97 + 5}") for key in range(_POINTS)]
    return min(scans), min(points)


def _timed(lake: Lake, sql: str) -> float:
    began_s = time.monotonic()
    lake.query(sql)
    return time.monotonic() - began_s
