"""One seed's misfortune: which faults may happen, how often, how many did, and the trace that two runs must share."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping

import xxhash


class Breach(AssertionError):
    """An invariant does not hold. The sentence names it."""


class Chaos:
    """Draws faults by name. `chances` gives each name's probability at each occasion; absent means never."""

    def __init__(self, seed: str, chances: Mapping[str, float]) -> None:
        self.random = random.Random(seed)
        self.chances = dict(chances)
        self.counts: Counter[str] = Counter()

    def draw(self, *names: str) -> str | None:
        """The fault that happens on this occasion, counted; None mostly."""
        total = sum(self.chances.get(name, 0.0) for name in names)
        if total == 0.0:
            return None
        point = self.random.random()
        for name in names:
            point -= self.chances.get(name, 0.0)
            if point < 0:
                self.count(name)
                return name
        return None

    def count(self, name: str) -> None:
        self.counts[name] += 1

    def heal(self) -> None:
        """No fault happens from here on."""
        self.chances.clear()


class Trace:
    """What happened, as one hash; the steps themselves are printed when asked for."""

    def __init__(self, *, printed: bool = False) -> None:
        self._hash = xxhash.xxh3_128()
        self._printed = printed
        self.step_count = 0

    def __call__(self, who: str, what: str, detail: str = "") -> None:
        line = f"{who} {what} {detail}"
        self._hash.update(line.encode())
        self.step_count += 1
        if self._printed:
            print(f"{self.step_count:6d} {line}")

    def digest(self) -> str:
        return self._hash.hexdigest()


def fingerprint(data: bytes | memoryview) -> str:
    """Content, short enough for a trace."""
    return f"{xxhash.xxh3_64_intdigest(data):016x}"
