"""How store and catalog are asked by all that runs in one process: each try once, all of them by one policy and two breakers.

Everything here runs on the loop; what blocks runs beside it, by the runtime's tasks.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection
from typing import Any

from dolake.clock import Runtime
from dolake.errors import CatalogUnreachable, DolakeError, MetadataMissing, ObjectDamaged, StoreUnreachable
from dolake.iceberg.breaker import Breaker, Circuit
from dolake.retry import RETRY, RetryPolicy

STORE, CATALOG = "store", "catalog"
PARTS = (STORE, CATALOG)
_TICK_S = 0.1
# An object that is not what was put may have been spoilt on its way: it is read again for half a minute before that is believed.
DAMAGED_TRIES_MAX = 12


def part_at_fault(error: Exception) -> str | None:
    """Whose absence an error speaks of; None where somebody has answered, be it a refusal."""
    if isinstance(error, MetadataMissing):  # Of one table: the catalog has answered.
        return None
    if isinstance(error, StoreUnreachable):
        return STORE
    return CATALOG if isinstance(error, CatalogUnreachable) else None


def _unobserved(part: str, trouble: str) -> None:
    return None


class LakeAccess:
    """`observe(part, trouble)` hears how store and catalog answer ("" is well)."""

    def __init__(self, runtime: Runtime, policy: RetryPolicy = RETRY) -> None:
        self._runtime, self._policy = runtime, policy
        self.breakers = {part: Breaker(policy) for part in PARTS}
        self.failures = Counter[str]()  # by part, of all tries so far
        self.observe: Callable[[str, str], None] = _unobserved
        self._waiting: dict[int, frozenset[str]] = {}  # the oldest first: by a number, what each waits for
        self._turn_count = 0

    async def until_answered(self, part: str, work: Callable[..., Any], *arguments: Any) -> Any:
        """Does blocking `work` again and again until store and catalog answer it. `part` is the one it asks first.

        Raises ObjectDamaged once an object has not been what it was for `DAMAGED_TRIES_MAX` tries, and what else `work` raises.
        """
        parts = {part}
        attempt = damaged = 0
        while True:
            attempt += 1
            try:
                async with self.turn(parts):
                    result = await self._runtime.tasks.run(work, *arguments)
            except (CatalogUnreachable, StoreUnreachable) as trouble:
                fault = part_at_fault(trouble) or part
                parts.add(fault)
                self.observe(fault, str(trouble))
                await self.pause(trouble, attempt)
            except ObjectDamaged as damage:
                damaged += 1
                if damaged >= DAMAGED_TRIES_MAX:
                    self.observe(STORE, "")  # It is that object, and not the store: whoever needs it says so.
                    raise
                self.observe(STORE, str(damage))
                await self.pause(damage, damaged)
            else:
                for asked in parts:
                    self.observe(asked, "")
                return result

    @contextlib.asynccontextmanager
    async def turn(self, parts: Collection[str]) -> AsyncIterator[None]:
        """One try, once all these parts may be tried. How it ends tells what became of them: peace, or an answer, closes."""
        await self._admitted(parts)
        steps = {part: self.breakers[part].enter() for part in parts}  # Nothing waits between this and the look before.
        fault: str | None = None
        answered = False
        try:
            yield
            answered = True
        except DolakeError as error:
            fault = part_at_fault(error)
            answered = fault is None
            if fault is not None:
                self._note_failure(fault, error, is_step=steps.get(fault, False))
            raise
        finally:
            for part, is_step in steps.items():
                if answered:
                    self.breakers[part].answered()
                elif part != fault:
                    self.breakers[part].left(is_step=is_step)

    async def pause(self, error: Exception, attempt: int) -> None:
        """Before the next try."""
        await self._runtime.clock.sleep(self.pause_s(error, attempt))

    def pause_s(self, error: Exception, attempt: int) -> float:
        """After an error in try `attempt`, counted from 1. Nothing where the breaker is open: its own delay is waited for."""
        fault = part_at_fault(error)
        if fault is not None and self.breakers[fault].state is not Circuit.CLOSED:
            return 0.0
        return self._policy.delay_s(attempt, self._runtime.random.uniform(0, 1))

    def may_look(self, part: str) -> bool:
        """Whether somebody who only wants to know may ask: not where those who need it try it at each step anyway."""
        breaker = self.breakers[part]
        is_awaited = any(part in parts for parts in self._waiting.values())
        return breaker.state is Circuit.CLOSED or (not is_awaited and self._admits([part]))

    def describe(self) -> dict[str, Any]:
        now_s = self._runtime.clock.monotonic_s()
        return {part: breaker.describe(now_s) for part, breaker in self.breakers.items()}

    async def _admitted(self, parts: Collection[str]) -> None:
        """Until it is this one's turn: a step goes to who has waited longest, or one that always fails could take them all."""
        self._turn_count += 1
        number = self._turn_count
        self._waiting[number] = frozenset(parts)
        try:
            while not self._admits(parts) or self._has_older(number):
                await self._runtime.clock.sleep(_TICK_S)
        finally:
            del self._waiting[number]

    def _admits(self, parts: Collection[str]) -> bool:
        now_s = self._runtime.clock.monotonic_s()
        return all(self.breakers[part].admits(now_s) for part in parts)

    def _has_older(self, number: int) -> bool:
        """Whether somebody else may take a step that this one needs, and has waited longer."""
        steps = {part for part in self._waiting[number] if self.breakers[part].state is not Circuit.CLOSED}
        return any(one < number and steps & parts and self._admits(parts) for one, parts in self._waiting.items())

    def _note_failure(self, part: str, error: Exception, *, is_step: bool) -> None:
        self.failures[part] += 1
        now_s, chance = self._runtime.clock.monotonic_s(), self._runtime.random.uniform(0, 1)
        self.breakers[part].failed(str(error), getattr(error, "code", ""), now_s, chance, is_step=is_step)
