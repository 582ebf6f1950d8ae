"""The published synced end: this log's, whole, or nothing."""

from __future__ import annotations

from pathlib import Path

from dolake.buffer.synced import NAME, decode_end, encode_end, publish_end, read_end
from dolake.storage.disk import LocalDisk


def test_a_published_end_is_read_by_another_process_of_the_same_log(tmp_path: Path) -> None:
    counter = LocalDisk().counter(str(tmp_path / NAME), writable=True)
    for end in (0, 1, 2**40, 2**48 - 1, 7):
        publish_end(counter, "log-1", end)
        assert read_end(LocalDisk(), str(tmp_path), "log-1") == end
        assert read_end(LocalDisk(), str(tmp_path), "log-2") is None
    counter.close()


def test_no_file_an_empty_one_and_a_fresh_one_say_nothing(tmp_path: Path) -> None:
    assert read_end(LocalDisk(), str(tmp_path), "log-1") is None
    (tmp_path / NAME).touch()
    assert read_end(LocalDisk(), str(tmp_path), "log-1") is None
    (tmp_path / NAME).write_bytes(bytes(8))
    assert read_end(LocalDisk(), str(tmp_path), "log-1") is None


def test_torn_words_are_told_from_whole_ones() -> None:
    word = encode_end("log-1", 1000)
    wrong = [decode_end("log-1", word ^ 1 << bit) for bit in range(64)]
    assert wrong == [None] * 64
