"""AT-02: an ack means on disk, whatever a power cut takes; and the simulation notices when it does not."""

from __future__ import annotations

import pytest

from tests.simulation.logworld import CUTS, MUTANTS, run_log_world

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
