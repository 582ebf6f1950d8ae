"""What Spark is asked for what the plan found, and what is said where it cannot be asked."""

from __future__ import annotations

import asyncio
import os
import socket
from pathlib import Path
from typing import Any

import pytest

from dolake.compaction.plan import CompactionPolicy, plan_compaction
from dolake.compaction.spark import SparkRewrite, plan_for_spark, spark_rewrite
from dolake.compaction.spark_process import call_spark
from dolake.errors import RewriteFailed, SparkMissing
from dolake.iceberg.contents import LiveFile
from dolake.iceberg.entries import FILE_PATH_ID
from dolake.iceberg.metadata import LoadedTable
from dolake.model import TableName
from tests.harness.daemon import children_of
from tests.harness.ports import free_port
from tests.writer.half import settings_of

MIB = 1 << 20
POLICY = CompactionPolicy(target_bytes=64 * MIB, inputs_min=4)
COLUMNS = {"id": "long", "region": "string", "day": "date", "open": "boolean", "at": "timestamp", "odd`name": "long", "level": "int"}
SPARK: dict[str, Any] = {"engine": "spark", "spark_catalog": "lake"}


def table(*fields: tuple[str, str]) -> LoadedTable:
    """Partitioned by (column, transform)."""
    columns = [{"id": number, "name": name, "type": kind, "required": False} for number, (name, kind) in enumerate(COLUMNS.items(), 1)]
    by_name = {column["name"]: column["id"] for column in columns}
    spec = [
        {"source-id": by_name[name], "field-id": 1000 + place, "name": f"p{place}", "transform": transform}
        for place, (name, transform) in enumerate(fields)
    ]
    metadata = {
        "current-schema-id": 0,
        "schemas": [{"type": "struct", "schema-id": 0, "fields": columns}],
        "default-spec-id": 0,
        "partition-specs": [{"spec-id": 0, "fields": spec}],
    }
    return LoadedTable(TableName.parse("public.orders"), metadata, "file:///lake/metadata.json")


def data(number: int, *partition: Any, size: int = MIB, rows: int = 1000, sequence: int = 1) -> LiveFile:
    return LiveFile(f"file:///lake/d{number:03}.parquet", "data", size, rows, partition, sequence_number=sequence)


def deletes(number: int, *targets: LiveFile, rows: int = 10, sequence: int = 2) -> LiveFile:
    paths = sorted(target.location.encode() for target in targets)
    bounds = ({FILE_PATH_ID: paths[0]}, {FILE_PATH_ID: paths[-1]}) if paths else ({}, {})
    partition = targets[0].partition if targets else ()
    return LiveFile(f"file:///lake/x{number:03}.parquet", "position deletes", 1000, rows, partition, *bounds, sequence_number=sequence)


def asked(base: LoadedTable, *files: LiveFile, policy: CompactionPolicy = POLICY) -> SparkRewrite:
    plan = plan_for_spark(plan_compaction(files, policy, spec_id=0), policy)
    return spark_rewrite("lake", base, plan.choices, policy)


def test_small_files_are_asked_for_by_their_size_so_that_larger_ones_stay() -> None:
    found = asked(table(), data(0, size=40 * MIB), *(data(number, size=MIB) for number in range(1, 6)))
    assert found.statements == (
        "REFRESH TABLE lake.`public`.`orders`",
        "CALL lake.system.rewrite_data_files(table => '`public`.`orders`', options => map("
        f"'target-file-size-bytes', '{64 * MIB}', 'min-file-size-bytes', '{MIB + 1}', 'min-input-files', '4', "
        "'delete-ratio-threshold', '0.2', 'use-starting-sequence-number', 'true', 'partial-progress.enabled', 'false'))",
    )
    assert found.in_words().startswith("Spark rewrites some 5 data files with 0 delete files (small files): CALL lake.")


def test_where_rows_were_deleted_delete_files_come_first() -> None:
    full = data(0, size=60 * MIB)
    found = asked(table(), full, deletes(1, full, rows=500))
    assert found.statements[1] == (
        "CALL lake.system.rewrite_position_delete_files(table => '`public`.`orders`', options => map('rewrite-all', 'true'))"
    )
    assert "rewrite_data_files" in found.statements[2]
    assert "'min-file-size-bytes', '0', 'min-input-files', '4', 'delete-ratio-threshold', '0.2'" in found.statements[2]


def test_who_asks_for_all_gets_files_of_two_and_every_deleted_row_gone() -> None:
    policy = CompactionPolicy(64 * MIB, 4, wait_for_more=False)
    found = asked(table(), data(0), data(1), policy=policy)
    assert "'min-input-files', '2', 'delete-file-threshold', '1'" in found.statements[1]


PLACES = {
    "text": ((("region", "identity"),), ("north-1",), "(`region` = 'north-1')"),
    "a date": ((("day", "identity"),), (20454,), "(`day` = DATE '2026-01-01')"),
    "two": ((("level", "identity"), ("open", "identity")), (-7, False), "(`level` = -7 AND `open` = false)"),
    "null": ((("region", "identity"),), (None,), "(`region` IS NULL)"),
    "a field that is not the column is passed over": ((("at", "day"), ("id", "identity")), (20454, 3), "(`id` = 3)"),
    "a quotation mark": ((("region", "identity"),), ("o'hare",), None),
    "a backslash": ((("region", "identity"),), ("a\\b",), None),
    "another alphabet": ((("region", "identity"),), ("süd",), None),
    "a name with a quotation mark": ((("odd`name", "identity"),), (1,), None),
    "a moment": ((("at", "identity"),), (1_767_225_600_000_000,), None),
    "nothing but a bucket": ((("id", "bucket[4]"),), (3,), None),
}


@pytest.mark.parametrize("case", PLACES)
def test_a_partition_is_named_where_that_is_simple(case: str) -> None:
    fields, partition, where = PLACES[case]
    call = asked(table(*fields), *(data(number, *partition) for number in range(4))).statements[-1]
    assert call.endswith(")" if where is None else f', where => "{where}")')
    assert ("where" in call) == (where is not None)


@pytest.mark.parametrize(("count", "named"), [(16, True), (17, False)])
def test_of_many_partitions_none_is_named(count: int, named: bool) -> None:
    files = [data(place * 10 + number, place) for place in range(count) for number in range(4)]
    call = asked(table(("level", "identity")), *files).statements[-1]
    assert call.count("`level` = ") == (count if named else 0)


def test_delete_files_as_spark_leaves_them_are_no_debt() -> None:
    full = [data(number, size=60 * MIB, rows=100_000) for number in range(6)]
    own = [deletes(number, file) for number, file in enumerate(full)]
    plan = plan_compaction([*full, *own], POLICY, spec_id=0)
    assert [choice.deletes for choice in plan.choices] == [tuple(own)]
    assert plan_for_spark(plan, POLICY).choices == ()
    assert plan_for_spark(plan, POLICY).left == plan.left
    # Two for the same data file become one, and what speaks of several is taken apart: four of those are enough.
    more = [deletes(10 + number, full[0]) for number in range(2)] + [deletes(20 + number, *full) for number in range(2)]
    both = plan_compaction([*full, *own, *more], POLICY, spec_id=0)
    assert plan_for_spark(both, POLICY).choices == both.choices != ()
    three = plan_compaction([*full, *own, *more[1:]], POLICY, spec_id=0)
    assert plan_for_spark(three, POLICY).choices == ()


def test_without_pyspark_it_is_said_what_to_install(tmp_path: Path) -> None:
    with pytest.raises(SparkMissing) as missing:
        asyncio.run(call_spark(settings_of(tmp_path, compaction=SPARK), ["SELECT 1"]))
    assert "No module named 'pyspark'" in missing.value.reason
    assert "pip install 'pyspark[connect]" in str(missing.value)


def test_where_no_server_answers_nobody_waits_for_minutes(tmp_path: Path) -> None:
    port = free_port()
    settings = settings_of(tmp_path, compaction={**SPARK, "spark_remote": f"sc://127.0.0.1:{port}/;token=pa55"})
    with pytest.raises(RewriteFailed, match=f"no Spark Connect server answers at 127.0.0.1:{port}: Connection refused"):
        asyncio.run(call_spark(settings, ["SELECT 1"]))


def test_a_cancelled_call_leaves_no_process(tmp_path: Path) -> None:
    async def main() -> None:
        already = set(children_of(os.getpid()))  # Such as the tracker of a pool that a test before had.
        with socket.create_server(("127.0.0.1", 0), backlog=1) as server:
            remote = f"sc://127.0.0.1:{server.getsockname()[1]}"
            calling = asyncio.create_task(call_spark(settings_of(tmp_path, compaction={**SPARK, "spark_remote": remote}), ["SELECT 1"]))
            await asyncio.sleep(0.05)
            calling.cancel()
            with pytest.raises(asyncio.CancelledError):
                await calling
            assert set(children_of(os.getpid())) <= already

    asyncio.run(main())
