"""Every engine reads, through the REST catalog and out of the bucket, what a daemon is writing; and Spark writes beside it."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from e2e.engines import Engines, ask_oracle
from e2e.services.s3 import S3Server
from e2e.services.spark import Spark
from tests import shop
from tests.harness.daemon import Daemon

READINGS = """
[tables."public.readings"]
partition_by = ["bucket(16, id)"]
columns = { id = "long", device = "string", taken = "timestamptz", amount = "decimal(12,2)", note = "string" }
"""
COLUMNS = {"id": pa.int64(), "device": pa.string(), "taken": pa.timestamp("us", "UTC"), "amount": pa.decimal128(12, 2), "note": pa.string()}
BEGAN = datetime(2026, 1, 1, tzinfo=UTC)
ROW_COUNT = 100_000

# One statement each for what people ask: counts, sums, extremes, order, pages, distinct, groups, windows, text, nulls, time.
READING_QUERIES = (
    "SELECT count(*), count(note), count(DISTINCT device) FROM {lake}.public.readings",
    "SELECT sum(amount), min(amount), max(amount) FROM {lake}.public.readings",
    "SELECT avg(id) FROM {lake}.public.readings",
    "SELECT device, count(*), sum(amount) FROM {lake}.public.readings GROUP BY device ORDER BY device",
    "SELECT * FROM {lake}.public.readings ORDER BY id LIMIT 20 OFFSET 5000",
    "SELECT id, amount FROM {lake}.public.readings ORDER BY amount DESC, id LIMIT 25",
    "SELECT DISTINCT device FROM {lake}.public.readings WHERE amount < 0 ORDER BY device",
    "SELECT count(*), min(taken), max(taken) FROM {lake}.public.readings WHERE taken >= TIMESTAMP '2026-01-01 12:00:00'",
    "SELECT id, note FROM {lake}.public.readings WHERE note LIKE '%ü%' ORDER BY id LIMIT 50",
    "SELECT device, count(*) AS n FROM {lake}.public.readings WHERE note IS NULL GROUP BY device HAVING count(*) > 10 ORDER BY n, device",
    """SELECT device, id, amount FROM (
        SELECT device, id, amount, row_number() OVER (PARTITION BY device ORDER BY amount DESC, id) AS place FROM {lake}.public.readings
    ) AS ranked WHERE place <= 3 ORDER BY device, place""",
    """SELECT id, total FROM (
        SELECT id, sum(amount) OVER (PARTITION BY device ORDER BY id) AS total FROM {lake}.public.readings
    ) AS running WHERE id % 997 = 0 ORDER BY id""",
)
SHOP_QUERIES = (
    "SELECT count(*), sum(balance), min(balance), max(balance) FROM {lake}.public.customers",
    "SELECT * FROM {lake}.public.customers ORDER BY id",
    "SELECT id, customer_id, status, total, placed_at, ship_date, note FROM {lake}.public.orders ORDER BY id",
    "SELECT order_id, line_no, sku, qty, price, weight FROM {lake}.public.order_lines ORDER BY order_id, line_no",
    "SELECT id, customer_id, url, v.at, ms, agent, country FROM {lake}.public.page_views v ORDER BY id",
    "SELECT vip, tier, count(*), sum(balance) FROM {lake}.public.customers GROUP BY vip, tier ORDER BY vip, tier",
    "SELECT DISTINCT status FROM {lake}.public.orders ORDER BY status",
    "SELECT avg(ms), max(v.at), count(country) FROM {lake}.public.page_views v",
    """SELECT o.status, count(DISTINCT o.id), sum(l.qty) FROM {lake}.public.orders o JOIN {lake}.public.order_lines l
        ON l.order_id = o.id GROUP BY o.status ORDER BY o.status""",
    """SELECT c.id, count(o.id) FROM {lake}.public.customers c LEFT JOIN {lake}.public.orders o ON o.customer_id = c.id
        GROUP BY c.id HAVING count(o.id) > 4 ORDER BY c.id""",
    """SELECT customer_id, id, gap FROM (
        SELECT customer_id, id, ms - lag(ms) OVER (PARTITION BY customer_id ORDER BY id) AS gap FROM {lake}.public.page_views
    ) AS gaps WHERE gap IS NOT NULL ORDER BY customer_id, id""",
    """SELECT id, place FROM (
        SELECT id, dense_rank() OVER (ORDER BY total DESC) AS place FROM {lake}.public.orders
    ) AS ranked WHERE place <= 30 ORDER BY place, id""",
)

Row = dict[str, Any]


@pytest.fixture
def daemon(tmp_path: Path, s3_server: S3Server) -> Iterator[Daemon]:
    settings = s3_server.settings(prefix=tmp_path.name) | {"DOLAKE_FLUSH_AGE_S": "0.5"}
    with Daemon(tmp_path / "data", settings, mode=None, table_settings=READINGS) as daemon:
        daemon.start()
        yield daemon


def assert_all_agree(engines: Engines, queries: tuple[str, ...], oracle: Mapping[str, pa.Table]) -> None:
    """Every engine gives the answer of the rows in memory, to each of twelve statements."""
    assert len(queries) == 12
    for query in queries:
        wanted = ask_oracle(oracle, query)
        assert wanted, query
        for engine, found in engines.ask(query).items():
            differences = [pair for pair in zip(found, wanted, strict=False) if pair[0] != pair[1]][:3]
            assert found == wanted, f"{engine}: {query}: {len(found)} rows of {len(wanted)}; differing: {differences}"


class Readings:
    """A source of one table: what it has sent is in `rows`. Its numbers go on from file to file."""

    def __init__(self, daemon: Daemon, directory: Path) -> None:
        self.daemon, self.path = daemon, directory / "readings.ndjson"
        self.rows: dict[int, Row] = {}
        self.chance = random.Random(76)

    def reading(self, key: int, **more: Any) -> Row:
        chance = self.chance
        return {
            "id": key,
            "device": f"dev-{chance.randrange(40):02}",
            "taken": BEGAN + timedelta(seconds=key, microseconds=chance.randrange(1_000_000)),
            "amount": Decimal(chance.randrange(-10_000, 1_000_000)) / 100,
            "note": chance.choice([None, "plain", f"für {key}", 'quoted "text"\n']),
            **more,
        }

    def send(self, changes: list[tuple[str, Row]]) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            for operation, row in changes:
                image = "before" if operation == "DELETE" else "after"
                texts = {name: str(value) if isinstance(value, Decimal) else value for name, value in row.items()}
                texts["taken"] = row["taken"].isoformat()
                event = {
                    "timestamp": 1767225600000,
                    "operation": operation,
                    "table": "public.readings",
                    "rowId": str(row["id"]),
                    image: texts,
                }
                file.write(json.dumps(event, ensure_ascii=False) + "\n")
                if operation == "DELETE":
                    del self.rows[row["id"]]
                else:
                    self.rows[row["id"]] = row
        sent = self.daemon.run("send", str(self.path), "--source", "readings", "--wait", "persisted", deadline_s=300)
        assert sent.returncode == 0, sent.stdout + sent.stderr

    def table(self, **more: pa.DataType) -> dict[str, pa.Table]:
        columns = {**COLUMNS, **more}
        keyed = [{"_cdc_row_id": str(row["id"]), **row} for row in self.rows.values()]
        order = ["_cdc_row_id", *columns]
        schema = pa.schema([("_cdc_row_id", pa.string()), *columns.items()])
        return {"public.readings": pa.Table.from_pylist([{name: row.get(name) for name in order} for row in keyed], schema=schema)}


@pytest.mark.acceptance("AT-76")
@pytest.mark.acceptance("AT-77")
def test_twelve_queries_over_sixteen_buckets_have_one_answer(tmp_path: Path, daemon: Daemon, s3_server: S3Server, spark: Spark) -> None:
    """As inserted; after updates, deletes and a new column; after a rewrite by Spark; and after what comes then."""
    source = Readings(daemon, tmp_path)
    source.send([("INSERT", source.reading(key)) for key in range(ROW_COUNT)])
    with Engines(daemon, s3_server, spark) as engines:
        assert engines.by_spark("SELECT count(DISTINCT partition) FROM {lake}.public.readings.files") == [(16,)]
        assert_all_agree(engines, READING_QUERIES, source.table())

        source.send([("UPDATE", source.reading(key, unit="°C")) for key in range(0, ROW_COUNT, 7)])
        source.send([("DELETE", source.rows[key]) for key in range(3, ROW_COUNT, 11)])
        assert engines.by_spark("SELECT count(*) > 0 FROM {lake}.public.readings.delete_files") == [(True,)]
        assert_all_agree(engines, READING_QUERIES, source.table(unit=pa.string()))

        rewritten = engines.by_spark(
            "CALL {lake}.system.rewrite_data_files(table => 'public.readings', options => map('rewrite-all', 'true'))"
        )
        assert rewritten[0][0] > 0
        assert_all_agree(engines, READING_QUERIES, source.table(unit=pa.string()))

        source.send([("UPDATE", source.reading(key)) for key in sorted(source.rows)[::13]])
        source.send([("DELETE", source.rows[key]) for key in sorted(source.rows)[5::17]])
        source.send([("INSERT", source.reading(ROW_COUNT + key, unit="K")) for key in range(500)])
        assert_all_agree(engines, READING_QUERIES, source.table(unit=pa.string()))
    verified = daemon.run("verify", deadline_s=120)
    assert verified.returncode == 0, verified.stdout + verified.stderr


@pytest.mark.acceptance("AT-77")
def test_a_real_database_is_the_same_to_every_engine(daemon: Daemon, s3_server: S3Server, spark: Spark) -> None:
    """Its stream has deletes, changed keys, a truncate and new columns; a rewrite by Spark changes no answer."""
    sent = daemon.run("send", str(shop.STREAM), "--source", "shop", "--format", "wal2json", "--wait", "persisted", deadline_s=300)
    assert sent.returncode == 0, sent.stdout + sent.stderr
    with Engines(daemon, s3_server, spark) as engines:
        oracle = {f"public.{table}": final_table(table, engines.scan(f"public.{table}").schema) for table in shop.KEYS}
        assert_all_agree(engines, SHOP_QUERIES, oracle)
        for table in shop.KEYS:
            call = f"CALL {{lake}}.system.rewrite_data_files(table => 'public.{table}', options => map('rewrite-all', 'true'))"
            assert engines.by_spark(call)[0][0] > 0
        assert_all_agree(engines, SHOP_QUERIES, oracle)
    verified = daemon.run("verify", deadline_s=120)
    assert verified.returncode == 0, verified.stdout + verified.stderr


def final_table(table: str, schema: pa.Schema) -> pa.Table:
    """As the database had it at the end, in the order of the lake's columns. (What no query asks for is `channel`.)"""
    names = list(shop.COLUMNS[table])
    assert sorted(names) == sorted(schema.names)
    rows = [
        {name: str(row[name]) if name in ("order_id",) or (table, name) == ("orders", "id") else row[name] for name in names}
        for row in shop.expected(table).values()
    ]
    wanted = {
        name: pa.string() if name == "order_id" or (table, name) == ("orders", "id") else schema.field(name).type for name in schema.names
    }
    return pa.Table.from_pylist(rows, schema=pa.schema(wanted))
