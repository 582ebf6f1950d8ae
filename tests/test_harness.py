"""The harness proves itself: an oracle that finds nothing would make every other test pass."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

from tests.harness.daemon import clean_environment, is_running
from tests.harness.lake import Lake
from tests.harness.leftovers import no_leftovers
from tests.harness.oracle import Oracle, breaches, ledger_event
from tests.harness.ports import Ports
from tests.harness.terminal import Terminal
from tests.harness.waiting import WaitedTooLong, wait_until

_MANY = "(WITH RECURSIVE n(value) AS (SELECT 1 UNION ALL SELECT value + 1 FROM n LIMIT 200) SELECT value FROM n)"


def journal(path: Path, *, batch_count: int = 4, acked_count: int = 3) -> Oracle:
    oracle = Oracle(path)
    for batch in range(batch_count):
        oracle.sent("s", "", batch, [ledger_event(batch * 5 + place) for place in range(5)])
    for batch in range(acked_count):
        oracle.acked("s", "", batch, "ok")
    return oracle


def table_of(oracle: Oracle, batch_count: int) -> pa.Table:
    """The changelog table that a daemon should make of the first batches."""
    sent = oracle.as_arrow("ledger").slice(0, batch_count * 5)
    renamed = {"source": "_cdc_source", "epoch": "_cdc_epoch", "sequence": "_cdc_sequence", "operation": "_cdc_operation"}
    table = sent.rename_columns([renamed.get(name, name) for name in sent.column_names])
    table = table.append_column("_cdc_log", pa.array(["log"] * len(table)))
    table = table.append_column("_cdc_offset", table["batch"])
    table = table.append_column("_cdc_index", pa.array([place % 5 for place in range(len(table))]))
    return table.drop_columns(["batch", "acked"])


def test_a_reader_takes_back_what_a_killed_writer_left_half_done_in_the_catalog(tmp_path: Path) -> None:
    """SQLite gives it to nobody who may not write; every engine's catalog client may."""
    (tmp_path / "killed").mkdir()
    (tmp_path / "copy").mkdir()
    writer = sqlite3.connect(tmp_path / "killed" / "catalog.db", isolation_level=None)
    with contextlib.closing(writer):
        writer.execute("PRAGMA journal_mode=TRUNCATE")
        columns = "catalog_name, table_namespace, table_name, metadata_location"
        writer.execute(f"CREATE TABLE iceberg_tables ({columns})")
        writer.execute("INSERT INTO iceberg_tables VALUES ('dolake', 'default', 'ledger', 'v1')")
        writer.execute("PRAGMA cache_size=1")  # So that it writes before it is told to commit.
        writer.execute("BEGIN")
        writer.execute("UPDATE iceberg_tables SET metadata_location = 'v2'")
        writer.execute(f"INSERT INTO iceberg_tables SELECT 'dolake', 'default', value, hex(zeroblob(500)) FROM {_MANY}")
        for file in ("catalog.db", "catalog.db-journal"):  # What is on the disk when it is killed here.
            shutil.copy(tmp_path / "killed" / file, tmp_path / "copy" / file)
    barred = sqlite3.connect(f"file:{tmp_path}/copy/catalog.db?mode=ro", uri=True)
    with contextlib.closing(barred), pytest.raises(sqlite3.OperationalError, match="readonly"):
        barred.execute("SELECT * FROM iceberg_tables").fetchall()
    with Lake(tmp_path / "copy") as lake:
        assert lake.metadata_location("ledger") == "v1"


@pytest.mark.parametrize("batch_count", [3, 4])
def test_what_was_acked_is_enough_and_what_was_sent_is_allowed(tmp_path: Path, batch_count: int) -> None:
    oracle = journal(tmp_path / "journal")
    assert list(breaches(table_of(oracle, batch_count), oracle.as_arrow("ledger"))) == []


def changed(table: pa.Table, column: str, change: Callable[[list], list]) -> pa.Table:
    place = table.schema.get_field_index(column)
    return table.set_column(place, table.schema.field(place), pa.array(change(table[column].to_pylist()), table.schema.field(place).type))


def swapped(values: list) -> list:
    return [values[1], values[0], *values[2:]]


@pytest.mark.parametrize(
    ("finding", "corrupt"),
    [
        ("twice", lambda table: pa.concat_tables([table, table.slice(3, 1)])),
        ("acked and lost", lambda table: pa.concat_tables([table.slice(0, 5), table.slice(10)])),
        ("torn", lambda table: pa.concat_tables([table.slice(0, 4), table.slice(5)])),
        ("never sent", lambda table: changed(table, "_cdc_sequence", lambda values: [*values[:-1], 999])),
        ("other values", lambda table: changed(table, "note", lambda values: ["changed", *values[1:]])),
        ("other values", lambda table: changed(table, "amount", lambda values: [values[0] + 1, *values[1:]])),
        ("other values", lambda table: changed(table, "_cdc_operation", lambda values: ["TRUNCATE", *values[1:]])),
        ("out of order", lambda table: changed(table, "_cdc_index", swapped)),
        ("at a place taken twice", lambda table: changed(table, "_cdc_index", lambda values: [values[1], *values[1:]])),
    ],
)
def test_every_way_to_be_wrong_is_found(tmp_path: Path, finding: str, corrupt: Callable[[pa.Table], pa.Table]) -> None:
    oracle = journal(tmp_path / "journal")
    found = list(breaches(corrupt(table_of(oracle, 3)), oracle.as_arrow("ledger")))
    assert any(finding in sentence for sentence in found), found


def test_an_unacked_batch_may_not_be_there_in_part(tmp_path: Path) -> None:
    oracle = journal(tmp_path / "journal")
    found = list(breaches(table_of(oracle, 4).slice(0, 17), oracle.as_arrow("ledger")))
    assert any("torn" in sentence for sentence in found), found


def test_the_journal_is_on_disk_before_anything_is_sent(tmp_path: Path) -> None:
    oracle = Oracle(tmp_path / "journal")
    oracle.sent("s", "e", 7, [ledger_event(1), ledger_event(2)])
    assert '{"sent": 7' in (tmp_path / "journal").read_text()


def test_a_killed_process_does_not_count_as_running() -> None:
    process = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"], env=clean_environment())
    assert is_running(process.pid)
    os.kill(process.pid, signal.SIGKILL)
    wait_until(lambda: not is_running(process.pid), "the kernel to end it")  # It is a zombie until it is waited for.
    process.wait()


def test_waiting_for_what_never_comes_says_what_it_was() -> None:
    with pytest.raises(WaitedTooLong, match=r"0\.01 s for the moon"):
        wait_until(lambda: False, "the moon", 0.01)


def test_settings_of_the_outside_do_not_leak_into_a_daemon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOLAKE_DATA", "/elsewhere")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "somebody")
    environment = clean_environment({"DOLAKE_FLUSH_AGE_S": "1"})
    assert [name for name in environment if name.startswith(("DOLAKE_", "AWS_"))] == ["DOLAKE_FLUSH_AGE_S"]


@pytest.mark.acceptance("AT-116")
@pytest.mark.parametrize("cut", ["\x1b", "\x1b[", "\x1b[?2"])
def test_a_terminal_forgets_a_sequence_that_another_interrupts(cut: str) -> None:
    assert shown(f"a{cut}\x1b[?25lb") == ("ab", False)


@pytest.mark.parametrize("wrong", ["\x1b[5Kb", "\x1bb\n", "\x1b[5K\x1b[?25l"])
def test_a_terminal_refuses_what_it_does_not_know(wrong: str) -> None:
    with pytest.raises(AssertionError, match="does not know"):
        shown(f"a{wrong}\x1b[?25h")


def shown(written: str) -> tuple[str, bool]:
    """The screen, and whether the cursor is on it, after a command has written so."""
    command = [sys.executable, "-c", f"print({written!r}, end='')"]
    with Terminal(command, clean_environment()) as terminal:
        assert terminal.process.wait(60) == 0
        return terminal.seen().strip(), terminal.shows_cursor


def test_ten_thousand_ports_are_unique_and_can_be_bound() -> None:
    """Also beside another process that allocates."""
    script = "from tests.harness.ports import Ports; p = Ports(); print(*(p.allocate() for _ in range(1000)), flush=True); input()"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, "-c", script]
    with (
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment) as other,
        Ports() as ports,
        contextlib.ExitStack() as bound,
    ):
        assert other.stdin is not None
        assert other.stdout is not None
        theirs = [int(port) for port in other.stdout.readline().split()]
        ours = [ports.allocate() for _ in range(10_000)]
        assert len(theirs) == 1000
        assert len({*ours, *theirs}) == 11_000
        for port in ours:
            bound.enter_context(socket.socket()).bind(("127.0.0.1", port))
        other.stdin.write("\n")


@pytest.mark.acceptance("AT-116")
def test_ports_that_are_given_back_are_given_again() -> None:
    with Ports() as first:
        numbers = [first.allocate() for _ in range(150)]
    with Ports() as second:
        assert set(numbers) & {second.allocate() for _ in range(150)}


def leave_a_process() -> Callable[[], object]:
    process = subprocess.Popen(["sleep", "60"], start_new_session=True)
    return lambda: (process.kill(), process.wait())


def leave_a_folder() -> Callable[[], object]:
    path = tempfile.mkdtemp()
    return lambda: os.rmdir(path)


def leave_a_socket() -> Callable[[], object]:
    return socket.create_server(("127.0.0.1", 0)).close


def leave_files_open() -> Callable[[], object]:
    descriptors = [os.open(os.devnull, os.O_RDONLY) for _ in range(40)]
    return lambda: [os.close(descriptor) for descriptor in descriptors]


def leave_nothing() -> Callable[[], object]:
    subprocess.run(["true"], check=True)
    tempfile.TemporaryFile().close()
    return lambda: None


@pytest.mark.acceptance("AT-116")
@pytest.mark.parametrize(
    ("leave", "finding"),
    [
        (leave_a_process, "a process: .* sleep 60"),
        (leave_a_folder, "a temporary file: "),
        (leave_a_socket, "a socket that listens on port "),
        (leave_files_open, "40 descriptors: .*/dev/null"),
        (leave_nothing, None),
    ],
)
def test_what_a_test_leaves_behind_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, leave: Callable[[], Callable[[], object]], finding: str | None
) -> None:
    monkeypatch.setattr("tests.harness.leftovers._ENDING_S_MAX", 0.2)
    clear = lambda: None  # noqa: E731
    try:
        with pytest.raises(AssertionError, match=finding) if finding else contextlib.nullcontext(), no_leftovers(tmp_path):
            clear = leave()
    finally:
        clear()
