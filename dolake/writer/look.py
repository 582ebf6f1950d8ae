"""What compaction knows of a table since it last looked at it: what is worth a rewrite, and what has failed and waits."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from dolake.compaction.plan import Choice, Plan
from dolake.iceberg.contents import ContentsReader
from dolake.iceberg.metadata import LoadedTable
from dolake.retry import RetryPolicy

# Spark is handed a whole table, at once: where it fails (rows were deleted meanwhile), or finds nothing to do, ever later.
_SPARK_AGAIN = RetryPolicy(first_s=60.0, longest_s=3600.0, jitter=0.0)


@dataclass
class Look:
    """A table's plan, of one head. Times are of the monotonic clock."""

    base: LoadedTable
    plan: Plan
    at_s: float
    reader: ContentsReader
    failed_until_s: dict[str, float] = field(default_factory=dict)  # by location
    spark_failed_count: int = 0
    spark_until_s: float = 0.0

    def inherit(self, before: Look) -> None:
        """From the look before at the same table, what still waits."""
        still = before.shut(self.at_s)
        self.failed_until_s = {location: until_s for location, until_s in before.failed_until_s.items() if location in still}
        self.spark_failed_count, self.spark_until_s = before.spark_failed_count, before.spark_until_s

    def shut(self, now_s: float) -> set[str]:
        """Files that keep their group out for now."""
        return {location for location, until_s in self.failed_until_s.items() if now_s < until_s}

    def shut_out(self, locations: Iterable[str], until_s: float) -> None:
        self.failed_until_s.update(dict.fromkeys(locations, until_s))

    def open_choices(self, now_s: float) -> list[Choice]:
        """What of its plan may be done now."""
        return [] if now_s < self.spark_until_s else self.open_of(self.plan.choices, now_s)

    def open_of(self, choices: Iterable[Choice], now_s: float) -> list[Choice]:
        """Without those that a file is in whose rewrite has failed not long ago, or cannot be."""
        shut = self.shut(now_s)
        return [choice for choice in choices if shut.isdisjoint(file.location for file in (*choice.data, *choice.deletes))]

    def note_spark(self, succeeded: bool, now_s: float) -> None:
        """When Spark may be handed the table again."""
        self.spark_failed_count = 0 if succeeded else self.spark_failed_count + 1
        self.spark_until_s = now_s + (_SPARK_AGAIN.delay_s(self.spark_failed_count, 0.0) if self.spark_failed_count else 0.0)
