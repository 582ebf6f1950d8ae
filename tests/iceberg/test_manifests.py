"""Manifests as other programs read them: merged as history grows, nothing lost, every inherited number right."""

from __future__ import annotations

import asyncio
import datetime as dt
import decimal
import uuid
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyiceberg.expressions import EqualTo, IsNull
from pyiceberg.manifest import ManifestContent, ManifestEntryStatus, ManifestFile

from dolake.iceberg.commit import Landed
from dolake.iceberg.entries import TableShape, added_entries, partition_record
from dolake.iceberg.file_io import StoreFileIO
from dolake.iceberg.manifests import MERGE_COUNT, live_file_count, plan_merge, write_manifest
from dolake.iceberg.metadata import LoadedTable, snapshots_by_id
from tests.iceberg.lake import TABLE, Lake, hand_runtime, make_metadata, put_file, replace_metadata
from tests.storage.power import PowerCutStore


def manifest(
    files: int, *, path: str = "", sequence: int = 1, spec: int = 0, content: ManifestContent = ManifestContent.DATA
) -> ManifestFile:
    return ManifestFile.from_args(
        manifest_path=path or f"m-{files}-{sequence}-{spec}",
        manifest_length=1,
        partition_spec_id=spec,
        content=content,
        sequence_number=sequence,
        min_sequence_number=sequence,
        added_snapshot_id=sequence,
        added_files_count=files,
        existing_files_count=0,
        deleted_files_count=0,
    )


ONE_EACH = [manifest(1, sequence=number) for number in range(12, 0, -1)]
DELETES = [manifest(1, sequence=number, content=ManifestContent.DELETES) for number in range(18, 0, -1)]


@pytest.mark.parametrize(
    ("manifests", "merged"),
    [
        ([], []),
        (ONE_EACH[:9], []),
        (ONE_EACH, ONE_EACH[:1:-1]),
        ([*ONE_EACH[:5], *[manifest(12, sequence=20 + number) for number in range(5)]], []),
        ([manifest(1, sequence=number, spec=number % 2) for number in range(18)], []),
        (DELETES, DELETES[:7:-1]),
        ([*ONE_EACH[:9], *DELETES[:9]], []),
        ([manifest(1000, sequence=number) for number in range(18)], []),
        ([manifest(0, sequence=number) for number in range(18)], []),
    ],
)
def test_ten_manifests_of_one_size_and_spec_are_merged_oldest_first(manifests: list[ManifestFile], merged: list[ManifestFile]) -> None:
    assert [found.manifest_path for found in plan_merge(manifests)] == [wanted.manifest_path for wanted in merged]


def test_the_smallest_size_goes_first_and_one_merge_is_enough_for_one_commit() -> None:
    small, large = [manifest(3, sequence=number) for number in range(10)], [manifest(30, sequence=number) for number in range(10)]
    assert {found.added_files_count for found in plan_merge([*large, *small])} == {3}
    assert {found.added_files_count for found in plan_merge(large)} == {30}


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A table after 300 commits of one file each, and how many reads the last hundred took."""
    lake = Lake(tmp_path_factory.mktemp("grown"))
    committer = lake.committer()
    reads: list[str] = []

    class CountingStore(type(lake.store)):  # type: ignore[misc]
        def get(self, location: str) -> bytes:
            reads.append(location)
            return bytes(super().get(location))

    async def run() -> None:
        nonlocal committer
        for start in range(300):
            if start == 200:  # Another writer takes over; what it needs to know it reads, once.
                committer = lake.committer(store=CountingStore(lake.store.root))
            assert isinstance(await committer.commit(lake.delta(start, start + 1)), Landed)

    asyncio.run(run())
    yield lake, reads
    lake.close()


def test_after_three_hundred_commits_both_readers_find_every_row(grown: tuple[Lake, list[str]]) -> None:
    lake, _ = grown
    assert lake.ids() == list(range(300))


def test_manifests_stay_few(grown: tuple[Lake, list[str]]) -> None:
    lake, _ = grown
    manifests = manifests_of(lake)
    assert len(manifests) <= 3 * MERGE_COUNT
    assert sum(live_file_count(found) for found in manifests) == 300


def test_commits_read_nothing_back_but_after_a_start(grown: tuple[Lake, list[str]]) -> None:
    _, reads = grown
    assert len(reads) == len(set(reads))
    lists = [location for location in reads if location.endswith("-list.avro")]
    assert len(lists) == 1
    # The manifests that another writer left behind are read once each, to be merged.
    assert len(reads) < 30


def test_merged_entries_keep_their_snapshot_and_sequence_numbers(grown: tuple[Lake, list[str]]) -> None:
    lake, _ = grown
    entries = [entry for found in manifests_of(lake) for entry in found.fetch_manifest_entry(StoreFileIO(lake.store))]
    assert sorted(entry.sequence_number for entry in entries) == list(range(1, 301))
    assert all(entry.file_sequence_number == entry.sequence_number for entry in entries)
    assert len({entry.snapshot_id for entry in entries}) == 300
    known = snapshots_by_id(lake.current().metadata)
    for entry in entries:
        if entry.snapshot_id in known:
            assert known[entry.snapshot_id]["sequence-number"] == entry.sequence_number
    assert {entry.status for entry in entries} == {ManifestEntryStatus.ADDED, ManifestEntryStatus.EXISTING}


def test_every_retained_snapshot_reads_as_it_was(grown: tuple[Lake, list[str]]) -> None:
    lake, _ = grown
    plain = lake.plain_table()
    for snapshot in list(plain.metadata.snapshots)[1::25]:
        rows = plain.scan(snapshot_id=snapshot.snapshot_id).to_arrow().num_rows
        assert rows == int(snapshot.summary["total-records"]) == snapshot.sequence_number


def test_manifest_lengths_and_counts_are_what_the_files_hold(grown: tuple[Lake, list[str]]) -> None:
    lake, _ = grown
    for found in manifests_of(lake):
        entries = found.fetch_manifest_entry(StoreFileIO(lake.store))
        assert found.manifest_length == lake.store.size(found.manifest_path)
        assert (found.added_files_count or 0) == sum(entry.status == ManifestEntryStatus.ADDED for entry in entries)
        assert (found.added_rows_count or 0) + (found.existing_rows_count or 0) == sum(entry.data_file.record_count for entry in entries)
        assert found.min_sequence_number == min(entry.sequence_number for entry in entries)
        for entry in entries:
            assert entry.data_file.file_size_in_bytes == lake.store.size(entry.data_file.file_path)


def manifests_of(lake: Lake) -> list[ManifestFile]:
    plain = lake.plain_table()
    return list(plain.current_snapshot().manifests(plain.io))


def test_a_foreign_deletion_is_not_brought_back_by_a_merge(lake: Lake) -> None:
    committer = lake.committer()
    for start in range(4):
        lake.commit(lake.delta(start, start + 1), committer)
    lake.plain_table().delete("id = 2")
    for start in range(4, 30):
        lake.commit(lake.delta(start, start + 1), committer)
    assert lake.ids() == [number for number in range(30) if number != 2]
    assert all(live_file_count(found) for found in manifests_of(lake))


SPEC = {
    "spec-id": 0,
    "fields": [
        {"source-id": 1, "field-id": 1000, "name": "day", "transform": "identity"},
        {"source-id": 2, "field-id": 1001, "name": "region", "transform": "identity"},
    ],
}
DAYS = {
    "type": "struct",
    "schema-id": 0,
    "fields": [
        {"id": 1, "name": "day", "required": False, "type": "date"},
        {"id": 2, "name": "region", "required": False, "type": "string"},
        {"id": 3, "name": "id", "required": False, "type": "long"},
    ],
}


def arrow_of(schema: dict[str, Any], types: list[pa.DataType]) -> pa.Schema:
    return pa.schema(
        [
            pa.field(field["name"], kind, metadata={"PARQUET:field_id": str(field["id"])})
            for field, kind in zip(schema["fields"], types, strict=True)
        ]
    )


def test_identity_partitions_are_recorded_and_prune(tmp_path: Path) -> None:
    lake = Lake(tmp_path, spec=SPEC, schema=DAYS)
    arrow = arrow_of(DAYS, [pa.date32(), pa.string(), pa.int64()])
    committer = lake.committer()
    for number in range(12):
        day, region = dt.date(2024, 2, 1 + number % 3), None if number % 2 else "é/=x"
        rows = [{"day": day, "region": region, "id": number}]
        file = put_file(lake.store, lake.table, rows, partition=(day, region), arrow=arrow)
        lake.commit(lake.delta(number, number + 1, rows=[], files=(file,)), committer)
    plain = lake.plain_table()
    assert lake.ids() == list(range(12))
    on_the_second = plain.scan(row_filter="day = '2024-02-02'")
    assert sorted(on_the_second.to_arrow()["id"].to_pylist()) == [1, 4, 7, 10]
    assert len(list(on_the_second.plan_files())) == 4
    query = "SELECT id FROM iceberg_scan('{table}') WHERE day = DATE '2024-02-02' AND region IS NULL ORDER BY id"
    assert lake.query(query) == [(1,), (7,)]
    partitions = {(row["partition"]["day"], row["partition"]["region"]) for row in plain.inspect.partitions().to_pylist()}
    assert len(partitions) == 6
    head = lake.current().head
    assert head is not None
    assert head["summary"]["changed-partition-count"] == "1"
    lake.close()


def test_manifests_whose_partition_values_have_no_type_any_more_are_left_as_they_are(tmp_path: Path) -> None:
    """Fifteen of a spec that dolake cannot compute stay; those of the spec that came after are merged."""
    lake = Lake(tmp_path)
    committer = lake.committer()
    unknown = {"spec-id": 1, "fields": [{"source-id": 2, "field-id": 1000, "name": "theirs", "transform": "identity"}]}
    for number in range(15):
        file = put_file(lake.store, lake.table, [{"id": number, "name": "x"}], partition=("x",))
        lake.commit(lake.delta(number, number + 1, rows=[], files=(file,), spec=unknown, spec_id=min(number, 1)), committer)
        if number == 8:
            replace_metadata(lake, lambda text: text.replace('"transform":"identity"', '"transform":"theirs"'))
            unknown = {**unknown, "fields": [{**unknown["fields"][0], "transform": "theirs"}]}
            committer = lake.committer()
    assert len(manifests_of(lake)) == 15
    for number in range(15, 45):
        lake.commit(lake.delta(number, number + 1, spec={"spec-id": 0, "fields": []}, spec_id=1 if number == 15 else 0), committer)
    specs = [found.partition_spec_id for found in manifests_of(lake)]
    assert (specs.count(1), specs.count(0)) == (15, 12)
    assert sorted(lake.plain_table().scan().to_arrow()["id"].to_pylist()) == list(range(45))
    lake.close()


def test_as_many_partition_values_as_the_spec_has_fields() -> None:
    with pytest.raises(ValueError, match="1 partition values for a spec of 2"):
        partition_record(TableShape.of(DAYS, SPEC, {}), (dt.date(2024, 1, 1),))


KINDS: list[tuple[str, pa.DataType, Any, Any]] = [
    ("boolean", pa.bool_(), False, True),
    ("int", pa.int32(), -(2**31), 2**31 - 1),
    ("long", pa.int64(), -(2**63), 2**63 - 1),
    ("float", pa.float32(), -1.5, 2.5),
    ("double", pa.float64(), -1e300, 1e300),
    ("decimal(9, 2)", pa.decimal128(9, 2), decimal.Decimal("-1.25"), decimal.Decimal("9999999.99")),
    ("decimal(18, 4)", pa.decimal128(18, 4), decimal.Decimal("-1.2500"), decimal.Decimal("1.0001")),
    (
        "decimal(38, 10)",
        pa.decimal128(38, 10),
        decimal.Decimal("-9999999999999999999999999999.0000000001"),
        decimal.Decimal("0.0000000001"),
    ),
    ("date", pa.date32(), dt.date(1899, 12, 31), dt.date(2100, 1, 1)),
    ("time", pa.time64("us"), dt.time(0, 0, 0, 1), dt.time(23, 59, 59, 999999)),
    ("timestamp", pa.timestamp("us"), dt.datetime(1969, 12, 31, 23, 59, 59, 999999), dt.datetime(2100, 1, 1)),
    ("timestamptz", pa.timestamp("us", "UTC"), dt.datetime(1969, 1, 1, tzinfo=dt.UTC), dt.datetime(2100, 1, 1, tzinfo=dt.UTC)),
    ("string", pa.string(), "", "😀 and a text that is longer than sixteen letters"),
    ("binary", pa.binary(), b"\x00", b"\xff" * 40),
    ("uuid", pa.binary(16), uuid.UUID(int=1).bytes, uuid.UUID(int=2**128 - 1).bytes),
]


def test_bounds_never_hide_a_row_from_a_filter(tmp_path: Path) -> None:
    """Three files, one with the lowest value of every type, one with the highest, one with nulls: each is found by its value."""
    fields = [{"id": 1, "name": "id", "required": False, "type": "long"}]
    fields += [{"id": 2 + place, "name": f"v{place}", "required": False, "type": kind} for place, (kind, *_) in enumerate(KINDS)]
    schema = {"type": "struct", "schema-id": 0, "fields": fields}
    lake = Lake(tmp_path, schema=schema)
    arrow = arrow_of(schema, [pa.int64(), *(kind for _, kind, _, _ in KINDS)])
    values = [[low for *_, low, _ in KINDS], [high for *_, high in KINDS], [None for _ in KINDS]]
    for number, row in enumerate(values):
        named = {"id": number} | {f"v{place}": value for place, value in enumerate(row)}
        lake.commit(lake.delta(number, number + 1, rows=[], files=(put_file(lake.store, lake.table, [named], arrow=arrow),)))
    plain = lake.plain_table()
    for place, (kind, _, *ends) in enumerate(KINDS):
        assert lake.query(f"SELECT id FROM iceberg_scan('{{table}}') WHERE v{place} IS NULL") == [(2,)], kind
        assert plain.scan(row_filter=IsNull(f"v{place}")).to_arrow()["id"].to_pylist() == [2], kind
        for number, end in enumerate(ends):
            asked = uuid.UUID(bytes=end) if kind == "uuid" else end
            assert lake.query(f"SELECT id FROM iceberg_scan('{{table}}') WHERE v{place} = ?", asked) == [(number,)], kind
            assert plain.scan(row_filter=EqualTo(f"v{place}", asked)).to_arrow()["id"].to_pylist() == [number], kind
    lake.close()


def plain_shape(store: PowerCutStore) -> tuple[LoadedTable, TableShape]:
    table = LoadedTable(TABLE, make_metadata(store, hand_runtime()), "")
    return table, TableShape.of(table.schema, table.spec, {})


def test_the_same_manifest_twice_is_the_same_bytes() -> None:
    """A simulated run can be repeated exactly: nothing in a file comes from outside."""
    store = PowerCutStore()
    table, shape = plain_shape(store)
    file = put_file(store, table, [{"id": 1, "name": "a"}])
    bodies = set()
    for _ in range(2):
        write_manifest(StoreFileIO(store), "file:///warehouse/m.avro", shape, 7, added=added_entries(shape, [file], 7))
        bodies.add(store.get("file:///warehouse/m.avro"))
    assert len(bodies) == 1


def test_a_manifest_that_was_not_finished_is_not_put() -> None:
    store = PowerCutStore()
    _, shape = plain_shape(store)
    with pytest.raises(ValueError, match="empty manifest"):
        write_manifest(StoreFileIO(store), "file:///warehouse/m.avro", shape, 7)
    assert store.objects == {}
