"""`python -m tests.soak --minutes 3`: a daemon under load and trouble. `--chaos --seeds 5` runs AT-117 once for each seed.

Ends with 1 if anything was breached; then the folder of that run stays. `--store s3` needs the server that e2e/services builds.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import shutil
import sys
import tempfile
import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tests.reliability.summary import write
from tests.soak.engine import Outcome, run_chaos, run_soak, world


def main(arguments: list[str] | None = None) -> int:
    asked = parse(arguments)
    seconds = asked.hours * 3600 if asked.hours else asked.minutes * 60
    began_s = time.monotonic()
    with contextlib.ExitStack() as stack:
        s3 = stack.enter_context(_s3(Path(stack.enter_context(tempfile.TemporaryDirectory())))) if asked.store == "s3" else None
        outcomes = [one(asked, seed, seconds, s3) for seed in range(asked.seed, asked.seed + asked.seeds)]
    breaches = sum(len(outcome.breaches) for outcome in outcomes)
    totals: Counter[str] = Counter()
    for outcome in outcomes:
        totals.update(outcome.counts)
    family = "chaos" if asked.chaos else "soak"
    events = sum(outcome.events for outcome in outcomes)
    print(f"{family}: {len(outcomes)} runs, {sum(totals.values())} troubles, {events:,} events, {breaches} breaches")
    for name, count in sorted(totals.items()):
        print(f"  {count:5} {name}")
    if asked.json is not None:
        write(
            asked.json,
            family=family,
            cases=len(outcomes),
            breaches=breaches,
            seconds=time.monotonic() - began_s,
            figures=figures(outcomes, totals),
            detail=[asdict(outcome) for outcome in outcomes],
        )
    return 1 if breaches else 0


def figures(outcomes: list[Outcome], totals: Counter[str]) -> dict[str, float]:
    found: dict[str, float] = {
        "events": sum(outcome.events for outcome in outcomes),
        "troubles": sum(totals.values()),
        "kinds of trouble": len(totals),
        "drained_s_max": max((seconds for outcome in outcomes for seconds in outcome.drained_s), default=0.0),
    }
    for outcome in outcomes:
        for name, value in {**outcome.figures, **{f"{role}_slope_mib_per_min": slope for role, slope in outcome.slopes.items()}}.items():
            found[name] = max(value, found.get(name, value))
    return found


def one(asked: argparse.Namespace, seed: int, seconds: float, s3: Any) -> Outcome:
    folder = Path(tempfile.mkdtemp(prefix=f"dolake-soak-{seed}-"))
    print(f"seed {seed}, {seconds:.0f} s, {asked.sources} sources, {asked.store} store, in {folder}", flush=True)
    with world(folder, seed, sources=asked.sources, pause_s=asked.pause_s, s3=s3) as place:
        outcome = asyncio.run((run_chaos if asked.chaos else run_soak)(place, seconds))
    print(outcome.line(), flush=True)
    for breach in outcome.breaches:
        print(f"  {breach[:2000]}", flush=True)
    if outcome.breaches:
        again = f"python -m tests.soak {'--chaos ' if asked.chaos else ''}--minutes {seconds / 60:g} --seed {seed} --store {asked.store}"
        print(f"  its files are in {folder}; the same schedule again: {again}", flush=True)
    else:
        shutil.rmtree(folder)
    return outcome


def _s3(folder: Path) -> Any:
    from e2e.services.s3 import S3Server

    return S3Server(folder / "s3")


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=3.0)
    parser.add_argument("--hours", type=float, default=0.0, help="in place of minutes")
    parser.add_argument("--chaos", action="store_true", help="one round of nothing but trouble, as AT-117")
    parser.add_argument("--seed", type=int, default=1, help="the first")
    parser.add_argument("--seeds", type=int, default=1, help="so many runs, one after another")
    parser.add_argument("--sources", type=int, default=10)
    parser.add_argument("--pause-s", type=float, default=0.1, help="between two batches of a source, on average")
    parser.add_argument("--store", choices=["local", "s3"], default="local", help="where the warehouse is")
    parser.add_argument("--json", type=Path, help="where to leave the summary")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
