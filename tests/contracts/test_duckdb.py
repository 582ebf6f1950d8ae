"""What DuckDB does that `query.py` and everybody who reads a lake with it must know."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import duckdb
import pytest

from dolake.query import _EXTENSIONS, _extension_path
from tests.contracts.test_pyarrow import parquet_with_a_flipped_bit
from tests.iceberg.lake import Lake


@pytest.fixture
def plain() -> Iterator[duckdb.DuckDBPyConnection]:
    with duckdb.connect(":memory:", config={"autoinstall_known_extensions": False, "autoload_known_extensions": False}) as connection:
        yield connection


def test_it_reads_past_page_checksums(plain: duckdb.DuckDBPyConnection, tmp_path: Path) -> None:
    """A flipped bit is a value to it, so only `dolake verify` and rewrites notice (I15)."""
    path = parquet_with_a_flipped_bit(tmp_path / "f.parquet")
    assert plain.execute(f"SELECT x FROM '{path}' WHERE x BETWEEN 500 AND 502").fetchall() == [(501,), (501,), (502,)]


def test_iceberg_does_not_load_before_avro(plain: duckdb.DuckDBPyConnection) -> None:
    """With automatic loading off the order is ours to keep (`query.py`)."""
    with pytest.raises(duckdb.Error):
        plain.load_extension(str(_extension_path("iceberg")))
    for name in _EXTENSIONS:
        plain.load_extension(str(_extension_path(name)))


def test_explain_analyze_runs_what_it_explains(plain: duckdb.DuckDBPyConnection) -> None:
    """An INSERT inside it inserts (`_require_reading` in `query.py` looks inside)."""
    plain.execute("CREATE TABLE t (x INT)")
    plain.execute("EXPLAIN ANALYZE INSERT INTO t VALUES (1)")
    assert plain.execute("SELECT count(*) FROM t").fetchone() == (1,)


@pytest.mark.parametrize(
    ("sql", "kinds"),
    [
        ("SELECT 1", ["SELECT"]),
        ("WITH a AS (SELECT 1) SELECT * FROM a", ["SELECT"]),
        ("WITH a AS (SELECT 1) INSERT INTO t SELECT * FROM a", ["INSERT"]),
        ("EXPLAIN ANALYZE INSERT INTO t VALUES (1)", ["EXPLAIN"]),
        ("COPY t TO 'x'", ["COPY"]),
        ("SELECT 1; SELECT 2", ["SELECT", "SELECT"]),
        ("ATTACH 'x.db'", ["ATTACH"]),
        ("SET threads = 1", ["SET"]),
    ],
)
def test_it_says_what_a_statement_would_do(plain: duckdb.DuckDBPyConnection, sql: str, kinds: list[str]) -> None:
    """`query.py` runs only one, and only if it is a SELECT."""
    assert [statement.type.name for statement in plain.extract_statements(sql)] == kinds


def test_no_common_table_expression_changes_anything(plain: duckdb.DuckDBPyConnection) -> None:
    """A SELECT over an INSERT would pass for one that reads."""
    with pytest.raises(duckdb.ParserException):
        plain.extract_statements("WITH x AS (INSERT INTO t VALUES (1) RETURNING *) SELECT * FROM x")


def test_a_view_keeps_the_metadata_file_it_was_made_over(plain: duckdb.DuckDBPyConnection, lake: Lake) -> None:
    """So a query of `query.py` sees whole snapshots, whatever is committed meanwhile."""
    for name in _EXTENSIONS:
        plain.load_extension(str(_extension_path(name)))
    lake.commit(lake.delta(0, 3))
    plain.execute(f"CREATE VIEW v AS SELECT * FROM iceberg_scan('{lake.current().metadata_location}')")
    lake.commit(lake.delta(3, 5))
    assert plain.execute("SELECT count(*) FROM v").fetchone() == (3,)


def test_its_extensions_are_of_its_own_version() -> None:
    """Another DuckDB has no wheels for them (pyproject pins all four)."""
    assert all(f"v{duckdb.__version__}" in str(_extension_path(name)) for name in _EXTENSIONS)
