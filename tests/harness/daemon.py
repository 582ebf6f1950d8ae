"""`dolake serve` as a user starts it: a subprocess, killed and started again.

Nothing of the product is imported here; what it knows of the daemon is what a user can know: the command line, the
environment, `ready.json`, HTTP and signals.
"""

from __future__ import annotations

import json
import os
import re
import signal
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.harness.waiting import wait_until

HALVES = ("ingest", "writer")


@dataclass(frozen=True)
class Ready:
    """What `ready.json` says."""

    cdc: str
    http: str
    pids: Mapping[str, int]


def dolake_command() -> list[str]:
    """The console script that belongs to this interpreter."""
    return [str(Path(sys.executable).with_name("dolake"))]


def clean_environment(settings: Mapping[str, str] | None = None) -> dict[str, str]:
    """This process's environment without anything that would set dolake or an S3 client, then `settings`."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("DOLAKE_", "AWS_"))}
    return {**kept, **(settings or {})}


def is_running(pid: int) -> bool:
    """Whether a process runs: a zombie does not."""
    try:
        state = re.search(r"^State:\s+(\S)", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state is not None and state[1] not in "ZX"


def started_at(pid: int) -> str:
    """When a process started, in the kernel's ticks; empty if there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (FileNotFoundError, ProcessLookupError):
        return ""


def children_of(parent: int) -> list[int]:
    """Processes whose parent this is, now."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if int(fields[1]) == parent:
                found.append(int(entry.name))
    return found


class Daemon:
    """One data directory and whatever runs over it. A context manager: leaving it ends every process."""

    def __init__(
        self,
        data: Path,
        settings: Mapping[str, str] | None = None,
        *,
        mode: str | None = "changelog",
        table_settings: str = "",
        port: int = 0,
        files_max: int | None = None,
        spare: bool = False,
    ) -> None:
        """`settings` are environment variables (`DOLAKE_FLUSH_AGE_S`); `table_settings` is TOML, for `[tables."…"]`.

        `mode` is that of every table for which `table_settings` says nothing more specific than `*.*`; None leaves it to the daemon's
        own default, as a user has it who sets nothing. Both are written to `dolake.toml`, over what another Daemon left there.

        `spare`: whether files are rewritten in time to spare, as a user has it who sets nothing. Who looks at files and snapshots would
        find others whenever the machine is slow.

        A `port` other than 0 stays the same when the whole daemon is started again. `files_max` is the system's hard limit of open
        files, for each process.
        """
        self.data = data
        self.port = port
        self.files_max = files_max
        self.settings = {**({} if spare else {"DOLAKE_COMPACTION_SPARE_SHARE": "0"}), **(settings or {})}
        self.output = data.parent / f"{data.name}.output"
        self.tls: ssl.SSLContext | None = None  # What to trust, and show, where the daemon speaks TLS.
        self._process: subprocess.Popen[bytes] | None = None
        self._known: dict[int, str] = {}  # pid → when it started: a number may belong to somebody else later
        data.mkdir(parents=True, exist_ok=True)
        said = [table_settings, "" if mode is None else f'[tables."*.*"]\nmode = "{mode}"\n']
        (data / "dolake.toml").write_text("\n".join(part for part in said if part), encoding="utf-8")

    def start(self, *arguments: str, wait: bool = True) -> Daemon:
        """Starts `dolake serve` on free ports and waits until it can ack."""
        command = [*dolake_command(), "serve", "--data", str(self.data), "--port", str(self.port), "--http-port", "0", *arguments]
        if self.files_max is not None:
            command = ["/bin/sh", "-c", 'ulimit -n "$0" && exec "$@"', str(self.files_max), *command]
        with open(self.output, "ab") as output:
            self._process = subprocess.Popen(
                command, env=clean_environment(self.settings), stdin=subprocess.DEVNULL, stdout=output, stderr=output
            )
        if wait:
            self.wait_ready()
        return self

    @property
    def supervisor(self) -> int:
        assert self._process is not None, "the daemon was not started"
        return self._process.pid

    def ready(self) -> Ready | None:
        """What `ready.json` says now; None while there is none of a daemon that lives."""
        try:
            content = json.loads((self.data / "ready.json").read_bytes())
        except (FileNotFoundError, ValueError):
            return None
        pids = {role: pid for role, pid in content["pids"].items() if pid}
        self._known.update({pid: since for pid in pids.values() if (since := started_at(pid))})
        return Ready(content["cdc"], content["http"], pids)

    def wait_ready(self, deadline_s: float = 60.0, *, roles: tuple[str, ...] = HALVES) -> Ready:
        """Until `ready.json` names living processes and HTTP says that the daemon can ack (and commit, if the writer is asked for)."""
        return wait_until(lambda: self._ready_with(roles), lambda: f"the daemon over {self.data} to be ready\n{self.tail()}", deadline_s)

    def _ready_with(self, roles: tuple[str, ...]) -> Ready | None:
        assert self._process is None or self._process.poll() is None, f"dolake ended with {self._process.poll()}:\n{self.tail()}"
        ready = self.ready()
        if ready is None or not all(is_running(ready.pids.get(role, 0)) for role in roles):
            return None
        paths = ["/ready"] if "writer" not in roles else ["/ready", "/ready/writer"]
        return ready if all(status(ready.http + path, tls=self.tls) == 200 for path in paths) else None

    def kill(self, *roles: str) -> None:
        """SIGKILL to `ingest`, `writer`, `http`, `supervisor`, or to all of them; returns when they are gone."""
        ready = self.ready()
        pids = {role: pid for role, pid in (ready.pids if ready else {}).items() if started_at(pid) == self._known.get(pid, "")}
        if self._process is not None:
            pids["supervisor"] = self._process.pid
        if roles:
            self.kill_pids([pids[role] for role in roles if role in pids])
        else:
            self.kill_pids(list({*pids.values(), *self._spares()}))

    def _spares(self) -> list[int]:
        """Every other child of the supervisor: processes that wait to take a killed one's place."""
        if self._process is None:
            return []
        pids = children_of(self._process.pid)
        self._known.update({pid: since for pid in pids if (since := started_at(pid))})
        return pids

    def kill_pids(self, pids: list[int]) -> None:
        for pid in pids:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        if self._process is not None and self._process.pid in pids:
            self._process.wait(30)
            self._process = None
        wait_until(lambda: not any(is_running(pid) for pid in pids), f"the killed processes {pids} to end")

    def wait_replaced(self, killed: Ready, *roles: str, deadline_s: float = 60.0) -> float:
        """Until other processes serve in the `roles` than those of `killed`, and are ready. Returns how long that took, in seconds."""
        started = time.monotonic()

        def replaced() -> bool:
            now = self._ready_with(HALVES)
            return now is not None and all(now.pids[role] != killed.pids[role] for role in roles)

        wait_until(replaced, lambda: f"{roles} to be replaced and ready\n{self.tail()}", deadline_s)
        return time.monotonic() - started

    def wait_children_gone(self, killed: Ready, deadline_s: float = 30.0) -> None:
        """After the supervisor was killed alone: its children end by themselves."""
        wait_until(
            lambda: not any(is_running(pid) for pid in killed.pids.values()), "the children to end with their supervisor", deadline_s
        )

    def reload(self) -> None:
        """SIGHUP to the supervisor; returns when it has said what came of it."""
        before = self._reload_count()
        os.kill(self.supervisor, signal.SIGHUP)
        wait_until(lambda: self._reload_count() > before, lambda: f"the reload\n{self.tail()}")

    def _reload_count(self) -> int:
        return self.output.read_bytes().count(b'"reload')

    def stop(self, deadline_s: float = 60.0) -> int:
        """SIGTERM; returns the exit code."""
        assert self._process is not None, "the daemon was not started"
        self._spares()
        self._process.send_signal(signal.SIGTERM)
        code = self._process.wait(deadline_s)
        self._process = None
        return code

    def tail(self, size_bytes: int = 4000) -> str:
        """The end of what the daemon printed."""
        try:
            return self.output.read_bytes()[-size_bytes:].decode(errors="replace")
        except FileNotFoundError:
            return ""

    def run(self, *arguments: str, deadline_s: float = 60.0) -> subprocess.CompletedProcess[str]:
        """Another `dolake` command with the daemon's settings and data directory (`--data` added last)."""
        command = [*dolake_command(), *arguments, "--data", str(self.data)]
        return subprocess.run(
            command, env=clean_environment(self.settings), capture_output=True, text=True, timeout=deadline_s, check=False
        )

    def metrics(self, token: str = "") -> dict[str, float]:
        """Every sample of `/metrics`, by its name with labels as printed."""
        ready = self.ready()
        assert ready is not None
        with urllib.request.urlopen(request(ready.http + "/metrics", token), timeout=10, context=self.tls) as answer:
            text = answer.read().decode()
        samples = (line.rsplit(" ", 1) for line in text.splitlines() if line and not line.startswith("#"))
        return {name: float(value) for name, value in samples}

    def metrics_text(self) -> str:
        """`/metrics` as it is."""
        ready = self.ready()
        assert ready is not None
        with urllib.request.urlopen(ready.http + "/metrics", timeout=10) as answer:
            text: str = answer.read().decode()
        return text

    def rss_bytes(self, role: str) -> int:
        """Resident memory of one half now; 0 if it does not run."""
        ready = self.ready()
        return rss_bytes(ready.pids[role]) if ready and role in ready.pids else 0

    def __enter__(self) -> Daemon:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        wait_until(
            lambda: not any(is_running(pid) and started_at(pid) == since for pid, since in self._known.items()), "all processes to end"
        )


def request(url: str, token: str = "") -> urllib.request.Request:
    return urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"} if token else {})


def status(url: str, token: str = "", tls: ssl.SSLContext | None = None) -> int:
    """The HTTP status of a GET; 0 when nobody answers."""
    try:
        with urllib.request.urlopen(request(url, token), timeout=5, context=tls) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code
    except OSError:
        return 0


def said(url: str) -> tuple[int, dict[str, Any], str | None]:
    """(status, body, Retry-After) of a GET."""
    try:
        with urllib.request.urlopen(url, timeout=30) as answer:
            return answer.status, json.loads(answer.read()), answer.headers["Retry-After"]
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.loads(error.read()), error.headers["Retry-After"]


def rss_bytes(pid: int) -> int:
    """Resident memory of a process without file pages that others share; 0 if it is gone."""
    try:
        match = re.search(r"^RssAnon:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return int(match[1]) * 1024 if match else 0


def listening_ports(pid: int) -> list[int]:
    """The TCP ports on which a process listens, in the order it opened them: where a daemon is before it says so."""
    listening = {}
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[3] == "0A":
            listening[fields[9]] = int(fields[1].rpartition(":")[2], 16)
    ports = []
    for descriptor in sorted(Path(f"/proc/{pid}/fd").iterdir(), key=lambda path: int(path.name)):
        try:
            match = re.fullmatch(r"socket:\[(\d+)\]", os.readlink(descriptor))
        except FileNotFoundError:
            continue
        if match and match[1] in listening:
            ports.append(listening[match[1]])
    return ports
