"""The events of the benchmarks: rows of ~270 bytes of JSON, encoded and framed before the clock starts."""

from __future__ import annotations

from collections.abc import Sequence

import orjson
from websockets.frames import Frame, Opcode

SOURCE = "bench"
TABLE = "bench.orders"
COLUMNS = {
    "id": "long",
    "customer_id": "long",
    "status": "string",
    "amount": "double",
    "note": "string",
    "created_at": "timestamptz",
    "qty": "int",
    "flag": "boolean",
}
STATUSES = (b"new", b"paid", b"shipped", b"cancelled")
_EVENT = (
    b'{"sequence":%d,"timestamp":%d,"operation":"%s","table":"bench.orders","rowId":"%d","after":{"id":%d,"customer_id":%d,'
    b'"status":"%s","amount":%d.%02d,"note":"left at the door %d","created_at":"2026-01-%02dT%02d:%02d:%02d.%03dZ",'
    b'"qty":%d,"flag":%s}}'
)


_DELETE = b'{"sequence":%d,"timestamp":%d,"operation":"DELETE","table":"bench.orders","rowId":"%d","before":{"id":%d}}'


def event(sequence: int, operation: bytes = b"INSERT", key: int | None = None) -> bytes:
    """One event of the row `key`, an insert of a row of its own unless said; the same bytes whenever it is asked for."""
    mixed = (sequence * 2654435761) & 0xFFFFFFFF
    key = sequence if key is None else key
    if operation == b"DELETE":
        return _DELETE % (sequence, 1_767_225_600_000 + sequence, key, key)
    return _EVENT % (
        sequence,
        1_767_225_600_000 + sequence,
        operation,
        key,
        key,
        mixed % 100_000,
        STATUSES[mixed & 3],
        mixed % 10_000,
        mixed % 100,
        mixed,
        1 + mixed % 28,
        mixed % 24,
        mixed % 60,
        (mixed >> 8) % 60,
        mixed % 1_000,
        mixed % 9,
        b"true" if mixed & 16 else b"false",
    )


def batch(sequence: int, first: int, count: int, source: str = SOURCE) -> bytes:
    """A `cdc_batch` message of the events `first` … `first + count - 1`."""
    return batch_of(sequence, first, [event(number) for number in range(first, first + count)], source)


def batch_of(sequence: int, first: int, events: Sequence[bytes], source: str = SOURCE) -> bytes:
    """A `cdc_batch` message of these, numbered from `first`."""
    body = b",".join(events)
    return (
        b'{"type":"cdc_batch","timestamp":1767225600000,"sourceDoId":"%s","sequenceNumber":%d,"firstEventSequence":%d,'
        b'"lastEventSequence":%d,"sizeBytes":%d,"isRetry":false,"retryCount":0,"events":[%s]}'
    ) % (source.encode(), sequence, first, first + len(events) - 1, len(body) + 2, body)


def schema(sequence: int, source: str = SOURCE) -> bytes:
    return orjson.dumps(
        {
            "type": "schema",
            "sourceDoId": source,
            "sequenceNumber": sequence,
            "table": TABLE,
            "primaryKey": ["id"],
            "columns": [{"name": name, "type": kind, "nullable": name != "id"} for name, kind in COLUMNS.items()],
        }
    )


def frames(event_count: int, batch_events: int) -> list[bytes]:
    """Whole websocket frames, masked: a schema (sequence 1), then batches. Sending them is writing them."""
    messages = [schema(1)]
    messages += [
        batch(2 + place, first, min(batch_events, event_count - first)) for place, first in enumerate(range(0, event_count, batch_events))
    ]
    return [framed(message) for message in messages]


def framed(message: bytes) -> bytes:
    """A whole websocket frame, masked."""
    return Frame(Opcode.TEXT, message).serialize(mask=True)
