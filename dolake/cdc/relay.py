"""How the `http` process hands bodies of `POST /cdc` to the ingest half: over a unix socket of its own in the data directory.

A socket beside the control socket, because a body may be as large as a batch and must not hold up control. A request and its
answer are the same, one after the other on a connection:

    meta length  u32 LE
    body length  u32 LE
    meta         JSON object: what the HTTP request says beside its body; of an answer, its status and headers
    body         bytes: the message as the source sent it; the ack or nack

A request may be sent again at will: a batch that became durable with its answer lost is acked as a duplicate (I3). So the
client goes on with the next ingest process when one dies under it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import struct
from collections.abc import Awaitable, Callable
from typing import Any

import orjson
import structlog

from dolake.clock import Runtime
from dolake.errors import DaemonUnreachable
from dolake.local_socket import bind_local, open_local, remove_local

Meta = dict[str, Any]
Answer = Callable[[Meta, bytes], Awaitable[tuple[Meta, bytes]]]

META_BYTES_MAX = 64 * 1024
_HEAD = struct.Struct("<II")
_READ_AHEAD_BYTES = 256 * 1024
_IDLE_CONNECTIONS_MAX = 32
_AGAIN_S_FIRST, _AGAIN_S_MAX = 0.02, 0.25
_UNANSWERED_MAX = 5  # A request that ends the ingest half each time must not do so for ever.
_CLOSE_S_MAX = 5.0

logger = structlog.get_logger("dolake.cdc")


class RelayServer:
    """The ingest half's side. `answer(meta, body)` is awaited for each request; a connection's requests come one by one."""

    def __init__(self, path: str, runtime: Runtime, answer: Answer, body_bytes_max: int) -> None:
        self._path, self._runtime, self._answer, self._body_bytes_max = path, runtime, answer, body_bytes_max
        self._server: asyncio.Server | None = None
        self._inode = 0
        self._tasks: set[asyncio.Task[Any]] = set()
        self._idle: set[asyncio.StreamWriter] = set()

    async def start(self) -> None:
        """Listens; what an earlier process left behind at the path is replaced. Only the holder of the log's lock calls this."""
        listener = bind_local(self._path)
        self._inode = os.stat(self._path).st_ino
        self._server = await asyncio.start_unix_server(self._serve, sock=listener, limit=_READ_AHEAD_BYTES)

    async def close(self) -> None:
        """Takes no more requests, and waits a moment for the answers of those that are here."""
        if self._server is None:
            return
        self._server.close()
        remove_local(self._path, self._inode)
        for writer in self._idle:
            writer.close()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=_CLOSE_S_MAX)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            while self._server is not None and self._server.is_serving():
                self._idle.add(writer)
                meta, body = await _receive(reader, self._body_bytes_max)
                self._idle.discard(writer)
                await _send(writer, *await self._answer(meta, body))
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # The http process has gone, or is done.
        except ValueError as error:
            logger.error("relay connection ended", reason=str(error))
        except Exception:  # The supervisor of one connection: the client learns that it ended, the others do not notice.
            logger.exception("relay connection ended by an error that nobody expected")
        finally:
            self._tasks.discard(task)
            self._idle.discard(writer)
            writer.close()


class RelayClient:
    """The http process's side: as many connections as requests are under way, kept for the next ones."""

    def __init__(self, path: str, runtime: Runtime, *, absent_s_max: float, answer_s_max: float) -> None:
        """`absent_s_max`: how long nobody may listen before a request is given up; `answer_s_max`: how long an answer may take."""
        self._path, self._runtime = path, runtime
        self._absent_s_max, self._answer_s_max = absent_s_max, answer_s_max
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def ask(self, meta: Meta, body: bytes) -> tuple[Meta, bytes]:
        """The answer to a request, perhaps by the next ingest process. Raises DaemonUnreachable; its fate is unknown then."""
        try:
            async with asyncio.timeout(self._answer_s_max):
                return await self._ask(meta, body)
        except TimeoutError:
            raise DaemonUnreachable(f"the ingest half did not answer within {self._answer_s_max:g} s") from None

    async def close(self) -> None:
        """Closes the connections on which nothing is under way."""
        for _, writer in self._idle:
            writer.close()
        self._idle.clear()

    async def _ask(self, meta: Meta, body: bytes) -> tuple[Meta, bytes]:
        clock, wait_s = self._runtime.clock, _AGAIN_S_FIRST
        absent_since_s, unanswered = clock.monotonic_s(), 0
        while True:
            try:
                reader, writer = self._idle.pop() if self._idle else await open_local(self._path, _READ_AHEAD_BYTES)
            except OSError:
                if clock.monotonic_s() - absent_since_s >= self._absent_s_max:
                    raise DaemonUnreachable("the ingest half is not there: it is starting, or recovering its logs") from None
            else:
                try:
                    await _send(writer, meta, body)
                    answer = await _receive(reader, META_BYTES_MAX)
                except (asyncio.IncompleteReadError, ConnectionError):
                    writer.close()
                    await self.close()  # The idle ones led to the same process.
                    absent_since_s, unanswered = clock.monotonic_s(), unanswered + 1
                    if unanswered > _UNANSWERED_MAX:
                        raise DaemonUnreachable(f"the ingest half went away {unanswered} times over this request") from None
                except asyncio.CancelledError:
                    writer.transport.abort()
                    raise
                else:
                    self._keep(reader, writer)
                    return answer
            await clock.sleep(wait_s * self._runtime.random.uniform(0.5, 1.0))
            wait_s = min(wait_s * 2, _AGAIN_S_MAX)

    def _keep(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._idle) < _IDLE_CONNECTIONS_MAX and not reader.at_eof():
            self._idle.append((reader, writer))
        else:
            writer.close()


async def _send(writer: asyncio.StreamWriter, meta: Meta, body: bytes) -> None:
    head = orjson.dumps(meta)
    writer.write(_HEAD.pack(len(head), len(body)) + head)
    writer.write(body)
    with contextlib.suppress(ConnectionError):  # Who waits for the answer finds out.
        await writer.drain()


async def _receive(reader: asyncio.StreamReader, body_bytes_max: int) -> tuple[Meta, bytes]:
    """Raises IncompleteReadError and ConnectionError at the end, ValueError for what nobody of ours sends."""
    meta_bytes, body_bytes = _HEAD.unpack(await reader.readexactly(_HEAD.size))
    if meta_bytes > META_BYTES_MAX or body_bytes > body_bytes_max:
        raise ValueError(f"a relayed message of {meta_bytes} and {body_bytes} bytes is above the limits")
    meta = orjson.loads(await reader.readexactly(meta_bytes))
    if not isinstance(meta, dict):
        raise ValueError("a relayed message's meta is not an object")
    return meta, await reader.readexactly(body_bytes)
