"""`dolake dead-letters` against a real daemon: a hundred bad rows among ten thousand, mended and sent again."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dolake.model import DEAD_LETTERS_TABLE
from tests.harness.daemon import Daemon
from tests.harness.lake import Lake

LARGE = 1 << 40


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    with Daemon(tmp_path_factory.mktemp("letters") / "data", {"DOLAKE_FLUSH_AGE_S": "0.2"}) as daemon:
        yield daemon.start()


def schema(kind: str) -> str:
    columns = [{"name": "id", "type": "long", "nullable": False}, {"name": "n", "type": kind, "nullable": True}]
    return json.dumps({"type": "schema", "table": "metered", "primaryKey": ["id"], "columns": columns})


def insert(number: int, value: Any) -> str:
    row = {"id": number, "n": value}
    return json.dumps({"sequence": number, "timestamp": 1, "operation": "INSERT", "table": "metered", "rowId": str(number), "after": row})


def listed(daemon: Daemon, *more: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(daemon.run("dead-letters", "list", "--limit", "0", "--json", *more).stdout)
    return found


def send(daemon: Daemon, path: Path, lines: list[str]) -> None:
    path.write_text("\n".join(lines) + "\n")
    done = daemon.run("send", str(path), "--source", "meter", "--wait", "persisted")
    assert done.returncode == 0, done.stderr


@pytest.mark.acceptance("AT-62")
def test_a_hundred_bad_rows_of_ten_thousand_are_kept_with_their_reason_and_come_back_once_mended(daemon: Daemon, tmp_path: Path) -> None:
    bad = range(50, 10_000, 100)
    rows = [insert(number, LARGE + number if number in bad else number) for number in range(10_000)]
    send(daemon, tmp_path / "first", [schema("int"), *rows])
    letters = listed(daemon)
    assert [letter["sequence"] for letter in letters] == list(bad)
    assert {(letter["table"], letter["source"], letter["field"], letter["reason"]) for letter in letters} == {
        ("default.metered", "meter", "n", "does_not_fit")
    }
    assert letters[0]["value"] == str(LARGE + 50)
    shown = json.loads(daemon.run("dead-letters", "show", letters[0]["id"], "--json").stdout)
    assert (json.loads(shown["event"])["after"], shown["state"]) == ({"id": 50, "n": LARGE + 50}, "dead")
    assert daemon.run("verify").returncode == 0

    early = daemon.run("dead-letters", "replay", letters[0]["id"], "--json")
    assert (early.returncode, json.loads(early.stdout)) == (6, {"sent": 1, "dead": 1, "replayed": 0, "superseded": 0})
    send(daemon, tmp_path / "second", [schema("int"), *rows, schema("long"), insert(10_000, 0)])
    assert daemon.run("dead-letters", "replay", "--dry-run").stdout == "100 dead letters would be sent again\n"
    mended = daemon.run("dead-letters", "replay", "--json")
    assert (mended.returncode, json.loads(mended.stdout)) == (0, {"sent": 100, "dead": 0, "replayed": 100, "superseded": 0}), mended.stderr
    with Lake(daemon.data) as lake:
        found = sorted((row["id"], row["n"], row["_cdc_source"]) for row in lake.read_duckdb("metered").to_pylist())
    assert found == [(n, LARGE + n if n in bad else n, "meter") for n in range(10_000)] + [(10_000, 0, "meter")]
    assert listed(daemon) == []
    assert len(listed(daemon, "--state", "replayed")) == 100
    again = daemon.run("dead-letters", "replay")
    assert (again.returncode, again.stdout) == (0, "sent 0 again: 0 applied, 0 superseded, 0 still dead\n")
    verified = daemon.run("verify")
    assert (verified.returncode, verified.stdout) == (0, "no breach\n")


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("show", "nothing@log:1:2"), 2, "ID: is the id of no dead letter"),
        (("replay", "nothing@log:1:2"), 2, "ID: is the id of no dead letter"),
        (("list", "--state", "gone"), 2, "--state: must be one of dead, replayed, superseded, expired, all"),
        (("list", "--table", "../x"), 2, "--table: a table is"),
    ],
)
def test_what_is_wrong_with_the_command_is_said(daemon: Daemon, arguments: tuple[str, ...], code: int, said: str) -> None:
    done = daemon.run("dead-letters", *arguments)
    assert (done.returncode, done.stdout) == (code, "")
    assert said in done.stderr


def test_a_letter_whose_event_has_expired_is_shown_as_such_and_cannot_be_sent_again(tmp_path: Path) -> None:
    settings = {"DOLAKE_FLUSH_AGE_S": "0.2", "DOLAKE_MAINTENANCE_ENABLED": "false", "DOLAKE_MAINTENANCE_DEAD_LETTERS_S": "0.001"}
    with Daemon(tmp_path / "data", settings) as daemon:
        daemon.start()
        send(daemon, tmp_path / "rows", [schema("int"), insert(1, 1), insert(2, LARGE)])
        [letter] = listed(daemon)
        table = str(DEAD_LETTERS_TABLE)
        looked = daemon.run("maintenance", table)
        assert (looked.returncode, looked.stdout.startswith(f"{table}: 1 events of dead letters would expire; ")) == (0, True), looked
        assert [one["state"] for one in listed(daemon, "--state", "all")] == ["dead"]
        purged = daemon.run("maintenance", table, "--purge")
        assert (purged.returncode, purged.stdout.startswith(f"{table}: 1 events of dead letters have expired; ")) == (0, True), purged
        for_all = daemon.run("maintenance", "--purge")
        assert (for_all.returncode, f"{table}: " in for_all.stdout, for_all.stderr) == (0, True, ""), for_all
        assert listed(daemon) == []
        [expired] = listed(daemon, "--state", "expired")
        assert (expired["id"], expired["field"], expired["reason"], expired["value"]) == (letter["id"], "n", "does_not_fit", "")
        shown = json.loads(daemon.run("dead-letters", "show", letter["id"], "--json").stdout)
        assert (shown["state"], shown["event"]) == ("expired", "")
        refused = daemon.run("dead-letters", "replay", letter["id"])
        assert (refused.returncode, refused.stdout) == (2, "")
        rule = "has expired: its event is not kept any longer, see `maintenance.dead_letters_s`"
        assert f"ID: {rule} (got {letter['id']})" in refused.stderr
        assert daemon.run("dead-letters", "replay").stdout == "sent 0 again: 0 applied, 0 superseded, 0 still dead\n"
        with Lake(daemon.data) as lake:
            assert lake.read_duckdb("metered")["id"].to_pylist() == [1]
        verified = daemon.run("verify")
        assert (verified.returncode, verified.stdout) == (0, "no breach\n")
