"""What was sent and what was acked, kept outside the product: the journal that every run is judged by.

A journal line is written before its message leaves and after its ack arrives, so that a run that was broken off can be
read afterwards. `breaches` compares it with a table as a reader returned it, and yields one sentence for each finding.
"""

from __future__ import annotations

import datetime
import decimal
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

# The columns of the table that the harness's sources write, as a `schema` message declares them and as Arrow holds them.
LEDGER_COLUMNS = {
    "id": "long",
    "account": "string",
    "amount": "decimal(18,4)",
    "note": "string",
    "at": "timestamptz",
}
_ARROW = pa.schema(
    [
        ("id", pa.int64()),
        ("account", pa.string()),
        ("amount", pa.decimal128(18, 4)),
        ("note", pa.string()),
        ("at", pa.timestamp("us", tz="UTC")),
    ]
)
_EPOCH_START = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)


@dataclass(frozen=True)
class Event:
    """One change of a ledger table. `row` is the after image, or the before image of a DELETE."""

    sequence: int
    table: str
    operation: str
    row: Mapping[str, Any]

    def to_wire(self) -> dict[str, Any]:
        image = "before" if self.operation == "DELETE" else "after"
        return {
            "sequence": self.sequence,
            "timestamp": 1_767_225_600_000 + self.sequence,
            "operation": self.operation,
            "table": self.table,
            "rowId": str(self.row["id"]),
            image: dict(self.row),
        }


def ledger_event(sequence: int, table: str = "ledger", *, key_count: int = 1000, note_size: int = 0) -> Event:
    """The event that belongs to a sequence: the same one whenever it is asked for."""
    mixed = (sequence * 2654435761) % 2**32
    operation = "DELETE" if mixed % 11 == 0 else "UPDATE" if mixed % 3 == 0 else "INSERT"
    row = {
        "id": mixed % key_count,
        "account": f"account-{mixed % 97}",
        "amount": f"{decimal.Decimal(mixed - 2**31) / 10000:.4f}",
        "note": None if mixed % 13 == 0 else f'n{sequence} "quoted" \\ ✓🚀' + "x" * note_size,
        "at": (_EPOCH_START + datetime.timedelta(microseconds=sequence * 1_000_003)).isoformat(),
    }
    return Event(sequence, table, operation, row)


@dataclass
class _Batch:
    source: str
    epoch: str
    events: list[Event]
    acked: bool = False


@dataclass
class Oracle:
    """The journal. Batches are kept by (source, epoch, batch sequence)."""

    path: Path
    batches: dict[tuple[str, str, int], _Batch] = field(default_factory=dict)

    def sent(self, source: str, epoch: str, sequence: int, events: list[Event]) -> None:
        key = (source, epoch, sequence)
        if key not in self.batches:
            self.batches[key] = _Batch(source, epoch, events)
        self._note({"sent": sequence, "source": source, "epoch": epoch, "events": [event.sequence for event in events[:1] + events[-1:]]})

    def acked(self, source: str, epoch: str, sequence: int, status: str) -> None:
        self.batches[source, epoch, sequence].acked = True
        self._note({"acked": sequence, "source": source, "epoch": epoch, "status": status})

    def acked_through(self, source: str, epoch: str) -> int:
        """The highest batch sequence acked; -1 before any."""
        return max((key[2] for key, batch in self.batches.items() if key[:2] == (source, epoch) and batch.acked), default=-1)

    def event_count(self, table: str) -> int:
        return sum(event.table == table for batch in self.batches.values() for event in batch.events)

    def tables(self) -> list[str]:
        return sorted({event.table for batch in self.batches.values() for event in batch.events})

    def _note(self, line: Mapping[str, Any]) -> None:
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def as_arrow(self, table: str) -> pa.Table:
        """Every event sent to a table, with `source, epoch, batch, sequence, operation, acked` before its columns."""
        rows = [
            (batch.source, batch.epoch, key[2], event.sequence, event.operation, batch.acked, event.row)
            for key, batch in self.batches.items()
            for event in batch.events
            if event.table == table
        ]
        names = ("source", "epoch", "batch", "sequence", "operation", "acked")
        types = (pa.string(), pa.string(), pa.int64(), pa.int64(), pa.string(), pa.bool_())
        columns = [pa.array([row[place] for row in rows], kind) for place, kind in enumerate(types)]
        for column in _ARROW:
            columns.append(pa.array([_value(row[6][column.name], column.type) for row in rows], column.type))
        return pa.table(columns, names=[*names, *_ARROW.names])


def _value(value: Any, kind: pa.DataType) -> Any:
    if value is None:
        return None
    if pa.types.is_decimal(kind):
        return decimal.Decimal(value)
    if pa.types.is_timestamp(kind):
        return datetime.datetime.fromisoformat(value)
    return value


_COLUMNS = ", ".join(f'"{name}"' for name in _ARROW.names)
_SAME = " AND ".join(f'l."{name}" IS NOT DISTINCT FROM s."{name}"' for name in _ARROW.names)
_IDENTITY = "l.source = s.source AND l.epoch = s.epoch AND l.sequence = s.sequence"


def breaches(lake: pa.Table, sent: pa.Table) -> Iterator[str]:
    """One sentence for each way in which a changelog table differs from what was sent and acked.

    Every acked event is there exactly once; nothing is there that was not sent, or with other values; the order by
    (log, offset, index) is each source's own; an unacked event is there once or not at all, and then with its whole batch.
    """
    database = duckdb.connect()
    database.execute("SET TimeZone = 'UTC'")
    database.register("raw", lake)
    database.register("s", sent)
    database.execute(
        f"CREATE TABLE l AS SELECT _cdc_source AS source, coalesce(_cdc_epoch, '') AS epoch, _cdc_sequence AS sequence, "
        f"_cdc_operation::VARCHAR AS operation, _cdc_log AS log, _cdc_offset AS offset_, _cdc_index AS index_, {_COLUMNS} FROM raw"
    )
    checks = {
        "twice": "SELECT source, epoch, sequence, count(*) FROM l GROUP BY ALL HAVING count(*) > 1",
        "acked and lost": f"SELECT source, epoch, batch, sequence FROM s WHERE acked AND NOT EXISTS (SELECT 1 FROM l WHERE {_IDENTITY})",
        "there, and never sent": f"SELECT source, epoch, sequence FROM l WHERE NOT EXISTS (SELECT 1 FROM s WHERE {_IDENTITY})",
        "there with other values": f"SELECT l::VARCHAR, s::VARCHAR FROM l JOIN s ON {_IDENTITY} "
        f"WHERE NOT (l.operation = s.operation AND {_SAME})",
        "out of order": "SELECT source, epoch, sequence, before FROM (SELECT *, lag(sequence) OVER "
        "(PARTITION BY source, epoch ORDER BY log, offset_, index_) AS before FROM l) WHERE sequence <= before",
        "at a place taken twice": "SELECT log, offset_, index_, count(*) FROM l GROUP BY ALL HAVING count(*) > 1",
        "torn: part of a batch is missing": "SELECT s.source, s.epoch, s.batch, count(*), count(l.sequence) FROM s "
        f"LEFT JOIN l ON {_IDENTITY} GROUP BY ALL HAVING count(l.sequence) NOT IN (0, count(*))",
    }
    for finding, query in checks.items():
        found = database.execute(query).fetchall()
        if found:
            yield f"{len(found)} {finding}, the first: {found[:3]}"
    database.close()
