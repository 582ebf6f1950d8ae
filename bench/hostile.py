"""`python -m bench.hostile URL`: clients that mean harm, until killed: floods of pings, of messages that are none, of fragments
without end, handshakes that stop in the middle, noise.

A process of its own, at the lowest priority: real ones run on machines of their own, and what they compute there is no cost of ours.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys
from urllib.parse import urlsplit

import orjson
from websockets.frames import Frame, Opcode

from bench.sender import CONNECT


async def flood(address: tuple[str, int], opening: bytes, data: bytes) -> None:
    """Connects, says `opening`, then sends the same over and over as fast as it goes, reading nothing; again when it is thrown out."""
    loop = asyncio.get_running_loop()
    while True:
        with contextlib.suppress(OSError), socket.socket() as client:
            client.setblocking(False)
            await loop.sock_connect(client, address)
            await loop.sock_sendall(client, opening)
            while data:
                await loop.sock_sendall(client, data)
            await loop.sock_recv(client, 1)
        await asyncio.sleep(0.05)


async def hostile(url: str) -> None:
    parts = urlsplit(url)
    assert parts.hostname is not None
    assert parts.port is not None
    address = (parts.hostname, parts.port)
    opening = (
        f"GET /cdc HTTP/1.1\r\nHost: {parts.netloc}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    ).encode()
    greeting = Frame(Opcode.TEXT, orjson.dumps({**CONNECT, "sourceDoId": "hostile"})).serialize(mask=True)
    floods = [
        (opening + greeting, Frame(Opcode.PING, b"").serialize(mask=True) * 1000),
        (opening + greeting, Frame(Opcode.TEXT, b"{}").serialize(mask=True) * 1000),
        (
            opening + Frame(Opcode.TEXT, b"{", fin=False).serialize(mask=True),
            Frame(Opcode.CONT, b"", fin=False).serialize(mask=True) * 1000,
        ),
        (opening[:60], b""),
        (b"", os.urandom(100_000)),
    ]
    await asyncio.gather(*(flood(address, first, data) for first, data in floods))


if __name__ == "__main__":
    os.nice(19)
    asyncio.run(hostile(sys.argv[1]))
