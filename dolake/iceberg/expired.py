"""What a table says of rows that its TTL has removed: the highest cutoff so far, by which whoever checks it tells them from lost ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any

# Field id, a colon, microseconds. Properties only rise: a rollback brings rows back, which expire again.
CUTOFF_PROPERTY = "dolake.ttl"
DAY_US = 86_400_000_000
_ANY_COLUMN, _ALWAYS = 0, 2**63 - 1
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class ExpiredBelow:
    """Rows with a value below `cutoff_us` in column `field_id` may have expired; `field_id` 0: any row, by columns that are not told."""

    field_id: int
    cutoff_us: int

    @classmethod
    def of(cls, properties: Mapping[str, str]) -> ExpiredBelow | None:
        field_id, _, cutoff = properties.get(CUTOFF_PROPERTY, "").partition(":")
        return cls(int(field_id), int(cutoff)) if cutoff else None

    def may_have(self, value: Any) -> bool:
        """Whether a row may have expired by this value of the column."""
        if self.field_id == _ANY_COLUMN:
            return True
        if isinstance(value, datetime):
            since = (value if value.tzinfo is not None else value.replace(tzinfo=UTC)) - _EPOCH
            return (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds < self.cutoff_us
        return isinstance(value, date) and (value - _EPOCH.date()).days < self.cutoff_us // DAY_US


def with_cutoff(field_id: int, cutoff_us: int, before: Mapping[str, str]) -> dict[str, str]:
    """The property, to be set with a commit on top of properties `before`."""
    known = ExpiredBelow.of(before)
    if known is None:
        return {CUTOFF_PROPERTY: f"{field_id}:{cutoff_us}"}
    if known.field_id != field_id:  # The setting names another column now, and rows have gone by either.
        return {CUTOFF_PROPERTY: f"{_ANY_COLUMN}:{_ALWAYS}"}
    return {CUTOFF_PROPERTY: f"{field_id}:{max(cutoff_us, known.cutoff_us)}"}
