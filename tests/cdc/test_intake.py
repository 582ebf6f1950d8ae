"""Clients that flood, dawdle or never finish: what they take is bounded, and everybody else is served meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import json
import struct
from collections.abc import Iterator

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus
from websockets.protocol import Protocol, State

from dolake.cdc.admission import ConnectionLimits
from dolake.cdc.intake import CONTROLS_PER_S, FRAMES_A_TURN, THROWN_AWAY_FRAMES_MAX, WHOLE_BYTES_MAX, Intake
from dolake.cdc.server import ServerPolicy
from dolake.metrics import Metrics
from tests.cdc.test_server import Served, check_serves, handshake, masked, raw, raw_websocket, run, served, until

ROOMY = ConnectionLimits(new_per_s=1000)
POLICY = ServerPolicy(frame_bytes_max=1 << 20, connections=ROOMY)
EMPTY, FRAGMENT, PING = b"\x81\x80mask", b"\x00\x80mask", b"\x89\x80mask"


def intake_of(here: Served) -> Intake:
    return here.server._intake


@contextlib.contextmanager
def holding(here: Served) -> Iterator[asyncio.Event]:
    """While inside, the first connection takes its first message and no other: as if its log did not answer."""
    free = asyncio.Event()

    async def receive(frame: bytes | str) -> None:
        await free.wait()

    here.connections[0].receive = receive  # type: ignore[method-assign]
    yield free
    free.set()


async def settled(here: Served) -> int:
    """Bytes held once they do not change any more."""
    before = -1
    while intake_of(here).held_bytes != before:
        before = intake_of(here).held_bytes
        await asyncio.sleep(0.1)
    return before


def test_frames_that_come_with_the_handshake_wait_until_it_is_answered():
    async def scene() -> None:
        async with served(POLICY) as here:
            reader, writer = await raw(here)
            writer.write(handshake() + masked(b"one") + masked(b"two")[:5])
            assert b" 101 " in await reader.readuntil(b"\r\n\r\n")
            assert await reader.readexactly(5) == b"\x81\x03one"
            writer.write(masked(b"two")[5:])
            assert await reader.readexactly(5) == b"\x81\x03two"
            writer.close()

    run(scene)


def test_a_handshake_may_come_byte_by_byte():
    async def scene() -> None:
        async with served(POLICY) as here:
            reader, writer = await raw(here)
            for byte in handshake() + masked(b"x"):
                writer.write(bytes([byte]))
                await asyncio.sleep(0)
            assert b" 101 " in await reader.readuntil(b"\r\n\r\n")
            assert await reader.readexactly(3) == b"\x81\x01x"
            writer.close()

    run(scene)


@pytest.mark.parametrize(
    "headers", [b"X: " + b"y" * 9000 + b"\r\n", (b"X: " + b"y" * 1000 + b"\r\n") * 100, b"X: y\r\n" * 200, b"y" * 10**6]
)
def test_headers_without_end_are_refused(headers):
    async def scene() -> None:
        async with served(POLICY) as here:
            reader, writer = await raw(here)
            writer.write(handshake()[:-2] + headers)
            answer = b""
            with contextlib.suppress(ConnectionError):
                answer = await reader.read()
            assert answer.startswith(b"HTTP/1.1 431 ")
            await check_serves(here)
            assert len(here.connections) == 1
            writer.close()

    run(scene)


def test_pings_are_answered_a_few_a_second_and_hold_up_nobody():
    async def scene() -> None:
        async with served(POLICY) as here:
            reader, writer = await raw_websocket(here)
            began = asyncio.get_running_loop().time()
            writer.write(PING * 100_000)
            pongs = await reader.readexactly(2 * 2 * CONTROLS_PER_S)
            assert pongs == b"\x8a\x00" * (2 * CONTROLS_PER_S)
            for _ in range(3):
                await check_serves(here)
            pongs = await reader.readexactly(2 * CONTROLS_PER_S)
            assert asyncio.get_running_loop().time() - began >= 0.9
            assert intake_of(here).held_bytes < 600_000
            writer.transport.abort()

    run(scene)


def test_a_client_that_pings_and_never_reads_is_not_read_from(monkeypatch):
    monkeypatch.setattr("dolake.cdc.intake.CONTROLS_PER_S", 10**6)
    monkeypatch.setattr("dolake.cdc.intake.UNSENT_BYTES_MAX", 100_000)

    async def scene() -> None:
        policy = ServerPolicy(1 << 20, idle_s_max=0.5, pong_s_max=0.5, connections=ROOMY)
        metrics = Metrics()
        async with served(policy, metrics=metrics) as here:
            _, writer = await raw_websocket(here)
            writer.transport.pause_reading()  # type: ignore[attr-defined]
            writer.write(masked(b"hello") + (b"\x89\xfdmask" + b"p" * 125) * 300_000)
            await until(lambda: here.connections)
            sockets = intake_of(here).connections
            largest = 0
            async with here.dial() as other:  # one connection: as many as this loop can make would be refused for their number
                while not here.connections[0].gone.is_set():
                    largest = max([largest, *(socket.transport.get_write_buffer_size() for socket in sockets)])
                    await other.send("still there?")
                    assert await other.recv() == "still there?"
            assert 100_000 < largest < 1_000_000
            writer.transport.abort()
            assert metrics.get("dolake_cdc_dropped_connections_total", reason="does not answer") == 1

    run(scene)


def test_a_million_fragments_are_closed_after_some_thousands():
    async def scene() -> None:
        async with served(POLICY) as here:
            reader, writer = await raw_websocket(here)
            writer.write(b"\x01\x80mask")
            flood = asyncio.ensure_future(flooding(writer, FRAGMENT * 1000, 1000))
            await check_serves(here)
            assert struct.pack(">H", 1009) + b"too many fragments" in await reader.read()
            await check_serves(here)
            await flood
            assert intake_of(here).held_bytes < 1_000_000
            writer.close()

    run(scene)


def test_what_comes_after_a_close_is_looked_at_for_a_while_only(monkeypatch):
    """The client's own close is looked for, and every frame before it costs: not as many as somebody cares to send."""
    taken = 0
    receive = Protocol.receive_data

    def counted(self: Protocol, data: bytes) -> None:
        nonlocal taken
        taken += len(data) if self.state is State.CLOSING else 0
        receive(self, data)

    monkeypatch.setattr(Protocol, "receive_data", counted)

    async def scene() -> None:
        async with served(POLICY) as here:
            reader, writer = await raw_websocket(here)
            writer.write(masked(b"close1008"))
            assert struct.pack(">H", 1008) + b"as asked" in await reader.readuntil(b"as asked")
            flood = asyncio.ensure_future(flooding(writer, FRAGMENT * 1000, 1000))
            for _ in range(20):
                await check_serves(here)
            await until(lambda: here.connections[0].gone.is_set())
            await flood
            writer.close()
        assert 0 < taken <= len(FRAGMENT) * (THROWN_AWAY_FRAMES_MAX + FRAMES_A_TURN)

    run(scene)


async def flooding(writer: asyncio.StreamWriter, data: bytes, times: int) -> None:
    with contextlib.suppress(ConnectionError):
        for _ in range(times):
            writer.write(data)
            await writer.drain()


def test_a_flood_of_empty_messages_waits_in_the_client():
    async def scene() -> None:
        async with served(POLICY) as here:
            _, writer = await raw_websocket(here)
            await until(lambda: here.connections)
            with holding(here):
                flood = asyncio.ensure_future(flooding(writer, EMPTY * 10_000, 1000))
                for _ in range(5):
                    await check_serves(here)
                assert await settled(here) < 1_000_000
                assert not flood.done()
            flood.cancel()
            writer.transport.abort()

    run(scene)


def test_whole_messages_that_wait_are_bounded_and_all_of_them_come_in_the_end():
    async def scene() -> None:
        async with served(POLICY) as here:
            reader, writer = await raw_websocket(here)
            await until(lambda: here.connections)
            echoes = asyncio.ensure_future(reader.read())
            with holding(here) as free:
                flood = asyncio.ensure_future(flooding(writer, masked(b"x" * 900_000), 40))
                assert WHOLE_BYTES_MAX < await settled(here) < WHOLE_BYTES_MAX + 3_000_000
                await check_serves(here)
                del here.connections[0].receive
                free.set()
            await flood
            await until(lambda: len(here.connections[0].received) == 39)
            assert {len(frame) for frame in here.connections[0].received} == {900_000}
            echoes.cancel()
            writer.transport.abort()

    run(scene)


def test_messages_that_never_end_are_closed_the_largest_first_and_small_ones_go_on(monkeypatch):
    monkeypatch.setattr("dolake.cdc.server._HELD_BYTES_MAX", 1)
    monkeypatch.setattr("dolake.cdc.intake._DROPPABLE_BYTES_MIN", 1000)
    policy = ServerPolicy(frame_bytes_max=1_000_000, connections=ROOMY)  # 4 MB in all

    async def scene() -> None:
        metrics = Metrics()
        async with served(policy, metrics=metrics) as here:
            honest_reader, honest_writer = await raw_websocket(here)
            honest_writer.write(masked(b"z" * 20_000)[:10_000])
            clients = []
            for number in range(8):
                reader, writer = await raw_websocket(here)
                writer.write(masked(b"x" * (900_000 + number), claimed=1_000_000))
                clients.append((reader, writer))
                await settled(here)
                assert intake_of(here).held_bytes <= 4_000_000
            await check_serves(here)
            dropped = metrics.get("dolake_cdc_dropped_connections_total", reason="memory")
            assert dropped == 4
            closed = [reader for reader, _ in clients if reader.at_eof() or reader._buffer.find(struct.pack(">H", 1013)) >= 0]  # type: ignore[attr-defined]
            assert len(closed) == 4
            honest_writer.write(masked(b"z" * 20_000)[10_000:])
            assert b"z" * 20_000 in await honest_reader.readexactly(20_004)
            for _, writer in [*clients, (honest_reader, honest_writer)]:
                writer.transport.abort()
            await until(lambda: intake_of(here).held_bytes == 0)

    run(scene)


def test_a_slow_sender_stays_while_its_message_comes_on_and_goes_when_it_does_not(monkeypatch):
    monkeypatch.setattr("dolake.cdc.server._COMES_ON_BYTES", 1000)

    async def scene() -> None:
        policy = ServerPolicy(1 << 20, idle_s_max=0.2, pong_s_max=0.2, connections=ROOMY)
        metrics = Metrics()
        async with served(policy, metrics=metrics) as here:
            _, slow = await raw_websocket(here)
            _, slower = await raw_websocket(here)
            message = masked(b"x" * 300_000)
            sent = 0
            slower.write(message[:100])
            while sent < len(message):
                slow.write(message[sent : sent + 10_000])
                slower.write(b"x")
                sent += 10_000
                await asyncio.sleep(0.05)
            await until(lambda: here.connections[0].received and here.connections[1].gone.is_set())
            assert len(here.connections[0].received[0]) == 300_000
            assert metrics.get("dolake_cdc_dropped_connections_total", reason="does not answer") == 1
            for writer in (slow, slower):
                writer.transport.abort()

    run(scene)


def test_compressed_frames_are_closed_for_nothing_was_agreed_on():
    async def scene() -> None:
        async with served(POLICY) as here:
            reader, writer = await raw(here)
            writer.write(handshake(**{"Sec-WebSocket-Extensions": "permessage-deflate"}))
            answer = await reader.readuntil(b"\r\n\r\n")
            assert b" 101 " in answer
            assert b"permessage-deflate" not in answer
            writer.write(masked(b"bomb", opcode=0x40 | 1))
            assert struct.pack(">H", 1002) in await reader.read()
            await check_serves(here)
            writer.close()

    run(scene)


@pytest.mark.acceptance("AT-105")
def test_connections_above_the_limits_get_429_with_the_reason_and_when_to_come_again():
    async def scene() -> None:
        metrics = Metrics()
        policy = ServerPolicy(1000, connections=ConnectionLimits(per_address=3, new_per_s=5))
        async with served(policy, metrics=metrics) as here:
            clients = [await here.dial().__aenter__() for _ in range(3)]
            refused = await refusal(here)
            assert (refused.status_code, refused.headers["Retry-After"]) == (429, "5")
            body = json.loads(refused.body)
            assert (body["reason"], body["retryDelayMs"]) == ("ip_limit", 5000)
            assert body["error"] == "at most 3 connections of one address are served at once (yours is 127.0.0.1)"
            await clients.pop().close()
            await until(lambda: intake_of(here).admission.admitted_count == 2)
            clients.append(await here.dial().__aenter__())
            await clients.pop().close()
            await until(lambda: intake_of(here).admission.admitted_count == 2)
            clients.append(await here.dial().__aenter__())
            await clients.pop().close()
            await until(lambda: intake_of(here).admission.admitted_count == 2)
            refused = await refusal(here)
            assert (refused.status_code, json.loads(refused.body)["reason"]) == (429, "connection_limit")
            assert refused.headers["Retry-After"] == "1"
            assert metrics.get("dolake_cdc_connections_refused_total", reason="ip_limit") == 1
            assert metrics.get("dolake_cdc_connections_refused_total", reason="connection_limit") == 1
            for client in clients:
                await client.send("served on")
                assert await client.recv() == "served on"
                await client.close()

    run(scene)


async def refusal(here: Served):  # type: ignore[no-untyped-def]
    with pytest.raises(InvalidStatus) as refused:
        async with connect(here.url, compression=None, proxy=None):
            pass
    return refused.value.response


def test_sockets_that_say_nothing_are_bounded_and_keep_nobody_out():
    async def scene() -> None:
        metrics = Metrics()
        async with served(ServerPolicy(1000, connections=ConnectionLimits(per_address=5)), metrics=metrics) as here:
            silent = [await raw(here) for _ in range(9)]
            await check_serves(here)
            await until(lambda: intake_of(here).admission.socket_count == 9)
            silent.append(await raw(here))
            reader, writer = await raw(here)
            assert await reader.read() == b""
            assert metrics.get("dolake_cdc_dropped_connections_total", reason="too many sockets") == 1
            for _, other in [*silent, (reader, writer)]:
                other.transport.abort()
            await until(lambda: intake_of(here).admission.socket_count == 0)
            await check_serves(here)

    run(scene)
