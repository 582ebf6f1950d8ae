"""A memtable gives out whole records below the cuts, and their rows, and keeps the rest."""

from __future__ import annotations

import pyarrow as pa

from dolake.buffer.memtable import Memtable, PendingRecord
from dolake.buffer.plan import Pin
from dolake.model import OffsetRange


def record(log: str, offset: int, rows: int, *, source: str = "s", lsn: str = "") -> PendingRecord:
    return PendingRecord(Pin(log, offset, source), rows, rows * 10, lsn, 0.0)


def piece(*places: tuple[str, int, int]) -> pa.Table:
    return pa.table({"_cdc_log": [p[0] for p in places], "_cdc_offset": [p[1] for p in places], "_cdc_index": [p[2] for p in places]})


def places(pieces: tuple[pa.Table, ...] | list[pa.Table]) -> list[tuple[str, int, int]]:
    return [tuple(row.values()) for part in pieces for row in part.to_pylist()]


def filled() -> Memtable:
    memtable = Memtable()
    memtable.note(record("x", 3, 2, lsn="0/1"))
    memtable.note(record("y", 1, 1, source="t"))
    memtable.add_piece(piece(("x", 3, 0), ("x", 3, 1), ("y", 1, 0)))
    memtable.note(record("x", 5, 1, lsn="0/2"))
    memtable.add_piece(piece(("x", 5, 0)))
    return memtable


def test_freezing_everything_takes_the_pieces_as_they_are():
    memtable = filled()
    frozen = memtable.freeze({"x": 2}, {"x": 8, "y": 4})
    assert places(frozen.pieces) == [("x", 3, 0), ("x", 3, 1), ("y", 1, 0), ("x", 5, 0)]
    assert frozen.ranges == {"x": OffsetRange(2, 8), "y": OffsetRange(0, 4)}
    assert (frozen.rows, frozen.size_bytes, frozen.lsns()) == (4, 40, {"s": "0/2"})
    assert (memtable.rows, memtable.size_bytes, memtable.arrow_bytes, memtable.records, memtable.pieces) == (0, 0, 0, [], [])


def test_a_cut_keeps_back_the_records_at_and_above_it_with_their_rows():
    memtable = filled()
    frozen = memtable.freeze({}, {"x": 5, "y": 1})
    assert places(frozen.pieces) == [("x", 3, 0), ("x", 3, 1)]
    assert frozen.ranges == {"x": OffsetRange(0, 5)}
    assert places(memtable.pieces) == [("y", 1, 0), ("x", 5, 0)]
    assert list(memtable.pins()) == [Pin("y", 1, "t"), Pin("x", 5, "s")]
    assert (memtable.rows, memtable.size_bytes) == (2, 20)


def test_pins_are_the_first_of_each_log_and_source():
    assert list(filled().pins()) == [Pin("x", 3, "s"), Pin("y", 1, "t")]


def test_dropping_from_a_record_gives_up_it_and_all_that_was_read_after_it():
    memtable = filled()
    assert memtable.drop_from("y", 1) == [Pin("y", 1, "t"), Pin("x", 5, "s")]
    assert [r.pin for r in memtable.records] == [Pin("x", 3, "s")]
    assert (memtable.rows, memtable.size_bytes) == (2, 20)
