"""What a rewrite does with files that are not what they should be, and when it breaks: nothing is put that was not read whole."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyiceberg.types import LongType, NestedField, StringType

from dolake.compaction.rewrite import rewrite
from dolake.errors import RewriteRefused, StoreUnreachable
from dolake.failpoints import REGISTRY, FailpointRaised
from dolake.iceberg.contents import ContentsReader, LiveFile
from dolake.parquet.align import schema_as_json
from dolake.parquet.schema import arrow_schema
from dolake.storage.local import LocalStore
from tests.compaction.rewriting import Table, rows_of, schema_of, uuid
from tests.iceberg.lake import Lake

SCHEMA = schema_of(NestedField(1, "id", LongType()), NestedField(2, "name", StringType()))
FOREIGN = pa.schema([field.with_type(pa.string()) if field.name == "name" else field for field in arrow_schema(SCHEMA)])


def rows(first: int, stop: int) -> pa.Table:
    return rows_of(SCHEMA, [{"id": number, "name": f"name-{number * 7919 % 1000}"} for number in range(first, stop)])


def filled(directory: Path) -> Table:
    """Two files of dolake's, one of another program's, and deletes."""
    table = Table(directory, SCHEMA)
    table.add(rows(0, 500))
    table.add_foreign(rows(500, 1000), use_dictionary=False)
    table.add(rows(250, 750))
    table.delete({file.location: [3, 5] for file in table.data})
    return table


def objects(table: Table) -> list[tuple[str, int]]:
    return sorted(table.store.list(table.location))


def spoil(table: Table, file: LiveFile, how: str) -> None:
    data = bytearray(table.store.get(file.location))
    if how == "missing":
        table.store.delete(file.location)
        return
    if how == "cut short":
        del data[-10:]
    elif how == "a bit flipped":
        data[len(data) // 3] ^= 4
    elif how == "another file":
        data = bytearray(b"PAR1" + bytes(len(data) - 8) + b"PAR1")
    table.store.put(file.location, bytes(data))


def test_more_rows_than_can_be_numbered_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = filled(tmp_path)
    monkeypatch.setattr("dolake.compaction.placing.ROWS_MAX", 1499)
    before = objects(table)
    with pytest.raises(RewriteRefused, match="1500 rows together"):
        table.rewrite((1,))
    assert objects(table) == before


@pytest.mark.parametrize("memory_bytes", [1 << 30, 2000])
@pytest.mark.parametrize("how", ["missing", "cut short", "a bit flipped", "another file"])
@pytest.mark.parametrize("which", ["own", "foreign", "last", "deletes"])
def test_a_spoilt_file_is_named_and_nothing_is_put(tmp_path: Path, which: str, how: str, memory_bytes: int) -> None:
    table = filled(tmp_path)
    file = {"own": table.data[0], "foreign": table.data[1], "last": table.data[2], "deletes": table.deletes[0]}[which]
    spoil(table, file, how)
    there = objects(table)
    with pytest.raises(RewriteRefused) as caught:
        table.rewrite((1,), memory_bytes=memory_bytes)
    assert caught.value.file == file.location
    assert file.location in str(caught.value)
    assert objects(table) == there


def test_no_flipped_bit_of_a_page_gets_through_a_file_without_digest(tmp_path: Path) -> None:
    table = Table(tmp_path, SCHEMA)
    file = table.add_foreign(rows(0, 300), use_dictionary=False, compression="none", write_statistics=False)
    data = table.store.get(file.location)
    start = data.index(b"name-919")  # The second row's name.
    for place in range(start, start + 2000, 97):
        flipped = bytearray(data)
        flipped[place] ^= 1
        table.store.put(file.location, bytes(flipped))
        with pytest.raises(RewriteRefused, match=r"(?i)crc|checksum"):
            table.rewrite((1,))
    table.store.put(file.location, data)
    table.rewrite((1,)).check()


def test_a_page_that_only_the_last_of_several_files_needs_is_looked_at_before_the_first_is_put(tmp_path: Path) -> None:
    table = Table(tmp_path, SCHEMA)
    falling = pa.array(range(2999, -1, -1))  # Rows that have to be moved are made slice by slice, and the first needs the first file only.
    table.add(rows(0, 3000).take(falling))
    file = table.add_foreign(rows(3000, 6000).take(falling), use_dictionary=False, compression="none", write_statistics=False)
    data = bytearray(table.store.get(file.location))
    data[data.rindex(b"name-")] ^= 1
    table.store.put(file.location, bytes(data))
    there = objects(table)
    with pytest.raises(RewriteRefused, match=r"(?i)crc|checksum"):
        table.rewrite((1,), memory_bytes=5000, target_bytes=5000)
    assert objects(table) == there


def test_deletes_without_digest_are_held_against_their_checksums(tmp_path: Path) -> None:
    table = Table(tmp_path, SCHEMA)
    file = table.add(rows(0, 300))
    paths = pa.table({"file_path": [file.location] * 100, "pos": pa.array(range(100), pa.int64())})
    sink = pa.BufferOutputStream()
    pq.write_table(paths, sink, compression="none", use_dictionary=False, write_page_checksum=True)
    data = bytearray(sink.getvalue())
    deletes = LiveFile(f"{table.location}/data/part-0.parquet", "position deletes", len(data), 100, sequence_number=2)
    table.store.put(deletes.location, bytes(data))
    assert table.rewrite((1,), deletes=(deletes,)).rewritten.row_count == 200
    data[data.index(bytes([77, 0, 0, 0, 0, 0, 0, 0]))] ^= 1
    table.store.put(deletes.location, bytes(data))
    with pytest.raises(RewriteRefused, match=r"(?i)crc|checksum"):
        table.rewrite((1,), deletes=(deletes,))


def test_a_manifest_that_says_other_rows_and_deletes_by_value_are_refused(tmp_path: Path) -> None:
    table = filled(tmp_path)
    wrong = replace(table.data[0], row_count=499)
    with pytest.raises(RewriteRefused, match="it has 500 rows, and its manifest says 499"):
        table.rewrite((1,), data=(wrong, *table.data[1:]))
    by_value = replace(table.deletes[0], kind="equality deletes")
    with pytest.raises(RewriteRefused, match="it holds equality deletes"):
        table.rewrite((1,), deletes=(by_value,))


class Away(LocalStore):
    """A store that stops answering at the n-th object that is asked of it."""

    left = 0

    def get(self, location: str) -> bytes:
        self.left -= 1
        if self.left < 0:
            raise StoreUnreachable("the warehouse is away")
        return super().get(location)


@pytest.mark.parametrize("answered", range(4))
def test_a_store_that_is_away_is_no_fault_of_any_file(tmp_path: Path, answered: int) -> None:
    table = filled(tmp_path)
    store = Away(table.store.root)
    store.left = answered
    there = objects(table)
    with pytest.raises(StoreUnreachable, match="away"):
        rewrite(store, table.job((1,)), uuid=uuid)
    assert objects(table) == there


@pytest.mark.parametrize(
    ("name", "passed", "put"),
    [
        *[("compact.read", passed, 0) for passed in range(4)],
        *[("compact.before_put", passed, passed) for passed in range(3)],
        *[("compact.after_put", passed, passed + 1) for passed in range(3)],
    ],
)
def test_a_rewrite_that_breaks_leaves_only_new_files_of_its_epoch(tmp_path: Path, name: str, passed: int, put: int) -> None:
    table = filled(tmp_path)
    job = table.job((1,), target_bytes=sum(file.size_bytes for file in table.data) // 3)
    before = set(objects(table))
    REGISTRY.arm(name, f"{passed}*off->raise" if passed else "raise")
    with pytest.raises(FailpointRaised):
        rewrite(table.store, job, uuid=uuid)
    new = set(objects(table)) - before
    assert before <= set(objects(table))
    assert len(new) == put
    assert all("/data/e00000007-" in location for location, _ in new)


def test_whoever_paces_it_hears_of_every_byte_that_was_read_or_put(tmp_path: Path) -> None:
    table = filled(tmp_path)
    heard: list[int] = []
    target_bytes = sum(file.size_bytes for file in table.data) // 2
    done = rewrite(table.store, table.job((1,), target_bytes=target_bytes), uuid=uuid, spent=heard.append)
    assert heard == [file.size_bytes for file in (*table.deletes, *table.data)] + [output.file.size_bytes for output in done.outputs]
    assert sum(heard) == done.bytes_read + done.bytes_written
    assert len(done.outputs) == 2


# -- what others read


def test_others_read_what_comes_out_with_ids_bounds_and_checksums(tmp_path: Path) -> None:
    lake = Lake(tmp_path, schema=schema_as_json(SCHEMA))
    table = Table(tmp_path / "warehouse", SCHEMA)
    table.location = lake.table.location
    table.add(rows(0, 3000))
    table.add_foreign(rows(3000, 5000))
    table.delete({file.location: range(0, 2000, 2) for file in table.data})
    result = table.rewrite((1,), target_bytes=sum(file.size_bytes for file in table.data) // 2)
    result.check()
    assert len(result.files) == 2
    lake.commit(lake.delta(0, 1, rows=[], files=tuple(output.file for output in result.rewritten.outputs)))
    wanted = sorted(row["id"] for row in table.living())
    assert lake.ids() == wanted
    assert lake.query("SELECT count(*) FROM iceberg_scan('{table}') WHERE id < 1000") == [(sum(one < 1000 for one in wanted),)]
    snapshot = lake.current().head
    assert snapshot is not None
    bounds = [
        (int.from_bytes(file.lower_bounds[1], "little"), int.from_bytes(file.upper_bounds[1], "little"))
        for file in ContentsReader(lake.store).read(snapshot).files
    ]
    assert sorted(bounds) == [(min(ids), max(ids)) for ids in ([row["id"] for row in rows] for rows in result.files)]
    paths = [output.file.location.removeprefix("file://") for output in result.rewritten.outputs]
    ids: dict[str, Any] = dict(lake.query(f"SELECT DISTINCT name, field_id FROM parquet_schema({paths}) WHERE field_id IS NOT NULL"))
    assert ids == {"id": 1, "name": 2}
    statistics = lake.query(
        f"SELECT stats_min_value, stats_max_value FROM parquet_metadata({paths}) WHERE path_in_schema = 'id' ORDER BY 1"
    )
    assert len(statistics) == 2
    assert all(low is not None and high is not None for low, high in statistics)
    lake.close()
