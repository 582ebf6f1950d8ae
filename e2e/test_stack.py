"""docker-compose.yml's components as processes, from the settings that stand in it: a database's stream in, every table and metric out."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest

from e2e.engines import Engines
from e2e.services.monitoring import Prometheus, dashboard_expressions
from e2e.services.postgres import SCRIPTS, PostgresServer
from e2e.services.s3 import S3Server
from e2e.services.spark import Spark
from tests import shop
from tests.harness.daemon import Daemon
from tests.harness.lake import Lake
from tests.harness.shop_lake import assert_mirrors_are_the_database
from tests.harness.waiting import wait_until
from tests.test_compose import SERVICES, environment

# Panels of what need not have happened: a refusal, a letter, a commit that came second or had to be looked up, a saved index.
MAY_BE_EMPTY = ("nacks", "dead_letters", "index_rows", "commit_conflicts", "commit_unknown")


@pytest.mark.acceptance("AT-77")
def test_the_stack_takes_a_database_s_stream_and_shows_it_to_everybody(tmp_path: Path, spark: Spark) -> None:
    store = environment("s3")
    s3 = S3Server(tmp_path / "s3", SERVICES["s3"]["command"][2:])
    s3.access_key, s3.secret_key = store["ROOT_ACCESS_KEY"], store["ROOT_SECRET_KEY"]
    database = SERVICES["postgres"]["command"][2]
    with s3, PostgresServer(database=database, password=environment("postgres")["POSTGRES_PASSWORD"]) as postgres:
        # The same settings; the ports are those that are free here.
        settings = {
            name: value.replace(address_of("s3"), f"127.0.0.1:{s3.port}").replace(address_of("postgres"), f"127.0.0.1:{postgres.port}")
            for name, value in environment("dolake").items()
            if name not in ("DOLAKE_DATA", "DOLAKE_PORT", "DOLAKE_HTTP_PORT")
        }
        assert settings["DOLAKE_CATALOG_URI"] == postgres.uri(database)
        with Daemon(tmp_path / "data", settings, mode=None) as daemon, Lake(daemon.data, settings) as lake:
            http = daemon.start().wait_ready().http
            with Prometheus(tmp_path / "prometheus", http.removeprefix("http://")) as prometheus:
                sent = daemon.run(
                    "send", str(shop.STREAM), "--source", "shop", "--format", "wal2json", "--wait", "persisted", deadline_s=300
                )
                assert sent.returncode == 0, sent.stdout + sent.stderr
                assert_mirrors_are_the_database(lake)
                with Engines(daemon, s3, spark) as engines:
                    for table in shop.KEYS:
                        row_count = len(shop.expected(table))
                        assert all(rows == [(row_count,)] for rows in engines.ask(f"SELECT count(*) FROM {{lake}}.public.{table}").values())
                assert_everything_is_shown(prometheus)
                daemon.kill("writer", "supervisor")
                # `for: 1m` keeps it pending: the rule has seen that nothing answers.
                wait_until(lambda: "ProcessDown" in prometheus.alerts(), lambda: f"an alert; there are {prometheus.alerts()}", 60)


def test_the_source_s_tables_are_the_daemon_s_while_it_is_under_load(tmp_path: Path) -> None:
    """As docker-compose.yml has source, load and follower; the ports are those that are free here."""
    _, _, database, *_ = SERVICES["source"]["command"]
    settings = {"wal_level": "logical"}
    with (
        PostgresServer(database=database, password=environment("source")["POSTGRES_PASSWORD"], settings=settings) as source,
        Daemon(tmp_path / "data", {"DOLAKE_FLUSH_AGE_S": "0.3"}, mode=None) as daemon,
        Lake(daemon.data) as lake,
    ):
        url = daemon.start().wait_ready().cdc
        followed = [url if part.startswith("ws:") else part for part in SERVICES["follower"]["command"]]
        programs = {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", "AGAIN_S": "0.1"}
        place = {**environment("load"), "PGPORT": str(source.port)}
        with running([SCRIPTS / "follow_postgres.sh", *followed], {**programs, **place}, tmp_path / "follower") as follower:
            wait_until(lambda: column(source, database, "SELECT slot_name FROM pg_replication_slots"), follower.said, 60)
            with running([SCRIPTS / "load_postgres.sh"], {**os.environ, **place}, tmp_path / "load") as load:
                wait_until(
                    lambda: lake.metadata_location("public.orders") is not None and lake.row_count("public.orders") > 100, load.said, 120
                )
            for table, columns in (("orders", "id, status, total"), ("order_lines", "order_id, line_no, quantity")):
                query = f"SELECT {columns} FROM {table} ORDER BY 1, 2"
                wanted = rows_of(source, database, query)

                def found(table: str = table, columns: str = columns) -> list[tuple[Any, ...]]:
                    location = lake.metadata_location(f"public.{table}")
                    return lake.query(f"SELECT {columns} FROM iceberg_scan('{location}') ORDER BY 1, 2")

                wait_until(lambda wanted=wanted, found=found: found() == wanted, lambda table=table: f"{table}\n{follower.said()}", 60)


@dataclass
class Running:
    """A process whose output goes to a file."""

    process: subprocess.Popen[bytes]
    output: Path

    def said(self) -> str:
        return f"{self.output.name}: {self.output.read_text()[-3000:]}"


@contextlib.contextmanager
def running(command: list[Any], settings: dict[str, str], output: Path) -> Iterator[Running]:
    with open(output, "ab") as log:
        process = subprocess.Popen(command, env=settings, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
    found = Running(process, output)
    try:
        yield found
        process.terminate()
        assert process.wait(60) == 0, found.said()
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def rows_of(server: PostgresServer, database: str, query: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(server.uri(database)) as connection:
        return connection.execute(query).fetchall()  # type: ignore[arg-type]


def column(server: PostgresServer, database: str, query: str) -> list[Any]:
    return [row[0] for row in rows_of(server, database, query)]


def address_of(service: str) -> str:
    """Where others find it, by docker-compose.yml."""
    (published,) = SERVICES[service]["ports"]
    return str(published).rsplit(":", 1)[0]


def assert_everything_is_shown(prometheus: Prometheus) -> None:
    events = "sum(dolake_table_events_total)"
    wait_until(lambda: [one["value"][1] for one in prometheus.ask(events)] == [str(shop.EVENT_COUNT)], "every event to be counted", 60)

    def silent() -> list[str]:
        return [one for one in dashboard_expressions() if not prometheus.ask(one) and not any(name in one for name in MAY_BE_EMPTY)]

    # A rate needs two scrapes, and what is above may be in the first.
    wait_until(lambda: not silent(), lambda: f"panels to show something: {silent()}", 60)
    assert prometheus.alerts() == {}


def test_the_alerts_and_the_configuration_are_what_prometheus_takes() -> None:
    scripts = Path(__file__).parent / "services"
    programs = Path(subprocess.run([scripts / "install_prometheus.sh"], check=True, capture_output=True, text=True).stdout.strip())
    done = subprocess.run(
        [programs / "promtool", "check", "config", "prometheus.yml"], cwd=scripts / "prometheus", capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "8 rules found" in done.stdout
