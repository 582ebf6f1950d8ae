"""AT-83 for sources: the product's own producer and daemon, and what can become of the network between them.

After each case the lake is what was sent: nothing is missing, nothing is there twice, each source's sequence grows.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.harness.daemon import Daemon
from tests.harness.faults import Fault
from tests.harness.feed import Feed
from tests.harness.lake import Lake
from tests.harness.oracle import Oracle, breaches
from tests.harness.traffic import drain
from tests.harness.waiting import wait_until, wait_until_async
from tests.harness.websocket_faults import WebsocketProxy, frames
from tests.test_real_mirrors import by_key, event_of, folded

IDLE_S = 1.0  # So long a connection may be silent, and so long may the answer to a ping take.
SETTINGS = {
    "DOLAKE_LIMITS_IDLE_S": str(IDLE_S),
    "DOLAKE_LIMITS_CONNECTIONS_PER_S": "1000",
    "DOLAKE_FLUSH_AGE_S": "0.3",
}
MIRRORED = {"updates_and_deletes.a"}


@dataclass
class Scene:
    """One case: a proxy of its own to the daemon that all share, a journal, tables and sources by its name."""

    name: str
    daemon: Daemon
    cdc: str
    oracle: Oracle
    proxy: WebsocketProxy

    def feed(self, source: str = "a", *, proxy: WebsocketProxy | None = None, **options: Any) -> Feed:
        url = (proxy or self.proxy).through(self.cdc)
        return Feed(self.oracle, url, f"{self.name}-{source}", table=self.table(source), **options)

    def table(self, source: str) -> str:
        return f"{self.name}.{source}"

    def outage(self, after_acks: int, *, refused: int = 3, proxy: WebsocketProxy | None = None) -> None:
        """The connection breaks behind that many acks from now, and as many times nobody is there."""
        proxy = proxy or self.proxy
        proxy.install(Fault("cut", when=frames("down", "ack"), skip=after_acks - 1, times=1))
        proxy.install(Fault("refuse", when=is_new, times=refused))

    def dropped(self) -> float:
        """Connections that the daemon took for dead."""
        return self.daemon.metrics().get('dolake_cdc_dropped_connections_total{reason="does not answer"}', 0.0)

    async def hits(self, installed: Any, count: int) -> None:
        await wait_until_async(lambda: installed.hit_count >= count, lambda: f"{installed} to hit {count} times")


def is_new(moment: Any) -> bool:
    """A connection that comes, and not one that is there."""
    return isinstance(moment, int)


def every(count: int, when: Callable[[Any], bool]) -> Callable[[Any], bool]:
    """Of the moments that fit, each `count`-th."""
    numbers = itertools.count(1)
    return lambda moment: when(moment) and next(numbers) % count == 0


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    mirrored = "".join(f'[tables."{table}"]\nmode = "both"\n' for table in MIRRORED)
    with Daemon(tmp_path_factory.mktemp("reconnects") / "data", SETTINGS, table_settings=mirrored) as daemon:
        daemon.start()
        yield daemon


# -- the cases


async def server_down_while_connecting(scene: Scene) -> None:
    refused = scene.proxy.refuse()
    feed = scene.feed()
    connecting = asyncio.create_task(feed.__aenter__())
    await scene.hits(refused, 3)
    assert not connecting.done()
    scene.proxy.heal()
    await connecting
    await feed.declare()
    await feed.send(5)
    await feed.__aexit__(None, None, None)


async def server_down_in_the_initial_load(scene: Scene) -> None:
    scene.outage(after_acks=10)
    async with scene.feed() as feed:
        await feed.declare()
        await feed.send(60)


async def server_down_in_the_live_phase(scene: Scene) -> None:
    async with scene.feed() as feed:
        await feed.declare()
        await feed.send(5)
        await feed.producer.drain("persisted")
        scene.outage(after_acks=2)
        for _ in range(5):
            await feed.send(1, size=1)
            await feed.drain()


async def drop_after_the_status_before_the_first_batch(scene: Scene) -> None:
    scene.proxy.install(Fault("cut", when=frames("down", "status"), times=1))
    scene.proxy.install(Fault("cut_before", when=frames("up", "cdc_batch"), times=1))
    async with scene.feed() as feed:
        await feed.declare()
        await feed.send(5)


async def black_hole_while_connecting(scene: Scene) -> None:
    """First the handshake disappears, then the answer to `connect`, and nobody ever says so."""
    scene.proxy.install(Fault("black_hole", when=lambda chunk: chunk.connection == 1, times=1))
    stalled = scene.proxy.install(Fault("stall", when=frames("down", "status"), times=1))
    async with scene.feed() as feed:
        assert stalled.hit_count == 1
        await feed.declare()
        await feed.send(5)
    assert scene.proxy.connection_count == 3


async def double_outage(scene: Scene) -> None:
    """The second comes while what the first interrupted is being sent again."""
    scene.outage(after_acks=3)
    scene.outage(after_acks=5)
    async with scene.feed() as feed:
        await feed.declare()
        await feed.send(20)


async def rapid_flapping(scene: Scene) -> None:
    flapping = scene.proxy.install(Fault("cut", when=frames("down", "ack"), times=25))
    async with scene.feed(window_batches=1) as feed:
        await feed.declare()
        await feed.send(30)
    assert flapping.hit_count == 25


async def staggered_outages(scene: Scene) -> None:
    """Three sources, each on a line of its own that fails at another time, and is away for longer."""
    with contextlib.ExitStack() as stack:
        proxies = [stack.enter_context(WebsocketProxy.before(scene.cdc)) for _ in range(3)]
        for number, proxy in enumerate(proxies, start=1):
            scene.outage(after_acks=4 * number, refused=2 * number, proxy=proxy)
        await asyncio.gather(*(_load(scene.feed(name, proxy=proxy), 30) for name, proxy in zip("abc", proxies, strict=True)))
    await _load(scene.feed("d"), 1)


async def latency_ramp_past_the_pong_timeout(scene: Scene) -> None:
    dropped = scene.dropped()
    async with scene.feed() as feed:
        await feed.declare()
        for seconds in (0.02, 0.1, 0.3):
            slow = scene.proxy.install(Fault("latency", seconds=seconds))
            await feed.send(2)
            await feed.drain()
            scene.proxy.remove(slow)
            assert scene.proxy.connection_count == 1
        scene.proxy.install(Fault("latency", seconds=30, when=lambda chunk: chunk.direction == "up"))
        await feed.send(2)
        await asyncio.to_thread(wait_until, lambda: scene.dropped() > dropped, "the daemon to take the connection for dead")
        scene.proxy.heal()
        await feed.send(2)
    assert scene.proxy.connection_count > 1


async def latency_below_the_pong_timeout(scene: Scene) -> None:
    """Nobody is taken for dead who answers in time."""
    dropped = scene.dropped()
    scene.proxy.install(Fault("latency", seconds=0.15))
    async with scene.feed() as feed:
        await feed.declare()
        await feed.send(5)
        await wait_until_async(lambda: scene.proxy.seen["pong"] >= 2, "pings that are answered")
        await feed.send(5)
    assert (scene.proxy.connection_count, scene.dropped()) == (1, dropped)


async def stalls(scene: Scene) -> None:
    """Batches and acks stand still for a while, shorter than anybody would give up for."""
    scene.proxy.install(Fault("stall", when=every(5, frames("up", "cdc_batch")), seconds=0.2, times=3))
    scene.proxy.install(Fault("stall", when=every(7, frames("down", "ack")), seconds=0.2, times=3))
    async with scene.feed() as feed:
        await feed.declare()
        await feed.send(30)
    assert scene.proxy.connection_count == 1


async def stall_until_the_producer_gives_up(scene: Scene) -> None:
    """Acks stop and nothing is closed: what was in flight is sent again and found to be there."""
    scene.proxy.install(
        Fault("black_hole", when=lambda chunk: chunk.connection == 1 and chunk.position > 1500 and chunk.direction == "down")
    )
    async with scene.feed(speed=60) as feed:
        await feed.declare()
        await feed.send(30)
    assert scene.proxy.connection_count == 2


async def half_open(scene: Scene) -> None:
    """The daemon's side of the connection is gone; the producer learns it from nobody's answer."""
    async with scene.feed(speed=60) as feed:
        await feed.declare()
        await feed.send(5)
        await feed.drain()
        scene.proxy.install(Fault("half_open", times=1))
        await feed.send(5)
    assert scene.proxy.connection_count == 2


async def fragmentation(scene: Scene) -> None:
    """The handshake and the first frames come byte by byte, the rest in small pieces."""
    scene.proxy.install(Fault("fragment", size_bytes=1, when=lambda chunk: chunk.position < 1500))
    scene.proxy.install(Fault("fragment", size_bytes=61))
    async with scene.feed() as feed:
        await feed.declare()
        await feed.send(20)
    assert scene.proxy.connection_count == 1


async def burst_of_50_rows_during_an_outage(scene: Scene) -> None:
    async with scene.feed(window_batches=64) as feed:
        await feed.declare()
        await feed.send(3)
        await feed.drain()
        refused = scene.proxy.refuse()
        await feed.send(50, size=1)
        await scene.hits(refused, 4)
        scene.proxy.heal()


async def large_backlog_with_repeated_outages(scene: Scene) -> None:
    scene.proxy.install(Fault("cut", when=every(20, frames("down", "ack")), times=8))
    scene.proxy.install(Fault("refuse", when=every(2, is_new), times=8))
    async with scene.feed(window_batches=32) as feed:
        await feed.declare()
        await feed.send(200, size=50)
    assert scene.proxy.connection_count > 8


async def live_writes_during_the_load(scene: Scene) -> None:
    """One source loads one table and writes another at the same time; two sources, one of them loading."""
    scene.outage(after_acks=15)
    scene.outage(after_acks=40)

    async def load_and_live() -> None:
        async with scene.feed() as feed:
            await feed.declare(feed.table, scene.table("live"))
            for _ in range(40):
                await feed.send(1, size=50)
                await feed.send(1, size=1, table=scene.table("live"))

    await asyncio.gather(load_and_live(), _load(scene.feed("b"), 20, size=1))


async def mixed_stages_on_one_socket(scene: Scene) -> None:
    """Each thing that a connection carries is the one that breaks it: schema, batch, flush and its answer, a persisted ack."""
    broken = [
        scene.proxy.install(Fault(kind, when=when, times=1))
        for kind, when in [
            ("cut_before", frames("up", "schema")),
            ("cut", frames("up", "cdc_batch")),
            ("cut_before", frames("up", "flush_request")),
            ("cut_before", frames("down", "flush_response")),
            ("cut_before", frames("down", "ack", status="persisted")),
        ]
    ]
    async with scene.feed() as feed:
        await feed.declare(feed.table, scene.table("other"))
        await feed.send(3)
        assert (await feed.producer.flush())["success"]
        await feed.declare(scene.table("third"))
        await feed.send(3, table=scene.table("other"))
        await feed.send(3, table=scene.table("third"))
        await feed.producer.drain("persisted")
        assert (await feed.producer.flush())["success"]
    assert [fault.hit_count for fault in broken] == [1] * 5


async def three_sources_at_once(scene: Scene) -> None:
    """On one line, which breaks under all three."""
    async with scene.feed("a") as a, scene.feed("b") as b, scene.feed("c") as c:
        feeds = (a, b, c)
        for feed in feeds:
            await feed.declare()
            await feed.send(3)
            await feed.drain()
        refused = scene.proxy.refuse()
        sending = [asyncio.create_task(feed.send(30)) for feed in feeds]
        await scene.hits(refused, 3 + 6)
        scene.proxy.heal()
        await asyncio.gather(*sending)


async def connect_during_a_reconnect(scene: Scene) -> None:
    """A second source comes while the first is trying to come back."""
    async with scene.feed("a") as a:
        await a.declare()
        await a.send(3)
        refused = scene.proxy.refuse()
        await a.send(3)
        await scene.hits(refused, 3)
        loading = asyncio.create_task(_load(scene.feed("b"), 10))
        await scene.hits(refused, 6)
        scene.proxy.heal()
        await loading


async def disconnect_during_an_outage(scene: Scene) -> None:
    """The producer ends with batches that nobody has acked; the next one goes on where the daemon says."""
    feed = scene.feed()
    await feed.__aenter__()
    await feed.declare()
    await feed.send(3)
    await feed.drain()
    lost = scene.proxy.install(Fault("lose", when=frames("down", "ack")))
    await feed.send(3)
    await scene.hits(lost, 3)
    refused = scene.proxy.refuse()
    await feed.send(3)
    await scene.hits(refused, 2)
    await feed.producer.close()
    scene.proxy.heal()
    again = scene.feed(sequence=6 * 20)  # Three of those not acked had come nevertheless.
    async with again:
        assert again.producer.last_event_sequence == again.sequence - 1
        await again.send(6)


async def updates_and_deletes(scene: Scene) -> None:
    """Of keys that come again and again, into a changelog and a mirror, while the connection flaps."""
    scene.proxy.install(Fault("cut", when=every(3, frames("down", "ack")), times=10))
    scene.proxy.install(Fault("cut_before", when=every(11, frames("up", "cdc_batch")), times=3))
    async with scene.feed() as feed:
        await feed.declare()
        operations, living = [], set()
        for sequence in range(600):
            key = (sequence * 7919) % 50
            operation = "INSERT" if key not in living else "DELETE" if sequence % 3 == 0 else "UPDATE"
            (living.discard if operation == "DELETE" else living.add)(key)
            operations.append((sequence, operation, key))
        for start in range(0, 600, 10):
            batch = [event_of(operation, key, sequence, feed.table) for sequence, operation, key in operations[start : start + 10]]
            await feed.send_events(batch)


async def event_counters_stay_true(scene: Scene) -> None:
    """What was sent, what the producer counts, what the daemon counts and the rows are one number; repeats are counted apart."""
    before = scene.daemon.metrics()
    scene.proxy.install(Fault("cut_before", when=every(6, frames("down", "ack")), times=5))
    async with scene.feed() as feed:
        await feed.declare()
        await feed.send(40)
    after = scene.daemon.metrics()
    assert after["dolake_cdc_events_total"] - before.get("dolake_cdc_events_total", 0) == 800
    assert feed.producer.acked_event_count == feed.sequence == scene.oracle.event_count(feed.table) == 800
    repeated = after.get("dolake_cdc_duplicate_events_total", 0) - before.get("dolake_cdc_duplicate_events_total", 0)
    assert repeated == 20 * feed.producer.duplicate_count


async def _load(feed: Feed, batch_count: int, *, size: int = 20) -> None:
    async with feed:
        await feed.declare()
        await feed.send(batch_count, size=size)


CASES: list[Callable[[Scene], Awaitable[None]]] = [
    server_down_while_connecting,
    server_down_in_the_initial_load,
    server_down_in_the_live_phase,
    drop_after_the_status_before_the_first_batch,
    black_hole_while_connecting,
    double_outage,
    rapid_flapping,
    staggered_outages,
    latency_ramp_past_the_pong_timeout,
    latency_below_the_pong_timeout,
    stalls,
    stall_until_the_producer_gives_up,
    half_open,
    fragmentation,
    burst_of_50_rows_during_an_outage,
    large_backlog_with_repeated_outages,
    live_writes_during_the_load,
    mixed_stages_on_one_socket,
    three_sources_at_once,
    connect_during_a_reconnect,
    disconnect_during_an_outage,
    updates_and_deletes,
    event_counters_stay_true,
]


@pytest.mark.acceptance("AT-83")
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_nothing_is_missing_and_nothing_is_twice(
    tmp_path: Path, daemon: Daemon, monkeypatch: pytest.MonkeyPatch, case: Callable[[Scene], Awaitable[None]]
) -> None:
    monkeypatch.setattr("dolake.cdc.dial.DIAL_S_MAX", 1.0)
    monkeypatch.setattr("dolake.cdc.client.STATUS_S_MAX", 1.0)
    monkeypatch.setattr("dolake.cdc.client.CLOSE_S_MAX", 0.5)
    cdc = daemon.wait_ready().cdc
    oracle = Oracle(tmp_path / "journal")

    async def scenario() -> None:
        with WebsocketProxy.before(cdc) as proxy:
            await asyncio.wait_for(case(Scene(case.__name__, daemon, cdc, oracle, proxy)), 60)
        await drain(daemon)

    asyncio.run(scenario())
    assert oracle.batches
    assert all(batch.acked for batch in oracle.batches.values())
    with Lake(daemon.data) as lake:
        for table in oracle.tables():
            changelog = f"{table}__changes" if table in MIRRORED else table
            for reader, rows in (("DuckDB", lake.read_duckdb(changelog)), ("PyIceberg", lake.read_pyiceberg(changelog))):
                found = list(breaches(rows, oracle.as_arrow(table)))
                assert not found, f"{table} read by {reader}, journal {oracle.path}:\n" + "\n".join(found)
        for table in MIRRORED.intersection(oracle.tables()):
            expected = folded([event for batch in oracle.batches.values() for event in batch.events])
            assert by_key(lake.read_duckdb(table)) == by_key(lake.read_pyiceberg(table)) == expected
