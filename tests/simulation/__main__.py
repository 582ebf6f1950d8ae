"""Many schedules: `python -m tests.simulation --seeds 0..10000`. Ends with 1 if an invariant broke, and says how to see it again."""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Iterable

from tests.simulation.mutants import MUTANTS
from tests.simulation.schedules import run_all
from tests.simulation.world import Outcome, run_world

FAULTS_APART = frozenset({"events committed", "segments trimmed", "ingest starts", "writer starts"})


def main(arguments: list[str] | None = None) -> int:
    asked = parse(arguments)
    first, last = asked.seeds
    if asked.steps:
        return report([run_world(seed, MUTANTS.get(asked.mutant), printed=True) for seed in range(first, last)], asked)
    return report(run_all(range(first, last), asked.mutant, asked.jobs), asked)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seeds", type=_seeds, default=(0, 1000), help="A..B: from A up to, not with, B; or one seed")
    parser.add_argument("--steps", action="store_true", help="print every step")
    parser.add_argument("--mutant", choices=sorted(MUTANTS), default="", help="with this rule broken")
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    return parser.parse_args(arguments)


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
            print(f"seed {outcome.seed}: {outcome.breach}\n  see it again: {replay_command(outcome.seed, asked.mutant)}", flush=True)
        if time.monotonic() - said_s > 10:
            said_s = time.monotonic()
            print(f"{done} of {last - first} schedules, {len(broken)} with a breach, {done / (said_s - began_s):.0f} a second", flush=True)
        if last - first == 1:
            print(f"seed {outcome.seed}: trace {outcome.digest}")
    faults = {name: count for name, count in counts.items() if name not in FAULTS_APART}
    seconds = time.monotonic() - began_s
    print(f"{done} schedules, {steps:,} steps, {sum(faults.values()):,} faults, {seconds:.0f} s: {len(broken)} with a breach")
    for name, count in sorted(counts.items()):
        print(f"  {count:9,} {name}")
    return 1 if broken else 0


def replay_command(seed: int, mutant: str) -> str:
    return f"python -m tests.simulation --seeds {seed} --steps" + (f' --mutant "{mutant}"' if mutant else "")


if __name__ == "__main__":
    sys.exit(main())
