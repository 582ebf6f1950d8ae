"""The local warehouse: what is synced when, and what a failing disk is called."""

from __future__ import annotations

import errno
import gc
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from dolake.errors import StoreUnreachable
from dolake.storage.disk import LocalDisk, LocalFile
from dolake.storage.local import LocalStore
from dolake.storage.warehouse import open_store


class SyncedFile(LocalFile):
    """A file that says when it is synced."""

    said: Callable[[], None]

    def sync(self) -> None:
        self.said()
        super().sync()


class SyncedDisk(LocalDisk):
    """Paths in the order in which they were synced; the syncs are done, unless `failing`."""

    def __init__(self, *, failing: bool = False) -> None:
        self.paths: list[str] = []
        self.failing = failing

    def create(self, path: str) -> LocalFile:
        file = SyncedFile(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL))
        file.said = lambda: self._note(path)
        return file

    def sync_directory(self, path: str) -> None:
        self._note(path)
        super().sync_directory(path)

    def taken(self) -> list[str]:
        paths, self.paths = self.paths, []
        return paths

    def _note(self, path: str) -> None:
        if self.failing:
            raise OSError(errno.EIO, "Input/output error")
        self.paths.append(path)


def test_bytes_are_synced_by_put_and_names_by_settle(tmp_path: Path) -> None:
    syncs = SyncedDisk()
    store = LocalStore(f"file://{tmp_path}/warehouse", syncs)
    location = f"{store.root}/shop/orders/data/a.parquet"
    store.put(location, b"abc")
    assert syncs.taken() == [f"{tmp_path}/warehouse/shop/orders/data/a.parquet"]
    store.settle([location])
    names = syncs.taken()
    below = [f"{tmp_path}{rest}" for rest in ("/warehouse/shop/orders/data", "/warehouse/shop/orders", "/warehouse/shop", "/warehouse", "")]
    assert names[:5] == below
    assert "/" in names


def test_hadoops_spelling_of_a_location_is_the_same_object(tmp_path: Path) -> None:
    store = LocalStore(f"file://{tmp_path}/warehouse")
    location = f"{store.root}/t/data/a"
    short = location.replace("file:///", "file:/")
    store.put(location, b"abc")
    assert (store.get(short), store.size(short), list(store.list(short))) == (b"abc", 3, [(location, 3)])
    with pytest.raises(ValueError, match="does not lie in the warehouse"):
        store.get("file:/etc/passwd")
    store.delete(short)
    assert list(store.list(f"{store.root}/")) == []


def test_directories_that_are_known_to_be_durable_are_not_synced_again(tmp_path: Path) -> None:
    syncs = SyncedDisk()
    store = LocalStore(f"file://{tmp_path}/warehouse", syncs)
    first, second = f"{store.root}/t/data/a", f"{store.root}/t/data/b"
    store.put(first, b"")
    store.settle([first])
    syncs.taken()
    store.put(second, b"")
    store.settle([second, first])
    assert syncs.taken() == [f"{tmp_path}/warehouse/t/data/b", f"{tmp_path}/warehouse/t/data"]
    store.put(f"{store.root}/t/metadata/c", b"")
    syncs.taken()
    store.settle([f"{store.root}/t/metadata/c"])
    assert syncs.taken()[:3] == [f"{tmp_path}/warehouse/t/metadata", f"{tmp_path}/warehouse/t", f"{tmp_path}/warehouse"]


def test_directories_that_another_process_made_are_made_durable_too(tmp_path: Path) -> None:
    LocalStore(f"file://{tmp_path}/warehouse").put(f"file://{tmp_path}/warehouse/t/data/a", b"")
    syncs = SyncedDisk()
    after = LocalStore(f"file://{tmp_path}/warehouse", syncs)
    after.put(f"{after.root}/t/data/b", b"")
    after.settle([f"{after.root}/t/data/b"])
    assert f"{tmp_path}/warehouse/t" in syncs.taken()


def test_after_a_failed_settle_the_next_one_syncs_every_directory_above_again(tmp_path: Path) -> None:
    class FailsOnce(SyncedDisk):
        def sync_directory(self, path: str) -> None:
            if path == f"{tmp_path}/warehouse" and path not in self.paths:
                self.paths.append(path)
                raise OSError(errno.EIO, "Input/output error")
            super().sync_directory(path)

    disk = FailsOnce()
    store = LocalStore(f"file://{tmp_path}/warehouse", disk)
    store.put(f"{store.root}/t/data/a", b"abc")
    with pytest.raises(StoreUnreachable, match="Input/output error"):
        store.settle([f"{store.root}/t/data/a"])
    before = len(disk.paths)
    store.settle([f"{store.root}/t/data/a"])
    assert disk.paths[before : before + 3] == [f"{tmp_path}/warehouse/t/data", f"{tmp_path}/warehouse/t", f"{tmp_path}/warehouse"]


def test_a_failed_sync_is_reported_with_its_path(tmp_path: Path) -> None:
    disk = SyncedDisk()
    store = LocalStore(f"file://{tmp_path}/warehouse", disk)
    store.put(f"{store.root}/t/a", b"abc")
    disk.failing = True
    with pytest.raises(StoreUnreachable, match=f"{tmp_path}/warehouse/t/b: Input/output error"):
        store.put(f"{store.root}/t/b", b"abc")
    with pytest.raises(StoreUnreachable, match=f"{tmp_path}/warehouse/t: Input/output error"):
        store.settle([f"{store.root}/t/a"])


def test_opening_touches_nothing_and_probing_leaves_nothing(tmp_path: Path) -> None:
    store = open_store(f"file://{tmp_path}/warehouse")
    assert isinstance(store, LocalStore)
    assert list(tmp_path.iterdir()) == []
    store.probe("one")
    assert list(store.list(f"{store.root}/")) == []


def test_a_warehouse_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "warehouse").write_text("a file where a directory should be")
    with pytest.raises(StoreUnreachable, match=f"{tmp_path}/warehouse"):
        LocalStore(f"file://{tmp_path}/warehouse").probe("one")


@pytest.mark.parametrize("uri", ["/var/lib", "file://relative", "http://x/y", "gs://bucket", ""])
def test_other_uris_are_refused(uri: str) -> None:
    with pytest.raises(ValueError, match="a local warehouse is"):
        open_store(uri)


def test_a_file_that_is_dropped_is_closed_and_one_that_is_closed_twice_closes_nothing_else(tmp_path: Path) -> None:
    file = LocalDisk().create(str(tmp_path / "file"))
    number = file._descriptor
    del file
    gc.collect()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(number)
    closed = LocalDisk().open(str(tmp_path / "file"))
    closed.close()
    other = LocalDisk().open(str(tmp_path / "file"))  # Under the number that has become free.
    closed.close()
    assert other.size() == 0
    other.close()
