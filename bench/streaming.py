"""The whole way through a real daemon: how many events a second are acked and committed, and how long an ack takes.

With a token, and with a rate that counts every event and is never reached: as an operator would have it.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.events import SOURCE, TABLE, frames
from bench.machine import cpu_seconds, sampled_memory
from bench.sender import Connection
from tests.harness.access import new_token, section
from tests.harness.daemon import HALVES, Daemon
from tests.harness.kills import percentile
from tests.harness.lake import Lake

BATCH_EVENTS = 1000
SECRET = new_token()
LIMITS = {"DOLAKE_LIMITS_EVENTS_PER_S": "100000000"}
WINDOW = 32


async def run_throughput(directory: Path, event_count: int) -> dict[str, Any]:
    """Sends as fast as acks come; the sender runs on the same cores."""
    prepared = frames(event_count, BATCH_EVENTS)
    with guarded(directory / "throughput") as daemon, Lake(daemon.data) as lake:
        pids = {role: pid for role, pid in daemon.start().wait_ready().pids.items() if role in HALVES}
        before = {role: cpu_seconds(pid) for role, pid in pids.items()}
        connection = await Connection.open(daemon.wait_ready().cdc, SECRET)
        await connection.greet()
        own_before = time.process_time()
        async with sampled_memory(lambda: pids) as memory:
            began = time.monotonic()
            await connection.send_window(prepared, WINDOW)
            acked_s = time.monotonic() - began
            own_cpu_s = time.process_time() - own_before
            await connection.flush()
            committed_s = time.monotonic() - began
        used = {role: cpu_seconds(pid) - before[role] for role, pid in pids.items()}
        connection.close()
        rows = lake.row_count(TABLE)
        if rows != event_count:
            raise AssertionError(f"{rows} rows of {event_count} events: the figures are void")
        latencies = connection.timings.latencies_s()
        return {
            "events": event_count,
            "event_bytes": round(sum(map(len, prepared)) / event_count, 1),
            "acked_events_per_s": round(event_count / acked_s),
            "committed_events_per_s": round(event_count / committed_s),
            "window_batches": WINDOW,
            "ack_p50_ms": milliseconds(percentile(latencies, 50)),
            "ack_p99_ms": milliseconds(percentile(latencies, 99)),
            "snapshots": len(lake.metadata(TABLE)["snapshots"]),
            "sender_cpu_us_per_event": round(own_cpu_s / event_count * 1e6, 3),
            **{f"{role}_cpu_us_per_event": round(seconds / event_count * 1e6, 3) for role, seconds in used.items()},
            **{f"{role}_rss_mib_max": round(memory.bytes_max(role) / 2**20) for role in HALVES},
            **{f"{role}_rss_mib_grown_in_last_third": round(memory.grown_bytes(role) / 2**20, 1) for role in HALVES},
            "rss_mib_over_time": {role: [(round(at, 1), size >> 20) for at, size in memory.samples.get(role, [])][::4] for role in HALVES},
        }


def guarded(data: Path, settings: Mapping[str, str] | None = None) -> Daemon:
    """Lets in who has the token, for one source and one table."""
    tokens = data.parent / f"{data.name}.tokens.toml"
    tokens.parent.mkdir(parents=True, exist_ok=True)
    tokens.write_text(section("bench", SECRET, sources=[SOURCE], tables=[TABLE]))
    return Daemon(data, {**LIMITS, "DOLAKE_AUTH_TOKENS_FILE": str(tokens), **(settings or {})}, spare=True)


async def run_latency(directory: Path, events_per_s: float, seconds: float, settings: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Batches at a fixed rate, whether acks come or not; latency counts from when a batch was due."""
    event_count = max(BATCH_EVENTS * 4, round(events_per_s * seconds / BATCH_EVENTS) * BATCH_EVENTS)
    prepared = frames(event_count, BATCH_EVENTS)
    with guarded(directory / "latency", settings) as daemon, Lake(daemon.data) as lake:
        connection = await Connection.open(daemon.start().wait_ready().cdc, SECRET)
        await connection.greet()
        await connection.send_at_rate(prepared, BATCH_EVENTS / events_per_s)
        latencies = connection.timings.latencies_s()
        await connection.flush()
        connection.close()
        snapshots = lake.metadata(TABLE)["snapshots"]
    return {
        "events": event_count,
        "rewrites": sum("dolake.maintenance" in snapshot["summary"] for snapshot in snapshots),
        "events_per_s": round(events_per_s),
        **{f"ack_p{percent:g}_ms": milliseconds(percentile(latencies, percent)) for percent in (50, 95, 99, 99.9, 100)},
    }


def milliseconds(seconds: float) -> float:
    return round(seconds * 1000, 2)


def throughput(directory: Path, event_count: int) -> dict[str, Any]:
    return asyncio.run(run_throughput(directory, event_count))


def latency(directory: Path, events_per_s: float, seconds: float) -> dict[str, Any]:
    return asyncio.run(run_latency(directory, events_per_s, seconds))


def beside_compaction(directory: Path, events_per_s: float, seconds: float, rounds: int) -> dict[str, Any]:
    """What acks take while files of half a second each are rewritten, and while they are left; one after the other, `rounds` times.

    Rewrites begin as soon as there are enough files, and take what the others leave of two cores.
    """
    often = {"DOLAKE_FLUSH_AGE_S": "0.5", "DOLAKE_COMPACTION_INTERVAL_S": "0.2"}
    found: dict[bool, list[dict[str, Any]]] = {False: [], True: []}
    for number in range(rounds):
        for compacts in (False, True):
            settings = {**often, "DOLAKE_COMPACTION_ENABLED": str(compacts).lower()}
            place = directory / f"beside-{number}-{compacts}"
            found[compacts].append(asyncio.run(run_latency(place, events_per_s, seconds, settings)))
    figures: dict[str, Any] = {
        "events_per_s": round(events_per_s),
        "rounds": rounds,
        "rewrites": sum(one["rewrites"] for one in found[True]),
    }
    for percent in ("p50", "p99"):
        without, beside = (statistics.median(one[f"ack_{percent}_ms"] for one in found[compacts]) for compacts in (False, True))
        figures |= {f"ack_{percent}_ms_without": without, f"ack_{percent}_ms_beside": beside}
        figures[f"ack_{percent}_times"] = round(beside / without, 2)
    return figures
