"""docker-compose.yml's components as processes, from the settings that stand in it: a database's stream in, every table and metric out."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from e2e.engines import Engines
from e2e.services.monitoring import Prometheus, dashboard_expressions
from e2e.services.postgres import PostgresServer
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
            name: value.replace("127.0.0.1:9000", f"127.0.0.1:{s3.port}").replace("127.0.0.1:5432", f"127.0.0.1:{postgres.port}")
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


def assert_everything_is_shown(prometheus: Prometheus) -> None:
    events = "sum(dolake_table_events_total)"
    wait_until(lambda: [one["value"][1] for one in prometheus.ask(events)] == [str(shop.EVENT_COUNT)], "every event to be counted", 60)
    silent = [one for one in dashboard_expressions() if not prometheus.ask(one) and not any(name in one for name in MAY_BE_EMPTY)]
    assert silent == []
    assert prometheus.alerts() == {}


def test_the_alerts_and_the_configuration_are_what_prometheus_takes() -> None:
    scripts = Path(__file__).parent / "services"
    programs = Path(subprocess.run([scripts / "install_prometheus.sh"], check=True, capture_output=True, text=True).stdout.strip())
    done = subprocess.run(
        [programs / "promtool", "check", "config", "prometheus.yml"], cwd=scripts / "prometheus", capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "8 rules found" in done.stdout
