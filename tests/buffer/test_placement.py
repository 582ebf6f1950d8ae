"""Placement: the least loaded in turn, kept for good, never guessed."""

from __future__ import annotations

import pytest

from dolake.buffer.placement import Placement
from dolake.errors import LogFailed, SourceRefused

FOUR = ["/a", "/b", "/c", "/d"]


@pytest.mark.acceptance("AT-30")
@pytest.mark.parametrize(("count", "loads"), [(10, [3, 3, 2, 2]), (100, [25, 25, 25, 25])])
def test_new_sources_go_to_the_least_loaded(count: int, loads: list[int]) -> None:
    placement = Placement(FOUR)
    for number in range(count):
        placement.place(f"source-{number}", FOUR, [])
    assert list(placement.loads().values()) == loads


def test_what_is_there_counts_as_load() -> None:
    placement = Placement(FOUR)
    placement.found("/a", ["x", "y"])
    placement.found("/c", ["z"])
    assert [placement.place(f"s{number}", FOUR, []) for number in range(5)] == ["/b", "/d", "/b", "/c", "/d"]


def test_a_source_keeps_its_directory_whatever_the_load_and_whoever_serves() -> None:
    placement = Placement(FOUR)
    home = placement.place("s", FOUR, [])
    for number in range(1000):
        placement.place(f"other-{number}", [directory for directory in FOUR if directory != home], [])
        assert placement.place("s", [], ["/x"]) == home


def test_a_source_in_two_logs_is_refused_with_both_paths_and_the_others_are_not() -> None:
    placement = Placement(FOUR)
    placement.found("/a", ["twice", "one"])
    placement.found("/c", ["twice", "two"])
    with pytest.raises(SourceRefused, match=r"'twice' has records in /a and in /c"):
        placement.place("twice", FOUR, [])
    assert (placement.place("one", FOUR, []), placement.place("two", FOUR, [])) == ("/a", "/c")


def test_a_new_source_waits_while_a_log_that_may_hold_it_cannot_be_read() -> None:
    placement = Placement(FOUR)
    placement.found("/a", ["known"])
    assert placement.place("known", ["/a"], ["/b"]) == "/a"
    with pytest.raises(LogFailed, match="may live in /b"):
        placement.place("new", ["/a"], ["/b"])
    with pytest.raises(LogFailed, match="no log"):
        placement.place("new", [], [])
    assert placement.home("new") is None
