"""The producer against the real ingest half in this process, over a transport that breaks, loses and refuses on command."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import orjson
import pytest

from dolake.cdc.answer import SHOULD_RETRY, Reason, encode_answer, nack
from dolake.cdc.client import Producer
from dolake.cdc.dial import TransportClosed
from dolake.cdc.message import split_events
from dolake.clock import Runtime
from dolake.errors import AckedBatchesLost, BatchRefused, ConfigurationError, DaemonUnreachable, SourceTakenOver
from dolake.ingest.service import IngestService
from dolake.model import DeclaredColumn, DeclaredSchema, RecordKind, TransactionMark
from tests.cdc.samples import batch, raw_events
from tests.ingest.rig import Peer, TroubledDisk, eventually, quick_runtime, serving

URL = "ws://in-process/cdc"


class Wire:
    """Dials the service. `lose_answers` swallows that many answers and then cuts; `refuse_dials` fails that many dials;
    `nacks` answers batches of these numbers with a nack instead of passing them on, once each."""

    def __init__(self, service: IngestService) -> None:
        self.service = service
        self.refuse_dials = 0
        self.cut_after_frames: list[int] = []
        self.cut_after_answers: list[int] = []
        self.nacks: dict[int, Reason] = {}
        self.nack_fields: dict[str, int] = {"retry_delay_ms": 1}
        self.sent: list[dict[str, Any]] = []
        self.dial_count = 0
        self.current: Line | None = None

    async def dial(self, url: str) -> Line:
        self.dial_count += 1
        if self.refuse_dials:
            self.refuse_dials -= 1
            raise TransportClosed(1006, "connection refused")
        self.current = Line(self)
        return self.current

    def batches(self) -> list[int]:
        return [message["sequenceNumber"] for message in self.sent if message["type"] == "cdc_batch"]


class Line:
    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._answers: asyncio.Queue[bytes | TransportClosed] = asyncio.Queue()
        self._frames_left = wire.cut_after_frames.pop(0) if wire.cut_after_frames else -1
        self._answers_left = wire.cut_after_answers.pop(0) if wire.cut_after_answers else -1
        self._cut = False
        self._connection = wire.service.connect(self._answers.put_nowait, self._closed)

    def _closed(self, code: int, reason: str) -> None:
        self._answers.put_nowait(TransportClosed(code, reason))

    def cut(self) -> None:
        if not self._cut:
            self._cut = True
            self._connection.closed()
            self._answers.put_nowait(TransportClosed(1006, "cut"))

    async def send(self, frame: bytes) -> None:
        if self._frames_left == 0:
            self.cut()
        if self._cut:
            raise TransportClosed(1006, "cut")
        self._frames_left -= 1
        message = orjson.loads(frame)
        self._wire.sent.append(message)
        refusal = self._wire.nacks.pop(message.get("sequenceNumber", -1), None)
        if refusal is not None:
            self._answers.put_nowait(encode_answer(nack(refusal, message["sequenceNumber"], "as asked", **self._wire.nack_fields)))
            return
        await self._connection.receive(frame)

    async def receive(self) -> bytes:
        if self._answers_left == 0:
            self.cut()
            raise TransportClosed(1006, "cut")
        answer = await self._answers.get()
        if isinstance(answer, TransportClosed):
            raise answer
        self._answers_left -= 1
        return answer

    async def close(self) -> None:
        self.cut()


Scene = Callable[[IngestService, Wire], Awaitable[None]]


def play(directory: Path, scene: Scene, *, disk: TroubledDisk | None = None, **sections: Any) -> None:
    async def run() -> None:
        async with asyncio.timeout(30), serving(directory, disk=disk, **sections) as service:
            await scene(service, Wire(service))

    asyncio.run(run())


def producer(wire: Wire, source: str = "orders-db-3", **more: Any) -> Producer:
    return Producer(URL, source, runtime=quick_runtime(), dial=wire.dial, **more)


def logged(service: IngestService) -> list[int]:
    """The event numbers in the log, in its order."""
    from dolake.buffer.tail import LogReader

    lane = next(iter(service.lanes.values()))
    reader = LogReader(TroubledDisk(), lane.directory)
    records, position = [], reader.first_offset()
    while position < reader.synced_end():
        found = reader.read(position, 1 << 20)
        records += found
        position = found[-1].offset + 1
    payloads = [record.entry.payload for record in records if record.entry.kind is RecordKind.BATCH]
    return [orjson.loads(raw)["sequence"] for payload in payloads for raw in split_events(payload)]


def test_what_is_sent_arrives_in_order_and_once(tmp_path):
    async def scene(service, wire):
        async with producer(wire) as sender:
            assert (sender.last_sequence, sender.last_event_sequence) == (-1, -1)
            assert sender.limits is not None
            assert sender.limits.max_batch_events == 10_000
            for number in range(50):
                assert await sender.send(raw_events(number * 3, 3)) == number
            await sender.drain()
            assert (sender.acked_sequence, sender.acked_event_count) == (49, 150)
        assert logged(service) == list(range(150))
        assert wire.batches() == list(range(50))
        assert wire.sent[-1]["type"] == "disconnect"

    play(tmp_path, scene)


def test_a_new_producer_goes_on_by_event_from_what_the_daemon_says(tmp_path):
    async def scene(service, wire):
        async with producer(wire) as first:
            await first.send(raw_events(0, 10))
            await first.send(raw_events(10, 7))
        async with producer(wire) as second:
            assert (second.last_sequence, second.last_event_sequence) == (1, 16)
            assert await second.send(raw_events(17, 4)) == 2
        assert logged(service) == list(range(21))

    play(tmp_path, scene)


@pytest.mark.parametrize("frames", [[1], [2], [5], [1, 1, 1, 2, 3, 5, 8]])
@pytest.mark.parametrize("side", ["frames", "answers"])
def test_connections_that_break_anywhere_neither_lose_nor_repeat(tmp_path, side, frames):
    async def scene(service, wire):
        setattr(wire, f"cut_after_{side}", list(frames))
        async with producer(wire, window_batches=4) as sender:
            for number in range(30):
                await sender.send(raw_events(number * 2, 2))
        assert 2 <= wire.dial_count <= len(frames) + 1
        assert logged(service) == list(range(60))

    play(tmp_path, scene)


def test_what_is_sent_again_is_the_same_to_the_byte(tmp_path):
    async def scene(service, wire):
        wire.cut_after_answers = [1]
        async with producer(wire) as sender:
            for number in range(5):
                await sender.send(raw_events(number, 1))
        seen: dict[int, dict[str, Any]] = {}
        for message in wire.sent:
            if message["type"] == "cdc_batch":
                assert seen.setdefault(message["sequenceNumber"], message) == message

    play(tmp_path, scene)


@pytest.mark.parametrize("reason", sorted(SHOULD_RETRY))
def test_a_nack_worth_retrying_is_retried_with_all_that_follows(tmp_path, reason):
    async def scene(service, wire):
        wire.nacks = {3: reason, 4: reason, 11: reason}
        async with producer(wire, window_batches=6) as sender:
            for number in range(20):
                await sender.send(raw_events(number, 1))
        assert logged(service) == list(range(20))
        assert wire.dial_count == 1
        assert len(wire.batches()) < 60

    play(tmp_path, scene)


def test_a_nack_that_says_no_delay_is_not_answered_at_once(tmp_path):
    async def scene(service, wire):
        wire.nacks, wire.nack_fields = {2: Reason.INTERNAL_ERROR}, {}
        loop = asyncio.get_running_loop()
        async with producer(wire) as sender:
            began_s = loop.time()
            for number in range(5):
                await sender.send(raw_events(number, 1))
            await sender.drain()
            assert loop.time() - began_s >= 0.05  # Half of 100 ms, at the least.
        assert logged(service) == list(range(5))

    play(tmp_path, scene)


@pytest.mark.acceptance("AT-37")
def test_a_daemon_that_is_there_and_cannot_take_anything_is_never_given_up(tmp_path):
    """While it says so itself: what counts as unreachable is only that nobody answers."""
    disk, logs = TroubledDisk(), [str(tmp_path / "a" / "log"), str(tmp_path / "b" / "log")]

    async def scene(service, wire):
        async with producer(wire, unreachable_s_max=0.02) as sender:
            await sender.send(raw_events(0, 2))
            await sender.drain()
            disk.broken.add(service.desks["orders-db-3"].lane.directory)
            for number in range(1, 10):
                await sender.send(raw_events(number * 2, 2))
            await eventually(lambda: service.metrics.get("dolake_cdc_nacks_total", reason="degraded") > 0)
            assert wire.current is not None
            wire.current.cut()
            dials = wire.dial_count
            await eventually(lambda: wire.dial_count > dials + 30)
            disk.broken.clear()
            await sender.drain()
            assert sender.acked_event_count == 20

    play(tmp_path, scene, disk=disk, log={"directories": logs})


def test_a_full_backlog_holds_the_sender_until_there_is_room(tmp_path):
    async def scene(service, wire):
        lane = next(iter(service.lanes.values()))

        async def commit() -> None:
            while True:
                end = lane.log.synced_end
                service.hear("writer", {"type": "progress", "logs": {lane.log_id: {"low": end, "read": end, "pending": {}}}})
                await asyncio.sleep(0.01)

        async with producer(wire) as sender:
            sending = asyncio.create_task(send_many(sender, 300))
            await eventually(lambda: service.metrics.get("dolake_cdc_nacks_total", reason="buffer_full") > 1)
            assert not sending.done()
            committing = asyncio.create_task(commit())
            await sending
            await sender.drain()
            committing.cancel()
            assert sender.acked_event_count == 300 * 5

    async def send_many(sender: Producer, count: int) -> None:
        for number in range(count):
            await sender.send(raw_events(number * 5, 5))

    play(tmp_path, scene, log={"backlog_bytes": 60_000, "segment_bytes": 8192})


def test_a_failed_disk_is_waited_for(tmp_path):
    disk = TroubledDisk()

    async def scene(service, wire):
        async with producer(wire) as sender:
            await sender.send(raw_events(0, 2))
            await sender.drain()
            disk.sync_failures = 1
            for number in range(1, 10):
                await sender.send(raw_events(number * 2, 2))
        assert logged(service) == list(range(20))

    play(tmp_path, scene, disk=disk)


def test_schemas_and_transactions_are_sent_as_given(tmp_path):
    async def scene(service, wire):
        async with producer(wire, epoch="e") as sender:
            assert await sender.declare(DeclaredSchema("a.b", ("id",), (DeclaredColumn("id", "long", nullable=False),))) == 0
            assert await sender.send(raw_events(0, 2), transaction=TransactionMark("t", False)) == 1
            assert await sender.send([]) == 2
        _, schema, first, empty, _ = wire.sent
        assert (schema["type"], schema["columns"]) == ("schema", [{"name": "id", "type": "long", "nullable": False}])
        assert (first["transaction"], first["epoch"]) == ({"id": "t", "last": False}, "e")
        assert empty["events"] == []

    play(tmp_path, scene)


def test_drain_can_wait_for_what_is_committed(tmp_path):
    async def scene(service, wire):
        lane = next(iter(service.lanes.values()))
        async with producer(wire) as sender:
            await sender.send(raw_events(0, 2))
            waiting = asyncio.create_task(sender.drain("persisted"))
            await sender.drain()
            assert not waiting.done()
            service.hear("writer", {"type": "progress", "logs": {lane.log_id: {"low": 1, "read": 1, "pending": {}}}})
            await waiting
            assert sender.persisted_sequence == 0

    play(tmp_path, scene)


def test_a_flush_is_asked_again_on_a_new_connection(tmp_path):
    async def scene(service, wire):
        class Silent:
            async def request(self, role: str, message: dict[str, Any]) -> dict[str, Any]:
                await asyncio.Event().wait()
                raise AssertionError

        async with producer(wire) as sender:
            service.writer_line = Silent()
            flushing = asyncio.create_task(sender.flush())
            await eventually(lambda: wire.sent[-1]["type"] == "flush_request")
            service.writer_line = None
            assert wire.current is not None
            wire.current.cut()
            assert (await flushing)["error"] == "the writer half is not connected"

    play(tmp_path, scene)


def test_what_will_never_be_taken_is_raised_and_stays_raised(tmp_path):
    async def scene(service, wire):
        sender = producer(wire)
        await sender.__aenter__()
        await sender.send([b'{"sequence":1,"timestamp":1,"operation":"UPSERT","table":"t"}'])
        with pytest.raises(BatchRefused, match=r"events\.0\.operation") as refused:
            await sender.drain()
        assert (refused.value.reason, refused.value.sequence) == ("invalid_format", 0)
        with pytest.raises(BatchRefused):
            await sender.send(raw_events(1, 1))
        await sender.close()

    play(tmp_path, scene)


def test_a_batch_above_the_limit_is_refused_before_it_is_sent(tmp_path):
    async def scene(service, wire):
        async with producer(wire) as sender:
            with pytest.raises(BatchRefused, match="at most 2000 bytes"):
                await sender.send(raw_events(0, 100))
            await sender.send(raw_events(0, 1))
        assert wire.batches() == [0]

    play(tmp_path, scene, limits={"payload_bytes": 2000, "event_bytes": 1000})


def test_a_second_producer_of_the_same_source_ends_the_first(tmp_path):
    async def scene(service, wire):
        first = producer(wire)
        await first.__aenter__()
        async with producer(Wire(service)) as second:
            with pytest.raises(SourceTakenOver):
                await first.flush()
            await second.send(raw_events(0, 1))
        await first.close()
        assert logged(service) == [0]

    play(tmp_path, scene)


def test_an_epoch_that_is_over_is_refused(tmp_path):
    async def scene(service, wire):
        for epoch in ("one", "two"):
            async with producer(wire, epoch=epoch) as sender:
                assert sender.last_sequence == -1
                await sender.send(raw_events(0, 1))
        with pytest.raises(BatchRefused, match="'one' is over"):
            async with producer(wire, epoch="one"):
                pass

    play(tmp_path, scene)


def test_a_daemon_that_lost_what_it_acked_is_reported(tmp_path):
    async def scene(service, wire):
        sender = producer(wire)
        await sender.__aenter__()
        for number in range(5):
            await sender.send(raw_events(number, 1))
        await sender.drain()
        async with serving(tmp_path / "another disk") as other:
            wire.service = other
            assert wire.current is not None
            wire.current.cut()
            with pytest.raises(AckedBatchesLost) as lost:
                await sender.flush()
            assert (lost.value.first, lost.value.last) == (0, 4)
            await sender.close()

    play(tmp_path, scene)


def test_a_source_fed_by_somebody_else_meanwhile_is_refused(tmp_path):
    async def scene(service, wire):
        sender = producer(wire)
        await sender.__aenter__()
        peer = Peer(service)
        await peer.greet()
        assert (await peer.ask(batch(0)))["status"] == "ok"
        peer.connection.closed()
        with pytest.raises((SourceTakenOver, BatchRefused)):
            await sender.flush()
        await sender.close()

    play(tmp_path, scene)


def test_dials_are_tried_again_and_given_up_after_a_while(tmp_path):
    async def scene(service, wire):
        wire.refuse_dials = 5
        async with producer(wire) as sender:
            await sender.send(raw_events(0, 1))
        assert wire.dial_count == 6
        wire.refuse_dials = 10**9
        with pytest.raises(DaemonUnreachable, match="no daemon answers at ws://in-process/cdc: 1006 connection refused"):
            async with producer(wire, unreachable_s_max=0.05):
                pass

    play(tmp_path, scene)


def test_what_is_no_address_is_a_mistake_of_the_caller():
    async def scene() -> None:
        with pytest.raises(ConfigurationError, match="url: is ws://"):
            async with Producer("http://localhost/cdc", "s"):
                pass

    asyncio.run(scene())


def test_an_unexpected_error_does_not_leave_the_caller_waiting(tmp_path):
    async def broken(url: str) -> Any:
        raise RuntimeError("a mistake of ours")

    async def scene() -> None:
        with pytest.raises(Exception, match="a mistake of ours"):
            async with Producer(URL, "s", dial=broken):
                pass

    asyncio.run(scene())


def test_a_daemon_that_says_when_to_come_again_is_left_alone_until_then(tmp_path):
    async def scene(_, wire):
        waits: list[float] = []

        class Noting:
            def now_ms(self) -> int:
                return 0

            def monotonic_s(self) -> float:
                return sum(waits)

            async def sleep(self, seconds: float) -> None:
                if wire.dial_count < 3:
                    waits.append(seconds)
                await asyncio.sleep(0)

        async def dial(url: str) -> Any:
            if wire.dial_count < 2:
                wire.dial_count += 1
                raise TransportClosed(1006, "HTTP 429", retry_after_s=7.0)
            return await wire.dial(url)

        quick = quick_runtime()
        sender = Producer(URL, "orders-db-3", runtime=Runtime(Noting(), quick.random, quick.tasks), dial=dial)
        async with asyncio.timeout(20), sender:
            await sender.send(raw_events(0, 1))
        assert len(waits) == 2
        assert all(7.0 <= wait_s <= 10.5 for wait_s in waits)

    play(tmp_path, scene)


@pytest.mark.acceptance("AT-10")
def test_events_above_the_limit_are_held_back_and_all_of_them_arrive_once(tmp_path):
    async def scene(service, wire):
        async with producer(wire, window_batches=8) as sender:
            for first in range(0, 3000, 100):
                await sender.send(raw_events(first, 100))
            await sender.drain()
        assert logged(service) == list(range(3000))
        assert service.metrics.get("dolake_cdc_nacks_total", reason="rate_limited") > 0  # Its clock hardly waits when told to.

    play(tmp_path, scene, limits={"events_per_s": 1000})
