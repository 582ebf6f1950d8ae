"""What a client gets for what it sends, in order, over a real log."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from dolake.ingest.service import IngestService
from tests.cdc.samples import CONNECT, DISCONNECT, FLUSH_REQUEST, HEARTBEAT, SCHEMA, batch, event, frame
from tests.ingest.rig import Peer, TroubledDisk, eventually, serving

Scene = Callable[[IngestService, Peer], Awaitable[None]]


def play(directory: Path, scene: Scene, *, greet: bool = True, disk: TroubledDisk | None = None, **sections: Any) -> None:
    async def run() -> None:
        async with asyncio.timeout(30), serving(directory, disk=disk, **sections) as service:
            peer = Peer(service)
            if greet:
                await peer.greet()
            await scene(service, peer)

    asyncio.run(run())


def summary(answer: dict[str, Any]) -> tuple[Any, ...]:
    return answer["type"], answer["sequenceNumber"], answer.get("status") or answer["reason"]


def test_ping_is_answered_before_anything_else(tmp_path):
    async def scene(_, peer):
        assert await peer.ask(b"ping") == {"pong": True}

    play(tmp_path, scene, greet=False)


def test_a_new_source_is_told_to_begin_anywhere(tmp_path):
    async def scene(service, peer):
        status = await peer.ask({**CONNECT, "correlationId": "c"})
        assert (status["type"], status["lastSequence"], status["lastEventSequence"], status["epoch"]) == ("status", -1, -1, "")
        sizes = {"maxPayloadBytes": 16 << 20, "maxEventBytes": 1 << 20, "maxBatchEvents": 10_000, "maxColumns": 1000}
        assert status["limits"] == {**sizes, "maxMessagesPerS": 1000}
        assert (status["state"], status["connectedSources"], status["correlationId"]) == ("idle", 1, "c")
        assert "lost" not in status
        assert summary(await peer.ask(batch(700))) == ("ack", 700, "ok")

    play(tmp_path, scene, greet=False)


def test_a_batch_and_a_schema_are_acked_and_numbered_alike(tmp_path):
    async def scene(service, peer):
        first = await peer.ask({**SCHEMA, "correlationId": "a"})
        assert (summary(first), first["correlationId"], first["details"]["eventsProcessed"]) == (("ack", 0, "ok"), "a", 0)
        second = await peer.ask(batch(1, count=5))
        assert (summary(second), second["details"]["eventsProcessed"]) == (("ack", 1, "ok"), 5)
        assert "suggestedDelayMs" not in second["details"]
        assert summary(await peer.ask(batch(2, events=[]))) == ("ack", 2, "ok")
        assert service.metrics.get("dolake_cdc_events_total") == 5

    play(tmp_path, scene)


def test_the_status_says_where_to_go_on(tmp_path):
    async def scene(service, peer):
        await peer.ask(batch(3, first=50, count=4, events=[event(number, metadata={"lsn": f"0/{number}"}) for number in range(50, 54)]))
        status = await Peer(service).greet()
        assert (status["lastSequence"], status["lastEventSequence"], status["lastLsn"]) == (3, 53, "0/53")
        assert status["buffer"]["eventCount"] == 4
        assert status["buffer"]["batchCount"] == 1
        assert status["buffer"]["totalSizeBytes"] > 0

    play(tmp_path, scene)


@pytest.mark.acceptance("AT-05")
def test_repeats_are_acked_and_not_applied_on_the_same_connection_after_reconnect_and_after_restart(tmp_path):
    batches = [batch(number, first=100 * number, count=100) for number in range(20)]

    async def send_all(peer: Peer, status: str) -> None:
        for message in batches:
            assert summary(await peer.ask({**message, "isRetry": True, "timestamp": message["timestamp"] + 1})) == (
                "ack",
                message["sequenceNumber"],
                status,
            )

    async def first_life(service, peer):
        await send_all(peer, "ok")
        end = next(iter(service.lanes.values())).log.synced_end
        await send_all(peer, "duplicate")
        again = Peer(service)
        await again.greet()
        await send_all(again, "duplicate")
        assert next(iter(service.lanes.values())).log.synced_end == end
        assert service.metrics.get("dolake_cdc_duplicate_events_total") == 4000
        assert service.metrics.get("dolake_cdc_events_total") == 2000

    async def second_life(service, peer):
        await send_all(peer, "duplicate")
        assert service.metrics.get("dolake_cdc_duplicate_events_total") == 2000
        assert service.metrics.get("dolake_cdc_events_total") == 0

    play(tmp_path, first_life)
    play(tmp_path, second_life)


@pytest.mark.acceptance("AT-06")
def test_a_gap_is_refused_with_the_number_expected_and_healed_by_sending_from_there(tmp_path):
    async def scene(service, peer):
        await peer.ask(batch(500))
        gap = await peer.ask(batch(511))
        assert summary(gap) == ("nack", 511, "invalid_sequence")
        assert (gap["expectedSequence"], gap["shouldRetry"]) == (501, True)
        assert next(iter(service.lanes.values())).log.synced_end == 1
        for number in range(501, 512):
            assert summary(await peer.ask(batch(number))) == ("ack", number, "ok")

    play(tmp_path, scene)


def test_a_used_number_with_other_content_is_refused_for_good_even_after_a_restart(tmp_path):
    async def first_life(service, peer):
        await peer.ask(batch(0))
        reused = await peer.ask(batch(0, count=3))
        assert (summary(reused), reused["shouldRetry"]) == (("nack", 0, "invalid_sequence"), False)
        assert "expectedSequence" not in reused

    async def second_life(service, peer):
        assert summary(await peer.ask(batch(0, count=3))) == ("nack", 0, "invalid_sequence")
        assert summary(await peer.ask(batch(0))) == ("ack", 0, "duplicate")

    play(tmp_path, first_life)
    play(tmp_path, second_life)


def test_a_new_epoch_starts_afresh_and_ends_the_old_one_for_good(tmp_path):
    async def first_life(service, peer):
        await peer.ask(batch(7))
        status = await Peer(service).greet(epoch="two")
        assert (status["lastSequence"], status["epoch"]) == (-1, "two")
        newer = Peer(service)
        await newer.greet(epoch="two")
        assert summary(await newer.ask(batch(0))) == ("ack", 0, "ok")
        old = await newer.ask(batch(8, epoch=""))
        assert (summary(old), old["shouldRetry"]) == (("nack", 8, "invalid_sequence"), False)
        assert "is over" in old["errorMessage"]

    async def second_life(service, peer):
        # Greeted without an epoch, the one that is over: it is told which one is not.
        status = await Peer(service).greet(epoch="")
        assert (status["epoch"], status["lastSequence"]) == ("two", 0)
        older = Peer(service)
        await older.greet(epoch="")
        assert summary(await older.ask(batch(8))) == ("nack", 8, "invalid_sequence")

    play(tmp_path, first_life)
    play(tmp_path, second_life)


def test_a_source_that_was_acked_more_than_is_here_is_told_what_is_lost(tmp_path):
    async def scene(service, peer):
        await peer.ask(batch(4))
        status = await Peer(service).greet(lastAckSequence=9)
        assert status["lost"] == {"from": 5, "to": 9}
        assert service.metrics.get("dolake_cdc_lost_batches_total") == 5
        assert "lost" not in await Peer(service).greet(lastAckSequence=4)
        unknown = await Peer(service).greet("never-seen", lastAckSequence=2)
        assert unknown["lost"] == {"from": 0, "to": 2}

    play(tmp_path, scene)


def test_a_newer_connection_takes_over_and_the_older_is_closed(tmp_path):
    async def scene(service, peer):
        newer = Peer(service)
        await newer.greet()
        assert peer.ended is not None
        assert peer.ended[0] == 4409
        await peer.send(batch(0))
        assert peer.answers.empty()
        assert summary(await newer.ask(batch(0))) == ("ack", 0, "ok")
        assert service.metrics.get("dolake_cdc_takeovers_total") == 1
        other = Peer(service)
        await other.greet("another-source")
        assert newer.ended is None

    play(tmp_path, scene)


def test_a_takeover_learns_what_the_older_connection_had_in_flight(tmp_path):
    disk = TroubledDisk()

    async def scene(service, peer):
        await peer.ask(batch(0))
        disk.unheld.clear()
        await peer.send(batch(1))
        newer = Peer(service)
        greeting = asyncio.create_task(newer.greet())
        await eventually(lambda: peer.ended is not None)
        assert newer.answers.empty()
        disk.unheld.set()
        assert (await greeting)["lastSequence"] == 1
        assert peer.answers.empty()  # nobody acks over a connection that was taken over

    play(tmp_path, scene, disk=disk)


def test_answers_come_in_the_order_of_the_batches_whatever_they_are(tmp_path):
    disk = TroubledDisk()

    async def scene(service, peer):
        await peer.ask(batch(0))
        disk.unheld.clear()
        await peer.send(batch(1))
        await peer.send(batch(1))
        await peer.send(batch(9))
        await peer.send(batch(2, isRetry=7))
        await peer.send(batch(1, count=9))
        await peer.send(batch(2))
        await peer.send(batch(0))
        await peer.send(HEARTBEAT)
        assert (await peer.answer())["type"] == "pong"
        assert peer.answers.empty()
        disk.unheld.set()
        assert [summary(await peer.answer()) for _ in range(7)] == [
            ("ack", 1, "ok"),
            ("ack", 1, "duplicate"),
            ("nack", 9, "invalid_sequence"),
            ("nack", 2, "invalid_format"),
            ("nack", 1, "invalid_sequence"),
            ("ack", 2, "ok"),
            ("ack", 0, "duplicate"),
        ]

    play(tmp_path, scene, disk=disk)


def test_a_heartbeat_is_answered_with_its_own_time_and_ours(tmp_path):
    async def scene(service, peer):
        pong = await peer.ask({**HEARTBEAT, "correlationId": "h"})
        assert (pong["type"], pong["timestamp"], pong["correlationId"]) == ("pong", HEARTBEAT["timestamp"], "h")
        assert pong["serverTime"] > HEARTBEAT["timestamp"] - 10**12

    play(tmp_path, scene)


def test_disconnect_closes_without_an_answer_once_everything_is_answered(tmp_path):
    async def scene(service, peer):
        await peer.send(batch(0))
        await peer.send(DISCONNECT)
        assert summary(await peer.answer()) == ("ack", 0, "ok")
        await eventually(lambda: peer.ended == (1000, ""))

    play(tmp_path, scene)


@pytest.mark.parametrize("message", [batch(0), SCHEMA, HEARTBEAT, FLUSH_REQUEST], ids=lambda message: message["type"])
def test_nothing_comes_before_connect(tmp_path, message):
    async def scene(service, peer):
        refused = await peer.ask({**message, "correlationId": "c"})
        assert (refused["reason"], refused["correlationId"], refused["shouldRetry"]) == ("invalid_format", "c", False)
        assert refused["errorMessage"].startswith("type: comes after connect")
        assert peer.ended is not None
        assert peer.ended[0] == 1008
        assert next(iter(service.lanes.values())).log.synced_end == 0

    play(tmp_path, scene, greet=False)


def test_an_unsupported_version_names_the_supported_ones(tmp_path):
    async def scene(service, peer):
        refused = await peer.ask({**CONNECT, "protocolVersion": 2})
        assert refused["errorMessage"] == "protocolVersion: is one of the supported versions: 1 (got 2)"
        assert peer.ended is not None

    play(tmp_path, scene, greet=False)


def test_a_first_frame_that_is_no_message_closes(tmp_path):
    async def scene(service, peer):
        assert (await peer.ask(b"\xff\xfe"))["reason"] == "invalid_format"
        assert peer.ended is not None
        assert peer.ended[0] == 1002

    play(tmp_path, scene, greet=False)


@pytest.mark.parametrize("sent", [b"{", b"[]", b"\xff", b"ARW1\x04\x00\x00\x00{}", b'{"a":' * 50_000 + b"1" + b"}" * 50_000])
def test_what_is_no_message_is_nacked_and_the_connection_goes_on(tmp_path, sent):
    async def scene(service, peer):
        refused = await peer.ask(sent)
        assert (summary(refused), refused["shouldRetry"]) == (("nack", 0, "invalid_format"), False)
        assert refused["errorMessage"].startswith("frame: ")
        assert summary(await peer.ask(batch(0))) == ("ack", 0, "ok")

    play(tmp_path, scene)


@pytest.mark.acceptance("AT-106")
def test_one_bad_event_of_ten_thousand_leaves_no_trace_and_is_named(tmp_path):
    async def scene(service, peer):
        message = batch(0, count=10_000)
        message["events"][9_999]["table"] = "../../evil"
        refused = await peer.ask(message)
        assert summary(refused) == ("nack", 0, "invalid_format")
        assert refused["errorMessage"].startswith("events.9999.table: a table is `name` or `namespace.name`")
        assert next(iter(service.lanes.values())).log.synced_end == 0
        assert summary(await peer.ask(batch(0, count=10_000))) == ("ack", 0, "ok")
        refused = await peer.ask(batch(1, count=10_001))
        assert refused["errorMessage"] == "events: holds at most 10000 events (got 10001 events)"

    play(tmp_path, scene)


def test_messages_above_the_limits_are_refused_and_the_third_closes(tmp_path):
    limits = {"payload_bytes": 20_000, "event_bytes": 5_000}

    async def scene(service, peer):
        large = batch(0, events=[event(number, after={"x": "y" * 15_000}) for number in range(2)])
        refused = await peer.ask(large)
        assert summary(refused) == ("nack", 0, "payload_too_large")
        assert (refused["maxSize"], refused["actualSize"], refused["shouldRetry"]) == (20_000, len(frame(large)), False)
        long = batch(0, count=1, events=[event(0, after={"x": "y" * 5_000})])
        refused = await peer.ask(long)
        assert summary(refused) == ("nack", 0, "event_too_large")
        assert (refused["maxSize"], refused["actualSize"]) == (5_000, len(frame(long["events"][0])))
        assert summary(await peer.ask(batch(0))) == ("ack", 0, "ok")
        assert peer.ended is None
        await peer.ask(large)
        assert peer.ended == (1008, "too many messages above the limits")

    play(tmp_path, scene, limits=limits)


def test_a_flush_without_a_writer_says_so(tmp_path):
    async def scene(service, peer):
        response = await peer.ask({**FLUSH_REQUEST, "correlationId": "f"})
        assert (response["type"], response["correlationId"]) == ("flush_response", "f")
        assert response["result"]["success"] is False
        assert response["result"]["error"] == "the writer half is not connected"

    play(tmp_path, scene)


def test_a_connection_is_not_read_from_while_too_much_of_it_is_unsynced(tmp_path, monkeypatch):
    monkeypatch.setattr("dolake.ingest.connection.CONNECTION_UNSYNCED_BYTES_MAX", 10_000)
    disk = TroubledDisk()

    async def scene(service, peer):
        await peer.ask(batch(0))
        disk.unheld.clear()
        number = 1
        while peer.connection.unsynced_bytes <= 10_000:
            await peer.send(batch(number))
            number += 1
        held = asyncio.create_task(peer.send(batch(number)))
        other = Peer(service)
        assert (await other.greet("another"))["type"] == "status"
        assert not held.done()
        assert peer.connection.unsynced_bytes < 20_000
        disk.unheld.set()
        await held
        assert [summary(await peer.answer()) for _ in range(number)] == [("ack", one, "ok") for one in range(1, number + 1)]

    play(tmp_path, scene, disk=disk)
