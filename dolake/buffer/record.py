"""The bytes of a log: frames, and the entries inside them.

A segment is a row of frames with nothing between them. Every number is little endian:

     0  u32  crc                  CRC32C of bytes 4 .. length
     4  u32  previous             crc of the frame before; in a segment's first frame the CRC32C of the salt
     8  u64  salt                 drawn once a segment: recycled or misplaced blocks never validate
    16  u32  length               of the whole frame, from its crc to the end of its payload
    20  u8   kind                 1 batch, 2 schema, 3 trim, 4 siblings; 128 header, 129 footer, 130 pad
    21  u8   codec                of the payload. 0: as it was received; 1: one zstd frame that states its content's size
    22  u8   flags                1: part of a source transaction; 2: its last batch
    23  u8   zero
    24  u64  offset               dense and rising; header, footer and pad take none (the header: the first to come)
    32  i64  synced_upto          highest offset known to be synced when this was written; -1: none
    40  i64  sequence
    48  u64  content              xxh3_64 of the `events` value
    56  i64  last_event_sequence
    64  u32  event_count
    68  u32  size of the source   ┐
    72  u32  size of the epoch    │
    76  u32  size of the lsn      ├ the lengths, in bytes, of what follows the fixed part
    80  u32  size of the transaction id
    84  u32  size of the tables   ┘
    88       source, epoch, lsn, transaction id (UTF-8), tables, payload

`tables` is a row of (u32 event count, u16 size of the name, name). Both crcs and the length are of what is stored, packed or
not; `content` is of the events as they came, so that a repeat is known whatever the setting was. A frame can be checked by
itself, because the crc it is chained to is inside it: that is how the scan of a damaged segment finds where it goes on
(segment.py).
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

import google_crc32c

from dolake.buffer.codec import BadContent, Packer, Unpacker, plain_size
from dolake.errors import DolakeError, LogCorrupt, LogRefused
from dolake.model import Codec, Entry, Record, RecordKind, TransactionMark

FIXED = struct.Struct("<IIQIBBBBQqqQqIIIIII")
FIXED_SIZE = FIXED.size
SALT_AT = 8
_TABLE = struct.Struct("<IH")
_U32 = struct.Struct("<I")
_SALT = struct.Struct("<Q")

HEADER_KIND = 128
FOOTER_KIND = 129
PAD_KIND = 130
_STRUCTURE_KINDS = frozenset((HEADER_KIND, FOOTER_KIND, PAD_KIND))
_RECORD_KINDS = frozenset(int(kind) for kind in RecordKind)
_CODECS = frozenset(int(codec) for codec in Codec)
_AS_IT_IS = Packer(Codec.PLAIN)
_OWN_KINDS = frozenset((RecordKind.TRIM, RecordKind.SIBLINGS))
_IN_TRANSACTION = 1
_LAST_OF_TRANSACTION = 2


class BadFrame(DolakeError):
    """The bytes at `position` are no frame. `short`: they might be the beginning of one that lies behind what was given."""

    def __init__(self, position: int, reason: str, *, short: int = 0) -> None:
        super().__init__(f"byte {position}: {reason}")
        self.position, self.reason, self.short = position, reason, short


class Frame(NamedTuple):
    """A frame that verified. `position` is its place in the bytes given, `head_size` where its payload begins in it."""

    position: int
    crc: int
    previous: int
    salt: int
    length: int
    kind: int
    codec: int
    flags: int
    offset: int
    synced_upto: int
    sequence: int
    content: int
    last_event_sequence: int
    event_count: int
    sizes: tuple[int, int, int, int, int]
    head: bytes
    payload: bytes

    @property
    def end(self) -> int:
        return self.position + self.length

    @property
    def is_record(self) -> bool:
        return self.kind not in _STRUCTURE_KINDS


def salt_crc(salt: int) -> int:
    """What the first frame of a segment is chained to."""
    return int(google_crc32c.extend(0, _SALT.pack(salt)))


def salt_bytes(salt: int) -> bytes:
    return _SALT.pack(salt)


def encode_structure(kind: int, *, offset: int, synced_upto: int, salt: int, previous: int, payload: bytes) -> tuple[int, list[bytes]]:
    """A header, footer or pad frame: its crc and its parts."""
    nothing = (b"", b"", b"", b"", b"")
    return _encode(kind, Codec.PLAIN, 0, offset, synced_upto, salt, previous, (-1, 0, -1, 0), nothing, payload)


def encode_record(
    entry: Entry, *, offset: int, synced_upto: int, salt: int, previous: int, packer: Packer = _AS_IT_IS
) -> tuple[int, list[bytes]]:
    """An entry as a frame: its crc and its parts; the payload is a part of its own, and not copied unless it is packed.

    The log's own records (trim, siblings) are never packed: recovery reads them without unpacking anything. Raises ValueError.
    """
    mark = entry.transaction
    flags = 0 if mark is None else _IN_TRANSACTION | (_LAST_OF_TRANSACTION if mark.last else 0)
    texts = (
        _bytes_of(entry.source),
        _bytes_of(entry.epoch),
        _bytes_of(entry.last_lsn),
        _bytes_of(mark.id) if mark is not None else b"",
        _encode_tables(entry.tables),
    )
    numbers = (entry.sequence, entry.content, entry.last_event_sequence, entry.event_count)
    codec, stored = (Codec.PLAIN, entry.payload) if entry.kind in _OWN_KINDS else packer.pack(entry.payload)
    try:
        return _encode(int(entry.kind), codec, flags, offset, synced_upto, salt, previous, numbers, texts, stored)
    except struct.error as error:
        raise ValueError(f"source {entry.source!r}, sequence {entry.sequence}: does not fit a record: {error}") from error


def _encode(
    kind: int,
    codec: Codec,
    flags: int,
    offset: int,
    synced_upto: int,
    salt: int,
    previous: int,
    numbers: tuple[int, int, int, int],
    texts: tuple[bytes, bytes, bytes, bytes, bytes],
    payload: bytes,
) -> tuple[int, list[bytes]]:
    sizes = tuple(len(text) for text in texts)
    length = FIXED_SIZE + sum(sizes) + len(payload)
    fixed = FIXED.pack(0, previous, salt, length, kind, codec, flags, 0, offset, synced_upto, *numbers, *sizes)
    head = b"".join((fixed[4:], *texts))
    crc = int(google_crc32c.extend(google_crc32c.extend(0, head), payload))
    return crc, [_U32.pack(crc) + head, payload]


def parse_frame(data: bytes, position: int) -> Frame:
    """The frame at `position`, checked by itself. Raises BadFrame; `short` there says how many bytes it would need."""
    available = len(data) - position
    if available < FIXED_SIZE:
        raise BadFrame(position, "too short for a frame", short=FIXED_SIZE)
    fields = FIXED.unpack_from(data, position)
    crc, length, zero = fields[0], fields[3], fields[7]
    sizes = fields[14:19]
    head_size = FIXED_SIZE + sum(sizes)
    if length < head_size:
        raise BadFrame(position, "no frame begins here")
    if length > available:
        raise BadFrame(position, "the frame ends behind the end of the file", short=length)
    head = data[position + 4 : position + head_size]
    payload = data[position + head_size : position + length]
    if google_crc32c.extend(google_crc32c.extend(0, head), payload) != crc or zero:
        raise BadFrame(position, "the checksum does not match")
    return Frame._make((position, *fields[:7], *fields[8:14], sizes, head, payload))


def decode_record(frame: Frame, log_id: str, path: str, unpacker: Unpacker | None = None) -> Record:
    """The record in a verified frame. Raises LogRefused for what a newer dolake wrote: it is never skipped.

    Raises LogCorrupt for a payload that does not unpack to what it says, however good its checksum is.
    """
    entry = decode_stored(frame, path)
    codec = Codec(frame.codec)
    if codec is not Codec.PLAIN:
        try:
            entry = replace(entry, payload=(unpacker or Unpacker()).unpack(codec, frame.payload))
        except BadContent as error:
            raise LogCorrupt(path=path, position=frame.position, end=frame.end, reason=str(error)) from None
    return Record(log_id, frame.offset, entry, frame.length - len(frame.payload) + len(entry.payload), frame.length, codec)


def record_size(frame: Frame) -> int:
    """`size_bytes` of the record in a frame, without unpacking it. What cannot be known is found out by `decode_record`."""
    try:
        return frame.length - len(frame.payload) + plain_size(Codec(frame.codec), frame.payload)
    except ValueError:
        return frame.length


def decode_stored(frame: Frame, path: str) -> Entry:
    """The entry in a verified frame, its payload as it is stored: enough for what a log knows after it. Raises LogRefused."""
    if frame.kind not in _RECORD_KINDS:
        raise LogRefused(
            f"{path}: byte {frame.position}: record kind {frame.kind} is not known here; open it with the version that wrote it"
        )
    if frame.codec not in _CODECS:
        raise LogRefused(f"{path}: byte {frame.position}: codec {frame.codec} is not known; open it with the version that wrote it")
    source, epoch, last_lsn, transaction_id = _decode_texts(frame, path)
    mark = TransactionMark(transaction_id, bool(frame.flags & _LAST_OF_TRANSACTION)) if frame.flags & _IN_TRANSACTION else None
    return Entry(
        kind=RecordKind(frame.kind),
        source=source,
        epoch=epoch,
        sequence=frame.sequence,
        event_count=frame.event_count,
        content=frame.content,
        payload=frame.payload,
        tables=decode_tables(frame, path),
        last_event_sequence=frame.last_event_sequence,
        last_lsn=last_lsn,
        transaction=mark,
    )


def _decode_texts(frame: Frame, path: str) -> list[str]:
    position, texts = FIXED_SIZE - 4, []
    try:
        for size in frame.sizes[:4]:
            texts.append(frame.head[position : position + size].decode("utf-8", "surrogatepass"))
            position += size
    except UnicodeDecodeError as error:
        raise _unreadable(frame, path, error) from None
    return texts


def decode_tables(frame: Frame, path: str) -> dict[str, int]:
    """Events of each table in a record, in order of first appearance. Raises LogCorrupt, however good the checksum is."""
    tables: dict[str, int] = {}
    head = frame.head
    position = len(head) - frame.sizes[4]
    try:
        while position < len(head):
            count, size = _TABLE.unpack_from(head, position)
            position += _TABLE.size
            tables[head[position : position + size].decode("utf-8", "surrogatepass")] = count
            position += size
    except (UnicodeDecodeError, struct.error) as error:
        raise _unreadable(frame, path, error) from None
    return tables


def _unreadable(frame: Frame, path: str, error: Exception) -> LogCorrupt:
    return LogCorrupt(path=path, position=frame.position, end=frame.end, reason=f"the checksum is right and the record is not: {error}")


def _encode_tables(tables: Mapping[str, int]) -> bytes:
    pieces = []
    for table, count in tables.items():
        name = _bytes_of(table)
        pieces.append(_TABLE.pack(count, len(name)) + name)
    return b"".join(pieces)


def _bytes_of(text: str) -> bytes:
    # A lone surrogate is no UTF-8; it is kept as it came rather than failing a whole group.
    return text.encode("utf-8", "surrogatepass")
