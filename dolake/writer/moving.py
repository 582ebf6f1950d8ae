"""Movers: each looks through the logs for one parked table's records, as the tails go on, and puts them into its side log."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING

import structlog

from dolake.buffer.parked import READ_BYTES, ParkedRecord, SideLog, decode_parked
from dolake.buffer.tail import LogReader
from dolake.clock import Runtime
from dolake.errors import DolakeError, LogFull
from dolake.model import TableName
from dolake.storage.disk import Disk
from dolake.writer.table import Table
from dolake.writer.tail import Tail, part_of, read_routed

if TYPE_CHECKING:
    from dolake.writer.service import WriterService

TICK_S = 0.02
RETRY_S = 1.0
HOLD_S_MAX = 30  # How long an operator's request waits for a table to be free.

logger = structlog.get_logger("dolake.writer")


class Movers:
    """Those of one writer half, `host`. `open_side` opens a table's side log."""

    def __init__(self, runtime: Runtime, disk: Disk, host: WriterService, open_side: Callable[[TableName], Awaitable[SideLog]]) -> None:
        self._runtime, self._disk, self._host, self._open_side = runtime, disk, host, open_side
        self._tasks: dict[TableName, asyncio.Task[None]] = {}
        self._stopping: set[TableName] = set()  # those that shall end when what they are about is done

    def __contains__(self, name: TableName) -> bool:
        return name in self._tasks

    def start(self, table: Table) -> None:
        self._stopping.discard(table.name)
        task = self._runtime.tasks.spawn(f"move {table.name}", self._move(table))
        task.add_done_callback(self._host.ended)
        self._tasks[table.name] = task

    async def end(self, table: Table) -> None:
        """Waits until what it is writing is written."""
        self._stopping.add(table.name)
        if table.name in self._tasks:
            await asyncio.wait([self._tasks[table.name]])
            del self._tasks[table.name]

    async def close(self) -> None:
        """None is cancelled: what it writes is written by a thread, and the side log must not be closed under it."""
        self._stopping |= set(self._tasks)
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    async def _move(self, table: Table) -> None:
        """Looks through the logs for the table's records, as the tails go on, and puts them into its side log."""
        readers: dict[str, LogReader] = {}
        try:
            await self._note_waiting(table)
            while table.name not in self._stopping:
                moved = False
                for tail in list(self._host.tails.values()):
                    try:
                        moved = await self._move_piece(table, tail, readers) or moved
                        table.parking_trouble = ""
                    except (DolakeError, OSError) as error:
                        await self._note_trouble(table, str(error))
                        await self._reopen(table, isinstance(error, LogFull))
                if not moved:
                    await self._runtime.clock.sleep(TICK_S)
        finally:
            for reader in readers.values():
                reader.close()

    async def _note_waiting(self, table: Table) -> None:
        """What an earlier writer has parked counts as not committed too. A side log that cannot be read says so when it is fed."""
        if table.side is None or table.side.first == table.side.end:
            return
        # A reader of its own: the side log's has one place at a time, and may be handing out records already.
        directory, position, end = table.side.directory, table.side.first, table.side.end
        with contextlib.suppress(DolakeError, OSError):
            reader = await self._runtime.tasks.run(LogReader, self._disk, directory)
            try:
                while position < end and table.name not in self._stopping:
                    parts = await self._runtime.tasks.run(_read_parked, reader, position)
                    self._note(table, parts)
                    position = parts[-1].position + 1
            finally:
                reader.close()

    def _note(self, table: Table, parts: Sequence[ParkedRecord]) -> None:
        now_s = self._runtime.clock.monotonic_s()
        for part in parts:
            self._host.lags.note(table.name, part.record.log_id, part.record.offset, part.record.entry.event_count, now_s)

    async def _move_piece(self, table: Table, tail: Tail, readers: dict[str, LogReader]) -> bool:
        start = table.parked_to.setdefault(tail.log_id, tail.position)
        if start >= tail.position or table.side is None:
            return False
        if tail.log_id not in readers:
            readers[tail.log_id] = await self._runtime.tasks.run(LogReader, self._disk, tail.directory)
        items = await self._runtime.tasks.run(read_routed, readers[tail.log_id], self._host.names, start)
        items = [item for item in items if item.record.offset < tail.position]
        bound = table.side.bounds.get(tail.log_id, 0)
        parts = [part for item in items if item.record.offset >= bound and (part := part_of(item, table.name)) is not None]
        if parts:
            await self._runtime.tasks.run(table.side.append, parts)
            self._note(table, parts)
        if items:
            table.parked_to[tail.log_id] = items[-1].record.offset + 1
        return bool(items)

    async def _note_trouble(self, table: Table, trouble: str) -> None:
        if table.parking_trouble != trouble:
            logger.error("records cannot be parked; their logs keep them", table=str(table.name), reason=trouble)
        table.parking_trouble = trouble
        self._host.tell()
        await self._runtime.clock.sleep(RETRY_S)

    async def _reopen(self, table: Table, full: bool) -> None:
        """A side log that failed is opened anew, by recovery; one that was full goes on."""
        if full or table.side is None or not table.side.failed:
            return
        try:
            await self._runtime.tasks.run(table.side.close)
            table.side = await self._open_side(table.name)
        except (DolakeError, OSError) as error:
            table.parking_trouble = str(error)


def _read_parked(reader: LogReader, position: int) -> list[ParkedRecord]:
    return [decode_parked(stored, reader.directory) for stored in reader.read(position, READ_BYTES)]
