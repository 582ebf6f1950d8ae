"""The ingest process's own function, in this process, with real sockets and the producer library."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from dolake.cdc.client import Producer
from dolake.clock import real_runtime
from dolake.control import ask_once
from dolake.errors import DaemonUnreachable, LogRefused
from dolake.ingest.main import run_ingest
from tests.cdc.samples import CONNECT, batch, frame, raw_events
from tests.ingest.rig import ingest_settings


class Running:
    def __init__(self, directory: Path, **sections: Any) -> None:
        self.settings = ingest_settings(directory, **sections)
        self.listen = socket.socket()
        self.listen.bind(("127.0.0.1", 0))
        self.listen.listen()
        self.url = f"ws://127.0.0.1:{self.listen.getsockname()[1]}/cdc"
        self.stop = asyncio.Event()
        self._ready = asyncio.Event()
        self.task = asyncio.create_task(run_ingest(self.settings, listen=self.listen, ready=self._ready.set, stop=self.stop))

    async def ready(self) -> None:
        waiting = asyncio.create_task(self._ready.wait())
        await asyncio.wait([waiting, self.task], return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        if self.task.done():
            self.task.result()


@contextlib.asynccontextmanager
async def running(directory: Path, **sections: Any) -> AsyncIterator[Running]:
    here = Running(directory, **sections)
    try:
        async with asyncio.timeout(40):
            await here.ready()
            yield here
            here.stop.set()
            assert await here.task == 0
    finally:
        here.task.cancel()
        await asyncio.gather(here.task, return_exceptions=True)
        here.listen.close()


def test_a_producer_sends_to_it_and_it_answers_over_the_control_socket(tmp_path):
    async def scene() -> None:
        async with running(tmp_path) as here:
            async with Producer(here.url, "orders-db-3") as producer:
                for number in range(20):
                    await producer.send(raw_events(number * 100, 100))
                await producer.drain()
                assert (await producer.flush())["success"] is False
            runtime = real_runtime()
            ready = await ask_once(here.settings.control_path, "ready", runtime=runtime)
            assert ready["ready"] is True
            metrics = await ask_once(here.settings.control_path, "metrics", runtime=runtime)
            assert metrics["metrics"]["ingest"]["dolake_cdc_events_total"] == [[[], 2000]]
        with pytest.raises(DaemonUnreachable):
            await ask_once(here.settings.control_path, "ready", runtime=runtime)
        async with running(tmp_path) as here, Producer(here.url, "orders-db-3") as producer:
            assert (producer.last_sequence, producer.last_event_sequence) == (19, 1999)

    asyncio.run(scene())


def test_stopping_lets_connected_clients_have_their_answers_and_says_goodbye(tmp_path):
    async def scene() -> None:
        async with running(tmp_path) as here, connect(here.url, compression=None, proxy=None) as client:
            await client.send(frame(CONNECT).decode())
            await client.recv()
            for number in range(30):
                await client.send(frame(batch(number)).decode())
            here.stop.set()
            answers = [answer async for answer in client]
            assert len(answers) in range(31)
            assert client.close_code == 1001
            assert await here.task == 0

    asyncio.run(scene())


def test_a_frame_far_above_the_limit_closes_its_connection_and_no_other(tmp_path):
    async def scene() -> None:
        async with running(tmp_path, limits={"payload_bytes": 4096, "event_bytes": 1024}) as here:
            other, client = Producer(here.url, "another"), connect(here.url, compression=None, proxy=None)
            async with other, client as socket_:
                await socket_.send(frame(CONNECT).decode())
                await socket_.recv()
                await socket_.send("x" * 4 * 4096)
                assert "payload_too_large" in str(await socket_.recv())
                await socket_.send("x" * (4 * 4096 + 1))
                with pytest.raises(ConnectionClosed):
                    await socket_.recv()
                assert socket_.close_code == 1009
                await other.send(raw_events(0, 5))
                await other.drain()

    asyncio.run(scene())


def test_a_second_one_on_the_same_log_is_refused(tmp_path):
    async def scene() -> None:
        async with running(tmp_path):
            second = Running(tmp_path)
            with pytest.raises(LogRefused, match="another dolake uses this log"):
                await second.ready()
            second.listen.close()

    asyncio.run(scene())
