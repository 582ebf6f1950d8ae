"""Killing at random moments, from a seed, and how long it takes until the daemon serves again."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from tests.harness.daemon import HALVES, Daemon

TARGETS = (("ingest",), ("writer",), ("ingest", "writer"), ("supervisor",), ())  # the last: all of it


@dataclass
class Killer:
    """Kills what the seed says. `recoveries_s` is how long each kill took to be ready again, start of processes included."""

    daemon: Daemon
    random: random.Random
    recoveries_s: list[float] = field(default_factory=list)

    def kill(self, roles: Sequence[str]) -> None:
        """SIGKILL; returns when other processes serve. With `supervisor` or nothing named, the whole daemon is started again."""
        before = self.daemon.wait_ready()
        started = time.monotonic()
        self.daemon.kill(*roles)
        if not roles or "supervisor" in roles:
            self.daemon.start(wait=False)
        self.daemon.wait_replaced(before, *(roles if set(roles) <= set(HALVES) and roles else HALVES))
        self.recoveries_s.append(time.monotonic() - started)

    def kill_something(self) -> tuple[str, ...]:
        roles = self.random.choice(TARGETS)
        self.kill(roles)
        return roles


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest value that `percent` of them do not exceed; NaN of none."""
    if not values:
        return math.nan
    return sorted(values)[max(0, math.ceil(len(values) * percent / 100) - 1)]
