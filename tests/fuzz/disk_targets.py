"""What comes from disks: records, segments and packed payloads of the log, key indexes, configuration."""

from __future__ import annotations

import contextlib
import functools
import struct
import tempfile
from collections.abc import Iterator
from pathlib import Path

import google_crc32c

from dolake.buffer.codec import BadContent, Packer, Unpacker
from dolake.buffer.record import BadFrame, Frame, decode_record, encode_record, parse_frame
from dolake.buffer.segment import LogState, SegmentName, scan_segment
from dolake.config import load_settings
from dolake.errors import ConfigurationError, LogCorrupt, LogRefused
from dolake.model import Codec, Record
from tests.buffer.logtools import SMALL, contents, create, entry
from tests.fuzz.target import Check, Target, plain, require

OPEN, SEALED = SegmentName(0, ".open", False), SegmentName(0, ".log", False)


def records() -> list[bytes]:
    found = []
    for number, size in ((0, 40), (4, 300), (9, 2000)):
        packer = Packer(Codec.ZSTD if number else Codec.PLAIN)
        kept = entry(number, size=size, epoch="é" * number)
        compressible = type(kept)(**{**{name: getattr(kept, name) for name in kept.__dataclass_fields__}, "payload": b"ab" * size})
        for one in (kept, compressible):
            _, parts = encode_record(one, offset=number, synced_upto=number - 1, salt=7, previous=5, packer=packer)
            found.append(b"".join(parts))
    return found


def check_record(data: bytes) -> str:
    """As it came: the checksum keeps everything out that was not written."""
    try:
        frame = parse_frame(data, 0)
    except BadFrame:
        return "BadFrame"
    require(any(data.startswith(right) for right in _right_records()), "bytes that nobody wrote pass for a record")
    return _decoded(frame, data)


@functools.cache
def _right_records() -> tuple[bytes, ...]:
    return tuple(records())


def check_forged_record(data: bytes) -> str:
    """With its length and checksum put right, as only a program could do: the decoder is on its own."""
    if len(data) < 24:
        return "short"
    data = data[:16] + struct.pack("<I", len(data)) + data[20:]
    data = struct.pack("<I", google_crc32c.value(data[4:])) + data[4:]
    try:
        frame = parse_frame(data, 0)
    except BadFrame:
        return "BadFrame"
    return _decoded(frame, data)


def _decoded(frame: Frame, data: bytes) -> str:
    try:
        record = decode_record(frame, "log", "path")
    except (LogCorrupt, LogRefused) as error:
        return type(error).__name__
    require(record.offset == frame.offset, "another offset")
    if frame.codec == Codec.PLAIN and not _has_slack(frame):
        crc, parts = encode_record(
            record.entry, offset=frame.offset, synced_upto=frame.synced_upto, salt=frame.salt, previous=frame.previous
        )
        require((crc, b"".join(parts)) == (frame.crc, data[: frame.length]), "a record is encoded to other bytes than it was decoded from")
    return "record"


def _has_slack(frame: Frame) -> bool:
    """Bits that are not written by this version: unknown flags, a mark's id without a mark, tables named twice, trims with counts."""
    return frame.flags not in (0, 1, 3) or (not frame.flags and bool(frame.sizes[3])) or not _tables_are_distinct(frame)


def _tables_are_distinct(frame: Frame) -> bool:
    position, names = len(frame.head) - frame.sizes[4], []
    while position + 6 <= len(frame.head):
        (size,) = struct.unpack_from("<H", frame.head, position + 4)
        names.append(frame.head[position + 6 : position + 6 + size])
        position += 6 + size
    return position == len(frame.head) and len(names) == len(set(names))


@functools.cache
def _segments() -> tuple[bytes, bytes, tuple[Record, ...]]:
    """The same records in an unsealed segment and in a sealed one."""
    with tempfile.TemporaryDirectory() as directory:
        log = create(Path(directory) / "log", SMALL)
        for start in (0, 3, 4):
            log.append_group([entry(start + place, size=120) for place in range(3 if start != 3 else 1)])
        unsealed = contents(Path(directory) / "log")[OPEN.file]
        number = 7
        while SEALED.file not in contents(Path(directory) / "log"):
            log.append_group([entry(number, size=900)])
            number += 1
        sealed = contents(Path(directory) / "log")[SEALED.file]
        log.close()
    return unsealed, sealed, tuple(_visited(sealed, SEALED))


def _visited(data: bytes, name: SegmentName) -> list[Record]:
    found: list[Record] = []

    def visit(state: LogState, frame: Frame) -> None:
        found.append(decode_record(frame, state.log_id, "path"))

    scan_segment(data, "path", name, visit)
    return found


def check_segment(data: bytes) -> str:
    """A scan gives the records that were written, from the first, or says where the bytes are wrong. Never others, none skipped."""
    _, sealed, written = _segments()
    outcomes = []
    for name in (OPEN, SEALED):
        try:
            found = _visited(data, name)
        except (LogCorrupt, LogRefused) as error:
            outcomes.append(type(error).__name__)
            continue
        require(found == list(written[: len(found)]), f"a scan of {name.file} gives records that were not written, or not in this order")
        require(name == OPEN or data == sealed, "a sealed segment verifies that is not the one that was written")
        outcomes.append(f"{'all' if len(found) == len(written) else 'some' if found else 'none'}")
    return "/".join(outcomes)


PAYLOADS = (b"a change, and another one. " * 50, bytes(100_000), b"\x00")


def packed() -> list[bytes]:
    return [Packer(Codec.ZSTD).pack(payload)[1] for payload in PAYLOADS[:2]]


def check_packed(data: bytes) -> str:
    try:
        found = Unpacker().unpack(Codec.ZSTD, data)
    except BadContent:
        return "BadContent"
    except MemoryError:  # A frame may say up to a GiB, and a machine not have it.
        return "MemoryError"
    return "the same" if found in PAYLOADS else "other content"  # It is the record's checksum that keeps others out.


_DISTINCT = b'[tables."*.*"]\nmode = "both"\n'
CONFIGURATIONS = (
    b"[flush]\nage_s = 5\nbytes = '64 MiB'\nrows = 1000\n[log]\nsegment_bytes = '1 MiB'\ncodec = 'zstd'\nbacklog_bytes = '1 GiB'\n",
    _DISTINCT
    + b'[tables."public.orders"]\npartition_by = ["day(ts)", "bucket(16, id)"]\ntruncate = "table"\n[sources.shop]\nnamespace = "x"\n',
    b'[warehouse]\nuri = "s3://bucket/prefix"\n[s3]\nendpoint = "http://127.0.0.1:1"\naccess_key = "k"\nsecret_key = "s"\nregion = "r"\n',
    b'[limits]\npayload_bytes = 1000000\n[tokens.a]\nhash = "sha256:' + b"0" * 64 + b'"\nsources = ["*"]\nread = true\n[http]\n[auth]\n',
    b"[commit]\nsnapshots_kept = 10\ntags_kept_days = 1\n[cdc]\nport = 8765\n",
)


@contextlib.contextmanager
def open_configuration() -> Iterator[Check]:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "dolake.toml")

        def check(data: bytes) -> str:
            path.write_bytes(data)
            text = data.decode("utf-8", "replace").replace("\0", "")
            variables = {"DOLAKE_DATA": directory, "DOLAKE_FLUSH_AGE_S": text[:20], "DOLAKE_LOG_SEGMENT_BYTES": text[-20:]}
            outcomes = []
            for environment in ({"DOLAKE_DATA": directory}, variables):
                try:
                    load_settings(config=str(path), environment=environment)
                    outcomes.append("settings")
                except ConfigurationError as error:
                    require(bool(error.mistakes) and all(mistake.rule for mistake in error.mistakes), "a refusal that says nothing")
                    outcomes.append("ConfigurationError")
            require([one.name for one in Path(directory).iterdir()] == [path.name], "reading settings made something")
            return outcomes[0]

        yield check


TARGETS = (
    Target("record", "only what was written is a record", records, plain(check_record), 300),
    Target(
        "forged record",
        "with a right checksum: a record that encodes to the same bytes, or LogCorrupt, LogRefused",
        records,
        plain(check_forged_record),
        500,
    ),
    Target(
        "segment",
        "a scan gives what was written, from the first, or says where it is wrong",
        lambda: _segments()[:2],
        plain(check_segment),
        400,
    ),
    Target("packed payload", "what does not unpack is BadContent", packed, plain(check_packed), 200),
    Target(
        "configuration",
        "settings, or ConfigurationError that names each mistake; nothing is created",
        lambda: CONFIGURATIONS,
        open_configuration,
        120,
    ),
)
