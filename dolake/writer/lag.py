"""What of each table is read and not committed yet: events, and how long they have waited.

Counted from offsets alone, beside what a table holds: so a table that has stopped, or is read again, counts too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from dolake.buffer.lag import Lag
from dolake.metrics import Metrics
from dolake.model import TableName


class Uncommitted(NamedTuple):
    """`age_s` is how long the oldest of the events has been waiting since it was read; 0 without any."""

    event_count: int = 0
    age_s: float = 0.0


class TableLags:
    """`committed` below is, for each table, the first offset of each log that it has not committed."""

    def __init__(self) -> None:
        self._lags: dict[TableName, dict[str, Lag]] = {}
        self._shown: set[tuple[TableName, str]] = set()
        self._last: dict[TableName, Uncommitted] = {}

    def of(self, table: TableName) -> Uncommitted:
        """As it was when last observed."""
        return self._last.get(table, Uncommitted())

    def note(self, table: TableName, log_id: str, offset: int, event_count: int, now_s: float) -> None:
        """A record's events for a table are read."""
        self._lags.setdefault(table, {}).setdefault(log_id, Lag()).note(offset, event_count, now_s)

    def observe(self, metrics: Metrics, committed: Mapping[TableName, Mapping[str, int]], now_s: float) -> dict[str, int]:
        """Sets the metrics of every table, forgets those that are gone; returns the events by log."""
        by_log: dict[str, int] = {}
        for gone in (self._lags.keys() | self._last.keys()) - committed.keys():
            self._lags.pop(gone, None)
            self._last.pop(gone, None)
        for table, offsets in committed.items():
            lags = self._lags.get(table, {})
            for log_id, lag in lags.items():
                lag.follow(offsets.get(log_id, 0))
                by_log[log_id] = by_log.get(log_id, 0) + lag.event_count
            age_s = max((lag.age_s(now_s) for lag in lags.values()), default=0.0)
            found = self._last[table] = Uncommitted(sum(lag.event_count for lag in lags.values()), age_s)
            metrics.set("dolake_table_uncommitted_events_count", found.event_count, table=str(table))
            metrics.set("dolake_table_uncommitted_age_seconds", found.age_s, table=str(table))
            for log_id, offset in offsets.items():
                metrics.set("dolake_table_committed_offset", offset, table=str(table), log=log_id)
        self._forget(metrics, {(table, log_id) for table, offsets in committed.items() for log_id in offsets})
        return by_log

    def _forget(self, metrics: Metrics, shown: Iterable[tuple[TableName, str]]) -> None:
        before, self._shown = self._shown, set(shown)
        for table, log_id in before - self._shown:
            metrics.forget("dolake_table_committed_offset", table=str(table), log=log_id)
            if not any(table == other for other, _ in self._shown):
                metrics.forget("dolake_table_uncommitted_events_count", table=str(table))
                metrics.forget("dolake_table_uncommitted_age_seconds", table=str(table))
