"""Each limit: L is accepted, L + 1 gets its typed error, never either; and what comes too fast comes through in the end."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from dolake.clock import Runtime, SystemRandomness, ThreadTasks
from dolake.ingest.service import IngestService
from tests.cdc.samples import HEARTBEAT, SCHEMA, batch, event, frame
from tests.ingest.rig import Peer, TroubledDisk, ingest_settings
from tests.ingest.test_connection import summary


class StandingClock:
    """Time that passes only when somebody waits: then at once, as long as was asked for."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.slept: list[float] = []

    def now_ms(self) -> int:
        return 1_767_225_600_000 + round(self.now_s * 1000)

    def monotonic_s(self) -> float:
        return self.now_s

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now_s += seconds
        await asyncio.sleep(0)


def play(directory: Path, scene: Any, **limits: Any) -> StandingClock:
    """Runs a scene over a service whose clock stands still; the scene gets (clock, peer that has connected)."""
    clock = StandingClock()

    async def run() -> None:
        runtime = Runtime(clock=clock, random=SystemRandomness(), tasks=ThreadTasks(2))
        service = IngestService(runtime, TroubledDisk(), ingest_settings(directory, limits=limits))
        await service.start()
        try:
            async with asyncio.timeout(60):
                peer = Peer(service)
                await peer.greet()
                await scene(clock, peer)
        finally:
            await service.stop()

    asyncio.run(run())
    return clock


def padded(message: dict[str, Any], size_bytes: int) -> bytes:
    """A message of exactly so many bytes."""
    sent = frame(message)
    return sent + b" " * (size_bytes - len(sent))


def schema(column_count: int, sequence: int = 0) -> dict[str, Any]:
    columns = [{"name": "id", "type": "long", "nullable": False}]
    columns += [{"name": f"c{number}", "type": "string", "nullable": True} for number in range(column_count - 1)]
    return {**SCHEMA, "sequenceNumber": sequence, "columns": columns}


def long_event(size_bytes: int) -> dict[str, Any]:
    """An event of exactly so many bytes of JSON."""
    empty = event(0, after={"x": ""})
    return event(0, after={"x": "y" * (size_bytes - len(frame(empty)))})


def named(field: str, name: str) -> dict[str, Any]:
    if field == "table":
        return batch(0, events=[event(0, table=name)], count=1)
    return {**schema(1), "columns": [{"name": "id", "type": "long", "nullable": False}, {"name": name, "type": "long", "nullable": True}]}


LIMITS: list[tuple[str, dict[str, Any], Any, Any, str, dict[str, Any]]] = [
    (
        "payload",
        {"payload_bytes": 2000, "event_bytes": 2000},
        padded(batch(0), 2000),
        padded(batch(0), 2001),
        "the message holds at most 2000 bytes (got 2001)",
        {"reason": "payload_too_large", "maxSize": 2000, "actualSize": 2001},
    ),
    (
        "event",
        {"event_bytes": 500},
        batch(0, count=1, events=[long_event(500)]),
        batch(0, count=1, events=[long_event(501)]),
        "an event holds at most 500 bytes (got 501)",
        {"reason": "event_too_large", "maxSize": 500, "actualSize": 501},
    ),
    (
        "events",
        {"batch_events": 100},
        batch(0, count=100),
        batch(0, count=101),
        "events: holds at most 100 events (got 101 events)",
        {"reason": "invalid_format"},
    ),
    (
        "columns",
        {"columns": 30},
        schema(30),
        schema(31),
        "columns: holds at most 30 columns (got 31 columns)",
        {"reason": "invalid_format"},
    ),
    (
        "default columns",
        {},
        schema(1000),
        schema(1001),
        "columns: holds at most 1000 columns (got 1001 columns)",
        {"reason": "invalid_format"},
    ),
    (
        "table name",
        {},
        named("table", "t" * 128),
        named("table", "t" * 129),
        'events.0.table: a table is `name` or `namespace.name`, each part [A-Za-z0-9_]{1,128} (got "' + "t" * 129 + '")',
        {"reason": "invalid_format"},
    ),
    (
        "column name",
        {},
        named("column", "c" * 256),
        named("column", "c" * 257),
        "columns.1.name: ",
        {"reason": "invalid_format"},
    ),
]


@pytest.mark.acceptance("AT-105")
@pytest.mark.parametrize(("limits", "most", "more", "text", "fields"), [row[1:] for row in LIMITS], ids=[row[0] for row in LIMITS])
def test_the_limit_is_accepted_and_one_more_is_refused_by_name(tmp_path, limits, most, more, text, fields):
    async def scene(_, peer):
        for _ in range(2):  # Refused once is refused always; and it leaves no trace.
            refused = await peer.ask(more)
            assert refused["errorMessage"].startswith(text)
            assert {name: refused[name] for name in fields} == fields
            assert refused["shouldRetry"] is False
        assert summary(await peer.ask(most)) == ("ack", 0, "ok")
        assert peer.ended is None

    play(tmp_path, scene, **limits)


@pytest.mark.acceptance("AT-105")
def test_a_source_name_of_256_characters_connects_and_one_of_257_does_not(tmp_path):
    async def scene(_, peer):
        longest = Peer(peer.connection._service)
        assert (await longest.greet("s" * 256))["type"] == "status"
        refused = await Peer(peer.connection._service).greet("s" * 257)
        assert (refused["reason"], refused["shouldRetry"]) == ("invalid_format", False)
        assert refused["errorMessage"].startswith("sourceDoId: ")

    play(tmp_path, scene)


@pytest.mark.acceptance("AT-105")
def test_a_burst_of_messages_passes_and_the_next_one_is_rate_limited(tmp_path):
    async def scene(clock, peer):
        # One token went to the connect.
        for number in range(19):
            answer = await peer.ask(batch(number))
            assert summary(answer) == ("ack", number, "ok")
            assert answer["rateLimit"]["limit"] == 20
            assert answer["rateLimit"]["remaining"] == 18 - number
        refused = await peer.ask({**batch(19), "correlationId": "c"})
        assert summary(refused) == ("nack", 19, "rate_limited")
        assert (refused["shouldRetry"], refused["correlationId"]) == (True, "c")
        assert refused["errorMessage"] == "this connection may send 10 messages a second"
        assert refused["rateLimit"] == {"limit": 20, "remaining": 0, "resetAt": 1_767_225_602}
        assert 50 <= refused["retryDelayMs"] <= 150
        assert clock.slept == [pytest.approx(0.1)]  # and nothing more is read until something may come
        assert summary(await peer.ask(batch(19))) == ("ack", 19, "ok")

    play(tmp_path, scene, messages_per_s=10)


@pytest.mark.acceptance("AT-105", "AT-10")
def test_a_burst_of_events_passes_and_one_more_is_rate_limited_with_a_growing_delay(tmp_path):
    async def scene(clock, peer):
        assert summary(await peer.ask(batch(0, count=2000))) == ("ack", 0, "ok")
        delays = []
        for _ in range(12):
            refused = await peer.ask(batch(1, first=2000, count=1))
            assert summary(refused) == ("nack", 1, "rate_limited")
            assert refused["errorMessage"] == "this connection may send 1000 events a second"
            assert refused["rateLimit"]["remaining"] == 0
            delays.append(refused["retryDelayMs"])
        for place, delay_ms in enumerate(delays):
            assert 0.5 * min(100 * 2**place, 30_000) <= delay_ms <= 1.5 * min(100 * 2**place, 30_000)
        clock.now_s += 0.5
        answer = await peer.ask(batch(1, first=2000, count=500))
        assert summary(answer) == ("ack", 1, "ok")
        assert answer["details"]["suggestedDelayMs"] == 400  # until a fifth of what may come at once is there again
        clock.now_s += 10
        # More than two seconds of events: accepted when nothing has come for two seconds, and paid for afterwards.
        assert summary(await peer.ask(batch(2, first=2500, count=5000))) == ("ack", 2, "ok")
        clock.now_s += 2.9
        assert summary(await peer.ask(batch(3, first=7500, count=1))) == ("nack", 3, "rate_limited")
        clock.now_s += 0.2
        assert summary(await peer.ask(batch(3, first=7500, count=1))) == ("ack", 3, "ok")

    play(tmp_path, scene, events_per_s=1000)


def test_repeats_and_gaps_cost_no_events(tmp_path):
    async def scene(clock, peer):
        assert summary(await peer.ask(batch(0, count=2000))) == ("ack", 0, "ok")
        assert summary(await peer.ask(batch(0, count=2000))) == ("ack", 0, "duplicate")
        assert summary(await peer.ask(batch(5, first=2000, count=1))) == ("nack", 5, "invalid_sequence")

    play(tmp_path, scene, events_per_s=1000)


def test_a_refused_batch_leaves_a_gap_and_all_of_it_comes_through_when_sent_again_from_there(tmp_path):
    async def scene(clock, peer):
        assert summary(await peer.ask(batch(0, count=1900))) == ("ack", 0, "ok")
        for number in (1, 2, 3):
            await peer.send(batch(number, first=1900 + 200 * number, count=200))
        answers = [await peer.answer() for _ in range(3)]
        assert [summary(answer) for answer in answers] == [
            ("nack", 1, "rate_limited"),
            ("nack", 2, "invalid_sequence"),
            ("nack", 3, "invalid_sequence"),
        ]
        assert [answer.get("expectedSequence") for answer in answers] == [None, 1, 1]
        clock.now_s += 1
        for number in (1, 2, 3):
            assert summary(await peer.ask(batch(number, first=1900 + 200 * number, count=200))) == ("ack", number, "ok")

    play(tmp_path, scene, events_per_s=1000)


@pytest.mark.parametrize(
    ("sent", "cost"),
    [(b"ping", 1), (frame(HEARTBEAT), 1), (b"{", 10), (b"\xff", 10)],
    ids=["ping", "heartbeat", "no JSON", "no text"],
)
def test_what_is_no_batch_waits_its_turn_instead_of_being_refused_and_mistakes_wait_longer(tmp_path, sent, cost):
    async def scene(clock, peer):
        for _ in range(100):
            await peer.send(sent)
        answers = [await peer.answer() for _ in range(100)]
        assert {answer.get("reason") for answer in answers} <= {None, "invalid_format"}
        # The last may be paid for later.
        assert clock.now_s == pytest.approx((1 + 100 * cost - 20) / 10, abs=0.1 * (cost + 1))

    play(tmp_path, scene, messages_per_s=10)


def test_by_default_seven_hundred_large_batches_a_second_are_not_slowed_down(tmp_path):
    async def scene(clock, peer):
        for number in range(2100):
            clock.now_s += 1 / 700
            answer = await peer.ask(batch(number, first=number, count=1))
            assert summary(answer) == ("ack", number, "ok")
            assert "suggestedDelayMs" not in answer["details"]
        assert clock.slept == []

    play(tmp_path, scene)
