"""dolake's own events, one JSON object to a line: bare events, or whole `schema` and `cdc_batch` messages.

Events go out byte for byte. One that has no `sequence` gets the number after the one before, so a file without numbers
counts from 1; numbers that are there must rise, for it is by them that sending resumes. A `cdc_batch` is taken as one
transaction (its `transaction` mark says otherwise), its own numbering is not: the sender has its own. What else a
connection carries (connect, heartbeat, flush_request, disconnect) is passed over, so a recorded one can be replayed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, UnsetType

from dolake.cdc.formats import COMMIT, Declare, Event, Item
from dolake.cdc.formats.lines import NumberedLines
from dolake.errors import InvalidInput
from dolake.model import DeclaredColumn, DeclaredSchema, TableName

_PASSED_OVER = frozenset({"connect", "heartbeat", "flush_request", "disconnect"})
_Count = Annotated[int, msgspec.Meta(ge=0)]


class _Kind(msgspec.Struct, gc=False):
    type: str | UnsetType = UNSET


class _Event(msgspec.Struct, gc=False):
    timestamp: int
    operation: Literal["INSERT", "UPDATE", "DELETE", "TRUNCATE"]
    table: str
    sequence: _Count | UnsetType = UNSET
    rowId: str | UnsetType = UNSET
    before: msgspec.Raw | UnsetType = UNSET
    after: msgspec.Raw | UnsetType = UNSET
    metadata: msgspec.Raw | UnsetType = UNSET


class _Mark(msgspec.Struct, gc=False):
    id: str
    last: bool


class _Batch(msgspec.Struct, gc=False):
    events: list[msgspec.Raw]
    transaction: _Mark | UnsetType = UNSET


class _Column(msgspec.Struct, gc=False):
    name: str
    type: str
    nullable: bool = True
    default: msgspec.Raw | UnsetType = UNSET
    renamedFrom: str | None = None


class _Schema(msgspec.Struct, gc=False):
    table: str
    primaryKey: list[str]
    columns: list[_Column]


class Native:
    """The decoder of one stream."""

    def __init__(self) -> None:
        self._kind = msgspec.json.Decoder(_Kind).decode
        self._event = msgspec.json.Decoder(_Event).decode
        self._batch = msgspec.json.Decoder(_Batch).decode
        self._schema = msgspec.json.Decoder(_Schema).decode
        self._tables: set[str] = set()
        self._lines = NumberedLines()
        self._last_sequence: int | None = None
        self._unread = 0  # lines since then that cannot be read: they keep their numbers, so that no other's depends on their mending
        self._passed_over: Counter[str] = Counter()

    @property
    def notes(self) -> list[str]:
        return []

    @property
    def passed_over(self) -> Mapping[str, int]:
        return self._passed_over

    def pause(self, *, over: bool) -> Iterable[Item]:
        return ()

    def items(self, lines: Iterable[bytes]) -> Iterator[Item]:
        for text in self._lines.of(lines):
            try:
                if not text.isascii():
                    text.decode()
                found = list(self._line(text))
            except (ValueError, RecursionError) as error:
                self._unread += 1
                reason = "nested too deep" if isinstance(error, RecursionError) else str(error)
                raise InvalidInput(line=self._lines.number, reason=reason) from error
            yield from found

    def _line(self, text: bytes) -> Iterator[Item]:
        kind = self._kind(text).type
        if kind is UNSET:
            yield self._numbered(text, "")
            yield COMMIT
        elif kind == "cdc_batch":
            batch = self._batch(text)
            mark = batch.transaction or None
            for raw in batch.events:
                yield self._numbered(bytes(raw), mark.id if mark else "")
            if mark is None or mark.last:
                yield COMMIT
        elif kind == "schema":
            yield Declare(self._declared(text))
        elif kind in _PASSED_OVER:
            self._passed_over["messages of a connection"] += 1
        else:
            raise ValueError(f"type: must be schema or cdc_batch, or absent for an event (got {kind!r})")

    def _numbered(self, text: bytes, transaction: str) -> Event:
        event = self._event(text)
        self._check_table(event.table)
        for name, value in (("before", event.before), ("after", event.after), ("metadata", event.metadata)):
            if value is not UNSET and not bytes(value).startswith(b"{"):
                raise ValueError(f"{name}: must be an object, or absent")
        last = self._last_sequence
        if event.sequence is UNSET:
            sequence = (0 if last is None else last) + 1 + self._unread
            text = b'{"sequence":%d,%b' % (sequence, text[1:])
        elif last is not None and event.sequence <= last:
            raise ValueError(f"sequence: must be above that of the event before it, {last} (got {event.sequence})")
        else:
            sequence = event.sequence
        self._last_sequence, self._unread = sequence, 0
        return Event(sequence, event.table, text, transaction)

    def _declared(self, text: bytes) -> DeclaredSchema:
        schema = self._schema(text)
        self._check_table(schema.table)
        return DeclaredSchema(
            table=schema.table,
            primary_key=tuple(schema.primaryKey),
            columns=tuple(
                DeclaredColumn(column.name, column.type, column.nullable, _given(column.default), column.renamedFrom)
                for column in schema.columns
            ),
        )

    def _check_table(self, table: str) -> None:
        if table not in self._tables:
            try:
                TableName.parse(table)
            except ValueError as error:
                raise ValueError(f"table: {table!r}: {error}") from None
            self._tables.add(table)


def _given(default: msgspec.Raw | UnsetType) -> str | None:
    text = "null" if default is UNSET else bytes(default).decode()
    return None if text == "null" else text
