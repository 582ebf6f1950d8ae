"""Every transform of every type: against the values that Iceberg's specification publishes, and PyIceberg's own functions."""

from __future__ import annotations

import datetime as dt
import uuid
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyiceberg.schema import Schema
from pyiceberg.transforms import parse_transform
from pyiceberg.types import (
    BinaryType,
    DateType,
    DecimalType,
    FixedType,
    IcebergType,
    IntegerType,
    LongType,
    NestedField,
    StringType,
    StructType,
    TimestampType,
    TimestamptzType,
    TimeType,
    UUIDType,
)

from dolake.errors import TableStopped
from dolake.iceberg.transforms import partition_values

Kind = tuple[IcebergType, pa.DataType]
ANY_BUCKET = 2**31 - 1
INT: Kind = (IntegerType(), pa.int32())
LONG: Kind = (LongType(), pa.int64())
DATE: Kind = (DateType(), pa.date32())
TIME: Kind = (TimeType(), pa.time64("us"))
TIMESTAMP: Kind = (TimestampType(), pa.timestamp("us"))
TIMESTAMPTZ: Kind = (TimestamptzType(), pa.timestamp("us", "UTC"))
STRING: Kind = (StringType(), pa.string())
UUID: Kind = (UUIDType(), pa.uuid())
FIXED: Kind = (FixedType(4), pa.binary(4))
BINARY: Kind = (BinaryType(), pa.binary())


def decimal(precision: int, scale: int) -> Kind:
    return DecimalType(precision, scale), pa.decimal128(precision, scale)


def values_of(kind: Kind, transform: str, values: list[Any]) -> list[Any]:
    """As `partition_values` has them for a column of these values."""
    return values_in(pa.table({"x": pa.array(values, kind[1])}), kind, transform)


def values_in(rows: pa.Table, kind: Kind, transform: str) -> list[Any]:
    schema = Schema(NestedField(7, "x", kind[0]))
    spec = {"spec-id": 0, "fields": [{"source-id": 7, "field-id": 1000, "name": "x_part", "transform": transform}]}
    (found,) = partition_values("default.t", rows, schema, spec)
    return list(found.to_pylist())


PUBLISHED: list[tuple[Kind, Any, int]] = [
    (INT, 34, 2017239379),
    (LONG, 34, 2017239379),
    (decimal(9, 2), Decimal("14.20"), -500754589),
    (DATE, dt.date(2017, 11, 16), -653330422),
    (TIME, dt.time(22, 31, 8), -662762989),
    (TIMESTAMP, dt.datetime(2017, 11, 16, 22, 31, 8), -2047944441),
    (TIMESTAMP, dt.datetime(2017, 11, 16, 22, 31, 8, 1), -1207196810),
    (TIMESTAMPTZ, dt.datetime(2017, 11, 16, 14, 31, 8, tzinfo=dt.timezone(-dt.timedelta(hours=8))), -2047944441),
    (TIMESTAMPTZ, dt.datetime(2017, 11, 16, 14, 31, 8, 1, tzinfo=dt.timezone(-dt.timedelta(hours=8))), -1207196810),
    (STRING, "iceberg", 1210000089),
    (UUID, uuid.UUID("f79c3e09-677c-4bbd-a479-3f349cb785e7"), 1488055340),
    (FIXED, b"\x00\x01\x02\x03", -188683207),
    (BINARY, b"\x00\x01\x02\x03", -188683207),
]


@pytest.mark.parametrize(("kind", "value", "published"), PUBLISHED, ids=lambda value: str(value[0]) if isinstance(value, tuple) else None)
def test_buckets_come_from_the_hashes_that_the_specification_publishes(kind: Kind, value: Any, published: int) -> None:
    positive = published & 0x7FFFFFFF
    assert values_of(kind, f"bucket[{ANY_BUCKET}]", [value, None]) == [positive % ANY_BUCKET, None]
    assert values_of(kind, "bucket[16]", [value]) == [positive % 16]
    assert values_of(kind, "bucket[1]", [value]) == [0]


@pytest.mark.parametrize(
    ("kind", "transform", "value", "expected"),
    [
        (INT, "truncate[10]", 1, 0),
        (INT, "truncate[10]", -1, -10),
        (LONG, "truncate[10]", -1, -10),
        (LONG, "truncate[10]", 2**63 - 1, 9223372036854775800),
        (decimal(9, 2), "truncate[50]", Decimal("10.65"), Decimal("10.50")),
        (decimal(9, 2), "truncate[50]", Decimal("-0.01"), Decimal("-0.50")),
        (STRING, "truncate[3]", "iceberg", "ice"),
        (STRING, "truncate[2]", "🚀é\u0301x", "🚀é"),
        (STRING, "truncate[3]", "\x00\u202eab", "\x00\u202ea"),
        (BINARY, "truncate[3]", b"\x01\x02\x03\x04\x05", b"\x01\x02\x03"),
        (DATE, "year", dt.date(2017, 12, 1), 47),
        (DATE, "month", dt.date(2017, 12, 1), 575),
        (DATE, "day", dt.date(2017, 12, 1), 17501),
        (TIMESTAMP, "hour", dt.datetime(2017, 12, 1, 10, 59, 59), 420034),
        *[(DATE, transform, dt.date(1969, 12, 31), -1) for transform in ("year", "month", "day")],
        *[(TIMESTAMP, transform, dt.datetime(1969, 12, 31, 23, 59, 59, 999999), -1) for transform in ("year", "month", "day", "hour")],
        *[(TIMESTAMPTZ, transform, dt.datetime(1970, 1, 1, tzinfo=dt.UTC), 0) for transform in ("year", "month", "day", "hour")],
        (TIMESTAMPTZ, "day", dt.datetime(2017, 12, 1, 23, tzinfo=dt.timezone(-dt.timedelta(hours=8))), 17502),
        (DATE, "year", dt.date(1, 1, 1), -1969),
        (DATE, "month", dt.date(9999, 12, 31), 96359),
    ],
)
def test_numbers_and_times_go_down_and_text_is_cut_by_characters(kind: Kind, transform: str, value: Any, expected: Any) -> None:
    assert values_of(kind, transform, [value, None, value]) == [expected, None, expected]


MOMENTS = [0, -1, 1, 1_510_871_468_000_000, 1_510_871_468_000_001, 253_402_300_799_999_999, -62_135_596_800_000_000, 951_782_399_999_999]
SAMPLES: dict[str, tuple[Kind, list[Any], list[str]]] = {
    "int": (INT, [0, 1, -1, 34, 2**31 - 1, -(2**31) + 8], ["bucket", "truncate"]),
    "long": (LONG, [0, 1, -1, 34, 2**53 + 1, 2**63 - 1, -(2**63) + 8], ["bucket", "truncate"]),
    "date": (DATE, [0, -1, -365, -366, 17486, 2932896, -719162], ["bucket", "year", "month", "day"]),
    "time": (TIME, [0, 1, 81_068_000_000, 86_399_999_999], ["bucket"]),
    "timestamp": (TIMESTAMP, MOMENTS, ["bucket", "year", "month", "day", "hour"]),
    "timestamptz": (TIMESTAMPTZ, MOMENTS, ["bucket", "year", "month", "day", "hour"]),
    "decimal(9,2)": (decimal(9, 2), [Decimal(one) for one in ("14.20", "-14.20", "0.00", "-0.01", "9999999.99")], ["bucket", "truncate"]),
    "decimal(18,0)": (decimal(18, 0), [Decimal(one) for one in ("0", "127", "128", "-128", "-129", "9" * 18)], ["bucket", "truncate"]),
    "decimal(38,10)": (
        decimal(38, 10),
        [Decimal(one) for one in ("0E-10", "-0.0000000001", "14.2000000000", "-1.2800000000", "9" * 28 + "." + "9" * 10)],
        ["bucket", "truncate"],
    ),
    "string": (STRING, ["iceberg", "", "ä🚀x🚀", "\x00", "\u202ea\u202c", "x" * 10_000], ["bucket", "truncate"]),
    "uuid": (UUID, [uuid.UUID("f79c3e09-677c-4bbd-a479-3f349cb785e7"), uuid.UUID(int=0), uuid.UUID(int=2**128 - 1)], ["bucket"]),
    "fixed": (FIXED, [b"\x00\x01\x02\x03", b"\xff" * 4], ["bucket"]),
    "binary": (BINARY, [b"\x00\x01\x02\x03", b"", b"\xff" * 100], ["bucket", "truncate"]),
}
CASES = [(name, transform) for name, (_, _, transforms) in SAMPLES.items() for transform in transforms]


@pytest.mark.parametrize(("name", "transform"), CASES)
def test_every_transform_of_every_type_is_what_pyiceberg_computes_one_by_one(name: str, transform: str) -> None:
    kind, samples, _ = SAMPLES[name]
    for number in (1, 2, 7, 16, 1000) if transform in ("bucket", "truncate") else (0,):
        full = f"{transform}[{number}]" if number else transform
        one_by_one = parse_transform(full).transform(kind[0])
        values = [
            value for value in samples if not (transform == "truncate" and name in ("int", "long") and value < -(2**30) and number > 8)
        ]
        assert values_of(kind, full, [*values, None]) == [*map(one_by_one, values), None], full


def test_rows_in_pieces_and_parts_of_pieces_have_the_same_values() -> None:
    pieces = pa.chunked_array([pa.array(["zz", "iceberg", None, "a"]).slice(1, 2), pa.array([], pa.string()), pa.array(["iceberg"])])
    expected = [1210000089 % 16, None, 1210000089 % 16]
    assert values_in(pa.table({"x": pieces}), STRING, "bucket[16]") == expected
    assert values_in(pa.table({"x": pieces.dictionary_encode()}), STRING, "bucket[16]") == expected
    assert values_in(pa.table({"x": pieces.dictionary_encode()}), STRING, "identity") == ["iceberg", None, "iceberg"]
    assert values_in(pa.table({"x": pieces}), STRING, "void") == [None, None, None]


def test_a_field_of_a_struct_is_null_where_the_struct_is() -> None:
    inner = StructType(NestedField(9, "at", DateType()))
    schema = Schema(NestedField(7, "x", StructType(NestedField(8, "deep er", inner))))
    day = dt.date(1970, 1, 5)
    values = [{"deep er": {"at": day}}, None, {"deep er": None}, {"deep er": {"at": None}}]
    rows = pa.table({"x": pa.array(values, pa.struct({"deep er": pa.struct({"at": pa.date32()})}))})
    rows = pa.concat_tables([rows, rows.slice(0, 1)])
    fields = [
        {"source-id": 9, "field-id": 1000, "name": "a", "transform": "day"},
        {"source-id": 9, "field-id": 1001, "name": "b", "transform": "identity"},
    ]
    found = partition_values("default.t", rows, schema, {"spec-id": 0, "fields": fields})
    assert [column.to_pylist() for column in found] == [[4, None, None, None, 4], [day, None, None, None, day]]


@pytest.mark.parametrize(
    ("kind", "transform", "value"),
    [
        (INT, "truncate[10]", -(2**31)),
        (LONG, "truncate[1000]", -(2**63) + 1),
        (decimal(4, 2), "truncate[1000]", Decimal("-99.99")),
        (decimal(38, 0), "truncate[10]", Decimal("-" + "9" * 38)),
    ],
)
def test_a_number_that_has_no_truncated_value_is_told(kind: Kind, transform: str, value: Any) -> None:
    with pytest.raises(TableStopped) as stopped:
        values_of(kind, transform, [None, 5, value])
    assert stopped.value.table == "default.t"
    for part in (str(value), "x_part", transform, str(kind[0]), "partition_by"):
        assert part in stopped.value.reason
    assert values_of(kind, transform, [None, -5]) != [None, -5]


@given(st.lists(st.text(max_size=12) | st.none(), min_size=1), st.integers(1, 2**31 - 1))
def test_any_text_is_in_the_bucket_and_has_the_beginning_that_pyiceberg_says(values: list[str | None], number: int) -> None:
    for transform in (f"bucket[{number}]", f"truncate[{min(number, 12)}]"):
        one_by_one = parse_transform(transform).transform(StringType())
        assert values_of(STRING, transform, list(values)) == [one_by_one(value) for value in values]


@given(st.lists(st.decimals(allow_nan=False, allow_infinity=False, places=10, min_value=-(10**20), max_value=10**20), min_size=1))
def test_any_decimal_is_in_the_bucket_and_multiple_that_pyiceberg_says(values: list[Decimal]) -> None:
    kind = decimal(38, 10)
    for transform in ("bucket[97]", "truncate[12345]"):
        one_by_one = parse_transform(transform).transform(kind[0])
        assert values_of(kind, transform, list(values)) == [one_by_one(value) for value in values]


@given(st.lists(st.datetimes(), min_size=1))
def test_any_moment_has_the_times_that_the_calendar_says(values: list[dt.datetime]) -> None:
    epoch = dt.datetime(1970, 1, 1)
    expected = {
        "year": [value.year - 1970 for value in values],
        "month": [(value.year - 1970) * 12 + value.month - 1 for value in values],
        "day": [(value - epoch) // dt.timedelta(days=1) for value in values],
        "hour": [(value - epoch) // dt.timedelta(hours=1) for value in values],
    }
    for transform, wanted in expected.items():
        assert values_of(TIMESTAMP, transform, list(values)) == wanted
