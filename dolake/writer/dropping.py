"""Dropping a table: out of the catalog, and its events out of the logs' way, so that they do not bring it back.

Order is everything here. First the note (`buffer.dropped`): from then on nobody takes the events below its offsets for a table of
that name other than the noted one. Then the catalog, and last the side log of a table that was parked. Killed in between, the
table is there as before, or gone; asked again, the rest is done.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import structlog

from dolake import failpoints
from dolake.buffer.dropped import Dropped, dropped_tables, note_dropped
from dolake.buffer.inspect import inspect_log
from dolake.buffer.parked import SideLog, parked_tables
from dolake.buffer.wal import LogSettings
from dolake.clock import Randomness, Runtime
from dolake.config import Settings
from dolake.errors import CommitConflict, DolakeError, RequestRefused
from dolake.iceberg.catalog import TableCatalog
from dolake.iceberg.metadata import LoadedTable
from dolake.model import DEAD_LETTERS_TABLE, TableName
from dolake.storage.disk import Disk
from dolake.writer.declared import SCHEMA_PROPERTY
from dolake.writer.flight import Away
from dolake.writer.indexes import remove_index
from dolake.writer.lock import lock_writer
from dolake.writer.table import Table

if TYPE_CHECKING:
    from dolake.writer.service import WriterService

logger = structlog.get_logger("dolake.writer")


class Dropping:
    """The notes of dropped tables, and how a running writer drops one more. `host` is the writer half."""

    def __init__(self, runtime: Runtime, disk: Disk, data: str, host: WriterService) -> None:
        self._runtime, self._disk, self._data, self._host = runtime, disk, data, host
        self._notes: dict[TableName, Dropped] = {}

    async def start(self) -> None:
        """Before any table is made. Raises LogCorrupt."""
        self._notes = await self._runtime.tasks.run(dropped_tables, self._disk, self._data)

    def note_of(self, name: TableName) -> Dropped:
        return self._notes.get(name, Dropped())

    async def drop(self, name: TableName, until: Mapping[str, int]) -> dict[str, Any]:
        """Drops what of the table lies below `until`, committed or not; later events make it anew. Raises RequestRefused, DolakeError."""
        refuse_own(name)
        parking = self._host.parking
        table = await parking.started_table(name)
        async with parking.lock(name):
            if table.away is Away.RETURNING:
                raise RequestRefused(f"{name} is on its way back; wait until `dolake tables` says that it follows, then drop it")
            await parking.require(table, until)
            positions = await parking.take_out(table)
            before: LoadedTable | None = None
            noted = table.dropped
            trouble: Exception | None = None
            try:
                before = await self._runtime.tasks.run(self._host.flusher.catalog.load, name)
                await self._drop(table, before, positions, until)
            except (DolakeError, OSError) as error:
                trouble = error
            finally:
                going_on = self._runtime.tasks.spawn(f"go on with {name}", self._go_on(table, before, noted))
                going_on.add_done_callback(self._host.ended)  # A table that nobody looks after would hold the logs for ever.
                gone, left = await going_on
        if not gone:
            raise trouble or RequestRefused(f"{name} is not dropped: somebody else changes it; ask again")
        logger.warning("table dropped", table=str(name))
        metadata = before.metadata_location if before is not None else ""
        if left:
            files = f"; its files stay, named by {metadata}" if metadata else ""
            raise RequestRefused(f"{name} is dropped{files}, but what was parked of it is still there: {left}; ask again")
        return {"table": str(name), "metadata": metadata}

    async def _drop(self, table: Table, base: LoadedTable | None, positions: Mapping[str, int], until: Mapping[str, int]) -> None:
        bounds = table.side.bounds if table.side is not None else {}
        note = note_of_drop(base, positions, until, bounds)
        note = await self._runtime.tasks.run(note_dropped, self._disk, self._data, table.name, note)
        table.dropped = self._notes[table.name] = note
        await self._runtime.tasks.run(take_out_of_catalog, self._host.flusher.catalog, base)

    async def _go_on(self, table: Table, before: LoadedTable | None, noted: Dropped) -> tuple[bool, str]:
        """Whatever came of it: the table goes on from what the catalog says now.

        Whether it is gone, and not the one that it was; and why what was parked of it is still there, empty where it is not.
        `before` and `noted` are what was in the catalog, and in the notes, when this drop began.
        """
        parking, flusher = self._host.parking, self._host.flusher
        now = await flusher.load(table.name)
        left = ""
        gone = table.dropped is not noted and (now is None or now.uuid != table.dropped.uuid)
        if gone:
            if before is not None:
                flusher.committer.forget(before.uuid)
            await flusher.mirrors.remove_index(table.name)
            left = await parking.discard(table)
            table.stopped, table.epoch = None, None
            table.refused.clear()
        if table.away:
            parking.keep_away(table)
        else:
            await self._host.catch_up(table)
        self._host.tell()
        return gone, left


def drop_here(disk: Disk, settings: Settings, catalog: TableCatalog, name: TableName, random: Randomness) -> str:
    """The same where no writer runs: the location of the dropped table's metadata, empty where it was never committed. Blocks.

    Raises RequestRefused, LogRefused (a writer runs), LogCorrupt, LogFailed, CatalogUnreachable.
    """
    refuse_own(name)
    lock = lock_writer(disk, settings.data)
    try:
        base = catalog.load(name)
        parked = name in parked_tables(disk, settings.data)
        if base is None and not parked:
            raise RequestRefused(f"there is no table {name}; `dolake tables` lists them")
        side = SideLog(disk, settings.data, name, LogSettings(), random) if parked else None
        try:
            note = note_of_drop(base, _ends(disk, settings.log.directories), side.bounds if side is not None else {})
            note_dropped(disk, settings.data, name, note)
            take_out_of_catalog(catalog, base)
            remove_index(disk, settings.data, name)
            if side is not None:
                side.remove()
        finally:
            if side is not None:
                side.close()
    finally:
        lock.release()
    return base.metadata_location if base is not None else ""


def refuse_own(name: TableName) -> None:
    """dolake's own tables hold what it needs to know of the others. Raises RequestRefused."""
    if name.namespace == DEAD_LETTERS_TABLE.namespace:
        raise RequestRefused(f"{name} is dolake's own: what it says of other tables' events must stay")


def note_of_drop(base: LoadedTable | None, *offsets: Mapping[str, int]) -> Dropped:
    """What must be known once the table is gone: everything below the highest of the `offsets` of each log went with it."""
    floors = {log_id: max(one.get(log_id, 0) for one in offsets) for log_id in {log_id for one in offsets for log_id in one}}
    if base is None:
        return Dropped("", floors)
    floors = {log_id: max(floors.get(log_id, 0), base.offsets().get(log_id, 0)) for log_id in {*floors, *base.offsets()}}
    return Dropped(base.uuid, floors, {key: value for key, value in base.properties.items() if key.startswith(SCHEMA_PROPERTY)})


def take_out_of_catalog(catalog: TableCatalog, base: LoadedTable | None) -> None:
    """Until this very table is not there any more; one that somebody made in its place stays. Blocks. Raises CatalogUnreachable."""
    now = base
    while base is not None and now is not None and now.uuid == base.uuid:
        failpoints.hit("drop.before_catalog")
        try:
            catalog.drop(now)
            failpoints.hit("drop.after_catalog")
        except CommitConflict:  # A commit of somebody else's came between.
            pass
        now = catalog.load(base.name)


def _ends(disk: Disk, directories: Sequence[str]) -> dict[str, int]:
    """Log id → the offset after its last whole record. A log whose daemon was killed may hold more than it has published."""
    return {segment.log_id: segment.end for directory in directories for segment in inspect_log(disk, directory) if segment.log_id}
