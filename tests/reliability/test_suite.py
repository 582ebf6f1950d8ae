"""The suite run several times: a test that does not always pass is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests import suite
from tests.reliability import summary

TESTS = """
from pathlib import Path

import pytest

def test_that_passes():
    pass

def test_that_passes_once():
    seen = Path(__file__).with_name("seen")
    assert not seen.exists(), "seen before"
    seen.touch()

@pytest.fixture
def broken():
    raise OSError

def test_that_cannot_begin(broken):
    pass
"""


def test_what_does_not_pass_every_time_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(summary, "FOLDER", tmp_path)
    file, figures = tmp_path / "test_some.py", tmp_path / "figures" / "suite.json"
    file.write_text(TESTS, encoding="utf-8")
    assert suite.main([str(file), "--times", "2", "--json", str(figures)]) == 1
    told = capsys.readouterr().out
    assert "run 1 of 2: 1 error, 2 passed, " in told
    assert "run 2 of 2: 1 error, 1 failure, 1 passed, " in told
    assert "::test_that_passes_once: passed, failure\n" in told
    assert "suite: 2 runs, 2 tests that failed in one or ended differently" in told
    written = json.loads(figures.read_text(encoding="utf-8"))
    assert (written["family"], written["cases"], written["breaches"], written["figures"]["tests_most"]) == ("suite", 2, 2, 3)
    assert "seen before" in (tmp_path / "suite.log").read_text(encoding="utf-8")


def test_the_quick_part_is_told_apart() -> None:
    case = '<testcase classname="{}" name="test_x" time="{}"/>'
    cases = [
        case.format("tests.simulation.test_world", 1.5),
        case.format("tests.test_real_kills", 2),
        case.format("tests.verify.test_damage", 4),
        case.format("tests.test_real_logs", 8),
    ]
    assert suite.read_report(f"<testsuites><testsuite>{''.join(cases)}</testsuite></testsuites>", 20.0).quick_s == 7.5


def test_no_tests_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="pytest ended with 5"):
        suite.run_all([str(tmp_path / "test_none.py")], tmp_path / "log")
