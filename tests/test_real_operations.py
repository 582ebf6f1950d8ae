"""Being operated, with a real `dolake serve`: how it ends when asked to, and what its log lines never say."""

from __future__ import annotations

import asyncio
import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, WebSocketException

from tests.harness.daemon import Daemon, status
from tests.harness.history import assert_lake_equals_oracle
from tests.harness.lake import Lake
from tests.harness.oracle import Oracle, ledger_event
from tests.harness.source import Source, batch_message, connect_message, conversation, schema_message
from tests.harness.traffic import Traffic, url_of
from tests.harness.waiting import wait_until, wait_until_async

MARKER = "c0ffee-not-for-logs"


def ask_to_stop(daemon: Daemon) -> asyncio.Task[int]:
    return asyncio.get_running_loop().create_task(asyncio.to_thread(daemon.stop))


def test_sigterm_answers_what_is_in_flight_and_nacks_what_comes_after(tmp_path: Path) -> None:
    """One batch is held in its sync while the daemon is told to stop; the next one comes too late."""
    held = tmp_path / "held"
    oracle = Oracle(tmp_path / "journal")
    settings = {"DOLAKE_FAILPOINTS": f"wal.before_sync=pause({held})", "DOLAKE_FLUSH_AGE_S": "60"}
    with Daemon(tmp_path / "data", settings) as daemon, Lake(daemon.data) as lake:
        ready = daemon.start().wait_ready()

        async def scenario() -> None:
            async with conversation(ready.cdc) as talk:
                await talk.ask(connect_message("s"))
                assert (await talk.ask(schema_message("s", 1, "ledger")))["status"] == "ok"
                held.touch()
                for sequence in (2, 3):
                    oracle.sent("s", "", sequence, [ledger_event(sequence)])
                received_bytes = daemon.metrics()["dolake_cdc_received_bytes_total"]
                await talk.send(batch_message("s", 2, [ledger_event(2)]))
                await wait_until_async(
                    lambda: daemon.metrics()["dolake_cdc_received_bytes_total"] > received_bytes, "the batch to have been taken"
                )
                stopping = ask_to_stop(daemon)
                await wait_until_async(lambda: status(ready.http + "/ready") == 503, "the ingest half to say that it is stopping")
                await talk.send(batch_message("s", 3, [ledger_event(3)]))
                # Its nack may not overtake the answer before it, so that only the file's going lets both leave.
                held.unlink()
                first, second = await talk.receive(), await talk.receive()
                assert (first["type"], first["sequenceNumber"], first["status"]) == ("ack", 2, "ok")
                oracle.acked("s", "", 2, "ok")
                assert (second["type"], second["sequenceNumber"], second["reason"]) == ("nack", 3, "shutting_down")
                assert second["shouldRetry"] is True
                assert second["retryDelayMs"] > 0
                with pytest.raises(ConnectionClosed) as closed:
                    await talk.receive()
                assert closed.value.rcvd is not None
                assert closed.value.rcvd.code == 1001
                assert await stopping == 0

        asyncio.run(scenario())
        assert_lake_equals_oracle(lake, oracle)
        assert lake.row_count("ledger") == 1, "what was acked is committed, what was nacked left no trace"
        verified = daemon.run("verify")
        assert (verified.returncode, verified.stdout) == (0, "no breach\n")


def test_sigterm_under_load_ends_with_0_and_everything_acked_committed(tmp_path: Path) -> None:
    oracle = Oracle(tmp_path / "journal")
    with Daemon(tmp_path / "data", {"DOLAKE_FLUSH_AGE_S": "60"}) as daemon, Lake(daemon.data) as lake:
        daemon.start().wait_ready()

        async def scenario() -> None:
            traffics = [
                Traffic(Source(f"s{n}", oracle, window=32), url_of(daemon), table=f"ledger_{n % 2}", batch_size=20, interval_s=0.001)
                for n in range(4)
            ]
            running = [asyncio.get_running_loop().create_task(traffic.run()) for traffic in traffics]
            try:
                await wait_until_async(lambda: all(traffic.source.acked > 50 for traffic in traffics), "every source to be under way")
                assert await ask_to_stop(daemon) == 0, daemon.tail()
            finally:
                for task in running:
                    task.cancel()
                for task in running:
                    with contextlib.suppress(asyncio.CancelledError):
                        await task
            for nacks in (traffic.source.nacks for traffic in traffics):
                # What comes behind a batch that was nacked is a gap, as always.
                assert [nack["reason"] for nack in nacks] == ["shutting_down", *["invalid_sequence"] * len(nacks[1:])][: len(nacks)]
                assert all(nack["shouldRetry"] for nack in nacks)
            assert all(code in (1001, 1006) for traffic in traffics for code in traffic.source.closes)

        asyncio.run(scenario())
        assert_lake_equals_oracle(lake, oracle)
        verified = daemon.run("verify")
        assert (verified.returncode, verified.stdout) == (0, "no breach\n")
        for file in (daemon.data / "log").glob("*.*"):
            assert file.suffix in (".log", ".open")


@pytest.mark.acceptance("AT-98")
def test_neither_rows_nor_tokens_are_ever_logged(tmp_path: Path) -> None:
    """A marker as a good value, as one that does not fit, in messages that break rules, in what is no message, as a token."""
    marked = {**dict(ledger_event(1).row), "note": MARKER, "account": MARKER}
    settings = {"DOLAKE_LOG_LEVEL": "debug", "DOLAKE_FLUSH_AGE_S": "0.2"}
    with Daemon(tmp_path / "data", settings) as daemon:
        ready = daemon.start().wait_ready()
        good = [{**ledger_event(n).to_wire(), "operation": "INSERT", "after": {**marked, "id": n}} for n in range(5)]
        misfit = {**ledger_event(9).to_wire(), "operation": "INSERT", "after": {**marked, "id": MARKER}}
        untyped = {**ledger_event(10).to_wire(), "table": "bare", "operation": "INSERT", "after": {MARKER: MARKER}}

        async def scenario() -> None:
            async with connect(
                f"{ready.cdc}?token={MARKER}", additional_headers={"Authorization": f"Bearer {MARKER}"}, proxy=None
            ) as socket:
                for message in (connect_message("s"), schema_message("s", 1, "ledger"), schema_message("s", 2, "fine")):
                    await socket.send(json.dumps(message))
                    await socket.recv()
                for sequence, events in enumerate((good, [{**good[0], "table": "fine"}], [misfit], [untyped], [misfit]), start=3):
                    numbers = {"firstEventSequence": events[0]["sequence"], "lastEventSequence": events[-1]["sequence"]}
                    await socket.send(json.dumps({**batch_message("s", sequence, [], **numbers), "events": events}))
                    answer = json.loads(await socket.recv())
                    assert answer["type"] == "ack", answer
                for bad in bad_frames():
                    await socket.send(bad)
                    answer = json.loads(await socket.recv())
                    assert (answer["type"], answer["reason"]) == ("nack", "invalid_format"), answer
            for path in (f"/{MARKER}", f"/cdc/{MARKER}"):
                with contextlib.suppress(OSError, WebSocketException):
                    async with connect(ready.cdc.replace("/cdc", path), proxy=None):
                        pass

        asyncio.run(scenario())
        wait_until(lambda: '"table": "default.fine"' in daemon.output.read_text(), "a flush to be logged")
        daemon.kill("writer")
        daemon.wait_ready()
        daemon.stop()
        lines = daemon.output.read_text().splitlines()
        for line in lines:
            assert {"time", "level", "process", "pid", "event"} <= set(json.loads(line)), line
            assert MARKER not in line
        assert {json.loads(line)["process"] for line in lines} >= {"supervisor", "writer"}


def bad_frames() -> list[str | bytes]:
    """What is nacked `invalid_format` one way or another, with the marker where it breaks the rule."""
    batch: dict[str, Any] = batch_message("s", 99, [ledger_event(1)])
    event = batch["events"][0]
    return [
        MARKER,
        MARKER.encode(),
        json.dumps({"type": MARKER}),
        json.dumps({**batch, "sourceDoId": MARKER, "sequenceNumber": MARKER}),
        json.dumps({**batch, "events": MARKER}),
        json.dumps({**batch, "events": [{**event, "operation": MARKER}]}),
        json.dumps({**batch, "events": [{**event, "table": MARKER + "/.."}]}),
        json.dumps({**batch, "events": [{**event, "after": MARKER, "rowId": 5}]}),
        json.dumps({**batch, "events": [{**event, "before": [MARKER]}]}),
        ('{"type": "cdc_batch", "events": [{"after": {"a": "' + MARKER + '"'),
        b"ARW1" + MARKER.encode(),
        b"\xff\xfe" + MARKER.encode(),
    ]
