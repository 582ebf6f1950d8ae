"""How commands end: the exit code, what is on stdout and what on stderr, whatever becomes of input, daemon or reader."""

from __future__ import annotations

import gzip
import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.harness.access import new_token, section
from tests.harness.daemon import Daemon, clean_environment, dolake_command
from tests.harness.lake import Lake
from tests.harness.waiting import wait_until

ROW_COUNT = 10_000
SUMMARY = {"events", "batches", "skipped", "duplicates", "lsn", "bad", "bad_lines", "passed_over", "seconds"}


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    with Daemon(tmp_path_factory.mktemp("ends") / "data", {"DOLAKE_FLUSH_AGE_S": "0.2"}) as daemon:
        yield daemon.start()


@pytest.fixture
def lake(daemon: Daemon) -> Iterator[Lake]:
    with Lake(daemon.data) as lake:
        yield lake


def rows(count: int) -> bytes:
    return b"".join(b'{"id":%d}\n' % number for number in range(count))


def command(daemon: Daemon, *arguments: str) -> list[str]:
    return [*dolake_command(), *arguments, "--data", str(daemon.data)]


def send_rows(daemon: Daemon, file: str, table: str, *more: str) -> list[str]:
    return command(daemon, "send", file, "--source", table, "--format", "rows", "--table", table, "--json", *more)


def summary_of(stdout: str) -> dict[str, Any]:
    """Stdout is one JSON object and nothing else."""
    summary: dict[str, Any] = json.loads(stdout)
    assert summary.keys() == SUMMARY
    return summary


def ids(lake: Lake, table: str) -> list[int]:
    location = lake.metadata_location(table)
    return [] if location is None else [row[0] for row in lake.query(f"SELECT id FROM iceberg_scan('{location}') ORDER BY id")]


@pytest.mark.acceptance("AT-107")
def test_ten_thousand_rows(daemon: Daemon, lake: Lake, tmp_path: Path) -> None:
    (tmp_path / "rows").write_bytes(rows(ROW_COUNT))
    sent = daemon.run(*send_rows(daemon, str(tmp_path / "rows"), "many", "--wait", "persisted")[len(dolake_command()) : -2])
    assert (sent.returncode, sent.stderr) == (0, "")
    assert summary_of(sent.stdout)["events"] == ROW_COUNT
    assert ids(lake, "many") == list(range(ROW_COUNT))


@pytest.mark.acceptance("AT-107")
@pytest.mark.parametrize("content", [b"", b"\n \n\r\n", gzip.compress(b"", mtime=0)])
@pytest.mark.parametrize("name", ["native", "wal2json", "debezium", "rows"])
def test_an_empty_input_is_sent_in_no_time(daemon: Daemon, content: bytes, name: str) -> None:
    options = ["--table", "empty"] if name == "rows" else []
    line = command(daemon, "send", "-", "--source", "empty", "--format", name, "--json", *options)
    done = subprocess.run(line, input=content, env=clean_environment(), capture_output=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    assert summary_of(done.stdout.decode())["events"] == 0


@pytest.mark.acceptance("AT-107")
def test_damaged_compression_is_bad_input_and_what_came_before_it_is_durable(daemon: Daemon, lake: Lake, tmp_path: Path) -> None:
    packed = gzip.compress(rows(ROW_COUNT), mtime=0)
    (tmp_path / "rows").write_bytes(packed[: len(packed) // 2])
    cut = subprocess.run(
        send_rows(daemon, str(tmp_path / "rows"), "packed"),
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    events = summary_of(cut.stdout)["events"]
    assert cut.returncode == 6
    assert 0 < events < ROW_COUNT
    assert "the compressed input is damaged or cut short" in cut.stderr
    assert len(cut.stderr.splitlines()) == 1
    (tmp_path / "rows").write_bytes(packed)
    whole = daemon.run(*send_rows(daemon, str(tmp_path / "rows"), "packed", "--wait", "persisted")[len(dolake_command()) : -2])
    assert (whole.returncode, summary_of(whole.stdout)["skipped"]) == (0, events)
    assert ids(lake, "packed") == list(range(ROW_COUNT))


@pytest.mark.acceptance("AT-107")
@pytest.mark.parametrize(("content", "code"), [(rows(3), 0), (rows(3) + b"{]\n", 6), (b"{]\n", 2)])
def test_a_reader_that_has_gone_changes_neither_the_exit_code_nor_what_is_sent(
    daemon: Daemon, tmp_path: Path, content: bytes, code: int
) -> None:
    file = tmp_path / f"gone{code}"
    file.write_bytes(content)
    process = subprocess.Popen(
        send_rows(daemon, str(file), file.name), env=clean_environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    process.stdout.close()
    _, errors = process.communicate(timeout=60)
    assert process.returncode == code
    assert [line for line in errors.splitlines() if not line.startswith("dolake: line ")] == []


@pytest.mark.acceptance("AT-107")
def test_an_interrupt_says_what_is_durable_and_leaves_nothing_half_done(daemon: Daemon, lake: Lake, tmp_path: Path) -> None:
    (tmp_path / "rows").write_bytes(rows(ROW_COUNT))
    line = send_rows(daemon, str(tmp_path / "rows"), "stopped", "--batch-events", "10", "--rate", "500")
    with subprocess.Popen(line, env=clean_environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as sender:
        wait_until(lambda: ids(lake, "stopped"), "some rows to be committed")
        sender.send_signal(signal.SIGINT)
        out, errors = sender.communicate(timeout=60)
    assert (sender.returncode, errors) == (130, "")
    acked = summary_of(out)["events"]
    assert 0 < acked < ROW_COUNT
    again = daemon.run(*send_rows(daemon, str(tmp_path / "rows"), "stopped", "--wait", "persisted")[len(dolake_command()) : -2])
    assert (again.returncode, again.stderr) == (0, "")
    assert summary_of(again.stdout)["skipped"] >= acked
    assert ids(lake, "stopped") == list(range(ROW_COUNT))


@pytest.mark.acceptance("AT-107")
def test_an_interrupt_while_nobody_answers(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "trace")
    (tmp_path / "rows").write_bytes(rows(1))
    line = [*dolake_command(), "send", str(tmp_path / "rows"), "--source", "s", "--format", "rows", "--table", "t"]
    line += ["--to", "ws://127.0.0.1:1/cdc", "--retry-s", "600", "--json"]
    with subprocess.Popen(line, env=clean_environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as sender:
        assert sender.stderr is not None
        assert "no connection, trying again" in sender.stderr.readline()
        sender.send_signal(signal.SIGINT)
        out, errors = sender.communicate(timeout=60)
    assert sender.returncode == 130
    assert summary_of(out)["events"] == 0
    assert "Traceback" not in errors


@pytest.mark.acceptance("AT-107")
def test_a_daemon_that_goes_away_for_good_ends_it_with_3_and_what_it_acked_is_counted(tmp_path: Path) -> None:
    (tmp_path / "rows").write_bytes(rows(ROW_COUNT))
    with Daemon(tmp_path / "data", {"DOLAKE_FLUSH_AGE_S": "0.2"}) as daemon, Lake(daemon.data) as lake:
        daemon.start()
        line = send_rows(daemon, str(tmp_path / "rows"), "left", "--batch-events", "10", "--rate", "500", "--retry-s", "0.5")
        with subprocess.Popen(line, env=clean_environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as sender:
            wait_until(lambda: ids(lake, "left"), "some rows to be committed")
            daemon.kill()
            out, errors = sender.communicate(timeout=60)
        assert sender.returncode == 3
        assert "dolake: no daemon answers" in errors.splitlines()[-1]
        assert "Traceback" not in errors
        assert 0 < summary_of(out)["events"] < ROW_COUNT
        daemon.start()
        again = daemon.run(*send_rows(daemon, str(tmp_path / "rows"), "left", "--wait", "persisted")[len(dolake_command()) : -2])
        assert again.returncode == 0, again.stderr
        assert ids(lake, "left") == list(range(ROW_COUNT))


ASKING = [
    ["tables", "--json"],
    ["inspect", "asked", "--json"],
    ["query", "SELECT * FROM asked", "--json"],
    ["query", "SELECT * FROM asked", "--csv"],
    ["status", "--json"],
    ["sources", "--json"],
    ["flush", "--json"],
    ["verify", "--json"],
    ["log", "inspect", "--json"],
]


@pytest.fixture(scope="module")
def asked(daemon: Daemon, tmp_path_factory: pytest.TempPathFactory) -> Daemon:
    file = tmp_path_factory.mktemp("asked") / "rows"
    file.write_bytes(rows(ROW_COUNT))
    sent = daemon.run("send", str(file), "--source", "asked", "--format", "rows", "--table", "asked", "--wait", "persisted")
    assert sent.returncode == 0, sent.stderr
    return daemon


@pytest.mark.acceptance("AT-107")
@pytest.mark.parametrize("arguments", ASKING, ids=" ".join)
def test_what_is_asked_for_is_on_stdout_and_nothing_else_is(asked: Daemon, arguments: list[str]) -> None:
    done = asked.run(*arguments)
    assert (done.returncode, done.stderr) == (0, "")
    if "--json" in arguments:
        assert (json.loads(done.stdout) == []) is (arguments[0] == "verify")
    else:
        assert len(done.stdout.splitlines()) == ROW_COUNT + 1


@pytest.mark.acceptance("AT-107")
@pytest.mark.parametrize("arguments", ASKING, ids=" ".join)
def test_a_reader_that_has_seen_enough_is_no_error_for_any_command(asked: Daemon, arguments: list[str]) -> None:
    with subprocess.Popen(command(asked, *arguments), env=clean_environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.read(1)
        process.stdout.close()
        errors = process.stderr.read()
        assert (process.wait(60), errors) == (0, b"")


@pytest.mark.acceptance("AT-107")
@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["inspect", "nowhere", "--json"], 2, "nowhere"),
        (["inspect", "../evil", "--json"], 2, "TABLE: there is no such table"),
        (["query", "SELECT * FROM nowhere", "--json"], 2, "nowhere"),
        (["query", "DROP TABLE asked", "--json"], 2, "DROP"),
    ],
)
def test_what_cannot_be_answered_is_said_on_stderr_alone(asked: Daemon, arguments: list[str], code: int, said: str) -> None:
    done = asked.run(*arguments)
    assert (done.returncode, said in done.stderr, "Traceback" in done.stderr) == (code, True, False), done.stderr


@pytest.mark.acceptance("AT-107")
def test_a_token_decides_who_may_send_and_where(tmp_path: Path) -> None:
    good, other = new_token(), new_token()
    toml = section("good", good, sources=["s"], tables=["public.*"]) + section("other", other, sources=["else"], tables=["*"])
    (tmp_path / "rows").write_bytes(rows(3))
    with Daemon(tmp_path / "data", table_settings=toml) as daemon:
        ready = daemon.start().wait_ready()
        line = ["send", str(tmp_path / "rows"), "--source", "s", "--to", ready.cdc, "--format", "rows", "--json", "--table"]

        def send(table: str, token: str | None) -> tuple[int, str, str]:
            environment = {} if token is None else {"DOLAKE_TOKEN": token}
            done = subprocess.run(
                [*dolake_command(), *line, table],
                env=clean_environment(environment),
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
            )
            assert "Traceback" not in done.stderr
            assert all(token not in done.stdout + done.stderr for token in (good, other))
            return done.returncode, done.stderr.splitlines()[-1] if done.stderr else "", done.stdout

        for token in (None, "wrong" + good, other):
            code, said, out = send("public.t", token)
            assert (code, summary_of(out)["events"]) == (5, 0), said
        code, said, out = send("private.t", good)
        assert (code, summary_of(out)["events"]) == (5, 0)
        assert "forbidden" in said
        assert "private.t" in said
        code, said, out = send("public.t", good)
        assert (code, said, summary_of(out)["events"]) == (0, "", 3)
