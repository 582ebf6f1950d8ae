"""A source that uses the product's own producer, crashes now and then, and remembers nothing when it comes back.

What to send first it learns from the daemon (`last_event_sequence`); the events that follow it puts into batches anew, larger or
smaller than before.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import orjson

from dolake.cdc.client import Producer
from dolake.cdc.dial import TransportClosed
from dolake.errors import DolakeError, SourceTakenOver
from dolake.model import DeclaredColumn, DeclaredSchema
from tests.simulation.faults import Breach, Chaos
from tests.simulation.invariants import Event, Journal
from tests.simulation.loop import Process
from tests.simulation.network import Disconnected, Wire
from tests.simulation.sources import Script

RESTART_S = (0.0, 0.1, 2.0)
URL = "ws://simulated/cdc"


class Producing:
    """Something that uses the producer, life after life, until it is done."""

    name: str

    def __init__(self, hire: Callable[[str], Process], journal: Journal, dial: Callable[[Process], Wire | None], chaos: Chaos) -> None:
        """`hire` makes a process for each life."""
        self._hire, self._journal, self._dial, self._chaos = hire, journal, dial, chaos
        self.is_done = False
        self.process: Process | None = None

    def start(self, note: Callable[[str], None]) -> None:
        self._task = asyncio.ensure_future(self._keep(note))

    async def _keep(self, note: Callable[[str], None]) -> None:
        while not self.is_done:
            process = self.process = self._hire(f"producer {self.name}")
            over = asyncio.Event()
            process.on_death.append(over.set)
            process.spawn(self._live(process, note))
            await over.wait()
            await asyncio.sleep(process.random.choice(RESTART_S))

    async def _live(self, process: Process, note: Callable[[str], None]) -> None:
        try:
            await self.work(process)
            self.is_done = True
        except SourceTakenOver:
            self._chaos.count("producer taken over by its own ghost")  # What its last life had sent arrived behind it.
        except DolakeError as error:
            note(f"producer {self.name} ended: {error!r}")
        except Breach as breach:
            note(str(breach))
        process.die()

    async def work(self, process: Process) -> None:
        """One life; returns when there is nothing left to do."""
        raise NotImplementedError

    def note_message(self, message: dict[str, Any]) -> None:
        """A numbered message is about to be sent."""
        raise NotImplementedError

    def note_ack(self, sequence: int, status: str) -> None:
        """Raises Breach if the daemon says what is not so."""
        raise NotImplementedError

    def dialler(self, process: Process, epoch: str) -> Callable[[str], Awaitable[SimTransport]]:
        async def dial(_: str) -> SimTransport:
            wire = self._dial(process)
            if wire is None:
                await process.runtime.clock.sleep(0.01)
                raise TransportClosed(1006, "nobody answers")
            wire.source, wire.epoch = self.name, epoch
            return SimTransport(wire, self, self._journal)

        return dial


class PoliteSource(Producing):
    def __init__(
        self, script: Script, hire: Callable[[str], Process], journal: Journal, dial: Callable[[Process], Wire | None], chaos: Chaos
    ) -> None:
        super().__init__(hire, journal, dial, chaos)
        self._script = script
        self.name = script.source
        self.events_sent: dict[int, tuple[Event, ...]] = {}

    async def work(self, process: Process) -> None:
        for epoch in self._script.epochs[-1:]:
            await self._send_all(process, epoch)

    def note_message(self, message: dict[str, Any]) -> None:
        events = tuple((self.name, message["epoch"], event["sequence"]) for event in message.get("events", ()))
        self.events_sent[message["sequenceNumber"]] = events

    def note_ack(self, sequence: int, status: str) -> None:
        if status == "persisted":
            events = [event for number, events in self.events_sent.items() if number <= sequence for event in events]
            self._journal.expect_persisted(events, f"{self.name}: persisted up to {sequence}")
        else:
            self._journal.acked.update(self.events_sent[sequence])

    async def _send_all(self, process: Process, epoch: str) -> None:
        draw = process.random

        window = draw.choice([1, 4, 32])
        producer = Producer(
            URL,
            self.name,
            epoch=epoch,
            window_batches=window,
            unreachable_s_max=1e9,
            runtime=process.runtime,
            dial=self.dialler(process, epoch),
        )
        columns = tuple(
            DeclaredColumn(column["name"], column["type"], nullable=column.get("nullable", True))
            for column in draw.choice(self._script.columns)
        )
        async with producer:
            for table in sorted({str(self._journal.sent[event]["table"]) for event in self._events(epoch)}):
                await producer.declare(DeclaredSchema(table, ("id",), columns))
            waiting = [event for event in self._bodies(epoch) if event[0] > producer.last_event_sequence]
            while waiting:
                count = draw.randint(1, 5)
                await producer.send([body for _, body in waiting[:count]])
                waiting = waiting[count:]
                if draw.random() < 0.1:
                    await process.runtime.clock.sleep(draw.random())
                if draw.random() < 0.05:
                    await producer.flush()
            await producer.drain(draw.choice(["durable", "persisted"]))

    def _events(self, epoch: str) -> list[Event]:
        return [event for batch in self._script.batches[epoch] for event in batch.events]

    def _bodies(self, epoch: str) -> Iterator[tuple[int, bytes]]:
        """Each event's sequence and its JSON."""
        for batch in self._script.batches[epoch]:
            if not batch.table:
                for event in orjson.loads(batch.body):
                    yield event["sequence"], orjson.dumps(event)


class SimTransport:
    """cdc.dial.Transport over a simulated wire; the journal sees what passes."""

    def __init__(self, wire: Wire, source: Producing, journal: Journal) -> None:
        self._wire, self._source, self._journal = wire, source, journal

    async def send(self, frame: bytes) -> None:
        message = orjson.loads(frame)
        if "sequenceNumber" in message:
            self._source.note_message(message)
            self._journal.note_sent(self._source.name, message.get("epoch", ""), message["sequenceNumber"], frame)
        try:
            await self._wire.send(frame)
        except Disconnected as error:
            raise TransportClosed(error.code, error.reason) from None

    async def receive(self) -> bytes:
        try:
            frame = await self._wire.receive()
        except Disconnected as error:
            raise TransportClosed(error.code, error.reason) from None
        answer = orjson.loads(frame)
        if answer["type"] == "ack":
            self._source.note_ack(answer["sequenceNumber"], answer["status"])
        return frame

    async def close(self) -> None:
        self._wire.cut()
