"""One table in the writer half: what is committed, what waits, where it stopped.

Everything here is derived from the catalog and the log; `forget` throws it away and reading starts again at what the
catalog says. Only the loop touches a table; threads are handed values.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.compute as pc
from pyiceberg.schema import Schema

from dolake.buffer.dropped import Dropped
from dolake.buffer.memtable import Memtable, PendingRecord
from dolake.buffer.plan import FlushPolicy, Pin, TableBacklog
from dolake.clock import Runtime
from dolake.errors import DolakeError, SchemaRejected
from dolake.iceberg.metadata import BEGIN_PREFIX, LoadedTable
from dolake.model import DeclaredSchema, TableName
from dolake.parquet.align import align_columns, schema_from_json
from dolake.parquet.layout import EventChunk
from dolake.parquet.letters import REPLAYED, Letter, Place
from dolake.parquet.rows import ChangelogDecoder, Decoded
from dolake.parquet.schema import aliases_of, evolve_declared
from dolake.partitioning import Partition
from dolake.writer.declared import as_property, declared_schemas, renamed_as_property, renamed_columns
from dolake.writer.flight import Absence, Flight, Stopped, say_stopped, stopped_by
from dolake.writer.letters import Verdicts
from dolake.writer.replay import columns_compared, judge_again
from dolake.writer.rows import read_rows
from dolake.writer.rules import TableRules

# Raw events are decoded in groups: large enough to be worth a call, small enough to bound what waits undecoded.
DECODE_BYTES = 4 << 20  # More takes more memory and no less time (measured).
ACCEPTED_PROPERTY = "dolake.count.accepted"
DEAD_PROPERTY = "dolake.count.dead-lettered"

_Item = TypeVar("_Item")
# What the catalog says of a table's letters (their newest outcomes) and of its rows above a sequence (these columns of them).
Looker = Callable[[TableName, LoadedTable | None, pa.Schema, int], Awaitable[tuple[dict[Place, str], list[pa.Table]]]]


async def _sees_nothing(name: TableName, base: LoadedTable | None, wanted: pa.Schema, sequence_min: int) -> Any:
    return {}, []


@dataclass
class Table(Absence):
    """A table that the logs have rows for."""

    name: TableName
    policy: FlushPolicy
    partition_by: tuple[Partition, ...] | None = None  # None leaves it to the table
    rules: TableRules = field(default_factory=TableRules)
    looker: Looker = field(default=_sees_nothing)
    dropped: Dropped = field(default_factory=Dropped)  # what is noted of tables of this name that were dropped
    base: LoadedTable | None = None
    schema: Schema = field(default_factory=lambda: evolve_declared([], None).schema)
    declared: dict[str, DeclaredSchema] = field(default_factory=dict)
    renamed: dict[str, int] = field(default_factory=dict)
    primary_key: tuple[str, ...] = ()
    troubles: dict[str, str] = field(default_factory=dict)  # what of the declarations could not be had, by column
    committed: dict[str, int] = field(default_factory=dict)
    begins: dict[str, int] = field(default_factory=dict)  # by log: events below are of a table that was dropped
    consumed: dict[str, int] = field(default_factory=dict)
    accepted: int = 0
    dead: int = 0
    epoch: int | None = None
    stopped: Stopped | None = None
    behind: bool = False  # being read again, apart from the logs' tails
    requested: bool = False
    flushing: bool = False
    declaring: bool = False
    memtable: Memtable = field(default_factory=Memtable)
    waiting: list[EventChunk] = field(default_factory=list)
    waiting_bytes: int = 0
    letters: list[Letter] = field(default_factory=list)
    known: list[Place] = field(default_factory=list)  # of what waits: kept out before, by verdicts that stand
    bounds: dict[str, int] = field(default_factory=dict)
    letters_epoch: int | None = None  # since it was claimed, or loaded, nobody has come between this owner of the letters and it
    verdicts: Mapping[tuple[str, int], Mapping[int, str]] = field(default_factory=dict)
    in_flight: Flight | None = None
    refused: dict[tuple[str, str], int] = field(default_factory=dict)  # first pinned offset by (log, source), once stopped
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    # -- what the catalog says

    def load(self, base: LoadedTable | None, verdicts: Verdicts) -> None:
        """Takes over what is committed; everything that waited is thrown away."""
        self.base = base
        self.committed = dict(base.offsets()) if base else {}
        floors = self.dropped.begins(base.uuid if base else None)
        self.begins = _higher(base.begins() if base else {}, floors)
        self.consumed = _higher(self.committed, self.begins)
        properties: Mapping[str, str] = base.properties if base else {}
        self.accepted, self.dead = int(properties.get(ACCEPTED_PROPERTY, "0")), int(properties.get(DEAD_PROPERTY, "0"))
        self.declared = {**dict(declared_schemas(self.dropped.declared if floors else {})), **dict(declared_schemas(properties))}
        self.renamed = renamed_columns(properties)
        self.bounds, self.verdicts, self.letters_epoch = dict(verdicts.bounds), verdicts.places, verdicts.epoch
        self.clear()
        self.schema = schema_from_json(base.schema) if base else evolve_declared([], None).schema
        self._derive_schema()

    def clear(self) -> None:
        self.memtable, self.waiting, self.waiting_bytes, self.in_flight = Memtable(), [], 0, None
        self.letters, self.known = [], []

    def _derive_schema(self) -> None:
        """The schema that the declarations make of the present one: ids given to columns that are not committed yet stay theirs."""
        declarations = [*self.rules.declared(str(self.name)), *self.declared.values()]
        last_id = self.base.metadata["last-column-id"] if self.base else 0
        evolved = evolve_declared(declarations, self.schema, renamed=self.renamed, last_column_id=last_id)
        key = self.rules.primary_key
        if not key and self.declared:
            newest = list(self.declared.values())[-1]
            names = aliases_of(newest, evolved.schema, evolved.renamed)
            key = tuple(names.get(name, name) for name in newest.primary_key)
        defaults = {column.name: column.default for schema in declarations for column in schema.columns if column.default is not None}
        self._decoder = ChangelogDecoder(
            str(self.name), evolved.schema, key, defaults=defaults, columns_max=self.rules.columns_max, last_column_id=last_id
        )
        self._redactor = self.rules.redactor(key)
        self.schema, self.renamed, self.primary_key = evolved.schema, dict(evolved.renamed), key
        self.troubles = {trouble.field: trouble.rule for trouble in evolved.troubles}

    # -- what the log says

    def wants(self, log_id: str, offset: int) -> bool:
        return offset >= self.consumed.get(log_id, 0)

    async def declare(self, runtime: Runtime, record: PendingRecord, declared: DeclaredSchema) -> None:
        """A `schema` record: applies to the rows after it."""
        self.declaring = True
        try:
            await self._declare(runtime, record, declared)
        finally:
            self.declaring = False

    async def _declare(self, runtime: Runtime, record: PendingRecord, declared: DeclaredSchema) -> None:
        if self.stopped is None:
            await self.decode(runtime)  # what came before was written under the older schema
        if self.stopped is None:
            try:
                seen = self._redactor.schema(declared) if self._redactor else declared
                # The newest declaration goes last: where sources disagree on the key, it is the one that holds.
                self.declared.pop(record.pin.source, None)
                self.declared[record.pin.source] = seen
                self._derive_schema()
            except SchemaRejected as rejected:
                self.troubles[rejected.field] = rejected.rule
            except (DolakeError, ValueError) as error:
                self.stop(stopped_by(error, record.pin.log_id, record.pin.offset, 0))
        self._note(record)

    def take(self, record: PendingRecord, chunk: EventChunk) -> None:
        """Events of one record, in log order."""
        if self.stopped is None:
            self.waiting.append(self._undecided(chunk))
            self.waiting_bytes += record.size_bytes
        self._note(record)

    def _undecided(self, chunk: EventChunk) -> EventChunk:
        """Without the events that verdicts keep out, from before this writer or this reading."""
        decided = self.verdicts.get((chunk.log, chunk.offset))
        if not decided:
            return chunk
        # What was sent again and applied goes into the table all the same: its verdict was committed first, its row was not.
        out = {index for index, outcome in decided.items() if outcome != REPLAYED}
        self.known += [Place(chunk.log, chunk.offset, index) for index in chunk.indexes if index in out]
        return chunk.only([place for place, index in enumerate(chunk.indexes) if index not in out])

    def _note(self, record: PendingRecord) -> None:
        pin = record.pin
        if self.stopped is None:
            self.memtable.note(record)
        else:
            if not self.stopped.log:  # It had stopped before there was anything to refuse.
                self.stopped = say_stopped(self.name, self.stopped, pin)
            self.refused.setdefault((pin.log_id, pin.source), pin.offset)
        self.consumed[pin.log_id] = pin.offset + 1

    async def decode(self, runtime: Runtime) -> None:
        """Turns what waits into Arrow, and what no row can be made of into letters."""
        async with self.lock:
            await self._decode_waiting(runtime)

    async def _decode_waiting(self, runtime: Runtime) -> None:
        chunks, self.waiting, self.waiting_bytes = self.waiting, [], 0
        if not chunks or self.stopped is not None:
            return
        for together in _runs(chunks):
            found = await runtime.tasks.run(read_rows, self._decoder, self._redactor, together, self._aliases(together))
            self.schema = found.schema
            rows, letters = found.rows, found.letters
            if together[0].originals:
                rows, letters = await self._judge_again(runtime, together[0], found)
            self.letters += letters
            if rows.num_rows:
                self.memtable.add_piece(rows)

    async def _judge_again(self, runtime: Runtime, chunk: EventChunk, found: Decoded) -> tuple[pa.Table, tuple[Letter, ...]]:
        """Of letters that are sent again, those that still count."""
        wanted = pa.schema([found.rows.schema.field(name) for name in columns_compared(self.primary_key)])
        sequence_min = pc.min(found.rows["_cdc_sequence"]).as_py() or 0
        states, committed = await self.looker(self.name, self.base, wanted, sequence_min)
        pending = [*self.letters, *(self.in_flight.letters if self.in_flight else ())]
        pieces = [*self.memtable.pieces, *(self.in_flight.frozen.pieces if self.in_flight else ())]
        judged = await runtime.tasks.run(
            judge_again,
            chunk,
            found,
            {**states, **{letter.place: letter.outcome for letter in pending}},
            self.verdicts.get((chunk.log, chunk.offset), {}),
            [*committed, *(align_columns(piece, wanted) for piece in pieces)],
            self.primary_key,
        )
        return judged.rows, judged.letters

    def _aliases(self, chunks: Sequence[EventChunk]) -> dict[str, Mapping[str, str]]:
        if not self.renamed:
            return {}
        sources = {chunk.source for chunk in chunks}
        return {source: aliases_of(self.declared.get(source), self.schema, self.renamed) for source in sources}

    def stop(self, stopped: Stopped) -> None:
        """Takes no more rows; what waits decoded may still be flushed."""
        if self.stopped is None:
            self.stopped = say_stopped(self.name, stopped, next(self.pins(), None))

    def stop_whole(self, stopped: Stopped) -> None:
        """Nothing of it can be committed any more: what waits goes from memory and stays in the log."""
        self.stop(stopped)
        for pin in list(self.pins()):
            first = self.refused.get((pin.log_id, pin.source), pin.offset)
            self.refused[pin.log_id, pin.source] = min(first, pin.offset)
        self.clear()
        self.behind = False

    def rewind(self, base: LoadedTable | None, verdicts: Verdicts, positions: Mapping[str, int]) -> None:
        """Falls behind: everything in memory goes, and is taken again from what is committed. Pins never have a gap."""
        floors = dict(positions)
        for pin in self.pins():
            floors[pin.log_id] = min(floors.get(pin.log_id, pin.offset), pin.offset)
        self.behind = True
        self.load(base, verdicts)
        for log_id, floor in floors.items():
            if log_id not in self.committed:
                self.consumed[log_id] = max(floor, self.consumed.get(log_id, 0))
        self.epoch = None

    # -- flushing

    def cuts(self, tail_cuts: Mapping[str, int]) -> dict[str, int] | None:
        """Where a flush of what is pending would end in each log; None where nothing could go.

        It waits where an open transaction keeps back a `schema` record: rows before that record would be committed under
        the schema after it, and those still in the log could not be read by it.
        """
        records = self.memtable.records
        cuts = {log_id: self._cut(log_id, tail_cuts.get(log_id, 0)) for log_id in {record.pin.log_id for record in records}}
        if any(record.rows == 0 and record.pin.offset >= cuts[record.pin.log_id] for record in records):
            return None
        return cuts if any(record.pin.offset < cuts[record.pin.log_id] for record in records) else None

    def _cut(self, log_id: str, tail_cut: int) -> int:
        """Never behind a refused record, nor behind what this table itself has taken."""
        refused = [offset for (log, _), offset in self.refused.items() if log == log_id]
        return min([tail_cut, *refused, *([self.consumed.get(log_id, 0)] if self.behind or self.stopped else [])])

    async def freeze(self, runtime: Runtime, tail_cuts: Callable[[], Mapping[str, int]]) -> Flight | None:
        """Takes out what one flush carries; None where nothing can go."""
        async with self.lock:
            while self.waiting:  # more may come while a thread decodes: none may be noted and not yet a piece
                await self._decode_waiting(runtime)
            cuts = self.cuts(tail_cuts())
            if cuts is None:
                return None
            letters, self.letters = _split(self.letters, cuts, lambda letter: letter.seen)
            known, self.known = _split(self.known, cuts, lambda place: place)
            frozen = self.memtable.freeze(self.committed, cuts)
            self.in_flight = Flight(frozen, self.schema, dict(self.declared), dict(self.renamed), tuple(letters), len(known))
            return self.in_flight

    def properties(self, flight: Flight) -> dict[str, str]:
        """What the writer needs to know beyond the log, set in the same commit as the rows."""
        properties = {ACCEPTED_PROPERTY: str(self.accepted + flight.frozen.rows)}
        if dead := self.dead + flight.dead_count:
            properties[DEAD_PROPERTY] = str(dead)
        properties.update({BEGIN_PREFIX + log_id: str(offset) for log_id, offset in self.begins.items()})
        if flight.renamed:
            properties.update(renamed_as_property(flight.renamed))
        for source, declared in flight.declared.items():
            properties.update(as_property(source, declared))
        return properties

    def landed(self, base: LoadedTable) -> None:
        assert self.in_flight is not None
        self.base = base
        self.accepted += self.in_flight.frozen.rows
        self.dead += self.in_flight.dead_count
        for log_id, range_ in self.in_flight.frozen.ranges.items():
            self.committed[log_id] = range_.end
        self.in_flight = None

    # -- what others ask

    def pins(self) -> Iterator[Pin]:
        """What is not committed, and so stays in its log unless it is elsewhere too: an empty source stands for every source."""
        yield from self.pins_beside(self.needed())
        if self.behind and not self.away:
            for log_id, offset in self.consumed.items():
                yield Pin(log_id, offset, "")

    def needed(self) -> Iterator[Pin]:
        """Of the records in memory, and of those refused, the first one of each source at least."""
        if self.in_flight is not None:
            for record in self.in_flight.frozen.records:
                yield record.pin
        yield from self.memtable.pins()
        for (log_id, source), offset in self.refused.items():
            yield Pin(log_id, offset, source)

    def is_nothing(self) -> bool:
        """Not committed, and nothing of it waits: somebody has asked for it, or has dropped it."""
        return self.base is None and self.stopped is None and not self.behind and not any(self.pins())

    def memory_bytes(self) -> int:
        """What the next flush would free; what is on its way already is `in_flight_bytes`."""
        return self.waiting_bytes + self.memtable.arrow_bytes

    def in_flight_bytes(self) -> int:
        return 0 if self.in_flight is None else self.in_flight.frozen.arrow_bytes

    def backlog(self) -> TableBacklog | None:
        """None where there is nothing to flush."""
        if not self.memtable.records:
            return None
        return TableBacklog(
            table=str(self.name),
            policy=self.policy,
            rows=self.memtable.rows,
            size_bytes=self.memtable.size_bytes,
            memory_bytes=self.memory_bytes(),
            since_s=self.memtable.records[0].since_s,
            requested=self.requested,
        )


def _higher(one: Mapping[str, int], other: Mapping[str, int]) -> dict[str, int]:
    """Of each log the higher offset."""
    return {log_id: max(one.get(log_id, 0), other.get(log_id, 0)) for log_id in {*one, *other}}


def _runs(chunks: Sequence[EventChunk]) -> Iterator[Sequence[EventChunk]]:
    """Chunks to be decoded together, in order: letters that are sent again by themselves, after everything before them."""
    run: list[EventChunk] = []
    for chunk in chunks:
        if not chunk.originals:
            run.append(chunk)
            continue
        if run:
            yield run
            run = []
        if len(chunk.events):
            yield [chunk]
    if run:
        yield run


def _split(items: Sequence[_Item], cuts: Mapping[str, int], place: Callable[[_Item], Place]) -> tuple[list[_Item], list[_Item]]:
    """What lies below its log's cut, and the others."""
    below: list[_Item] = []
    above: list[_Item] = []
    for item in items:
        where = place(item)
        (below if where.offset < cuts.get(where.log, 0) else above).append(item)
    return below, above
