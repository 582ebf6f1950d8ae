"""How fast one connection may send: a token bucket, pure arithmetic on what came and when.

A bucket holds two seconds of its rate. What costs more than a full bucket (a batch of more events) passes when the bucket is
full and leaves it in debt, so that nothing is refused for ever and the rate holds all the same.
"""

from __future__ import annotations

import math

from dolake.cdc.answer import RateLimit

BURST_S = 2
WAIT_S_MIN = 0.001
MISTAKE_COST = 10  # What a message costs that is none: naming its mistakes takes longer than taking a right one.
SLOW_BELOW = 0.2  # Below this share of a full bucket acks suggest a delay: who obeys is never refused.


class Bucket:
    """`per_s` tokens come each second, up to `burst`. Times are monotonic seconds and never go back."""

    def __init__(self, per_s: int, now_s: float) -> None:
        self.per_s, self.burst = per_s, per_s * BURST_S
        self._tokens, self._at_s = float(self.burst), now_s

    def take(self, cost: int, now_s: float) -> bool:
        """Pays for something that came; False, and nothing paid, if it came too soon."""
        tokens = self._level(now_s)
        self._tokens, self._at_s = tokens, now_s
        if tokens < min(cost, self.burst):
            return False
        self._tokens = tokens - cost
        return True

    def charge(self, cost: int, now_s: float) -> None:
        """Makes something dearer that has come already: what comes after it pays, for a burst's time at most."""
        self._tokens, self._at_s = max(-float(self.burst), self._level(now_s) - cost), now_s

    def wait_s(self, cost: int, now_s: float) -> float:
        """Until `take` of the same would be True; at least a millisecond, so that who waits in a loop gets somewhere."""
        missing = min(cost, self.burst) - self._level(now_s)
        return max(WAIT_S_MIN, missing / self.per_s) if missing > 0 else 0.0

    def share(self, now_s: float) -> float:
        """How full it is, at most 1; negative while in debt."""
        return self._level(now_s) / self.burst

    def suggested_delay_ms(self, now_s: float) -> int | None:
        """How long a source should pause so that it is not refused soon; None while there is no need."""
        missing = SLOW_BELOW * self.burst - self._level(now_s)
        return math.ceil(missing * 1000 / self.per_s) if missing > 0 else None

    def state(self, now_s: float, now_ms: int) -> RateLimit:
        """As the protocol says it. `now_ms` is the wall clock's: `resetAt` is when `remaining` will be `limit` again."""
        level = self._level(now_s)
        reset_s = math.ceil(now_ms / 1000 + (self.burst - level) / self.per_s)
        return RateLimit(limit=self.burst, remaining=max(0, int(level)), reset_at=reset_s)

    def _level(self, now_s: float) -> float:
        return min(self.burst, self._tokens + (now_s - self._at_s) * self.per_s)


class Rates:
    """The buckets of one connection: messages always, events where a limit is set."""

    def __init__(self, messages_per_s: int, events_per_s: int | None, now_s: float) -> None:
        self.messages = Bucket(messages_per_s, now_s)
        self.events = None if events_per_s is None else Bucket(events_per_s, now_s)

    def tightest(self, now_s: float) -> Bucket:
        """The one that will refuse first."""
        if self.events is None or self.messages.share(now_s) <= self.events.share(now_s):
            return self.messages
        return self.events
