"""How long a log keeps what everybody has committed: so long can a table be taken back and its events be applied again."""

from __future__ import annotations

from collections import deque

_STEPS = 64  # The time is kept to this part of it: what is noted late is kept longer, never shorter.


class Retention:
    """Of one log. It remembers since when offsets are not needed any more; a process that has just begun counts from now."""

    def __init__(self, retain_s: float) -> None:
        self.retain_s = retain_s
        self._noted: deque[tuple[float, int]] = deque()
        self._over = 0

    def allowed(self, low: int, now_s: float) -> int:
        """Below which offset segments may go, where nobody needs what is below `low` now."""
        if self.retain_s <= 0:
            return low
        last_s, last_low = self._noted[-1] if self._noted else (now_s - self.retain_s, self._over)
        if low > last_low and now_s - last_s >= self.retain_s / _STEPS:
            self._noted.append((now_s, low))
        while self._noted and now_s - self._noted[0][0] >= self.retain_s:
            self._over = self._noted.popleft()[1]
        return min(low, self._over)
