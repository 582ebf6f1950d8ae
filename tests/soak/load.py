"""Sources that write at random into tables of their own, and the rows that must come of it."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from tests.harness.oracle import LEDGER_COLUMNS, Event, Oracle, ledger_event
from tests.harness.source import Source, schema_message

KEY_COUNT = 300
_EXTRA = "extra"  # The column that comes with a schema change.


class LongOracle(Oracle):
    """An oracle for hours: what has been judged is forgotten, but for how far each source got."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._through: dict[tuple[str, str], int] = {}

    def acked_through(self, source: str, epoch: str) -> int:
        return max(super().acked_through(source, epoch), self._through.get((source, epoch), -1))

    def forget(self) -> None:
        for source, epoch, sequence in [key for key, batch in self.batches.items() if batch.acked]:
            self._through[source, epoch] = max(sequence, self._through.get((source, epoch), -1))
            del self.batches[source, epoch, sequence]


@dataclass
class Writer:
    """One source, one mirror with its changelog. `rows` is what the mirror must hold once all that was added is committed."""

    source: Source
    table: str
    chance: random.Random
    pause_s: float
    rows: dict[int, dict[str, Any]] = field(default_factory=dict)
    event_count: int = 0
    judged_count: int = 0  # events whose rows have been compared
    has_extra: bool = False
    stopping: bool = False

    def declare(self) -> None:
        columns = {**LEDGER_COLUMNS, **({_EXTRA: "long"} if self.has_extra else {})}
        sequence = self.source._next()
        self.source.frames.append((sequence, orjson.dumps(schema_message(self.source.name, sequence, self.table, columns)), []))

    def change_schema(self) -> None:
        """From here on rows have one column more."""
        self.has_extra = True
        self.declare()

    def add_batch(self) -> None:
        size = min(1 + int(self.chance.expovariate(0.06)), 200)
        note_size = self.chance.choice((0, 0, 0, 50, 2000)) if size < 50 else 0
        events = [self._event(self.event_count + place, note_size) for place in range(size)]
        self.source.add(events)
        self.event_count += size
        for event in events:
            if event.operation == "DELETE":
                self.rows.pop(event.row["id"], None)
            else:
                self.rows[event.row["id"]] = dict(event.row)

    def _event(self, sequence: int, note_size: int) -> Event:
        event = ledger_event(sequence, self.table, key_count=KEY_COUNT, note_size=note_size)
        return Event(sequence, self.table, event.operation, {**event.row, _EXTRA: sequence % 1000}) if self.has_extra else event

    async def run(self, url: Callable[[], str | None]) -> None:
        """Adds batches and delivers them until stopped, and then what is left."""
        self.stopping = False
        feeding = asyncio.get_running_loop().create_task(self._feed())
        try:
            await self.source.deliver(url, until=lambda: self.stopping)
        finally:
            feeding.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await feeding

    async def _feed(self) -> None:
        while not self.stopping:
            if len(self.source.frames) - self.source.acked < self.source.window:
                self.add_batch()
            await asyncio.sleep(self.chance.uniform(0, 2 * self.pause_s))

    def forget(self) -> None:
        """Everything is acked and judged: nothing of it is kept."""
        assert self.source.done, f"{self.source.name} is not done"
        self.source.first_sequence += len(self.source.frames)
        self.source.frames.clear()
        self.source.acked = 0
        self.source.nacks.clear()
        self.source.closes.clear()
        self.source.latencies_s.clear()
        self.judged_count = self.event_count


def make_writers(oracle: Oracle, seed: int, count: int, pause_s: float) -> list[Writer]:
    return [
        Writer(Source(f"source-{number}", oracle), f"ledger_{number}", random.Random(f"{seed}/{number}"), pause_s)
        for number in range(count)
    ]
