"""The circuit breaker of one part that may be away: the store, or the catalog.

    closed ──3 failures in a row──► open ──its delay is over, one goes──► half-open ──it failed──► open, the next delay
       ▲                                                                     │
       └───────────────────────── anybody's answer ◄─────────────────────────┘

While it is closed everybody goes, and backs off alone. Once open, all wait together: one of them tries at each step of one
backoff, whoever they are and however many. So a dead store gets as many requests from a thousand tables as from one.

It only says who may try when. What a failure means is for whoever tried: a commit's outcome is looked up as ever.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from dolake.retry import RETRY, RetryPolicy

FAILURES_MAX = 3


class Circuit(StrEnum):
    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half-open"


@dataclass
class Breaker:
    """Values in, values out: what time it is and what chance says is handed in. Monotonic seconds."""

    policy: RetryPolicy = RETRY
    failures_max: int = FAILURES_MAX
    state: Circuit = Circuit.CLOSED
    failure_count: int = 0  # in a row; while open, of the tries at its steps
    since_s: float = 0.0  # of the first of them
    next_try_s: float = 0.0
    reason: str = ""
    code: str = ""

    def admits(self, now_s: float) -> bool:
        """Whether somebody may try now."""
        return self.state is Circuit.CLOSED or (self.state is Circuit.OPEN and now_s >= self.next_try_s)

    def enter(self) -> bool:
        """Somebody tries, having been admitted; whether it is the one try of this step."""
        if self.state is Circuit.CLOSED:
            return False
        self.state = Circuit.HALF_OPEN
        return True

    def answered(self) -> None:
        """By whoever: an answer is an answer."""
        self.state, self.failure_count, self.reason, self.code = Circuit.CLOSED, 0, "", ""

    def failed(self, reason: str, code: str, now_s: float, random: float, *, is_step: bool) -> None:
        """`is_step`: what `enter` said. A try that set out while it was closed and comes back late is no news."""
        self.reason, self.code = reason, code
        if self.state is not Circuit.CLOSED and not is_step:
            return
        if self.failure_count == 0:
            self.since_s = now_s
        self.failure_count += 1
        if is_step or self.failure_count >= self.failures_max:
            self.state = Circuit.OPEN
            self.next_try_s = now_s + self.policy.delay_s(self.failure_count, random)

    def left(self, *, is_step: bool) -> None:
        """A try that says nothing of this part, or was cut short: somebody else may have the step."""
        if is_step and self.state is Circuit.HALF_OPEN:
            self.state = Circuit.OPEN

    def describe(self, now_s: float) -> dict[str, Any]:
        """For people and monitors. `nextTrySeconds` is None where nobody waits for a step."""
        failing = self.failure_count > 0
        return {
            "state": self.state.value,
            "failures": self.failure_count,
            "failingSeconds": round(now_s - self.since_s, 1) if failing else 0.0,
            "nextTrySeconds": round(max(0.0, self.next_try_s - now_s), 1) if self.state is Circuit.OPEN else None,
            "code": self.code,
            "reason": self.reason,
        }
