"""dolake over a real S3-compatible store: the same tables, what it says when the store refuses, and a store that vanishes."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from e2e.services.s3 import S3Server
from tests.harness.daemon import HALVES, Daemon, clean_environment, dolake_command, status
from tests.harness.fault_proxy import TcpProxy
from tests.harness.history import assert_lake_equals_oracle
from tests.harness.lake import Lake
from tests.harness.oracle import Oracle, ledger_event
from tests.harness.ports import free_port
from tests.harness.shop_lake import assert_shop_is_complete
from tests.harness.source import Source
from tests.harness.traffic import drain, steady_traffic, url_of
from tests.harness.waiting import wait_until, wait_until_async
from tests.shop import STREAM

MIB = 1 << 20


def test_the_shop_stream_in_s3_is_the_database_as_it_was(tmp_path: Path, s3_server: S3Server) -> None:
    settings = {**s3_server.settings(prefix="shop"), "DOLAKE_FLUSH_AGE_S": "1"}
    with Daemon(tmp_path / "data", settings) as daemon, Lake(daemon.data, settings) as lake:
        ready = daemon.start().wait_ready()
        for batch_events in ("1000", "700"):  # The same file again, cut otherwise, changes nothing.
            command = [*dolake_command(), "send", str(STREAM), "--to", ready.cdc, "--source", "shop", "--format", "wal2json"]
            command += ["--wait", "persisted", "--batch-events", batch_events]
            done = subprocess.run(command, env=clean_environment(), capture_output=True, text=True, timeout=300, check=False)
            assert done.returncode == 0, done.stdout + done.stderr + daemon.tail()
            assert_shop_is_complete(lake)
        done = daemon.run("query", "SELECT count(*) AS rows FROM public.orders", "--json")
        assert done.returncode == 0, done.stderr
        assert done.stdout.replace(" ", "").replace("\n", "") == '[{"rows":22876}]'
        done = daemon.run("verify")
        assert done.returncode == 0, done.stdout + done.stderr
        assert daemon.stop() == 0


def refused(data: Path, settings: dict[str, str]) -> str:
    """What the writer says when its warehouse refuses it at the start; it ends with the code for unreachable."""
    command = [*dolake_command(), "writer", "--data", str(data)]
    done = subprocess.run(command, env=clean_environment(settings), capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 3, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"DOLAKE_WAREHOUSE_URI": "s3://nobody-made-it/x"}, ["nobody-made-it", "does not exist", "warehouse.uri"]),
        ({"DOLAKE_S3_ACCESS_KEY": "AKnobody"}, ["does not know the access key", "s3.access_key"]),
        ({"DOLAKE_S3_SECRET_KEY": "not-the-secret"}, ["secret key", "s3.secret_key"]),
    ],
)
def test_a_store_that_refuses_is_named_with_the_setting_to_correct(
    tmp_path: Path, s3_server: S3Server, wrong: dict[str, str], words: list[str]
) -> None:
    settings = {**s3_server.settings(), **wrong}
    said = refused(tmp_path / "data", settings)
    assert all(word in said for word in [*words, s3_server.endpoint]), said
    assert s3_server.secret_key not in said
    assert settings["DOLAKE_S3_SECRET_KEY"] not in said


def test_an_endpoint_where_nobody_answers_is_named(tmp_path: Path, s3_server: S3Server) -> None:
    endpoint = f"http://127.0.0.1:{free_port()}"
    said = refused(tmp_path / "data", {**s3_server.settings(), "DOLAKE_S3_ENDPOINT": endpoint})
    assert endpoint in said, said
    assert "cannot be reached" in said, said


def test_the_whole_daemon_says_it_too_and_goes_on_when_the_store_is_mended(tmp_path: Path, s3_server: S3Server) -> None:
    with TcpProxy(s3_server.port) as proxy:
        proxy.refuse()
        settings = {**s3_server.settings(prefix="mended"), "DOLAKE_S3_ENDPOINT": f"http://127.0.0.1:{proxy.port}"}
        with Daemon(tmp_path / "data", settings) as daemon:
            daemon.start(wait=False)
            wait_until(lambda: settings["DOLAKE_S3_ENDPOINT"] in daemon.tail(), "the daemon to name the endpoint")
            proxy.heal()
            daemon.wait_ready()


def test_a_store_that_is_killed_and_comes_back_misses_nothing(tmp_path: Path) -> None:
    """Acks go on while it is away; what they promised is in the tables once it is back."""
    oracle = Oracle(tmp_path / "journal")
    with S3Server(tmp_path / "s3") as server:
        settings = {**server.settings(), "DOLAKE_FLUSH_AGE_S": "0.2"}
        with Daemon(tmp_path / "data", settings) as daemon, Lake(daemon.data, settings) as lake:
            daemon.start()

            async def scenario() -> None:
                async with steady_traffic(daemon, oracle) as traffic:
                    for _ in range(3):
                        acked = traffic.source.acked + 50
                        await asyncio.to_thread(wait_until, lambda acked=acked: traffic.source.acked >= acked, "acks with the store")
                        server.kill()
                        acked = traffic.source.acked + 50
                        await asyncio.to_thread(wait_until, lambda acked=acked: traffic.source.acked >= acked, "acks without the store")
                        await asyncio.to_thread(server.start)
                await drain(daemon, 120)

            asyncio.run(scenario())
            assert_lake_equals_oracle(lake, oracle)
            done = daemon.run("verify")
            assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.acceptance("AT-09")
def test_a_store_that_vanishes_pushes_back_and_loses_nothing(tmp_path: Path, s3_server: S3Server, report: Callable[..., None]) -> None:
    """200 MiB against a backlog of 64 MiB while the store does not answer: `buffer_full`, bounded memory, no connection lost."""
    oracle = Oracle(tmp_path / "journal")
    with TcpProxy(s3_server.port) as proxy:
        settings = {
            **s3_server.settings(prefix="vanishing"),
            "DOLAKE_S3_ENDPOINT": f"http://127.0.0.1:{proxy.port}",
            "DOLAKE_LOG_BACKLOG_BYTES": "64 MiB",
            "DOLAKE_LOG_SEGMENT_BYTES": "8 MiB",
            "DOLAKE_FLUSH_AGE_S": "1",
            "DOLAKE_FLUSH_BYTES": "8 MiB",
            "DOLAKE_FLUSH_MEMORY_BYTES": "64 MiB",
        }
        with Daemon(tmp_path / "data", settings) as daemon, Lake(daemon.data, settings) as lake:
            daemon.start()
            source = Source("s", oracle, window=8).declare("ledger").add([ledger_event(0)])
            asyncio.run(asyncio.wait_for(source.deliver(url_of(daemon)), 60))
            asyncio.run(drain(daemon))
            baseline = {role: daemon.rss_bytes(role) for role in HALVES}
            size, sequence = 0, 1
            while size < 200 * MIB:
                source.add([ledger_event(sequence + place, note_size=2500) for place in range(200)])
                size, sequence = size + len(source.frames[-1][1]), sequence + 200
            proxy.block()
            highest = asyncio.run(asyncio.wait_for(through_the_outage(daemon, source, proxy), 300))
            assert_lake_equals_oracle(lake, oracle)
        reasons = {nack["reason"] for nack in source.nacks}
        assert "buffer_full" in reasons
        assert reasons <= {"buffer_full", "invalid_sequence"}  # the latter: what was in flight behind the first one refused
        assert all(nack["shouldRetry"] and nack["retryDelayMs"] > 0 for nack in source.nacks if nack["reason"] == "buffer_full")
        assert source.closes == []
        assert source.connection_count == 2
        grown = {role: highest[role] - baseline[role] for role in HALVES}
        assert all(size <= (64 + 128) * MIB for size in grown.values()), grown
        report(nacks=len(source.nacks), **{f"{role}_rss_grown_mib": round(size / MIB) for role, size in grown.items()})


async def through_the_outage(daemon: Daemon, source: Source, proxy: TcpProxy) -> dict[str, int]:
    """Feeds until the backlog is full, heals the store, and waits until all is committed. The highest memory of each half."""
    highest = dict.fromkeys(HALVES, 0)

    async def watch() -> None:
        while True:
            for role in HALVES:
                highest[role] = max(highest[role], daemon.rss_bytes(role))
            await asyncio.sleep(0.05)

    watching = asyncio.get_running_loop().create_task(watch())
    sending = asyncio.get_running_loop().create_task(source.deliver(url_of(daemon)))
    full = lambda: sum(nack["reason"] == "buffer_full" for nack in source.nacks) >= 3  # noqa: E731
    await wait_until_async(lambda: full() or sending.done(), "the backlog to be full", 120)
    assert not sending.done(), "everything was taken while the store was away"
    acked = source.acked
    assert 0 < acked < len(source.frames)
    ready = daemon.ready()
    assert ready is not None
    assert await asyncio.to_thread(status, ready.http + "/health") == 200
    proxy.heal()
    await sending
    await drain(daemon, 120)
    watching.cancel()
    return highest
