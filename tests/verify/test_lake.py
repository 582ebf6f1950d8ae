"""A sound lake has no breach; each kind of damage is found, named and placed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dolake.buffer.wal import Log
from dolake.clock import real_runtime
from dolake.iceberg.lake import open_catalog, open_warehouse
from dolake.model import TableName
from dolake.storage.disk import LocalDisk
from dolake.verify import Breach, verify_lake
from tests.buffer.logtools import SMALL
from tests.iceberg import foreign
from tests.writer.half import Half, half, settings_of


def lake(path: Path, more: Callable[[Half], Any] = lambda h: None) -> Half:
    """A table of three flushes, its log in several segments, all trimmed to nothing but the last rows."""
    made: list[Half] = []

    async def work() -> None:
        async with half(path) as h:
            made.append(h)
            h.hand.declare()
            for n in range(3):
                for m in range(20):
                    h.hand.insert({"id": 20 * n + m, "note": "x" * 200})
                await h.flush()
            more(h)
            h.hand.insert({"id": 60})
            await h.flush()

    asyncio.run(work())
    return made[0]


def breaches(path: Path) -> list[Breach]:
    settings = settings_of(path)
    store = open_warehouse(settings)
    catalog = open_catalog(settings, store, real_runtime())
    try:
        names = catalog.list_tables()
        return list(
            verify_lake(
                disk=LocalDisk(), data=settings.data, directories=settings.log.directories, catalog=catalog, store=store, names=names
            )
        )
    finally:
        catalog.close()


def found(path: Path) -> list[tuple[str, str]]:
    return sorted({(breach.invariant, breach.subject) for breach in breaches(path)})


def data_files(path: Path) -> list[Path]:
    return sorted((path / "warehouse").rglob("data/*.parquet"))


def set_properties(h: Half, **changes: str) -> None:
    with h.catalog().load_table("default.t").transaction() as change:
        change.set_properties(changes)


def flip(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


def test_a_sound_lake_has_no_breach(tmp_path: Path):
    lake(tmp_path)
    assert breaches(tmp_path) == []


def test_a_trimmed_log_is_no_breach(tmp_path: Path):
    lake(tmp_path, lambda h: h.log.trim(40))
    assert breaches(tmp_path) == []


def keep_some_of_a_trim(h: Half) -> None:
    """Some of the segments that it has removed are there again: a power cut came before their names were gone for good."""
    log = h.path / "log"
    before = {path: path.read_bytes() for path in sorted(log.glob("*.log"))}
    h.log.trim(40)
    gone = [path for path in before if not path.exists()]
    assert len(gone) > 3
    for path in (gone[0], gone[2]):
        path.write_bytes(before[path])


def test_a_trim_that_a_power_cut_left_gaps_of_is_no_breach(tmp_path: Path):
    lake(tmp_path, keep_some_of_a_trim)
    assert breaches(tmp_path) == []


def test_a_gap_that_no_trim_has_made_is_i2(tmp_path: Path):
    lake(tmp_path)
    segments = sorted((tmp_path / "log").glob("*.log"))
    segments[2].unlink()
    assert ("I2", str(tmp_path / "log")) in found(tmp_path)


def test_a_flipped_bit_in_a_sealed_segment_is_i2(tmp_path: Path):
    h = lake(tmp_path)
    segment = min((tmp_path / "log").glob("*.log"))
    flip(segment, segment.stat().st_size // 2)
    assert ("I2", str(tmp_path / "log")) in found(tmp_path)
    assert any(segment.name in breach.sentence for breach in breaches(tmp_path))
    assert h.log.log_id


def test_a_sequence_that_does_not_rise_is_i3(tmp_path: Path):
    lake(tmp_path, lambda h: h.hand.numbers.clear())
    (breach,) = breaches(tmp_path)
    assert (breach.invariant, breach.subject) == ("I3", "default.t")
    assert "sequence 0 of source 's' does not rise" in breach.sentence


def test_an_offset_taken_back_is_i4_and_shows_in_its_rows(tmp_path: Path):
    h = lake(tmp_path)
    set_properties(h, **{f"dolake.offset.{h.log.log_id}": "10"})
    assert found(tmp_path) == [("I4", "default.t"), ("I7", "default.t")]


def test_an_offset_above_the_synced_end_is_i5(tmp_path: Path):
    h = lake(tmp_path)
    set_properties(h, **{f"dolake.offset.{h.log.log_id}": "1000"})
    assert ("I5", "default.t") in found(tmp_path)


def test_a_log_trimmed_above_what_anybody_committed_is_i6(tmp_path: Path):
    h = lake(tmp_path, lambda h: h.log.trim(40))
    set_properties(h, **{f"dolake.offset.{h.log.log_id}": "5"})
    assert ("I6", str(tmp_path / "log")) in found(tmp_path)


def test_the_logs_own_records_may_be_trimmed_though_no_table_has_them(tmp_path: Path):
    """A trim's own record is past by the time of the next start, and no table ever commits it."""
    h = lake(tmp_path, lambda h: h.log.trim(40))
    log = Log.open(LocalDisk(), str(tmp_path / "log"), SMALL, real_runtime().random)
    log.name_siblings([])
    log.trim(log.synced_end)
    log.close()
    log = Log.open(LocalDisk(), str(tmp_path / "log"), SMALL, real_runtime().random)
    assert log.trim(log.synced_end)
    assert log.first_offset > max(h.catalog().load_table("default.t").metadata.last_sequence_number, 62)
    log.close()
    assert breaches(tmp_path) == []


def test_rows_that_are_there_twice_are_i7_and_break_the_count(tmp_path: Path):
    h = lake(tmp_path)
    table = h.catalog().load_table("default.t")
    table.append(table.scan(row_filter="id = 7").to_arrow())
    assert found(tmp_path) == [("I13", "default.t"), ("I3", "default.t"), ("I7", "default.t")]
    assert any("event 0 of offset 8 of log" in breach.sentence and "there 2 times" in breach.sentence for breach in breaches(tmp_path))


def test_rows_that_are_gone_are_i7_by_the_log_and_i13_by_the_count(tmp_path: Path):
    h = lake(tmp_path)
    h.catalog().load_table("default.t").delete("id = 7")
    assert found(tmp_path) == [("I13", "default.t"), ("I7", "default.t")]
    assert any("offset 8 of log" in breach.sentence and "committed are 0" in breach.sentence for breach in breaches(tmp_path))


def test_rows_that_are_gone_by_position_deletes_are_too(tmp_path: Path):
    h = lake(tmp_path)
    store = open_warehouse(settings_of(tmp_path))
    catalog = open_catalog(settings_of(tmp_path), store, real_runtime())
    table = SimpleNamespace(store=store, catalog=catalog, current=lambda: catalog.load(TableName("default", "t")))
    (first, *_) = [task.file.file_path for task in h.catalog().load_table("default.t").scan(row_filter="id = 7").plan_files()]
    deletes = foreign.position_delete(table, first, [3, 7])
    catalog.close()
    assert found(tmp_path) == [("I13", "default.t"), ("I7", "default.t")]
    assert sum("committed are 0" in breach.sentence for breach in breaches(tmp_path)) == 2
    file = Path(deletes.removeprefix("file://"))
    flip(file, 20)
    assert ("I15", "default.t") in found(tmp_path)
    file.unlink()
    assert ("I10", "default.t") in found(tmp_path)


def test_a_missing_file_is_i10(tmp_path: Path):
    lake(tmp_path)
    gone = data_files(tmp_path)[0]
    gone.unlink()
    assert ("I10", "default.t") in found(tmp_path)
    assert any(gone.name in breach.sentence and "does not exist" in breach.sentence for breach in breaches(tmp_path))


def test_a_missing_manifest_is_i10_and_the_rest_is_still_looked_at(tmp_path: Path):
    lake(tmp_path)
    min((tmp_path / "warehouse").rglob("metadata/*-m0.avro")).unlink()
    assert ("I10", "default.t") in found(tmp_path)


def test_a_file_cut_short_is_i10_and_does_not_verify(tmp_path: Path):
    lake(tmp_path)
    file = data_files(tmp_path)[0]
    file.write_bytes(file.read_bytes()[:-10])
    assert found(tmp_path) == [("I10", "default.t"), ("I15", "default.t")]


@pytest.mark.parametrize("where", [0.1, 0.5, 0.9])
def test_a_flipped_bit_in_a_data_file_is_i15(tmp_path: Path, where: float):
    lake(tmp_path)
    file = data_files(tmp_path)[0]
    flip(file, int(file.stat().st_size * where))
    assert found(tmp_path) == [("I15", "default.t")]


def test_rows_of_another_writer_are_not_judged_by_places_they_do_not_have(tmp_path: Path):
    h = lake(tmp_path)
    h.catalog().create_table("default.theirs", schema=h.catalog().load_table("default.t").schema().select("id"))
    assert TableName("default", "theirs")
    assert breaches(tmp_path) == []
