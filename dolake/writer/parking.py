"""Parked tables: their records go from the logs into side logs, and come back from there, once only (`buffer.parked` says why).

A table is `parked` while its records are only moved, `returning` while they are fed to it again, and follows the logs like any other
after that; its side log goes when everything in it is committed. Each parked table has a mover, a reader of the logs of its own, so
that a slow or full side log holds up nobody else.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import structlog

from dolake import failpoints
from dolake.buffer.parked import ParkedRecord, SideLog, take_up_parked
from dolake.buffer.plan import plan_cut
from dolake.buffer.wal import LogSettings
from dolake.clock import Runtime
from dolake.config import Settings
from dolake.errors import DolakeError, LogFailed, RequestRefused
from dolake.iceberg.metadata import LoadedTable
from dolake.model import Record, TableName
from dolake.storage.disk import Disk
from dolake.writer.flight import Away, stopped_by
from dolake.writer.letters import Verdicts
from dolake.writer.moving import HOLD_S_MAX, TICK_S, Movers
from dolake.writer.table import Table
from dolake.writer.tail import Tail, reroute
from dolake.writer.transactions import OpenTransactions

if TYPE_CHECKING:
    from dolake.writer.service import WriterService


_PARTLY_DONE = 6
SEGMENT_BYTES = 64 << 20

logger = structlog.get_logger("dolake.writer")


class Parking:
    """The side logs of one writer half. `host` is the half itself: its tails, its tables, its flushes."""

    def __init__(self, runtime: Runtime, disk: Disk, settings: Settings, host: WriterService) -> None:
        self._runtime, self._disk, self._settings, self._host = runtime, disk, settings, host
        self._log_settings = LogSettings(min(SEGMENT_BYTES, settings.log.segment_bytes))
        self._returning: dict[TableName, asyncio.Task[None]] = {}
        self._movers = Movers(runtime, disk, host, self._open)
        self._started, self._closed = asyncio.Event(), False
        self._locks: dict[TableName, asyncio.Lock] = {}

    # -- life

    async def start(self) -> None:
        """Takes up what an earlier writer left. Before any log is followed: nothing may be trimmed that is not looked through."""
        for name in await self._runtime.tasks.run(take_up_parked, self._disk, self._settings.data):
            table = self._host.tables.new(name)
            side = await self._open(name)
            self._host.tables[name] = table
            _send_away(table, side, {})
            logger.info("table is parked", table=str(name), bytes=side.size_bytes, returning=side.is_feeding)
            self._movers.start(table)
            if side.is_feeding:
                self._spawn_return(table)
        self._started.set()

    async def close(self) -> None:
        self._closed = True
        for task in self._returning.values():
            task.cancel()
        try:
            await asyncio.gather(*self._returning.values(), return_exceptions=True)
            await self._movers.close()
        finally:
            for table in self._host.tables.values():
                if table.side is not None:
                    table.side.close()

    def note_tail(self, tail: Tail) -> None:
        """A log is about to be followed from its first offset on: those that are not, for now, will look through it from there."""
        for table in self._host.tables.values():
            if table.side is not None and table.away:
                table.parked_to.setdefault(tail.log_id, max(tail.position, table.side.bounds.get(tail.log_id, 0)))
            elif table.behind:
                table.consumed.setdefault(tail.log_id, tail.position)

    # -- what an operator asks for

    async def park(self, name: TableName, until: Mapping[str, int]) -> dict[str, Any]:
        """Moves the table's records to its side log; answers when all below `until` are there. Raises RequestRefused, DolakeError."""
        table = await self.started_table(name)
        if table.away is Away.RETURNING:
            raise RequestRefused(f"{name} is on its way back; wait until `dolake tables` says that it follows, then park it")
        if table.away is Away.HERE:
            await self.require(table, until)
            async with self.lock(name):
                side = await self._side_to_fill(table)
                positions = await self._hold(table)
                _send_away(table, side, {log_id: positions.get(log_id, 0) for log_id in self._host.tails})
            logger.info("parking table", table=str(name), stopped=table.stopped is not None)
            self._movers.start(table)
            self._host.tell()
        while not all(table.parked_to.get(log_id, 0) >= end for log_id, end in until.items()):
            trouble = table.parking_trouble or "; ".join(filter(None, (tail.trouble for tail in self._host.tails.values())))
            if trouble:
                raise RequestRefused(f"{name} is parked as far as that goes: {trouble}", _PARTLY_DONE)
            await self._runtime.clock.sleep(TICK_S)
        assert table.side is not None
        return {"table": str(name), "records": table.side.end - table.side.first, "bytes": table.side.size_bytes}

    async def _side_to_fill(self, table: Table) -> SideLog:
        """The table's side log, nothing of it to be handed out for now. An empty one goes with the next commit."""
        if table.side is None:
            table.side = await self._open(table.name)
        failpoints.hit("park.before_switch")
        try:
            await self._to_its_end(table.side.feed, False)
        except OSError as error:
            raise LogFailed(f"{table.side.directory}: {error.strerror}") from error
        return table.side

    async def unpark(self, name: TableName) -> dict[str, Any]:
        """Brings the table back; answers when it follows the logs again, or has stopped again. Raises RequestRefused."""
        await self._started.wait()
        table = self._host.tables.get(name)
        if table is None or table.away is Away.HERE or table.side is None:
            raise RequestRefused(f"{name} is not parked; `dolake tables` says which are")
        async with self.lock(name):
            if table.away is Away.PARKED:
                await self._to_its_end(table.side.feed, True)
                self._spawn_return(table)
        while table.away is Away.RETURNING:
            await self._runtime.clock.sleep(TICK_S)
        await asyncio.wait([self._returning[name]])  # It may still be about to remove the side log.
        if table.stopped is not None:
            raise RequestRefused(f"{name} has stopped again and is parked: {table.stopped.reason}")
        return {"table": str(name), "rows": table.counts.rows}

    # -- coming back

    def _spawn_return(self, table: Table) -> None:
        table.away = Away.RETURNING
        task = self._runtime.tasks.spawn(f"return {table.name}", self._return(table))
        task.add_done_callback(self._host.ended)
        self._returning[table.name] = task

    async def _return(self, table: Table) -> None:
        while not await self._feed(table):
            failpoints.hit("park.feed_again")

    async def return_again(self, table: Table) -> None:
        """A flush of a table that has come back did not land: from what is committed on it is fed once more."""
        assert table.side is not None
        _send_away(table, table.side, {tail.log_id: tail.position for tail in self._host.tails.values()})
        table.away = Away.RETURNING
        await self._return(table)

    async def _feed(self, table: Table) -> bool:
        """Hands out the side log from what is committed on, then follows the logs. False where it must begin again."""
        assert table.side is not None
        open_: dict[str, OpenTransactions] = {}
        position = table.side.first
        try:
            base = await self._host.flusher.load(table.name)
            _begin_feed(table, base, await self._host.flusher.verdicts(table.name, base))
            while table.stopped is None:
                parts = await self._runtime.tasks.run(table.side.read, position)
                if not parts and table.name not in self._movers:
                    break
                if not parts:
                    # It is level with what is moved: no more is added from now on, and what was added meanwhile comes first.
                    await self._movers.end(table)
                    continue
                for part in parts:
                    await self._feed_part(table, part, open_)
                    position = part.position + 1
                    if table.memory_bytes() >= self._flush_from_bytes(table) and not await self._flush(table, open_):
                        return False
        except (DolakeError, ValueError) as error:  # ValueError: columns of a kind that dolake does not write
            table.stop(stopped_by(error))
        if table.stopped is not None:
            await self._stay(table)
            return True
        _come_back(table)
        await self._host.read_up(table, lambda record: self._note(open_, _without_tables(record)))
        for log_id, transactions in open_.items():
            if log_id in self._host.tails:  # Its first batches may be in the side log alone, and a flush must not cut it all the same.
                self._host.tails[log_id].transactions.adopt(transactions)
        table.away, table.parked_to, table.behind = Away.HERE, {}, False
        logger.info("table follows again", table=str(table.name))
        await self.settle(table)
        self._host.tell()
        return True

    async def _feed_part(self, table: Table, part: ParkedRecord, open_: dict[str, OpenTransactions]) -> None:
        record = part.record
        if not table.wants(record.log_id, record.offset):
            return
        await self._host.take_again(table, reroute(part, table.name))
        self._note(open_, record)

    def _note(self, open_: dict[str, OpenTransactions], record: Record) -> None:
        now_s = self._runtime.clock.monotonic_s()
        open_.setdefault(record.log_id, OpenTransactions()).note(record, now_s)
        open_[record.log_id].expire(now_s)

    def _flush_from_bytes(self, table: Table) -> int:
        return min(table.policy.size_bytes, self._settings.flush.memory_bytes // 2)

    async def _flush(self, table: Table, open_: Mapping[str, OpenTransactions]) -> bool:
        """Commits what was fed so far, cutting no transaction. False where it did not land."""

        def cuts() -> dict[str, int]:
            return {
                log_id: plan_cut(table.consumed[log_id], str(table.name), transactions.open(), transactions.ended)
                for log_id, transactions in open_.items()
            }

        result = await self._host.flusher.run_flush(table, cuts)
        if result is not None:
            self._host.note_result(table, result, "return")
        return result is None or result.landed or table.stopped is not None

    async def _stay(self, table: Table) -> None:
        """It has stopped again: its records stay where they are, and more are added."""
        assert table.side is not None
        _keep_away(table)
        logger.error("table stopped on its way back, parked again", table=str(table.name))
        await self._to_its_end(table.side.feed, False)
        if table.name not in self._movers:
            self._movers.start(table)
        self._host.tell()

    # -- the end

    async def settle(self, table: Table) -> None:
        """After each commit: a side log of which everything is committed goes, unless somebody is about to fill it again."""
        side = table.side
        if (
            side is None
            or table.away
            or self.lock(table.name).locked()
            or any(max(table.committed.get(log_id, 0), table.begins.get(log_id, 0)) < bound for log_id, bound in side.bounds.items())
        ):
            return
        async with self.lock(table.name):
            table.side = None
            await self._to_its_end(side.remove)

    def lock(self, name: TableName) -> asyncio.Lock:
        """Held while a table's side log comes into use, or goes."""
        return self._locks.setdefault(name, asyncio.Lock())

    # -- for whoever does something else to a table

    async def started_table(self, name: TableName) -> Table:
        """The table, once it is known which are parked."""
        await self._started.wait()
        return await self._host.tables.named(name)

    async def require(self, table: Table, until: Mapping[str, int]) -> None:
        """Raises RequestRefused for a table that neither the catalog nor the logs below `until` know.

        Where memory is full and nothing can be committed the logs are not read on: then not everything below is known.
        """
        deadline_s = self._runtime.clock.monotonic_s() + HOLD_S_MAX
        while table.base is None and table.side is None and not any(table.needed()):
            tails = self._host.tails
            if all(log_id in tails and (tails[log_id].position >= end or tails[log_id].trouble) for log_id, end in until.items()):
                raise RequestRefused(f"there is no table {table.name}; `dolake tables` lists them")
            if self._runtime.clock.monotonic_s() > deadline_s:
                raise RequestRefused(f"nothing is known of {table.name} yet, the logs are not read so far; ask again later", _PARTLY_DONE)
            await self._runtime.clock.sleep(TICK_S)

    async def take_out(self, table: Table) -> dict[str, int]:
        """Nobody touches the table any more, parked or not; where its records were looked through to. Raises RequestRefused."""
        if table.away:
            await self._movers.end(table)
            return dict(table.parked_to)
        positions = await self._hold(table)
        table.consumed.update(positions)
        return positions

    async def discard(self, table: Table) -> str:
        """What is parked is not wanted any more. It stays parked where its side log cannot be removed: why, else empty."""
        if table.side is None:
            return ""
        try:
            await self._to_its_end(table.side.remove)
        except OSError as error:
            table.parking_trouble = f"{table.side.directory} could not be removed: {error.strerror}"
            logger.error("what is parked of a dropped table stays", table=str(table.name), reason=table.parking_trouble)
            return table.parking_trouble
        table.consumed = dict(table.parked_to)
        table.side, table.away, table.parked_to, table.parking_trouble = None, Away.HERE, {}, ""
        return ""

    def keep_away(self, table: Table) -> None:
        """It stays parked, and its records are moved again."""
        self._movers.start(table)

    async def _hold(self, table: Table) -> dict[str, int]:
        """Takes the table out of the hands of tails and flushes; where the logs were read to then. Raises RequestRefused."""
        until_s = self._runtime.clock.monotonic_s() + HOLD_S_MAX
        while table.flushing or table.behind or table.declaring:
            if self._runtime.clock.monotonic_s() > until_s:
                raise RequestRefused(
                    f"{table.name} is being committed for {HOLD_S_MAX} s now; ask again when `dolake status` says ok", _PARTLY_DONE
                )
            await self._runtime.clock.sleep(TICK_S)
        table.behind = True
        return {tail.log_id: tail.position for tail in self._host.tails.values()}

    async def _open(self, name: TableName) -> SideLog:
        """One that nobody waits for any more is closed again."""
        sides: list[SideLog] = []

        def opening() -> None:
            sides.append(SideLog(self._disk, self._settings.data, name, self._log_settings, self._runtime.random))

        try:
            await self._to_its_end(opening)
        except asyncio.CancelledError:
            for side in sides:
                side.close()
            raise
        if self._closed:
            sides[0].close()
            raise RequestRefused("the writer is stopping")
        return sides[0]

    async def _to_its_end(self, work: Callable[..., None], *arguments: Any) -> None:
        """Runs it in a thread. Cancelled meanwhile, or before the thread came to it, it is done all the same before this returns."""
        doing = self._runtime.tasks.spawn("side log", self._runtime.tasks.run(work, *arguments))
        cancelled = False
        while not doing.done():
            try:
                await asyncio.wait([doing])
            except asyncio.CancelledError:
                cancelled = True
        if cancelled:
            doing.exception()
            raise asyncio.CancelledError
        doing.result()


def _send_away(table: Table, side: SideLog, positions: Mapping[str, int]) -> None:
    """From now on its records are only moved: from the first one of each log that it had, or from `positions`."""
    floors = dict(positions)
    for pin in table.needed():
        floors[pin.log_id] = min(floors.get(pin.log_id, pin.offset), pin.offset)
    table.side = side
    table.parked_to = {log_id: max(floor, side.bounds.get(log_id, 0)) for log_id, floor in floors.items()}
    _keep_away(table)


def _keep_away(table: Table) -> None:
    table.away, table.behind = Away.PARKED, True
    table.refused.clear()
    table.clear()


def _begin_feed(table: Table, base: LoadedTable | None, verdicts: Verdicts) -> None:
    """What is committed, and nothing else, before the side log is read."""
    table.stopped, table.epoch = None, None
    table.refused.clear()
    table.load(base, verdicts)


def _without_tables(record: Record) -> Record:
    """Of one that was read from its log: which tables it is about the log's tail knows, by what the settings call them."""
    return replace(record, entry=replace(record.entry, tables={}))


def _come_back(table: Table) -> None:
    """All of the side log has been taken: the logs go on where it ends."""
    for log_id, position in table.parked_to.items():
        table.consumed[log_id] = max(table.consumed.get(log_id, 0), position)
