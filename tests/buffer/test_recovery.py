"""Recovery: every durable record, nothing invented, the same bytes however often it is interrupted."""

from __future__ import annotations

import os
import random
import shutil
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import xxhash

from dolake.buffer.inspect import verify_log
from dolake.buffer.record import parse_frame
from dolake.buffer.segment import SEALED, Sibling
from dolake.buffer.tail import LogReader
from dolake.errors import LogCorrupt, LogFull, LogRefused
from dolake.failpoints import FailpointRaised
from dolake.model import Codec
from dolake.storage.disk import LocalDisk
from tests.buffer.logtools import (
    LARGE,
    SMALL,
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

FIRST_OPEN = f"{0:020d}.open"
FIRST_SEALED = f"{0:020d}.log"


def hundred_records(directory: Path) -> tuple[bytes, int]:
    """A log of 100 records, the last of 512 bytes: its bytes, and where the last begins."""
    log = create(directory, LARGE)
    fill(log, range(99))
    overhead = log.size_bytes
    probe = entry(99, size=0)
    log.append_group([entry(99, size=512 - 88 - len("orders-db") - len(probe.last_lsn) - len("7") - 6 - len("public.orders"))])
    assert log.size_bytes - overhead == 512
    log.close()
    return contents(directory)[FIRST_OPEN], overhead


@pytest.mark.acceptance("AT-03")
@pytest.mark.parametrize("damage", ["cut", "zero", "random"])
def test_a_torn_last_record_is_dropped_and_the_other_99_are_read(tmp_path: Path, damage: str) -> None:
    data, start = hundred_records(tmp_path / "log")
    chance = random.Random(3)
    directory = tmp_path / "torn"
    for position in range(512):
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir()
        rest = 512 - position
        tail = {"cut": b"", "zero": bytes(rest), "random": chance.randbytes(rest)}[damage]
        (directory / FIRST_OPEN).write_bytes(data[: start + position] + tail)
        log = reopen(directory)
        intact = tail == data[start + position :]  # The last byte may be zero, or drawn as it was.
        assert log.next_offset == 99 + intact
        assert log.sources["orders-db"].last_sequence == 98 + intact
        clean = intact or (damage == "cut" and position == 0)
        assert log.torn_tail_count == (0 if clean else 1)
        log.close()
    assert batches(read_all(directory)) == list(range(99 + intact))
    log = reopen(directory)
    assert log.append_group([entry(99)]) == range(99 + intact, 100 + intact)
    assert log.torn_tail_count == 0
    log.close()


def test_records_that_were_published_as_synced_and_are_gone_are_counted(tmp_path: Path) -> None:
    data, start = hundred_records(tmp_path / "log")
    (tmp_path / "log" / FIRST_OPEN).write_bytes(data[: start + 100])
    log = reopen(tmp_path / "log")
    assert (log.next_offset, log.torn_tail_count, log.lost_count) == (99, 1, 1)
    log.close()
    log = reopen(tmp_path / "log")
    assert (log.next_offset, log.torn_tail_count, log.lost_count) == (99, 0, 0)
    log.close()


RECOVER_POINTS = [
    "recover.scan",
    "recover.copy",
    "recover.copy_written",
    "recover.copy_sync",
    "recover.copy_rename",
    "recover.copy_dirsync",
    "recover.unlink_old",
    "recover.done",
]


@pytest.mark.acceptance("AT-41")
@pytest.mark.parametrize("point", RECOVER_POINTS)
def test_a_recovery_interrupted_anywhere_and_run_again_ends_in_the_same_bytes(tmp_path: Path, point: str) -> None:
    for seed in range(20):
        original, straight = tmp_path / f"original-{seed}", tmp_path / f"straight-{seed}"
        log = create(original, seed=seed)
        fill(log, range(random.Random(seed).randrange(40)))
        log.close()
        newest = original / segment_files(original)[-1]
        with newest.open("ab") as file:
            file.write(random.Random(seed).randbytes(seed * 37))
        shutil.copytree(original, straight)
        reopen(straight).close()
        with armed(point, f"{seed % 2}*off->1*raise" if seed % 2 and point == "recover.scan" else "1*raise"):
            try:
                reopen(original).close()
            except FailpointRaised:
                pass
            else:
                assert point == "recover.scan"
        reopen(original).close()
        assert contents(original) == contents(straight)
        assert sorted(os.listdir(original)) == sorted(os.listdir(straight))
        reopen(original).close()
        assert contents(original) == contents(straight)


def test_recovery_makes_a_synced_and_sealed_copy_before_the_old_file_goes(tmp_path: Path) -> None:
    log = create(tmp_path / "log")
    fill(log, range(5))
    log.close()
    before = contents(tmp_path / "log")[FIRST_OPEN]
    with armed("recover.unlink_old"), pytest.raises(FailpointRaised):
        reopen(tmp_path / "log")
    now = contents(tmp_path / "log")
    assert now[FIRST_OPEN] == before
    assert now[FIRST_SEALED].startswith(before)
    assert batches(read_all(tmp_path / "log")) == list(range(5))


def test_a_full_disk_in_recovery_changes_nothing_and_passes(tmp_path: Path) -> None:
    log = create(tmp_path / "log")
    fill(log, range(5))
    log.close()
    before = contents(tmp_path / "log")
    disk = FailingDisk()
    disk.room_bytes = 200
    with pytest.raises(LogFull):
        reopen(tmp_path / "log", disk=disk)
    assert contents(tmp_path / "log") == before
    log = reopen(tmp_path / "log")
    assert log.next_offset == 5
    log.close()


def test_empty_logs_can_be_opened_again_and_again(tmp_path: Path) -> None:
    create(tmp_path / "log").close()
    for seed in range(4):
        log = reopen(tmp_path / "log", seed=seed)
        log_id = log.log_id
        assert log.next_offset == 0
        log.close()
    fill(log := reopen(tmp_path / "log"), range(3))
    log.close()
    log = reopen(tmp_path / "log")
    assert (log.next_offset, log.log_id) == (3, log_id)
    assert batches(read_all(tmp_path / "log")) == [0, 1, 2]
    log.close()


def ten_segments(directory: Path) -> list[str]:
    log = create(directory)
    fill(log, range(95))
    log.close()
    assert len(segment_files(directory)) == 10
    return segment_files(directory)


@pytest.mark.acceptance("AT-42", "AT-04")
@pytest.mark.parametrize("which", [0, 4, 8])
def test_a_bad_segment_is_quarantined_and_the_log_stops_at_it(tmp_path: Path, which: int) -> None:
    names = ten_segments(tmp_path / "log")
    before = contents(tmp_path / "log")
    path = tmp_path / "log" / names[which]
    position = parse_frame(before[names[which]], 0).end + 1000
    overwrite(path, position, bytes([before[names[which]][position] ^ 1]))
    with pytest.raises(LogCorrupt) as caught:
        reopen(tmp_path / "log")
    assert caught.value.path == str(path)
    assert caught.value.position <= position < caught.value.end
    after = contents(tmp_path / "log")
    assert len(after) == 10
    assert len(after[names[which] + ".quarantine"]) == len(before[names[which]])
    # It keeps refusing, with the place, until a good copy lies there.
    for _ in range(2):
        with pytest.raises(LogCorrupt) as again:
            reopen(tmp_path / "log")
        assert (again.value.path, again.value.position) == (str(path) + ".quarantine", caught.value.position)
    path.write_bytes(before[names[which]])
    os.unlink(str(path) + ".quarantine")
    log = reopen(tmp_path / "log")
    assert batches(read_all(tmp_path / "log")) == list(range(95))
    log.close()


def test_a_quarantined_segment_that_was_mended_in_place_only_wants_its_name(tmp_path: Path) -> None:
    names = ten_segments(tmp_path / "log")
    os.rename(tmp_path / "log" / names[3], tmp_path / "log" / (names[3] + ".quarantine"))
    with pytest.raises(LogCorrupt, match=f"rename it to {names[3]}"):
        reopen(tmp_path / "log")


def test_a_bad_byte_below_the_synced_end_of_the_unsealed_segment_is_corruption(tmp_path: Path) -> None:
    log = create(tmp_path / "log")
    fill(log, range(9))
    log.close()
    data = contents(tmp_path / "log")[FIRST_OPEN]
    overwrite(tmp_path / "log" / FIRST_OPEN, 1000, bytes([data[1000] ^ 1]))
    with pytest.raises(LogCorrupt) as caught:
        reopen(tmp_path / "log")
    assert caught.value.position <= 1000 < caught.value.end
    assert segment_files(tmp_path / "log") == [FIRST_OPEN + ".quarantine"]


@pytest.mark.parametrize("which", range(1, 9))
def test_a_missing_segment_in_the_middle_is_a_hole(tmp_path: Path, which: int) -> None:
    names = ten_segments(tmp_path / "log")
    os.unlink(tmp_path / "log" / names[which])
    for _ in range(2):
        with pytest.raises(LogCorrupt, match=f"begins with offset {which * 10 + 10} where {which * 10} belongs"):
            reopen(tmp_path / "log")
    assert len(segment_files(tmp_path / "log")) == 9


def test_a_first_segment_that_was_never_trimmed_is_missed(tmp_path: Path) -> None:
    names = ten_segments(tmp_path / "log")
    os.unlink(tmp_path / "log" / names[0])
    with pytest.raises(LogCorrupt, match=r"offsets 0\.\.10 are gone"):
        reopen(tmp_path / "log")
    log_directory = tmp_path / "trimmed"
    ten_segments(log_directory)
    log = reopen(log_directory)
    log.trim(35)
    log.close()
    reopen(log_directory).close()
    os.unlink(log_directory / segment_files(log_directory)[0])
    with pytest.raises(LogCorrupt, match=r"offsets 30\.\.40 are gone"):
        reopen(log_directory)


def test_segments_below_the_bound_may_have_gone_in_any_order(tmp_path: Path) -> None:
    names = ten_segments(tmp_path / "log")
    log = reopen(tmp_path / "log")
    with armed("trim.after_record"), pytest.raises(FailpointRaised):
        log.trim(40)
    log.close()
    os.unlink(tmp_path / "log" / names[1])
    os.unlink(tmp_path / "log" / names[3])
    log = reopen(tmp_path / "log")
    assert log.first_offset == 0
    assert log.trim(40)
    assert log.first_offset == 40
    log.close()


def test_a_missing_newest_segment_is_noticed_where_its_end_was_published(tmp_path: Path) -> None:
    ten_segments(tmp_path / "log")
    reopen(tmp_path / "log").close()
    os.unlink(tmp_path / "log" / segment_files(tmp_path / "log")[-1])
    with pytest.raises(LogCorrupt, match=r"the newest segment, with offsets 90\.\.95, is gone"):
        reopen(tmp_path / "log")


def test_another_logs_segment_is_refused(tmp_path: Path) -> None:
    ten_segments(tmp_path / "log")
    log = create(tmp_path / "other", seed=77)
    fill(log, range(95))
    log.close()
    name = segment_files(tmp_path / "log")[5]
    shutil.copy(tmp_path / "other" / name, tmp_path / "log" / name)
    with pytest.raises(LogRefused, match="belongs to log"):
        reopen(tmp_path / "log")


def test_an_unsealed_segment_that_holds_more_than_its_copy_is_not_thrown_away(tmp_path: Path) -> None:
    log = create(tmp_path / "log")
    fill(log, range(5))
    log.close()
    more = contents(tmp_path / "log")[FIRST_OPEN]
    (tmp_path / "log" / FIRST_OPEN).write_bytes(more[:-300])
    (tmp_path / "log" / "synced-end").unlink()
    reopen(tmp_path / "log").close()
    (tmp_path / "log" / FIRST_OPEN).write_bytes(more)
    with pytest.raises(LogCorrupt, match="holds more than its sealed copy"):
        reopen(tmp_path / "log")
    assert (tmp_path / "log" / FIRST_OPEN).read_bytes() == more


def test_siblings_and_bound_are_recovered(tmp_path: Path) -> None:
    log = create(tmp_path / "log")
    siblings = (Sibling("log-2", "/mnt/b"), Sibling("log-3", "/mnt/ü"))
    log.name_siblings(siblings)
    fill(log, range(50))
    log.trim(30)
    for _ in range(3):
        log.close()
        log = reopen(tmp_path / "log")
        assert log.siblings == siblings
        assert log.first_offset == 30 - 30 % 10 or log.first_offset <= 30
    log.trim(log.next_offset)
    log.close()
    log = reopen(tmp_path / "log")
    assert log.siblings == siblings
    log.close()


@pytest.mark.acceptance("AT-04")
@pytest.mark.parametrize("codec", list(Codec), ids=lambda codec: codec.name.lower())
def test_fifty_flipped_bytes_in_sealed_segments_are_fifty_logs_stopped_at_the_place(tmp_path: Path, codec: Codec) -> None:
    """Header, records, footer: whatever byte it is. What a reader is given ends in front of it."""
    original = tmp_path / "original"
    log = create(original, replace(SMALL, codec=codec))
    for number in range(40):
        first = entry(number)
        words = (first.payload.hex() * 2).encode()
        log.append_group([replace(first, payload=words, content=xxhash.xxh3_64_intdigest(words))])
    log.close()
    sealed = [name for name in segment_files(original) if name.endswith(SEALED)]
    chance = random.Random(4)
    damaged = tmp_path / "damaged"
    for _ in range(50):
        shutil.rmtree(damaged, ignore_errors=True)
        shutil.copytree(original, damaged)
        name = chance.choice(sealed)
        data = contents(original)[name]
        position = chance.randrange(len(data))
        overwrite(damaged / name, position, bytes([data[position] ^ 1 << chance.randrange(8)]))
        hole = offset_at(data, position)
        # As the writer reads it, before and after recovery has looked.
        for quarantined in (False, True):
            reader = LogReader(LocalDisk(), str(damaged))
            read: list[int] = []
            with suppress(LogCorrupt):
                while more := reader.read(len(read), 1000):
                    read += [record.offset for record in more]
            assert read == list(range(len(read)))
            assert len(read) == hole or (not quarantined and len(read) >= hole)
            reader.close()
            if not quarantined:
                with pytest.raises(LogCorrupt) as caught:
                    reopen(damaged)
                assert caught.value.path == str(damaged / name)
                assert caught.value.position <= position < caught.value.end
                assert name + ".quarantine" in segment_files(damaged)
        told = list(verify_log(LocalDisk(), str(damaged)))
        assert f"{damaged / name}.quarantine: bytes {caught.value.position}..{caught.value.end}: " in told[0]


def offset_at(data: bytes, position: int) -> int:
    """The offset of the record that a byte of a segment belongs to: all below it can still be read."""
    frame = parse_frame(data, 0)
    while frame.end <= position:
        frame = parse_frame(data, frame.end)
    return frame.offset
