"""One file's bytes against what its name and its manifest say of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from dolake.iceberg.contents import ContentsReader
from dolake.verify.files import verify_file, verify_sizes
from tests.iceberg.lake import Lake
from tests.iceberg.mirror import Mirror


def test_delete_files_are_held_to_their_digest_their_pages_and_their_count(tmp_path: Path) -> None:
    lake = Lake(tmp_path)
    mirror = Mirror(lake)
    mirror.change(dict.fromkeys(range(200), "x"))
    mirror.change({}, range(0, 200, 3))
    head = lake.current().head
    assert head is not None
    contents = ContentsReader(lake.store).read(head)
    assert list(verify_sizes(lake.store, "t", [contents])) == []
    (file,) = [file for file in contents.files if file.kind == "position deletes"]
    data = lake.store.get(file.location)
    assert list(verify_file(file, data, "t")) == []
    flipped = bytearray(data)
    flipped[len(data) // 2] ^= 1
    assert [breach.invariant for breach in verify_file(file, bytes(flipped), "t")][:1] == ["I15"]
    (wrong,) = verify_file(replace(file, row_count=66), data, "t")
    assert (wrong.invariant, wrong.sentence) == ("I10", f"{file.location} should have 66 rows and has 67")
    lake.store.delete(file.location)
    (gone,) = verify_sizes(lake.store, "t", [contents])
    assert gone.invariant == "I10"
    lake.close()
