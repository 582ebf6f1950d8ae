"""The ingest half without its sockets: sources and their desks, lanes over the logs, what the writer says, what others ask.

Everything durable is in the logs; a service that is dropped at any moment and started again on the same disk has lost
nothing that was acked. Its doors (clock, tasks, disk, the line to the writer) are handed in, so that a simulation can run it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from typing import Any, Protocol

import structlog
from msgspec import UNSET

from dolake.auth.gate import Gate
from dolake.auth.principal import ANYBODY, Principal
from dolake.auth.tokens import TokenBook
from dolake.buffer.logs import Logs
from dolake.buffer.wal import Log, LogSettings
from dolake.cdc.answer import AckStatus, BufferStats, Limits, Lost, Reason, Status, no_flush
from dolake.cdc.rates import Rates
from dolake.cdc.session import CloseCode
from dolake.cdc.wire import Connect
from dolake.clock import Runtime
from dolake.config import Settings, TableNames
from dolake.errors import DaemonUnreachable, DolakeError, LogFailed, RequestRefused
from dolake.ingest.connection import Connection
from dolake.ingest.desk import SourceDesk
from dolake.ingest.lane import UNSYNCED_BYTES_MAX, Lane
from dolake.ingest.plan import LAG_S_MAX, Load, Priority, Refusal, plan_refusal
from dolake.ingest.pressure import plan_backlog_bytes_max
from dolake.ingest.progress import Message, WriterView
from dolake.metrics import Metrics
from dolake.model import Codec
from dolake.storage.disk import Disk

_CODECS = {"none": Codec.PLAIN, "zstd": Codec.ZSTD}

logger = structlog.get_logger("dolake.ingest")


class WriterLine(Protocol):
    """How a writer is asked for something: the hub of the control socket."""

    async def request(self, role: str, message: Message) -> Message:
        """Raises DaemonUnreachable without one."""
        ...


class IngestService:
    """`start`, then `connect` for each client. `ended` fails with the reason when no log is left; `stop` ends in order."""

    def __init__(self, runtime: Runtime, disk: Disk, settings: Settings, gate: Gate | None = None) -> None:
        self.runtime, self._disk, self._settings = runtime, disk, settings
        self.gate = gate or Gate(runtime.clock, TokenBook(settings.tokens))
        self.limits = Limits(
            max_payload_bytes=settings.limits.payload_bytes,
            max_event_bytes=settings.limits.event_bytes,
            max_batch_events=settings.limits.batch_events,
            max_columns=settings.limits.columns,
            max_messages_per_s=settings.limits.messages_per_s,
            max_events_per_s=UNSET if settings.limits.events_per_s is None else settings.limits.events_per_s,
        )
        self.columns_max = settings.limits.columns
        self.flush_age_ms = round(settings.flush.age_s * 1000)
        self.metrics = Metrics()
        self.gate.on_reload = lambda outcome: self.metrics.add("dolake_auth_reloads_total", outcome=outcome)
        self.writer = WriterView()
        self.writer_line: WriterLine | None = None
        # Messages in memory that are in no log yet: whoever holds them says how much that is, and may be.
        self.held_bytes: Callable[[], int] = lambda: 0
        self.held_bytes_max = 1
        self.lag_s = 0.0  # how late the event loop is
        self._keeps_room = any(source.priority == "high" for source in settings.sources.values())
        self.is_stopping = False
        self.lanes: dict[str, Lane] = {}
        self.names = TableNames(settings)
        self.desks: dict[str, SourceDesk] = {}
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._logs: Logs | None = None
        self._reopening = asyncio.Lock()
        self._connections: set[Connection] = set()
        self._committers: list[asyncio.Task[None]] = []

    # -- life

    async def start(self) -> None:
        """Opens the logs. Raises why, if none can be served."""
        settings = self._settings.log
        of_each = LogSettings(settings.segment_bytes, codec=_CODECS[settings.compression])
        logs = await self.runtime.tasks.run(Logs, self._disk, settings.directories, of_each, self.runtime.random)
        if not logs.serving:
            logs.close()
            raise next(iter(logs.failed.values()))
        self._logs = logs
        for directory in logs.directories:
            lane = Lane(
                self.runtime,
                directory,
                reopen=self._reopen,
                changed=self._lane_changed,
                backlog_bytes_max=self._backlog_bytes_max(directory),
                metrics=self.metrics,
                retain_s=settings.retain_s,
            )
            self.lanes[directory] = lane
            if directory in logs.serving:
                lane.serve(logs.serving[directory])
            else:
                logger.error("log is not served", directory=directory, reason=str(logs.failed[directory]))
                lane.note_trouble(logs.failed[directory])
        self._committers = [self.runtime.tasks.spawn(f"commit {lane.directory}", lane.run()) for lane in self.lanes.values()]
        for task in self._committers:
            task.add_done_callback(self._committer_ended)

    async def stop(self) -> None:
        """Nacks what comes from now on, syncs and answers what is in flight, then closes connections and logs."""
        self.is_stopping = True
        for lane in self.lanes.values():
            lane.stop()
        serving = [task for task, lane in zip(self._committers, self.lanes.values(), strict=True) if lane.is_serving]
        await asyncio.gather(*serving, return_exceptions=True)
        for task in self._committers:
            task.cancel()
        await asyncio.gather(*self._committers, return_exceptions=True)
        for connection in list(self._connections):
            connection.close(CloseCode.GOING_AWAY, "this daemon is stopping")
        if self._logs is not None:
            await self.runtime.tasks.run(self._logs.close)

    # -- connections

    def connect(
        self, send: Callable[[bytes], None], close: Callable[[int, str], None] = lambda code, reason: None, principal: Principal = ANYBODY
    ) -> Connection:
        """A new client: answers go out through `send`; `close(code, reason)` is called when the server ends the connection."""
        connection = Connection(self, send, close, principal)
        self._connections.add(connection)
        self.metrics.set("dolake_cdc_connections_count", len(self._connections))
        return connection

    def rates(self) -> Rates:
        """What a new connection may send."""
        limits = self._settings.limits
        return Rates(limits.messages_per_s, limits.events_per_s, self.runtime.clock.monotonic_s())

    def disconnected(self, connection: Connection) -> None:
        self._connections.discard(connection)
        self.metrics.set("dolake_cdc_connections_count", len(self._connections))
        if connection.desk is not None and connection.desk.client is connection:
            connection.desk.client = None

    def desk(self, source: str) -> SourceDesk:
        """Where a source is served. Raises SourceRefused, LogFailed."""
        desk = self.desks.get(source)
        if desk is None:
            assert self._logs is not None, "start first"
            if self._reopening.locked():  # What it finds may be this source's.
                raise LogFailed("a log is being recovered; whether it is this source's is not known yet")
            priority = Priority(self._settings.source_settings_for(source).priority)
            desk = self.desks[source] = SourceDesk(source, self.lanes[self._logs.log_for(source).directory], priority)
        return desk

    def take_over(self, desk: SourceDesk, connection: Connection) -> None:
        """One connection a source: the newer one."""
        older = desk.client
        desk.client = connection
        if isinstance(older, Connection) and older is not connection:
            self.metrics.add("dolake_cdc_takeovers_total")
            older.close(CloseCode.TAKEN_OVER, "the source connected again")

    def refusal(self, desk: SourceDesk, size_bytes: int) -> Refusal | None:
        """Why a batch of this size is not taken from a source now; None if it is."""
        if self.is_stopping:
            return Refusal(Reason.SHUTTING_DOWN, "this daemon is stopping")
        lane = desk.lane
        load = Load(
            backlog=lane.pressure(size_bytes).utilization,
            unsynced=lane.unsynced_bytes / UNSYNCED_BYTES_MAX,
            memory=self.held_share,
            lag=self.lag_s / LAG_S_MAX,
        )
        return plan_refusal(load, desk.priority, keeps_room=self._keeps_room)

    @property
    def held_share(self) -> float:
        return self.held_bytes() / self.held_bytes_max

    def note_lag(self, seconds: float) -> None:
        self.lag_s = seconds

    def status(self, connection: Connection, connect: Connect) -> Status:
        """Where the source should go on, and how things are. Asked when nothing of the source is in flight."""
        desk = connection.desk
        assert desk is not None
        durable, epoch = desk.numbering.durable, connect.epoch
        known = epoch == durable.epoch or desk.numbering.is_over(epoch)  # A source in an epoch that is over is told which one is not.
        last = durable.last_sequence if known else -1
        lost: Lost | None = None
        if (epoch == durable.epoch or not known) and connect.last_ack_sequence > last:
            lost = Lost(first=last + 1, last=connect.last_ack_sequence)
            logger.error("acked batches are gone", source=desk.source, epoch=epoch, first=lost.first, last=lost.last)
            self.metrics.add("dolake_cdc_lost_batches_total", lost.last - lost.first + 1)
        return Status(
            state=self._state(desk.lane),
            buffer=self._buffer(desk.lane),
            connected_sources=sum(1 for other in self.desks.values() if other.client is not None),
            last_sequence=last,
            last_event_sequence=durable.last_event_sequence if known else -1,
            last_lsn=durable.last_lsn if known and durable.last_lsn else UNSET,
            epoch=durable.epoch if known else epoch,
            limits=self.limits,
            lost=UNSET if lost is None else lost,
            correlation_id=connect.correlation_id,
        )

    def ack_status(self, desk: SourceDesk | None) -> AckStatus:
        if desk is not None and desk.lane.pressure().suggested_delay_ms is not None:
            return AckStatus.BUFFERED
        return AckStatus.FALLBACK if self.writer.is_down else AckStatus.OK

    def _state(self, lane: Lane) -> str:
        if not lane.is_serving:
            return "error"
        return "receiving" if lane.unsynced_bytes or lane.groups else "idle"

    def _buffer(self, lane: Lane) -> BufferStats:
        groups = lane.groups
        return BufferStats(
            batch_count=max(0, lane.log.synced_end - lane.low),
            event_count=sum(group.event_count for group in groups),
            total_size_bytes=lane.backlog_bytes(),
            utilization=round(lane.pressure().utilization, 4),
            oldest_batch_time=groups[0].time_ms if groups else UNSET,
            newest_batch_time=groups[-1].time_ms if groups else UNSET,
        )

    # -- the writer

    def hear(self, role: str, message: Message) -> None:
        """What a peer of the control socket says by itself."""
        if role != "writer":
            return
        self.writer.hear(message, self.runtime.clock.monotonic_s())
        if message.get("type") != "progress":
            return
        for lane in self.lanes.values():
            lane.unread.follow(self.writer.read(lane.log_id) or 0)
            low = self.writer.low(lane.log_id) if lane.is_serving else None
            if low is not None:
                lane.allow_trim(low)
        for desk in self.desks.values():
            if desk.lane.is_serving and desk.has_unpersisted:
                desk.note_committed(self.writer.committed_bound(desk.lane.log_id, desk.source))

    async def flush(
        self, tables: list[str] | None, reason: str, patterns: Sequence[str] | None = None, lane: Lane | None = None
    ) -> dict[str, Any]:
        """The result of a flush of what the logs hold now: asks the writer and waits for its commit.

        Of these tables, or of those that one of the `patterns` matches; of all of them unless either is given. It has not succeeded
        where `lane` (any of them, unless one is given) is being recovered: what its log holds is not known then.
        """
        unknown = [one for one in (self.lanes.values() if lane is None else [lane]) if not one.is_serving]
        until = {lane.log_id: lane.log.synced_end for lane in self.lanes.values() if lane.is_serving}
        if self.writer_line is None:
            return no_flush("the writer half is not connected")
        try:
            request: Message = {"type": "flush", "tables": tables, "reason": reason, "until": until}
            if patterns is not None:
                request["patterns"] = patterns
            answer = await self.writer_line.request("writer", request)
        except DolakeError as error:
            return no_flush(str(error))
        result = answer.get("result")
        if not isinstance(result, dict):
            return no_flush("the writer half gave no result")
        troubles = [str(result["error"])] if "error" in result else []
        troubles += [_not_served(one) for one in unknown]
        return {**result, "success": False, "error": "; ".join(troubles)} if troubles else result

    async def roll_back(self, table: str, more: Message) -> Message:
        """Has the writer roll a table back. Nothing is trimmed meanwhile: what it is about to need again it has once let go of."""
        lanes = list(self.lanes.values())
        for lane in lanes:
            lane.hold_trims()
        try:
            for lane in lanes:
                await lane.idle()
            return await self.change_table("rollback", table, more)
        finally:
            for lane in lanes:
                lane.let_trim()

    async def change_table(self, what: str, table: str, more: Message | None = None) -> Message:
        """Has the writer park, unpark or drop a table, as far as the logs go now. Raises DaemonUnreachable, RequestRefused."""
        until = {lane.log_id: lane.log.synced_end for lane in self.lanes.values() if lane.is_serving}
        if self.writer_line is None:
            raise DaemonUnreachable("the writer half is not connected")
        answer = await self.writer_line.request("writer", {"type": what, "table": table, "until": until, **(more or {})})
        if "error" in answer:
            raise RequestRefused(str(answer["error"]), int(answer.get("exit_code", RequestRefused.exit_code)))
        result: Message = answer["result"]
        return result

    # -- logs

    def _backlog_bytes_max(self, directory: str) -> int:
        configured = self._settings.log.backlog_bytes
        try:
            disk_bytes = self._disk.usage(directory)[0] if configured is None else 0
        except OSError:  # A directory that cannot be asked is not served either; its bound is set when it is.
            disk_bytes = 0
        return plan_backlog_bytes_max(configured, disk_bytes)

    async def _reopen(self, lane: Lane) -> Log:
        """Recovers a lane's log, one at a time. Opening may write the new log's name into others: they stand still meanwhile."""
        logs = self._logs
        assert logs is not None
        async with AsyncExitStack() as held:
            await held.enter_async_context(self._reopening)
            logs.fail(lane.directory, LogFailed(lane.trouble))
            others = [other for other in self.lanes.values() if other is not lane]
            if not all(other.is_serving for other in others):
                for other in others:
                    await held.enter_async_context(other.lock)
            log = await self.runtime.tasks.run(logs.reopen, lane.directory)
            lane.backlog_bytes_max = self._backlog_bytes_max(lane.directory)
            return log

    def _lane_changed(self, lane: Lane) -> None:
        if lane.is_serving:
            for desk in self.desks.values():
                if desk.lane is lane:
                    desk.reload()
        elif all(other.reopen_failed is not None for other in self.lanes.values()) and not self.ended.done():
            assert lane.reopen_failed is not None
            self.ended.set_exception(lane.reopen_failed)

    def _committer_ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None and not self.ended.done():
            self.ended.set_exception(error)


def _not_served(lane: Lane) -> str:
    return f"what the log in {lane.directory} holds is not known to be committed: {lane.trouble}"
