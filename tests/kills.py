"""`python -m tests.kills`: a daemon's parts are killed again and again under traffic, and after each life all is there once.

A life is one data directory: a source sends without a pause, SIGKILLs come at random moments of its acks, and at the end the tables,
every snapshot that is left of their history, and `dolake verify` are held against what was sent and acked.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

from tests.harness.daemon import Daemon
from tests.harness.history import assert_lake_equals_oracle
from tests.harness.kills import TARGETS, Killer, percentile
from tests.harness.lake import Lake
from tests.harness.oracle import Oracle
from tests.harness.ports import own_address
from tests.harness.traffic import drain, steady_traffic
from tests.harness.waiting import wait_until
from tests.reliability import summary

QUICK = {"DOLAKE_FLUSH_AGE_S": "0.2", "DOLAKE_LOG_SEGMENT_BYTES": "64 KiB"}
MODES = ("changelog", "both")
KILLS_A_LIFE = 50


@dataclass(frozen=True)
class Life:
    """`breach` is empty where all is well."""

    seed: int
    recoveries_s: tuple[float, ...]
    event_count: int
    breach: str = ""


def run_life(directory: Path, seed: int, kills: int) -> Life:
    """Raises AssertionError, with what is wrong, where a row is lost, doubled, changed, or seen in a snapshot where it is not."""
    chance = random.Random(seed)
    mode = MODES[seed % len(MODES)]
    oracle = Oracle(directory / "journal")
    settings = {**QUICK, "DOLAKE_HOST": own_address(seed)}
    with Daemon(directory / "data", settings, mode=mode, spare=True) as daemon, Lake(daemon.data) as lake:
        killer = Killer(daemon.start(), chance)

        async def scenario() -> None:
            async with steady_traffic(daemon, oracle) as traffic:
                for number in range(kills):
                    acked = traffic.source.acked + chance.randrange(1, 60)
                    await asyncio.to_thread(wait_until, lambda acked=acked: traffic.source.acked >= acked, "traffic between kills", 60)
                    await asyncio.to_thread(killer.kill, TARGETS[number % len(TARGETS)])
            await drain(daemon, 120)

        asyncio.run(scenario())
        assert_lake_equals_oracle(lake, oracle, mode=mode)
        done = daemon.run("verify", deadline_s=120)
        assert done.returncode == 0, done.stdout + done.stderr
    return Life(seed, tuple(killer.recoveries_s), sum(len(batch.events) for batch in oracle.batches.values()))


def try_life(seed: int, kills: int) -> Life:
    """What is breached leaves its files: the moments of its kills do not come again."""
    directory = tempfile.mkdtemp(prefix=f"dolake-kills-{seed}-")
    try:
        life = run_life(Path(directory), seed, kills)
    except Exception as error:  # The supervisor of one life: the others go on, and this one is told.
        return Life(seed, (), 0, f"{type(error).__name__}: {error}; its files are in {directory}")
    shutil.rmtree(directory)
    return life


def run_lives(seeds: Sequence[int], kills: int, jobs: int) -> Iterator[Life]:
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
        for done in as_completed([pool.submit(try_life, seed, kills) for seed in seeds]):
            yield done.result()


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.kills", description=__doc__)
    parser.add_argument("--kills", type=int, default=2000, help="in all, 50 to a life")
    parser.add_argument("--first", type=int, default=0, metavar="SEED", help="the seed of the first life")
    parser.add_argument("--jobs", type=int, default=2, help="daemons at once")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    asked = parser.parse_args(arguments)
    began_s = time.monotonic()
    lives: list[Life] = []
    count = -(-asked.kills // KILLS_A_LIFE)
    for life in run_lives(range(asked.first, asked.first + count), min(asked.kills, KILLS_A_LIFE), asked.jobs):
        lives.append(life)
        if life.breach:
            print(f"life {life.seed}: {life.breach}\n  see it again: python -m tests.kills --first {life.seed} --kills {KILLS_A_LIFE}")
        print(f"{len(lives)} of {count} lives, {sum(len(one.recoveries_s) for one in lives)} kills", flush=True)
    recoveries = [seconds for life in lives for seconds in life.recoveries_s]
    broken = [life for life in lives if life.breach]
    events = sum(life.event_count for life in lives)
    seconds = time.monotonic() - began_s
    print(f"kills: {len(recoveries):,} SIGKILLs, {events:,} events, {seconds:.0f} s: {len(broken)} lives with a breach")
    if asked.json is not None:
        figures = {"events": events, "ready_again_s_p95": round(percentile(recoveries, 95), 2)}
        detail = [{"seed": life.seed, "breach": life.breach} for life in broken]
        summary.write(
            asked.json, family="kills", cases=len(recoveries), breaches=len(broken), seconds=seconds, figures=figures, detail=detail
        )
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
