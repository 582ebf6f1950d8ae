"""Compaction in a running writer: what is worth it most is rewritten beside the flushes, and lands between two of them.

A rewrite takes as long as it takes, in a process of its own, while its table goes on being flushed. Landing takes the table out of
the schedule's hands as a flush does, for one commit. One rewrite a table at a time; a file that cannot be read keeps its group out
for an hour: it may have been restored by then.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Coroutine, Iterable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import structlog

from dolake import failpoints
from dolake.clock import Runtime
from dolake.compaction.compactor import Compactor, Done, Rewriter, SparkCaller
from dolake.compaction.landing import GivenUp, Lander, ToLand
from dolake.compaction.plan import Choice
from dolake.compaction.spark import SparkRewrite
from dolake.compaction.within import Within
from dolake.config import Settings
from dolake.errors import DolakeError, ObjectDamaged, ObjectMissing, RequestRefused, RewriteRefused, TableStopped
from dolake.iceberg.contents import ContentsReader
from dolake.iceberg.metadata import LoadedTable
from dolake.model import DEAD_LETTERS_TABLE, TableName
from dolake.writer.compaction_runs import Run, RunState, replaced_files
from dolake.writer.compaction_works import NOTHING_BY_SPARK, described, next_work, policy_of, policy_of_request, spark_catalog_of
from dolake.writer.flight import stopped_by
from dolake.writer.look import Look
from dolake.writer.spare import Spare
from dolake.writer.table import Table

if TYPE_CHECKING:
    from dolake.writer.service import WriterService

TICK_S = 0.02
# Tables that are not being written are looked at once in so long.
_IDLE_S = 60.0
_RUNS_KEPT = 20
# A group whose rewrite failed is tried again after so long.
_FAILED_S = 60.0
_REFUSED_S = 3600.0

logger = structlog.get_logger("dolake.writer")


class Compacting:
    """Of one writer half, the `host`. `rewriter` does a job somewhere; with the engine spark it is `spark` that is called."""

    def __init__(self, runtime: Runtime, settings: Settings, host: WriterService, rewriter: Rewriter, spark: SparkCaller) -> None:
        self._runtime, self._settings, self._host = runtime, settings.compaction, host
        self._memory_bytes_max = settings.flush.memory_bytes
        self.policy = policy_of(settings)
        flusher = host.flusher
        self._spark, memory_bytes = spark, settings.compaction.memory_bytes
        self._compactor = Compactor(
            runtime, flusher.store, flusher.committer, rewriter, self.policy, memory_bytes, spark_catalog_of(settings)
        )
        share = 0.0 if self._compactor.spark_catalog is not None else settings.compaction.spare_share  # Spark is handed whole tables.
        self._spare = Spare(runtime, share, self._compactor, self.policy)
        self._looked: dict[TableName, Look] = {}
        self.runs: deque[Run] = deque(maxlen=_RUNS_KEPT)
        self._locks: dict[TableName, asyncio.Lock] = {}
        self._running: set[asyncio.Task[Any]] = set()
        self._landed = asyncio.Event()

    def lock(self, name: TableName) -> asyncio.Lock:
        """Held as long as a rewrite of the table is under way, and by whoever must not come between."""
        return self._locks.setdefault(name, asyncio.Lock())

    # -- by itself

    async def run(self) -> None:
        """Looks every so often, and again as soon as a rewrite has landed: there may be more, of one table too."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._settings.interval_s):
                    await self._landed.wait()
            self._landed.clear()
            if not self.lags():
                await self._look_round()

    def lags(self) -> bool:
        """Whether ingest needs the machine more."""
        now_s = self._runtime.clock.monotonic_s()
        waiting = [table.memtable.records[0].since_s for table in self._host.tables.values() if table.memtable.records and not table.away]
        is_late = bool(waiting) and now_s - min(waiting) > self._settings.lag_s_max
        return is_late or self._host.memory_bytes() > self._memory_bytes_max * 3 // 4

    async def _look_round(self) -> None:
        """Starts what is worth it most, one work of each table, as much as may run at once: as one ends the next begins.

        What has not begun when it is time to look again is found again. Where nothing is found, there may be time to spare.
        """
        now_s = self._runtime.clock.monotonic_s()
        look_again_s = now_s + self._settings.interval_s
        found: list[tuple[float, TableName, Choice | SparkRewrite, LoadedTable]] = []
        seen: list[Look] = []
        for name in sorted(await self._host.flusher.names(), key=str):
            if self.lock(name).locked() or name == DEAD_LETTERS_TABLE:
                continue
            looked = await self._look(name)
            if looked is not None:
                seen.append(looked)
                works = self._compactor.works(looked.base, looked.open_choices(now_s), self.policy)
                found += [(work.worth, name, work, looked.base) for work in works]
        if not found and not self._running and self._spare.is_due:
            await self._spend(seen)
        found.sort(key=lambda one: (-one[0], str(one[1])))
        begun: set[TableName] = set()
        for _, name, work, base in found:
            if name in begun:
                continue
            while len(self._running) >= self._settings.jobs:
                await asyncio.wait(self._running, return_when=asyncio.FIRST_COMPLETED)
                if self.lags() or self._runtime.clock.monotonic_s() >= look_again_s:
                    return
            if not self.lock(name).locked():
                begun.add(name)
                await self._begin(name, self._run_one(name, work, base))

    async def _begin(self, name: TableName, running: Coroutine[Any, Any, Any]) -> None:
        task = self._runtime.tasks.spawn(f"compact {name}", running)
        self._running.add(task)
        task.add_done_callback(self._ended)
        await self._runtime.clock.sleep(0)  # It takes the table's lock.

    async def _spend(self, seen: Iterable[Look]) -> None:
        """Time to spare, on what makes reads shortest."""
        best = await self._spare.best(seen)
        if best is not None and not self.lock(best[0].name).locked():
            base, choice = best
            await self._begin(base.name, self._run_spare(base, choice))

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._running.discard(task)
        self._host.ended(task)

    async def _look(self, name: TableName) -> Look | None:
        """The table's plan, made anew where its head is another. None for a table that is not dolake's, or not in order."""
        now_s = self._runtime.clock.monotonic_s()
        known, table = self._looked.get(name), self._host.tables.get(name)
        if table is not None and (table.stopped is not None or table.away or table.behind):
            return None
        base = table.base if table is not None else None
        if base is None:
            if known is not None and now_s - known.at_s < _IDLE_S:
                return known
            base = await self._load(name)
        if base is None or not base.owner_epoch:
            return None
        if known is not None and known.base.head_id == base.head_id and now_s - known.at_s < _IDLE_S:
            return known
        return await self._look_again(name, base, known)

    async def _load(self, name: TableName) -> LoadedTable | None:
        try:
            return await self._host.flusher.load(name)
        except (TableStopped, ObjectMissing, ObjectDamaged):
            return None  # Somebody else's, or damaged: who reads or writes it says so.

    async def _look_again(self, name: TableName, base: LoadedTable, known: Look | None) -> Look | None:
        same = known is not None and known.base.uuid == base.uuid
        reader = known.reader if known is not None and same else ContentsReader(self._host.flusher.store)
        try:
            plan = await self._compactor.plan(base, self.policy, reader=reader)
        except (ObjectMissing, ObjectDamaged) as error:
            logger.warning("table not looked at for compaction", table=str(name), reason=str(error))
            return None
        looked = Look(base, plan, self._runtime.clock.monotonic_s(), reader)
        if known is not None and same:
            looked.inherit(known)
        self._looked[name] = looked
        self._host.metrics.set("dolake_compaction_debt_bytes", plan.debt_bytes, table=str(name))
        left = {file.location for left in plan.left for file in left.files} | looked.shut(looked.at_s)
        self._host.metrics.set("dolake_compaction_left_files_count", len(left), table=str(name))
        summary = base.head["summary"] if base.head is not None else {}
        self._host.metrics.set("dolake_table_data_files_count", int(summary.get("total-data-files", 0)), table=str(name))
        self._host.metrics.set("dolake_table_delete_files_count", int(summary.get("total-delete-files", 0)), table=str(name))
        return looked

    # -- one rewrite

    async def _run_one(self, name: TableName, work: Choice | SparkRewrite, base: LoadedTable) -> Run:
        async with self.lock(name):
            run = await self.carry_out(name, work, base)
        if run.state is RunState.DONE:
            self._landed.set()
        return run

    async def _run_spare(self, base: LoadedTable, choice: Choice) -> None:
        self._spare.took((await self._run_one(base.name, choice, base)).seconds)

    async def carry_out(self, name: TableName, work: Choice | SparkRewrite, base: LoadedTable) -> Run:
        """Rewrites and lands, by who holds the table's lock. What goes wrong is noted in what it returns, and raised by nobody."""
        run = Run(str(name), work.in_words(), self._runtime.clock.now_ms(), RunState.RUNNING)
        self.runs.append(run)
        began_s = self._runtime.clock.monotonic_s()
        self._note_running()
        try:
            if isinstance(work, SparkRewrite):
                found: Done | GivenUp | None = await self._by_spark(name, work, base, run)
            else:
                found = await self._rewrite_and_land(name, work, base, run)
        except RewriteRefused as refused:
            self._shut_out(name, [refused.file], _REFUSED_S)
            self._end(run, began_s, RunState.FAILED, str(refused))
        except (DolakeError, OSError, ValueError) as error:
            self._shut_out(name, [file.location for file in work.rewritten], _FAILED_S)
            self._end(run, began_s, RunState.FAILED, str(error))
        else:
            state = RunState.GIVEN_UP if isinstance(found, GivenUp) else RunState.DONE
            self._end(run, began_s, state, found.reason if isinstance(found, GivenUp) else "")
        if isinstance(work, SparkRewrite) and (looked := self._looked.get(name)) is not None:
            looked.note_spark(run.state is RunState.DONE, self._runtime.clock.monotonic_s())
        return run

    def _shut_out(self, name: TableName, locations: Iterable[str], seconds: float) -> None:
        looked = self._looked.get(name)
        if looked is not None:
            looked.shut_out(locations, self._runtime.clock.monotonic_s() + seconds)

    def _end(self, run: Run, began_s: float, state: RunState, reason: str) -> None:
        run.end(state, self._runtime.clock.monotonic_s() - began_s, reason)
        metrics = self._host.metrics
        metrics.add("dolake_compaction_runs_total", outcome=state.value)
        metrics.observe("dolake_compaction_seconds", run.seconds)
        self._note_running()
        level = logger.info if state is RunState.DONE else logger.warning
        level(
            f"compaction {state.value.replace('_', ' ')}",
            table=run.table,
            what=run.what,
            seconds=run.seconds,
            **({"reason": reason} if reason else {}),
        )

    def _note_running(self) -> None:
        active = sum(run.state in (RunState.RUNNING, RunState.LANDING) for run in self.runs)
        self._host.metrics.set("dolake_compaction_running_count", active)

    async def _rewrite_and_land(self, name: TableName, choice: Choice, base: LoadedTable, run: Run) -> Done | GivenUp:
        table = await self._host.tables.named(name)
        epoch = base.owner_epoch + 1 if table.epoch is None else table.epoch
        work = await self._compactor.rewrite(base, choice, epoch)
        lander = Lander(self._host.flusher.store, work)
        await self._compactor.look_ahead(lander, table.base or base)
        run.state = RunState.LANDING
        async with self.held(table):
            found = await self._land(table, lander, work)
        if isinstance(found, Done):
            run.count(work, found)
            self._count(run, work)
        else:
            await self._take_head(table)
        return found

    async def _by_spark(self, name: TableName, work: SparkRewrite, base: LoadedTable, run: Run) -> GivenUp | None:
        """Spark commits by itself, while the table goes on being flushed: here it is only looked at what became of it."""
        table = await self._host.tables.named(name)
        before = await self._compactor.files(base)
        failpoints.hit("compact.before_rewrite")
        try:
            await self._spark(work.statements)
        except DolakeError:
            await self._take_head(table)  # Some of the statements may have been done.
            raise
        failpoints.hit("compact.after_rewrite")
        head = await self._take_head(table)
        if head is None or head.uuid != base.uuid:
            return GivenUp("the table was dropped")
        if not run.count_foreign(before, await self._compactor.files(head)):
            return GivenUp(NOTHING_BY_SPARK)
        self._host.metrics.add("dolake_compaction_written_bytes_total", run.bytes_after)
        self._host.metrics.add("dolake_compaction_files_removed_total", max(0, run.files_before - run.files_after))
        return None

    async def _take_head(self, table: Table) -> LoadedTable | None:
        """What the catalog has is what the next flush goes on top of, where others have changed its files and nothing else.

        Or what is worth a rewrite would be judged by the head before, again and again, until something is flushed. The key index
        follows with that flush.
        """
        async with self.held(table):
            head = await self._host.flusher.load(table.name)
            if head is not None and table.base is not None and head.is_where(table.base):
                table.base = head
            return head

    @contextlib.asynccontextmanager
    async def held(self, table: Table) -> AsyncIterator[None]:
        """The table is in nobody else's hands, as during a flush. Raises RequestRefused where it is not in order."""
        while True:
            if table.stopped is not None:
                raise RequestRefused(f"{table.name} has stopped: {table.stopped.reason}")
            if table.away:
                raise RequestRefused(f"{table.name} is parked")
            if not (table.flushing or table.behind or table.declaring):
                break
            await self._runtime.clock.sleep(TICK_S)
        table.flushing = True
        try:
            async with self._host.flusher.mirrors.lock(table.name):
                yield
        finally:
            table.flushing = False

    async def _land(self, table: Table, lander: Lander, work: ToLand) -> Done | GivenUp:
        if table.base is None or table.base.uuid != work.table_uuid:
            return GivenUp("the table was dropped")
        epoch = table.base.owner_epoch + 1 if table.epoch is None else table.epoch
        try:
            found = await self._compactor.land(lander, table.base, epoch, self._host.flusher.instance)
        except TableStopped as stopped:
            table.stop_whole(stopped_by(stopped))
            raise
        if isinstance(found, Done):
            table.base, table.epoch = found.base, epoch
            await self._runtime.tasks.run(self._host.flusher.indexes.move, found.base, replaced_files(work, found))
            failpoints.hit("compact.after_index")
        return found

    def _count(self, run: Run, work: ToLand) -> None:
        metrics = self._host.metrics
        metrics.add("dolake_compaction_read_bytes_total", 0 if work.rewritten is None else work.rewritten.bytes_read)
        metrics.add("dolake_compaction_written_bytes_total", run.bytes_after)
        metrics.add("dolake_compaction_files_removed_total", max(0, run.files_before - run.files_after))
        metrics.add("dolake_compaction_carried_rows_total", run.rows_carried)

    # -- when somebody asks

    async def compact(self, name: TableName, *, dry_run: bool, within: Within | None = None) -> dict[str, Any]:
        """Everything of a table, or of some partitions, that is worth it, at once; what came of it. Raises RequestRefused, DolakeError."""
        async with self.lock(name):
            table = await self._host.parking.started_table(name)
            if table.base is None:
                raise RequestRefused(f"there is no table {name}; `dolake tables` lists them")
            runs: list[Run] = []
            policy = policy_of_request(self.policy)
            while True:
                base = table.base
                plan = await self._compactor.plan(base, policy, within=within)
                work = next_work(self._compactor, base, plan, policy, runs)
                if dry_run or work is None:
                    return described(name, plan, runs, self.last_runs(name))
                runs.append(await self.carry_out(name, work, base))

    def last_runs(self, name: TableName) -> list[Run]:
        return [run for run in self.runs if run.table == str(name)]

    def describe(self) -> dict[str, Any]:
        """What will run next, table by table, and what ran last."""
        return {
            "enabled": self._settings.enabled,
            "waits": self.lags(),
            "debt_bytes": sum(looked.plan.debt_bytes for looked in self._looked.values()),
            "runs": [asdict(run) for run in self.runs],
        }
