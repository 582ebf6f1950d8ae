"""One log and the task that commits to it: everything waiting goes in one group, and acks leave when it is synced (I1).

A lane outlives its log. When the log fails, what was waiting is nacked `degraded` and the log is opened anew, with recovery;
meanwhile other lanes serve on.
"""

from __future__ import annotations

import asyncio
import enum
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

import structlog

from dolake import failpoints
from dolake.buffer.lag import Lag
from dolake.buffer.retention import Retention
from dolake.buffer.wal import Log
from dolake.cdc.answer import Reason
from dolake.clock import Runtime
from dolake.errors import DolakeError, LogCorrupt, LogFailed, LogFull
from dolake.ingest.plan import plan_group
from dolake.ingest.pressure import Pressure, plan_pressure
from dolake.metrics import Metrics
from dolake.model import Entry, RecordKind, SourceState

UNSYNCED_BYTES_MAX = 128 << 20  # Above this nobody's frames are read until a group is synced.
GROUP_BYTES_MAX = 32 << 20  # One group commit takes no more: whoever comes next waits for it.
REOPEN_S_FIRST, REOPEN_S_MAX = 0.1, 10.0
_GROUPS_KEPT = 4096

logger = structlog.get_logger("dolake.ingest")


class Submission(Protocol):
    """A batch on its way into a log, and who wants to know what becomes of it."""

    @property
    def entry(self) -> Entry: ...

    def durable(self, offset: int, state: SourceState) -> None: ...

    def failed(self, reason: Reason, message: str) -> None: ...


class LaneState(enum.Enum):
    SERVING = "serving"
    FAILED = "failed"


@dataclass(frozen=True)
class _Group:
    """What one group commit added: for counting what lies above an offset."""

    end: int
    event_count: int
    time_ms: int


class Lane:
    """`reopen(lane)` opens the lane's log with recovery; `changed(lane)` is told when the lane fails or serves again."""

    def __init__(
        self,
        runtime: Runtime,
        directory: str,
        *,
        reopen: Callable[[Lane], Awaitable[Log]],
        changed: Callable[[Lane], None],
        backlog_bytes_max: int,
        metrics: Metrics,
        retain_s: float = 0.0,
    ) -> None:
        self._runtime, self._reopen, self._changed, self._metrics = runtime, reopen, changed, metrics
        self.directory, self.backlog_bytes_max = directory, backlog_bytes_max
        self.log_id = ""
        self.state = LaneState.FAILED
        self.trouble = f"{directory}: not opened yet"
        self.reopen_failed: DolakeError | None = None
        self.low = 0
        self.unsynced_bytes = 0
        self.groups: deque[_Group] = deque()
        self.unread = Lag()  # what the writer has not read yet, as far as it has said
        # Held while the log is called: it takes one call at a time, and opening another log may have to write into this one.
        self.lock = asyncio.Lock()
        self._log: Log | None = None
        self._log_backlog_bytes = 0
        self._waiting: list[Submission] = []
        self._group: deque[Submission] = deque()
        self._trim_below: int | None = None
        self._said_low = 0
        self._retention = Retention(retain_s)
        self._trims_held = 0
        self._wake, self._turn = asyncio.Event(), asyncio.Event()
        self._stopping = False

    @property
    def log(self) -> Log:
        assert self._log is not None, "a lane that never served has no log"
        return self._log

    @property
    def is_serving(self) -> bool:
        return self.state is LaneState.SERVING

    def submit(self, submission: Submission) -> None:
        """Takes a batch for the next group. It will be told `durable` or `failed`, once."""
        assert self.is_serving, "ask is_serving first"
        self._waiting.append(submission)
        self.unsynced_bytes += len(submission.entry.payload)
        self._wake.set()

    async def turn(self) -> None:
        """Waits until something has changed: a group is synced or has failed, or the lane serves again."""
        await self._turn.wait()

    def allow_trim(self, low: int) -> None:
        """The writer needs nothing below `low` any more."""
        if low > self.log.synced_end:
            logger.error("the writer is ahead of the log", directory=self.directory, low=low, synced_end=self.log.synced_end)
            return
        self.low, self._said_low = max(self.low, low), low
        while self.groups and self.groups[0].end <= self.low:
            self.groups.popleft()
        self._trim_below = self._retention.allowed(low, self._runtime.clock.monotonic_s())
        self._metrics.set("dolake_wal_low_offset", self.low, log=self.log_id)
        self._wake.set()

    def hold_trims(self) -> None:
        """No trim begins until as many `let_trim` follow; what the writer has said so far is forgotten."""
        self._trims_held += 1
        self._trim_below = None

    def let_trim(self) -> None:
        self._trims_held -= 1

    async def idle(self) -> None:
        """Waits until the log's call that is under way, perhaps a trim, is over."""
        async with self.lock:
            pass

    def uncommitted_age_s(self) -> float:
        """Age of the oldest record that the writer still needs; 0 without any."""
        return max(0.0, (self._runtime.clock.now_ms() - self.groups[0].time_ms) / 1000) if self.groups else 0.0

    def backlog_bytes(self) -> int:
        """Bytes that are not committed yet, those on their way into the log included."""
        return self._log_backlog_bytes + self.unsynced_bytes

    def pressure(self, more_bytes: int = 0) -> Pressure:
        return plan_pressure(self.backlog_bytes() + more_bytes, self.backlog_bytes_max)

    def serve(self, log: Log) -> None:
        """Begins, or goes on, with a log that recovery has just looked through."""
        self._log, self.log_id, self.state, self.trouble, self.reopen_failed = log, log.log_id, LaneState.SERVING, "", None
        self.low = max(self.low, log.first_offset)
        self._log_backlog_bytes = log.backlog_bytes(self.low)
        if log.synced_end > max(self.low, self.groups[-1].end if self.groups else 0):
            # What is in these records the writer will say; how old they are nobody knows better than: not younger than this.
            self.groups.append(_Group(log.synced_end, 0, self._runtime.clock.now_ms()))
        if log.lost_count:  # A disk that forgets what it said it had synced: sources may be asked to send again.
            logger.error("synced records are gone", directory=self.directory, records=log.lost_count, log_ends_at=log.synced_end)
            self._metrics.add("dolake_wal_lost_records_total", log.lost_count, log=self.log_id)
        self._metrics.add("dolake_wal_torn_tail_total", log.torn_tail_count, log=self.log_id)
        self._metrics.set("dolake_wal_synced_offset", log.synced_end, log=self.log_id)
        self._metrics.set("dolake_wal_backlog_limit_bytes", self.backlog_bytes_max, log=self.log_id)
        self._metrics.set("dolake_wal_degraded_count", 0, log=self.log_id)
        self._metrics.set("dolake_wal_corrupt_count", 0, directory=self.directory)
        self._changed(self)
        self._announce_turn()

    def note_trouble(self, error: Exception) -> None:
        """Why the log does not open."""
        self.trouble = str(error)
        self._metrics.set("dolake_wal_corrupt_count", int(isinstance(error, LogCorrupt)), directory=self.directory)

    async def run(self) -> None:
        """Commits until stopped. Ends only by `stop`, and then with everything that waited answered."""
        if not self.is_serving:
            await self._recover()
        while not self._stopping or self._waiting:
            try:
                while self._waiting or self._trim_below is not None:
                    await self._commit()
                    await self._trim()
            except Exception as error:  # The log's supervisor: whatever it was, the log is in doubt and opened anew.
                self._fail(error)
                await self._recover()
                continue
            if not self._stopping:
                await self._wake.wait()
                self._wake.clear()

    def stop(self) -> None:
        """Lets `run` finish what waits and end."""
        self._stopping = True
        self._wake.set()

    async def _commit(self) -> None:
        group = self._take_group()
        if not group:
            return
        self._group = deque(group)
        entries = [submission.entry for submission in group]
        failpoints.hit("ingest.before_append")
        began_s = self._runtime.clock.monotonic_s()
        try:
            async with self.lock:
                before_bytes = self.log.appended_bytes
                offsets = await self._runtime.tasks.run(self.log.append_group, entries)
        except LogFull as error:
            self._refuse(Reason.STORAGE_FULL, str(error))
            if self._retention.retain_s:  # Taking batches goes before being able to rewind.
                logger.warning("disk full: what is committed is not retained any longer", directory=self.directory)
                self._trim_below = self._said_low
            return
        failpoints.hit("ingest.before_ack")
        self._note_group(group, offsets, self.log.appended_bytes - before_bytes, self._runtime.clock.monotonic_s() - began_s)
        sources = self.log.sources
        for offset in offsets:
            submission = self._group.popleft()
            submission.durable(offset, sources[submission.entry.source])
        failpoints.hit("ingest.after_ack")
        self._announce_turn()

    def _take_group(self) -> list[Submission]:
        waiting = [(submission.entry.source, len(submission.entry.payload)) for submission in self._waiting]
        chosen = plan_group(waiting, GROUP_BYTES_MAX)
        group = [self._waiting[place] for place in chosen]
        left = set(range(len(waiting))).difference(chosen) if len(chosen) < len(waiting) else ()
        self._waiting = [self._waiting[place] for place in sorted(left)]
        return group

    def _note_group(self, group: list[Submission], offsets: range, stored_bytes: int, seconds: float) -> None:
        events = sum(submission.entry.event_count for submission in group)
        self.unsynced_bytes -= sum(len(submission.entry.payload) for submission in group)
        self._log_backlog_bytes += stored_bytes
        if len(self.groups) >= _GROUPS_KEPT:  # Nobody reads the log: count in coarser steps.
            older, newer = self.groups.pop(), self.groups.pop()
            self.groups.append(_Group(older.end, older.event_count + newer.event_count, newer.time_ms))
        self.groups.append(_Group(offsets.stop, events, self._runtime.clock.now_ms()))
        self._metrics.add("dolake_wal_records_total", len(group), log=self.log_id)
        self._metrics.add("dolake_wal_appended_bytes_total", stored_bytes, log=self.log_id)
        self._metrics.add("dolake_cdc_events_total", events)
        schemas = sum(submission.entry.kind is RecordKind.SCHEMA for submission in group)
        self._metrics.add("dolake_cdc_batches_total", len(group) - schemas, kind="batch")
        self._metrics.add("dolake_cdc_batches_total", schemas, kind="schema")
        now_s = self._runtime.clock.monotonic_s()
        for offset, submission in zip(offsets, group, strict=True):
            self.unread.note(offset, submission.entry.event_count, now_s)
        self._metrics.observe("dolake_wal_sync_seconds", seconds, log=self.log_id)
        self._metrics.set("dolake_wal_synced_offset", offsets.stop, log=self.log_id)

    async def _trim(self) -> None:
        low, self._trim_below = self._trim_below, None
        if low is None or not self.is_serving:
            return
        failpoints.hit("ingest.trim")
        try:
            async with self.lock:
                if self._trims_held:
                    return
                removed = await self._runtime.tasks.run(self.log.trim, low)
                self._log_backlog_bytes = self.log.backlog_bytes(self.low)
        except LogFull as error:
            logger.warning("no room to note a trim, tried again at the next report", directory=self.directory, reason=str(error))
            return
        if removed:
            self._metrics.add("dolake_wal_trimmed_segments_total", len(removed), log=self.log_id)
            self._metrics.set("dolake_wal_synced_offset", self.log.synced_end, log=self.log_id)
            self._announce_turn()

    def _refuse(self, reason: Reason, message: str) -> None:
        """Nacks the group under way and whatever waits behind it: batches after a missing one could not be appended either."""
        refused = [*self._group, *self._waiting]
        self._group.clear()
        self._waiting = []
        self.unsynced_bytes = 0
        for submission in refused:
            submission.failed(reason, message)
        self._announce_turn()

    def _fail(self, error: Exception) -> None:
        """Answers everything `degraded`: what became of the group under way nobody knows before recovery has looked."""
        self.trouble = f"{self.directory}: {error}"
        logger.error("log failed", directory=self.directory, reason=str(error), kind=type(error).__name__)
        self.state, self._trim_below = LaneState.FAILED, None
        self._metrics.add("dolake_wal_failures_total", log=self.log_id)
        self._metrics.set("dolake_wal_degraded_count", 1, log=self.log_id)
        self._refuse(Reason.DEGRADED, f"the log of this source has failed and is being recovered: {error}")
        self._changed(self)

    async def _recover(self) -> None:
        """Opens the log anew until that works, the lane is stopped, or the process gives up."""
        wait_s = REOPEN_S_FIRST
        while not self._stopping:
            try:
                log = await self._reopen(self)
            except (DolakeError, OSError) as error:
                self.note_trouble(error)
                self.reopen_failed = error if isinstance(error, DolakeError) else LogFailed(self.trouble)
                logger.error("log does not open", directory=self.directory, reason=self.trouble)
                self._changed(self)
                await self._runtime.clock.sleep(wait_s * self._runtime.random.uniform(0.5, 1.0))
                wait_s = min(wait_s * 2, REOPEN_S_MAX)
                continue
            logger.info("log serves again", directory=self.directory, next_offset=log.next_offset)
            self.serve(log)
            return

    def _announce_turn(self) -> None:
        self._turn.set()
        self._turn = asyncio.Event()
