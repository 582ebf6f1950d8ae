"""Clients that come while a daemon starts, or while its processes are being replaced: all of them get an answer."""

from __future__ import annotations

import asyncio
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from websockets.exceptions import InvalidStatus

from tests.harness.daemon import Daemon, is_running, listening_ports
from tests.harness.lake import Lake
from tests.harness.oracle import ledger_event
from tests.harness.posting import post, post_batch
from tests.harness.source import batch_message, connect_message, conversation, schema_message
from tests.harness.traffic import drain
from tests.harness.waiting import wait_until

CLIENTS = 50
SERVED = "served"
LATER = "told when to come again"


def over_websocket(cdc: str, number: int) -> str:
    """Connects, declares and sends one batch."""

    async def talk() -> str:
        source = f"client-{number}"
        try:
            async with conversation(cdc) as line:
                assert (await line.ask(connect_message(source)))["type"] == "status"
                for message in (schema_message(source, 1, "ledger"), batch_message(source, 2, [ledger_event(number)])):
                    assert (await line.ask(message))["status"] in ("ok", "fallback")
                return SERVED
        except InvalidStatus as error:
            refused = error.response
        assert refused.status_code in (429, 503), refused
        assert int(refused.headers["Retry-After"]) >= 1
        return LATER

    return asyncio.run(talk())


def over_http(http: str, number: int) -> str:
    """The same by POST."""
    for message in (schema_message(f"client-{number}", 1, "ledger"), post_batch(f"client-{number}", 2, [ledger_event(number)])):
        posted = post(http, message)
        if posted.status != 200:
            assert posted.status in (429, 503), posted
            assert posted.answer["shouldRetry"] is True
            assert int(posted.headers["retry-after"]) >= 1
            return LATER
    return SERVED


def asks(http: str, number: int) -> str:
    """Looks at one of the pages."""
    try:
        with urllib.request.urlopen(http + ("/ready", "/ready/writer", "/metrics", "/health")[number % 4], timeout=60) as answer:
            assert answer.status == 200
            return SERVED
    except urllib.error.HTTPError as error:
        error.close()
        refused = error
    assert refused.code == 503
    assert int(refused.headers["Retry-After"]) >= 1
    return LATER


def everybody_comes(cdc: str, http: str) -> None:
    """50 clients at once, each as often as it takes. A reset, a timeout or any other answer fails."""
    go = threading.Barrier(CLIENTS)
    again = threading.Event()  # never set: only waited for
    kinds: list[tuple[Callable[[str, int], str], str]] = [(over_websocket, cdc), (over_http, http), (asks, http)]

    def come(number: int) -> list[str]:
        visit, url = kinds[number % len(kinds)]
        outcomes = []
        go.wait(60)
        while not outcomes or outcomes[-1] == LATER:
            assert len(outcomes) < 100, "told to come again for ever"
            if outcomes:
                again.wait(0.1)
            outcomes.append(visit(url, number))
        return outcomes

    with ThreadPoolExecutor(CLIENTS) as pool:
        visits = list(pool.map(come, range(CLIENTS), timeout=120))
    assert [outcomes[-1] for outcomes in visits] == [SERVED] * CLIENTS


def all_rows_are_there(daemon: Daemon, lake: Lake) -> None:
    asyncio.run(drain(daemon))
    senders = [number for number in range(CLIENTS) if number % 3 < 2]
    found = lake.query(f"SELECT _cdc_source, count(*) FROM iceberg_scan('{lake.metadata_location('ledger')}') GROUP BY ALL")
    assert sorted(found) == sorted((f"client-{number}", 1) for number in senders)


@pytest.mark.acceptance("AT-102")
def test_clients_that_come_before_the_daemon_is_up_are_served_or_told_when(tmp_path: Path) -> None:
    with Daemon(tmp_path / "data") as daemon, Lake(daemon.data) as lake:
        daemon.start(wait=False)
        ports = wait_until(lambda: both(daemon), lambda: f"the supervisor's sockets\n{daemon.tail()}")
        assert not (daemon.data / "ready.json").exists()
        everybody_comes(f"ws://127.0.0.1:{ports[0]}/cdc", f"http://127.0.0.1:{ports[1]}")
        daemon.wait_ready()
        all_rows_are_there(daemon, lake)


def both(daemon: Daemon) -> list[int]:
    ports = listening_ports(daemon.supervisor)
    return ports if len(ports) == 2 else []


@pytest.mark.acceptance("AT-102")
def test_clients_that_come_while_every_process_is_replaced_are_served_or_told_when(tmp_path: Path) -> None:
    with Daemon(tmp_path / "data") as daemon, Lake(daemon.data) as lake:
        ready = daemon.start().wait_ready()
        daemon.kill("ingest", "writer", "http")
        everybody_comes(ready.cdc, ready.http)
        daemon.wait_replaced(ready, "ingest", "writer", "http")
        all_rows_are_there(daemon, lake)


@pytest.mark.acceptance("AT-102")
def test_clients_that_come_while_the_daemon_stops_are_refused_and_do_not_wait(tmp_path: Path) -> None:
    """The writer half is still flushing: what is over is over all the same."""
    held = tmp_path / "held"
    with Daemon(tmp_path / "data", {"DOLAKE_FAILPOINTS": f"flush.before_commit=pause({held})"}) as daemon:
        ready = daemon.start().wait_ready()
        assert over_http(ready.http, 1) == SERVED
        held.touch()
        with ThreadPoolExecutor(1) as pool:
            stopping = pool.submit(daemon.stop)
            wait_until(lambda: not is_running(ready.pids["ingest"]), "the ingest half to end")
            wait_until(lambda: is_refused(ready.cdc), "the websocket port to be closed")
            assert over_http(ready.http, 2) == LATER
            assert is_running(ready.pids["writer"])
            held.unlink()
            assert stopping.result(60) == 0


def is_refused(cdc: str) -> bool:
    host, _, port = urlsplit(cdc).netloc.partition(":")
    try:
        socket.create_connection((host, int(port)), timeout=30).close()
    except ConnectionRefusedError:
        return True
    return False
