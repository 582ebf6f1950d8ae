"""What zstandard says of frames that are not whole, or lie about their size."""

from __future__ import annotations

import gzip
import io
import zlib

import pytest
import zstandard

CONTENT = b"a change, and another one. " * 1000
FRAME = zstandard.ZstdCompressor(level=1).compress(CONTENT)


def test_a_frame_says_how_large_its_content_is() -> None:
    """Before anything is unpacked (`buffer/codec.py`)."""
    assert zstandard.frame_content_size(FRAME) == len(CONTENT)
    unsized = zstandard.ZstdCompressor(level=1, write_content_size=False).compress(CONTENT)
    assert zstandard.frame_content_size(unsized) == -1


def test_what_follows_a_frame_is_passed_over_unless_that_is_forbidden() -> None:
    """`Unpacker` forbids it."""
    decompressor = zstandard.ZstdDecompressor()
    assert decompressor.decompress(FRAME + b"more") == CONTENT
    with pytest.raises(zstandard.ZstdError):
        decompressor.decompress(FRAME + b"more", allow_extra_data=False)


def test_a_reader_takes_the_end_of_a_broken_off_frame_for_the_end() -> None:
    """In silence (`formats/lines.py` looks itself whether a frame was over)."""
    cut = FRAME[: len(FRAME) - 1]
    with zstandard.ZstdDecompressor().stream_reader(io.BytesIO(cut)) as reader:
        assert reader.read() in (b"", CONTENT)


@pytest.mark.parametrize("new", [lambda: zstandard.ZstdDecompressor().decompressobj(), lambda: zlib.decompressobj(wbits=31)])
def test_a_decompressor_knows_whether_it_was_over_and_what_it_did_not_use(new) -> None:  # type: ignore[no-untyped-def]
    """On which `formats/lines.py` rests, for frames after one another."""
    whole = FRAME if "zstd" in type(new()).__module__ or "Zstd" in type(new()).__name__ else gzip.compress(CONTENT)
    decompressor = new()
    assert decompressor.decompress(whole[:-1]) in (CONTENT, b"")
    assert not decompressor.eof
    decompressor.decompress(whole[-1:] + b"rest")
    assert decompressor.eof
    assert decompressor.unused_data == b"rest"
