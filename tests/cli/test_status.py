"""`dolake status` and `dolake sources`: what they say of a real daemon is what was sent; without one, what its files hold."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dolake.cli import run
from dolake.cli.standing import log_from_files, with_rates
from dolake.model import TableName
from dolake.storage.disk import LocalDisk
from tests.harness.daemon import Daemon, clean_environment, dolake_command
from tests.harness.oracle import ledger_event
from tests.harness.source import batch_message, connect_message, conversation, flush, schema_message
from tests.harness.waiting import wait_until

LOG = {"directory", "log", "serving", "trouble", "low", "syncedEnd", "backlogBytes", "backlogBytesMax"}
SOURCE = {
    *("source", "log", "epoch", "lastSequence", "lastEventSequence", "lastLsn", "persistedSequence", "pendingBatches", "connected"),
}
TABLE = {"table", "mode", "rows", "pendingRows", "uncommittedEvents", "uncommittedSeconds", "state", "offsets", "stopped"}
STATUS = {"time", "data", "running", "addresses", "processes", "ready", "readyWriter", "logs", "sources", "tables", "counts", "rates"}


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    """Rows stay uncommitted until somebody asks."""
    with Daemon(tmp_path / "lake", {"DOLAKE_FLUSH_AGE_S": "3600"}) as running:
        running.start().wait_ready()
        yield running


async def send(url: str, source: str, first: int, batches: int, *, epoch: str = "", declare: bool = True) -> None:
    async with conversation(url) as talk:
        await talk.ask(connect_message(source, epoch=epoch))
        if declare:
            answer = await talk.ask(schema_message(source, first - 1, "ledger") | ({"epoch": epoch} if epoch else {}))
            assert answer["type"] == "ack", answer
        for sequence in range(first, first + batches):
            events = [{**ledger_event(sequence * 10 + n).to_wire(), "metadata": {"lsn": f"0/{sequence:X}"}} for n in range(3)]
            numbers = {"firstEventSequence": events[0]["sequence"], "lastEventSequence": events[-1]["sequence"]}
            answer = await talk.ask({**batch_message(source, sequence, [], epoch, **numbers), "events": events})
            assert answer["type"] == "ack", answer


def asked(daemon: Daemon, *arguments: str, code: int = 0) -> Any:
    done = daemon.run(*arguments, "--json")
    assert done.returncode == code, done.stderr
    return json.loads(done.stdout)


@pytest.mark.acceptance("AT-103", "AT-107")
def test_what_is_said_is_what_was_sent(daemon: Daemon) -> None:
    ready = daemon.ready()
    assert ready is not None
    asyncio.run(send(ready.cdc, "shop", 5, 4, epoch="e1"))
    asyncio.run(flush(ready.cdc))
    asyncio.run(send(ready.cdc, "shop", 9, 2, epoch="e1", declare=False))
    asyncio.run(send(ready.cdc, "other", 1, 1))

    def settled() -> Any:
        said = asked(daemon, "status")
        return said if said["tables"] and said["tables"][0]["uncommittedEvents"] == 9 else None

    said = wait_until(settled, "the writer to have read everything")
    assert set(said) == STATUS
    assert said["running"] is True
    assert (said["addresses"], said["data"]) == ({"cdc": ready.cdc, "http": ready.http}, str(daemon.data))
    assert said["processes"] == {role: {"pid": ready.pids[role], "running": True} for role in ("ingest", "writer", "http")}
    assert said["ready"] == {"ready": True, "reasons": []}
    circuits = said["readyWriter"].pop("circuits")
    assert said["readyWriter"] == said["ready"]
    assert {part: circuit["state"] for part, circuit in circuits.items()} == {"store": "closed", "catalog": "closed"}
    (log,) = said["logs"]
    assert set(log) == LOG
    assert (log["serving"], log["trouble"], log["low"], log["syncedEnd"]) == (True, "", 5, 9)
    assert 0 < log["backlogBytes"] < log["backlogBytesMax"]
    shop = next(source for source in said["sources"] if source["source"] == "shop")
    assert shop == {
        "source": "shop",
        "log": log["log"],
        "epoch": "e1",
        "lastSequence": 10,
        "lastEventSequence": 102,
        "lastLsn": "0/A",
        "persistedSequence": 8,
        "pendingBatches": 2,
        "connected": False,
    }
    (table,) = said["tables"]
    assert set(table) == TABLE
    assert (table["table"], table["mode"], table["rows"]) == ("default.ledger", "changelog", 12)
    assert (table["offsets"], table["stopped"]) == ({log["log"]: 5}, None)
    assert table["pendingRows"] == 9
    assert table["uncommittedSeconds"] > 0
    assert said["counts"] == {"ackedEvents": 21, "committedEvents": 12}
    assert asked(daemon, "sources") == said["sources"]
    shown = daemon.run("status").stdout
    for part in (ready.cdc, "can ack     yes", "can commit  yes", "shop", "0/A", "default.ledger"):
        assert part in shown


@pytest.mark.acceptance("AT-107")
def test_without_a_daemon_the_files_say_it_and_status_ends_with_3(daemon: Daemon) -> None:
    ready = daemon.ready()
    assert ready is not None
    asyncio.run(send(ready.cdc, "shop", 5, 4, epoch="e1"))
    asyncio.run(flush(ready.cdc))
    asyncio.run(send(ready.cdc, "shop", 9, 2, epoch="e1", declare=False))
    before = asked(daemon, "sources")
    daemon.kill()
    files = {path: path.stat().st_mtime_ns for path in (daemon.data / "log").iterdir()}
    done = daemon.run("status", "--json")
    said = json.loads(done.stdout)
    assert done.returncode == 3
    assert "no daemon answers" in done.stderr
    assert set(said) == STATUS
    assert said["running"] is False
    assert not any(process["running"] for process in said["processes"].values())
    (log,) = said["logs"]
    assert set(log) == LOG
    assert (log["serving"], log["low"], log["syncedEnd"]) == (False, 5, 7)
    assert log["backlogBytes"] > 0
    (table,) = said["tables"]
    assert (table["offsets"], table["uncommittedEvents"], table["uncommittedSeconds"]) == ({log["log"]: 5}, 6, None)
    shop = next(source for source in said["sources"] if source["source"] == "shop")
    assert set(shop) == SOURCE
    assert (shop["lastSequence"], shop["persistedSequence"], shop["pendingBatches"], shop["connected"]) == (10, 8, 2, False)
    assert said["sources"] == [{**source, "connected": False} for source in before if source["source"] == "shop"]
    assert {path: path.stat().st_mtime_ns for path in (daemon.data / "log").iterdir()} == files, "only read"
    listed = daemon.run("sources")
    assert listed.returncode == 0
    assert "shop" in listed.stdout
    assert "no daemon answers" in listed.stderr


def behind(daemon: Daemon, *, code: int = 0) -> dict[str, tuple[int | None, float | None]]:
    """How far each table is behind: events, seconds."""
    said = asked(daemon, "status", code=code)["tables"]
    return {table["table"]: (table["uncommittedEvents"], table["uncommittedSeconds"]) for table in said}


def test_how_far_a_table_is_behind_grows_with_what_is_not_committed_and_ends_with_the_flush(daemon: Daemon) -> None:
    ready = daemon.ready()
    assert ready is not None
    asyncio.run(send(ready.cdc, "shop", 5, 4))
    said = wait_until(lambda: (now := behind(daemon)) and now["default.ledger"][0] == 12 and now, "12 events to be behind")
    first_s = said["default.ledger"][1]
    assert first_s is not None
    wait_until(lambda: (behind(daemon)["default.ledger"][1] or 0.0) > first_s + 1, "the oldest of them to grow older")
    shown = next(line for line in daemon.run("status").stdout.splitlines() if "default.ledger" in line).split()
    assert shown[1:5] == ["changelog", "0", "12", "12"], "mode, rows, pending, uncommitted"
    assert (float(shown[5]) > first_s, shown[6]) == (True, "s")
    os.kill(daemon.supervisor, signal.SIGSTOP)
    try:
        daemon.kill("writer")
        wait_until(lambda: not asked(daemon, "status")["processes"]["writer"]["running"], "the writer to be away")
        assert behind(daemon) == {"default.ledger": (None, None)}, "nobody measures it"
        asyncio.run(send(ready.cdc, "shop", 9, 1, declare=False))
    finally:
        os.kill(daemon.supervisor, signal.SIGCONT)
    wait_until(lambda: behind(daemon).get("default.ledger", (0, 0))[0] == 15, "another writer to read them again")
    asyncio.run(flush(ready.cdc))
    wait_until(lambda: behind(daemon) == {"default.ledger": (0, 0.0)}, "nothing to be behind")
    daemon.kill()
    assert behind(daemon, code=3) == {"default.ledger": (0, None)}, "a table that is level is shown too"
    ready = daemon.start().wait_ready()
    asyncio.run(send(ready.cdc, "shop", 10, 1, declare=False))
    daemon.kill()
    assert behind(daemon, code=3) == {"default.ledger": (3, None)}, "counted from the files"


def test_a_table_that_was_never_committed_is_found_in_the_files(daemon: Daemon) -> None:
    ready = daemon.ready()
    assert ready is not None
    asyncio.run(send(ready.cdc, "shop", 5, 2))
    daemon.kill()
    assert behind(daemon, code=3) == {"default.ledger": (6, None)}


@pytest.mark.acceptance("AT-107")
def test_a_watch_goes_on_until_interrupted_and_knows_rates(daemon: Daemon) -> None:
    ready = daemon.ready()
    assert ready is not None
    command = [*dolake_command(), "status", "--watch", "--json", "--interval", "0.1", "--data", str(daemon.data)]
    process = subprocess.Popen(command, env=clean_environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        first, second = json.loads(process.stdout.readline()), json.loads(process.stdout.readline())
        assert (first["rates"], second["rates"]["ackedEventsPerSecond"]) == (None, 0)
        asyncio.run(send(ready.cdc, "shop", 5, 4))
        rates = iter(lambda: json.loads(process.stdout.readline())["rates"]["ackedEventsPerSecond"], -1)
        assert next(rate for rate in rates if rate) > 0
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
        assert (process.returncode, errors) == (130, "")
    finally:
        process.kill()
        process.wait()


def test_a_directory_that_is_not_there_is_a_usage_mistake(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("status", "sources"):
        assert run([command, "--data", str(tmp_path / "nothing")]) == 2
        captured = capsys.readouterr()
        assert "data: must be a data directory of dolake" in captured.err
        assert captured.out == ""
    assert os.listdir(tmp_path) == []


def test_an_empty_data_directory_has_nothing_to_show(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["sources", "--data", str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == []
    assert run(["status", "--data", str(tmp_path)]) == 3
    assert "there is no log here" in capsys.readouterr().out
    assert os.listdir(tmp_path) == []


def test_a_log_that_is_not_there_is_told() -> None:
    log, sources, uncommitted = log_from_files(LocalDisk(), "/nonexistent/log", {}, lambda source, text: TableName.parse(text))
    assert (log["trouble"], log["syncedEnd"], sources, uncommitted) == ("there is no log here", None, [], {})


@pytest.mark.parametrize(
    ("then", "now", "rate"),
    [((0, 10), (2000, 30), 10.0), ((0, 10), (2000, 5), None), ((0, None), (2000, 5), None), ((0, 5), (2000, None), None)],
)
def test_rates_are_known_only_between_two_looks_at_one_process(then: Any, now: Any, rate: float | None) -> None:
    looks = [{"time": time, "counts": {"ackedEvents": count, "committedEvents": count}, "rates": None} for time, count in (then, now)]
    assert with_rates(looks[1], looks[0])["rates"] == {"seconds": 2.0, "ackedEventsPerSecond": rate, "committedEventsPerSecond": rate}
    assert with_rates(looks[1], None)["rates"] is None
