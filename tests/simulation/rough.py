"""A source with bad manners: it keeps to the protocol where it must and strains it where it may.

It resumes from what `status` says and sends again what was refused. But it repeats batches, leaves gaps, reuses sequences for
other content, sends for epochs that are over, asks for flushes, cuts its connection, and loses its numbering.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any

import orjson

from tests.simulation.faults import Breach
from tests.simulation.invariants import Journal
from tests.simulation.loop import Process
from tests.simulation.network import Disconnected, Wire
from tests.simulation.sources import Batch, Script


class RoughSource:
    """Sends a script until all of its last epoch is acked."""

    def __init__(self, script: Script, process: Process, journal: Journal, dial: Callable[[Process], Wire | None], rudeness: float) -> None:
        self.script, self._process, self._journal, self._dial, self._rudeness = script, process, journal, dial, rudeness
        self._draw = process.random
        self._epoch = 0
        self.acked: dict[str, int] = {}
        self.is_done = False
        self._expected: deque[tuple[int, Batch | None]] = deque()
        self._tries = 0

    @property
    def name(self) -> str:
        return self.script.source

    def start(self, note: Callable[[str], None]) -> None:
        """`note` hears of what the daemon must not do to a source."""
        self._process.spawn(self._run(note))

    async def _run(self, note: Callable[[str], None]) -> None:
        while not self.is_done:
            try:
                wire = self._dial(self._process)
                if wire is not None:
                    try:
                        async with asyncio.timeout(60):
                            await self._talk(wire)
                    finally:
                        wire.cut()
            except (Disconnected, TimeoutError):
                pass
            except Breach as breach:
                note(str(breach))
            await self._process.runtime.clock.sleep(self._draw.choice([0.0, 0.1, 2.0]))

    @property
    def _batches(self) -> list[Batch]:
        return self.script.batches[self.script.epochs[self._epoch]]

    async def _talk(self, wire: Wire) -> None:
        epoch = self.script.epochs[self._epoch]
        self._expected.clear()
        position = await self._greet(wire, epoch)
        while position < len(self._batches) or self._expected:
            for batch in self._batches[position : position + self._draw.randint(1, 6)]:
                await self._misbehave(wire, batch)
                await self._send(wire, batch)
            position = await self._hear_all(wire, position)
            if self._draw.random() < 0.1 * self._rudeness and self._epoch + 1 < len(self.script.epochs):
                break  # It lost its numbering: what was not acked is never sent again.
        if self._draw.random() < 0.3:
            await self._ask_flush(wire)
        if self._epoch + 1 < len(self.script.epochs):
            self._epoch += 1
        else:
            self.is_done = True

    async def _greet(self, wire: Wire, epoch: str) -> int:
        """Connects; the place in the script from which to send."""
        acked = self.acked.get(epoch, -1)
        wire.source, wire.epoch = self.script.source, epoch
        capabilities = {"binaryProtocol": False, "compression": False, "batching": True, "maxBatchSize": 1000, "maxMessageSize": 1 << 20}
        connect: dict[str, Any] = {"type": "connect", "timestamp": self._now_ms(), "sourceDoId": self.script.source}
        connect |= {"lastAckSequence": acked, "protocolVersion": 1, "capabilities": capabilities, "ackPersisted": True}
        await wire.send(orjson.dumps({**connect, "epoch": epoch} if epoch else connect))
        while True:
            answer = await self._hear(wire)
            if answer["type"] == "status":
                break
            if answer["type"] == "nack":
                raise Disconnected
        if answer.get("lost") and not wire.to_zombie:
            raise Breach(f"I1: {self.script.source} was acked up to {acked}, the log says {answer}")
        last = answer["lastSequence"]
        return next((place for place, batch in enumerate(self._batches) if batch.sequence > last), len(self._batches))

    async def _send(self, wire: Wire, batch: Batch) -> None:
        frame = batch.frame(self.script.source, retry_count=self._tries, now_ms=self._now_ms())
        self._journal.note_sent(self.script.source, batch.epoch, batch.sequence, frame)
        copies = await wire.send(frame, impatient=True)
        self._expected.extend([(batch.sequence, batch)] * copies)

    async def _misbehave(self, wire: Wire, batch: Batch) -> None:
        if self._draw.random() >= 0.1 * self._rudeness:
            return
        kind = self._draw.choice(["repeat", "gap", "reuse", "heartbeat", "ended epoch"])
        source = self.script.source
        if kind == "repeat":
            await self._send(wire, self._draw.choice(self._batches[: self._batches.index(batch) + 1]))
        elif kind == "gap" and self.acked.get(batch.epoch, -1) >= 0:  # A source never seen may begin anywhere.
            frame = batch.frame(source, retry_count=0, now_ms=self._now_ms(), sequence=batch.sequence + 1000)
            self._expected.extend([(batch.sequence + 1000, None)] * await wire.send(frame))
        elif kind == "reuse" and self._batches[0].sequence <= self.acked.get(batch.epoch, -1):  # What was refused was not used.
            older = self._draw.choice([older for older in self._batches if older.sequence <= self.acked[batch.epoch]])
            frame = older.frame(source, retry_count=1, now_ms=self._now_ms(), body=_other_body(older))
            self._expected.extend([(older.sequence, None)] * await wire.send(frame))
        elif kind == "heartbeat":
            beat = {"type": "heartbeat", "timestamp": 1, "sourceDoId": source, "lastAckSequence": -1, "pendingEvents": 0}
            await wire.send(orjson.dumps(beat))
        elif kind == "ended epoch" and self.acked.get(batch.epoch, -1) >= 0 and self._before() in self.acked:
            older = self.script.batches[self._before()][-1]
            frame = older.frame(source, retry_count=0, now_ms=self._now_ms(), sequence=older.sequence + 1, body=b"[  ]")
            self._expected.extend([(older.sequence + 1, None)] * await wire.send(frame))

    def _before(self) -> str:
        """The epoch before the present one."""
        return self.script.epochs[self._epoch - 1] if self._epoch else "none"

    async def _hear_all(self, wire: Wire, position: int) -> int:
        """Waits for the answers to all that was sent; where to go on."""
        refused = False
        delay_ms = 0
        while self._expected:
            answer = await self._hear(wire)
            if answer["type"] not in ("ack", "nack"):
                continue
            sequence, batch = self._expected.popleft()
            if answer["sequenceNumber"] != sequence:
                raise Breach(f"{self.script.source}: answers out of order: expected one to {sequence}, got {answer}")
            if answer["type"] == "nack":
                if batch is not None and not answer["shouldRetry"]:
                    raise Breach(f"{self.script.source}: refused for good: {answer}")
                refused = refused or batch is not None
                delay_ms = max(delay_ms, answer.get("retryDelayMs", 0))
            elif batch is None:
                raise Breach(f"I3: {self.script.source}: a gap, a reuse or an ended epoch was acked: {answer}")
            else:
                self._journal.acked.update(batch.events)
                self.acked[batch.epoch] = max(sequence, self.acked.get(batch.epoch, -1))
        self._tries = self._tries + 1 if refused else 0
        if delay_ms:
            await self._process.runtime.clock.sleep(delay_ms / 1000)
        acked = self.acked.get(self.script.epochs[self._epoch], -1)
        return next((place for place, batch in enumerate(self._batches) if batch.sequence > acked), len(self._batches))

    async def _ask_flush(self, wire: Wire) -> None:
        """A flush that says it succeeded has committed everything acked before it was asked for, open transactions apart."""
        before = [event for event in self._journal.acked if event[0] == self.script.source]
        request = {"type": "flush_request", "timestamp": self._now_ms(), "sourceDoId": self.script.source, "reason": "manual"}
        await wire.send(orjson.dumps(request))
        while True:
            answer = await self._hear(wire)
            if answer["type"] == "flush_response":
                break
        if answer["result"]["success"] and not self.script.transactions:
            self._journal.expect_committed(before, f"{self.script.source}: a flush that succeeded")

    async def _hear(self, wire: Wire) -> dict[str, Any]:
        """The next answer; `persisted` acks are checked on the way and passed over."""
        while True:
            answer: dict[str, Any] = orjson.loads(await wire.receive())
            if answer["type"] == "ack" and answer["status"] == "persisted":
                self._note_persisted(answer["sequenceNumber"])
            else:
                return answer

    def _note_persisted(self, sequence: int) -> None:
        events = [event for batch in self._batches if batch.sequence <= sequence for event in batch.events]
        self._journal.expect_persisted(events, f"{self.script.source}: persisted up to {sequence}")

    def _now_ms(self) -> int:
        return self._process.runtime.clock.now_ms()


def _other_body(batch: Batch) -> bytes:
    """Content that is valid and not what the batch said."""
    if batch.table:
        return orjson.dumps([*orjson.loads(batch.body), {"name": "other", "type": "long", "nullable": True}])
    return batch.body.replace(b'"timestamp":17', b'"timestamp":18') if batch.events else b"[ ]"
