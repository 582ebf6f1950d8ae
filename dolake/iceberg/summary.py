"""What a snapshot's summary counts: the files and rows it adds and takes out, and the totals after it.

The names, and what each counts, are those of Iceberg's Java (`org.apache.iceberg.SnapshotSummary`): a count that is nought is
left out, `-records` are rows of data files whether or not a delete speaks of them, `-files-size` is bytes of both kinds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dolake.iceberg.metadata import EPOCH

# Field of FileCounts → what it is called where files come in, where they go, and as a running total.
_NAMES = {
    "data_files": ("added-data-files", "deleted-data-files", "total-data-files"),
    "rows": ("added-records", "deleted-records", "total-records"),
    "size_bytes": ("added-files-size", "removed-files-size", "total-files-size"),
    "delete_files": ("added-delete-files", "removed-delete-files", "total-delete-files"),
    "position_delete_files": ("added-position-delete-files", "removed-position-delete-files", ""),
    "position_deletes": ("added-position-deletes", "removed-position-deletes", "total-position-deletes"),
    "equality_delete_files": ("added-equality-delete-files", "removed-equality-delete-files", ""),
    "equality_deletes": ("added-equality-deletes", "removed-equality-deletes", "total-equality-deletes"),
}


@dataclass(frozen=True)
class FileCounts:
    """Some files of a table, counted. `rows` are those of data files; `partitions` are pairs of spec id and values as stored."""

    data_files: int = 0
    rows: int = 0
    size_bytes: int = 0
    position_delete_files: int = 0
    position_deletes: int = 0
    equality_delete_files: int = 0
    equality_deletes: int = 0
    partitions: frozenset[tuple[int, tuple[Any, ...]]] = frozenset()

    @property
    def delete_files(self) -> int:
        return self.position_delete_files + self.equality_delete_files

    def totals(self) -> dict[str, str]:
        """What the summary of a snapshot with exactly these files would call them."""
        return {total: str(getattr(self, field)) for field, (_, _, total) in _NAMES.items() if total}

    def __add__(self, other: FileCounts) -> FileCounts:
        return FileCounts(
            self.data_files + other.data_files,
            self.rows + other.rows,
            self.size_bytes + other.size_bytes,
            self.position_delete_files + other.position_delete_files,
            self.position_deletes + other.position_deletes,
            self.equality_delete_files + other.equality_delete_files,
            self.equality_deletes + other.equality_deletes,
            self.partitions | other.partitions,
        )


NO_FILES = FileCounts()


def summarize(added: FileCounts, removed: FileCounts, before: Mapping[str, str]) -> dict[str, str]:
    """Operation, counts and totals of one snapshot. `before` holds the totals of the one under it, and what else its summary has."""
    changed = len(added.partitions | removed.partitions)
    counts = {"changed-partition-count": changed} if changed else {}
    totals = {}
    for field, (came, went, total) in _NAMES.items():
        more, less = getattr(added, field), getattr(removed, field)
        counts.update({name: count for name, count in ((came, more), (went, less)) if count})
        if total in before:  # A foreign snapshot may state none; a made-up total would be worse than none.
            totals[total] = int(before[total]) + more - less
    return {"operation": _operation(added, removed), **{name: str(count) for name, count in (counts | totals).items()}}


@dataclass(frozen=True)
class RowCounts:
    """A snapshot's rows as a reader sees them."""

    added: int
    deleted: int
    total: int


def count_rows(summary: Mapping[str, str]) -> RowCounts:
    """Rows that a snapshot added and deleted, and that there are, from its summary alone.

    Exact where no row is deleted twice and none by its value: dolake does neither, a foreign equality delete counts for nothing.
    """
    number = {name: int(summary.get(name, 0)) for names in _NAMES.values() for name in names if name}
    if summary.get("operation") == "replace":  # The very rows of the snapshot before, in other files.
        return RowCounts(0, 0, max(0, number["total-records"] - number["total-position-deletes"]))
    gone_with_files = number["deleted-records"] - number["removed-position-deletes"]
    return RowCounts(
        added=number["added-records"],
        # Delete files that are taken apart go, and what they say of other files comes again: the one is taken off from the other.
        deleted=max(0, number["added-position-deletes"] + gone_with_files),
        total=max(0, number["total-records"] - number["total-position-deletes"]),
    )


def changes_rows(summary: Mapping[str, str]) -> bool:
    """Whether rows came or went with a snapshot: not with an empty one, nor with a rewrite of ours; others' may be anything."""
    if EPOCH in summary and summary.get("operation") == "replace":
        return False
    return any(key.startswith(("added-", "deleted-", "removed-")) for key in summary)


def _operation(added: FileCounts, removed: FileCounts) -> str:
    takes_out = bool(added.delete_files or removed.data_files or removed.delete_files)
    if not takes_out:
        return "append"
    return "overwrite" if added.data_files else "delete"
