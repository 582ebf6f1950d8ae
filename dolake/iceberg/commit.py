"""The commit: a delta lands in its table once, whatever happens to requests and answers; several land together or not at all.

    load → judge → manifests → list → settle → swap, and on any trouble look again

Every round judges a freshly loaded table and swaps against that same table. A lost answer, a conflict and a crash are one
case: the next round's judgement says whether the rows are in the table. Nothing here deletes a file: one that a failed
attempt left behind may be named by a swap that is still under way.

Every step that waits is one `tasks.run`, so that whatever else runs may come between any two of them.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from dolake import failpoints
from dolake.clock import Runtime
from dolake.errors import CommitConflict, ObjectDamaged, ObjectMissing, StoreUnreachable, TableStopped, unreadable
from dolake.iceberg.access import CATALOG, DAMAGED_TRIES_MAX, LakeAccess, part_at_fault
from dolake.iceberg.attempt import Manifests, ManifestWriter
from dolake.iceberg.catalog import Swap, TableCatalog
from dolake.iceberg.judging import Verdict, judge
from dolake.iceberg.metadata import LoadedTable
from dolake.iceberg.plan import CommitPlan, CommitPolicy, Delta, plan_commit
from dolake.model import TableName
from dolake.storage.store import ObjectStore

# Somebody else's commit is over when we hear of it: no reason to wait long.
_CONFLICT_PAUSE_S = 0.05

_T = TypeVar("_T")


@dataclass(frozen=True)
class Landed:
    """The delta's rows are in the table. `base` is the table as it was then."""

    base: LoadedTable


@dataclass(frozen=True)
class Replan:
    """The delta does not fit the table any more: drop it and its files, read on from `base`'s offsets.

    `moved`: they are where the delta expects them, but what it deletes was looked up in another snapshot than `base`'s head.
    """

    base: LoadedTable
    reason: str
    moved: bool = False


@dataclass(frozen=True)
class Held:
    """The delta fits its table still, and was not tried: another of those that land together does not, or is there already."""

    base: LoadedTable


CommitOutcome = Landed | Replan


@dataclass(frozen=True)
class Trouble:
    """A round that came to nothing, for whoever watches: the loop goes on."""

    table: TableName
    error: Exception
    attempt: int


def _unwatched(_trouble: Trouble) -> None:
    return None


@dataclass
class _Tries:
    """Of one commit: how many came to nothing, which table was being looked at, and what is known by now.

    `parts` have to answer for the next one; `checked` are files known to be in the store whole.
    """

    table: TableName
    count: int = 0
    damaged: int = 0
    parts: set[str] = field(default_factory=lambda: {CATALOG})
    checked: set[str] = field(default_factory=set)


class Committer:
    """Commits deltas, one at a time for each table; different tables may be committed side by side."""

    def __init__(
        self,
        runtime: Runtime,
        catalog: TableCatalog,
        store: ObjectStore,
        policy: CommitPolicy | None = None,
        on_trouble: Callable[[Trouble], None] = _unwatched,
    ) -> None:
        self._runtime, self._catalog, self._store = runtime, catalog, store
        self.access = LakeAccess(runtime)
        self._policy = policy or CommitPolicy()
        self._on_trouble = on_trouble
        self.manifests = ManifestWriter(runtime, store)

    async def commit(self, delta: Delta) -> CommitOutcome:
        """Returns when the delta's fate is known.

        Raises TableStopped if the table is not this writer's to change, ObjectDamaged if what it is made of stays damaged.
        """
        tries = _Tries(delta.table)
        return await self._until_known(tries, lambda: self._round(delta, tries))

    async def commit_together(self, deltas: Sequence[Delta]) -> list[CommitOutcome | Held]:
        """The same for several tables in one transaction of the catalog: all of the deltas are tried together, or none is.

        Raises TableStopped, which names one of the tables, also for what of it stays damaged.
        """
        tries = _Tries(deltas[0].table)
        try:
            return await self._until_known(tries, lambda: self._round_together(deltas, tries))
        except ObjectDamaged as damaged:
            raise TableStopped(str(tries.table), unreadable(damaged), field="files", rule=str(damaged)) from damaged

    async def _until_known(self, tries: _Tries, round_: Callable[[], Awaitable[_T]]) -> _T:
        """What the first round comes to that comes to anything."""
        while True:
            try:
                async with self.access.turn(tries.parts):
                    if tries.count:
                        failpoints.hit("commit.resolve")
                    return await round_()
            except TableStopped:
                raise
            except Exception as error:  # Any failure is an unknown outcome: look again; the judgement tells which it was.
                await self._look_again(tries, error)

    async def _look_again(self, tries: _Tries, error: Exception) -> None:
        """Waits for the next try, unless it is no use: then the error is raised."""
        tries.count += 1
        tries.damaged += isinstance(error, ObjectDamaged)
        if tries.damaged >= DAMAGED_TRIES_MAX:
            raise error
        tries.parts.add(part_at_fault(error) or CATALOG)
        pause_s = self._pause_s(error, tries.count)
        self._on_trouble(Trouble(tries.table, error, tries.count))
        await self._runtime.clock.sleep(pause_s)

    async def _round(self, delta: Delta, tries: _Tries) -> CommitOutcome:
        """One look at the table, and one try if there is anything to try."""
        found = await self._look(delta, tries)
        return await self._commit_once(found.base, delta) if isinstance(found, Held) else found

    async def _round_together(self, deltas: Sequence[Delta], tries: _Tries) -> list[CommitOutcome | Held]:
        """Nothing is tried where one of them has to be planned again, or is there already."""
        found = [await self._look(delta, tries) for delta in deltas]
        if any(isinstance(one, Landed) for one in found):
            # Ours lands in all tables at once, perhaps between two of these looks. If one is still not there, it was somebody else who
            # brought the others there (a late predecessor): committed now, it would say that it is of one commit with them.
            found = [await self._look(delta, tries) if isinstance(one, Held) else one for one, delta in zip(found, deltas, strict=True)]
        held = [(one.base, delta) for one, delta in zip(found, deltas, strict=True) if isinstance(one, Held)]
        return await self._commit_all_once(held, tries) if len(held) == len(deltas) else found

    async def _look(self, delta: Delta, tries: _Tries) -> CommitOutcome | Held:
        """What the table means for the delta: nothing is to be tried unless it is Held."""
        tries.table = delta.table
        base = await self._load(delta.table)
        verdict = self._judge(base, delta)
        assert base is not None  # Or the judgement had stopped the table.
        if verdict is Verdict.LANDED:
            return Landed(base)
        if verdict in (Verdict.REPLAN, Verdict.MOVED):
            return Replan(base, verdict.value, moved=verdict is Verdict.MOVED)
        if reason := await self._runtime.tasks.run(self._check_files, delta, tries.checked):
            return Replan(base, reason)
        return Held(base)

    def forget(self, table_uuid: str) -> None:
        """Drops what is remembered of a table that is not written any more."""
        self.manifests.forget(table_uuid)

    async def _load(self, table: TableName) -> LoadedTable | None:
        failpoints.hit("commit.load")
        return await self._runtime.tasks.run(self._catalog.load, table)

    def _judge(self, base: LoadedTable | None, delta: Delta) -> Verdict:
        return judge(base, delta)

    def _check_files(self, delta: Delta, checked: set[str]) -> str:
        """What is wrong with the delta's files in the store: an upload cut short must not get into a snapshot.

        `checked` are those known to be there whole.
        """
        for location, size_bytes in delta.objects().items():
            if location in checked:
                continue
            try:
                found_bytes = self._store.size(location)
            except ObjectMissing:
                return f"{location} is not in the store"
            if found_bytes != size_bytes:
                return f"{location} has {found_bytes} bytes in the store, not {size_bytes}"
            checked.add(location)
        return ""

    async def _commit_once(self, base: LoadedTable, delta: Delta) -> CommitOutcome:
        """One attempt on top of exactly `base`, under names of its own."""
        plan = await self._prepare(base, delta, self._runtime.clock.now_ms)
        if isinstance(plan, Replan):
            return plan
        failpoints.hit("commit.before_swap")
        landed = await self._swap(base, plan)
        failpoints.hit("commit.after_swap")
        return Landed(landed)

    async def _commit_all_once(self, fitting: Sequence[tuple[LoadedTable, Delta]], tries: _Tries) -> list[CommitOutcome | Held]:
        """The same for several: their snapshots have one time, so that they are found by it in each of them."""
        now_ms = max(self._runtime.clock.now_ms(), *(base.metadata["last-updated-ms"] + 1 for base, _ in fitting))
        plans: list[CommitPlan | Replan] = []
        for base, delta in fitting:
            tries.table = delta.table
            plans.append(await self._prepare(base, delta, lambda: now_ms))
        swaps: list[Swap] = []
        for (base, _), plan in zip(fitting, plans, strict=True):
            if isinstance(plan, Replan):
                return [one if isinstance(one, Replan) else Held(held) for one, (held, _) in zip(plans, fitting, strict=True)]
            swaps.append(Swap(base, plan.requirements, plan.updates))
        failpoints.hit("commit.before_swap")
        landed = await self._runtime.tasks.run(self._catalog.swap_together, swaps)
        failpoints.hit("commit.after_swap")
        return [Landed(after) for after in landed]

    async def _prepare(self, base: LoadedTable, delta: Delta, now_ms: Callable[[], int]) -> CommitPlan | Replan:
        """Everything short of the swap: manifests are written, and what the snapshot names is settled."""
        run = self._runtime.tasks.run
        written = await self.manifests.write(base, delta)
        plan = self._plan(base, delta, written, now_ms())
        failpoints.hit("commit.before_settle")
        try:
            await run(self._store.settle, list(delta.objects()))
        except StoreUnreachable as error:
            # Their names may be lost, and a second sync that succeeds would not prove the contrary: write them anew.
            return Replan(base, str(error))
        await run(self._store.settle, written.written)
        return plan

    def _plan(self, base: LoadedTable, delta: Delta, written: Manifests, now_ms: int) -> CommitPlan:
        return plan_commit(
            base,
            delta,
            snapshot_id=written.snapshot_id,
            manifest_list=written.list_location,
            now_ms=now_ms,
            policy=self._policy,
            removed=written.removed,
            restored=written.restored,
        )

    async def _swap(self, base: LoadedTable, plan: CommitPlan) -> LoadedTable:
        return await self._runtime.tasks.run(self._catalog.swap, base, plan.requirements, plan.updates)

    def _pause_s(self, error: Exception, attempt: int) -> float:
        if isinstance(error, CommitConflict):
            return self._runtime.random.uniform(0, _CONFLICT_PAUSE_S)
        return self.access.pause_s(error, attempt)
