"""Each command that answers questions, in every way to end: answered, asked wrongly, nobody there, not allowed, nothing there, its
reader gone, interrupted. What a command prints as JSON is JSON and alone on stdout, and nobody ever sees a traceback."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from dolake.cli import run
from tests.cli.test_letters import LARGE, insert, schema
from tests.harness.access import new_token, section
from tests.harness.daemon import Daemon, clean_environment, dolake_command
from tests.harness.terminal import Terminal

ALL, OTHER = new_token(), new_token()
TOKENS = section("all", ALL, sources=["*"], tables=["*"], read=True, admin=True) + section("other", OTHER, sources=["x"], tables=["x"])
BAD = (3, 5)
TABLES = ["default.metered", "dolake.dead_letters"]


class Asked(NamedTuple):
    """A command, the exit code and what its JSON must be like over a daemon that runs, one that is killed, and an empty directory.

    None where it says nothing on stdout.
    """

    line: str
    is_right: Callable[[Any], bool] | None
    code_down: int = 0
    empty: tuple[int, Any] = (0, [])
    code: int = 0


ANY = object()  # of what an empty directory gives: checked by its shape alone
NO_LETTERS = {"sent": 0, "dead": 0, "replayed": 0, "superseded": 0}
COMMANDS = [
    Asked("dead-letters list --data {data}", lambda said: [one["value"] for one in said] == [str(LARGE + n) for n in BAD]),
    Asked("dead-letters show {letter} --data {data}", lambda said: json.loads(said["event"])["rowId"] == str(BAD[0]), empty=(2, None)),
    Asked("dead-letters replay --dry-run --data {data}", lambda said: said == {**NO_LETTERS, "dead": len(BAD)}, empty=(0, NO_LETTERS)),
    Asked("token new extra --read", lambda said: said["name"] == "extra" and said["token"] not in said["section"], empty=(0, ANY)),
    Asked("token list --data {data}", lambda said: list(said) == ["all", "other"], empty=(0, {})),
    Asked("token check --data {data}", lambda said: said["name"] == "all", empty=(0, ANY)),
    Asked("sources --data {data}", lambda said: [(one["source"], one["lastSequence"]) for one in said] == [("meter", 1)]),
    Asked("status --data {data}", lambda said: TABLES[0] in [one["table"] for one in said["tables"]], 3, (3, ANY)),
    Asked("tables --data {data}", lambda said: [(one["table"], one["rows"]) for one in said] == list(zip(TABLES, (8, 2), strict=True))),
    Asked("inspect metered --data {data}", lambda said: said["columns"][0]["name"] == "_cdc_operation", empty=(2, None)),
    Asked("log init {data}/log --yes --data {data}", None, code=5),
]
DOCUMENTS = ["docs config", "docs metrics", "docs errors", "docs failpoints"]


class Place(NamedTuple):
    """Where commands are run: over a data directory, with a letter's id of it."""

    data: Path
    letter: str = "default.metered@nothing:0:0"

    def command(self, line: str) -> list[str]:
        words = (word.replace("{data}", str(self.data)).replace("{letter}", self.letter) for word in line.split())
        return [*dolake_command(), *words]

    def run(self, line: str, environment: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        environment = clean_environment({"DOLAKE_TOKEN": ALL} if environment is None else environment)
        done = subprocess.run(self.command(line), env=environment, input="", capture_output=True, text=True, timeout=60, check=False)
        assert "Traceback" not in done.stderr, done.stderr
        return done

    def popen(self, line: str, **more: Any) -> subprocess.Popen[str]:
        environment = clean_environment({"DOLAKE_TOKEN": ALL})
        return subprocess.Popen(self.command(line), env=environment, stderr=subprocess.PIPE, text=True, stdin=subprocess.DEVNULL, **more)


def filled(directory: Path) -> tuple[Daemon, Place]:
    """A daemon with ten rows of one source, two of which fit nowhere."""
    daemon = Daemon(directory / "data", {"DOLAKE_FLUSH_AGE_S": "0.2"}, table_settings=TOKENS).start()
    rows = [insert(n, LARGE + n if n in BAD else n) for n in range(10)]
    (directory / "rows").write_text("\n".join([schema("int"), *rows]) + "\n")
    place = Place(daemon.data)
    sent = place.run(f"send {directory}/rows --source meter --wait persisted --data {{data}}")
    assert sent.returncode == 0, sent.stderr
    letters = json.loads(place.run("dead-letters list --data {data} --json").stdout)
    return daemon, Place(daemon.data, letters[0]["id"])


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    daemon, place = filled(tmp_path_factory.mktemp("served"))
    with daemon:
        yield place


@pytest.fixture(scope="module")
def down(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """Killed: it has taken nothing away with it, its sockets and ready.json are there."""
    daemon, place = filled(tmp_path_factory.mktemp("down"))
    with daemon:
        daemon.kill()
        yield place


@pytest.fixture
def empty(tmp_path: Path) -> Place:
    (tmp_path / "data").mkdir()
    return Place(tmp_path / "data")


each_command = pytest.mark.parametrize("asked", COMMANDS, ids=lambda asked: asked.line.split(" --")[0])


@pytest.mark.acceptance("AT-107")
@each_command
def test_answered_it_ends_with_0_and_says_so_to_programs_and_to_people(served: Place, asked: Asked) -> None:
    for_programs, for_people = served.run(asked.line + " --json"), served.run(asked.line)
    assert (for_programs.returncode, for_people.returncode) == (asked.code, asked.code)
    if asked.is_right is None:
        assert (for_programs.stdout, len(for_programs.stderr.splitlines())) == ("", 1)
    else:
        assert (for_programs.stderr, for_people.stderr) == ("", "")
        assert asked.is_right(json.loads(for_programs.stdout))
        assert for_people.stdout.strip()


@pytest.mark.acceptance("AT-107")
@pytest.mark.parametrize("line", DOCUMENTS)
def test_a_reference_is_a_document_and_nothing_else(served: Place, line: str) -> None:
    done = served.run(line)
    assert (done.returncode, done.stderr, done.stdout[:2]) == (0, "", "<!")


@pytest.mark.acceptance("AT-107")
@each_command
def test_without_a_daemon_it_says_what_the_files_say(down: Place, asked: Asked) -> None:
    done = down.run(asked.line + " --json")
    assert done.returncode == asked.code_down, done.stderr
    said = json.loads(done.stdout)
    assert said == [] if asked.is_right is None else asked.is_right(said)
    assert [line for line in done.stderr.splitlines() if not line.startswith("dolake: no daemon answers")] == []


@pytest.mark.acceptance("AT-107")
@each_command
def test_over_nothing_there_is_nothing_and_nothing_is_made(empty: Place, asked: Asked) -> None:
    code, wanted = asked.empty
    done = empty.run(asked.line + " --json")
    assert done.returncode == code, done.stderr
    if wanted is None:
        assert done.stdout == ""
    else:
        said = json.loads(done.stdout)
        assert wanted is ANY or said == wanted
    assert os.listdir(empty.data) == []


WRONG = [
    ("dead-letters show --data {data}", "ID"),
    ("dead-letters show {letter} more --data {data}", "more"),
    ("dead-letters show metered --data {data}", "ID: is the id of no dead letter"),
    ("dead-letters replay {letter} metered@x:0:0 --data {data}", "metered@x:0:0"),
    ("dead-letters replay --retry-s -1 --data {data}", "--retry-s"),
    ("dead-letters replay --to nowhere --data {data}", "nowhere"),
    ("dead-letters replay --ca /nonexistent --data {data}", "/nonexistent"),
    ("dead-letters list --limit -1 --data {data}", "--limit"),
    ("dead-letters list --table a/b --data {data}", "--table: a table is"),
    ("dead-letters list --data {data}/nowhere", "data: must be a data directory of dolake"),
    ("token new", "NAME"),
    ("token new x --reed", "--reed"),
    ("token list --data {data} --config /nonexistent", "config: "),
    ("token list --data {data} --config {data}/log", "config: "),
    ("sources more --data {data}", "more"),
    ("sources --data {data}/nowhere", "data: must be a data directory of dolake"),
    ("status --watch --interval 0 --data {data}", "--interval"),
    ("status", "data: is required"),
    ("tables --data {data}/nowhere", "data: must be a data directory of dolake"),
    ("tables --jsn --data {data}", "--jsn"),
    ("inspect --data {data}", "TABLE"),
    ("inspect a.b.c --data {data}", "TABLE: there is no such table"),
    ("log init --data {data}", "DIR..."),
    ("log init {data} --yes --data {data}", "DIR: must be a directory of the log"),
    ("docs nothing", "nothing"),
]


@pytest.mark.acceptance("AT-107")
@pytest.mark.parametrize(("line", "words"), WRONG, ids=[line for line, _ in WRONG])
def test_asked_wrongly_it_ends_with_2_and_names_what_is_wrong_in_one_line(
    down: Place, capsys: pytest.CaptureFixture[str], line: str, words: str
) -> None:
    assert run(down.command(line)[1:]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    (said,) = captured.err.splitlines()
    assert said.startswith("dolake: ")
    assert words in said


@pytest.mark.acceptance("AT-107")
@pytest.mark.parametrize("to", ["", " --to ws://127.0.0.1:1/cdc"])
def test_what_needs_a_daemon_ends_with_3_where_none_is_and_changes_nothing(down: Place, to: str) -> None:
    done = down.run("dead-letters replay --retry-s 0 --json --data {data}" + to)
    assert (done.returncode, done.stdout) == (3, "")
    assert "no daemon answers" in done.stderr.splitlines()[-1]
    assert len(json.loads(down.run("dead-letters list --json --data {data}").stdout)) == len(BAD)


@pytest.mark.acceptance("AT-107")
@pytest.mark.parametrize(
    "environment", [{}, {"DOLAKE_TOKEN": OTHER}, {"DOLAKE_TOKEN": "wrong" + ALL}], ids=["none", "another's", "one that is not good"]
)
@pytest.mark.parametrize("line", ["dead-letters replay --json --data {data}", "token check --json --data {data}"])
def test_who_may_not_is_told_so_with_5(served: Place, line: str, environment: dict[str, str]) -> None:
    if line.startswith("token") and environment == {"DOLAKE_TOKEN": OTHER}:
        assert json.loads(served.run(line, environment).stdout)["name"] == "other"  # it may ask who it is
        return
    done = served.run(line, environment)
    assert (done.returncode, done.stdout) == (5, ""), done.stderr
    assert all(token not in done.stderr for token in (ALL, OTHER))
    assert len(json.loads(served.run("dead-letters list --json --data {data}").stdout)) == len(BAD)


@pytest.mark.acceptance("AT-107")
@each_command
def test_a_reader_that_has_gone_changes_nothing(down: Place, asked: Asked) -> None:
    """Not even the exit code: `status | head` still says that no daemon answers."""
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as gone, down.popen(asked.line, stdout=gone) as process:
        assert process.stderr is not None
        errors = process.stderr.read()
    assert process.returncode == asked.code_down
    assert [line for line in errors.splitlines() if not line.startswith("dolake: no daemon answers")] == []


@pytest.mark.acceptance("AT-107")
@pytest.mark.parametrize("line", [*DOCUMENTS, "status --watch --json --interval 0.1 --data {data}", "status --watch --data {data}"])
def test_who_writes_on_and_on_ends_when_its_reader_has_seen_enough(served: Place, line: str) -> None:
    with served.popen(line, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.read(1)
        process.stdout.close()
        errors = process.stderr.read()
    assert (process.returncode, errors) == (0, "")


@pytest.mark.acceptance("AT-107")
@pytest.mark.parametrize("line", [asked.line for asked in COMMANDS if "{data}" in asked.line], ids=lambda line: line.split(" --")[0])
def test_interrupted_it_ends_with_130_and_says_nothing(down: Place, tmp_path: Path, line: str) -> None:
    os.mkfifo(tmp_path / "slow")
    with down.popen(f"{line} --json --config {tmp_path}/slow", stdout=subprocess.PIPE) as process:
        with open(tmp_path / "slow", "wb"):  # Returns once the command has opened its end; it then waits for what to read.
            process.send_signal(signal.SIGINT)
            process.wait(60)
        output, errors = process.communicate(timeout=60)
    assert (process.returncode, output, errors) == (130, "", "")


@pytest.mark.acceptance("AT-107")
@pytest.mark.parametrize("line", ["status", "status --watch", "sources", "tables"])
def test_interrupted_while_a_daemon_lets_it_wait_it_ends_with_130(empty: Place, line: str) -> None:
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(empty.data / "control.sock"))
        silent.listen()
        with empty.popen(line + " --json --data {data}", stdout=subprocess.PIPE) as process:
            connection, _ = silent.accept()
            with connection:
                assert connection.recv(1)  # It has asked, and waits.
                process.send_signal(signal.SIGINT)
                output, errors = process.communicate(timeout=60)
    assert (process.returncode, output, errors) == (130, "", "")


@pytest.mark.acceptance("AT-107")
def test_interrupted_while_nobody_answers_a_replay_has_changed_nothing(down: Place) -> None:
    with down.popen("dead-letters replay --retry-s 600 --json --data {data}", stdout=subprocess.PIPE) as process:
        assert process.stderr is not None
        assert "trying again" in process.stderr.readline()
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=60)
    assert (process.returncode, output) == (130, "")
    assert "Traceback" not in errors
    assert len(json.loads(down.run("dead-letters list --json --data {data}").stdout)) == len(BAD)


@pytest.mark.acceptance("AT-107")
@pytest.mark.parametrize("key", [b"\x03", b"\x04"], ids=["Ctrl-C", "Ctrl-D"])
def test_who_is_asked_whether_to_go_on_and_does_not_answer_has_changed_nothing(tmp_path: Path, key: bytes) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    settings = {"DOLAKE_LOG_DIRECTORIES": f"{one}{os.pathsep}{two}"}
    with Daemon(tmp_path / "data", settings) as daemon:
        daemon.start().wait_ready()
        assert daemon.stop() == 0
    shutil.rmtree(two)
    before = {path: path.read_bytes() for path in sorted(tmp_path.rglob("*")) if path.is_file()}
    command = [*dolake_command(), "log", "init", str(two), "--data", str(tmp_path / "data")]
    with Terminal(command, clean_environment(settings), columns=1000) as terminal:
        terminal.wait_for(lambda seen: "Go on?" in seen, "the question")
        terminal.type(key)
        assert terminal.process.wait(60) == 130
        assert "Traceback" not in terminal.seen()
    assert {path: path.read_bytes() for path in sorted(tmp_path.rglob("*")) if path.is_file()} == before
