"""A table's partitioning through a writer half: every transform, another one after a restart, somebody else's, columns that go."""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from pyiceberg.table import Table
from pyiceberg.transforms import BucketTransform, DayTransform
from pyiceberg.types import StringType

from tests.iceberg.lake import duckdb_with_iceberg
from tests.verify.test_lake import breaches
from tests.writer.half import Half, half, letters, until

COLUMNS = [
    {"name": "id", "type": "long", "nullable": True},
    {"name": "ts", "type": "timestamptz", "nullable": True},
    {"name": "name", "type": "string", "nullable": True},
    {"name": "place", "type": "struct<city: string, code: int>", "nullable": True},
]
START = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)


def run(work: Any) -> None:
    asyncio.run(asyncio.wait_for(work, 60))


def row(number: int) -> dict[str, Any]:
    at = None if number % 7 == 6 else (START + dt.timedelta(hours=5 * number)).isoformat()
    name = None if number % 5 == 4 else f"näme-{number % 3}-{number}"
    return {"id": number, "ts": at, "name": name, "place": {"city": f"c{number % 2}", "code": number} if number % 4 else None}


def rows(start: int, end: int) -> list[dict[str, Any]]:
    return [row(number) for number in range(start, end)]


def by(*partition_by: str) -> dict[str, Any]:
    return {"tables": {"t": {"partition_by": list(partition_by)}}}


def table_of(h: Half) -> Table:
    return h.catalog().load_table("default.t")


def spec_of(table: Table) -> list[tuple[str, str, int]]:
    return [(field.name, str(field.transform), field.field_id) for field in table.spec().fields]


def partitions_of(table: Table, spec_id: int | None = None) -> dict[str, tuple[int, Mapping[str, Any]]]:
    """Files of the head by path: their spec, and their partition by field name."""
    found = {}
    for task in table.scan().plan_files():
        spec = table.specs()[task.file.spec_id]
        values = {field.name: task.file.partition[place] for place, field in enumerate(spec.fields)}
        if spec_id is None or spec.spec_id == spec_id:
            found[task.file.file_path] = (spec.spec_id, values)
    return found


def rows_by_file(h: Half) -> dict[str, list[int]]:
    """By DuckDB: what each file holds."""
    location = table_of(h).metadata_location
    found: dict[str, list[int]] = {}
    for path, number in duckdb_with_iceberg().execute(f"SELECT filename, id FROM iceberg_scan('{location}')").fetchall():
        found.setdefault("file://" + path.removeprefix("file://"), []).append(number)
    return found


def ids_by_both(h: Half, row_filter: str = "") -> list[int]:
    """What PyIceberg finds, and DuckDB too."""
    table = table_of(h)
    found = sorted((table.scan(row_filter=row_filter) if row_filter else table.scan()).to_arrow()["id"].to_pylist())
    where = f"WHERE {row_filter}" if row_filter else ""
    duck = duckdb_with_iceberg()
    duck.execute("SET TimeZone = 'UTC'")
    assert found == sorted(one for (one,) in duck.execute(f"SELECT id FROM iceberg_scan('{table.metadata_location}') {where}").fetchall())
    return found


async def add(h: Half, start: int, end: int, source: str = "s") -> None:
    h.hand.insert(*rows(start, end), source=source)
    result = await h.flush()
    assert result["success"], result


def moment(number: int) -> dt.datetime | None:
    at = row(number)["ts"]
    return dt.datetime.fromisoformat(at) if at else None


def test_every_transform_puts_each_row_where_iceberg_says(tmp_path: Path):
    forms = ("hour(ts)", "bucket(4, id)", "truncate(6, name)", "void(id)", "place.city", "truncate(3, place.code)", "_cdc_operation")

    async def work() -> None:
        async with half(tmp_path, **by(*forms, "year(_cdc_timestamp)")) as h:
            h.hand.declare(columns=COLUMNS)
            await add(h, 0, 60)
            table = table_of(h)
            assert [name for name, _, _ in spec_of(table)] == [
                "ts_hour",
                "id_bucket_4",
                "name_trunc_6",
                "id_null",
                "place.city",
                "place.code_trunc_3",
                "_cdc_operation",
                "_cdc_timestamp_year",
            ]
            bucket = BucketTransform(4).transform(table.schema().find_type("id"))
            partitions = partitions_of(table)
            for path, numbers in rows_by_file(h).items():
                _, values = partitions[path]
                for number in numbers:
                    sent, at = row(number), moment(number)
                    assert values == {
                        "ts_hour": None if at is None else int(at.timestamp()) // 3600,
                        "id_bucket_4": bucket(number),
                        "name_trunc_6": sent["name"] and sent["name"][:6],
                        "id_null": None,
                        "place.city": sent["place"] and sent["place"]["city"],
                        "place.code_trunc_3": sent["place"] and number - number % 3,
                        "_cdc_operation": "INSERT",
                        "_cdc_timestamp_year": 56,
                    }
                assert numbers == sorted(numbers)
            assert len(partitions) == 60, "hours differ, so each row is alone"
            assert ids_by_both(h) == list(range(60))
            assert ids_by_both(h, "name = 'näme-0-3'") == [3]
            assert ids_by_both(h, "ts is null and id = 6") == [6]
        assert breaches(tmp_path) == []

    run(work())


TIMES = [
    "0001-01-01T00:00:00+00:00",
    "1969-06-30T12:00:00+00:00",
    "1969-12-31T23:59:59.999999+00:00",
    "1970-01-01T00:00:00+00:00",
    "2024-02-29T23:00:00-05:00",
    "9999-12-31T23:59:59.999999+00:00",
]


@pytest.mark.parametrize("form", ["year(ts)", "month(ts)", "day(ts)", "hour(ts)", "ts"])
def test_a_query_by_time_opens_the_files_of_that_time_alone(tmp_path: Path, form: str):
    async def work() -> None:
        async with half(tmp_path, **by(form)) as h:
            h.hand.declare(columns=COLUMNS)
            h.hand.insert(*({**row(0), "id": place, "ts": at} for place, at in enumerate(TIMES)))
            await h.flush()
            table = table_of(h)
            assert len(partitions_of(table)) == (5 if form == "year(ts)" else 6)
            for place, at in enumerate(TIMES):
                moment = f"ts = '{at}'"
                assert table.scan(row_filter=moment).to_arrow()["id"].to_pylist() == [place]
                assert len(list(table.scan(row_filter=moment).plan_files())) == 1
                if at >= "1970":  # DuckDB 1.5.5 rounds earlier days and months up, and looks for them elsewhere (duckdb-iceberg 1361).
                    assert ids_by_both(h, moment) == [place]
            assert ids_by_both(h) == list(range(len(TIMES)))
            assert ids_by_both(h, "ts < '1970-01-01T00:00:00+00:00'") == [0, 1, 2]

    run(work())


def test_a_live_table_is_partitioned_anew_and_old_and_new_are_read_together(tmp_path: Path):
    """Four specs over five starts, the fifth the first again; enough flushes of each that manifests are merged."""
    specs: list[Sequence[str]] = [["day(ts)"], ["day(ts)", "bucket(4, id)"], ["truncate(6, name)"], [], ["day(ts)"]]

    async def work() -> None:
        for place, partition_by in enumerate(specs):
            async with half(tmp_path, **by(*partition_by)) as h:
                if place == 0:
                    h.hand.declare(columns=COLUMNS)
                for start in range(100 * place, 100 * place + 60, 5):
                    await add(h, start, start + 5, source=f"start {place}")
        async with half(tmp_path, **by(*specs[-1])) as h:
            sent = [number for place in range(len(specs)) for number in range(100 * place, 100 * place + 60)]
            assert ids_by_both(h) == sent
            table = table_of(h)
            assert {spec.spec_id: [(f.name, f.field_id) for f in spec.fields] for spec in table.specs().values()} == {
                0: [("ts_day", 1000)],
                1: [("ts_day", 1000), ("id_bucket_4", 1001)],
                2: [("name_trunc_6", 1002)],
                3: [],
            }
            assert (table.metadata.default_spec_id, table.metadata.last_partition_id) == (0, 1002)
            held = rows_by_file(h)
            for path, (spec_id, _) in partitions_of(table).items():
                assert {number // 100 for number in held[path]} <= ({0, 4} if spec_id == 0 else {spec_id})
            manifests = table.current_snapshot().manifests(table.io)
            assert {manifest.partition_spec_id for manifest in manifests} == {0, 1, 2, 3}
            assert len(manifests) < 60
            at = moment(105)
            assert at is not None
            day = f"ts >= '{at:%Y-%m-%d}T00:00:00+00:00' and ts < '{at + dt.timedelta(days=1):%Y-%m-%d}T00:00:00+00:00'"
            wanted = [number for number in sent if (found := moment(number)) is not None and found.date() == at.date()]
            assert ids_by_both(h, day) == wanted
            planned = [task.file.spec_id for task in table.scan(row_filter=day).plan_files()]
            for spec_id in (0, 1):
                assert planned.count(spec_id) < len(partitions_of(table, spec_id)) / 5
        assert breaches(tmp_path) == []

    run(work())


def test_the_rows_that_wait_for_a_restart_are_in_the_commit_that_partitions_anew(tmp_path: Path):
    async def work() -> None:
        async with half(tmp_path, **by()) as h:
            h.hand.declare(columns=COLUMNS)
            await add(h, 0, 4)
            h.hand.insert(*rows(4, 8))
        async with half(tmp_path, **by("bucket(2, id)")) as h:
            before = len(table_of(h).snapshots())
            await add(h, 8, 12, source="after the restart")
            table = table_of(h)
            assert len(table.snapshots()) == before + 1
            assert table.current_snapshot().summary["added-records"] == "4"
            assert spec_of(table) == [("id_bucket_2", "bucket[2]", 1000)]
            assert ids_by_both(h) == list(range(12))

    run(work())


def test_without_a_setting_somebody_elses_partitioning_is_followed(tmp_path: Path):
    async def work() -> None:
        async with half(tmp_path) as h:
            h.hand.declare(columns=COLUMNS)
            await add(h, 0, 10)
            with table_of(h).update_spec() as change:
                change.add_field("id", BucketTransform(3), "shard")
            await add(h, 10, 20)
            table = table_of(h)
            assert spec_of(table) == [("shard", "bucket[3]", 1000)]
            assert {values["shard"] for _, values in partitions_of(table, 1).values()} == {0, 1, 2}
            with table.update_spec() as change:
                change.remove_field("shard")
                change.add_field("ts", DayTransform(), "on_day")
            await add(h, 20, 30)
            assert spec_of(table_of(h)) == [("on_day", "day", 1001)]
            assert ids_by_both(h) == list(range(30))
        assert breaches(tmp_path) == []

    run(work())


def test_a_setting_rules_over_somebody_elses_partitioning(tmp_path: Path):
    async def work() -> None:
        async with half(tmp_path, **by("day(ts)")) as h:
            h.hand.declare(columns=COLUMNS)
            await add(h, 0, 10)
            with table_of(h).update_spec() as change:
                change.remove_field("ts_day")
                change.add_identity("name")
            await add(h, 10, 20)
            table = table_of(h)
            assert (spec_of(table), table.metadata.default_spec_id) == ([("ts_day", "day", 1000)], 0)
            assert len(table.specs()) == 2
            assert ids_by_both(h) == list(range(20))

    run(work())


def test_a_transform_that_its_column_does_not_allow_stops_that_table_with_the_reason(tmp_path: Path):
    async def work() -> None:
        async with half(tmp_path, **by("day(name)")) as h:
            h.hand.declare(columns=COLUMNS)
            h.hand.declare("other", COLUMNS)
            h.hand.insert(*rows(0, 3))
            h.hand.insert(*rows(0, 3), table="other")
            result = await h.flush()
            for part in ("day(name)", "column name is string", "timestamptz", "change partition_by"):
                assert part in result["error"]
            await until(lambda: h.values("default.other") == [0, 1, 2])
        async with half(tmp_path, **by("truncate(2, name)")) as h:  # The remedy: what was stopped is all there.
            assert (await h.flush())["success"]
            assert ids_by_both(h) == [0, 1, 2]

    run(work())


def test_a_number_without_a_truncated_value_stops_the_table_and_loses_nothing(tmp_path: Path):
    async def work() -> None:
        async with half(tmp_path, **by("truncate(10, id)")) as h:
            h.hand.declare(columns=COLUMNS)
            h.hand.insert({"id": -(2**63)}, {"id": -3})
            result = await h.flush()
            assert f"truncate[10] rounds {-(2**63)} down below every long" in result["error"]
        async with half(tmp_path, **by("bucket(10, id)")) as h:
            assert (await h.flush())["success"]
            assert h.values() == [-(2**63), -3]

    run(work())


def test_a_column_that_its_source_renames_keeps_its_partitions(tmp_path: Path):
    async def work() -> None:
        async with half(tmp_path, **by("day(ts)", "name")) as h:
            h.hand.declare(columns=COLUMNS)
            await add(h, 0, 10)
            renamed = [{**COLUMNS[1], "name": "moment", "renamedFrom": "ts"}, {**COLUMNS[2], "name": "title", "renamedFrom": "name"}]
            h.hand.declare(columns=[COLUMNS[0], *renamed, COLUMNS[3]])
            h.hand.insert(*({"id": one["id"], "moment": one["ts"], "title": one["name"]} for one in rows(10, 20)))
            assert (await h.flush())["success"]
            table = table_of(h)
            assert spec_of(table) == [("ts_day", "day", 1000), ("name", "identity", 1001)]
            assert len(table.specs()) == 1
            assert ids_by_both(h, "title = 'näme-1-1' or title = 'näme-1-10'") == [1, 10]
            assert len({values["name"] for _, values in partitions_of(table).values()}) == 17
        assert breaches(tmp_path) == []

    run(work())


def test_a_column_that_somebody_drops_after_its_partitions_leaves_them_readable(tmp_path: Path):
    """Fifteen manifests of a spec whose column is gone: merging them needs a schema that still had it."""

    async def work() -> None:
        async with half(tmp_path) as h:
            h.hand.declare(columns=COLUMNS[:2])
            await add_plain(h, 0)
            with table_of(h).update_schema() as change:
                change.add_column("extra", StringType())
            with table_of(h).update_spec() as change:
                change.add_identity("extra")
            for number in range(1, 10):
                await add_plain(h, number)
            assert len(manifests_of(h, spec_id=1)) == 9
            with table_of(h).update_spec() as change:
                change.remove_field("extra")
            await add_plain(h, 10)
            with table_of(h).update_spec() as change:
                change.add_identity("extra")
            await add_plain(h, 11)
            with table_of(h).update_spec() as change:
                change.remove_field("extra")
            with table_of(h).update_schema() as change:
                change.delete_column("extra")
            for number in range(12, 20):
                await add_plain(h, number)
            assert len(manifests_of(h, spec_id=1)) == 1
            assert h.values() == list(range(20))  # DuckDB 1.5.5 ends its process over such a table, whoever wrote it.
        assert breaches(tmp_path) == []

    run(work())


def manifests_of(h: Half, spec_id: int) -> list[Any]:
    table = table_of(h)
    return [manifest for manifest in table.current_snapshot().manifests(table.io) if manifest.partition_spec_id == spec_id]


async def add_plain(h: Half, number: int) -> None:
    h.hand.insert({"id": number, "ts": row(number)["ts"]})
    result = await h.flush()
    assert result["success"], result


def test_dead_letters_stay_partitioned_by_table_whatever_somebody_makes_of_them(tmp_path: Path):
    async def work() -> None:
        async with half(tmp_path) as h:
            h.hand.declare(columns=COLUMNS)
            h.hand.insert({"id": "one"}, row(1))
            await h.flush()
            with h.catalog().load_table("dolake.dead_letters").update_spec() as change:
                change.add_identity("reason")
            h.hand.insert({"id": "two"}, row(2))
            assert (await h.flush())["success"]
            table = h.catalog().load_table("dolake.dead_letters")
            assert (table.metadata.default_spec_id, len(table.specs())) == (0, 2)
            assert len(letters(h)) == 2
            assert h.values() == [1, 2]
        assert breaches(tmp_path) == []

    run(work())
