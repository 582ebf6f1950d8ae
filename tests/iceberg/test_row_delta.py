"""Rows added and deleted in one snapshot: every snapshot in history reads as a dictionary kept beside it says, in both readers."""

from __future__ import annotations

from collections.abc import Callable

import pyarrow as pa
import pytest

from dolake.iceberg.contents import ContentsReader, LiveFile
from tests.iceberg.lake import Lake
from tests.iceberg.mirror import Mirror, replanned
from tests.iceberg.unreliable import UnreliableCatalog

FAULTS = ["request lost", "answer lost", "answered 409", "late: load", "late: after load", "late: swap", "late: after swap"]


def summary(lake: Lake) -> dict[str, str]:
    head = lake.current().head
    assert head is not None
    return {key: value for key, value in head["summary"].items() if not key.startswith("dolake.")}


def files_of(lake: Lake) -> tuple[LiveFile, ...]:
    head = lake.current().head
    assert head is not None
    return ContentsReader(lake.store).read(head).files


def foreign_append(lake: Lake, *keys: int) -> Callable[[], None]:
    rows = pa.table({"id": pa.array(keys, pa.int64()), "name": ["foreign"] * len(keys)})
    return lambda: lake.plain_table().append(rows)


def test_rows_that_are_upserted_and_deleted_are_right_in_every_snapshot(lake: Lake) -> None:
    mirror = Mirror(lake)
    committer = lake.committer()
    for number in range(30):
        mirror.change({number: f"n{number}", number // 2: f"again {number}"}, [number - 7], committer=committer)
    assert mirror.breaches() == []


def test_a_truncate_takes_out_every_file_and_history_keeps_them(lake: Lake) -> None:
    mirror = Mirror(lake)
    committer = lake.committer()
    for number in range(13):
        mirror.change({number: f"n{number}"}, [number - 2], committer=committer)
    mirror.change({100: "after"}, truncate=True, committer=committer)
    assert [file.row_count for file in files_of(lake)] == [1]
    for number in range(13):
        mirror.change({number: f"n{number}"}, [number - 2, 100], committer=committer)
    assert mirror.breaches() == []


def test_what_was_looked_up_under_another_head_is_planned_again_and_nothing_is_committed(lake: Lake) -> None:
    mirror = Mirror(lake)
    mirror.change({1: "a", 2: "b"})
    delta = mirror.delta({1: "c"})
    foreign_append(lake, 7)()
    before = lake.current()
    outcome = replanned(lake.commit(delta))
    assert (outcome.moved, outcome.base.metadata_location) == (True, before.metadata_location)
    assert lake.current().metadata_location == before.metadata_location
    mirror.took_in()
    mirror.change({1: "c"}, [7])
    assert mirror.breaches() == []


@pytest.mark.parametrize("fault", FAULTS)
def test_an_unknown_outcome_of_a_row_delta_becomes_exactly_one_snapshot(lake: Lake, fault: str) -> None:
    mirror = Mirror(lake)
    mirror.change({1: "a", 2: "b", 3: "c"})
    mirror.change({1: "d"}, [3], committer=lake.committer(catalog=UnreliableCatalog(lake.catalog, [fault])))
    assert len(lake.current().metadata["snapshots"]) == 2
    assert mirror.breaches() == []
