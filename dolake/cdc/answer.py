"""What dolake says to sources, as values, and their JSON. The producer library reads the same shapes back."""

from __future__ import annotations

import enum
from typing import Any

import msgspec
from msgspec import UNSET, Struct, UnsetType

from dolake.errors import InvalidMessage


class Reason(enum.StrEnum):
    """Why a message was nacked. `SHOULD_RETRY` says which are worth sending again."""

    INVALID_FORMAT = "invalid_format"
    INVALID_SEQUENCE = "invalid_sequence"
    PAYLOAD_TOO_LARGE = "payload_too_large"
    EVENT_TOO_LARGE = "event_too_large"
    BUFFER_FULL = "buffer_full"
    STORAGE_FULL = "storage_full"
    RATE_LIMITED = "rate_limited"
    LOAD_SHEDDING = "load_shedding"
    DEGRADED = "degraded"
    INTERNAL_ERROR = "internal_error"
    SHUTTING_DOWN = "shutting_down"
    UNAUTHORIZED = "unauthorized"
    FORBIDDEN = "forbidden"
    CONNECTION_LIMIT = "connection_limit"
    IP_LIMIT = "ip_limit"


SHOULD_RETRY = frozenset(
    {
        Reason.BUFFER_FULL,
        Reason.STORAGE_FULL,
        Reason.RATE_LIMITED,
        Reason.LOAD_SHEDDING,
        Reason.DEGRADED,
        Reason.INTERNAL_ERROR,
        Reason.SHUTTING_DOWN,
        Reason.CONNECTION_LIMIT,
        Reason.IP_LIMIT,
    }
)
MISTAKES_SHOWN_MAX = 100
_MISTAKE_TEXT_MAX = 1024  # Of one of them: a field may be called by a name of megabytes.


class AckStatus(enum.StrEnum):
    OK = "ok"
    BUFFERED = "buffered"
    DUPLICATE = "duplicate"
    PERSISTED = "persisted"
    FALLBACK = "fallback"


class _Answer(Struct, tag_field="type", rename="camel", kw_only=True, omit_defaults=True, gc=False):
    correlation_id: str | UnsetType = UNSET


class AckDetails(Struct, rename="camel", kw_only=True, gc=False):
    events_processed: int
    buffer_utilization: float
    time_until_flush: int
    suggested_delay_ms: int | UnsetType = UNSET


class RateLimit(Struct, rename="camel", kw_only=True, gc=False):
    """How much of a connection's allowance is left: `limit` when nothing has come for a while; `reset_at` in s, when it is again."""

    limit: int
    remaining: int
    reset_at: int


class Ack(_Answer, tag="ack"):
    sequence_number: int
    status: AckStatus
    details: AckDetails
    rate_limit: RateLimit | UnsetType = UNSET


class Nack(_Answer, tag="nack"):
    sequence_number: int
    reason: str
    error_message: str
    should_retry: bool
    retry_delay_ms: int | UnsetType = UNSET
    max_size: int | UnsetType = UNSET
    actual_size: int | UnsetType = UNSET
    expected_sequence: int | UnsetType = UNSET
    rate_limit: RateLimit | UnsetType = UNSET


class BufferStats(Struct, rename="camel", kw_only=True):
    batch_count: int
    event_count: int
    total_size_bytes: int
    utilization: float
    oldest_batch_time: int | UnsetType = UNSET
    newest_batch_time: int | UnsetType = UNSET


class Limits(Struct, rename="camel", kw_only=True):
    """What one message may hold at most, and how much may come in a second by one connection (events: where that is limited)."""

    max_payload_bytes: int
    max_event_bytes: int
    max_batch_events: int
    max_columns: int | UnsetType = UNSET
    max_messages_per_s: int | UnsetType = UNSET
    max_events_per_s: int | UnsetType = UNSET


class Lost(Struct, rename={"first": "from", "last": "to"}):
    """Sequences that were acked once and are in no log any more."""

    first: int
    last: int


class Status(_Answer, tag="status"):
    """The answer to `connect`: where the source stands, and what it may send."""

    state: str
    buffer: BufferStats
    connected_sources: int
    last_sequence: int
    last_event_sequence: int
    epoch: str
    limits: Limits
    last_lsn: str | UnsetType = UNSET
    lost: Lost | UnsetType = UNSET
    last_flush_time: int | UnsetType = UNSET
    next_flush_time: int | UnsetType = UNSET


class Pong(_Answer, tag="pong"):
    timestamp: int
    server_time: int


class FlushResponse(_Answer, tag="flush_response"):
    result: dict[str, Any]


Answer = Ack | Nack | Status | Pong | FlushResponse

_ENCODER = msgspec.json.Encoder()
_DECODER: msgspec.json.Decoder[Answer] = msgspec.json.Decoder(Answer)


def encode_answer(answer: Answer) -> bytes:
    return _ENCODER.encode(answer)


def decode_answer(frame: bytes | str) -> Answer:
    """Raises msgspec.MsgspecError on what no dolake says."""
    return _DECODER.decode(frame)


def nack(reason: Reason, sequence: int, message: str, correlation_id: str | None = None, **fields: Any) -> Nack:
    """`fields` are the optional ones: retry_delay_ms, max_size, actual_size, expected_sequence, rate_limit."""
    return Nack(
        sequence_number=sequence,
        reason=reason,
        error_message=message,
        should_retry=reason in SHOULD_RETRY or "expected_sequence" in fields,
        correlation_id=UNSET if correlation_id is None else correlation_id,
        **fields,
    )


def invalid(error: InvalidMessage) -> Nack:
    """`invalid_format`, naming the mistakes: as many as a person will read."""
    shown = "; ".join(_short(str(mistake)) for mistake in error.mistakes[:MISTAKES_SHOWN_MAX])
    more = len(error.mistakes) - MISTAKES_SHOWN_MAX
    text = f"{shown}; and {more} more mistakes" if more > 0 else shown
    # A source names fields as it likes, with lone surrogates too, which no answer could carry.
    text = text.encode("utf-8", "backslashreplace").decode()
    return nack(Reason.INVALID_FORMAT, error.sequence, text, error.correlation_id)


def _short(text: str) -> str:
    return text if len(text) <= _MISTAKE_TEXT_MAX else text[: _MISTAKE_TEXT_MAX - 1] + "…"


def no_flush(reason: str) -> dict[str, Any]:
    """The result of a flush that did not happen."""
    return {
        "success": False,
        "batchesFlushed": 0,
        "eventsFlushed": 0,
        "bytesWritten": 0,
        "paths": [],
        "durationMs": 0,
        "usedFallback": False,
        "error": reason,
    }
