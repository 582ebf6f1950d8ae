"""The command line itself: what is found, what is refused, and that nothing of ours ever shows a traceback."""

from __future__ import annotations

import importlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from dolake.cli import COMMANDS, INTERRUPTED, run


def dolake(*arguments: str, **more: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(  # type: ignore[call-overload, no-any-return]
        [sys.executable, "-m", "dolake", *arguments], capture_output=True, text=True, timeout=60, check=False, **more
    )


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_an_app_and_explains_itself(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    module, _, attribute = COMMANDS[name].app.partition(":")
    assert isinstance(getattr(importlib.import_module(module), attribute), typer.Typer)
    assert run([name, "--help"]) == 0
    assert f"dolake {name}" in capsys.readouterr().out


def test_the_overview_lists_every_command_and_imports_none() -> None:
    program = "import sys; from dolake.cli import run; run(['--help']); print(sorted(m for m in sys.modules if m.startswith('dolake.')))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    *overview, loaded = done.stdout.splitlines()
    assert [name for name in COMMANDS if name not in "\n".join(overview)] == []
    assert loaded == "['dolake.cli', 'dolake.errors']"


def test_a_command_that_asks_the_daemon_imports_no_catalog() -> None:
    """Which takes two thirds of the time until it begins."""
    program = "import sys; import dolake.cli.lake; print([m for m in ('pyiceberg', 'sqlalchemy', 'pyarrow') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.acceptance("AT-107")
@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ([], 2, "see `dolake --help`"),
        (["nonsense"], 2, "No such command 'nonsense'; see `dolake --help`"),
        (["serve", "--prt", "1"], 2, "No such option: --prt"),
        (["serve", "--port", "x"], 2, "Invalid value for '--port'"),
        (["serve"], 2, "data: is required"),
        (["flush", "--data", "{here}"], 3, "no daemon answers"),
        (["flush", "a/b", "--data", "{here}"], 2, "TABLE: a table is `name` or `namespace.name`"),
        (["log", "verify", "--data", "{here}"], 5, "there is no log here"),
        (["log", "inspect", "--data", "{here}"], 5, "there is no log here"),
        (["docs"], 2, "see `dolake docs --help`"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line_on_stderr(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, said: str
) -> None:
    assert run([argument.replace("{here}", str(tmp_path / "lake")) for argument in arguments]) == code
    captured = capsys.readouterr()
    assert said in captured.err
    assert len(captured.err.splitlines()) == 1
    assert os.listdir(tmp_path) == []


@pytest.mark.acceptance("AT-107")
def test_a_reader_that_has_seen_enough_is_no_error() -> None:
    process = subprocess.Popen([sys.executable, "-m", "dolake", "docs", "config"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.close()
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (0, b"")


@pytest.mark.acceptance("AT-107")
def test_an_interrupt_ends_with_130_and_without_a_traceback(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "slow")
    command = [sys.executable, "-m", "dolake", "flush", "--data", str(tmp_path), "--config", str(tmp_path / "slow")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    with open(tmp_path / "slow", "wb"):  # Returns once the command has opened its end; it then waits for what to read.
        process.send_signal(signal.SIGINT)
        process.wait(60)
    output, errors = process.communicate(timeout=60)
    assert (process.returncode, output, errors) == (INTERRUPTED, b"", b"")


def test_references_name_every_setting_metric_and_failpoint(capsys: pytest.CaptureFixture[str]) -> None:
    from dolake.config.sources import setting_keys
    from dolake.failpoints import POINTS
    from dolake.metrics import METRICS

    for what, names in (("config", [key for key, _ in setting_keys()]), ("metrics", list(METRICS)), ("failpoints", list(POINTS))):
        assert run(["docs", what]) == 0
        text = capsys.readouterr().out
        assert [name for name in names if f"| `{name}` |" not in text] == []


def test_failpoints_that_do_not_exist_are_a_configuration_mistake(tmp_path: Path) -> None:
    done = dolake("serve", "--data", str(tmp_path / "lake"), env={**os.environ, "DOLAKE_FAILPOINTS": "no.such=kill"})
    assert done.returncode == 2
    assert "DOLAKE_FAILPOINTS: no failpoint is named no.such" in done.stderr
    assert os.listdir(tmp_path) == []


def test_a_port_that_is_taken_is_said_before_anything_is_created(tmp_path: Path) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = dolake("serve", "--data", str(tmp_path / "lake"), "--port", port, "--http-port", "0")
    assert done.returncode == 2
    assert f"port: must be free on 127.0.0.1: address already in use (got {port})" in done.stderr
    assert os.listdir(tmp_path) == []
