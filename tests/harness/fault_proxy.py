"""Proxies that break what goes through them: TCP here, requests in `http_faults`, frames in `websocket_faults`.

Each listens on a port of its own, in a thread with a loop of its own, and forwards to a port on this machine:

    with TcpProxy(server.port) as proxy:
        fault = proxy.install(Fault("reset", when=lambda chunk: chunk.position > 1000, times=1))
        ...
        proxy.heal()
        assert fault.hit_count == 1

Leaving the proxy raises FaultNeverHit if something was installed that never bit (AT-116).
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Sequence
from typing import Any, Self
from urllib.parse import urlsplit, urlunsplit

from tests.harness.faults import Fault, FaultNeverHit, Faults, Installed
from tests.harness.links import CHUNK_BYTES, Chunk, Link, Way, reset

_NOW = frozenset({"refuse", "reset", "half_open"})  # Without `when` they hit what is open, not only what comes.


class TcpProxy:
    """Forwards bytes.

    Faults by connection: `refuse` (reset before a byte). By chunk: `reset`; `black_hole` (it is held, and all behind it, as by a
    cable that was pulled; a new connection counts as a chunk of nothing); `half_open` (the target's side is reset, the client
    is not told); `latency` (`seconds`); `bandwidth` (`size_bytes` a second); `fragment` (`size_bytes` at a time, `seconds` between).
    """

    KINDS = frozenset({"refuse", "reset", "black_hole", "half_open", "latency", "bandwidth", "fragment"})

    def __init__(self, port: int, *, seed: int = 0) -> None:
        self.port = 0
        self.target_port = port
        self.connection_count = 0
        self.faults = Faults(seed)
        self.links: set[Link] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name=f"{type(self).__name__} to {port}", daemon=True)
        self._tasks: set[asyncio.Task[None]] = set()
        self._mistakes: list[BaseException] = []  # our own

    # -- for tests, from any thread

    @classmethod
    def before(cls, url: str, **options: Any) -> Self:
        """A proxy to where a URL points; `through` then says what to use in its place."""
        port = urlsplit(url).port
        assert port is not None, url
        return cls(port, **options)

    def through(self, url: str) -> str:
        """The same URL by way of this proxy."""
        return urlunsplit(urlsplit(url)._replace(netloc=f"127.0.0.1:{self.port}"))

    def install(self, fault: Fault) -> Installed:
        assert fault.kind in self.KINDS, f"{type(self).__name__} knows no fault {fault.kind!r}; it knows {sorted(self.KINDS)}"
        installed: Installed = self._do(self._install(fault))
        return installed

    def remove(self, *installed: Installed) -> None:
        """What they hold goes on; how often they hit stays on record."""
        self._do(self._remove(installed))

    def heal(self) -> None:
        """Removes every fault."""
        self._do(self._remove(self.faults.installed))

    def block(self) -> Installed:
        """Nothing gets through, in either direction, and nobody is told."""
        return self.install(Fault("black_hole"))

    def lose_answers(self) -> Installed:
        """From now on requests arrive, and nothing comes back."""
        return self.install(Fault("black_hole", when=lambda chunk: chunk.direction == "down"))

    def refuse(self) -> Installed:
        """Open connections are reset, and new ones."""
        return self.install(Fault("refuse"))

    def cut(self) -> int:
        """Resets what is open now. How many connections that were."""
        count: int = self._do(self._cut())
        return count

    # -- in its own thread

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()

    def _do(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(30)

    async def _install(self, fault: Fault) -> Installed:
        installed = self.faults.install(fault)
        if fault.kind in _NOW and fault.when is None:
            for link in list(self.links):
                if not self.faults.bites(installed, link):
                    continue
                if fault.kind == "half_open":
                    link.leave_half_open(installed)
                else:
                    link.abort()
        return installed

    async def _remove(self, installed: Sequence[Installed]) -> None:
        for fault in installed:
            fault.gone.set()
        for link in self.links:
            link.healed()

    async def _cut(self) -> int:
        for link in self.links:
            link.abort()
        return len(self.links)

    def __enter__(self) -> Self:
        self._thread.start()
        self._do(self._start())
        return self

    async def _start(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    def _accept(self, client: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connection_count += 1
        if self.faults.biting(self.connection_count, "refuse") is not None:
            reset(writer)
            return
        self._spawn(self._serve(self.connection_count, client, writer))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._mistakes.append(error)

    async def _serve(self, number: int, client: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        target_writer = None
        try:
            held = self.faults.biting(Chunk(number, "up", 0, b""), "black_hole")
            if held is not None:
                await held.hold()
            target, target_writer = await asyncio.open_connection("127.0.0.1", self.target_port)
            link = Link(self.faults, number, writer, target_writer)
            self.links.add(link)
            try:
                await self._together(link.up.drain(), link.down.drain(), self._carry(link, client, target))
            finally:
                self.links.discard(link)
            writer.close()
            target_writer.close()
        except (OSError, EOFError):
            pass  # One side has gone, or was never there; so does the other.
        finally:
            for stream in (writer, target_writer):
                if stream is not None:
                    reset(stream)

    async def _together(self, *works: Coroutine[Any, Any, None]) -> None:
        """Until all have ended, or the first has failed."""
        tasks = [self._loop.create_task(work) for work in works]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _carry(self, link: Link, client: asyncio.StreamReader, target: asyncio.StreamReader) -> None:
        """Takes what comes from both sides and puts it on its way."""
        await self._together(self._copy(client, link.up), self._copy(target, link.down))

    async def _copy(self, reader: asyncio.StreamReader, way: Way) -> None:
        try:
            while data := await reader.read(CHUNK_BYTES):
                await way.put(data)
            await way.end()
        except ConnectionError:
            await way.end(with_reset=True)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._do(self._stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        if self._mistakes:
            raise self._mistakes[0]
        if kind is None and (missed := self.faults.never_hit()):
            raise FaultNeverHit(f"installed, and never hit: {missed}")

    async def _stop(self) -> None:
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()


class Network:
    """Proxies as the links between nodes, by the names of both ends.

    Network({("orders", "daemon"): proxy, ("daemon", "store"): other}).isolate("store")
    """

    def __init__(self, links: dict[tuple[str, str], TcpProxy]) -> None:
        self._links = links

    def partition(self, *groups: set[str]) -> list[Installed]:
        """Nothing gets through between nodes of different groups; a node that no group names is not concerned."""
        group_of = {node: number for number, group in enumerate(groups) for node in group}
        unknown = group_of.keys() - {node for ends in self._links for node in ends}
        assert not unknown, f"no link ends at {sorted(unknown)}"
        apart = [ends for ends in self._links if set(ends) <= group_of.keys() and group_of[ends[0]] != group_of[ends[1]]]
        assert apart, f"no link goes between {groups}"
        return [self._links[ends].block() for ends in apart]

    def isolate(self, node: str) -> list[Installed]:
        """Nothing gets to a node or from it."""
        return self.partition({node}, {name for ends in self._links if node in ends for name in ends} - {node})

    def heal(self) -> None:
        for proxy in self._links.values():
            proxy.heal()
