"""`dolake verify` over a lake of mirrors: breaches and notes, as text and as JSON, and how much was compared with the log."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pytest

from dolake.cli import run
from tests.verify.damage import Hands, lake, opened
from tests.verify.test_against import rewritten
from tests.verify.test_mirrors import hands_table, three_flushes

COMPARED = "compared with the log: 27 events, 22 keys of mirrors, 0 rows of changelogs; left out: 1 dead letters"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    lake(tmp_path, three_flushes)
    return tmp_path


def verify(data: Path, *more: str) -> int:
    return run(["verify", "--data", str(data), *more])


def test_a_sound_lake_says_how_much_was_compared(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert verify(data) == 0
    assert capsys.readouterr().out == "no breach\n"
    assert verify(data, "--against", "log") == 0
    assert capsys.readouterr().out.splitlines() == [COMPARED, "no breach"]
    assert verify(data, "--against", "log", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["breaches"], found["notes"]) == ([], [])
    assert (found["compared"]["events"], found["compared"]["keys"]) == (27, 22)
    assert verify(data, "--json") == 0
    assert json.loads(capsys.readouterr().out) == []


def test_what_others_did_is_noted_and_what_is_wrong_ends_with_1(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = hands_table(data)
    table.append(pa.table({"id": [7, 99], "note": ["theirs", "theirs"]}, schema=table.schema().as_arrow()))
    assert verify(data) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "no breach"
    assert [line for line in lines if line.startswith("note default.t: 1 keys have several rows")]
    assert verify(data, "--json") == 0
    said = capsys.readouterr()
    assert json.loads(said.out) == []
    assert "note default.t: 1 keys have several rows" in said.err
    with opened(data) as (store, catalog):
        rewritten(Hands(store, catalog), 8, note="wrong")
    assert verify(data, "default.t", "--against", "log") == 1
    assert 'I8 default.t: key {"id": 8}: note is not what event 8 of offset 1 of the log leaves' in capsys.readouterr().out


def test_there_is_nothing_else_to_compare_with(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert verify(data, "--against", "moon") == 2
    assert "--against" in capsys.readouterr().err


def test_masked_values_are_compared_as_they_are_masked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lake(tmp_path, three_flushes, tables={"*.*": {"mode": "mirror", "mask": ["note"]}}, mask_key="0123456789abcdef")
    config = tmp_path / "dolake.toml"
    config.write_text('mask_key = "0123456789abcdef"\n[tables."*.*"]\nmask = ["note"]\n')
    assert verify(tmp_path, "--config", str(config), "--against", "log") == 0, capsys.readouterr().out
    assert COMPARED in capsys.readouterr().out
