"""Debezium's change events, one a line (see `envelope`), with Kafka Connect's schemas or without.

With a schema a table's columns are declared and values get the notation of their types (see `connect`). Without one rows
go out as they came, and the daemon finds their types. c and r (a row of a snapshot) are inserts, u updates, d deletes, t
truncates; messages, tombstones, heartbeats and schema changes are passed over and counted.

Debezium tells an update of a key as a delete and an insert at one place of the database's log. Where a schema and a key
say what the key is, they are put together again: the insert may lack columns that only the old row has.

Each change takes the next number, also one that becomes part of another event, and so does a line that cannot be read:
numbers depend on nothing but the lines, so that sending can resume.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec

from dolake.cdc.formats import COMMIT, Declare, Event, Item
from dolake.cdc.formats.connect import Reading
from dolake.cdc.formats.envelope import Boundary, Change, PassedOver, key_names, read_line
from dolake.cdc.formats.images import Image, Images, Shape, key_values, row_id
from dolake.cdc.formats.lines import NumberedLines
from dolake.cdc.formats.placeholders import Placeholders
from dolake.cdc.formats.source_transactions import SourceTransactions
from dolake.errors import InvalidInput
from dolake.model import DeclaredColumn, DeclaredSchema, TableName

_TIME_MS_MAX = 253_402_300_799_999
_OPERATIONS = {"c": b"INSERT", "r": b"INSERT", "u": b"UPDATE", "d": b"DELETE", "t": b"TRUNCATE"}
_encode = msgspec.json.encode


@dataclass(frozen=True)
class Options:
    """`table` is for lines that do not say theirs; `keys` for messages without one, by table, "" for all others."""

    table: str = ""
    keys: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    reading: Reading = field(default_factory=Reading)
    placeholders: Placeholders = field(default_factory=Placeholders)


@dataclass
class _Table:
    """What the stream has told of one table."""

    name: str
    key: tuple[str, ...] = ()
    shape: tuple[Shape, tuple[str, ...]] | None = None
    declared: DeclaredSchema | None = None


@dataclass(frozen=True)
class _Ready:
    """A change as the wire has it, but for its number. `half`: what it shares with the other half of an update of the key."""

    table: str
    transaction: str
    timestamp_ms: int
    operation: bytes
    before: bytes | None
    after: bytes | None
    row_id: str | None
    metadata: dict[str, Any]
    half: tuple[Any, ...] | None = None
    key_values: tuple[bytes, ...] | None = None

    def event(self, sequence: int, *, first_half: _Ready | None = None) -> Event:
        before, operation = (self.before, self.operation) if first_half is None else (first_half.before, b"UPDATE")
        pieces = [b'{"sequence":%d,"timestamp":%d,"operation":"%b"' % (sequence, self.timestamp_ms, operation)]
        pieces.append(b',"table":"%b"' % self.table.encode())
        if self.row_id is not None:
            pieces.append(b',"rowId":%b' % _encode(self.row_id))
        if before is not None:
            pieces.append(b',"before":%b' % before)
        if self.after is not None:
            pieces.append(b',"after":%b' % self.after)
        if self.metadata:
            pieces.append(b',"metadata":%b' % _encode(self.metadata))
        pieces.append(b"}")
        return Event(sequence, self.table, b"".join(pieces), self.transaction)


class Debezium:
    """The decoder of one stream."""

    def __init__(self, options: Options | None = None) -> None:
        self._options = options or Options()
        self._images = Images(self._options.reading, self._options.placeholders)
        self._tables: dict[str, _Table] = {}
        self._transactions = SourceTransactions()
        self._held: tuple[int, _Ready] | None = None
        self._sequence = 0
        self._lines = NumberedLines()
        self._without_time = False
        self.passed_over: Counter[str] = Counter()

    @property
    def notes(self) -> list[str]:
        notes = [f"{count:,} {kind} were passed over" for kind, count in sorted(self.passed_over.items())]
        if self._without_time:
            notes.append("some changes carry no ts_ms, so they are dated 1970")
        keyless = sorted(table.name for table in self._tables.values() if not table.key)
        if keyless:
            notes.append(f"no key is told for {', '.join(keyless)}: send the messages' keys too, or say --key")
        if self._transactions.torn_count:
            notes.append(f"{self._transactions.torn_count:,} transactions are not whole in this input; what there is of them was sent")
        return notes

    def items(self, lines: Iterable[bytes]) -> Iterator[Item]:
        for text in self._lines.of(lines):
            try:
                if not text.isascii():
                    text.decode()
                message = read_line(text)
                ready = self._ready(message) if isinstance(message, Change) else None
            except (msgspec.MsgspecError, ValueError, RecursionError) as error:
                self._sequence += 1
                reason = "nested too deep" if isinstance(error, RecursionError) else str(error)
                raise InvalidInput(line=self._lines.number, reason=reason) from error
            if isinstance(message, Change):
                assert ready is not None
                yield from self._take(message, *ready)
            else:
                yield from self._pass(message)

    def pause(self, *, over: bool) -> Iterator[Item]:
        yield from self._release()
        if self._transactions.pause(over=over):
            yield COMMIT

    def _pass(self, message: Boundary | PassedOver) -> Iterator[Item]:
        if isinstance(message, PassedOver):
            self.passed_over[message.kind] += 1
            ended = self._transactions.count(message.transaction_block)
        else:
            ended = self._transactions.boundary(message)
        if ended:
            yield from self._commit()

    def _take(self, change: Change, table: _Table, shape: Shape | None, ready: _Ready) -> Iterator[Item]:
        """A change that is known to be right."""
        if self._transactions.begin(ready.transaction):
            yield from self._commit()
        if shape is not None and (shape, table.key) != table.shape:
            table.shape = (shape, table.key)
            declared = _declaration(table, shape)
            if declared != table.declared:  # Schemas differ in more than columns: defaults, docs, versions.
                table.declared = declared
                yield from self._release()
                yield Declare(declared)
        self._sequence += 1
        if self._held is not None and _belongs(self._held[1], ready):
            event = ready.event(self._sequence, first_half=self._held[1])
            self._held = None
            yield event
        else:
            yield from self._release()
            if ready.operation == b"DELETE" and ready.half is not None and ready.transaction:
                self._held = (self._sequence, ready)
            else:
                yield ready.event(self._sequence)
        if self._transactions.count(change.transaction_block) or not ready.transaction:
            yield from self._commit()

    def _commit(self) -> Iterator[Item]:
        yield from self._release()
        yield COMMIT

    def _release(self) -> Iterator[Item]:
        """Lets go of a delete that waited for its other half."""
        if self._held is not None:
            (sequence, ready), self._held = self._held, None
            yield ready.event(sequence)

    def _ready(self, change: Change) -> tuple[_Table, Shape | None, _Ready]:
        """Everything that can be wrong with a change, before anything of it counts."""
        table = self._table(change)
        shape = None if change.schema is None else self._images.shape(change.schema)
        told = tuple(name for name in key_names(change.key) if shape is None or name in shape.kinds)
        key = told or table.key or self._options.keys.get(table.name) or self._options.keys.get("", ())
        if change.operation == "d" and change.before is None:  # The table says nothing of its old rows; the message's key does.
            change = replace(change, before=change.key)
        before, after = (None if image is None else self._images.encode(image, shape) for image in (change.before, change.after))
        row, source = (change.before if change.operation == "d" else change.after), change.source
        identity = row_id(row, key) if shape is None and key and row is not None else None
        may_be_half = change.operation == "d" or (change.operation == "c" and self._held is not None)
        half = source.row_change if may_be_half and shape is not None and key and row is not None else None
        ready = _Ready(
            table=table.name,
            transaction="" if change.operation == "r" else change.transaction_block or str(source.txId or source.gtid or ""),
            timestamp_ms=self._time_ms(change),
            operation=_OPERATIONS[change.operation],
            before=None if before is None else before.text,
            after=None if after is None else after.text,
            row_id=identity,
            metadata=_metadata(change, after),
            half=half,
            key_values=None if half is None or row is None else key_values(row, key),
        )
        table.key = key
        return table, shape, ready

    def _table(self, change: Change) -> _Table:
        text = change.source.table_name or self._options.table
        table = self._tables.get(text)
        if table is None:
            if not text:
                raise ValueError("source.table: is missing: say --table")
            try:
                TableName.parse(text)
            except ValueError as error:
                raise ValueError(f"source.table: {text!r}: {error}") from None
            table = self._tables[text] = _Table(text)
        return table

    def _time_ms(self, change: Change) -> int:
        if change.timestamp_ms is None:
            self._without_time = True
            return 0
        if not 0 <= change.timestamp_ms <= _TIME_MS_MAX:
            raise ValueError(f"ts_ms: must be milliseconds since 1970, up to the year 9999 (got {change.timestamp_ms})")
        return change.timestamp_ms


def _belongs(first: _Ready, second: _Ready) -> bool:
    """Whether a delete and an insert are one update of the key: of one row change, and of different keys."""
    same = second.operation == b"INSERT" and first.half == second.half and first.table == second.table
    return same and first.key_values is not None and second.key_values not in (None, first.key_values)


def _declaration(table: _Table, shape: Shape) -> DeclaredSchema:
    """Only keys are required: a deleted row's image, and columns that did not change, hold nothing to rely on."""
    columns = tuple(DeclaredColumn(name, kind.name, nullable=name not in table.key) for name, kind in shape.kinds.items())
    return DeclaredSchema(table.name, tuple(name for name in table.key if name in shape.kinds), columns)


def _metadata(change: Change, after: Image | None) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if change.source.position:
        found["lsn"] = change.source.position
    transaction = str(change.source.txId or change.source.gtid or "") or change.transaction_block  # the database's own name for it
    if transaction:
        found["transactionId"] = transaction
    if after is not None and after.unchanged:
        found["unchanged"] = list(after.unchanged)
    return found
