"""Faults as values, and the count of what they did: one that was installed and never hit fails the test that used it.

A proxy asks at each *moment* (a connection, a chunk of bytes, a request, a frame) whether a fault of some kind bites:

    Fault("lose_answer", when=requests("PUT", "/metadata/"), times=1)
    Fault("latency", seconds=0.2)
    Fault("cut", when=frames("down", "ack"), skip=3, times=1)
"""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Fault:
    """One kind of trouble; which proxy knows which kinds, and what the last fields mean to them, is written there.

    `when` says which moments it may hit (all), `skip` how many of those pass before, `times` how often it hits (without end),
    `chance` whether it does. What it holds back is let go after `seconds`, or when the fault is removed.
    """

    kind: str
    when: Callable[[Any], bool] | None = None
    skip: int = 0
    times: float = math.inf
    chance: float = 1.0
    seconds: float = math.inf
    size_bytes: int = 0
    status: int = 0
    code: str = ""


@dataclass(eq=False)
class Installed:
    """A fault in a proxy. `hit_count` is how often it bit; it stays readable after the fault was removed."""

    fault: Fault
    hit_count: int = 0
    seen_count: int = 0
    gone: asyncio.Event = field(default_factory=asyncio.Event)

    def bites(self, moment: Any, chance: random.Random) -> bool:
        fault = self.fault
        if self.gone.is_set() or self.hit_count >= fault.times:
            return False
        if fault.when is not None and not fault.when(moment):
            return False
        self.seen_count += 1
        if self.seen_count <= fault.skip or chance.random() >= fault.chance:
            return False
        self.hit_count += 1
        return True

    async def hold(self) -> None:
        """Returns after the fault's seconds, or when it is removed."""
        try:
            async with asyncio.timeout(None if self.fault.seconds == math.inf else self.fault.seconds):
                await self.gone.wait()
        except TimeoutError:
            pass


class FaultNeverHit(AssertionError):
    """A test installed a fault that changed nothing: it has not shown what it says."""


class Faults:
    """The faults of one proxy, in its loop. Chances are drawn from a seed."""

    def __init__(self, seed: int = 0) -> None:
        self.installed: list[Installed] = []
        self._chance = random.Random(seed)

    def install(self, fault: Fault) -> Installed:
        self.installed.append(Installed(fault))
        return self.installed[-1]

    def bites(self, installed: Installed, moment: Any) -> bool:
        """Whether this fault hits this moment: counted, so it is asked once for each."""
        return installed.bites(moment, self._chance)

    def biting(self, moment: Any, *kinds: str) -> Installed | None:
        """The first fault of these kinds that hits this moment."""
        return next((one for one in self.installed if one.fault.kind in kinds and self.bites(one, moment)), None)

    def never_hit(self) -> list[Fault]:
        return [installed.fault for installed in self.installed if not installed.hit_count]
