"""The writer half: follows the logs, gathers rows by table, flushes what is due, says what it no longer needs.

It holds no truth. A table that cannot go on from memory is forgotten and read again from what the catalog says (`catch_up`),
apart from the tails, which go on for the others.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Collection, Coroutine, Mapping, Sequence
from typing import Any

import structlog

from dolake.buffer.memtable import PendingRecord
from dolake.buffer.plan import Pin
from dolake.buffer.tail import LogReader
from dolake.clock import Runtime
from dolake.compaction.compactor import Rewriter, SparkCaller
from dolake.config import Settings, TableNames
from dolake.errors import DolakeError, ObjectDamaged, ObjectMissing, TableStopped
from dolake.metrics import Metrics
from dolake.model import Record, TableName
from dolake.parquet.layout import EventChunk
from dolake.storage.disk import Disk
from dolake.writer.compacting import Compacting
from dolake.writer.dropping import Dropping
from dolake.writer.expiring import Expiring
from dolake.writer.flight import stopped_by
from dolake.writer.flush import Flusher, FlushResult
from dolake.writer.maintaining import Maintaining
from dolake.writer.parking import Parking
from dolake.writer.recall import Recaller
from dolake.writer.report import Reporter, state_of
from dolake.writer.request import flush_result, plan_request, why_not_flushed
from dolake.writer.rolling_back import RollingBack
from dolake.writer.schedule import Schedule
from dolake.writer.table import DECODE_BYTES, Table
from dolake.writer.tables import Tables
from dolake.writer.tail import Routed, Tail, read_routed
from dolake.writer.transactions import OpenTransactions

IDLE_S = 0.005
IDLE_S_MAX = 0.05
TICK_S = 0.02
LOG_WAIT_S = 0.1
FLUSH_TIMEOUT_S = 30.0

logger = structlog.get_logger("dolake.writer")


class WriterService:
    """`report` is told the low offsets and the state of every table whenever they may have changed."""

    def __init__(
        self,
        runtime: Runtime,
        *,
        disk: Disk,
        flusher: Flusher,
        settings: Settings,
        rewriter: Rewriter,
        spark: SparkCaller,
        metrics: Metrics | None = None,
        report: Callable[[dict[str, Any]], object] = lambda state: None,
    ) -> None:
        self._runtime, self._disk, self.flusher, self._settings, self.report = runtime, disk, flusher, settings, report
        self.flusher.observe = self._observe
        self.names = TableNames(settings)
        self.tails: dict[str, Tail] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._over: asyncio.Future[None] | None = None
        self._listeners: list[list[FlushResult]] = []
        self.metrics = metrics or Metrics()
        self._reporter = Reporter(self.metrics, flusher.access)
        self.lags = self._reporter.lags
        self.parking = Parking(runtime, disk, settings, self)
        self.dropping = Dropping(runtime, disk, settings.data, self)
        self.rolling_back = RollingBack(runtime, disk, settings, self)
        self.tables = Tables(settings, flusher, self.dropping.note_of)
        self.schedule = Schedule(runtime, settings.flush.memory_bytes, self)
        self.compacting = Compacting(runtime, settings, self, rewriter, spark)
        self.maintaining = Maintaining(runtime, settings, self)
        self.expiring = Expiring(runtime, settings, self)
        self.flusher.mirrors.recall = Recaller(runtime, disk, self).recall

    # -- life

    async def run(self, stop: asyncio.Event) -> None:
        """Until `stop`: then reads to the synced ends, flushes everything that can go, and returns."""
        self._over = asyncio.get_running_loop().create_future()
        stopping = self._runtime.tasks.spawn("stopping", stop.wait())
        stopping.add_done_callback(self._stop)
        try:
            await self.dropping.start()
            await self.parking.start()
            await self.schedule.cuts.start()
            for directory in self._settings.log.directories:
                self.spawn(f"follow {directory}", self._follow(directory))
            self.spawn("schedule", self.schedule.run())
            if self._settings.compaction.enabled:
                self.spawn("compaction", self.compacting.run())
            if self._settings.maintenance.enabled:
                self.spawn("maintenance", self.maintaining.run())
            if self._settings.maintenance.enabled and self.expiring.is_wanted:
                self.spawn("ttl", self.expiring.run())
            await self._over
            await self.flush(None, {tail.log_id: tail.reader.synced_end() for tail in self.tails.values()})
            await _cancelled(self._tasks)  # Or another flush begins, and has an index in its hands while it is saved.
            if not self.schedule.flushing:
                await self._runtime.tasks.run(self.flusher.indexes.close)
        finally:
            stopping.cancel()
            ending = self._runtime.tasks.spawn("ending", self._end())
            while not ending.done():  # Whoever cancels it once more would leave side logs open.
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.wait([ending])

    async def _end(self) -> None:
        await _cancelled({*self._tasks, *self.schedule.flushing})
        await self.parking.close()

    def spawn(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        task = self._runtime.tasks.spawn(name, work)
        self._tasks.add(task)
        task.add_done_callback(self.ended)

    async def guard(self, work: Callable[[], Awaitable[Any]]) -> None:
        """Does what runs beside our loops and may outlive the last flush. Its failure takes the writer down as theirs do."""
        try:
            await work()
        except Exception as error:  # Whoever waits for `run` is told.
            self._fail(error)

    def _stop(self, _: asyncio.Task[Any]) -> None:
        if self._over is not None and not self._over.done():
            self._over.set_result(None)

    def ended(self, task: asyncio.Task[Any]) -> None:
        """A loop of ours that dies takes the writer down: started again it reads from what is committed."""
        self._tasks.discard(task)
        self.schedule.flushing.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        if self._over is not None and not self._over.done():
            self._over.set_exception(error)

    # -- following

    async def _follow(self, directory: str) -> None:
        """Takes the log in piece after piece; the next one is read while this one is decoded."""
        tail = await self._open(directory)
        self.parking.note_tail(tail)
        self.tails[tail.log_id] = tail
        idle_s = IDLE_S
        reading = self._read_from(tail, tail.position)
        try:
            while True:
                try:
                    routed = await reading
                except DolakeError as error:
                    await self._note_trouble(tail, str(error))
                    reading = self._read_from(tail, tail.position)
                    continue
                tail.trouble = ""
                reading = self._read_from(tail, routed[-1].record.offset + 1) if routed else reading
                self.metrics.add("dolake_writer_read_bytes_total", sum(item.record.size_bytes for item in routed), log=tail.log_id)
                await self._take_in(tail, routed)
                if routed:
                    idle_s = IDLE_S
                    await self._hold_back()
                else:
                    await self._runtime.clock.sleep(idle_s)
                    idle_s = min(idle_s * 1.5, IDLE_S_MAX)
                    reading = self._read_from(tail, tail.position)
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)

    def _read_from(self, tail: Tail, start: int) -> asyncio.Task[list[Routed]]:
        return self._runtime.tasks.spawn(f"read {tail.directory}", self._runtime.tasks.run(read_routed, tail.reader, self.names, start))

    async def _note_trouble(self, tail: Tail, trouble: str) -> None:
        if tail.trouble != trouble:
            logger.error("log stopped", directory=tail.directory, reason=trouble)
        tail.trouble = trouble
        self.tell()
        await self._runtime.clock.sleep(LOG_WAIT_S)

    async def _open(self, directory: str) -> Tail:
        """Waits for the log to be there: the ingest half makes it."""
        said = ""
        while True:
            try:
                reader = await self._runtime.tasks.run(LogReader, self._disk, directory)
                first = await self._runtime.tasks.run(reader.first_offset)
                return Tail(directory, reader, first, transactions=OpenTransactions(self.names.of))
            except (DolakeError, OSError) as error:
                if said != str(error):
                    logger.info("waiting for the log", directory=directory, reason=str(error))
                    said = str(error)
                await self._runtime.clock.sleep(LOG_WAIT_S)

    async def _take_in(self, tail: Tail, routed: Sequence[Routed]) -> None:
        for item in routed:
            for name in item.tables():
                await self._check_not_ahead(tail, await self.tables.named(name))
            for name, declared in item.declares:
                table = self.tables[name]
                # Not noted where the table has come to be read again meanwhile; and it may be done with that, short of this record.
                while not table.behind and table.wants(tail.log_id, item.record.offset):
                    await table.declare(self._runtime, self._pending(item, 0), declared)
            # From here to the new position nothing waits: a flush sees a record in all its tables or in none.
            for name, chunk in item.chunks:
                table = self.tables[name]
                if not table.behind and table.wants(tail.log_id, item.record.offset):
                    self._take(table, item, chunk)
            tail.transactions.note(item.record, self._runtime.clock.monotonic_s())
            tail.position = item.record.offset + 1
            for name, _ in item.chunks:
                if self.tables[name].waiting_bytes >= DECODE_BYTES:
                    await self.tables[name].decode(self._runtime)

    def _take(self, table: Table, item: Routed, chunk: EventChunk) -> None:
        pending = self._pending(item, len(chunk.events))
        self.lags.note(table.name, pending.pin.log_id, pending.pin.offset, pending.rows, pending.since_s)
        table.take(pending, chunk)

    def _pending(self, item: Routed, rows: int) -> PendingRecord:
        record = item.record
        share = record.size_bytes * rows // max(1, record.entry.event_count)
        pin = Pin(record.log_id, record.offset, record.entry.source)
        return PendingRecord(pin, rows, share, record.entry.last_lsn, self._runtime.clock.monotonic_s())

    async def _hold_back(self) -> None:
        """Reads no further while memory is full: a flush must land first.

        As long as none is on its way there is room for as much again: rows of an open transaction cannot be flushed.
        """
        while self.memory_bytes() > self._settings.flush.memory_bytes * (1 if self.schedule.flushing else 2):
            await self._runtime.clock.sleep(TICK_S)

    def memory_bytes(self) -> int:
        return sum(table.memory_bytes() + table.in_flight_bytes() for table in self.tables.values())

    async def _check_not_ahead(self, tail: Tail, table: Table) -> None:
        """I5: what has committed more of a log than the log has synced was fed from another life of it, and the log stops here.

        It may also be that its recovery has not published what it found yet: so it is looked at again.
        """
        while table.committed.get(tail.log_id, 0) > (end := tail.reader.synced_end()):
            tail.trouble = (
                f"{tail.directory}: {table.name} has committed it up to offset {table.committed[tail.log_id]}, but it is synced only up to "
                f"{end}: this directory is an older copy; bring the newer one back"
            )
            self.tell()
            await self._runtime.clock.sleep(LOG_WAIT_S)
        tail.trouble = ""

    # -- flushing

    def note_result(self, table: Table, result: FlushResult, reason: str) -> None:
        for listener in self._listeners:
            listener.append(result)
        if result.landed and result.batches:
            self.metrics.add("dolake_flush_runs_total", reason=reason)
            self.metrics.add("dolake_table_events_total", result.rows, table=str(table.name))
            if result.dead_letters:
                self.metrics.add("dolake_table_dead_letters_total", result.dead_letters, table=str(table.name))
                logger.warning("events kept out as dead letters", table=str(table.name), count=result.dead_letters)
            self.metrics.add("dolake_flush_files_total", len(result.paths))
            self.metrics.add("dolake_flush_file_bytes_total", result.bytes_written)
            self.metrics.observe("dolake_flush_seconds", result.duration_s)
            logger.info("flushed", table=str(table.name), because=reason, rows=result.rows, seconds=round(result.duration_s, 3))

    async def catch_up(self, table: Table) -> None:
        """Reads a table's rows again, from what the catalog says is committed to where the tails are by then."""
        try:
            base = await self.flusher.load(table.name)
            verdicts = await self.flusher.verdicts(table.name, base)
        except (TableStopped, ObjectMissing, ObjectDamaged) as stopped:
            table.stop_whole(stopped_by(stopped))
            return
        table.rewind(base, verdicts, {tail.log_id: tail.position for tail in self.tails.values()})
        await self.read_up(table)
        table.behind = False

    async def read_up(self, table: Table, heard: Callable[[Record], None] | None = None) -> None:
        """Hands a table its records from where it is to where the tails are when this returns. `heard` is told of each in between."""
        # Readers of its own: the tails' are reading on meanwhile, and each has one place at a time.
        readers: dict[str, LogReader] = {}
        while behind := [tail for tail in self.tails.values() if table.consumed.setdefault(tail.log_id, tail.position) < tail.position]:
            for tail in behind:
                if tail.log_id not in readers:
                    readers[tail.log_id] = await self._runtime.tasks.run(LogReader, self._disk, tail.directory)
                for item in await self._runtime.tasks.run(read_routed, readers[tail.log_id], self.names, table.consumed[tail.log_id]):
                    if item.record.offset < tail.position:
                        await self.take_again(table, item)
                        if heard is not None:
                            heard(item.record)
        for reader in readers.values():
            reader.close()

    async def take_again(self, table: Table, item: Routed) -> None:
        for name, declared in item.declares:
            if name == table.name:
                await table.declare(self._runtime, self._pending(item, 0), declared)
        for name, chunk in item.chunks:
            if name == table.name:
                self._take(table, item, chunk)
        table.consumed[item.record.log_id] = item.record.offset + 1
        if table.waiting_bytes >= DECODE_BYTES:
            await table.decode(self._runtime)

    async def flush(
        self, names: Collection[TableName] | None, until: Mapping[str, int], timeout_s: float = FLUSH_TIMEOUT_S
    ) -> dict[str, Any]:
        """Commits what the logs hold of these tables (all) below `until`; the `result` of the protocol's flush_response."""
        began_s = self._runtime.clock.monotonic_s()
        landed: list[FlushResult] = []
        self._listeners.append(landed)
        try:
            error = ""
            while waiting := plan_request(self._named(names), self.tails, until, self.schedule.ends_now()):
                if self._runtime.clock.monotonic_s() - began_s >= timeout_s:
                    error = "; ".join(filter(None, [waiting, *self._reporter.troubles()]))
                    break
                await self._runtime.clock.sleep(TICK_S)
            error = error or "; ".join(filter(None, map(why_not_flushed, self._named(names))))
            for name in names or ():
                if not error and name not in self.tables and await self.flusher.load(name) is None:
                    error = f"there is no table {name}; `dolake tables` lists them"
        finally:
            self._listeners = [other for other in self._listeners if other is not landed]
        done = [result for result in landed if result.landed and (names is None or TableName.in_lake(result.table) in names)]
        return flush_result(done, self._runtime.clock.monotonic_s() - began_s, error)

    def _named(self, names: Collection[TableName] | None) -> list[Table]:
        return [table for name, table in self.tables.items() if names is None or name in names]

    # -- saying

    def _observe(self, part: str, trouble: str) -> None:
        if self._reporter.observe(part, trouble):
            self.tell()

    def observe_probe(self, part: str, trouble: str) -> None:
        """What was found of `store` or `catalog` where nothing had to be flushed; "" is well."""
        if self._reporter.observe_probe(part, trouble):
            self.tell()

    def tell(self) -> None:
        """Reports what may be trimmed, and how things are."""
        tables = {name: table for name, table in self.tables.items() if not table.is_nothing()}
        said = self._reporter.describe(self.tails, tables, self.memory_bytes(), self._runtime.clock.monotonic_s())
        states = {str(name): state_of(table, self.lags.of(name)) for name, table in tables.items()}
        self.report({**said, "tables": states, "compaction": self.compacting.describe(), "metrics": self.metrics.values()})


async def _cancelled(tasks: Collection[asyncio.Task[Any]]) -> None:
    known = list(tasks)
    for task in known:
        task.cancel()
    await asyncio.gather(*known, return_exceptions=True)
