"""One log: what append_group returned is on disk; what it refused left no trace; what it trims was not needed."""

from __future__ import annotations

import errno
import os
from collections import Counter
from pathlib import Path

import pytest

from dolake import failpoints
from dolake.buffer.wal import Log, LogSettings
from dolake.errors import LogCorrupt, LogFailed, LogFull, LogRefused
from dolake.failpoints import FailpointRaised
from dolake.model import RECENT_CONTENTS, Entry, RecordKind
from dolake.storage.disk import LocalDisk
from tests.buffer.logtools import (
    LARGE,
    SMALL,
    FailingDisk,
    SeededRandomness,
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


def test_offsets_are_dense_and_survive_being_opened_again(tmp_path: Path) -> None:
    log = create(tmp_path / "log")
    assert log.append_group([entry(0), entry(1)]) == range(2)
    assert log.append_group([entry(2)]) == range(2, 3)
    assert log.append_group([]) == range(3, 3)
    log.close()
    log = reopen(tmp_path / "log")
    assert (log.next_offset, log.synced_end, log.torn_tail_count) == (3, 3, 0)
    assert log.append_group([entry(3)]) == range(3, 4)
    assert [record.entry for record in read_all(tmp_path / "log")] == [entry(number) for number in range(4)]
    log.close()


def test_a_log_without_close_is_as_good(tmp_path: Path) -> None:
    log = create(tmp_path / "log")
    fill(log, range(30))
    log._lock.release()  # What the end of the process does.
    log = reopen(tmp_path / "log")
    assert batches(read_all(tmp_path / "log")) == list(range(30))
    log.close()


def test_segments_are_sealed_at_their_size_and_no_group_is_split(tmp_path: Path) -> None:
    log = create(tmp_path / "log")
    for start in range(0, 40, 4):
        log.append_group([entry(number) for number in range(start, start + 4)])
    log.close()
    names = segment_files(tmp_path / "log")
    assert [name.removesuffix(".log") for name in names[:-1]] == [f"{first:020d}" for first in (0, 12, 24)]
    assert names[-1] == f"{36:020d}.open"
    assert batches(read_all(tmp_path / "log")) == list(range(40))


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("room_bytes", [0, 1, 100, 450, 900, 1100])
def test_a_full_disk_refuses_the_group_whole_and_the_log_goes_on(tmp_path: Path, number: int, room_bytes: int) -> None:
    disk = FailingDisk()
    log = create(tmp_path / "log", LARGE, disk)
    fill(log, range(3))
    disk.room_bytes, disk.number = room_bytes, number
    for _ in range(3):
        with pytest.raises(LogFull):
            log.append_group([entry(3), entry(4), entry(5)])
    assert log.next_offset == 3
    assert log.sources["orders-db"].last_sequence == 2
    data = contents(tmp_path / "log")[f"{0:020d}.open"]
    assert data[log.size_bytes :] == bytes(room_bytes)
    # A crash now must not bring any of the refused back.
    log._lock.release()
    log = reopen(tmp_path / "log")
    assert log.next_offset == 3
    log.close()


def test_a_refused_group_sent_again_in_part_brings_nothing_of_the_rest_back(tmp_path: Path) -> None:
    disk = FailingDisk()
    log = create(tmp_path / "log", LARGE, disk)
    fill(log, range(3))
    disk.room_bytes = 1200
    with pytest.raises(LogFull):
        log.append_group([entry(3), entry(4), entry(5)])
    log.append_group([entry(3)])  # The same bytes at the same place: what lay behind them was valid before.
    log._lock.release()
    log = reopen(tmp_path / "log")
    assert (log.next_offset, log.sources["orders-db"].last_sequence) == (4, 3)
    log.close()


def test_what_a_full_disk_left_lies_above_the_footer_when_sealed(tmp_path: Path) -> None:
    disk = FailingDisk()
    log = create(tmp_path / "log", LogSettings(segment_bytes=1000, reserve_bytes=0), disk)
    fill(log, range(2))
    disk.room_bytes = 2500
    with pytest.raises(LogFull):
        log.append_group([entry(number) for number in range(2, 12)])
    disk.room_bytes = None
    fill(log, range(2, 12))
    log.close()
    log = reopen(tmp_path / "log")
    assert batches(read_all(tmp_path / "log")) == list(range(12))
    assert log.trim(8)
    log.close()


@pytest.mark.parametrize("room_bytes", [0, 50])
def test_a_disk_too_full_to_seal_or_to_begin_a_segment_refuses_and_goes_on(tmp_path: Path, room_bytes: int) -> None:
    disk = FailingDisk()
    log = create(tmp_path / "log", LogSettings(segment_bytes=1000, reserve_bytes=0), disk)
    fill(log, range(3))
    disk.room_bytes = room_bytes
    for _ in range(2):
        with pytest.raises(LogFull):
            log.append_group([entry(3)])
    disk.room_bytes = 300  # Enough to seal, not to begin.
    for _ in range(2):
        with pytest.raises(LogFull):
            log.append_group([entry(3, size=1000)])
    disk.room_bytes = None
    fill(log, range(3, 6))
    log.close()
    assert not [name for name in os.listdir(tmp_path / "log") if name.endswith(".new")]
    log = reopen(tmp_path / "log")
    assert batches(read_all(tmp_path / "log")) == list(range(6))
    log.close()


def test_a_failed_sync_is_never_retried_and_closes_the_log_for_good(tmp_path: Path) -> None:
    disk = FailingDisk()
    log = create(tmp_path / "log", SMALL, disk)
    fill(log, range(3))
    disk.syncs_fail = True
    with pytest.raises(LogFailed):
        log.append_group([entry(3)])
    disk.syncs_fail = False
    assert log.closed
    for attempt in (lambda: log.append_group([entry(3)]), lambda: log.append_group([]), lambda: log.trim(1)):
        with pytest.raises(LogFailed):
            attempt()
    assert log.next_offset == 3
    log = reopen(tmp_path / "log")  # The lock is free.
    assert log.next_offset in (3, 4)
    log.close()


def test_a_write_error_other_than_a_full_disk_closes_the_log(tmp_path: Path) -> None:
    disk = FailingDisk()
    log = create(tmp_path / "log", SMALL, disk)
    disk.room_bytes, disk.number = 100, errno.EIO
    with pytest.raises(LogFailed):
        log.append_group([entry(0)])
    assert log.closed


@pytest.mark.parametrize("point", ["wal.before_write", "wal.after_write", "wal.before_sync", "wal.after_sync"])
def test_after_an_unfinished_append_nothing_is_accepted_until_recovery(tmp_path: Path, point: str) -> None:
    log = create(tmp_path / "log")
    fill(log, range(3))
    with armed(point), pytest.raises(FailpointRaised):
        log.append_group([entry(3)])
    with pytest.raises(LogFailed, match="in doubt"):
        log.append_group([entry(3)])
    log.close()
    log = reopen(tmp_path / "log")
    assert log.next_offset == (3 if point == "wal.before_write" else 4)
    log.close()


@pytest.mark.parametrize("error", ["errno(EIO)", "errno(ENOSPC)"])
def test_a_sync_that_fails_for_whatever_reason_is_a_failed_sync(tmp_path: Path, error: str) -> None:
    log = create(tmp_path / "log")
    with armed("wal.before_sync", error), pytest.raises(LogFailed):
        log.append_group([entry(0)])


@pytest.mark.parametrize(
    "point",
    [
        "wal.seal_footer",
        "wal.seal_sync",
        "wal.seal_rename",
        "wal.seal_dirsync",
        "wal.roll_create",
        "wal.roll_written",
        "wal.roll_sync",
        "wal.roll_rename",
        "wal.roll_dirsync",
    ],
)
def test_a_crash_anywhere_in_rolling_a_segment_loses_nothing(tmp_path: Path, point: str) -> None:
    log = create(tmp_path / "log")
    fill(log, range(11))
    with armed(point), pytest.raises(FailpointRaised):
        fill(log, range(11, 30))
    kept = log.next_offset
    log.close()
    log = reopen(tmp_path / "log")
    assert log.next_offset == kept
    fill(log, range(kept, 30))
    assert batches(read_all(tmp_path / "log")) == list(range(30))
    log.close()
    assert not [name for name in os.listdir(tmp_path / "log") if name.endswith(".new")]


def test_an_entry_that_cannot_be_written_leaves_the_log_as_it_was(tmp_path: Path) -> None:
    log = create(tmp_path / "log")
    with pytest.raises(ValueError, match="sequence 9223372036854775808"):
        log.append_group([entry(0), Entry(RecordKind.BATCH, "s", "", 2**63, 1, 1, b"")])
    assert log.append_group([entry(0)]) == range(1)
    log.close()


def test_what_is_known_of_sources_survives_trimming_and_has_no_window(tmp_path: Path) -> None:
    log = create(tmp_path / "log")
    fill(log, range(100))
    fill(log, range(3), epoch="second")
    log.append_group([entry(5, source="other")])
    known = dict(log.sources)
    assert known["orders-db"].last_sequence == 2
    assert len(known["orders-db"].ended_epochs) == 1
    assert len(log.sources["orders-db"].contents) == 3 <= RECENT_CONTENTS
    for _ in range(3):
        log.trim(log.next_offset)
        log.close()
        log = reopen(tmp_path / "log")
        assert dict(log.sources) == known
    log.close()


def test_only_the_last_contents_of_a_source_are_kept(tmp_path: Path) -> None:
    log = create(tmp_path / "log")
    fill(log, range(100))
    assert list(log.sources["orders-db"].contents.items()) == [(number, entry(number).content) for number in range(36, 100)]
    log.close()


def test_trim_unlinks_whole_segments_below_low_and_nothing_else(tmp_path: Path) -> None:
    log = create(tmp_path / "log")
    fill(log, range(60))
    for low in range(61):
        starts = [int(name.split(".")[0]) for name in segment_files(tmp_path / "log")]
        log.trim(low)
        assert log.first_offset == max(start for start in [*starts, 60 if low == 60 else 0] if start <= low)
    assert [record.offset for record in read_all(tmp_path / "log", log.first_offset)][-1] == log.next_offset - 1
    log.close()
    log = reopen(tmp_path / "log")
    assert log.first_offset == 60
    log.close()


def test_trim_states_its_bound_in_a_synced_record_before_the_first_file_goes(tmp_path: Path) -> None:
    log = create(tmp_path / "log")
    fill(log, range(58))
    before = segment_files(tmp_path / "log")
    with armed("trim.before_unlink"), pytest.raises(FailpointRaised):
        log.trim(35)
    assert segment_files(tmp_path / "log") == before
    last = read_all(tmp_path / "log")[-1].entry
    assert (last.kind, last.payload) == (RecordKind.TRIM, b'{"bound": 30, "tables_end": 30}')
    log.close()


def test_trim_with_nothing_to_unlink_writes_nothing(tmp_path: Path) -> None:
    log = create(tmp_path / "log")
    fill(log, range(5))
    assert log.trim(5) == []
    assert log.next_offset == 5
    with pytest.raises(ValueError, match="the log ends at 5"):
        log.trim(6)
    log.close()


@pytest.mark.parametrize("point", ["trim.before_record", "trim.after_record", "trim.before_unlink", "trim.after_unlink", "trim.done"])
@pytest.mark.parametrize("hit", [1, 2])
def test_a_crash_anywhere_in_trim_is_recovered_from(tmp_path: Path, point: str, hit: int) -> None:
    log = create(tmp_path / "log")
    fill(log, range(60))
    known = dict(log.sources)
    with armed(point, f"{hit - 1}*off->1*raise" if hit > 1 else "1*raise"):
        if hit > 1 and "unlink" not in point:
            log.trim(35)
        else:
            with pytest.raises(FailpointRaised):
                log.trim(35)
    log.close()
    log = reopen(tmp_path / "log")
    assert dict(log.sources) == known
    assert log.first_offset <= 30
    assert set(range(30, 60)) <= set(batches(read_all(tmp_path / "log", log.first_offset)))
    log.trim(35)
    assert log.first_offset == 30
    log.close()


def test_a_damaged_segment_is_never_trimmed(tmp_path: Path) -> None:
    log = create(tmp_path / "log")
    fill(log, range(60))
    before = segment_files(tmp_path / "log")
    path = tmp_path / "log" / before[1]
    overwrite(path, 2000, b"\xaa")
    with pytest.raises(LogCorrupt, match=before[1]):
        log.trim(60)
    assert segment_files(tmp_path / "log") == before
    with pytest.raises(LogFailed, match="corrupt"):
        log.append_group([entry(60)])


def test_backlog_falls_with_low(tmp_path: Path) -> None:
    log = create(tmp_path / "log")
    assert log.backlog_bytes(0) == 0
    fill(log, range(60))
    figures = [log.backlog_bytes(low) for low in range(61)]
    assert figures == sorted(figures, reverse=True)
    assert figures[0] == log.size_bytes
    assert figures[60] == 0
    assert figures[30] == pytest.approx(log.size_bytes / 2, rel=0.1)
    log.close()


def test_a_second_daemon_is_refused_while_the_first_holds_the_log(tmp_path: Path) -> None:
    log = create(tmp_path / "log")
    with pytest.raises(LogRefused, match="another dolake uses this log"):
        reopen(tmp_path / "log")
    log.append_group([entry(0)])
    log.close()
    reopen(tmp_path / "log").close()


def test_a_file_system_without_locks_is_refused_with_the_remedy(tmp_path: Path) -> None:
    disk = FailingDisk()
    create(tmp_path / "log").close()
    disk.locks_fail = errno.ENOLCK
    with pytest.raises(LogRefused, match="put the log on a local disk"):
        Log.open(disk, str(tmp_path / "log"), SMALL, SeededRandomness())


def test_no_log_is_begun_where_one_is_and_none_opened_where_none_is(tmp_path: Path) -> None:
    with pytest.raises(LogRefused, match="no log here"):
        reopen(tmp_path / "log")
    assert not (tmp_path / "log").exists()
    create(tmp_path / "log").close()
    with pytest.raises(LogRefused, match="a log here already"):
        create(tmp_path / "log")
    reopen(tmp_path / "log").close()


def test_files_that_fail_to_open_are_a_failed_log(tmp_path: Path) -> None:
    create(tmp_path / "log").close()

    class Broken(LocalDisk):
        def open(self, path: str):  # type: ignore[no-untyped-def]
            raise OSError(errno.EIO, "Input/output error", path)

    with pytest.raises(LogFailed, match="Input/output error"):
        reopen(tmp_path / "log", disk=Broken())
    assert segment_files(tmp_path / "log") == [f"{0:020d}.open"]  # Nothing is quarantined for an error that may pass.
    reopen(tmp_path / "log").close()


def test_a_trim_on_a_full_disk_has_room_kept_for_it_and_makes_more(tmp_path: Path) -> None:
    disk = FailingDisk()
    settings = LogSettings(segment_bytes=4096, reserve_bytes=8192)
    log = create(tmp_path / "log", settings, disk)
    fill(log, range(45))
    disk.room_bytes = 0
    with pytest.raises(LogFull):
        log.append_group([entry(45)])
    unlink = disk.unlink

    def freeing(path: str) -> None:
        size = os.stat(path).st_size
        unlink(path)
        disk.room_bytes = (disk.room_bytes or 0) + size

    disk.unlink = freeing  # type: ignore[method-assign]
    assert len(log.trim(25)) == 2
    log.append_group([entry(45)])
    assert os.stat(tmp_path / "log" / "reserve").st_size == 8192
    log.close()
    log = reopen(tmp_path / "log", settings)
    assert batches(read_all(tmp_path / "log", 20)) == list(range(20, 46))
    log.close()


def test_every_failpoint_of_the_log_is_reached_by_its_life(tmp_path: Path) -> None:
    ours = {name for name in failpoints.POINTS if name.split(".")[0] in ("wal", "trim", "recover")}
    before = Counter(failpoints.REGISTRY.hits)
    with armed("recover.done", "1*off"):
        log = create(tmp_path / "log")
        fill(log, range(45))
        log.trim(25)
        log.close()
        reopen(tmp_path / "log").close()
    assert {name for name in failpoints.REGISTRY.hits - before if name in ours} == ours
