"""One daemon's life from an empty directory to a million events, with restarts in between."""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.harness.daemon import Daemon
from tests.harness.history import assert_lake_equals_oracle
from tests.harness.lake import Lake
from tests.harness.oracle import Oracle, ledger_event
from tests.harness.source import Source
from tests.harness.traffic import drain, url_of
from tests.harness.waiting import wait_until

SOURCES = 20
EVENTS_A_STEP = 25_000  # of each source: two steps of 500,000 events
BATCH = 500


def add_events(source: Source, table: str, first: int, count: int) -> None:
    for start in range(first, first + count, BATCH):
        source.add([ledger_event(start + place, table) for place in range(BATCH)])


async def deliver(daemon: Daemon, sources: list[Source]) -> None:
    await asyncio.wait_for(asyncio.gather(*(source.deliver(url_of(daemon)) for source in sources)), 200)


def logs_of_sources(lake: Lake, tables: list[str]) -> dict[str, set[str]]:
    """Which logs each source's rows came through."""
    found: dict[str, set[str]] = {}
    for table in tables:
        location = lake.metadata_location(table)
        for source, log in lake.query(f"SELECT DISTINCT _cdc_source::VARCHAR, _cdc_log::VARCHAR FROM iceberg_scan('{location}')"):
            found.setdefault(source, set()).add(log)
    return found


@pytest.mark.acceptance("AT-43")
def test_a_million_events_through_a_whole_life(tmp_path: Path, report: Callable[..., None]) -> None:
    began = time.monotonic()
    disks = [tmp_path / f"disk-{number}" for number in range(4)]
    settings = {"DOLAKE_LOG_DIRECTORIES": os.pathsep.join(map(str, disks)), "DOLAKE_FLUSH_BYTES": "16 MiB", "DOLAKE_FLUSH_AGE_S": "2"}
    tables = ["orders", "customers"]
    oracle = Oracle(tmp_path / "journal")
    sources = [Source(f"source-{number}", oracle).declare(*tables) for number in range(SOURCES)]
    with Daemon(tmp_path / "data", settings) as daemon, Lake(daemon.data) as lake:
        daemon.start()  # 1: from nothing
        for number, source in enumerate(sources):  # 2, 3: many sources, more than any threshold
            add_events(source, tables[number % 2], 0, EVENTS_A_STEP)
        asyncio.run(deliver(daemon, sources))
        wait_until(lambda: all(len(lake.snapshots(table)) >= 2 for table in tables), "flushes by themselves")  # 4
        half = len(sources) // 2
        for number, source in enumerate(sources):  # 5: more data, and with half of it acked everything is killed
            add_events(source, tables[number % 2], EVENTS_A_STEP, EVENTS_A_STEP)
        asyncio.run(deliver(daemon, sources[:half]))
        daemon.kill()
        daemon.start()  # 6: a restart with a backlog
        asyncio.run(deliver(daemon, sources[half:]))
        asyncio.run(drain(daemon))
        assert_lake_equals_oracle(lake, oracle)  # 7: the data
        placed = logs_of_sources(lake, tables)  # 8: each source in one log, five of twenty in each of four
        assert all(len(logs) == 1 for logs in placed.values()), placed
        assert sorted(Counter(log for logs in placed.values() for log in logs).values()) == [5, 5, 5, 5]
        assert daemon.stop() == 0
        daemon.start()  # 9: an orderly restart changes nothing and keeps the places
        for number, source in enumerate(sources):  # 10: and on it goes
            add_events(source, tables[number % 2], 2 * EVENTS_A_STEP, BATCH)
        asyncio.run(deliver(daemon, sources))
        asyncio.run(drain(daemon))
        assert logs_of_sources(lake, tables) == placed
        assert sum(lake.row_count(table) for table in tables) == SOURCES * (2 * EVENTS_A_STEP + BATCH)
        done = daemon.run("verify", deadline_s=120)
        assert done.returncode == 0, done.stdout + done.stderr
    report(events=SOURCES * (2 * EVENTS_A_STEP + BATCH), seconds=round(time.monotonic() - began, 1))
