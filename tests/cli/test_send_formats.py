"""`dolake send` in each of its formats, and what it does with lines that are wrong: against a real daemon, read by DuckDB."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.debezium import plain
from tests.harness.daemon import Daemon, clean_environment, dolake_command
from tests.harness.lake import Lake

ROWS = b'{"id":1,"name":"ann","big":12345678901234567890.5}\n{"id":2,"name":null}\n{"id":3,"at":"2026-01-01"}\n'


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    with Daemon(tmp_path_factory.mktemp("formats") / "data", {"DOLAKE_FLUSH_AGE_S": "0.2"}) as daemon:
        yield daemon.start()


@pytest.fixture
def lake(daemon: Daemon) -> Iterator[Lake]:
    with Lake(daemon.data) as lake:
        yield lake


def send(daemon: Daemon, content: bytes, file: Path, *more: str) -> tuple[int, dict[str, Any], str]:
    """Exit code, summary, stderr."""
    file.write_bytes(content)
    done = daemon.run("send", str(file), "--source", file.name, "--wait", "persisted", "--json", *more)
    return done.returncode, json.loads(done.stdout or "{}"), done.stderr


def rows(lake: Lake, table: str, columns: str) -> list[tuple[Any, ...]]:
    return lake.query(f"SELECT {columns} FROM iceberg_scan('{lake.metadata_location(table)}') ORDER BY _cdc_sequence")


def test_rows_need_nothing_but_a_table(daemon: Daemon, lake: Lake, tmp_path: Path) -> None:
    file = tmp_path / "plain"
    code, summary, said = send(daemon, ROWS, file, "--format", "rows", "--table", "people")
    assert (code, summary["events"]) == (0, 3), said
    assert rows(lake, "people", '_cdc_sequence, _cdc_row_id, id, name, "at"') == [
        (1, None, 1, "ann", None),
        (2, None, 2, None, None),
        (3, None, 3, None, "2026-01-01"),
    ]
    code, summary, _ = send(daemon, ROWS + b'{"id":4}\n', file, "--format", "rows", "--table", "people")
    assert (code, summary["events"], summary["skipped"]) == (0, 1, 3)
    assert rows(lake, "people", "id") == [(1,), (2,), (3,), (4,)]


def test_rows_with_a_key_and_types(daemon: Daemon, lake: Lake, tmp_path: Path) -> None:
    types = "id=long,big=decimal(38,1),at=date"
    code, _, said = send(daemon, ROWS, tmp_path / "typed", "--format", "rows", "--table", "public.typed", "--key", "id", "--types", types)
    assert code == 0, said
    assert rows(lake, "public.typed", '_cdc_row_id, id, big::VARCHAR, "at"::VARCHAR, name') == [
        ("1", 1, "12345678901234567890.5", None, "ann"),
        ("2", 2, None, None, None),
        ("3", 3, None, "2026-01-01", None),
    ]


def envelope(op: str, after: Any, number: int, *, schema: bool) -> bytes:
    """An order of a database: a key, a decimal, a moment in nanoseconds, bytes in hexadecimal."""
    source = {"connector": "postgresql", "schema": "public", "table": "orders", "lsn": number, "ts_ms": 1000 + number}
    payload = {"op": op, "before": None, "after": after, "source": source}
    if not schema:
        return json.dumps({"key": {"id": 1}, "value": payload}).encode() + b"\n"
    fields = [
        plain("int32", field="id"),
        plain("string", field="total", parameters={"__debezium.source.column.type": "NUMERIC", "__debezium.source.column.length": "9"}),
        plain("int64", "io.debezium.time.NanoTimestamp", field="at"),
        plain("string", field="raw", parameters={"__debezium.source.column.type": "BYTEA"}),
        plain("string", field="text"),
    ]
    value = {"schema": {"type": "struct", "fields": [{"type": "struct", "field": "after", "fields": fields}]}, "payload": payload}
    return json.dumps({"key": {"schema": {}, "payload": {"id": 1}}, "value": value}).encode() + b"\n"


def test_debezium_with_schemas_and_every_option(daemon: Daemon, lake: Lake, tmp_path: Path) -> None:
    row = {"id": 1, "total": "12", "at": 1529507596945104000, "raw": "00ff", "text": "t"}
    lines = envelope("c", row, 1, schema=True) + envelope("u", {**row, "text": "<toast>"}, 2, schema=True) + b"null\n"
    options = ("--nanoseconds", "timestamp", "--binary-mode", "hex", "--unavailable", "<toast>")
    code, summary, said = send(daemon, lines, tmp_path / "debezium", "--format", "debezium", *options)
    assert (code, summary["events"], summary["passed_over"]) == (0, 2, {"tombstones": 1}), said
    assert "1 tombstones were passed over" in said
    shown = '_cdc_operation, _cdc_lsn, _cdc_row_id, id, total::VARCHAR, "at"::VARCHAR, hex(raw), text, _cdc_unchanged'
    same = (None, 1, "12", "2018-06-20 15:13:16.945104", "00FF")
    assert rows(lake, "public.orders", shown) == [("INSERT", "0/1", *same, "t", None), ("UPDATE", "0/2", *same, None, ["text"])]


def test_debezium_without_schemas_is_inferred(daemon: Daemon, lake: Lake, tmp_path: Path) -> None:
    lines = envelope("c", {"id": 1, "total": 1.5, "tags": ["a"], "ok": True}, 1, schema=False)
    lines += envelope("u", {"id": 1, "total": "many"}, 2, schema=False)
    code, _, said = send(daemon, lines.replace(b'"orders"', b'"plain"'), tmp_path / "schemaless", "--format", "debezium")
    assert code == 0, said
    assert rows(lake, "public.plain", "_cdc_row_id, id, total, total__string, tags, ok") == [
        ("1", 1, 1.5, None, '["a"]', True),
        ("1", 1, None, "many", None, None),
    ]


def test_wrong_lines_are_left_out_and_named_where_that_is_asked_for(daemon: Daemon, lake: Lake, tmp_path: Path) -> None:
    content = b'{"id":1}\n{]\n{"id":2}\n[3]\n{"id":4}\n'
    file = tmp_path / "holes"
    options = ("--format", "rows", "--table", "holes")
    code, summary, said = send(daemon, content, file, *options)
    assert (code, summary["events"]) == (6, 1)
    assert "line 2: " in said
    assert "what came before it is durable" in said
    code, summary, said = send(daemon, content, file, *options, "--continue")
    assert (code, summary["events"], summary["skipped"], summary["bad"]) == (6, 2, 1, 2)
    assert [bad["line"] for bad in summary["bad_lines"]] == [2, 4]
    assert "object" in summary["bad_lines"][1]["reason"]
    assert "dolake: line 2: " in said
    assert "dolake: line 4: " in said
    assert "2 lines could not be read and were left out; everything else is durable" in said
    assert rows(lake, "holes", "id, _cdc_sequence") == [(1, 1), (2, 3), (4, 5)]


def test_when_no_line_can_be_read_the_format_is_wrong(daemon: Daemon, tmp_path: Path) -> None:
    code, summary, said = send(daemon, ROWS, tmp_path / "nothing", "--format", "debezium", "--continue")
    assert (code, summary["events"], summary["bad"]) == (2, 0, 3)
    assert "rows without envelopes are --format rows" in said


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--format", "rows"], ["--table: is required by --format rows"]),
        (["--table", "t"], ["--table: must not be given with --format native; it is for rows and debezium (got t)"]),
        (["--format", "rows", "--table", "../evil"], ["--table: a table is `name` or `namespace.name`"]),
        (["--format", "rows", "--table", "dolake.x"], ["dolake's own"]),
        (["--format", "rows", "--table", "t", "--key", "a,,b"], ["--key: names each column once, none empty (got a,,b)"]),
        (["--format", "rows", "--table", "t", "--key", "t=a"], ["--key: is a list of columns"]),
        (["--format", "rows", "--table", "t", "--types", "a"], ["--types: is a list of column=type"]),
        (
            ["--format", "rows", "--table", "t", "--types", "a=decimal(1,2),b=map<string, in>"],
            ["--types: not a column type: the scale is a number 0..1"],
        ),
        (["--format", "debezium", "--types", "a=int"], ["--types: must not be given with --format debezium; it is for rows"]),
        (["--format", "debezium", "--key", "a.b.c=id"], ["--key: a table is"]),
        (["--format", "debezium", "--nanoseconds", "days"], ["--nanoseconds"]),
        (["--format", "wal2json", "--unavailable", "x", "--binary-mode", "hex"], ["--unavailable: must not", "--binary-mode: must not"]),
    ],
)
def test_what_is_wrong_with_the_options_is_said_at_once(tmp_path: Path, options: list[str], said: list[str]) -> None:
    (tmp_path / "file").write_bytes(ROWS)
    command = [*dolake_command(), "send", str(tmp_path / "file"), "--source", "s", "--to", "ws://127.0.0.1:1/cdc", *options]
    done = subprocess.run(command, env=clean_environment(), capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2, done.stderr
    assert [text for text in said if text not in done.stderr] == []
    assert "Traceback" not in done.stderr
