"""Mirrors of a real database under kill -9, with key indexes that are lost, cut or old; and in flushes of a hundred rows."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from urllib.request import Request, urlopen

import pytest

from e2e.test_kill import send, wal_bytes
from tests.harness.daemon import Daemon
from tests.harness.kills import Killer, percentile
from tests.harness.lake import Lake
from tests.harness.ports import free_port
from tests.harness.shop_lake import assert_every_snapshot_is_the_fold, assert_mirrors_are_the_database
from tests.harness.waiting import wait_until
from tests.shop import EVENT_COUNT, KEYS, STREAM

ALL_SNAPSHOTS = {"DOLAKE_COMMIT_SNAPSHOTS_KEPT": "10000"}
MOMENTS = (
    *("index.load", "index.read", "index.at_head"),
    *("flush.after_letters", "flush.after_put", "flush.after_commit", "catalog.after_swap"),
)
QUICK = {**ALL_SNAPSHOTS, "DOLAKE_FLUSH_AGE_S": "0.2", "DOLAKE_LOG_SEGMENT_BYTES": "1 MiB"}


@pytest.mark.acceptance("AT-56")
def test_every_snapshot_of_flushes_of_a_hundred_rows_is_the_fold(tmp_path: Path, report: Callable[..., None]) -> None:
    settings = {**ALL_SNAPSHOTS, "DOLAKE_FLUSH_AGE_S": "3600", "DOLAKE_FLUSH_ROWS": "100"}
    with Daemon(tmp_path / "data", settings, mode="both") as daemon, Lake(daemon.data) as lake:
        daemon.start()
        command = ("send", str(STREAM), "--source", "shop", "--format", "wal2json", "--batch-events", "50", "--rate", "2000")
        sent = daemon.run(*command, "--wait", "persisted", "--json", deadline_s=300)
        assert sent.returncode == 0, sent.stderr + daemon.tail()
        assert json.loads(sent.stdout)["events"] == EVENT_COUNT
        assert_mirrors_are_the_database(lake)
        snapshots = {table: assert_every_snapshot_is_the_fold(lake, table) for table in KEYS}
        assert sum(snapshots.values()) > 100
        report(**snapshots)


@pytest.mark.acceptance("AT-56")
def test_mirrors_under_kills_with_lost_cut_and_old_indexes(tmp_path: Path, rounds: int, report: Callable[..., None]) -> None:
    """50 runs at full size: each with one to three kills of anything, and whatever may happen to the indexes after each."""
    recoveries: list[float] = []
    snapshots, damages = 0, Counter[str]()
    for run in range(max(2, rounds * 5 // 2)):
        chance = random.Random(run)
        with Daemon(tmp_path / f"run-{run}", QUICK, mode="both", port=free_port()) as daemon, Lake(daemon.data) as lake:
            killer = Killer(daemon.start(), chance)
            sender = send(daemon)
            try:
                for _ in range(chance.randrange(1, 4)):
                    wait_for_traffic(daemon, sender, chance.randrange(1, 6_000_000))
                    killer.kill_something()
                    daemon.stop()  # Indexes of small tables are saved when a writer stops in order.
                    damages[damage(daemon.data / "index", tmp_path / f"old-{run}", chance)] += 1
                    daemon.start()
                assert sender.wait(300) == 0, (tmp_path / f"run-{run}.send").read_text() + daemon.tail()
            finally:
                sender.kill()
                sender.wait()
            assert_mirrors_are_the_database(lake)
            snapshots += sum(assert_every_snapshot_is_the_fold(lake, table) for table in KEYS)
            verified = daemon.run("verify", deadline_s=120)
            assert verified.returncode == 0, verified.stdout + verified.stderr
            recoveries += killer.recoveries_s
    report(
        runs=max(2, rounds * 5 // 2),
        kills=len(recoveries),
        snapshots=snapshots,
        damages=dict(damages),
        ready_again_s_p95=percentile(recoveries, 95),
    )


@pytest.mark.acceptance("AT-53")
@pytest.mark.parametrize(
    "point",
    ["index.at_head", "index.load", "index.read", "flush.after_letters", "flush.after_put", "catalog.after_swap", "flush.after_commit"],
)
def test_a_kill_at_this_moment_of_a_mirrors_flush_changes_nothing(tmp_path: Path, point: str, rounds: int) -> None:
    """Letters are provoked by updates that name a value as unchanged, of rows that are not there."""
    trigger = tmp_path / "kill"
    settings = {**QUICK, "DOLAKE_FAILPOINTS": f"{point}=kill({trigger})"}
    with Daemon(tmp_path / "data", settings, mode="both", port=free_port()) as daemon, Lake(daemon.data) as lake:
        daemon.start()
        sender = send(daemon, rate=3_000)
        try:
            for number in range(rounds):
                wait_for_traffic(daemon, sender, 200_000)
                wait_until(lambda: lake.snapshots("public.customers"), "the first flush", 60)
                before = daemon.wait_ready()
                trigger.touch()
                if point == "flush.after_letters":
                    refused_update(daemon, number)
                elif point == "index.read":  # Whoever begins without a saved index reads the table.
                    daemon.kill("writer")
                wait_until(lambda: not trigger.exists(), f"{point} to be reached", 60)
                daemon.wait_replaced(before, "writer")
            assert sender.wait(300) == 0, (tmp_path / "data.send").read_text() + daemon.tail()
        finally:
            sender.kill()
            sender.wait()
        assert daemon.run("flush").returncode == 0
        assert_mirrors_are_the_database(lake)
        for table in KEYS:
            assert_every_snapshot_is_the_fold(lake, table)
        if point == "flush.after_letters":
            found = lake.read_duckdb("dolake.dead_letters").to_pylist()
            assert sorted((letter["table_name"], letter["_cdc_source"], letter["reason"]) for letter in found) == sorted(
                ("default.large", f"refused-{number}", "unchanged_without_row") for number in range(rounds)
            )


def refused_update(daemon: Daemon, number: int) -> None:
    event = {
        "sequence": 0,
        "timestamp": 1767225600000,
        "operation": "UPDATE",
        "table": "large",
        "rowId": f"{number}",
        "after": {"n": number},
        "metadata": {"unchanged": ["text"]},
    }
    body = {"sourceDoId": f"refused-{number}", "sequenceNumber": 0, "events": [event]}
    request = Request(f"{daemon.wait_ready().http}/cdc", json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urlopen(request, timeout=30) as answer:
        assert json.load(answer)["status"] == "ok"


def wait_for_traffic(daemon: Daemon, sender: subprocess.Popen[bytes], grown: int) -> None:
    before = wal_bytes(daemon)
    wait_until(lambda: sender.poll() is not None or wal_bytes(daemon) > before + grown, "traffic", 60)


def damage(indexes: Path, old: Path, chance: random.Random) -> str:
    """Takes all indexes away, cuts some of their files, or puts older ones back, which were right once."""
    choice = chance.choice(["lost", "cut", "old"])
    if not indexes.exists():  # The writer was killed before there was anything to index, and has not committed since.
        return "none yet"
    if choice == "lost":
        shutil.rmtree(indexes)
    elif choice == "cut":
        for path in [path for path in sorted(indexes.rglob("*")) if path.is_file()][:: chance.randrange(1, 4)]:
            whole = path.read_bytes()
            path.write_bytes(whole[: chance.randrange(len(whole) + 1)])
    elif old.exists():
        shutil.rmtree(indexes)
        shutil.copytree(old, indexes)
    else:
        shutil.copytree(indexes, old)
    return choice
