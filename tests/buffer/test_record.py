"""Records: what is written is read, and anything else is noticed."""

from __future__ import annotations

import struct

import google_crc32c
import pytest

from dolake.buffer.record import FIXED, FIXED_SIZE, BadFrame, decode_record, encode_record, encode_structure, parse_frame, salt_crc
from dolake.errors import LogCorrupt, LogRefused
from dolake.model import Entry, RecordKind, TransactionMark
from tests.buffer.logtools import entry

SALT = 0x1122334455667788
ENTRIES = [
    entry(0),
    Entry(RecordKind.BATCH, "ä" * 200, "epoch-2", 2**62, 0, 2**64 - 1, b"", {}, -1, "", TransactionMark("tx/ü", last=True)),
    Entry(RecordKind.SCHEMA, "s", "", 1, 0, 7, b'{"type":"schema"}', {"orders": 0, "public.über": 0}, -1, "0/16B3748"),
    Entry(RecordKind.TRIM, "", "", -1, 0, 0, b'{"bound": 4}'),
    Entry(RecordKind.SIBLINGS, "", "", -1, 0, 0, b'{"siblings": []}'),
    Entry(RecordKind.BATCH, "\ud800", "", 0, 10_000, 1, bytes(70_000), {f"t{i}": i for i in range(10_000)}, 5, "x" * 70_000),
]


def encoded(value: Entry, offset: int = 41, synced_upto: int = 40, previous: int | None = None) -> bytes:
    return b"".join(
        encode_record(value, offset=offset, synced_upto=synced_upto, salt=SALT, previous=salt_crc(SALT) if previous is None else previous)[
            1
        ]
    )


@pytest.mark.acceptance("AT-40")
@pytest.mark.parametrize("value", ENTRIES, ids=lambda value: value.kind.name)
def test_every_kind_is_decoded_as_it_was_given(value: Entry) -> None:
    data = encoded(value)
    record = decode_record(parse_frame(b"before" + data, 6), "log-1", "path")
    assert (record.entry, record.offset, record.log_id, record.size_bytes) == (value, 41, "log-1", len(data))
    assert list(record.entry.tables) == list(value.tables)


def test_the_bytes_are_where_the_docstring_draws_them() -> None:
    data = encoded(entry(4, size=5))
    assert FIXED_SIZE == 88
    assert int.from_bytes(data[4:8], "little") == salt_crc(SALT)
    assert int.from_bytes(data[8:16], "little") == SALT
    assert int.from_bytes(data[16:20], "little") == len(data)
    assert (data[20], data[21], data[22], data[23]) == (1, 0, 1, 0)
    assert int.from_bytes(data[24:32], "little") == 41
    assert int.from_bytes(data[32:40], "little", signed=True) == 40
    assert int.from_bytes(data[40:48], "little") == 4
    assert data[88:97] == b"orders-db"
    assert data.endswith(entry(4, size=5).payload)


def test_a_payload_is_not_copied() -> None:
    value = entry(0)
    assert encode_record(value, offset=0, synced_upto=-1, salt=SALT, previous=0)[1][-1] is value.payload


def test_a_cut_at_every_byte_is_noticed() -> None:
    data = encoded(entry(0, size=120))
    for size in range(len(data)):
        with pytest.raises(BadFrame) as caught:
            parse_frame(data[:size], 0)
        assert caught.value.short == (FIXED_SIZE if size < FIXED_SIZE else len(data))


def test_every_flipped_bit_is_noticed() -> None:
    data = bytearray(encoded(entry(0, size=120)))
    for bit in range(len(data) * 8):
        data[bit // 8] ^= 1 << bit % 8
        with pytest.raises(BadFrame):
            parse_frame(bytes(data), 0)
        data[bit // 8] ^= 1 << bit % 8
    parse_frame(bytes(data), 0)


@pytest.mark.parametrize("trailing", [b"\0", bytes(4096), b"\xff" * 100, encoded(entry(1))])
def test_trailing_bytes_are_not_part_of_a_record(trailing: bytes) -> None:
    data = encoded(entry(0))
    assert parse_frame(data + trailing, 0) == parse_frame(data, 0)


@pytest.mark.parametrize("junk", [bytes(4096), b"\xff" * 4096, bytes(range(256)) * 16])
def test_what_is_no_record_is_not_taken_for_one(junk: bytes) -> None:
    with pytest.raises(BadFrame):
        parse_frame(junk, 0)


def test_the_same_record_behind_another_has_another_checksum() -> None:
    first, second = (parse_frame(encoded(entry(0), previous=previous), 0) for previous in (1, 2))
    assert first.crc != second.crc


@pytest.mark.acceptance("AT-40")
@pytest.mark.parametrize("kind", [0, max(RecordKind) + 1, 99, 128, 255])
def test_an_unknown_kind_is_refused_and_not_skipped(kind: int) -> None:
    _, parts = encode_structure(kind, offset=1, synced_upto=0, salt=SALT, previous=0, payload=b"?")
    with pytest.raises(LogRefused, match=f"byte 0: record kind {kind} is not known"):
        decode_record(parse_frame(b"".join(parts), 0), "log-1", "path")


def test_an_unknown_codec_is_refused() -> None:
    frame = parse_frame(encoded(entry(0)), 0)._replace(codec=3)
    with pytest.raises(LogRefused, match="codec 3"):
        decode_record(frame, "log-1", "path")


@pytest.mark.parametrize("value", [Entry(RecordKind.BATCH, "s", "", 2**63, 1, 1, b""), Entry(RecordKind.BATCH, "s", "", 1, 1, -1, b"")])
def test_a_number_that_does_not_fit_is_named_before_anything_is_written(value: Entry) -> None:
    with pytest.raises(ValueError, match="source 's', sequence"):
        encoded(value)


def test_lengths_that_contradict_each_other_are_no_frame() -> None:
    data = bytearray(encoded(entry(0)))
    fields = list(FIXED.unpack_from(data))
    fields[14] = 10_000
    FIXED.pack_into(data, 0, *fields)
    with pytest.raises(BadFrame, match="no frame begins here"):
        parse_frame(bytes(data), 0)


@pytest.mark.parametrize(
    ("place", "value"), [(FIXED_SIZE, b"\xff"), (-1, b"\xff"), (-20, b"\xff\xff")], ids=["a source", "a table's name", "a length"]
)
def test_a_record_that_is_none_in_spite_of_its_checksum_is_corrupt(place: int, value: bytes) -> None:
    """Only a program could write it. It stops the log at its place, like any other bad byte (found by fuzzing)."""
    data = bytearray(encoded(Entry(RecordKind.BATCH, "s", "", 1, 1, 1, b"", {"public.orders": 1})))
    place %= len(data)
    data[place : place + len(value)] = value
    data[:4] = struct.pack("<I", google_crc32c.value(bytes(data[4:])))
    with pytest.raises(LogCorrupt, match="the checksum is right and the record is not") as caught:
        decode_record(parse_frame(bytes(data), 0), "log-1", "path")
    assert (caught.value.position, caught.value.end) == (0, len(data))
