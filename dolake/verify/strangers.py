"""What others than dolake have done to a table, as far as its history and its files tell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dolake.iceberg.contents import LiveFile
from dolake.iceberg.metadata import EPOCH, LoadedTable, ancestry
from dolake.iceberg.names import parse_data_file_location
from dolake.iceberg.summary import count_rows

FOREIGN_COUNT = "dolake.count.foreign"
_CHANGES = ("added-", "deleted-", "removed-")


@dataclass(frozen=True)
class Strangers:
    """`commits`: retained snapshots of theirs that changed rows. `rows_since`: rows they put in, less those they took out, after
    dolake's last change of rows. `been_here`: whether they have ever changed rows, as far as anything still tells.
    """

    commits: tuple[int, ...]
    rows_since: int
    been_here: bool

    @classmethod
    def of(cls, table: LoadedTable, files: Sequence[LiveFile]) -> Strangers:
        """`files` are those that are live in the table's head."""
        commits = []
        since: int | None = None
        head = table.head
        total = 0 if head is None else count_rows(head["summary"]).total
        for snapshot in ancestry(table.metadata, table.head_id):
            summary = snapshot.get("summary") or {}
            if not _changes_rows(summary):
                continue
            if EPOCH not in summary:
                commits.append(int(snapshot["snapshot-id"]))
            elif since is None:
                since = total - count_rows(summary).total
        been_here = bool(commits) or int(table.properties.get(FOREIGN_COUNT, "0")) != 0 or any(is_foreign(file) for file in files)
        return cls(tuple(commits), (total if since is None else since) if commits else 0, been_here)


def is_foreign(file: LiveFile) -> bool:
    """Whether somebody else has written the file, by its name."""
    return parse_data_file_location(file.location) is None


def _changes_rows(summary: Mapping[str, Any]) -> bool:
    if EPOCH in summary and summary.get("operation") == "replace":
        return False  # A compaction of ours; others' rewrites may be anything.
    return any(key.startswith(_CHANGES) for key in summary)
