"""The n-th operation fails, and the crash matrix: a spread sample of what `make faults` runs whole, and that it can fail."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dolake.compaction.expirer import Looker
from dolake.failpoints import POINTS
from dolake.writer.rolling_back import RollingBack
from dolake.writer.table import Table
from tests.simulation import matrix, nth
from tests.simulation.cases import Case, Result, run_cases
from tests.simulation.course import Course, run_course
from tests.simulation.doors import Operation


def spread(cases: list[Case], count: int) -> list[Case]:
    """So many of them, each way among them, and for the rest from the first operation to the last."""
    by_way: dict[str, list[Case]] = {}
    for case in cases:
        by_way.setdefault(case.way, []).append(case)
    share = max(1, count // len(by_way))
    return [case for of_way in by_way.values() for case in of_way[len(of_way) // (2 * share) :: max(1, len(of_way) // share)][:share]]


def breaches(results: list[Result]) -> list[str]:
    return [f"{result.case}: {result.breach}" for result in results if result.breach]


def test_whatever_operation_fails_in_whatever_way_nothing_is_lost_or_doubled() -> None:
    cases = [case for lake in nth.NUMBERED for case in nth.all_cases(lake)]
    chosen = spread(cases, 11)
    assert {case.way for case in chosen} == set(nth.WAYS)
    assert breaches(list(run_cases(nth.run_case, chosen, jobs=2))) == []


@pytest.mark.parametrize("lake", sorted(set(matrix.LAKES.values())))
def test_the_course_reaches_every_failpoint(lake: str) -> None:
    assert set(POINTS) - set(matrix.count_hits(lake)) == set()


def test_whatever_failpoint_breaks_in_whatever_way_nothing_is_lost_or_doubled() -> None:
    chosen = spread(matrix.all_cases(), 10)
    assert {case.way for case in chosen} == set(matrix.LAKES)
    assert breaches(list(run_cases(matrix.run_case, chosen, jobs=2))) == []


@pytest.mark.parametrize(
    "case",
    [
        # A writer that had not committed yet planned each rewrite by a head that its predecessor had changed meanwhile.
        Case("shared", "compact.before_rewrite", 1, "zombie"),
        # The removal of a dropped table's side log was interrupted before its last step, and nobody took that up.
        Case("local", "park.before_last_unlink", 2, "power loss"),
        # The checks took a cut for several commits where nobody was left to say that it had been one.
        Case("grouped", "catalog.after_swap", 1, "kill"),
        # What heard the ingest half had ended, and nobody noticed: the writer went on, and answered no flush.
        Case("local", "flush.before_report", 1, "raise"),
    ],
    ids=str,
)
def test_what_has_broken_once_holds(case: Case) -> None:
    assert matrix.run_case(case).breach == ""


def test_a_run_is_the_same_run_again() -> None:
    assert len({run_course(Course("local")).digest for _ in range(2)}) == 1


class Forgetful(nth.NthCourse):
    """Says that the log's bytes are synced, and they are not."""

    def perform(self, operation: Operation) -> object:
        if operation.kind == "file" and operation.name == "sync" and operation.process.name.startswith("ingest"):
            return None
        return super().perform(operation)


def test_a_broken_rule_is_noticed() -> None:
    assert "I1" in run_course(Forgetful("local")).breach


def test_rows_that_outlive_their_ttl_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    judge = Looker._judge

    def sparing(*arguments: Any) -> Any:
        places = judge(*arguments)
        return places if places is None else places[:0]

    monkeypatch.setattr(Looker, "_judge", sparing)
    assert "I8: default.past" in run_course(Course("local")).breach


def test_a_rewind_that_reads_nothing_again_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    async def nothing(_: RollingBack, table: Table) -> None:
        table.behind = False

    monkeypatch.setattr(RollingBack, "_read_again", nothing)
    assert "waited 120 s for what is acked to be committed" in run_course(Course("local")).breach


def test_a_breach_is_told_with_the_command_that_shows_it_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    case = Case("local", "writer catalog swap", 7, "error")
    monkeypatch.setattr(nth, "all_cases", lambda lake: [case])
    monkeypatch.setattr(nth, "run_case", lambda case: Result(case, "I7: there twice"))
    figures = tmp_path / "figures.json"
    assert nth.main(["--lake", "local", "--jobs", "1", "--json", str(figures)]) == 1
    told = capsys.readouterr().out
    assert 'python -m tests.simulation.nth --lake local --at 7 --way "error"' in told
    assert "nth: 1 operations, 1 cases" in told
    written = json.loads(figures.read_text())
    assert written["detail"]["breaches"] == ["local: error at writer catalog swap 7: I7: there twice"]
    assert (written["family"], written["cases"], written["breaches"]) == ("nth", 1, 1)
