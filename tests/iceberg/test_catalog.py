"""The SQL catalog: one swap on exactly what was loaded, durable, and the same file that plain PyIceberg uses."""

from __future__ import annotations

import sqlite3
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyiceberg.catalog.sql import SqlCatalog

from dolake.errors import CatalogUnreachable, CommitConflict
from dolake.iceberg.catalog import SqlTableCatalog
from dolake.iceberg.commit import Landed
from dolake.model import TableName
from dolake.storage.local import LocalStore
from tests.iceberg.lake import TABLE, Lake, hand_runtime, make_metadata

CHANGE = [{"action": "set-properties", "updates": {"a": "b"}}]


def test_a_swap_is_made_once_on_exactly_what_was_loaded(lake: Lake) -> None:
    base = lake.current()
    landed = lake.catalog.swap(base, [], CHANGE)
    assert landed.properties == {"a": "b"}
    assert lake.catalog.load(TABLE) == landed
    with pytest.raises(CommitConflict, match="any more"):
        lake.catalog.swap(base, [], CHANGE)
    assert lake.catalog.load(TABLE) == landed


def test_of_many_swaps_on_one_base_one_wins(lake: Lake) -> None:
    base = lake.current()

    def swap(number: int) -> bool:
        try:
            lake.catalog.swap(base, [], [{"action": "set-properties", "updates": {"winner": str(number)}}])
        except CommitConflict:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(swap, range(16))) == 1


def test_a_plan_for_another_head_is_refused_before_anything_is_asked(lake: Lake) -> None:
    lake.commit(lake.delta(0, 2))
    wrong = [{"type": "assert-ref-snapshot-id", "ref": "main", "snapshot-id": None}]
    with pytest.raises(CommitConflict, match="assert-ref-snapshot-id"):
        lake.catalog.swap(lake.current(), wrong, CHANGE)


def test_load_always_asks_the_row_and_reads_a_metadata_file_once(lake: Lake) -> None:
    reads: list[str] = []

    class CountingStore(LocalStore):
        def get(self, location: str) -> bytes:
            reads.append(location)
            return super().get(location)

    other = SqlTableCatalog(lake.uri, CountingStore(lake.store.root), lake.runtime)
    first = other.load(TABLE)
    assert other.load(TABLE) is first
    lake.catalog.swap(lake.current(), [], CHANGE)
    second = other.load(TABLE)
    assert second is not None
    assert second.properties == {"a": "b"}
    assert len(reads) == 2
    other.close()


def test_a_name_is_taken_once(lake: Lake) -> None:
    with pytest.raises(CommitConflict, match="has a table of this name"):
        lake.catalog.create(TABLE, make_metadata(lake.store, lake.runtime))
    assert lake.current() == lake.table


def test_tables_are_listed_and_forgotten(lake: Lake) -> None:
    second = TableName("default", "other")
    other = lake.catalog.create(second, {**make_metadata(lake.store, lake.runtime), "location": f"{lake.store.root}/default/other"})
    assert lake.catalog.list_tables() == [second, TABLE]
    lake.catalog.drop(other)
    with pytest.raises(CommitConflict, match="is not at"):
        lake.catalog.drop(other)
    assert lake.catalog.list_tables() == [TABLE]
    assert lake.catalog.load(second) is None


def test_a_table_that_has_moved_on_is_not_forgotten(lake: Lake) -> None:
    before = lake.table
    lake.commit(lake.delta(0, 3))
    with pytest.raises(CommitConflict, match="is not at"):
        lake.catalog.drop(before)
    assert lake.catalog.list_tables() == [TABLE]


def test_names_that_dolake_could_not_have_given_are_not_its_tables(lake: Lake) -> None:
    plain = SqlCatalog("dolake", uri=lake.uri, warehouse=lake.store.root)
    plain.create_namespace("a.b")
    plain.create_table("a.b.deep", schema=pa.schema([("id", pa.int64())]))
    plain.engine.dispose()
    assert lake.catalog.list_tables() == [TABLE]


def test_plain_pyiceberg_reads_and_writes_the_same_catalog(lake: Lake) -> None:
    lake.commit(lake.delta(0, 2))
    plain = SqlCatalog("dolake", uri=lake.uri, warehouse=lake.store.root)
    assert plain.list_tables("shop") == [("shop", "orders")]
    plain.load_table("shop.orders").append(pa.table({"id": pa.array([50], pa.int64()), "name": ["plain"]}))
    made = plain.create_table("shop.made", schema=pa.schema([("id", pa.int64())]))
    assert lake.catalog.load(TableName("shop", "made")) is not None
    made.append(pa.table({"id": pa.array([1], pa.int64())}))
    plain.engine.dispose()
    assert isinstance(lake.commit(lake.delta(2, 3)), Landed)
    assert lake.ids() == [0, 1, 2, 50]


def test_commits_survive_a_power_cut(lake: Lake) -> None:
    """SQLite syncs a commit under FULL, and its end (the journal's) only if the journal is truncated, not unlinked."""
    with lake.catalog._engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "truncate"
        assert connection.exec_driver_sql("PRAGMA busy_timeout").scalar() == 10_000


def test_a_catalog_in_write_ahead_mode_is_left_so(tmp_path: Path) -> None:
    connection = sqlite3.connect(tmp_path / "catalog.db")
    connection.execute("PRAGMA journal_mode=WAL")
    connection.close()
    lake = Lake(tmp_path)
    assert isinstance(lake.commit(lake.delta(0, 2)), Landed)
    with lake.catalog._engine.connect() as connected:
        assert connected.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        assert connected.exec_driver_sql("PRAGMA synchronous").scalar() == 2
    lake.close()


def test_another_processes_write_is_waited_for(lake: Lake) -> None:
    other = sqlite3.connect(lake.uri.removeprefix("sqlite:///"), check_same_thread=False, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with ThreadPoolExecutor(1) as pool:
        swap = pool.submit(lake.catalog.swap, lake.current(), [], CHANGE)
        other.execute("COMMIT")
        assert swap.result(timeout=30).properties == {"a": "b"}
    other.close()


def test_a_metadata_file_that_is_gone_is_named(lake: Lake) -> None:
    lake.store.delete(lake.table.metadata_location)
    fresh = SqlTableCatalog(lake.uri, lake.store, lake.runtime)
    with pytest.raises(CatalogUnreachable, match="which is not in the warehouse"):
        fresh.load(TABLE)
    fresh.close()


def test_a_catalog_that_cannot_be_opened_is_named(tmp_path: Path) -> None:
    with pytest.raises(CatalogUnreachable, match="nowhere"):
        SqlTableCatalog(f"sqlite:///{tmp_path}/nowhere/catalog.db", LocalStore(f"file://{tmp_path}/w"), hand_runtime())


def test_a_broken_catalog_says_so(lake: Lake) -> None:
    Path(lake.uri.removeprefix("sqlite:///")).write_bytes(b"this is no database " * 1000)
    base = lake.table

    def each() -> list[Any]:
        return [lambda: lake.catalog.load(TABLE), lambda: lake.catalog.swap(base, [], CHANGE), lambda: lake.catalog.list_tables()]

    for call in each():
        with pytest.raises(CatalogUnreachable):
            call()


def test_two_may_create_the_same_catalog_at_once(tmp_path: Path) -> None:
    store = LocalStore(f"file://{tmp_path}/w")

    def open_one(_: int) -> SqlTableCatalog:
        return SqlTableCatalog(f"sqlite:///{tmp_path}/catalog.db", store, hand_runtime())

    with ThreadPoolExecutor(8) as pool:
        for catalog in list(pool.map(open_one, range(8))):
            assert catalog.list_tables() == []
            catalog.close()
