"""The events of the benchmarks: rows of ~270 bytes of JSON, encoded and framed before the clock starts."""

from __future__ import annotations

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
    b'{"sequence":%d,"timestamp":%d,"operation":"INSERT","table":"bench.orders","rowId":"%d","after":{"id":%d,"customer_id":%d,'
    b'"status":"%s","amount":%d.%02d,"note":"left at the door %d","created_at":"2026-01-%02dT%02d:%02d:%02d.%03dZ",'
    b'"qty":%d,"flag":%s}}'
)


def event(sequence: int) -> bytes:
    """One insert; the same bytes whenever it is asked for."""
    mixed = (sequence * 2654435761) & 0xFFFFFFFF
    return _EVENT % (
        sequence,
        1_767_225_600_000 + sequence,
        sequence,
        sequence,
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
    body = b",".join([event(number) for number in range(first, first + count)])
    return (
        b'{"type":"cdc_batch","timestamp":1767225600000,"sourceDoId":"%s","sequenceNumber":%d,"firstEventSequence":%d,'
        b'"lastEventSequence":%d,"sizeBytes":%d,"isRetry":false,"retryCount":0,"events":[%s]}'
    ) % (source.encode(), sequence, first, first + count - 1, len(body) + 2, body)


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
    return [Frame(Opcode.TEXT, message).serialize(mask=True) for message in messages]
