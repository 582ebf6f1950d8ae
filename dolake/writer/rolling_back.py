"""Rolling a table back: between two flushes of the writer that owns it, or here, where no writer runs.

Order is everything in a rewind. First the table pins what it will need again, so that nobody is told any more that it may be trimmed
(the ingest half lets nothing go while it waits for this); then the logs are looked at, whether they hold it; then the commit. Killed
in between, the table is as it was, or as it should be, and whoever comes next reads on from what it says.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import structlog

from dolake import failpoints
from dolake.buffer.parked import parked_tables
from dolake.buffer.plan import plan_cut
from dolake.buffer.tail import LogReader
from dolake.clock import Runtime
from dolake.config import Settings
from dolake.errors import DolakeError, ObjectMissing, RequestRefused, TableStopped
from dolake.iceberg.catalog import TableCatalog
from dolake.iceberg.commit import Committer, Landed, Trouble
from dolake.iceberg.contents import ContentsReader
from dolake.iceberg.metadata import LoadedTable, from_bytes
from dolake.iceberg.objects import read_file
from dolake.iceberg.plan import CommitPolicy
from dolake.model import TableName
from dolake.parquet.deletes import decode_deletes
from dolake.storage.disk import Disk
from dolake.storage.store import ObjectStore
from dolake.writer.dropping import refuse_own
from dolake.writer.flight import stopped_by
from dolake.writer.indexes import Positions, by_path
from dolake.writer.lock import lock_writer
from dolake.writer.rollback import Rollback, metadata_of, plan_declared, plan_rollback, rollback_delta, target_of
from dolake.writer.table import Table
from dolake.writer.tail import read_routed
from dolake.writer.transactions import OpenTransactions

if TYPE_CHECKING:
    from dolake.writer.service import WriterService

_PARTLY_DONE = 6

logger = structlog.get_logger("dolake.writer")


class RollingBack:
    """How a running writer does it. `host` is the writer half."""

    def __init__(self, runtime: Runtime, disk: Disk, settings: Settings, host: WriterService) -> None:
        self._runtime, self._disk, self._settings, self._host = runtime, disk, settings, host

    async def roll_back(self, name: TableName, target: int, rewinds: bool, until: Mapping[str, int]) -> dict[str, Any]:
        """Answers when the snapshot is there; events are applied again after that. Raises RequestRefused, DolakeError.

        To keep the offsets, what lies below `until` is committed before, so that it goes too.
        """
        refuse_own(name)
        table = await self._host.parking.started_table(name)
        if table.base is None:
            raise RequestRefused(f"there is no table {name}; `dolake tables` lists them")
        if not rewinds and table.stopped is None:
            flushed = await self._host.flush([name], until)
            if not flushed["success"]:
                raise RequestRefused(f"{name}: what was accepted before cannot be committed: {flushed['error']}", _PARTLY_DONE)
        async with self._host.parking.lock(name):
            if table.away or table.side is not None:
                raise RequestRefused(f"{name} is parked; `dolake tables unpark {name}`, then roll it back")
            positions = await self._host.parking.take_out(table)
            done: list[dict[str, Any]] = []
            trouble: Exception | None = None
            try:
                done.append(await self._land(table, target, rewinds))
            except (DolakeError, OSError, ValueError) as error:
                trouble = error
            finally:
                going_on = self._runtime.tasks.spawn(f"go on with {name}", self._go_on(table, positions, bool(done)))
                going_on.add_done_callback(self._host.ended)  # A table that nobody looks after would hold the logs for ever.
                await going_on
        if trouble is not None:
            raise trouble if isinstance(trouble, DolakeError) else RequestRefused(f"{name} is not rolled back: {trouble}")
        logger.warning("table rolled back", table=str(name), snapshot=done[0]["snapshot"], to=target, rewound=rewinds)
        return done[0]

    async def _land(self, table: Table, target: int, rewinds: bool) -> dict[str, Any]:
        flusher = self._host.flusher
        while True:
            base = _present(await flusher.load(table.name), table.name)
            plan, declared = await self._runtime.tasks.run(_planned, flusher.store, base, target, rewinds)
            if rewinds:
                failpoints.hit("rollback.before_pin")
                for log_id, offset in plan.read_again().items():
                    table.consumed[log_id] = min(offset, table.consumed.get(log_id, offset))
                self._host.tell()
                directories = {tail.log_id: tail.directory for tail in self._host.tails.values()}
                await self._runtime.tasks.run(require_logs, self._disk, directories, table.name, plan.read_again())
            epoch = table.epoch if table.epoch is not None else base.owner_epoch + 1
            delta = rollback_delta(base, plan, declared, epoch=epoch, instance=flusher.instance, commit_id=self._runtime.random.uuid())
            failpoints.hit("rollback.before_commit")
            outcome = await flusher.committer.commit(delta)
            if isinstance(outcome, Landed):
                failpoints.hit("rollback.after_commit")
                return described(base, outcome.base, plan)

    async def _go_on(self, table: Table, positions: Mapping[str, int], rolled_back: bool) -> None:
        """Whatever came of it: from what the catalog says now."""
        if rolled_back:
            table.stopped = None  # What it had stopped at may be gone; if it is not, it stops again.
        base = await self._host.flusher.load(table.name)
        try:
            verdicts = await self._host.flusher.verdicts(table.name, base)
        except TableStopped as stopped:
            table.stop_whole(stopped_by(stopped))
            return
        table.rewind(base, verdicts, positions)
        if rolled_back:
            table.refused.clear()
        self._host.tell()
        self._host.spawn(f"read {table.name} again", self._read_again(table))

    async def _read_again(self, table: Table) -> None:
        """Up to where the tails are by then. It may be more than memory holds: it is flushed on the way."""
        failpoints.hit("rollback.before_read")
        while not await self._feed(table):
            base = await self._host.flusher.load(table.name)
            table.rewind(base, await self._host.flusher.verdicts(table.name, base), table.consumed)
        table.behind = False
        self._host.tell()

    async def _feed(self, table: Table) -> bool:
        """False where it must begin again."""
        host, run = self._host, self._runtime.tasks.run
        readers: dict[str, LogReader] = {}
        open_: dict[str, OpenTransactions] = {}
        try:
            while behind := [tail for tail in host.tails.values() if table.consumed.setdefault(tail.log_id, tail.position) < tail.position]:
                for tail in behind:
                    if tail.log_id not in readers:
                        readers[tail.log_id] = await run(LogReader, self._disk, tail.directory)
                    for item in await run(read_routed, readers[tail.log_id], host.names, table.consumed[tail.log_id]):
                        if item.record.offset < tail.position:
                            await host.take_again(table, item)
                            transactions = open_.setdefault(tail.log_id, OpenTransactions(host.names.of))
                            transactions.note(item.record, self._runtime.clock.monotonic_s())
                    if table.memory_bytes() >= self._flush_from_bytes(table) and not await self._flush(table, open_):
                        return False
        finally:
            for reader in readers.values():
                reader.close()
        return True

    def _flush_from_bytes(self, table: Table) -> int:
        return min(table.policy.size_bytes, self._settings.flush.memory_bytes // 2)

    async def _flush(self, table: Table, open_: Mapping[str, OpenTransactions]) -> bool:
        """What was fed so far, cutting no transaction. False where it did not land."""

        def cuts() -> dict[str, int]:
            return {
                log_id: plan_cut(table.consumed[log_id], table.name.sent, transactions.open(), transactions.ended)
                for log_id, transactions in open_.items()
            }

        result = await self._host.flusher.run_flush(table, cuts)
        if result is not None:
            self._host.note_result(table, result, "rollback")
        return result is None or result.landed or table.stopped is not None


async def roll_back_here(
    runtime: Runtime,
    disk: Disk,
    settings: Settings,
    catalog: TableCatalog,
    store: ObjectStore,
    name: TableName,
    target: int,
    *,
    rewinds: bool,
    policy: CommitPolicy,
    on_trouble: Callable[[Trouble], None],
) -> dict[str, Any]:
    """The same where no daemon runs: the table is claimed with it. Raises RequestRefused, LogRefused (a writer runs), TableStopped."""
    refuse_own(name)
    lock = lock_writer(disk, settings.data)
    try:
        if name in parked_tables(disk, settings.data):
            raise RequestRefused(f"{name} is parked; start the daemon and `dolake tables unpark {name}`, then roll it back")
        committer = Committer(runtime, catalog, store, policy, on_trouble)
        instance = runtime.random.uuid()
        while True:
            base = _present(catalog.load(name), name)
            plan, declared = _planned(store, base, target, rewinds)
            if rewinds:
                require_logs(disk, _logs(disk, settings.log.directories), name, plan.read_again())
            delta = rollback_delta(base, plan, declared, epoch=base.owner_epoch + 1, instance=instance, commit_id=runtime.random.uuid())
            failpoints.hit("rollback.before_commit")
            outcome = await committer.commit(delta)
            if isinstance(outcome, Landed):
                failpoints.hit("rollback.after_commit")
                return described(base, outcome.base, plan)
    finally:
        lock.release()


def _present(base: LoadedTable | None, name: TableName) -> LoadedTable:
    if base is None:
        raise RequestRefused(f"there is no table {name}; `dolake tables` lists them")
    return base


def _planned(store: ObjectStore, base: LoadedTable, target: int, rewinds: bool) -> tuple[Rollback, dict[str, str]]:
    """With what sources had declared, where they are to be read anew. Blocks. Raises RequestRefused, DolakeError."""
    plan = plan_rollback(base, target, count_live_rows(store, target_of(base, target)), rewinds=rewinds)
    if not rewinds:
        return plan, {}
    location = metadata_of(base, target)
    metadata = None
    if location is not None:
        with contextlib.suppress(ObjectMissing):
            metadata = from_bytes(store.get(location))
    return plan, plan_declared(base, target, metadata)


def described(before: LoadedTable, after: LoadedTable, plan: Rollback) -> dict[str, Any]:
    """What came of it, for whoever asked."""
    return {
        "table": str(before.name),
        "snapshot": after.head_id,
        "to": plan.target,
        "from": before.head_id,
        "rewound": plan.rewinds,
        "offsets": dict(plan.offsets),
        "offsetsBefore": before.offsets(),
        "rows": plan.counts.rows,
    }


def require_logs(disk: Disk, directories: Mapping[str, str], name: TableName, needed: Mapping[str, int]) -> None:
    """Whether the logs (by id) hold everything from the offsets `needed` on. Blocks. Raises RequestRefused, DolakeError."""
    for log_id, offset in sorted(needed.items()):
        if log_id not in directories:
            raise RequestRefused(f"{name} cannot be rewound: log {log_id} is not there, and its events from offset {offset} on are needed")
        reader = LogReader(disk, directories[log_id])
        try:
            oldest = reader.whole_from()
        finally:
            reader.close()
        if oldest > offset:
            raise RequestRefused(
                f"{name} cannot be rewound: its events from offset {offset} of log {log_id} on are needed, and the oldest there is "
                f"{oldest}; choose a newer snapshot, or --keep-offset; a longer log.retain_s keeps more for the next time"
            )


def count_live_rows(store: ObjectStore, snapshot: Mapping[str, Any]) -> int:
    """Rows of a snapshot that no position delete speaks of. Blocks. Raises RequestRefused for one with equality deletes."""
    files = ContentsReader(store).read(snapshot).files
    if any(file.kind == "equality deletes" for file in files):
        reason = "holds equality deletes of somebody else's, which dolake does not apply; choose another"
        raise RequestRefused(f"snapshot {snapshot['snapshot-id']} {reason}")
    data = {file.location: file for file in files if file.kind == "data"}
    dead: dict[str, list[Positions]] = {}
    for file in (file for file in files if file.kind == "position deletes"):
        for path, positions in by_path(decode_deletes(read_file(store, file.location, file.size_bytes))):
            if path in data and data[path].sequence_number <= file.sequence_number:
                dead.setdefault(path, []).append(positions[positions < data[path].row_count])
    return sum(file.row_count for file in data.values()) - sum(len(np.unique(np.concatenate(parts))) for parts in dead.values())


def _logs(disk: Disk, directories: Sequence[str]) -> dict[str, str]:
    """By id. A directory without a log has none."""
    found: dict[str, str] = {}
    for directory in directories:
        if disk.exists(directory):
            reader = LogReader(disk, directory)
            found[reader.log_id] = directory
            reader.close()
    return found
