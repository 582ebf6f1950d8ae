"""A flush that somebody asked for: what it still waits for, and what it comes to."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from dolake.writer.flight import Away
from dolake.writer.flush import FlushResult
from dolake.writer.table import Table
from dolake.writer.tail import Tail


def plan_request(
    tables: Sequence[Table], tails: Mapping[str, Tail], until: Mapping[str, int], cuts_of: Callable[[Table], dict[str, int]]
) -> str:
    """What a flush of `tables` below `until` still waits for; empty when it is done. Marks the tables that have to go."""
    for log_id, end in until.items():
        tail = tails.get(log_id)
        if tail is None or tail.position < end:
            return (tail.trouble if tail else "") or f"log {log_id} is read up to {tail.position if tail else 0} of {end}"
    waiting = ""
    for table in tables:
        cuts = table.cuts(cuts_of(table)) or {}
        table.requested = any(
            record.pin.offset < min(cuts.get(record.pin.log_id, 0), until.get(record.pin.log_id, 0)) for record in table.memtable.records
        )
        if table.requested or table.flushing or (table.behind and table.away is not Away.PARKED):
            waiting = f"{table.name} is not committed yet"
    return waiting


def why_not_flushed(table: Table) -> str:
    """What keeps rows of a table from being committed for good, until somebody looks; empty where nothing does."""
    if table.away is Away.PARKED:
        return f"{table.name} is parked; `dolake tables unpark {table.name}` brings it back"
    return f"{table.name} has stopped: {table.stopped.reason}" if table.stopped and table.refused else ""


def flush_result(done: Sequence[FlushResult], duration_s: float, error: str) -> dict[str, Any]:
    """The `result` of the protocol's flush_response."""
    result = {
        "success": not error,
        "batchesFlushed": sum(result.batches for result in done),
        "eventsFlushed": sum(result.rows + result.dead_letters for result in done),
        "bytesWritten": sum(result.bytes_written for result in done),
        "paths": [path for result in done for path in result.paths],
        "durationMs": round(duration_s * 1000),
        "usedFallback": False,
    }
    return {**result, "error": error} if error else result
