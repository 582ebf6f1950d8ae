"""AT-02: an ack means on disk, whatever a power cut takes; and the simulation notices when it does not."""

from __future__ import annotations

import itertools

import pytest

from dolake.buffer.wal import Log, LogSettings
from dolake.model import Entry, RecordKind
from tests.simulation.disk import DiskDoor, SimDisk
from tests.simulation.faults import Chaos, Trace
from tests.simulation.logworld import CUTS, DIRECTORY, MUTANTS, ROOT, run_log_world
from tests.simulation.loop import Process, ProcessKilled, SimLoop

SEEDS = 500
MUTANT_SEEDS = 20


@pytest.mark.acceptance("AT-02")
@pytest.mark.parametrize("cut", CUTS)
def test_no_acked_entry_is_lost_to_a_power_cut(cut: str) -> None:
    kinds = list(CUTS)
    seeds = range(kinds.index(cut), SEEDS, len(kinds))
    assert {seed: breach for seed in seeds if (breach := run_log_world(seed, cut))} == {}


@pytest.mark.acceptance("AT-02")
@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_log_that_breaks_the_rule_is_caught_within_twenty_seeds(mutant: str) -> None:
    kinds = list(CUTS)
    assert any(run_log_world(seed, kinds[seed % len(kinds)], MUTANTS[mutant]) for seed in range(MUTANT_SEEDS))


def test_two_recoveries_that_die_anywhere_and_a_power_cut_lose_no_acked_entry() -> None:
    """The second one finds what the first one made, and whose names may be in no directory on disk yet."""
    for first in itertools.count(1):
        for second in itertools.count(1):
            ends = {_recover_thrice(first, second, seed) for seed in range(6)}
            if ends != {"second died"}:
                break
        if ends == {"first lived"}:
            return


def _recover_thrice(first: int, second: int, seed: int) -> str:
    """Two recoveries die at these steps of theirs, then the power is cut. Which of them came to its end before."""
    disk, loop = SimDisk(Chaos(f"{first} {second} {seed}", {}), ROOT), SimLoop("recovery", trace=Trace())
    try:
        door = DiskDoor(disk, Process(loop, "before", ""))
        log = Log.create(door, DIRECTORY, LogSettings(), door.process.runtime.random)
        log.append_group([Entry(RecordKind.BATCH, "a", "", 0, 1, 0, b"{}", {"t": 1}, 0)])
        door.process.die()
        if _recover(disk, loop, first) is not None:
            return "first lived"
        lived = _recover(disk, loop, second) is not None
        disk.cut_power(CUTS["unsynced names"])
        found = _recover(disk, loop, None)
        assert found is not None
        assert (found.synced_end, found.lost_count) == (1, 0), (first, second, seed)
        return "second lived" if lived else "second died"
    finally:
        loop.close()


def _recover(disk: SimDisk, loop: SimLoop, dies_at: int | None) -> Log | None:
    process = Process(loop, "recovery", "")
    process.steps_left, process.on_moment = dies_at, lambda process: process.die()
    try:
        return Log.open(DiskDoor(disk, process), DIRECTORY, LogSettings(), process.runtime.random)
    except ProcessKilled:
        return None
    finally:
        process.die()
