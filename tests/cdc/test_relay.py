"""The relay over real unix sockets: bodies of any size, halves that die and come back, and peers that are not ours."""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from dolake.cdc.relay import Meta, RelayClient, RelayServer
from dolake.clock import real_runtime
from dolake.errors import ConfigurationError, DaemonUnreachable

BODY_BYTES_MAX = 64 << 20
Relayed = Callable[[Meta, bytes], Awaitable[tuple[Meta, bytes]]]


async def echo(meta: Meta, body: bytes) -> tuple[Meta, bytes]:
    return {**meta, "size": len(body)}, body[:10]


class Ends:
    """Servers and clients of one path; all closed at the end."""

    def __init__(self, path: Path) -> None:
        self._path = str(path)
        self._opened: list[RelayServer | RelayClient] = []

    async def server(self, answer: Relayed = echo) -> RelayServer:
        server = RelayServer(self._path, real_runtime(), answer, BODY_BYTES_MAX)
        self._opened.append(server)
        await server.start()
        return server

    def client(self, *, absent_s_max: float = 30.0, answer_s_max: float = 30.0) -> RelayClient:
        client = RelayClient(self._path, real_runtime(), absent_s_max=absent_s_max, answer_s_max=answer_s_max)
        self._opened.append(client)
        return client

    async def close(self) -> None:
        for end in reversed(self._opened):
            await end.close()


def play(path: Path, scene: Callable[[Ends], Awaitable[None]]) -> None:
    async def run() -> None:
        ends = Ends(path)
        async with asyncio.timeout(60):
            try:
                await scene(ends)
            finally:
                await ends.close()

    asyncio.run(run())


def cut_off(server: RelayServer) -> None:
    """As a kill would: connections end with requests unanswered."""
    for task in server._tasks:
        task.cancel()


def test_bodies_of_any_size_come_through_one_after_the_other_and_at_once(tmp_path):
    async def scene(ends: Ends) -> None:
        await ends.server()
        client = ends.client()
        for size in (0, 1, 300_000, 20 << 20):
            assert await client.ask({"a": "ü"}, b"x" * size) == ({"a": "ü", "size": size}, b"x" * min(10, size))
        answers = await asyncio.gather(*(client.ask({"n": number}, b"%d" % number) for number in range(40)))
        assert answers == [({"n": number, "size": len(str(number))}, b"%d" % number) for number in range(40)]

    play(tmp_path / "cdc.sock", scene)


def test_the_socket_is_the_owners_alone_replaces_a_stale_one_and_goes_with_its_server(tmp_path):
    path = tmp_path / ("deep" * 30) / "cdc.sock"
    path.parent.mkdir()

    async def scene(ends: Ends) -> None:
        older = await ends.server()
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
        newer = await ends.server()
        await older.close()
        assert (await ends.client().ask({}, b"x"))[0] == {"size": 1}
        await newer.close()
        assert not path.exists()

    play(path, scene)


def test_what_is_not_a_socket_is_left_alone(tmp_path):
    (tmp_path / "cdc.sock").write_text("mine")

    async def scene(ends: Ends) -> None:
        with pytest.raises(ConfigurationError):
            await ends.server()

    play(tmp_path / "cdc.sock", scene)
    assert (tmp_path / "cdc.sock").read_text() == "mine"


def test_a_request_whose_server_dies_is_answered_by_the_next_one(tmp_path):
    held, taken = asyncio.Event(), asyncio.Event()

    async def hold(meta: Meta, body: bytes) -> tuple[Meta, bytes]:
        taken.set()
        await held.wait()
        return {}, b"the first"

    async def scene(ends: Ends) -> None:
        dying, client = await ends.server(hold), ends.client()
        asking = asyncio.create_task(client.ask({}, b"x" * 1000))
        await taken.wait()
        cut_off(dying)
        await dying.close()
        await ends.server()
        assert await asking == ({"size": 1000}, b"x" * 10)
        assert (await client.ask({}, b"again"))[0] == {"size": 5}

    play(tmp_path / "cdc.sock", scene)


def test_an_idle_connection_that_has_ended_is_no_news(tmp_path):
    async def scene(ends: Ends) -> None:
        first, client = await ends.server(), ends.client()
        await asyncio.gather(*(client.ask({}, b"x") for _ in range(5)))
        await first.close()
        await ends.server()
        for _ in range(10):
            assert (await client.ask({}, b"xy"))[0] == {"size": 2}

    play(tmp_path / "cdc.sock", scene)


def test_nobody_there_is_told_and_so_is_an_answer_that_does_not_come(tmp_path):
    never = asyncio.Event()

    async def hold(meta: Meta, body: bytes) -> tuple[Meta, bytes]:
        await never.wait()
        return {}, b""

    async def scene(ends: Ends) -> None:
        with pytest.raises(DaemonUnreachable, match="is not there"):
            await ends.client(absent_s_max=0.05).ask({}, b"x")
        server = await ends.server(hold)
        with pytest.raises(DaemonUnreachable, match=r"did not answer within 0.05 s"):
            await ends.client(answer_s_max=0.05).ask({}, b"x")
        cut_off(server)

    play(tmp_path / "cdc.sock", scene)


@pytest.mark.parametrize(
    "sent", [b"\0\0\0\0" + b"\xff" * 4, b"\xff" * 8, b"\2\0\0\0\0\0\0\0[]", b"\2\0\0\0\0\0\0\0{]", b"\1", b"GET / HTTP/1.1\r\n\r\n"]
)
def test_who_does_not_speak_it_is_dropped_and_harms_nobody(tmp_path, sent):
    async def scene(ends: Ends) -> None:
        await ends.server()
        reader, writer = await asyncio.open_unix_connection(str(tmp_path / "cdc.sock"))
        writer.write(sent)
        writer.write_eof()
        assert await reader.read() == b""
        writer.close()
        assert (await ends.client().ask({}, b"x"))[0] == {"size": 1}

    play(tmp_path / "cdc.sock", scene)


def test_an_answer_that_fails_ends_its_connection_only(tmp_path):
    async def fail_once(meta: Meta, body: bytes) -> tuple[Meta, bytes]:
        if body == b"bad":
            raise RuntimeError("a defect")
        return await echo(meta, body)

    async def scene(ends: Ends) -> None:
        await ends.server(fail_once)
        client = ends.client()
        with pytest.raises(DaemonUnreachable, match="went away 6 times over this request"):
            await client.ask({}, b"bad")
        assert (await client.ask({}, b"good"))[1] == b"good"

    play(tmp_path / "cdc.sock", scene)
