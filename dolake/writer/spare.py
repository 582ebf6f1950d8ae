"""Rewrites in time to spare: what the plan would wait with until there is more of it, where reads are much shorter for it now.

The plan rewrites each row O(log n) times, and leaves a few files of each size and some deleted rows to be read around. While there
is nothing that it wants, a share of the time goes into those too, where the table's readers gain most.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from dolake.clock import Runtime
from dolake.compaction.choice import Choice, read_s
from dolake.compaction.compactor import Compactor
from dolake.compaction.plan import CompactionPolicy
from dolake.errors import ObjectDamaged, ObjectMissing
from dolake.iceberg.metadata import LoadedTable
from dolake.model import TableName
from dolake.writer.look import Look

# A whole read of the table must take so much less time.
_GAIN_SHARE_MIN = 0.1
_DELETED_SHARE_MAX = 0.05


class Spare:
    """Of one writer half. After a rewrite that took t seconds none is due until it has been `share` of the time; 0 is never."""

    def __init__(self, runtime: Runtime, share: float, compactor: Compactor, policy: CompactionPolicy) -> None:
        self._runtime, self._share, self._compactor = runtime, share, compactor
        self._policy = replace(
            policy, wait_for_more=False, inputs_min=2, deleted_share_max=min(_DELETED_SHARE_MAX, policy.deleted_share_max)
        )
        self._not_before_s = 0.0
        self._fine: dict[TableName, int | None] = {}  # the head at which nothing of a table was worth it

    @property
    def is_due(self) -> bool:
        return self._share > 0 and self._runtime.clock.monotonic_s() >= self._not_before_s

    def took(self, seconds: float) -> None:
        """A rewrite that has just ended."""
        self._not_before_s = self._runtime.clock.monotonic_s() + seconds * (1 / self._share - 1)

    async def best(self, looks: Iterable[Look]) -> tuple[LoadedTable, Choice] | None:
        """What shortens reads most, of the table whose reads can be shortened most: by its share of what they take.

        A table whose manifests are gone since it was looked at is passed over.
        """
        now_s = self._runtime.clock.monotonic_s()
        best: tuple[float, LoadedTable, Choice] | None = None
        for look in looks:
            name, head_id = look.base.name, look.base.head_id
            if self._fine.get(name, -1) == head_id:
                continue
            try:
                share, choice = await self._best_of(look, now_s)
            except (ObjectMissing, ObjectDamaged):
                continue
            if choice is None and not look.shut(now_s):  # Else it may be worth it when they are open again.
                self._fine[name] = head_id
            if choice is not None and (best is None or share > best[0]):
                best = share, look.base, choice
        return None if best is None else best[1:]

    async def _best_of(self, look: Look, now_s: float) -> tuple[float, Choice | None]:
        """How much shorter a whole read could be, and the choice that makes the most of it; None where that is too little.

        Raises ObjectMissing, ObjectDamaged.
        """
        files = await self._compactor.files(look.base, look.reader)
        whole_s = read_s(len(files), sum(file.size_bytes for file in files))
        plan = await self._compactor.plan(look.base, self._policy, reader=look.reader)
        choices = look.open_of(plan.choices, now_s)
        saved_s = sum(choice.read_s_saved for choice in choices)
        if not choices or saved_s < _GAIN_SHARE_MIN * whole_s:
            return 0.0, None
        return saved_s / whole_s, max(choices, key=lambda choice: choice.read_s_saved)
