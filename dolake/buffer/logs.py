"""The logs of one daemon, one in each of its directories: opened together, because each says which others there should be.

An empty directory is a new log only if no sibling says that one should be there: a disk that is not mounted looks the
same. New logs are created and synced, then every log names all the others in a synced record, then a new one names them
once more; only then it accepts. So a log with less than two records and no source never accepted anything, and any other
is known to all.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

from dolake.buffer.placement import Placement
from dolake.buffer.segment import Sibling
from dolake.buffer.wal import Log, LogSettings, holds_log
from dolake.clock import Randomness
from dolake.errors import DolakeError, LogFailed, LogRefused
from dolake.storage.disk import Disk


class Logs:
    """`serving` and `failed` are by directory. A directory that fails degrades only its own sources."""

    def __init__(self, disk: Disk, directories: Sequence[str], settings: LogSettings, random: Randomness) -> None:
        """Opens what can be opened, creates what is new; what cannot be used is in `failed`, with the reason."""
        self.directories = tuple(directories)
        self.placement = Placement(directories)
        self.serving: dict[str, Log] = {}
        self.failed: dict[str, DolakeError] = {}
        self._disk, self._settings, self._random = disk, settings, random
        self._open: dict[str, Log] = {}
        self._down: dict[str, DolakeError] = {}
        with ExitStack() as undo:
            undo.callback(self.close)
            for directory in self.directories:
                self._try_open(directory)
            self._admit()
            undo.pop_all()

    def log_for(self, source: str) -> Log:
        """The log of a source, new ones placed. Raises SourceRefused, LogFailed (its log, or one that may be its, is down)."""
        unread = [directory for directory in self.failed if not self.placement.was_read(directory) and self._is_listed(directory)]
        directory = self.placement.place(source, self.serving, unread)
        if directory not in self.serving:
            raise LogFailed(f"the log of source {source!r} is down: {self.failed.get(directory, directory)}")
        return self.serving[directory]

    def fail(self, directory: str, error: DolakeError) -> None:
        """Takes a log out of service; its sources keep their place."""
        log = self._open.pop(directory, None)
        self.serving.pop(directory, None)
        if log is not None:
            log.close()
        self._down[directory] = self.failed[directory] = error

    def reopen(self, directory: str) -> Log:
        """Recovers a log that is out of service. Raises why it still is."""
        log = self._open.pop(directory, None)
        if log is not None:
            log.close()
        self._down.pop(directory, None)
        self._try_open(directory)
        self._admit()
        if directory in self.serving:
            return self.serving[directory]
        raise self.failed[directory]

    def close(self) -> None:
        for log in self._open.values():
            log.close()
        self._open.clear()
        self.serving.clear()

    def _try_open(self, directory: str) -> None:
        try:
            if holds_log(self._disk, directory):
                self._open[directory] = Log.open(self._disk, directory, self._settings, self._random)
        except DolakeError as error:
            self._down[directory] = error

    def _admit(self) -> None:
        """Decides which open logs serve, and makes the new ones."""
        down = {**self._missing(), **self._down}
        fresh = [directory for directory in self.directories if directory not in self._open and directory not in down]
        if not down:
            try:
                for directory in fresh:
                    self._open[directory] = Log.create(self._disk, directory, self._settings, self._random)
                announce(self._open)
            except DolakeError as error:
                # Whichever log it was: none without a record may serve, and the others do not depend on it.
                down.update({directory: error for directory in fresh if directory not in self._open})
                down.update({directory: error for directory, log in self._open.items() if log.closed})
                down = down or dict.fromkeys(fresh or self.directories, error)
        if down:
            waits = f"a new log waits until {', '.join(sorted(down))} can be used: every other log must know of it first"
            down = {**{directory: LogRefused(waits) for directory in fresh}, **down}
            for directory, log in self._open.items():
                if _is_new(log) and len(self.directories) > 1:
                    down.setdefault(directory, LogRefused(waits))
        self.failed = down
        self.serving = {directory: log for directory, log in self._open.items() if directory not in down}
        for directory, log in self.serving.items():
            self.placement.found(directory, log.sources)

    def _missing(self) -> dict[str, DolakeError]:
        """Directories where a sibling says that a log should be, and it is not."""
        missing: dict[str, DolakeError] = {}
        by_id: dict[str, str] = {}
        for directory, log in self._open.items():
            twin = by_id.setdefault(log.log_id, directory)
            if twin != directory:
                reason = LogRefused(f"{twin} and {directory} hold the same log {log.log_id}: one is a copy; move it away")
                missing[twin] = missing[directory] = reason
        for log in self._open.values():
            for sibling in log.siblings:
                if sibling.log_id not in by_id:
                    missing[sibling.directory] = self._why_missing(sibling)
        return missing

    def _why_missing(self, sibling: Sibling) -> LogRefused:
        where = sibling.directory
        if where in self._open:
            return LogRefused(
                f"{where}: log {self._open[where].log_id} lies here where {sibling.log_id} should be; is the right disk mounted?"
            )
        if where in self.directories:
            return LogRefused(
                f"{where}: empty where log {sibling.log_id} should be; is the disk mounted? "
                "If that log is gone for good: `dolake log init`, and its acked events with it"
            )
        return LogRefused(
            f"{where}: holds log {sibling.log_id} but is not configured; add it, or give it up with its acked events: `dolake log init`"
        )

    def _is_listed(self, directory: str) -> bool:
        """Whether a log there has ever accepted anything: then its siblings know of it."""
        return any(sibling.directory == directory for log in self._open.values() for sibling in log.siblings) or not self._open


def announce(logs: dict[str, Log]) -> None:
    """Makes every log name all the others, and then, that all do, the new ones again. Raises what append_group raises."""
    others = {directory: tuple(Sibling(other.log_id, there) for there, other in logs.items() if there != directory) for directory in logs}
    for directory, log in logs.items():
        if set(others[directory]) != set(log.siblings):
            log.name_siblings(others[directory])
    for directory, log in logs.items():
        if others[directory] and _is_new(log):
            log.name_siblings(others[directory])


def _is_new(log: Log) -> bool:
    """Whether it may be unknown to others: then it has accepted nothing."""
    return log.next_offset < 2 and not log.sources


def init_logs(disk: Disk, directories: Sequence[str], settings: LogSettings, random: Randomness) -> dict[str, str]:
    """Takes what is there for the truth: logs in empty directories are made anew, siblings that are gone are forgotten.

    For `dolake log init`, while no daemon runs. Returns directory → log id. Raises if a log that is there cannot be opened.
    """
    logs: dict[str, Log] = {}
    try:
        for directory in directories:
            kind = Log.open if holds_log(disk, directory) else Log.create
            logs[directory] = kind(disk, directory, settings, random)
        announce(logs)
        return {directory: log.log_id for directory, log in logs.items()}
    finally:
        for log in logs.values():
            log.close()
