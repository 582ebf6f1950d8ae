"""Dead letters: events that were kept out of their table, why, and their raw bytes; as values and as rows of their own table.

The table `dolake.dead_letters` is partitioned by `table_name`; a letter is known by table, log, offset and index. Each row is an
outcome, the newest of a letter (highest `judged_at`) its state:

    dead         it was kept out
    replayed     it was sent again, and is in its table (or is about to be: nothing else is committed first)
    superseded   a later event of its key was there already, or it was sent again before: it is not applied
    expired      it was kept out, and what was received is not kept any longer: `event` and `value` are empty, as in every row of that age

Rows are added and, but for what expires, never changed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyiceberg.schema import Schema
from pyiceberg.types import BinaryType, IntegerType, LongType, NestedField, StringType, TimestamptzType

from dolake.parquet.schema import arrow_schema

DEAD, REPLAYED, SUPERSEDED, EXPIRED = "dead", "replayed", "superseded", "expired"

JUDGED_AT_ID, EVENT_ID = 6, 17
# Field ids are for good: add to the end, never renumber.
LETTERS_SCHEMA = Schema(
    NestedField(1, "table_name", StringType(), required=True, doc="the table that the event was kept out of"),
    NestedField(2, "_cdc_log", StringType(), required=True, doc="with offset and index: the event's place"),
    NestedField(3, "_cdc_offset", LongType(), required=True, doc="the record's offset in its log"),
    NestedField(4, "_cdc_index", IntegerType(), required=True, doc="the event's place in its record"),
    NestedField(5, "outcome", StringType(), required=True, doc="dead, replayed or superseded"),
    NestedField(6, "judged_at", TimestamptzType(), required=True, doc="when this was decided"),
    NestedField(7, "reason", StringType(), required=True, doc="what kind of rule it breaks"),
    NestedField(8, "field", StringType(), required=True, doc="the part of the event that breaks it"),
    NestedField(9, "rule", StringType(), required=True, doc="the rule in words"),
    NestedField(10, "value", StringType(), required=True, doc="the offending value, cut short"),
    NestedField(11, "_cdc_source", StringType(), required=True, doc="the source that sent the event"),
    NestedField(12, "_cdc_epoch", StringType(), required=True, doc="the life of the source's numbering"),
    NestedField(13, "_cdc_sequence", LongType(), required=True, doc="the event's sequence at its source"),
    NestedField(14, "_cdc_timestamp", TimestamptzType(), required=True, doc="when the source changed the row"),
    NestedField(15, "_cdc_operation", StringType(), required=True, doc="INSERT, UPDATE, DELETE or TRUNCATE"),
    NestedField(16, "_cdc_row_id", StringType(), doc="the row's id as the source sent it"),
    NestedField(17, "event", BinaryType(), required=True, doc="the event as it was received"),
    NestedField(18, "replayed_log", StringType(), doc="where it was sent again: the log,"),
    NestedField(19, "replayed_offset", LongType(), doc="the record's offset in it,"),
    NestedField(20, "replayed_index", IntegerType(), doc="and its place in the record"),
)


@dataclass(frozen=True)
class Place:
    """Where an event lies: in this record of this log, at this index."""

    log: str
    offset: int
    index: int


@dataclass(frozen=True)
class Letter:
    """One event and what was decided of it. `again` is where it was sent again, if it was."""

    place: Place
    source: str
    epoch: str
    reason: str
    field: str
    rule: str
    value: str
    event: bytes
    outcome: str = DEAD
    again: Place | None = None

    @property
    def seen(self) -> Place:
        """Where the event lies that this was decided of: the one that was sent last."""
        return self.again or self.place


class _Described(msgspec.Struct, rename="camel", gc=False):
    """What the ingest half has made sure of in every event."""

    sequence: int
    timestamp: int
    operation: str
    row_id: str | None = None


_DESCRIBED = msgspec.json.Decoder(_Described)


def letters_table(table: str, letters: Sequence[Letter], judged_at_ms: int) -> pa.Table:
    """The letters of one table as rows of LETTERS_SCHEMA."""
    rows = [_row(table, letter, judged_at_ms) for letter in letters]
    schema = pa.schema(
        [field.with_type(pa.string()) if pa.types.is_dictionary(field.type) else field for field in arrow_schema(LETTERS_SCHEMA)]
    )
    return pa.Table.from_pylist(rows, schema=schema)


def _row(table: str, letter: Letter, judged_at_ms: int) -> dict[str, Any]:
    event, place, again = _DESCRIBED.decode(letter.event), letter.place, letter.again
    return {
        "table_name": table,
        "_cdc_log": place.log,
        "_cdc_offset": place.offset,
        "_cdc_index": place.index,
        "outcome": letter.outcome,
        "judged_at": judged_at_ms * 1000,
        "reason": letter.reason,
        "field": letter.field,
        "rule": letter.rule,
        "value": letter.value,
        "_cdc_source": letter.source,
        "_cdc_epoch": letter.epoch,
        "_cdc_sequence": event.sequence,
        "_cdc_timestamp": event.timestamp * 1000,
        "_cdc_operation": event.operation,
        "_cdc_row_id": event.row_id,
        "event": letter.event,
        "replayed_log": again.log if again else None,
        "replayed_offset": again.offset if again else None,
        "replayed_index": again.index if again else None,
    }


def expired_apart(rows: pa.Table, cutoff_us: int | None) -> tuple[pa.Table, pa.Table, int]:
    """(the rows judged before `cutoff_us`, without their events; the others; how many of the first had one). None: nothing expires."""
    if cutoff_us is None:
        cutoff_us = -1
    judged = np.asarray(rows["judged_at"].combine_chunks().view(pa.int64()))
    # Those that were emptied before stay among them, whatever the clock says now.
    empty = np.asarray(pc.equal(pc.binary_length(rows["event"]), 0).combine_chunks())
    is_old = (judged < cutoff_us) | empty
    old, others = rows.filter(pa.array(is_old)), rows.filter(pa.array(~is_old))
    emptied = {"event": pa.repeat(pa.scalar(b"", pa.binary()), old.num_rows), "value": pa.repeat(pa.scalar("", pa.string()), old.num_rows)}
    outcomes = old["outcome"].cast(pa.string())
    emptied["outcome"] = pc.if_else(pc.equal(outcomes, DEAD), EXPIRED, outcomes)
    for name, values in emptied.items():
        place = old.schema.get_field_index(name)
        column = values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values
        field = old.schema.field(place)
        old = old.set_column(place, field, column.dictionary_encode().cast(field.type) if pa.types.is_dictionary(field.type) else column)
    return old, others, int(np.count_nonzero(is_old & ~empty))
