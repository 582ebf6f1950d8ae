"""Right messages, to be made wrong one field at a time."""

from __future__ import annotations

import json
from typing import Any

NOW_MS = 1_767_225_600_000

CONNECT: dict[str, Any] = {
    "type": "connect",
    "timestamp": NOW_MS,
    "sourceDoId": "orders-db-3",
    "lastAckSequence": -1,
    "protocolVersion": 1,
    "capabilities": {"binaryProtocol": False, "compression": False, "batching": True, "maxBatchSize": 1000, "maxMessageSize": 1 << 24},
}
HEARTBEAT: dict[str, Any] = {
    "type": "heartbeat",
    "timestamp": NOW_MS,
    "sourceDoId": "orders-db-3",
    "lastAckSequence": 3,
    "pendingEvents": 0,
}
FLUSH_REQUEST: dict[str, Any] = {"type": "flush_request", "timestamp": NOW_MS, "sourceDoId": "orders-db-3", "reason": "manual"}
DISCONNECT: dict[str, Any] = {"type": "disconnect", "timestamp": NOW_MS, "sourceDoId": "orders-db-3", "reason": "done"}
SCHEMA: dict[str, Any] = {
    "type": "schema",
    "sourceDoId": "orders-db-3",
    "sequenceNumber": 0,
    "table": "public.orders",
    "primaryKey": ["id"],
    "columns": [
        {"name": "id", "type": "long", "nullable": False},
        {"name": "total", "type": "decimal(12,2)", "nullable": True, "default": "0.00"},
        {"name": "tags", "type": "list<string>", "nullable": True, "renamedFrom": "labels"},
    ],
}


def event(sequence: int, **more: Any) -> dict[str, Any]:
    return {
        "sequence": sequence,
        "timestamp": NOW_MS + sequence,
        "operation": "INSERT",
        "table": "orders",
        "rowId": f"o-{sequence}",
        "after": {"id": f"o-{sequence}", "total": 12.5, "note": "ünï€ 😀"},
        **more,
    }


def batch(sequence: int = 0, first: int = 0, count: int = 2, *, source: str = "orders-db-3", **more: Any) -> dict[str, Any]:
    events = [event(first + index) for index in range(count)]
    return {
        "type": "cdc_batch",
        "timestamp": NOW_MS,
        "sourceDoId": source,
        "sequenceNumber": sequence,
        "firstEventSequence": first,
        "lastEventSequence": first + count - 1,
        "sizeBytes": 310,
        "isRetry": False,
        "retryCount": 0,
        "events": events,
        **more,
    }


def raw_events(first: int, count: int) -> list[bytes]:
    """Events as a producer is given them."""
    return [frame(event(first + index)) for index in range(count)]


def frame(message: dict[str, Any]) -> bytes:
    return json.dumps(message, separators=(",", ":"), ensure_ascii=False).encode()
