"""What deletes may speak of, against looking at every pair; and the numbers that follow, on examples."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dolake.compaction.reach import Reach
from dolake.iceberg.contents import LiveFile
from tests.compaction.rows import FILE_PATH_ID, bounds


def data(location: str, sequence_number: int = 1, rows: int = 100, size: int = 1000) -> LiveFile:
    return LiveFile(location, "data", size, rows, sequence_number=sequence_number)


def deletes(location: str, sequence_number: int, rows: int, lower: str | None = None, upper: str | None = None) -> LiveFile:
    return replace(LiveFile(location, "position deletes", 50, rows, sequence_number=sequence_number), **bounds(lower, upper))


def locations(files: tuple[LiveFile, ...]) -> list[str]:
    return [file.location for file in files]


def may_speak(of: LiveFile, file: LiveFile) -> bool:
    path = of.location.encode()
    lower, upper = file.lower_bounds.get(FILE_PATH_ID, path), file.upper_bounds.get(FILE_PATH_ID, path)
    return lower <= path <= upper and of.sequence_number <= file.sequence_number


PATHS = st.sampled_from(["", *"abcdefghij", "aa", "é", "z"])
DATA = st.builds(data, st.sampled_from([*"abcdefghij", "é"]), st.integers(1, 6), st.integers(0, 40), st.integers(1, 999))
DELETES = st.builds(deletes, st.uuids().map(str), st.integers(1, 6), st.integers(0, 40), st.none() | PATHS, st.none() | PATHS)
PARTITIONS = st.tuples(
    st.lists(DATA, min_size=1, max_size=9, unique_by=lambda file: file.location),
    st.lists(DELETES, max_size=9, unique_by=lambda file: file.location),
)


@given(PARTITIONS)
def test_rows_are_shared_out_by_row_count_over_what_a_delete_file_may_speak_of(files: tuple[list[LiveFile], list[LiveFile]]):
    them, gone = files
    reach = Reach(them, gone)
    for file in them:
        parts = Fraction(0)
        for one in gone:
            rows = sum(other.row_count for other in them if may_speak(other, one))
            if may_speak(file, one) and rows and one.row_count:
                parts += min(Fraction(one.row_count, rows), Fraction(1))
        share = min(parts, Fraction(1)) if file.row_count else Fraction(0)
        assert reach.share(file) == pytest.approx(float(share), abs=1e-9)
        assert abs(reach.rows_deleted(file) - file.row_count * share) <= Fraction(1, 2) + Fraction(1, 10**6)
        assert (reach.share(file) == 0) == (share == 0), "no trace of sums that were taken back"
        kept = file.size_bytes * (1 - share) if file.row_count else 0
        assert abs(reach.bytes_kept(file) - kept) < 1 + Fraction(1, 10**6)


@given(PARTITIONS, st.data())
def test_the_deletes_of_some_files_are_those_that_may_speak_of_one_of_them(
    files: tuple[list[LiveFile], list[LiveFile]], draw: st.DataObject
):
    them, gone = files
    reach = Reach(them, gone)
    some = draw.draw(st.lists(st.sampled_from(them), min_size=1, unique_by=lambda file: file.location))
    found, used_up = reach.deletes_of(some)
    others = [file for file in them if file not in some]
    full = [one for one in gone if one.row_count and any(may_speak(file, one) and file.row_count for file in them)]
    assert {one.location for one in gone if not reach.is_spent(one)} == {one.location for one in full}
    wanted = [one for one in full if any(may_speak(file, one) for file in some)]
    assert locations(found) == locations(tuple(sorted(wanted, key=lambda one: (one.sequence_number, one.location))))
    assert set(locations(used_up)) == {
        one.location for one in wanted if not any(may_speak(file, one) and file.row_count for file in others)
    }
    asked = draw.draw(st.lists(st.sampled_from(gone), unique_by=lambda file: file.location)) if gone else []
    spoken_of = {file.location for file in them if any(may_speak(file, one) for one in asked if not reach.is_spent(one))}
    assert reach.spoken_of(asked) == spoken_of


def test_equal_bounds_are_of_exactly_one_file():
    them = [data("a"), data("b"), data("c")]
    reach = Reach(them, [deletes("d", 1, 30, "b", "b")])
    assert [reach.rows_deleted(file) for file in them] == [0, 30, 0]
    assert reach.wide == []


def test_a_delete_file_is_not_of_what_came_after_it():
    old, same, new = data("a", 3), data("b", 4, 300), data("c", 5)
    reach = Reach([old, same, new], [deletes("d", 4, 40, "a", "c")])
    assert [reach.rows_deleted(file) for file in (old, same, new)] == [10, 30, 0]


def test_more_deletes_than_rows_leave_nothing():
    file = data("a")
    reach = Reach([file], [deletes("d", 1, 90), deletes("e", 2, 70)])
    assert (reach.share(file), reach.rows_deleted(file), reach.bytes_kept(file)) == (1.0, 100, 0)


def test_a_delete_file_is_spent_when_its_files_are_gone():
    reach = Reach([data("a", 5), data("m", 2)], [deletes("d", 4, 1, "a", "b"), deletes("e", 4, 1, "x", "x"), deletes("f", 4, 1, "a", "m")])
    assert [reach.is_spent(one) for one in (deletes("d", 4, 1), deletes("e", 4, 1), deletes("f", 4, 1))] == [True, True, False]


def test_bounds_the_wrong_way_round_speak_of_nothing():
    one = deletes("d", 4, 1, "c", "a")
    reach = Reach([data("a"), data("b"), data("c")], [one])
    assert reach.is_spent(one)
    assert reach.share(data("b")) == 0
