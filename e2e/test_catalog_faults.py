"""A catalog that misbehaves under a running daemon: locked for long, replaced by a copy, gone for a while, its disk full."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from e2e.services.disks import tmpfs
from tests.harness.daemon import Daemon, status
from tests.harness.history import assert_lake_equals_oracle
from tests.harness.lake import Lake
from tests.harness.oracle import Oracle, ledger_event
from tests.harness.posting import post, post_batch
from tests.harness.source import DURABLE, schema_message
from tests.harness.traffic import drain
from tests.harness.waiting import wait_until

QUICK = {"DOLAKE_FLUSH_AGE_S": "0.2"}


class Sender:
    def __init__(self, daemon: Daemon, oracle: Oracle) -> None:
        self.daemon, self.oracle, self.sequence = daemon, oracle, 1
        assert post(self.http, schema_message("s", 1, "ledger")).status == 200

    @property
    def http(self) -> str:
        ready = self.daemon.ready()
        assert ready is not None
        return ready.http

    def send(self) -> str:
        """A batch; the ack's status."""
        self.sequence += 1
        events = [ledger_event(self.sequence * 1000 + place) for place in range(50)]
        self.oracle.sent("s", "", self.sequence, events)
        answer = post(self.http, post_batch("s", self.sequence, events)).answer
        said: str = answer.get("status", "")
        assert said in DURABLE, answer
        self.oracle.acked("s", "", self.sequence, said)
        return said

    def wait_writer(self, code: int) -> None:
        wait_until(lambda: status(self.http + "/ready/writer") == code, lambda: f"/ready/writer to be {code}\n{self.daemon.tail()}", 120)
        assert status(self.http + "/ready") == 200


def copied(path: Path) -> Path:
    target = path.with_suffix(".copy")
    with contextlib.closing(sqlite3.connect(path)) as here, contextlib.closing(sqlite3.connect(target)) as there:
        here.backup(there)
    return target


def locked(path: Path) -> Callable[[], None]:
    """By somebody who will not let go, for longer than SQLite waits; how to let go."""
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    return other.close


def taken_away(path: Path) -> Callable[[], None]:
    hidden = path.with_suffix(".hidden")
    os.replace(path, hidden)
    return lambda: os.replace(hidden, path)


@pytest.mark.parametrize("trouble", [locked, taken_away])
def test_a_catalog_that_is_away_is_waited_for_and_its_return_is_enough(
    tmp_path: Path, trouble: Callable[[Path], Callable[[], None]]
) -> None:
    oracle = Oracle(tmp_path / "journal")
    with Daemon(tmp_path / "data", QUICK) as daemon, Lake(daemon.data) as lake:
        writer = daemon.start().wait_ready().pids["writer"]
        sender = Sender(daemon, oracle)
        sender.send()
        asyncio.run(drain(daemon))
        mend = trouble(daemon.data / "catalog.db")
        try:
            sender.send()
            sender.wait_writer(503)
            wait_until(lambda: sender.send() == "fallback", "acks to say that nothing can be committed", 60)
            circuit = lambda: daemon.metrics().get('dolake_circuit_open_count{part="catalog"}')  # noqa: E731
            wait_until(lambda: circuit() == 1, lambda: f"the circuit to open\n{daemon.tail()}", 120)
        finally:
            mend()
        sender.wait_writer(200)
        asyncio.run(drain(daemon, 120))
        assert_lake_equals_oracle(lake, oracle)
        assert daemon.wait_ready().pids["writer"] == writer
        done = daemon.run("verify")
        assert done.returncode == 0, done.stdout + done.stderr


def test_a_catalog_replaced_by_its_copy_loses_nothing_of_what_comes_after(tmp_path: Path) -> None:
    oracle = Oracle(tmp_path / "journal")
    with Daemon(tmp_path / "data", QUICK) as daemon, Lake(daemon.data) as lake:
        daemon.start().wait_ready()
        sender = Sender(daemon, oracle)
        for _ in range(5):
            sender.send()
            asyncio.run(drain(daemon))
            path = daemon.data / "catalog.db"
            os.replace(copied(path), path)
        sender.send()
        asyncio.run(drain(daemon))
        assert_lake_equals_oracle(lake, oracle)
        assert daemon.stop() == 0
        done = daemon.run("verify")
        assert done.returncode == 0, done.stdout + done.stderr


def test_a_catalog_whose_disk_is_full_goes_on_when_there_is_room(tmp_path: Path) -> None:
    """The log and the warehouse are elsewhere."""
    oracle = Oracle(tmp_path / "journal")
    with tmpfs(tmp_path / "small", 4 << 20) as disk:
        settings = {
            **QUICK,
            "DOLAKE_LOG_DIRECTORIES": str(tmp_path / "log"),
            "DOLAKE_WAREHOUSE_URI": f"file://{tmp_path}/warehouse",
            "DOLAKE_LOG_SEGMENT_BYTES": "1 MiB",
        }
        with Daemon(disk / "data", settings) as daemon, Lake(daemon.data) as lake:
            daemon.start().wait_ready()
            sender = Sender(daemon, oracle)
            sender.send()
            asyncio.run(drain(daemon))
            filler = disk / "filler"
            with open(filler, "wb", buffering=0) as file, contextlib.suppress(OSError):
                while True:
                    file.write(b"\0" * 4096)
            sender.send()
            sender.wait_writer(503)
            assert sender.send() in ("fallback", "ok")
            filler.unlink()
            sender.wait_writer(200)
            asyncio.run(drain(daemon, 120))
            assert_lake_equals_oracle(lake, oracle)
            done = daemon.run("verify")
            assert done.returncode == 0, done.stdout + done.stderr
