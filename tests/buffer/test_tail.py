"""Reading a log while it changes under the reader: everything below the synced end, nothing above it."""

from __future__ import annotations

import errno
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from dolake.buffer.synced import NAME, encode_end
from dolake.buffer.tail import LogReader
from dolake.buffer.wal import LogSettings
from dolake.errors import LogCorrupt, LogFailed, LogRefused
from dolake.failpoints import FailpointRaised
from dolake.model import Record
from dolake.storage.disk import LocalCounter, LocalDisk, LocalFile
from tests.buffer.logtools import (
    LARGE,
    FailingDisk,
    armed,
    batches,
    contents,
    create,
    entry,
    fill,
    overwrite,
    read_all,
    reopen,
    segment_files,
)


def reader_of(directory: Path) -> LogReader:
    return LogReader(LocalDisk(), str(directory))


def test_records_are_read_as_they_were_written(tmp_path: Path) -> None:
    log = create(tmp_path / "log")
    reader = reader_of(tmp_path / "log")
    assert (reader.log_id, reader.first_offset(), reader.synced_end(), reader.read(0, 1000)) == (log.log_id, 0, 0, [])
    fill(log, range(25))
    assert reader.synced_end() == 25
    records = reader.read(0, 1 << 20)
    assert [record.entry for record in records] == [entry(number) for number in range(25)]
    assert {record.log_id for record in records} == {log.log_id}
    assert all(type(record.entry.payload) is bytes for record in records)
    assert reader.read(25, 1000) == []
    reader.close()
    log.close()


def test_a_read_is_bounded_but_never_empty_below_the_end(tmp_path: Path) -> None:
    log = create(tmp_path / "log", LARGE)
    sizes = [10, 5000, 400_000, 20, 3_000_000, 50]
    for number, size in enumerate(sizes):
        log.append_group([entry(number, size=size)])
    reader = reader_of(tmp_path / "log")
    for size_bytes_max in (1, 1000, 10_000, 500_000, 10_000_000):
        start = 0
        while start < 6:
            records = reader.read(start, size_bytes_max)
            assert records
            assert len(records) == 1 or sum(record.size_bytes for record in records) <= size_bytes_max
            assert [record.entry for record in records] == [entry(start + i, size=sizes[start + i]) for i in range(len(records))]
            start += len(records)
    assert len(reader.read(0, 10_000_000)) == 6
    reader.close()
    log.close()


def test_reading_starts_anywhere(tmp_path: Path) -> None:
    log = create(tmp_path / "log")
    fill(log, range(45))
    reader = reader_of(tmp_path / "log")
    for start in random.Random(5).sample(range(45), 45):
        offsets = [record.offset for record in reader.read(start, 1500)]
        assert offsets == list(range(start, start + len(offsets)))
        assert min(3, 45 - start) <= len(offsets) <= 4
    reader.close()
    log.close()


@pytest.mark.parametrize("point", ["wal.after_write", "wal.before_sync", "wal.after_sync"])
def test_what_is_written_and_not_published_as_synced_is_never_read(tmp_path: Path, point: str) -> None:
    log = create(tmp_path / "log")
    fill(log, range(3))
    reader = reader_of(tmp_path / "log")
    with armed(point), pytest.raises(FailpointRaised):
        log.append_group([entry(3)])
    assert len(reader.read(0, 1 << 20)) == 3
    assert reader.read(3, 1 << 20) == []
    log.close()
    log = reopen(tmp_path / "log")  # It reads well: recovery makes it durable, and only then it is read.
    assert batches(reader.read(3, 1 << 20)) == [3]
    reader.close()
    log.close()


def test_a_failed_sync_shows_nothing(tmp_path: Path) -> None:
    disk = FailingDisk()
    log = create(tmp_path / "log", disk=disk)
    fill(log, range(3))
    disk.syncs_fail = True
    with pytest.raises(LogFailed):
        log.append_group([entry(3)])
    assert batches(read_all(tmp_path / "log")) == [0, 1, 2]


def test_a_reader_goes_on_through_sealing_recovery_and_trimming(tmp_path: Path) -> None:
    chance = random.Random(6)
    for _ in range(15):
        directory = tmp_path / "log"
        shutil.rmtree(directory, ignore_errors=True)
        log = create(directory)
        reader = reader_of(directory)
        read: list[Record] = []
        sequence = 0
        for _ in range(60):
            step = chance.random()
            if step < 0.5:
                group = [entry(sequence + extra) for extra in range(chance.randrange(1, 5))]
                log.append_group(group)
                sequence += len(group)
            elif step < 0.7:
                log.close()
                log = reopen(directory, seed=chance.randrange(1000))
            elif step < 0.8:
                log.trim(chance.randrange(len(read) + 1))
            else:
                read += reader.read(len(read), chance.choice([1, 2000, 100_000]))
        while more := reader.read(len(read), 100_000):
            read += more
        assert [record.offset for record in read] == list(range(log.next_offset))
        assert batches(read) == list(range(sequence))
        reader.close()
        log.close()


def test_a_reader_in_another_process_keeps_up_with_a_writer(tmp_path: Path) -> None:
    log = create(tmp_path / "log", LogSettings(segment_bytes=100_000, reserve_bytes=0))
    script = (
        "import sys; from dolake.buffer.tail import LogReader; from dolake.storage.disk import LocalDisk\n"
        "reader = LogReader(LocalDisk(), sys.argv[1]); at = 0\n"
        "while at < 3000:\n"
        "    for record in reader.read(at, 50_000):\n"
        "        assert record.offset == at == record.entry.sequence and len(record.entry.payload) == 300\n"
        "        at += 1\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script, str(tmp_path / "log")])
    try:
        for start in range(0, 3000, 5):
            if start % 1000 == 500:
                log.close()
                log = reopen(tmp_path / "log", LogSettings(segment_bytes=100_000, reserve_bytes=0), seed=start)
            log.append_group([entry(number) for number in range(start, start + 5)])
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.wait()
    log.close()


def test_what_was_trimmed_is_told_from_what_is_not_there_yet(tmp_path: Path) -> None:
    log = create(tmp_path / "log")
    fill(log, range(40))
    log.trim(25)
    reader = reader_of(tmp_path / "log")
    assert reader.first_offset() == log.first_offset == 20
    with pytest.raises(LogCorrupt, match="offset 19 is gone: the log begins with 20"):
        reader.read(19, 1000)
    assert reader.read(log.next_offset, 1000) == []
    reader.close()
    log.close()


@pytest.mark.acceptance("AT-04")
def test_nothing_behind_a_damaged_record_is_handed_out(tmp_path: Path) -> None:
    log = create(tmp_path / "log")
    fill(log, range(35))
    name = segment_files(tmp_path / "log")[1]
    data = contents(tmp_path / "log")[name]
    position = data.index(entry(15).payload) + 7
    overwrite(tmp_path / "log" / name, position, bytes([data[position] ^ 1]))
    log.close()
    for state in ("found by the reader", "quarantined by recovery"):
        if "quarantined" in state:
            with pytest.raises(LogCorrupt):
                reopen(tmp_path / "log")
        reader = reader_of(tmp_path / "log")
        assert batches(reader.read(0, 1 << 20)) == list(range(10)) or batches(reader.read(0, 1 << 20)) == list(range(15))
        assert batches(reader.read(10, 1 << 20)) == list(range(10, 15))
        for start in (15, 16, 20, 34):
            if start < 20 or "quarantined" in state:
                with pytest.raises(LogCorrupt) as caught:
                    reader.read(start, 1 << 20)
                assert name in caught.value.path
            if start == 15:
                assert caught.value.position <= position < caught.value.end
        reader.close()


def test_a_synced_record_that_is_missing_is_an_error_and_no_end(tmp_path: Path) -> None:
    log = create(tmp_path / "log")
    fill(log, range(5))
    log.close()
    data = contents(tmp_path / "log")[f"{0:020d}.open"]
    (tmp_path / "log" / f"{0:020d}.open").write_bytes(data[:-400])
    reader = reader_of(tmp_path / "log")
    assert batches(reader.read(0, 1 << 20)) == [0, 1, 2, 3]
    with pytest.raises(LogCorrupt, match="offset 4 was synced and is not here"):
        reader.read(4, 1 << 20)
    reader.close()


def test_without_a_published_end_only_sealed_segments_are_certain(tmp_path: Path) -> None:
    log = create(tmp_path / "log")
    fill(log, range(25))
    log.close()
    os.unlink(tmp_path / "log" / NAME)
    reader = reader_of(tmp_path / "log")
    assert reader.synced_end() == 20
    assert batches(reader.read(0, 1 << 20)) == list(range(20))
    (tmp_path / "log" / NAME).write_bytes(encode_end("another-log", 25).to_bytes(8, "little"))
    assert reader.synced_end() == 20
    log = reopen(tmp_path / "log")
    assert reader.synced_end() == 25
    reader.close()
    log.close()


def test_there_is_nothing_to_read_where_no_log_is_and_another_log_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LogRefused, match="no log here"):
        reader_of(tmp_path / "log")
    log = create(tmp_path / "log")
    fill(log, range(3))
    log.close()
    reader = reader_of(tmp_path / "log")
    shutil.rmtree(tmp_path / "log")
    log = create(tmp_path / "log", seed=99)
    fill(log, range(3))
    (tmp_path / "log" / NAME).write_bytes(encode_end(reader.log_id, 3).to_bytes(8, "little"))
    with pytest.raises(LogRefused, match="was here before"):
        reader.read(0, 1000)
    reader.close()
    log.close()


class UnreadableDisk(LocalDisk):
    """A disk that can be read until it is `broken`; counts what is held open of it."""

    def __init__(self) -> None:
        self.broken = False
        self.held = 0

    def _check(self, path: str) -> None:
        if self.broken:
            raise OSError(errno.EIO, os.strerror(errno.EIO), path)

    def list(self, directory: str) -> list[str]:
        self._check(directory)
        return super().list(directory)

    def open(self, path: str) -> LocalFile:
        self._check(path)
        self.held += 1
        return UnreadableFile(super().open(path).detach(), self)

    def counter(self, path: str, *, writable: bool) -> LocalCounter:
        self._check(path)
        counter, self.held = super().counter(path, writable=writable), self.held + 1
        close = counter.close

        def closed() -> None:
            self.held -= 1
            close()

        counter.close = closed  # type: ignore[method-assign]
        return counter


class UnreadableFile(LocalFile):
    def __init__(self, descriptor: int, disk: UnreadableDisk) -> None:
        super().__init__(descriptor)
        self._disk = disk

    def read_at(self, position: int, size: int) -> bytes:
        self._disk._check("")
        return super().read_at(position, size)

    def close(self) -> None:
        self._disk.held -= 1
        super().close()


@pytest.mark.acceptance("AT-37")
def test_a_disk_that_cannot_be_read_is_a_failed_log_until_it_can(tmp_path: Path) -> None:
    disk = UnreadableDisk()
    log = create(tmp_path / "log")
    fill(log, range(25))
    disk.broken = True
    with pytest.raises(LogFailed, match="Input/output error: the log cannot be read"):
        LogReader(disk, str(tmp_path / "log"))
    disk.broken = False
    reader = LogReader(disk, str(tmp_path / "log"))
    assert batches(reader.read(0, 3000)) == list(range(len(reader.read(0, 3000))))
    disk.broken = True
    for attempt in (lambda: reader.read(7, 3000), reader.first_offset, lambda: reader.after_trim(3)):
        with pytest.raises(LogFailed):
            attempt()
        assert disk.held == 0
    assert reader.synced_end() == 25  # as last seen: the writer's last flush of the others must not fail for this one
    fill(log, range(25, 40))
    disk.broken = False
    assert reader.synced_end() == 40
    assert batches(reader.read(7, 1 << 20)) == list(range(7, 40))
    reader.close()
    log.close()


@pytest.mark.parametrize("meanwhile", ["nothing", "more of the same segment", "sealed", "recovered", "trimmed"])
def test_a_quiet_log_is_held_open_by_nobody_and_read_on_at_its_place(tmp_path: Path, meanwhile: str) -> None:
    disk = UnreadableDisk()
    log = create(tmp_path / "log")
    fill(log, range(17))
    reader = LogReader(disk, str(tmp_path / "log"))
    assert batches(reader.read(0, 1 << 20)) == list(range(17))
    assert disk.held == 2  # The segment and the counter.
    for _ in range(50):
        assert reader.read(17, 1 << 20) == []
    assert disk.held == 0
    count = {"nothing": 0, "more of the same segment": 1}.get(meanwhile, 20)
    fill(log, range(17, 17 + count))
    if meanwhile == "recovered":
        log.close()
        log = reopen(tmp_path / "log")
    if meanwhile == "trimmed":
        log.trim(17)
    for position in range(17, 17 + count):
        (record,) = reader.read(position, 1)
        assert (record.offset, record.entry) == (position, entry(position))
    assert reader.read(17 + count, 1) == [] or meanwhile == "trimmed"
    reader.close()
    assert disk.held == 0
    log.close()
