"""Whether a broken rule is noticed: by the first schedule that breaks an invariant, or by the scenario that was written for it."""

from __future__ import annotations

from dataclasses import dataclass

from tests.simulation.constants import in_force
from tests.simulation.mutants import MUTANTS
from tests.simulation.scenarios import SCENARIOS
from tests.simulation.shrinking import invariant_of
from tests.simulation.world import run_world

SIMULATION = "simulation"


@dataclass(frozen=True)
class Caught:
    """`by` what: the simulation, or a scenario; after how many `seeds`. Not caught: `breach` is empty."""

    mutant: str
    by: str
    seeds: int
    breach: str

    @property
    def invariant(self) -> str:
        return invariant_of(self.breach) if self.breach else ""


def catch(mutant: str, seeds_max: int, *, first: int = 0) -> Caught:
    """By the seeds from `first` up to, not with, `seeds_max`."""
    rules = MUTANTS[mutant]
    if rules.scenario:
        with in_force(rules.patches):
            return Caught(mutant, rules.scenario, 1, SCENARIOS[rules.scenario]())
    for seed in range(first, seeds_max):
        if breach := run_world(seed, rules).breach:
            return Caught(mutant, SIMULATION, seed + 1 - first, breach)
    return Caught(mutant, SIMULATION, seeds_max - first, "")
