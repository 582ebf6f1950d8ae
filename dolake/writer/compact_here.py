"""Compaction where no daemon runs: the table is claimed by the first snapshot that lands."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from dolake.clock import Runtime
from dolake.compaction.compactor import Compactor, rewriter_here
from dolake.compaction.landing import GivenUp, Lander
from dolake.compaction.plan import Choice, CompactionPolicy, Plan
from dolake.compaction.spark import SparkRewrite
from dolake.compaction.spark_process import call_spark
from dolake.compaction.within import Within
from dolake.config import Settings
from dolake.errors import RequestRefused, RewriteFailed, RewriteRefused
from dolake.iceberg.catalog import TableCatalog
from dolake.iceberg.commit import Committer, Trouble
from dolake.iceberg.metadata import LoadedTable
from dolake.iceberg.plan import CommitPolicy
from dolake.model import TableName
from dolake.storage.disk import Disk
from dolake.storage.store import ObjectStore
from dolake.writer.compaction_runs import Run, RunState
from dolake.writer.compaction_works import NOTHING_BY_SPARK, next_work, policy_of, policy_of_request, spark_catalog_of
from dolake.writer.lock import lock_writer


@dataclass(frozen=True)
class Offline:
    """What is at hand where no daemon runs. `progress` hears of each rewrite when it begins and when it has ended."""

    runtime: Runtime
    disk: Disk
    settings: Settings
    catalog: TableCatalog
    store: ObjectStore
    commit_policy: CommitPolicy
    on_trouble: Callable[[Trouble], None]
    progress: Callable[[Run], None] = lambda run: None

    def compactor(self) -> Compactor:
        committer = Committer(self.runtime, self.catalog, self.store, self.commit_policy, self.on_trouble)
        rewriter = rewriter_here(self.runtime, self.store)
        policy = policy_of(self.settings)
        memory_bytes = self.settings.compaction.memory_bytes
        return Compactor(self.runtime, self.store, committer, rewriter, policy, memory_bytes, spark_catalog_of(self.settings))

    def load(self, name: TableName) -> LoadedTable:
        base = self.catalog.load(name)
        if base is None:
            raise RequestRefused(f"there is no table {name}; `dolake tables` lists them")
        return base


async def plan_here(offline: Offline, name: TableName, within: Within | None = None) -> tuple[Plan, Plan]:
    """What a daemon would do by itself now, and what there is for who does not wait. Reads only. Raises RequestRefused, DolakeError."""
    compactor, base = offline.compactor(), offline.load(name)
    asked = policy_of_request(compactor.policy)
    return await compactor.plan(base, compactor.policy, within=within), await compactor.plan(base, asked, within=within)


async def compact_here(offline: Offline, name: TableName, within: Within | None = None) -> tuple[Plan, list[Run]]:
    """Rewrites everything that is worth it, one after the other; what is left then, and what was done.

    Raises LogRefused (a writer runs), RequestRefused, TableStopped, SparkMissing, DolakeError.
    """
    lock = lock_writer(offline.disk, offline.settings.data)
    try:
        compactor = offline.compactor()
        base = offline.load(name)
        if not base.owner_epoch:
            raise RequestRefused(f"{name} is not dolake's: no writer of it has ever committed to it")
        epoch, instance = base.owner_epoch + 1, offline.runtime.random.uuid()
        policy: CompactionPolicy = policy_of_request(compactor.policy)
        runs: list[Run] = []
        while True:
            plan = await compactor.plan(base, policy, within=within)
            work = next_work(compactor, base, plan, policy, runs)
            if work is None:
                return plan, runs
            if isinstance(work, SparkRewrite):
                base = await _by_spark(offline, compactor, work, base, runs)
            else:
                base = await _carry_out(offline, compactor, work, base, runs, epoch=epoch, instance=instance)
    finally:
        lock.release()


async def _carry_out(
    offline: Offline, compactor: Compactor, choice: Choice, base: LoadedTable, runs: list[Run], *, epoch: int, instance: str
) -> LoadedTable:
    """The table after it."""
    runtime = offline.runtime
    run = Run(str(base.name), choice.in_words(), runtime.clock.now_ms(), RunState.RUNNING)
    runs.append(run)
    offline.progress(run)
    began_s = runtime.clock.monotonic_s()
    try:
        work = await compactor.rewrite(base, choice, epoch)
    except RewriteRefused as refused:
        run.end(RunState.FAILED, runtime.clock.monotonic_s() - began_s, str(refused))
        offline.progress(run)
        return base
    found = await compactor.land(Lander(offline.store, work), base, epoch, instance)
    if isinstance(found, GivenUp):
        run.end(RunState.GIVEN_UP, runtime.clock.monotonic_s() - began_s, found.reason)
    else:
        run.count(work, found)
        run.end(RunState.DONE, runtime.clock.monotonic_s() - began_s)
    offline.progress(run)
    return offline.load(base.name) if isinstance(found, GivenUp) else found.base


async def _by_spark(offline: Offline, compactor: Compactor, work: SparkRewrite, base: LoadedTable, runs: list[Run]) -> LoadedTable:
    """The table after it. Spark claims nothing, and neither is anything claimed for it: it changes files only."""
    runtime = offline.runtime
    run = Run(str(base.name), work.in_words(), runtime.clock.now_ms(), RunState.RUNNING)
    runs.append(run)
    offline.progress(run)
    began_s = runtime.clock.monotonic_s()
    before = await compactor.files(base)
    state, reason = RunState.DONE, ""
    try:
        await call_spark(offline.settings, work.statements)
    except RewriteFailed as failed:
        state, reason = RunState.FAILED, str(failed)
    after = offline.load(base.name)
    if not run.count_foreign(before, await compactor.files(after)) and state is RunState.DONE:
        state, reason = RunState.GIVEN_UP, NOTHING_BY_SPARK
    run.end(state, runtime.clock.monotonic_s() - began_s, reason)
    offline.progress(run)
    return after
