"""Side logs: what is parked comes back as it was, once, whatever happens in between."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dolake.buffer.parked import ParkedRecord, SideLog, decode_parked, encode_parked, finish_removal, parked_tables, side_directory
from dolake.buffer.segment import segment_names
from dolake.errors import LogCorrupt, LogFailed, LogFull
from dolake.failpoints import FailpointRaised
from dolake.model import Entry, Record, RecordKind, TableName, TransactionMark
from tests.buffer.logtools import SMALL, FailingDisk, HastyDisk, SeededRandomness, armed, overwrite

TABLE = TableName.parse("public.orders")


def part(offset: int, log_id: str = "log-a", *, size: int = 200, places: tuple[int, ...] | None = None) -> ParkedRecord:
    payload = random.Random(f"{log_id}/{offset}").randbytes(size)
    entry = Entry(
        kind=RecordKind.BATCH,
        source="orders-db",
        epoch="e",
        sequence=offset,
        event_count=3 if places is None else len(places),
        content=offset * 7,
        payload=payload,
        tables={str(TABLE): 3 if places is None else len(places)},
        last_event_sequence=offset * 3,
        last_lsn=f"0/{offset:X}",
        transaction=TransactionMark("t", last=False) if offset % 3 == 0 else None,
    )
    return ParkedRecord(Record(log_id, offset, entry, 0, 0), places)


def opened(data: Path, disk: HastyDisk | None = None) -> SideLog:
    return SideLog(disk or HastyDisk(), str(data), TABLE, SMALL, SeededRandomness(3))


def read_all(side: SideLog) -> list[ParkedRecord]:
    """Everything, in small steps."""
    found: list[ParkedRecord] = []
    position = side.first
    while parts := side.read(position, 1000):
        found += parts
        position = parts[-1].position + 1
    assert position == side.end
    return found


def plain(parts: Sequence[ParkedRecord]) -> list[ParkedRecord]:
    """Without what depends on where they are stored."""
    return [replace(one, record=replace(one.record, size_bytes=0, stored_bytes=0), position=-1) for one in parts]


def test_what_is_parked_comes_back_as_it_was_in_order_over_restarts(tmp_path: Path) -> None:
    parts = [part(n, f"log-{'ab'[n % 2]}", places=(0, 5, 9_999) if n % 4 == 1 else None) for n in range(60)]
    side = opened(tmp_path)
    for start in range(0, 40, 7):
        side.append(parts[start : min(start + 7, 40)])
    assert plain(read_all(side)) == parts[:40]
    side.close()
    side = opened(tmp_path)
    assert side.bounds == {"log-a": 39, "log-b": 40}
    side.append(parts[40:])
    assert plain(read_all(side)) == parts
    assert side.bounds == {"log-a": 59, "log-b": 60}
    assert len(segment_names(os.listdir(side.directory))) > 1
    side.close()


def test_a_schema_keeps_its_kind_and_text_that_is_no_unicode_its_surrogates(tmp_path: Path) -> None:
    odd = part(4)
    odd = replace(odd, record=replace(odd.record, entry=replace(odd.record.entry, kind=RecordKind.SCHEMA, source="a\udcff", payload=b"")))
    side = opened(tmp_path)
    side.append([odd])
    assert plain(read_all(side)) == [odd]
    side.close()


def test_nothing_is_parked_twice(tmp_path: Path) -> None:
    side = opened(tmp_path)
    side.append([part(3), part(5)])
    before = plain(read_all(side))
    for parts in ([part(5)], [part(0)], [part(6), part(6)]):
        with pytest.raises(ValueError, match="is parked already"):
            side.append(parts)
    side.append([part(0, "log-b")])
    assert plain(read_all(side)) == [*before, part(0, "log-b")]
    side.close()


@pytest.mark.parametrize("moment", ["park.before_append", "park.after_append", "wal.before_write"])
def test_a_bound_moves_only_when_its_record_is_there(tmp_path: Path, moment: str) -> None:
    """Whatever the moment: below the bound that the next start finds everything is in the side log, from it on nothing."""
    side = opened(tmp_path)
    side.append([part(1)])
    with armed(moment), pytest.raises(FailpointRaised):
        side.append([part(2), part(3)])
    assert side.bounds == {"log-a": 2}, "what this process relies on is never more than what is durable"
    side.close()
    side = opened(tmp_path)
    offsets = [one.record.offset for one in read_all(side)]
    assert side.bounds == {"log-a": offsets[-1] + 1}
    assert offsets == ([1, 2, 3] if moment == "park.after_append" else [1])
    side.close()


def test_a_torn_tail_takes_the_bound_back_with_it(tmp_path: Path) -> None:
    """Cut anywhere in the last group: the bound that is found covers exactly what can be read."""
    side = opened(tmp_path / "whole")
    side.append([part(1), part(2)])
    (name,) = segment_names(os.listdir(side.directory))
    whole_size = os.path.getsize(f"{side.directory}/{name.file}")
    side.append([part(3)])
    size = os.path.getsize(f"{side.directory}/{name.file}")
    side.close()
    for cut in range(whole_size, size + 1, 13):
        copy = tmp_path / f"cut-{cut}"
        shutil.copytree(tmp_path / "whole", copy)
        torn = Path(side_directory(str(copy), TABLE))
        os.truncate(torn / name.file, cut)
        (torn / "synced-end").unlink()
        again = opened(copy)
        assert [one.record.offset for one in read_all(again)] == [1, 2]
        assert again.bounds == {"log-a": 3}
        again.append([part(3)])
        again.close()


def test_a_full_disk_keeps_nothing_and_the_same_side_log_goes_on(tmp_path: Path) -> None:
    disk = FailingDisk()
    side = opened(tmp_path, disk)
    side.append([part(1)])
    disk.room_bytes = 100
    with pytest.raises(LogFull):
        side.append([part(2), part(3)])
    assert side.bounds == {"log-a": 2}
    disk.room_bytes = None
    side.append([part(2)])
    assert [one.record.offset for one in read_all(side)] == [1, 2]
    side.close()


def test_a_failed_sync_is_never_believed(tmp_path: Path) -> None:
    disk = FailingDisk()
    side = opened(tmp_path, disk)
    side.append([part(1)])
    disk.syncs_fail = True
    for _ in range(2):
        with pytest.raises(LogFailed):
            side.append([part(2)])
    assert side.bounds == {"log-a": 2}
    assert side.failed
    assert [one.record.offset for one in read_all(side)] == [1], "what was there before is there to be fed"
    side.close()


def test_damage_stops_it_at_the_place(tmp_path: Path) -> None:
    side = opened(tmp_path)
    for n in range(40):
        side.append([part(n)])
    side.close()
    first = segment_names(os.listdir(side.directory))[0]
    overwrite(f"{side.directory}/{first.file}", 700, b"\xff\xff\xff")
    for _ in range(2):
        with pytest.raises(LogCorrupt):  # Again so, and not refused as one that is in use: it was let go of.
            opened(tmp_path)


def test_on_its_way_back_is_remembered(tmp_path: Path) -> None:
    side = opened(tmp_path)
    side.append([part(1)])
    assert not side.is_feeding
    side.feed(True)
    side.feed(True)
    side.close()
    side = opened(tmp_path)
    assert side.is_feeding
    side.feed(False)
    side.feed(False)
    side.close()
    assert not opened(tmp_path).is_feeding


def test_which_tables_are_parked_is_what_lies_there(tmp_path: Path) -> None:
    assert parked_tables(HastyDisk(), str(tmp_path)) == []
    for name in ("public.orders", "default.x", f"{'n' * 128}.{'t' * 128}"):
        table = TableName.parse(name)
        SideLog(HastyDisk(), str(tmp_path), table, SMALL, SeededRandomness(1)).close()
    assert [str(table) for table in parked_tables(HastyDisk(), str(tmp_path))] == sorted(
        ["public.orders", "default.x", f"{'n' * 128}.{'t' * 128}"]
    )
    SideLog(HastyDisk(), str(tmp_path), TABLE, SMALL, SeededRandomness(1)).remove()
    assert TABLE not in parked_tables(HastyDisk(), str(tmp_path))


@pytest.mark.parametrize("hits", range(8))
def test_a_removal_that_is_interrupted_is_finished_and_never_taken_for_a_log(tmp_path: Path, hits: int) -> None:
    """Killed before any of its steps: either everything is still parked, or nothing is."""
    side = opened(tmp_path)
    parts = [part(n) for n in range(40)]
    side.append(parts[:20])
    side.append(parts[20:])
    for n in range(40, 60):
        side.append([part(n)])
    steps = f"{hits}*off->1*raise" if hits else "1*raise"
    raised = False
    with armed("park.before_unlink", steps):
        try:
            side.remove()
        except FailpointRaised:
            raised = True
    assert parked_tables(HastyDisk(), str(tmp_path)) == []
    assert raised or os.listdir(side.directory) == []
    again = opened(tmp_path)
    assert (again.bounds, read_all(again)) == ({}, [])
    again.append([part(0)])
    assert plain(read_all(again)) == [part(0)]
    again.close()


def test_only_the_mark_is_left_at_the_end(tmp_path: Path) -> None:
    side = opened(tmp_path)
    side.append([part(1)])
    with armed("park.before_last_unlink"), pytest.raises(FailpointRaised):
        side.remove()
    assert os.listdir(side.directory) == ["done"]
    assert parked_tables(HastyDisk(), str(tmp_path)) == []
    finish_removal(HastyDisk(), side.directory)
    assert os.listdir(side.directory) == []


TEXT = st.text(st.characters(codec="utf-8"), max_size=20)


@given(
    kind=st.sampled_from([RecordKind.BATCH, RecordKind.SCHEMA]),
    log_id=TEXT,
    offset=st.integers(0, 2**63),
    places=st.none() | st.lists(st.integers(0, 2**32 - 1), max_size=20).map(tuple),
    payload=st.binary(max_size=100),
)
def test_any_part_is_read_as_it_was_written(
    kind: RecordKind, log_id: str, offset: int, places: tuple[int, ...] | None, payload: bytes
) -> None:
    whole = part(1)
    entry = replace(whole.record.entry, kind=kind, payload=payload)
    one = ParkedRecord(Record(log_id, offset, entry, 5, 4), places)
    stored = Record("side", 9, replace(entry, kind=RecordKind.PARKED, payload=encode_parked(one)), 5, 4)
    assert decode_parked(stored, "/side") == replace(one, position=9)


@given(st.binary(max_size=40))
def test_what_was_never_written_here_is_corrupt_or_a_part(payload: bytes) -> None:
    stored = Record("side", 9, replace(part(1).record.entry, kind=RecordKind.PARKED, payload=payload), 5, 4)
    with contextlib.suppress(LogCorrupt):
        parked = decode_parked(stored, "/side")
        assert parked.record.entry.kind in set(RecordKind)
