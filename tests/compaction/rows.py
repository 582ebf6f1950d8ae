"""A table as rows: what its files truly hold, so that a plan made from manifests can be carried out and judged.

Every row is a number, written once. Readers apply deletes as Iceberg says: by the data file's location and the row's position,
within one spec and partition, where the data file's sequence number is not higher.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from typing import Any

from dolake.compaction.plan import Choice, CompactionPolicy, Plan, plan_compaction
from dolake.iceberg.contents import LiveFile

FILE_PATH_ID = 2147483546
ROW_BYTES = 16
Place = tuple[str, int]


def bounds(lower: str | None, upper: str | None) -> dict[str, dict[int, bytes]]:
    return {
        "lower_bounds": {} if lower is None else {FILE_PATH_ID: lower.encode()},
        "upper_bounds": {} if upper is None else {FILE_PATH_ID: upper.encode()},
    }


class Table:
    """`spec_id` is the table's spec now; what older ones rewrite comes into its partition ("new",)."""

    def __init__(self, spec_id: int = 0) -> None:
        self.spec_id, self.sequence_number = spec_id, 0
        self.files: dict[str, LiveFile] = {}
        self.rows: dict[str, list[int]] = {}
        self.gone: dict[str, frozenset[Place]] = {}
        self._row_count = self._file_count = 0

    def flush(self, row_count: int, spec_id: int = 0, partition: tuple[Any, ...] = ()) -> LiveFile:
        self.sequence_number += 1
        rows = list(range(self._row_count, self._row_count + row_count))
        self._row_count += row_count
        return self._add_data(rows, spec_id, partition, self.sequence_number)

    def delete(self, places: Collection[Place], lower: str | None = None, upper: str | None = None) -> LiveFile:
        """One delete file of rows of one partition."""
        self.sequence_number += 1
        of = self.files[next(iter(places))[0]]
        return self._add_deletes(frozenset(places), of.spec_id, of.partition, lower, upper)

    def visible(self) -> list[int]:
        """All rows that a reader finds; one that was found twice is there twice."""
        return sorted(row for file in self.of("data") for row in self._left(file, self.of("position deletes")))

    def of(self, kind: str) -> list[LiveFile]:
        return [file for file in self.files.values() if file.kind == kind]

    def plan(self, policy: CompactionPolicy) -> Plan:
        return plan_compaction(list(self.files.values()), policy, spec_id=self.spec_id)

    def carry_out(self, choice: Choice, planned_at: int) -> None:
        """As whoever rewrites does: only what the choice names is read, and the output is of the snapshot that was planned for."""
        self.sequence_number += 1
        rows = [row for file in choice.data for row in self._left(file, choice.deletes)]
        deleted = frozenset[Place]().union(*(self.gone[file.location] for file in choice.deletes))
        for file in (*choice.data, *choice.deletes_removed):
            del self.files[file.location]
        spec_id, partition = choice.spec_id, choice.partition
        if not choice.data:
            still = frozenset(place for place in deleted if place[0] in self.files)
            if still:
                self._add_deletes(still, spec_id, partition, min(still)[0], max(still)[0])
        elif rows:
            if spec_id != self.spec_id:
                spec_id, partition = self.spec_id, ("new",)
            self._add_data(rows, spec_id, partition, planned_at)

    def _left(self, file: LiveFile, deletes: Iterable[LiveFile]) -> list[int]:
        gone: set[Place] = set()
        for one in deletes:
            same = (one.spec_id, one.partition) == (file.spec_id, file.partition)
            if same and file.sequence_number <= one.sequence_number:
                gone |= self.gone[one.location]
        return [row for position, row in enumerate(self.rows[file.location]) if (file.location, position) not in gone]

    def _add_data(self, rows: Sequence[int], spec_id: int, partition: tuple[Any, ...], sequence_number: int) -> LiveFile:
        location = self._location("data")
        file = LiveFile(location, "data", len(rows) * ROW_BYTES + 4, len(rows), partition, {}, {}, spec_id, sequence_number)
        self.files[location], self.rows[location] = file, list(rows)
        return file

    def _add_deletes(
        self, places: frozenset[Place], spec_id: int, partition: tuple[Any, ...], lower: str | None, upper: str | None
    ) -> LiveFile:
        location = self._location("deletes")
        file = LiveFile(location, "position deletes", len(places) * 2 + 4, len(places), partition, {}, {}, spec_id, self.sequence_number)
        self.files[location] = file = replace(file, **bounds(lower, upper))
        self.gone[location] = places
        return file

    def _location(self, kind: str) -> str:
        """Names are in no order, as those of dolake are, so that bounds take in files by chance."""
        self._file_count += 1
        return f"{kind}/{self._file_count * 7919 % 1009:04}-{self._file_count}.parquet"
