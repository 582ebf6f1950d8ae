"""Upkeep of the dead letters: what is worth it is rewritten and committed, by the writer that owns them, between its verdicts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dolake.clock import Runtime
from dolake.compaction.letters import plan_letters, rewrite_letters
from dolake.compaction.ttl import Ttl, Witness, cutoff_us, why_put_off
from dolake.config import Settings
from dolake.iceberg.access import STORE, LakeAccess
from dolake.iceberg.contents import ContentsReader, LiveFile
from dolake.iceberg.metadata import LoadedTable
from dolake.storage.store import ObjectStore
from dolake.writer.letters import DeadLetters

_JUDGED_AT = "judged_at"
_INPUTS_MIN = 8


@dataclass(frozen=True)
class Tidying:
    """`witness`: of a process that has run for a while; without one the clock is held against the table's newest snapshot alone."""

    runtime: Runtime
    settings: Settings
    store: ObjectStore
    access: LakeAccess
    witness: Witness | None = None

    async def look(self, base: LoadedTable) -> dict[str, Any]:
        """What would expire. Reads only, and counts the rows of files that hold some. Raises ObjectMissing, ObjectDamaged."""
        cutoff, put_off = self._cutoff(base)
        stale = plan_letters(await self._files(base), cutoff, 1 << 30)
        works = [await self.access.until_answered(STORE, rewrite_letters, self.store, files, cutoff) for files in stale]
        return _described(sum(work.expired_count for work in works), put_off)

    async def tidy(self, letters: DeadLetters) -> dict[str, Any]:
        """Everything that is worth it; what has expired. Raises TableStopped, ObjectMissing, ObjectDamaged."""
        base = await letters.base()
        if base is None:
            return _described(0, "")
        cutoff, put_off = self._cutoff(base)
        count = 0
        for files in plan_letters(await self._files(base), cutoff, _INPUTS_MIN):
            work = await self.access.until_answered(STORE, rewrite_letters, self.store, files, cutoff)
            if await letters.rewrite(work):
                count += work.expired_count
        return _described(count, put_off)

    def _cutoff(self, base: LoadedTable) -> tuple[int | None, str]:
        """The moment before which events have expired, None for none now; and why there is none, if it is put off."""
        age_s = self.settings.maintenance.dead_letters_s
        if age_s is None:
            return None, ""
        now_ms, now_s = self.runtime.clock.now_ms(), self.runtime.clock.monotonic_s()
        ttl, told = Ttl(_JUDGED_AT, age_s), {}
        if self.witness is not None:
            self.witness.look(now_ms, now_s)
            told = {"ahead_s": self.witness.ahead_s, "has_run_for_s": self.witness.has_run_for_s(now_s)}
        put_off = why_put_off(base, ttl, now_ms, **told)
        return (None, put_off) if put_off else (cutoff_us(ttl, now_ms, exact=True), "")

    async def _files(self, base: LoadedTable) -> tuple[LiveFile, ...]:
        if base.head is None:
            return ()
        contents = await self.access.until_answered(STORE, ContentsReader(self.store).read, base.head)
        return tuple(contents.files)


def _described(count: int, put_off: str) -> dict[str, Any]:
    """As what has expired of any table is told."""
    return {"rows": count, "files": 0, "put_off": put_off}
