"""What nine quiet sources notice of a noisy one, and of clients that mean harm: their ack latencies, alone and beside them.

The noisy source offers five times the events that its connection may send, and does not care for nacks: it goes back to the
batch that was refused and sends on. The hostile clients flood: pings, messages that are none, fragments without end,
handshakes that stop in the middle.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import orjson
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed
from websockets.frames import Frame, Opcode

from bench.events import batch, schema
from bench.sender import CONNECT, Connection
from tests.harness.daemon import Daemon
from tests.harness.kills import percentile

EVENTS_PER_S_MAX = 1000
QUIET_SOURCES, QUIET_EVENTS_PER_S, QUIET_BATCH = 9, 100, 10
NOISY_EVENTS_PER_S, NOISY_BATCH = 5000, 50
SETTINGS = {"DOLAKE_LIMITS_EVENTS_PER_S": str(EVENTS_PER_S_MAX), "DOLAKE_LIMITS_CONNECTIONS_PER_S": "1000"}


async def quiet(url: str, source: str, seconds: float) -> list[float]:
    """Latencies in seconds of one source's batches, each sent when it is due. A nack ends the benchmark."""
    interval_s = QUIET_BATCH / QUIET_EVENTS_PER_S
    messages = [schema(1, source)]
    messages += [batch(2 + place, place * QUIET_BATCH, QUIET_BATCH, source) for place in range(max(4, round(seconds / interval_s)))]
    frames = [Frame(Opcode.TEXT, message).serialize(mask=True) for message in messages]
    connection = await Connection.open(url)
    await connection.greet(source)
    await connection.send_at_rate(frames, interval_s)
    connection.close()
    return connection.timings.latencies_s()


async def noisy(url: str, seconds: float, answers: Counter[str]) -> None:
    """Sends five times what it may; counts what it is told."""
    async with connect(url, compression=None, ping_interval=None, proxy=None) as client:
        await client.send(orjson.dumps({**CONNECT, "sourceDoId": "noisy"}))
        await client.recv()
        next_sequence = 1

        async def listen() -> None:
            nonlocal next_sequence
            async for frame in client:
                answer = orjson.loads(frame)
                answers[answer.get("reason") or answer.get("status") or answer["type"]] += 1
                if answer["type"] == "nack":
                    next_sequence = answer.get("expectedSequence", answer["sequenceNumber"])

        began, sent = time.monotonic(), 0
        async with beside([listen()]):
            while time.monotonic() < began + seconds:
                if (delay := began + sent * NOISY_BATCH / NOISY_EVENTS_PER_S - time.monotonic()) > 0:
                    await asyncio.sleep(delay)
                await client.send(batch(next_sequence, next_sequence * NOISY_BATCH, NOISY_BATCH, "noisy"))
                next_sequence += 1
                sent += 1


async def flood(address: tuple[str, int], opening: bytes, data: bytes, seconds: float) -> None:
    """Connects, says `opening`, then sends the same over and over as fast as it goes, reading nothing; again when it is thrown out."""
    end = time.monotonic() + seconds
    loop = asyncio.get_running_loop()
    while time.monotonic() < end:
        with contextlib.suppress(OSError), socket.socket() as client:
            client.setblocking(False)
            async with asyncio.timeout_at(loop.time() + end - time.monotonic()):
                await loop.sock_connect(client, address)
                await loop.sock_sendall(client, opening)
                while data:
                    await loop.sock_sendall(client, data)
                await loop.sock_recv(client, 1)
        await asyncio.sleep(0.05)


def hostile(url: str, seconds: float) -> list[Coroutine[Any, Any, None]]:
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
    return [bounded(flood(address, first, data, seconds)) for first, data in floods]


async def bounded(work: Coroutine[Any, Any, None]) -> None:
    with contextlib.suppress(TimeoutError, ConnectionClosed):
        await work


@contextlib.asynccontextmanager
async def beside(work: list[Coroutine[Any, Any, None]]) -> AsyncIterator[None]:
    tasks = [asyncio.create_task(one) for one in work]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def run_fairness(directory: Path, seconds: float) -> dict[str, Any]:
    answers: Counter[str] = Counter()
    phases: dict[str, Callable[[str], list[Coroutine[Any, Any, None]]]] = {
        "alone": lambda url: [],
        "beside_noisy": lambda url: [noisy(url, 3600, answers)],
        "beside_hostile": lambda url: hostile(url, 3600),
    }
    results: dict[str, Any] = {"quiet_sources": QUIET_SOURCES, "quiet_events_per_s": QUIET_EVENTS_PER_S}
    for phase, others in phases.items():
        with Daemon(directory / phase, SETTINGS) as daemon:
            url = daemon.start().wait_ready().cdc
            async with beside(others(url)):
                each = await asyncio.gather(*(quiet(url, f"quiet-{number}", seconds) for number in range(QUIET_SOURCES)))
            latencies = [latency for one in each for latency in one]
            results[phase] = {f"ack_p{percent}_ms": round(percentile(latencies, percent) * 1000, 2) for percent in (50, 95, 99)}
            results[phase]["ingest_rss_mib"] = round(daemon.rss_bytes("ingest") / 2**20)
    for phase in ("beside_noisy", "beside_hostile"):
        results[phase]["ack_p99_times_alone"] = round(results[phase]["ack_p99_ms"] / results["alone"]["ack_p99_ms"], 2)
    results["noisy_answers"] = dict(answers)
    return results


def fairness(directory: Path, seconds: float) -> dict[str, Any]:
    return asyncio.run(run_fairness(directory / "fairness", seconds))
