"""wal2json, format version 2: one change to a line, as PostgreSQL's logical decoding writes it.

`B` and `C` enclose a transaction; `I`, `U`, `D`, `T` are its changes; `M` (messages) are passed over. An insert carries every
column, an update leaves out out-of-line values that did not change (`metadata.unchanged` names them), a delete carries the
replica identity. Columns and types stand in each line, so a table's schema is learnt, and declared anew when it changes.
A truncate that comes before any row of its table waits for the first: until then there is nothing to declare.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime, timedelta

import msgspec

from dolake.cdc.formats import COMMIT, Commit, Declare, Event, Item
from dolake.cdc.formats.relation import Column, Relation, Role, Shape
from dolake.errors import InvalidInput
from dolake.model import TableName

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)
_OPERATIONS = {"I": "INSERT", "U": "UPDATE", "D": "DELETE", "T": "TRUNCATE"}


class _Line(msgspec.Struct, gc=False):
    action: str = ""
    xid: int | None = None
    timestamp: str | None = None
    lsn: str | None = None
    schema: str = "public"
    table: str | None = None
    columns: list[Column] = []
    identity: list[Column] = []
    pk: list[Column] | None = None


class Wal2json:
    """The decoder of one stream."""

    def __init__(self) -> None:
        self._decode = msgspec.json.Decoder(_Line).decode
        self._relations: dict[tuple[str, str], Relation] = {}
        self._line_number = 0
        self._sequence = 0
        self._message_count = 0
        self._in_transaction = False
        self._timestamp_text: str | None = ""
        self._timestamp = b"0"
        self._without_timestamp = False

    @property
    def notes(self) -> list[str]:
        notes = []
        if self._without_timestamp:
            notes.append("the lines carry no timestamps, so events are dated 1970: capture with include-timestamp=true")
        keyless = sorted(relation.table for relation in self._relations.values() if relation.columns and not relation.key_known)
        if keyless:
            notes.append(f"no primary key is named for {', '.join(keyless)}: capture with include-pk=true")
        withheld = sorted(relation.table for relation in self._relations.values() if relation.withheld)
        if withheld:
            notes.append(f"a truncate of {', '.join(withheld)} was not sent: it waits for the first row, which tells the table's columns")
        return notes

    @property
    def passed_over(self) -> Mapping[str, int]:
        return {"messages": self._message_count} if self._message_count else {}

    def pause(self, *, over: bool) -> Iterable[Item]:
        return ()

    def items(self, lines: Iterable[bytes]) -> Iterator[Item]:
        decode = self._decode
        for text in lines:
            self._line_number += 1
            if not text or text.isspace():
                continue
            try:
                if not text.isascii():
                    text.decode()  # Values are passed on as they are, and not looked at by the decoder.
                line = decode(text)
                found = list(self._change(line) if line.action in _OPERATIONS else self._boundary(line, text))
            except (ValueError, RecursionError) as error:
                self._sequence += 1  # The line keeps its number: those after it must not depend on whether it is mended.
                # msgspec's errors are ValueErrors too; both say which value is wrong.
                reason = "nested too deep" if isinstance(error, RecursionError) else str(error)
                raise InvalidInput(line=self._line_number, reason=reason) from error
            yield from found

    def _boundary(self, line: _Line, text: bytes) -> Iterator[Commit]:
        if line.action == "B":
            self._in_transaction = True
        elif line.action == "C":
            self._in_transaction = False
            yield COMMIT
        elif line.action == "M":
            self._message_count += 1
        else:
            version_1 = "; this is format version 1: capture with format-version=2" if b'"change"' in text[:200] else ""
            raise ValueError(f"action: must be one of B, C, D, I, M, T, U (got {line.action!r}){version_1}")

    def _change(self, line: _Line) -> Iterator[Item]:
        relation = self._relation(line)
        parts: list[bytes | msgspec.Raw] = []
        unchanged: bytes = b""
        learnt = False
        if line.pk is not None:
            learnt = relation.observe_key(line.pk)
        if line.identity:
            shape, before = relation.encode(line.identity)
            learnt |= relation.observe(shape, Role.IDENTITY)
            parts += (b',"before":{', *before, b"}")
        if line.columns:
            shape, after = relation.encode(line.columns)
            learnt |= relation.observe(shape, Role.INSERT if line.action == "I" else Role.UPDATE)
            parts += (b',"after":{', *after, b"}")
            unchanged = self._unchanged(relation, shape, line)
        transaction = "" if line.xid is None else str(line.xid)
        about = b'"timestamp":%b%b' % (self._commit_time(line.timestamp), relation.heads[line.action])
        tail = (*parts, _metadata(line.lsn, transaction, unchanged), b"}")
        if not relation.columns:  # A truncate, of a table without columns so far: nothing can be declared.
            relation.withheld.append(b"".join((about, *tail)))
            return
        if learnt or not relation.declared:
            yield Declare(relation.declare())
        while relation.withheld:
            yield self._event(relation, transaction, (relation.withheld.pop(0),))
        yield self._event(relation, transaction, (about, *tail))
        if not self._in_transaction:  # Captured with include-transaction=false: each change stands alone.
            yield COMMIT

    def _event(self, relation: Relation, transaction: str, body: tuple[bytes | msgspec.Raw, ...]) -> Event:
        self._sequence += 1
        return Event(self._sequence, relation.table, b"".join((b'{"sequence":%d,' % self._sequence, *body)), transaction)

    def _unchanged(self, relation: Relation, shape: Shape, line: _Line) -> bytes:
        if len(shape.names) == len(relation.columns):
            return b""
        return msgspec.json.encode([name for name in relation.columns if name not in shape.names])

    def _relation(self, line: _Line) -> Relation:
        if line.table is None:
            raise ValueError("table: is missing")
        relation = self._relations.get((line.schema, line.table))
        if relation is None:
            name = f"{line.schema}.{line.table}"
            try:
                TableName.parse(name)
            except ValueError as error:
                raise ValueError(f"table: {name!r}: {error}") from None
            heads = {action: f',"operation":"{operation}","table":"{name}"'.encode() for action, operation in _OPERATIONS.items()}
            relation = self._relations[line.schema, line.table] = Relation(name, heads)
        return relation

    def _commit_time(self, text: str | None) -> bytes:
        """Milliseconds; every line of a transaction repeats its commit time, so it is parsed once."""
        if text != self._timestamp_text:
            self._timestamp_text = text
            if text is None:
                self._without_timestamp, self._timestamp = True, b"0"
            else:
                moment = datetime.fromisoformat(text)
                if moment.tzinfo is None:
                    raise ValueError(f"timestamp: must carry an offset (got {text!r})")
                self._timestamp = str((moment - _EPOCH) // _MILLISECOND).encode()
        return self._timestamp


def _metadata(lsn: str | None, transaction: str, unchanged: bytes) -> bytes:
    fields = []
    if lsn is not None:
        fields.append(b'"lsn":' + msgspec.json.encode(lsn))
    if transaction:
        fields.append(b'"transactionId":"' + transaction.encode() + b'"')
    if unchanged:
        fields.append(b'"unchanged":' + unchanged)
    return b',"metadata":{' + b",".join(fields) + b"}" if fields else b""
