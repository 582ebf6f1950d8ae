"""One connection: frames in, answers out in order. No socket here: `send` and `close` are handed in.

`receive` takes one frame and returns when the next may come: not before there is room for more unsynced bytes, so that a
fast source is held by its own transport and not by memory.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from msgspec import UNSET

from dolake import failpoints
from dolake.auth.principal import Principal
from dolake.cdc import message as wire
from dolake.cdc.answer import (
    Ack,
    AckDetails,
    AckStatus,
    Answer,
    FlushResponse,
    Nack,
    Pong,
    Reason,
    encode_answer,
    invalid,
    nack,
    no_flush,
)
from dolake.cdc.message import CdcBatch, Message, SchemaMessage
from dolake.cdc.numbering import Gap, Refused, Repeat
from dolake.cdc.rates import MISTAKE_COST, Bucket
from dolake.cdc.session import CloseCode, OutOfTurn, Session, Slot, State, correlation_id_of
from dolake.cdc.wire import Connect, FlushRequest, Heartbeat
from dolake.errors import DolakeError, Forbidden, InvalidMessage, Mistake, Unauthorized
from dolake.ingest.desk import SourceDesk
from dolake.ingest.lane import UNSYNCED_BYTES_MAX
from dolake.ingest.pressure import plan_retry_ms
from dolake.model import Entry

if TYPE_CHECKING:
    from dolake.ingest.service import IngestService

CONNECTION_UNSYNCED_BYTES_MAX = 32 << 20
FLUSHES_WAITING_MAX = 8


class Connection:
    """Made by `IngestService.connect`. `receive` is called with one frame at a time, `closed` when the transport is gone."""

    def __init__(
        self, service: IngestService, send: Callable[[bytes], None], close: Callable[[int, str], None], principal: Principal
    ) -> None:
        self._service, self._send, self._close = service, send, close
        self._principal = principal
        self.session = Session()
        self.desk: SourceDesk | None = None
        self.unsynced_bytes = 0
        self._rates = service.rates()
        self._epoch = ""  # of the numbers this client knows: its connect's, then its last batch's
        self._closing: tuple[int, str] | None = None
        self._gone = False
        self._refused_first, self._refused_again = -1, 0  # the batch that was refused, and how often it came back
        self._flushes: set[asyncio.Task[None]] = set()

    # -- in

    async def receive(self, frame: bytes | str) -> None:
        if self._gone or self._closing:
            return
        frame = frame.encode("utf-8", "surrogatepass") if isinstance(frame, str) else frame
        received_s = self._service.runtime.clock.monotonic_s()
        if not self._rates.messages.take(1, received_s) and await self._came_too_soon(frame):
            return
        if frame == b"ping":
            self._send(b"pong")
            return
        self._service.metrics.add("dolake_cdc_received_bytes_total", len(frame))
        if not self._is_still_welcome(frame):
            return
        limit = self._service.limits.max_payload_bytes
        if len(frame) > limit:
            sequence, correlation_id = wire.identity_of(frame)
            self._refuse_too_large(Slot(sequence, correlation_id), Reason.PAYLOAD_TOO_LARGE, "the message", limit, len(frame))
            return
        message = wire.try_decode(frame)
        if message is None:
            self._rates.messages.charge(MISTAKE_COST - 1, received_s)
            error = await self._service.runtime.tasks.run(wire.explain, frame)
            self._answer(Slot(error.sequence), invalid(error))
            self._close_unconnected()
            return
        await self._take(message, received_s)

    def closed(self) -> None:
        """The transport is gone: nobody is there for answers. What is in flight becomes durable all the same."""
        self._gone = True
        for task in self._flushes:
            task.cancel()
        self._service.disconnected(self)

    def close(self, code: CloseCode, reason: str) -> None:
        """Ends the connection from our side, at once."""
        if not self._gone:
            self._close(code, reason)
            self.closed()

    async def _came_too_soon(self, frame: bytes) -> bool:
        """Refuses a batch above the messages that one connection may send (True); lets anything else wait until it may come.

        Either way nothing more is read for a while: whoever does not heed the nacks is held by TCP, and costs no more than
        one who keeps to the limit.
        """
        clock, bucket = self._service.runtime.clock, self._rates.messages
        batch = wire.numbered_identity_of(frame) if self.desk is not None else None
        if batch is not None:
            self._service.metrics.add("dolake_cdc_received_bytes_total", len(frame))
            slot = Slot(*batch)
            text = f"this connection may send {bucket.per_s} messages a second"
            self._answer(slot, self._refusal(slot, Reason.RATE_LIMITED, text, bucket))
        await clock.sleep(bucket.wait_s(1, clock.monotonic_s()))
        while batch is None and not bucket.take(1, clock.monotonic_s()):
            await clock.sleep(bucket.wait_s(1, clock.monotonic_s()))
        return batch is not None or self._gone or self._closing is not None

    async def _take(self, message: Message, received_s: float) -> None:
        try:
            self.session.accept(message)
        except InvalidMessage as error:
            self._answer(Slot(error.sequence), invalid(error))
            if isinstance(error, OutOfTurn):
                self._close_when_answered(CloseCode.POLICY, str(error.mistakes[0]))
            return
        if isinstance(message, CdcBatch | SchemaMessage):
            await self._take_batch(message, Slot(message.sequence, correlation_id_of(message), received_s))
        elif isinstance(message, Connect):
            await self._take_connect(message)
        elif isinstance(message, Heartbeat):
            now_ms = self._service.runtime.clock.now_ms()
            self.send(Pong(timestamp=message.timestamp, server_time=now_ms, correlation_id=message.correlation_id))
        elif isinstance(message, FlushRequest):
            self._take_flush_request(message)
        else:
            self._close_when_answered(CloseCode.NORMAL, "")

    def _is_still_welcome(self, frame: bytes) -> bool:
        """Whether the token is still good, and what it allows now. If not, nothing that comes is even looked into."""
        try:
            self._principal = self._service.gate.still(self._principal)
        except Unauthorized as error:
            sequence, correlation_id = wire.identity_of(frame)
            self._answer(Slot(sequence), nack(Reason.UNAUTHORIZED, sequence, str(error), correlation_id))
            self._close_when_answered(CloseCode.POLICY, "the token is not good any more")
            return False
        return True

    def _is_within_scope(self, source: str, tables: Iterable[str], slot: Slot) -> bool:
        """Costs one look at each table of a batch, under its name in the lake; nothing for its events."""
        try:
            self._principal.require_tables(str(self._service.names.of(source, table)) for table in tables)
        except Forbidden as error:
            self._answer(slot, nack(Reason.FORBIDDEN, slot.sequence, str(error), slot.correlation_id))
            return False
        return True

    async def _take_connect(self, connect: Connect) -> None:
        try:
            self._principal.require_source(connect.source_do_id)
        except Forbidden as error:
            correlation_id = correlation_id_of(connect)
            self._answer(Slot(0, correlation_id), nack(Reason.FORBIDDEN, 0, str(error), correlation_id))
            self._close_when_answered(CloseCode.POLICY, "the token is not for this source")
            return
        try:
            desk = self._service.desk(connect.source_do_id)
            if not desk.lane.is_serving:
                raise DolakeError(desk.lane.trouble)
        except DolakeError as error:
            self._refuse_without_log(connect, str(error))
            return
        self.desk, self._epoch = desk, self.session.epoch
        self._service.take_over(desk, self)
        await desk.quiet()
        if self._gone or self._closing:
            return
        if not desk.lane.is_serving:  # It has failed with what an earlier connection sent: that may be durable, or not.
            self._refuse_without_log(connect, desk.lane.trouble)
            return
        self.send(self._service.status(self, connect))
        if desk.persisted_sequence >= 0:
            self.persisted(desk.persisted_sequence)

    def _refuse_without_log(self, connect: Connect, trouble: str) -> None:
        """Without its log nobody can say where the source should resume."""
        self._answer(Slot(0, correlation_id_of(connect)), self._refusal(Slot(0), Reason.DEGRADED, trouble))
        self._close_when_answered(CloseCode.GOING_AWAY, "this source's log is not available")

    async def _take_batch(self, message: CdcBatch | SchemaMessage, slot: Slot) -> None:
        failpoints.hit("ingest.batch_decoded")
        desk = self.desk
        assert desk is not None, "the session lets no batch pass before connect"
        epoch = self.session.epoch_of(message)
        begin = self.session.begin_of(epoch, message.sequence)
        if not await self._fits(message, slot):
            return
        tables = message.tables if isinstance(message, CdcBatch) else (message.schema.table,)
        if mistakes := self._service.names.mistakes(message.source, tables):
            self._answer(slot, invalid(InvalidMessage(mistakes, slot.sequence, slot.correlation_id)))
            return
        if not self._is_within_scope(message.source, tables, slot):
            return
        while self._has_its_share(desk) and self._service.held_share < 1:
            await desk.lane.turn()
        if self._gone or self._closing:
            return
        # From here to the submission nothing waits: what is judged is what is admitted.
        self.session.expect(slot)
        if not desk.lane.is_serving:
            self._fill(slot, self._refusal(slot, Reason.DEGRADED, "the log of this source has failed and is being recovered"))
            return
        verdict = desk.numbering.judge(epoch, message.sequence, message.content, begin)
        if isinstance(verdict, Repeat):
            self._service.metrics.add("dolake_cdc_duplicate_events_total", message.event_count)
            if verdict.in_flight:
                desk.repeat(epoch, message.sequence, self, slot)
            else:
                self._fill(slot, self._ack(slot, AckStatus.DUPLICATE, message.event_count))
        elif isinstance(verdict, Gap):
            text = f"sequenceNumber: expected {verdict.expected} (got {message.sequence})"
            gap = nack(Reason.INVALID_SEQUENCE, slot.sequence, text, slot.correlation_id, expected_sequence=verdict.expected)
            self._fill(slot, gap)
        elif isinstance(verdict, Refused):
            self._fill(slot, nack(Reason.INVALID_SEQUENCE, slot.sequence, verdict.rule, slot.correlation_id))
        else:
            self._submit(desk, message, epoch, slot)

    def _has_its_share(self, desk: SourceDesk) -> bool:
        """Whether this connection has enough on its way into the log. One that has nothing hardly ever waits for the others."""
        if desk.lane.unsynced_bytes > UNSYNCED_BYTES_MAX:
            return self.unsynced_bytes > 0 or desk.lane.unsynced_bytes > 2 * UNSYNCED_BYTES_MAX
        return self.unsynced_bytes > CONNECTION_UNSYNCED_BYTES_MAX

    def _submit(self, desk: SourceDesk, message: CdcBatch | SchemaMessage, epoch: str, slot: Slot) -> None:
        refusal, events = self._service.refusal(desk, len(message.payload)), self._rates.events
        if refusal is not None:
            self._fill(slot, self._refusal(slot, refusal.reason, refusal.message))
        elif events is not None and not events.take(message.event_count, self._service.runtime.clock.monotonic_s()):
            text = f"this connection may send {events.per_s} events a second"
            self._fill(slot, self._refusal(slot, Reason.RATE_LIMITED, text, events))
        else:
            self.unsynced_bytes += len(message.payload)
            self._epoch = epoch
            desk.admit(message.entry(epoch), self, slot)

    async def _fits(self, message: CdcBatch | SchemaMessage, slot: Slot) -> bool:
        limits = self._service.limits
        if isinstance(message, SchemaMessage):
            what, count, most = "columns", len(message.schema.columns), self._service.columns_max
        else:
            what, count, most = "events", message.event_count, limits.max_batch_events
        if count > most:
            mistake = Mistake(what, f"{count} {what}", f"holds at most {most} {what}")
            self._answer(slot, invalid(InvalidMessage([mistake], slot.sequence, slot.correlation_id)))
            return False
        if isinstance(message, CdcBatch) and len(message.payload) > limits.max_event_bytes:
            largest = await self._service.runtime.tasks.run(wire.largest_event_size_bytes, message.payload)
            if largest > limits.max_event_bytes:
                self._refuse_too_large(slot, Reason.EVENT_TOO_LARGE, "an event", limits.max_event_bytes, largest)
                return False
        return True

    def _take_flush_request(self, request: FlushRequest) -> None:
        if len(self._flushes) >= FLUSHES_WAITING_MAX:
            text = f"{FLUSHES_WAITING_MAX} flushes of this connection are waited for already"
            self.send(FlushResponse(result=no_flush(text), correlation_id=request.correlation_id))
            return
        task = self._service.runtime.tasks.spawn("flush request", self._flush(request))
        self._flushes.add(task)
        task.add_done_callback(self._flushes.discard)

    async def _flush(self, request: FlushRequest) -> None:
        patterns = None if self._principal.is_admin else self._principal.tables  # A source flushes what it may write.
        result = await self._service.flush(None, request.reason, patterns, self.desk.lane if self.desk else None)
        self.send(FlushResponse(result=result, correlation_id=request.correlation_id))

    # -- out

    def settled(self, slot: Slot, entry: Entry, *, repeated: bool) -> None:
        """A batch of this connection, or what it repeated, is durable (I1: no ack for it leaves before this)."""
        if not repeated:
            self.unsynced_bytes -= len(entry.payload)
            self._refused_first, self._refused_again = -1, 0
        status = AckStatus.DUPLICATE if repeated else self._service.ack_status(self.desk)
        self._fill(slot, self._ack(slot, status, entry.event_count))

    def refused(self, slot: Slot, reason: Reason, message: str) -> None:
        self.unsynced_bytes = 0
        self._fill(slot, self._refusal(slot, reason, message))

    def persisted(self, sequence: int) -> None:
        # Until its first batch is durable, what is known to be committed is of the epoch before: not this client's numbers.
        if self.session.ack_persisted and self.desk is not None and self._epoch == self.desk.numbering.durable.epoch:
            self.send(self._ack(Slot(sequence), AckStatus.PERSISTED, 0))

    def send(self, answer: Answer) -> None:
        if self._gone:
            return
        metrics = self._service.metrics
        if isinstance(answer, Ack):
            metrics.add("dolake_cdc_acks_total", status=answer.status)
        elif isinstance(answer, Nack):
            metrics.add("dolake_cdc_nacks_total", reason=answer.reason)
        self._send(encode_answer(answer))

    def _ack(self, slot: Slot, status: AckStatus, event_count: int) -> Ack:
        pressure = self.desk.lane.pressure() if self.desk else None
        clock = self._service.runtime.clock
        now_s = clock.monotonic_s()
        bucket = self._rates.tightest(now_s)
        delays_ms = (pressure.suggested_delay_ms if pressure else None, bucket.suggested_delay_ms(now_s))
        delay_ms = max((delay for delay in delays_ms if delay is not None), default=None)
        return Ack(
            sequence_number=slot.sequence,
            status=status,
            correlation_id=UNSET if slot.correlation_id is None else slot.correlation_id,
            details=AckDetails(
                events_processed=event_count,
                buffer_utilization=round(pressure.utilization, 4) if pressure else 0,
                time_until_flush=self._service.flush_age_ms,
                suggested_delay_ms=UNSET if delay_ms is None else delay_ms,
            ),
            rate_limit=bucket.state(now_s, clock.now_ms()),
        )

    def _refusal(self, slot: Slot, reason: Reason, message: str, bucket: Bucket | None = None) -> Nack:
        """A nack worth retrying, with the delay after which: longer each time the batch comes back, whatever came behind it."""
        if self._refused_first < 0:
            self._refused_first = slot.sequence
        elif slot.sequence <= self._refused_first:
            self._refused_first, self._refused_again = slot.sequence, self._refused_again + 1
        runtime = self._service.runtime
        delay_ms = plan_retry_ms(self._refused_again, runtime.random.uniform(0.5, 1.5))
        limit = UNSET if bucket is None else bucket.state(runtime.clock.monotonic_s(), runtime.clock.now_ms())
        return nack(reason, slot.sequence, message, slot.correlation_id, retry_delay_ms=delay_ms, rate_limit=limit)

    def _refuse_too_large(self, slot: Slot, reason: Reason, what: str, limit: int, size: int) -> None:
        text = f"{what} holds at most {limit} bytes (got {size})"
        self._answer(slot, nack(reason, slot.sequence, text, slot.correlation_id, max_size=limit, actual_size=size))
        if self.session.count_too_large():
            self._close_when_answered(CloseCode.POLICY, "too many messages above the limits")

    def _answer(self, slot: Slot, answer: Ack | Nack) -> None:
        """Answers now, in turn behind the batches that came before."""
        self._fill(self.session.expect(slot), answer)

    def _fill(self, slot: Slot, answer: Ack | Nack) -> None:
        slot.answer = answer
        now_s = self._service.runtime.clock.monotonic_s()
        for ready in self.session.answers():
            self.send(ready)
        if isinstance(answer, Ack):
            self._service.metrics.observe("dolake_cdc_ack_seconds", now_s - slot.received_s)
        self._finish()

    def _close_unconnected(self) -> None:
        if self.session.state is State.GREETING:
            self._close_when_answered(CloseCode.PROTOCOL_ERROR, "the first message was not a connect")

    def _close_when_answered(self, code: CloseCode, reason: str) -> None:
        self._closing = (code, reason)
        self._finish()

    def _finish(self) -> None:
        if self._closing is not None and self.session.open_count == 0 and not self._gone:
            self.close(CloseCode(self._closing[0]), self._closing[1])
