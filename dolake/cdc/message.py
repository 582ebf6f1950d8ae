"""What sources say, as values: frames decoded just far enough to know that every field is right.

Rows are never parsed here. A batch is decoded in two pieces: its envelope (the frame with the events cut out, a few hundred
bytes, in which equal keys are looked for) and the events, as structs whose rows are skipped. Together the two prove that
the frame is JSON and where its `events` value begins and ends; frames of another shape take a longer way to the same
values. When anything at all is wrong, `validation` reads the frame again, slowly, and names every mistake.

Equal keys within one event or one row, and numbers within rows, are not looked at: whoever reads the rows must.
"""

from __future__ import annotations

import functools
import json
import operator
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import xxhash
from msgspec import UNSET

from dolake.cdc import validation
from dolake.cdc.wire import (
    BatchEnvelope,
    Column,
    Connect,
    Disconnect,
    Event,
    FlushRequest,
    Heartbeat,
    OnlyEvents,
    OnlyIdentity,
    OnlyLetters,
    OnlyTables,
    ReplayedLetters,
    SchemaEnvelope,
)
from dolake.errors import InvalidMessage
from dolake.model import DeclaredColumn, DeclaredSchema, Entry, RecordKind, TableName, TransactionMark

ARROW_MAGIC = b"ARW1"
_HEAD_BYTES_MAX = 4096  # An envelope is a few hundred bytes; a longer one takes the longer way.


@dataclass(frozen=True, slots=True)
class CdcBatch:
    """One batch: what the log's header needs of it, and its bytes. `tables` counts events by name as the source wrote it."""

    source: str
    epoch: str | None
    sequence: int
    first_event_sequence: int
    last_event_sequence: int
    event_count: int
    content: int
    tables: dict[str, int]
    last_lsn: str
    transaction: TransactionMark | None
    correlation_id: str | None
    payload: bytes

    def entry(self, epoch: str) -> Entry:
        """As the log takes it. A batch without events moves neither event sequence nor lsn: it carries -1 and none."""
        return Entry(
            kind=RecordKind.BATCH,
            source=self.source,
            epoch=epoch,
            sequence=self.sequence,
            event_count=self.event_count,
            content=self.content,
            payload=self.payload,
            tables=self.tables,
            last_event_sequence=self.last_event_sequence if self.event_count else -1,
            last_lsn=self.last_lsn,
            transaction=self.transaction,
        )


@dataclass(frozen=True, slots=True)
class SchemaMessage:
    """A declared schema; numbered and logged like a batch of no events."""

    source: str
    epoch: str | None
    sequence: int
    content: int
    schema: DeclaredSchema
    correlation_id: str | None
    payload: bytes
    event_count: int = 0

    def entry(self, epoch: str) -> Entry:
        return Entry(
            kind=RecordKind.SCHEMA,
            source=self.source,
            epoch=epoch,
            sequence=self.sequence,
            event_count=0,
            content=self.content,
            payload=self.payload,
            tables={self.schema.table: 0},
        )


Message = Connect | SchemaMessage | CdcBatch | Heartbeat | FlushRequest | Disconnect

_OTHERS: msgspec.json.Decoder[Any] = msgspec.json.Decoder(BatchEnvelope | SchemaEnvelope | Connect | Heartbeat | FlushRequest | Disconnect)
_BATCH = msgspec.json.Decoder(BatchEnvelope)
_EVENTS = msgspec.json.Decoder(list[Event])
_PAYLOAD_EVENTS = msgspec.json.Decoder(OnlyEvents)
_PAYLOAD_TABLES = msgspec.json.Decoder(OnlyTables)
_PAYLOAD_LETTERS = msgspec.json.Decoder(OnlyLetters)
_COLUMNS = msgspec.json.Decoder(list[Column])
_NAMES = msgspec.json.Decoder(list[str])
_IDENTITY = msgspec.json.Decoder(OnlyIdentity)
_NUMBERED = ("cdc_batch", "schema")
_EVENTS_KEY = re.compile(rb'"events"[ \t\r\n]*:[ \t\r\n]*(?=\[)')


class _Wrong(ValueError):
    """Something is wrong that only `validation` can name."""


def decode(frame: bytes) -> Message:
    """The message in a frame. Raises InvalidMessage naming every mistake."""
    message = try_decode(frame)
    if message is None:
        raise explain(frame)
    return message


def try_decode(frame: bytes) -> Message | None:
    """The message in a frame, or None when `explain` must say what is wrong (a slow thing to do, beside the loop)."""
    try:
        if not frame.isascii():
            frame.decode()
        return _decode_plain_batch(frame) or _decode_any(frame)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None


def explain(frame: bytes) -> InvalidMessage:
    """Every mistake of a frame that `try_decode` refused, with the sequence number and correlation id it claims, if any."""
    error = InvalidMessage(validation.mistakes_of(frame))
    error.sequence, error.correlation_id = identity_of(frame)
    return error


def identity_of(frame: bytes) -> tuple[int, str | None]:
    """(sequence number or 0, correlation id) that a frame claims, whatever else is wrong with it."""
    try:
        identity = _IDENTITY.decode(frame)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return 0, None
    return identity.sequence_number, identity.correlation_id


def numbered_identity_of(frame: bytes) -> tuple[int, str | None] | None:
    """The same of a frame that claims to be a batch or a schema; None for all others. Far cheaper than decoding it."""
    try:
        identity = _IDENTITY.decode(frame)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None
    return (identity.sequence_number, identity.correlation_id) if identity.type in _NUMBERED else None


def split_events(payload: bytes) -> list[bytes]:
    """The raw events of a logged batch, in order."""
    return [bytes(raw) for raw in _PAYLOAD_EVENTS.decode(payload).events]


def largest_event_size_bytes(payload: bytes) -> int:
    """Length of the longest event of a batch."""
    return max((len(memoryview(raw)) for raw in _PAYLOAD_EVENTS.decode(payload).events), default=0)


def event_tables(payload: bytes) -> list[str]:
    """The table of each event of a logged batch, as written, in order."""
    return [event.table for event in _PAYLOAD_TABLES.decode(payload).events]


def replayed_letters(payload: bytes) -> ReplayedLetters | None:
    """What a logged batch says of the dead letters in it, if it is one that sends some again."""
    try:
        return _PAYLOAD_LETTERS.decode(payload).letters
    except msgspec.MsgspecError:
        return None


def decode_schema(payload: bytes) -> DeclaredSchema:
    """The schema of a logged schema message. Raises InvalidMessage."""
    message = decode(payload)
    if not isinstance(message, SchemaMessage):
        raise InvalidMessage([validation.mistake("type", type(message).__name__, "is `schema`")])
    return message.schema


def _decode_plain_batch(frame: bytes) -> CdcBatch | None:
    """A batch whose `events` is the last array of the frame. None when it is not, or is not right: then look the long way.

    Head, events and tail decoded apart are a proof: the head with `[]` in place of the events is one object in which no key
    comes twice and `events` is that `[]`, and what was cut out is one array.
    """
    key = _EVENTS_KEY.search(frame, 0, _HEAD_BYTES_MAX)
    if key is None:
        return None
    start, end = key.end(), frame.rfind(b"]") + 1
    if len(frame) - end > _HEAD_BYTES_MAX:
        return None
    head = b"%b[]%b" % (frame[:start], frame[end:])
    if b"\\" in head:  # A key spelled with escapes could be a second `events` that the search does not see.
        return None
    try:
        envelope = _BATCH.decode(head)
        # The decoder takes a missing `type` for the right one.
        if not _keys_differ(head) or bytes(envelope.events) != b"[]" or _IDENTITY.decode(head).type != "cdc_batch":
            return None
        return _batch(envelope, memoryview(frame)[start:end], frame)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None


def _decode_any(frame: bytes) -> Message:
    message = _OTHERS.decode(frame)
    if isinstance(message, BatchEnvelope):
        raw = memoryview(message.events)
        if has_equal_keys(frame, raw):
            raise _Wrong
        return _batch(message, raw, frame)
    if not _keys_differ(frame):
        raise _Wrong
    if isinstance(message, SchemaEnvelope):
        return _schema(message, frame)
    if message.source_do_id is not UNSET and not validation.is_source_name(message.source_do_id):
        raise _Wrong
    return message  # type: ignore[no-any-return]


def has_equal_keys(frame: bytes, events: memoryview) -> bool:
    """Whether an object of the frame has a key twice; `events`, a value of the frame, is not looked into."""
    return not _keys_differ(_without(frame, events))


def _without(frame: bytes, value: memoryview) -> bytes:
    """The frame with a value of it replaced by 0. Where the same text stands twice, either may go: both are values."""
    start, opening = 0, bytes(value[:64])
    while True:
        start = frame.index(opening, start)
        if memoryview(frame)[start : start + len(value)] == value:
            return b"%b0%b" % (frame[:start], frame[start + len(value) :])
        start += 1


def _keys_differ(text: bytes) -> bool:
    """Whether no object in `text` has a key twice."""
    try:
        json.loads(text, object_pairs_hook=_distinct, parse_int=str)  # Of thousands of digits Python makes no number.
    except ValueError:
        return False
    return True


def _distinct(pairs: list[tuple[str, object]]) -> None:
    if len(pairs) != len({key for key, _ in pairs}):
        raise _Wrong


def _batch(envelope: BatchEnvelope, raw: memoryview, frame: bytes) -> CdcBatch:
    events = _EVENTS.decode(raw)
    tables: dict[str, int] = {}
    lsn = ""
    if events:
        sequences = [event.sequence for event in events]
        first, last = sequences[0], sequences[-1]
        if envelope.first_event_sequence != first or envelope.last_event_sequence != last:
            raise _Wrong
        if last - first + 1 != len(sequences) or sequences != list(range(first, last + 1)):
            _require_rising(sequences)
        tables = _tables(events)
        metadata = events[-1].metadata
        if metadata is not UNSET and metadata.lsn is not UNSET:
            lsn = str(metadata.lsn)
    if not validation.is_source_name(envelope.source_do_id):
        raise _Wrong
    transaction = envelope.transaction
    return CdcBatch(
        source=envelope.source_do_id,
        epoch=None if envelope.epoch is UNSET else envelope.epoch,
        sequence=envelope.sequence_number,
        first_event_sequence=envelope.first_event_sequence,
        last_event_sequence=envelope.last_event_sequence,
        event_count=len(events),
        content=xxhash.xxh3_64_intdigest(raw),
        tables=tables,
        last_lsn=lsn,
        transaction=None if transaction is UNSET else TransactionMark(transaction.id, transaction.last),
        correlation_id=None if envelope.correlation_id is UNSET else envelope.correlation_id,
        payload=frame,
    )


def _require_rising(sequences: Sequence[int]) -> None:
    if not all(map(operator.lt, sequences, sequences[1:])):
        raise _Wrong


def _tables(events: list[Event]) -> dict[str, int]:
    names = [event.table for event in events]
    first = names[0]
    if names.count(first) == len(names):
        _table_name(first)
        return {first: len(names)}
    counts = Counter(names)
    for name in counts:
        _table_name(name)
    return dict(counts)


@functools.lru_cache(maxsize=4096)
def _table_name(text: str) -> TableName:
    return TableName.parse(text)


def _schema(envelope: SchemaEnvelope, frame: bytes) -> SchemaMessage:
    """Schemas are rare and their rules are many: `validation` judges each of them."""
    if validation.mistakes_of(frame):
        raise _Wrong
    columns = tuple(
        DeclaredColumn(
            name=column.name,
            type=column.type,
            nullable=column.nullable,
            default=None if column.default is UNSET else bytes(column.default).decode(),
            renamed_from=None if column.renamed_from is UNSET else column.renamed_from,
        )
        for column in _COLUMNS.decode(envelope.columns)
    )
    body = b"\0".join((envelope.table.encode(), bytes(envelope.primary_key), bytes(envelope.columns)))
    return SchemaMessage(
        source=envelope.source_do_id,
        epoch=None if envelope.epoch is UNSET else envelope.epoch,
        sequence=envelope.sequence_number,
        content=xxhash.xxh3_64_intdigest(body),
        schema=DeclaredSchema(envelope.table, tuple(_NAMES.decode(envelope.primary_key)), columns),
        correlation_id=None if envelope.correlation_id is UNSET else envelope.correlation_id,
        payload=frame,
    )
