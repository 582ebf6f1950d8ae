"""The crash matrix: `python -m tests.simulation.matrix`. Ends with 1 if an invariant broke, and says how to see it again.

Every failpoint, at its first, second and last hit in the canonical course, in each way: the process is killed, an exception is
raised, its machine loses power, or it is paused and comes to as a zombie, its disk gone to its successor.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from dolake import failpoints
from dolake.model import TableName
from dolake.writer.flight import Stopped
from tests.simulation.cases import Case, Cases, Result, run_cases
from tests.simulation.course import GROUPED, Course, run_course
from tests.simulation.disk import Cut
from tests.simulation.halves import WriterHalf
from tests.simulation.loop import running_process
from tests.simulation.world import Outcome

HALVES = ("ingest", "writer")
PAUSE_S = 3.0
# A zombie has lost its disk: it is dangerous where the warehouse and the catalog are elsewhere.
LAKES = {"kill": "local", "raise": "local", "power loss": "local", "power loss, blocks torn": "local", "zombie": "shared"}
OF_A_FLUSH = ("flush.", "commit.", "catalog.")
CUTS = {"power loss": Cut(drop_all=True, names="all"), "power loss, blocks torn": Cut()}


@dataclass
class _Registry:
    """In the place of `failpoints.REGISTRY`."""

    course: MatrixCourse
    active: bool = True

    def hit(self, name: str, path: str) -> None:
        self.course.hit(name)


class MatrixCourse(Course):
    """A course in which hit number `at` of a failpoint goes wrong in a `way`; none does where that is 0."""

    def __init__(self, lake: str, point: str = "", at: int = 0, way: str = "", *, printed: bool = False) -> None:
        super().__init__(lake, printed=printed)
        self.point, self.at, self.way = point, at, way
        self.hits: Counter[str] = Counter()

    def hit(self, name: str) -> None:
        process = running_process()
        if process is None or not process.name.startswith(HALVES) or process.detached:
            return
        self.hits[name] += 1
        if name != self.point or self.hits[name] != self.at:
            return
        self.trace("world", self.way, name)
        if self.way == "raise":
            raise failpoints.FailpointRaised(name)
        if self.way == "zombie":
            # It stands still at its next door: until there it changes nothing that anybody else could see.
            self._detach([process])
            process.frozen_until = self.loop.time() + PAUSE_S
        elif self.way == "kill":
            process.die()
        else:
            for half in (self.ingest, self.writer):
                if half is not None:
                    half.process.die()
            process.die()
            self.disk.cut_power(CUTS[self.way])
        process.check()

    def note_stopped(self, half: WriterHalf, name: TableName, stopped: Stopped) -> None:
        if half.process.detached and "fenced" in stopped.reason:
            self.chaos.count("zombies fenced")
        super().note_stopped(half, name, stopped)


@contextmanager
def _heard_by(course: MatrixCourse) -> Iterator[None]:
    before = failpoints.REGISTRY
    failpoints.REGISTRY = _Registry(course)  # type: ignore[assignment]
    try:
        yield
    finally:
        failpoints.REGISTRY = before


def run_matrix_course(course: MatrixCourse) -> Outcome:
    with _heard_by(course):
        return run_course(course)


def count_hits(lake: str) -> Counter[str]:
    """Of a run in which nothing goes wrong. Raises AssertionError if something does."""
    course = MatrixCourse(lake)
    outcome = run_matrix_course(course)
    assert not outcome.breach, outcome.breach
    return course.hits


def all_cases() -> list[Case]:
    """And of tables that are grouped every way at what lies between their freezing and the end of their flush."""
    hits = {lake: count_hits(lake) for lake in {*LAKES.values(), GROUPED}}
    places = [(point, way, lake) for point in failpoints.POINTS for way, lake in LAKES.items()]
    places += [(point, way, GROUPED) for point in failpoints.POINTS if point.startswith(OF_A_FLUSH) for way in LAKES]
    return [
        Case(lake, point, number, way)
        for point, way, lake in places
        for number in sorted({min(1, hits[lake][point]), min(2, hits[lake][point]), hits[lake][point]} - {0})
    ]


def run_case(case: Case, *, printed: bool = False) -> Result:
    course = MatrixCourse(case.lake, case.place, case.number, case.way, printed=printed)
    outcome = run_matrix_course(course)
    breach = outcome.breach
    if course.hits[case.place] < case.number:
        breach = breach or "the failpoint was not hit: a run is not what the run before it was"
    counts = Counter({name: outcome.counts[name] for name in ("zombies fenced", "writer fenced") if outcome.counts[name]})
    return Result(case, breach, counts)


def replay_command(case: Case) -> str:
    return f'python -m tests.simulation.matrix --lake {case.lake} --point {case.place} --hit {case.number} --way "{case.way}"'


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation.matrix", description=__doc__)
    parser.add_argument("--lake", choices=sorted({*LAKES.values(), GROUPED}), default="", help="only this one")
    parser.add_argument("--point", choices=sorted(failpoints.POINTS), default="", help="only this failpoint")
    parser.add_argument("--hit", type=int, default=0, help="only this hit of it, every step printed")
    parser.add_argument("--way", choices=sorted(LAKES), default="", help="only this way")
    parser.add_argument("--every", type=int, default=1, help="one of so many cases")
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    parser.add_argument("--json", default="", help="write the figures to this file")
    asked = parser.parse_args(arguments)
    every = all_cases()
    chosen = [case for case in every if asked.lake in ("", case.lake) and asked.point in ("", case.place) and asked.way in ("", case.way)]
    chosen = [case for case in chosen if asked.hit in (0, case.number)][:: asked.every]
    cases = Cases("matrix", {"failpoints": len({case.place for case in every})})
    results = (run_case(case, printed=True) for case in chosen) if asked.hit else run_cases(run_case, chosen, asked.jobs)
    cases.take(results, len(chosen), replay_command)
    cases.print()
    if asked.json:
        cases.write(asked.json)
    return 1 if cases.breaches else 0


if __name__ == "__main__":
    sys.exit(main())
