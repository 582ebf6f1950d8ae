"""Many schedules: `python -m tests.simulation --seeds 0..10000`. Ends with 1 if an invariant broke, and says how to see it again.

`--shrink` makes the world of one failing seed as small as it gets; `--mutants` breaks each rule once, and ends with 1 if
that of one was not noticed.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tests.reliability import summary
from tests.simulation.catching import SIMULATION, Caught
from tests.simulation.changes import Changes
from tests.simulation.mutants import MUTANTS
from tests.simulation.schedules import catch_all, run_all
from tests.simulation.shrinking import invariant_of, shrink
from tests.simulation.world import Outcome, Rules, run_world

FAULTS_APART = frozenset({"events committed", "segments trimmed", "ingest starts", "writer starts"})
OF = " of "  # A fault that is counted already, and here again for what it happened to.
MUTANT_SEEDS_MAX = 20_000
SAY_EVERY_S = 10.0


def main(arguments: list[str] | None = None) -> int:
    asked = parse(arguments)
    first, last = asked.seeds
    if asked.mutants:
        return report_mutants(catch_all(MUTANTS, asked.seeds_max, asked.jobs), asked)
    if asked.shrink:
        return max(report_shrunk(seed, asked) for seed in range(first, last))
    if asked.steps:
        rules = MUTANTS.get(asked.mutant)
        return report([run_world(seed, rules, changes=asked.changes, printed=True) for seed in range(first, last)], asked)
    return report(run_all(range(first, last), asked.mutant, asked.jobs, asked.changes), asked)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seeds", type=_seeds, default=(0, 1000), help="A..B: from A up to, not with, B; or one seed")
    parser.add_argument("--steps", action="store_true", help="print every step")
    parser.add_argument("--mutant", choices=sorted(MUTANTS), default="", help="with this rule broken")
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help="a field of the seeds' profiles")
    parser.add_argument("--without", action="append", default=[], metavar="KIND", help="no fault of this kind")
    parser.add_argument("--shrink", action="store_true", help="find a smaller world in which the same breaks")
    parser.add_argument("--mutants", action="store_true", help="break every rule once, and say what noticed it")
    parser.add_argument("--seeds-max", type=int, default=MUTANT_SEEDS_MAX, help="with --mutants: how many seeds each may take")
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    asked = parser.parse_args(arguments)
    try:
        asked.changes = Changes.parse(asked.set, asked.without)
    except ValueError as error:
        parser.error(f"--set {error}")
    return asked


def _seeds(text: str) -> tuple[int, int]:
    first, separator, last = text.partition("..")
    return int(first), int(last) if separator else int(first) + 1


def report(outcomes: Iterable[Outcome], asked: argparse.Namespace) -> int:
    first, last = asked.seeds
    began_s = said_s = time.monotonic()
    counts: Counter[str] = Counter()
    steps = done = 0
    broken: list[Outcome] = []
    for outcome in outcomes:
        done += 1
        steps += outcome.step_count
        counts += outcome.counts
        if outcome.breach:
            broken.append(outcome)
            again = replay_command(outcome.seed, asked.mutant, asked.changes)
            print(
                f"seed {outcome.seed}: {outcome.breach}\n  see it again: {again} --steps\n  make it smaller: {again} --shrink", flush=True
            )
        if time.monotonic() - said_s >= SAY_EVERY_S:
            said_s = time.monotonic()
            rate = done / (said_s - began_s)
            print(f"{done} of {last - first} schedules, {len(broken)} with a breach, {rate:.1f} a second", flush=True)
            write_schedules(asked, done, steps, counts, broken, said_s - began_s)  # A run that is cut short leaves what it did.
        if last - first == 1:
            print(f"seed {outcome.seed}: trace {outcome.digest}")
    seconds = time.monotonic() - began_s
    faults = write_schedules(asked, done, steps, counts, broken, seconds)
    print(f"{done} schedules, {steps:,} steps, {faults:,} faults, {seconds:.0f} s: {len(broken)} with a breach")
    for name, count in sorted(counts.items()):
        print(f"  {count:9,} {name}")
    return 1 if broken else 0


def write_schedules(asked: argparse.Namespace, done: int, steps: int, counts: Counter[str], broken: list[Outcome], seconds: float) -> int:
    """The figures of what is done. Returns how many faults there were."""
    faults = {name: count for name, count in counts.items() if name not in FAULTS_APART and OF not in name}
    write_figures(
        asked,
        family="simulation",
        cases=done,
        breaches=len(broken),
        seconds=seconds,
        figures={"steps": steps, "faults": sum(faults.values()), "fault_kinds": len(faults)},
        detail={
            "seeds": list(asked.seeds),
            "counts": dict(sorted(counts.items())),
            "breaches": [{"seed": outcome.seed, "breach": outcome.breach} for outcome in broken],
        },
    )
    return sum(faults.values())


def report_shrunk(seed: int, asked: argparse.Namespace) -> int:
    shrunk = shrink(seed, MUTANTS.get(asked.mutant, Rules()), asked.changes)
    if shrunk is None:
        print(f"seed {seed}: nothing breaks")
        return 0
    outcome = shrunk.outcome
    print(f"seed {seed}: after {shrunk.tries} worlds, one of {outcome.step_count:,} steps breaks {invariant_of(outcome.breach)}")
    print(f"  {outcome.breach}\n  see it again: {replay_command(seed, asked.mutant, shrunk.changes)} --steps", flush=True)
    return 1


def report_mutants(caught: Iterable[Caught], asked: argparse.Namespace) -> int:
    """A line for each, as they are caught; then those that were not."""
    width = max(map(len, MUTANTS))
    began_s = time.monotonic()
    found = []
    for one in caught:
        found.append(one)
        what = f"{one.by}, after {one.seeds:,} seeds, {one.invariant}" if one.breach else f"NOT CAUGHT by {one.seeds:,} seeds"
        print(f"{one.mutant:{width}}  {what}", flush=True)
    missed = [one.mutant for one in found if not one.breach]
    print(f"{len(found)} broken rules, {len(found) - len(missed)} caught" + (f"; not: {', '.join(missed)}" if missed else ""))
    places = {mutant: place for place, mutant in enumerate(MUTANTS)}
    ordered = sorted(found, key=lambda one: places[one.mutant])
    rows = [{"mutant": one.mutant, "by": one.by, "seeds": one.seeds, "invariant": one.invariant, "breach": one.breach} for one in ordered]
    seconds = time.monotonic() - began_s
    figures = {"most_seeds": max(one.seeds for one in found), "by_scenario": sum(one.by != SIMULATION for one in found)}
    write_figures(asked, family="mutants", cases=len(found), breaches=len(missed), seconds=seconds, figures=figures, detail=rows)
    return 1 if missed else 0


def write_figures(asked: argparse.Namespace, **figures: Any) -> None:
    if asked.json is not None:
        summary.write(asked.json, **figures)


def replay_command(seed: int, mutant: str, changes: Changes) -> str:
    """Without what it is to do."""
    words = [f"python -m tests.simulation --seeds {seed}", *([f'--mutant "{mutant}"'] if mutant else []), *changes.arguments()]
    return " ".join(words)


if __name__ == "__main__":
    sys.exit(main())
