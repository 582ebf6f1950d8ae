"""Maintenance in a running writer: each table's folder is looked through now and then, and what nobody needs any more goes.

An object has a time of grace from when it is first seen unneeded. Before anything goes the table is claimed anew, between two flushes
and while nothing of it is rewritten: whatever was prepared before names nothing that can still be committed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import structlog

from dolake.clock import Runtime
from dolake.compaction.cleaner import Cleaner, described, needs_claim
from dolake.compaction.grace import Grace
from dolake.compaction.ttl import Witness
from dolake.compaction.unreferenced import StoredObject, Unreferenced
from dolake.config import Settings
from dolake.errors import DolakeError, RequestRefused, TableStopped
from dolake.iceberg.metadata import COMMIT_ID, LoadedTable
from dolake.model import DEAD_LETTERS_TABLE, TableName
from dolake.writer.flight import stopped_by
from dolake.writer.table import Table
from dolake.writer.tidying import Tidying

if TYPE_CHECKING:
    from dolake.writer.service import WriterService

logger = structlog.get_logger("dolake.writer")


class Maintaining:
    """Of one writer half, the `host`."""

    def __init__(self, runtime: Runtime, settings: Settings, host: WriterService) -> None:
        self._runtime, self._settings, self._host = runtime, settings.maintenance, host
        flusher = host.flusher
        self._cleaner = Cleaner(runtime, flusher.catalog, flusher.store, flusher.committer)
        self._graces: dict[TableName, Grace] = {}
        witness = Witness(runtime.clock.now_ms(), runtime.clock.monotonic_s())
        self._tidying = Tidying(runtime, settings, flusher.store, flusher.access, witness)

    async def run(self) -> None:
        while True:
            await self._runtime.clock.sleep(self._settings.interval_s)
            for name in sorted(await self._host.flusher.names(), key=str):
                if not self._host.compacting.lags():
                    await self._maintain(name)

    async def _maintain(self, name: TableName) -> None:
        """What is due of one table. What goes wrong is said, and looked at again the next time."""
        try:
            if name == DEAD_LETTERS_TABLE:
                await self._tidy()
            base = await self._host.flusher.load(name)
            if base is None or not base.owner_epoch:
                return
            found = await self._cleaner.look(base)
            due = self._grace_of(name).due(found.objects, self._runtime.clock.monotonic_s())
            self._note(name, found, len(due))
            if due:
                await self._purge(name, due)
        except (DolakeError, OSError, ValueError) as error:
            logger.warning("table not maintained", table=str(name), reason=str(error))

    async def _tidy(self) -> dict[str, Any]:
        async with self._host.compacting.lock(DEAD_LETTERS_TABLE):
            expired = await self._tidying.tidy(self._host.flusher.letters)
        self._host.metrics.add("dolake_ttl_expired_rows_total", expired["rows"], table=str(DEAD_LETTERS_TABLE))
        self._host.metrics.set("dolake_ttl_put_off_count", int(bool(expired["put_off"])), table=str(DEAD_LETTERS_TABLE))
        return expired

    def _grace_of(self, name: TableName) -> Grace:
        return self._graces.setdefault(name, Grace(self._settings.grace_s))

    async def _purge(self, name: TableName, due: tuple[StoredObject, ...] | None) -> dict[str, Any]:
        async with self._host.compacting.lock(name):
            if name == DEAD_LETTERS_TABLE:
                base = await self._claimed_letters(due)
            else:
                base = await self._claimed(await self._host.tables.named(name), due)
            found, purged = await self._cleaner.purge(base, due)
        metrics = self._host.metrics
        metrics.add("dolake_maintenance_purged_objects_total", purged.objects_count, table=str(name))
        metrics.add("dolake_maintenance_purged_bytes_total", purged.size_bytes, table=str(name))
        self._note(name, found, purged.objects_count)
        if purged.objects_count:
            logger.info("objects purged that nothing needed", table=str(name), count=purged.objects_count, bytes=purged.size_bytes)
        return described(name, found, purged)

    async def _claimed(self, table: Table, due: tuple[StoredObject, ...] | None) -> LoadedTable:
        """The table as it is with nothing in anybody's hands, under an epoch of its own where that is needed."""
        async with self._host.compacting.held(table):
            if table.base is None:
                raise RequestRefused(f"there is no table {table.name}; `dolake tables` lists them")
            if due is not None and not needs_claim(due) and table.epoch is not None:
                return table.base
            epoch = table.base.owner_epoch + 1
            try:
                base = await self._cleaner.claim(table.base, epoch=epoch, instance=self._host.flusher.instance)
            except TableStopped as stopped:
                table.stop_whole(stopped_by(stopped))
                raise
            self._host.flusher.mirrors.follow(base, base.head["summary"].get(COMMIT_ID, "") if base.head is not None else "")
            table.base, table.epoch = base, epoch
            return base

    async def _claimed_letters(self, due: tuple[StoredObject, ...] | None) -> LoadedTable:
        base = await self._host.flusher.letters.claim_anew() if due is None or needs_claim(due) else await self._host.flusher.letters.base()
        if base is None:
            raise RequestRefused(f"there is no table {DEAD_LETTERS_TABLE}")
        return base

    def _note(self, name: TableName, found: Unreferenced, gone: int) -> None:
        left = found.objects[gone:]
        self._host.metrics.set("dolake_maintenance_unreferenced_objects_count", len(left), table=str(name))
        self._host.metrics.set("dolake_maintenance_unreferenced_bytes", sum(one.size_bytes for one in left), table=str(name))

    async def maintain(self, name: TableName) -> dict[str, Any]:
        """What has expired leaves the table, and everything that nobody needs goes at once: whoever asks answers for queries that
        still read it.

        Raises RequestRefused, DolakeError.
        """
        if name == DEAD_LETTERS_TABLE:
            expired: dict[str, Any] | None = await self._tidy()
        else:
            await self._host.parking.started_table(name)
            expired = await self._host.expiring.expire(name)
        return {**await self._purge(name, None), "expired": expired}
