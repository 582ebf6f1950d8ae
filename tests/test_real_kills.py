"""Each part of a real daemon killed once under traffic, with a reader looking on. The many rounds are in e2e/."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest

from tests.harness.daemon import Daemon, is_running
from tests.harness.history import assert_lake_equals_oracle
from tests.harness.kills import TARGETS, Killer
from tests.harness.lake import Lake
from tests.harness.oracle import Oracle
from tests.harness.reader import PollingReader
from tests.harness.traffic import drain, steady_traffic
from tests.harness.waiting import wait_until

SETTINGS = {"DOLAKE_FLUSH_AGE_S": "0.2", "DOLAKE_LOG_SEGMENT_BYTES": "64 KiB"}


@pytest.mark.acceptance("AT-01", "AT-53")
def test_whatever_is_killed_acked_events_are_there_once(tmp_path: Path) -> None:
    oracle = Oracle(tmp_path / "journal")
    with (
        Daemon(tmp_path / "data", SETTINGS) as daemon,
        Lake(daemon.data) as lake,
        PollingReader(daemon.data, "ledger", oracle) as reader,
    ):
        killer = Killer(daemon.start(), random.Random(1))

        async def scenario() -> None:
            async with steady_traffic(daemon, oracle) as traffic:
                for roles in TARGETS:
                    acked = traffic.source.acked + 20
                    await asyncio.to_thread(wait_until, lambda acked=acked: traffic.source.acked >= acked, "some traffic between kills")
                    await asyncio.to_thread(killer.kill, roles)
                # Or what it has to say would be of the end alone.
                await asyncio.to_thread(
                    wait_until, lambda: len(reader.seen_counts) > 1 or reader.findings, "the reader to see the table grow"
                )
            await drain(daemon)

        asyncio.run(scenario())
        assert_lake_equals_oracle(lake, oracle)
        assert reader.close() == []
        assert len(reader.seen_counts) > 1
        done = daemon.run("verify")
        assert done.returncode == 0, done.stdout + done.stderr
        assert daemon.stop() == 0


def test_a_writer_that_can_report_no_more_is_started_again(tmp_path: Path) -> None:
    """Else it would go on, and nothing would be trimmed, nobody hear what is persisted, no flush that is asked for be answered."""
    broken = tmp_path / "broken"
    with Daemon(tmp_path / "data", {**SETTINGS, "DOLAKE_FAILPOINTS": f"flush.before_report=errno(EIO, {broken})"}) as daemon:
        before = daemon.start().wait_ready()
        broken.touch()
        wait_until(lambda: not is_running(before.pids["writer"]), lambda: f"the writer to end\n{daemon.tail()}")
        broken.unlink()
        daemon.wait_replaced(before, "writer")


def test_children_do_not_outlive_a_supervisor_that_was_killed(tmp_path: Path) -> None:
    with Daemon(tmp_path / "data", SETTINGS) as daemon:
        before = daemon.start().wait_ready()
        daemon.kill("supervisor")
        daemon.wait_children_gone(before)
