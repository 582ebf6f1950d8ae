"""`dolake tables park|unpark|drop` against a real daemon, and `drop` without one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.harness.daemon import Daemon
from tests.harness.lake import Lake


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    with Daemon(tmp_path / "data", {"DOLAKE_FLUSH_AGE_S": "0.2"}) as daemon:
        yield daemon.start()


def send(daemon: Daemon, numbers: range, table: str = "things", *, wait: str = "persisted") -> None:
    lines = [
        json.dumps({"sequence": n, "timestamp": 1, "operation": "INSERT", "table": table, "rowId": str(n), "after": {"id": n}})
        for n in numbers
    ]
    path = daemon.data.parent / f"{table}.jsonl"
    with open(path, "a") as file:
        file.write("\n".join(lines) + "\n")
    done = daemon.run("send", str(path), "--source", table, "--wait", wait)
    assert done.returncode == 0, done.stderr


def listed(daemon: Daemon, table: str) -> dict[str, Any]:
    found = json.loads(daemon.run("tables", "--json").stdout)
    return next(one for one in found if one["table"] == table)


def ids(daemon: Daemon, table: str = "things") -> list[int]:
    with Lake(daemon.data) as lake:
        return [row[0] for row in lake.query(f"SELECT id FROM iceberg_scan('{lake.metadata_location(f'default.{table}')}') ORDER BY id")]


def test_a_table_is_parked_shown_so_and_brought_back(daemon: Daemon) -> None:
    send(daemon, range(10))
    send(daemon, range(10), "others")
    done = daemon.run("tables", "park", "things")
    assert (done.returncode, done.stdout.split(" (")[0]) == (0, "default.things is parked"), done.stderr
    send(daemon, range(10, 20), wait="durable")
    again = daemon.run("tables", "park", "default.things", "--json")
    assert (again.returncode, json.loads(again.stdout)["records"]) == (0, 1)
    assert (listed(daemon, "default.things")["state"], listed(daemon, "default.things")["parked"]["records"]) == ("parked", 1)
    shown = daemon.run("tables").stdout
    assert "default.things is parked: 1 records" in shown
    assert "`dolake tables unpark default.things` brings it back" in shown
    assert "default.others is parked" not in shown
    assert daemon.run("verify").stdout == "no breach\n"
    assert ids(daemon) == list(range(10))
    back = daemon.run("tables", "unpark", "things")
    assert (back.returncode, back.stdout) == (0, "default.things follows the logs again\n"), back.stderr
    assert daemon.run("flush").returncode == 0
    assert ids(daemon) == list(range(20))
    assert listed(daemon, "default.things")["parked"] is None
    assert daemon.run("verify").stdout == "no breach\n"


def test_a_table_is_dropped_with_its_files_and_made_anew_by_what_comes_later(daemon: Daemon) -> None:
    send(daemon, range(10))
    location = listed_files(daemon)
    asked = daemon.run("tables", "drop", "things")
    assert (asked.returncode, asked.stdout) == (2, "")
    assert "default.things goes from the catalog with 10 rows; 1 files below" in asked.stderr
    assert "--yes: must be given where nobody can be asked" in asked.stderr
    assert ids(daemon) == list(range(10)), "nothing happens without the word"
    done = daemon.run("tables", "drop", "things", "--purge", "--yes", "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert (result["table"], result["filesDeleted"]) == ("default.things", len(location))
    assert listed_files(daemon) == []
    send(daemon, range(10, 15))
    assert ids(daemon) == list(range(10, 15))
    verified = daemon.run("verify")
    assert (verified.returncode, verified.stdout) == (0, "no breach\n")
    assert daemon.run("query", "SELECT count(*) AS n FROM things", "--json").stdout.strip() == '[\n{"n":5}\n]'


def listed_files(daemon: Daemon) -> list[str]:
    return sorted(str(path) for path in (daemon.data / "warehouse" / "default" / "things").rglob("*") if path.is_file())


def test_without_a_daemon_a_table_is_dropped_and_stays_dropped(daemon: Daemon) -> None:
    send(daemon, range(10))
    assert daemon.run("tables", "park", "things").returncode == 0
    send(daemon, range(10, 20), wait="durable")
    daemon.stop()
    parked = daemon.run("tables", "unpark", "things")
    assert parked.returncode == 3
    assert "start one with `dolake serve`" in parked.stderr
    done = daemon.run("tables", "drop", "things", "--yes")
    assert (done.returncode, done.stderr.count("goes from the catalog")) == (0, 1), done.stderr
    assert done.stdout.startswith("default.things is dropped; its files stay, named by file://")
    assert len(listed_files(daemon)) > 3
    daemon.start()
    send(daemon, range(20, 25))
    assert ids(daemon) == list(range(20, 25))
    assert daemon.run("verify").stdout == "no breach\n"


@pytest.mark.parametrize("what", ["park", "unpark", "drop"])
@pytest.mark.parametrize(
    ("table", "code", "text"),
    [("no table", 2, "TABLE: a table is `name`"), ("nothing.here", 5, "nothing.here"), ("dolake.dead_letters", 2, "TABLE:")],
)
def test_what_cannot_be_changed_is_refused_by_name(daemon: Daemon, what: str, table: str, code: int, text: str) -> None:
    send(daemon, range(2))
    done = daemon.run("tables", what, table, *(["--yes"] if what == "drop" else []))
    assert (done.returncode, done.stdout) == (code, ""), done.stderr
    assert text in done.stderr
    assert ids(daemon) == [0, 1]
