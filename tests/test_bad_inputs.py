"""What people get wrong, in one table: over the websocket, on the command line, in the configuration.

Each line says what is wrong and what must be answered: the code, the field, the value that offends, and words of the rule.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.client import connect

from dolake.cli import run
from tests.cdc.samples import CONNECT, FLUSH_REQUEST, HEARTBEAT, SCHEMA, batch
from tests.cdc.test_validation import ABSENT, changed
from tests.harness.daemon import Daemon, clean_environment

SOURCE = CONNECT["sourceDoId"]
BATCH = batch(7)
TABLE_RULE = "each part [A-Za-z0-9_]{1,128}"
BIG = {"id": 1, "note": "x" * 2_000}

# What is sent, where it is wrong, what stands there → reason, the field as it is named, the value as it is shown, words of the rule.
WEBSOCKET: list[tuple[str, Any, Any, Any, str, str, str, str]] = [
    ("not JSON", None, None, "{nonsense", "invalid_format", "frame", "{nonsense", "one JSON object"),
    ("an array", None, None, "[1, 2]", "invalid_format", "frame", "[1, 2]", "one JSON object"),
    ("half a message", None, None, '{"type": "cdc_batch", "events": [', "invalid_format", "frame", "cdc_batch", "one JSON object"),
    ("a name that is no text", None, None, '{"\\ud800": 1}', "invalid_format", "\\ud800", "\\ud800", "lone surrogates"),
    ("not UTF-8", None, None, b'{"type": "\xff\xfe"}', "invalid_format", "frame", "xff", "is UTF-8 (byte 10 is not)"),
    ("Arrow too early", None, None, b"ARW1\0\0\0\0", "invalid_format", "frame", "ARW1", "one JSON object"),
    ("no type", BATCH, "type", ABSENT, "invalid_format", "type", "nothing", "is one of connect, schema, cdc_batch"),
    ("unknown type", BATCH, "type", "cdc_batsh", "invalid_format", "type", "cdc_batsh", "cdc_batch"),
    ("another's name", BATCH, "sourceDoId", "payroll", "invalid_format", "sourceDoId", "payroll", SOURCE),
    ("no source", BATCH, "sourceDoId", ABSENT, "invalid_format", "sourceDoId", "nothing", "is required"),
    ("control character", BATCH, "sourceDoId", "a\nb", "invalid_format", "sourceDoId", "a\\nb", "control"),
    ("source too long", BATCH, "sourceDoId", "n" * 257, "invalid_format", "sourceDoId", "nnnn", "256"),
    ("number as text", BATCH, "sequenceNumber", "7", "invalid_format", "sequenceNumber", "7", "integer"),
    ("number below zero", BATCH, "sequenceNumber", -1, "invalid_format", "sequenceNumber", "-1", "integer 0..2^63-1"),
    ("number too large", BATCH, "sequenceNumber", 2**63, "invalid_format", "sequenceNumber", str(2**63), "integer"),
    ("fraction", BATCH, "timestamp", 1.5, "invalid_format", "timestamp", "1.5", "integer"),
    ("time in year 10000", BATCH, "timestamp", 253_402_300_800_000, "invalid_format", "timestamp", "253402300800000", "0..253402300799999"),
    ("null", BATCH, "timestamp", None, "invalid_format", "timestamp", "null", "integer"),
    ("events an object", BATCH, "events", {"a": 1}, "invalid_format", "events", '{"a": 1}', "array"),
    ("first event wrong", BATCH, "firstEventSequence", 5, "invalid_format", "firstEventSequence", "5", "first event"),
    ("last event wrong", BATCH, "lastEventSequence", 9, "invalid_format", "lastEventSequence", "9", "last event"),
    ("events that fall", BATCH, "events.1.sequence", 0, "invalid_format", "events.1.sequence", "0", ""),
    ("unknown operation", BATCH, "events.1.operation", "UPSERT", "invalid_format", "events.1.operation", "UPSERT", "INSERT"),
    ("small letters", BATCH, "events.0.operation", "insert", "invalid_format", "events.0.operation", "insert", "INSERT"),
    ("a path as table", BATCH, "events.1.table", "../../evil", "invalid_format", "events.1.table", "../../evil", TABLE_RULE),
    ("three parts", BATCH, "events.1.table", "a.b.c", "invalid_format", "events.1.table", "a.b.c", TABLE_RULE),
    ("our namespace", BATCH, "events.1.table", "dolake.x", "invalid_format", "events.1.table", "dolake.x", "dolake's own"),
    ("our suffix", BATCH, "events.1.table", "orders__changes", "invalid_format", "events.1.table", "orders__changes", "dolake's own"),
    ("row id a number", BATCH, "events.0.rowId", 5, "invalid_format", "events.0.rowId", "5", "string"),
    ("row a list", BATCH, "events.0.after", [1], "invalid_format", "events.0.after", "[1]", "object"),
    ("row as text", BATCH, "events.0.before", "{}", "invalid_format", "events.0.before", "{}", "object"),
    ("lsn an object", BATCH, "events.0.metadata", {"lsn": {}}, "invalid_format", "events.0.metadata.lsn", "{}", ""),
    ("transaction open-ended", BATCH, "transaction", {"id": "t"}, "invalid_format", "transaction.last", "nothing", "is required"),
    ("type that is none", SCHEMA, "columns.1.type", "number", "invalid_format", "columns.1.type", "number", "type"),
    ("decimal too wide", SCHEMA, "columns.1.type", "decimal(39,2)", "invalid_format", "columns.1.type", "decimal(39,2)", "38"),
    ("key not a column", SCHEMA, "primaryKey.0", "ID", "invalid_format", "primaryKey.0", "ID", "column"),
    ("column of ours", SCHEMA, "columns.1.name", "_cdc_lsn", "invalid_format", "columns.1.name", "_cdc_lsn", "_cdc_"),
    ("equal but for case", SCHEMA, "columns.1.name", "Id", "invalid_format", "columns.1.name", "Id", "case"),
    ("no columns", SCHEMA, "columns", [], "invalid_format", "columns", "0 columns", "1..2000 columns"),
    ("pending below zero", HEARTBEAT, "pendingEvents", -4, "invalid_format", "pendingEvents", "-4", "integer 0..2^63-1"),
    ("why a flush", FLUSH_REQUEST, "reason", "because", "invalid_format", "reason", "because", "manual"),
]
# On a connection that has not said who it is.
GREETING: list[tuple[str, Any, Any, Any, str, str, str, str]] = [
    ("batch before connect", BATCH, "timestamp", 5, "invalid_format", "type", "cdc_batch", "connect"),
    ("another version", CONNECT, "protocolVersion", 2, "invalid_format", "protocolVersion", "2", "1"),
    ("no capabilities", CONNECT, "capabilities", ABSENT, "invalid_format", "capabilities", "nothing", "is required"),
    ("empty source", CONNECT, "sourceDoId", "", "invalid_format", "sourceDoId", "", "1"),
]
# What the numbering and the limits of this daemon refuse: the message, the reason, whether to retry, field or text, value.
REFUSED: list[tuple[str, dict[str, Any], str, bool, dict[str, Any], str]] = [
    ("a gap", batch(9), "invalid_sequence", True, {"expectedSequence": 8}, "sequenceNumber: expected 8 (got 9)"),
    ("other content", batch(7, 4), "invalid_sequence", False, {}, "sequenceNumber: 7 was used for other events before"),
    ("an event too large", batch(8, metadata=None, events=[{**batch(8, 0, 1)["events"][0], "after": BIG}], lastEventSequence=0),
     "event_too_large", False, {"maxSize": 1000}, "(got 2"),
    ("too many events", batch(8, 0, 6), "invalid_format", False, {}, "events: holds at most 5 events (got 6 events)"),
    ("a message too large", batch(8, 0, 2, pad="x" * 70_000), "payload_too_large", False, {"maxSize": 65536}, "the message holds at most"),
]  # fmt: skip

# Arguments → exit code, the field, the value that offends, words of the rule. {here} is a data directory without a daemon.
COMMAND_LINE: list[tuple[list[str], int, str, str, str]] = [
    (["frobnicate"], 2, "command", "frobnicate", "No such command"),
    (["serve"], 2, "data", "nothing", "is required"),
    (["serve", "--data", "{here}", "--port", "x"], 2, "--port", "x", "integer"),
    (["serve", "--data", "{here}", "--prt", "1"], 2, "--prt", "--prt", "No such option"),
    (["serve", "--data", "{here}", "--port", "70000"], 2, "port", "70000", "at most 65535"),
    (["serve", "--data", "{here}", "--warehouse", "gs://b/x"], 2, "warehouse.uri", "gs://b/x", "file:///path or s3://"),
    (["serve", "--data", "{here}", "--log-level", "loud"], 2, "log_level", "loud", "'debug'"),
    (["serve", "--data", "{here}", "--config", "{here}/none.toml"], 2, "config", "none.toml", "file that can be read"),
    (["serve", "--data", "{here}/file/x"], 2, "data", "file/x", "not a directory"),
    (["flush", "a/b", "--data", "{here}"], 2, "TABLE", "a/b", TABLE_RULE),
    (["flush", "--data", "{here}"], 3, "daemon", "control.sock", "no daemon answers"),
    (["status", "--data", "{here}/none"], 2, "data", "/none", "data directory of dolake"),
    (["sources", "--data", "{here}/none"], 2, "data", "/none", "data directory of dolake"),
    (["status", "--data", "{here}", "--interval", "0"], 2, "--interval", "0", "0.1"),
    (["tables", "--data", "{here}/none"], 2, "data", "/none", "data directory of dolake"),
    (["inspect", "nope", "--data", "{here}"], 2, "TABLE", "nope", "no such table"),
    (["query", "--data", "{here}"], 2, "SQL", "SQL", "Missing argument"),
    (["log", "verify", "--data", "{here}"], 5, "log", "{here}/log", "there is no log here"),
    (["log", "init", "{here}/elsewhere", "--data", "{here}"], 2, "DIR", "{here}/elsewhere", "must be a directory of the log"),
    (["send", "{here}/none", "--source", "s", "--to", "ws://127.0.0.1:1/cdc"], 2, "FILE", "{here}/none", "No such file"),
    (["send", "{here}/file", "--source", "s", "--to", "ws://127.0.0.1:1/cdc", "--format", "xml"], 2, "--format", "xml", "native"),
    (["send", "{here}/file", "--source", "s", "--to", "ws://127.0.0.1:1/cdc", "--batch-events", "0"], 2, "--batch-events", "0", "1"),
    (["docs", "everything"], 2, "command", "everything", "No such command"),
]

# dolake.toml, environment → the field, the value that offends, words of the rule.
CONFIGURATION: list[tuple[str, dict[str, str], str, str, str]] = [
    ("port = -1", {}, "port", "-1", "at least 0"),
    ('port = "http"', {}, "port", "http", "whole number"),
    ("prot = 1", {}, "prot", "1", "did you mean port?"),
    ("[flush]\nage_s = 0", {}, "flush.age_s", "0", "more than 0"),
    ("[flush]\nage_s = inf", {}, "flush.age_s", "inf", "at most 86400"),
    ('[flush]\nbytes = "much"', {}, "flush.bytes", "much", '"64 MiB"'),
    ('[flush]\nbytes = "1 GiB"', {}, "flush.memory_bytes", "402653184", "at least flush.bytes"),
    ('[log]\nbacklog_bytes = "32 MiB"', {}, "log.backlog_bytes", "33554432", "at least log.segment_bytes"),
    ("[log]\nsegment_bytes = 5", {}, "log.segment_bytes", "5", "at least 4096"),
    ('[log]\ndirectories = ["a", "a"]', {}, "log.directories", "/a", "must differ"),
    ('log_format = "xml"', {}, "log_format", "xml", "'auto', 'console' or 'json'"),
    ('[warehouse]\nuri = "s3://UPPER/x"', {}, "warehouse.uri", "s3://UPPER/x", "bucket"),
    ('[s3]\nendpoint = "localhost:9000"', {}, "s3.endpoint", "localhost:9000", "http://"),
    ('[s3]\naccess_key = "k"', {}, "s3.secret_key", "nothing", "together with s3.access_key"),
    ('[tables."a b"]\nmode = "changelog"', {}, "tables.a b", "a b", "table pattern"),
    ('[tables."x"]\nmode = "log"', {}, "tables.x.mode", "log", "'mirror'"),
    ('[tables."x"]\nflush = {rows = 0}', {}, "tables.x.flush.rows", "0", "at least 1"),
    ("", {"DOLAKE_FLUSH_ROWS": "1e6"}, "flush.rows", "1e6 from DOLAKE_FLUSH_ROWS", "whole number"),
    ("", {"DOLAKE_PROT": "1"}, "DOLAKE_PROT", "1", "did you mean DOLAKE_PORT?"),
    ("not toml", {}, "config", "dolake.toml", "must be TOML"),
]  # fmt: skip


def test_there_are_at_least_sixty() -> None:
    assert len(WEBSOCKET) + len(GREETING) + len(REFUSED) + len(COMMAND_LINE) + len(CONFIGURATION) >= 60


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    limits = {"DOLAKE_LIMITS_EVENT_BYTES": "1000", "DOLAKE_LIMITS_BATCH_EVENTS": "5", "DOLAKE_LIMITS_PAYLOAD_BYTES": "65536"}
    with Daemon(tmp_path_factory.mktemp("bad") / "data", limits) as running:
        running.start().wait_ready()
        yield running
        assert running.stop() == 0
        assert "error" not in {json.loads(line)["level"] for line in running.output.read_text().splitlines()}


async def answers(daemon: Daemon, messages: list[Any]) -> list[dict[str, Any]]:
    """What a connection answers to each message in turn."""
    ready = daemon.ready()
    assert ready is not None
    found = []
    async with connect(ready.cdc, compression=None, proxy=None) as socket:
        for message in messages:
            await socket.send(message if isinstance(message, str | bytes) else json.dumps(message))
            found.append(json.loads(await socket.recv()))
    return found


def spoiled(message: Any, path: Any, value: Any) -> Any:
    return value if message is None else changed(message, path, value)


@pytest.mark.acceptance("AT-106")
def test_over_the_websocket(daemon: Daemon) -> None:
    """One connection for all of them: none of it ends the connection, none of it leaves a trace."""
    status, *nacks, ack = asyncio.run(answers(daemon, [CONNECT, *(spoiled(*row[1:4]) for row in WEBSOCKET), batch(7)]))
    assert status["type"] == "status"
    for (what, *_, reason, field, value, words), nack in zip(WEBSOCKET, nacks, strict=True):
        assert_nacked(what, nack, reason, field, value, words)
    assert (ack["type"], ack["status"], ack["sequenceNumber"]) == ("ack", "ok", 7)


@pytest.mark.acceptance("AT-106")
@pytest.mark.parametrize("row", GREETING, ids=lambda row: row[0])
def test_before_the_connect(daemon: Daemon, row: Any) -> None:
    what, message, path, value, reason, field, shown, words = row
    (nack,) = asyncio.run(answers(daemon, [spoiled(message, path, value)]))
    assert_nacked(what, nack, reason, field, shown, words)


@pytest.mark.acceptance("AT-105", "AT-106")
@pytest.mark.parametrize("row", REFUSED, ids=lambda row: row[0])
def test_what_numbering_and_limits_refuse(daemon: Daemon, row: Any) -> None:
    _, message, reason, should_retry, fields, words = row
    source = f"refused-{reason}-{should_retry}"
    message = {**message, "sourceDoId": source}
    messages = [{**CONNECT, "sourceDoId": source}, batch(7, source=source), message]
    *_, nack = asyncio.run(answers(daemon, messages))
    assert (nack["type"], nack["reason"], nack["shouldRetry"]) == ("nack", reason, should_retry), nack
    assert nack["sequenceNumber"] == message["sequenceNumber"]
    assert {name: nack.get(name) for name in fields} == fields
    assert words in nack["errorMessage"]


def assert_nacked(what: str, nack: dict[str, Any], reason: str, field: str, value: str, words: str) -> None:
    assert (nack["type"], nack["reason"], nack["shouldRetry"]) == ("nack", reason, False), (what, nack)
    mistakes = dict(mistake.split(": ", 1) for mistake in nack["errorMessage"].split("; "))
    assert field in mistakes, (what, nack)
    assert value in mistakes[field].rpartition(" (got ")[2], (what, nack)
    assert words in mistakes[field].rpartition(" (got ")[0], (what, nack)


@pytest.mark.acceptance("AT-106", "AT-107")
@pytest.mark.parametrize("row", COMMAND_LINE, ids=lambda row: " ".join(row[0])[:50])
def test_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], row: Any) -> None:
    arguments, code, field, value, words = row
    here = tmp_path / "lake"
    here.mkdir()
    (here / "file").write_text("{}\n")
    assert run([argument.replace("{here}", str(here)) for argument in arguments]) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert line.startswith("dolake: ")
    for part in (field, value.replace("{here}", str(here)), words):
        assert part in line
    assert os.listdir(here) == ["file"]


@pytest.mark.acceptance("AT-100", "AT-106")
@pytest.mark.parametrize("row", CONFIGURATION, ids=lambda row: " ".join((row[0] or str(row[1])).split())[:50])
def test_in_the_configuration(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, row: Any) -> None:
    toml, environment, field, value, words = row
    for name in set(os.environ) - set(clean_environment()):
        monkeypatch.delenv(name)
    for name, text in environment.items():
        monkeypatch.setenv(name, text)
    (tmp_path / "dolake.toml").write_text(toml, encoding="utf-8")
    assert run(["serve", "--data", str(tmp_path)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert line.startswith(f"dolake: {field}: ")
    rule, _, got = line.rpartition(" (got ")
    assert words in rule
    assert value in got
    assert os.listdir(tmp_path) == ["dolake.toml"]
