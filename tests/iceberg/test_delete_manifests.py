"""Manifests of delete files: merged as those of data files are, never with them, and whole for every reader."""

from __future__ import annotations

import datetime as dt
import decimal
import json
import uuid
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyiceberg.avro.file import AvroFile
from pyiceberg.manifest import ManifestContent, ManifestFile

from dolake.iceberg import avro
from dolake.iceberg.contents import ContentsReader
from dolake.iceberg.entries import fetch_entries
from dolake.iceberg.file_io import StoreFileIO
from dolake.iceberg.manifests import MERGE_COUNT, live_file_count, plan_removal
from dolake.iceberg.partition import stored_partition
from tests.iceberg import foreign
from tests.iceberg.lake import Lake, put_file
from tests.iceberg.mirror import Mirror
from tests.iceberg.test_manifests import manifest


def header(lake: Lake, found: ManifestFile) -> dict[str, str]:
    with AvroFile(StoreFileIO(lake.store).new_input(found.manifest_path)) as reader:
        return dict(reader.header.meta)


def declared(lake: Lake, found: ManifestFile, name: str) -> Any:
    """How the Avro schema of a manifest declares a field of its files."""
    entry = json.loads(header(lake, found)["avro.schema"])
    (file,) = (part["type"] for part in entry["fields"] if part["name"] == "data_file")
    return next((part for part in file["fields"] if part["name"] == name), None)


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A table after 120 commits that each write a row and delete one; a second writer took over after 60."""
    lake = Lake(tmp_path_factory.mktemp("grown"))
    mirror = Mirror(lake)
    committer = lake.committer()
    for number in range(120):
        if number == 60:
            committer = lake.committer()
        mirror.change({number: f"n{number}", number + 1000: "gone soon"}, [number + 999], committer=committer)
    yield lake, mirror
    lake.close()


def test_manifests_stay_few_and_hold_one_kind_each(grown: tuple[Lake, Mirror]) -> None:
    lake, _ = grown
    manifests = foreign.manifests_of(lake)
    for content, files in ((ManifestContent.DATA, 120), (ManifestContent.DELETES, 119)):
        mine = [found for found in manifests if found.content == content]
        assert len(mine) <= 2 * MERGE_COUNT
        assert sum(map(live_file_count, mine)) == files
        for found in mine:
            kinds = {entry.data_file.content.name for entry in fetch_entries(StoreFileIO(lake.store), found)}
            assert kinds == {"DATA" if content == ManifestContent.DATA else "POSITION_DELETES"}
            assert header(lake, found)["content"] == ("data" if content == ManifestContent.DATA else "deletes")


def test_merged_deletes_still_apply_and_history_reads_as_it_was(grown: tuple[Lake, Mirror]) -> None:
    lake, mirror = grown
    assert lake.ids() == sorted(mirror.rows) == [*range(120), 1119]
    every_seventh = {snapshot["snapshot-id"] for snapshot in lake.current().metadata["snapshots"][::7]}
    assert mirror.breaches(every_seventh) == []


def test_merged_deletes_keep_their_snapshot_sequence_numbers_and_bounds(grown: tuple[Lake, Mirror]) -> None:
    lake, _ = grown
    deletes = [found for found in foreign.manifests_of(lake) if found.content == ManifestContent.DELETES]
    entries = [entry for found in deletes for entry in fetch_entries(StoreFileIO(lake.store), found)]
    assert sorted(entry.sequence_number for entry in entries) == list(range(2, 121))
    assert all(entry.file_sequence_number == entry.sequence_number for entry in entries)
    assert len({entry.snapshot_id for entry in entries}) == 119
    for entry in entries:
        file = entry.data_file
        (low,), (high,) = file.lower_bounds.items(), file.upper_bounds.items()
        assert low == high
        assert lake.store.size(low[1].decode())
        assert low[0] == 2147483546
    for found in deletes:
        assert found.min_sequence_number == min(entry.sequence_number for entry in fetch_entries(StoreFileIO(lake.store), found))
        assert found.manifest_length == lake.store.size(found.manifest_path)


def test_a_manifest_is_read_anew_each_time_but_its_schema_is_resolved_once(grown: tuple[Lake, Mirror]) -> None:
    lake, _ = grown
    io, manifests = StoreFileIO(lake.store), foreign.manifests_of(lake)
    fetched = [fetch_entries(io, found) for found in manifests]
    resolved = avro._reader.cache_info().misses
    again = [fetch_entries(io, found) for found in manifests]
    assert avro._reader.cache_info().misses == resolved
    first, second = ([(entry.sequence_number, entry.data_file.file_path) for entry in chain(*read)] for read in (fetched, again))
    assert first == second
    assert again[0][0] is not fetched[0][0]


def test_a_delete_file_says_what_it_was_committed_with(lake: Lake) -> None:
    mirror = Mirror(lake)
    mirror.change({1: "a", 2: "b"})
    delta = mirror.delta({}, [2])
    lake.commit(delta)
    (new,) = delta.deletes
    head = lake.current().head
    assert head is not None
    (found,) = [file for file in ContentsReader(lake.store).read(head).files if file.kind != "data"]
    assert (found.location, found.kind, found.size_bytes, found.row_count) == (new.location, "position deletes", new.size_bytes, 1)
    assert (found.spec_id, found.partition, found.sequence_number) == (0, (), 2)
    path = delta.deletes[0].first_path.encode()
    assert (found.lower_bounds, found.upper_bounds) == ({2147483546: path}, {2147483546: path})


def test_foreign_equality_deletes_survive_a_merge_as_java_can_read_them(lake: Lake) -> None:
    mirror = Mirror(lake)
    committer = lake.committer()
    for number in range(4):
        mirror.change({number: "x", number + 100: "y"}, committer=committer)
    theirs = foreign.equality_delete(lake, [2, 102])
    places = {key: place.location for key, place in mirror.places.items()}
    also_theirs = foreign.position_delete(lake, places[1], [0])
    for number in range(4, 20):
        mirror.change({number: "x", number + 100: "y"}, [number + 99], committer=committer)
    deletes = [found for found in foreign.manifests_of(lake) if found.content == ManifestContent.DELETES]
    entries = {entry.data_file.file_path: (found, entry) for found in deletes for entry in fetch_entries(StoreFileIO(lake.store), found)}
    found, entry = entries[theirs]
    assert "/foreign-" not in found.manifest_path
    assert (entry.data_file.content.name, entry.data_file.equality_ids, entry.sequence_number) == ("EQUALITY_DELETES", [1], 5)
    assert declared(lake, found, "equality_ids")["type"] == ["null", {"type": "array", "element-id": 136, "items": "int"}]
    found, entry = entries[also_theirs]
    assert "/foreign-" not in found.manifest_path
    assert declared(lake, found, "referenced_data_file")["field-id"] == 143
    assert entry.data_file[17] == places[1]
    # DuckDB alone: PyIceberg reads no equality deletes.
    rows = lake.query("SELECT id FROM iceberg_scan('{table}') ORDER BY id")
    assert [row[0] for row in rows] == [0, *range(3, 20), 100, 101, 119]
    assert int(lake.current().head["summary"]["total-equality-deletes"]) == 2  # type: ignore[index]
    mirror.change({}, truncate=True, committer=committer)
    said = lake.current().head["summary"]  # type: ignore[index]
    assert (said["removed-equality-delete-files"], said["removed-equality-deletes"]) == ("1", "2")
    assert (said["removed-delete-files"], said["removed-position-delete-files"]) == ("18", "17")
    assert {key: value for key, value in said.items() if key.startswith("total-")} == dict.fromkeys(
        ["total-data-files", "total-records", "total-files-size", "total-delete-files", "total-position-deletes", "total-equality-deletes"],
        "0",
    )
    assert lake.query("SELECT count(*) FROM iceberg_scan('{table}')") == [(0,)]


def test_commits_read_nothing_back(lake: Lake) -> None:
    reads: list[str] = []

    class CountingStore(type(lake.store)):  # type: ignore[misc]
        def get(self, location: str) -> bytes:
            reads.append(location)
            return bytes(super().get(location))

    mirror = Mirror(lake)
    committer = lake.committer(store=CountingStore(lake.store.root))
    for number in range(40):
        mirror.change({number: "x"}, [number - 1], committer=committer)
    assert reads == []


def test_files_that_go_are_recorded_in_manifests_of_one_kind_and_spec_that_are_not_too_large() -> None:
    deletes = ManifestContent.DELETES
    given = [manifest(4000, path=f"a{number}") for number in range(5)]
    given += [manifest(7, path="b", spec=1), manifest(7, path="c", content=deletes), manifest(0, path="none"), manifest(20_000, path="d")]
    groups = [[found.manifest_path for found in group] for group in plan_removal(given)]
    assert groups == [["a0", "a1"], ["a2", "a3"], ["a4"], ["d"], ["b"], ["c"]]


MOMENT = dt.datetime(2024, 2, 29, 23, 59, 59, 999_999)
KINDS: list[tuple[str, pa.DataType, str, Any, Any]] = [
    ("boolean", pa.bool_(), "identity", True, True),
    ("int", pa.int32(), "identity", -(2**31), -(2**31)),
    ("long", pa.int64(), "truncate[10]", -20, -20),
    ("long", pa.int64(), "bucket[8]", 7, 7),
    ("float", pa.float32(), "identity", 1.5, 1.5),
    ("double", pa.float64(), "identity", -1e300, -1e300),
    ("double", pa.float64(), "identity", 0.1, 0.1),
    ("decimal(9, 2)", pa.decimal128(9, 2), "identity", decimal.Decimal("-1.25"), decimal.Decimal("-1.25")),
    ("decimal(38, 10)", pa.decimal128(38, 10), "identity", decimal.Decimal("0.0000000001"), decimal.Decimal("0.0000000001")),
    ("date", pa.date32(), "identity", dt.date(2024, 2, 29), 19782),
    ("date", pa.date32(), "identity", 19782, 19782),
    ("date", pa.date32(), "month", 649, 649),
    ("time", pa.time64("us"), "identity", dt.time(0, 0, 1, 5), 1_000_005),
    ("timestamp", pa.timestamp("us"), "identity", MOMENT, 1_709_251_199_999_999),
    ("timestamp", pa.timestamp("us"), "day", 19782, 19782),
    ("timestamptz", pa.timestamp("us", "UTC"), "identity", 1_709_251_199_999_999, 1_709_251_199_999_999),
    ("timestamptz", pa.timestamp("us", "UTC"), "hour", 474791, 474791),
    ("string", pa.string(), "identity", "é/=x", "é/=x"),
    ("binary", pa.binary(), "identity", b"\x00\xff", b"\x00\xff"),
    ("uuid", pa.binary(16), "identity", uuid.UUID(int=2**127), uuid.UUID(int=2**127)),
    ("string", pa.string(), "void", None, None),
]


@pytest.mark.parametrize(("kind", "arrow", "transform", "value", "stored"), KINDS, ids=lambda value: str(value)[:20])
def test_what_a_partition_is_stored_as_is_known_without_reading_it(
    tmp_path: Path, kind: str, arrow: pa.DataType, transform: str, value: Any, stored: Any
) -> None:
    """Two writers, and a merge of what the second wrote with what it read of the first: values are alike however they came."""
    schema = {
        "type": "struct",
        "schema-id": 0,
        "fields": [{"id": 1, "name": "id", "required": False, "type": "long"}, {"id": 2, "name": "part", "required": False, "type": kind}],
    }
    spec = {"spec-id": 0, "fields": [{"source-id": 2, "field-id": 1000, "name": "p", "transform": transform}]}
    lake = Lake(tmp_path, schema=schema, spec=spec)
    wanted = stored_partition(schema, spec, (value,))
    assert (wanted, type(wanted[0])) == ((stored,), type(stored))
    columns = pa.schema(
        [pa.field("id", pa.int64(), metadata={"PARQUET:field_id": "1"}), pa.field("part", arrow, metadata={"PARQUET:field_id": "2"})]
    )
    committer = lake.committer()
    for number in range(14):
        if number == 5:
            committer = lake.committer()
        partition = (value,) if number % 3 else (None,)
        file = put_file(lake.store, lake.table, [{"id": number, "part": None}], partition=partition, arrow=columns)
        lake.commit(lake.delta(number, number + 1, rows=[], files=(file,)), committer)
    head = lake.current().head
    assert head is not None
    assert head["summary"]["changed-partition-count"] == "1"
    found = [file.partition for file in ContentsReader(lake.store).read(head).files]
    assert sorted(found, key=str) == sorted([*[wanted] * 9, *[(None,)] * 5] if value is not None else [(None,)] * 14, key=str)
    assert {type(one[0]) for one in found} == {type(stored), type(None)}
    assert len(foreign.manifests_of(lake)) == 5
    lake.close()
