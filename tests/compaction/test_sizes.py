"""Classes and bins: how large is what goes together."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from dolake.compaction.sizes import bins_by_class, is_full, packed, size_class
from dolake.iceberg.contents import LiveFile


def files(*sizes: int) -> list[LiveFile]:
    return [LiveFile(f"{place:05}", "data", size, 1) for place, size in enumerate(sizes)]


def weight(file: LiveFile) -> int:
    return file.size_bytes


def sizes(bins: list[list[LiveFile]]) -> list[list[int]]:
    return [[file.size_bytes for file in bin_] for bin_ in bins]


def by_class(*weights: int, inputs_min: int = 4) -> list[list[int]]:
    return sizes(list(bins_by_class(files(*weights), weight, 4096, inputs_min)))


def test_a_class_is_a_factor_of_four_wide():
    assert [size_class(size, 4096) for size in (4095, 1025, 1024, 257, 256, 65, 64, 5, 4, 2, 1, 0)] == [0, 0, 1, 1, 2, 2, 3, 4, 5, 5, 6, 6]


@given(st.lists(st.integers(1, 4096), min_size=4, max_size=4))
def test_four_of_one_class_make_one_of_a_higher_class_or_a_full_one(weights: list[int]):
    lowest = min(weights)
    level = size_class(lowest, 4096)
    same = [size if size_class(size, 4096) == level else lowest for size in weights]
    assert is_full(sum(same), 4096) or size_class(sum(same), 4096) < level


def test_three_quarters_are_full():
    assert [is_full(size, 4096) for size in (3071, 3072)] == [False, True]


def test_each_file_goes_into_the_first_bin_that_takes_it():
    assert sizes(packed(files(60, 50, 30, 10, 45, 90, 5, 200), weight, 100)) == [[60, 30, 10], [50, 45, 5], [90], [200]]


@given(st.lists(st.integers(0, 150), max_size=200))
def test_bins_hold_every_file_once_and_no_more_than_the_target(weights: list[int]):
    given_ = files(*weights)
    bins = packed(given_, weight, 100)
    assert sorted(file.location for bin_ in bins for file in bin_) == [file.location for file in given_]
    assert all(sum(map(weight, bin_)) <= 100 or len(bin_) == 1 for bin_ in bins)
    assert all(bin_ == sorted(bin_, key=lambda file: file.location) for bin_ in bins)


def test_a_class_waits_for_as_many_files_as_are_asked_for():
    assert by_class(*[10] * 3) == []
    assert by_class(*[10] * 4) == [[10] * 4]
    assert by_class(*[10] * 3, inputs_min=3) == [[10] * 3]
    assert by_class(10, inputs_min=1) == [], "one file is no fewer afterwards"


def test_no_class_counts_for_another():
    assert by_class(*[10] * 3, *[100] * 3, *[1000] * 3) == []


def test_fewer_go_together_where_they_fill_the_target():
    assert by_class(2000, 2000) == []
    assert by_class(2000, 2000, 1100) == [[2000, 2000]]


def test_what_does_not_fill_a_second_bin_waits():
    assert by_class(*[1000] * 6) == [[1000] * 4]


def test_files_of_which_only_two_fit_do_not_stay_for_good():
    assert by_class(*[1450] * 8) == [[1450] * 2] * 4
    # What came of them waits for what fills it, and is not rewritten for less.
    assert by_class(*[2900] * 8) == []
    assert by_class(2900, 1100, 2900, 2900) == [[2900, 1100]]
    assert by_class(2100, 1000, 2100, 2100) == []


def test_files_that_fit_with_no_other_stay():
    assert by_class(*[2500] * 20) == []
