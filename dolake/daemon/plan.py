"""What to do when a child process has ended: start it again, when, or end everything. Values in, a decision out.

A restart mends a crash; it does not mend wrong settings (2), corrupt data (4) or a refusal (5). The ingest half without a
log has nothing to do, so these end the daemon. The writer half may fail while acks go on: once it has been ready, it is
tried again, slowly, until somebody mends what it says; before that, nobody depends on it yet and the daemon ends with its
words as the last ones.
"""

from __future__ import annotations

from dataclasses import dataclass

UNMENDABLE = {2: "its settings are wrong", 4: "its data is corrupt", 5: "it was refused"}
UNREACHABLE = 3

QUICK_DEATH_S = 1.0  # A child that lived this long after it was ready did not die of its start.
_IMMEDIATE_RESTARTS = 2
_DELAY_S_FIRST, _DELAY_S_MAX = 0.1, 5.0
_SLOW_DELAY_S = 30.0
_STARTS_MAX = 5


@dataclass(frozen=True)
class Death:
    """How a child ended. `exit_code` is negative for a signal; `quick_deaths` counts those in a row, this one included."""

    role: str
    exit_code: int
    ever_ready: bool
    quick_deaths: int


@dataclass(frozen=True)
class Restart:
    delay_s: float


@dataclass(frozen=True)
class End:
    exit_code: int
    reason: str


def plan_restart(death: Death) -> Restart | End:
    if death.exit_code in UNMENDABLE:
        why = UNMENDABLE[death.exit_code]
        if death.role == "ingest" or not death.ever_ready:
            return End(death.exit_code, f"{why}: a restart cannot mend that")
        return Restart(_SLOW_DELAY_S)
    if not death.ever_ready and death.exit_code > 0 and death.exit_code != UNREACHABLE and death.quick_deaths >= _STARTS_MAX:
        return End(death.exit_code, f"it failed {death.quick_deaths} times and was never ready")
    return Restart(restart_delay_s(death.quick_deaths))


def restart_delay_s(quick_deaths: int) -> float:
    """None for the first two: a killed child must be back at once. Then doubling."""
    if quick_deaths <= _IMMEDIATE_RESTARTS:
        return 0.0
    return float(min(_DELAY_S_MAX, _DELAY_S_FIRST * 2.0 ** min(quick_deaths - _IMMEDIATE_RESTARTS - 1, 16)))
