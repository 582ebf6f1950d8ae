"""What has expired, decided: from manifests, from a column's values, and only where the clock is to be believed."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from dolake.compaction.ttl import Holds, Ttl, TtlColumn, Witness, cutoff_us, expired_in, judge_file, why_put_off
from dolake.errors import TtlRefused
from dolake.iceberg.contents import LiveFile
from dolake.iceberg.expired import DAY_US, ExpiredBelow, with_cutoff
from dolake.iceberg.metadata import LoadedTable
from dolake.model import TableName

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
NOW = datetime(2026, 3, 15, 12, 30, tzinfo=UTC)
AT, DAY = TtlColumn(2, "timestamptz"), TtlColumn(2, "date")
FILE = LiveFile("file:///w/t/data/a.parquet", "data", 100, 10)
MINUTES_MS = 60_000


def us(moment: datetime) -> int:
    return (moment - EPOCH) // timedelta(microseconds=1)


def days(moment: date) -> int:
    return (moment - EPOCH.date()).days


def eight(number: int) -> bytes:
    return number.to_bytes(8, "little", signed=True)


def bounded(low: datetime, high: datetime, nulls: int | None = 0) -> LiveFile:
    known = {} if nulls is None else {2: nulls}
    return replace(FILE, lower_bounds={2: eight(us(low))}, upper_bounds={2: eight(us(high))}, null_counts=known)


HOUR = timedelta(hours=1)
MICRO = timedelta(microseconds=1)


@pytest.mark.parametrize(
    ("file", "holds"),
    [
        (bounded(NOW - HOUR, NOW - MICRO), Holds.ALL_EXPIRED),
        (bounded(NOW - HOUR, NOW), Holds.PERHAPS_SOME),
        (bounded(NOW, NOW + HOUR), Holds.NOTHING_EXPIRED),
        (bounded(NOW - HOUR, NOW - MICRO, nulls=1), Holds.PERHAPS_SOME),
        (bounded(NOW - HOUR, NOW - MICRO, nulls=None), Holds.PERHAPS_SOME),
        (replace(FILE, null_counts={2: 10}), Holds.NOTHING_EXPIRED),
        (FILE, Holds.PERHAPS_SOME),
        (replace(FILE, row_count=0), Holds.NOTHING_EXPIRED),
        (bounded(EPOCH - 10 * HOUR, EPOCH - HOUR), Holds.ALL_EXPIRED),
    ],
)
def test_bounds_and_nulls_tell_what_a_file_holds(file: LiveFile, holds: Holds) -> None:
    assert judge_file(file, {0: {"spec-id": 0, "fields": []}}, AT, us(NOW)) is holds


def four(number: int) -> bytes:
    return number.to_bytes(4, "little", signed=True)


@pytest.mark.parametrize(("day", "holds"), [(-1, Holds.ALL_EXPIRED), (0, Holds.NOTHING_EXPIRED), (1, Holds.NOTHING_EXPIRED)])
def test_a_date_has_expired_once_its_day_is_over(day: int, holds: Holds) -> None:
    bound = four(days(NOW.date()) + day)
    file = replace(FILE, lower_bounds={2: bound}, upper_bounds={2: bound}, null_counts={2: 0})
    assert judge_file(file, {}, DAY, us(NOW)) is holds
    by_partition = replace(FILE, partition=(days(NOW.date()) + day,))
    spec = {"spec-id": 0, "fields": [{"source-id": 2, "field-id": 1000, "name": "d", "transform": "identity"}]}
    found = judge_file(by_partition, {0: spec}, DAY, us(NOW))
    assert found is (Holds.PERHAPS_SOME if day == 0 else holds)


@pytest.mark.parametrize(
    ("transform", "before", "within", "after"),
    [
        ("hour", us(NOW) // (DAY_US // 24) - 1, us(NOW) // (DAY_US // 24), us(NOW) // (DAY_US // 24) + 1),
        ("day", days(NOW.date()) - 1, days(NOW.date()), days(NOW.date()) + 1),
        ("month", 56 * 12 + 1, 56 * 12 + 2, 56 * 12 + 3),
        ("year", 55, 56, 57),
    ],
)
def test_a_partition_by_time_tells_without_bounds(transform: str, before: int, within: int, after: int) -> None:
    spec = {"spec-id": 3, "fields": [{"source-id": 2, "field-id": 1000, "name": "p", "transform": transform}]}
    partitions = {before: Holds.ALL_EXPIRED, within: Holds.PERHAPS_SOME, after: Holds.NOTHING_EXPIRED}
    for value, holds in partitions.items():
        assert judge_file(replace(FILE, spec_id=3, partition=(value,)), {3: spec}, AT, us(NOW)) is holds
    others = {"spec-id": 3, "fields": [{**spec["fields"][0], "source-id": 9}]}  # type: ignore[index]
    assert judge_file(replace(FILE, spec_id=3, partition=(before,)), {3: others}, AT, us(NOW)) is Holds.PERHAPS_SOME
    # Rows without a value have a partition of their own, and stay.
    assert judge_file(replace(FILE, spec_id=3, partition=(None,)), {3: spec}, AT, us(NOW)) is Holds.PERHAPS_SOME


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
@pytest.mark.parametrize("zone", [None, "UTC"])
def test_values_in_whatever_unit_are_told_apart_to_the_microsecond(unit: str, zone: str | None) -> None:
    step = {"s": timedelta(seconds=1), "ms": timedelta(milliseconds=1)}.get(unit, MICRO)
    values = pa.chunked_array([[NOW - step, None, NOW], [NOW + step, NOW - HOUR]]).cast(pa.timestamp(unit, "UTC"))
    values = values if zone else pa.chunked_array([chunk.cast(pa.int64()).cast(pa.timestamp(unit)) for chunk in values.chunks])
    places, lowest = expired_in(values, AT, us(NOW))
    assert places.tolist() == [0, 4]
    assert lowest == us(NOW)
    assert expired_in(values.slice(0, 0), AT, us(NOW))[1] is None


def test_dates_are_told_apart_by_their_days() -> None:
    today = NOW.date()
    values = pa.chunked_array([[today, today - timedelta(days=1), None, today + timedelta(days=1)]])
    places, lowest = expired_in(values, DAY, us(NOW))
    assert (places.tolist(), lowest) == ([1], days(today) * DAY_US)
    assert places.dtype == np.int64


def test_by_itself_it_goes_step_by_step_so_that_each_run_has_several_rows() -> None:
    month = Ttl("at", 30 * 86_400)
    now_ms = us(NOW) // 1000
    assert cutoff_us(month, now_ms, exact=True) == us(NOW - timedelta(days=30))
    steps = {cutoff_us(month, now_ms + minute * MINUTES_MS, exact=False) for minute in range(60)}
    assert len(steps) <= 2
    assert all(us(NOW - timedelta(days=30)) - 3600 * 10**6 <= step <= us(NOW - timedelta(days=30)) + 3600 * 10**6 for step in steps)
    minute = Ttl("at", 60)
    assert us(NOW) - 60_600_000 < cutoff_us(minute, now_ms, exact=False) <= us(NOW) - 60_000_000


def table(newest: datetime | None = NOW, kind: Any = "timestamptz") -> LoadedTable:
    snapshots = [] if newest is None else [{"snapshot-id": 1, "timestamp-ms": us(newest) // 1000, "summary": {}}]
    metadata = {
        "table-uuid": "u", "location": "file:///w/t", "current-schema-id": 0, "snapshots": snapshots,
        "schemas": [{"schema-id": 0, "type": "struct", "fields": [{"id": 2, "name": "at", "required": False, "type": kind}]}],
        "partition-specs": [], "default-spec-id": 0, "properties": {}, "refs": {"main": {"snapshot-id": 1, "type": "branch"}},
        "current-snapshot-id": 1 if snapshots else -1,
    }  # fmt: skip
    return LoadedTable(TableName.in_lake("a.t"), metadata, "file:///w/t/metadata/1.json")


@pytest.mark.parametrize(
    "kind", ["long", "string", "time", {"type": "list", "element": "date", "element-id": 3, "element-required": False}]
)
def test_a_column_of_no_moment_is_refused_with_its_field_value_and_rule(kind: Any) -> None:
    with pytest.raises(TtlRefused) as refused:
        TtlColumn.of(table(kind=kind), Ttl("at", 60))
    assert (refused.value.table, refused.value.field, refused.value.value) == ("a.t", "ttl.column", "at")
    assert "must be a date, timestamp or timestamptz, and is a" in refused.value.rule
    with pytest.raises(TtlRefused, match="must name a column of the table"):
        TtlColumn.of(table(), Ttl("none", 60))


@pytest.mark.parametrize(
    ("moved", "age_s", "ahead_s", "has_run_for_s", "put_off"),
    [
        (timedelta(0), 60, 0, 0, ""),
        (timedelta(seconds=-59), 60, 0, 0, ""),
        (timedelta(seconds=-61), 60, 0, 1e9, "newest snapshot"),
        (timedelta(days=8), 7 * 86_400, 0, 0, ""),
        (timedelta(days=8, seconds=1), 7 * 86_400, 0, 0, "nothing was committed"),
        (timedelta(days=800), 7 * 86_400, 0, 3600, ""),
        (timedelta(0), 60, 3600, 1e9, ""),
        (timedelta(0), 60, 3601, 1e9, "set ahead"),
        (timedelta(0), 30 * 86_400, 86_400, 1e9, ""),
        (timedelta(0), 30 * 86_400, 86_401, 1e9, "set ahead"),
    ],
)
def test_a_clock_that_nobody_has_seen_pass_is_not_believed_at_once(
    moved: timedelta, age_s: float, ahead_s: float, has_run_for_s: float, put_off: str
) -> None:
    said = why_put_off(table(), Ttl("at", age_s), us(NOW + moved) // 1000, ahead_s=ahead_s, has_run_for_s=has_run_for_s)
    assert put_off in said
    assert bool(said) == bool(put_off)


def test_a_table_without_a_snapshot_has_nothing_to_put_off() -> None:
    assert why_put_off(table(None), Ttl("at", 60), 0) == ""


def test_a_witness_tells_time_that_passed_from_a_clock_that_was_set() -> None:
    witness = Witness(0, 100.0)
    for minute in range(1, 10):
        witness.look(minute * MINUTES_MS, 100.0 + 60 * minute)
    assert witness.ahead_s == 0
    for minute in range(10, 69):  # Two days ahead: not believed for an hour.
        witness.look(minute * MINUTES_MS + 2 * 86_400_000, 100.0 + 60 * minute)
        assert witness.ahead_s == 2 * 86_400
    witness.look(70 * MINUTES_MS + 2 * 86_400_000, 100.0 + 60 * 70)
    assert witness.ahead_s == 0
    witness.look(71 * MINUTES_MS, 100.0 + 60 * 71)  # Set back: believed at once.
    assert witness.ahead_s == 0
    witness.look(72 * MINUTES_MS + 2 * 86_400_000, 100.0 + 60 * 72)
    assert witness.ahead_s == 2 * 86_400


def test_a_clock_that_is_slewed_is_never_ahead() -> None:
    witness = Witness(0, 0.0)
    for minute in range(1000):
        witness.look(minute * (MINUTES_MS + 30), 60.0 * minute)
    assert witness.ahead_s == 0


def test_a_table_says_by_what_rows_have_expired() -> None:
    first = with_cutoff(2, us(NOW), {})
    assert ExpiredBelow.of({}) is None
    assert ExpiredBelow.of(first) == ExpiredBelow(2, us(NOW))
    assert with_cutoff(2, us(NOW - HOUR), first) == first
    below = ExpiredBelow.of(with_cutoff(2, us(NOW + HOUR), first))
    assert below == ExpiredBelow(2, us(NOW + HOUR))
    values = [NOW, NOW + HOUR, (NOW + HOUR - MICRO).replace(tzinfo=None), None, NOW.date() - timedelta(days=1), NOW.date()]
    assert [below.may_have(value) for value in values] == [True, False, True, False, True, False]
    either = ExpiredBelow.of(with_cutoff(3, us(NOW), first))  # By another column than before.
    assert either is not None
    assert either.may_have(None)
