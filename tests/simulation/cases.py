"""Many courses, each with one thing that goes wrong; what came of them, in a line and in JSON."""

from __future__ import annotations

import multiprocessing
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from tests.reliability import summary

CHUNK = 8


@dataclass(frozen=True)
class Case:
    """What goes wrong: on which lake, at which place (the n-th operation, or a failpoint and its n-th hit), in which way."""

    lake: str
    place: str
    number: int
    way: str

    def __str__(self) -> str:
        return f"{self.lake}: {self.way} at {self.place} {self.number}"


@dataclass(frozen=True)
class Result:
    """`breach` is empty where nothing was lost, doubled or stuck."""

    case: Case
    breach: str
    counts: Counter[str] = field(default_factory=Counter)


Run = Callable[[Case], Result]


def run_cases(run: Run, cases: Sequence[Case], jobs: int) -> Iterator[Result]:
    """Results as they come. `run` is a function of a module, so that another process finds it."""
    chunks = [cases[first : first + CHUNK] for first in range(0, len(cases), CHUNK)]
    if jobs <= 1 or len(chunks) == 1:
        for chunk in chunks:
            yield from _run_chunk(run, chunk)
        return
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), initializer=pa.set_cpu_count, initargs=(1,)) as pool:
        for done in as_completed([pool.submit(_run_chunk, run, chunk) for chunk in chunks]):
            yield from done.result()


def _run_chunk(run: Run, cases: Sequence[Case]) -> list[Result]:
    return [run(case) for case in cases]


@dataclass
class Cases:
    """One family of cases, as they are run. `figures` are what the family counts beside its cases."""

    family: str
    figures: dict[str, Any]
    case_count: int = 0
    ways: Counter[str] = field(default_factory=Counter)
    counts: Counter[str] = field(default_factory=Counter)
    breaches: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def take(self, results: Iterable[Result], total: int, replay: Callable[[Case], str]) -> None:
        """Prints each breach as it comes, with the command that shows it again; and now and then how far it is."""
        began_s = said_s = time.monotonic()
        for result in results:
            self.case_count += 1
            self.ways[result.case.way] += 1
            self.counts += result.counts
            if result.breach:
                self.breaches.append(f"{result.case}: {result.breach}")
                print(f"{self.breaches[-1]}\n  see it again: {replay(result.case)}", flush=True)
            if time.monotonic() - said_s > 10:
                said_s = time.monotonic()
                print(f"{self.case_count} of {total} cases, {len(self.breaches)} with a breach", flush=True)
        self.seconds = time.monotonic() - began_s

    @property
    def line(self) -> str:
        said = ", ".join(f"{value:,} {name.replace('_', ' ')}" for name, value in self.figures.items())
        return f"{self.family}: {said}, {self.case_count:,} cases, {self.seconds:.0f} s: {len(self.breaches)} with a breach"

    def print(self) -> None:
        print(self.line)
        for name, count in sorted((self.ways + self.counts).items()):
            print(f"  {count:9,} {name}")

    def write(self, path: str) -> None:
        summary.write(
            path,
            family=self.family,
            cases=self.case_count,
            breaches=len(self.breaches),
            seconds=self.seconds,
            figures=self.figures,
            detail={"breaches": self.breaches, "ways": dict(self.ways), "counts": dict(self.counts)},
        )
