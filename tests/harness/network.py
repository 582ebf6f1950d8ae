"""A TCP proxy that can stop: between a daemon and its object store, so that the store can vanish without being told."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Coroutine
from typing import Any


class TcpProxy:
    """Forwards to `port` on this machine from a port of its own, in a thread of its own.

    While blocked, bytes stay where they are, in both directions, and new connections are taken and left alone: what a
    cable that was pulled looks like. While refusing, connections are reset and new ones closed at once.
    """

    def __init__(self, port: int) -> None:
        self.port = 0
        self.connection_count = 0
        self._target = port
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="tcp-proxy", daemon=True)
        self._streams: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._open = asyncio.Event()
        self._refusing = False

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()

    def _do(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(30)

    def __enter__(self) -> TcpProxy:
        self._thread.start()
        self._do(self._start())
        return self

    async def _start(self) -> None:
        self._open.set()
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    def block(self) -> None:
        self._do(self._set(is_open=False, refusing=False))

    def refuse(self) -> None:
        self._do(self._set(is_open=True, refusing=True))

    def heal(self) -> None:
        self._do(self._set(is_open=True, refusing=False))

    async def _set(self, *, is_open: bool, refusing: bool) -> None:
        self._refusing = refusing
        if is_open:
            self._open.set()
        else:
            self._open.clear()
        if refusing:
            for stream in self._streams:
                stream.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connection_count += 1
        if self._refusing:
            writer.transport.abort()
            return
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._streams.add(writer)
        try:
            await self._open.wait()
            upstream_reader, upstream_writer = await asyncio.open_connection("127.0.0.1", self._target)
            self._streams.add(upstream_writer)
            try:
                await asyncio.gather(self._forward(reader, upstream_writer), self._forward(upstream_reader, writer))
            finally:
                self._streams.discard(upstream_writer)
                upstream_writer.transport.abort()
        except OSError:
            pass  # One side has gone; so does the other.
        finally:
            self._streams.discard(writer)
            self._tasks.discard(task)
            writer.transport.abort()

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1 << 16):
            await self._open.wait()
            writer.write(data)
            await writer.drain()
        with contextlib.suppress(OSError):
            writer.write_eof()

    def __exit__(self, *_: object) -> None:
        self._do(self._stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _stop(self) -> None:
        self._server.close()
        self._open.set()
        for stream in self._streams:
            stream.transport.abort()
        await asyncio.gather(*self._tasks, return_exceptions=True)
