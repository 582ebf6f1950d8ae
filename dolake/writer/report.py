"""What the writer half says of itself: how store and catalog answer, what is read and not committed, and its metrics."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict
from typing import Any

import structlog

from dolake import failpoints
from dolake.buffer.plan import plan_low
from dolake.iceberg.access import CATALOG, PARTS, STORE, LakeAccess
from dolake.iceberg.breaker import Circuit
from dolake.metrics import Metrics
from dolake.model import TableName
from dolake.writer.cuts import is_with_group
from dolake.writer.lag import TableLags, Uncommitted
from dolake.writer.table import Table
from dolake.writer.tail import Tail

logger = structlog.get_logger("dolake.writer")


class Reporter:
    """Keeps what was observed; `describe` puts it together with how tails and tables are now."""

    def __init__(self, metrics: Metrics, access: LakeAccess) -> None:
        self._metrics, self._access = metrics, access
        self._trouble = dict.fromkeys([*PARTS, *map(_probe, PARTS)], "")
        self.lags = TableLags()

    def observe(self, part: str, trouble: str) -> bool:
        """Notes how the store or the catalog answered ("" is well); whether that is news."""
        if self._trouble[part] == trouble:
            return False
        self._trouble[part] = trouble
        (logger.warning if trouble else logger.info)(part, reason=trouble or "answers again")
        return True

    def observe_probe(self, part: str, trouble: str) -> bool:
        """The same of what was asked where nothing had to be flushed. It takes back only what it has said itself."""
        return self.observe(_probe(part), trouble)

    def troubles(self) -> list[str]:
        return [trouble for trouble in dict.fromkeys(self._trouble.values()) if trouble]

    def describe(self, tails: Mapping[str, Tail], tables: Mapping[TableName, Table], memory_bytes: int, now_s: float) -> dict[str, Any]:
        """What may be trimmed, what is not committed, what is down and why; sets the metrics of the same."""
        positions = {tail.log_id: tail.position for tail in tails.values()}
        low, pending = plan_low(positions, [pin for table in tables.values() for pin in table.pins()])
        failpoints.hit("flush.before_report")
        uncommitted = self._measure(positions, tables, memory_bytes, now_s)
        return {
            "logs": {
                log_id: {"low": low[log_id], "read": read, "pending": pending[log_id], "uncommitted_events": uncommitted.get(log_id, 0)}
                for log_id, read in positions.items()
            },
            **{part: "down" if self._is_down(part) else "ok" for part in PARTS},
            "circuits": self._access.describe(),
            "reason": "; ".join([*self.troubles(), *_log_troubles(tails.values())]),
        }

    def _measure(self, positions: Mapping[str, int], tables: Mapping[TableName, Table], memory_bytes: int, now_s: float) -> dict[str, int]:
        self._metrics.set("dolake_writer_memory_bytes", memory_bytes)
        # One that is parked holds up nobody.
        self._metrics.set("dolake_table_stopped_count", sum(table.stopped is not None and not table.away for table in tables.values()))
        self._metrics.set("dolake_table_parked_count", sum(bool(table.away) for table in tables.values()))
        self._metrics.set("dolake_table_parked_bytes", sum(table.side.size_bytes for table in tables.values() if table.side is not None))
        for group in sorted({table.group for table in tables.values()} - {""}):
            left_behind = sum(table.group == group and not is_with_group(table) for table in tables.values())
            self._metrics.set("dolake_cut_left_behind_count", left_behind, group=group)
        self._metrics.set("dolake_store_up_count", not self._is_down(STORE))
        self._metrics.set("dolake_catalog_up_count", not self._is_down(CATALOG))
        for part in PARTS:
            self._metrics.set("dolake_circuit_open_count", self._access.breakers[part].state is not Circuit.CLOSED, part=part)
            self._metrics.set("dolake_circuit_failures_total", self._access.failures[part], part=part)
        for log_id, position in positions.items():
            self._metrics.set("dolake_writer_read_offset", position, log=log_id)
        return self.lags.observe(self._metrics, {name: table.committed for name, table in tables.items()}, now_s)

    def _is_down(self, part: str) -> bool:
        return bool(self._trouble[part] or self._trouble[_probe(part)])


def state_of(table: Table, uncommitted: Uncommitted) -> dict[str, Any]:
    """One table, for whoever lists them."""
    state = "stopped" if table.stopped else "behind" if table.behind else "flushing" if table.flushing else "following"
    parked = None
    if table.side is not None:
        records = table.side.end - table.side.first
        parked = {"records": records, "bytes": table.side.size_bytes, "trouble": table.parking_trouble}
    return {
        "state": table.away.value or state,
        "rows": table.counts.rows,
        "mode": table.kind.value,
        "pending_rows": table.memtable.rows,
        "uncommitted_events": uncommitted.event_count,
        "uncommitted_age_s": round(uncommitted.age_s, 3),
        "offsets": dict(table.committed),
        "dead_letters": table.counts.dead,
        "troubles": dict(table.reading.troubles),
        "stopped": asdict(table.stopped) if table.stopped else None,
        "parked": parked,
    }


def _probe(part: str) -> str:
    return f"{part} probe"


def _log_troubles(tails: Collection[Tail]) -> list[str]:
    return [tail.trouble for tail in tails if tail.trouble]
