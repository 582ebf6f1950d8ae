"""A writer that stands still in the middle of a flush, is replaced, and comes to again: nothing is lost or doubled, and it ends fenced.

The lock on the data directory would hold the successor up; it is taken away, as it is for a writer on another machine, which sees
the logs, the catalog and the warehouse and knows nothing of the lock.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.harness.daemon import Daemon, clean_environment, dolake_command, is_running
from tests.harness.history import assert_lake_equals_oracle
from tests.harness.lake import Lake
from tests.harness.oracle import Oracle, ledger_event
from tests.harness.source import Source
from tests.harness.traffic import url_of
from tests.harness.waiting import wait_until

QUICK = {"DOLAKE_FLUSH_AGE_S": "0.1", "DOLAKE_LOG_SEGMENT_BYTES": "64 KiB"}
MOMENTS = ("flush.after_put", "commit.before_swap", "catalog.before_swap", "catalog.after_swap", "flush.after_commit")


@contextlib.contextmanager
def successor(daemon: Daemon, output: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Another writer over the same logs, catalog and warehouse, with nothing armed."""
    (daemon.data / "writer.lock").unlink()
    with output.open("wb") as said:
        process = subprocess.Popen(
            [*dolake_command(), "writer", "--data", str(daemon.data)],
            env=clean_environment(QUICK),
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=said,
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait(30)


def stands_still(pid: int, catalog: Path) -> bool:
    """Stopped, at a moment when none of its other threads is in a transaction: SQLite's lock would hold up everybody."""
    os.kill(pid, signal.SIGSTOP)
    wait_until(lambda: Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T", "the signal to arrive")
    try:
        with contextlib.closing(sqlite3.connect(catalog, timeout=0, isolation_level=None)) as connection:
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("ROLLBACK")
    except sqlite3.OperationalError:
        os.kill(pid, signal.SIGCONT)
        return False
    return True


@pytest.mark.acceptance("AT-54")
@pytest.mark.parametrize("mode", ["changelog", "both"])
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_zombie_writer_loses_to_its_successor(tmp_path: Path, moment: str, mode: str, report: Callable[..., None]) -> None:
    held, hits = tmp_path / "held", tmp_path / "hits"
    armed = {"DOLAKE_FAILPOINTS": f"{moment}=pause({held})", "DOLAKE_FAILPOINT_HITS": str(hits)}
    oracle = Oracle(tmp_path / "journal")
    source = Source("steady", oracle).declare("ledger")
    changes = "ledger__changes" if mode == "both" else "ledger"

    def sent(first: int, count: int) -> None:
        for start in range(first, first + count, 10):
            source.add([ledger_event(start + place) for place in range(10)])
        asyncio.run(asyncio.wait_for(source.deliver(url_of(daemon)), 60))

    with Daemon(tmp_path / "data", {**QUICK, **armed}, mode=mode) as daemon, Lake(daemon.data) as lake:
        zombie = daemon.start().wait_ready().pids["writer"]
        sent(0, 200)
        wait_until(lambda: lake.row_count(changes) == 200, daemon.tail)
        held.touch()
        before = hits.read_text().split().count(moment)
        sent(200, 100)
        wait_until(lambda: hits.read_text().split().count(moment) > before, "the writer to reach the moment")
        wait_until(lambda: stands_still(zombie, daemon.data / "catalog.db"), "the writer to stand still")
        with successor(daemon, tmp_path / "successor") as process:
            wait_until(lambda: lake.row_count(changes) == 300, lambda: (tmp_path / "successor").read_text(), 60)
            sent(300, 100)
            wait_until(lambda: lake.row_count(changes) == 400, lambda: (tmp_path / "successor").read_text(), 60)
            held.unlink()
            os.kill(zombie, signal.SIGCONT)
            sent(400, 100)
            wait_until(lambda: "fenced" in daemon.tail(20_000), lambda: f"the zombie to be fenced\n{daemon.tail()}", 60)
            wait_until(lambda: lake.row_count(changes) == 500, lambda: (tmp_path / "successor").read_text(), 60)
            assert is_running(zombie)
            assert_lake_equals_oracle(lake, oracle, mode=mode)
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0
            done = daemon.run("verify")
            assert done.returncode == 0, done.stdout + done.stderr
            epochs = [int(snapshot["summary"]["dolake.epoch"]) for snapshot in lake.snapshots(changes)]
            assert epochs == sorted(epochs)
            assert len(set(epochs)) == 2
        report(moment=moment, mode=mode, snapshots=len(epochs))
