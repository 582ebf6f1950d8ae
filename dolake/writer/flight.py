"""What a table in the writer half can be in: stopped, away with its records elsewhere, or with rows in flight to a commit."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum

import pyarrow as pa
import structlog
from pyiceberg.schema import Schema

from dolake.buffer.memtable import Frozen
from dolake.buffer.parked import SideLog
from dolake.buffer.plan import Pin
from dolake.errors import DolakeError, ObjectDamaged, ObjectMissing, TableStopped, unreadable
from dolake.iceberg.metadata import EPOCH, INSTANCE
from dolake.model import DeclaredSchema, TableName
from dolake.parquet.align import align
from dolake.parquet.letters import REPLAYED, Letter
from dolake.parquet.mirror import MirrorKey
from dolake.partitioning import Partition
from dolake.writer.kinds import Counts, Kind

logger = structlog.get_logger("dolake.writer")


@dataclass(frozen=True)
class Stopped:
    """Why a table takes no more rows, and the first place it could not take.

    `log` is empty until there is such a place; `index` is -1 where no event of the record is at fault.
    """

    reason: str
    log: str = ""
    offset: int = -1
    index: int = -1
    field: str = ""
    rule: str = ""
    value: str = ""

    @property
    def is_fenced(self) -> bool:
        """Whether another writer has the table."""
        return self.field in (EPOCH, INSTANCE)


def stopped_by(error: Exception, log: str = "", offset: int = -1, index: int = -1) -> Stopped:
    """Why an error stops a table. What is no error of ours comes from columns of a kind that dolake does not write."""
    if isinstance(error, TableStopped):
        return Stopped(error.reason, log, offset, index, error.field, error.rule)
    if isinstance(error, ObjectMissing | ObjectDamaged):
        return Stopped(unreadable(error), log, offset, index, "files", str(error))
    return Stopped(str(error), log, offset, index, "metadata" if isinstance(error, DolakeError) else "columns", str(error))


def say_stopped(table: TableName, stopped: Stopped, first: Pin | None) -> Stopped:
    """Logs it, once it is known which record is the `first` that the table does not take; the rejected value is not logged."""
    if not stopped.log and first is not None:
        stopped = replace(stopped, log=first.log_id, offset=first.offset)
    if stopped.log:
        where = {"table": str(table), "log": stopped.log, "offset": stopped.offset}
        logger.error("table stopped", **where, field=stopped.field, rule=stopped.rule)
    return stopped


class Away(StrEnum):
    """Whether a table is where the logs find it, or parked (`writer.parking`)."""

    HERE = ""
    PARKED = "parked"
    RETURNING = "returning"


@dataclass(kw_only=True, eq=False)
class Absence:
    """What a table is while its records wait in a side log, and until all of them are committed again."""

    away: Away = Away.HERE
    side: SideLog | None = None
    parked_to: dict[str, int] = field(default_factory=dict)  # while away: the first offset of each log not looked through for it
    parking_trouble: str = ""

    def pins_beside(self, needed: Iterable[Pin]) -> Iterator[Pin]:
        """`needed` are the records that the table has in memory or has refused. Those in the side log need not stay in their logs."""
        bounds = self.side.bounds if self.side is not None else {}
        for pin in needed:
            bound = bounds.get(pin.log_id, 0)
            yield pin if pin.offset >= bound else replace(pin, elsewhere=True)
            if pin.offset < bound and not self.away:
                # Only the first record of each source is named, and those behind it may be in the log alone.
                yield Pin(pin.log_id, bound, pin.source)
        if self.away and self.side is not None:
            for log_id, offset in self.parked_to.items():
                yield Pin(log_id, offset, "")
            for (log_id, source), offset in self.side.sources.items():
                yield Pin(log_id, offset, source, elsewhere=offset < bounds.get(log_id, 0))


@dataclass(frozen=True)
class Flight:
    """What a flush took, under the schema that held then: a `schema` record that comes meanwhile belongs to the next.

    `schema` is that of the events' rows, `table_schema` the table's. `letters` are its new verdicts, `known_count` the events on
    which there were verdicts before, `missed_count` those of them that the log had no more; `overtaken` are verdicts on letters from
    before. `change` is what folding made of a mirror's events.
    """

    frozen: Frozen
    kind: Kind
    key: MirrorKey
    schema: Schema
    table_schema: Schema
    declared: Mapping[str, DeclaredSchema]
    renamed: Mapping[str, int]
    letters: tuple[Letter, ...]
    known_count: int
    missed_count: int = 0
    overtaken: tuple[Letter, ...] = ()
    keyless: bool = False
    change: Counts = field(default_factory=Counts)

    @property
    def accepted_count(self) -> int:
        """Events that it decides of."""
        return self.frozen.rows + self.missed_count

    @property
    def dead_count(self) -> int:
        """Events that make no row."""
        return self.known_count + sum(letter.outcome != REPLAYED for letter in self.letters)

    @property
    def judges(self) -> bool:
        """Whether verdicts have to be committed before its rows."""
        return bool(self.letters or self.overtaken)

    @property
    def counts(self) -> Counts:
        """What it adds to the table's running counts."""
        return self.change.plus(Counts(accepted=self.accepted_count, dead=self.dead_count))

    def with_letters(self, letters: Iterable[Letter]) -> Flight:
        """With verdicts that stand in the place of those it had on the same events."""
        newer = {letter.seen: letter for letter in letters}
        kept = [letter for letter in self.letters if letter.seen not in newer]
        return replace(self, letters=(*kept, *newer.values()))

    def partition_by(self, wanted: tuple[Partition, ...] | None) -> tuple[Partition, ...] | None:
        """What of the setting can be had: where nobody declares anything, a column may still be to come."""
        if wanted is None or self.declared:
            return wanted
        names = {column.name for column in self.table_schema.fields}
        return tuple(one for one in wanted if one.column[0] in names)

    def rows(self) -> pa.Table | None:
        """Every event's row, under `schema`; None where there are none: it only declares, or all was kept out."""
        if not self.frozen.pieces:
            return None
        return pa.concat_tables([align(piece, self.schema) for piece in self.frozen.pieces])
