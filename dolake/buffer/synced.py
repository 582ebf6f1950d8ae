"""The synced end of a log, as the ingest half publishes it: the first offset that is not on disk yet.

One word of 64 bits in a memory-mapped file: the offset in the lower 48, in the upper 16 a tag of (log id, offset), so
that a word that is torn, or another log's, is told from ours. It is set only after the sync: it is never above what is
durable. After a power cut it may be below until recovery has set it anew.
"""

from __future__ import annotations

import xxhash

from dolake.storage.disk import Disk, SharedCounter

_OFFSET_BITS = 48
_OFFSET_MASK = (1 << _OFFSET_BITS) - 1
NAME = "synced-end"


def encode_end(log_id: str, end: int) -> int:
    return _tag(log_id, end) << _OFFSET_BITS | end


def decode_end(log_id: str, word: int) -> int | None:
    """None if the word is not this log's."""
    end = word & _OFFSET_MASK
    return end if word >> _OFFSET_BITS == _tag(log_id, end) else None


def read_end(disk: Disk, directory: str, log_id: str) -> int | None:
    """The published end, None where there is none of this log."""
    try:
        counter = disk.counter(f"{directory}/{NAME}", writable=False)
    except (FileNotFoundError, ValueError):  # ValueError: the file was made and not yet given its size.
        return None
    try:
        return decode_end(log_id, counter.get())
    finally:
        counter.close()


def publish_end(counter: SharedCounter, log_id: str, end: int) -> None:
    counter.set(encode_end(log_id, end))


def _tag(log_id: str, end: int) -> int:
    return xxhash.xxh3_64_intdigest(f"{log_id}/{end}".encode()) & 0xFFFF
