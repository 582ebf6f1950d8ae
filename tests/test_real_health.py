"""Health and readiness of a real `dolake serve` through everything that may be down: each flips, with its reason, and back."""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.harness.daemon import Daemon, listening_ports, said, status
from tests.harness.oracle import ledger_event
from tests.harness.posting import post, post_batch
from tests.harness.source import flush, schema_message
from tests.harness.waiting import wait_until


def wait_unready(daemon: Daemon, path: str, word: str) -> None:
    """Until `path` is a 503 with a reason that holds `word`; `/health` stays 200 all the while."""
    ready = daemon.ready()
    assert ready is not None

    def unready() -> bool:
        assert status(ready.http + "/health") == 200
        code, body, later = said(ready.http + path)
        if code == 200:
            assert body["ready"] is True
            return False
        assert (code, body["ready"], later) == (503, False, "1")
        assert body["reasons"]
        return any(word in reason for reason in body["reasons"])

    wait_until(unready, lambda: f"{path} to say {word!r}, not {said(ready.http + path)}\n{daemon.tail()}", 60)


def wait_both_ready(daemon: Daemon) -> None:
    ready = daemon.ready()
    assert ready is not None

    def both() -> list[Any]:
        return [said(ready.http + path) for path in ("/ready", "/ready/writer")]

    closed = {"state": "closed", "failures": 0, "failingSeconds": 0.0, "nextTrySeconds": None, "code": "", "reason": ""}
    writer = {"ready": True, "reasons": [], "stopped": [], "circuits": {"store": closed, "catalog": closed}}
    well = [(200, {"ready": True, "reasons": []}, None), (200, writer, None)]
    wait_until(lambda: both() == well, lambda: f"readiness, not {both()}\n{daemon.tail()}", 60)


@pytest.mark.acceptance("AT-101", "AT-102")
def test_while_the_log_is_recovered_nothing_can_be_acked_and_everybody_is_told(tmp_path: Path) -> None:
    held = tmp_path / "held"
    with Daemon(tmp_path / "data", {"DOLAKE_FAILPOINTS": f"recover.scan=pause({held})"}) as daemon:
        ready = daemon.start().wait_ready()
        assert post(ready.http, schema_message("s", 1, "ledger")).summary == (200, 1, "ok")
        held.touch()
        daemon.kill("ingest")
        wait_unready(daemon, "/ready", "the ingest half does not answer")
        wait_unready(daemon, "/ready/writer", "the ingest half does not answer")
        refused = post(ready.http, post_batch("s", 2, [ledger_event(1)]))
        assert refused.summary == (503, 0, "degraded")
        assert (refused.answer["shouldRetry"], refused.answer["retryDelayMs"], refused.headers["retry-after"]) == (True, 1000, "1")
        assert "the ingest half is not there: it is starting, or recovering its logs" in refused.answer["errorMessage"]
        held.unlink()
        wait_both_ready(daemon)
        assert post(ready.http, post_batch("s", 2, [ledger_event(1)])).summary == (200, 2, "ok")


@pytest.mark.acceptance("AT-101")
def test_a_directory_that_fails_takes_readiness_to_ack_with_it_and_the_others_serve(tmp_path: Path) -> None:
    disks, broken = [tmp_path / "disk-0", tmp_path / "disk-1"], tmp_path / "broken"
    points = ";".join(f"{point}@{disks[0]}=errno(EIO, {broken})" for point in ("wal.before_sync", "recover.scan"))
    settings = {"DOLAKE_FAILPOINTS": points, "DOLAKE_LOG_DIRECTORIES": os.pathsep.join(map(str, disks))}
    with Daemon(tmp_path / "data", settings) as daemon:
        ready = daemon.start().wait_ready()
        for source in ("a", "b"):
            assert post(ready.http, schema_message(source, 1, "ledger")).summary == (200, 1, "ok")
        broken.touch()
        answers = {source: post(ready.http, post_batch(source, 2, [ledger_event(1)])).summary for source in ("a", "b")}
        assert sorted(answers.values()) == [(200, 2, "ok"), (503, 2, "degraded")]
        wait_unready(daemon, "/ready", str(disks[0]))
        assert said(ready.http + "/ready/writer")[0] == 200
        (well,) = (source for source, answer in answers.items() if answer[0] == 200)
        assert post(ready.http, post_batch(well, 3, [ledger_event(2)])).summary == (200, 3, "ok")
        broken.unlink()
        wait_both_ready(daemon)
        (ill,) = answers.keys() - {well}
        assert post(ready.http, post_batch(ill, 2, [ledger_event(1)])).summary in [(200, 2, "ok"), (200, 2, "duplicate")]


@pytest.mark.acceptance("AT-101")
@pytest.mark.parametrize("is_busy", [False, True], ids=["idle", "with rows to flush"])
@pytest.mark.parametrize("part", ["store", "catalog"])
def test_without_store_or_catalog_acks_go_on_and_commits_are_told_to_wait(tmp_path: Path, part: str, is_busy: bool) -> None:
    with Daemon(tmp_path / "data", {"DOLAKE_FLUSH_AGE_S": "0.2"}) as daemon:
        ready = daemon.start().wait_ready()
        assert post(ready.http, schema_message("s", 1, "ledger")).summary == (200, 1, "ok")
        assert asyncio.run(flush(ready.cdc))["success"] is True
        heal = BREAK[part](daemon.data)
        if is_busy:
            assert post(ready.http, post_batch("s", 2, [ledger_event(1)])).status == 200
        wait_unready(daemon, "/ready/writer", f"the {part} does not answer")
        assert said(ready.http + "/ready") == (200, {"ready": True, "reasons": []}, None)
        assert daemon.metrics()[f"dolake_{part}_up_count"] == 0
        assert post(ready.http, post_batch("t", 7, [])).summary == (200, 7, "fallback")
        heal()
        wait_both_ready(daemon)
        wait_until(lambda: daemon.metrics()[f"dolake_{part}_up_count"] == 1, "the metric to follow")
        assert asyncio.run(flush(ready.cdc))["success"] is True


def break_store(data: Path) -> Callable[[], None]:
    """A file where the warehouse was: nothing below it can be reached, by root neither."""
    away = data / "warehouse.away"
    (data / "warehouse").rename(away)
    (data / "warehouse").touch()

    def heal() -> None:
        (data / "warehouse").unlink()
        away.rename(data / "warehouse")

    return heal


def break_catalog(data: Path) -> Callable[[], None]:
    """Somebody holds the catalog's file and does not let go."""
    holder = sqlite3.connect(data / "catalog.db", isolation_level=None, check_same_thread=False)
    holder.execute("BEGIN EXCLUSIVE")

    def heal() -> None:
        holder.execute("ROLLBACK")
        holder.close()

    return heal


BREAK = {"store": break_store, "catalog": break_catalog}


@pytest.mark.acceptance("AT-101")
def test_a_writer_that_cannot_come_up_says_why_while_batches_are_acked(tmp_path: Path) -> None:
    """Its object store is a closed port: nobody is there from the beginning."""
    settings = {
        "DOLAKE_WAREHOUSE_URI": "s3://lake/warehouse",
        "DOLAKE_S3_ENDPOINT": "http://127.0.0.1:1",
        "DOLAKE_S3_ACCESS_KEY": "key",
        "DOLAKE_S3_SECRET_KEY": "secret",
    }
    with Daemon(tmp_path / "data", settings) as daemon:
        daemon.start(wait=False)
        ports = wait_until(lambda: two(listening_ports(daemon.supervisor)), "the supervisor's sockets")
        http = f"http://127.0.0.1:{ports[1]}"
        wait_until(lambda: status(http + "/ready") == 200, lambda: f"readiness to ack\n{daemon.tail()}", 60)
        wait_until(
            lambda: any("127.0.0.1:1" in reason for reason in said(http + "/ready/writer")[1]["reasons"]),
            lambda: f"the writer's own words, not {said(http + '/ready/writer')}\n{daemon.tail()}",
            60,
        )
        code, body, _ = said(http + "/ready/writer")
        assert (code, body["stopped"]) == (503, [])
        assert body["reasons"][0].startswith("the writer half is not connected: ")
        assert status(http + "/health") == 200
        assert post(http, schema_message("s", 1, "ledger")).summary == (200, 1, "ok")


def two(ports: list[int]) -> list[int]:
    return ports if len(ports) == 2 else []
