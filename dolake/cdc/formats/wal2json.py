"""wal2json, format version 2: one change to a line, as PostgreSQL's logical decoding writes it.

`B` and `C` enclose a transaction; `I`, `U`, `D`, `T` are its changes; `M` (messages) are passed over. An insert carries every
column, an update leaves out out-of-line values that did not change (`metadata.unchanged` names them), a delete carries the
replica identity. Columns and types stand in each line, so a table's schema is learnt, and declared anew when it changes.
A truncate that comes before any row of its table waits for the first: until then there is nothing to declare.

A stream that is resumed by lsn may begin anywhere at or before the transaction of the last event that is durable. Its events say
where they stand as `<lsn of the commit>+<which change of the transaction>`: commits come in the order of their lsns, changes do not.
`R` lines, which are no one's but ours, tell a table's columns and key as an insert would: after such a start an update may be the
first that is heard of a table, and leave columns out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime, timedelta

import msgspec

from dolake.cdc.formats import COMMIT, Declare, Event, Item
from dolake.cdc.formats.relation import Column, Relation, Role, Shape
from dolake.errors import InvalidInput, OtherStream
from dolake.model import LSN_TEXT, TableName, lsn_number

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


class _Position:
    """Where a stream that is resumed by lsn is: the transaction it is in, the change of it, and what of all is durable.

    `is_earlier`: the transaction came before the last durable one. `ahead`: how many later changes of it are durable; -1 where this
    one is not.
    """

    def __init__(self) -> None:
        self.skipped = 0
        self._durable_text = ""
        self._durable, self._durable_changes, self._is_found = -1, 0, True
        self._commit_text = ""
        self._commit, self._change = 0, 0

    def resume(self, lsn: str) -> None:
        """`lsn` is that of the last durable event."""
        found = LSN_TEXT.fullmatch(lsn)
        if found is None or found[3] is None:
            raise OtherStream(
                f"the source's last event stands at {lsn or 'no lsn'}: it was not sent to be resumed by lsn, where events stand at "
                "`<lsn of the commit>+<change>`. Go on as it began, or begin its next life (--epoch NAME)"
            )
        self._durable_text, self._durable = lsn, lsn_number(lsn) or 0
        self._durable_changes, self._is_found = int(found[3]), False

    def begin(self, lsn: str | None) -> None:
        """A transaction that commits at `lsn`.

        Raises ValueError, and OtherStream where the last durable one should have come before, or where the stream goes back: what
        comes again would be new events.
        """
        commit = lsn_number(lsn or "")
        if lsn is None or commit is None or "+" in lsn:
            raise ValueError(f"lsn: must be where the transaction commits (got {lsn!r}); capture with include-lsn=true")
        if commit <= self._commit:
            raise OtherStream(
                f"the stream goes back, from the transaction that commits at {self._commit_text} to {lsn}: pg_recvlogical has connected "
                "again, or two streams were put together. Send one at a time, each from its beginning (--no-loop)"
            )
        self._commit_text, self._commit, self._change = lsn, commit, 0
        self._is_found |= commit == self._durable
        if commit > self._durable and not self._is_found:
            raise OtherStream(
                f"the stream begins at {lsn}, and its source's last event is at {self._durable_text}: what lies between would be missing. "
                "Let it begin at or before that; a slot must be advanced no further than to what is durable"
            )

    def count(self) -> None:
        """The next change."""
        self._change += 1
        self.skipped += self.is_earlier or self.ahead >= 0

    @property
    def is_earlier(self) -> bool:
        return self._commit < self._durable

    @property
    def ahead(self) -> int:
        return max(-1, self._durable_changes - self._change) if self._commit == self._durable else -1

    @property
    def text(self) -> str:
        """As an event says it."""
        return f"{self._commit_text}+{self._change}"


class Wal2json:
    """The decoder of one stream."""

    def __init__(self, *, by_lsn: bool = False) -> None:
        self._position = _Position() if by_lsn else None
        self._decode = msgspec.json.Decoder(_Line).decode
        self._relations: dict[tuple[str, str], Relation] = {}
        self._line_number = 0
        self._sequence = self._durable = 0
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
        found = {"messages": self._message_count, "changes that were there already": self._position.skipped if self._position else 0}
        return {what: count for what, count in found.items() if count}

    def resume(self, last_event_sequence: int, last_lsn: str) -> None:
        """Of a stream that is resumed by lsn, before its first line: what is durable. Raises OtherStream."""
        assert self._position is not None
        self._sequence = self._durable = max(0, last_event_sequence)
        if last_event_sequence >= 0:
            self._position.resume(last_lsn)

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
                self._number()  # The line keeps its number: those after it must not depend on whether it is mended.
                # msgspec's errors are ValueErrors too; both say which value is wrong.
                reason = "nested too deep" if isinstance(error, RecursionError) else str(error)
                raise InvalidInput(line=self._line_number, reason=reason) from error
            yield from found

    def _boundary(self, line: _Line, text: bytes) -> Iterator[Item]:
        if line.action == "B":
            self._in_transaction = False  # As long as nobody knows which it is: its changes must not count as another's.
            if self._position is not None:
                self._position.begin(line.lsn)
            self._in_transaction = True
        elif line.action == "R":
            yield from self._told(line)
        elif line.action == "C":
            self._in_transaction = False
            yield COMMIT
        elif line.action == "M":
            self._message_count += 1
        else:
            version_1 = "; this is format version 1: capture with format-version=2" if b'"change"' in text[:200] else ""
            raise ValueError(f"action: must be one of B, C, D, I, M, R, T, U (got {line.action!r}){version_1}")

    def _told(self, line: _Line) -> Iterator[Declare]:
        try:
            relation = self._relation(line)
        except ValueError:
            return  # No name of a table here. Its first change says so, if there ever is one.
        learnt = line.pk is not None and relation.observe_key(line.pk)
        shape, _ = relation.encode(line.columns)
        if relation.observe(shape, Role.INSERT) or learnt or not relation.declared:
            yield Declare(relation.declare())

    def _change(self, line: _Line) -> Iterator[Item]:
        if self._position is not None and not self._in_transaction:
            raise ValueError("action: a change outside of a transaction cannot be resumed by lsn; capture with include-transaction=true")
        relation = self._relation(line)
        if self._position is not None and line.action == "U" and not relation.is_whole:
            raise ValueError(
                f"table: an update is the first that is heard of {relation.table} since the stream was resumed, and what columns it leaves "
                "out is not known; let the stream begin with a line of action R, which tells them"
            )
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
        if self._position is None and not relation.columns:  # A truncate, of a table without columns so far: nothing can be declared.
            relation.withheld.append(b"".join((about, *parts, _metadata(line.lsn, transaction, unchanged), b"}")))
            return
        if relation.columns and (learnt or not relation.declared):
            yield Declare(relation.declare())
        while relation.withheld:
            self._sequence += 1
            yield self._event(relation, transaction, self._sequence, (relation.withheld.pop(0),))
        number = self._number()
        if number is not None:
            lsn = line.lsn if self._position is None else self._position.text
            yield self._event(relation, transaction, number, (about, *parts, _metadata(lsn, transaction, unchanged), b"}"))
        if not self._in_transaction:  # Captured with include-transaction=false: each change stands alone.
            yield COMMIT

    def _number(self) -> int | None:
        """The next event's number; None for one of a transaction that was durable as a whole."""
        if self._position is not None:
            self._position.count()
            if self._position.is_earlier:
                return None
            if self._position.ahead >= 0:  # One of those of its transaction that are durable: it has its number already.
                return self._durable - self._position.ahead
        self._sequence += 1
        return self._sequence

    def _event(self, relation: Relation, transaction: str, number: int, body: tuple[bytes | msgspec.Raw, ...]) -> Event:
        return Event(number, relation.table, b"".join((b'{"sequence":%d,' % number, *body)), transaction)

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
