"""Clients that misbehave at the transport: each gets its close, and nobody else notices."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import struct
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from dolake.auth.gate import Gate
from dolake.auth.principal import ANYBODY, Principal
from dolake.auth.tokens import TokenBook
from dolake.cdc.server import CdcServer, ServerPolicy
from dolake.clock import real_runtime
from dolake.config.access import TokenSettings
from dolake.metrics import Metrics
from tests.harness.access import grant, new_token
from tests.harness.waiting import wait_until_still

POLICY = ServerPolicy(frame_bytes_max=100_000)


class Echo:
    """A connection that sends each frame back, `copies` times."""

    def __init__(self, send: Callable[[bytes], None], close: Callable[[int, str], None], copies: int = 1) -> None:
        self._send, self._close, self._copies = send, close, copies
        self.received: list[bytes] = []
        self.principal = ANYBODY
        self.gone = asyncio.Event()

    async def receive(self, frame: bytes | str) -> None:
        assert isinstance(frame, bytes)
        self.received.append(frame)
        if frame == b"raise":
            raise RuntimeError("a mistake of ours")
        if frame.startswith(b"close"):
            self._send(b"bye")
            self._close(int(frame[5:]), "as asked")
            return
        for _ in range(self._copies):
            self._send(frame)

    def closed(self) -> None:
        self.gone.set()


class Served:
    def __init__(self, server: CdcServer, address: tuple[str, int], connections: list[Echo]) -> None:
        self.server, self.address, self.connections = server, address, connections
        self.url = f"ws://127.0.0.1:{address[1]}/cdc"

    def dial(self, **more: Any) -> Any:
        return connect(self.url, compression=None, proxy=None, **more)


@contextlib.asynccontextmanager
async def served(
    policy: ServerPolicy = POLICY, copies: int = 1, gate: Gate | None = None, metrics: Metrics | None = None
) -> AsyncIterator[Served]:
    listen = socket.socket()
    listen.bind(("127.0.0.1", 0))
    listen.listen()
    connections: list[Echo] = []

    def made(send: Callable[[bytes], None], close: Callable[[int, str], None], principal: Principal) -> Echo:
        connections.append(Echo(send, close, copies))
        connections[-1].principal = principal
        return connections[-1]

    server = CdcServer(real_runtime(), made, policy, gate, metrics)
    address = listen.getsockname()
    await server.start(listen)
    try:
        yield Served(server, address, connections)
    finally:
        server.stop_accepting()
        for connection in connections:
            if not connection.gone.is_set():
                connection._close(1001, "over")
        await server.close()


def run(scene: Callable[[], Any]) -> None:
    async def limited() -> None:
        async with asyncio.timeout(20):
            await scene()

    asyncio.run(limited())


async def check_serves(here: Served) -> None:
    async with here.dial() as other:
        await other.send("still there?")
        assert await other.recv() == "still there?"


async def close_of(socket_: ClientConnection) -> tuple[int, str]:
    with contextlib.suppress(ConnectionClosed):
        async for _ in socket_:
            pass
    assert socket_.close_code is not None
    return socket_.close_code, socket_.close_reason or ""


def handshake(path: str = "/cdc", **headers: str) -> bytes:
    lines = [f"GET {path} HTTP/1.1", "Host: x", "Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Version: 13"]
    lines += ["Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode()


def masked(payload: bytes, *, opcode: int = 1, claimed: int | None = None) -> bytes:
    size = len(payload) if claimed is None else claimed
    return struct.pack(">BBQ4s", 0x80 | opcode, 0x80 | 127, size, b"\0\0\0\0") + payload


async def until(holds: Callable[[], object]) -> None:
    while not holds():  # noqa: ASYNC110 - what is waited for has no event of its own
        await asyncio.sleep(0.001)


async def raw(here: Served) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection(*here.address)


async def raw_websocket(here: Served) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await raw(here)
    writer.write(handshake())
    assert b" 101 " in await reader.readuntil(b"\r\n\r\n")
    return reader, writer


def test_text_and_binary_frames_come_in_as_bytes_and_go_out_as_text():
    async def scene() -> None:
        async with served() as here, here.dial() as client:
            for sent in ("ünï", "ünï".encode()):
                await client.send(sent)
                assert await client.recv() == "ünï"

    run(scene)


def test_the_server_ends_a_connection_after_what_it_has_still_to_say():
    async def scene() -> None:
        async with served() as here, here.dial() as client:
            await client.send("close4409")
            assert await client.recv() == "bye"
            assert await close_of(client) == (4409, "as asked")
            await here.connections[0].gone.wait()

    run(scene)


SENDER, READER, OLD, REVOKED = (new_token() for _ in range(4))
BOOK = TokenBook(
    {
        name: TokenSettings.model_validate(values)
        for name, values in {
            "sender": grant(SENDER, sources=["*"], tables=["*"]),
            "reader": grant(READER, read=True),
            "old": grant(OLD, sources=["*"], tables=["*"], expires="2020-01-01T00:00:00Z"),
        }.items()
    }
)
# What is presented → the status (101 is a websocket), and words of the answer.
PRESENTED = {
    "none": (None, 401, "a token is needed"),
    "wrong": (SENDER[:-1] + ("a" if SENDER[-1] != "a" else "b"), 401, "not known here"),
    "expired": (OLD, 401, "the token 'old' expired at 2020-01-01 00:00:00Z"),
    "revoked": (REVOKED, 401, "not known here"),
    "valid": (SENDER, 101, ""),
    "other scope": (READER, 403, "the token 'reader' may not send"),
}


@pytest.mark.acceptance("AT-98")
@pytest.mark.parametrize("form", ["header", "query"])
@pytest.mark.parametrize("case", PRESENTED)
def test_the_handshake_asks_for_a_token(case: str, form: str) -> None:
    token, status, words = PRESENTED[case]
    metrics = Metrics()

    async def scene() -> None:
        async with served(gate=Gate(real_runtime().clock, BOOK), metrics=metrics) as here:
            headers = {"Authorization": f"Bearer {token}"} if token and form == "header" else {}
            url = f"{here.url}?token={token}" if token and form == "query" else here.url
            dial = connect(url, compression=None, proxy=None, additional_headers=headers)
            if status == 101:
                async with dial as client:
                    await client.send("hello")
                    assert await client.recv() == "hello"
                    assert here.connections[0].principal.name == "sender"
                return
            with pytest.raises(InvalidStatus) as refused:
                await dial
            response = refused.value.response
            assert response.status_code == status
            assert words in json.loads(response.body)["error"]
            assert response.headers["Content-Type"] == "application/json"
            assert not token or token.encode() not in response.body
            challenge = response.headers.get("WWW-Authenticate")
            assert challenge == (None if status == 403 else 'Bearer realm="dolake"' + (', error="invalid_token"' if token else ""))
            assert here.connections == []
            assert metrics.get("dolake_cdc_handshakes_refused_total", status=str(status)) == 1

    run(scene)


@pytest.mark.acceptance("AT-98")
def test_two_authorization_headers_are_not_a_way_in() -> None:
    async def scene() -> None:
        async with served(gate=Gate(real_runtime().clock, BOOK)) as here:
            reader, writer = await raw(here)
            lines = handshake(Authorization=f"Bearer {SENDER}").replace(b"\r\n\r\n", f"\r\nAuthorization: Bearer {OLD}\r\n\r\n".encode())
            writer.write(lines)
            assert (await reader.readline()).startswith(b"HTTP/1.1 401")
            writer.close()

    run(scene)


@pytest.mark.parametrize(("path", "headers", "status"), [("/", {}, 404), ("/cdc/x", {}, 404), ("/cdc", {"Origin": "https://evil"}, 403)])
def test_other_paths_and_browsers_are_refused_at_the_handshake(path, headers, status):
    async def scene() -> None:
        async with served() as here:
            with pytest.raises(InvalidStatus) as refused:
                async with connect(here.url[:-4] + path, additional_headers=headers, compression=None, proxy=None):
                    pass
            assert refused.value.response.status_code == status
            async with connect(here.url + "?token=x", compression=None, proxy=None) as client:
                await client.send("x")
                assert await client.recv() == "x"

    run(scene)


def test_a_client_that_says_nothing_is_closed():
    async def scene() -> None:
        async with served(ServerPolicy(1000, first_message_s_max=0.05)) as here, here.dial() as client:
            assert await close_of(client) == (1008, "no message within 0.05 s")

    run(scene)


def test_a_handshake_that_never_ends_is_dropped():
    async def scene() -> None:
        async with served(ServerPolicy(1000, first_message_s_max=0.1)) as here:
            reader, writer = await raw(here)
            writer.write(handshake()[:-10])
            await check_serves(here)
            answer = await reader.read()
            assert b" 101 " not in answer
            writer.close()

    run(scene)


@pytest.mark.parametrize(
    "rubbish", [b"\x00" * 100, b"GET / HTTP/0.9\r\n\r\n", b"POST /cdc HTTP/1.1\r\nHost: x\r\n\r\n", os.urandom(4096) + b"\r\n\r\n"]
)
def test_what_is_no_handshake_is_dropped(rubbish):
    async def scene() -> None:
        async with served() as here:
            reader, writer = await raw(here)
            writer.write(rubbish)
            writer.write_eof()
            with contextlib.suppress(ConnectionError):
                await reader.read()
            await check_serves(here)
            assert len(here.connections) == 1
            writer.close()

    run(scene)


def test_a_frame_above_the_limit_is_closed_unread():
    async def scene() -> None:
        async with served() as here:
            async with here.dial() as client:
                await client.send("x" * 100_000)
                assert len(await client.recv()) == 100_000
                await client.send("x" * 100_001)
                assert (await close_of(client))[0] == 1009
            reader, writer = await raw_websocket(here)
            writer.write(masked(b"", claimed=1 << 62))
            answer = await reader.read()
            assert struct.pack(">H", 1009) in answer
            writer.close()
            await check_serves(here)
            assert [len(connection.received) for connection in here.connections] == [1, 0, 1]

    run(scene)


@pytest.mark.parametrize("opcode", [3, 0, 11])
def test_a_frame_that_breaks_the_websocket_protocol_is_closed(opcode):
    async def scene() -> None:
        async with served() as here:
            reader, writer = await raw_websocket(here)
            writer.write(masked(b"x", opcode=opcode))
            assert struct.pack(">H", 1002) in await reader.read()
            writer.close()
            await check_serves(here)

    run(scene)


def test_a_client_that_goes_in_the_middle_of_a_frame_leaves_nothing_behind():
    async def scene() -> None:
        async with served() as here:
            _, writer = await raw_websocket(here)
            writer.write(masked(b"whole") + masked(b"half", claimed=5000))
            await until(lambda: here.connections and here.connections[0].received)
            writer.transport.abort()
            await here.connections[0].gone.wait()
            assert here.connections[0].received == [b"whole"]
            await check_serves(here)

    run(scene)


async def never_read(here: Served, frames: int) -> tuple[asyncio.StreamWriter, Echo]:
    """A client that sends and sends and never reads an answer."""
    _, writer = await raw_websocket(here)
    sock = writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    writer.transport.pause_reading()  # type: ignore[attr-defined]
    for _ in range(frames):
        writer.write(masked(b"y" * 50_000))
    await until(lambda: here.connections)
    return writer, here.connections[0]


def test_a_client_that_never_reads_is_not_read_from_and_holds_up_nobody():
    async def scene() -> None:
        async with served(copies=4) as here:
            writer, connection = await never_read(here, 2000)
            received = await wait_until_still(lambda: len(connection.received), 0.2)
            assert 5 <= received < 200  # 200 KB of answers each: a few MB in sockets and the bounded queue, then it is held
            for _ in range(3):
                await check_serves(here)
            writer.transport.abort()
            await connection.gone.wait()

    run(scene)


def test_a_client_that_never_reads_is_dropped_in_the_end():
    async def scene() -> None:
        policy = ServerPolicy(frame_bytes_max=100_000, stalled_s_max=0.3)
        async with served(policy, copies=4) as here:
            writer, connection = await never_read(here, 500)
            await connection.gone.wait()
            await check_serves(here)
            writer.transport.abort()

    run(scene)


def test_an_idle_client_is_pinged_and_stays_while_it_answers():
    async def scene() -> None:
        policy = ServerPolicy(1000, idle_s_max=0.05, pong_s_max=0.1)
        async with served(policy) as here, here.dial(ping_interval=None) as client:
            await client.send("first")
            assert await client.recv() == "first"
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.5):
                    await client.recv()
            await client.send("again")
            assert await client.recv() == "again"

    run(scene)


def test_an_idle_client_that_answers_no_ping_is_dropped():
    async def scene() -> None:
        async with served(ServerPolicy(1000, idle_s_max=0.05, pong_s_max=0.1)) as here:
            _, writer = await raw_websocket(here)
            writer.write(masked(b"first"))
            await until(lambda: here.connections)
            await here.connections[0].gone.wait()
            writer.close()

    run(scene)


def test_no_ping_is_answered_for_while_reading_is_paused():
    async def scene() -> None:
        async with served(ServerPolicy(1000, idle_s_max=0.05, pong_s_max=0.1)) as here:
            held = asyncio.Event()

            async def receive(frame: bytes | str) -> None:
                await held.wait()

            _, writer = await raw_websocket(here)
            await until(lambda: here.connections)
            here.connections[0].receive = receive  # type: ignore[method-assign]
            writer.write(masked(b"held"))
            assert not await wait_until_still(here.connections[0].gone.is_set, 0.5)
            held.set()
            await here.connections[0].gone.wait()
            writer.close()

    run(scene)


def test_a_mistake_of_ours_ends_one_connection_and_no_other():
    async def scene() -> None:
        async with served() as here, here.dial() as client:
            await client.send("raise")
            assert await close_of(client) == (1011, "internal error")
            await check_serves(here)

    run(scene)


def test_after_it_stops_accepting_those_who_are_here_are_served_on():
    async def scene() -> None:
        async with served() as here, here.dial() as client:
            await client.send("x")
            assert await client.recv() == "x"
            here.server.stop_accepting()
            await client.send("y")
            assert await client.recv() == "y"
            with pytest.raises((OSError, InvalidStatus)):
                async with here.dial():
                    pass

    run(scene)
