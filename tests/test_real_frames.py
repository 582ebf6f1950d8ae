"""Frames that are lost, doubled, overtaken or held on their way, from a source that says exactly what it sends, and from the producer.

No network does this to a websocket that lives; a proxy, a buggy client or a retry above it can. The answers are exact, and the rows.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness.daemon import Daemon
from tests.harness.faults import Fault, Installed
from tests.harness.feed import Feed
from tests.harness.history import assert_lake_equals_oracle
from tests.harness.lake import Lake
from tests.harness.oracle import Event, Oracle, ledger_event
from tests.harness.source import Source, batch_message, connect_message, conversation, schema_message
from tests.harness.traffic import drain
from tests.harness.waiting import wait_until_async
from tests.harness.websocket_faults import WebsocketProxy, frames

SETTINGS = {"DOLAKE_LIMITS_CONNECTIONS_PER_S": "1000", "DOLAKE_FLUSH_AGE_S": "0.3"}


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    with Daemon(tmp_path_factory.mktemp("frames") / "data", SETTINGS) as daemon:
        daemon.start()
        yield daemon


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    """Of this test's source and table: the daemon is shared."""
    return "".join(letter if letter.isalnum() else "_" for letter in request.node.name)[-100:]


@pytest.fixture
def proxy(daemon: Daemon) -> Iterator[WebsocketProxy]:
    with WebsocketProxy.before(daemon.wait_ready().cdc) as proxy:
        yield proxy


@pytest.fixture
def oracle(tmp_path: Path) -> Oracle:
    return Oracle(tmp_path / "journal")


def assert_complete(daemon: Daemon, oracle: Oracle, *, event_count: int) -> None:
    assert all(batch.acked for batch in oracle.batches.values())
    assert sum(len(batch.events) for batch in oracle.batches.values()) == event_count
    asyncio.run(drain(daemon))
    with Lake(daemon.data) as lake:
        assert_lake_equals_oracle(lake, oracle)


def batch_of(table: str, number: int) -> list[Event]:
    return [ledger_event(number * 10 + place, table) for place in range(10)]


Answer = tuple[int, str, int | None]


async def converse(
    url: str, name: str, oracle: Oracle, numbers: list[int], answer_count: int, *, until: Installed | None = None
) -> list[Answer]:
    """Sends a schema (0) or batches under these numbers without waiting; the answers as (number, what, expected), as they came.

    Hangs up after `answer_count` answers, and not before the fault `until` has bitten.
    """
    answers: list[Answer] = []
    async with conversation(url) as talk:
        assert (await talk.ask(connect_message(name)))["type"] == "status"
        for number in numbers:
            if number:
                oracle.sent(name, "", number, batch_of(name, number))
            await talk.send(batch_message(name, number, batch_of(name, number)) if number else schema_message(name, 0, name))
        for _ in range(answer_count):
            answer = await talk.receive()
            if answer["type"] == "ack" and answer["sequenceNumber"]:
                oracle.acked(name, "", answer["sequenceNumber"], answer["status"])
            answers.append((answer["sequenceNumber"], answer.get("status", answer.get("reason")), answer.get("expectedSequence")))
        if until:
            await wait_until_async(lambda: until.hit_count, f"{until.fault.kind} to hit")
    return answers


def test_a_doubled_frame_is_acked_as_a_duplicate(daemon: Daemon, proxy: WebsocketProxy, oracle: Oracle, name: str) -> None:
    fault = proxy.install(Fault("duplicate", when=frames("up", "cdc_batch", sequenceNumber=2)))
    answers = asyncio.run(converse(proxy.through(daemon.wait_ready().cdc), name, oracle, [0, 1, 2, 3], 5))
    assert answers == [(0, "ok", None), (1, "ok", None), (2, "ok", None), (2, "duplicate", None), (3, "ok", None)]
    assert fault.hit_count == 1
    assert_complete(daemon, oracle, event_count=30)


def test_a_doubled_schema_changes_nothing(daemon: Daemon, proxy: WebsocketProxy, oracle: Oracle, name: str) -> None:
    proxy.install(Fault("duplicate", when=frames("up", "schema")))
    answers = asyncio.run(converse(proxy.through(daemon.wait_ready().cdc), name, oracle, [0, 1], 3))
    assert answers == [(0, "ok", None), (0, "duplicate", None), (1, "ok", None)]
    assert_complete(daemon, oracle, event_count=10)


def test_a_frame_that_overtakes_is_a_gap_that_heals(daemon: Daemon, proxy: WebsocketProxy, oracle: Oracle, name: str) -> None:
    """Batch 3 comes before 2: refused with the number that is missing; 2 is taken, and 3 when it comes again."""
    proxy.install(Fault("reorder", when=frames("up", "cdc_batch", sequenceNumber=2)))
    url = proxy.through(daemon.wait_ready().cdc)
    answers = asyncio.run(converse(url, name, oracle, [0, 1, 2, 3], 4))
    assert answers == [(0, "ok", None), (1, "ok", None), (3, "invalid_sequence", 2), (2, "ok", None)]
    assert asyncio.run(converse(url, name, oracle, [3], 1)) == [(3, "ok", None)]
    assert_complete(daemon, oracle, event_count=30)


def test_what_is_overtaken_at_the_very_beginning_is_refused_by_name(
    daemon: Daemon, proxy: WebsocketProxy, oracle: Oracle, name: str
) -> None:
    """A source never seen may begin with any number: 1 is its beginning then, and 0 is not acked as a repeat of what is nowhere."""
    proxy.install(Fault("reorder", when=frames("up", "cdc_batch", sequenceNumber=1)))
    url = proxy.through(daemon.wait_ready().cdc)
    assert asyncio.run(converse(url, name, oracle, [1, 2], 2)) == [(2, "ok", None), (1, "invalid_sequence", None)]
    assert asyncio.run(converse(url, name, oracle, [3], 1)) == [(3, "ok", None)]
    del oracle.batches[name, "", 1]  # Never acked: it must not be there.
    assert_complete(daemon, oracle, event_count=20)


def test_a_lost_frame_is_a_gap_that_heals(daemon: Daemon, proxy: WebsocketProxy, oracle: Oracle, name: str) -> None:
    fault = proxy.install(Fault("lose", when=frames("up", "cdc_batch", sequenceNumber=2)))
    url = proxy.through(daemon.wait_ready().cdc)
    answers = asyncio.run(converse(url, name, oracle, [0, 1, 2, 3], 3))
    assert answers == [(0, "ok", None), (1, "ok", None), (3, "invalid_sequence", 2)]
    proxy.remove(fault)
    assert asyncio.run(converse(url, name, oracle, [2, 3], 2)) == [(2, "ok", None), (3, "ok", None)]
    assert_complete(daemon, oracle, event_count=30)


@pytest.mark.parametrize("kind", ["cut", "cut_before", "lose"])
def test_what_nobody_was_told_of_is_a_duplicate(daemon: Daemon, proxy: WebsocketProxy, oracle: Oracle, name: str, kind: str) -> None:
    """The ack of batch 2 is the last that leaves, or does not come; all is sent again, and stands there once."""
    fault = proxy.install(Fault(kind, when=frames("down", "ack", sequenceNumber=2)))
    url = proxy.through(daemon.wait_ready().cdc)
    told = {"cut": 3, "cut_before": 2, "lose": 2}[kind]
    first = asyncio.run(converse(url, name, oracle, [0, 1, 2], told, until=fault))
    assert first == [(number, "ok", None) for number in range(told)]
    proxy.remove(fault)
    assert asyncio.run(converse(url, name, oracle, [0, 1, 2, 3], 4)) == [(number, "duplicate", None) for number in range(3)] + [
        (3, "ok", None)
    ]
    assert_complete(daemon, oracle, event_count=30)


@pytest.mark.parametrize("after", [1, 2, 8, 16, 17, 40])
@pytest.mark.parametrize("kind", ["cut", "cut_before"])
def test_a_drop_at_the_nth_ack_costs_a_reconnect(
    daemon: Daemon, proxy: WebsocketProxy, oracle: Oracle, name: str, kind: str, after: int
) -> None:
    """What is durable is never less than what was acked: `Source` holds each `status` against its journal."""
    proxy.install(Fault(kind, when=frames("down", "ack"), skip=after - 1, times=1))
    source = Source(name, oracle).declare(name)
    for number in range(60):
        source.add(batch_of(name, number))
    url = proxy.through(daemon.wait_ready().cdc)
    asyncio.run(asyncio.wait_for(source.deliver(lambda: url), 60))
    assert (source.connection_count, source.closes, source.nacks) == (2, [1006], [])
    assert_complete(daemon, oracle, event_count=600)


@pytest.mark.parametrize(("direction", "kind"), [("up", "cdc_batch"), ("down", "ack"), ("down", "status")])
def test_a_stall_is_waited_for(daemon: Daemon, proxy: WebsocketProxy, oracle: Oracle, name: str, direction: str, kind: str) -> None:
    proxy.install(Fault("stall", when=frames(direction, kind), seconds=0.3, times=2 if kind != "status" else 1))
    source = Source(name, oracle).declare(name)
    for number in range(20):
        source.add(batch_of(name, number))
    url = proxy.through(daemon.wait_ready().cdc)
    asyncio.run(asyncio.wait_for(source.deliver(lambda: url), 60))
    assert (source.connection_count, source.nacks) == (1, [])
    assert_complete(daemon, oracle, event_count=200)


@pytest.mark.parametrize("kind", ["lose", "duplicate", "reorder"])
@pytest.mark.parametrize(("direction", "message"), [("up", "cdc_batch"), ("down", "ack")])
def test_the_producer_comes_through(
    daemon: Daemon, proxy: WebsocketProxy, oracle: Oracle, name: str, direction: str, message: str, kind: str
) -> None:
    async def scenario() -> int:
        async with Feed(oracle, proxy.through(daemon.wait_ready().cdc), name, table=name, speed=100) as feed:
            await feed.declare()
            await feed.send(30)
        return feed.producer.acked_event_count

    proxy.install(Fault(kind, when=frames(direction, message), skip=5, times=1))
    assert asyncio.run(asyncio.wait_for(scenario(), 60)) == 600
    assert_complete(daemon, oracle, event_count=600)


@pytest.mark.parametrize("seed", range(4))
def test_the_producer_comes_through_all_of_it_at_once(daemon: Daemon, oracle: Oracle, name: str, seed: int) -> None:
    kinds = ("lose", "duplicate", "reorder", "cut", "cut_before")

    async def scenario(proxy: WebsocketProxy) -> None:
        for kind in kinds:
            proxy.install(Fault(kind, when=frames("up", "cdc_batch"), chance=0.03))
            proxy.install(Fault(kind, when=frames("down", "ack"), chance=0.03))
        async with Feed(oracle, proxy.through(daemon.wait_ready().cdc), name, table=name, speed=200) as feed:
            await feed.declare()
            await feed.send(150, size=5)
            while proxy.faults.never_hit():  # Until each has bitten, however long the chance takes.
                await feed.send(1, size=5)
                await feed.drain()
            proxy.heal()

    with WebsocketProxy.before(daemon.wait_ready().cdc, seed=seed) as proxy:
        asyncio.run(asyncio.wait_for(scenario(proxy), 120))
    assert_complete(daemon, oracle, event_count=sum(len(batch.events) for batch in oracle.batches.values()))
