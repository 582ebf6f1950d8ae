"""When tables are flushed: looks at what waits, starts what is due, by itself or with its group, and sees it to its end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import TYPE_CHECKING, Any

import structlog

from dolake.buffer.plan import plan_flush
from dolake.clock import Runtime
from dolake.model import TableName
from dolake.writer.cuts import Cuts, is_with_group
from dolake.writer.flush import FlushResult
from dolake.writer.table import Table

if TYPE_CHECKING:
    from dolake.writer.service import WriterService

TICK_S = 0.02
FLUSHES_AT_ONCE = 2

logger = structlog.get_logger("dolake.writer")


class Schedule:
    """Of one writer half, the `host`. `flushing` are the flushes under way."""

    def __init__(self, runtime: Runtime, memory_bytes_max: int, host: WriterService) -> None:
        self._runtime, self._memory_bytes_max, self._host = runtime, memory_bytes_max, host
        self.cuts = Cuts(runtime, host.flusher, host.tables, host.tails)
        self.flushing: set[asyncio.Task[Any]] = set()
        self._cutting: set[str] = set()  # groups; a member that is being parked is none any more, and still in the cut under way

    def ends(self, table: Table) -> dict[str, int]:
        """Where a flush of the table may end now, by log."""
        return self.cuts.ends(self.cuts.together(table))

    def ends_now(self) -> Callable[[Table], dict[str, int]]:
        """The same for many tables at one moment: each group is looked at once."""
        known: dict[str, dict[str, int]] = {}

        def ends(table: Table) -> dict[str, int]:
            if not is_with_group(table):
                return self.ends(table)
            if table.group not in known:
                known[table.group] = self.ends(table)
            return known[table.group]

        return ends

    async def run(self) -> None:
        """Starts what is due, most urgent first, and gives up transactions that were open for too long."""
        while True:
            now_s = self._runtime.clock.monotonic_s()
            for tail in self._host.tails.values():
                for transaction in tail.transactions.expire(now_s):
                    self._host.metrics.add("dolake_writer_cut_transactions_total")
                    logger.warning("transaction not waited for any longer", source=transaction.source, id=transaction.id)
            idle = [table for table in self._host.tables.values() if not table.flushing and not table.behind]
            backlogs = [backlog for table in idle if (backlog := table.backlog()) is not None]
            plan = plan_flush(backlogs, self._memory_bytes_max, now_s)
            tried: set[str] = set()  # A group that has to wait is looked at once, however many of its tables are due.
            for text, reason in plan.due:
                if len(self.flushing) >= FLUSHES_AT_ONCE:
                    break
                table = self._host.tables[TableName.in_lake(text)]
                if is_with_group(table):
                    if table.group not in tried:
                        tried.add(table.group)
                        self._start_cut(table, reason)
                elif table.cuts(self.ends(table)) is not None:
                    self._start_flush(table, reason)
            await self._runtime.clock.sleep(TICK_S)

    def _start_flush(self, table: Table, reason: str) -> None:
        table.flushing, table.requested = True, False
        self._spawn(f"flush {table.name}", self._flush_table(table, reason))

    def _start_cut(self, due: Table, reason: str) -> None:
        """With the whole group of a table that is due, as soon as nobody of it is on its way already."""
        members = self.cuts.members(due.group)
        is_under_way = due.group in self._cutting or any(table.flushing for table in members)
        if is_under_way:
            return
        self.cuts.stop_behind_others(due.group)
        members = self.cuts.members(due.group)
        if self.cuts.plan(members) is None:
            return
        self._cutting.add(due.group)
        for table in members:
            table.flushing, table.requested = True, False
        self._spawn(f"flush group {due.group}", self._flush_group(due.group, members, reason))

    def _spawn(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        task = self._runtime.tasks.spawn(name, work)
        self.flushing.add(task)
        task.add_done_callback(self._host.ended)

    async def _flush_group(self, group: str, members: Sequence[Table], reason: str) -> None:
        try:
            results = await self.cuts.run(group, members)
            for table, result in results:
                self._host.note_result(table, result, reason)
            if results and all(result.landed for _, result in results):
                self._host.metrics.add("dolake_cut_commits_total", group=group)
            for table, result in results:
                await self._see_to_its_end(table, result)
        finally:
            for table in members:
                table.flushing = False
            self._cutting.discard(group)
        self._host.tell()

    async def _flush_table(self, table: Table, reason: str) -> None:
        try:
            result = await self._host.flusher.run_flush(table, lambda: self.ends(table))
            if result is None:
                return
            self._host.note_result(table, result, reason)
            await self._see_to_its_end(table, result)
        finally:
            # Not before: another flush would take the place of the one that did not land, and nothing would pin its rows.
            table.flushing = False
        self._host.tell()

    async def _see_to_its_end(self, table: Table, result: FlushResult) -> None:
        """What did not land is read again, from wherever it is."""
        if not result.landed and table.stopped is None:
            await (self._host.catch_up(table) if table.side is None else self._host.parking.return_again(table))
        await self._host.parking.settle(table)
