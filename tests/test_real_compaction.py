"""A real daemon compacts by itself, in processes of its own, while it is written, killed and asked."""

from __future__ import annotations

import asyncio
import json
import random
from pathlib import Path
from typing import Any

import pytest

from tests.harness.daemon import Daemon
from tests.harness.history import assert_lake_equals_oracle
from tests.harness.kills import TARGETS, Killer
from tests.harness.lake import Lake
from tests.harness.oracle import Oracle
from tests.harness.shop_lake import assert_mirrors_are_the_database
from tests.harness.traffic import drain, steady_traffic
from tests.harness.waiting import wait_until
from tests.shop import STREAM

SEND = ("send", str(STREAM), "--source", "shop-db", "--format", "wal2json", "--wait", "persisted", "--json")
EAGER = {
    "DOLAKE_FLUSH_AGE_S": "0.2",
    "DOLAKE_COMPACTION_INTERVAL_S": "0.2",
    "DOLAKE_COMPACTION_INPUTS_MIN": "3",
    "DOLAKE_MAINTENANCE_INTERVAL_S": "0.5",
    "DOLAKE_MAINTENANCE_GRACE_S": "0",
    "DOLAKE_COMMIT_SNAPSHOTS_KEPT": "5",
}


def runs(daemon: Daemon, outcome: str = "done") -> float:
    return daemon.metrics().get(f'dolake_compaction_runs_total{{process="writer",outcome="{outcome}"}}', 0.0) or sum(
        value for name, value in daemon.metrics().items() if name.startswith("dolake_compaction_runs_total") and outcome in name
    )


@pytest.mark.acceptance("AT-63", "AT-108")
def test_the_mirrors_are_the_database_with_few_files_and_commands_say_so(tmp_path: Path) -> None:
    with Daemon(tmp_path / "data", EAGER, mode="mirror") as daemon, Lake(daemon.data) as lake:
        daemon.start()
        sent = daemon.run(*SEND, "--rate", "8000", deadline_s=300)
        assert sent.returncode == 0, sent.stderr + daemon.tail()
        wait_until(lambda: runs(daemon) >= 2, "rewrites by itself", 60)
        dry = daemon.run("compact", "--dry-run", "--json")
        assert dry.returncode == 0, dry.stderr
        assert {one["table"] for one in json.loads(dry.stdout)} >= {"public.orders"}
        nowhere = daemon.run("compact", "public.orders", "--partition", "day=2026-11-28")
        assert nowhere.returncode != 0
        assert "no file of public.orders is in a partition day=2026-11-28: it has no partitions" in nowhere.stderr
        for wrong in (("compact", "--partition", "day=1"), ("compact", "public.orders", "--partition", "day")):
            refused = daemon.run(*wrong)
            assert (refused.returncode, refused.stdout) == (2, ""), refused.stderr
            assert "--partition" in refused.stderr
        done = daemon.run("compact", "--json")
        assert done.returncode == 0, done.stdout + done.stderr
        for table in ("orders", "order_lines"):
            summary = newest(lake, f"public.{table}")["summary"]
            assert int(summary["total-data-files"]) == 1, summary
            assert int(summary.get("total-delete-files", 0)) == 0
        assert_mirrors_are_the_database(lake)
        words = daemon.run("maintenance")
        assert words.returncode == 0, words.stderr
        assert "needed" in words.stdout
        purged = daemon.run("maintenance", "--purge", "--json")
        assert purged.returncode == 0, purged.stdout + purged.stderr
        verified = daemon.run("verify", deadline_s=300)
        assert verified.returncode == 0, verified.stdout + verified.stderr
        assert daemon.stop() == 0
        # The same without a daemon, which claims the tables.
        again = daemon.run("compact", "--json")
        assert again.returncode == 0, again.stdout + again.stderr
        assert all(one["choices"] == [] for one in json.loads(again.stdout))
        assert daemon.run("maintenance", "--purge").returncode == 0
        assert_mirrors_are_the_database(lake)
        verified = daemon.run("verify", deadline_s=300)
        assert verified.returncode == 0, verified.stdout + verified.stderr


def newest(lake: Lake, table: str) -> dict[str, Any]:
    found: dict[str, Any] = max(lake.snapshots(table), key=lambda snapshot: snapshot["sequence-number"])
    return found


@pytest.mark.acceptance("AT-01")
def test_whatever_is_killed_while_it_compacts_acked_events_are_there_once(tmp_path: Path) -> None:
    oracle = Oracle(tmp_path / "journal")
    settings = {**EAGER, "DOLAKE_LOG_SEGMENT_BYTES": "64 KiB"}
    with Daemon(tmp_path / "data", settings) as daemon, Lake(daemon.data) as lake:
        killer = Killer(daemon.start(), random.Random(3))

        async def scenario() -> None:
            async with steady_traffic(daemon, oracle) as traffic:
                for roles in TARGETS:
                    acked = traffic.source.acked + 40
                    await asyncio.to_thread(wait_until, lambda acked=acked: traffic.source.acked >= acked, "some traffic between kills")
                    await asyncio.to_thread(killer.kill, roles)
                await asyncio.to_thread(wait_until, lambda: runs(daemon) >= 1, "a rewrite", 60)
            await drain(daemon)

        asyncio.run(scenario())
        assert daemon.stop() == 0  # Or it goes on to compact, and snapshots expire between two readers.
        assert_lake_equals_oracle(lake, oracle)
        done = daemon.run("verify", deadline_s=300)
        assert done.returncode == 0, done.stdout + done.stderr
