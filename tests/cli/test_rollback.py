"""`dolake rollback` as an operator uses it: against a real daemon and without one, bad data gone, good data once."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.test_changing import ids, send
from tests.harness.daemon import Daemon

SETTINGS = {"DOLAKE_FLUSH_AGE_S": "0.2", "DOLAKE_LOG_SEGMENT_BYTES": "4096"}


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    with Daemon(tmp_path / "data", {**SETTINGS, "DOLAKE_LOG_RETAIN_S": "3600"}) as daemon:
        yield daemon.start()


def load_bad_data(daemon: Daemon) -> None:
    """Good rows, tagged; then bad ones, so many that the log would have let go of them."""
    send(daemon, range(10))
    tagged = daemon.run("tags", "create", "things", "good")
    assert tagged.returncode == 0, tagged.stderr
    send(daemon, range(10, 310))
    assert ids(daemon) == list(range(310))


def listed_tags(daemon: Daemon) -> list[str]:
    return [one["name"] for one in json.loads(daemon.run("tags", "list", "things", "--json").stdout)]


@pytest.mark.acceptance("AT-71")
def test_bad_data_goes_and_ingestion_goes_on_after_it(daemon: Daemon) -> None:
    load_bad_data(daemon)
    asked = daemon.run("rollback", "things", "--to", "tag:good", "--keep-offset")
    assert (asked.returncode, asked.stdout) == (2, "")
    assert "default.things goes from 310 rows to the 10 of snapshot" in asked.stderr
    assert "--yes: must be given where nobody can be asked" in asked.stderr
    assert ids(daemon) == list(range(310)), "nothing happens without the word"
    done = daemon.run("rollback", "things", "--to", "tag:good", "--keep-offset", "--yes")
    assert done.returncode == 0, done.stderr
    assert "10 rows, in the new snapshot" in done.stdout
    assert ids(daemon) == list(range(10))
    send(daemon, range(310, 320))
    assert ids(daemon) == [*range(10), *range(310, 320)]
    assert daemon.run("verify", "--against", "log").returncode == 0
    daemon.stop()
    daemon.start()
    send(daemon, range(320, 330))
    assert ids(daemon) == [*range(10), *range(310, 330)], "a writer that reads the whole log again leaves it so"
    assert "good" in listed_tags(daemon)
    assert daemon.run("tags", "delete", "things", "good").returncode == 0
    assert "good" not in listed_tags(daemon)
    verified = daemon.run("verify", "--against", "log")
    assert (verified.returncode, verified.stdout.splitlines()[-1]) == (0, "no breach"), verified.stdout


@pytest.mark.acceptance("AT-71")
def test_a_rewind_applies_the_events_since_once_more(daemon: Daemon) -> None:
    load_bad_data(daemon)
    done = daemon.run("rollback", "things", "--to", "tag:good", "--rewind", "--yes", "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert (result["rewound"], result["rows"]) == (True, 10)
    assert all(offset < result["offsetsBefore"][log] for log, offset in result["offsets"].items())
    assert daemon.run("flush").returncode == 0
    assert ids(daemon) == list(range(310))
    send(daemon, range(310, 320))
    assert ids(daemon) == list(range(320))
    verified = daemon.run("verify", "--against", "log")
    assert (verified.returncode, verified.stdout.splitlines()[-1]) == (0, "no breach"), verified.stdout
    daemon.stop()
    here = daemon.run("rollback", "things", "--to", "tag:good", "--rewind", "--yes")
    assert here.returncode == 0, here.stderr
    assert ids(daemon) == list(range(10)), "nobody runs who would apply them"
    daemon.start()
    send(daemon, range(320, 330))
    assert ids(daemon) == list(range(330))
    assert daemon.run("verify").stdout == "no breach\n"


@pytest.mark.acceptance("AT-71")
def test_a_rewind_past_what_the_log_holds_is_refused_and_names_the_oldest(tmp_path: Path) -> None:
    with Daemon(tmp_path / "data", SETTINGS) as daemon:
        daemon.start()
        load_bad_data(daemon)
        send(daemon, range(310, 410))
        for stopped in (False, True):
            if stopped:
                daemon.stop()
            refused = daemon.run("rollback", "things", "--to", "tag:good", "--rewind", "--yes")
            assert (refused.returncode, refused.stdout) == (5, ""), refused.stderr
            assert "the oldest there is" in refused.stderr
            assert "log.retain_s" in refused.stderr
            assert ids(daemon) == list(range(410))


def test_what_makes_no_sense_is_refused(daemon: Daemon) -> None:
    send(daemon, range(2))
    for arguments, code, said in (
        (["things", "--to", "-1"], 2, "exactly one must be given"),
        (["things", "--to", "-1", "--rewind", "--keep-offset"], 2, "exactly one must be given"),
        (["things", "--to", "never", "--keep-offset"], 5, "has nothing at never (unknown)"),
        (["things", "--to", "time:soon", "--keep-offset"], 2, "--to: must be a date"),
        (["things", "--to", "-99", "--keep-offset"], 5, "before-first"),
        (["nothing", "--to", "-1", "--keep-offset"], 2, "there is no such table"),
        (["dolake.dead_letters", "--to", "-1", "--keep-offset"], 2, "TABLE:"),
    ):
        done = daemon.run("rollback", *arguments, "--yes")
        assert (done.returncode, done.stdout) == (code, ""), done.stderr
        assert said in done.stderr
    assert ids(daemon) == [0, 1]


@pytest.mark.acceptance("AT-71")
@pytest.mark.parametrize("point", ["rollback.before_pin", "rollback.before_commit", "rollback.after_commit", "rollback.before_read"])
def test_a_writer_killed_on_the_way_leaves_all_of_it_or_nothing(tmp_path: Path, point: str) -> None:
    trigger = tmp_path / "trigger"
    settings = {**SETTINGS, "DOLAKE_LOG_RETAIN_S": "3600", "DOLAKE_FAILPOINTS": f"{point}=kill({trigger})"}
    with Daemon(tmp_path / "data", settings) as daemon:
        ready = daemon.start().wait_ready()
        send(daemon, range(10))
        assert daemon.run("tags", "create", "things", "good").returncode == 0
        send(daemon, range(10, 110))
        trigger.touch()
        done = daemon.run("rollback", "things", "--to", "tag:good", "--rewind", "--yes")
        daemon.wait_replaced(ready, "writer")
        assert not trigger.exists()
        if done.returncode:
            assert "has gone" in done.stderr
        send(daemon, range(110, 120))
        assert ids(daemon) == list(range(120)), "rewound or not, each event once"
        assert daemon.run("rollback", "things", "--to", "tag:good", "--keep-offset", "--yes").returncode == 0
        assert ids(daemon) == list(range(10))
        verified = daemon.run("verify", "--against", "log")
        assert (verified.returncode, verified.stdout.splitlines()[-1]) == (0, "no breach"), verified.stdout
