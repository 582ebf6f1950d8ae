"""The supervisor: three processes kept running, one address, and an orderly end.

The children here are small programs of their own that speak the supervisor's channel as the real halves do; what the real
ones do together is tested with whole daemons.
"""

from __future__ import annotations

import asyncio
import datetime
import json
import os
import pty
import signal
import socket
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from dolake.clock import real_runtime
from dolake.config import Settings, load_settings
from dolake.config.access import TokenSettings
from dolake.daemon.handover import Handover
from dolake.daemon.listening import address_of, bind
from dolake.daemon.plan import Death, End, Restart, plan_restart, restart_delay_s
from dolake.daemon.ready import ReadyFile
from dolake.daemon.supervisor import Supervisor, child_command
from dolake.errors import ConfigurationError
from tests.harness.access import grant, new_token
from tests.harness.daemon import Daemon, is_running, status
from tests.harness.waiting import wait_until

# A child that reads its settings, says that it is ready, and notes in DIR/events what happens to it. What it does after
# that is in DIR/ROLE.code, and it can be another thing in each life.
CHILD = textwrap.dedent(
    """
    import json, os, signal, socket, sys
    role, channel = sys.argv[1], socket.socket(fileno=int(sys.argv[2]))
    with open(os.path.join(os.path.dirname(sys.argv[0]), "born"), "a") as births:
        births.write(f"{role} {os.getpid()}\\n")
    lines = channel.makefile("rb", buffering=65536)
    try:
        line = lines.readline()
    except ConnectionResetError:
        line = b""
    if not line:
        sys.exit(3)
    settings = json.loads(json.loads(line)["settings"])
    data = settings["data"]

    def note(what):
        with open(os.path.join(data, "events"), "a") as events:
            events.write(f"{role} {what}\\n")

    def stop(*_):
        note("stopped")
        sys.exit(0)

    signal.signal(signal.SIGTERM, stop)
    note("knows " + ",".join(settings["tokens"]))
    note("started")
    code = os.path.join(data, role + ".code")
    if os.path.exists(code):
        exec(open(code).read())
    channel.send(b"ready\\n")
    try:
        for line in lines:
            said = json.loads(line)
            note("hears " + ("a refusal" if "refused" in said else ",".join(json.loads(said["settings"])["tokens"])))
    except ConnectionResetError:  # The supervisor died before it read our word.
        pass
    note("orphaned")
    """
)


class Stage:
    """A supervisor over stand-in children, in a directory of its own."""

    def __init__(self, data: Path) -> None:
        self.data = data
        data.mkdir(exist_ok=True)
        (data / "child.py").write_text(CHILD)
        self.settings: Settings = load_settings({"data": str(data), "port": 0, "http_port": 0}, environment={})
        self.listeners = {"ingest": bind(self.settings, key="port"), "http": bind(self.settings, key="http_port")}
        self.loaded: list[Settings] = []  # What each reload finds.
        self.supervisor = Supervisor(
            Handover(self.settings), self.listeners, real_runtime(), load=lambda: self.loaded.pop(0), command=self.command
        )

    def command(self, role: str, descriptors: Sequence[int]) -> list[str]:
        return [sys.executable, str(self.data / "child.py"), role, *map(str, descriptors)]

    def behave(self, role: str, code: str) -> None:
        (self.data / f"{role}.code").write_text(code)

    def events(self) -> list[str]:
        path = self.data / "events"
        return path.read_text().splitlines() if path.exists() else []

    def births(self, role: str) -> list[int]:
        """Processes started for this role, spares included, in order."""
        lines = (self.data / "born").read_text().splitlines()
        return [int(line.split()[1]) for line in lines if line.startswith(f"{role} ")]

    def pids(self) -> dict[str, int]:
        try:
            content: dict[str, Any] = json.loads((self.data / "ready.json").read_text())
        except FileNotFoundError:
            return {}
        return dict(content["pids"])

    async def until(self, holds: Callable[[], bool]) -> None:
        async with asyncio.timeout(20):
            while not holds():  # noqa: ASYNC110 - what is waited for happens in other processes
                await asyncio.sleep(0.005)

    def play(self, scenario: Callable[[Stage, asyncio.Task[int]], Any]) -> int:
        async def run() -> int:
            running = asyncio.create_task(self.supervisor.run())
            await scenario(self, running)
            return await running

        try:
            return asyncio.run(run())
        finally:
            for listener in self.listeners.values():
                listener.close()


def test_all_three_start_and_are_stopped_in_order(tmp_path: Path) -> None:
    async def scenario(stage: Stage, running: asyncio.Task[int]) -> None:
        await stage.until(lambda: bool(stage.pids()))
        content = json.loads((tmp_path / "ready.json").read_text())
        assert set(content) == {"cdc", "http", "pids"}
        assert content["cdc"] == f"ws://{address_of(stage.listeners['ingest'])}/cdc"
        assert content["http"] == f"http://{address_of(stage.listeners['http'])}"
        assert set(content["pids"]) == {"ingest", "writer", "http"}
        for pid in content["pids"].values():
            os.kill(pid, 0)
        stage.supervisor.interrupt()

    stage = Stage(tmp_path)
    assert stage.play(scenario) == 0
    assert stage.events()[-3:] == ["ingest stopped", "writer stopped", "http stopped"]
    assert not (tmp_path / "ready.json").exists()


def with_tokens(stage: Stage, *names: str) -> Settings:
    """Settings with these tokens, as a reload finds them."""
    return stage.settings.model_copy(
        update={"tokens": {name: TokenSettings.model_validate(grant(new_token(), read=True)) for name in names}}
    )


@pytest.mark.acceptance("AT-98")
def test_a_reload_reaches_who_lets_people_in_and_whoever_starts_later(tmp_path: Path) -> None:
    async def scenario(stage: Stage, running: asyncio.Task[int]) -> None:
        await stage.until(lambda: bool(stage.pids()))
        stage.loaded = [with_tokens(stage, "one"), with_tokens(stage), with_tokens(stage, "one", "two")]
        for news in ("one", "a refusal", "one,two"):
            stage.supervisor.reload()
            await stage.until(lambda: {f"{role} hears {news}" for role in ("ingest", "http")} <= set(stage.events()))  # noqa: B023
        assert not [event for event in stage.events() if event.startswith("writer hears")]
        for role in ("ingest", "http", "writer"):
            os.kill(stage.pids()[role], signal.SIGKILL)
            known = "" if role == "writer" else "one,two"
            await stage.until(lambda: stage.events()[-2:] == [f"{role} knows {known}", f"{role} started"])  # noqa: B023
        stage.supervisor.interrupt()

    stage = Stage(tmp_path)
    assert stage.play(scenario) == 0


def test_reloads_that_come_at_once_end_with_what_is_there_last(tmp_path: Path) -> None:
    async def scenario(stage: Stage, running: asyncio.Task[int]) -> None:
        stage.loaded = [with_tokens(stage, "one"), with_tokens(stage, "one", "two")]
        stage.supervisor.reload()  # Also before anybody is there to be told.
        stage.supervisor.reload()
        await stage.until(lambda: bool(stage.pids()))
        stage.supervisor.reload()
        await stage.until(lambda: not stage.loaded)
        os.kill(stage.pids()["ingest"], signal.SIGKILL)
        await stage.until(lambda: stage.events()[-2:] == ["ingest knows one,two", "ingest started"])
        stage.supervisor.interrupt()

    assert Stage(tmp_path).play(scenario) == 0


@pytest.mark.parametrize("role", ["ingest", "writer", "http"])
def test_a_killed_child_comes_back_with_the_same_addresses(tmp_path: Path, role: str) -> None:
    async def scenario(stage: Stage, running: asyncio.Task[int]) -> None:
        await stage.until(lambda: bool(stage.pids()))
        before = json.loads((tmp_path / "ready.json").read_text())
        os.kill(before["pids"][role], signal.SIGKILL)
        await stage.until(lambda: stage.pids()[role] != before["pids"][role])
        after = json.loads((tmp_path / "ready.json").read_text())
        assert (after["cdc"], after["http"]) == (before["cdc"], before["http"])
        others = {"ingest", "writer", "http"} - {role}
        assert {other: after["pids"][other] for other in others} == {other: before["pids"][other] for other in others}
        await stage.until(lambda: stage.events().count(f"{role} started") == 2)
        stage.supervisor.interrupt()

    assert Stage(tmp_path).play(scenario) == 0


def test_a_connection_made_while_the_child_is_down_waits_for_the_next_one(tmp_path: Path) -> None:
    stage = Stage(tmp_path)
    accept = "listener = socket.socket(fileno=int(sys.argv[3])); channel.send(b'ready\\n'); listener.setblocking(True); "
    stage.behave("ingest", accept + "link, _ = listener.accept(); link.sendall(str(os.getpid()).encode()); link.close()")

    def greeting() -> bytes:
        with socket.create_connection(stage.listeners["ingest"].getsockname()[:2], timeout=20) as link:
            return link.recv(100)

    async def scenario(stage: Stage, running: asyncio.Task[int]) -> None:
        await stage.until(lambda: bool(stage.pids()))
        first = await asyncio.to_thread(greeting)
        os.kill(int(first), signal.SIGKILL)
        assert int(await asyncio.to_thread(greeting)) != int(first)
        stage.supervisor.interrupt()

    stage.play(scenario)


@pytest.mark.parametrize("code", [2, 4, 5])
def test_an_ingest_half_that_a_restart_cannot_mend_ends_the_daemon_with_its_code(tmp_path: Path, code: int) -> None:
    async def scenario(stage: Stage, running: asyncio.Task[int]) -> None:
        await stage.until(lambda: bool(stage.pids()))
        stage.behave("ingest", f"sys.exit({code})")
        os.kill(stage.pids()["ingest"], signal.SIGKILL)
        await asyncio.wait([running], timeout=20)
        assert running.done()

    stage = Stage(tmp_path)
    assert stage.play(scenario) == code
    assert "writer stopped" in stage.events(), "the writer half must still flush what the log holds"
    assert not (tmp_path / "ready.json").exists()


def has_ended(pid: int) -> bool:
    """And its parent knows."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def test_a_writer_half_that_fails_later_leaves_the_ingest_half_alone(tmp_path: Path) -> None:
    async def scenario(stage: Stage, running: asyncio.Task[int]) -> None:
        await stage.until(lambda: bool(stage.pids()))
        pids = stage.pids()
        stage.behave("writer", "sys.exit(5)")
        os.kill(pids["writer"], signal.SIGKILL)
        await stage.until(lambda: stage.pids()["writer"] != pids["writer"])
        second = stage.pids()["writer"]
        await stage.until(lambda: has_ended(second))
        assert stage.pids()["ingest"] == pids["ingest"]
        assert not running.done()
        stage.supervisor.interrupt()

    assert Stage(tmp_path).play(scenario) == 6


def test_a_writer_half_that_was_never_ready_ends_the_daemon_with_its_words(tmp_path: Path) -> None:
    async def scenario(stage: Stage, running: asyncio.Task[int]) -> None:
        await asyncio.wait([running], timeout=20)

    stage = Stage(tmp_path)
    stage.behave("writer", "sys.exit(4)")
    assert stage.play(scenario) == 4


def test_a_child_that_keeps_failing_is_not_tried_for_ever_before_the_daemon_was_ever_ready(tmp_path: Path) -> None:
    async def scenario(stage: Stage, running: asyncio.Task[int]) -> None:
        await asyncio.wait([running], timeout=20)

    stage = Stage(tmp_path)
    stage.behave("http", "sys.exit(1)")
    assert stage.play(scenario) == 1
    assert stage.events().count("http started") == 5


def test_a_stale_ready_file_is_gone_before_anything_is_ready(tmp_path: Path) -> None:
    async def scenario(stage: Stage, running: asyncio.Task[int]) -> None:
        await stage.until(lambda: "ingest started" in stage.events())
        assert not (tmp_path / "ready.json").exists()
        (tmp_path / "hold").unlink()
        await stage.until(lambda: bool(stage.pids()))
        stage.supervisor.interrupt()

    stage = Stage(tmp_path)
    (tmp_path / "ready.json").write_text('{"pids": {"ingest": 1}}')
    (tmp_path / "hold").touch()
    stage.behave("writer", "import time\nwhile os.path.exists(os.path.join(data, 'hold')): time.sleep(0.01)")
    assert stage.play(scenario) == 0


def test_a_drain_that_a_child_spoils_is_told_by_the_exit_code(tmp_path: Path) -> None:
    async def scenario(stage: Stage, running: asyncio.Task[int]) -> None:
        await stage.until(lambda: bool(stage.pids()))
        stage.supervisor.interrupt()

    stage = Stage(tmp_path)
    stage.behave("writer", "signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))")
    assert stage.play(scenario) == 6


def test_a_writer_stopped_before_it_could_flush_what_the_one_before_had_taken_is_told_by_the_exit_code(tmp_path: Path) -> None:
    async def scenario(stage: Stage, running: asyncio.Task[int]) -> None:
        await stage.until(lambda: bool(stage.pids()))
        stage.behave("writer", "signal.signal(signal.SIGTERM, signal.SIG_DFL); note('hangs'); signal.pause()")
        os.kill(stage.pids()["writer"], signal.SIGKILL)
        await stage.until(lambda: "writer hangs" in stage.events())
        stage.supervisor.interrupt()

    assert Stage(tmp_path).play(scenario) == 6


@pytest.mark.parametrize("role", ["ingest", "writer"])
def test_a_killed_half_is_replaced_by_the_spare_that_was_waiting(tmp_path: Path, role: str) -> None:
    async def scenario(stage: Stage, running: asyncio.Task[int]) -> None:
        await stage.until(lambda: bool(stage.pids()))
        before = stage.pids()[role]
        await stage.until(lambda: len(stage.births(role)) == 2)
        spare = stage.births(role)[-1]
        os.kill(before, signal.SIGKILL)
        await stage.until(lambda: stage.pids()[role] != before)
        assert stage.pids()[role] == spare
        await stage.until(lambda: len(stage.births(role)) == 3)
        stage.supervisor.interrupt()

    stage = Stage(tmp_path)
    assert stage.play(scenario) == 0
    for pid in [*stage.births("ingest"), *stage.births("writer")]:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_a_spare_that_has_died_is_not_relied_upon(tmp_path: Path) -> None:
    async def scenario(stage: Stage, running: asyncio.Task[int]) -> None:
        await stage.until(lambda: bool(stage.pids()) and len(stage.births("writer")) == 2)
        before = stage.pids()["writer"]
        os.kill(stage.births("writer")[-1], signal.SIGKILL)
        os.kill(before, signal.SIGKILL)
        await stage.until(lambda: stage.events().count("writer started") == 2)
        assert stage.pids()["writer"] not in stage.births("writer")[:2]
        stage.supervisor.interrupt()

    assert Stage(tmp_path).play(scenario) == 0


def test_children_end_with_their_supervisor(tmp_path: Path) -> None:
    """The supervisor is a process of its own here, and killed."""
    program = textwrap.dedent(
        f"""
        import sys
        sys.path.insert(0, {str(Path(__file__).parents[1])!r})
        from pathlib import Path
        from tests.test_daemon import Stage
        async def wait(stage, running):
            await running
        Stage(Path({str(tmp_path / "d")!r})).play(wait)
        """
    )
    process = subprocess.Popen([sys.executable, "-c", program])
    events = tmp_path / "d" / "events"

    async def wait_for(lines: set[str]) -> None:
        async with asyncio.timeout(20):
            while not events.exists() or not lines <= set(events.read_text().splitlines()):  # noqa: ASYNC110 - as above
                await asyncio.sleep(0.01)

    try:
        asyncio.run(wait_for({"ingest started", "writer started", "http started"}))
        process.send_signal(signal.SIGKILL)
        asyncio.run(wait_for({"ingest orphaned", "writer orphaned", "http orphaned"}))
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("role", ["ingest", "writer", "http"])
def test_a_real_child_ends_when_its_channel_closes_before_it_has_settings(role: str) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        child = subprocess.Popen(child_command(role, [theirs.fileno()]), pass_fds=[theirs.fileno()])
        theirs.close()
        ours.close()
        assert child.wait(30) == 3


# --- the real thing


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    with Daemon(tmp_path / "lake") as running:
        yield running


@pytest.mark.acceptance("AT-101")
def test_a_daemon_serves_says_where_and_stops_clean(daemon: Daemon) -> None:
    ready = daemon.start().ready()
    assert ready is not None
    assert {status(ready.http + path) for path in ("/health", "/ready", "/ready/writer", "/metrics")} == {200}
    assert daemon.metrics()['dolake_process_up_count{process="writer"}'] == 1
    assert daemon.stop() == 0
    assert not (daemon.data / "ready.json").exists()
    assert not (daemon.data / "control.sock").exists()
    assert not any(is_running(pid) for pid in ready.pids.values())


def test_a_second_daemon_on_the_same_directory_is_refused_and_disturbs_nothing(daemon: Daemon) -> None:
    before = daemon.start().ready()
    second = daemon.run("serve", "--port", "0", "--http-port", "0")
    assert second.returncode == 5
    assert "another `dolake serve` runs on this directory" in second.stderr
    assert daemon.ready() == before
    assert before is not None
    assert status(before.http + "/ready") == 200


def test_a_killed_daemon_starts_again_over_what_it_left(daemon: Daemon) -> None:
    killed = daemon.start().ready()
    assert killed is not None
    daemon.kill("supervisor")
    daemon.wait_children_gone(killed)
    assert (daemon.data / "ready.json").exists()
    assert daemon.start().ready() != killed
    assert daemon.stop() == 0


def test_the_second_interrupt_ends_everything_at_once(daemon: Daemon) -> None:
    ready = daemon.start().ready()
    assert ready is not None
    os.kill(ready.pids["writer"], signal.SIGSTOP)  # It cannot drain now.
    os.kill(daemon.supervisor, signal.SIGINT)
    wait_until(lambda: not is_running(ready.pids["ingest"]), "the ingest half to end")
    assert daemon.stop() == 130
    wait_until(lambda: not any(is_running(pid) for pid in ready.pids.values()), "every child to end")


# --- log lines

LOGGING = """
import logging, sys
import structlog
from dolake.daemon.diagnostics import configure_logging
configure_logging("writer"{more})
log = structlog.get_logger("dolake.test")
log.debug("whisper")
log.info("first", table="a.b", size_bytes=7, odd=object)
logging.getLogger("somebody").warning("careful: %s", "now")
logging.getLogger("somebody").info("chatter")
try:
    try:
        int("a row's value")
    except ValueError as error:
        raise OSError(5, "the disk") from error
except OSError:
    log.exception("broken")
"""


def logged(more: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", LOGGING.replace("{more}", more)], capture_output=True, text=True, timeout=60, check=True)


def test_log_lines_are_json_on_stderr_one_each_with_libraries_warnings_among_them() -> None:
    done = logged()
    assert done.stdout == ""
    first, warning, broken = [json.loads(line) for line in done.stderr.splitlines()]
    assert (first["event"], first["level"], first["process"], first["size_bytes"]) == ("first", "info", "writer", 7)
    assert (warning["event"], warning["level"]) == ("careful: now", "warning")
    for line in (first, warning, broken):
        assert datetime.datetime.fromisoformat(line["time"]).utcoffset() == datetime.timedelta(0)
        assert {"time", "level", "process", "pid", "event"} <= set(line)
    assert "OSError: [Errno 5] the disk" in broken["exception"]


def test_a_trace_says_where_and_what_but_never_quotes_what_may_be_a_row() -> None:
    broken = json.loads(logged().stderr.splitlines()[-1])
    assert "ValueError (its words may quote a row and are left out)" in broken["exception"]
    assert "a row's value" not in broken["exception"].replace('int("a row\'s value")', "")


@pytest.mark.parametrize(("level", "events"), [("debug", 4), ("info", 3), ("warning", 2), ("error", 1)])
def test_a_level_leaves_out_what_is_below_it(level: str, events: int) -> None:
    assert len(logged(f", level={level!r}").stderr.splitlines()) == events


def test_lines_for_people_name_the_process_and_have_no_colours_in_a_pipe() -> None:
    lines = logged(", format='console'").stderr.splitlines()
    assert "first" in lines[0]
    assert "process=writer" in lines[0]
    assert not any("\x1b" in line for line in lines)


def test_on_a_terminal_lines_are_for_people() -> None:
    ours, theirs = pty.openpty()
    try:
        subprocess.run([sys.executable, "-c", LOGGING.replace("{more}", "")], stderr=theirs, timeout=60, check=True)
        seen = os.read(ours, 65536).decode()
    finally:
        os.close(ours)
        os.close(theirs)
    assert "\x1b[" in seen
    assert '"event"' not in seen


def test_a_log_that_nobody_reads_ends_nothing() -> None:
    program = LOGGING.replace("{more}", "") + "print('alive')"
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stderr is not None
    process.stderr.close()
    output, _ = process.communicate(timeout=60)
    assert output == b"alive\n"


# --- what is decided

KILLED, CRASHED, CONFIGURATION, UNREACHABLE, CORRUPT, REFUSED = -9, 1, 2, 3, 4, 5


@pytest.mark.parametrize(
    ("death", "decision"),
    [
        (Death("ingest", KILLED, True, 1), Restart(0.0)),
        (Death("ingest", KILLED, True, 2), Restart(0.0)),
        (Death("ingest", KILLED, True, 3), Restart(0.1)),
        (Death("ingest", KILLED, True, 4), Restart(0.2)),
        (Death("ingest", KILLED, True, 100), Restart(5.0)),
        (Death("ingest", KILLED, False, 50), Restart(5.0)),
        (Death("ingest", CRASHED, True, 50), Restart(5.0)),
        (Death("ingest", CRASHED, False, 4), Restart(0.2)),
        (Death("ingest", CRASHED, False, 5), End(1, "it failed 5 times and was never ready")),
        (Death("writer", UNREACHABLE, False, 50), Restart(5.0)),
        (Death("ingest", CORRUPT, True, 1), End(4, "its data is corrupt: a restart cannot mend that")),
        (Death("ingest", REFUSED, False, 1), End(5, "it was refused: a restart cannot mend that")),
        (Death("writer", CONFIGURATION, False, 1), End(2, "its settings are wrong: a restart cannot mend that")),
        (Death("writer", CORRUPT, True, 1), Restart(30.0)),
        (Death("http", REFUSED, True, 7), Restart(30.0)),
        (Death("http", 0, True, 1), Restart(0.0)),
    ],
)
def test_what_follows_a_death(death: Death, decision: Restart | End) -> None:
    assert plan_restart(death) == decision


def test_delays_never_fall() -> None:
    delays = [restart_delay_s(count) for count in range(1, 200)]
    assert delays == sorted(delays)


# --- addresses and the ready file


def test_a_port_that_is_taken_or_an_address_of_others_is_a_configuration_mistake(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        settings = load_settings({"data": str(tmp_path), "port": taken.getsockname()[1]}, environment={})
        with pytest.raises(ConfigurationError, match=r"port: must be free on 127\.0\.0\.1: address already in use"):
            bind(settings, key="port")


def test_an_ipv6_address_is_bracketed(tmp_path: Path) -> None:
    settings = load_settings({"data": str(tmp_path), "port": 0, "host": "::1"}, environment={})
    with bind(settings, key="port") as listener:
        assert address_of(listener).startswith("[::1]:")


def test_the_ready_file_is_replaced_whole(tmp_path: Path) -> None:
    file = ReadyFile(str(tmp_path / "ready.json"), cdc="ws://a/cdc", http="http://a")
    file.write({"ingest": 1})
    with open(tmp_path / "ready.json") as older:
        file.write({"ingest": 2})
        assert json.load(older)["pids"] == {"ingest": 1}, "a reader of the older file must not see half of the newer one"
    assert json.loads((tmp_path / "ready.json").read_text())["pids"] == {"ingest": 2}
    file.remove()
    file.remove()
    assert os.listdir(tmp_path) == []
