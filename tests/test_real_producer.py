"""The producer library against a real daemon that refuses, for every reason that passes, and goes away: nothing is lost or given up."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from pathlib import Path

import orjson
import pytest

from dolake.cdc.client import Producer
from dolake.model import DeclaredColumn, DeclaredSchema
from tests.harness.daemon import Daemon
from tests.harness.lake import Lake
from tests.harness.oracle import LEDGER_COLUMNS, ledger_event
from tests.harness.traffic import url_of
from tests.harness.waiting import wait_until_async

UNREACHABLE_S_MAX = 0.5  # Far less than any trouble below lasts: only nobody at all counts as unreachable.
EVENTS_A_BATCH = 20


class Feed:
    """One producer and how far it has got."""

    def __init__(self, producer: Producer, sequence: int = 0) -> None:
        self.producer, self.sequence = producer, sequence

    async def declare(self) -> None:
        columns = tuple(DeclaredColumn(name, kind, nullable=name != "id") for name, kind in LEDGER_COLUMNS.items())
        await self.producer.declare(DeclaredSchema("ledger", ("id",), columns))

    async def send(self, batch_count: int) -> None:
        for _ in range(batch_count):
            events = [ledger_event(self.sequence + place, note_size=200).to_wire() for place in range(EVENTS_A_BATCH)]
            await self.producer.send([orjson.dumps(event) for event in events])
            self.sequence += EVENTS_A_BATCH
        await self.producer.drain()


@pytest.mark.acceptance("AT-37", "AT-38")
def test_a_producer_outlasts_every_refusal_that_passes(tmp_path: Path) -> None:
    disks = [tmp_path / "disk-0", tmp_path / "disk-1"]
    full, broken = tmp_path / "full", tmp_path / "broken"
    points = {
        "wal.before_write": f"errno(ENOSPC, {full})",
        "wal.before_sync": f"errno(EIO, {broken})",
        "recover.scan": f"errno(EIO, {broken})",
    }
    settings = {
        "DOLAKE_LOG_DIRECTORIES": os.pathsep.join(map(str, disks)),
        "DOLAKE_LOG_SEGMENT_BYTES": "64 KiB",
        "DOLAKE_LOG_BACKLOG_BYTES": "256 KiB",
        "DOLAKE_LIMITS_PAYLOAD_BYTES": "128 KiB",
        "DOLAKE_LIMITS_EVENT_BYTES": "16 KiB",
        "DOLAKE_FLUSH_AGE_S": "0.3",
        "DOLAKE_FAILPOINTS": ";".join(f"{point}@{disks[0]}={action}" for point, action in points.items()),
    }

    async def scenario(daemon: Daemon, url: Callable[[], str | None]) -> int:
        def refusals(reason: str) -> float:
            return sum(count for name, count in daemon.metrics().items() if name.startswith("dolake_cdc_nacks_total{") and reason in name)

        async def refused(reason: str, times: int, sending: asyncio.Task[None]) -> None:
            """Until the daemon has refused so often for this reason; the producer must not have given up."""
            await wait_until_async(lambda: refusals(reason) >= times, lambda: f"{times} nacks {reason}\n{daemon.tail()}", 60)
            assert not sending.done()

        async with Producer(url() or "", "source-0", window_batches=8, unreachable_s_max=UNREACHABLE_S_MAX) as producer:
            feed = Feed(producer)
            await feed.declare()
            await feed.send(5)

            full.touch()
            sending = asyncio.create_task(feed.send(20))
            await refused("storage_full", 4, sending)
            full.unlink()
            await sending

            broken.touch()
            sending = asyncio.create_task(feed.send(20))
            await refused("degraded", 4, sending)
            broken.unlink()
            await sending

            writer = daemon.wait_ready().pids["writer"]
            os.kill(writer, signal.SIGSTOP)
            sending = asyncio.create_task(feed.send(80))
            await refused("buffer_full", 4, sending)
            os.kill(writer, signal.SIGCONT)
            await sending
            await producer.drain("persisted")

        async with Producer(url() or "", "source-0", window_batches=8) as producer:
            assert producer.last_event_sequence == feed.sequence - 1
            again = Feed(producer, feed.sequence)
            sending = asyncio.create_task(again.send(60))
            await wait_until_async(lambda: producer.acked_event_count > 0, "some acks", 60)
            before = daemon.wait_ready()
            os.kill(before.pids["ingest"], signal.SIGTERM)  # It drains: `shutting_down`, then nobody there for a moment.
            await asyncio.to_thread(daemon.wait_replaced, before, "ingest")
            await sending
            await producer.drain("persisted")
            return again.sequence

    with Daemon(tmp_path / "data", settings) as daemon, Lake(daemon.data) as lake:
        daemon.start()
        count = asyncio.run(scenario(daemon, url_of(daemon)))
        scan = f"iceberg_scan('{lake.metadata_location('ledger')}')"
        assert lake.query(f"SELECT count(*), count(DISTINCT _cdc_sequence), max(_cdc_sequence) FROM {scan}") == [(count, count, count - 1)]
        in_order = f"SELECT _cdc_sequence, lag(_cdc_sequence) OVER (ORDER BY _cdc_offset, _cdc_index) AS before FROM {scan}"
        assert lake.query(f"SELECT count(*) FROM ({in_order}) WHERE _cdc_sequence <> before + 1") == [(0,)]
        assert daemon.stop() == 0
