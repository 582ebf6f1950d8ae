"""Parked tables, and dropped ones, by the commands and under SIGKILLs: every acked event is in its table once, from two logs."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Callable
from pathlib import Path

from tests.harness.daemon import Daemon
from tests.harness.history import assert_lake_equals_oracle
from tests.harness.kills import TARGETS, Killer, percentile
from tests.harness.lake import Lake
from tests.harness.oracle import Oracle, ledger_event
from tests.harness.source import Source
from tests.harness.traffic import drain, url_of
from tests.harness.waiting import wait_until

TABLES = ("ledger", "other")


def settings(path: Path) -> dict[str, str]:
    """Two logs, and flushes all the time."""
    return {
        "DOLAKE_FLUSH_AGE_S": "0.2",
        "DOLAKE_LOG_SEGMENT_BYTES": "1 MiB",
        "DOLAKE_LOG_DIRECTORIES": f"{path / 'log-a'},{path / 'log-b'}",
    }


def test_tables_that_are_parked_and_brought_back_under_kills_have_every_row_once(
    tmp_path: Path, rounds: int, report: Callable[..., None]
) -> None:
    """Two sources into two tables each, in two logs; a table is parked or brought back, and something is killed, again and again."""
    chance = random.Random(11)
    oracle = Oracle(tmp_path / "journal")
    with Daemon(tmp_path / "data", settings(tmp_path)) as daemon, Lake(daemon.data) as lake:
        killer = Killer(daemon.start(), chance)
        sources = [Source(f"source-{number}", oracle) for number in range(2)]
        for source in sources:
            for table in TABLES:
                source.declare(table)
        stopping = False
        done: list[tuple[str, int]] = []

        async def feed(source: Source) -> None:
            number = 0
            while not stopping:
                if len(source.frames) - source.acked < source.window:
                    source.add([ledger_event(number + place, TABLES[(number + place) % 2]) for place in range(10)])
                    number += 10
                await asyncio.sleep(0.01)

        parked: set[str] = set()

        def change() -> None:
            """Of a command that a kill cuts off nobody knows what came: the next one finds out."""
            table = chance.choice(TABLES)
            what = "unpark" if table in parked else "park"
            code = daemon.run("tables", what, table).returncode
            done.append((what, code))
            if code in (0, 5):
                (parked.add if what == "park" else parked.discard)(table)

        async def scenario() -> None:
            nonlocal stopping
            loop = asyncio.get_running_loop()
            feeding = [loop.create_task(feed(source)) for source in sources]
            sending = [loop.create_task(source.deliver(url_of(daemon), until=lambda: stopping)) for source in sources]
            for roles in TARGETS * rounds:
                wanted = [(source, source.acked + chance.randrange(1, 40)) for source in sources]
                await asyncio.to_thread(
                    wait_until,
                    lambda wanted=wanted: all(source.acked >= least for source, least in wanted),
                    "traffic",
                )
                changing = loop.create_task(asyncio.to_thread(change))
                if chance.random() < 0.5:
                    await changing
                await asyncio.to_thread(killer.kill, roles)
                await changing
            stopping = True
            await asyncio.gather(*feeding, *sending)
            for table in TABLES:
                found = json.loads(daemon.run("tables", "--json").stdout)
                if any(one["table"] == f"default.{table}" and one["parked"] for one in found):
                    unparked = daemon.run("tables", "unpark", table)
                    assert unparked.returncode in (0, 5), unparked.stderr  # 5: it had only not been noticed that it was back.
            await drain(daemon)

        asyncio.run(scenario())
        assert_lake_equals_oracle(lake, oracle)
        found = json.loads(daemon.run("tables", "--json").stdout)
        assert [one["parked"] for one in found] == [None] * len(found)
        verified = daemon.run("verify")
        assert verified.returncode == 0, verified.stdout + verified.stderr
    assert {what for what, code in done if code == 0} == {"park", "unpark"}, done
    report(kills=len(killer.recoveries_s), commands=len(done), ready_again_s_p95=percentile(killer.recoveries_s, 95))
