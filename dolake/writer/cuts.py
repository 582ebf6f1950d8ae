"""Tables of one group are committed together, at one place of each log: a consistent cut through all that their sources said.

    plan one end for all → freeze → prepare each → one transaction of the catalog → drop

Members that nothing was said of get a snapshot too, without rows: so all of them have the cut's number, time, offsets and lsns. One
that has stopped, or is parked, is left behind; it catches up by itself when it is back, and is a member again from then on.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from dolake import failpoints
from dolake.buffer.plan import plan_common_cut
from dolake.clock import Runtime
from dolake.errors import DolakeError, ObjectDamaged, ObjectMissing, TableStopped
from dolake.iceberg.commit import Held, Landed
from dolake.iceberg.history import CUT_TAG_PREFIX
from dolake.iceberg.metadata import CUT, CUT_TABLES, GROUP, LoadedTable
from dolake.iceberg.plan import Delta
from dolake.iceberg.points import LSN_PREFIX
from dolake.model import RESERVED_NAMESPACE, RESERVED_SUFFIX, TableName
from dolake.writer.flight import Flight, Stopped, stopped_by
from dolake.writer.flush import Flusher, FlushResult, Work, may_prepare_again
from dolake.writer.table import Table
from dolake.writer.tables import Tables
from dolake.writer.tail import Tail

PREPARED_AT_ONCE = 2


@dataclass(frozen=True)
class Cut:
    """Where a group's `tables` are committed to: `ends` by log, of which the `moving` ones get that far with this cut."""

    tables: tuple[Table, ...]
    ends: Mapping[str, int]
    moving: tuple[str, ...]

    def moving_for(self, table: Table) -> list[str]:
        return [log_id for log_id in self.moving if table.committed.get(log_id, 0) < self.ends[log_id]]


class Cuts:
    """Those of one writer half, which `tables` and `tails` are of."""

    def __init__(self, runtime: Runtime, flusher: Flusher, tables: Tables, tails: Mapping[str, Tail]) -> None:
        self._runtime, self._flusher, self._tables, self._tails = runtime, flusher, tables, tails

    async def start(self) -> None:
        """Meets the tables that earlier writers have committed: a cut has all of its group, also those that nothing is said of."""
        if not self._tables.may_be_grouped:
            return
        for name in await self._flusher.names():
            if name in self._tables or name.namespace == RESERVED_NAMESPACE or not self._tables.new(name).group:
                continue
            with contextlib.suppress(DolakeError):  # It says what is wrong with it once there is something to commit.
                base = await self._flusher.load(name)
                if base is not None and base.owner_epoch:
                    await self._tables.named(name)

    def members(self, group: str) -> list[Table]:
        """The group's tables that follow the logs, in the order of their names."""
        return [table for _, table in sorted(self._tables.items()) if table.group == group and is_with_group(table)]

    def stop_behind_others(self, group: str) -> None:
        """Where another writer has one of the group, it makes the group's cuts, or will: here the others stop as well.

        Two writers that have some of a group each would both give the next number to what they have (seed 422517).
        """
        of_group = [table for _, table in sorted(self._tables.items()) if table.group == group]
        fenced = next((table for table in of_group if table.stopped is not None and table.stopped.is_fenced), None)
        if fenced is not None and fenced.stopped is not None:
            for table in self.members(group):
                table.stop_whole(Stopped(f"its group's {fenced.name} is {fenced.stopped.reason}", field=fenced.stopped.field))

    def together(self, table: Table) -> list[Table]:
        """The tables that are committed with this one, it among them."""
        return self.members(table.group) if is_with_group(table) else [table]

    def ends(self, tables: Iterable[Table]) -> dict[str, int]:
        """Where a flush of all these tables may end, by log: inside no transaction of any of them."""
        names = [table.name.sent for table in tables]
        return {
            log_id: plan_common_cut(tail.position, names, tail.transactions.open(), tail.transactions.ended)
            for log_id, tail in self._tails.items()
        }

    def plan(self, members: Sequence[Table]) -> Cut | None:
        """None where nothing could go, or somebody has to be waited for.

        That is: one that is being read again; rows behind a `schema` record that a transaction keeps back (`Table.cuts`); one that
        was committed further by itself, until the others' transactions are over that far.
        """
        ends = self.ends(members)
        records = [record for table in members for record in table.memtable.records]
        moving = {record.pin.log_id for record in records if record.pin.offset < ends.get(record.pin.log_id, 0)}
        if (
            not moving
            or any(table.behind for table in members)
            or any(record.rows == 0 and record.pin.offset >= ends.get(record.pin.log_id, 0) for record in records)
            or any(table.committed.get(log_id, 0) > ends[log_id] for table in members for log_id in moving)
        ):
            return None
        tables = [table for table in members if table.base is not None or table.cuts(ends) is not None]
        return Cut(tuple(tables), ends, tuple(sorted(moving)))

    async def run(self, group: str, members: Sequence[Table]) -> list[tuple[Table, FlushResult]]:
        """What came of each table; nothing where nothing could go. What nobody here can mend stops its table, and the cut with it."""
        began_s = self._runtime.clock.monotonic_s()
        failpoints.hit("flush.before_freeze")
        flights = await self._freeze(members)
        if not flights:
            return []
        failpoints.hit("flush.after_freeze")
        async with contextlib.AsyncExitStack() as locks:
            for table in flights:
                await locks.enter_async_context(self._flusher.mirrors.lock(table.name))
            try:
                landed = await self._land(group, flights)
            except TableStopped as stopped:
                self._tables[TableName.in_lake(stopped.table)].stop_whole(stopped_by(stopped))
                landed = {}
        if landed:
            await self._flusher.mirrors.put_away()
        duration_s = self._runtime.clock.monotonic_s() - began_s
        return [
            (
                table,
                replace(result, duration_s=duration_s)
                if (result := landed.get(table.name))
                else FlushResult(str(table.name), landed=False),
            )
            for table in flights
        ]

    async def _freeze(self, members: Sequence[Table]) -> dict[Table, Flight]:
        """Takes out of all of them what lies below one end in each log. Empty where that cannot be, now."""
        async with contextlib.AsyncExitStack() as locks:
            for table in members:
                await locks.enter_async_context(table.lock)
            cut = self.plan(members)
            if cut is None:
                return {}
            # What is below the cut waits by now, and what comes while a thread decodes it lies above.
            clearings = [table.clearings for table in members]
            for table in cut.tables:
                await table.decode_waiting(self._runtime)
            if clearings != [table.clearings for table in members] or not all(is_with_group(table) for table in members):
                return {}
            ends = {**dict.fromkeys(self._tails, 0), **cut.ends}
            return {table: table.take_off(ends, cut.moving_for(table)) for table in cut.tables}

    async def _land(self, group: str, flights: Mapping[Table, Flight]) -> dict[TableName, FlushResult]:
        """The tables whose part is committed, and nothing beyond it. Raises TableStopped."""
        bases: dict[Table, LoadedTable] = {}
        for table, flight in flights.items():
            base = await self._flusher.base_of(table, flight)
            if base is None:
                return {}
            bases[table] = base
        known = await self._last_of_others(group, flights)
        works: dict[Table, Work] = {}
        while True:
            prepared = await self._prepare_all({table: flight for table, flight in flights.items() if table not in works}, bases)
            if prepared is None:
                return {}
            works |= prepared
            failpoints.hit("flush.before_commit")
            works = dict(zip(works, _cut_of(group, works, max([known, *map(_last_cut, bases.values())]) + 1), strict=True))
            outcomes = dict(zip(works, await self._flusher.commit_together([work.delta for work in works.values()]), strict=True))
            moved = [table for table, outcome in outcomes.items() if may_prepare_again(table, works[table], outcome)]
            if not moved or not all(table in moved or isinstance(outcome, Held) for table, outcome in outcomes.items()):
                break
            for table in moved:  # Somebody else has committed: what the flush takes out of it is looked up again.
                bases[table] = outcomes[table].base
                del works[table]
        landed = {}
        for table, outcome in outcomes.items():
            result = await self._flusher.landed(table, works[table], outcome.base) if isinstance(outcome, Landed) else None
            if result is not None:
                landed[table.name] = result
        return landed

    async def _last_of_others(self, group: str, flights: Mapping[Table, Flight]) -> int:
        """The number of the last cut of those that are left behind, or are changelogs that are off: none of theirs is given again."""
        names = {str(name) for name, table in self._tables.items() if table.group == group}
        names |= {str(table.name) + RESERVED_SUFFIX for table in flights if str(table.name) == table.name.sent}
        last = 0
        for name in sorted(names - {str(table.name) for table in flights}):
            with contextlib.suppress(DolakeError, ValueError):  # ValueError: too long a name for a changelog beside it.
                last = max(last, _last_cut(await self._flusher.load(TableName.in_lake(name))))
        return last

    async def _prepare_all(self, flights: Mapping[Table, Flight], bases: Mapping[Table, LoadedTable]) -> dict[Table, Work] | None:
        """None where a table has to be read again. Raises TableStopped, when nothing of it is under way any more."""
        slots = asyncio.Semaphore(PREPARED_AT_ONCE)

        async def prepare(table: Table, flight: Flight) -> Work | None:
            async with slots:
                table.base = bases[table]
                return await self._prepare(table, flight, bases[table])

        found = await asyncio.gather(*(prepare(table, flight) for table, flight in flights.items()), return_exceptions=True)
        works: dict[Table, Work] = {}
        for table, work in zip(flights, found, strict=True):
            if isinstance(work, BaseException):
                raise work
            if work is not None:
                works[table] = work
        return works if len(works) == len(flights) else None

    async def _prepare(self, table: Table, flight: Flight, base: LoadedTable) -> Work | None:
        try:
            return await self._flusher.prepare(table, flight, base)
        except (TableStopped, ObjectMissing, ObjectDamaged) as error:  # Also of the letters' table: it is this one that cannot go on.
            found = stopped_by(error)
            raise TableStopped(str(table.name), found.reason, field=found.field, rule=found.rule) from error


def is_with_group(table: Table) -> bool:
    """Whether it is committed with the others of its group. One that has come back is not until its side log is gone."""
    return bool(table.group) and table.stopped is None and not table.away and table.side is None


def _last_cut(base: LoadedTable | None) -> int:
    return 0 if base is None else int(base.properties.get(CUT, "0"))


def _cut_of(group: str, works: Mapping[Table, Work], number: int) -> list[Work]:
    """The same work, with what its snapshots have in common."""
    named = {GROUP: group, CUT: str(number)}
    shared = {**_lsns(work.flight for work in works.values()), **named, CUT_TABLES: str(len(works))}

    def of_the_cut(delta: Delta) -> Delta:
        return replace(
            delta,
            properties={**delta.properties, **named},
            summary={**delta.summary, **shared},
            tag=f"{CUT_TAG_PREFIX}{number}",
        )

    return [replace(work, delta=of_the_cut(work.delta)) for work in works.values()]


def _lsns(flights: Iterable[Flight]) -> dict[str, str]:
    """Summary key → the last lsn of each source, whichever table it came to."""
    last: dict[str, tuple[int, str]] = {}
    for record in (record for flight in flights for record in flight.frozen.records if record.lsn):
        source, offset = record.pin.source, record.pin.offset
        last[source] = max(last.get(source, (-1, "")), (offset, record.lsn))
    return {f"{LSN_PREFIX}{source}": lsn for source, (_, lsn) in last.items()}
