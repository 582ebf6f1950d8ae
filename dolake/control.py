"""The control socket: how the processes of one data directory talk beside the log. No rows, no truth, all of it advisory.

Messages are JSON objects, one a line, over a unix socket that the ingest half (the hub) listens on. Whoever connects says
first who it is: `{"type": "hello", "role": "writer" | "http" | "cli", "pid": …}`. Then

    writer → hub   progress       low and read offsets of each log, state of store, catalog and tables, metrics
    hub → writer   flush          {id, tables | null, patterns?, reason, until: {log id: offset}}
    hub → writer   park, drop     {id, table, until: {log id: offset}}
    hub → writer   unpark         {id, table}
    hub → writer   rollback       {id, table, snapshot, rewind, until: {log id: offset}}
    hub → writer   compact        {id, table, dryRun, partition?}
    hub → writer   maintain       {id, table}
    writer → hub   …_result       {id, result} or {id, error, exit_code}, to each of these
    any → hub      ask            {id, what: "ready" | "state" | "metrics" | "tables" | "flush" | "park" | … | "maintain", …}
    hub → any      answer         {id, …} or {id, error}

A message's `id` belongs to the side that asked. Either side may be absent or go at any moment: a client connects again by
itself, and a hub that starts finds a stale socket and replaces it. The socket lies in the data directory and is the
owner's alone (0600).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import orjson
import structlog

from dolake.clock import Runtime
from dolake.errors import DaemonUnreachable, DolakeError, RequestRefused
from dolake.local_socket import bind_local, open_local, remove_local

Message = dict[str, Any]

MESSAGE_BYTES_MAX = 32 * 1024 * 1024
_UNSENT_BYTES_MAX = 2 * MESSAGE_BYTES_MAX  # A peer that does not read is cut off above this.
_RECONNECT_S_FIRST, _RECONNECT_S_MAX = 0.02, 0.25
_HELLO_S_MAX = 5.0

log = structlog.get_logger("dolake.control")


class _Connection:
    """One line of messages to and fro."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self.role = ""
        self.heard_s = 0.0

    async def receive(self) -> Message | None:
        """The next message; None when the other side has gone, or says what is not a message."""
        try:
            line = await self._reader.readline()
            if not line.endswith(b"\n"):
                return None
            message = orjson.loads(line)
        except (ConnectionError, ValueError) as error:  # ValueError: a line above the limit, or not JSON.
            log.warning("control connection ended", role=self.role, error=str(error))
            return None
        return message if isinstance(message, dict) else None

    def send(self, message: Message) -> bool:
        """False if it cannot be delivered. True does not mean that it was."""
        line = orjson.dumps(message, option=orjson.OPT_NON_STR_KEYS) + b"\n"
        if len(line) > MESSAGE_BYTES_MAX:
            log.error("control message too large, not sent", kind=message.get("type"), size_bytes=len(line))
            return False
        if self._writer.is_closing():
            return False
        if self._writer.transport.get_write_buffer_size() > _UNSENT_BYTES_MAX:
            log.warning("control peer does not read, cut off", role=self.role)
            self._writer.transport.abort()
            return False
        self._writer.write(line)
        return True

    async def close(self) -> None:
        self._writer.close()
        with contextlib.suppress(ConnectionError):
            await self._writer.wait_closed()


class _Requests:
    """Questions under way on one connection, by id."""

    def __init__(self) -> None:
        self._next = 0
        self._waiting: dict[int, asyncio.Future[Message]] = {}

    def open(self) -> tuple[int, asyncio.Future[Message]]:
        self._next += 1
        number = self._next
        future: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        self._waiting[number] = future
        future.add_done_callback(lambda _: self._waiting.pop(number, None))
        return number, future

    def resolve(self, message: Message) -> None:
        number = message.get("id")
        future = self._waiting.get(number) if isinstance(number, int) else None
        if future is not None and not future.done():
            future.set_result(message)

    def fail(self, error: DolakeError) -> None:
        for future in list(self._waiting.values()):
            if not future.done():
                future.set_exception(error)


class ControlHub:
    """The side that listens. `answer(ask)` answers what peers ask; `receive(role, message)` gets everything else they say,

    beginning with their `hello` and ending with a `{"type": "gone"}`.
    """

    def __init__(
        self, path: str, *, runtime: Runtime, receive: Callable[[str, Message], None], answer: Callable[[Message], Awaitable[Message]]
    ) -> None:
        self._path, self._runtime, self._receive, self._answer = path, runtime, receive, answer
        self._peers: list[_Connection] = []
        self._requests: dict[_Connection, _Requests] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self._inode = 0

    async def start(self) -> None:
        """Listens; what an earlier process left behind at the path is replaced. Only the holder of the log's lock calls this."""
        listener = bind_local(self._path)
        self._inode = os.stat(self._path).st_ino
        self._server = await asyncio.start_unix_server(self._serve, sock=listener, limit=MESSAGE_BYTES_MAX)

    async def close(self) -> None:
        if self._server is None:
            return
        self._server.close()
        for peer in list(self._peers):
            await peer.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        remove_local(self._path, self._inode)

    def connected(self, role: str) -> bool:
        return self._peer(role) is not None

    def silence_s(self, role: str) -> float | None:
        """Seconds since the peer last said anything; None without one."""
        peer = self._peer(role)
        return None if peer is None else self._runtime.clock.monotonic_s() - peer.heard_s

    def send(self, role: str, message: Message) -> bool:
        """Tells the peer of this role (the one that came last) something; False if there is none."""
        peer = self._peer(role)
        return peer is not None and peer.send(message)

    async def request(self, role: str, message: Message) -> Message:
        """Sends `message` with an id and waits, however long, for the peer's message with that id.

        Raises DaemonUnreachable if there is no such peer, or it goes before it has answered.
        """
        peer = self._peer(role)
        if peer is None:
            raise DaemonUnreachable(f"no {role} is connected")
        number, future = self._requests[peer].open()
        if not peer.send({**message, "id": number}):
            future.cancel()
            raise DaemonUnreachable(f"the {role} cannot be reached")
        return await future

    def _peer(self, role: str) -> _Connection | None:
        return next((peer for peer in reversed(self._peers) if peer.role == role), None)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = _Connection(reader, writer)
        self._keep(asyncio.current_task())
        try:
            async with asyncio.timeout(_HELLO_S_MAX):
                hello = await peer.receive()
            if hello is None or hello.get("type") != "hello" or not isinstance(hello.get("role"), str):
                return
            peer.role, peer.heard_s = hello["role"], self._runtime.clock.monotonic_s()
            self._peers.append(peer)
            self._requests[peer] = _Requests()
            self._receive(peer.role, hello)
            while (message := await peer.receive()) is not None:
                self._take(peer, message)
        except TimeoutError:
            log.warning("control connection said nothing, closed")
        finally:
            if peer in self._peers:
                self._peers.remove(peer)
                self._requests.pop(peer).fail(DaemonUnreachable(f"the {peer.role} has gone"))
                self._receive(peer.role, {"type": "gone"})
            await peer.close()

    def _take(self, peer: _Connection, message: Message) -> None:
        peer.heard_s = self._runtime.clock.monotonic_s()
        if message.get("type") == "ask":
            self._keep(asyncio.get_running_loop().create_task(self._give_answer(peer, message)))
            return
        self._requests[peer].resolve(message)
        if peer is self._peer(peer.role):  # One that was replaced may still talk; nobody listens.
            self._receive(peer.role, message)

    async def _give_answer(self, peer: _Connection, ask: Message) -> None:
        try:
            answer = await self._answer(ask)
        except DolakeError as error:
            answer = {"error": str(error), "exit_code": error.exit_code}
        except Exception as error:  # A supervisor of asks: one that fails must not leave its asker waiting.
            log.exception("ask failed", what=ask.get("what"))
            answer = {"error": f"the daemon failed to answer: {type(error).__name__}", "exit_code": 1}
        peer.send({"type": "answer", **answer, "id": ask.get("id")})

    def _keep(self, task: asyncio.Task[None] | None) -> None:
        if task is not None:
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)


class ControlClient:
    """A side that connects, and connects again whenever the hub has gone, until closed.

    `receive(message)` gets what the hub tells or asks; `connected` runs after each hello, to say again what the hub must know.
    """

    def __init__(
        self,
        path: str,
        *,
        role: str,
        runtime: Runtime,
        receive: Callable[[Message], None] = lambda message: None,
        connected: Callable[[], None] = lambda: None,
    ) -> None:
        self._path, self._role, self._runtime = path, role, runtime
        self._receive, self._connected = receive, connected
        self._connection: _Connection | None = None
        self._requests = _Requests()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> asyncio.Task[None]:
        """Begins to connect; returns at once. Before `close` the task ends only with what `receive` or `connected` has raised.

        Of that an OSError is taken for the hub's going: it connects again.
        """
        self._task = self._runtime.tasks.spawn(f"control-{self._role}", self._run())
        return self._task

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    @property
    def is_connected(self) -> bool:
        return self._connection is not None

    def send(self, message: Message) -> bool:
        """False if there is no hub now: say it again when `connected` is called."""
        return self._connection is not None and self._connection.send(message)

    async def ask(self, what: str, *, timeout_s: float | None = 10.0, **fields: Any) -> Message:
        """The hub's answer. Raises DaemonUnreachable without a hub or an answer in time, RequestRefused if it declines."""
        number, future = self._requests.open()
        if not self.send({"type": "ask", "id": number, "what": what, **fields}):
            future.cancel()
            raise DaemonUnreachable(f"no daemon answers at {self._path}; start one with `dolake serve`")
        try:
            async with asyncio.timeout(timeout_s):
                answer = await future
        except TimeoutError:
            raise DaemonUnreachable(f"the daemon at {self._path} did not answer within {timeout_s} s") from None
        if "error" in answer:
            raise RequestRefused(str(answer["error"]), int(answer.get("exit_code", RequestRefused.exit_code)))
        return answer

    async def _run(self) -> None:
        wait_s = _RECONNECT_S_FIRST
        while True:
            try:
                await self.connect()
                wait_s = _RECONNECT_S_FIRST
                await self.listen()
            except OSError:
                pass  # No hub yet, or no longer.
            await self._runtime.clock.sleep(wait_s * self._runtime.random.uniform(0.5, 1.0))
            wait_s = min(wait_s * 2, _RECONNECT_S_MAX)

    async def connect(self) -> None:
        """One connection, one hello. Raises OSError if nobody listens."""
        connection = _Connection(*await open_local(self._path, MESSAGE_BYTES_MAX))
        connection.role = "hub"
        connection.send({"type": "hello", "role": self._role, "pid": os.getpid()})
        self._connection = connection

    async def listen(self) -> None:
        """Says again what the hub must know, and receives until it has gone."""
        connection = self._connection
        assert connection is not None, "connect first"
        try:
            self._connected()
            while (message := await connection.receive()) is not None:
                if message.get("type") == "answer":
                    self._requests.resolve(message)
                else:
                    self._receive(message)
        finally:
            self._connection = None
            self._requests.fail(DaemonUnreachable(f"the daemon at {self._path} has gone"))
            await connection.close()


async def ask_once(path: str, what: str, *, runtime: Runtime, timeout_s: float | None = 10.0, **fields: Any) -> Message:
    """Connects, asks, and leaves: for a command. Raises DaemonUnreachable at once if nobody listens, else as `ask`."""
    async with asking(path, runtime=runtime) as client:
        return await client.ask(what, timeout_s=timeout_s, **fields)


@contextlib.asynccontextmanager
async def asking(path: str, *, runtime: Runtime) -> AsyncIterator[ControlClient]:
    """One connection for several questions of a command. Raises DaemonUnreachable at once if nobody listens."""
    client = ControlClient(path, role="cli", runtime=runtime)
    try:
        await client.connect()
    except OSError:
        raise DaemonUnreachable(f"no daemon answers at {path}; start one with `dolake serve`") from None
    listening = runtime.tasks.spawn("control-cli", client.listen())
    try:
        yield client
    finally:
        listening.cancel()
        await asyncio.gather(listening, return_exceptions=True)
