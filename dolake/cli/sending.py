"""Sends a stream of changes: read, decode, cut into batches, send, wait. One run of `dolake send`.

Events are resumed by their place in the stream: what `status` says is durable is passed over, also when the batches are cut
otherwise this time. Whole transactions that wait for a batch to fill go out when the stream pauses.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from dolake.cdc.client import Producer
from dolake.cdc.formats import Event, Format, Item
from dolake.cdc.formats.batches import Batcher, EventBatch, lsn_of
from dolake.cdc.formats.lines import LineInput
from dolake.clock import Runtime
from dolake.errors import InvalidInput, NotAllSent

# A batch's events; well under the daemon's limit for a message, so that a full window stays small.
BATCH_BYTES_MAX = 4 << 20
PAUSE_S = 0.25
BAD_LINES_LISTED_MAX = 1_000


@dataclass
class Summary:
    """What a run did. `events` and `batches` were sent and are durable; `skipped` events were so before.

    `lsn` is where the last durable event stands in the database's own log, if it says so. `bad` counts lines that were left out;
    `bad_lines` are the first of them, with their reasons. `passed_over` counts lines that hold no change to send, by what they are.
    """

    events: int = 0
    batches: int = 0
    skipped: int = 0
    duplicates: int = 0
    lsn: str = ""
    bad: int = 0
    bad_lines: list[dict[str, int | str]] = field(default_factory=list)
    passed_over: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    notes: list[str] = field(default_factory=list)


@dataclass
class Sending:
    """`progress` hears (bytes of the input read, events sent) now and then. `rate`: events a second; 0 is as fast as it goes.

    `retry_s`: how long to ask again for a commit that the daemon says it cannot make. `complain` hears of each line that cannot
    be read, and sending goes on without it; None ends sending at the first. `resume` tells the format what is durable, where that
    decides what of the input is new; else events are resumed by their place in it.
    """

    runtime: Runtime
    lines: LineInput
    format: Format
    batch_events: int
    rate: float = 0.0
    retry_s: float = 30.0
    progress: Callable[[int, int], None] = lambda position, events: None
    complain: Callable[[str], None] | None = None
    resume: Callable[[int, str], None] | None = None
    summary: Summary = field(default_factory=Summary)
    _last_sent: Event | None = None
    _began_s: float = 0.0
    _first_bad: InvalidInput | None = None

    async def run(self, producer: Producer, wait: Literal["durable", "persisted"]) -> Summary:
        """Raises what ends a producer, InvalidInput, and NotAllSent when the end was not reached or not committed."""
        self._began_s = self.runtime.clock.monotonic_s()
        try:
            async with producer:
                unfinished = await self._send_all(producer)
                await producer.drain()
                if self._last_sent is not None:
                    self.summary.lsn = lsn_of(self._last_sent)
                if wait == "persisted":
                    await self._persist(producer)
        finally:
            self.summary.events = producer.acked_event_count
            self.summary.duplicates = producer.duplicate_count
            self.summary.seconds = self.runtime.clock.monotonic_s() - self._began_s
            self.summary.notes = self.format.notes
            self.summary.passed_over = dict(self.format.passed_over)
        if self._first_bad is not None:
            if not self.summary.batches and not self.summary.skipped:
                raise self._first_bad
            raise NotAllSent(f"{self.summary.bad:,} lines could not be read and were left out; everything else is durable")
        if unfinished:
            raise NotAllSent(f"the input ends inside a transaction: its last {unfinished:,} events were not sent")
        return self.summary

    async def _send_all(self, producer: Producer) -> int:
        """Returns how many events are left that nothing says are committed."""
        limits = producer.limits
        assert limits is not None
        self.summary.lsn = producer.last_lsn
        if self.resume is not None:
            self.resume(producer.last_event_sequence, producer.last_lsn)
        batcher = Batcher(
            event_count_max=min(self.batch_events, limits.max_batch_events),
            size_bytes_max=min(BATCH_BYTES_MAX, limits.max_payload_bytes // 2),
            resume_after=producer.last_event_sequence,
            resume_lsn=producer.last_lsn,
        )
        reading = self._read()
        try:
            while (lines := await reading) != []:
                reading = self._read()
                for item in self.format.pause(over=False) if lines is None else self._items(lines):
                    batcher.push(item)
                if lines is None:
                    batcher.require_same_stream()
                    batcher.flush()
                await self._send_ready(producer, batcher)
            for item in self.format.pause(over=True):
                batcher.push(item)
            batcher.require_same_stream()
            batcher.flush()
            await self._send_ready(producer, batcher)
        except InvalidInput as error:
            batcher.flush()
            await self._send_ready(producer, batcher)
            await producer.drain()
            if self.summary.batches or self.summary.skipped:
                unsent = len(batcher.unfinished)
                rest = f", but for the last {unsent:,} events, of a transaction that is not over" if unsent else ""
                raise NotAllSent(f"{error}; what came before it is durable{rest}") from error
            raise
        finally:
            await asyncio.gather(reading, return_exceptions=True)
        return len(batcher.unfinished)

    def _items(self, lines: Sequence[bytes]) -> Iterator[Item]:
        if self.complain is None:
            yield from self.format.items(lines)
            return
        for line in lines:
            try:
                found = list(self.format.items((line,)))
            except InvalidInput as error:
                self._first_bad = self._first_bad or error
                self.summary.bad += 1
                if len(self.summary.bad_lines) < BAD_LINES_LISTED_MAX:
                    self.summary.bad_lines.append({"line": error.line, "reason": error.reason})
                self.complain(str(error))
            else:
                yield from found

    def _read(self) -> asyncio.Task[list[bytes] | None]:
        """The next lines, read beside the loop while the last ones are sent."""
        return self.runtime.tasks.spawn("read input", self.runtime.tasks.run(self.lines.read_lines, PAUSE_S))

    async def _send_ready(self, producer: Producer, batcher: Batcher) -> None:
        for message in batcher.take():
            if isinstance(message, EventBatch):
                await producer.send(
                    [event.raw for event in message.events],
                    first_event_sequence=message.first_sequence,
                    last_event_sequence=message.last_sequence,
                    transaction=message.transaction,
                )
                self._last_sent = message.events[-1]
                self.summary.batches += 1
                self.summary.events += len(message.events)
                await self._pace()
            else:
                await producer.declare(message)
            self.progress(self.lines.position_bytes, self.summary.events)
        self.summary.skipped = batcher.skipped
        self.progress(self.lines.position_bytes, self.summary.events)

    async def _pace(self) -> None:
        if self.rate:
            due_s = self._began_s + self.summary.events / self.rate
            await self.runtime.clock.sleep(max(0.0, due_s - self.runtime.clock.monotonic_s()))

    async def _persist(self, producer: Producer) -> None:
        """Asks for a flush rather than wait for its time: the answer also says what keeps a table from being committed.

        A writer that is just starting again, or a store that is away, may be well in a moment; a table that has stopped is not.
        """
        give_up_s = self.runtime.clock.monotonic_s() + self.retry_s
        while producer.persisted_sequence < producer.last_sequence:
            result = await producer.flush()
            if result["success"]:
                break
            if self.runtime.clock.monotonic_s() >= give_up_s:
                reason = result.get("error", "no reason was given")
                raise NotAllSent(f"everything sent is durable, but not all of it is committed: {reason}")
            await self.runtime.clock.sleep(PAUSE_S)
        await producer.drain("persisted")
