"""Connections without sockets: frames arrive in order and late, or the connection is cut and some never arrive."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from tests.simulation.faults import Chaos
from tests.simulation.loop import Process


class Disconnected(Exception):
    """The connection is gone. What was sent last may or may not have arrived. `code` is 1006 unless the server closed it in order."""

    def __init__(self, code: int = 1006, reason: str = "") -> None:
        super().__init__(f"{code} {reason}")
        self.code, self.reason = code, reason


class Pipe:
    """One direction. What is in it when it is cut arrives up to some frame."""

    def __init__(self) -> None:
        self._frames: deque[bytes] = deque()
        self._closed: Disconnected | None = None
        self._waiting: asyncio.Future[None] | None = None

    def put(self, frame: bytes) -> None:
        if self._closed is None:
            self._frames.append(frame)
            self._wake()

    def cut(self, kept: int, why: Disconnected | None = None) -> None:
        while len(self._frames) > kept:
            self._frames.pop()
        self._closed = why or Disconnected()
        self._wake()

    def __len__(self) -> int:
        return len(self._frames)

    async def get(self) -> bytes:
        """Raises Disconnected when all that arrives has arrived."""
        while not self._frames:
            if self._closed is not None:
                raise self._closed
            self._waiting = asyncio.get_running_loop().create_future()
            await self._waiting
        return self._frames.popleft()

    def _wake(self) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)


class Wire:
    """One client's connection to one server process. `sent` sees each frame as it leaves the server.

    `source` and `epoch` are what the client says it is, for the checks.
    """

    def __init__(self, chaos: Chaos, client: Process, server: Process, sent: Callable[[Wire, bytes], None]) -> None:
        self._chaos, self._client, self._server, self._sent = chaos, client, server, sent
        self._up, self._down = Pipe(), Pipe()
        self.source = self.epoch = ""
        self.is_cut = False
        server.on_death.append(self.cut)
        client.on_death.append(self.cut)

    def cut(self) -> None:
        if not self.is_cut:
            self.is_cut = True
            for pipe in (self._up, self._down):
                pipe.cut(self._chaos.random.randint(0, len(pipe)))

    # -- the client's end

    @property
    def to_zombie(self) -> bool:
        return self._server.detached

    async def send(self, frame: bytes, *, impatient: bool = False) -> int:
        """How many times the frame was sent: an impatient client may send it twice. Raises Disconnected."""
        self._client.check()
        if self._chaos.draw("wire_cut"):
            self.cut()
        if self.is_cut:
            raise Disconnected
        self._up.put(frame)
        if impatient and self._chaos.draw("frame_twice"):
            self._up.put(frame)
            return 2
        return 1

    async def receive(self) -> bytes:
        """Raises Disconnected."""
        frame = await self._down.get()
        await self._client.runtime.clock.sleep(self._client.loop.pause_s())
        return frame

    # -- the server's end

    def answer(self, frame: bytes) -> None:
        """What the product calls to send: leaves at once, or dies trying."""
        self._server.step("answer", frame.decode(errors="replace"))
        self._sent(self, frame)
        self._down.put(frame)

    def close(self, code: int, reason: str) -> None:
        """The server ends the connection; what it has answered before still arrives, mostly."""
        self._server.loop.trace(self._server.name, "close", f"{code} {reason}")
        if not self.is_cut:
            self.is_cut = True
            self._down.cut(len(self._down), Disconnected(code, reason))
            self._up.cut(0)

    async def take(self) -> bytes:
        """The next frame for the server. Raises Disconnected."""
        frame = await self._up.get()
        await self._server.runtime.clock.sleep(self._server.loop.pause_s())
        self._server.step("frame", frame.decode(errors="replace"))
        return frame
