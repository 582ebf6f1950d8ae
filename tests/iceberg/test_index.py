"""The key index against a dict: whatever is added, deleted, merged, saved, cut and loaded."""

from __future__ import annotations

import errno
import random
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import pytest

from dolake.iceberg import index as index_module
from dolake.iceberg import index_runs
from dolake.iceberg.index import IndexedFile, KeyIndex
from dolake.iceberg.index_files import IndexDamaged, IndexFolder
from dolake.iceberg.index_runs import Run
from dolake.storage.disk import LocalDisk

Hashes = tuple[np.ndarray[Any, np.dtype[np.uint64]], np.ndarray[Any, np.dtype[np.uint64]]]


def hashes(keys: list[int]) -> Hashes:
    """A few upper halves for many keys, so that whatever relies on them alone goes wrong."""
    return np.array([key % 7 * (1 << 61) for key in keys], np.uint64), np.array(keys, np.uint64)


def rows_of(index: KeyIndex, keys: list[int]) -> dict[int, set[tuple[str, int]]]:
    """By key its living rows: file and place."""
    found: dict[int, set[tuple[str, int]]] = {key: set() for key in keys}
    hits = index.lookup(*hashes(keys))
    for place, row in zip(hits.keys.tolist(), hits.rows.tolist(), strict=True):
        file = index.file_at(row)
        at = (file.location, row - file.first)
        assert at not in found[keys[place]], "twice"
        found[keys[place]].add(at)
    return found


class Model:
    """The same as an index, the plain way."""

    def __init__(self) -> None:
        self.files: dict[str, list[int]] = {}
        self.dead: set[tuple[str, int]] = set()

    def rows_of(self, keys: list[int]) -> dict[int, set[tuple[str, int]]]:
        found: dict[int, set[tuple[str, int]]] = {key: set() for key in keys}
        for location, file_keys in self.files.items():
            for place, key in enumerate(file_keys):
                if key in found and (location, place) not in self.dead:
                    found[key].add((location, place))
        return found


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Merges reach the disk, and are made of several pieces, with a handful of entries."""
    monkeypatch.setattr(index_module, "MEMORY_ENTRIES_MAX", 30)
    monkeypatch.setattr(index_runs, "CHUNK_ENTRIES", 16)
    monkeypatch.setattr(index_module, "_GAP_ROWS_MAX", 40)


def step(index: KeyIndex, model: Model, chance: random.Random, number: int) -> None:
    choice = chance.random()
    if choice < 0.6:
        files = []
        for part in range(chance.choice([1, 1, 3])):
            keys = [chance.randrange(200) for _ in range(chance.randrange(1, 25))]
            location = f"f{number}-{part}"
            model.files[location] = keys
            files.append((IndexedFile(location, len(keys), 0), *hashes(keys)))
        index.add_files(files)
    elif choice < 0.93 and model.files:
        location = chance.choice(list(model.files))
        places = [place for place in range(len(model.files[location])) if chance.random() < 0.5]
        model.dead |= {(location, place) for place in places}
        index.delete(index.numbers_of(location, np.array(places, np.int64)))
    elif choice < 0.96 and model.files:
        rewrite(index, model, chance, number)
    elif choice < 0.985 and model.files:
        location = chance.choice(list(model.files))
        del model.files[location]
        index.remove([location])
    else:
        model.files.clear()
        index.clear()


def rewrite(index: KeyIndex, model: Model, chance: random.Random, number: int) -> None:
    """Some files become others, without what was deleted when they were read: a few deletes have come since, and go along."""
    old = chance.sample(list(model.files), chance.randrange(1, min(4, len(model.files)) + 1))
    rows = [(file, place) for file in old for place in range(len(model.files[file]))]
    kept = [row for row in rows if row not in model.dead or chance.random() < 0.3]
    chance.shuffle(kept)
    parts = [kept[: len(kept) // 2], kept[len(kept) // 2 :]] if chance.random() < 0.5 else [kept]
    new = [IndexedFile(f"f{number}+{part}", len(some), 0) for part, some in enumerate(parts)]
    moves = {file: np.full(len(model.files[file]), -1, np.int64) for file in old}
    for place, (file, row) in enumerate(kept):
        moves[file][row] = place
    for file, some in zip(new, parts, strict=True):
        model.files[file.location] = [model.files[old_file][row] for old_file, row in some]
        model.dead |= {(file.location, place) for place, row in enumerate(some) if row in model.dead}
    for location in old:
        del model.files[location]
    index.move(moves, new)


@pytest.mark.parametrize("seed", range(40))
def test_says_what_a_dict_says(seed: int, small: None, tmp_path: Path) -> None:
    chance = random.Random(seed)
    folder = IndexFolder(LocalDisk(), str(tmp_path / "index"))
    index, model = KeyIndex("uuid", (1,), 5, spill=folder.spill), Model()
    keys = list(range(200))
    for number in range(60):
        step(index, model, chance, number)
        assert rows_of(index, keys) == model.rows_of(keys)
        living = sum(len(file) for file in model.files.values()) - sum(at[0] in model.files for at in model.dead)
        assert index.live_count == living
        rows = sum(len(file) for file in model.files.values())
        assert index.space <= rows + max(40, rows)
        if chance.random() < 0.15:
            index.snapshot_id = number
            folder.save(index)
            loaded = IndexFolder(LocalDisk(), str(tmp_path / "index")).load()
            assert loaded is not None
            assert (loaded.snapshot_id, loaded.files, loaded.seed, loaded.key) == (number, index.files, 5, (1,))
            assert rows_of(loaded, keys) == model.rows_of(keys)
            if chance.random() < 0.5:
                folder = IndexFolder(LocalDisk(), str(tmp_path / "index"))
                index = folder.load() or index
    assert len(index.runs) < 8


def test_takes_no_memory_for_what_a_table_has_been_through(tmp_path: Path) -> None:
    """A few keys that are updated for ever, and rewritten now and then."""
    folder = IndexFolder(LocalDisk(), str(tmp_path / "index"))
    index, keys = KeyIndex("uuid", (1,), 5, spill=folder.spill), list(range(1000))
    for number in range(400):
        index.delete(index.lookup(*hashes(keys)).rows)
        index.add(IndexedFile(f"f{number}", len(keys), 0), *hashes(keys))
        if number % 10 == 9:
            places = np.arange(len(keys), dtype=np.int64)
            moves = {location: places if location == f"f{number}" else np.full(len(keys), -1, np.int64) for location in index.files}
            index.move(moves, [IndexedFile(f"r{number}", len(keys), 0)])
    assert rows_of(index, keys) == {key: {("r399", key)} for key in keys}
    assert index.memory_bytes < 500_000
    folder.save(index)
    assert sum(path.stat().st_size for path in (tmp_path / "index").iterdir()) < 50_000


def test_a_key_may_have_several_rows_in_one_run() -> None:
    index = KeyIndex("uuid", (1,), 5)
    index.add(IndexedFile("a", 4, 0), *hashes([7, 7, 8, 7]))
    assert rows_of(index, [7, 8, 9]) == {7: {("a", 0), ("a", 1), ("a", 3)}, 8: {("a", 2)}, 9: set()}


def test_rows_are_told_by_file_and_source() -> None:
    index = KeyIndex("uuid", (1,), 5)
    index.add(IndexedFile("b", 3, 1, ("x",), ((0, "one"), (2, "two"))), *hashes([1, 2, 3]))
    index.add(IndexedFile("a", 2, 0), *hashes([4, 5]))
    rows = np.array([4, 0, 2], np.int64)
    found = [(file.location, file.partition, places.tolist()) for file, places in index.located(rows)]
    assert found == [("b", ("x",), [0, 2]), ("a", (), [1])]
    assert index.owners(rows).tolist() == [0, index.source_code("one"), index.source_code("two")]
    assert index.source_code("one") != index.source_code("two")


def test_a_living_row_that_is_left_out_of_a_move_changes_nothing() -> None:
    index = KeyIndex("uuid", (1,), 5)
    index.add(IndexedFile("a", 2, 0), *hashes([1, 2]))
    with pytest.raises(ValueError, match="a living row"):
        index.move({"a": np.array([0, -1], np.int64)}, [IndexedFile("b", 1, 0)])
    assert rows_of(index, [1, 2]) == {1: {("a", 0)}, 2: {("a", 1)}}
    index.delete(np.array([1], np.int64))
    index.move({"a": np.array([0, -1], np.int64)}, [IndexedFile("b", 1, 0)])
    assert rows_of(index, [1, 2]) == {1: {("b", 0)}, 2: set()}


def saved(tmp_path: Path) -> tuple[Path, KeyIndex]:
    directory = tmp_path / "index"
    index = KeyIndex("uuid", (3, 1), 1 << 63, snapshot_id=77)
    partition = (1, None, "é", b"\x00\xff", Decimal("1.50"), UUID(int=9), float("nan"), True)
    index.add(IndexedFile("s3://lake/a b.parquet", 3, 2, partition, ((0, "source"),)), *hashes([1, 2, 3]))
    index.add(IndexedFile("b", 50, 0), *hashes(list(range(50))))
    index.delete_files = {"d1", "d2"}
    index.delete(np.array([1, 5], np.int64))
    IndexFolder(LocalDisk(), str(directory)).save(index)
    return directory, index


def test_is_loaded_as_it_was_saved(tmp_path: Path) -> None:
    directory, index = saved(tmp_path)
    loaded = IndexFolder(LocalDisk(), str(directory)).load()
    assert loaded is not None
    assert repr(loaded.files) == repr(index.files)  # NaN equals nothing
    assert loaded.delete_files == {"d1", "d2"}
    assert (loaded.space, loaded.dead_count, loaded.seed, loaded.key, loaded.snapshot_id) == (53, 2, 1 << 63, (3, 1), 77)
    assert rows_of(loaded, list(range(50))) == rows_of(index, list(range(50)))
    assert not any(run.name == "" for run in loaded.runs)


def test_a_file_cut_anywhere_or_changed_is_noticed(tmp_path: Path) -> None:
    directory, _ = saved(tmp_path)
    for path in sorted(directory.iterdir()):
        whole = path.read_bytes()
        for size in range(0, len(whole), max(1, len(whole) // 23)):
            path.write_bytes(whole[:size])
            with pytest.raises(IndexDamaged):
                IndexFolder(LocalDisk(), str(directory)).load()
        for place in range(0, len(whole), max(1, len(whole) // 23)):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
            with pytest.raises(IndexDamaged):
                IndexFolder(LocalDisk(), str(directory)).load()
        path.write_bytes(whole)
        if path.name != "index.json":
            path.unlink()
            with pytest.raises(IndexDamaged):
                IndexFolder(LocalDisk(), str(directory)).load()
            path.write_bytes(whole)
    assert IndexFolder(LocalDisk(), str(directory)).load() is not None


def test_nothing_saved_is_nothing_loaded_and_leftovers_go(tmp_path: Path) -> None:
    directory = tmp_path / "index"
    assert IndexFolder(LocalDisk(), str(directory)).load() is None
    saved(tmp_path)
    (directory / "run-000900.high").write_bytes(b"x")
    folder = IndexFolder(LocalDisk(), str(directory))
    index = folder.load()
    assert index is not None
    before = {path.name for path in directory.iterdir()}
    assert "run-000900.high" not in before
    index.add(IndexedFile("c", 1, 0), *hashes([900]))
    folder.save(index)
    named = {path.name for path in directory.iterdir()}
    assert named - before
    assert len([name for name in named if name.startswith("dead")]) == 1
    folder.remove()
    assert not list(directory.iterdir())
    assert rows_of(index, [900]) == {900: {("c", 0)}}, "what is mapped stays"


class Full(LocalDisk):
    def create(self, path: str) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device", path)


def test_a_merge_that_cannot_be_written_stays_in_memory(small: None, tmp_path: Path) -> None:
    index = KeyIndex("uuid", (1,), 5, spill=IndexFolder(Full(), str(tmp_path / "index")).spill)
    index.add(IndexedFile("a", 40, 0), *hashes(list(range(40))))
    index.add(IndexedFile("b", 40, 0), *hashes(list(range(40, 80))))
    assert "No space left" in index.unspilled
    assert {key: len(rows) for key, rows in rows_of(index, list(range(80))).items()} == dict.fromkeys(range(80), 1)


def test_row_numbers_grow_wider(tmp_path: Path) -> None:
    """Past 2^32 rows a number takes eight bytes."""
    assert index_runs.row_type(1 << 32) is np.uint32
    assert index_runs.row_type((1 << 32) + 1) is np.uint64
    folder = IndexFolder(LocalDisk(), str(tmp_path / "index"))

    def pieces() -> Iterator[Run]:
        yield Run(np.array([1], np.uint64), np.array([2], np.uint64), np.array([(1 << 33) + 5], np.uint64))

    assert folder.spill(pieces()).rows.tolist() == [(1 << 33) + 5]
