"""A disk that fills up: the log refuses while it can still be recovered, and makes room by itself from what is committed."""

from __future__ import annotations

import random
from contextlib import suppress
from pathlib import Path

import pytest

from dolake.buffer.wal import Log, LogSettings
from dolake.errors import LogFull
from tests.buffer.logtools import SmallDisk, batches, create, entry, read_all, reopen, segment_files

DISK_BYTES = 2 << 20
SETTINGS = {
    "segments of a quarter of the disk": LogSettings(segment_bytes=DISK_BYTES // 4),
    "a segment larger than the disk": LogSettings(segment_bytes=DISK_BYTES * 4),
    "small segments": LogSettings(segment_bytes=64 << 10),
    "nothing kept for a trim": LogSettings(segment_bytes=DISK_BYTES // 4, reserve_bytes=0),
}


def fill_up(log: Log, next_sequence: int, chance: random.Random, size_max: int = 60_000) -> int:
    """Appends groups until one is refused; returns the sequence that comes next."""
    while True:
        group = [entry(next_sequence + place, size=chance.randrange(100, size_max)) for place in range(chance.randrange(1, 4))]
        try:
            log.append_group(group)
        except LogFull:
            return next_sequence
        next_sequence += len(group)


@pytest.mark.acceptance("AT-38")
@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("seed", range(5))
def test_a_log_that_filled_its_disk_can_be_killed_and_opened_again(tmp_path: Path, name: str, seed: int) -> None:
    """As often as one likes, with nothing made room for: what was accepted is there, and what is there is read."""
    chance, disk = random.Random(seed), SmallDisk(tmp_path / "log", DISK_BYTES)
    log = create(tmp_path / "log", SETTINGS[name], disk)
    sequence = 0
    for life in range(4):
        sequence = fill_up(log, sequence, chance)
        log._lock.release()  # Killed.
        log = reopen(tmp_path / "log", SETTINGS[name], disk, seed=life)
        assert log.sources["orders-db"].last_sequence == sequence - 1
    assert batches(read_all(tmp_path / "log")) == list(range(sequence))
    # Not much of the disk is left unused for it: two groups and what goes around them.
    assert log.size_bytes > DISK_BYTES - 2 * 3 * 60_000 - (320 << 10)
    log.close()


@pytest.mark.acceptance("AT-38")
@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("seed", range(5))
def test_what_is_committed_makes_room_however_full_the_disk_is(tmp_path: Path, name: str, seed: int) -> None:
    chance, disk = random.Random(seed), SmallDisk(tmp_path / "log", DISK_BYTES)
    log = create(tmp_path / "log", SETTINGS[name], disk)
    sequence, life = 0, 0
    for _ in range(6):
        sequence = fill_up(log, sequence, chance)
        low = chance.choice([log.next_offset, log.next_offset // 2 + log.first_offset // 2])
        if chance.random() < 0.5:
            log._lock.release()
            life += 1
            log = reopen(tmp_path / "log", SETTINGS[name], disk, seed=life)
            with suppress(LogFull):
                log.append_group([entry(sequence, size=150_000), entry(sequence + 1, size=150_000)])
        log.trim(low)
        log.trim(log.next_offset)
        assert log.size_bytes < DISK_BYTES // 8
        sequence = log.sources["orders-db"].last_sequence + 1
        log.append_group([entry(sequence, size=60_000)])
        sequence += 1
    kept = read_all(tmp_path / "log", log.first_offset)
    assert batches(kept)[-1] == sequence - 1
    log.close()


def test_an_early_seal_happens_once_and_only_where_room_was_lacking(tmp_path: Path) -> None:
    disk = SmallDisk(tmp_path / "log", DISK_BYTES)
    log = create(tmp_path / "log", SETTINGS["a segment larger than the disk"], disk)
    log.append_group([entry(0, size=50_000)])
    assert log.trim(log.next_offset) == []
    assert len(segment_files(tmp_path / "log")) == 1
    fill_up(log, 1, random.Random(1))
    assert log.trim(log.next_offset)
    for _ in range(3):  # Nobody was refused since: there is nothing to do.
        assert log.trim(log.next_offset) == []
    log.close()


def test_with_room_enough_segments_have_their_size(tmp_path: Path) -> None:
    log = create(tmp_path / "log", LogSettings(segment_bytes=64 << 10), SmallDisk(tmp_path / "log", DISK_BYTES))
    for number in range(20):
        log.append_group([entry(number, size=10_000)])
    assert [name.split(".")[0].lstrip("0") for name in segment_files(tmp_path / "log")] == ["", "7", "14"]
    log.close()


def test_a_recovery_without_room_takes_what_is_kept_for_a_trim(tmp_path: Path) -> None:
    """Somebody else has filled the disk meanwhile."""
    disk = SmallDisk(tmp_path / "log", DISK_BYTES)
    settings = LogSettings(segment_bytes=DISK_BYTES, reserve_bytes=100_000)
    log = create(tmp_path / "log", settings, disk)
    log.append_group([entry(0, size=80_000)])
    log._lock.release()
    disk.size_bytes = DISK_BYTES - disk.usage("")[1]
    log = reopen(tmp_path / "log", settings, disk)
    assert log.next_offset == 1
    log.close()
    disk.size_bytes -= 50_000
    (tmp_path / "log" / "reserve").unlink(missing_ok=True)
    log = reopen(tmp_path / "log", settings, disk)  # A sealed segment needs no copy, and no room.
    assert log.next_offset == 1
    log.close()


@pytest.mark.acceptance("AT-38")
def test_a_disk_full_of_one_unsealed_segment_is_freed_when_all_of_it_is_committed(tmp_path: Path) -> None:
    disk = SmallDisk(tmp_path / "log", DISK_BYTES)
    log = create(tmp_path / "log", SETTINGS["a segment larger than the disk"], disk)
    log.append_group([entry(0, size=900_000)])
    large = [entry(1, size=600_000)]
    with pytest.raises(LogFull):
        log.append_group(large)
    assert len(segment_files(tmp_path / "log")) == 1
    assert log.trim(0) == []
    assert log.trim(1) == [str(tmp_path / "log" / f"{0:020d}.log")]
    log.append_group(large)
    assert batches(read_all(tmp_path / "log", 1)) == [1]
    log.close()
