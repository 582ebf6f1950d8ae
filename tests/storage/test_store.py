"""What every object store keeps to: the local one, and the one that tests cut the power of."""

from __future__ import annotations

from pathlib import Path

import pytest

from dolake.errors import ObjectMissing
from dolake.storage.local import LocalStore
from dolake.storage.store import ObjectStore
from tests.storage.power import PowerCutStore


@pytest.fixture(params=["local", "power cut"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ObjectStore:
    return LocalStore(f"file://{tmp_path}/warehouse") if request.param == "local" else PowerCutStore()


def test_an_object_is_read_back_whole(store: ObjectStore) -> None:
    location = f"{store.root}/t/data/é x=1.parquet"
    store.put(location, b"abc")
    store.put(f"{store.root}/t/empty", memoryview(b""))
    store.settle([location])
    assert (store.get(location), store.size(location)) == (b"abc", 3)
    assert store.get(f"{store.root}/t/empty") == b""


def test_a_repeated_put_replaces_the_whole_object(store: ObjectStore) -> None:
    location = f"{store.root}/t/a"
    store.put(location, b"a longer half of what was to come")
    store.put(location, b"whole")
    assert store.get(location) == b"whole"


def test_what_is_not_there_is_missing_and_may_be_deleted(store: ObjectStore) -> None:
    location = f"{store.root}/t/a"
    for call in (store.get, store.size):
        with pytest.raises(ObjectMissing):
            call(location)
    store.delete(location)
    store.put(location, b"abc")
    store.delete(location)
    with pytest.raises(ObjectMissing):
        store.get(location)


def test_objects_are_listed_by_what_their_location_begins_with(store: ObjectStore) -> None:
    for name in ("t/data/b", "t/data/a", "t/metadata/c", "t2/d"):
        store.put(f"{store.root}/{name}", name.encode())
    assert list(store.list(f"{store.root}/t/")) == [
        (f"{store.root}/t/data/a", 8),
        (f"{store.root}/t/data/b", 8),
        (f"{store.root}/t/metadata/c", 12),
    ]
    assert [location for location, _ in store.list(f"{store.root}/t/data/a")] == [f"{store.root}/t/data/a"]
    assert sum(1 for _ in store.list(f"{store.root}/t")) == 4
    assert list(store.list(f"{store.root}/nothing/")) == []


@pytest.mark.parametrize("outside", ["file:///etc/passwd", "{root}/../secret", "{root}/a/../../secret", "{root}-other/a", "s3://b/a"])
def test_nothing_outside_the_warehouse_is_touched(store: ObjectStore, outside: str) -> None:
    location = outside.format(root=store.root)
    for call in (store.get, store.size, store.delete, lambda where: store.put(where, b""), lambda where: list(store.list(where))):
        with pytest.raises(ValueError, match="warehouse"):
            call(location)
