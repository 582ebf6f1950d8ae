"""The product's own producer with the oracle's journal: what it was given to send, and what it says is durable."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any, Self

import orjson

from dolake.cdc.client import Producer
from dolake.clock import Runtime, SystemClock, real_runtime
from dolake.model import DeclaredColumn, DeclaredSchema
from tests.harness.oracle import LEDGER_COLUMNS, Event, Oracle, ledger_event


class HastyClock(SystemClock):
    """Real time that passes more quickly for who is given it: what takes a minute takes a second of ours."""

    def __init__(self, speed: float) -> None:
        self._speed = speed

    def monotonic_s(self) -> float:
        return time.monotonic() * self._speed

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds / self._speed)


class Feed:
    """One source's producer and how far it has got. Its events are the ledger's, one sequence for all its tables."""

    def __init__(
        self, oracle: Oracle, url: str, source: str, *, table: str = "ledger", sequence: int = 0, speed: float = 10, **options: Any
    ) -> None:
        """`speed` is that of the producer's clock; `options` are the producer's."""
        runtime = real_runtime()
        self.oracle, self.source, self.table, self.sequence = oracle, source, table, sequence
        hasty = Runtime(HastyClock(speed), runtime.random, runtime.tasks)
        self.producer = Producer(url, source, runtime=hasty, **{"unreachable_s_max": 100_000, "window_batches": 8, **options})

    async def __aenter__(self) -> Self:
        await self.producer.__aenter__()
        return self

    async def __aexit__(self, kind: Any, error: Any, trace: Any) -> None:
        """As the producer's: it waits until all is durable, and then all counts as acked."""
        try:
            await self.producer.__aexit__(kind, error, trace)
        finally:
            self._note_acked()

    async def declare(self, *tables: str) -> None:
        columns = tuple(DeclaredColumn(name, kind, nullable=name != "id") for name, kind in LEDGER_COLUMNS.items())
        for table in tables or (self.table,):
            await self.producer.declare(DeclaredSchema(table, ("id",), columns))

    async def send(self, batch_count: int = 1, *, size: int = 20, table: str = "") -> None:
        """Batches of so many events each; waits only while the window is full."""
        for _ in range(batch_count):
            await self.send_events([ledger_event(self.sequence + place, table or self.table) for place in range(size)])

    async def send_events(self, events: Sequence[Event]) -> None:
        self.oracle.sent(self.source, "", self.producer.last_sequence + 1, list(events))
        sequence = await self.producer.send([orjson.dumps(event.to_wire()) for event in events])
        assert (self.source, "", sequence) in self.oracle.batches
        self.sequence += len(events)

    async def drain(self) -> None:
        await self.producer.drain()
        self._note_acked()

    def _note_acked(self) -> None:
        for (source, epoch, sequence), batch in self.oracle.batches.items():
            if source == self.source and not batch.acked and sequence <= self.producer.acked_sequence:
                self.oracle.acked(source, epoch, sequence, "ok")
