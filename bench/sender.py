"""A lean source: writes frames that were made before, and notes when each was answered.

It uses websockets' protocol without its I/O for the handshake and the answers; the frames go to the socket as they are.
So nearly all processor time of a run is the daemon's.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import orjson
from websockets.client import ClientProtocol
from websockets.frames import Frame, Opcode
from websockets.uri import parse_uri

from bench.events import SOURCE

CONNECT = {
    "type": "connect",
    "timestamp": 1_767_225_600_000,
    "sourceDoId": SOURCE,
    "lastAckSequence": -1,
    "protocolVersion": 1,
    "capabilities": {"binaryProtocol": False, "compression": False, "batching": True, "maxBatchSize": 10_000, "maxMessageSize": 1 << 24},
}
_ACKED = frozenset({"ok", "buffered", "fallback", "duplicate"})


class Refused(Exception):
    """The daemon did not ack a batch: the benchmark is void."""


@dataclass
class Timings:
    """Monotonic seconds. `due` is when a frame should have left (open loop) or left; `acked` when its ack came."""

    due: list[float] = field(default_factory=list)
    acked: list[float] = field(default_factory=list)

    def latencies_s(self) -> list[float]:
        return sorted(acked - due for due, acked in zip(self.due, self.acked, strict=True))


class Connection(asyncio.Protocol):
    """One websocket connection to the daemon."""

    def __init__(self, url: str, token: str = "") -> None:
        self._token, self._source = token, SOURCE
        self._websocket = ClientProtocol(parse_uri(url))
        self._answers: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._progress = asyncio.Event()  # set at every ack, whenever writing may go on, and when all is lost
        self._opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._paused = False
        self._streaming = False
        self._failure: Exception | None = None
        self.timings = Timings()

    @classmethod
    async def open(cls, url: str, token: str = "") -> Connection:
        parts = urlsplit(url)
        _, connection = await asyncio.get_running_loop().create_connection(lambda: cls(url, token), parts.hostname, parts.port)
        await connection._opened
        return connection

    # -- asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.set_write_buffer_limits(high=4 << 20)
        request = self._websocket.connect()
        if self._token:
            request.headers["Authorization"] = f"Bearer {self._token}"
        self._websocket.send_request(request)
        self._flush()

    def data_received(self, data: bytes) -> None:
        self._websocket.receive_data(data)
        for event in self._websocket.events_received():
            if not isinstance(event, Frame):
                self._opened.set_result(None)
            elif event.opcode in (Opcode.TEXT, Opcode.BINARY):
                self._received(orjson.loads(event.data))
        self._flush()

    def _received(self, answer: dict[str, Any]) -> None:
        if not self._streaming:
            self._answers.put_nowait(answer)
            return
        self.timings.acked.append(time.monotonic())
        if answer["type"] != "ack" or answer["status"] not in _ACKED:
            self._failure = Refused(str(answer))
        self._progress.set()

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        self._progress.set()

    def connection_lost(self, error: Exception | None) -> None:
        self._failure = self._failure or error or Refused("the daemon closed the connection")
        self._answers.put_nowait({"type": "closed"})
        self._progress.set()

    def _flush(self) -> None:
        for data in self._websocket.data_to_send():
            self._transport.write(data)

    # -- what benchmarks do

    async def greet(self, source: str = SOURCE) -> None:
        self._source = source
        answer = await self.ask({**CONNECT, "sourceDoId": source})
        if answer["type"] != "status":
            raise Refused(str(answer))

    async def ask(self, message: dict[str, Any]) -> dict[str, Any]:
        self._websocket.send_text(orjson.dumps(message))
        self._flush()
        return await self._answers.get()

    async def send_window(self, frames: Sequence[bytes | Sequence[bytes]], window: int) -> None:
        """As fast as acks allow, with at most `window` batches unanswered; returns when all are acked."""
        self._streaming = True
        for frame in frames:
            await self._until(lambda: self.unanswered < window and not self._paused)
            self._send(frame, time.monotonic())
        await self._until(lambda: not self.unanswered)
        self._streaming = False

    async def send_at_rate(self, frames: Sequence[bytes], interval_s: float) -> None:
        """One frame every `interval_s`, whether the daemon keeps up or not (open loop): what waits here counts as latency."""
        self._streaming = True
        began = time.monotonic()
        for place, frame in enumerate(frames):
            due = began + place * interval_s
            if (delay := due - time.monotonic()) > 0:
                await asyncio.sleep(delay)
            await self._until(lambda: not self._paused)
            self._send(frame, due)
        await self._until(lambda: not self.unanswered)
        self._streaming = False

    @property
    def unanswered(self) -> int:
        return len(self.timings.due) - len(self.timings.acked)

    def _send(self, frame: bytes | Sequence[bytes], due: float) -> None:
        """A frame whole, or its parts."""
        self.timings.due.append(due)
        if isinstance(frame, bytes):
            self._transport.write(frame)
        else:
            self._transport.writelines(frame)

    async def _until(self, condition: Callable[[], bool]) -> None:
        while not (condition() or self._failure):
            self._progress.clear()
            await self._progress.wait()
        if self._failure:
            raise self._failure

    async def flush(self) -> None:
        """Until everything acked is committed."""
        answer: dict[str, Any] = {"type": ""}
        while answer.get("result", {}).get("success") is not True:
            answer = await self.ask({"type": "flush_request", "timestamp": 1, "sourceDoId": self._source, "reason": "manual"})
            if answer["type"] != "flush_response":
                raise Refused(str(answer))

    def close(self) -> None:
        self._transport.close()
