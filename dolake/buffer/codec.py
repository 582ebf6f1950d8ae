"""How payloads are stored: plain, or each as a zstd frame of its own, so that any record can be read by itself.

A frame says how large its content is. That is checked before anything is unpacked, so that no record takes more memory than
the largest message that any configuration lets in.
"""

from __future__ import annotations

import zstandard

from dolake.model import Codec

# Measured on change batches of 14 to 280 KB: 0.11 to 0.15 of their size at 600 MB/s; 3 gains nothing, 5 takes three times as long.
LEVEL = 1
SHRINKS_FROM_BYTES = 128  # Below it a frame's own head eats the gain.
PLAIN_BYTES_MAX = 1 << 30  # limits.payload_bytes can be set no higher.


class BadContent(ValueError):
    """What is stored is not the frame that was written; the message says how."""


class Packer:
    """Packs payloads for one log, one call at a time; zstd works outside the interpreter's lock."""

    def __init__(self, codec: Codec) -> None:
        self._compressor = zstandard.ZstdCompressor(level=LEVEL) if codec is Codec.ZSTD else None

    def pack(self, payload: bytes) -> tuple[Codec, bytes]:
        """The payload as it is to be stored: as it is where it does not shrink."""
        if self._compressor is None or not SHRINKS_FROM_BYTES <= len(payload) <= PLAIN_BYTES_MAX:
            return Codec.PLAIN, payload
        packed = self._compressor.compress(payload)
        return (Codec.ZSTD, packed) if len(packed) < len(payload) else (Codec.PLAIN, payload)


class Unpacker:
    """Unpacks payloads for one reader, one call at a time."""

    def __init__(self) -> None:
        self._decompressor: zstandard.ZstdDecompressor | None = None

    def unpack(self, codec: Codec, stored: bytes) -> bytes:
        """Raises BadContent."""
        if codec is Codec.PLAIN:
            return stored
        size_bytes = plain_size(codec, stored)
        if self._decompressor is None:
            self._decompressor = zstandard.ZstdDecompressor()
        try:
            payload = self._decompressor.decompress(stored, allow_extra_data=False)
        except zstandard.ZstdError as error:
            raise BadContent(f"the zstd frame does not unpack: {error}") from None
        if len(payload) != size_bytes:
            raise BadContent(f"the zstd frame holds {len(payload)} bytes where it says {size_bytes}")
        return payload


def plain_size(codec: Codec, stored: bytes) -> int:
    """How many bytes a stored payload unpacks to, without unpacking it. Raises BadContent for more than a payload may have."""
    if codec is Codec.PLAIN:
        return len(stored)
    try:
        size_bytes = zstandard.frame_content_size(stored)
    except zstandard.ZstdError as error:
        raise BadContent(f"no zstd frame: {error}") from None
    if not 0 <= size_bytes <= PLAIN_BYTES_MAX:
        says = f"{size_bytes} bytes" if size_bytes >= 0 else "no size"
        raise BadContent(f"the zstd frame says {says}; a payload has at most {PLAIN_BYTES_MAX}")
    return size_bytes
