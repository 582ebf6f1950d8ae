"""The n-th operation fails: `python -m tests.simulation.nth`. Ends with 1 if an invariant broke, and says how to see it again.

The canonical course is run once to number the operations of the daemon's halves on disk, store and catalog; then once for each
of them and each way in which it can fail. A kill is tried at what changes something: between two changes there is nothing that a
process that looks could leave behind.
"""

from __future__ import annotations

import argparse
import errno
import os
import sys
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from typing import Any

from dolake.errors import CatalogUnreachable, CommitConflict, StoreUnreachable
from tests.simulation.cases import Case, Cases, Result, run_cases
from tests.simulation.course import GROUPED, LAKES, Course, run_course
from tests.simulation.disk import Cut
from tests.simulation.doors import CHANGES, Operation

HALVES = ("ingest", "writer")
# A local store is its disk's operations, which are counted by themselves; a shared catalog's lake differs from it in nothing that is.
# Of the one whose tables are grouped only what differs is: what the catalog is asked.
NUMBERED = {"local": ("disk", "file", "catalog"), "remote": ("disk", "file", "store", "catalog"), GROUPED: ("catalog",)}
CUT = Cut(drop_all=True, names="all")

EVERY_CHANGE = ("error", "answer lost", "kill before", "kill after", "power cut after")
MORE_WAYS: Mapping[tuple[str, str], tuple[str, ...]] = {
    ("file", "write_at"): ("no space", "short", "torn"),
    ("disk", "create"): ("no space",),
    ("disk", "rename"): ("no space",),
    ("disk", "make_directories"): ("no space",),
    ("catalog", "create"): ("conflict after own",),  # Whoever is told of a conflict finds the table: its absence means that it was dropped.
    ("catalog", "swap"): ("conflict", "conflict after own"),
    ("catalog", "swap_together"): ("conflict", "conflict after own"),
    ("catalog", "drop"): ("conflict",),
}
LATE = {("store", "put"): "put_late", ("catalog", "create"): "swap_late", ("catalog", "swap"): "swap_late"}


class NthCourse(Course):
    """A course whose operation number `at` (the first is 1) goes wrong in a `way`; none does where that is 0."""

    def __init__(self, lake: str, at: int = 0, way: str = "", *, printed: bool = False) -> None:
        super().__init__(lake, printed=printed)
        self.at, self.way = at, way
        self.numbered: list[Operation] = []
        self._kinds = NUMBERED[lake]

    def perform(self, operation: Operation) -> Any:
        if operation.kind not in self._kinds or not operation.process.name.startswith(HALVES):
            return super().perform(operation)
        self.numbered.append(operation)
        if len(self.numbered) != self.at:
            return super().perform(operation)
        self.trace("world", self.way, str(operation))
        return WAYS[self.way](self, operation)

    def do(self, operation: Operation) -> Any:
        return super().perform(operation)

    def kill(self, operation: Operation) -> None:
        operation.process.die()
        operation.process.check()

    def cut_power(self) -> None:
        for half in (self.ingest, self.writer):
            if half is not None:
                half.process.die()
        self.disk.cut_power(CUT)

    @contextmanager
    def certain(self, fault: str) -> Any:
        """What the simulated doors draw by chance, this time for sure."""
        self.chaos.chances[fault] = 1.0
        try:
            yield
        finally:
            del self.chaos.chances[fault]


def no_answer(operation: Operation, number: int = errno.EIO) -> Exception:
    """How an operation of that kind says that it failed."""
    if operation.kind == "catalog":
        return CatalogUnreachable("no answer")
    if operation.kind == "store":
        return StoreUnreachable("no answer")
    return OSError(number, os.strerror(number), str(operation))


def _error(course: NthCourse, operation: Operation) -> Any:
    if operation.name == "sync":  # Some blocks may be written, the others are forgotten.
        with course.certain("sync_eio"):
            return course.do(operation)
    raise no_answer(operation)


def _answer_lost(course: NthCourse, operation: Operation) -> Any:
    course.do(operation)
    raise no_answer(operation)


def _no_space(course: NthCourse, operation: Operation) -> Any:
    raise no_answer(operation, errno.ENOSPC)


def _short(course: NthCourse, operation: Operation) -> Any:
    """A part is written, then the disk is full."""
    _write_half(operation)
    raise no_answer(operation, errno.ENOSPC)


def _torn(course: NthCourse, operation: Operation) -> Any:
    """A part is written, then the process dies."""
    _write_half(operation)
    course.kill(operation)


def _write_half(operation: Operation) -> None:
    position, parts = operation.arguments
    data = b"".join(parts)
    operation.perform(position, [data[: len(data) // 2]])


def _kill_before(course: NthCourse, operation: Operation) -> Any:
    course.kill(operation)


def _kill_after(course: NthCourse, operation: Operation) -> Any:
    course.do(operation)
    course.kill(operation)


def _power_cut_after(course: NthCourse, operation: Operation) -> Any:
    course.do(operation)
    course.cut_power()
    operation.process.check()


def _conflict(course: NthCourse, operation: Operation) -> Any:
    raise CommitConflict("somebody else was first")


def _conflict_after_own(course: NthCourse, operation: Operation) -> Any:
    """By this very request, which was sent twice."""
    course.do(operation)
    raise CommitConflict("the table has moved on")


def _late(course: NthCourse, operation: Operation) -> Any:
    with course.certain(LATE[operation.kind, operation.name]):
        return course.do(operation)


WAYS: dict[str, Callable[[NthCourse, Operation], Any]] = {
    "error": _error,
    "answer lost": _answer_lost,
    "no space": _no_space,
    "short": _short,
    "torn": _torn,
    "kill before": _kill_before,
    "kill after": _kill_after,
    "power cut after": _power_cut_after,
    "conflict": _conflict,
    "conflict after own": _conflict_after_own,
    "late": _late,
}


def ways_of(kind: str, name: str, lake: str) -> tuple[str, ...]:
    if name not in CHANGES[kind]:
        return ("error",)
    late = ("late",) if (kind, name) in LATE and LAKES[lake][1] != "sql" else ()
    return (*EVERY_CHANGE, *MORE_WAYS.get((kind, name), ()), *late)


def all_cases(lake: str) -> list[Case]:
    """Of every operation of a run in which nothing goes wrong. Raises AssertionError if something does."""
    course = NthCourse(lake)
    outcome = run_course(course)
    assert not outcome.breach, outcome.breach
    return [
        Case(lake, str(operation), number, way)
        for number, operation in enumerate(course.numbered, 1)
        for way in ways_of(operation.kind, operation.name, lake)
    ]


def run_case(case: Case, *, printed: bool = False) -> Result:
    course = NthCourse(case.lake, case.number, case.way, printed=printed)
    breach = run_course(course).breach
    if len(course.numbered) < case.number or str(course.numbered[case.number - 1]) != case.place:
        breach = breach or "the operation did not come: a run is not what the run before it was"
    return Result(case, breach)


def replay_command(case: Case) -> str:
    return f'python -m tests.simulation.nth --lake {case.lake} --at {case.number} --way "{case.way}"'


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation.nth", description=__doc__)
    parser.add_argument("--lake", choices=sorted(NUMBERED), default="", help="only this one")
    parser.add_argument("--every", type=int, default=1, help="one of so many cases")
    parser.add_argument("--at", type=int, default=0, help="only this operation, every step printed")
    parser.add_argument("--way", choices=sorted(WAYS), default="", help="only this way")
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    parser.add_argument("--json", default="", help="write the figures to this file")
    asked = parser.parse_args(arguments)
    lakes = [asked.lake] if asked.lake else list(NUMBERED)
    every = {lake: all_cases(lake) for lake in lakes}
    chosen = [case for cases in every.values() for case in cases if not asked.way or case.way == asked.way]
    if asked.at:
        chosen = [case for case in chosen if case.number == asked.at]
    chosen = chosen[:: asked.every]
    operations = sum(len({case.number for case in cases}) for cases in every.values())
    cases = Cases("nth", {"operations": operations})
    results = (run_case(case, printed=True) for case in chosen) if asked.at else run_cases(run_case, chosen, asked.jobs)
    cases.take(results, len(chosen), replay_command)
    cases.print()
    if asked.json:
        cases.write(asked.json)
    return 1 if cases.breaches else 0


if __name__ == "__main__":
    sys.exit(main())
