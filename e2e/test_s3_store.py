"""The S3 store against a real server: what every store keeps to, large objects in parts, and what a refusal is called."""

from __future__ import annotations

import os
from dataclasses import replace
from uuid import uuid4

import pytest

from dolake.errors import ObjectMissing, StoreUnreachable
from dolake.storage.s3 import PART_SIZE_BYTES, PUT_SIZE_BYTES_MAX, S3Access, S3Store
from e2e.services.s3 import S3Server
from tests.harness.ports import free_port


def access(server: S3Server) -> S3Access:
    return S3Access(server.endpoint, server.region, server.access_key, server.secret_key)


@pytest.fixture
def store(s3_server: S3Server) -> S3Store:
    return S3Store(f"s3://lake/store-{uuid4()}", access(s3_server))


def test_an_object_is_read_back_whole(store: S3Store) -> None:
    location = f"{store.root}/t/data/é x=1+%2F.parquet"
    store.put(location, b"abc")
    store.put(f"{store.root}/t/empty", memoryview(b""))
    store.settle([location])
    assert (store.get(location), store.size(location)) == (b"abc", 3)
    assert store.get(f"{store.root}/t/empty") == b""
    store.put(location, b"other")
    assert store.get(location) == b"other"
    assert list(store.list(f"{store.root}/t/data/")) == [(location, 5)]


def test_what_is_not_there_is_missing_and_may_be_deleted(store: S3Store) -> None:
    location = f"{store.root}/t/a"
    for call in (store.get, store.size):
        with pytest.raises(ObjectMissing):
            call(location)
    store.delete(location)
    store.put(location, b"abc")
    store.delete(location)
    with pytest.raises(ObjectMissing):
        store.get(location)


def test_a_listing_goes_on_behind_its_first_page(store: S3Store) -> None:
    names = [f"{store.root}/many/{number:04d}" for number in range(1003)]
    for name in names:
        store.put(name, b"")
    assert [location for location, _ in store.list(f"{store.root}/many/")] == names


@pytest.mark.parametrize("size", [PUT_SIZE_BYTES_MAX, PUT_SIZE_BYTES_MAX + 1, 3 * PART_SIZE_BYTES])
def test_an_object_too_large_for_one_put_goes_in_parts(store: S3Store, size: int) -> None:
    data = os.urandom(1 << 20) * (size // (1 << 20) + 1)
    store.put(f"{store.root}/large", memoryview(data)[:size])
    assert store.size(f"{store.root}/large") == size
    assert store.get(f"{store.root}/large") == data[:size]
    assert [location for location, _ in store.list(f"{store.root}/")] == [f"{store.root}/large"]
    store.delete(f"{store.root}/large")


def test_a_probe_leaves_nothing(store: S3Store) -> None:
    store.probe("one")
    assert list(store.list(f"{store.root}/")) == []


@pytest.mark.acceptance("AT-52")
def test_a_probe_names_the_setting_at_fault(s3_server: S3Server) -> None:
    right = access(s3_server)
    cases = {
        "the bucket nobodys does not exist: create it, or set warehouse.uri": ("s3://nobodys/x", right),
        "correct s3.access_key": ("s3://lake/x", replace(right, access_key="AKnobody")),
        "correct s3.secret_key": ("s3://lake/x", replace(right, secret_key="guessed")),
        "cannot be reached: correct s3.endpoint": ("s3://lake/x", replace(right, endpoint=f"http://127.0.0.1:{free_port()}")),
        "is s3.endpoint https": ("s3://lake/x", replace(right, endpoint=s3_server.endpoint.replace("http:", "https:"))),
    }
    for said, (root, wrong) in cases.items():
        with pytest.raises(StoreUnreachable) as caught:
            S3Store(root, wrong).probe("one")
        assert said in str(caught.value)
        assert "guessed" not in str(caught.value)
