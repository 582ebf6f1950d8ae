"""Clients that mean harm, all at once, against a real daemon: each gets what the protocol says, and an honest source beside
them loses nothing, is refused nothing and stays connected."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import struct
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from websockets.frames import Frame, Opcode

from tests.harness.daemon import Daemon
from tests.harness.history import assert_lake_equals_oracle
from tests.harness.lake import Lake
from tests.harness.oracle import Oracle
from tests.harness.source import batch_message, connect_message
from tests.harness.traffic import drain, steady_traffic
from tests.harness.waiting import wait_until_async, wait_until_still

SETTINGS = {
    "DOLAKE_FLUSH_AGE_S": "0.3",
    "DOLAKE_LIMITS_CONNECTIONS_PER_S": "1000",
    "DOLAKE_LIMITS_PAYLOAD_BYTES": "1 MiB",
    "DOLAKE_LIMITS_MESSAGES_PER_S": "200",
}
HANDSHAKE = (
    b"GET /cdc HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)
OPENED: list[Raw] = []
GROWN_BYTES_MAX = 300 << 20  # What all of them together may cost the ingest half; alone they would take gigabytes.


def text(payload: bytes, *, fin: bool = True) -> bytes:
    return Frame(Opcode.TEXT, payload, fin).serialize(mask=True)


def greeting(source: str) -> bytes:
    return text(json.dumps(connect_message(source)).encode())


class Raw:
    """A socket to the daemon, without any manners of its own."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    async def open(cls, port: int, *opening: bytes) -> Raw:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        raw = cls(reader, writer)
        OPENED.append(raw)
        raw.writer.write(b"".join(opening))
        if opening and opening[0] == HANDSHAKE:
            assert b" 101 " in await reader.readuntil(b"\r\n\r\n")
        return raw

    async def flood(self, data: bytes, times: int = 10**9) -> None:
        """Sends it again and again until the daemon has had enough."""
        with contextlib.suppress(ConnectionError):
            for _ in range(times):
                self.writer.write(data)
                await self.writer.drain()

    async def rest(self) -> bytes:
        """Everything that is said until the end."""
        heard = b""
        with contextlib.suppress(ConnectionError):
            while piece := await self.reader.read(1 << 16):
                heard += piece
        return heard

    async def messages(self, count: int) -> list[dict[str, object]]:
        """The next messages; the daemon masks nothing."""
        found = []
        while len(found) < count:
            head = await self.reader.readexactly(2)
            size = head[1]
            if size >= 126:
                size = int.from_bytes(await self.reader.readexactly(2 if size == 126 else 8), "big")
            payload = await self.reader.readexactly(size)
            if head[0] & 0x0F == Opcode.TEXT:
                found.append(json.loads(payload))
        return found


def code(number: int) -> bytes:
    return struct.pack(">H", number)


async def slow_handshake(port: int) -> None:
    raw = await Raw.open(port)
    with contextlib.suppress(ConnectionError):
        for byte in HANDSHAKE[:-1]:
            raw.writer.write(bytes([byte]))
            await raw.writer.drain()
            await asyncio.sleep(0.1)
    assert b" 101 " not in await raw.rest()


async def says_nothing(port: int) -> None:
    raw = await Raw.open(port)
    assert await raw.rest() == b""


async def half_a_handshake(port: int) -> None:
    raw = await Raw.open(port, HANDSHAKE[:50])
    assert b" 101 " not in await raw.rest()


async def no_first_message(port: int) -> None:
    raw = await Raw.open(port, HANDSHAKE)
    assert code(1008) + b"no message within 5 s" in await raw.rest()


async def garbage(port: int) -> None:
    raw = await Raw.open(port)
    await raw.flood(bytes(range(256)) * 256, 1000)
    assert b" 101 " not in await raw.rest()


async def endless_headers(port: int) -> None:
    raw = await Raw.open(port, HANDSHAKE[:-2] + b"X-Header: " + b"y" * 4000 + b"\r\n")
    flood = asyncio.ensure_future(raw.flood(b"X-Header: " + b"y" * 4000 + b"\r\n"))
    assert (await raw.rest()).startswith(b"HTTP/1.1 431 ")
    await flood


async def a_million_fragments(port: int) -> None:
    raw = await Raw.open(port, HANDSHAKE, greeting("fragments"), text(b"{", fin=False))
    flood = asyncio.ensure_future(raw.flood(Frame(Opcode.CONT, b"", fin=False).serialize(mask=True) * 1000, 1000))
    assert code(1009) + b"too many fragments" in await raw.rest()
    await flood


async def a_compression_bomb(port: int) -> None:
    bomb = text(b"\x00" * 1000)
    raw = await Raw.open(port, HANDSHAKE, bytes([bomb[0] | 0x40]) + bomb[1:])  # marked as compressed
    assert code(1002) in await raw.rest()


async def not_masked(port: int) -> None:
    raw = await Raw.open(port, HANDSHAKE, Frame(Opcode.TEXT, b"{}").serialize(mask=False))
    assert code(1002) in await raw.rest()


async def far_too_large(port: int) -> None:
    raw = await Raw.open(port, HANDSHAKE, greeting("large"), b"\x81\xff" + (4 * 2**20 + 1).to_bytes(8, "big"))
    flood = asyncio.ensure_future(raw.flood(b"x" * 2**16, 10_000))
    assert code(1009) in await raw.rest()
    await flood


async def too_large_three_times(port: int) -> None:
    raw = await Raw.open(port, HANDSHAKE, greeting("large-thrice"), *[text(b" " * (2**20 + 1))] * 3)
    heard = await raw.rest()
    assert heard.count(b'"payload_too_large"') == 3
    assert code(1008) + b"too many messages above the limits" in heard


async def a_flood_of_pings(port: int) -> None:
    raw = await Raw.open(port, HANDSHAKE, greeting("pings"))
    await raw.messages(1)
    await raw.flood(Frame(Opcode.PING, b"").serialize(mask=True) * 1000, 100)
    for _ in range(100):
        assert await raw.reader.readexactly(2) == b"\x8a\x00"


async def a_flood_of_small_messages(port: int) -> None:
    raw = await Raw.open(port, HANDSHAKE, greeting("small"))
    assert [answer["type"] for answer in await raw.messages(1)] == ["status"]
    flood = asyncio.ensure_future(raw.flood(text(b"{}") * 1000, 50))
    assert {answer["reason"] for answer in await raw.messages(60)} == {"invalid_format"}
    flood.cancel()


async def a_flood_of_batches(port: int) -> None:
    """Batches faster than any limit, all of them right: taken, or refused by name."""
    raw = await Raw.open(port, HANDSHAKE, greeting("fast"))
    batches = [text(json.dumps(batch_message("fast", number, [])).encode()) for number in range(2000)]
    flood = asyncio.ensure_future(raw.flood(b"".join(batches), 1))
    answers = (await raw.messages(1001))[1:]
    reasons = {answer.get("reason") or answer["status"] for answer in answers}
    assert {"ok", "rate_limited"} <= reasons <= {"ok", "rate_limited", "invalid_sequence"}
    limited = next(answer for answer in answers if answer.get("reason") == "rate_limited")
    assert limited["rateLimit"]["limit"] == 400  # type: ignore[index]
    flood.cancel()


async def never_reads(port: int) -> None:
    """Asks and asks and takes no answer: in the end it cannot send either."""
    raw = await Raw.open(port, HANDSHAKE, greeting("deaf"))
    raw.writer.transport.pause_reading()  # type: ignore[attr-defined]
    question = {"type": "heartbeat", "timestamp": 1, "sourceDoId": "deaf", "lastAckSequence": -1, "pendingEvents": 0}
    flood = asyncio.ensure_future(raw.flood(text(json.dumps(question).encode()) * 100))
    await wait_until_still(raw.writer.transport.get_write_buffer_size, 1.0)
    assert not flood.done()
    flood.cancel()


async def a_byte_at_a_time(port: int) -> None:
    """Slow is no crime."""
    raw = await Raw.open(port, HANDSHAKE, greeting("slow"))
    await raw.messages(1)
    for byte in text(json.dumps(batch_message("slow", 0, [])).encode()):
        raw.writer.write(bytes([byte]))
        await asyncio.sleep(0.005)
    assert [(answer["type"], answer["status"]) for answer in await raw.messages(1)] == [("ack", "ok")]


async def gone_in_the_middle(port: int) -> None:
    for number in range(20):
        raw = await Raw.open(port, HANDSHAKE, greeting(f"gone-{number}"), text(b"x" * 100_000)[:50_000])
        raw.writer.transport.abort()


ATTACKS: list[Callable[[int], Awaitable[None]]] = [
    slow_handshake,
    says_nothing,
    half_a_handshake,
    no_first_message,
    garbage,
    endless_headers,
    a_million_fragments,
    a_compression_bomb,
    not_masked,
    far_too_large,
    too_large_three_times,
    a_flood_of_pings,
    a_flood_of_small_messages,
    a_flood_of_batches,
    never_reads,
    a_byte_at_a_time,
    gone_in_the_middle,
]


@pytest.mark.acceptance("AT-105")
def test_whatever_others_do_an_honest_source_is_served_and_everything_of_it_is_there_once(tmp_path: Path) -> None:
    oracle = Oracle(tmp_path / "journal")
    with Daemon(tmp_path / "data", SETTINGS) as daemon, Lake(daemon.data) as lake:
        ready = daemon.start().wait_ready()
        port = int(ready.cdc.split(":")[2].split("/")[0])

        async def scenario() -> None:
            async with steady_traffic(daemon, oracle) as traffic:
                await wait_until_async(lambda: traffic.source.acked > 20, "traffic to flow")
                before = daemon.rss_bytes("ingest")
                attacks = {asyncio.ensure_future(attack(port)): attack.__name__ for attack in ATTACKS}
                grown = 0
                while not all(task.done() for task in attacks):
                    grown = max(grown, daemon.rss_bytes("ingest") - before)
                    await asyncio.sleep(0.05)
                failed = {name: task.exception() for task, name in attacks.items() if task.exception() is not None}
                assert failed == {}
                assert grown < GROWN_BYTES_MAX
                after = traffic.source.acked
                await wait_until_async(lambda: traffic.source.acked > after + 20, "traffic to flow on")
            assert traffic.source.closes == []
            assert traffic.source.connection_count == 1
            assert [nack["reason"] for nack in traffic.source.nacks] == []
            await drain(daemon)

        async def tidied() -> None:
            try:
                await asyncio.wait_for(scenario(), 200)
            finally:
                while OPENED:
                    raw = OPENED.pop()
                    raw.writer.transport.abort()
                    with contextlib.suppress(OSError):
                        await raw.writer.wait_closed()

        asyncio.run(tidied())
        assert daemon.ready() == ready
        samples = daemon.metrics()
        assert samples['dolake_cdc_nacks_total{reason="rate_limited"}'] > 0
        assert_lake_equals_oracle(lake, oracle)


FILES_MAX = 600  # More than the ingest process keeps for itself, fewer than the sockets that come.


@pytest.mark.acceptance("AT-105")
def test_handshakes_that_never_end_leave_the_log_the_files_it_needs(tmp_path: Path) -> None:
    """Clients open more sockets than the system lets the process have files; a log that could not begin a segment would be lost."""
    many = {f"DOLAKE_LIMITS_{name}": "10000" for name in ("CONNECTIONS", "CONNECTIONS_PER_ADDRESS", "CONNECTIONS_PER_S")}
    oracle = Oracle(tmp_path / "journal")
    with (
        Daemon(tmp_path / "data", {**many, "DOLAKE_LOG_SEGMENT_BYTES": "4096"}, files_max=FILES_MAX) as daemon,
        Lake(daemon.data) as lake,
        contextlib.ExitStack() as opened,
    ):
        port = int(daemon.start().wait_ready().cdc.split(":")[2].split("/")[0])

        def newest_segment() -> str:
            """The last one begun, by its first offset: `.open` while it grows. Sealed ones alone would not do: a flush may trim all."""
            return max((path.stem for path in (daemon.data / "log").iterdir() if path.suffix in (".open", ".log")), default="")

        async def scenario() -> None:
            async with steady_traffic(daemon, oracle) as traffic:
                await wait_until_async(lambda: traffic.source.acked > 20, "traffic to flow")
                for _ in range(FILES_MAX + 100):
                    opened.enter_context(socket.create_connection(("127.0.0.1", port)))
                for _ in range(3):
                    before = newest_segment()
                    await wait_until_async(lambda before=before: newest_segment() > before, "another segment")
            assert (traffic.source.closes, traffic.source.connection_count, traffic.source.nacks) == ([], 1, [])
            await drain(daemon)

        asyncio.run(asyncio.wait_for(scenario(), 100))
        assert daemon.metrics()['dolake_cdc_dropped_connections_total{reason="too many sockets"}'] > 0
        assert "the system allows fewer open files than limits.connections needs" in daemon.tail(10**6)
        assert_lake_equals_oracle(lake, oracle)
