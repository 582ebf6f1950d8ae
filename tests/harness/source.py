"""A source of our own: speaks the wire protocol over a plain websocket and writes everything into the oracle's journal.

It shares no code with `dolake.cdc`, so that a mistake there cannot hide itself here.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidMessage

from tests.harness.oracle import LEDGER_COLUMNS, Event, Oracle

_PAUSE_S = 0.06  # between connections: the server takes 20 new ones a second
DURABLE = frozenset({"ok", "buffered", "duplicate", "fallback"})


class Conversation:
    """One websocket. `ask` sends a message and takes the next answer."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket

    async def ask(self, message: dict[str, Any]) -> dict[str, Any]:
        await self.send(message)
        return await self.receive()

    async def send(self, message: dict[str, Any]) -> None:
        await self.socket.send(orjson.dumps(message))

    async def receive(self) -> dict[str, Any]:
        answer: dict[str, Any] = orjson.loads(await self.socket.recv())
        return answer


@contextlib.asynccontextmanager
async def conversation(url: str, token: str = "", **more: Any) -> Any:
    """`more` goes to the websocket library: `ssl`, for one."""
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    options = {"compression": None, "max_size": None, "ping_interval": None, "open_timeout": 30, "proxy": None, **more}
    async with connect(url, additional_headers=headers, **options) as socket:
        yield Conversation(socket)


def connect_message(source: str, last_ack: int = -1, epoch: str = "", **more: Any) -> dict[str, Any]:
    capabilities = {"binaryProtocol": False, "compression": False, "batching": True, "maxBatchSize": 10_000, "maxMessageSize": 1 << 24}
    message = {
        "type": "connect",
        "timestamp": 1_767_225_600_000,
        "sourceDoId": source,
        "lastAckSequence": last_ack,
        "protocolVersion": 1,
        "capabilities": capabilities,
        **more,
    }
    return {**message, "epoch": epoch} if epoch else message


def batch_message(source: str, sequence: int, events: Sequence[Event], epoch: str = "", **more: Any) -> dict[str, Any]:
    wire = [event.to_wire() for event in events]
    message = {
        "type": "cdc_batch",
        "timestamp": 1_767_225_600_000,
        "sourceDoId": source,
        "events": wire,
        "sequenceNumber": sequence,
        "firstEventSequence": events[0].sequence if events else 0,
        "lastEventSequence": events[-1].sequence if events else 0,
        "sizeBytes": len(orjson.dumps(wire)),
        "isRetry": False,
        "retryCount": 0,
        **more,
    }
    return {**message, "epoch": epoch} if epoch else message


def schema_message(source: str, sequence: int, table: str, columns: dict[str, str] | None = None, key: str = "id") -> dict[str, Any]:
    columns = LEDGER_COLUMNS if columns is None else columns
    return {
        "type": "schema",
        "sourceDoId": source,
        "sequenceNumber": sequence,
        "table": table,
        "primaryKey": [key],
        "columns": [{"name": name, "type": kind, "nullable": name != key} for name, kind in columns.items()],
    }


async def flush(url: str, source: str = "flusher") -> dict[str, Any]:
    """Asks for everything to be committed and waits for the answer."""
    async with conversation(url) as talk:
        await talk.ask(connect_message(source))
        answer = await talk.ask({"type": "flush_request", "timestamp": 1, "sourceDoId": source, "reason": "manual"})
        assert answer["type"] == "flush_response", answer
        result: dict[str, Any] = answer["result"]
        return result


@dataclass
class Source:
    """Delivers what is added, in order, through any number of lost connections, and journals it."""

    name: str
    oracle: Oracle
    epoch: str = ""
    window: int = 16
    frames: list[tuple[int, bytes, list[Event]]] = field(default_factory=list)
    first_sequence: int = 1
    acked: int = 0  # how many of `frames` are known to be durable
    nacks: list[dict[str, Any]] = field(default_factory=list)
    connection_count: int = 0
    closes: list[int] = field(default_factory=list)  # codes with which the server closed, 1006 where it died
    latencies_s: list[float] = field(default_factory=list)  # of each ack, since its frame was last sent
    _sent_s: dict[int, float] = field(default_factory=dict)

    def declare(self, *tables: str) -> Source:
        for table in tables:
            sequence = self._next()
            self.frames.append((sequence, orjson.dumps(schema_message(self.name, sequence, table)), []))
        return self

    def add(self, events: Sequence[Event]) -> Source:
        sequence = self._next()
        self.frames.append((sequence, orjson.dumps(batch_message(self.name, sequence, events, self.epoch)), list(events)))
        return self

    def _next(self) -> int:
        return self.first_sequence + len(self.frames)

    @property
    def done(self) -> bool:
        return self.acked == len(self.frames)

    async def deliver(self, url: Callable[[], str | None], *, until: Callable[[], bool] | None = None) -> None:
        """Until every frame is acked (and `until` is true); connects as often as it takes."""
        finished = until or (lambda: True)
        while not (self.done and finished()):
            address = url()
            with contextlib.suppress(OSError, InvalidHandshake, InvalidMessage, EOFError, TimeoutError):
                if address is not None:
                    async with conversation(address) as talk:
                        await self._converse(talk, finished)
                        continue
            await asyncio.sleep(_PAUSE_S)

    async def _converse(self, talk: Conversation, finished: Callable[[], bool]) -> None:
        self.connection_count += 1
        try:
            last_ack = self.first_sequence + self.acked - 1 if self.acked else -1
            answer = await talk.ask(connect_message(self.name, last_ack, self.epoch))
            if answer["type"] == "nack" and answer["shouldRetry"]:
                self.nacks.append(answer)
                return
            assert answer["type"] == "status", answer
            self._resume(answer["lastSequence"])
            await self._send_and_receive(talk, finished)
        except ConnectionClosed as closed:
            self.closes.append(closed.rcvd.code if closed.rcvd else 1006)

    def _resume(self, last: int) -> None:
        """Takes the server's word for what is durable, and holds it against every ack it ever gave (I1)."""
        durable = self.oracle.acked_through(self.name, self.epoch)
        assert last >= durable, f"{self.name}: acked through {durable}, and after a restart only {last} is durable"
        while self.acked < len(self.frames) and self.first_sequence + self.acked <= last:
            self._acknowledge(self.first_sequence + self.acked, "status")

    def _acknowledge(self, sequence: int, status: str) -> None:
        self.acked += 1
        if (sent_s := self._sent_s.pop(sequence, None)) is not None and status != "status":
            self.latencies_s.append(time.monotonic() - sent_s)
        if self.frames[sequence - self.first_sequence][2]:
            self.oracle.acked(self.name, self.epoch, sequence, status)

    async def _send_and_receive(self, talk: Conversation, finished: Callable[[], bool]) -> None:
        sent = self.acked
        while not (self.done and finished()):
            while sent < len(self.frames) and sent - self.acked < self.window:
                sequence, frame, events = self.frames[sent]
                if events:
                    self.oracle.sent(self.name, self.epoch, sequence, events)
                self._sent_s[sequence] = time.monotonic()
                await talk.socket.send(frame)
                sent += 1
            if sent == self.acked:  # Nothing to send and nothing to wait for: more may be added by another task.
                await asyncio.sleep(0.005)
                continue
            answer = await talk.receive()
            expected = self.first_sequence + self.acked
            if answer["type"] == "ack":
                assert answer["sequenceNumber"] == expected, (expected, answer)
                assert answer["status"] in DURABLE, answer
                self._acknowledge(expected, answer["status"])
                continue
            sent = await self._after_nack(talk, answer, sent)

    async def _after_nack(self, talk: Conversation, nack: dict[str, Any], sent: int) -> int:
        """Takes the answers to what is still in flight, waits as told, and goes back to the first that is not durable."""
        assert nack["type"] == "nack", nack
        assert nack["shouldRetry"], nack
        self.nacks.append(nack)
        for _ in range(sent - self.acked - 1):
            self.nacks.append(await talk.receive())
        await asyncio.sleep(nack.get("retryDelayMs", 100) / 1000)
        return self.acked
