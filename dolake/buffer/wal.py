"""One log: a directory of segments that the ingest half alone writes. An offset handed back is on disk.

All calls block, and come one at a time. After LogFailed the object refuses everything for good: what a failed sync left
behind is unknown, and only `Log.open` (recovery) may find out. After LogFull the same object goes on.

A disk is full for us while there is still room for a copy of the unsealed segment: recovery begins with one, and a daemon that
is killed on a full disk must come back by itself. Before that, a segment is sealed early: a sealed one needs no copy.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from posixpath import dirname
from typing import NoReturn

from dolake.buffer import reserve
from dolake.buffer.codec import Packer
from dolake.buffer.recovery import Recovered, recover, verify_sealed
from dolake.buffer.segment import NEW, LogState, Sibling, segment_names
from dolake.buffer.sources import apply_entries, siblings_entry, trim_entry
from dolake.buffer.synced import NAME as SYNCED_END
from dolake.buffer.synced import publish_end
from dolake.buffer.unsealed import UnsealedSegment, is_full
from dolake.clock import Randomness
from dolake.errors import LogCorrupt, LogFailed, LogFull, LogRefused
from dolake.failpoints import hit
from dolake.model import Codec, Entry, SourceState
from dolake.storage.disk import Disk, Lock, SharedCounter

LOCK = "lock"


@dataclass(frozen=True)
class LogSettings:
    """A segment is sealed when its records reach `segment_bytes`; a group is never split between two.

    `reserve_bytes` are kept for a trim on a full disk: its record, and where it begins a segment the state in the header.
    `codec` is how new payloads are stored; those that are there are read whatever it is.
    """

    segment_bytes: int = 64 << 20
    reserve_bytes: int | None = None
    codec: Codec = Codec.PLAIN

    @property
    def reserve(self) -> int:
        return self.segment_bytes // 256 if self.reserve_bytes is None else self.reserve_bytes


class Log:
    """Made by `open` or `create`. What its attributes say is durable."""

    def __init__(
        self, disk: Disk, directory: str, settings: LogSettings, random: Randomness, lock: Lock, counter: SharedCounter, found: Recovered
    ) -> None:
        self.directory, self.log_id = directory, found.state.log_id
        self.torn_tail_count, self.lost_count = found.torn_tail_count, found.lost_count
        self.synced_end = found.end
        self.appended_bytes = 0  # stored by this object: what the backlog has grown by
        self._packer = Packer(settings.codec)
        self._state, self._segments = found.state, found.segments
        self._disk, self._settings, self._random = disk, settings, random
        self._lock, self._counter = lock, counter
        self._unsealed: UnsealedSegment | None = None
        self._closed = ""
        self._short = False  # the last group found no room
        self._released = False

    @classmethod
    def open(cls, disk: Disk, directory: str, settings: LogSettings, random: Randomness) -> Log:
        """Takes the lock and recovers. Raises LogRefused, LogCorrupt, LogFull, LogFailed."""
        if not holds_log(disk, directory):
            raise LogRefused(f"{directory}: there is no log here")
        with _locked(disk, directory) as (lock, counter):
            found = recover(disk, directory, counter)
            reserve.hold(disk, directory, settings.reserve)
        return cls(disk, directory, settings, random, lock, counter, found)

    @classmethod
    def create(cls, disk: Disk, directory: str, settings: LogSettings, random: Randomness) -> Log:
        """Begins a new log in a directory that has none, made if need be; synced when this returns."""
        try:
            disk.make_directories(directory)
            disk.sync_directory(dirname(directory) or ".")
        except OSError as error:
            raise LogFailed(f"{directory}: {error.strerror}") from error
        with _locked(disk, directory) as (lock, counter):
            files = disk.list(directory)
            if segment_names(files):
                raise LogRefused(f"{directory}: there is a log here already")
            for file in files:
                if file.endswith(NEW):
                    disk.unlink(f"{directory}/{file}")
            state = LogState(random.uuid())
            unsealed = UnsealedSegment.create(disk, directory, state, first_offset=0, salt=random.bits(64))
            publish_end(counter, state.log_id, 0)
            reserve.hold(disk, directory, settings.reserve)
        log = cls(disk, directory, settings, random, lock, counter, Recovered(state, 0))
        log._unsealed = unsealed
        return log

    @property
    def sources(self) -> dict[str, SourceState]:
        """Every source with a durable record here. States are replaced, never changed."""
        return self._state.sources

    @property
    def siblings(self) -> tuple[Sibling, ...]:
        return self._state.siblings

    @property
    def next_offset(self) -> int:
        return self.synced_end

    @property
    def first_offset(self) -> int:
        if self._segments:
            return self._segments[0].first_offset
        return self._unsealed.first_offset if self._unsealed else self.synced_end

    @property
    def size_bytes(self) -> int:
        return sum(segment.size_bytes for segment in self._segments) + (self._unsealed.size_bytes if self._unsealed else 0)

    @property
    def closed(self) -> bool:
        return bool(self._closed)

    def append_group(self, entries: Sequence[Entry]) -> range:
        """Writes, syncs once, publishes; the offsets of the entries, all durable (I1).

        Raises LogFull (nothing was kept) and LogFailed (fate unknown; the log must be opened anew).
        """
        self._refuse_if_closed()
        if not entries:
            return range(self.synced_end, self.synced_end)
        try:
            offsets = self._append(entries, spare_copies=1)
        except LogFull:
            self._short = True
            raise
        self._short = False
        return offsets

    def _append(self, entries: Sequence[Entry], *, spare_copies: int) -> range:
        """`spare_copies`: of the unsealed segment there must be room for so many on the disk afterwards."""
        with self._at_risk():
            segment = self._segment_to_write()
        group = segment.encode(entries, synced_upto=self.synced_end - 1, packer=self._packer)
        if spare_copies and not self._leaves_room(segment.copy_bytes, group):
            if segment.end == segment.first_offset or not self._leaves_room(segment.roll_bytes, group):
                raise LogFull(f"{segment.path}: no room is left but for recovering it: make room on this disk")
            with self._at_risk():
                segment = self._roll(segment)
            group = segment.encode(entries, synced_upto=self.synced_end - 1, packer=self._packer)
        size_bytes = segment.size_bytes
        with self._at_risk():
            segment.append(entries, group)
        self.appended_bytes += segment.size_bytes - size_bytes
        offsets = range(self.synced_end, segment.end)
        self.synced_end = segment.end
        apply_entries(self._state, entries)
        publish_end(self._counter, self.log_id, self.synced_end)
        return offsets

    def _leaves_room(self, other_bytes: int, group: tuple[int, list[bytes]]) -> bool:
        """Whether the disk can take a group, and then a copy of it and of `other_bytes`."""
        with self._at_risk():
            _, free_bytes = self._disk.usage(self.directory)
        return free_bytes >= other_bytes + 2 * sum(map(len, group[1]))

    def name_siblings(self, siblings: Sequence[Sibling]) -> None:
        """Records, synced, which other logs the daemon has."""
        self.append_group([siblings_entry(siblings)])

    def trim(self, low: int) -> list[str]:
        """Unlinks the sealed segments wholly below `low`; returns their paths. Nothing at or above `low` goes (I6).

        Each is verified whole first; a synced record states the bound before the first goes. Raises LogCorrupt (nothing
        was unlinked), LogFull, LogFailed.
        """
        self._refuse_if_closed()
        if low > self.synced_end:
            raise ValueError(f"{self.directory}: asked to trim below {low}, the log ends at {self.synced_end}")
        if self._short and self._unsealed is not None and self._unsealed.first_offset < self._unsealed.end <= low:
            # A sealed one can go: where the disk is full of the unsealed one, nothing else would ever make room.
            self._with_reserve(self._seal)
        doomed = []
        for segment in self._segments:
            if segment.end > low:
                break
            doomed.append(segment)
        if not doomed:
            return []
        with self._at_risk():
            for segment in doomed:
                verify_sealed(self._disk, segment)
            hit("trim.before_record", self.directory)
        # The record also opens the next segment, if none is: the newest one carries the state that the others take with them.
        last_of_tables = [offset for segment in doomed for offset in segment.tables.values()]
        stated = trim_entry(doomed[-1].end, max(last_of_tables) + 1 if last_of_tables else None)
        self._with_reserve(lambda: self._append([stated], spare_copies=0))
        with self._at_risk():
            hit("trim.after_record", self.directory)
            for segment in doomed:
                hit("trim.before_unlink", segment.path)
                self._disk.unlink(segment.path)
                self._segments.remove(segment)
                hit("trim.after_unlink", segment.path)
            self._disk.sync_directory(self.directory)
            self._short = False
            hit("trim.done", self.directory)
        reserve.hold(self._disk, self.directory, self._settings.reserve)
        return [segment.path for segment in doomed]

    def backlog_bytes(self, low: int) -> int:
        """About how many bytes lie at or above `low`: whole segments, and the even share of the one it falls into."""
        spans = [(segment.first_offset, segment.end, segment.size_bytes) for segment in self._segments]
        if self._unsealed is not None:
            spans.append((self._unsealed.first_offset, self._unsealed.end, self._unsealed.size_bytes))
        total = 0
        for first_offset, end, size_bytes in spans:
            if max(low, first_offset) < end:
                total += size_bytes * (end - max(low, first_offset)) // (end - first_offset)
        return total

    def close(self) -> None:
        """Lets go of the files. Nothing is lost by not calling it."""
        self._shut("closed")

    def _segment_to_write(self) -> UnsealedSegment:
        unsealed = self._unsealed
        if unsealed is not None and unsealed.size_bytes - unsealed.header_bytes < self._settings.segment_bytes:
            return unsealed
        return self._roll(unsealed)

    def _roll(self, unsealed: UnsealedSegment | None) -> UnsealedSegment:
        """Seals the unsealed segment, if there is one, and begins the next."""
        if unsealed is not None:
            self._segments.append(unsealed.seal())
            self._unsealed = None
        salt = self._random.bits(64)
        self._unsealed = UnsealedSegment.create(self._disk, self.directory, self._state, first_offset=self.synced_end, salt=salt)
        return self._unsealed

    def _seal(self) -> None:
        with self._at_risk():
            if self._unsealed is not None:
                self._segments.append(self._unsealed.seal())
                self._unsealed = None

    def _with_reserve(self, step: Callable[[], object]) -> None:
        """Takes a step that makes room; on a full disk with the room that is kept for it. Raises LogFull if even that is none."""
        try:
            step()
        except LogFull:
            if not reserve.release(self._disk, self.directory):
                raise
            step()

    @contextmanager
    def _at_risk(self) -> Iterator[None]:
        """Around everything that touches the disk. Whatever leaves it unexplained has left the log in doubt."""
        self._refuse_if_closed()
        self._closed = "in doubt after an unfinished operation: open it again"
        try:
            yield
        except OSError as error:
            self._fail(error)
        except LogCorrupt:
            self._shut("corrupt")
            raise
        except LogFull:
            self._closed = ""
            raise
        self._closed = ""

    def _refuse_if_closed(self) -> None:
        if self._closed:
            raise LogFailed(f"{self.directory}: this log is {self._closed}")

    def _fail(self, error: OSError) -> NoReturn:
        self._shut(f"failed ({error.strerror}): open it again")
        raise LogFailed(f"{self.directory}: {error.strerror}: the log must be opened again") from error

    def _shut(self, why: str) -> None:
        self._closed = why
        if self._unsealed is not None:
            with suppress(OSError):
                self._unsealed.close()
            self._unsealed = None
        if not self._released:
            self._released = True
            self._counter.close()
            self._lock.release()


def holds_log(disk: Disk, directory: str) -> bool:
    """Whether any segment lies there, quarantined ones too. Raises LogFailed if the directory cannot be read."""
    try:
        return bool(segment_names(disk.list(directory)))
    except FileNotFoundError:
        return False
    except OSError as error:
        raise LogFailed(f"{directory}: {error.strerror}") from error


@contextmanager
def _locked(disk: Disk, directory: str) -> Iterator[tuple[Lock, SharedCounter]]:
    """The log's lock and counter, let go again if what follows raises. OSErrors come out as LogFull or LogFailed."""
    with ExitStack() as undo:
        try:
            lock = _take_lock(disk, f"{directory}/{LOCK}")
            undo.callback(lock.release)
            counter = disk.counter(f"{directory}/{SYNCED_END}", writable=True)
            undo.callback(counter.close)
            yield lock, counter
        except OSError as error:
            if is_full(error):
                raise LogFull(f"{directory}: {error.strerror}: make room on this disk, then open the log again") from error
            raise LogFailed(f"{directory}: {error.strerror}: the log could not be opened") from error
        undo.pop_all()


def _take_lock(disk: Disk, path: str) -> Lock:
    try:
        return disk.lock(path)
    except BlockingIOError:
        raise LogRefused(f"{path}: another dolake uses this log; stop it, or give this one a directory of its own") from None
    except OSError as error:
        if error.errno in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
            raise LogRefused(f"{path}: this file system has no locks ({error.strerror}); put the log on a local disk") from error
        raise
