"""SQL over committed tables, which plain PyIceberg writes here: no daemon is involved."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, date, datetime, time
from decimal import Decimal
from pathlib import Path
from uuid import UUID

import pyarrow as pa
import pytest
from pyiceberg.catalog.sql import SqlCatalog
from pyiceberg.schema import Schema
from pyiceberg.types import (
    BinaryType,
    DateType,
    DecimalType,
    DoubleType,
    FloatType,
    ListType,
    LongType,
    MapType,
    NestedField,
    StringType,
    TimestampType,
    TimestamptzType,
    TimeType,
    UUIDType,
)

from dolake.cli import run
from dolake.cli.lake import Lake, open_lake
from dolake.config import load_settings
from dolake.errors import ConfigurationError, QueryRefused
from dolake.query import Connection, open_connection, run_query

SCHEMA = Schema(
    NestedField(1, "id", UUIDType()),
    NestedField(2, "amount", DecimalType(38, 10)),
    NestedField(3, "weight", FloatType()),
    NestedField(4, "price", DoubleType()),
    NestedField(5, "placed", TimestamptzType()),
    NestedField(6, "seen", TimestampType()),
    NestedField(7, "day", DateType()),
    NestedField(8, "at", TimeType()),
    NestedField(9, "raw", BinaryType()),
    NestedField(10, "tags", ListType(11, StringType(), False)),
    NestedField(12, "note", StringType()),
    NestedField(13, "n", LongType()),
    NestedField(14, "labels", MapType(15, StringType(), 16, DoubleType(), False)),
)
ROW = {
    "id": UUID("c14c7fcd-6da2-e3cf-a707-7a5abfd05d16").bytes,
    "amount": Decimal("1234567890123456789012345678.0123456789"),
    "weight": 0.6534967,
    "price": 9.14076218238231,
    "placed": datetime(2026, 11, 20, 15, 30, 18, 125015, tzinfo=UTC),
    "seen": datetime(2026, 11, 20, 15, 30, 18, 587677),
    "day": date(1900, 1, 1),
    "at": time(1, 2, 3, 4),
    "raw": bytes.fromhex("c4ca"),
    "tags": ["a", "b, \"c\""],
    "note": "🚀 line\nbreak \\ \"q\"",
    "n": 9223372036854775807,
    "labels": [("x", float("nan"))],
}  # fmt: skip
NULLS = dict.fromkeys(ROW)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data directory with a lake in it: `public.things` of two rows, `default.bare`, a table without snapshots."""
    data = tmp_path_factory.mktemp("lake")
    (data / "warehouse").mkdir()
    catalog = SqlCatalog("dolake", uri=f"sqlite:///{data}/catalog.db", warehouse=f"file://{data}/warehouse")
    for namespace in ("public", "default"):
        catalog.create_namespace(namespace)
    things = catalog.create_table("public.things", SCHEMA)
    things.append(pa.Table.from_pylist([ROW, NULLS], schema=things.schema().as_arrow()))
    bare = catalog.create_table("default.bare", Schema(NestedField(1, "n", LongType())))
    bare.append(pa.table({"n": [1, 2, 3]}))
    catalog.create_table("public.empty", Schema(NestedField(1, "n", LongType())))
    catalog.engine.dispose()
    return data


@pytest.fixture
def lake(data: Path) -> Lake:
    return open_lake(load_settings({"data": str(data)}, environment={}))


@pytest.fixture
def connection(lake: Lake) -> Iterator[Connection]:
    connection = open_connection(lake.catalog, lake.store)
    yield connection
    connection.close()


def rows(connection: Connection, sql: str) -> list[dict[str, object]]:
    found: list[dict[str, object]] = [row for batch in run_query(connection, sql).batches() for row in batch.to_pylist()]
    return found


def test_every_table_is_a_view_and_default_is_bare(connection: Connection) -> None:
    assert rows(connection, "SELECT count(*) AS n FROM public.things") == [{"n": 2}]
    assert rows(connection, "SELECT sum(n)::BIGINT AS n FROM bare") == [{"n": 6}]
    assert rows(connection, 'SELECT count(*) AS n FROM "default".bare') == [{"n": 3}]
    assert connection.unreadable == {}


def test_a_table_that_was_never_flushed_is_empty(connection: Connection) -> None:
    assert rows(connection, "SELECT * FROM public.empty") == []


@pytest.mark.parametrize(
    "sql",
    [
        "COPY (SELECT 1) TO '{path}'",
        "EXPLAIN ANALYZE COPY (SELECT 1) TO '{path}'",
        "explain (analyze) copy (select 1) to '{path}'",
        "EXPORT DATABASE '{path}'",
        "CREATE TABLE t AS SELECT 1",
        "ATTACH '{path}'",
        "INSERT INTO bare VALUES (4)",
        "DELETE FROM bare",
        "SET threads = 1",
        "INSTALL json",
        "SELECT 1; SELECT 2",
        "",
    ],
)
def test_only_one_statement_that_reads_is_run(connection: Connection, sql: str, tmp_path: Path) -> None:
    path = tmp_path / "out"
    with pytest.raises(QueryRefused):
        run_query(connection, sql.format(path=path))
    assert not path.exists()


@pytest.mark.parametrize(
    "sql",
    ["FROM bare", "WITH x AS (SELECT 1) FROM x", "EXPLAIN SELECT 1", "DESCRIBE bare", "SHOW ALL TABLES", "VALUES (1)", "SUMMARIZE bare"],
)
def test_whatever_reads_is_run(connection: Connection, sql: str) -> None:
    assert rows(connection, sql)


def test_a_table_that_cannot_be_read_leaves_the_others_readable(data: Path, tmp_path: Path) -> None:
    catalog = SqlCatalog("dolake", uri=f"sqlite:///{tmp_path}/catalog.db", warehouse=f"file://{tmp_path}/warehouse")
    catalog.create_namespace("default")
    catalog.create_table("default.good", Schema(NestedField(1, "n", LongType())))
    broken = catalog.create_table("default.broken", Schema(NestedField(1, "n", LongType())))
    Path(broken.metadata_location.removeprefix("file://")).unlink()
    catalog.engine.dispose()
    lake = open_lake(load_settings({"data": str(tmp_path)}, environment={}))
    connection = open_connection(lake.catalog, lake.store)
    assert rows(connection, "FROM good") == []
    with pytest.raises(QueryRefused, match=r"default\.broken cannot be read: .*metadata"):
        run_query(connection, 'FROM "default".broken -- default.broken')
    connection.close()


def test_json_is_exact(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["query", "SELECT * FROM public.things ORDER BY id NULLS LAST", "--data", str(data), "--json"]) == 0
    text = capsys.readouterr().out
    assert '"amount":1234567890123456789012345678.0123456789,' in text
    assert '"weight":0.6534967,' in text
    assert '"note":"🚀 line\\nbreak \\\\ \\"q\\""' in text
    first, second = json.loads(text, parse_float=Decimal)
    assert first == {
        "id": "c14c7fcd-6da2-e3cf-a707-7a5abfd05d16",
        "amount": Decimal("1234567890123456789012345678.0123456789"),
        "weight": Decimal("0.6534967"),
        "price": Decimal("9.14076218238231"),
        "placed": "2026-11-20T15:30:18.125015Z",
        "seen": "2026-11-20T15:30:18.587677",
        "day": "1900-01-01",
        "at": "01:02:03.000004",
        "raw": "xMo=",
        "tags": ["a", 'b, "c"'],
        "note": '🚀 line\nbreak \\ "q"',
        "n": 9223372036854775807,
        "labels": [["x", "NaN"]],
    }
    assert second == NULLS


def test_csv_tells_null_from_an_empty_text(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sql = "SELECT amount, note, raw, '' AS empty, tags FROM public.things ORDER BY id NULLS LAST"
    assert run(["query", sql, "--data", str(data), "--csv"]) == 0
    assert capsys.readouterr().out == (
        "amount,note,raw,empty,tags\n"
        '1234567890123456789012345678.0123456789,"🚀 line\nbreak \\ ""q""",xMo=,"","[""a"",""b, \\""c\\""""]"\n'
        ',,,"",\n'
    )


def test_a_table_is_the_default_and_nothing_of_it_is_cut(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["query", "SELECT amount, repeat('x', 300) AS long FROM public.things WHERE n > 0", "--data", str(data)]) == 0
    shown = capsys.readouterr().out
    assert "1234567890123456789012345678.0123456789" in shown
    assert "x" * 300 in shown
    assert "1 row" in shown


@pytest.mark.parametrize(
    ("sql", "value"),
    [
        ("170141183460469231731687303715884105727::HUGEINT", "170141183460469231731687303715884105727"),
        ("TIMESTAMP_NS '2026-01-01 00:00:00.123456789'", '"2026-01-01T00:00:00.123456789"'),
        ("DATE '0044-03-15 (BC)'", '"-0043-03-15"'),
        ("0.1::FLOAT", "0.1"),
        ("16777217::FLOAT", "16777216.0"),
        ("3.4028234663852886e38::FLOAT", "3.40282347e38"),
        ("'inf'::DOUBLE", '"Infinity"'),
        ("['-inf'::FLOAT, NULL]", '["-Infinity",null]'),
        ("INTERVAL '1 month 2 days 3.5 seconds'", '"P1M2DT3.5S"'),
        ("{'a': TIMESTAMPTZ '2026-01-01 00:00:00+02'}", '{"a":"2025-12-31T22:00:00Z"}'),
        ("1.50::DECIMAL(5,2)", "1.50"),
        ("NULL", "null"),
    ],
)
def test_values_of_every_kind_are_json(data: Path, capsys: pytest.CaptureFixture[str], sql: str, value: str) -> None:
    assert run(["query", f"SELECT {sql} AS v", "--data", str(data), "--json"]) == 0
    assert capsys.readouterr().out == f'[\n{{"v":{value}}}\n]\n'


def test_no_rows_are_an_empty_array(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["query", "SELECT 1 WHERE false", "--data", str(data), "--json"]) == 0
    assert capsys.readouterr().out == "[]\n"


def test_columns_of_one_name_get_names_of_their_own(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["query", "SELECT 1 AS a, 2 AS a, 3 AS a", "--data", str(data), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == [{"a": 1, "a_1": 2, "a_2": 3}]


@pytest.mark.parametrize(
    ("arguments", "said"), [(["SELEC 1"], "syntax error"), (["FROM nope"], "does not exist"), (["SELECT 1/0 FROM bare; ;"], "")]
)
def test_wrong_sql_ends_with_duckdbs_words_and_2(data: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str) -> None:
    code = run(["query", *arguments, "--data", str(data)])
    captured = capsys.readouterr()
    assert (code == 2) == bool(said)
    assert said in captured.err
    assert "Traceback" not in captured.err


def test_an_error_while_rows_are_read_is_said_too(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    late = "SELECT CASE WHEN i < 900000 THEN i ELSE CAST('x' || i AS INTEGER) END FROM range(1000000) t(i)"
    assert run(["query", late, "--data", str(data), "--csv"]) == 2
    # Which of DuckDB's threads is heard first, the one that failed or one that was told to stop, is not ours to say.
    said = capsys.readouterr().err
    assert "Conversion Error" in said or "INTERRUPT Error" in said


def test_reading_creates_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    missing = tmp_path / "missing"
    assert run(["query", "SELECT 1", "--data", str(missing)]) == 2
    assert not missing.exists()
    assert run(["query", "SELECT 1 AS one", "--data", str(tmp_path), "--json"]) == 0
    assert run(["tables", "--data", str(tmp_path)]) == 0
    assert list(tmp_path.iterdir()) == []
    assert "no tables yet" in capsys.readouterr().out


def test_a_name_that_is_no_table_is_refused(lake: Lake) -> None:
    for name in ("public.nope", "nope", "../../evil", "a.b.c", ""):
        with pytest.raises(ConfigurationError, match="no such table"):
            lake.table(name)
    assert str(lake.table("bare").name) == "default.bare"
