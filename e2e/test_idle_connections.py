"""Ten thousand clients that want nothing, beside one that works: each is treated as the protocol says, and nobody pays for it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import resource
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from enum import StrEnum
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from websockets.client import ClientProtocol
from websockets.frames import Frame, Opcode
from websockets.http11 import Response
from websockets.protocol import State
from websockets.uri import parse_uri

from tests.harness.daemon import Daemon, rss_bytes
from tests.harness.history import assert_lake_equals_oracle
from tests.harness.lake import Lake
from tests.harness.oracle import Oracle, ledger_event
from tests.harness.source import Source, connect_message
from tests.harness.traffic import drain, steady_traffic, url_of
from tests.harness.waiting import wait_until, wait_until_async

ARRIVING_AT_ONCE = 32
BYTES_PER_CONNECTION_MAX = 96 << 10  # Of the ingest process's memory; about 29 KiB were measured, and are reported.
ROOM_BYTES = 64 << 20  # What the process may take for other reasons meanwhile.
FILES_BESIDE_CLIENTS = 256
FILES_BESIDE_CONNECTIONS = 512  # as the ingest process wants them
DEADLINE_S = 200.0


class Kind(StrEnum):
    """How far a client goes before it says nothing more."""

    SILENT = "says connect, answers pings"
    DEAF = "says connect, answers no ping"
    MUTE = "ends the handshake and never says connect"
    HALF_OPEN = "opens a TCP connection and nothing else"


COUNTS = {Kind.SILENT: 10_000, Kind.DEAF: 250, Kind.MUTE: 250, Kind.HALF_OPEN: 250}
CONNECTIONS_MAX = sum(COUNTS.values()) + 50


class IdleClient(asyncio.Protocol):
    """One socket with the websocket library's protocol machine behind it, and no task: ten thousand fit in this process."""

    def __init__(self, kind: Kind, url: str, name: str) -> None:
        self.kind, self.name = kind, name
        self.machine = ClientProtocol(parse_uri(url), max_size=None)
        self.status: dict[str, object] | None = None
        self.received_bytes = self.ping_count = 0
        self.settled = asyncio.get_running_loop().create_future()  # it has gone as far as it goes
        self.is_gone = False
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        if self.kind is Kind.HALF_OPEN:
            self.settled.set_result(None)
            return
        self.machine.send_request(self.machine.connect())
        self._write()

    def data_received(self, data: bytes) -> None:
        self.received_bytes += len(data)
        self.machine.receive_data(data)
        for event in self.machine.events_received():
            if isinstance(event, Response):
                self._shake_hands()
            elif isinstance(event, Frame) and event.opcode is Opcode.PING:
                self.ping_count += 1
            elif isinstance(event, Frame) and event.opcode is Opcode.TEXT:
                self.status = json.loads(event.data)
                self._settle()
        self._write()

    def _shake_hands(self) -> None:
        if self.machine.state is not State.OPEN:
            self._fail(self.machine.handshake_exc)
        elif self.kind is Kind.MUTE:
            self._settle()
        else:
            self.machine.send_text(json.dumps(connect_message(self.name)).encode())

    def _settle(self) -> None:
        if not self.settled.done():
            self.settled.set_result(None)

    def _fail(self, error: Exception | None) -> None:
        if not self.settled.done():
            self.settled.set_exception(error or ConnectionError(f"{self.name} was dropped"))

    def _write(self) -> None:
        """A deaf one, once it is connected, lets even the library's pongs lie."""
        pieces = self.machine.data_to_send()
        if self.kind is not Kind.DEAF or self.status is None:
            self.transport.writelines([piece for piece in pieces if piece])

    def eof_received(self) -> None:
        self.machine.receive_eof()

    def connection_lost(self, error: Exception | None) -> None:
        self.is_gone = True
        self._fail(error)

    def say_goodbye(self) -> None:
        self.machine.send_text(b'{"type":"disconnect","timestamp":1,"reason":"done"}')
        self._write()

    @property
    def close_code(self) -> int | None:
        """With which the server closed; None where it only hung up."""
        return self.machine.close_rcvd.code if self.machine.close_rcvd else None


@pytest.fixture
def open_files() -> Iterator[None]:
    """As many as the daemon needs and the clients in this process need; skips only where the machine does not allow it."""
    wanted = max(CONNECTIONS_MAX + FILES_BESIDE_CLIENTS, CONNECTIONS_MAX + FILES_BESIDE_CONNECTIONS)
    before = soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < wanted:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, wanted))
        except (ValueError, OSError) as refused:
            pytest.skip(f"the hard limit of open files is {hard}, {wanted} are needed (`ulimit -Hn {wanted}`), and raising it: {refused}")
        before = soft, wanted
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def ingest_pid(daemon: Daemon) -> int:
    ready = daemon.ready()
    assert ready is not None
    return ready.pids["ingest"]


def file_count(daemon: Daemon) -> int:
    """Descriptors that the ingest process has open now."""
    return len(os.listdir(f"/proc/{ingest_pid(daemon)}/fd"))


async def arrive(url: str) -> list[IdleClient]:
    """All of them, mixed, a few at a time: how fast is not what is tested."""
    kinds = [kind for kind, count in COUNTS.items() for _ in range(count)]
    random.Random(1).shuffle(kinds)
    turns = asyncio.Semaphore(ARRIVING_AT_ONCE)
    host, _, port = urlsplit(url).netloc.rpartition(":")

    async def one(number: int, kind: Kind) -> IdleClient:
        async with turns:
            client = IdleClient(kind, url, f"idle-{number}")
            await asyncio.get_running_loop().create_connection(lambda: client, host, int(port))
            await client.settled
            return client

    return await asyncio.gather(*(one(number, kind) for number, kind in enumerate(kinds)))


def of(clients: list[IdleClient], kind: Kind) -> list[IdleClient]:
    return [client for client in clients if client.kind is kind]


async def treated_as_the_protocol_says(clients: list[IdleClient]) -> None:
    """Ends with the silent ones alone, each pinged twice: the first pong was heard, or there would be no second ping."""
    silent = of(clients, Kind.SILENT)
    others = [client for client in clients if client.kind is not Kind.SILENT]
    await wait_until_async(
        lambda: all(client.is_gone for client in others) and all(client.ping_count >= 2 for client in silent),
        lambda: (
            f"the pings; still there: {Counter(client.kind for client in others if not client.is_gone)}, "
            f"pings of the silent: {Counter(client.ping_count for client in silent)}"
        ),
        DEADLINE_S,
    )
    assert [client.name for client in silent if client.is_gone] == []
    assert all(client.status is not None and client.status["type"] == "status" for client in [*silent, *of(clients, Kind.DEAF)])
    for mute in of(clients, Kind.MUTE):
        assert mute.machine.close_rcvd is not None
        assert (mute.close_code, mute.machine.close_rcvd.reason, mute.status) == (1008, "no message within 5 s", None)
    assert {(client.close_code, client.ping_count) for client in of(clients, Kind.DEAF)} == {(None, 1)}
    assert {client.received_bytes for client in of(clients, Kind.HALF_OPEN)} == {0}


async def leave(clients: list[IdleClient]) -> None:
    """Every other one says so, the rest is cut off."""
    silent = of(clients, Kind.SILENT)
    polite, rude = silent[::2], silent[1::2]
    for client in polite:
        client.say_goodbye()
    for client in rude:
        client.transport.abort()
    await wait_until_async(lambda: all(client.is_gone for client in silent), "the clients to be gone", DEADLINE_S)
    assert {client.close_code for client in polite} == {1000}


@pytest.mark.acceptance("AT-105")
def test_ten_thousand_idle_connections_cost_memory_that_is_bounded_and_nothing_else(
    tmp_path: Path, open_files: None, report: Callable[..., None]
) -> None:
    limits = {name: str(CONNECTIONS_MAX) for name in ("CONNECTIONS", "CONNECTIONS_PER_ADDRESS", "CONNECTIONS_PER_S")}
    settings = {f"DOLAKE_LIMITS_{name}": value for name, value in limits.items()}
    oracle = Oracle(tmp_path / "journal")
    with Daemon(tmp_path / "data", settings) as daemon, Lake(daemon.data) as lake:
        url = daemon.start().wait_ready().cdc
        asyncio.run(scene(daemon, oracle, url, report))
        newcomer = Source("newcomer", oracle).add([ledger_event(10**6 + place, "late") for place in range(100)])
        asyncio.run(asyncio.wait_for(newcomer.deliver(url_of(daemon)), 60))
        asyncio.run(drain(daemon))
        assert_lake_equals_oracle(lake, oracle)
        assert daemon.stop() == 0


async def scene(daemon: Daemon, oracle: Oracle, url: str, report: Callable[..., None]) -> None:
    """An honest source all along; the others come, are there, and go."""
    async with steady_traffic(daemon, oracle, "honest", interval_s=0.05) as traffic:
        honest = traffic.source
        await wait_until_async(lambda: honest.acked >= 20, "the honest source's first acks")
        pid, files_before = ingest_pid(daemon), file_count(daemon)
        memory_before = rss_bytes(pid)
        clients: list[IdleClient] = []
        async with all_gone_at_the_end(clients):
            clients += await arrive(url)
            acked_then = honest.acked
            assert file_count(daemon) >= files_before + COUNTS[Kind.SILENT]
            await treated_as_the_protocol_says(clients)
            grown_bytes = rss_bytes(pid) - memory_before
            assert file_count(daemon) >= files_before + COUNTS[Kind.SILENT]
            connections = await in_a_thread(lambda: daemon.metrics()["dolake_cdc_connections_count"])
            assert connections == COUNTS[Kind.SILENT] + 1
            assert grown_bytes <= COUNTS[Kind.SILENT] * BYTES_PER_CONNECTION_MAX + ROOM_BYTES
            await wait_until_async(lambda: honest.acked > acked_then, "the honest source to be acked among them")
            report(connections=COUNTS[Kind.SILENT], bytes_per_connection=grown_bytes // COUNTS[Kind.SILENT])
            await leave(clients)
        assert ingest_pid(daemon) == pid
        await in_a_thread(
            lambda: wait_until(
                lambda: file_count(daemon) == files_before, lambda: f"{file_count(daemon)} open files to be {files_before} again", 60
            )
        )
    assert (honest.connection_count, honest.nacks, honest.closes) == (1, [], [])


@contextlib.asynccontextmanager
async def all_gone_at_the_end(clients: list[IdleClient]) -> AsyncIterator[None]:
    try:
        yield
    finally:
        for client in clients:
            client.transport.abort()


async def in_a_thread(work: Callable[[], float | bool]) -> float | bool:
    waiting: Awaitable[float | bool] = asyncio.get_running_loop().run_in_executor(None, work)
    return await waiting
