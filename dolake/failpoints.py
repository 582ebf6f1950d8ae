"""Named places where a test may break the program on purpose.

`hit("wal.before_sync")` does nothing unless armed. Armed by the environment variable DOLAKE_FAILPOINTS, a list of
`name=action` separated by `;`. An action is

    [COUNT*][PERCENT%]raise[(text)] | errno(EIO[, path]) | sleep(seconds) | pause(path) | kill[(path)]

`3*off->kill` style chains are written `3*off->1*kill`: the first three hits do nothing, the fourth kills, later ones do
nothing. `name@/mnt/disk2=action` acts only where the moment concerns a file whose path begins so: a disk that fails alone.
`errno(EIO, path)` fails only while the file at `path` is there. `pause` waits until the file at `path` is gone, `kill` is
SIGKILL to this process; `kill(path)` only if the file at `path` is there, which it takes away first: so a process that is
started again with the same environment is killed once for each time a test puts the file. Every hit of an armed
registry is counted; with DOLAKE_FAILPOINT_HITS=path the counts are also appended there, a name a line, so that a test
can see what a killed process reached. POINTS names them all: a test holds it against the code.
"""

from __future__ import annotations

import errno
import os
import random
import re
import signal
import time
from collections import Counter
from dataclasses import dataclass, field

# name → the moment. Listed in the docs by `dolake docs failpoints`; tests require that each is hit and armed by name.
POINTS: dict[str, str] = {
    "ingest.batch_decoded": "a batch or schema is decoded, nothing is decided",
    "ingest.before_append": "a group of batches is about to go to the log",
    "ingest.before_ack": "a group is durable, no ack has left",
    "ingest.after_ack": "the acks of a group have left",
    "ingest.trim": "the writer has said what it needs no more, the log was not asked to trim",
    "wal.roll_create": "a new segment's file is about to be made",
    "wal.roll_written": "its header is written, not synced",
    "wal.roll_sync": "its header is synced, it has no name yet",
    "wal.roll_rename": "it has its name, the directory is not synced",
    "wal.roll_dirsync": "the new segment is there for good",
    "wal.before_write": "a group, footer or pad is about to be written",
    "wal.after_write": "a group is written, not synced",
    "wal.before_sync": "a group is about to be synced",
    "wal.after_sync": "a group is synced, nobody knows yet",
    "wal.seal_footer": "a footer is written, not synced",
    "wal.seal_sync": "a footer is synced, the name still says open",
    "wal.seal_rename": "a segment has its sealed name, the directory is not synced",
    "wal.seal_dirsync": "a segment is sealed for good",
    "ttl.read": "a file's column is about to be read, to find out which of its rows have expired",
    "ttl.before_commit": "expired rows are about to leave a table, what deletes them is in the store",
    "ttl.after_commit": "expired rows have left a table, its key index does not know yet",
    "letters.before_rewrite": "what dead letters' files become is in the store, no snapshot names it",
    "letters.after_rewrite": "dead letters' files have been rewritten, nothing else is done",
    "trim.before_record": "segments to trim are verified, the bound is not stated",
    "trim.after_record": "the bound is stated, nothing is unlinked",
    "trim.before_unlink": "a segment is about to be unlinked",
    "trim.after_unlink": "a segment is unlinked, the directory is not synced",
    "trim.done": "trimmed for good",
    "drop.after_catalog": "a dropped table is out of the catalog, what was parked of it is still there",
    "drop.after_note": "which events of a table are not wanted any more is on disk, the table is still in the catalog",
    "drop.before_catalog": "a table is about to go from the catalog",
    "drop.before_note": "a table is to be dropped, nothing says so yet",
    "park.after_append": "a parked table's records are on disk in its side log, its logs are still pinned",
    "park.before_append": "before a parked table's records are written to its side log",
    "park.before_switch": "a table is about to be parked: its side log is there, its records still go into memory",
    "park.feed_again": "a parked table is fed from what is committed, once more",
    "park.before_last_unlink": "of a side log that is done only the mark is left",
    "park.before_unlink": "before a file of a side log that is done goes",
    "purge.after_delete": "an object that nobody needs is deleted, others are still there",
    "purge.before_delete": "an object that nobody needs is about to be deleted",
    "purge.listed": "a table is claimed and what lies below its location is listed, nothing is deleted",
    "rollback.after_commit": "the snapshot of a rollback has landed, the writer does not go on from it yet",
    "rollback.before_commit": "a rollback is planned and, if it rewinds, the logs hold what it needs; nothing is written",
    "rollback.before_pin": "a table is out of everybody's hands, to be rewound; what it will need is not pinned yet",
    "rollback.before_read": "a table that was rolled back is about to read its events again, from its offsets on",
    "compact.plan": "a table's files are about to be looked at, what of them is worth a rewrite",
    "compact.before_rewrite": "a rewrite is chosen, nothing of it is read",
    "compact.after_rewrite": "the new data files are put, no snapshot names them",
    "purge.before_claim": "objects of a table are to be purged, it is not claimed for that",
    "compact.read": "a data or delete file is about to be read by a rewrite",
    "compact.before_put": "all files of a rewrite were read, one of what it makes is about to be put",
    "compact.after_put": "a file that a rewrite has made is put, nothing names it",
    "compact.before_commit": "what a rewrite made is about to be committed, with the deletes that landed meanwhile",
    "compact.after_commit": "the snapshot of a rewrite has landed, the writer does not act on it yet",
    "compact.after_index": "the key index has followed a rewrite, the table is not flushed again yet",
    "recover.scan": "a segment is about to be read and verified",
    "recover.copy": "the copy of the unsealed segment is about to be made",
    "recover.copy_written": "the copy is written, not synced",
    "recover.copy_sync": "the copy is synced, it has no name yet",
    "recover.copy_rename": "the copy has its name, the directory is not synced",
    "recover.copy_dirsync": "the copy is there for good, the old file too",
    "recover.unlink_old": "the old unsealed segment is about to go",
    "recover.done": "the log is recovered, nobody is served yet",
    "flush.before_freeze": "a table is due, its rows are not set apart yet",
    "flush.after_freeze": "its rows are set apart, later ones go to the next flush",
    "flush.before_create": "the table is not in the catalog, and about to be",
    "flush.after_claim": "the table is this writer's, by a snapshot without rows: verdicts on its events come next",
    "flush.after_letters": "verdicts on a table's events were committed, or found to be somebody else's; its rows were not",
    "flush.after_create": "the table was created, by this writer or another",
    "index.at_head": "a mirror's key index is at the table's head, its events are not folded yet",
    "index.load": "a key index is about to be read from disk",
    "index.read": "some data files are about to be read into a key index",
    "index.save": "a key index is about to be written to disk",
    "flush.after_encode": "its rows are Parquet in memory",
    "flush.before_put": "before a data file is put",
    "flush.after_put": "a data file is put, nothing names it",
    "flush.before_commit": "all data files are put, the commit loop has not begun",
    "flush.after_commit": "the snapshot landed, this writer does not act on it yet",
    "flush.after_drop": "its rows are dropped from memory",
    "flush.before_report": "before the ingest half hears what may be trimmed",
    "commit.load": "before a table is loaded for a round of the commit loop",
    "commit.before_manifest": "before an attempt writes its manifests",
    "commit.after_manifest": "manifests are put, the manifest list is not",
    "commit.after_list": "the manifest list is put",
    "commit.before_settle": "before the names of data files and manifests are synced",
    "commit.before_swap": "all is durable, the catalog was not asked yet",
    "commit.after_swap": "the catalog has answered that the swap landed",
    "commit.resolve": "a round failed, the table is about to be looked at again",
    "catalog.before_metadata": "before the new metadata file is put",
    "catalog.before_swap": "the metadata file is durable, the catalog's row is not changed",
    "catalog.after_swap": "the catalog's row is changed and synced",
}


class FailpointRaised(Exception):
    """What an armed `raise` raises."""


@dataclass
class _Step:
    action: str
    argument: str
    count: int | None
    percent: float


@dataclass
class _Arm:
    steps: list[_Step]
    position: int = 0
    used: int = 0


@dataclass
class Registry:
    """Armed failpoints and their hit counts. `arms` are by name, and then by the beginning of the paths they are for."""

    arms: dict[str, dict[str, _Arm]] = field(default_factory=dict)
    hits: Counter[str] = field(default_factory=Counter)
    hits_path: str | None = None

    @property
    def active(self) -> bool:
        return bool(self.arms) or self.hits_path is not None

    def arm(self, name: str, action: str) -> None:
        """`name` may be `name@PREFIX`. Raises ValueError."""
        name, _, prefix = name.partition("@")
        if name not in POINTS:
            raise ValueError(f"no failpoint is named {name}; the names are {', '.join(sorted(POINTS))}")
        self.arms.setdefault(name, {})[prefix] = _Arm([_parse_step(step) for step in action.split("->")])

    def disarm(self, name: str | None = None) -> None:
        if name is None:
            self.arms.clear()
        else:
            self.arms.pop(name, None)

    def hit(self, name: str, path: str) -> None:
        self.hits[name] += 1
        if self.hits_path is not None:
            with open(self.hits_path, "a", encoding="utf-8") as hits:
                hits.write(name + "\n")
        for prefix, arm in self.arms.get(name, {}).items():
            if path.startswith(prefix) and arm.position < len(arm.steps):
                self._step(name, arm)

    def _step(self, name: str, arm: _Arm) -> None:
        step = arm.steps[arm.position]
        arm.used += 1
        if step.count is not None and arm.used >= step.count:
            arm.position, arm.used = arm.position + 1, 0
        if step.percent < 100 and random.uniform(0, 100) >= step.percent:
            return
        _act(name, step)


_STEP = re.compile(r"(?:(\d+)\*)?(?:([\d.]+)%)?(off|raise|errno|sleep|pause|kill)(?:\((.*)\))?")


def _parse_step(text: str) -> _Step:
    match = _STEP.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"not a failpoint action: {text!r}; write e.g. 2*off->1*kill, errno(EIO), sleep(0.5)")
    count, percent, action, argument = match.groups()
    if action == "errno" and not hasattr(errno, _error_name(argument or "")):
        raise ValueError(f"no errno is named {_error_name(argument or '')!r}")
    return _Step(action, argument or "", int(count) if count else None, float(percent) if percent else 100.0)


def _error_name(argument: str) -> str:
    return argument.partition(",")[0].strip()


def _act(name: str, step: _Step) -> None:
    if step.action == "raise":
        raise FailpointRaised(step.argument or name)
    if step.action == "errno":
        _, separator, path = step.argument.partition(",")
        if separator and not os.path.exists(path.strip()):
            return
        number = getattr(errno, _error_name(step.argument))
        raise OSError(number, os.strerror(number), name)
    if step.action == "sleep":
        time.sleep(float(step.argument))
    if step.action == "pause":
        while os.path.exists(step.argument):
            time.sleep(0.01)
    if step.action == "kill":
        if step.argument:
            try:
                os.unlink(step.argument)
            except FileNotFoundError:
                return
        os.kill(os.getpid(), signal.SIGKILL)


REGISTRY = Registry()


def arm_from_environment(environment: dict[str, str]) -> None:
    """Arms what DOLAKE_FAILPOINTS says. Called once, by the process's main."""
    REGISTRY.hits_path = environment.get("DOLAKE_FAILPOINT_HITS")
    for part in filter(None, environment.get("DOLAKE_FAILPOINTS", "").split(";")):
        name, _, action = part.partition("=")
        REGISTRY.arm(name.strip(), action)


def hit(name: str, path: str = "") -> None:
    """Marks a moment, and the file or directory it concerns; breaks here if a test has asked for it."""
    if REGISTRY.active:
        REGISTRY.hit(name, path)
