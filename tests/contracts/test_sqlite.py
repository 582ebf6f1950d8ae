"""What SQLite does by itself about power cuts and other processes; the catalog of a laptop is one (`iceberg/catalog.py`)."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path

import pytest
from sqlalchemy import create_engine, event, text

from dolake.iceberg.database import _make_durable


def test_a_commit_takes_its_journal_away_by_a_name_that_nobody_syncs(tmp_path: Path) -> None:
    """By default the journal is deleted at each commit, and the directory is synced only under EXTRA: it can come back."""
    with contextlib.closing(sqlite3.connect(tmp_path / "c.db")) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("delete",)
        assert connection.execute("PRAGMA synchronous").fetchone() == (2,), "FULL"
        connection.execute("CREATE TABLE t (x)")
        connection.execute("INSERT INTO t VALUES (1)")
        connection.commit()
    assert not (tmp_path / "c.db-journal").exists()


def test_a_truncated_journal_stays_and_is_empty(tmp_path: Path) -> None:
    """Nothing that has to be synced in the directory is left to a commit."""
    with contextlib.closing(sqlite3.connect(tmp_path / "c.db")) as connection:
        connection.execute("PRAGMA journal_mode=TRUNCATE")
        for statement in ("CREATE TABLE t (x)", "INSERT INTO t VALUES (1)"):
            connection.execute(statement)
            connection.commit()
            assert (tmp_path / "c.db-journal").stat().st_size == 0


def test_a_setting_holds_for_one_connection_only(tmp_path: Path) -> None:
    """Each that the pool makes has to be told; those that are pooled already have not been (`SqlTableCatalog` drops them)."""
    engine = create_engine(f"sqlite:///{tmp_path}/c.db")
    try:
        with engine.connect() as connection:
            connection.execute(text("CREATE TABLE t (x)"))
        event.listen(engine, "connect", _make_durable)
        with engine.connect() as connection:
            assert connection.scalar(text("PRAGMA journal_mode")) == "delete", "connections are told though they were pooled"
        engine.dispose()
        with engine.connect() as connection:
            assert connection.scalar(text("PRAGMA journal_mode")) == "truncate"
            assert connection.scalar(text("PRAGMA busy_timeout")) == 10_000
    finally:
        engine.dispose()


def test_a_log_that_somebody_chose_stays(tmp_path: Path) -> None:
    """WAL is kept in the file, and so is left alone."""
    with contextlib.closing(sqlite3.connect(tmp_path / "c.db")) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("CREATE TABLE t (x)")
        connection.commit()
    with contextlib.closing(sqlite3.connect(tmp_path / "c.db")) as connection:
        _make_durable(connection, None)
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert connection.execute("PRAGMA synchronous").fetchone() == (2,)


def test_a_writer_that_waits_in_vain_says_so(tmp_path: Path) -> None:
    """An OperationalError, after which the outcome counts as unknown."""
    with contextlib.closing(sqlite3.connect(tmp_path / "c.db")) as one, contextlib.closing(sqlite3.connect(tmp_path / "c.db")) as other:
        one.execute("CREATE TABLE t (x)")
        one.commit()
        one.execute("INSERT INTO t VALUES (1)")
        other.execute("PRAGMA busy_timeout=0")
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            other.execute("INSERT INTO t VALUES (2)")


def test_an_update_counts_the_rows_that_its_condition_found(tmp_path: Path) -> None:
    """The compare-and-swap: one row or none (`SqlTableCatalog.swap`)."""
    with contextlib.closing(sqlite3.connect(tmp_path / "c.db")) as connection:
        connection.execute("CREATE TABLE t (name, location)")
        connection.execute("INSERT INTO t VALUES ('a', 'old')")
        swap = "UPDATE t SET location = 'new' WHERE name = 'a' AND location = 'old'"
        assert [connection.execute(swap).rowcount for _ in range(2)] == [1, 0]
