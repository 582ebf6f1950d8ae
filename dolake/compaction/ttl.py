"""What has expired by a table's TTL, decided from its manifests and a column's values alone. Values in, values out.

A row has expired once the moment in its TTL's column lies before the cutoff: so long ago as the age says. A timestamp without a zone
is taken as UTC. A date is a whole day, and has expired once that day was over before the cutoff. A row with nothing there never does.

What a file holds is told, where that can be, without looking into it:

    by its partition   where the table is partitioned by the column: the earliest and the latest moment that its rows can have
    by its bounds      the manifest's lowest and highest value, and how many rows have none

so that a file leaves unread once all its rows have expired, and is passed by while none has. Only what lies between is read.

The clock may be wrong, and what is deleted for it cannot be taken back by setting it right. So a time that nobody has seen pass is not
believed at once (`Witness`): a clock that was set ahead, by more than the age and at least an hour, counts only when it has stood by
that for an hour; likewise, at a start, one by which everything that a table had when it was last committed to has been expired for a
day. A clock behind the table's newest snapshot was wrong then or is wrong now: nothing expires by it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from dolake.errors import TtlRefused
from dolake.iceberg.contents import LiveFile
from dolake.iceberg.expired import DAY_US
from dolake.iceberg.metadata import LoadedTable

_KINDS = ("date", "timestamp", "timestamptz")
_HOUR_US = 3_600_000_000
# A clock that was set is believed when it has stood by that for so long.
SETTLED_S = 3600.0
_LEAP_S_MIN, _LEAP_S_MAX = 3600.0, 86_400.0
_BEHIND_MS_MAX = 60_000  # snapshots of one millisecond are dated one after the other, and machines differ by some seconds
_SLEWED_MS_MAX = 1000  # between two looks: a clock that is set right little by little
# By how much rows may outstay their age so that a table is not changed for each of them.
_STEP_SHARE, _STEP_S_MAX = 100, 3600.0

Positions = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Ttl:
    """As the settings have it."""

    column: str
    age_s: float


@dataclass(frozen=True)
class TtlColumn:
    """The column of a table that tells when a row expires; `kind` is its type in Iceberg's words."""

    field_id: int
    kind: str

    @classmethod
    def of(cls, base: LoadedTable, ttl: Ttl) -> TtlColumn:
        """Raises TtlRefused where the table has no such column, or of a type that tells no moment."""
        name = ttl.column
        found = next((column for column in base.schema["fields"] if column["name"] == name), None)
        if found is None:
            raise TtlRefused(str(base.name), name, "must name a column of the table")
        if found["type"] not in _KINDS:
            kind = found["type"] if isinstance(found["type"], str) else found["type"]["type"]
            raise TtlRefused(str(base.name), name, f"must be a date, timestamp or timestamptz, and is a {kind}")
        return cls(found["id"], found["type"])

    def bound(self, cutoff_us: int) -> int:
        """In the column's own unit: what lies below it has expired."""
        return cutoff_us // DAY_US if self.kind == "date" else cutoff_us


class Holds(Enum):
    """What a data file holds."""

    NOTHING_EXPIRED, ALL_EXPIRED, PERHAPS_SOME = "nothing expired", "expired rows alone", "perhaps expired rows"


def judge_file(file: LiveFile, specs: Mapping[int, Mapping[str, Any]], column: TtlColumn, cutoff_us: int) -> Holds:
    """`specs`: the table's, by id."""
    spec = specs.get(file.spec_id)
    for field, value in zip(spec["fields"] if spec else (), file.partition, strict=False):
        if field.get("source-id") == column.field_id and (span := _span(field["transform"], value, column.kind)) is not None:
            first_us, end_us = span
            if end_us <= cutoff_us:
                return Holds.ALL_EXPIRED
            if first_us >= cutoff_us:
                return Holds.NOTHING_EXPIRED
    nulls, cutoff = file.null_counts.get(column.field_id), column.bound(cutoff_us)
    lower, upper = file.lower_bounds.get(column.field_id), file.upper_bounds.get(column.field_id)
    if file.row_count == nulls or not file.row_count or (lower is not None and _number(lower) >= cutoff):
        return Holds.NOTHING_EXPIRED
    return Holds.ALL_EXPIRED if nulls == 0 and upper is not None and _number(upper) < cutoff else Holds.PERHAPS_SOME


def _span(transform: str, value: Any, kind: str) -> tuple[int, int] | None:
    """The first moment that rows of this partition can have and the first that they cannot, of a column without nulls there."""
    if not isinstance(value, int):
        return None
    if transform == "identity":
        return (value * DAY_US, (value + 1) * DAY_US) if kind == "date" else (value, value + 1)
    if transform in ("day", "hour"):
        length_us = DAY_US if transform == "day" else _HOUR_US
        return value * length_us, (value + 1) * length_us
    if transform == "year":
        return _month(12 * value), _month(12 * value + 12)
    return (_month(value), _month(value + 1)) if transform == "month" else None


def _month(months: int) -> int:
    """The beginning of a month, counted from January 1970."""
    return int(np.datetime64(months, "M").astype("datetime64[us]").astype(np.int64))


def _number(bound: bytes) -> int:
    return int.from_bytes(bound, "little", signed=True)


def expired_in(values: pa.ChunkedArray, column: TtlColumn, cutoff_us: int) -> tuple[Positions, int | None]:
    """Places of values that have expired; and the lowest of the others in microseconds, None where there is no other."""
    # Others write dates and times in other units too; what is finer than a microsecond is cut off.
    zone = values.type.tz if pa.types.is_timestamp(values.type) else None
    unit = pa.date32() if column.kind == "date" else pa.timestamp("us", zone)
    numbers = pa.concat_arrays(values.cast(unit, safe=False).chunks or [pa.nulls(0, unit)])
    numbers = numbers.view(pa.int32() if column.kind == "date" else pa.int64())
    there = np.asarray(numbers.is_valid())
    plain = np.asarray(numbers.fill_null(0)).astype(np.int64)
    below = there & (plain < column.bound(cutoff_us))
    others = plain[there & ~below]
    scale = DAY_US if column.kind == "date" else 1
    return np.flatnonzero(below), int(others.min()) * scale if len(others) else None


def cutoff_us(ttl: Ttl, now_ms: int, *, exact: bool) -> int:
    """What is older has expired. `exact` False: a step at a time, so that a run has several rows to delete or none."""
    cutoff = now_ms * 1000 - round(ttl.age_s * 1_000_000)
    step = max(1, round(min(ttl.age_s / _STEP_SHARE, _STEP_S_MAX) * 1_000_000))
    return cutoff if exact else cutoff // step * step


class Witness:
    """Of a process: how far its wall clock is ahead of the time that it has seen pass."""

    def __init__(self, now_ms: int, monotonic_s: float) -> None:
        self._began_s = self._set_s = monotonic_s
        self._believed_ms = self._last_ms = now_ms - monotonic_s * 1000

    def look(self, now_ms: int, monotonic_s: float) -> None:
        """To be called again and again."""
        offset_ms = now_ms - monotonic_s * 1000
        moved_ms, self._last_ms = offset_ms - self._last_ms, offset_ms
        if abs(moved_ms) > _SLEWED_MS_MAX:
            self._set_s = monotonic_s
        else:
            self._believed_ms += moved_ms
        # Whoever is behind deletes too little, which the next run makes good.
        if offset_ms < self._believed_ms or monotonic_s - self._set_s >= SETTLED_S:
            self._believed_ms = offset_ms

    @property
    def ahead_s(self) -> float:
        return (self._last_ms - self._believed_ms) / 1000

    def has_run_for_s(self, monotonic_s: float) -> float:
        return monotonic_s - self._began_s


def why_put_off(base: LoadedTable, ttl: Ttl, now_ms: int, *, ahead_s: float = 0.0, has_run_for_s: float = 0.0) -> str:
    """Why the wall clock is not believed yet, or nothing. `ahead_s` and `has_run_for_s` are a witness's, if there is one."""
    if base.head is None:
        return ""
    newest_ms = int(base.head["timestamp-ms"])
    if now_ms < newest_ms - _BEHIND_MS_MAX:
        return f"the clock says {_said(now_ms)}, and its newest snapshot is of {_said(newest_ms)}: nothing expires until that has passed"
    wait = f"it is believed when it has stood by that for {SETTLED_S / 60:.0f} minutes"
    if ahead_s > min(max(ttl.age_s, _LEAP_S_MIN), _LEAP_S_MAX):
        return f"the clock was set ahead by {ahead_s:,.0f} s: {wait}"
    idle_s = (now_ms - newest_ms) / 1000
    if idle_s > ttl.age_s + _LEAP_S_MAX and has_run_for_s < SETTLED_S:
        wait = f"a daemon believes that when it has run for {SETTLED_S / 60:.0f} minutes"
        return f"the clock says {_said(now_ms)}, and nothing was committed to it since {_said(newest_ms)}: {wait}"
    return ""


def _said(time_ms: int) -> str:
    return datetime.fromtimestamp(time_ms / 1000, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
