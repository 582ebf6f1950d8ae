"""A websocket as the library has it, read no faster than is good for the others.

The library takes whatever a read brings, all of it at once, answers each ping, and keeps a message until it is whole.
Here each connection gets its turn: a few frames, then the others; a few pings a second; no more whole messages than one that
waits; no reading while the client leaves its answers where they are. And all of them together have a bound on the bytes that
lie in memory and in no log: when it is passed, whoever has the most of a message that does not end is closed.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from websockets.asyncio.server import ServerConnection
from websockets.frames import DATA_OPCODES, Frame
from websockets.protocol import State

from dolake.cdc.admission import Admission, counted_address
from dolake.cdc.frames import FrameWalk
from dolake.cdc.rates import Bucket
from dolake.cdc.session import CloseCode
from dolake.metrics import Metrics

FRAMES_A_TURN = 64
CONTROLS_PER_S = 50  # Pings, pongs, closes: a client that means well sends a few a minute.
WHOLE_BYTES_MAX = 4 << 20  # Of whole messages that wait to be taken; above it the socket is not read.
UNSENT_BYTES_MAX = 1 << 20  # Of answers in the transport (pongs go there without asking); above it the socket is not read.
HANDSHAKE_BYTES_MAX = 64 << 10
THROWN_AWAY_BYTES_MAX = 1 << 20  # Of what comes after a close.
THROWN_AWAY_FRAMES_MAX = 1000  # The same in frames: in so many the client's own close should have come.
CLOSE_S_MAX = 5.0
_FRAME_BYTES = 512  # What a frame costs beside its payload.
_DROPPABLE_BYTES_MIN = 1 << 20
_HEADERS_END = b"\r\n\r\n"
_HEADERS_TOO_LARGE = b"HTTP/1.1 431 Request Header Fields Too Large\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"


class Intake:
    """What all connections have in memory: bytes that came and are in no log yet."""

    def __init__(self, held_bytes_max: int, admission: Admission, metrics: Metrics) -> None:
        self.held_bytes_max, self.admission, self.metrics = held_bytes_max, admission, metrics
        self.held_bytes = 0
        self.connections: set[PacedConnection] = set()

    def relieve(self) -> None:
        """Closes the connection with the most of an unfinished message while there is too much in memory.

        Whole messages go by themselves, or are refused; one that does not end could stay.
        """
        while self.held_bytes > self.held_bytes_max:
            largest = max(self.connections, key=lambda connection: connection.unfinished_bytes, default=None)
            if largest is None or largest.unfinished_bytes < _DROPPABLE_BYTES_MIN:
                return
            self.metrics.add("dolake_cdc_dropped_connections_total", reason="memory")
            largest.drop(CloseCode.TRY_AGAIN_LATER, "too much of unfinished messages in memory, send this one again later")


@dataclass
class _Held:
    """Bytes of one connection, by what they wait for."""

    unread: bytes = b""  # came, and wait for this connection's turn
    unfinished_bytes: int = 0  # fragments of a message that is not whole
    whole: deque[int] = field(default_factory=deque)  # sizes of the messages that wait to be taken
    whole_bytes: int = 0
    taken_bytes: int = 0  # the message that is being looked at


class PacedConnection(ServerConnection):
    """Made by the library for each socket, through `paced`."""

    def __init__(self, *arguments: Any, intake: Intake, now_s: Callable[[], float], **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.address: str | None = None
        self.is_admitted = False
        self.received_bytes = 0
        self._intake, self._now_s = intake, now_s
        self._controls = Bucket(CONTROLS_PER_S, now_s())
        self._walk, self._held = FrameWalk(), _Held()
        self._counted_bytes = 0
        self._is_counted = False
        self._pauses: set[str] = set()
        self._has_request, self._headers_end = False, b""
        self._thrown_away_bytes = self._thrown_away_frames = 0
        self._turn: asyncio.Handle | None = None
        self._dropping: asyncio.Handle | None = None

    # -- the transport's callbacks

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.recv_messages.pause = lambda: self._pause("frames")
        self.recv_messages.resume = lambda: self._resume("frames")
        self.address = counted_address(transport.get_extra_info("peername"))
        self._is_counted = self._intake.admission.arrived(self.address, self._now_s())
        if self._is_counted:
            self._intake.connections.add(self)
        else:
            self._intake.metrics.add("dolake_cdc_dropped_connections_total", reason="too many sockets")
            self.transport.abort()

    def connection_lost(self, error: Exception | None) -> None:
        for handle in (self._turn, self._dropping):
            if handle is not None:
                handle.cancel()
        self._intake.held_bytes -= self._counted_bytes
        self._counted_bytes = 0
        self._intake.connections.discard(self)
        if self._is_counted:
            self._is_counted = False
            self._intake.admission.left(self.address, was_admitted=self.is_admitted)
        super().connection_lost(error)

    def data_received(self, data: bytes) -> None:
        self.received_bytes += len(data)
        self._held.unread += data
        if self.protocol.state is State.CONNECTING:
            self._read_handshake()
        elif self._turn is None:
            self._next_turn()
        self._count()
        if self._intake.held_bytes > self._intake.held_bytes_max:
            self._intake.relieve()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._resume("unsent")

    # -- the handshake

    async def handshake(self, *arguments: Any, **options: Any) -> None:
        await super().handshake(*arguments, **options)
        self._resume("handshake")
        if self._turn is None and self.protocol.state is State.OPEN:
            self._next_turn()
            self._count()

    def _read_handshake(self) -> None:
        """Hands on the request and nothing after it: whether there will be frames is not decided yet."""
        if self._has_request:
            if self.request is None:  # Refused already.
                self._throw_away()
            elif len(self._held.unread) > HANDSHAKE_BYTES_MAX:
                self._pause("handshake")
            return
        data, self._held.unread = self._held.unread, b""
        end = (self._headers_end + data).find(_HEADERS_END)
        if end >= 0:
            end += len(_HEADERS_END) - len(self._headers_end)
            data, self._held.unread = data[:end], data[end:]
            self._has_request = True
        elif self.received_bytes > HANDSHAKE_BYTES_MAX:
            self._has_request = True
            self.transport.write(_HEADERS_TOO_LARGE)
            if self.transport.can_write_eof():
                self.transport.write_eof()
            return
        self._headers_end = (self._headers_end + data)[-3:]
        super().data_received(data)

    def _throw_away(self, size_bytes: int | None = None, frame_count: int = 0) -> bytes:
        """What comes after the end: read for a while, so that a client hears what we said last; not for ever."""
        held = self._held
        data, held.unread = (held.unread, b"") if size_bytes is None else (held.unread[:size_bytes], held.unread[size_bytes:])
        self._thrown_away_bytes += len(data)
        self._thrown_away_frames += frame_count
        if self._thrown_away_bytes > THROWN_AWAY_BYTES_MAX or self._thrown_away_frames > THROWN_AWAY_FRAMES_MAX:
            held.unread = b""
            self._pause("over")
        return data

    # -- frames

    def _next_turn(self) -> None:
        """Hands on this turn's frames; the next turn comes after the others', or when a ping may come again."""
        self._turn = None
        data = self._held.unread
        if self.protocol.state is not State.OPEN:
            # Closed, or about to be. The library may still look for the client's close, through every frame that comes before it.
            piece = self._walk.piece(data, FRAMES_A_TURN, FRAMES_A_TURN)
            super().data_received(self._throw_away(piece.end, piece.frame_count))
            if self._held.unread:
                self._pause("turn")
                self._turn = self.loop.call_soon(self._have_turn)
            else:
                self._resume("turn")
            return
        if not data:
            self._resume("turn")
            return
        if self._pauses - {"turn"}:  # Whatever ends that gives the next turn.
            self._pause("turn")
            return
        now_s = self._now_s()
        piece = self._walk.piece(data, FRAMES_A_TURN, int(self._controls.share(now_s) * self._controls.burst))
        self._controls.take(piece.control_count, now_s)
        self._held.unread = data[piece.end :]
        if piece.end:
            super().data_received(data[: piece.end])
        if self.protocol.close_expected():
            self._drop_soon()
        if self.transport.get_write_buffer_size() > UNSENT_BYTES_MAX:
            self._pause("unsent")
        if not self._held.unread:
            self._resume("turn")
            return
        self._pause("turn")
        wait_s = 0.0 if piece.end else self._controls.wait_s(1, now_s)
        self._turn = self.loop.call_later(wait_s, self._have_turn) if wait_s else self.loop.call_soon(self._have_turn)

    def _have_turn(self) -> None:
        self._next_turn()
        self._count()

    def process_event(self, event: Any) -> None:
        super().process_event(event)
        if isinstance(event, Frame) and event.opcode in DATA_OPCODES:
            held = self._held
            held.unfinished_bytes += len(event.data) + _FRAME_BYTES
            if event.fin:
                held.whole.append(held.unfinished_bytes)
                held.whole_bytes += held.unfinished_bytes
                held.unfinished_bytes = 0
                if held.whole_bytes > WHOLE_BYTES_MAX:
                    self._pause("whole")

    async def take(self) -> bytes:
        """The next message. It counts as held in memory until the one after it is asked for."""
        self._held.taken_bytes = 0
        self._count()
        message = await self.recv(decode=False)
        held = self._held
        held.taken_bytes = held.whole.popleft() if held.whole else 0
        held.whole_bytes -= held.taken_bytes
        if held.whole_bytes <= WHOLE_BYTES_MAX:
            self._resume("whole")
        return message

    # -- what is held

    @property
    def unfinished_bytes(self) -> int:
        """Of the message that is not whole: its fragments, and what there is of a frame."""
        return self._held.unfinished_bytes + len(self.protocol.reader.buffer)

    def drop(self, code: CloseCode, reason: str) -> None:
        """Closes without waiting for anything: what has come of a message is forgotten."""
        self.protocol.fail(code, reason)
        self.send_data()
        self.recv_messages.close()
        self._held = _Held()
        self._count()
        self._drop_soon()

    def _drop_soon(self) -> None:
        """Gives the client a moment to close its side."""
        if self._dropping is None:
            self._dropping = self.loop.call_later(CLOSE_S_MAX, self.transport.abort)

    def _count(self) -> None:
        held = self._held
        size_bytes = len(held.unread) + self.unfinished_bytes + held.whole_bytes + held.taken_bytes
        self._intake.held_bytes += size_bytes - self._counted_bytes
        self._counted_bytes = size_bytes

    def _pause(self, reason: str) -> None:
        if not self._pauses and not self.transport.is_closing():
            self.transport.pause_reading()
        self._pauses.add(reason)

    def _resume(self, reason: str) -> None:
        if reason not in self._pauses:
            return
        self._pauses.remove(reason)
        if self.transport.is_closing():
            return
        if not self._pauses:
            self.transport.resume_reading()
        elif self._pauses == {"turn"} and self._turn is None:
            self._turn = self.loop.call_soon(self._have_turn)
