"""Rows of one table between log and flush, and which records of which log they came from.

The rows themselves are Arrow tables that somebody else made; here they are counted, pinned, cut and given up.
Nothing in a memtable is a truth: it can be thrown away and read from the log again at any moment.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc

from dolake.buffer.plan import Pin
from dolake.model import DEAD_LETTERS_SOURCE, OffsetRange

LOG_COLUMN = "_cdc_log"
OFFSET_COLUMN = "_cdc_offset"


@dataclass(frozen=True)
class PendingRecord:
    """One record's part for this table. `rows` 0 for a schema. `since_s` is the monotonic time it was read."""

    pin: Pin
    rows: int
    size_bytes: int
    lsn: str
    since_s: float


@dataclass(frozen=True)
class Frozen:
    """What one flush carries: whole records of each log, `ranges` from what was committed to where the flush ends."""

    pieces: tuple[pa.Table, ...]
    records: tuple[PendingRecord, ...]
    ranges: Mapping[str, OffsetRange]
    arrow_bytes: int = 0

    @property
    def rows(self) -> int:
        return sum(record.rows for record in self.records)

    @property
    def size_bytes(self) -> int:
        return sum(record.size_bytes for record in self.records)

    def sources(self) -> set[str]:
        """Sources of the rows in this flush."""
        return {record.pin.source for record in self.records if record.rows and record.pin.source != DEAD_LETTERS_SOURCE}

    def places(self) -> set[tuple[str, int]]:
        """Log and offset of each record."""
        return {(record.pin.log_id, record.pin.offset) for record in self.records}

    def lsns(self) -> dict[str, str]:
        """The last lsn of each source in this flush."""
        return {record.pin.source: record.lsn for record in self.records if record.lsn}


@dataclass
class Memtable:
    """Pending records in the order they were read, and their rows as Arrow pieces in the same order."""

    records: list[PendingRecord] = field(default_factory=list)
    pieces: list[pa.Table] = field(default_factory=list)
    rows: int = 0
    size_bytes: int = 0
    arrow_bytes: int = 0

    def note(self, record: PendingRecord) -> None:
        self.records.append(record)
        self.rows += record.rows
        self.size_bytes += record.size_bytes

    def add_piece(self, piece: pa.Table) -> None:
        self.pieces.append(piece)
        self.arrow_bytes += piece.nbytes

    def drop_from(self, log_id: str, offset: int) -> list[Pin]:
        """Gives up the records from this one on, in the order read; returns their pins. Their rows must not be pieces yet."""
        first = next(n for n, record in enumerate(self.records) if (record.pin.log_id, record.pin.offset) == (log_id, offset))
        dropped, self.records = self.records[first:], self.records[:first]
        self.rows = sum(record.rows for record in self.records)
        self.size_bytes = sum(record.size_bytes for record in self.records)
        return [record.pin for record in dropped]

    def pins(self) -> Iterator[Pin]:
        """The first pin of each (log, source): enough to know what may be trimmed."""
        seen = set()
        for record in self.records:
            key = (record.pin.log_id, record.pin.source)
            if key not in seen:
                seen.add(key)
                yield record.pin

    def freeze(self, committed: Mapping[str, int], cuts: Mapping[str, int], moving: Collection[str] = ()) -> Frozen:
        """Takes out every record below its log's cut; the rest stays. All rows below must be pieces by now.

        A log's range runs to its cut, also where the last records below it hold nothing of this table; in the logs that are
        `moving`, also where none does.
        """
        taken = [record for record in self.records if record.pin.offset < cuts[record.pin.log_id]]
        kept = [record for record in self.records if record.pin.offset >= cuts[record.pin.log_id]]
        pieces: list[pa.Table] = self.pieces
        rest: list[pa.Table] = []
        if kept:
            pieces, rest = _split(self.pieces, cuts)
        logs = {*moving, *(record.pin.log_id for record in taken)}
        ranges = {log_id: OffsetRange(committed.get(log_id, 0), cuts[log_id]) for log_id in sorted(logs)}
        self.records, self.pieces = kept, rest
        self.rows = sum(record.rows for record in kept)
        self.size_bytes = sum(record.size_bytes for record in kept)
        self.arrow_bytes = sum(piece.nbytes for piece in rest)
        return Frozen(tuple(pieces), tuple(taken), ranges, sum(piece.nbytes for piece in pieces))


def _split(pieces: Iterable[pa.Table], cuts: Mapping[str, int]) -> tuple[list[pa.Table], list[pa.Table]]:
    """Rows below their log's cut, and the others."""
    below: list[pa.Table] = []
    above: list[pa.Table] = []
    for piece in pieces:
        mask = None
        for log_id, cut in cuts.items():
            here = pc.and_(pc.equal(piece[LOG_COLUMN], log_id), pc.less(piece[OFFSET_COLUMN], cut))
            mask = here if mask is None else pc.or_(mask, here)
        assert mask is not None, "a piece without a log to cut"
        for part, rows in ((below, piece.filter(mask)), (above, piece.filter(pc.invert(mask)))):
            if rows.num_rows:
                part.append(rows)
    return below, above
