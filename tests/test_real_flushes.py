"""When a real daemon flushes, what a flush is, and what happens when nobody can say whether it landed."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.harness.daemon import Daemon
from tests.harness.history import assert_lake_equals_oracle
from tests.harness.lake import Lake
from tests.harness.oracle import Oracle, ledger_event
from tests.harness.source import Source
from tests.harness.traffic import drain, url_of
from tests.harness.waiting import wait_until

MIB = 1 << 20
NEVER = {"DOLAKE_FLUSH_AGE_S": "3600", "DOLAKE_COMPACTION_ENABLED": "false"}  # Snapshots are counted here.


def deliver(daemon: Daemon, source: Source) -> None:
    asyncio.run(asyncio.wait_for(source.deliver(url_of(daemon)), 60))


@pytest.mark.acceptance("AT-50")
def test_a_table_is_flushed_each_time_it_has_gathered_its_bytes(tmp_path: Path) -> None:
    """7.3 MB with a threshold of 1 MiB: a flush within 5 s at each, and less than the threshold left."""
    settings = {**NEVER, "DOLAKE_FLUSH_BYTES": "1 MiB", "DOLAKE_COMMIT_SNAPSHOTS_KEPT": "1000"}
    oracle = Oracle(tmp_path / "journal")
    with Daemon(tmp_path / "data", settings) as daemon, Lake(daemon.data) as lake:
        daemon.start()
        source = Source("s", oracle).declare("ledger")
        size, waiting, sequence, flushes = 0, 0, 0, 0
        while size < 7_500_000:
            source.add([ledger_event(sequence + place, note_size=700) for place in range(20)])
            frame_size = len(source.frames[-1][1])
            size, waiting, sequence = size + frame_size, waiting + frame_size, sequence + 20
            if waiting >= MIB:  # Sent no faster than this: a writer that lags behind may flush more at once.
                deliver(daemon, source)
                flushes, waiting = flushes + 1, 0
                wait_until(lambda flushes=flushes: len(lake.snapshots("ledger")) == flushes, "the flush by bytes", 5)
        deliver(daemon, source)
        assert len(lake.snapshots("ledger")) == flushes >= 7
        flushed = lake.row_count("ledger")
        unflushed = sum(len(frame) for _, frame, events in source.frames if events and events[-1].sequence >= flushed)
        assert unflushed < MIB
        asyncio.run(drain(daemon))
        assert_lake_equals_oracle(lake, oracle)


@pytest.mark.acceptance("AT-50")
def test_a_table_is_flushed_when_its_oldest_row_is_old_enough(tmp_path: Path) -> None:
    oracle = Oracle(tmp_path / "journal")
    with Daemon(tmp_path / "data", {"DOLAKE_FLUSH_AGE_S": "0.5"}) as daemon, Lake(daemon.data) as lake:
        daemon.start()
        for number in range(2):  # The second has a table already: nothing but its own age makes it wait.
            deliver(daemon, Source(f"s{number}", oracle).declare("ledger").add([ledger_event(number)]))
            acked = time.monotonic()
            wait_until(lambda number=number: lake.row_count("ledger") == number + 1, "the flush by age", 10)
            waited = time.monotonic() - acked
            assert waited < 10, "an hour was not meant"
        assert_lake_equals_oracle(lake, oracle)


@pytest.mark.acceptance("AT-50")
def test_a_table_is_flushed_when_it_has_gathered_its_rows(tmp_path: Path) -> None:
    table_settings = '[tables."default.ledger"]\nflush = { rows = 100 }\n'
    oracle = Oracle(tmp_path / "journal")
    with Daemon(tmp_path / "data", NEVER, table_settings=table_settings) as daemon, Lake(daemon.data) as lake:
        daemon.start()
        source = Source("s", oracle).declare("ledger", "other")
        for table in ("ledger", "other"):
            source.add([ledger_event(1000 * len(table) + place, table) for place in range(99)])
        deliver(daemon, source)
        assert (lake.row_count("ledger"), lake.row_count("other")) == (0, 0)
        source.add([ledger_event(9999)])
        deliver(daemon, source)
        wait_until(lambda: lake.row_count("ledger") == 100, "the flush by rows")
        assert lake.row_count("other") == 0


@pytest.mark.acceptance("AT-51")
def test_a_flush_of_one_table_leaves_the_others_alone(tmp_path: Path) -> None:
    oracle = Oracle(tmp_path / "journal")
    with Daemon(tmp_path / "data", NEVER) as daemon, Lake(daemon.data) as lake:
        daemon.start()
        source = Source("s", oracle).declare("t1", "t2", "t3")
        source.add([ledger_event(place, f"t{1 + place % 3}") for place in range(300)])
        deliver(daemon, source)
        done = daemon.run("flush", "t1")
        assert done.returncode == 0, done.stdout + done.stderr
        assert [lake.row_count(table) for table in ("t1", "t2", "t3")] == [100, 0, 0]
        done = daemon.run("flush")
        assert done.returncode == 0, done.stdout + done.stderr
        assert_lake_equals_oracle(lake, oracle)
        assert [len(lake.snapshots(table)) for table in ("t1", "t2", "t3")] == [1, 1, 1]
        done = daemon.run("flush", "nobody_knows_it")
        assert done.returncode != 0
        assert "nobody_knows_it" in done.stdout + done.stderr


@pytest.mark.acceptance("AT-54")
def test_a_commit_whose_answer_was_lost_is_looked_up_and_never_made_twice(tmp_path: Path) -> None:
    """The catalog applies 50 commits, and each time the answer does not arrive."""
    hits = tmp_path / "hits"
    armed = {"DOLAKE_FAILPOINTS": "catalog.after_swap=50*raise(the answer was lost)", "DOLAKE_FAILPOINT_HITS": str(hits)}
    settings = {**NEVER, **armed, "DOLAKE_COMMIT_SNAPSHOTS_KEPT": "1000"}
    oracle = Oracle(tmp_path / "journal")
    with Daemon(tmp_path / "data", settings) as daemon, Lake(daemon.data) as lake:
        daemon.start()
        source = Source("s", oracle).declare("ledger")

        async def scenario() -> None:
            for number in range(50):
                source.add([ledger_event(number * 7 + place) for place in range(7)])
                await source.deliver(url_of(daemon))
                await drain(daemon)

        asyncio.run(asyncio.wait_for(scenario(), 120))
        assert_lake_equals_oracle(lake, oracle)
        found = lake.snapshots("ledger")
        assert len(found) == len({snapshot["summary"]["dolake.commit-id"] for snapshot in found}) == 50
        assert Counter(hits.read_text().split())["catalog.after_swap"] == 50
        assert daemon.run("verify").returncode == 0
