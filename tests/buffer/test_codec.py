"""Packed payloads: the same bytes come back, whatever the setting was when they were written, and nothing unpacks to too much."""

from __future__ import annotations

from pathlib import Path

import orjson
import pytest
import xxhash
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from dolake.buffer import codec
from dolake.buffer.codec import PLAIN_BYTES_MAX, SHRINKS_FROM_BYTES, BadContent, Packer, Unpacker, plain_size
from dolake.buffer.inspect import inspect_log, verify_log
from dolake.buffer.record import BadFrame, decode_record, encode_record, encode_structure, parse_frame, record_size, salt_crc
from dolake.buffer.tail import LogReader
from dolake.buffer.wal import LogSettings
from dolake.errors import LogCorrupt
from dolake.model import Codec, Entry, Record, RecordKind
from dolake.storage.disk import LocalDisk
from tests.buffer.logtools import create, read_all, reopen
from tests.harness.oracle import ledger_event
from tests.harness.source import batch_message

SALT = 0x1122334455667788
PACKED = LogSettings(segment_bytes=1 << 20, reserve_bytes=0, codec=Codec.ZSTD)
PLAIN = LogSettings(segment_bytes=1 << 20, reserve_bytes=0, codec=Codec.PLAIN)


def batch_entry(sequence: int, event_count: int = 100) -> Entry:
    """A batch as a source sends it, as the ingest half logs it."""
    first = sequence * event_count
    events = [ledger_event(first + place) for place in range(event_count)]
    payload = orjson.dumps(batch_message("orders-db", sequence, events))
    content = xxhash.xxh3_64_intdigest(payload)
    return Entry(
        RecordKind.BATCH, "orders-db", "", sequence, event_count, content, payload, {"ledger": event_count}, first + event_count - 1
    )


def packed_frame(entry: Entry) -> bytes:
    _, parts = encode_record(entry, offset=41, synced_upto=40, salt=SALT, previous=salt_crc(SALT), packer=Packer(Codec.ZSTD))
    return b"".join(parts)


@pytest.mark.acceptance("AT-11")
def test_ten_megabytes_shrink_to_less_than_half_and_are_read_back_whatever_the_setting_becomes(tmp_path: Path) -> None:
    entries = [batch_entry(number) for number in range(460)]
    parts = [entries[:420], entries[420:430], entries[430:440], entries[440:]]
    assert sum(len(entry.payload) for entry in parts[0]) >= 10_000_000
    log = create(tmp_path / "log", PACKED)
    for start in range(0, 420, 8):
        log.append_group(parts[0][start : start + 8])
    assert log.size_bytes <= 0.4 * sum(len(entry.payload) for entry in parts[0])
    log.close()
    for settings, part in zip((PLAIN, PACKED, PLAIN), parts[1:], strict=True):
        log = reopen(tmp_path / "log", settings)
        before = log.appended_bytes, log.size_bytes
        log.append_group(part)
        assert log.appended_bytes - before[0] <= log.size_bytes - before[1]  # The rest is the new segment's header.
        log.close()
    records = read_all(tmp_path / "log", size_bytes_max=1 << 20)
    assert [record.entry for record in records] == entries
    assert [record.codec for record in records] == [Codec.ZSTD] * 420 + [Codec.PLAIN] * 10 + [Codec.ZSTD] * 10 + [Codec.PLAIN] * 20
    log = reopen(tmp_path / "log", PACKED)
    assert log.sources["orders-db"].contents[459] == entries[459].content
    log.close()
    assert list(verify_log(LocalDisk(), str(tmp_path / "log"))) == []
    views = list(inspect_log(LocalDisk(), str(tmp_path / "log")))
    assert sum(view.plain_bytes for view in views) >= sum(len(entry.payload) for entry in entries)
    assert sum(view.size_bytes for view in views) == log.size_bytes
    shown = [record for view in views for record in view.records]
    assert [(record.size_bytes, record.stored_bytes, record.codec) for record in shown] == [
        (record.size_bytes, record.stored_bytes, record.codec) for record in records
    ]


def test_a_reader_is_given_no_more_than_it_asks_for_however_small_it_is_stored(tmp_path: Path) -> None:
    log = create(tmp_path / "log", PACKED)
    log.append_group([batch_entry(number) for number in range(40)])
    reader = LogReader(LocalDisk(), str(tmp_path / "log"))
    one = reader.read(0, 1)
    assert [record.offset for record in one] == [0]
    wanted = 5 * one[0].size_bytes
    position, steps = 1, []
    while records := reader.read(position, wanted):
        steps.append(sum(record.size_bytes for record in records))
        position = records[-1].offset + 1
    assert position == 40
    assert max(steps) <= wanted
    assert len(steps) <= 14
    reader.close()
    log.close()


def test_a_cut_at_every_byte_and_every_flipped_bit_of_a_packed_record_is_noticed() -> None:
    data = bytearray(packed_frame(batch_entry(0, 3)))
    assert parse_frame(bytes(data), 0).codec == Codec.ZSTD
    for size in range(len(data)):
        with pytest.raises(BadFrame):
            parse_frame(bytes(data[:size]), 0)
    for bit in range(len(data) * 8):
        data[bit // 8] ^= 1 << bit % 8
        with pytest.raises(BadFrame):
            parse_frame(bytes(data), 0)
        data[bit // 8] ^= 1 << bit % 8
    for trailing in (b"\0", b"\xff" * 100, bytes(data)):
        assert parse_frame(bytes(data) + trailing, 0) == parse_frame(bytes(data), 0)


@given(st.one_of(st.binary(max_size=2000), st.text(alphabet='{"a:1}', max_size=4000).map(str.encode)))
def test_whatever_is_packed_is_unpacked_to_the_byte(payload: bytes) -> None:
    kind, stored = Packer(Codec.ZSTD).pack(payload)
    assert len(stored) <= len(payload)
    assert plain_size(kind, stored) == len(payload)
    assert Unpacker().unpack(kind, stored) == payload


def test_what_does_not_shrink_stays_as_it_is_and_is_not_copied() -> None:
    for payload in (b"", b"a" * (SHRINKS_FROM_BYTES - 1), SeededBytes):
        assert Packer(Codec.ZSTD).pack(payload) == (Codec.PLAIN, payload)
        assert Packer(Codec.ZSTD).pack(payload)[1] is payload
    assert Packer(Codec.PLAIN).pack(b"a" * 10_000)[0] is Codec.PLAIN


SeededBytes = b"".join(xxhash.xxh3_128_digest(bytes([number])) for number in range(200))


@pytest.mark.parametrize("kind", list(RecordKind))
def test_the_logs_own_records_are_never_packed_and_all_others_are(kind: RecordKind) -> None:
    frame = parse_frame(packed_frame(Entry(kind, "", "", -1, 0, 0, b'{"siblings": [%b]}' % (b"1," * 500 + b"1"))), 0)
    assert frame.codec == (Codec.PLAIN if kind in (RecordKind.TRIM, RecordKind.SIBLINGS) else Codec.ZSTD)


BAD = {
    "does not unpack": lambda good: good[:-5] + b"\0\0\0\0\0",
    "no zstd frame": lambda good: b"{" + good,
    "unused data": lambda good: good + b"more",
    "says no size": lambda good: zstandard.ZstdCompressor(write_content_size=False).compress(bytes(500)),
    "at most": lambda good: _claiming(PLAIN_BYTES_MAX + 1),
}


def _claiming(size: int) -> bytes:
    """A frame that says it holds `size` zeros, and does not."""
    frame = bytearray(zstandard.ZstdCompressor().compress(bytes(100_000)))
    (at,) = (place for place in range(len(frame)) if frame[place : place + 4] == (100_000).to_bytes(4, "little"))
    frame[at : at + 4] = size.to_bytes(4, "little")
    return bytes(frame)


@pytest.mark.parametrize("reason", BAD)
def test_a_frame_that_is_not_what_was_written_is_corruption_and_no_memory_is_taken_for_it(reason: str) -> None:
    """Its checksum is good: only a mistake of ours, or somebody's intent, can put it there."""
    good = Packer(Codec.ZSTD).pack(batch_entry(0).payload)[1]
    stored = BAD[reason](good)
    _, parts = encode_structure(RecordKind.BATCH, offset=3, synced_upto=2, salt=SALT, previous=0, payload=stored)
    frame = parse_frame(b"".join(parts), 0)._replace(codec=Codec.ZSTD)
    with pytest.raises(LogCorrupt, match=reason) as caught:
        decode_record(frame, "log-1", "segment.log")
    assert (caught.value.path, caught.value.position, caught.value.end) == ("segment.log", 0, frame.end)
    assert record_size(frame) > 0


def test_a_frame_that_holds_less_than_it_says_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BadContent):
        Unpacker().unpack(Codec.ZSTD, _claiming(90_000))
    with pytest.raises(BadContent):
        Unpacker().unpack(Codec.ZSTD, _claiming(200_000))
    monkeypatch.setattr(codec, "PLAIN_BYTES_MAX", 1000)
    with pytest.raises(BadContent, match="100000 bytes; a payload has at most 1000"):
        Unpacker().unpack(Codec.ZSTD, zstandard.ZstdCompressor().compress(bytes(100_000)))


def test_both_sizes_of_a_record_are_told() -> None:
    entry = batch_entry(7)
    data = packed_frame(entry)
    frame = parse_frame(data, 0)
    record = decode_record(frame, "log-1", "path")
    assert record == Record("log-1", 41, entry, len(data) - len(frame.payload) + len(entry.payload), len(data), Codec.ZSTD)
    assert record_size(frame) == record.size_bytes
