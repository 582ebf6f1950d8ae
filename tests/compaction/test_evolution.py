"""Files of an older schema or spec, and of other programs, come out as the table is now."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyiceberg.types import (
    BinaryType,
    DateType,
    DecimalType,
    DoubleType,
    FloatType,
    IntegerType,
    ListType,
    LongType,
    MapType,
    NestedField,
    StringType,
    StructType,
    TimestamptzType,
    UUIDType,
)

from dolake.errors import RewriteRefused
from dolake.parquet.schema import arrow_schema
from tests.compaction.rewriting import Table, rows_of, schema_of

ID = NestedField(1, "id", LongType(), required=True)
NEVER = 1 << 30


@pytest.mark.parametrize("memory_bytes", [NEVER, 1])
def test_columns_are_found_by_field_id_widened_added_and_dropped(tmp_path: Path, memory_bytes: int) -> None:
    old = schema_of(
        NestedField(1, "number", IntegerType(), required=True),
        NestedField(2, "dropped", StringType()),
        NestedField(3, "share", FloatType()),
        NestedField(4, "price", DecimalType(9, 2)),
        NestedField(5, "note", StringType()),
    )
    new = schema_of(
        NestedField(5, "remark", StringType()),
        NestedField(1, "id", LongType(), required=True),
        NestedField(3, "share", DoubleType()),
        NestedField(4, "price", DecimalType(30, 2)),
        NestedField(6, "dropped", IntegerType()),
        schema_id=1,
    )
    table = Table(tmp_path, new)
    table.add(rows_of(old, [{"number": 3, "dropped": "x", "share": 0.1, "price": Decimal("1234567.89"), "note": "a"}, {"number": -7}]))
    table.add(rows_of(new, [{"id": 1 << 40, "remark": "b", "share": 0.1, "price": Decimal("1e20"), "dropped": 9}]))
    table.delete({table.data[0].location: [1]})
    result = table.rewrite((1,), memory_bytes=memory_bytes)
    assert result.rows == [
        {"remark": "a", "id": 3, "share": pytest.approx(0.1), "price": Decimal("1234567.89"), "dropped": None},
        {"remark": "b", "id": 1 << 40, "share": 0.1, "price": Decimal("100000000000000000000.00"), "dropped": 9},
    ]
    assert [str(field.type) for field in result.parquet().schema_arrow] == ["string", "int64", "double", "decimal128(30, 2)", "int32"]
    assert [field.metadata[b"PARQUET:field_id"] for field in result.parquet().schema_arrow] == [b"5", b"1", b"3", b"4", b"6"]
    assert [field.nullable for field in result.parquet().schema_arrow] == [True, False, True, True, True]


def test_what_is_nested_is_found_by_field_id_as_well(tmp_path: Path) -> None:
    old = schema_of(
        ID,
        NestedField(
            2,
            "s",
            StructType(NestedField(3, "a", IntegerType()), NestedField(4, "gone", StringType()), NestedField(5, "u", UUIDType())),
        ),
        NestedField(
            6, "l", ListType(7, StructType(NestedField(8, "f", FloatType()), NestedField(9, "x", StringType())), element_required=False)
        ),
        NestedField(10, "m", MapType(11, StringType(), 12, DecimalType(5, 1), value_required=False)),
    )
    new = schema_of(
        ID,
        NestedField(
            2,
            "s",
            StructType(NestedField(5, "unique", UUIDType()), NestedField(13, "gone", LongType()), NestedField(3, "b", LongType())),
        ),
        NestedField(
            6, "l", ListType(7, StructType(NestedField(9, "f", StringType()), NestedField(8, "x", DoubleType())), element_required=False)
        ),
        NestedField(10, "m", MapType(11, StringType(), 12, DecimalType(20, 1), value_required=False)),
        schema_id=1,
    )
    table = Table(tmp_path, new)
    unique = bytes(range(16))
    values: list[dict[str, Any]] = [
        {
            "id": 1,
            "s": {"a": 5, "gone": "x", "u": unique},
            "l": [{"f": 0.5, "x": "y"}, None, {}],
            "m": [("k", Decimal("2.5")), ("n", None)],
        },
        {"id": 0, "s": None, "l": None, "m": None},
        {"id": 2, "s": {}, "l": [], "m": []},
    ]
    table.add(rows_of(old, values))
    table.add(rows_of(new, [{"id": 3, "s": {"gone": 1}, "l": [{"f": "z"}], "m": [("k", Decimal("123456.5"))]}]))
    rows = table.rewrite((1,)).rows
    assert [row["s"] and {**row["s"], "unique": row["s"]["unique"] and row["s"]["unique"].bytes} for row in rows] == [
        None,
        {"unique": unique, "gone": None, "b": 5},
        {"unique": None, "gone": None, "b": None},
        {"unique": None, "gone": 1, "b": None},
    ]
    assert [row["l"] for row in rows] == [None, [{"f": "y", "x": 0.5}, None, {"f": None, "x": None}], [], [{"f": "z", "x": None}]]
    assert [row["m"] for row in rows] == [None, [("k", Decimal("2.5")), ("n", None)], [], [("k", Decimal("123456.5"))]]


def test_a_file_of_another_program_holds_the_same_values_in_other_types(tmp_path: Path) -> None:
    schema = schema_of(
        ID,
        NestedField(2, "name", StringType()),
        NestedField(3, "data", BinaryType()),
        NestedField(4, "at", TimestamptzType()),
        NestedField(5, "tags", ListType(6, StringType(), element_required=False)),
        NestedField(7, "small", IntegerType()),
        NestedField(8, "unique", UUIDType()),
    )
    names = pa.array(["ä", None, "ä", "b"])
    foreign = pa.table(
        {
            "id": pa.array([5, 1, 4, 2], pa.int64()),
            "name": names.cast(pa.large_string()),
            "data": pa.array([b"\x00", b"", None, b"\xff"], pa.large_binary()),
            "at": pa.array([datetime(2026, 1, 2, 3, 4, 5, 678000, UTC)] * 4, pa.timestamp("ms", "Europe/Berlin")),
            "tags": pa.array(
                [["x", None], None, [], ["y"]], pa.large_list(pa.field("item", pa.large_string(), metadata={"PARQUET:field_id": "6"}))
            ),
            "small": pa.array([1, -2, None, 3], pa.int8()),
            "unique": pa.array([bytes(16)] * 4, pa.binary(16)),
        }
    )
    foreign = pa.table(
        foreign.columns,
        schema=pa.schema(
            [
                field.with_metadata({"PARQUET:field_id": str(schema.find_field(field.name).field_id)}).with_nullable(field.name != "id")
                for field in foreign.schema
            ]
        ),
    )
    table = Table(tmp_path, schema)
    table.add_foreign(foreign)
    table.add_foreign(
        foreign.set_column(
            1,
            foreign.schema.field(1).with_type(pa.dictionary(pa.int8(), pa.string())),
            names.dictionary_encode().cast(pa.dictionary(pa.int8(), pa.string())),
        )
    )
    result = table.rewrite((1,))
    assert result.parquet().schema_arrow.equals(
        pa.schema([field.with_type(pa.string()) if field.name == "name" else field for field in arrow_schema(schema)])
    )
    assert [(row["id"], row["name"], row["data"], row["tags"], row["small"]) for row in result.rows[::2]] == [
        (1, None, b"", None, -2),
        (2, "b", b"\xff", ["y"], 3),
        (4, "ä", None, [], None),
        (5, "ä", b"\x00", ["x", None], 1),
    ]
    assert {row["at"] for row in result.rows} == {datetime(2026, 1, 2, 3, 4, 5, 678000, UTC)}


REFUSED: dict[str, tuple[NestedField, pa.Field, list[Any], str]] = {
    "text for a number": (NestedField(2, "x", LongType()), pa.field("x", pa.string()), ["1"], "column x is string in the file, and int64"),
    "narrower": (NestedField(2, "x", IntegerType()), pa.field("x", pa.int64()), [1], "column x is int64"),
    "another scale": (
        NestedField(2, "x", DecimalType(9, 2)),
        pa.field("x", pa.decimal128(9, 3)),
        [Decimal("1.000")],
        "column x is decimal",
    ),
    "no time zone": (
        NestedField(2, "x", TimestamptzType()),
        pa.field("x", pa.timestamp("us")),
        [datetime(2026, 1, 1)],
        "column x is timestamp",
    ),
    "nanoseconds": (NestedField(2, "x", TimestamptzType()), pa.field("x", pa.timestamp("ns", "UTC")), [1], "lose data"),
    "no UTF-8": (NestedField(2, "x", StringType()), pa.field("x", pa.binary()), [b"\xff"], "UTF"),
    "null where none may be": (
        NestedField(2, "x", LongType(), required=True),
        pa.field("x", pa.int64()),
        [None],
        "column x is required, and 1 rows",
    ),
    "required and missing": (
        NestedField(9, "y", LongType(), required=True),
        pa.field("x", pa.int64()),
        [1],
        "column y is required, and the file does not",
    ),
    "a list for a number": (NestedField(2, "x", LongType()), pa.field("x", pa.list_(pa.int64())), [[1]], "column x is list"),
    "another element": (
        NestedField(2, "x", ListType(3, LongType(), element_required=False)),
        pa.field("x", pa.list_(pa.int64())),
        [[1]],
        "column x: what is in it",
    ),
    "a required field inside": (
        NestedField(2, "x", StructType(NestedField(3, "y", LongType(), required=True))),
        pa.field("x", pa.struct([pa.field("y", pa.int64(), metadata={"PARQUET:field_id": "3"})])),
        [{"y": None}],
        r"column x.y is required",
    ),
}


@pytest.mark.parametrize("memory_bytes", [NEVER, 1])
@pytest.mark.parametrize("name", REFUSED)
def test_a_column_that_cannot_become_the_tables_is_refused_by_name_before_anything_is_put(
    tmp_path: Path, name: str, memory_bytes: int
) -> None:
    column, have, values, reason = REFUSED[name]
    table = Table(tmp_path, schema_of(ID, column))
    good = {"id": 1, column.name: None}
    if not column.required:
        table.add(rows_of(table.schema, [good] * 50))
    rows = pa.table(
        [pa.array(range(len(values)), pa.int64()), pa.array(values, have.type)],
        schema=pa.schema(
            [pa.field("id", pa.int64(), nullable=False, metadata={"PARQUET:field_id": "1"}), have.with_metadata({"PARQUET:field_id": "2"})]
        ),
    )
    bad = table.add_foreign(rows)
    there = sorted(table.store.list(table.location))
    with pytest.raises(RewriteRefused, match=reason) as caught:
        table.rewrite((1,), memory_bytes=memory_bytes)
    assert caught.value.file == bad.location
    assert sorted(table.store.list(table.location)) == there


def test_a_file_without_field_ids_is_refused_since_all_of_its_columns_would_be_null(tmp_path: Path) -> None:
    table = Table(tmp_path, schema_of(NestedField(1, "id", LongType())))
    table.add_foreign(pa.table({"id": [1]}))
    with pytest.raises(RewriteRefused, match="no field ids"):
        table.rewrite()


# -- partitions

DAY = NestedField(2, "day", DateType())
AT = NestedField(3, "at", TimestamptzType())
KIND = NestedField(4, "kind", StringType())
PARTITIONED = schema_of(ID, DAY, AT, KIND)
SPEC: dict[str, Any] = {
    "spec-id": 3,
    "fields": [
        {"source-id": 2, "field-id": 1000, "name": "day", "transform": "identity"},
        {"source-id": 1, "field-id": 1001, "name": "id_bucket", "transform": "bucket[4]"},
        {"source-id": 3, "field-id": 1002, "name": "at_month", "transform": "month"},
    ],
}


def partitioned(count: int, day: date | None = None) -> pa.Table:
    days = [date(2026, 1, 1), date(1969, 12, 31), None]
    values = [
        {"id": number, "day": day or days[number % 3], "at": datetime(2026, 1 + number % 2, 1, tzinfo=UTC), "kind": "ab"[number % 2]}
        for number in range(count)
    ]
    return rows_of(PARTITIONED, values)


@pytest.mark.parametrize("memory_bytes", [NEVER, 1500])
def test_files_of_an_older_spec_are_split_by_the_tables_own(tmp_path: Path, memory_bytes: int) -> None:
    table = Table(tmp_path, PARTITIONED, SPEC)
    for _ in range(3):
        table.add(partitioned(120), spec_id=0)
    table.delete({table.data[1].location: range(0, 120, 5)})
    result = table.rewrite((1,), memory_bytes=memory_bytes)
    result.check()
    found: Counter[tuple[Any, ...]] = Counter()
    for rows, output in zip(result.files, result.rewritten.outputs, strict=True):
        days, bucket, month = output.file.partition
        assert {row["day"] and (row["day"] - date(1970, 1, 1)).days for row in rows} == {days}
        assert {(row["at"].year - 1970) * 12 + row["at"].month - 1 for row in rows} == {month}
        assert [row["id"] for row in rows] == sorted(row["id"] for row in rows)
        assert (output.indexed.spec_id, output.indexed.partition) == (3, (days, bucket, month))
        found[output.file.partition] += 1
    assert set(found.values()) == {1}
    assert len(found) > 6


def test_files_of_the_tables_spec_stay_in_their_partition(tmp_path: Path) -> None:
    spec = {"spec-id": 3, "fields": SPEC["fields"][:1]}
    table = Table(tmp_path, PARTITIONED, spec)
    days = (date(2026, 1, 1) - date(1970, 1, 1)).days
    for _ in range(2):
        table.add(partitioned(30, date(2026, 1, 1)), partition=(days,))
    result = table.rewrite((1,))
    result.check()
    (output,) = result.rewritten.outputs
    assert (output.file.partition, output.indexed.partition) == ((days,), (days,))
    table.data[0] = table.add(partitioned(30, date(2026, 1, 2)), partition=(days,))
    with pytest.raises(RewriteRefused, match="its manifest says"):
        table.rewrite((1,))


def test_a_column_that_only_the_partition_knows_comes_into_the_file(tmp_path: Path) -> None:
    spec = {"spec-id": 3, "fields": [*SPEC["fields"][:1], {"source-id": 4, "field-id": 1003, "name": "kind", "transform": "identity"}]}
    table = Table(tmp_path, PARTITIONED, spec)
    table.add_foreign(partitioned(10).drop_columns(["day", "kind"]), partition=(-1, "z"))
    result = table.rewrite((1,))
    assert {(row["day"], row["kind"]) for row in result.rows} == {(date(1969, 12, 31), "z")}
    assert result.rewritten.outputs[0].file.partition == (-1, "z")
    with pytest.raises(RewriteRefused, match="whose values its partition may hold"):
        table.rewrite((1,), spec={"spec-id": 4, "fields": []})


@pytest.mark.parametrize("memory_bytes", [NEVER, 1])
def test_a_spec_of_nothing_but_void_has_one_partition(tmp_path: Path, memory_bytes: int) -> None:
    spec = {"spec-id": 5, "fields": [{"source-id": 77, "field-id": 1000, "name": "x", "transform": "void"}]}
    table = Table(tmp_path, PARTITIONED, spec)
    table.add(partitioned(10), spec_id=0)
    result = table.rewrite((), memory_bytes=memory_bytes)
    result.check()
    assert result.rewritten.outputs[0].file.partition == (None,)


def test_a_partition_column_that_is_gone_or_has_no_value_is_refused(tmp_path: Path) -> None:
    table = Table(tmp_path, PARTITIONED, SPEC)
    table.add(rows_of(PARTITIONED, [{"id": -(1 << 63)}]), spec_id=0)
    gone = {"spec-id": 5, "fields": [{"source-id": 77, "field-id": 1000, "name": "x", "transform": "identity"}]}
    with pytest.raises(RewriteRefused, match="partition field x is of a column"):
        table.rewrite((), spec=gone)
    truncated = {"spec-id": 5, "fields": [{"source-id": 1, "field-id": 1000, "name": "x", "transform": "truncate[10]"}]}
    with pytest.raises(RewriteRefused, match="no value of its partition field x"):
        table.rewrite((), spec=truncated)
