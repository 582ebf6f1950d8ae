"""Spark rewrites a mirror that a daemon is writing, because the daemon asks it to: a Connect server, and a session of the daemon's own."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from e2e.engines import Engines
from e2e.services.spark import Spark, install_spark
from tests.harness.daemon import Daemon
from tests.harness.oracle import Oracle
from tests.harness.ports import free_port
from tests.harness.source import Source
from tests.harness.traffic import Traffic, drain, steady_traffic, url_of
from tests.harness.waiting import wait_until
from tests.test_real_mirrors import by_key, event_of, folded

TABLE = "public.ledger"
FIRST_NEW_KEY = 1_000_000  # Above every key of the traffic that updates and deletes.
TRIES_MAX = 6
SETTINGS = """
[compaction]
enabled = false
engine = "spark"
spark_catalog = "lake"
inputs_min = 4
{how}

[compaction.spark]
"spark.sql.catalog.lake" = "org.apache.iceberg.spark.SparkCatalog"
"spark.sql.catalog.lake.type" = "rest"
"spark.sql.catalog.lake.uri" = "http://127.0.0.1:{port}"
{more}
"""


@pytest.fixture(scope="module")
def spark_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Spark]:
    """A running Spark that is a Connect server too."""
    with Spark(tmp_path_factory.mktemp("spark-connect"), free_port()) as spark:
        yield spark


@dataclass
class NewRows(Traffic):
    """Rows of keys that nobody has had: what is flushed deletes nothing."""

    def add_batch(self) -> None:
        first = self.event_count
        keys = range(first, first + self.batch_size)
        self.source.add([event_of("INSERT", FIRST_NEW_KEY + key, key, self.table) for key in keys])
        self.event_count += self.batch_size


def started(path: Path, spark: Spark, how: str) -> Daemon:
    """A daemon whose Python finds pyspark, as if it were installed beside it."""
    port, installed, connect = free_port(), install_spark(), install_spark("install_spark_connect.sh")
    packages = [*(installed / "venv" / "lib").glob("python3*/site-packages"), connect / "python"]
    path_of_packages = ":".join(filter(None, [os.environ.get("PYTHONPATH"), *map(str, packages)]))
    said = {"how": f'spark_remote = "sc://127.0.0.1:{spark.connect_port}"', "more": ""}
    if how == "a session of its own":
        jars = ",".join(map(str, sorted((installed / "jars").glob("*.jar"))))
        own = {"jars": jars, "local.dir": path / "scratch", "driver.memory": "1g", "driver.host": "127.0.0.1", "sql.shuffle.partitions": 2}
        said = {"how": 'spark_master = "local[2]"', "more": "\n".join(f'"spark.{name}" = "{value}"' for name, value in own.items())}
    settings = {"DOLAKE_FLUSH_AGE_S": "0.5", "PYTHONPATH": path_of_packages, "SPARK_LOCAL_IP": "127.0.0.1"}
    daemon = Daemon(path / "data", settings, mode=None, table_settings=SETTINGS.format(port=port, **said))
    return daemon.start("--http-port", str(port))


def compacted(daemon: Daemon) -> list[dict[str, Any]]:
    """What became of each call, when somebody asks for all that is worth it."""
    done = daemon.run("compact", TABLE, "--json", deadline_s=300)
    assert done.returncode in (0, 6), done.stderr
    runs: list[dict[str, Any]] = json.loads(done.stdout)["runs"]
    return runs


def files(engines: Engines) -> tuple[int, int]:
    inspected = engines.pyiceberg.load_table(TABLE).inspect
    return inspected.data_files().num_rows, inspected.delete_files().num_rows


@pytest.mark.parametrize("how", ["a server", "a session of its own"])
def test_spark_rewrites_what_is_being_written(tmp_path: Path, spark_server: Spark, how: str, report: Callable[..., None]) -> None:
    oracle = Oracle(tmp_path / "journal")
    with ExitStack() as open_:
        daemon = open_.enter_context(started(tmp_path, spark_server, how))
        engines = open_.enter_context(Engines(daemon, None, spark_server))
        counted: list[tuple[int, int]] = []
        refused: list[str] = []

        def is_told_why() -> bool:
            """Of a server a client hears the first sentence only: the rest is in its log. Now and then Spark gives up for conflicts."""
            said = refused if how != "a server" else [(spark_server.directory / "spark.log").read_text()]
            return bool(refused) and any("found new position delete for replaced data file" in one for one in said)

        async def scenario() -> None:
            async with steady_traffic(daemon, oracle, "before", table=TABLE, interval_s=0.05) as traffic:
                await asyncio.to_thread(wait_until, lambda: traffic.source.acked > 150, "rows that are updated and deleted")
                # Rows are deleted while Spark is at it: it does not commit, or they would be back.
                for _ in range(TRIES_MAX):
                    refused.extend(run["reason"] for run in await asyncio.to_thread(compacted, daemon) if run["state"] == "failed")
                    if is_told_why():
                        break
            await drain(daemon)
            adding = NewRows(Source("adding", oracle), url_of(daemon), table=TABLE, interval_s=0.05)
            running = asyncio.create_task(adding.run())
            await asyncio.to_thread(wait_until, lambda: adding.source.acked > 20, "new rows")
            counted.append(await asyncio.to_thread(files, engines))
            acked = adding.source.acked
            runs = await asyncio.to_thread(compacted, daemon)
            counted.append(await asyncio.to_thread(files, engines))
            assert adding.source.acked > acked
            adding.stop()
            await running
            assert [run["state"] for run in runs][:1] == ["done"], runs
            # What changes now is found where Spark has put it.
            async with steady_traffic(daemon, oracle, "after", table=TABLE, interval_s=0.02) as traffic:
                await asyncio.to_thread(wait_until, lambda: traffic.source.acked > 100, "rows that are updated and deleted again")
            await drain(daemon)

        asyncio.run(scenario())
        assert is_told_why(), refused
        (data_before, deletes_before), (data_after, deletes_after) = counted
        assert data_after < data_before / 2
        assert deletes_after <= deletes_before
        wanted = folded([event for batch in oracle.batches.values() for event in batch.events])
        assert by_key(engines.scan(TABLE)) == wanted
        rows = [tuple(wanted[key][name] for name in ("id", "account", "amount", "note", "at")) for key in sorted(wanted)]
        for engine, found in engines.ask(f"SELECT id, account, amount, note, l.at FROM {{lake}}.{TABLE} l ORDER BY id").items():
            assert found == rows, engine
        verified = daemon.run("verify", deadline_s=120)
        assert verified.returncode == 0, verified.stdout + verified.stderr
        report(rows=len(rows), before=counted[0], after=counted[1], refused=len(refused))
