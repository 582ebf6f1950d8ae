"""How long to wait before trying again: one policy for all that may be away for a while, the object store and the catalog.

Every caller tries once, waits, and tries once more; nobody below repeats a request by itself, so that a part that is down gets
one request for each step of one backoff, not their product.
"""

from __future__ import annotations

from dataclasses import dataclass

_DOUBLINGS_MAX = 32  # Beyond any `longest_s`, and far from where a float overflows.


@dataclass(frozen=True)
class RetryPolicy:
    """Exponential, up to `longest_s`; the share `jitter` of each delay is left to chance, so that nobody comes back in step.

    `longest_s` is 4 s so that readiness is back within 5 s of what was away.
    """

    first_s: float = 0.05
    factor: float = 2.0
    longest_s: float = 4.0
    jitter: float = 0.5

    def delay_s(self, attempt: int, random: float) -> float:
        """After the failure of try `attempt`, counted from 1. `random` is from 0 up to 1: a whole step is waited at 0."""
        step_s = min(self.longest_s, self.first_s * self.factor ** min(attempt - 1, _DOUBLINGS_MAX))
        return step_s * (1 - self.jitter * random)


RETRY = RetryPolicy()
