"""The log alone: one ingest half that appends, trims, dies and comes back, on a disk whose power is cut again and again.

Used for AT-02. The bigger world (`world.py`) has the same disk below sockets, sessions and a writer.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

from dolake.buffer.record import decode_record
from dolake.buffer.recovery import read_whole
from dolake.buffer.segment import scan_segment, segment_names
from dolake.buffer.wal import Log, LogSettings
from dolake.errors import LogCorrupt, LogFailed, LogFull, LogRefused
from dolake.model import Codec, Entry, Record, RecordKind
from tests.simulation.disk import Cut, DiskDoor, SimDisk
from tests.simulation.faults import Breach, Chaos, Trace
from tests.simulation.loop import Process, ProcessKilled, SimLoop

ROOT = "/data"
DIRECTORY = f"{ROOT}/log"
CUTS = {
    "unsynced bytes": Cut(drop_all=True, names="none"),
    "unsynced blocks": Cut(block_loss=0.5, names="none"),
    "unsynced names": Cut(block_loss=0.0, names="subset"),
    "everything": Cut(block_loss=0.5, names="prefix"),
}
FAULTS = {
    "sync_eio": 0.01, "sync_enospc": 0.005, "write_eio": 0.005, "write_enospc": 0.02, "write_split": 0.1, "sync_directory_eio": 0.01,
    "sync_directory_enospc": 0.005, "rename_eio": 0.005, "rename_enospc": 0.005, "create_enospc": 0.005, "cache_evicted": 0.1,
}  # fmt: skip


@dataclass(frozen=True)
class Rules:
    """What a mutant replaces."""

    door: Callable[[SimDisk, Process], DiskDoor] = DiskDoor
    ack_first: bool = False


@dataclass
class LogWorld:
    seed: int
    cut: Cut
    rules: Rules = Rules()
    lives: int = 6
    sent: dict[bytes, Entry] = field(default_factory=dict)
    acked: dict[bytes, int] = field(default_factory=dict)
    trimmed: int = 0

    def __post_init__(self) -> None:
        self.random = random.Random(f"log {self.seed}")
        faulty = self.random.random() < 0.5
        self.chaos = Chaos(f"log chaos {self.seed}", FAULTS if faulty else {"write_split": 0.1})
        self.disk = SimDisk(self.chaos, ROOT)
        self.trace = Trace()
        self.loop = SimLoop(f"log {self.seed}", trace=self.trace)

    def run(self) -> LogWorld:
        try:
            for life in range(self.lives):
                process = Process(self.loop, f"ingest {life}", f"{self.seed} {life}")
                process.steps_left, process.on_moment = self.random.randint(1, 150), lambda process: process.die()
                try:
                    self._live(self.rules.door(self.disk, process), process)
                except ProcessKilled:
                    self.chaos.count("kill")
                if self.random.random() < 0.8:
                    self.disk.cut_power(self.cut)
            self.chaos.heal()
            process = Process(self.loop, "last", "last")
            door = DiskDoor(self.disk, process)
            log = self._open(door, process)
            self.check(log, read_log(door))
        finally:
            self.loop.close()
        return self

    def _live(self, door: DiskDoor, process: Process) -> None:
        while True:
            log = self._open(door, process)
            with suppress(LogFailed):
                while True:
                    with suppress(LogFull):
                        if self.random.random() < 0.08:
                            self._trim(log)
                        else:
                            self._append(log)
            self.chaos.count("log failed")

    def _trim(self, log: Log) -> None:
        low = self.random.randint(self.trimmed, log.synced_end)
        self.trimmed = max(self.trimmed, low)
        log.trim(low)

    def _open(self, door: DiskDoor, process: Process) -> Log:
        settings = LogSettings(segment_bytes=self.random.choice([512, 2048, 8192]), codec=self.random.choice(list(Codec)))
        while True:
            try:
                try:
                    log = Log.open(door, DIRECTORY, settings, process.runtime.random)
                except (LogRefused, FileNotFoundError) as error:
                    if self.acked:
                        raise Breach(f"I1: the log is gone: {error}") from error
                    log = Log.create(door, DIRECTORY, settings, process.runtime.random)
            except LogCorrupt as error:
                raise Breach(f"I1: {error}") from error
            except (LogFailed, LogFull, OSError):
                process.step("wait")
            else:
                break
        if log.lost_count:
            raise Breach(f"I1: {log.lost_count} synced offsets are gone")
        for entry in (self.sent[payload] for payload in self.acked):
            state = log.sources.get(entry.source)
            if state is None or state.last_sequence < entry.sequence:
                raise Breach(f"I1: {entry.source} {entry.sequence} was acked, the log knows {state}")
        return log

    def _append(self, log: Log) -> None:
        group = []
        for source in ("a", "b"):
            state = log.sources.get(source)
            first = state.last_sequence + 1 if state else 0
            group += [self._entry(source, sequence) for sequence in range(first, first + self.random.randint(0, 3))]
        if not group:
            return
        if self.rules.ack_first:
            self._ack(group, -1)
        offsets = log.append_group(group)
        if len(offsets) != len(group):
            raise Breach(f"I2: {len(group)} entries got the offsets {offsets}")
        self._ack(group, offsets.start)

    def _entry(self, source: str, sequence: int) -> Entry:
        payload = f"{source}/{sequence}/".encode() + self.random.randbytes(self.random.choice([0, 15, 350])).hex().encode()
        entry = Entry(RecordKind.BATCH, source, "", sequence, 1, hash_of(payload), payload, {"t": 1}, sequence)
        self.sent[payload] = entry
        return entry

    def _ack(self, group: list[Entry], offset: int) -> None:
        for entry in group:
            self.acked[entry.payload] = offset
            offset += offset >= 0

    def check(self, log: Log, records: list[Record]) -> None:
        if log.first_offset > self.trimmed:
            raise Breach(f"I6: trimmed up to {log.first_offset}, asked for {self.trimmed}")
        offsets = [record.offset for record in records]
        kept = [offset for offset in offsets if offset >= self.trimmed]  # Below, a power cut keeps what unlinks it likes.
        if kept != list(range(self.trimmed, log.synced_end)) or offsets != sorted(set(offsets)):
            raise Breach(f"I2: offsets {offsets} in {log.first_offset}..{log.synced_end}, trimmed below {self.trimmed}")
        found = {record.entry.payload: record for record in records if record.entry.kind == RecordKind.BATCH}
        if len(found) != sum(record.entry.kind == RecordKind.BATCH for record in records):
            raise Breach("I3: a batch is in the log twice")
        for payload, record in found.items():
            if self.sent.get(payload) != record.entry:
                raise Breach(f"I2: offset {record.offset} holds what was not sent: {record.entry}")
        for payload, offset in self.acked.items():
            if payload not in found and not 0 <= offset < self.trimmed:
                raise Breach(f"I1: {payload[:10]!r} was acked with offset {offset} and is not in the log")
            if payload in found and offset >= 0 and found[payload].offset != offset:
                raise Breach(f"I2: {payload[:10]!r} was acked with offset {offset}, it is at {found[payload].offset}")


def read_log(door: DiskDoor) -> list[Record]:
    records: list[Record] = []
    for name in segment_names(door.list(DIRECTORY)):
        path = f"{DIRECTORY}/{name.file}"
        scan_segment(
            read_whole(door, path), path, name, lambda state, frame, path=path: records.append(decode_record(frame, state.log_id, path))
        )
    return records


def hash_of(payload: bytes) -> int:
    return int.from_bytes(payload[:4].ljust(4, b"\0"), "little")


class DoorWithoutSync(DiskDoor):
    """Mutant: no fsync of any file."""

    def create(self, path: str):
        file = super().create(path)
        file.sync = lambda: self.enter("no sync", path)  # type: ignore[method-assign]
        return file


class DoorWithoutDirectorySync(DiskDoor):
    """Mutant: names are never synced."""

    def sync_directory(self, path: str) -> None:
        self.enter("no sync_directory", path)


MUTANTS = {
    "fsync removed": Rules(door=DoorWithoutSync),
    "ack before fsync": Rules(ack_first=True),
    "no directory fsync": Rules(door=DoorWithoutDirectorySync),
}


def run_log_world(seed: int, cut: str, rules: Rules = Rules()) -> str | None:
    """The breach, or None."""
    try:
        LogWorld(seed, CUTS[cut], rules).run()
    except Breach as breach:
        return str(breach)
    return None
