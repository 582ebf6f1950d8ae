"""A real database's change stream into mirrors: every one of them is the database's table, in every snapshot of its history."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import zstandard

from tests.debezium import Rewriter
from tests.harness.daemon import Daemon
from tests.harness.lake import Lake
from tests.harness.shop_lake import assert_every_snapshot_is_the_fold, assert_mirrors_are_the_database
from tests.shop import EVENT_COUNT, KEYS, STREAM, stream_lines

SEND = ("send", str(STREAM), "--source", "shop-db", "--format", "wal2json", "--wait", "persisted", "--json")


@pytest.mark.acceptance("AT-56")
@pytest.mark.parametrize(("flush_rows", "rate"), [(5_000, "12000"), (1_000_000, "0")], ids=["flushes of 5,000", "one flush"])
def test_the_mirrors_are_the_database_in_every_snapshot(tmp_path: Path, flush_rows: int, rate: str) -> None:
    settings = {"DOLAKE_FLUSH_AGE_S": "3600", "DOLAKE_FLUSH_ROWS": str(flush_rows), "DOLAKE_COMMIT_SNAPSHOTS_KEPT": "10000"}
    with Daemon(tmp_path / "data", settings, mode="both") as daemon, Lake(daemon.data) as lake:
        daemon.start()
        sent = daemon.run(*SEND, *(("--rate", rate) if rate != "0" else ()), deadline_s=300)
        assert sent.returncode == 0, sent.stderr + daemon.tail()
        assert json.loads(sent.stdout)["events"] == EVENT_COUNT
        assert_mirrors_are_the_database(lake)
        snapshots = [assert_every_snapshot_is_the_fold(lake, table) for table in KEYS]
        assert (sum(snapshots) > 8) == (flush_rows == 5_000)
        verified = daemon.run("verify", "--against", "log", "--json", deadline_s=300)
        assert verified.returncode == 0, verified.stdout + verified.stderr
        said = json.loads(verified.stdout)
        assert (said["breaches"], said["notes"], said["compared"]["rows"]) == ([], [], EVENT_COUNT)
        assert (said["compared"]["events"], said["compared"]["unknown_values"]) == (2 * EVENT_COUNT, 0)


def test_debezium_gives_the_same_mirrors(tmp_path: Path) -> None:
    file = tmp_path / "shop.debezium.ndjson.zst"
    with zstandard.open(file, "wb") as packed:
        for line in Rewriter().lines(stream_lines()):
            packed.write(line + b"\n")
    with Daemon(tmp_path / "data", {"DOLAKE_FLUSH_AGE_S": "0.5"}, mode="mirror") as daemon, Lake(daemon.data) as lake:
        daemon.start()
        command = ("send", str(file), "--source", "shop-debezium", "--format", "debezium", "--wait", "persisted", "--json")
        sent = daemon.run(*command, deadline_s=300)
        assert sent.returncode == 0, sent.stderr + daemon.tail()
        assert_mirrors_are_the_database(lake)
