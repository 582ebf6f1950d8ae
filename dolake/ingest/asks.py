"""What the ingest half answers over the control socket: readiness, state, metrics, tables, flushes.

A writer that does not come up leaves its reason here (`writer_trouble`), for whoever asks whether commits go on.
"""

from __future__ import annotations

from typing import Any

from dolake.errors import RequestRefused
from dolake.ingest.progress import Message
from dolake.ingest.service import IngestService
from dolake.metrics import observe_process


class Asks:
    """Answers `ask` messages; what the writer knows is passed on as it was last said."""

    def __init__(self, service: IngestService) -> None:
        self._service = service
        service.metrics.set("dolake_process_started_seconds", service.runtime.clock.now_ms() / 1000, process="ingest")

    async def answer(self, ask: Message) -> Message:
        """Raises RequestRefused for what is not known."""
        what = ask.get("what")
        if what == "flush":
            tables = ask.get("tables")
            return {"result": await self._service.flush(tables if isinstance(tables, list) else None, str(ask.get("reason", "manual")))}
        if what in ("park", "unpark", "drop"):
            return {"result": await self._service.change_table(what, str(ask.get("table")))}
        if what == "maintain":
            return {"result": await self._service.change_table("maintain", str(ask.get("table")))}
        if what == "compact":
            more = {"dryRun": bool(ask.get("dry_run")), "partition": ask.get("partition")}
            return {"result": await self._service.change_table("compact", str(ask.get("table")), more)}
        if what == "rollback":
            more = {"snapshot": ask.get("snapshot"), "rewind": bool(ask.get("rewind"))}
            return {"result": await self._service.roll_back(str(ask.get("table")), more)}
        if what == "writer_trouble":
            self._service.writer.start_trouble = str(ask.get("reason", ""))
            return {}
        answers = {"ready": self._ready, "state": self._state, "metrics": self._metrics, "tables": self._tables}
        if what not in answers:
            raise RequestRefused(
                f"nobody knows what {what!r} is; ask for {', '.join(answers)}, flush, park, unpark, drop, rollback or compact"
            )
        return answers[what]()

    def _ready(self) -> Message:
        """Ready is: every log can take batches. The writer's readiness is told apart."""
        reasons = [lane.trouble for lane in self._service.lanes.values() if not lane.is_serving]
        if self._service.is_stopping:
            reasons.append("this daemon is stopping")
        writer = self._service.writer
        unable = writer.reasons(self._service.runtime.clock.monotonic_s())
        said = {"ready": not unable, "reasons": unable, "stopped": writer.stopped(), "circuits": writer.circuits()}
        return {"ready": not reasons, "reasons": reasons, "writer": said}

    def _state(self) -> Message:
        writer = self._service.writer
        return {
            "logs": {lane.directory: self._log(lane.directory) for lane in self._service.lanes.values()},
            "sources": {source: self._source(source) for source in self._service.desks} | self._silent_sources(),
            "writer": {**writer.last, "connected": writer.connected},
        }

    def _log(self, directory: str) -> dict[str, Any]:
        lane = self._service.lanes[directory]
        state = {"log": lane.log_id, "serving": lane.is_serving, "trouble": lane.trouble, "backlog_bytes_max": lane.backlog_bytes_max}
        if lane.is_serving:
            state.update(low=lane.low, synced_end=lane.log.synced_end, backlog_bytes=lane.backlog_bytes())
        return state

    def _source(self, source: str) -> dict[str, Any]:
        desk = self._service.desks[source]
        durable = desk.numbering.durable
        return {
            "log": desk.lane.log_id,
            "epoch": durable.epoch,
            "last_sequence": durable.last_sequence,
            "last_event_sequence": durable.last_event_sequence,
            "last_lsn": durable.last_lsn,
            "persisted_sequence": desk.persisted_sequence,
            "connected": desk.client is not None,
        }

    def _silent_sources(self) -> dict[str, Any]:
        """Those that the logs know and that have not come since this process began."""
        found: dict[str, Any] = {}
        for lane in self._service.lanes.values():
            for source, durable in (lane.log.sources if lane.is_serving else {}).items():
                if source in self._service.desks:
                    continue
                # Which of its batches are committed is not known by number, only whether all are.
                whole = self._service.writer.committed_bound(lane.log_id, source) >= lane.log.synced_end
                found[source] = {
                    "log": lane.log_id,
                    "epoch": durable.epoch,
                    "last_sequence": durable.last_sequence,
                    "last_event_sequence": durable.last_event_sequence,
                    "last_lsn": durable.last_lsn,
                    "persisted_sequence": durable.last_sequence if whole else -1,
                    "connected": False,
                }
        return found

    def _metrics(self) -> Message:
        metrics = self._service.metrics
        observe_process(metrics, "ingest")
        writer = self._service.writer
        metrics.set("dolake_auth_tokens_count", len(self._service.gate.book))
        for lane in self._service.lanes.values():
            if lane.is_serving:
                uncommitted = lane.unread.event_count + writer.uncommitted_events(lane.log_id)
                metrics.set("dolake_wal_backlog_bytes", lane.backlog_bytes(), log=lane.log_id)
                metrics.set("dolake_wal_uncommitted_events_count", uncommitted, log=lane.log_id)
                metrics.set("dolake_wal_uncommitted_age_seconds", lane.uncommitted_age_s(), log=lane.log_id)
        if writer.last:
            metrics.set("dolake_writer_report_age_seconds", writer.report_age_s(self._service.runtime.clock.monotonic_s()))
        metrics.set("dolake_cdc_held_bytes", self._service.held_bytes())
        metrics.set("dolake_cdc_loop_lag_seconds", self._service.lag_s)
        return {"metrics": {"ingest": metrics.values(), "writer": writer.last.get("metrics") if writer.connected else None}}

    def _tables(self) -> Message:
        writer = self._service.writer
        return {"tables": writer.last.get("tables", {}), "writer": {"connected": writer.connected}}
