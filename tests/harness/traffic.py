"""Events that keep coming while processes are killed, from one source into one table."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

from websockets.exceptions import WebSocketException

from tests.harness.daemon import Daemon
from tests.harness.oracle import Oracle, ledger_event
from tests.harness.source import Source, flush
from tests.harness.waiting import wait_until_async


@dataclass
class Traffic:
    """A source with one schema, then a batch of `batch_size` events every `interval_s`, until stopped."""

    source: Source
    url: Callable[[], str | None]
    table: str = "ledger"
    batch_size: int = 10
    interval_s: float = 0.01
    event_count: int = 0
    _stopping: bool = False

    def add_batch(self) -> None:
        first = self.event_count
        self.source.add([ledger_event(first + place, self.table) for place in range(self.batch_size)])
        self.event_count += self.batch_size

    async def run(self) -> None:
        self.source.declare(self.table)
        feeding = asyncio.get_running_loop().create_task(self._feed())
        try:
            await self.source.deliver(self.url, until=lambda: self._stopping)
        finally:
            feeding.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await feeding

    async def _feed(self) -> None:
        while not self._stopping:
            if len(self.source.frames) - self.source.acked < self.source.window:  # A source that is not heard does not pile up.
                self.add_batch()
            await asyncio.sleep(self.interval_s)

    def stop(self) -> None:
        """No new batches; `run` ends when what there is has been acked."""
        self._stopping = True


def url_of(daemon: Daemon) -> Callable[[], str | None]:
    def url() -> str | None:
        ready = daemon.ready()
        return ready.cdc if ready else None

    return url


@contextlib.asynccontextmanager
async def steady_traffic(daemon: Daemon, oracle: Oracle, name: str = "steady", **options: object) -> AsyncIterator[Traffic]:
    """Traffic beside the body; when the body ends, everything that was added has been acked."""
    traffic = Traffic(Source(name, oracle), url_of(daemon), **options)  # type: ignore[arg-type]
    running = asyncio.get_running_loop().create_task(traffic.run())
    try:
        yield traffic
        traffic.stop()
        await asyncio.wait_for(running, 120)
    finally:
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running


async def drain(daemon: Daemon, deadline_s: float = 60.0) -> None:
    """Until everything acked so far is committed: asks for a flush, again where the writer was away."""
    url = url_of(daemon)
    outcome: dict[str, object] = {}

    async def flushed() -> None:
        while not outcome.get("success"):
            with contextlib.suppress(OSError, WebSocketException, TimeoutError):
                outcome.update(await asyncio.wait_for(flush(url() or ""), 30))
            await asyncio.sleep(0.06)

    asking = asyncio.get_running_loop().create_task(flushed())
    try:
        await wait_until_async(
            asking.done, lambda: f"everything to be committed; the last answer was {outcome}\n{daemon.tail()}", deadline_s
        )
        asking.result()
    finally:
        asking.cancel()
