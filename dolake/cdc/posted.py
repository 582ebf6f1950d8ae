"""Messages sent by `POST /cdc`: a batch with most of its envelope left out, or a schema. And what an answer is in HTTP.

A batch is brought into the form it has on the websocket, around its `events` as they came: what is logged, and the content
that tells a repeat from another batch, do not depend on the way it took. From then on the two are one.
"""

from __future__ import annotations

from typing import Literal

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from dolake.cdc import message as wire
from dolake.cdc import validation
from dolake.cdc.answer import Ack, Nack, Reason
from dolake.cdc.message import CdcBatch, SchemaMessage
from dolake.cdc.wire import BatchEnvelope, Name, Number, NumberOrNone, Text, TimeMs, Transaction
from dolake.errors import InvalidMessage

# What is not here is 503: worth sending again, later.
_STATUS = {
    Reason.INVALID_FORMAT: 400,
    Reason.INVALID_SEQUENCE: 400,
    Reason.PAYLOAD_TOO_LARGE: 413,
    Reason.EVENT_TOO_LARGE: 413,
    Reason.UNAUTHORIZED: 401,
    Reason.FORBIDDEN: 403,
    Reason.RATE_LIMITED: 429,
    Reason.CONNECTION_LIMIT: 429,
    Reason.IP_LIMIT: 429,
}
_GAP = 409


class _OnlyType(Struct):
    type: str = "cdc_batch"


class _PostedBatch(Struct, rename="camel", kw_only=True, gc=False):
    """A batch's envelope, of which only three fields must be there."""

    source_do_id: Name
    sequence_number: Number
    events: Raw
    type: Literal["cdc_batch"] = "cdc_batch"
    timestamp: TimeMs | UnsetType = UNSET
    first_event_sequence: NumberOrNone | UnsetType = UNSET
    last_event_sequence: NumberOrNone | UnsetType = UNSET
    size_bytes: Number | UnsetType = UNSET
    is_retry: bool = False
    retry_count: Number = 0
    source_shard_name: Text | UnsetType = UNSET
    epoch: Text | UnsetType = UNSET
    transaction: Transaction | UnsetType = UNSET
    correlation_id: Text | UnsetType = UNSET


class _Placed(Struct, gc=False):
    """Where an event stands."""

    sequence: int
    timestamp: int


_TYPE = msgspec.json.Decoder(_OnlyType)
_BATCH = msgspec.json.Decoder(_PostedBatch)
_PLACES = msgspec.json.Decoder(list[_Placed])


def try_decode_posted(body: bytes, now_ms: int) -> CdcBatch | SchemaMessage | None:
    """The message in a body, or None when `explain_posted` must say what is wrong. `now_ms` stands for a timestamp that

    is neither given nor to be had from an event.
    """
    try:
        if not body.isascii():
            body.decode()
        kind = _TYPE.decode(body).type
        frame = _framed(body, now_ms) if kind == "cdc_batch" else body
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None
    message = wire.try_decode(frame) if frame is not None else None
    return message if isinstance(message, CdcBatch | SchemaMessage) else None


def explain_posted(body: bytes) -> InvalidMessage:
    """Every mistake of a body that `try_decode_posted` refused, with the sequence number and correlation id it claims."""
    error = InvalidMessage(validation.mistakes_of(body, posted=True))
    error.sequence, error.correlation_id = wire.identity_of(body)
    return error


def http_status(answer: Ack | Nack) -> int:
    """The HTTP status that says the same as an answer."""
    if isinstance(answer, Ack):
        return 200
    return _GAP if answer.expected_sequence is not UNSET else _STATUS.get(Reason(answer.reason), 503)


def retry_after_s(answer: Ack | Nack) -> int | None:
    """Whole seconds for `Retry-After`, at least one; None where later is no better than now."""
    if isinstance(answer, Ack) or http_status(answer) not in (429, 503):
        return None
    return 1 if answer.retry_delay_ms is UNSET else max(1, -(-answer.retry_delay_ms // 1000))


def _framed(body: bytes, now_ms: int) -> bytes | None:
    """The batch as a websocket frame: canonical, with nothing in it that the protocol does not name."""
    posted = _BATCH.decode(body)
    if wire.has_equal_keys(body, memoryview(posted.events)):
        return None
    places = _PLACES.decode(posted.events)
    first, last = (places[0], places[-1]) if places else (_Placed(-1, now_ms), _Placed(-1, now_ms))
    return msgspec.json.encode(
        BatchEnvelope(
            timestamp=_given(posted.timestamp, last.timestamp),
            source_do_id=posted.source_do_id,
            events=posted.events,
            sequence_number=posted.sequence_number,
            first_event_sequence=_given(posted.first_event_sequence, first.sequence),
            last_event_sequence=_given(posted.last_event_sequence, last.sequence),
            size_bytes=_given(posted.size_bytes, len(memoryview(posted.events))),
            is_retry=posted.is_retry,
            retry_count=posted.retry_count,
            source_shard_name=posted.source_shard_name,
            epoch=posted.epoch,
            transaction=posted.transaction,
            correlation_id=posted.correlation_id,
        )
    )


def _given(value: int | UnsetType, otherwise: int) -> int:
    return otherwise if value is UNSET else value
