"""One table in the writer half: what is committed, what waits, where it stopped.

Everything here is derived from the catalog and the log; `forget` throws it away and reading starts again at what the
catalog says. Only the loop touches a table; threads are handed values.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import pyarrow as pa
from pyiceberg.schema import Schema

from dolake.buffer.memtable import Frozen, Memtable, PendingRecord
from dolake.buffer.plan import FlushPolicy, Pin, TableBacklog
from dolake.clock import Runtime
from dolake.errors import DolakeError, RowRejected
from dolake.iceberg.metadata import LoadedTable
from dolake.model import DeclaredSchema, TableName
from dolake.parquet.align import align, schema_from_json
from dolake.parquet.layout import EventChunk, Layout
from dolake.parquet.rows import decode_changelog
from dolake.parquet.schema import changelog_schema
from dolake.partitioning import Partition
from dolake.writer.declared import as_property, declared_schemas

# Raw events are decoded in groups: large enough to be worth a call, small enough to bound what waits undecoded.
DECODE_BYTES = 4 << 20  # More takes more memory and no less time (measured).
ACCEPTED_PROPERTY = "dolake.count.accepted"


@dataclass(frozen=True)
class Stopped:
    """Why a table takes no more rows, and the first place it could not take. `log` is empty where no row is at fault."""

    reason: str
    log: str = ""
    offset: int = -1
    index: int = -1
    field: str = ""
    rule: str = ""
    value: str = ""


@dataclass(frozen=True)
class Flight:
    """What a flush took, under the schema that held then: a `schema` record that comes meanwhile belongs to the next."""

    frozen: Frozen
    schema: Schema
    declared: Mapping[str, DeclaredSchema]

    def rows(self) -> pa.Table | None:
        """None where it only declares."""
        if not self.frozen.pieces:
            return None
        return pa.concat_tables([align(piece, self.schema) for piece in self.frozen.pieces])


@dataclass
class Table:
    """A table that the logs have rows for."""

    name: TableName
    policy: FlushPolicy
    partition_by: tuple[Partition, ...] | None = None  # None leaves it to the table
    base: LoadedTable | None = None
    schema: Schema | None = None
    declared: dict[str, DeclaredSchema] = field(default_factory=dict)
    primary_key: tuple[str, ...] = ()
    committed: dict[str, int] = field(default_factory=dict)
    consumed: dict[str, int] = field(default_factory=dict)
    accepted: int = 0
    epoch: int | None = None
    stopped: Stopped | None = None
    behind: bool = False  # being read again, apart from the logs' tails
    requested: bool = False
    flushing: bool = False
    memtable: Memtable = field(default_factory=Memtable)
    waiting: list[EventChunk] = field(default_factory=list)
    waiting_bytes: int = 0
    in_flight: Flight | None = None
    refused: dict[tuple[str, str], int] = field(default_factory=dict)  # first pinned offset by (log, source), once stopped
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    # -- what the catalog says

    def load(self, base: LoadedTable | None) -> None:
        """Takes over what is committed; everything that waited is thrown away."""
        self.base = base
        self.committed = dict(base.offsets()) if base else {}
        self.consumed = dict(self.committed)
        self.accepted = int(base.properties.get(ACCEPTED_PROPERTY, "0")) if base else 0
        self.declared = dict(declared_schemas(base.properties)) if base else {}
        self.memtable, self.waiting, self.waiting_bytes, self.in_flight = Memtable(), [], 0, None
        self.schema, self.primary_key = None, ()
        if self.declared:
            self._derive_schema()

    def _derive_schema(self) -> None:
        # What was derived before stands for what will be committed: ids it gave to new columns stay theirs.
        current = self.schema or (schema_from_json(self.base.schema) if self.base else None)
        last_id = self.base.metadata["last-column-id"] if self.base else 0
        self.schema = changelog_schema(list(self.declared.values()), current, last_id)
        self.primary_key = list(self.declared.values())[-1].primary_key
        Layout.of(str(self.name), self.schema, self.primary_key)  # says now what it could not decode later

    # -- what the log says

    def wants(self, log_id: str, offset: int) -> bool:
        return offset >= self.consumed.get(log_id, 0)

    async def declare(self, runtime: Runtime, record: PendingRecord, declared: DeclaredSchema) -> None:
        """A `schema` record: applies to the rows after it."""
        if self.stopped is None:
            await self.decode(runtime)  # what came before was written under the older schema
        if self.stopped is None:
            try:
                # The newest declaration goes last: where sources disagree on the key, it is the one that holds.
                self.declared.pop(record.pin.source, None)
                self.declared[record.pin.source] = declared
                self._derive_schema()
            except (DolakeError, ValueError) as error:
                self.stop(Stopped(str(error), record.pin.log_id, record.pin.offset, 0, "columns", str(error)))
        self._note(record)

    def take(self, record: PendingRecord, chunk: EventChunk) -> None:
        """Events of one record, in log order."""
        if self.stopped is None and self.schema is None:
            rule = "no schema is declared for this table; send a `schema` message before its events"
            self.stop(Stopped(f"{self.name}: {rule}", record.pin.log_id, record.pin.offset, 0, "table", rule, str(self.name)))
        if self.stopped is None:
            self.waiting.append(chunk)
            self.waiting_bytes += record.size_bytes
        self._note(record)

    def _note(self, record: PendingRecord) -> None:
        pin = record.pin
        if self.stopped is None:
            self.memtable.note(record)
        else:
            self.refused.setdefault((pin.log_id, pin.source), pin.offset)
        self.consumed[pin.log_id] = pin.offset + 1

    async def decode(self, runtime: Runtime) -> None:
        """Turns what waits into Arrow. A row that cannot be read or does not fit stops the table, before that record."""
        async with self.lock:
            await self._decode_waiting(runtime)

    async def _decode_waiting(self, runtime: Runtime) -> None:
        chunks, self.waiting, self.waiting_bytes = self.waiting, [], 0
        if not chunks or self.stopped is not None:
            return
        name, schema, key = str(self.name), self.schema, self.primary_key
        assert schema is not None
        try:
            piece = await runtime.tasks.run(decode_changelog, name, schema, key, chunks)
        except RowRejected as rejected:
            good = chunks[: next(n for n, chunk in enumerate(chunks) if (chunk.log, chunk.offset) == (rejected.log, rejected.offset))]
            if good:
                self.memtable.add_piece(await runtime.tasks.run(decode_changelog, name, schema, key, good))
            self._refuse_from(rejected)
        else:
            self.memtable.add_piece(piece)

    def _refuse_from(self, rejected: RowRejected) -> None:
        """Stops at `rejected`: its record and all that came after it leave the memtable and pin their logs from now on."""
        self.stop(Stopped(str(rejected), rejected.log, rejected.offset, rejected.index, rejected.field, rejected.rule, rejected.value))
        for pin in self.memtable.drop_from(rejected.log, rejected.offset):
            self.refused.setdefault((pin.log_id, pin.source), pin.offset)
        self.waiting, self.waiting_bytes = [], 0

    def stop(self, stopped: Stopped) -> None:
        """Takes no more rows; what waits decoded may still be flushed."""
        if self.stopped is None:
            self.stopped = stopped

    def stop_whole(self, stopped: Stopped) -> None:
        """Nothing of it can be committed any more: what waits goes from memory and stays in the log."""
        self.stop(stopped)
        for pin in list(self.pins()):
            first = self.refused.get((pin.log_id, pin.source), pin.offset)
            self.refused[pin.log_id, pin.source] = min(first, pin.offset)
        self.memtable, self.waiting, self.waiting_bytes, self.in_flight, self.behind = Memtable(), [], 0, None, False

    def rewind(self, base: LoadedTable | None, positions: Mapping[str, int]) -> None:
        """Falls behind: everything in memory goes, and is taken again from what is committed. Pins never have a gap."""
        floors = dict(positions)
        for pin in self.pins():
            floors[pin.log_id] = min(floors.get(pin.log_id, pin.offset), pin.offset)
        self.behind = True
        self.load(base)
        self.consumed = {log_id: self.committed.get(log_id, floor) for log_id, floor in floors.items()}
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
            if cuts is None or self.schema is None:
                return None
            self.in_flight = Flight(self.memtable.freeze(self.committed, cuts), self.schema, dict(self.declared))
            return self.in_flight

    def properties(self, flight: Flight) -> dict[str, str]:
        """What the writer needs to know beyond the log, set in the same commit as the rows."""
        properties = {ACCEPTED_PROPERTY: str(self.accepted + flight.frozen.rows)}
        for source, declared in flight.declared.items():
            properties.update(as_property(source, declared))
        return properties

    def landed(self, base: LoadedTable) -> None:
        assert self.in_flight is not None
        self.base = base
        self.accepted += self.in_flight.frozen.rows
        for log_id, range_ in self.in_flight.frozen.ranges.items():
            self.committed[log_id] = range_.end
        self.in_flight = None

    # -- what others ask

    def pins(self) -> Iterator[Pin]:
        """What of the logs must stay: an empty source stands for every source."""
        if self.in_flight is not None:
            for record in self.in_flight.frozen.records:
                yield record.pin
        yield from self.memtable.pins()
        for (log_id, source), offset in self.refused.items():
            yield Pin(log_id, offset, source)
        if self.behind:
            for log_id, offset in self.consumed.items():
                yield Pin(log_id, offset, "")

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
