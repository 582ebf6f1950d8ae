"""Segment files: their names, what stands at their head and foot, and the scan that tells torn from corrupt.

Names: `<first offset, 20 digits>.open` while records are added, `.log` once sealed; `.quarantine` is added to either when
it is found corrupt; `.new` is a file in the making, which nobody needs after a crash.

The payload of the header frame (strings are a u32 size and UTF-8; lists a u32 count and their members):

    u16 format version, string log id, u64 bound stated by the last trim,
    list of siblings: string log id, string directory
    list of sources:  string name, string epoch, i64 last sequence, i64 last event sequence, string last lsn,
                      list of (i64 sequence, u64 content), list of u64 hashes of ended epochs

The payload of the footer frame:

    u64 first offset, u64 end (the offset after the last), 16 bytes xxh3_128 of the file up to this frame,
    list of tables: string name, u64 last offset of it in this segment
    u32 length of the whole frame, 8 bytes "dolakeFT": found from the end of the file
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import xxhash

from dolake.buffer.record import (
    FIXED_SIZE,
    FOOTER_KIND,
    HEADER_KIND,
    PAD_KIND,
    SALT_AT,
    BadFrame,
    Frame,
    decode_tables,
    encode_structure,
    parse_frame,
    salt_bytes,
    salt_crc,
)
from dolake.errors import LogCorrupt, LogRefused
from dolake.model import SourceState
from dolake.storage.disk import Disk

FORMAT_VERSION = 1
OPEN = ".open"
SEALED = ".log"
QUARANTINE = ".quarantine"
NEW = ".new"
_DIGITS = 20
_MAGIC = b"dolakeFT"
_TRAILER = struct.Struct("<I8s")
TRAILER_SIZE = _TRAILER.size


class SegmentName(NamedTuple):
    """A segment's file name, taken apart; sorts by first offset, sealed before open."""

    first_offset: int
    state: str
    quarantined: bool

    @property
    def file(self) -> str:
        return f"{self.first_offset:0{_DIGITS}d}{self.state}{QUARANTINE if self.quarantined else ''}"


@dataclass(frozen=True)
class Sibling:
    """Another log of the same daemon, and where it was."""

    log_id: str
    directory: str


@dataclass
class LogState:
    """What a segment's header says, and every record after it moves on."""

    log_id: str
    bound: int = 0
    siblings: tuple[Sibling, ...] = ()
    sources: dict[str, SourceState] = field(default_factory=dict)


@dataclass(frozen=True)
class Footer:
    first_offset: int
    end: int
    digest: bytes
    tables: dict[str, int]


@dataclass
class ScannedSegment:
    """What the scan of one segment found. `valid_end` and `crc`: the end and the crc of its last good frame before the footer."""

    path: str
    name: SegmentName
    state: LogState
    salt: int
    end: int
    valid_end: int
    crc: int
    size_bytes: int
    record_count: int
    tables: dict[str, int]
    footer: Footer | None
    torn: bool


def parse_name(file: str) -> SegmentName | None:
    """None for files that are no segments."""
    quarantined = file.endswith(QUARANTINE)
    stem = file.removesuffix(QUARANTINE)
    for state in (SEALED, OPEN):
        digits = stem.removesuffix(state)
        if digits != stem and len(digits) == _DIGITS and digits.isascii() and digits.isdigit():
            return SegmentName(int(digits), state, quarantined)
    return None


def segment_names(files: list[str]) -> list[SegmentName]:
    """The segments among a directory's files, by first offset, sealed before open."""
    return sorted(name for name in map(parse_name, files) if name is not None)


class _Packer:
    def __init__(self) -> None:
        self.pieces: list[bytes] = []

    def number(self, code: str, *values: int) -> None:
        self.pieces.append(struct.pack("<" + code, *values))

    def text(self, value: str) -> None:
        raw = value.encode("utf-8", "surrogatepass")
        self.number("I", len(raw))
        self.pieces.append(raw)


class _Unpacker:
    def __init__(self, data: bytes) -> None:
        self.data, self.position = data, 0

    def number(self, code: str) -> int:
        return int(self.numbers(code)[0])

    def numbers(self, codes: str) -> tuple[int, ...]:
        values = struct.unpack_from("<" + codes, self.data, self.position)
        self.position += struct.calcsize("<" + codes)
        return values

    def text(self) -> str:
        return self.raw(self.number("I")).decode("utf-8", "surrogatepass")

    def raw(self, size: int) -> bytes:
        self.position += size
        return self.data[self.position - size : self.position]


def encode_header(state: LogState, *, first_offset: int, salt: int) -> tuple[int, list[bytes]]:
    """The first frame of a segment: its crc and parts."""
    packer = _Packer()
    packer.number("H", FORMAT_VERSION)
    packer.text(state.log_id)
    packer.number("QI", state.bound, len(state.siblings))
    for sibling in state.siblings:
        packer.text(sibling.log_id)
        packer.text(sibling.directory)
    packer.number("I", len(state.sources))
    for source in state.sources.values():
        packer.text(source.source)
        packer.text(source.epoch)
        packer.number("qq", source.last_sequence, source.last_event_sequence)
        packer.text(source.last_lsn)
        packer.number("I", len(source.contents))
        packer.number("qQ" * len(source.contents), *(number for pair in source.contents.items() for number in pair))
        packer.number(f"I{len(source.ended_epochs)}Q", len(source.ended_epochs), *sorted(source.ended_epochs))
    payload = b"".join(packer.pieces)
    return encode_structure(
        HEADER_KIND, offset=first_offset, synced_upto=first_offset - 1, salt=salt, previous=salt_crc(salt), payload=payload
    )


def decode_log_id(payload: bytes, path: str) -> str:
    """The log id in a header frame's payload. Raises LogRefused for another format version."""
    return _decode_identity(_Unpacker(payload), path)


def _decode_identity(unpacker: _Unpacker, path: str) -> str:
    version = unpacker.number("H")
    if version != FORMAT_VERSION:
        raise LogRefused(f"{path}: format version {version}; this dolake reads {FORMAT_VERSION}: open it with the version that wrote it")
    return unpacker.text()


def decode_header(payload: bytes, path: str) -> LogState:
    """Raises LogRefused for another format version."""
    unpacker = _Unpacker(payload)
    state = LogState(_decode_identity(unpacker, path), bound=unpacker.number("Q"))
    state.siblings = tuple(Sibling(unpacker.text(), unpacker.text()) for _ in range(unpacker.number("I")))
    for _ in range(unpacker.number("I")):
        source = SourceState(unpacker.text(), unpacker.text(), unpacker.number("q"), unpacker.number("q"), unpacker.text())
        flat = unpacker.numbers("qQ" * unpacker.number("I"))
        source.contents = dict(zip(flat[::2], flat[1::2], strict=True))
        source.ended_epochs = set(unpacker.numbers(f"{unpacker.number('I')}Q"))
        state.sources[source.source] = source
    return state


def encode_footer(
    *, first_offset: int, end: int, digest: bytes, tables: dict[str, int], salt: int, previous: int
) -> tuple[int, list[bytes]]:
    """The last frame of a sealed segment. `tables`: last offset of each."""
    packer = _Packer()
    packer.number("QQ", first_offset, end)
    packer.pieces.append(digest)
    packer.number("I", len(tables))
    for table, offset in tables.items():
        packer.text(table)
        packer.number("Q", offset)
    body = b"".join(packer.pieces)
    payload = body + _TRAILER.pack(FIXED_SIZE + len(body) + _TRAILER.size, _MAGIC)
    return encode_structure(FOOTER_KIND, offset=end, synced_upto=end - 1, salt=salt, previous=previous, payload=payload)


def decode_footer(payload: bytes) -> Footer:
    unpacker = _Unpacker(payload)
    first_offset, end = unpacker.numbers("QQ")
    digest = unpacker.raw(16)
    tables: dict[str, int] = {}
    for _ in range(unpacker.number("I")):
        table = unpacker.text()
        tables[table] = unpacker.number("Q")
    return Footer(first_offset, end, digest, tables)


def footer_size(tail: bytes) -> int | None:
    """The length of the footer frame that ends a file whose last bytes are `tail`; None if none does."""
    if len(tail) < _TRAILER.size:
        return None
    size, magic = _TRAILER.unpack_from(tail, len(tail) - _TRAILER.size)
    return int(size) if magic == _MAGIC else None


def encode_pad(size: int, *, offset: int, synced_upto: int, salt: int, previous: int) -> tuple[int, list[bytes]]:
    """A frame of zeros, at least `size` bytes long: it covers what a failed write left where the footer would end too soon."""
    return encode_structure(
        PAD_KIND, offset=offset, synced_upto=synced_upto, salt=salt, previous=previous, payload=bytes(max(0, size - FIXED_SIZE))
    )


def read_whole(disk: Disk, path: str) -> bytes:
    file = disk.open(path)
    try:
        return file.read_at(0, file.size())
    finally:
        file.close()


def scan_segment(data: bytes, path: str, name: SegmentName, visit: Callable[[LogState, Frame], None] | None = None) -> ScannedSegment:
    """Checks a segment's bytes and hands each record's frame to `visit`, with the state so far, for it to move on.

    Raises LogCorrupt with the exact range: a sealed segment must verify wholly; an unsealed one may be torn at its end,
    unless something valid behind the tear says that it had been synced. Raises LogRefused for a newer format.
    """
    segment, position = _scan_header(data, path, name)
    bad: BadFrame | None = None
    while position < len(data) and segment.footer is None:
        try:
            frame = _next_frame(data, position, segment)
        except BadFrame as error:
            bad = error
            break
        position = frame.end
        if frame.kind == FOOTER_KIND:
            segment.footer = _check_footer(data, frame, segment)
            continue
        segment.valid_end, segment.crc = frame.end, frame.crc
        if frame.is_record:
            _count(segment, frame, visit)
    if segment.footer is not None and position < len(data):
        bad = BadFrame(position, "something follows the footer")
    if name.state == SEALED and segment.footer is None and bad is None:
        bad = BadFrame(position, "a sealed segment ends without its footer")
    if bad is not None:
        _judge(data, bad, segment)
    return segment


def _scan_header(data: bytes, path: str, name: SegmentName) -> tuple[ScannedSegment, int]:
    # A header is synced before its file gets its name: a bad one is never a torn one.
    try:
        frame = parse_frame(data, 0)
        if frame.kind != HEADER_KIND or frame.previous != salt_crc(frame.salt):
            raise BadFrame(0, "the segment does not begin with a header")
        if frame.offset != name.first_offset:
            raise BadFrame(0, f"the header says that offset {frame.offset} comes first, the file's name says {name.first_offset}")
    except BadFrame as error:
        salt = data[SALT_AT : SALT_AT + 8]
        end = _next_valid(data, FIXED_SIZE, salt) if len(salt) == 8 else None
        end_position = end.position if end is not None else len(data)
        raise LogCorrupt(path=path, position=0, end=end_position, reason=error.reason) from None
    segment = ScannedSegment(
        path=path,
        name=name,
        state=decode_header(frame.payload, path),
        salt=frame.salt,
        end=frame.offset,
        valid_end=frame.end,
        crc=frame.crc,
        size_bytes=len(data),
        record_count=0,
        tables={},
        footer=None,
        torn=False,
    )
    return segment, frame.end


def _next_frame(data: bytes, position: int, segment: ScannedSegment) -> Frame:
    frame = parse_frame(data, position)
    check_frame(frame, previous=segment.crc, salt=segment.salt, offset=segment.end)
    return frame


def check_frame(frame: Frame, *, previous: int, salt: int, offset: int) -> None:
    """Raises BadFrame unless a valid frame is the one that belongs here (I2)."""
    if frame.salt != salt:
        raise BadFrame(frame.position, "a frame of another segment")
    if frame.previous != previous:
        raise BadFrame(frame.position, "the frame does not follow the one before it")
    if frame.offset != offset:
        raise BadFrame(frame.position, f"offset {frame.offset} stands where {offset} belongs")


def _count(segment: ScannedSegment, frame: Frame, visit: Callable[[LogState, Frame], None] | None) -> None:
    for table in decode_tables(frame, segment.path):
        segment.tables[table] = frame.offset
    segment.record_count += 1
    if visit is not None:
        visit(segment.state, frame)
    segment.end = frame.offset + 1


def _check_footer(data: bytes, frame: Frame, segment: ScannedSegment) -> Footer:
    footer = decode_footer(frame.payload)
    digest = xxhash.xxh3_128_digest(memoryview(data)[: frame.position])
    if (footer.first_offset, footer.end, footer.digest) != (segment.name.first_offset, segment.end, digest):
        raise LogCorrupt(path=segment.path, position=0, end=frame.end, reason="the footer does not fit the segment above it")
    return footer


def _judge(data: bytes, bad: BadFrame, segment: ScannedSegment) -> None:
    """Torn, or corrupt? Torn is legal only where nothing valid behind says that these offsets were synced."""
    salt = salt_bytes(segment.salt)
    following = _next_valid(data, bad.position + 1, salt)
    resumes_at = following.position if following is not None else len(data)
    torn = segment.name.state == OPEN
    while torn and following is not None:
        torn = following.synced_upto < segment.end
        following = _next_valid(data, following.position + 1, salt)
    if not torn:
        raise LogCorrupt(path=segment.path, position=bad.position, end=resumes_at, reason=bad.reason)
    segment.torn = True


def _next_valid(data: bytes, start: int, salt: bytes) -> Frame | None:
    """The first frame of this segment at or behind `start` that verifies by itself."""
    found = data.find(salt, start + SALT_AT)
    while found >= 0:
        try:
            return parse_frame(data, found - SALT_AT)
        except BadFrame:
            found = data.find(salt, found + 1)
    return None
