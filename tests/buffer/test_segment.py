"""A segment: torn at its end, or corrupt; and where exactly."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from dolake.buffer.record import HEADER_KIND, BadFrame, encode_structure, parse_frame, salt_crc
from dolake.buffer.segment import (
    LogState,
    SegmentName,
    Sibling,
    check_frame,
    decode_header,
    encode_header,
    footer_size,
    parse_name,
    scan_segment,
    segment_names,
)
from dolake.errors import LogCorrupt, LogRefused
from dolake.model import SourceState
from tests.buffer.logtools import contents, create, entry, fill

OPEN = SegmentName(0, ".open", False)
SEALED = SegmentName(0, ".log", False)


def open_segment(tmp_path: Path, groups: list[int]) -> tuple[bytes, list[int]]:
    """An unsealed segment of groups of so many records, and where each record begins, the end last."""
    log = create(tmp_path / "log")
    number = 0
    for count in groups:
        log.append_group([entry(number + step, size=120) for step in range(count)])
        number += count
    log.close()
    data = contents(tmp_path / "log")[OPEN.file]
    positions, position = [], 0
    while position < len(data):
        positions.append(position)
        position = parse_frame(data, position).end
    return data, [*positions[1:], position]


def test_names_are_read_back_and_other_files_are_none() -> None:
    for name in (OPEN, SEALED, SegmentName(10**19, ".log", True)):
        assert parse_name(name.file) == name
    for other in ("lock", "synced-end", f"{0:020d}.log.new", f"{0:019d}.log", f"{0:020d}.tmp", "x" * 20 + ".log", "-" + "0" * 19 + ".log"):
        assert parse_name(other) is None
    assert segment_names([f"{7:020d}.open", "lock", f"{0:020d}.open", f"{0:020d}.log"]) == [SEALED, OPEN, SegmentName(7, ".open", False)]


def test_a_header_says_everything_that_deduplication_needs() -> None:
    sources = {
        name: SourceState(name, "é" * 3, 2**62, -1, "0/16B3748", {5: 2**64 - 1, 6: 0}, {1, 2**64 - 1})
        for name in ("a", "ü" * 200, "\ud800")
    }
    state = LogState("log-1", 9, (Sibling("log-2", "/mnt/b"),), sources)
    _, parts = encode_header(state, first_offset=12, salt=3)
    assert decode_header(parse_frame(b"".join(parts), 0).payload, "path") == state


def test_a_newer_format_is_refused() -> None:
    _, parts = encode_header(LogState("log-1"), first_offset=0, salt=3)
    payload = b"\x02\x00" + parts[1][2:]
    _, parts = encode_structure(HEADER_KIND, offset=0, synced_upto=-1, salt=3, previous=salt_crc(3), payload=payload)
    with pytest.raises(LogRefused, match="format version 2"):
        scan_segment(b"".join(parts), "path", OPEN)


def test_a_bad_last_record_is_a_torn_tail_and_those_before_it_count(tmp_path: Path) -> None:
    data, positions = open_segment(tmp_path, [1] * 5)
    for cut in range(positions[-2] + 1, positions[-1]):
        segment = scan_segment(data[:cut], "path", OPEN)
        assert (segment.end, segment.valid_end, segment.torn) == (4, positions[-2], True)
    segment = scan_segment(data[: positions[-2]], "path", OPEN)
    assert (segment.end, segment.torn) == (4, False)


def test_a_bad_record_below_what_a_later_one_knows_synced_is_corruption_at_its_bytes(tmp_path: Path) -> None:
    data, positions = open_segment(tmp_path, [1] * 5)
    for index in range(4):
        for position in range(positions[index], positions[index + 1], 7):
            damaged = data[:position] + bytes([data[position] ^ 0x10]) + data[position + 1 :]
            if index == 3:  # The record after it was written knowing that offset 3 was synced.
                assert parse_frame(data, positions[4]).synced_upto == 3
            with pytest.raises(LogCorrupt) as caught:
                scan_segment(damaged, "path", OPEN)
            assert (caught.value.position, caught.value.end) == (positions[index], positions[index + 1])


def test_blocks_missing_inside_the_last_group_are_a_torn_tail(tmp_path: Path) -> None:
    """Records of one group reach the disk in any order: a valid one behind a hole says nothing of the hole."""
    data, positions = open_segment(tmp_path, [2, 4])
    for index in range(2, 6):
        hole = data[: positions[index]] + bytes(positions[index + 1] - positions[index]) + data[positions[index + 1] :]
        segment = scan_segment(hole, "path", OPEN)
        assert (segment.end, segment.torn) == (index, True)


def test_garbage_behind_the_last_record_is_a_torn_tail(tmp_path: Path) -> None:
    data, positions = open_segment(tmp_path, [1] * 3)
    for garbage in (b"\0", bytes(5000), random.Random(1).randbytes(5000), data[positions[0] : positions[1]], data):
        segment = scan_segment(data + garbage, "path", OPEN)
        assert (segment.end, segment.valid_end, segment.torn) == (3, len(data), True)


def test_records_of_another_segment_never_validate(tmp_path: Path) -> None:
    data, positions = open_segment(tmp_path, [1] * 3)
    log = create(tmp_path / "other", seed=9)
    fill(log, range(3), size=120)
    log.close()
    other = contents(tmp_path / "other")[OPEN.file]
    spliced = data[: positions[2]] + other[positions[2] :]
    assert scan_segment(spliced, "path", OPEN).end == 2


@pytest.mark.parametrize(
    ("field", "message"), [("salt", "another segment"), ("previous", "does not follow"), ("offset", "stands where 1 belongs")]
)
def test_a_valid_frame_counts_only_in_its_own_place(tmp_path: Path, field: str, message: str) -> None:
    data, positions = open_segment(tmp_path, [2])
    before, frame = parse_frame(data, positions[0]), parse_frame(data, positions[1])
    check_frame(frame, previous=before.crc, salt=before.salt, offset=1)
    with pytest.raises(BadFrame, match=message):
        check_frame(frame._replace(**{field: getattr(frame, field) + 1}), previous=before.crc, salt=before.salt, offset=1)


def test_a_bad_header_is_never_a_torn_one(tmp_path: Path) -> None:
    data, positions = open_segment(tmp_path, [1])
    for position in range(0, positions[0], 5):
        damaged = data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :]
        with pytest.raises(LogCorrupt) as caught:
            scan_segment(damaged, "path", OPEN)
        assert caught.value.position == 0
    for size in range(positions[0]):
        with pytest.raises(LogCorrupt):
            scan_segment(data[:size], "path", OPEN)


def test_a_segment_under_another_name_is_refused(tmp_path: Path) -> None:
    data, _ = open_segment(tmp_path, [1])
    with pytest.raises(LogCorrupt, match="offset 0 comes first, the file's name says 4"):
        scan_segment(data, "path", SegmentName(4, ".open", False))


def test_a_sealed_segment_must_verify_wholly(tmp_path: Path) -> None:
    log = create(tmp_path / "log")
    fill(log, range(11))
    log.close()
    data = contents(tmp_path / "log")[SEALED.file]
    segment = scan_segment(data, "path", SEALED)
    assert (segment.end, segment.record_count, segment.tables) == (10, 10, {"public.orders": 9})
    assert segment.footer is not None
    assert footer_size(data) == len(data) - segment.valid_end
    for size in (segment.valid_end, len(data) - 1, 0):
        with pytest.raises(LogCorrupt):
            scan_segment(data[:size], "path", SEALED)
    with pytest.raises(LogCorrupt, match="something follows the footer") as caught:
        scan_segment(data + b"\0", "path", SEALED)
    assert caught.value.position == len(data)


@pytest.mark.acceptance("AT-04")
def test_a_flipped_byte_anywhere_in_a_sealed_segment_is_found_at_its_record(tmp_path: Path) -> None:
    log = create(tmp_path / "log")
    fill(log, range(11))
    log.close()
    data = contents(tmp_path / "log")[SEALED.file]
    chance = random.Random(4)
    for _ in range(50):
        position = chance.randrange(len(data))
        damaged = data[:position] + bytes([data[position] ^ 1 << chance.randrange(8)]) + data[position + 1 :]
        with pytest.raises(LogCorrupt) as caught:
            scan_segment(damaged, "path", SEALED)
        assert caught.value.position <= position < caught.value.end
        assert caught.value.end - caught.value.position < 600
