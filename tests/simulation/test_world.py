"""The whole daemon, simulated: no invariant breaks, whatever befalls it; broken rules are noticed; a seed is a schedule."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.simulation.__main__ import main
from tests.simulation.mutants import MUTANTS
from tests.simulation.schedules import run_all
from tests.simulation.world import run_world

SEEDS = int(os.environ.get("SIMULATION_SEEDS", "150"))
MUTANT_SEEDS = 150  # At most: most are caught by the first ten. The same seeds pass without them.
REPOSITORY = Path(__file__).parents[2]


def test_no_schedule_breaks_an_invariant() -> None:
    broken, faults = {}, Counter[str]()
    for outcome in run_all(range(SEEDS), "", jobs=2):
        faults += outcome.counts
        if outcome.breach:
            broken[outcome.seed] = outcome.breach
    assert broken == {}, "see one again: python -m tests.simulation --seeds SEED --steps"
    assert faults.keys() >= EXPECTED


# A fault that never happens proves nothing.
EXPECTED = {
    *("kill one", "kill both", "cut power", "freeze", "zombie one", "zombie both", "producer crash", "control link cut", "wire_cut"),
    *("blocks lost", "names lost", "sync_eio", "write_eio", "write_enospc", "write_split", "sync_directory_eio", "cache_evicted"),
    *("put_lost_before", "put_lost_after", "put_late", "get_lost", "frame_twice", "segments trimmed", "writer fenced"),
    *("load_lost", "swap_lost_before", "swap_lost_after", "swap_late", "swap_conflict_after_own", "swap_slow"),
    *("late request landed", "late request refused"),
    *("letters sent again", "verdicts: dead", "verdicts: replayed", "verdicts: superseded"),
    *("tables parked", "tables unparked", "park refused", "side segments unlinked"),
    *("mirror commits", "mirror rows deleted", "mirrors folded from changelogs"),
    *("foreign: append", "foreign: delete", "foreign: rewrite", "foreign: rewrite all", "foreign: equality deletes"),
    *("index_create_eio", "index_write_enospc", "index_rename_eio", "index_read_eio"),
    *("index: lost", "index: a file lost", "index: cut", "index: a bit flipped", "index: older"),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_broken_rule_is_caught_within_150_seeds(mutant: str) -> None:
    assert any(run_world(seed, MUTANTS[mutant]).breach for seed in range(MUTANT_SEEDS))


def test_a_seed_is_one_schedule_whatever_the_order_of_sets() -> None:
    command = [sys.executable, "-m", "tests.simulation", "--jobs", "1", "--seeds"]
    for seed in ("3", "8"):
        said = set()
        for hash_seed in ("1", "2"):
            environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
            ran = subprocess.run([*command, seed], cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=True)
            said.add(next(line for line in ran.stdout.splitlines() if "trace" in line))
        assert said == {f"seed {seed}: trace {run_world(int(seed)).digest}"}


def test_a_breach_is_told_with_the_command_that_shows_it_again(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--seeds", "0..2", "--jobs", "1"]) == 0
    assert "2 schedules" in capsys.readouterr().out
    assert main(["--seeds", "1", "--mutant", "fsync removed"]) == 1
    told = capsys.readouterr().out
    assert 'python -m tests.simulation --seeds 1 --steps --mutant "fsync removed"' in told
    assert main(["--seeds", "1", "--mutant", "fsync removed", "--steps"]) == 1
    again = capsys.readouterr().out
    assert "world breach I1" in again
    assert told.splitlines()[-1] == again.splitlines()[-1]
    assert next(line for line in told.splitlines() if "trace" in line) in again
