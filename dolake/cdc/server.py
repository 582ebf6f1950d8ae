"""The websocket shell: bytes in, bytes out, and nobody may hold up anybody else.

What a frame means is decided by what `connect` hands back; here are only the transport's own rules: one path, who may come
in (the gate knows), sizes, the time to the first message, pings while idle, and bounded memory for a client that does not
read. While a connection is not read from (its frames wait for the log, or its answers for the client) TCP holds the sender,
and no ping is expected of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import http
import json
import logging
import math
import socket
import weakref
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import structlog
from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response

from dolake.auth.gate import Gate
from dolake.auth.principal import Principal
from dolake.cdc.admission import Admission, ConnectionLimits, TooMany
from dolake.cdc.intake import Intake, PacedConnection
from dolake.cdc.session import CloseCode
from dolake.clock import Runtime
from dolake.errors import Forbidden, Unauthorized
from dolake.metrics import Metrics

PATH = "/cdc"
_UNSENT_BYTES_MAX = 1 << 20  # Answers that wait for a client; above it no more of its frames are read.
_FRAMES_READ_AHEAD = 64
_CLOSE_S_MAX = 5.0
_COMES_ON_BYTES = 16 << 10  # What a message must grow by in half the idle time to count as a sign of life.
_HELD_BYTES_MAX, _HELD_FRAMES_MAX = 256 << 20, 4

# The library reports each client's misbehaviour with a traceback; here a client that misbehaves is not news.
_LIBRARY_LOGGER = logging.getLogger("dolake.cdc.websockets")
_LIBRARY_LOGGER.setLevel(logging.CRITICAL + 1)

logger = structlog.get_logger("dolake.cdc")


class Connection(Protocol):
    """What takes a client's frames, one at a time; it returns when the next may come."""

    async def receive(self, frame: bytes | str) -> None: ...

    def closed(self) -> None: ...


# Given `send`, `close` and who it is that connected.
Connect = Callable[[Callable[[bytes], None], Callable[[int, str], None], Principal], Connection]


@dataclass(frozen=True)
class ServerPolicy:
    """The protocol's defaults. A frame above `frame_bytes_max` is not read at all."""

    frame_bytes_max: int
    first_message_s_max: float = 5.0
    idle_s_max: float = 20.0
    pong_s_max: float = 20.0
    stalled_s_max: float = 60.0
    connections: ConnectionLimits = field(default_factory=ConnectionLimits)

    @property
    def held_bytes_max(self) -> int:
        """Of messages in memory that are in no log yet, all connections together: there is room for some of the largest."""
        return max(_HELD_BYTES_MAX, _HELD_FRAMES_MAX * self.frame_bytes_max)


class CdcServer:
    """Serves websockets on a listening socket that somebody else has bound."""

    def __init__(
        self, runtime: Runtime, connect: Connect, policy: ServerPolicy, gate: Gate | None = None, metrics: Metrics | None = None
    ) -> None:
        """Without a gate anybody may come in."""
        self._runtime, self._connect, self._policy = runtime, connect, policy
        self._gate, self._metrics = gate or Gate(runtime.clock), metrics or Metrics()
        self._admitted: weakref.WeakKeyDictionary[ServerConnection, Principal] = weakref.WeakKeyDictionary()
        self._intake = Intake(policy.held_bytes_max, Admission(policy.connections), self._metrics)
        self._server: Server | None = None

    def held_bytes(self) -> int:
        """Of messages in memory that are in no log yet."""
        return self._intake.held_bytes

    async def start(self, listen: socket.socket) -> None:
        self._server = await serve(
            self._serve,
            sock=listen,
            process_request=self._admit,
            compression=None,
            max_size=self._policy.frame_bytes_max,
            max_queue=_FRAMES_READ_AHEAD,
            open_timeout=self._policy.first_message_s_max,
            close_timeout=_CLOSE_S_MAX,
            ping_interval=None,
            server_header=None,
            ssl=self._gate.tls,
            logger=_LIBRARY_LOGGER,
            create_connection=self._connection,  # type: ignore[arg-type] # The library calls it; a class it need not be.
        )

    def stop_accepting(self) -> None:
        """New clients are refused by the system; those that are here stay."""
        if self._server is not None:
            self._server.close(close_connections=False)

    async def close(self) -> None:
        """Waits until every connection has ended. Those that have been told to and do not are dropped."""
        if self._server is None:
            return
        try:
            async with asyncio.timeout(_CLOSE_S_MAX):
                await self._server.wait_closed()
        except TimeoutError:
            for websocket in list(self._server.connections):
                websocket.transport.abort()
            await self._server.wait_closed()

    def _connection(self, *arguments: Any, **options: Any) -> PacedConnection:
        return PacedConnection(*arguments, intake=self._intake, now_s=self._runtime.clock.monotonic_s, **options)

    async def _serve(self, websocket: ServerConnection) -> None:
        assert isinstance(websocket, PacedConnection)
        line = _Line(self._runtime, websocket, self._policy, self._metrics)
        connection = self._connect(line.send, line.close, self._admitted.pop(websocket))
        try:
            await line.run(connection)
        except ConnectionClosed:
            pass
        except Exception:  # The supervisor of one connection: it ends, the others do not notice.
            logger.exception("connection ended by an error that nobody expected")
            line.close(CloseCode.INTERNAL_ERROR, "internal error")
        finally:
            connection.closed()
            await line.end()

    def _admit(self, websocket: ServerConnection, request: Request) -> Response | None:
        """Refuses at the handshake what is not for us. A browser says where its page comes from: no page may write here."""
        assert isinstance(websocket, PacedConnection)
        too_many = self._intake.admission.admit(websocket.address, self._runtime.clock.monotonic_s())
        if too_many is not None:
            self._metrics.add("dolake_cdc_handshakes_refused_total", status="429")
            self._metrics.add("dolake_cdc_connections_refused_total", reason=too_many.reason)
            return _too_many(websocket, too_many)
        websocket.is_admitted = True
        path, _, query = request.path.partition("?")
        if path != PATH:
            return websocket.respond(http.HTTPStatus.NOT_FOUND, f"sources connect to {PATH}\n")
        if "Origin" in request.headers:
            return websocket.respond(http.HTTPStatus.FORBIDDEN, "not for browsers\n")
        try:
            principal = self._gate.identify(request.headers.get_all("Authorization"), query)
            principal.require_sender()
        except (Unauthorized, Forbidden) as error:
            response = _refusal(websocket, error)
            self._metrics.add("dolake_cdc_handshakes_refused_total", status=str(response.status_code))
            return response
        self._admitted[websocket] = principal
        return None


def _refusal(websocket: ServerConnection, error: Unauthorized | Forbidden) -> Response:
    status = http.HTTPStatus.UNAUTHORIZED if isinstance(error, Unauthorized) else http.HTTPStatus.FORBIDDEN
    response = _json(websocket, status, {"error": str(error)})
    if isinstance(error, Unauthorized):
        response.headers["WWW-Authenticate"] = error.challenge
    return response


def _too_many(websocket: ServerConnection, found: TooMany) -> Response:
    body = {"error": found.message, "reason": found.reason, "retryDelayMs": math.ceil(found.retry_s * 1000)}
    response = _json(websocket, http.HTTPStatus.TOO_MANY_REQUESTS, body)
    response.headers["Retry-After"] = str(found.retry_after_s)
    return response


def _json(websocket: ServerConnection, status: http.HTTPStatus, body: dict[str, Any]) -> Response:
    response = websocket.respond(status, json.dumps(body) + "\n")
    del response.headers["Content-Type"]
    response.headers["Content-Type"] = "application/json"
    return response


class _Line:
    """One websocket: a reader that waits its turn, a sender with a bounded queue, and a watch on both."""

    def __init__(self, runtime: Runtime, websocket: PacedConnection, policy: ServerPolicy, metrics: Metrics) -> None:
        self._runtime, self._websocket, self._policy, self._metrics = runtime, websocket, policy, metrics
        self._unsent: deque[bytes] = deque()
        self._unsent_bytes = 0
        self._changed = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()
        self._closing: tuple[int, str] | None = None
        self._over = False  # nothing more can be sent
        self._sending_since_s: float | None = None
        self._reading_since_s: float | None = None
        self._tasks = [runtime.tasks.spawn("send", self._send_all()), runtime.tasks.spawn("watch", self._watch())]

    def send(self, frame: bytes) -> None:
        if self._over:
            return
        self._unsent.append(frame)
        self._unsent_bytes += len(frame)
        if self._unsent_bytes > _UNSENT_BYTES_MAX:
            self._room.clear()
        self._changed.set()

    def close(self, code: int, reason: str) -> None:
        """Ends the connection once what waits is sent, or in a few seconds."""
        if self._closing is None:
            self._closing = code, reason
            self._changed.set()
            self._tasks.append(self._runtime.tasks.spawn("drop", self._drop_later()))

    async def run(self, connection: Connection) -> None:
        try:
            async with asyncio.timeout(self._policy.first_message_s_max):
                frame = await self._read()
        except TimeoutError:
            self.close(CloseCode.POLICY, f"no message within {self._policy.first_message_s_max:g} s")
            return
        while self._closing is None and not self._over:
            await connection.receive(frame)
            await self._room.wait()
            frame = await self._read()

    async def end(self) -> None:
        """Gives the sender a moment to send the last answers and the close frame, then drops the connection."""
        try:
            async with asyncio.timeout(_CLOSE_S_MAX):
                if self._closing is not None:
                    await self._tasks[0]
        except (TimeoutError, ConnectionClosed, OSError):
            pass
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            if self._closing is not None:
                self._websocket.transport.abort()

    async def _read(self) -> bytes:
        self._reading_since_s = self._runtime.clock.monotonic_s()
        try:
            return await self._websocket.take()
        finally:
            self._reading_since_s = None

    async def _drop_later(self) -> None:
        await self._runtime.clock.sleep(_CLOSE_S_MAX)
        self._websocket.transport.abort()

    async def _send_all(self) -> None:
        try:
            await self._send_until_closed()
        finally:
            self._over = True
            self._room.set()  # Who waits to read on finds out.

    async def _send_until_closed(self) -> None:
        while True:
            while self._unsent:
                frame = self._unsent.popleft()
                self._sending_since_s = self._runtime.clock.monotonic_s()
                await self._websocket.send(frame, text=True)
                self._sending_since_s = None
                self._unsent_bytes -= len(frame)
                if self._unsent_bytes <= _UNSENT_BYTES_MAX:
                    self._room.set()
            if self._closing is not None:
                await self._websocket.close(*self._closing)
                return
            self._changed.clear()
            await self._changed.wait()

    async def _watch(self) -> None:
        """Pings a client that says nothing; drops one that does not answer, or that has stopped reading.

        In the middle of a message nobody can answer: it is enough that it comes on, if slowly.
        """
        received_bytes = 0
        with contextlib.suppress(ConnectionClosed):
            while True:
                await self._runtime.clock.sleep(min(self._policy.idle_s_max, self._policy.stalled_s_max) / 2)
                if self._lasts(self._sending_since_s, self._policy.stalled_s_max):
                    logger.warning("client does not read, dropped")
                    self._drop("does not read")
                    return
                if self._websocket.received_bytes - received_bytes >= _COMES_ON_BYTES and self._reading_since_s is not None:
                    self._reading_since_s = self._runtime.clock.monotonic_s()
                received_bytes = self._websocket.received_bytes
                if self._lasts(self._reading_since_s, self._policy.idle_s_max) and not await self._answers_ping():
                    self._drop("does not answer")
                    return

    def _drop(self, reason: str) -> None:
        self._metrics.add("dolake_cdc_dropped_connections_total", reason=reason)
        self._websocket.transport.abort()

    async def _answers_ping(self) -> bool:
        pinged_s = self._runtime.clock.monotonic_s()
        try:
            async with asyncio.timeout(self._policy.pong_s_max):
                pong = asyncio.ensure_future(await self._websocket.ping())
        except TimeoutError:  # It does not even take the ping.
            return False
        while not pong.done():
            await self._runtime.clock.sleep(self._policy.pong_s_max / 4)
            since_s = self._reading_since_s
            if since_s is None:
                return True  # It has said something, and is not being read from now.
            if since_s > pinged_s:
                return True
            if not pong.done() and self._lasts(pinged_s, self._policy.pong_s_max):
                return False
        return True

    def _lasts(self, since_s: float | None, seconds: float) -> bool:
        return since_s is not None and self._runtime.clock.monotonic_s() - since_s >= seconds
