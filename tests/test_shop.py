"""A real database's change stream through a real daemon, from `dolake send` to SQL: every change a row, folded the final tables.

The fold in SQL is the reference: by (log, offset, index) the last event of a key wins, deletes, changes of the key
(`_cdc_key_before`) and truncates remove. PyIceberg reads the same rows, and Python folds them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any
from uuid import UUID

import pyarrow as pa
import pytest
import zstandard

from tests.debezium import OTHERS, Rewriter, without_schemas
from tests.harness.daemon import Daemon
from tests.harness.lake import Lake
from tests.harness.shop_lake import changes
from tests.shop import COLUMNS, EVENT_COUNT, EVENT_COUNTS, KEYS, STREAM, Row, assert_equals_final, by_key, fold, folded_sql, stream_lines

SEND = ("send", str(STREAM), "--source", "shop-db", "--format", "wal2json", "--wait", "persisted", "--json")
UUIDS = ("id", "order_id")
KEY_TYPES = {"customers": ("BIGINT",), "orders": ("UUID",), "order_lines": ("UUID", "INTEGER"), "page_views": ("BIGINT",)}


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon that has been sent the stream, flushing several times on the way; nothing but what is sent changes a table."""
    toml = '[sources.shop-debezium]\nnamespace = "debezium_*"\n[sources.shop-plain]\nnamespace = "plain_*"\n'
    nothing_else = {"DOLAKE_COMPACTION_ENABLED": "false", "DOLAKE_MAINTENANCE_ENABLED": "false"}
    settings = {"DOLAKE_FLUSH_AGE_S": "0.5", **nothing_else}
    with Daemon(tmp_path_factory.mktemp("shop") / "data", settings, table_settings=toml) as daemon:
        daemon.start()
        sent = daemon.run(*SEND, "--rate", "40000", deadline_s=120)
        assert sent.returncode == 0, sent.stderr + daemon.tail()
        summary = json.loads(sent.stdout)
        assert (summary["events"], summary["skipped"]) == (EVENT_COUNT, 0)
        yield daemon


@pytest.fixture(scope="module")
def lake(shop: Daemon) -> Iterator[Lake]:
    with Lake(shop.data) as lake:
        yield lake


def python_rows(table: pa.Table) -> list[Row]:
    """DuckDB hands out a uuid as text."""
    return [
        {name: UUID(value) if name in UUIDS and isinstance(value, str) else value for name, value in row.items()}
        for row in table.to_pylist()
    ]


def location(lake: Lake, table: str) -> str:
    return location_of(lake, f"public.{table}")


def location_of(lake: Lake, table: str) -> str:
    found = lake.metadata_location(table)
    assert found is not None
    return found


@pytest.mark.acceptance("AT-07")
def test_every_change_is_a_row_once(lake: Lake) -> None:
    sequences: list[int] = []
    for table, count in EVENT_COUNTS.items():
        found = [row[0] for row in lake.query(f"SELECT _cdc_sequence FROM iceberg_scan('{location(lake, table)}')")]
        assert len(found) == count
        sequences += found
    assert sorted(sequences) == list(range(1, EVENT_COUNT + 1))


@pytest.mark.acceptance("AT-07")
@pytest.mark.parametrize("table", list(KEYS))
def test_folded_in_sql_a_changelog_is_the_final_table(lake: Lake, table: str) -> None:
    result = (
        lake.database()
        .execute(folded_sql(location(lake, table), dict(zip(KEYS[table], KEY_TYPES[table], strict=True)), COLUMNS[table]))
        .to_arrow_table()
    )
    assert_equals_final(table, by_key(table, python_rows(result)))


@pytest.mark.acceptance("AT-07")
@pytest.mark.parametrize("table", list(KEYS))
def test_pyiceberg_reads_the_same_rows(lake: Lake, table: str) -> None:
    assert_equals_final(table, fold(table, changes(table, lake.read_pyiceberg(f"public.{table}"))))


def test_what_each_row_carries_of_its_change(lake: Lake) -> None:
    scan = f"iceberg_scan('{location(lake, 'customers')}')"
    first = lake.query(
        "SELECT _cdc_operation, _cdc_timestamp::VARCHAR, _cdc_source, _cdc_lsn, _cdc_transaction, balance::VARCHAR, created_at::VARCHAR"
        f" FROM {scan} WHERE _cdc_sequence = 1"
    )
    assert first == [("INSERT", "2026-11-20 15:30:18.126+00", "shop-db", "0/1E80FD8", "3763", "986.29", "2026-11-20 15:30:18.125015+00")]
    moved = f"SELECT count(*), count(*) FILTER (_cdc_operation = 'UPDATE') FROM {scan} WHERE _cdc_key_before IS NOT NULL"
    assert lake.query(moved) == [(492, 492)]


@pytest.mark.acceptance("AT-05")
def test_the_same_file_again_changes_nothing(shop: Daemon, lake: Lake) -> None:
    before = {table: location(lake, table) for table in KEYS}
    for more in ((), ("--batch-events", "333"), ("--batch-events", "10000")):
        again = shop.run(*SEND, *more)
        assert again.returncode == 0, again.stderr
        summary = json.loads(again.stdout)
        assert (summary["events"], summary["batches"], summary["skipped"]) == (0, 0, EVENT_COUNT)
    flushed = shop.run("flush")
    assert flushed.returncode == 0, flushed.stderr
    assert {table: location(lake, table) for table in KEYS} == before


@pytest.fixture(scope="module")
def debezium(shop: Daemon) -> dict[str, Any]:
    """The same stream as Debezium tells it, from another source into a namespace of its own; what sending it said."""
    file = shop.data.parent / "shop.debezium.ndjson.zst"
    with zstandard.open(file, "wb") as packed:
        for line in Rewriter().lines(stream_lines()):
            packed.write(line + b"\n")
    sent = shop.run("send", str(file), "--source", "shop-debezium", "--format", "debezium", "--wait", "persisted", "--json", deadline_s=300)
    assert sent.returncode == 0, sent.stderr + shop.tail()
    summary: dict[str, Any] = json.loads(sent.stdout)
    return summary


def test_debeziums_words_for_it_are_as_many_events(debezium: dict[str, Any]) -> None:
    assert (debezium["events"], debezium["bad"]) == (EVENT_COUNT, 0)
    assert debezium["passed_over"] == {"tombstones": 618 + 492 + 5_692}


@pytest.mark.parametrize("table", list(KEYS))
def test_from_debezium_the_same_table_comes_as_from_wal2json(debezium: dict[str, Any], lake: Lake, table: str) -> None:
    """Row by row in the order of the log, with all columns of the source and what of the change both tell."""
    told = "_cdc_operation, _cdc_timestamp, _cdc_lsn, _cdc_transaction, _cdc_key_before::JSON AS key_before, _cdc_unchanged"
    columns = ", ".join(f'"{name}"' for name in COLUMNS[table])
    place = "row_number() OVER (ORDER BY _cdc_log, _cdc_offset, _cdc_index) AS place"

    def rows(name: str) -> str:
        return f"SELECT {place}, {told}, {columns} FROM iceberg_scan('{location_of(lake, name)}')"

    one, other = rows(f"public.{table}"), rows(f"debezium_public.{table}")
    for first, second in ((one, other), (other, one)):
        assert lake.query(f"({first}) EXCEPT ALL ({second}) LIMIT 3") == []
    assert lake.query(f"SELECT count(*) FROM ({other})") == [(EVENT_COUNTS[table],)]
    types = [lake.query(f"SELECT column_name, column_type FROM (DESCRIBE {text})") for text in (one, other)]
    assert types[0] == types[1]


# Columns as their JSON is without schemas, brought to what they were: texts of decimals and moments, digits, nanoseconds.
INFERRED = {
    "customers": {
        "balance": "balance::DECIMAL(12,2)", "tags": "from_json(tags, '[\"VARCHAR\"]')", "created_at": "created_at::TIMESTAMPTZ",
        "tier": "tier::INTEGER",
    },
    "orders": {
        "id": "id::UUID", "total": "total::DECIMAL(14,4)", "placed_at": "placed_at::TIMESTAMPTZ",
        "ship_date": "rtrim(ship_date, 'Z')::DATE",
    },
    "order_lines": {"order_id": "order_id::UUID", "line_no": "line_no::INTEGER", "weight": "weight::FLOAT"},
    "page_views": {"at": "make_timestamp(\"at\" // 1000)", "ms": "ms::INTEGER", "agent": "unhex(agent)"},
}  # fmt: skip


@pytest.fixture(scope="module")
def plain(shop: Daemon) -> int:
    """The first third without schemas: nothing says what the columns are. How many changes of wal2json's that is."""
    file = shop.data.parent / "shop.plain.ndjson"
    third = stream_lines()[:40_000]
    while b'"action":"C"' not in third[-1]:
        third.pop()
    lines = list(without_schemas(Rewriter(OTHERS).lines(third)))
    file.write_bytes(b"".join(line + b"\n" for line in lines))
    sent = shop.run("send", str(file), "--source", "shop-plain", "--format", "debezium", "--wait", "persisted", "--json", deadline_s=300)
    assert sent.returncode == 0, sent.stderr + shop.tail()
    # An update of a key is a delete and an insert here: without types nobody knows whether two keys are one.
    assert json.loads(sent.stdout)["events"] == sum(b'"op":"' in line for line in lines)
    return sum(any(b'"action":"%b"' % action in line for action in (b"I", b"U", b"D", b"T")) for line in third)


@pytest.mark.parametrize("table", list(KEYS))
def test_without_schemas_types_are_inferred_and_no_value_is_lost(plain: int, lake: Lake, table: str) -> None:
    scan = f"iceberg_scan('{location_of(lake, f'plain_public.{table}')}')"
    columns = {row[0]: row[1] for row in lake.query(f"DESCRIBE FROM {scan}") if not row[0].startswith("_cdc_")}
    # Half way these are added; and nothing had to go beside another column.
    assert set(COLUMNS[table]) - columns.keys() == {"orders": {"channel"}, "page_views": {"country"}}.get(table, set())
    assert columns.keys() <= set(COLUMNS[table])
    declared = ", ".join(f'"{name}"' for name in columns)
    inferred = ", ".join(INFERRED[table].get(name, f'"{name}"') + f' AS "{name}"' for name in columns)
    images = "_cdc_operation IN ('INSERT', 'UPDATE')"
    one = f"SELECT {declared} FROM iceberg_scan('{location(lake, table)}') WHERE {images} AND _cdc_sequence <= {plain}"
    other = f"SELECT {inferred} FROM {scan} WHERE {images}"
    for first, second in ((one, other), (other, one)):
        assert lake.query(f"({first}) EXCEPT ALL ({second}) LIMIT 3") == []
    ((count,),) = lake.query(f"SELECT count(*) FROM ({other})")
    assert count > 1_000
    kinds = {"customers": ("vip", "BOOLEAN"), "orders": ("customer_id", "BIGINT"), "order_lines": ("price", "DOUBLE")}
    name, kind = kinds.get(table, ("url", "VARCHAR"))
    assert columns[name] == kind
    assert columns[KEYS[table][0]] == ("VARCHAR" if table in ("orders", "order_lines") else "BIGINT")


def test_the_commands_agree(shop: Daemon) -> None:
    listed = shop.run("tables", "--json")
    counts = {table["table"]: table["rows"] for table in json.loads(listed.stdout) if table["table"].startswith("public.")}
    assert counts == {f"public.{table}": count for table, count in EVENT_COUNTS.items()}
    queried = shop.run("query", "SELECT count(*) AS n, sum(_cdc_sequence) AS s FROM public.order_lines", "--json")
    assert json.loads(queried.stdout)[0]["n"] == EVENT_COUNTS["order_lines"]
    inspected = json.loads(shop.run("inspect", "public.order_lines", "--json").stdout)
    assert {column["name"]: column["type"] for column in inspected["columns"]}["qty"] == "long"
    assert sum(snapshot["addedRows"] for snapshot in inspected["snapshots"]) == EVENT_COUNTS["order_lines"]
    verified = shop.run("verify")
    assert verified.returncode == 0, verified.stdout
