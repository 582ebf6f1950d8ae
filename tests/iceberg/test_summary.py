"""What a snapshot says of itself, case by case, under the names of Iceberg's Java."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from dolake.iceberg.summary import NO_FILES, FileCounts, RowCounts, count_rows, summarize

HERE = frozenset({(0, ("a",))})
DATA = FileCounts(data_files=2, rows=10, size_bytes=300, partitions=HERE)
DELETES = FileCounts(size_bytes=20, position_delete_files=1, position_deletes=3, partitions=frozenset({(0, ("b",)), (1, ("a",))}))
EQUALITY = FileCounts(size_bytes=7, equality_delete_files=1, equality_deletes=4)
BEFORE = (DATA + DELETES + EQUALITY).totals()


@pytest.mark.parametrize(
    ("added", "removed", "said"),
    [
        (NO_FILES, NO_FILES, {"operation": "append"}),
        (DATA, NO_FILES, {
            "operation": "append", "changed-partition-count": "1", "added-data-files": "2", "added-records": "10",
            "added-files-size": "300",
            "total-data-files": "4", "total-records": "20", "total-files-size": "627",
        }),
        (DELETES, NO_FILES, {
            "operation": "delete", "changed-partition-count": "2", "added-delete-files": "1", "added-position-delete-files": "1",
            "added-position-deletes": "3", "added-files-size": "20",
            "total-delete-files": "3", "total-position-deletes": "6", "total-files-size": "347",
        }),
        (DATA + DELETES, NO_FILES, {
            "operation": "overwrite", "changed-partition-count": "3", "added-data-files": "2", "added-records": "10",
            "added-delete-files": "1", "added-position-delete-files": "1", "added-position-deletes": "3", "added-files-size": "320",
            "total-data-files": "4", "total-records": "20", "total-delete-files": "3", "total-position-deletes": "6",
            "total-files-size": "647",
        }),
        (NO_FILES, DATA + DELETES + EQUALITY, {
            "operation": "delete", "changed-partition-count": "3", "deleted-data-files": "2", "deleted-records": "10",
            "removed-delete-files": "2", "removed-position-delete-files": "1", "removed-position-deletes": "3",
            "removed-equality-delete-files": "1", "removed-equality-deletes": "4", "removed-files-size": "327",
            **NO_FILES.totals(),
        }),
        (DATA, DELETES, {
            "operation": "overwrite", "changed-partition-count": "3", "added-data-files": "2", "added-records": "10",
            "added-files-size": "300",
            "removed-delete-files": "1", "removed-position-delete-files": "1", "removed-position-deletes": "3", "removed-files-size": "20",
            "total-data-files": "4", "total-records": "20", "total-delete-files": "1", "total-position-deletes": "0",
            "total-files-size": "607",
        }),
    ],
)  # fmt: skip
def test_counts_that_are_not_nought_and_the_totals_after_them(added: FileCounts, removed: FileCounts, said: dict[str, str]) -> None:
    assert summarize(added, removed, BEFORE) == BEFORE | said


def test_a_total_that_the_snapshot_before_did_not_state_is_not_made_up() -> None:
    said = summarize(DATA, NO_FILES, {"total-records": "5", "operation": "append"})
    assert {key: value for key, value in said.items() if key.startswith("total-")} == {"total-records": "15"}


def test_the_same_partition_changed_twice_counts_once() -> None:
    assert summarize(DATA, replace(DATA, partitions=HERE), BEFORE)["changed-partition-count"] == "1"


@pytest.mark.parametrize(
    ("summary", "rows"),
    [
        ({}, RowCounts(0, 0, 0)),
        ({"added-records": "7", "total-records": "9", "total-position-deletes": "2"}, RowCounts(7, 0, 7)),
        ({"added-position-deletes": "3", "total-records": "9", "total-position-deletes": "5"}, RowCounts(0, 3, 4)),
        ({"deleted-records": "9", "removed-position-deletes": "5", "total-records": "0"}, RowCounts(0, 4, 0)),
        ({"removed-position-deletes": "5", "total-records": "9"}, RowCounts(0, 0, 9)),
    ],
)
def test_rows_as_a_reader_sees_them(summary: dict[str, Any], rows: RowCounts) -> None:
    assert count_rows(summary) == rows
