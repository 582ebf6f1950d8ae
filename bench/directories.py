"""Many sources over one log directory and over four: how evenly they are placed, what they get through, how long acks take."""

from __future__ import annotations

import asyncio
import os
import statistics
import time
from pathlib import Path
from typing import Any

from bench import events
from bench.sender import Connection
from bench.streaming import milliseconds
from tests.harness.daemon import Daemon
from tests.harness.kills import percentile

BATCH_EVENTS = 200
DIRECTORIES = 4
CONNECT_PAUSE_S = 0.06  # The server takes 20 new connections a second.
_UNMASKED = bytes(4)  # A mask of zeros: the message stands in the frame as it is, and many frames share it.


def source_frames(source: str, batch_count: int, bodies: list[bytes]) -> list[list[bytes]]:
    """The frames of one source, a schema first, each in parts; `bodies` are the events, the same for every source."""
    messages = [[events.schema(1, source)]]
    for place in range(batch_count):
        which = place % len(bodies)
        first, body = which * BATCH_EVENTS, bodies[which]
        head = (
            b'{"type":"cdc_batch","timestamp":1767225600000,"sourceDoId":"%s","sequenceNumber":%d,"firstEventSequence":%d,'
            b'"lastEventSequence":%d,"sizeBytes":%d,"isRetry":false,"retryCount":0,"events":['
        ) % (source.encode(), place + 2, first, first + BATCH_EVENTS - 1, len(body) + 2)
        messages.append([head, body, b"]}"])
    return [[b"\x81\xff" + sum(map(len, parts)).to_bytes(8, "big") + _UNMASKED, *parts] for parts in messages]


async def run_directories(directory: Path, count: int, source_count: int, source_bytes: int) -> dict[str, Any]:
    """Each source sends its bytes one batch after the other, all of them at once, to a daemon over `count` directories."""
    logs = [directory / f"disk-{number}" for number in range(count)]
    bodies = [
        b",".join(events.event(number) for number in range(first, first + BATCH_EVENTS))
        for first in range(0, 8 * BATCH_EVENTS, BATCH_EVENTS)
    ]
    batch_count = max(2, source_bytes // len(bodies[0]))
    with Daemon(directory / "data", {"DOLAKE_LOG_DIRECTORIES": os.pathsep.join(map(str, logs))}, spare=True) as daemon:
        url = daemon.start().wait_ready().cdc
        connections = []
        for number in range(source_count):
            connection = await Connection.open(url)
            await connection.greet(f"source-{number}")
            connections.append(connection)
            await asyncio.sleep(CONNECT_PAUSE_S)
        frames = [source_frames(f"source-{number}", batch_count, bodies) for number in range(source_count)]
        size_bytes = sum(len(part) for parts in frames for frame in parts for part in frame)
        began = time.monotonic()
        sending = [connection.send_window(parts, 1) for connection, parts in zip(connections, frames, strict=True)]
        await asyncio.gather(*sending)
        seconds = time.monotonic() - began
        appended = [value for name, value in daemon.metrics().items() if name.startswith("dolake_wal_appended_bytes_total{")]
        for connection in connections:
            connection.close()
    latencies = sorted(latency for connection in connections for latency in connection.timings.latencies_s())
    if len(appended) != count or sum(appended) < size_bytes * 0.9:
        raise AssertionError(f"{appended} bytes in {count} logs, {size_bytes} were sent: the figures are void")
    return {
        "mb": round(size_bytes / 1e6, 1),
        "acked_mb_per_s": round(size_bytes / 1e6 / seconds, 1),
        "ack_p50_ms": milliseconds(percentile(latencies, 50)),
        "ack_p99_ms": milliseconds(percentile(latencies, 99)),
        "share_of_mean_min": round(min(appended) / statistics.mean(appended), 3),
        "share_of_mean_max": round(max(appended) / statistics.mean(appended), 3),
    }


def directories(directory: Path, source_count: int, source_bytes: int) -> dict[str, Any]:
    found = {
        name: asyncio.run(run_directories(directory / f"directories-{count}", count, source_count, source_bytes))
        for name, count in (("one", 1), ("four", DIRECTORIES))
    }
    ratio = found["four"]["acked_mb_per_s"] / found["one"]["acked_mb_per_s"]
    return {"sources": source_count, "batch_events": BATCH_EVENTS, **found, "four_to_one": round(ratio, 3)}
