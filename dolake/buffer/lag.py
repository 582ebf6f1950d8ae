"""How many events lie behind a bound that follows, and since when: by record as long as these are few, in coarser steps then."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

_STEPS_MAX = 8192


@dataclass(frozen=True, slots=True)
class _Step:
    """Some records up to `end`, exclusive; `since_s` is when the first of them came."""

    end: int
    event_count: int
    since_s: float


class Lag:
    """Records are noted in the order of their offsets; those below the bound are forgotten. Once too often does no harm."""

    def __init__(self) -> None:
        self._steps: deque[_Step] = deque()
        self.event_count = 0

    def note(self, offset: int, event_count: int, now_s: float) -> None:
        """A record came."""
        if self._steps and offset < self._steps[-1].end:
            return
        step = _Step(offset + 1, event_count, now_s)
        if len(self._steps) >= _STEPS_MAX:  # The bound does not move: only the sum and the beginning matter.
            last = self._steps.pop()
            step = _Step(step.end, last.event_count + event_count, last.since_s)
        self._steps.append(step)
        self.event_count += event_count

    def follow(self, bound: int) -> None:
        """Everything below `bound` is behind us."""
        while self._steps and self._steps[0].end <= bound:
            self.event_count -= self._steps.popleft().event_count

    def age_s(self, now_s: float) -> float:
        """Since when the oldest record is here; 0 without any."""
        return max(0.0, now_s - self._steps[0].since_s) if self._steps else 0.0
