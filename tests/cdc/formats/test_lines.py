from __future__ import annotations

import gzip
import os
import resource
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from dolake.cdc.formats.lines import LineInput
from dolake.errors import InvalidInput

LINES = [b"%d %s" % (number, b"x" * (number % 300)) for number in range(5_000)]
TEXT = b"\n".join(LINES) + b"\n"


def zstd(data: bytes) -> bytes:
    return zstandard.ZstdCompressor().compress(data)


STORED: dict[str, Callable[[bytes], bytes]] = {
    "plain": lambda data: data,
    "gzip": gzip.compress,
    "zstd": zstd,
    "two gzip members": lambda data: gzip.compress(data[:70_000]) + gzip.compress(data[70_000:]),
    "two zstd frames": lambda data: zstd(data[:70_000]) + zstd(data[70_000:]),
}


def read(path: str) -> list[bytes]:
    lines = LineInput(path)
    try:
        found = []
        while chunk := lines.read_lines(0):
            found += chunk
        assert lines.position_bytes == lines.size_bytes
        return found
    finally:
        lines.close()


@pytest.mark.parametrize("stored", STORED)
def test_lines_come_out_whatever_they_are_stored_in(stored: str, tmp_path: Path) -> None:
    path = tmp_path / "stream"  # No suffix: the bytes say what it is.
    path.write_bytes(STORED[stored](TEXT))
    assert read(str(path)) == LINES


def test_a_last_line_without_its_end_counts(tmp_path: Path) -> None:
    (tmp_path / "stream").write_bytes(b"a\nb")
    assert read(str(tmp_path / "stream")) == [b"a", b"b"]


def test_an_empty_file_has_no_lines(tmp_path: Path) -> None:
    (tmp_path / "stream").write_bytes(b"")
    assert read(str(tmp_path / "stream")) == []


def test_lines_of_a_pipe_arrive_before_it_ends() -> None:
    reading, writing = os.pipe()
    lines = LineInput(f"/dev/fd/{reading}")
    os.write(writing, b"first\nsec")
    assert lines.read_lines(10) == [b"first"]
    assert lines.size_bytes is None
    assert lines.read_lines(0) is None  # nothing yet, and nobody waits for it
    os.write(writing, b"ond\n")
    os.close(writing)
    assert lines.read_lines(10) == [b"second"]
    assert lines.read_lines(10) == []
    lines.close()
    os.close(reading)


def test_a_pipe_is_waited_for_whatever_number_its_descriptor_has() -> None:
    """`select` knows none above 1023; a process with many connections or files has them."""
    files_max = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(files_max[1], 4096), files_max[1]))
    reading, writing = os.pipe()
    taken = [os.dup(reading)]
    try:
        while taken[-1] < 1024:
            taken.append(os.dup(reading))
        lines = LineInput(f"/dev/fd/{reading}")
        assert lines.read_lines(0) is None
        os.write(writing, b"first\n")
        assert lines.read_lines(10) == [b"first"]
        lines.close()
    finally:
        for descriptor in (*taken, reading, writing):
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, files_max)


def test_what_it_is_may_come_byte_by_byte() -> None:
    reading, writing = os.pipe()
    lines = LineInput(f"/dev/fd/{reading}")
    stored = zstd(b"one\ntwo\n")
    found = []
    for position in range(len(stored)):
        os.write(writing, stored[position : position + 1])
        found += lines.read_lines(0) or []
    os.close(writing)
    while chunk := lines.read_lines(10):
        found += chunk
    assert found == [b"one", b"two"]
    lines.close()
    os.close(reading)


def test_a_directory_is_no_input(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError):
        LineInput(str(tmp_path))


@pytest.mark.parametrize("stored", ["gzip", "zstd"])
def test_a_cut_file_gives_what_it_holds_and_then_an_error(stored: str, tmp_path: Path) -> None:
    path = tmp_path / "stream"
    data = STORED[stored](os.urandom(600_000).hex().encode() + b"\n" + TEXT)
    path.write_bytes(data[:-200])
    with pytest.raises(InvalidInput, match="damaged or cut short"):
        read(str(path))


@pytest.mark.parametrize("stored", ["gzip", "zstd"])
def test_damage_is_an_error(stored: str, tmp_path: Path) -> None:
    data = bytearray(STORED[stored](TEXT))
    data[6:40] = b"\xff" * 34
    (tmp_path / "stream").write_bytes(bytes(data))
    with pytest.raises(InvalidInput, match="damaged or cut short"):
        read(str(tmp_path / "stream"))
