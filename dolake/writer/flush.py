"""One flush of one table: freeze → letters → encode → put → commit → drop. What may be trimmed follows from what is pinned no more.

Where events were kept out, the verdicts on them are committed first, and before those the table is claimed: once a verdict
stands, nobody else can commit rows that contradict it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

import pyarrow as pa
import structlog

from dolake import failpoints
from dolake.clock import Runtime
from dolake.datafiles import EncodedDataFile, EncodedDeletes, encode_delete_file, encode_file, split_rows
from dolake.errors import CommitConflict, ObjectDamaged, ObjectMissing, TableStopped
from dolake.iceberg.access import CATALOG, STORE, LakeAccess, part_at_fault
from dolake.iceberg.catalog import TableCatalog
from dolake.iceberg.commit import CommitOutcome, Committer, Held, Landed, Replan, Trouble
from dolake.iceberg.metadata import LoadedTable, new_table
from dolake.iceberg.notes import noted_in
from dolake.iceberg.partition import Spec, first_spec, next_spec
from dolake.iceberg.plan import Delta
from dolake.iceberg.points import LSN_PREFIX
from dolake.metrics import Metrics
from dolake.model import OffsetRange, TableName
from dolake.parquet.align import schema_as_json
from dolake.parquet.letters import Place
from dolake.storage.store import ObjectStore
from dolake.writer.files import encode_mirror_file
from dolake.writer.flight import Flight, stopped_by
from dolake.writer.indexes import Indexes
from dolake.writer.letters import DeadLetters, Verdicts
from dolake.writer.mirroring import MirrorPlan
from dolake.writer.mirrors import Mirrors, is_mirrored
from dolake.writer.replay import read_later
from dolake.writer.table import Table

_T = TypeVar("_T")

logger = structlog.get_logger("dolake.writer")


@dataclass(frozen=True)
class FlushResult:
    """What one flush did; `landed` false where it has to be planned again from what the catalog says."""

    table: str
    landed: bool
    rows: int = 0
    dead_letters: int = 0
    batches: int = 0
    bytes_written: int = 0
    paths: tuple[str, ...] = ()
    duration_s: float = 0.0


@dataclass(frozen=True)
class Work:
    """One table's flush, ready to be committed."""

    flight: Flight
    plan: MirrorPlan | None
    files: Sequence[EncodedDataFile]
    deletes: Sequence[EncodedDeletes]
    spec: Spec
    delta: Delta


@dataclass
class Flusher:
    """Turns what a table holds into one snapshot. `observe(part, trouble)` hears how store and catalog answer ("" is well)."""

    runtime: Runtime
    catalog: TableCatalog
    store: ObjectStore
    committer: Committer
    instance: str
    indexes: Indexes
    metrics: Metrics = field(default_factory=Metrics)
    observe: Callable[[str, str], None] = field(default=lambda part, trouble: None)
    letters: DeadLetters = field(init=False)
    mirrors: Mirrors = field(init=False)

    def __post_init__(self) -> None:
        self.access.observe = lambda part, trouble: self.observe(part, trouble)
        self._until_answered = self.access.until_answered
        self.letters = DeadLetters(
            self.runtime, self.catalog, self.store, self.committer, instance=self.instance, until_answered=self._until_answered
        )
        self.mirrors = Mirrors(self.runtime, self.store, self.indexes, self.metrics, self._until_answered, self.letters.waiting)

    @property
    def access(self) -> LakeAccess:
        """How everything in this process asks store and catalog."""
        return self.committer.access

    async def run_flush(self, table: Table, cuts: Callable[[], dict[str, int]]) -> FlushResult | None:
        """None where nothing could go. On trouble that nobody here can mend the table is stopped."""
        began_s = self.runtime.clock.monotonic_s()
        failpoints.hit("flush.before_freeze")
        flight = await table.freeze(self.runtime, cuts)
        if flight is None:
            return None
        failpoints.hit("flush.after_freeze")
        try:
            async with self.mirrors.lock(table.name):
                landed = await self._land(table, flight)
        except (TableStopped, ObjectMissing, ObjectDamaged) as stopped:
            table.stop_whole(stopped_by(stopped))
            landed = None
        if landed is None:
            return FlushResult(str(table.name), landed=False)
        await self.mirrors.put_away()
        return replace(landed, duration_s=self.runtime.clock.monotonic_s() - began_s)

    async def _land(self, table: Table, flight: Flight) -> FlushResult | None:
        """None where it has to be planned again from what the catalog says. Raises TableStopped."""
        base = await self.base_of(table, flight)
        if base is None:
            return None
        while True:
            table.base = base
            work = await self.prepare(table, flight, base)
            if work is None:
                return None
            failpoints.hit("flush.before_commit")
            outcome = await self._commit(work.delta)
            if may_prepare_again(table, work, outcome):
                base = outcome.base  # Somebody else has committed: what this flush takes out is looked up again.
                continue
            break
        return await self.landed(table, work, outcome.base) if isinstance(outcome, Landed) else None

    async def landed(self, table: Table, work: Work, base: LoadedTable) -> FlushResult | None:
        """Drops what is in `base` now. None where it is ahead of this flush, so that the table has to be read again."""
        if not _exactly(base, table, work.flight):
            return None
        failpoints.hit("flush.after_commit")
        table.epoch = work.delta.epoch
        table.landed(base, work.flight)
        if work.plan is not None:
            await self.mirrors.landed(work.plan, work.files, work.deletes, work.spec, base, work.delta.commit_id)
        elif work.delta.is_still:
            self.mirrors.follow(base, work.delta.commit_id)
        failpoints.hit("flush.after_drop")
        return FlushResult(
            table=str(table.name),
            landed=True,
            rows=work.flight.accepted_count - work.flight.dead_count,
            dead_letters=work.flight.dead_count,
            batches=len(work.flight.frozen.records),
            bytes_written=sum(len(file.data) for file in work.files) + sum(len(file.data) for file in work.deletes),
            paths=(*(file.location for file in work.files), *(file.location for file in work.deletes)),
        )

    async def base_of(self, table: Table, flight: Flight) -> LoadedTable | None:
        """What the flush goes on top of; None where the table has to be read first."""
        base = table.base or await self.create(table, flight)
        # Somebody has written it since it was looked for, or is about to.
        return None if table.base is None and base.owner_epoch else base

    async def prepare(self, table: Table, flight: Flight, base: LoadedTable) -> Work | None:
        """Everything up to the commit: verdicts are committed, files are put. None where the table has to be read again."""
        try:
            return await self._prepare(table, flight, base)
        except (TableStopped, ObjectMissing) as error:
            # Files of what was the head go once others have committed and let it expire: nothing is wrong with the table then.
            is_missing = isinstance(error, ObjectMissing) or isinstance(error.__cause__, ObjectMissing)
            if not is_missing or not await self._has_moved(base):
                raise
            return None

    async def _has_moved(self, base: LoadedTable) -> bool:
        found = await self.load(base.name)
        return found is not None and (found.uuid, found.head_id) != (base.uuid, base.head_id)

    async def _prepare(self, table: Table, flight: Flight, base: LoadedTable) -> Work | None:
        plan = await self.mirrors.plan(table, flight, base) if is_mirrored(flight) else None
        if plan is not None:
            flight = plan.flight
        if flight.judges:
            claimed = await self._commit_letters(table, flight, base)
            if claimed is None or (plan is not None and not _follows(claimed, plan.head_id)):
                return None
            base = claimed
        epoch = table.epoch if table.epoch is not None else base.owner_epoch + 1
        spec = next_spec(base, flight.table_schema, flight.partition_by(table.partition_by))
        files = await (self._encode(flight, base, spec, epoch) if plan is None else self._encode_mirror(plan, base, spec, epoch))
        deletes = [] if plan is None else await self._encode_deletes(plan, base, epoch)
        failpoints.hit("flush.after_encode")
        await self._put([*files, *deletes])
        return Work(flight, plan, files, deletes, spec, self._delta(table, flight, plan, base, spec, epoch, files, deletes))

    async def load(self, name: TableName) -> LoadedTable | None:
        """What the catalog says now; asks until it answers."""
        base: LoadedTable | None = await self._until_answered(CATALOG, self.catalog.load, name)
        return base

    async def names(self) -> list[TableName]:
        """The tables that the catalog has; asks until it answers."""
        found: list[TableName] = await self._until_answered(CATALOG, self.catalog.list_tables)
        return found

    async def verdicts(self, name: TableName, base: LoadedTable | None) -> Verdicts:
        """What has been decided of the table's events already. Raises TableStopped."""
        return await self.letters.verdicts(name, base.offsets() if base else {})

    async def look(
        self, name: TableName, base: LoadedTable | None, wanted: pa.Schema, sequence_min: int
    ) -> tuple[dict[Place, str], list[pa.Table]]:
        """What is committed of a table's letters and of its rows above `sequence_min` (`writer.table.Looker`)."""
        states = await self.letters.states(name)
        return states, await self._until_answered(STORE, read_later, self.store, base, wanted, sequence_min)

    async def _commit_letters(self, table: Table, flight: Flight, base: LoadedTable) -> LoadedTable | None:
        """The table, owned by this writer, once the flight's verdicts stand; None where it has to be read again."""
        letters_epoch = await self.letters.own()
        if table.epoch is None or table.letters_epoch != letters_epoch:
            epoch = base.owner_epoch + 1
            outcome = await self._commit(self._claim(table, flight, base, epoch))
            if not isinstance(outcome, Landed):
                return None
            table.epoch, table.base, table.letters_epoch = epoch, outcome.base, letters_epoch
            failpoints.hit("flush.after_claim")
        logs = {letter.seen.log for letter in flight.letters}
        ends = {log_id: range_.end for log_id, range_ in flight.frozen.ranges.items() if log_id in logs}
        bounds = await self.letters.commit(table.name, [*flight.letters, *flight.overtaken], ends, table.bounds, letters_epoch)
        failpoints.hit("flush.after_letters")
        if bounds is None:
            return None
        table.bounds = dict(bounds)
        return table.base

    def _claim(self, table: Table, flight: Flight, base: LoadedTable, epoch: int) -> Delta:
        """An empty snapshot under our epoch: from here on nobody else's commit lands."""
        return Delta(
            table=table.name,
            table_uuid=base.uuid,
            ranges={log_id: OffsetRange(range_.start, range_.start) for log_id, range_ in flight.frozen.ranges.items()},
            files=(),
            schema=base.schema,
            base_schema_id=base.schema["schema-id"],
            spec_id=base.spec["spec-id"],
            epoch=epoch,
            instance=self.instance,
            commit_id=self.runtime.random.uuid(),
        )

    async def create(self, table: Table, flight: Flight) -> LoadedTable:
        """The table as it is before its first snapshot. Somebody else's of that name is taken as it is."""
        base = await self.load(table.name)
        if base is not None:
            return base
        schema = schema_as_json(flight.table_schema)
        failpoints.hit("flush.before_create")
        metadata = new_table(
            uuid=self.runtime.random.uuid(),
            location=f"{self.store.root}/{table.name.namespace}/{table.name.name}",
            schema=schema,
            spec=first_spec(str(table.name), flight.table_schema, flight.partition_by(table.partition_by)),
            now_ms=self.runtime.clock.now_ms(),
        )
        try:
            base = await self._until_answered(CATALOG, self.catalog.create, table.name, metadata)
        except CommitConflict:  # Ours, with its answer lost, or somebody else's: either way it is there now.
            base = await self.load(table.name)
        failpoints.hit("flush.after_create")
        if base is None:
            raise TableStopped(str(table.name), "it was dropped while it was being created; create it again or restart the writer")
        return base

    async def _encode(self, flight: Flight, base: LoadedTable, spec: Spec, epoch: int) -> list[EncodedDataFile]:
        rows = flight.rows()
        if rows is None:
            return []
        parts = await self.runtime.tasks.run(split_rows, str(base.name), rows, flight.schema, spec)
        names = [self.runtime.random.uuid() for _ in parts]
        run = self.runtime.tasks.run
        return [
            await run(encode_file, base.location, partition, part, epoch, unique)
            for (partition, part, _), unique in zip(parts, names, strict=True)
        ]

    async def _encode_mirror(self, plan: MirrorPlan, base: LoadedTable, spec: Spec, epoch: int) -> list[EncodedDataFile]:
        run = self.runtime.tasks.run
        parts = await run(split_rows, str(base.name), plan.rows, plan.flight.table_schema, spec)
        names = [self.runtime.random.uuid() for _ in parts]
        return [
            await run(encode_mirror_file, base.location, partition, part, places, plan, epoch, unique)
            for (partition, part, places), unique in zip(parts, names, strict=True)
        ]

    async def _encode_deletes(self, plan: MirrorPlan, base: LoadedTable, epoch: int) -> list[EncodedDeletes]:
        run = self.runtime.tasks.run
        groups = await run(plan.deletes)
        return [await run(encode_delete_file, base.location, group, epoch, self.runtime.random.uuid()) for group in groups]

    async def _put(self, encoded: Sequence[EncodedDataFile | EncodedDeletes]) -> None:
        """Each under its own name, again and again until the store has it: the same bytes, so once too often does no harm."""
        for file in encoded:
            failpoints.hit("flush.before_put")
            await self._until_answered(STORE, self.store.put, file.location, file.data)
            failpoints.hit("flush.after_put")

    def _delta(
        self,
        table: Table,
        flight: Flight,
        plan: MirrorPlan | None,
        base: LoadedTable,
        spec: Spec,
        epoch: int,
        files: Sequence[EncodedDataFile],
        deletes: Sequence[EncodedDeletes],
    ) -> Delta:
        properties = table.properties(flight)
        lsns = {f"{LSN_PREFIX}{source}": lsn for source, lsn in flight.frozen.lsns().items()}
        return Delta(
            table=table.name,
            table_uuid=base.uuid,
            ranges=flight.frozen.ranges,
            files=tuple(file.as_new_file() for file in files),
            schema=schema_as_json(flight.table_schema),
            base_schema_id=base.schema["schema-id"],
            spec_id=base.spec["spec-id"],
            spec=spec,
            epoch=epoch,
            instance=self.instance,
            commit_id=self.runtime.random.uuid(),
            known=table.committed,
            properties=properties,
            summary={**lsns, **noted_in({**base.properties, **properties})},
            deletes=tuple(file.as_new_deletes() for file in deletes),
            removes_all=plan is not None and plan.removes_all,
            on_head_only=plan is not None,
            head_id=base.head_id,
        )

    async def _commit(self, delta: Delta) -> CommitOutcome:
        return await self._measured(self.committer.commit(delta), lambda outcome: isinstance(outcome, Landed))

    async def commit_together(self, deltas: Sequence[Delta]) -> list[CommitOutcome | Held]:
        """As `Committer.commit_together`."""
        return await self._measured(
            self.committer.commit_together(deltas), lambda outcomes: all(isinstance(one, Landed) for one in outcomes)
        )

    async def _measured(self, committing: Awaitable[_T], has_landed: Callable[[_T], bool]) -> _T:
        began_s = self.runtime.clock.monotonic_s()
        outcome = await committing
        self.metrics.observe("dolake_commit_seconds", self.runtime.clock.monotonic_s() - began_s)
        self.metrics.add("dolake_commit_attempts_total")
        if has_landed(outcome):
            self.metrics.add("dolake_commit_landed_total")
        self.observe(CATALOG, "")
        self.observe(STORE, "")
        return outcome

    def note_trouble(self, trouble: Trouble) -> None:
        """A try to commit that came to nothing, or whose outcome has to be looked up."""
        self.metrics.add("dolake_commit_attempts_total")
        if isinstance(trouble.error, CommitConflict):
            self.metrics.add("dolake_commit_conflicts_total")
            return
        self.metrics.add("dolake_commit_unknown_total")
        is_object = isinstance(trouble.error, ObjectMissing | ObjectDamaged)
        part = STORE if is_object else part_at_fault(trouble.error) or CATALOG
        self.observe(part, f"{trouble.table}: {trouble.error}")


def may_prepare_again(table: Table, work: Work, outcome: CommitOutcome | Held) -> bool:
    """Whether somebody else's commit is all that is in the way. Verdicts that are committed are of what was planned first."""
    moved = isinstance(outcome, Replan) and outcome.moved
    return moved and not work.flight.judges and _is_where(table.committed, outcome.base)


def _exactly(base: LoadedTable, table: Table, flight: Flight) -> bool:
    """False where a predecessor's late commit took the table further than this flush: what is in memory is there already."""
    return _is_where({**table.committed, **{log_id: range_.end for log_id, range_ in flight.frozen.ranges.items()}}, base)


def _is_where(committed: Mapping[str, int], base: LoadedTable) -> bool:
    offsets = base.offsets()
    return all(offsets.get(log_id, 0) == committed.get(log_id, 0) for log_id in offsets.keys() | committed)


def _follows(base: LoadedTable, head_id: int | None) -> bool:
    """Whether the head is that snapshot, or an empty one of our own right after it."""
    return base.head_id == head_id or (base.head is not None and base.head.get("parent-snapshot-id") == head_id)
