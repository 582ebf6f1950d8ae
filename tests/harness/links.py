"""One connection through a proxy: two ways for bytes, and what a network does to them."""

from __future__ import annotations

import asyncio
import contextlib
import math
import socket
import struct
from collections import deque
from dataclasses import dataclass

from tests.harness.faults import Faults, Installed

CHUNK_BYTES = 1 << 16
_AHEAD_BYTES_MAX = 1 << 20  # On its way in one direction; above it the sender is not read, as a network would have it.
_SLICES_A_SECOND = 20


@dataclass(frozen=True)
class Chunk:
    """Bytes on their way `up` (to the target) or `down`; `position` is how many went before them. The end of them is an empty one."""

    connection: int
    direction: str
    position: int
    data: bytes


@dataclass
class _Waiting:
    due_s: float
    data: bytes
    is_end: bool = False
    with_reset: bool = False


class Link:
    """A client's connection and ours to the target."""

    def __init__(self, faults: Faults, number: int, client: asyncio.StreamWriter, target: asyncio.StreamWriter) -> None:
        self.faults, self.number = faults, number
        self.up, self.down = Way(self, "up", target), Way(self, "down", client)
        self.half_open: Installed | None = None
        self._client, self._target = client, target
        for writer in (client, target):
            writer.transport.set_write_buffer_limits(high=0)  # What is drained has left: nothing of it is lost by an abort.

    def abort(self) -> None:
        """Resets both sides."""
        reset(self._client)
        reset(self._target)

    def leave_half_open(self, fault: Installed) -> None:
        """The target's side is gone and the client is not told: what it sends is thrown away until the fault is removed."""
        if self.half_open is None:
            self.half_open = fault
            reset(self._target)

    def healed(self) -> None:
        """Some fault was removed: whoever slept under it looks again. A peer that forgot a connection now says so."""
        self.up.hurry()
        self.down.hurry()
        if self.half_open is not None and self.half_open.gone.is_set():
            self.abort()


class Way:
    """One direction of a connection: bytes in order, each with the time before which it may not leave."""

    def __init__(self, link: Link, direction: str, writer: asyncio.StreamWriter) -> None:
        self.link, self.direction = link, direction
        self._writer = writer
        self._put_bytes = self._passed_bytes = self._waiting_bytes = 0
        self._waiting: deque[_Waiting] = deque()
        self._changed = asyncio.Event()

    async def put(self, data: bytes) -> None:
        """Waits while too much is on its way."""
        while self._waiting and self._waiting_bytes + len(data) > _AHEAD_BYTES_MAX:
            await self._change()
        latency = self.link.faults.biting(Chunk(self.link.number, self.direction, self._put_bytes, data), "latency")
        self._put_bytes += len(data)
        self._waiting_bytes += len(data)
        self._append(_Waiting(asyncio.get_running_loop().time() + (latency.fault.seconds if latency else 0.0), data))

    async def end(self, *, with_reset: bool = False) -> None:
        """Nothing more comes: the other side learns it behind what is on its way. `with_reset` ends both directions."""
        self._append(_Waiting(0.0, b"", is_end=True, with_reset=with_reset))

    async def flush(self) -> None:
        """Until everything that was put has left."""
        while self._waiting:
            await self._change()

    def hurry(self) -> None:
        """Nothing waits for its time any longer."""
        for waiting in self._waiting:
            waiting.due_s = 0.0
        self._changed.set()

    def _append(self, waiting: _Waiting) -> None:
        self._waiting.append(waiting)
        self._changed.set()

    async def _change(self) -> None:
        self._changed.clear()
        await self._changed.wait()

    async def drain(self) -> None:
        """Passes on what is put, each when it is due and nothing holds it, until the end of it."""
        loop = asyncio.get_running_loop()
        while True:
            if not self._waiting:
                await self._change()
            elif self._waiting[0].due_s > loop.time():
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout_at(None if self._waiting[0].due_s == math.inf else self._waiting[0].due_s):
                        await self._change()
            else:
                waiting = self._waiting[0]
                await self._pass(waiting)
                self._waiting.popleft()
                self._waiting_bytes -= len(waiting.data)
                self._changed.set()
                if waiting.is_end:
                    return

    async def _pass(self, waiting: _Waiting) -> None:
        faults, data = self.link.faults, waiting.data
        chunk = Chunk(self.link.number, self.direction, self._passed_bytes, data)
        if (held := faults.biting(chunk, "black_hole")) is not None:
            await held.hold()
        if (half := faults.biting(chunk, "half_open")) is not None:
            self.link.leave_half_open(half)
        if self.link.half_open is not None:
            if waiting.is_end:
                await self.link.half_open.gone.wait()
            return
        if faults.biting(chunk, "reset") is not None or waiting.with_reset:
            self.link.abort()
            raise ConnectionResetError
        self._passed_bytes += len(data)
        if waiting.is_end:
            with contextlib.suppress(OSError):
                self._writer.write_eof()
        elif (shaped := faults.biting(chunk, "bandwidth", "fragment")) is not None:
            await self._pass_in_pieces(data, shaped)
        else:
            self._writer.write(data)
            await self._writer.drain()

    async def _pass_in_pieces(self, data: bytes, shaped: Installed) -> None:
        fault = shaped.fault
        if fault.kind == "bandwidth":
            size = max(1, fault.size_bytes // _SLICES_A_SECOND)
            pause_s = size / fault.size_bytes
        else:
            size, pause_s = fault.size_bytes, 0.0 if fault.seconds == math.inf else fault.seconds
        for start in range(0, len(data), size):
            self._writer.write(data[start:] if shaped.gone.is_set() else data[start : start + size])
            await self._writer.drain()
            if shaped.gone.is_set():
                return
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await shaped.gone.wait()


def reset(writer: asyncio.StreamWriter) -> None:
    """Ends a connection with a RST, not a FIN: what a peer does that knows nothing of it any more."""
    if not writer.transport.is_closing():
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()
