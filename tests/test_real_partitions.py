"""A partitioned table as a daemon writes it: every row where its values say, and a query that opens only what it must."""

from __future__ import annotations

import asyncio
import datetime as dt
import struct
from collections import defaultdict
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import mmh3
import pyarrow.parquet as pq
import pytest

from tests.harness.daemon import Daemon
from tests.harness.history import assert_lake_equals_oracle
from tests.harness.lake import Lake
from tests.harness.oracle import Event, Oracle, ledger_event
from tests.harness.source import Source
from tests.harness.traffic import drain, url_of

START = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
ROWS, DAYS, BUCKETS, KEYS = 100_000, 10, 16, 5_000
TABLE_SETTINGS = '[tables."default.ledger"]\npartition_by = ["day(at)", "bucket(16, id)"]\nflush = { rows = 40_000 }\n'


def event(sequence: int) -> Event:
    """Spread evenly over ten days."""
    plain = ledger_event(sequence, key_count=KEYS)
    at = START + dt.timedelta(days=DAYS) / ROWS * sequence
    return Event(sequence, plain.table, plain.operation, {**plain.row, "at": at.isoformat()})


def bucket(key: int) -> int:
    """By the specification, without PyIceberg: Murmur3 of the eight bytes, little-endian."""
    return (mmh3.hash(struct.pack("<q", key)) & 0x7FFFFFFF) % BUCKETS


@pytest.mark.acceptance("AT-60")
def test_every_row_is_in_its_partition_and_a_point_query_plans_a_sixteenth_of_a_day(tmp_path: Path) -> None:
    oracle = Oracle(tmp_path / "journal")
    with Daemon(tmp_path / "data", {"DOLAKE_FLUSH_AGE_S": "3600"}, table_settings=TABLE_SETTINGS) as daemon, Lake(daemon.data) as lake:
        daemon.start()
        source = Source("s", oracle).declare("ledger")
        for start in range(0, ROWS, 2_000):
            source.add([event(sequence) for sequence in range(start, start + 2_000)])
        asyncio.run(asyncio.wait_for(source.deliver(url_of(daemon)), 120))
        asyncio.run(asyncio.wait_for(drain(daemon), 120))
        assert_lake_equals_oracle(lake, oracle)
        catalog = lake.catalog()
        table = catalog.load_table("default.ledger")
        files_of_day = rows_in_their_partitions(table)
        assert len(table.snapshots()) >= 2, "several flushes, or a day's files would be few"
        sent = oracle.as_arrow("ledger").select(["id", "at", "sequence"]).to_pylist()
        for place in range(0, ROWS, 4_999):
            ask(lake, table, sent[place], sent, files_of_day)
        catalog.close()
        assert daemon.run("verify", deadline_s=120).returncode == 0


def rows_in_their_partitions(table: Any) -> dict[int, int]:
    """Reads every file by itself and holds its rows against what the manifests say of it; files of each day."""
    files_of_day: dict[int, int] = defaultdict(int)
    rows = 0
    for task in table.scan().plan_files():
        day, shard = task.file.partition[0], task.file.partition[1]
        content = pq.read_table(urlsplit(task.file.file_path).path, columns=["id", "at"])
        assert {(at - START.replace(year=1970)).days for at in content["at"].to_pylist()} == {day}
        assert {bucket(key) for key in content["id"].to_pylist()} == {shard}
        assert content.num_rows == task.file.record_count
        rows += content.num_rows
        files_of_day[day] += 1
    assert rows == ROWS
    assert len(files_of_day) == DAYS
    return files_of_day


def ask(lake: Lake, table: Any, wanted: dict[str, Any], sent: list[dict[str, Any]], files_of_day: dict[int, int]) -> None:
    """One key on one day, by both readers."""
    day = wanted["at"].replace(hour=0, minute=0, second=0, microsecond=0)
    until = day + dt.timedelta(days=1)
    expected = sorted(row["sequence"] for row in sent if row["id"] == wanted["id"] and day <= row["at"] < until)
    assert expected
    scan = table.scan(row_filter=f"id = {wanted['id']} and at >= '{day.isoformat()}' and at < '{until.isoformat()}'")
    planned = list(scan.plan_files())
    assert 1 <= len(planned) <= files_of_day[(day - START.replace(year=1970)).days] / BUCKETS
    assert sorted(scan.to_arrow()["_cdc_sequence"].to_pylist()) == expected
    where = f"id = {wanted['id']} AND \"at\" >= '{day.isoformat()}'::TIMESTAMPTZ AND \"at\" < '{until.isoformat()}'::TIMESTAMPTZ"
    found = lake.query(f"SELECT _cdc_sequence FROM iceberg_scan('{lake.metadata_location('ledger')}') WHERE {where}")
    assert sorted(row[0] for row in found) == expected


def test_the_setting_of_the_next_start_partitions_the_table_anew(tmp_path: Path) -> None:
    """Three starts of the daemon, three specs, a source that goes on; the file of settings is what an operator edits."""
    oracle = Oracle(tmp_path / "journal")
    source = Source("s", oracle).declare("ledger")
    specs = ([], ["month(at)"], ["month(at)", "truncate(9, account)"])
    for number, partition_by in enumerate(specs):
        settings = f'[tables."*"]\npartition_by = {partition_by}\n'
        with Daemon(tmp_path / "data", table_settings=settings) as daemon:
            daemon.start()
            source.add([event(1000 * number + place) for place in range(500)])
            asyncio.run(asyncio.wait_for(source.deliver(url_of(daemon)), 60))
            asyncio.run(asyncio.wait_for(drain(daemon), 60))
            if number == len(specs) - 1:
                assert daemon.run("verify", deadline_s=120).returncode == 0
    with Lake(tmp_path / "data") as lake:
        assert_lake_equals_oracle(lake, oracle)
        names = [[field["name"] for field in spec["fields"]] for spec in lake.metadata("ledger")["partition-specs"]]
        assert names == [[], ["at_month"], ["at_month", "account_trunc_9"]]
        catalog = lake.catalog()
        scan = catalog.load_table("default.ledger").scan(row_filter="account = 'account-7'")
        by_spec = [task.file.spec_id for task in scan.plan_files()]
        assert (by_spec.count(0), by_spec.count(1), by_spec.count(2)) == (1, 1, 1)
        catalog.close()


def test_a_partition_that_cannot_be_is_a_mistake_of_the_configuration(tmp_path: Path) -> None:
    settings = '[tables."ledger"]\npartition_by = ["days(at)"]\n'
    with Daemon(tmp_path / "data", table_settings=settings) as daemon:
        done = daemon.run("serve", "--port", "0", "--http-port", "0")
        assert done.returncode == 2
        assert "tables.ledger.partition_by.0: must be a column, year(column)" in done.stderr
        assert "there is no days (got days(at))" in done.stderr
