"""The one segment of a log that still grows: creating it, writing to it, sealing it. Each step is synced before the next.

A file gets its `.open` name only when its header is synced, and its `.log` name only when its footer is.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass

import xxhash

from dolake.buffer.codec import Packer
from dolake.buffer.record import encode_record
from dolake.buffer.segment import NEW, OPEN, SEALED, LogState, SegmentName, encode_footer, encode_header, encode_pad
from dolake.errors import LogFull
from dolake.failpoints import hit
from dolake.model import Entry
from dolake.storage.disk import Disk, File

# At most, and with room for what file systems round up.
_FOOTER_BYTES, _FOOTER_TABLE_BYTES = 64 << 10, 280


@dataclass(frozen=True)
class SealedSegment:
    """A segment that is complete. `tables`: last offset of each table in it."""

    path: str
    first_offset: int
    end: int
    size_bytes: int
    tables: dict[str, int]


def is_full(error: OSError) -> bool:
    """No room, and nothing worse."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


def _forget(disk: Disk, path: str) -> None:
    with suppress(OSError):
        disk.unlink(path)


class UnsealedSegment:
    """Raises LogFull when there is no room (nothing was kept); any other OSError means that it must be given up."""

    def __init__(self, disk: Disk, directory: str, first_offset: int, salt: int, file: File, crc: int, parts: Sequence[bytes]) -> None:
        self.first_offset, self.end = first_offset, first_offset
        self.path = f"{directory}/{SegmentName(first_offset, OPEN, False).file}"
        self._disk, self._directory, self._file = disk, directory, file
        self._salt, self._crc = salt, crc
        self._digest = xxhash.xxh3_128()
        self._tables: dict[str, int] = {}
        self.header_bytes = self.size_bytes = self._dirty_end = 0
        self._account(parts)
        self.header_bytes = self.size_bytes

    @classmethod
    def create(cls, disk: Disk, directory: str, state: LogState, *, first_offset: int, salt: int) -> UnsealedSegment:
        crc, parts = encode_header(state, first_offset=first_offset, salt=salt)
        path = f"{directory}/{SegmentName(first_offset, OPEN, False).file}"
        with ExitStack() as undo:
            try:
                hit("wal.roll_create", path)
                file = disk.create(path + NEW)
                undo.callback(file.close)
                undo.callback(_forget, disk, path + NEW)
                file.write_at(0, parts)
                hit("wal.roll_written", path)
                file.sync()
                hit("wal.roll_sync", path)
                disk.rename(path + NEW, path)
            except OSError as error:
                if is_full(error):
                    raise LogFull(f"{path}: {error.strerror}: make room on this disk") from error
                raise
            hit("wal.roll_rename", path)
            disk.sync_directory(directory)
            hit("wal.roll_dirsync", path)
            undo.pop_all()
        return cls(disk, directory, first_offset, salt, file, crc, parts)

    def encode(self, entries: Sequence[Entry], *, synced_upto: int, packer: Packer) -> tuple[int, list[bytes]]:
        """A group's last crc and its parts. Raises ValueError for an entry that does not fit the format."""
        parts: list[bytes] = []
        crc = self._crc
        for offset, entry in enumerate(entries, self.end):
            crc, pieces = encode_record(entry, offset=offset, synced_upto=synced_upto, salt=self._salt, previous=crc, packer=packer)
            parts += pieces
        return crc, parts

    def append(self, entries: Sequence[Entry], group: tuple[int, list[bytes]]) -> None:
        """Writes an encoded group and syncs it: when this returns it is on disk. Only then does anything here move on."""
        crc, parts = group
        self._write(parts)
        hit("wal.after_write", self.path)
        hit("wal.before_sync", self.path)
        self._file.sync()
        hit("wal.after_sync", self.path)
        for offset, entry in enumerate(entries, self.end):
            self._tables.update(dict.fromkeys(entry.tables, offset))
        self.end += len(entries)
        self._crc = crc
        self._account(parts)

    def seal(self) -> SealedSegment:
        """Footer, sync, name, directory sync. LogFull leaves it as it was, to be sealed later."""
        parts: list[bytes] = []
        crc = self._crc
        digest = self._digest.copy()
        if self._dirty_end > self.size_bytes:  # The file is never shortened: what a failed write left must lie above the footer.
            crc, parts = encode_pad(
                self._dirty_end - self.size_bytes, offset=self.end, synced_upto=self.end - 1, salt=self._salt, previous=crc
            )
            for part in parts:
                digest.update(part)
        _, footer = encode_footer(
            first_offset=self.first_offset, end=self.end, digest=digest.digest(), tables=self._tables, salt=self._salt, previous=crc
        )
        parts += footer
        self._write(parts)
        hit("wal.seal_footer", self.path)
        self._file.sync()
        hit("wal.seal_sync", self.path)
        sealed_path = f"{self._directory}/{SegmentName(self.first_offset, SEALED, False).file}"
        self._disk.rename(self.path, sealed_path)
        hit("wal.seal_rename", sealed_path)
        self._disk.sync_directory(self._directory)
        hit("wal.seal_dirsync", sealed_path)
        self.close()
        size_bytes = self.size_bytes + sum(map(len, parts))
        return SealedSegment(sealed_path, self.first_offset, self.end, size_bytes, self._tables)

    @property
    def copy_bytes(self) -> int:
        """What a sealed copy of it takes at most."""
        return self.size_bytes + _FOOTER_BYTES + _FOOTER_TABLE_BYTES * len(self._tables)

    @property
    def roll_bytes(self) -> int:
        """What sealing it, beginning the next one, and a copy of that one while it is empty take."""
        return 2 * (self.header_bytes + _FOOTER_BYTES) + _FOOTER_TABLE_BYTES * len(self._tables)

    def close(self) -> None:
        self._file.close()

    def _account(self, parts: Iterable[bytes]) -> None:
        for part in parts:
            self._digest.update(part)
            self.size_bytes += len(part)

    def _write(self, parts: Sequence[bytes]) -> None:
        try:
            hit("wal.before_write", self.path)
            self._file.write_at(self.size_bytes, parts)
        except OSError as error:
            if not is_full(error):
                raise
            self._blank(self.size_bytes + sum(map(len, parts)))
            raise LogFull(f"{self.path}: {error.strerror}: make room on this disk") from error

    def _blank(self, written_end: int) -> None:
        """Takes back what a write without room left: a refused group must leave no trace, not even after a crash."""
        dirty_end = min(self._file.size(), written_end)
        if dirty_end > self.size_bytes:
            self._file.write_at(self.size_bytes, [bytes(dirty_end - self.size_bytes)])
            self._file.sync()
            self._dirty_end = max(self._dirty_end, dirty_end)
