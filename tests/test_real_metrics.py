"""Every figure that dolake gives of itself, against what was sent, answered, logged and committed in a known run."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from pathlib import Path
from typing import Any

import orjson
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.harness.daemon import Daemon, Ready
from tests.harness.lake import Lake, read_metadata
from tests.harness.oracle import ledger_event
from tests.harness.posting import post, post_batch
from tests.harness.source import Conversation, batch_message, connect_message, conversation, flush, schema_message
from tests.harness.waiting import wait_until

SETTINGS = {"DOLAKE_FLUSH_AGE_S": "3600", "DOLAKE_LIMITS_PAYLOAD_BYTES": "65536", "DOLAKE_LIMITS_EVENT_BYTES": "16384"}
FAST = '[tables."fast"]\nflush.age_s = 0.1\n'
# What scripts read: a field may come, none may change its name or go.
TABLES_FIELDS = {
    "table",
    "rows",
    "snapshots",
    "files",
    "bytes",
    "offsets",
    "lastCommitTime",
    "ownerEpoch",
    "pendingRows",
    "state",
    "stopped",
}


class Run:
    """What was done to the daemon, counted by the one who did it."""

    def __init__(self, ready: Ready) -> None:
        self.ready = ready
        self.answers: Counter[tuple[str, str]] = Counter()
        self.statuses: Counter[int] = Counter()
        self.received_bytes = self.events = self.repeated_events = 0
        self.records: Counter[str] = Counter()
        self.by_table: Counter[str] = Counter()

    async def send(self, talk: Conversation, message: dict[str, Any] | bytes) -> None:
        frame = message if isinstance(message, bytes) else orjson.dumps(message)
        self.received_bytes += len(frame)
        await talk.socket.send(frame)
        answer = await talk.receive()
        if answer["type"] != "status":
            self._note(message, answer)

    async def post(self, message: dict[str, Any] | bytes) -> None:
        body = message if isinstance(message, bytes) else orjson.dumps(message)
        self.received_bytes += len(body)
        posted = await asyncio.to_thread(post, self.ready.http, body)
        self.statuses[posted.status] += 1
        self._note(message, posted.answer)

    def _note(self, message: dict[str, Any] | bytes, answer: dict[str, Any]) -> None:
        outcome = answer.get("status") or answer["reason"]
        self.answers[answer["type"], outcome] += 1
        events = message.get("events", []) if isinstance(message, dict) else []
        if outcome == "ok":
            assert isinstance(message, dict)
            self.records["schema" if message.get("type") == "schema" else "batch"] += 1
            self.events += len(events)
            self.by_table.update(event["table"] for event in events)
        elif outcome == "duplicate":
            self.repeated_events += len(events)


async def known_run(run: Run) -> None:
    """Two tables, two sources, both ways in, and every kind of refusal that a client can bring about."""
    async with conversation(run.ready.cdc) as talk:
        await run.send(talk, connect_message("framed"))
        await run.send(talk, schema_message("framed", 1, "slow"))
        await run.send(talk, schema_message("framed", 2, "fast"))
        for number in range(3, 23):
            tables = ("slow", "fast") if number % 4 == 0 else ("slow",)
            events = [ledger_event(number * 30 + place, tables[place % len(tables)]) for place in range(30)]
            await run.send(talk, batch_message("framed", number, events))
        await run.send(talk, batch_message("framed", 22, events))
        await run.send(talk, batch_message("framed", 23, []))
        await run.send(talk, batch_message("framed", 99, events))
        await run.send(talk, batch_message("framed", 22, events[:5]))
        await run.send(talk, {**batch_message("framed", 24, events), "isRetry": 7})
        await run.send(talk, b"{nonsense")
        await run.send(talk, b" " * 65_537)
    for number in range(1, 6):
        events = [ledger_event(10_000 + number * 10 + place, "slow") for place in range(10)]
        await run.post(post_batch("posted", number, events))
    await run.post(post_batch("posted", 5, events))
    await run.post(post_batch("posted", 7, events))
    await run.post(post_batch("posted", 6, []) | {"type": "connect"})
    await run.post(post_batch("posted", 6, []) | {"events": [{**ledger_event(1).to_wire(), "rowId": "x" * 20_000}]})


def samples(daemon: Daemon, name: str) -> dict[tuple[str, ...], float]:
    """The values of one metric, by its labels' values in the order of the labels' names."""
    return {labels: value for (found, labels), value in parsed(daemon).items() if found == name}


def parsed(daemon: Daemon) -> dict[tuple[str, tuple[str, ...]], float]:
    families = text_string_to_metric_families(daemon.metrics_text())
    return {(one.name, tuple(value for _, value in sorted(one.labels.items()))): one.value for family in families for one in family.samples}


def total(daemon: Daemon, name: str) -> float:
    return sum(samples(daemon, name).values())


def inspected(daemon: Daemon) -> list[dict[str, Any]]:
    """The log's segments and records, as its own inspection lists them."""
    done = daemon.run("log", "inspect", "--json", "--records")
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def logged(daemon: Daemon) -> list[dict[str, Any]]:
    """The records that came from sources."""
    lines = inspected(daemon)
    (log_id,) = {line["log"] for line in lines if "segment" in line}
    return [{**line, "log": log_id} for line in lines if line.get("kind") in ("batch", "schema")]


def snapshots(lake: Lake, table: str) -> list[dict[str, Any]]:
    location = lake.metadata_location(table)
    assert location is not None
    found: list[dict[str, Any]] = read_metadata(location)["snapshots"]
    return found


@pytest.mark.acceptance("AT-103")
def test_every_figure_of_a_known_run_is_exact(tmp_path: Path) -> None:
    with Daemon(tmp_path / "data", SETTINGS, table_settings=FAST) as daemon, Lake(daemon.data) as lake:
        ready = daemon.start().wait_ready()
        run = Run(ready)
        asyncio.run(known_run(run))
        what_came_in(daemon, run)
        what_waits(daemon, lake, run)
        assert asyncio.run(flush(ready.cdc))["success"] is True
        what_is_committed(daemon, lake, run)
        what_is_listed(daemon, lake, run)


def what_came_in(daemon: Daemon, run: Run) -> None:
    answers = Counter({("ack", labels[0]): int(value) for labels, value in samples(daemon, "dolake_cdc_acks_total").items()})
    answers.update({("nack", labels[0]): int(value) for labels, value in samples(daemon, "dolake_cdc_nacks_total").items()})
    assert answers == run.answers
    assert set(run.answers) == {
        *(("ack", status) for status in ("ok", "duplicate")),
        *(("nack", reason) for reason in ("invalid_sequence", "invalid_format", "payload_too_large", "event_too_large")),
    }
    assert total(daemon, "dolake_cdc_events_total") == run.events == 650
    assert total(daemon, "dolake_cdc_duplicate_events_total") == run.repeated_events == 40
    assert total(daemon, "dolake_cdc_received_bytes_total") == run.received_bytes
    assert (
        samples(daemon, "dolake_cdc_batches_total") == {("batch",): 26, ("schema",): 2} == {(kind,): n for kind, n in run.records.items()}
    )
    assert total(daemon, "dolake_cdc_ack_seconds_count") == sum(count for (kind, _), count in run.answers.items() if kind == "ack")
    records = logged(daemon)
    log_id = (records[0]["log"],)
    assert samples(daemon, "dolake_wal_records_total") == {log_id: len(records)} == {log_id: 28}
    assert samples(daemon, "dolake_wal_appended_bytes_total") == {log_id: sum(record["stored_bytes"] for record in records)}
    assert samples(daemon, "dolake_wal_synced_offset") == {log_id: max(record["offset"] for record in records) + 1}
    assert 1 <= total(daemon, "dolake_wal_sync_seconds_count") <= 28
    posts = {labels[1]: value for labels, value in samples(daemon, "dolake_http_requests_total").items() if labels[0] == "/cdc"}
    assert posts == {str(status): count for status, count in run.statuses.items()}
    assert set(posts) == {"200", "400", "409", "413"}
    assert samples(daemon, "dolake_http_request_seconds_count")["/cdc",] == sum(run.statuses.values())


def what_waits(daemon: Daemon, lake: Lake, run: Run) -> None:
    """`fast` is committed soon, `slow` is not: what is not committed is exactly what `slow` was sent."""
    slow, fast = run.by_table["slow"], run.by_table["fast"]
    waiting = {("default.slow",): slow, ("default.fast",): 0}
    wait_until(lambda: samples(daemon, "dolake_table_uncommitted_events_count") == waiting, lambda: f"{waiting}\n{daemon.tail()}", 60)
    wait_until(lambda: total(daemon, "dolake_wal_uncommitted_events_count") == slow, "the log's own count to be that of `slow`")
    ages = samples(daemon, "dolake_table_uncommitted_age_seconds")
    assert ages["default.fast",] == 0 < ages["default.slow",]
    first = total(daemon, "dolake_wal_uncommitted_age_seconds")
    assert first > 0
    wait_until(lambda: total(daemon, "dolake_wal_uncommitted_age_seconds") > first, "what waits to grow older")
    records = logged(daemon)
    log_id = records[0]["log"]
    low = min(record["offset"] for record in records if record["tables"].get("slow") is not None)
    wait_until(lambda: samples(daemon, "dolake_wal_low_offset") == {(log_id,): low}, "the first record of `slow` to be the low offset")
    segments = [line for line in inspected(daemon) if "segment" in line]
    assert total(daemon, "dolake_wal_backlog_bytes") == sum(line["size_bytes"] for line in segments if line["end"] > low)
    assert samples(daemon, "dolake_writer_read_offset") == samples(daemon, "dolake_wal_synced_offset")
    last_fast = max(record["offset"] for record in records if record["tables"].get("fast"))
    assert samples(daemon, "dolake_table_committed_offset")[log_id, "default.fast"] > last_fast
    assert samples(daemon, "dolake_table_events_total") == {("default.fast",): fast}
    assert lake.row_count("fast") == fast


def what_is_committed(daemon: Daemon, lake: Lake, run: Run) -> None:
    for name in ("dolake_table_uncommitted_events_count", "dolake_wal_uncommitted_events_count", "dolake_wal_backlog_bytes"):
        wait_until(lambda name=name: total(daemon, name) == 0, lambda name=name: f"{name} to be 0, not {samples(daemon, name)}", 60)
    assert total(daemon, "dolake_wal_uncommitted_age_seconds") == total(daemon, "dolake_table_uncommitted_age_seconds") == 0
    assert samples(daemon, "dolake_wal_low_offset") == samples(daemon, "dolake_wal_synced_offset")
    assert samples(daemon, "dolake_table_events_total") == {(f"default.{table}",): count for table, count in run.by_table.items()}
    ours = [snapshot for table in run.by_table for snapshot in snapshots(lake, table)]
    landed = total(daemon, "dolake_commit_landed_total")
    assert landed == len(ours)
    assert landed == total(daemon, "dolake_flush_runs_total") == total(daemon, "dolake_flush_seconds_count")
    assert landed == total(daemon, "dolake_commit_seconds_count") == total(daemon, "dolake_commit_attempts_total")
    assert total(daemon, "dolake_flush_files_total") == sum(int(snapshot["summary"].get("added-data-files", 0)) for snapshot in ours)
    assert total(daemon, "dolake_flush_file_bytes_total") == sum(int(snapshot["summary"].get("added-files-size", 0)) for snapshot in ours)
    for name in ("conflicts", "unknown"):
        assert total(daemon, f"dolake_commit_{name}_total") == 0
    assert total(daemon, "dolake_table_stopped_count") == 0
    assert total(daemon, "dolake_table_dead_letters_total") == 0
    assert total(daemon, "dolake_process_up_count") == 3
    assert 0 <= total(daemon, "dolake_writer_report_age_seconds") <= 5


def what_is_listed(daemon: Daemon, lake: Lake, run: Run) -> None:
    done = daemon.run("tables", "--json")
    assert done.returncode == 0, done.stderr
    listed = {table["table"]: table for table in json.loads(done.stdout)}
    assert set(listed) == {"default.slow", "default.fast"}
    for table, count in run.by_table.items():
        row, history = listed[f"default.{table}"], snapshots(lake, table)
        assert set(row) >= TABLES_FIELDS
        summary = history[-1]["summary"]
        assert (row["rows"], row["pendingRows"], row["state"], row["stopped"]) == (count, 0, "following", None)
        assert (row["snapshots"], row["lastCommitTime"]) == (len(history), history[-1]["timestamp-ms"])
        assert (row["files"], row["bytes"]) == (int(summary["total-data-files"]), int(summary["total-files-size"]))
        offsets = {log: value for (log, name), value in samples(daemon, "dolake_table_committed_offset").items() if name == row["table"]}
        assert row["offsets"] == offsets
        assert row["ownerEpoch"] == 1
        assert lake.row_count(table) == count


@pytest.mark.acceptance("AT-103")
def test_counters_begin_again_with_their_process_and_say_so(tmp_path: Path) -> None:
    with Daemon(tmp_path / "data", SETTINGS) as daemon:
        ready = daemon.start().wait_ready()
        assert post(ready.http, schema_message("s", 1, "ledger")).summary == (200, 1, "ok")
        for number in range(2, 6):
            assert post(ready.http, post_batch("s", number, [ledger_event(number)] * 1)).summary == (200, number, "ok")
        wait_until(lambda: total(daemon, "dolake_wal_uncommitted_events_count") == 4, "four events to wait")
        started = samples(daemon, "dolake_process_started_seconds")
        daemon.kill("ingest")
        daemon.wait_replaced(ready, "ingest")
        assert total(daemon, "dolake_cdc_events_total") == 0
        restarted = samples(daemon, "dolake_process_started_seconds")
        assert restarted["ingest",] > started["ingest",]
        assert {one: restarted[one] for one in [("writer",), ("http",)]} == {one: started[one] for one in [("writer",), ("http",)]}
        assert post(ready.http, post_batch("s", 6, [ledger_event(6)])).summary == (200, 6, "ok")
        # What waits is no count of a process: it is what the log holds and the tables do not.
        wait_until(lambda: total(daemon, "dolake_wal_uncommitted_events_count") == 5, lambda: f"five\n{daemon.tail()}")
        daemon.kill("writer")
        daemon.wait_replaced(ready, "ingest", "writer")
        wait_until(lambda: total(daemon, "dolake_wal_uncommitted_events_count") == 5, lambda: f"five again\n{daemon.tail()}")
        tables = {("default.ledger",): 5}  # Known again once the new writer has read the log.
        wait_until(lambda: samples(daemon, "dolake_table_uncommitted_events_count") == tables, lambda: f"the table\n{daemon.tail()}")


@pytest.mark.acceptance("AT-103")
def test_what_becomes_a_dead_letter_is_counted_and_waits_no_more(tmp_path: Path) -> None:
    with Daemon(tmp_path / "data", SETTINGS) as daemon, Lake(daemon.data) as lake:
        ready = daemon.start().wait_ready()
        assert post(ready.http, schema_message("s", 1, "ledger")).summary == (200, 1, "ok")
        events = [ledger_event(number).to_wire() for number in range(1, 11)]
        for place in (2, 5, 6):
            events[place] = {**events[place], "operation": "INSERT", "before": None, "after": {"id": place, "amount": "a lot"}}
        assert post(ready.http, {"sourceDoId": "s", "sequenceNumber": 2, "events": events}).summary == (200, 2, "ok")
        assert asyncio.run(flush(ready.cdc))["success"] is True
        wait_until(
            lambda: samples(daemon, "dolake_table_uncommitted_events_count") == {("default.ledger",): 0}, "everything to be committed"
        )
        assert samples(daemon, "dolake_table_dead_letters_total") == {("default.ledger",): 3}
        assert lake.row_count("ledger") == 7
        assert total(daemon, "dolake_cdc_events_total") == 10
