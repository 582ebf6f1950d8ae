"""The SQL catalog: one swap on exactly what was loaded, durable, and the same file that plain PyIceberg uses."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyiceberg.catalog.sql import SqlCatalog
from sqlalchemy import event

from dolake.cli.lake import Lake as Committed
from dolake.errors import CatalogUnreachable, CommitConflict, ObjectDamaged, TableStopped
from dolake.iceberg.catalog import SqlTableCatalog
from dolake.iceberg.commit import Landed
from dolake.model import TableName
from dolake.storage.local import LocalStore
from tests.iceberg.lake import LOG, TABLE, Lake, hand_runtime, make_metadata

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


def test_views_of_other_programs_are_no_tables(lake: Lake) -> None:
    with lake.catalog._engine.begin() as connection:
        connection.exec_driver_sql("INSERT INTO iceberg_tables VALUES ('dolake', 'shop', 'a_view', 'file:///somewhere', NULL, 'VIEW')")
    assert lake.catalog.list_tables() == [TABLE]
    assert lake.catalog.load(TableName("shop", "a_view")) is None


def test_a_table_in_another_warehouse_is_not_ours(lake: Lake, tmp_path: Path) -> None:
    plain = SqlCatalog("dolake", uri=lake.uri, warehouse=f"file://{tmp_path}/elsewhere")
    plain.create_table("shop.stranger", schema=pa.schema([("id", pa.int64())]))
    plain.engine.dispose()
    with pytest.raises(TableStopped, match=r"outside of the warehouse .*warehouse\.uri"):
        lake.catalog.load(TableName("shop", "stranger"))
    assert [table.name for table in Committed(lake.store, lake.catalog).tables()] == [TABLE]


@pytest.mark.parametrize("location", ["s3://elsewhere/x.metadata.json", "file:///etc/passwd", "no location"])
def test_a_row_of_ours_that_points_out_of_the_warehouse_is_damaged(lake: Lake, location: str) -> None:
    """Where the table was before tells it from one of others."""
    lake.commit(lake.delta(0, 2))
    with lake.catalog._engine.begin() as connection:
        connection.exec_driver_sql("UPDATE iceberg_tables SET metadata_location = ?", (location,))
    with pytest.raises(ObjectDamaged, match=f"the row of shop.orders.*{location}, outside of the warehouse .*restore the catalog"):
        lake.catalog.load(TABLE)


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


def commit_rows(lake: Lake, start: int, end: int) -> None:
    assert isinstance(lake.commit(lake.delta(start, end, known={LOG: start})), Landed)


def path_of(lake: Lake) -> Path:
    return Path(lake.uri.removeprefix("sqlite:///"))


def copy_of(lake: Lake, name: str) -> Path:
    """A whole copy of the catalog as it is now."""
    source, target = path_of(lake), path_of(lake).parent / name
    with contextlib.closing(sqlite3.connect(source)) as here, contextlib.closing(sqlite3.connect(target)) as there:
        here.backup(there)
    return target


def test_a_catalog_file_that_was_replaced_is_the_one_that_is_written(lake: Lake) -> None:
    """What the old file is told, which nobody finds any more, would be lost with its rows."""
    commit_rows(lake, 0, 5)
    os.replace(copy_of(lake, "restored.db"), path_of(lake))
    commit_rows(lake, 5, 10)
    fresh = SqlTableCatalog(lake.uri, lake.store, lake.runtime)
    try:
        loaded = fresh.load(TABLE)
        assert loaded is not None
        assert loaded.offsets() == {LOG: 10}
    finally:
        fresh.close()
    assert lake.ids() == list(range(10))


def test_a_catalog_that_is_replaced_while_it_is_written_leaves_the_outcome_unknown(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    """The swap goes into the old file; the loop looks again, finds nothing of it in the new one, and commits there."""
    copy = copy_of(lake, "restored.db")
    real, replaced = lake.catalog._engine.dialect.do_commit, []

    def replace_and_commit(connection: Any) -> None:
        if not replaced:
            replaced.append(os.replace(copy, path_of(lake)))
        real(connection)

    monkeypatch.setattr(lake.catalog._engine.dialect, "do_commit", replace_and_commit)
    commit_rows(lake, 0, 5)
    assert replaced
    assert lake.ids() == list(range(5))
    assert len(lake.current().metadata["snapshots"]) == 1


def test_a_catalog_file_that_is_gone_is_named_and_not_made_anew(lake: Lake) -> None:
    commit_rows(lake, 0, 5)
    path = path_of(lake)
    kept = copy_of(lake, "kept.db")
    path.unlink()
    for _ in range(3):
        with pytest.raises(CatalogUnreachable, match="the file is gone: restore it"):
            lake.catalog.load(TABLE)
        assert not path.exists(), "an empty catalog knows no table: every one would be made anew"
    os.replace(kept, path)
    commit_rows(lake, 5, 10)
    assert lake.ids() == list(range(10))


def test_a_catalog_on_a_full_disk_goes_on_when_there_is_room(lake: Lake) -> None:
    """SQLite's own limit of pages stands for the disk: the error is the same, SQLITE_FULL."""
    commit_rows(lake, 0, 5)
    full = []

    def limit(connection: Any, _record: Any, _proxy: Any) -> None:
        pages = connection.execute("PRAGMA page_count").fetchone()[0] if full else 1 << 30
        connection.execute(f"PRAGMA max_page_count={pages}")

    event.listen(lake.catalog._engine, "checkout", limit)
    full.append(True)

    def create_many() -> None:
        for number in range(1000):
            lake.catalog.create(TableName("shop", f"table_{number}"), make_metadata(lake.store, lake.runtime))

    with pytest.raises(CatalogUnreachable, match="full"):
        create_many()
    known = len(lake.catalog.list_tables())
    full.clear()
    commit_rows(lake, 5, 10)
    lake.catalog.create(TableName("shop", "another"), make_metadata(lake.store, lake.runtime))
    assert len(lake.catalog.list_tables()) == known + 1
    assert lake.ids() == list(range(10))


@pytest.mark.parametrize("damage", [lambda data: data[: len(data) // 2], lambda data: b"\0" * len(data), lambda data: b""])
def test_a_metadata_file_that_is_spoilt_is_named(lake: Lake, damage: Callable[[bytes], bytes]) -> None:
    path = Path(lake.table.metadata_location.removeprefix("file://"))
    path.write_bytes(damage(path.read_bytes()))
    fresh = SqlTableCatalog(lake.uri, lake.store, lake.runtime)
    with pytest.raises(ObjectDamaged, match="restore it") as caught:
        fresh.load(TABLE)
    assert lake.table.metadata_location in str(caught.value)
    fresh.close()
