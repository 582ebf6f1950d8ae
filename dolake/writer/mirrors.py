"""Mirror tables in a flush: the steps that wait, around the plan that `mirroring` makes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from dolake import failpoints
from dolake.clock import Runtime
from dolake.datafiles import EncodedDataFile, EncodedDeletes
from dolake.iceberg.access import STORE
from dolake.iceberg.metadata import COMMIT_ID, EPOCH, LoadedTable, ancestry
from dolake.iceberg.partition import Spec, same_spec
from dolake.iceberg.summary import changes_rows
from dolake.metrics import Metrics
from dolake.model import TableName
from dolake.parquet.layout import EventChunk
from dolake.parquet.letters import Letter, Place
from dolake.storage.store import ObjectStore
from dolake.writer import mirroring
from dolake.writer.flight import Flight
from dolake.writer.folding import Refusal
from dolake.writer.indexes import Indexes
from dolake.writer.kinds import Counts, Kind
from dolake.writer.mirroring import MirrorPlan
from dolake.writer.table import Table
from dolake.writer.watch import Watch, outrun_letters

# What the log has of these records (log id and offset) for a table: an event that is refused is kept as it was received.
Recall = Callable[[Table, Collection[tuple[str, int]]], Awaitable[Mapping[tuple[str, int], EventChunk]]]


async def _recalls_nothing(table: Table, records: Collection[tuple[str, int]]) -> Mapping[tuple[str, int], EventChunk]:
    return {}


class Mirrors:
    """Those of one writer half. `until_answered(part, work, *arguments)` calls the store until it answers; `waiting` reads a table's
    letters that wait to be sent again."""

    def __init__(
        self,
        runtime: Runtime,
        store: ObjectStore,
        indexes: Indexes,
        metrics: Metrics,
        until_answered: Callable[..., Awaitable[Any]],
        waiting: Callable[[TableName], Awaitable[list[Letter]]],
    ) -> None:
        self._runtime, self._store, self.indexes, self._metrics = runtime, store, indexes, metrics
        self._until_answered = until_answered
        self.waiting = waiting
        self.recall: Recall = _recalls_nothing
        self._locks: dict[TableName, asyncio.Lock] = {}

    def lock(self, name: TableName) -> asyncio.Lock:
        """Held by a flush of the table as long as its index must be in nobody else's hands, and while it is put away."""
        return self._locks.setdefault(name, asyncio.Lock())

    async def put_away(self) -> None:
        """Lets go of indexes that take too much memory, of tables that are not being flushed."""
        for name in self.indexes.surplus():
            if not (lock := self.lock(name)).locked():
                async with lock:
                    await self._runtime.tasks.run(self.indexes.put_away, name)

    async def remove_index(self, name: TableName) -> None:
        """The table is gone from the catalog."""
        async with self.lock(name):
            await self._runtime.tasks.run(self.indexes.remove, name)

    async def plan(self, table: Table, flight: Flight, base: LoadedTable) -> MirrorPlan:
        """On top of exactly `base`'s head, its letters not in its flight yet. Raises TableStopped."""
        run = self._runtime.tasks.run
        index = await self._until_answered(STORE, self.indexes.at_head, base, flight.key.ids)
        failpoints.hit("index.at_head")
        aliases = table.reading.aliases(set(flight.declared))
        shared = table.rules.truncate == "table"
        outrun: dict[int, Letter] = {}
        while True:
            draft = await run(mirroring.draft, flight, index, table.writers, shared, aliases, list(outrun))
            more = await run(outrun_letters, flight.letters, draft.rows, draft.taken, flight.key, flight.schema, index.seed, table.watch)
            if not more:
                break
            outrun |= more
        committed = None
        if draft.needed:
            committed = await self._until_answered(STORE, mirroring.read_rows, self._store, index, draft.needed, flight)
        plan: MirrorPlan = await run(mirroring.finish, draft, flight, index, committed, base.head_id)
        self._metrics.add("dolake_index_lookups_total", plan.looked_up)
        self._metrics.add("dolake_index_hits_total", len(plan.deleted))
        if others_since(base):
            strangers = index.live_count - Counts.of(base.properties).rows
            plan = replace(plan, flight=replace(plan.flight, change=plan.flight.change.plus(Counts(foreign=strangers))))
        refused = await self._letters(table, plan) if plan.refusals else []
        judged = plan.flight.with_letters([*outrun.values(), *refused])
        if table.watch is None:
            table.watch = Watch.of(await self.waiting(table.name))
        watch = table.watch.with_flight(judged.letters, ())
        overtaken = await run(watch.overtaken, draft.rows, draft.taken, flight.key, flight.schema, index.seed)
        return replace(plan, flight=replace(judged, overtaken=tuple(overtaken)))

    async def _letters(self, table: Table, plan: MirrorPlan) -> list[Letter]:
        """The plan's refusals as dead letters, with the events as they were received."""
        places = [(refusal, rows.place(refusal.row)) for refusal, rows in plan.refusals]
        chunks = await self.recall(table, {(place.log, place.offset) for _, place in places})
        return [_letter(refusal, place, chunks[place.log, place.offset]) for refusal, place in places]

    async def landed(
        self,
        plan: MirrorPlan,
        files: Sequence[EncodedDataFile],
        deletes: Sequence[EncodedDeletes],
        spec: Spec,
        base: LoadedTable,
        commit_id: str,
    ) -> None:
        """The index follows, where the head is the plan's own snapshot; else it finds out for itself when it is asked next."""
        head = base.head
        if head is not None and head["summary"].get(COMMIT_ID) == commit_id:
            known = next(one for one in base.metadata["partition-specs"] if same_spec(one, spec))
            indexed = [(file.as_indexed(plan.flight.table_schema, known), file.places) for file in files]
            await self._runtime.tasks.run(mirroring.apply, plan, indexed, [file.location for file in deletes], base)
        await self._runtime.tasks.run(self.indexes.settle, base.name)
        self._metrics.add("dolake_flush_delete_files_total", len(deletes))
        self._metrics.add("dolake_flush_deleted_rows_total", plan.flight.change.removed)
        self._metrics.add("dolake_flush_folded_events_total", plan.flight.change.folded)
        if plan.flight.change.contested:
            self._metrics.add("dolake_table_contested_keys_total", plan.flight.change.contested, table=str(base.name))

    def follow(self, base: LoadedTable, commit_id: str) -> None:
        """A snapshot of ours without rows has landed: the index of the one before is its own."""
        if base.head is not None and base.head["summary"].get(COMMIT_ID) == commit_id:
            self.indexes.follow(base)


def is_mirrored(flight: Flight) -> bool:
    """Whether the flight's events are folded: a changelog, or a flush that only declares, has nothing to fold."""
    return flight.kind is not Kind.CHANGELOG and bool(flight.frozen.pieces)


def _letter(refusal: Refusal, place: Place, chunk: EventChunk) -> Letter:
    at = list(chunk.indexes).index(place.index)
    original = chunk.originals[at] if chunk.originals else None
    return Letter(
        place=original or place,
        source=chunk.source,
        epoch=chunk.epoch,
        reason=refusal.reason,
        field=refusal.field,
        rule=refusal.rule,
        value="",
        event=chunk.events[at],
        again=place if original else None,
    )


def others_since(base: LoadedTable) -> bool:
    """Whether others have committed since the last snapshot of dolake's that changed rows: empty ones only claim, and a rewrite's
    have the rows of the one before.

    They may have where snapshots in between have expired.
    """
    parent_id = None
    for snapshot in ancestry(base.metadata, base.head_id):
        parent_id = snapshot.get("parent-snapshot-id")
        if EPOCH not in snapshot["summary"]:
            return True
        if changes_rows(snapshot["summary"]):
            return False
    return parent_id is not None
