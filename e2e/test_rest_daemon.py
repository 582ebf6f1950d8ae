"""A daemon whose catalog is a REST catalog in another process: kills of either, and a catalog that vanishes without a word."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.harness.daemon import Daemon
from tests.harness.fault_proxy import TcpProxy
from tests.harness.history import assert_lake_equals_oracle
from tests.harness.kills import TARGETS, Killer
from tests.harness.lake import Lake
from tests.harness.oracle import Oracle
from tests.harness.traffic import drain, steady_traffic
from tests.harness.waiting import wait_until


@pytest.mark.acceptance("AT-01")
def test_kills_of_the_daemon_and_of_its_catalog_lose_and_repeat_nothing(tmp_path: Path, rounds: int, report: Callable[..., None]) -> None:
    """The catalog is another daemon's, whose supervisor starts its HTTP process again."""
    chance = random.Random(7)
    oracle = Oracle(tmp_path / "journal")
    with Daemon(tmp_path / "catalog") as serving:
        serving.start()
        with TcpProxy(int(serving.wait_ready().http.rsplit(":", 1)[1])) as proxy:
            settings = {
                "DOLAKE_CATALOG_TYPE": "rest",
                "DOLAKE_CATALOG_PROPERTIES": json.dumps({"uri": f"http://127.0.0.1:{proxy.port}"}),
                "DOLAKE_WAREHOUSE_URI": f"file://{serving.data}/warehouse",
                "DOLAKE_FLUSH_AGE_S": "0.2",
            }
            with Daemon(tmp_path / "data", settings) as daemon, Lake(serving.data) as lake:
                assert daemon.run("tables", "--json").returncode == 0
                killer = Killer(daemon.start(), chance)

                async def scenario() -> None:
                    async with steady_traffic(daemon, oracle) as traffic:

                        async def some_traffic() -> None:
                            acked = traffic.source.acked + chance.randrange(5, 60)
                            await asyncio.to_thread(wait_until, lambda: traffic.source.acked >= acked, "acks, whatever the catalog does")

                        for roles in TARGETS * rounds:
                            await some_traffic()
                            await asyncio.to_thread(killer.kill, roles)
                            await some_traffic()
                            before = serving.wait_ready()
                            await asyncio.to_thread(serving.kill, "http")
                            await asyncio.to_thread(serving.wait_replaced, before, "http")
                        lost = proxy.lose_answers()
                        await some_traffic()
                        await asyncio.to_thread(wait_until, lambda: lost.hit_count, "an answer of the catalog to be lost")
                        proxy.heal()
                    await drain(daemon, 120)

                asyncio.run(scenario())
                assert_lake_equals_oracle(lake, oracle)
                for command in (("verify",), ("tables",), ("query", "SELECT count(*) FROM ledger")):
                    done = daemon.run(*command)
                    assert done.returncode == 0, done.stdout + done.stderr
                assert not (daemon.data / "catalog.db").exists()
                report(kills=2 * len(TARGETS) * rounds, rows=lake.row_count("ledger"))
