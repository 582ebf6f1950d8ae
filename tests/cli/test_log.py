"""`dolake log init` with real daemons: a lost disk is refused until somebody says that it is lost, and then only that one begins anew."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import shutil
import subprocess
from pathlib import Path

import pytest

from dolake.cli import run
from tests.harness.daemon import Daemon, clean_environment, dolake_command
from tests.harness.history import assert_lake_equals_oracle
from tests.harness.lake import Lake
from tests.harness.oracle import Oracle, ledger_event
from tests.harness.source import Source, batch_message, connect_message, conversation, schema_message
from tests.harness.traffic import drain, url_of


def files_of(*directories: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for directory in directories for path in sorted(directory.rglob("*")) if path.is_file()}


@pytest.mark.acceptance("AT-107")
def test_a_lost_log_begins_anew_when_it_is_given_up_and_its_sources_are_told(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    settings = {"DOLAKE_LOG_DIRECTORIES": f"{one}{os.pathsep}{two}", "DOLAKE_FLUSH_AGE_S": "0.2"}
    oracle = Oracle(tmp_path / "journal")
    with Daemon(tmp_path / "lake", settings) as daemon, Lake(daemon.data) as lake:
        ready = daemon.start().wait_ready()

        async def fill() -> None:
            for name in ("first", "second"):
                source = Source(name, oracle).declare("ledger")
                for n in range(5):
                    source.add([ledger_event(n)])
                await source.deliver(url_of(daemon))
            await drain(daemon)

        asyncio.run(fill())
        logs = {source["source"]: source["log"] for source in json.loads(daemon.run("sources", "--json").stdout)}
        directories = {log["log"]: log["directory"] for log in json.loads(daemon.run("status", "--json").stdout)["logs"]}
        lost, kept = directories[logs["second"]], directories[logs["first"]]
        assert {lost, kept} == {str(one), str(two)}
        while_running = daemon.run("log", "init", lost, "--yes")
        assert while_running.returncode == 5
        assert "a daemon uses this log" in while_running.stderr
        assert daemon.stop() == 0
        shutil.rmtree(lost)
        os.mkdir(lost)

        before = files_of(Path(kept))
        asking = daemon.run("log", "init", lost)
        assert asking.returncode == 2
        assert "--yes: must be given where nobody can be asked" in asking.stderr
        wrong = daemon.run("log", "init", kept, "--yes")
        assert wrong.returncode == 5
        assert "is missed here too" in wrong.stderr
        assert daemon.run("log", "init", str(tmp_path), "--yes").returncode == 2
        assert files_of(Path(kept)) == before
        assert os.listdir(lost) == []

        done = daemon.run("log", "init", lost, "--yes", "--json")
        assert done.returncode == 0, done.stderr
        assert f"log {logs['second']} is given up for good" in done.stderr
        assert "is lost" in done.stderr
        (made,) = json.loads(done.stdout)
        assert (made["directory"], made["givenUp"]) == (lost, logs["second"])
        assert made["log"] not in logs.values()
        again = daemon.run("log", "init", lost, "--yes")
        assert (again.returncode, again.stdout[:18]) == (0, "nothing to give up")

        ready = daemon.start().wait_ready()
        assert {log["log"] for log in json.loads(daemon.run("status", "--json").stdout)["logs"]} == {logs["first"], made["log"]}

        async def come_back() -> None:
            async with conversation(ready.cdc) as talk:
                status = await talk.ask(connect_message("second", last_ack=6))
                assert (status["lastSequence"], status["lost"]) == (-1, {"from": 0, "to": 6})
                # An epoch of its own: rows of the old log and of the new one have no order between them.
                assert (await talk.ask({**schema_message("second", 7, "ledger"), "epoch": "e2"}))["status"] == "ok"
                oracle.sent("second", "e2", 8, [ledger_event(5)])
                assert (await talk.ask(batch_message("second", 8, [ledger_event(5)], "e2")))["status"] == "ok"
                oracle.acked("second", "e2", 8, "ok")
            async with conversation(ready.cdc) as talk:
                status = await talk.ask(connect_message("first", last_ack=6))
                assert (status["lastSequence"], "lost" in status) == (6, False)
            await drain(daemon)

        asyncio.run(come_back())
        assert_lake_equals_oracle(lake, oracle)
        assert daemon.stop() == 0
        assert daemon.run("verify").stdout == "no breach\n"


@pytest.mark.acceptance("AT-107")
@pytest.mark.parametrize(("answer", "code"), [("n", 5), ("y", 0)])
def test_on_a_terminal_it_asks(tmp_path: Path, answer: str, code: int) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    settings = {"DOLAKE_LOG_DIRECTORIES": f"{one}{os.pathsep}{two}"}
    with Daemon(tmp_path / "lake", settings) as daemon:
        daemon.start().wait_ready()
        assert daemon.stop() == 0
        shutil.rmtree(two)
        ours, theirs = pty.openpty()
        try:
            command = [*dolake_command(), "log", "init", str(two), "--data", str(daemon.data)]
            process = subprocess.Popen(
                command, env=clean_environment(settings), stdin=theirs, stdout=subprocess.PIPE, stderr=subprocess.PIPE
            )
            os.write(ours, f"{answer}\n".encode())
            output, errors = process.communicate(timeout=60)
        finally:
            os.close(ours)
            os.close(theirs)
        assert process.returncode == code, errors
        assert b"Go on?" in errors
        assert two.exists() == (answer == "y")
        assert (b"begins here" in output) == (answer == "y")


def test_a_daemon_that_was_never_there_has_nothing_to_give_up(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["log", "init", str(tmp_path / "lake" / "log"), "--data", str(tmp_path / "lake"), "--yes"]) == 0
    assert "nothing to give up" in capsys.readouterr().out
    assert os.listdir(tmp_path) == []
