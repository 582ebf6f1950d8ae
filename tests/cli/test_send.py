"""`dolake send` against a real daemon: resuming, pipes, and what each way of going wrong ends with."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import zstandard
from pyiceberg.catalog.sql import SqlCatalog

from tests.harness.daemon import Daemon, clean_environment, dolake_command
from tests.harness.lake import Lake
from tests.harness.waiting import wait_until

SCHEMA = {"type": "schema", "primaryKey": ["id"], "columns": [{"name": "id", "type": "long", "nullable": False}]}


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    with Daemon(tmp_path_factory.mktemp("send") / "data", {"DOLAKE_FLUSH_AGE_S": "0.2"}) as daemon:
        yield daemon.start()


@pytest.fixture
def lake(daemon: Daemon) -> Iterator[Lake]:
    with Lake(daemon.data) as lake:
        yield lake


def native(table: str, ids: range) -> bytes:
    """A schema, and an insert for each id."""
    lines = [json.dumps({**SCHEMA, "table": table})]
    lines += [json.dumps({"timestamp": 1, "operation": "INSERT", "table": table, "after": {"id": number}}) for number in ids]
    return "".join(line + "\n" for line in lines).encode()


def wal2json(table: str, transactions: list[int]) -> bytes:
    """Transactions of so many inserts each."""
    lines: list[dict[str, Any]] = []
    number = 0
    for xid, size in enumerate(transactions, 100):
        about = {"xid": xid, "timestamp": "2026-11-20 15:30:18.126353+00"}
        lines.append({"action": "B", **about})
        for _ in range(size):
            number += 1
            columns = [{"name": "id", "type": "bigint", "value": number}]
            lines.append({"action": "I", **about, "lsn": "0/1", "schema": "public", "table": table, "columns": columns, "pk": columns[:1]})
        lines.append({"action": "C", **about})
    return "".join(json.dumps(line) + "\n" for line in lines).encode()


def send(daemon: Daemon, file: Path, source: str, *more: str) -> tuple[int, dict[str, Any], str]:
    """Exit code, summary, stderr."""
    done = daemon.run("send", str(file), "--source", source, "--json", *more)
    return done.returncode, json.loads(done.stdout or "{}"), done.stderr


def ids(lake: Lake, table: str) -> list[int]:
    location = lake.metadata_location(table)
    return (
        [] if location is None else [row[0] for row in lake.query(f"SELECT id FROM iceberg_scan('{location}') ORDER BY id, _cdc_sequence")]
    )


def test_a_longer_file_is_resumed_where_the_shorter_one_ended(daemon: Daemon, lake: Lake, tmp_path: Path) -> None:
    file = tmp_path / "events"
    file.write_bytes(native("grown", range(1, 1201)))
    code, summary, _ = send(daemon, file, "grown", "--batch-events", "500")
    assert (code, summary["events"], summary["batches"], summary["skipped"]) == (0, 1200, 3, 0)
    file.write_bytes(native("grown", range(1, 2001)))
    code, summary, _ = send(daemon, file, "grown", "--batch-events", "7", "--wait", "persisted")
    assert (code, summary["events"], summary["skipped"]) == (0, 800, 1200)
    assert ids(lake, "grown") == list(range(1, 2001))


def test_a_file_cut_inside_a_transaction_is_not_all_sent_and_goes_on_whole(daemon: Daemon, lake: Lake, tmp_path: Path) -> None:
    whole = wal2json("cut", [3, 10, 2])
    file = tmp_path / "stream"
    file.write_bytes(b"\n".join(whole.split(b"\n")[:12]))  # B III C, B and six of the ten
    code, summary, said = send(daemon, file, "cut", "--format", "wal2json")
    assert (code, summary["events"]) == (6, 3)
    assert "ends inside a transaction: its last 6 events were not sent" in said
    file.write_bytes(whole)
    code, summary, _ = send(daemon, file, "cut", "--format", "wal2json", "--batch-events", "4", "--wait", "persisted")
    assert (code, summary["events"], summary["skipped"]) == (0, 12, 3)
    assert ids(lake, "public.cut") == list(range(1, 16))


def test_types_the_shop_does_not_have_and_columns_that_were_not_sent(daemon: Daemon, lake: Lake, tmp_path: Path) -> None:
    about = {"xid": 7, "timestamp": "2026-11-20 15:30:18.126353+00", "lsn": "0/1", "schema": "public", "table": "kinds"}
    values = [
        ("id", "bigint", 1),
        ("free", "numeric", 12345678901234567890.5),
        ("opens", "time without time zone", "01:02:03.000004"),
        ("numbers", "integer[]", "{1,NULL,-3}"),
        ("flags", "boolean[]", "{t,f}"),
        ("texts", "text[]", '{"a,b",NULL,"NULL","say \\"hi\\" 🚀"}'),
        ("amounts", "numeric(12,2)[]", "{986.29,0.10}"),
        ("nothing", "double precision", "NaN"),
        ("long", "interval", "1 mon 2 days"),
        ("seen", "timestamp(3) with time zone", "2026-11-20 15:30:18.12+05:30"),
        ("grid", "integer[]", "{{1,2},{3,4}}"),
        ("big", "text", "x" * 3000),
    ]
    columns = [{"name": name, "type": kind, "value": value} for name, kind, value in values]
    insert = {"action": "I", **about, "columns": columns, "pk": columns[:1]}
    update = {"action": "U", **about, "columns": columns[:-1], "identity": columns[:1], "pk": columns[:1]}
    file = tmp_path / "stream"
    file.write_text(
        "".join(json.dumps(line) + "\n" for line in (insert, update)).replace("1.2345678901234567e+19", "12345678901234567890.50")
    )
    assert send(daemon, file, "kinds", "--format", "wal2json", "--wait", "persisted")[0] == 0
    shown = "free, opens::VARCHAR, numbers, flags, texts, amounts::VARCHAR, nothing::VARCHAR, long, seen::VARCHAR, grid"
    rows = lake.query(
        f"SELECT {shown}, length(big), _cdc_unchanged FROM iceberg_scan('{lake.metadata_location('public.kinds')}') ORDER BY _cdc_sequence"
    )
    same = (
        "12345678901234567890.50",
        "01:02:03.000004",
        [1, None, -3],
        [True, False],
        ["a,b", None, "NULL", 'say "hi" 🚀'],
        "[986.29, 0.10]",
        "nan",
        "1 mon 2 days",
        "2026-11-20 10:00:18.12+00",
        "{{1,2},{3,4}}",
    )
    assert rows == [(*same, 3000, None), (*same, None, ["big"])]


def test_compressed_standard_input_is_read(daemon: Daemon, lake: Lake) -> None:
    command = [*dolake_command(), "send", "-", "--source", "piped", "--data", str(daemon.data), "--wait", "persisted"]
    packed = zstandard.ZstdCompressor().compress(native("piped", range(5)))
    done = subprocess.run(command, input=packed, env=clean_environment(daemon.settings), capture_output=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert b"sent 5 events in 1 batches" in done.stdout
    assert ids(lake, "piped") == list(range(5))


def test_what_a_pipe_has_brought_is_sent_while_it_is_quiet(daemon: Daemon, lake: Lake) -> None:
    command = [*dolake_command(), "send", "-", "--source", "quiet", "--data", str(daemon.data)]
    with subprocess.Popen(command, env=clean_environment(daemon.settings), stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as sender:
        assert sender.stdin is not None
        sender.stdin.write(native("quiet", range(3)))
        sender.stdin.flush()
        wait_until(lambda: ids(lake, "quiet") == [0, 1, 2], "three rows to be committed while the pipe is open")
        sender.stdin.close()
        assert sender.wait(30) == 0


def test_an_interrupted_run_ends_with_130_and_the_next_one_finishes(daemon: Daemon, lake: Lake, tmp_path: Path) -> None:
    file = tmp_path / "events"
    file.write_bytes(native("stopped", range(3000)))
    command = [
        *dolake_command(),
        "send",
        str(file),
        "--source",
        "stopped",
        "--data",
        str(daemon.data),
        "--batch-events",
        "10",
        "--rate",
        "500",
    ]
    with subprocess.Popen(command, env=clean_environment(daemon.settings), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as sender:
        wait_until(lambda: len(ids(lake, "stopped")) > 0, "some rows to be committed")
        sender.send_signal(signal.SIGINT)
        _, said = sender.communicate(timeout=30)
        assert sender.returncode == 130, said
        assert b"Traceback" not in said
    code, summary, _ = send(daemon, file, "stopped", "--wait", "persisted")
    assert code == 0
    assert 0 < summary["skipped"] < 3000
    assert ids(lake, "stopped") == list(range(3000))


def placed(table: str, ids: range) -> bytes:
    """Inserts that say where they stand in the database's log, each a transaction of its own."""
    lines = []
    for number in ids:
        about = {"xid": number, "timestamp": "2026-11-20 15:30:18.126353+00", "schema": "public", "table": table}
        columns = [{"name": "id", "type": "bigint", "value": number}]
        lines.append({"action": "I", **about, "lsn": f"0/{number * 256:X}", "columns": columns, "pk": columns[:1]})
    return "".join(json.dumps(line) + "\n" for line in lines).encode()


@pytest.mark.parametrize(("first", "end"), [(21, 31), (21, 51), (11, 30)])
def test_a_stream_that_begins_elsewhere_is_refused_and_not_taken_for_what_is_there(
    daemon: Daemon, lake: Lake, tmp_path: Path, first: int, end: int
) -> None:
    """Its first events would be passed over, by their place in it, though nobody has them: one shorter, one longer, one that overlaps."""
    file, source = tmp_path / "stream", f"placed_{first}_{end}"
    file.write_bytes(placed(source, range(1, 21)))
    assert send(daemon, file, source, "--format", "wal2json", "--wait", "persisted")[0] == 0
    file.write_bytes(placed(source, range(first, end)))
    code, summary, said = send(daemon, file, source, "--format", "wal2json")
    assert (code, summary.get("events", 0)) == (5, 0)
    assert "is not the stream that the source was sent so far" in said
    assert ids(lake, f"public.{source}") == list(range(1, 21))
    with subprocess.Popen(
        [*dolake_command(), "send", "-", "--source", source, "--data", str(daemon.data), "--format", "wal2json"],
        env=clean_environment(daemon.settings), stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    ) as sender:  # fmt: skip
        assert sender.stdin is not None
        sender.stdin.write(placed(source, range(first, end)))
        sender.stdin.flush()  # A pipe that stays open says so too, and does not wait for its end.
        assert sender.wait(30) == 5
        sender.stdin.close()
    code, summary, _ = send(daemon, file, source, "--format", "wal2json", "--epoch", "next", "--wait", "persisted")
    assert (code, summary["events"]) == (0, end - first)
    file.write_bytes(placed(source, range(1, 10)))
    assert send(daemon, file, f"{source}", "--format", "wal2json")[0] == 5, "the epoch before is over"


@pytest.mark.acceptance("AT-01")
def test_a_daemon_killed_meanwhile_gets_every_event_once(daemon: Daemon, lake: Lake, tmp_path: Path) -> None:
    file = tmp_path / "events"
    file.write_bytes(native("killed", range(4000)))
    command = [
        *dolake_command(),
        "send",
        str(file),
        "--source",
        "killed",
        "--data",
        str(daemon.data),
        "--batch-events",
        "20",
        "--rate",
        "1500",
    ]
    command += ["--wait", "persisted", "--json"]
    with subprocess.Popen(command, env=clean_environment(daemon.settings), stdout=subprocess.PIPE, stderr=subprocess.PIPE) as sender:
        wait_until(lambda: len(ids(lake, "killed")) > 0, "some rows to be committed")
        ready = daemon.ready()
        assert ready is not None
        daemon.kill("ingest")
        out, said = sender.communicate(timeout=60)
        assert sender.returncode == 0, said
    daemon.wait_replaced(ready, "ingest")
    assert json.loads(out)["events"] == 4000
    assert ids(lake, "killed") == list(range(4000))


def test_a_new_epoch_is_a_new_life_and_the_old_one_is_over(daemon: Daemon, lake: Lake, tmp_path: Path) -> None:
    file = tmp_path / "events"
    file.write_bytes(native("lives", range(3)))
    assert send(daemon, file, "lives")[0] == 0
    code, summary, _ = send(daemon, file, "lives", "--epoch", "two", "--wait", "persisted")
    assert (code, summary["events"], summary["skipped"]) == (0, 3, 0)
    assert ids(lake, "lives") == [0, 0, 1, 1, 2, 2]
    code, _, said = send(daemon, file, "lives")
    assert code == 5
    assert "epoch" in said


def test_a_wrong_line_ends_it_and_what_came_before_is_durable(daemon: Daemon, lake: Lake, tmp_path: Path) -> None:
    file = tmp_path / "events"
    good = native("wrong", range(3))
    file.write_bytes(b"{]\n" + good)
    code, summary, said = send(daemon, file, "wrong")
    assert (code, summary["events"]) == (2, 0)
    assert "line 1: " in said
    file.write_bytes(good + b"{]\n")
    code, summary, said = send(daemon, file, "wrong", "--wait", "persisted")
    assert (code, summary["events"]) == (6, 3)
    assert "line 5: " in said
    assert "what came before it is durable" in said
    file.write_bytes(good)
    assert send(daemon, file, "wrong", "--wait", "persisted")[1]["skipped"] == 3
    assert ids(lake, "wrong") == [0, 1, 2]


def test_what_the_daemon_refuses_ends_it_with_5_and_names_the_field(daemon: Daemon, tmp_path: Path) -> None:
    file = tmp_path / "events"
    file.write_bytes(native("refused", range(3)).replace(b'"id"', b'"_cdc_id"'))
    code, summary, said = send(daemon, file, "refused")
    assert (code, summary["events"]) == (5, 0)
    assert "columns.0.name" in said


def test_waiting_for_a_table_that_has_stopped_ends_with_6_and_says_why(daemon: Daemon, tmp_path: Path) -> None:
    file = tmp_path / "events"
    file.write_bytes(native("halted", range(2)))
    assert send(daemon, file, "halted", "--wait", "persisted")[0] == 0
    catalog = SqlCatalog("dolake", uri=f"sqlite:///{daemon.data}/catalog.db", warehouse=f"file://{daemon.data}/warehouse")
    with catalog.load_table("default.halted").transaction() as claim:
        claim.set_properties({"dolake.epoch": "99"})
    file.write_bytes(native("halted", range(3)))
    code, summary, said = send(daemon, file, "halted", "--wait", "persisted", "--retry-s", "0.5")
    assert (code, summary["events"]) == (6, 1)
    assert "halted" in said
    listed = {table["table"]: table for table in json.loads(daemon.run("tables", "--json").stdout)}
    assert listed["default.halted"]["state"] == "stopped"
    assert "fenced: a newer writer owns it (epoch 99" in listed["default.halted"]["stopped"]["reason"]
    stopped = listed["default.halted"]["stopped"]
    assert "default.halted has stopped: fenced" in (shown := daemon.run("tables").stdout)
    assert f"it takes nothing from log {stopped['log']}, offset {stopped['offset']} on" in shown
    lines = [json.loads(line) for line in daemon.output.read_text().splitlines() if line.startswith("{")]
    (line,) = (line for line in lines if line["event"] == "table stopped")
    assert {key: line[key] for key in line.keys() - {"time", "level", "process", "pid", "event"}} == {
        "table": "default.halted", **{name: stopped[name] for name in ("log", "offset", "field", "rule")}
    }  # fmt: skip
    assert (line["level"], line["process"], line["field"]) == ("error", "writer", "dolake.epoch")


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["{file}", "--source", "s", "--to", "ws://127.0.0.1:1/cdc", "--retry-s", "0.2"], 3, "no daemon answers"),
        (["{file}", "--source", "s", "--to", "nonsense"], 2, "ws://host:port/cdc"),
        (["{file}", "--source", "s", "--data", "{file}.none"], 3, "no daemon runs there"),
        (["{file}.none", "--source", "s", "--to", "ws://127.0.0.1:1/cdc"], 2, "No such file"),
        (["{file}", "--to", "ws://127.0.0.1:1/cdc"], 2, "--source"),
        (["{file}", "--source", "s", "--format", "csv"], 2, "wal2json"),
        (["{file}", "--source", "s", "--batch-events", "0"], 2, "--batch-events"),
    ],
)
def test_what_is_wrong_with_the_command_is_said(tmp_path: Path, arguments: list[str], code: int, said: str) -> None:
    file = tmp_path / "events"
    file.write_bytes(native("t", range(1)))
    command = [*dolake_command(), "send", *(argument.format(file=file) for argument in arguments)]
    done = subprocess.run(command, env=clean_environment(), capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == code, done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr
