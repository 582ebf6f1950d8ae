"""Connections over raw sockets that do not ask for anything, ask slowly, or ask for something else."""

from __future__ import annotations

import asyncio
from pathlib import Path

import httpx
import pytest

from dolake.http import connection
from tests.http.test_app import serve

HALF = b"GET /health HTTP/1.1\r\nHost: x\r\n"


@pytest.mark.parametrize("sent", [b"", b"G", HALF], ids=["nothing", "a letter", "half a head"])
def test_a_head_that_does_not_come_ends_the_connection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sent: bytes) -> None:
    monkeypatch.setattr(connection, "HEAD_S_MAX", 0.05)

    async def check(client: httpx.AsyncClient) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", client.base_url.port)
        writer.write(sent)
        assert await reader.read() == b""
        writer.close()
        assert (await client.get("/health")).status_code == 200

    serve(tmp_path, check, None)


def test_a_second_head_that_does_not_come_ends_it_too_and_a_quick_one_is_answered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "HEAD_S_MAX", 0.5)

    async def check(client: httpx.AsyncClient) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", client.base_url.port)
        for _ in range(3):
            writer.write(HALF + b"\r\n")
            assert await reader.readuntil(b'{"alive":true}')
        writer.write(HALF)
        assert await reader.read() == b""
        writer.close()

    serve(tmp_path, check, None)


def test_one_connection_too_many_is_told_to_come_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "CONNECTIONS_MAX", 3)

    async def check(client: httpx.AsyncClient) -> None:
        held = [await asyncio.open_connection("127.0.0.1", client.base_url.port) for _ in range(3)]
        reader, writer = await asyncio.open_connection("127.0.0.1", client.base_url.port)
        refused = await reader.read()
        assert refused.startswith(b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\n")
        for _, other in [*held, (reader, writer)]:
            other.close()
            await other.wait_closed()

    serve(tmp_path, check, None)


@pytest.mark.parametrize(
    "sent", [b"\x16\x03\x01\x02\x00\x01\x00", b"HELLO\r\n\r\n", HALF + b"Content-Length: nope\r\n\r\n", b"\0" * 70_000]
)
def test_what_is_no_request_is_refused_and_closed(tmp_path: Path, sent: bytes) -> None:
    async def check(client: httpx.AsyncClient) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", client.base_url.port)
        writer.write(sent)
        writer.write_eof()
        answer = await reader.read()
        assert answer == b"" or answer.startswith(b"HTTP/1.1 400 ")
        writer.close()
        assert (await client.get("/health")).status_code == 200

    serve(tmp_path, check, None)


def test_a_websocket_is_not_for_this_port(tmp_path: Path) -> None:
    async def check(client: httpx.AsyncClient) -> None:
        upgrade = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13", "Sec-WebSocket-Key": "x" * 22 + "=="}
        assert (await client.get("/cdc", headers=upgrade)).status_code == 405

    serve(tmp_path, check, None)
