"""What a producer sends: the frames, and the window of those that are not acked yet. Pure; `client` does the waiting."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from dolake.cdc.answer import Nack
from dolake.cdc.validation import PROTOCOL_VERSIONS
from dolake.errors import AckedBatchesLost, BatchRefused
from dolake.model import DeclaredColumn, DeclaredSchema, TransactionMark

_CAPABILITIES = {"binaryProtocol": False, "compression": False, "batching": True, "maxBatchSize": 10_000, "maxMessageSize": 64 << 20}


class _Numbered(msgspec.Struct):
    sequence: int


_NUMBERED = msgspec.json.Decoder(_Numbered)


@dataclass(frozen=True)
class Outgoing:
    """One numbered message and its exact bytes: sent again they are the same."""

    sequence: int
    frame: bytes
    event_count: int


class Window:
    """The messages of a source that are not acked, oldest first, and how far the connection of the moment has sent them.

    Every message gets one answer, in order. So after a nack worth retrying nothing more is sent until all answers that are
    under way have come, and then everything not acked goes out again from the first.
    """

    def __init__(self, source: str) -> None:
        self.source = source
        self.waiting: deque[Outgoing] = deque()
        self.next_sequence = 0
        self.acked_sequence = -1
        self._sent = 0  # how many of `waiting` this connection has sent, from the first
        self._unanswered = 0
        self._rewinding = False
        self._began = False

    def push(self, message: Outgoing) -> None:
        self.waiting.append(message)
        self.next_sequence = message.sequence + 1

    def connected(self, last_sequence: int) -> int:
        """A new connection, on which the daemon says how far it has got. Returns how many events that acked.

        Raises AckedBatchesLost, and BatchRefused if it has got further than we have ever sent.
        """
        if not self._began:
            self._began, self.next_sequence, self.acked_sequence = True, last_sequence + 1, last_sequence
        if last_sequence >= self.next_sequence:
            rule = f"the daemon has batches up to {last_sequence}, more than were ever sent here: another producer uses this source's name"
            raise BatchRefused(reason="invalid_sequence", sequence=self.next_sequence, message=rule)
        if last_sequence < self.acked_sequence:
            raise AckedBatchesLost(source=self.source, first=last_sequence + 1, last=self.acked_sequence)
        self._sent = self._unanswered = 0
        self._rewinding = False
        return self._drop_to(last_sequence)

    def take(self) -> Outgoing | None:
        """The next message to send now, if any."""
        if self._rewinding or self._sent == len(self.waiting):
            return None
        message = self.waiting[self._sent]
        self._sent += 1
        self._unanswered += 1
        return message

    def acked(self, sequence: int) -> int:
        """A message is durable, and all before it. Returns how many events that were."""
        self._answered()
        return self._drop_to(sequence)

    def nacked(self, nack: Nack) -> bool:
        """A message was not taken; whether it is the first since sending last began anew.

        Raises BatchRefused if it never will be, AckedBatchesLost if the daemon lacks what it acked.
        """
        if not nack.should_retry:
            raise BatchRefused(reason=nack.reason, sequence=nack.sequence_number, message=nack.error_message)
        if isinstance(nack.expected_sequence, int) and nack.expected_sequence <= self.acked_sequence:
            raise AckedBatchesLost(source=self.source, first=nack.expected_sequence, last=self.acked_sequence)
        first, self._rewinding = not self._rewinding, True
        self._answered()
        return first

    @property
    def awaits_answers(self) -> bool:
        return self._unanswered > 0

    def _answered(self) -> None:
        self._unanswered = max(0, self._unanswered - 1)
        if self._rewinding and not self._unanswered:
            self._rewinding, self._sent = False, 0

    def _drop_to(self, sequence: int) -> int:
        events = 0
        while self.waiting and self.waiting[0].sequence <= sequence:
            events += self.waiting.popleft().event_count
            self._sent = max(0, self._sent - 1)
        self.acked_sequence = max(self.acked_sequence, sequence)
        return events


def event_sequence(event: bytes) -> int:
    """The number of an event, from its JSON."""
    return _NUMBERED.decode(event).sequence


def batch_frame(
    source: str,
    epoch: str,
    sequence: int,
    events: Sequence[bytes],
    *,
    first: int,
    last: int,
    transaction: TransactionMark | None,
    now_ms: int,
    letters: Mapping[str, Any] | None = None,
) -> bytes:
    """A `cdc_batch` around events that are JSON already. `letters` says whose dead letters they are, if they are sent again."""
    body = b",".join(events)
    head: dict[str, Any] = {"type": "cdc_batch", "timestamp": now_ms, "sourceDoId": source, "epoch": epoch, "sequenceNumber": sequence}
    head.update(firstEventSequence=first, lastEventSequence=last, sizeBytes=len(body), isRetry=False, retryCount=0)
    if letters is not None:
        head["letters"] = letters
    if transaction is not None:
        head["transaction"] = {"id": transaction.id, "last": transaction.last}
    return b'%b,"events":[%b]}' % (msgspec.json.encode(head)[:-1], body)


def schema_frame(source: str, epoch: str, sequence: int, schema: DeclaredSchema, now_ms: int) -> bytes:
    columns = [_column(column) for column in schema.columns]
    message = {"type": "schema", "timestamp": now_ms, "sourceDoId": source, "epoch": epoch, "sequenceNumber": sequence}
    return msgspec.json.encode({**message, "table": schema.table, "primaryKey": list(schema.primary_key), "columns": columns})


def connect_frame(source: str, epoch: str, last_ack_sequence: int, now_ms: int) -> bytes:
    message = {"type": "connect", "timestamp": now_ms, "sourceDoId": source, "epoch": epoch, "lastAckSequence": last_ack_sequence}
    return msgspec.json.encode({**message, "protocolVersion": PROTOCOL_VERSIONS[-1], "capabilities": _CAPABILITIES, "ackPersisted": True})


def heartbeat_frame(source: str, last_ack_sequence: int, pending_events: int, now_ms: int) -> bytes:
    message = {"type": "heartbeat", "timestamp": now_ms, "sourceDoId": source, "lastAckSequence": last_ack_sequence}
    return msgspec.json.encode({**message, "pendingEvents": pending_events})


def flush_frame(source: str, reason: str, correlation_id: str, now_ms: int) -> bytes:
    message = {"type": "flush_request", "timestamp": now_ms, "sourceDoId": source, "reason": reason}
    return msgspec.json.encode({**message, "correlationId": correlation_id})


def disconnect_frame(source: str, now_ms: int) -> bytes:
    return msgspec.json.encode({"type": "disconnect", "timestamp": now_ms, "sourceDoId": source, "reason": "done"})


def _column(column: DeclaredColumn) -> dict[str, Any]:
    found: dict[str, Any] = {"name": column.name, "type": column.type, "nullable": column.nullable}
    if column.default is not None:
        found["default"] = msgspec.Raw(column.default.encode())
    if column.renamed_from is not None:
        found["renamedFrom"] = column.renamed_from
    return found
