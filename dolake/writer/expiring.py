"""TTLs in a running writer: now and then what has expired leaves each table that has one, between two flushes."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import structlog

from dolake.clock import Runtime
from dolake.compaction.compactor import Done
from dolake.compaction.expirer import Due, Expirer, Looker
from dolake.compaction.landing import GivenUp
from dolake.compaction.ttl import Ttl, Witness, cutoff_us, why_put_off
from dolake.config import Settings
from dolake.errors import DolakeError, RequestRefused, TableStopped, TtlRefused
from dolake.iceberg.metadata import LoadedTable
from dolake.model import DEAD_LETTERS_TABLE, RESERVED_COLUMN_PREFIX, TableName
from dolake.writer.flight import stopped_by
from dolake.writer.indexes import ReplacedFiles
from dolake.writer.kinds import COUNTS_KEY, Counts, Kind, kind_there
from dolake.writer.mirrors import others_since
from dolake.writer.table import Table

if TYPE_CHECKING:
    from dolake.writer.service import WriterService

logger = structlog.get_logger("dolake.writer")


class Expiring:
    """Of one writer half, the `host`."""

    def __init__(self, runtime: Runtime, settings: Settings, host: WriterService) -> None:
        self._runtime, self._settings, self._host = runtime, settings, host
        flusher = host.flusher
        self._expirer = Expirer(runtime, flusher.store, flusher.committer)
        self._witness = Witness(runtime.clock.now_ms(), runtime.clock.monotonic_s())
        self._lookers: dict[TableName, Looker] = {}
        self._said: dict[TableName, str] = {}

    @property
    def is_wanted(self) -> bool:
        """Whether any setting gives a table a TTL."""
        return any(table.ttl.column for table in self._settings.tables.values())

    async def run(self) -> None:
        while True:
            await self._runtime.clock.sleep(self._settings.maintenance.ttl_interval_s)
            await self.tick()

    async def tick(self) -> None:
        """What is due of every table: first of those that nothing is under way of, so that a long rewrite keeps up its own table alone."""
        now_ms = self._now_ms()
        names = [name for name in sorted(await self._host.flusher.names(), key=str) if ttl_of(self._settings, name) is not None]
        busy = [name for name in names if self._host.compacting.lock(name).locked()]
        for name in [*(name for name in names if name not in busy), *busy]:
            try:
                await self._expire(name, now_ms, exact=False)
            except (DolakeError, OSError, ValueError) as error:
                self._say(name, str(error))
            else:
                self._said.pop(name, None)
                self._host.metrics.set("dolake_ttl_put_off_count", 0, table=str(name))

    def _now_ms(self) -> int:
        now_ms = self._runtime.clock.now_ms()
        self._witness.look(now_ms, self._runtime.clock.monotonic_s())
        return now_ms

    def _say(self, name: TableName, reason: str) -> None:
        """Once for each reason."""
        self._host.metrics.set("dolake_ttl_put_off_count", 1, table=str(name))
        if self._said.get(name) != reason:
            self._said[name] = reason
            logger.warning("rows do not expire for now", table=str(name), reason=reason)

    async def _expire(self, name: TableName, now_ms: int, *, exact: bool) -> dict[str, Any] | None:
        """None for a table without a TTL. Raises RequestRefused where it is put off, TtlRefused, DolakeError."""
        known = self._host.tables.get(name)
        base = known.base if known is not None and known.base is not None else await self._host.flusher.load(name)
        ttl = None if base is None or not base.owner_epoch else ttl_of(self._settings, name, kind_there(base))
        if base is None or ttl is None:
            return None
        monotonic_s = self._runtime.clock.monotonic_s()
        has_run_for_s = self._witness.has_run_for_s(monotonic_s)
        if reason := why_put_off(base, ttl, now_ms, ahead_s=self._witness.ahead_s, has_run_for_s=has_run_for_s):
            raise RequestRefused(reason)
        cutoff = cutoff_us(ttl, now_ms, exact=exact)
        looker = self._lookers.setdefault(name, Looker(self._host.flusher.store))
        due = await self._expirer.look(looker, base, ttl, cutoff)  # Files are read before anybody has to wait for it.
        if due is None or due.is_nothing:
            if due is not None:
                looker.note_gone(due)
            return described(None)
        async with self._host.compacting.lock(name):
            table = await self._host.tables.named(name)
            async with self._host.compacting.held(table):
                done = await self._land(table, looker, ttl, cutoff)
        self._count(name, done)
        return described(done)

    async def _land(self, table: Table, looker: Looker, ttl: Ttl, cutoff: int) -> Done | None:
        if table.base is None:
            raise RequestRefused(f"there is no table {table.name}; `dolake tables` lists them")
        epoch = table.base.owner_epoch + 1 if table.epoch is None else table.epoch
        instance = self._host.flusher.instance
        try:
            done = await self._expirer.expire(looker, table.base, ttl, cutoff, epoch=epoch, instance=instance, counted=counted)
        except TableStopped as stopped:
            table.stop_whole(stopped_by(stopped))
            raise
        if isinstance(done, GivenUp):
            raise RequestRefused(f"{table.name}: rows have not expired: {done.reason}")
        if done is not None:
            table.base, table.epoch, table.counts = done.base, epoch, Counts.of(done.base.properties)
            await self._runtime.tasks.run(self._host.flusher.indexes.move, done.base, replaced(done))
        return done

    def _count(self, name: TableName, done: Done | None) -> None:
        if done is None:
            return
        rows, files = done.landing.expired_count, len(done.landing.removed)
        self._host.metrics.add("dolake_ttl_expired_rows_total", rows, table=str(name))
        self._host.metrics.add("dolake_ttl_removed_files_total", files, table=str(name))
        logger.info("rows expired", table=str(name), rows=rows, files_removed=files)

    async def expire(self, name: TableName) -> dict[str, Any] | None:
        """All that has expired of a table by now, for whoever asks; None for one without a TTL. Raises DolakeError."""
        if ttl_of(self._settings, name) is None:
            return None
        try:
            return await self._expire(name, self._now_ms(), exact=True)
        except (RequestRefused, TtlRefused) as refused:
            return described(None, put_off=str(refused))


def ttl_of(settings: Settings, name: TableName, kind: Kind = Kind.CHANGELOG) -> Ttl | None:
    """A mirror has none of dolake's own columns: a TTL by one of them concerns the changelog beside it."""
    found = settings.settings_for(name)
    is_own = found.ttl_column.startswith(RESERVED_COLUMN_PREFIX)
    if not found.ttl_column or name == DEAD_LETTERS_TABLE or (is_own and kind is not Kind.CHANGELOG):
        return None
    return Ttl(found.ttl_column, found.ttl_age_s)


def counted(base: LoadedTable, live_count: int, expired_count: int) -> dict[str, str]:
    """The table's counts with what expires of its `live_count` rows; what others have done to a mirror until now is counted with it."""
    before = Counts.of(base.properties)
    foreign = live_count - before.rows if kind_there(base) is Kind.MIRROR and others_since(base) else 0
    properties = replace(before, expired=before.expired + expired_count, foreign=before.foreign + foreign).as_properties(before)
    # A table that has never counted its events does not begin with none.
    return properties if COUNTS_KEY in base.properties else {key: value for key, value in properties.items() if key != COUNTS_KEY}


def replaced(done: Done) -> ReplacedFiles:
    landing = done.landing
    return ReplacedFiles(
        moves={},
        files=(),
        deletes_gone=frozenset(file.location for file in landing.deletes_gone),
        deletes_new=frozenset(file.location for file in done.deletes),
        removed=frozenset(file.location for file in landing.removed),
        dead=landing.expired,
    )


def described(done: Done | Due | None, put_off: str = "") -> dict[str, Any]:
    """For whoever asked: what has gone, or would go; or why nothing can for now."""
    landing = None if done is None else done.landing
    return {
        "rows": 0 if landing is None else landing.expired_count,
        "files": 0 if landing is None else len(landing.removed),
        "put_off": put_off,
    }
