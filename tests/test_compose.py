"""docker-compose.yml against what it starts: the command line, the settings, the scripts. No container is needed to be honest."""

from __future__ import annotations

import json
import re
import shlex
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import strictyaml

from dolake.cli import COMMANDS
from dolake.config import Settings, load_settings
from dolake.config.sources import setting_keys, variable_name
from dolake.metrics import METRICS
from e2e.services.monitoring import alert_expressions, dashboard_expressions
from tests.harness.daemon import Daemon

ROOT = Path(__file__).parent.parent
COMPOSE: dict[str, Any] = strictyaml.load((ROOT / "docker-compose.yml").read_text()).data
SERVICES: dict[str, Any] = COMPOSE["services"]
SCRIPTS = ROOT / "e2e" / "services"


def environment(service: str) -> dict[str, str]:
    """The service's environment, with what is not set taken from its own defaults."""
    return {name: re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", value) for name, value in SERVICES[service]["environment"].items()}


def dockerfile(service: str) -> list[tuple[str, str]]:
    """(instruction, rest) of the service's Dockerfile."""
    text = (ROOT / SERVICES[service]["build"]["dockerfile"]).read_text().replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [(line.split(" ", 1)[0], line.split(" ", 1)[1].strip()) for line in lines]


def last(service: str, instruction: str) -> str:
    return [rest for name, rest in dockerfile(service) if name == instruction][-1]


def test_the_daemon_is_started_by_a_command_that_exists() -> None:
    assert last("dolake", "ENTRYPOINT") == '["dolake"]'
    assert SERVICES["dolake"]["command"] == ["serve"]
    assert SERVICES["dolake"]["command"][0] in COMMANDS
    script = re.search(r'^\[project\.scripts\]\n(\w+) = "dolake\.cli:main"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert script is not None
    assert script[1] == "dolake"


def test_every_variable_is_a_setting_and_together_they_are_valid(tmp_path: Path) -> None:
    variables = environment("dolake")
    assert set(variables) <= {variable_name(key) for key, _ in setting_keys()}
    settings = load_settings(environment={**variables, "DOLAKE_DATA": str(tmp_path / "data")})
    assert settings.warehouse.uri == "s3://lake/warehouse"


def test_the_ports_are_the_defaults_and_those_the_images_name() -> None:
    defaults = {name: Settings.model_fields[name].default for name in ("port", "http_port")}
    variables = environment("dolake")
    assert (int(variables["DOLAKE_PORT"]), int(variables["DOLAKE_HTTP_PORT"])) == (defaults["port"], defaults["http_port"])
    assert last("dolake", "EXPOSE").split() == [str(defaults["port"]), str(defaults["http_port"])]
    assert SERVICES["dolake"]["network_mode"] == "host"  # Loopback in a network of its own would reach nobody.
    (published,) = SERVICES["s3"]["ports"]
    assert published == f"127.0.0.1:{last('s3', 'EXPOSE')}:9000"
    assert variables["DOLAKE_S3_ENDPOINT"] == "http://127.0.0.1:9000"
    assert SERVICES["s3"]["command"][0].endswith(":9000")
    (published,) = SERVICES["postgres"]["ports"]
    assert published == f"127.0.0.1:{last('postgres', 'EXPOSE')}:5432"
    assert SERVICES["postgres"]["command"][0] == "0.0.0.0:5432"
    (published,) = SERVICES["source"]["ports"]
    assert SERVICES["source"]["command"][0] == f"0.0.0.0:{published.rsplit(':', 1)[1]}"
    assert SERVICES["prometheus"]["command"][0] == f"127.0.0.1:{last('prometheus', 'EXPOSE')}"
    assert SERVICES["prometheus"]["network_mode"] == SERVICES["grafana"]["network_mode"] == "host"


def test_the_volumes_are_where_the_processes_write_and_all_of_them_are_declared() -> None:
    commands = [(service, SERVICES[service]["command"][1]) for service in ("s3", "postgres", "source", "prometheus")]
    for service, directory in (("dolake", environment("dolake")["DOLAKE_DATA"]), *commands):
        (mount,) = SERVICES[service]["volumes"]
        volume, place = mount.split(":")
        assert place == directory == last(service, "VOLUME")
        assert volume in COMPOSE["volumes"]


def test_both_sides_use_the_same_keys_and_bucket() -> None:
    daemon, store = environment("dolake"), environment("s3")
    assert (daemon["DOLAKE_S3_ACCESS_KEY"], daemon["DOLAKE_S3_SECRET_KEY"]) == (store["ROOT_ACCESS_KEY"], store["ROOT_SECRET_KEY"])
    assert daemon["DOLAKE_WAREHOUSE_URI"].startswith(f"s3://{SERVICES['s3']['command'][2]}/")


def test_the_catalog_is_the_database_beside_it() -> None:
    uri = urlsplit(environment("dolake")["DOLAKE_CATALOG_URI"])
    address, _, database = SERVICES["postgres"]["command"]
    assert (uri.scheme, uri.hostname, uri.port, uri.path) == ("postgresql", "127.0.0.1", int(address.split(":")[1]), f"/{database}")
    script = (SCRIPTS / "run_postgres.sh").read_text()
    assert "run_postgres.sh ADDRESS:PORT DIRECTORY DATABASE [OPTION...]" in script
    assert f"-U {uri.username} " in script
    assert uri.password == environment("postgres")["POSTGRES_PASSWORD"]
    kind, *check = SERVICES["postgres"]["healthcheck"]["test"]
    said = {f"--host={uri.hostname}", f"--port={uri.port}", f"--dbname={database}", f"--username={uri.username}"}
    assert (kind, check[0], set(check[1:])) == ("CMD", "pg_isready", said)


def test_the_source_is_followed_into_the_daemon() -> None:
    address, _, database, *options = SERVICES["source"]["command"]
    assert options == ["-c", "wal_level=logical"]  # Or nothing could be decoded.
    wanted = {
        "PGHOST": "127.0.0.1", "PGPORT": address.split(":")[1], "PGDATABASE": database, "PGUSER": "lake",
        "PGPASSWORD": environment("source")["POSTGRES_PASSWORD"],
    }  # fmt: skip
    assert environment("load") == environment("follower") == wanted
    assert SERVICES["load"]["entrypoint"] == ["/usr/local/bin/load_postgres.sh"]
    assert "e2e/services/load_postgres.sh" in dict(dockerfile("load"))["COPY"]
    assert last("follower", "ENTRYPOINT") == '["/usr/local/bin/follow_postgres.sh"]'
    source, *sending = SERVICES["follower"]["command"]
    assert (source, sending) == ("shop-database", ["--to", f"ws://127.0.0.1:{environment('dolake')['DOLAKE_PORT']}/cdc"])
    assert {SERVICES[name]["network_mode"] for name in ("load", "follower")} == {"host"}
    kind, *check = SERVICES["source"]["healthcheck"]["test"]
    assert (kind, set(check[1:])) == (
        "CMD", {"--host=127.0.0.1", f"--port={address.split(':')[1]}", f"--dbname={database}", "--username=lake"}
    )  # fmt: skip


def test_prometheus_scrapes_the_daemon_and_grafana_asks_prometheus() -> None:
    address, _, configuration = SERVICES["prometheus"]["command"]
    assert "run_prometheus.sh ADDRESS:PORT DIRECTORY CONFIGURATION" in (SCRIPTS / "run_prometheus.sh").read_text()
    (copied,) = [rest.split() for name, rest in dockerfile("prometheus") if name == "COPY" and "run_" not in rest]
    assert configuration == f"{copied[1]}/prometheus.yml"
    scraped: Any = strictyaml.load((SCRIPTS / "prometheus" / "prometheus.yml").read_text()).data
    (job,) = scraped["scrape_configs"]
    assert job["static_configs"] == [{"targets": [f"127.0.0.1:{environment('dolake')['DOLAKE_HTTP_PORT']}"]}]
    assert all((SCRIPTS / "prometheus" / file).exists() for file in scraped["rule_files"])
    mounts = {place: ROOT / source for source, place, *_ in (mount.split(":") for mount in SERVICES["grafana"]["volumes"])}
    provisioning, dashboards = mounts["/etc/grafana/provisioning"], mounts["/etc/grafana/dashboards"]
    (source,) = loaded(provisioning / "datasources" / "prometheus.yml")["datasources"]
    assert source["url"] == f"http://{address}"
    (provider,) = loaded(provisioning / "dashboards" / "dolake.yml")["providers"]
    assert provider["options"]["path"] == "/etc/grafana/dashboards"
    home = SERVICES["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    dashboard = json.loads((dashboards / Path(home).name).read_text())
    assert {panel["datasource"]["uid"] for panel in dashboard["panels"]} == {source["uid"]}


def loaded(path: Path) -> Any:
    return strictyaml.load(path.read_text()).data


def test_dashboard_and_alerts_ask_for_metrics_that_exist() -> None:
    for expression in (*dashboard_expressions(), *alert_expressions()):
        named = set(re.findall(r"\bdolake_\w+", expression))
        assert named, expression
        for name in named:
            of = METRICS[name.removesuffix("_bucket")]  # A KeyError names the one that does not exist.
            assert name.endswith("_bucket") == (of.kind == "histogram"), f"{expression}: {name} is a {of.kind}"
            grouped = [label for by in re.findall(r"by \(([^)]*)\)", expression) for label in by.split(", ")]
            assert set(grouped) <= {*of.labels, "instance", "le"}, f"{expression}: {name} has {of.labels}"


@pytest.mark.parametrize("service", ["dolake", "s3", "postgres", "source", "load", "follower", "prometheus"])
def test_nothing_runs_as_root_and_everything_copied_is_there(service: str) -> None:
    assert last(service, "USER") not in ("root", "0")
    for name, rest in dockerfile(service):
        if name == "COPY" and not rest.startswith("--from"):
            *sources, _ = rest.split()
            assert all((ROOT / source).exists() for source in sources), rest
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    for name, rest in dockerfile(service):
        if name == "COPY" and not rest.startswith("--from"):
            assert all(any(f"!{source}".startswith(line) for line in ignored if line.startswith("!")) for source in rest.split()[:-1]), rest


def test_the_store_is_run_by_the_script_of_the_end_to_end_tests() -> None:
    assert last("s3", "ENTRYPOINT") == '["/usr/local/bin/run_s3.sh"]'
    usage = (SCRIPTS / "run_s3.sh").read_text()
    assert "run_s3.sh ADDRESS DIRECTORY [BUCKET...]" in usage
    assert all(f"${{{name}:?" in usage for name in environment("s3"))
    versions = dict(line.split("=") for line in (SCRIPTS / "versions.env").read_text().splitlines() if not line.startswith("#"))
    assert dockerfile("s3")[0] == ("FROM", f"golang:{versions['GO_VERSION_MIN']}-bookworm AS build")


def check(service: str, port: int, instead: str) -> int:
    """Runs the service's health check on this machine, at another port."""
    kind, *command = SERVICES[service]["healthcheck"]["test"]
    assert kind == "CMD"
    command = [sys.executable if part == "python" else part.replace(instead, str(port)) for part in command]
    return subprocess.run(command, capture_output=True, timeout=30, check=False).returncode


def test_the_daemon_s_health_check_tells_ready_from_gone(tmp_path: Path) -> None:
    with Daemon(tmp_path / "data") as daemon:
        port = int(daemon.start().wait_ready().http.rsplit(":", 1)[1].strip("/"))
        assert check("dolake", port, "8181") == 0
        assert daemon.stop() == 0
        assert check("dolake", port, "8181") != 0


@pytest.fixture
def answering() -> Iterator[tuple[int, list[bytes]]]:
    """A port that answers one request with what is in the list."""
    answers: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                request = b""
                while not request.endswith(b"\r\n\r\n") and (piece := connection.recv(4096)):
                    request += piece
                connection.sendall(
                    answers[0] if request.startswith(b"GET /health HTTP/1.0\r\n\r\n") else b"HTTP/1.0 400 Bad Request\r\n\r\n"
                )

        thread = threading.Thread(target=serve)
        thread.start()
        yield server.getsockname()[1], answers
        thread.join(30)


@pytest.mark.parametrize(("answer", "code"), [(b"HTTP/1.0 200 OK\r\n\r\nOK", 0), (b"HTTP/1.0 503 Service Unavailable\r\n\r\n", 1)])
def test_the_store_s_health_check_asks_as_run_s3_says(answering: tuple[int, list[bytes]], answer: bytes, code: int) -> None:
    port, answers = answering
    answers.append(answer)
    assert "--health /health" in (SCRIPTS / "run_s3.sh").read_text()
    assert check("s3", port, "9000") == code


def test_the_scripts_are_valid_shell() -> None:
    for script in SCRIPTS.glob("*.sh"):
        assert subprocess.run(["sh", "-n", script], check=False).returncode == 0, shlex.quote(str(script))
