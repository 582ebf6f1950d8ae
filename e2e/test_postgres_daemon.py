"""A daemon whose catalog is in PostgreSQL: the shop's stream, kills, and a database that restarts and dies in the middle."""

from __future__ import annotations

import asyncio
import random
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from e2e.services.postgres import PostgresServer
from e2e.services.s3 import S3Server
from tests.harness.daemon import Daemon, clean_environment, dolake_command
from tests.harness.history import assert_lake_equals_oracle
from tests.harness.kills import TARGETS, Killer
from tests.harness.lake import Lake
from tests.harness.oracle import Oracle
from tests.harness.shop_lake import assert_mirrors_are_the_database
from tests.harness.traffic import drain, steady_traffic
from tests.harness.waiting import wait_until
from tests.shop import STREAM


@pytest.fixture
def server() -> Iterator[PostgresServer]:
    """One of this test's own, which it may kill."""
    with PostgresServer() as server:
        yield server


def settings_at(uri: str, **more: str) -> dict[str, str]:
    return {"DOLAKE_CATALOG_URI": uri, "DOLAKE_FLUSH_AGE_S": "0.2", "DOLAKE_LOG_SEGMENT_BYTES": "1 MiB", **more}


def assert_verified(daemon: Daemon) -> None:
    done = daemon.run("verify")
    assert done.returncode == 0, done.stdout + done.stderr


def send_shop(daemon: Daemon, url: str, batch_events: str) -> None:
    command = [*dolake_command(), "send", str(STREAM), "--to", url, "--source", "shop", "--format", "wal2json"]
    command += ["--wait", "persisted", "--batch-events", batch_events]
    done = subprocess.run(command, env=clean_environment(), capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr + daemon.tail()


def test_the_shop_stream_in_a_bucket_and_a_shared_catalog_is_the_database_as_it_was(
    tmp_path: Path, postgres: PostgresServer, s3_server: S3Server
) -> None:
    """Every command follows the setting, nothing is left in a file of its own, and the password is nowhere to be seen."""
    uri = postgres.create("shop")
    settings = {**s3_server.settings(prefix="shared"), **settings_at(uri)}
    with Daemon(tmp_path / "data", settings, mode="both") as daemon, Lake(daemon.data, settings) as lake:
        before = daemon.run("tables", "--json")
        assert before.returncode == 0, before.stderr
        url = daemon.start().wait_ready().cdc
        for batch_events in ("1000", "700"):  # The same file again, cut otherwise, changes nothing.
            send_shop(daemon, url, batch_events)
            assert_mirrors_are_the_database(lake)
        listed = daemon.run("tables", "--json")
        assert "public.orders" in listed.stdout
        counted = daemon.run("query", 'SELECT count(*) AS rows FROM public."orders__changes"', "--json")
        assert counted.stdout.replace(" ", "").replace("\n", "") == '[{"rows":22876}]', counted.stderr
        assert_verified(daemon)
        dropped = daemon.run("tables", "drop", "public.customers", "--yes")
        assert dropped.returncode == 0, dropped.stderr
        assert lake.metadata_location("public.customers") is None
        assert daemon.stop() == 0
        assert postgres.password not in daemon.tail(1 << 20)
        assert not (daemon.data / "catalog.db").exists()


@pytest.mark.acceptance("AT-01")
def test_kills_of_the_halves_and_of_the_database_lose_and_repeat_nothing(
    tmp_path: Path, server: PostgresServer, rounds: int, report: Callable[..., None]
) -> None:
    """The database restarts in the middle of commits, or is killed and started again, between kills of every part of the daemon."""
    chance = random.Random(6)
    oracle = Oracle(tmp_path / "journal")
    settings = settings_at(server.create("lake"))
    with Daemon(tmp_path / "data", settings) as daemon, Lake(daemon.data, settings) as lake:
        killer = Killer(daemon.start(), chance)

        def restart() -> None:
            server.restart_immediately()

        def kill_and_start() -> None:
            server.kill()
            server.start()

        async def scenario() -> None:
            async with steady_traffic(daemon, oracle) as traffic:

                async def some_traffic() -> None:
                    acked = traffic.source.acked + chance.randrange(5, 60)
                    await asyncio.to_thread(wait_until, lambda: traffic.source.acked >= acked, "acks, whatever the database does")

                for number, roles in enumerate(TARGETS * rounds):
                    await some_traffic()
                    await asyncio.to_thread(killer.kill, roles)
                    await some_traffic()
                    await asyncio.to_thread(restart if number % 2 else kill_and_start)
            await drain(daemon, 120)

        asyncio.run(scenario())
        assert_lake_equals_oracle(lake, oracle)
        assert_verified(daemon)
        report(kills=len(TARGETS) * rounds, rows=lake.row_count("ledger"))
        assert server.password not in daemon.tail(1 << 20)


def test_without_its_database_a_daemon_acks_says_so_and_goes_on_alone(tmp_path: Path, server: PostgresServer) -> None:
    oracle = Oracle(tmp_path / "journal")
    settings = settings_at(server.create("lake"))
    with Daemon(tmp_path / "data", settings) as daemon, Lake(daemon.data, settings) as lake:
        daemon.start()

        async def scenario() -> None:
            async with steady_traffic(daemon, oracle) as traffic:
                await asyncio.to_thread(wait_until, lambda: lake.row_count("ledger") > 0, "a first commit")
                server.kill()
                acked = traffic.source.acked + 50
                await asyncio.to_thread(wait_until, lambda: traffic.source.acked >= acked, "acks without the catalog")
                refused = await asyncio.to_thread(daemon.run, "tables", "--json")
                assert refused.returncode == 3, refused.stdout + refused.stderr
                assert "postgresql://lake:***@127.0.0.1" in refused.stderr
                await asyncio.to_thread(server.start)
            await drain(daemon, 120)

        asyncio.run(scenario())
        assert_lake_equals_oracle(lake, oracle)
        assert daemon.stop() == 0
        # And a daemon that finds no database when it starts comes up once there is one.
        server.kill()
        daemon.start(wait=False)
        wait_until(lambda: "postgresql://lake:***@127.0.0.1" in daemon.tail(), "the daemon to name the catalog")
        server.start()
        daemon.wait_ready()
        assert_verified(daemon)


def test_two_daemons_share_one_database(tmp_path: Path, server: PostgresServer) -> None:
    """Both open it while it is empty; each has catalogs, and tables, of its own."""
    uri = server.create("lake")
    oracles = [Oracle(tmp_path / "journal-0"), Oracle(tmp_path / "journal-1")]
    named = [settings_at(uri, DOLAKE_CATALOG_NAME="one"), settings_at(uri, DOLAKE_CATALOG_NAME="two")]
    with Daemon(tmp_path / "0", named[0]) as one, Daemon(tmp_path / "1", named[1]) as two:
        one.start(wait=False)
        two.start(wait=False)
        for daemon in (one, two):
            daemon.wait_ready()

        async def scenario() -> None:
            async with steady_traffic(one, oracles[0]) as first, steady_traffic(two, oracles[1]) as second:
                for traffic in (first, second):
                    await asyncio.to_thread(wait_until, lambda traffic=traffic: traffic.source.acked >= 30, "acks")
            await drain(one, 120)
            await drain(two, 120)

        asyncio.run(scenario())
        for daemon, oracle in zip((one, two), oracles, strict=True):
            assert_verified(daemon)
            counted = daemon.run("query", "SELECT count(*) AS rows FROM ledger", "--json")
            assert f'"rows":{len(oracle.as_arrow("ledger"))}' in counted.stdout.replace(" ", ""), counted.stdout + counted.stderr
