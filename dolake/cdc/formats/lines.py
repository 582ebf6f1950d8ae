"""Reads the lines of a file or of standard input: plain, gzip or zstd, told by the first bytes."""

from __future__ import annotations

import gzip
import os
import stat
import sys
import zlib
from typing import BinaryIO

import zstandard

from dolake.errors import InvalidInput

_GZIP = b"\x1f\x8b"
_ZSTD = b"\x28\xb5\x2f\xfd"
CHUNK_BYTES = 1 << 18


class LineInput:
    """Lines in whole chunks. `read_lines` blocks until some are there and returns [] once, at the end."""

    def __init__(self, path: str) -> None:
        """`-` is standard input. Raises OSError."""
        self._file: BinaryIO = sys.stdin.buffer if path == "-" else open(path, "rb")  # noqa: SIM115
        status = os.fstat(self._file.fileno())
        self.size_bytes: int | None = status.st_size if stat.S_ISREG(status.st_mode) else None
        self._stream: BinaryIO | _ZstdStream | None = None
        self._rest = b""
        self._line_count = 0
        self._ended = False

    def position_bytes(self) -> int:
        """How far into the file as it is stored, for progress; 0 for a pipe."""
        return self._file.tell() if self.size_bytes is not None else 0

    def read_lines(self) -> list[bytes]:
        """Raises InvalidInput when compressed input is damaged or cut short."""
        while not self._ended:
            try:
                if self._stream is None:
                    self._stream = _decompressed(self._file)
                chunk: bytes = self._stream.read1(CHUNK_BYTES)  # type: ignore[union-attr]
            except (EOFError, gzip.BadGzipFile, zlib.error, zstandard.ZstdError) as error:
                raise InvalidInput(line=self._line_count + 1, reason=f"the compressed input is damaged or cut short: {error}") from error
            if not chunk:
                self._ended = True
                return self._counted([self._rest]) if self._rest else []
            lines = (self._rest + chunk).split(b"\n")
            self._rest = lines.pop()
            if lines:
                return self._counted(lines)
        return []

    def close(self) -> None:
        if self._file is not sys.stdin.buffer:
            self._file.close()

    def _counted(self, lines: list[bytes]) -> list[bytes]:
        self._line_count += len(lines)
        return lines


def _decompressed(file: BinaryIO) -> BinaryIO | _ZstdStream:
    magic = file.peek(4)[:4]  # type: ignore[attr-defined]
    if magic.startswith(_GZIP):
        return gzip.GzipFile(fileobj=file)  # type: ignore[return-value]
    return _ZstdStream(file) if magic == _ZSTD else file


class _ZstdStream:
    """Frames of zstd after one another. (The library's own stream reader takes a cut frame for the end.)"""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._frame: zstandard.ZstdDecompressionObj | None = None
        self._pending = b""

    def read1(self, size_bytes_max: int) -> bytes:
        while True:
            data = self._pending or self._file.read1(size_bytes_max)  # type: ignore[attr-defined]
            if not data:
                if self._frame is not None:
                    raise EOFError("a zstd frame has no end")
                return b""
            if self._frame is None:
                self._frame = zstandard.ZstdDecompressor().decompressobj()
            plain: bytes = self._frame.decompress(data)
            self._pending = b""
            if self._frame.eof:
                self._pending, self._frame = self._frame.unused_data, None
            if plain:
                return plain
