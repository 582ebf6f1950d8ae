"""The producer library: sends a source's events so that each arrives once, whatever happens in between.

    async with Producer("ws://127.0.0.1:8765/cdc", "orders-db-3") as producer:
        for events in batches_after(producer.last_event_sequence):
            await producer.send(events)

A producer keeps the exact frames that are not acked and sends them again after a reconnect or a nack worth retrying, from
the first one missing; the daemon tells repeats from new ones by their numbers. What is sent first after a start is decided
by the caller from `last_event_sequence`, so a source needs to remember nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal, Self

import msgspec
import structlog

from dolake.auth.tokens import without_tokens
from dolake.cdc.answer import Ack, AckStatus, FlushResponse, Limits, Nack, Status, decode_answer
from dolake.cdc.dial import Dial, Transport, TransportClosed, dial_websocket
from dolake.cdc.outgoing import (
    Outgoing,
    Window,
    batch_frame,
    connect_frame,
    disconnect_frame,
    event_sequence,
    flush_frame,
    heartbeat_frame,
    schema_frame,
)
from dolake.cdc.session import CloseCode
from dolake.clock import Runtime, real_runtime
from dolake.errors import AckedBatchesLost, BatchRefused, DaemonUnreachable, DolakeError, SourceTakenOver
from dolake.model import DeclaredSchema, TransactionMark

RECONNECT_S_FIRST, RECONNECT_S_MAX = 0.1, 10.0
RETRY_MS_FIRST, RETRY_MS_MAX = 100, 10_000
STATUS_S_MAX = 30.0
IDLE_S, SILENT_S_MAX = 15.0, 60.0
CLOSE_S_MAX = 5.0

logger = structlog.get_logger("dolake.cdc.client")


@dataclass(eq=False)
class _Flush:
    """A flush that was asked for, again on each new connection until it is answered."""

    reason: str
    sent: bool = False
    result: dict[str, Any] | None = None


class Producer:
    """One source's sender, for one task. What ends it is raised by whichever call waits, and by all later ones."""

    def __init__(
        self,
        url: str,
        source: str,
        *,
        epoch: str = "",
        window_batches: int = 32,
        unreachable_s_max: float = 60.0,
        runtime: Runtime | None = None,
        dial: Dial = dial_websocket,
    ) -> None:
        """`unreachable_s_max`: how long nobody may answer before DaemonUnreachable is raised. A daemon that answers "later" (a full
        or failed disk, too many connections, one that is going down) is waited for without end.

        `dial` may be a `websocket_dial` with a token, and with what is trusted over `wss`.
        """
        self.url, self.source, self.epoch = url, source, epoch
        self.last_event_sequence = -1
        self.last_lsn = ""  # of that event, where it has one
        self.persisted_sequence = -1
        self.acked_event_count = 0
        self.duplicate_count = 0  # batches the daemon had already when they came again
        self.limits: Limits | None = None
        self._runtime = runtime or real_runtime()
        self._dial, self._window_batches, self._unreachable_s_max = dial, window_batches, unreachable_s_max
        self._window = Window(source)
        self._flushes: dict[str, _Flush] = {}
        self._hold_until_s = self._heard_s = 0.0
        self._connected_before = False
        self._refused_in_row = 0  # times that sending began anew from a refused batch, since the last ack
        self._failure: DolakeError | None = None
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    # -- for the caller

    @property
    def last_sequence(self) -> int:
        """The number of the last batch sent, or, before the first, of the last one the daemon has; -1 for none."""
        return self._window.next_sequence - 1

    @property
    def acked_sequence(self) -> int:
        return self._window.acked_sequence

    async def __aenter__(self) -> Self:
        """Connects. Raises DaemonUnreachable, CertificateRefused, Unauthorized, Forbidden, BatchRefused: whatever ends a producer."""
        self._task = self._runtime.tasks.spawn(f"producer {self.source}", self._run())
        self._task.add_done_callback(self._ended)
        try:
            await self._until(lambda: self._connected_before)
        except DolakeError:
            await self.close()
            raise
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Waits until everything sent is durable, unless an error is on its way already."""
        try:
            if kind is None:
                await self.drain()
        finally:
            await self.close()

    async def send(
        self,
        events: Sequence[bytes],
        *,
        first_event_sequence: int | None = None,
        last_event_sequence: int | None = None,
        transaction: TransactionMark | None = None,
        letters: Mapping[str, Any] | None = None,
    ) -> int:
        """Sends events (JSON, as the protocol has them) as one batch; returns its number. Waits while the window is full.

        The event sequences are read from the first and the last event unless given. `letters`: whose dead letters these are.
        """
        if events:
            first_event_sequence = event_sequence(events[0]) if first_event_sequence is None else first_event_sequence
            last_event_sequence = event_sequence(events[-1]) if last_event_sequence is None else last_event_sequence
        await self._until(self._has_room)
        sequence = self._window.next_sequence
        frame = batch_frame(
            self.source,
            self.epoch,
            sequence,
            events,
            first=-1 if first_event_sequence is None else first_event_sequence,
            last=-1 if last_event_sequence is None else last_event_sequence,
            transaction=transaction,
            now_ms=self._runtime.clock.now_ms(),
            letters=letters,
        )
        self._push(Outgoing(sequence, frame, len(events)))
        return sequence

    async def declare(self, schema: DeclaredSchema) -> int:
        """Sends a schema, which holds for the batches after it; returns its number."""
        await self._until(self._has_room)
        sequence = self._window.next_sequence
        frame = schema_frame(self.source, self.epoch, sequence, schema, self._runtime.clock.now_ms())
        self._push(Outgoing(sequence, frame, 0))
        return sequence

    async def drain(self, wait: Literal["durable", "persisted"] = "durable") -> None:
        """Returns when everything sent is on the daemon's disk, or in committed snapshots."""
        await self._until(lambda: not self._window.waiting)
        if wait == "persisted":
            await self._until(lambda: self.persisted_sequence >= self.last_sequence)

    async def flush(self, reason: str = "manual") -> dict[str, Any]:
        """Has everything committed that was sent; the `result` of the daemon's flush_response."""
        await self.drain()
        correlation_id = self._runtime.random.uuid()
        flush = self._flushes[correlation_id] = _Flush(reason)
        self._notify()
        try:
            await self._until(lambda: flush.result is not None)
        finally:
            del self._flushes[correlation_id]
        assert flush.result is not None
        return flush.result

    async def close(self) -> None:
        """Ends the connection, whatever is under way."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    # -- the loop

    async def _run(self) -> None:
        """Connects, again and again, until something ends this producer for good."""
        wait_s, reached_s = RECONNECT_S_FIRST, self._runtime.clock.monotonic_s()
        try:
            while True:
                try:
                    transport = await self._dial(self.url)
                    try:
                        await self._greet(transport)
                        wait_s = RECONNECT_S_FIRST
                        await self._converse(transport)
                    finally:
                        reached_s = self._runtime.clock.monotonic_s() if wait_s == RECONNECT_S_FIRST else reached_s
                        await self._leave(transport)
                except TransportClosed as error:
                    if error.code == CloseCode.TAKEN_OVER:
                        raise SourceTakenOver(f"source {self.source!r} has connected from somewhere else; only one may go on") from None
                    reached_s = self._runtime.clock.monotonic_s() if error.answered else reached_s
                    if self._runtime.clock.monotonic_s() - reached_s > self._unreachable_s_max:
                        raise DaemonUnreachable(f"no daemon answers at {without_tokens(self.url)}: {error}") from None
                    logger.info("no connection, trying again", url=without_tokens(self.url), reason=str(error))
                    # Not before the daemon said, and not all at once when it said the same to many.
                    spread = self._runtime.random.uniform(0.5, 1.5)
                    await self._runtime.clock.sleep(max(wait_s * spread, error.retry_after_s * max(1.0, spread)))
                    wait_s = min(wait_s * 2, RECONNECT_S_MAX)
        except DolakeError as error:
            self._failure = error
            self._notify()

    def _ended(self, task: asyncio.Task[None]) -> None:
        """An error that nobody expected must not leave the caller waiting for ever."""
        if not task.cancelled() and (error := task.exception()) is not None:
            self._failure = DolakeError(f"the producer ended: {error!r}")
            self._failure.__cause__ = error
            self._notify()

    async def _leave(self, transport: Transport) -> None:
        try:
            async with asyncio.timeout(CLOSE_S_MAX):
                if not self._window.waiting:
                    await transport.send(disconnect_frame(self.source, self._runtime.clock.now_ms()))
                await transport.close()
        except (TransportClosed, TimeoutError):
            pass

    async def _greet(self, transport: Transport) -> None:
        """Says who we are and learns where to go on."""
        frame = connect_frame(self.source, self.epoch, self._window.acked_sequence, self._runtime.clock.now_ms())
        try:
            async with asyncio.timeout(STATUS_S_MAX):
                await transport.send(frame)
                answer = _answer(await transport.receive())
        except TimeoutError:
            raise TransportClosed(1006, f"no status within {STATUS_S_MAX:g} s") from None
        if isinstance(answer, Nack):
            if not answer.should_retry:
                raise BatchRefused(reason=answer.reason, sequence=answer.sequence_number, message=answer.error_message)
            retry_s = answer.retry_delay_ms / 1000 if isinstance(answer.retry_delay_ms, int) else 0.0
            raise TransportClosed(1006, f"{answer.reason}: {answer.error_message}", retry_s, answered=True)
        if not isinstance(answer, Status):
            raise TransportClosed(1006, "the first answer was no status")
        self._resume(answer)

    def _resume(self, status: Status) -> None:
        if status.epoch != self.epoch:
            rule = f"epoch {self.epoch!r} is over, the source goes on in {status.epoch!r}; start a new epoch"
            raise BatchRefused(reason="invalid_sequence", sequence=self._window.next_sequence, message=rule)
        if isinstance(status.lost, msgspec.Struct):
            raise AckedBatchesLost(source=self.source, first=status.lost.first, last=status.lost.last)
        self.acked_event_count += self._window.connected(status.last_sequence)
        if not self._connected_before:
            self.last_event_sequence = status.last_event_sequence
            self.last_lsn = status.last_lsn if isinstance(status.last_lsn, str) else ""
        self._connected_before, self.limits = True, status.limits
        for flush in self._flushes.values():
            flush.sent = False
        self._notify()

    async def _converse(self, transport: Transport) -> None:
        """Sends, receives and watches at once, until one of them finds the connection over."""
        self._heard_s = self._runtime.clock.monotonic_s()
        works = (self._send_all(transport), self._receive_all(transport), self._watch(transport))
        tasks = [self._runtime.tasks.spawn(f"producer {self.source}", work) for work in works]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _send_all(self, transport: Transport) -> None:
        while True:
            changed = self._changed
            for correlation_id, flush in self._flushes.items():
                if not flush.sent:
                    flush.sent = True
                    await transport.send(flush_frame(self.source, flush.reason, correlation_id, self._runtime.clock.now_ms()))
                    break
            else:
                hold_s = self._hold_until_s - self._runtime.clock.monotonic_s()
                if hold_s > 0:
                    await self._runtime.clock.sleep(hold_s)
                    continue
                message = self._window.take()
                if message is None:
                    await changed.wait()
                else:
                    await transport.send(message.frame)

    async def _receive_all(self, transport: Transport) -> None:
        while True:
            answer = _answer(await transport.receive())
            self._heard_s = self._runtime.clock.monotonic_s()
            if isinstance(answer, Ack):
                self._take_ack(answer)
            elif isinstance(answer, Nack):
                self._take_nack(answer)
            elif isinstance(answer, FlushResponse) and answer.correlation_id in self._flushes:
                self._flushes[str(answer.correlation_id)].result = answer.result
            self._notify()

    async def _watch(self, transport: Transport) -> None:
        """Asks for a sign of life when all is quiet, and gives up a connection that gives none."""
        while True:
            await self._runtime.clock.sleep(IDLE_S)
            silent_s = self._runtime.clock.monotonic_s() - self._heard_s
            if silent_s >= SILENT_S_MAX:
                raise TransportClosed(1006, f"nothing was heard for {silent_s:.0f} s")
            if silent_s >= IDLE_S and not self._window.awaits_answers:
                pending = sum(message.event_count for message in self._window.waiting)
                await transport.send(heartbeat_frame(self.source, self.acked_sequence, pending, self._runtime.clock.now_ms()))

    def _take_ack(self, ack: Ack) -> None:
        if ack.status == AckStatus.PERSISTED:
            self.persisted_sequence = max(self.persisted_sequence, ack.sequence_number)
            return
        self.acked_event_count += self._window.acked(ack.sequence_number)
        self._refused_in_row = 0
        self.duplicate_count += ack.status == AckStatus.DUPLICATE
        if isinstance(ack.details.suggested_delay_ms, int):
            self._hold(ack.details.suggested_delay_ms)

    def _take_nack(self, nack: Nack) -> None:
        """Waits as the daemon says, or as our own backoff does where it says nothing: no refusal is answered by a storm.

        What is refused behind a refused batch (a gap, mostly) is so because of it, and adds nothing.
        """
        first = self._window.nacked(nack)
        if isinstance(nack.retry_delay_ms, int):
            self._hold(nack.retry_delay_ms)
        elif first:
            longest_ms = min(RETRY_MS_FIRST << min(self._refused_in_row, 20), RETRY_MS_MAX)
            self._hold(round(longest_ms * self._runtime.random.uniform(0.5, 1.5)))
        self._refused_in_row += first

    def _hold(self, delay_ms: int) -> None:
        """Sends nothing for a while, as the daemon asks."""
        self._hold_until_s = max(self._hold_until_s, self._runtime.clock.monotonic_s() + delay_ms / 1000)

    def _has_room(self) -> bool:
        return len(self._window.waiting) < self._window_batches

    def _push(self, message: Outgoing) -> None:
        limit = self.limits.max_payload_bytes if self.limits else len(message.frame)
        if len(message.frame) > limit:  # A frame far above the limit would close the connection unread, again and again.
            text = f"the message holds at most {limit} bytes (got {len(message.frame)})"
            raise BatchRefused(reason="payload_too_large", sequence=message.sequence, message=text)
        self._window.push(message)
        self._notify()

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def _until(self, holds: Callable[[], bool]) -> None:
        """Waits for something to be so. Raises what ended the producer, if that comes first."""
        while self._failure is None and not holds():
            await self._changed.wait()
        if self._failure is not None:
            raise self._failure


def _answer(frame: bytes) -> Any:
    """What the daemon said. Raises TransportClosed for what no daemon says: that is not one we can go on with."""
    try:
        return decode_answer(frame)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise TransportClosed(1006, f"not an answer of a dolake daemon: {error}") from error
