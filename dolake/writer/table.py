"""One table in the writer half: what is committed, what waits, where it stopped.

Everything here is derived from the catalog and the log; `forget` throws it away and reading starts again at what the
catalog says. Only the loop touches a table; threads are handed values.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.compute as pc

from dolake.buffer.dropped import Dropped
from dolake.buffer.memtable import Memtable, PendingRecord
from dolake.buffer.plan import FlushPolicy, Pin, TableBacklog
from dolake.clock import Runtime
from dolake.errors import DolakeError, ObjectDamaged, ObjectMissing, SchemaRejected, TableStopped
from dolake.iceberg.metadata import BEGIN_PREFIX, LoadedTable
from dolake.model import DeclaredSchema, TableName
from dolake.parquet.align import align_columns
from dolake.parquet.layout import EventChunk
from dolake.parquet.letters import DEAD, Letter, Place
from dolake.parquet.rows import Decoded
from dolake.partitioning import Partition
from dolake.writer.declared import as_property, renamed_as_property
from dolake.writer.flight import Absence, Flight, Stopped, say_stopped, stopped_by
from dolake.writer.kinds import (
    KEYLESS_PROPERTY,
    MODE_PROPERTY,
    WRITERS_PROPERTY,
    Counts,
    Kind,
    WantedMode,
    decided,
    kind_of,
    table_schema,
    with_writers,
    writers_in,
)
from dolake.writer.letters import Verdicts
from dolake.writer.reading import EventReader, runs_of
from dolake.writer.replay import columns_compared, judge_again
from dolake.writer.rules import TableRules
from dolake.writer.watch import Watch, superseded_again

# Raw events are decoded in groups: large enough to be worth a call, small enough to bound what waits undecoded.
DECODE_BYTES = 4 << 20  # More takes more memory and no less time (measured).

_Item = TypeVar("_Item")
# What the catalog says of a table's letters (their newest outcomes) and of its rows above a sequence (these columns of them).
Looker = Callable[[TableName, LoadedTable | None, pa.Schema, int], Awaitable[tuple[dict[Place, str], list[pa.Table]]]]


async def _sees_nothing(name: TableName, base: LoadedTable | None, wanted: pa.Schema, sequence_min: int) -> Any:
    return {}, []


@dataclass(eq=False)
class Table(Absence):
    """A table that the logs have rows for."""

    name: TableName
    policy: FlushPolicy
    group: str = ""  # of tables that are committed together; empty for none
    partition_by: tuple[Partition, ...] | None = None  # None leaves it to the table
    rules: TableRules = field(default_factory=TableRules)
    mode: WantedMode = field(default_factory=WantedMode)
    looker: Looker = field(default=_sees_nothing)
    dropped: Dropped = field(default_factory=Dropped)  # what is noted of tables of this name that were dropped
    beside: Mapping[str, str] = field(default_factory=dict)  # of a mirror's changelog: the mirror's properties
    base: LoadedTable | None = None
    reading: EventReader = field(init=False)
    kind: Kind = Kind.UNDECIDED
    committed: dict[str, int] = field(default_factory=dict)
    begins: dict[str, int] = field(default_factory=dict)  # by log: events below are of a table that was dropped
    consumed: dict[str, int] = field(default_factory=dict)
    counts: Counts = field(default_factory=Counts)
    writers: tuple[str, ...] = ()  # sources that have written a mirror, as far as it matters
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
    bounds: dict[str, int] = field(default_factory=dict)
    letters_epoch: int | None = None  # since it was claimed, or loaded, nobody has come between this owner of the letters and it
    watch: Watch | None = None  # of a mirror's letters; None until they are read
    verdicts: Verdicts = field(default_factory=Verdicts)
    in_flight: Flight | None = None
    clearings: int = 0  # how often what waited was thrown away, and with it what a thread had in hand
    refused: dict[tuple[str, str], int] = field(default_factory=dict)  # first pinned offset by (log, source), once stopped
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    def __post_init__(self) -> None:
        self.reading = EventReader(str(self.name), self.rules)

    # -- what the catalog says

    def load(self, base: LoadedTable | None, verdicts: Verdicts) -> None:
        """Takes over what is committed; everything that waited is thrown away."""
        self.base = base
        self.committed = dict(base.offsets()) if base else {}
        floors = self.dropped.begins(base.uuid if base else None)
        self.begins = _higher(base.begins() if base else {}, floors)
        self.consumed = _higher(self.committed, self.begins)
        properties: Mapping[str, str] = base.properties if base else {}
        self.counts = Counts.of(properties)
        self.writers = writers_in(properties)
        self.bounds, self.verdicts, self.letters_epoch = dict(verdicts.bounds), verdicts, verdicts.epoch
        self.clear()
        self.reading = EventReader(str(self.name), self.rules)  # A thread may still be reading with the old one.
        self.reading.load(base, {**self.beside, **(self.dropped.declared if floors else {})})
        try:
            self.kind = kind_of(str(self.name), self.mode, base)
        except TableStopped as stopped:
            self.stop(stopped_by(stopped))

    def clear(self) -> None:
        self.memtable, self.waiting, self.waiting_bytes, self.in_flight = Memtable(), [], 0, None
        self.letters, self.watch = [], None
        self.clearings += 1

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
        clearings = self.clearings
        if self.stopped is None:
            await self.decode(runtime)  # what came before was written under the older schema
        if self.clearings != clearings and self.stopped is None:
            return  # It is read again from what is committed, and this record with it.
        if self.stopped is None:
            try:
                self.reading.declare(record.pin.source, declared)
            except SchemaRejected as rejected:
                self.reading.troubles[rejected.field] = rejected.rule
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
        out = self.verdicts.kept_out(chunk.log, chunk.offset)
        return chunk if not out else chunk.only([place for place, index in enumerate(chunk.indexes) if index not in out])

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
            await self.decode_waiting(runtime)

    async def decode_waiting(self, runtime: Runtime) -> None:
        """What waits when this is called, by who holds the lock."""
        chunks, self.waiting, self.waiting_bytes = self.waiting, [], 0
        if not chunks or self.stopped is not None:
            return
        clearings = self.clearings
        for together in runs_of(chunks):
            found = await runtime.tasks.run(self.reading.read, together)
            rows, letters = found.rows, found.letters
            if together[0].originals:
                try:
                    rows, letters = await self._judge_again(runtime, together[0], found)
                except (ObjectMissing, ObjectDamaged) as error:
                    if self.clearings == clearings:
                        self.stop_whole(stopped_by(error))
                    return
            if self.clearings != clearings:
                return  # These events are read again.
            self.letters += letters
            if rows.num_rows:
                self.memtable.add_piece(rows)

    async def _judge_again(self, runtime: Runtime, chunk: EventChunk, found: Decoded) -> tuple[pa.Table, tuple[Letter, ...]]:
        """Of letters that are sent again, those that still count."""
        wanted = pa.schema([found.rows.schema.field(name) for name in columns_compared(self.reading.primary_key)])
        sequence_min = pc.min(found.rows["_cdc_sequence"]).as_py() or 0
        states, committed = await self.looker(self.name, self.base, wanted, sequence_min)
        pending = [*self.letters, *(self.in_flight.letters if self.in_flight else ())]
        pieces = [*self.memtable.pieces, *(self.in_flight.frozen.pieces if self.in_flight else ())]
        judged = await runtime.tasks.run(
            judge_again,
            chunk,
            found,
            {**states, **{letter.place: letter.outcome for letter in pending}},
            self.verdicts.of(chunk.log, chunk.offset),
            [*committed, *(align_columns(piece, wanted) for piece in pieces)],
            self.reading.primary_key,
        )
        return judged.rows, judged.letters

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
                await self.decode_waiting(runtime)
            cuts = self.cuts(tail_cuts())
            return None if cuts is None else self.take_off(cuts)

    def take_off(self, cuts: Mapping[str, int], moving: Collection[str] = ()) -> Flight:
        """Takes out everything below `cuts`, which is decoded by now; `moving` logs are committed that far whatever they hold."""
        letters, self.letters = _split(self.letters, cuts, lambda letter: letter.seen)
        if self.watch is not None:  # They were read while the flush before was on its way, and with it what it has decided of them.
            over = self.watch.is_over
            letters = [superseded_again(one) if one.outcome == DEAD and over(one) else one for one in letters]
        known = self._decided_below(cuts)
        frozen, reading = self.memtable.freeze(self.committed, cuts, moving), self.reading
        self.kind, keyless = decided(self.kind, frozen, reading)
        self.in_flight = Flight(
            frozen=frozen,
            kind=self.kind,
            key=reading.key,
            schema=reading.schema,
            table_schema=table_schema(self.kind, reading, self.base),
            declared=dict(reading.declared),
            renamed=dict(reading.renamed),
            letters=tuple(letters),
            known_count=sum(known.values()),
            missed_count=sum(known[place] for place in known.keys() - frozen.places()) if known else 0,
            keyless=keyless,
        )
        return self.in_flight

    def _decided_below(self, cuts: Mapping[str, int]) -> dict[tuple[str, int], int]:
        """Takes out the records below `cuts` that verdicts stand on, each with how many events those keep out.

        Those that the log let go of while this table was not fed (a changelog that was off) count too: their letters are there.
        """
        below, self.verdicts = self.verdicts.split(cuts)
        return {place: len(below.kept_out(*place)) for place in below.places if place[1] >= self.begins.get(place[0], 0)}

    def properties(self, flight: Flight) -> dict[str, str]:
        """What the writer needs to know beyond the log, set in the same commit as the rows."""
        properties = self.counts.plus(flight.counts).as_properties(self.counts)
        if flight.kind is not Kind.UNDECIDED:
            properties[MODE_PROPERTY] = flight.kind.value
        if flight.keyless:
            properties[KEYLESS_PROPERTY] = "true"
        if flight.kind is not Kind.CHANGELOG:
            properties[WRITERS_PROPERTY] = json.dumps(with_writers(self.writers, flight.frozen.sources()), ensure_ascii=False)
        properties.update({BEGIN_PREFIX + log_id: str(offset) for log_id, offset in self.begins.items()})
        if flight.renamed:
            properties.update(renamed_as_property(flight.renamed))
        for source, declared in flight.declared.items():
            properties.update(as_property(source, declared))
        return properties

    def landed(self, base: LoadedTable, flight: Flight) -> None:
        """What was in flight is in `base`, and nothing beyond it. `flight` is the same with all its verdicts."""
        assert self.in_flight is not None
        self.base = base
        self.counts, self.writers = Counts.of(base.properties), writers_in(base.properties)
        if self.watch is not None:
            self.watch = self.watch.with_flight(flight.letters, {letter.place for letter in flight.overtaken})
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


def _split(items: Sequence[_Item], cuts: Mapping[str, int], place: Callable[[_Item], Place]) -> tuple[list[_Item], list[_Item]]:
    """What lies below its log's cut, and the others."""
    below: list[_Item] = []
    above: list[_Item] = []
    for item in items:
        where = place(item)
        (below if where.offset < cuts.get(where.log, 0) else above).append(item)
    return below, above
