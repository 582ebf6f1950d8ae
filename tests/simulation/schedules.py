"""Runs many seeds in several processes."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed

import pyarrow as pa

from tests.simulation.catching import Caught, catch
from tests.simulation.changes import Changes
from tests.simulation.mutants import MUTANTS
from tests.simulation.world import Outcome, run_world

CHUNK = 4  # Small: outcomes flow, and no process waits long for the other at the end.


def run_all(seeds: Sequence[int], mutant: str, jobs: int, changes: Changes | None = None) -> Iterator[Outcome]:
    """Outcomes as they come, whichever process they come from."""
    chunks = [seeds[first : first + CHUNK] for first in range(0, len(seeds), CHUNK)]
    if jobs <= 1 or len(chunks) == 1:
        for chunk in chunks:
            yield from run_chunk(chunk, mutant, changes)
        return
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), initializer=_use_one_core) as pool:
        for done in as_completed([pool.submit(run_chunk, chunk, mutant, changes) for chunk in chunks]):
            yield from done.result()


def run_chunk(seeds: Sequence[int], mutant: str, changes: Changes | None = None) -> list[Outcome]:
    return [run_world(seed, MUTANTS.get(mutant), changes=changes) for seed in seeds]


def catch_all(mutants: Iterable[str], seeds_max: int, jobs: int) -> Iterator[Caught]:
    """Each mutant by itself, as they are done."""
    if jobs <= 1:
        yield from (catch(mutant, seeds_max) for mutant in mutants)
        return
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), initializer=_use_one_core) as pool:
        for done in as_completed([pool.submit(catch, mutant, seeds_max) for mutant in mutants]):
            yield done.result()


def _use_one_core() -> None:
    pa.set_cpu_count(1)
