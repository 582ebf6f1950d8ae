"""A real Prometheus for tests, with the configuration of docker-compose.yml, and what its alerts and Grafana's dashboard ask it."""

from __future__ import annotations

import json
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

import strictyaml

from tests.harness.ports import free_port
from tests.harness.waiting import wait_until

SCRIPTS = Path(__file__).parent


def dashboard_expressions() -> list[str]:
    """What the dashboard's panels show."""
    panels = json.loads((SCRIPTS / "grafana" / "dashboards" / "dolake.json").read_text())["panels"]
    return [target["expr"] for panel in panels for target in panel["targets"]]


def alert_expressions() -> list[str]:
    """When an alert is raised."""
    alerts: Any = strictyaml.load((SCRIPTS / "prometheus" / "alerts.yml").read_text()).data
    return [rule["expr"] for group in alerts["groups"] for rule in group["rules"]]


class Prometheus:
    """One server in `directory` that scrapes one daemon, and nothing else."""

    def __init__(self, directory: Path, scraped: str) -> None:
        """`scraped`: host:port of the daemon's HTTP address, in the place of the one that the configuration names."""
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        text = (SCRIPTS / "prometheus" / "prometheus.yml").read_text()
        (job,) = strictyaml.load(text).data["scrape_configs"]  # type: ignore[call-overload,index]
        ((named,),) = (static["targets"] for static in job["static_configs"])
        (directory / "prometheus.yml").write_text(text.replace(named, scraped).replace(": 5s", ": 1s"))
        (directory / "alerts.yml").write_text((SCRIPTS / "prometheus" / "alerts.yml").read_text())
        self._address = f"127.0.0.1:{free_port()}"
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Prometheus:
        command = [SCRIPTS / "run_prometheus.sh", self._address, self.directory / "data", self.directory / "prometheus.yml"]
        with open(self.directory / "prometheus.log", "ab") as log:
            self._process = subprocess.Popen(command, cwd=self.directory, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        wait_until(self._is_ready, lambda: f"Prometheus to be ready:\n{(self.directory / 'prometheus.log').read_text()[-2000:]}", 120)
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process is not None
        self._process.terminate()
        self._process.wait(30)

    def ask(self, expression: str) -> list[dict[str, Any]]:
        """Each series it answers with, now: `metric` has its labels, `value` the time and the value as text."""
        query = urllib.parse.urlencode({"query": expression})
        with urllib.request.urlopen(f"http://{self._address}/api/v1/query?{query}", timeout=10) as answer:
            found: list[dict[str, Any]] = json.load(answer)["data"]["result"]
        return found

    def alerts(self) -> dict[str, str]:
        """Every alert that is pending or firing, and which of both."""
        with urllib.request.urlopen(f"http://{self._address}/api/v1/alerts", timeout=10) as answer:
            return {alert["labels"]["alertname"]: alert["state"] for alert in json.load(answer)["data"]["alerts"]}

    def _is_ready(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, (self.directory / "prometheus.log").read_text()[-2000:]
        try:
            with urllib.request.urlopen(f"http://{self._address}/-/ready", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False
