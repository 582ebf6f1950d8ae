"""What the writer half says of itself over the control socket, remembered: advisory, and possibly old."""

from __future__ import annotations

from typing import Any

Message = dict[str, Any]
SILENT_S_MAX = 10.0  # The writer reports every second; one that says nothing for this long is not to be relied on.


class WriterView:
    """The last `progress` of the writer. Absent parts have harmless defaults: nothing committed, nothing known to be down."""

    def __init__(self) -> None:
        self.connected = False
        self.last: Message = {}
        self.heard_s = 0.0
        self.start_trouble = ""  # why a writer did not come up, in its own words

    def hear(self, message: Message, now_s: float) -> None:
        kind = message.get("type")
        if kind == "gone":
            self.connected = False
        elif kind in ("hello", "progress"):
            self.connected, self.heard_s, self.start_trouble = True, now_s, ""
        if kind == "progress":
            self.last = message

    def low(self, log_id: str) -> int | None:
        """First offset of a log that some table still needs; None if the writer has not said."""
        return _offset(self._log(log_id).get("low"))

    def read(self, log_id: str) -> int | None:
        """First offset of a log that the writer has not read; None if it has not said."""
        return _offset(self._log(log_id).get("read"))

    def uncommitted_events(self, log_id: str) -> int:
        """Events of a log that are read and not committed in all their tables."""
        return _offset(self._log(log_id).get("uncommitted_events")) or 0

    def report_age_s(self, now_s: float) -> float:
        """Since it last said anything."""
        return now_s - self.heard_s

    def committed_bound(self, log_id: str, source: str) -> int:
        """Every record of the source below this offset is in committed snapshots."""
        said = self._log(log_id)
        pending = said.get("pending")
        # An empty source stands for all of them: a table that is read again does not know yet whose rows it will find.
        pinned = [pending[name] for name in (source, "") if name in pending] if isinstance(pending, dict) else []
        # A parked table may have been looked through further than its log was read by the writer that has started since.
        bounds = [bound for bound in map(_offset, [said.get("read"), *pinned]) if bound is not None]
        return min(bounds, default=0)

    @property
    def is_down(self) -> bool:
        """Whether the store or the catalog does not answer the writer."""
        return self.connected and "down" in (self.last.get("store"), self.last.get("catalog"))

    def reasons(self, now_s: float) -> list[str]:
        """Why nothing can be committed now; empty if it can."""
        if not self.connected:
            return ["the writer half is not connected" + (f": {self.start_trouble}" if self.start_trouble else "")]
        if now_s - self.heard_s > SILENT_S_MAX:
            return [f"the writer half has said nothing for {now_s - self.heard_s:.0f} s"]
        down = [f"the {part} does not answer" for part in ("store", "catalog") if self.last.get(part) == "down"]
        reason = self.last.get("reason")
        return [*down, *([reason] if isinstance(reason, str) and reason else [])]

    def circuits(self) -> Message:
        """How the writer asks store and catalog by now, for each of them (`iceberg.breaker`); nothing where there is no writer."""
        said = self.last.get("circuits") if self.connected else None
        return said if isinstance(said, dict) else {}

    def stopped(self) -> list[Message]:
        """The tables that take no more rows, `table` and `reason` of each. The others are committed all the same."""
        tables = self.last.get("tables")
        found = {name: said.get("stopped") for name, said in tables.items()} if isinstance(tables, dict) else {}
        return [{"table": name, "reason": stopped["reason"]} for name, stopped in sorted(found.items()) if stopped]

    def _log(self, log_id: str) -> Message:
        logs = self.last.get("logs")
        said = logs.get(log_id) if isinstance(logs, dict) else None
        return said if isinstance(said, dict) else {}


def _offset(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None
