"""Reads the lines of a file, a pipe or standard input: plain, gzip or zstd, told by the first bytes."""

from __future__ import annotations

import os
import select
import stat
import sys
import zlib
from collections.abc import Iterable, Iterator
from typing import Protocol

import zstandard

from dolake.errors import InvalidInput

_GZIP = b"\x1f\x8b"
_ZSTD = b"\x28\xb5\x2f\xfd"
_MAGIC_BYTES = 4
# Of stored bytes: compressed change streams hold about ten times as much.
CHUNK_BYTES = 1 << 16


class LineInput:
    """Lines in chunks, so that reading may run beside the loop."""

    def __init__(self, path: str) -> None:
        """`-` is standard input. Raises OSError."""
        self._descriptor = os.dup(sys.stdin.fileno()) if path == "-" else os.open(path, os.O_RDONLY)
        status = os.fstat(self._descriptor)
        if stat.S_ISDIR(status.st_mode):
            os.close(self._descriptor)
            raise IsADirectoryError(f"{path} is a directory")
        self._is_file = stat.S_ISREG(status.st_mode)
        self._poll = select.poll()  # `select.select` knows no descriptor above 1023.
        self._poll.register(self._descriptor, select.POLLIN)
        self.size_bytes: int | None = status.st_size if self._is_file else None
        self.position_bytes = 0  # how far into the input as it is stored
        self._frames: _Frames | None = None
        self._begun = False
        self._head = b""
        self._rest = b""
        self._line_count = 0
        self._ended = False

    def read_lines(self, timeout_s: float) -> list[bytes] | None:
        """The next lines; [] at the end; None when a pipe has none within `timeout_s`, so that nothing blocks for good.

        Raises InvalidInput when compressed input is damaged or cut short.
        """
        while not self._ended:
            if not self._is_file and not self._poll.poll(timeout_s * 1000):
                return None
            data = os.read(self._descriptor, CHUNK_BYTES)
            self.position_bytes += len(data)
            try:
                plain = self._plain(data)
            except (zlib.error, zstandard.ZstdError) as error:
                raise InvalidInput(line=self._line_count + 1, reason=f"the compressed input is damaged or cut short: {error}") from error
            lines = (self._rest + plain).split(b"\n")
            self._rest = lines.pop()
            if not data:
                self._ended = True
                lines += [self._rest] if self._rest else []
            if lines:
                self._line_count += len(lines)
                return lines
        return []

    def close(self) -> None:
        os.close(self._descriptor)

    def _plain(self, data: bytes) -> bytes:
        """`data` as it was before compression; b"" is the end of the input."""
        if not self._begun:
            self._head += data
            if data and len(self._head) < _MAGIC_BYTES:
                return b""
            self._begun, data = True, self._head
            if data.startswith(_GZIP):
                self._frames = _Frames(lambda: zlib.decompressobj(wbits=31))
            elif data.startswith(_ZSTD):
                self._frames = _Frames(lambda: zstandard.ZstdDecompressor().decompressobj())
        if self._frames is None:
            return data
        if data:
            return self._frames.decompress(data)
        self._frames.require_end()
        return b""


class _Decompressor(Protocol):
    """What zlib's and zstd's have in common."""

    @property
    def eof(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...

    def decompress(self, data: bytes, /) -> bytes: ...


class _NewDecompressor(Protocol):
    def __call__(self) -> _Decompressor: ...


class _Frames:
    """Compressed frames after one another. An end inside one is damage; the libraries' own readers do not all say so."""

    def __init__(self, new: _NewDecompressor) -> None:
        self._new = new
        self._frame: _Decompressor | None = None

    def decompress(self, data: bytes) -> bytes:
        plain = []
        while data:
            if self._frame is None:
                self._frame = self._new()
            plain.append(self._frame.decompress(data))
            data = b""
            if self._frame.eof:
                data, self._frame = self._frame.unused_data, None
        return b"".join(plain)

    def require_end(self) -> None:
        if self._frame is not None:
            raise zlib.error("it ends inside a frame")


class NumberedLines:
    """Lines that hold something, without the space around them; `number` is that of the last one, counted from 1."""

    def __init__(self) -> None:
        self.number = 0

    def of(self, lines: Iterable[bytes]) -> Iterator[bytes]:
        for text in lines:
            self.number += 1
            if text := text.strip():
                yield text
