"""What nine quiet sources notice of a noisy one, and of clients that mean harm: their ack latencies, alone and beside them.

The noisy source offers five times the events that its connection may send, and does not care for nacks: it goes back to the
batch that was refused and sends on. The hostile clients flood: pings, messages that are none, fragments without end,
handshakes that stop in the middle (`bench.hostile`).
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import orjson
from websockets.asyncio.client import connect
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


async def hostile_process(url: str) -> None:
    process = await asyncio.create_subprocess_exec(sys.executable, "-m", "bench.hostile", url)
    try:
        raise RuntimeError(f"the hostile clients have ended: {await process.wait()}")
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


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
        "beside_hostile": lambda url: [hostile_process(url)],
    }
    results: dict[str, Any] = {"quiet_sources": QUIET_SOURCES, "quiet_events_per_s": QUIET_EVENTS_PER_S}
    for phase, others in phases.items():
        with Daemon(directory / phase, SETTINGS, spare=True) as daemon:
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
