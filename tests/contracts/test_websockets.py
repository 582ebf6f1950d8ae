"""What the websocket library does with bytes, messages and pings, and the inner parts of it that `cdc/intake.py` takes over."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import socket
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.asyncio.messages import Assembler
from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.frames import Frame, Opcode
from websockets.protocol import Protocol, State
from websockets.streams import StreamReader


class Watched(ServerConnection):
    """Notes what reaches it, and how."""

    reads: list[int]
    events: list[Any]

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.reads, self.events = [], []
        super().connection_made(transport)

    def data_received(self, data: bytes) -> None:
        self.reads.append(len(data))
        super().data_received(data)

    def process_event(self, event: Any) -> None:
        self.events.append(event)
        super().process_event(event)


@contextlib.asynccontextmanager
async def served(handler: Callable[[Watched], Any], **options: Any) -> AsyncIterator[tuple[Server, str]]:
    listening = socket.create_server(("127.0.0.1", 0))
    settings = {"create_connection": Watched, "compression": None, "ping_interval": None, **options}
    async with serve(handler, sock=listening, **settings) as server:  # type: ignore[arg-type]
        yield server, f"ws://127.0.0.1:{listening.getsockname()[1]}/cdc"


def dial(url: str, **options: Any) -> Any:
    return connect(url, compression=None, ping_interval=None, proxy=None, **options)


def run(work: Any) -> None:
    asyncio.run(asyncio.wait_for(work, 60))


def test_a_read_is_taken_whole_and_every_ping_in_it_answered() -> None:
    """Without a pause for anybody else (so `PacedConnection` hands on a few frames a turn)."""
    seen: list[Watched] = []

    async def handler(connection: Watched) -> None:
        seen.append(connection)
        await connection.wait_closed()

    async def scenario() -> None:
        async with served(handler) as (_, url), dial(url) as client:
            ping = bytes([0x89, 0x80, 0, 0, 0, 0])
            client.transport.write(ping * 1000)
            await (await client.ping(b"the last"))
            pings = [event for event in seen[0].events if isinstance(event, Frame) and event.opcode is Opcode.PING]
            assert len(pings) == 1001
            assert len([size for size in seen[0].reads if size]) < 100, "frames come one by one now"

    run(scenario())


def test_a_message_of_fragments_is_kept_until_it_is_whole() -> None:
    """Each fragment passes `process_event` as a Frame, and nothing bounds them but `max_size` (`Intake` counts them)."""
    seen: list[Watched] = []
    taken: list[bytes] = []

    async def handler(connection: Watched) -> None:
        seen.append(connection)
        taken.append(await connection.recv(decode=False))

    async def fragments() -> AsyncIterator[str]:
        for _ in range(3):
            yield "ab"

    async def scenario() -> None:
        async with served(handler) as (_, url), dial(url) as client:
            await client.send(fragments())
            await client.wait_closed()

    run(scenario())
    frames = [(event.opcode, bytes(event.data)) for event in seen[0].events if isinstance(event, Frame) and event.opcode < Opcode.CLOSE]
    assert frames == [(Opcode.TEXT, b"ab"), (Opcode.CONT, b"ab"), (Opcode.CONT, b"ab"), (Opcode.CONT, b"")]
    assert taken == [b"ababab"]


def test_a_text_message_is_bytes_if_asked_and_need_not_be_text() -> None:
    """`recv(decode=False)` does not look at the UTF-8, so `message.try_decode` must."""
    taken: list[Any] = []

    async def handler(connection: Watched) -> None:
        taken.append(await connection.recv(decode=False))

    async def scenario() -> None:
        async with served(handler) as (_, url), dial(url) as client:
            await client.send(b"\xff\xfe", text=True)
            await client.wait_closed()

    run(scenario())
    assert taken == [b"\xff\xfe"]


def test_bytes_are_sent_as_text_if_told() -> None:
    """Answers are made as bytes and sent as text frames (`cdc/server.py`)."""

    async def handler(connection: Watched) -> None:
        await connection.send("é".encode(), text=True)

    async def scenario() -> None:
        async with served(handler) as (_, url), dial(url) as client:
            assert await client.recv() == "é"

    run(scenario())


def test_a_message_that_is_too_large_closes_with_1009_before_it_came() -> None:
    """The header is enough (protocol: closed unread)."""

    async def handler(connection: Watched) -> None:
        with contextlib.suppress(ConnectionClosed):
            await connection.recv()

    async def scenario() -> None:
        async with served(handler, max_size=100) as (_, url), dial(url) as client:
            client.transport.write(bytes([0x81, 0xFE, 0, 101, 0, 0, 0, 0]))  # a masked header, and nothing of its 101 bytes
            await client.wait_closed()
            assert client.close_code == 1009

    run(scenario())


def test_who_is_here_stays_when_a_server_stops_listening() -> None:
    """`close(close_connections=False)` (`CdcServer.stop_accepting`)."""

    async def handler(connection: Watched) -> None:
        async for message in connection:
            await connection.send(message)

    async def scenario() -> None:
        async with served(handler) as (server, url), dial(url) as client:
            server.close(close_connections=False)
            await client.send("still here?")
            assert await client.recv() == "still here?"
            with pytest.raises(OSError):  # noqa: PT011  # refused, or reset
                await dial(url, open_timeout=5)
            await client.close()

    run(scenario())


def test_every_socket_is_made_by_the_class_it_was_given() -> None:
    """And is known to `process_request` as such, whose answer is taken for the handshake's (`CdcServer._admit`)."""
    seen = []

    def refuse(connection: ServerConnection, request: Any) -> Any:
        seen.append((type(connection), request.path))
        return connection.respond(403, "no\n")

    async def handler(_: Watched) -> None: ...

    async def scenario() -> None:
        async with served(handler, process_request=refuse) as (_, url):
            with pytest.raises(Exception, match="403"):
                await dial(url)

    run(scenario())
    assert seen == [(Watched, "/cdc")]


@pytest.mark.parametrize(
    ("what", "names"),
    [
        (ServerConnection, ["connection_made", "connection_lost", "data_received", "process_event", "resume_writing", "handshake"]),
        (ServerConnection, ["recv", "send", "close", "ping", "respond", "send_data"]),
        (Protocol, ["close_expected", "fail", "state"]),
        (Assembler, ["close", "pause", "resume"]),
        (Server, ["wait_closed", "connections"]),
    ],
)
def test_what_is_taken_over_is_there(what: type, names: list[str]) -> None:
    """`PacedConnection` overrides or calls these; some are not the library's public face."""
    text = inspect.getsource(what)
    assert [name for name in names if not hasattr(what, name) and f"self.{name}" not in text] == []


def test_reading_is_paused_through_the_assembler() -> None:
    """`PacedConnection` puts pauses of its own in the place of `recv_messages.pause` and `resume`."""

    async def handler(connection: Watched) -> None:
        assert isinstance(connection.recv_messages, Assembler)
        assert connection.protocol.state is State.OPEN
        assert isinstance(connection.protocol.reader, StreamReader)
        assert connection.protocol.reader.buffer == b""
        await connection.send("right")

    async def scenario() -> None:
        async with served(handler) as (_, url), dial(url) as client:
            assert await client.recv() == "right"

    run(scenario())


def test_a_client_is_told_how_it_ended() -> None:
    """`rcvd` is None where the server died (the client library tells that from a close)."""
    raised: list[ConnectionClosed] = []

    async def handler(connection: Watched) -> None:
        connection.transport.abort()

    async def scenario() -> None:
        async with served(handler) as (_, url):
            client: ClientConnection
            async with dial(url) as client:
                with pytest.raises(ConnectionClosed) as error:
                    await client.recv()
                raised.append(error.value)

    run(scenario())
    assert raised[0].rcvd is None
