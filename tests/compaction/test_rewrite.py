"""A rewrite changes files and never rows: what was in the inputs, less what was deleted, is in the outputs, where it says."""

from __future__ import annotations

import json
import math
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import pyarrow as pa
import pytest
from pyiceberg.types import (
    BinaryType,
    BooleanType,
    DateType,
    DecimalType,
    DoubleType,
    FixedType,
    FloatType,
    IntegerType,
    ListType,
    LongType,
    MapType,
    NestedField,
    StringType,
    StructType,
    TimestampType,
    TimestamptzType,
    TimeType,
    UUIDType,
)

from tests.compaction.rewriting import Table, rows_of, schema_of

ID = NestedField(1, "id", LongType(), required=True)
NAME = NestedField(2, "name", StringType())
PLAIN = schema_of(ID, NAME)


def plain(first: int, stop: int, step: int = 1, name: str = "n") -> pa.Table:
    return rows_of(PLAIN, [{"id": number, "name": f"{name}{number % 7}"} for number in range(first, stop, step)])


def shuffled(rows: pa.Table, seed: int) -> pa.Table:
    return rows.take(pa.array(np.random.default_rng(seed).permutation(rows.num_rows)))


def ids(rows: list[dict[str, Any]]) -> list[int]:
    return [row["id"] for row in rows]


def draw(kind: Any, random: np.random.Generator) -> Any:
    """A value of an Iceberg type, or none."""
    if random.random() < 0.15:
        return None
    number = int(random.integers(-50, 50))
    match kind:
        case BooleanType():
            return bool(number & 1)
        case IntegerType() | LongType():
            return number
        case FloatType() | DoubleType():
            return [math.nan, -0.0, 0.0, math.inf, -math.inf, number / 4][int(random.integers(6))]
        case DecimalType():
            return Decimal((number < 0, tuple(map(int, str(abs(number)).ljust(kind.precision - 2, "3"))), -kind.scale))
        case DateType():
            return date(1970, 1, 1) + timedelta(days=number)
        case TimeType():
            return time(number % 24, 1, 2, 345678)
        case TimestampType():
            return datetime(1970, 1, 1) + timedelta(microseconds=number * 12345678901)
        case TimestamptzType():
            return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=number * 12345678901)
        case StringType():
            return ["", "a", "a\0", "ab", "ä🚀", "customer-000001", "customer-000002", "customer-0000010"][int(random.integers(8))]
        case UUIDType():
            return UUID(int=(number & 0xFF) << 120 | 7).bytes
        case BinaryType():
            return bytes([number & 0xFF]) * int(random.integers(0, 9))
        case FixedType():
            return bytes([number & 0xFF]) * len(kind)
        case ListType():
            return [draw(kind.element_type, random) for _ in range(int(random.integers(0, 4)))]
        case MapType():
            return [(f"k{place}", draw(kind.value_type, random)) for place in range(int(random.integers(0, 3)))]
        case StructType():
            return {child.name: draw(child.field_type, random) for child in kind.fields}
    raise AssertionError(kind)


PRIMITIVES: dict[str, Any] = {
    "boolean": BooleanType(),
    "int": IntegerType(),
    "long": LongType(),
    "float": FloatType(),
    "double": DoubleType(),
    "decimal9": DecimalType(9, 2),
    "decimal18": DecimalType(18, 4),
    "decimal38": DecimalType(38, 10),
    "date": DateType(),
    "time": TimeType(),
    "timestamp": TimestampType(),
    "timestamptz": TimestamptzType(),
    "string": StringType(),
    "uuid": UUIDType(),
    "binary": BinaryType(),
    "fixed": FixedType(20),
}
NESTED: dict[str, Any] = {
    "list": ListType(100, UUIDType(), element_required=False),
    "map": MapType(101, StringType(), 102, DecimalType(12, 2), value_required=False),
    "struct": StructType(
        NestedField(103, "u", UUIDType()),
        NestedField(104, "l", ListType(105, StructType(NestedField(106, "t", TimeType())), element_required=False)),
    ),
}
EVERY = schema_of(*(NestedField(place, name, kind) for place, (name, kind) in enumerate({**PRIMITIVES, **NESTED}.items(), start=1)))


def drawn(seed: int, count: int) -> pa.Table:
    random = np.random.default_rng(seed)
    return rows_of(EVERY, [{column.name: draw(column.field_type, random) for column in EVERY.fields} for _ in range(count)])


def rank(value: Any) -> tuple[Any, ...]:
    """Of a value of one column among others, as Iceberg orders them; null first."""
    if value is None:
        return (0,)
    if isinstance(value, float):
        return (2,) if math.isnan(value) else (1, value, math.copysign(1, value))
    if isinstance(value, str):
        return (1, value.encode())
    return (1, value.bytes if isinstance(value, UUID) else value)


# -- rows, order, moves


@pytest.mark.parametrize("memory_bytes", [1 << 30, 15_000])
@pytest.mark.parametrize("name", [*PRIMITIVES, ""])
def test_every_row_is_there_once_sorted_and_where_moves_says(tmp_path: Path, name: str, memory_bytes: int) -> None:
    table = Table(tmp_path, EVERY)
    seed = sum(name.encode())
    random = np.random.default_rng(seed)
    for place, count in enumerate([60, 0, 1, 90, 40]):
        table.add(drawn(seed + place, count))
    table.add_foreign(drawn(seed + 9, 70), use_dictionary=True, row_group_size=16)
    for _ in range(2):
        table.delete(
            {file.location: np.flatnonzero(random.random(file.row_count) < 0.1).tolist() for file in table.data if file.row_count > 1}
        )
    table.delete({table.data[2].location: [0]})
    sort_by = (EVERY.find_field(name).field_id,) if name else ()
    result = table.rewrite(sort_by, memory_bytes=memory_bytes)
    result.check()
    assert len(result.files) == 1
    if name:
        ranks = [rank(row[name]) for row in result.rows]
        assert ranks == sorted(ranks)
    else:
        assert list(map(repr, result.rows)) == list(map(repr, table.living()))


def test_equal_keys_stay_in_the_order_of_the_inputs_and_later_columns_decide(tmp_path: Path) -> None:
    table = Table(tmp_path, EVERY)
    for seed in range(3):
        table.add(drawn(seed, 200))
    names = ("string", "decimal38", "double")
    result = table.rewrite(tuple(EVERY.find_field(name).field_id for name in names))
    wanted = sorted(table.living(), key=lambda row: [rank(row[name]) for name in names])
    assert list(map(repr, result.rows)) == list(map(repr, wanted))
    result.check()


@pytest.mark.parametrize("memory_bytes", [1 << 30, 2000])
def test_keys_as_far_apart_as_can_be_are_sorted_and_equal_ones_stay_in_order(tmp_path: Path, memory_bytes: int) -> None:
    table = Table(tmp_path, PLAIN)
    random = np.random.default_rng(5)
    extremes = [-(1 << 63), (1 << 63) - 1, 0, -1, 1]
    for file in range(3):
        drawn_ids = [
            extremes[place] if place < 5 else int(random.integers(-(1 << 63), (1 << 63) - 1)) for place in random.integers(0, 9, 100)
        ]
        table.add(rows_of(PLAIN, [{"id": number, "name": f"{file}-{place}"} for place, number in enumerate(drawn_ids)]))
    result = table.rewrite((1,), memory_bytes=memory_bytes)
    result.check()
    assert result.rows == sorted(table.living(), key=lambda row: row["id"])


@pytest.mark.parametrize("order", ["rising", "files the other way round", "each file sorted", "none sorted"])
@pytest.mark.parametrize("passes", [1, 5])
def test_several_files_have_ranges_of_keys_that_do_not_meet(tmp_path: Path, order: str, passes: int) -> None:
    table = Table(tmp_path, PLAIN)
    parts = [plain(first, first + 2000) for first in range(0, 10_000, 2000)]
    if order == "files the other way round":
        parts.reverse()
    elif order == "each file sorted":
        parts = [plain(first, 10_000, 5) for first in range(5)]
    elif order == "none sorted":
        parts = [shuffled(plain(first, 10_000, 5), first) for first in range(5)]
    for rows in parts:
        table.add(rows)
    table.delete({file.location: range(0, 2000, 10) for file in table.data})
    total = sum(file.size_bytes for file in table.data)
    result = table.rewrite((1,), target_bytes=total // 3, memory_bytes=1 << 30 if passes == 1 else 10_000 * 20 // passes)
    result.check()
    assert len(result.files) == 3
    assert ids(result.rows) == sorted(ids(table.living()))
    sizes = [output.file.size_bytes for output in result.rewritten.outputs]
    assert max(sizes) < total // 3 * 1.3


def test_rows_of_one_key_are_not_torn_between_files_unless_there_are_very_many(tmp_path: Path) -> None:
    table = Table(tmp_path, PLAIN)
    for _ in range(4):
        table.add(rows_of(PLAIN, [{"id": place // 7, "name": "x"} for place in range(3000)]))
    total = sum(file.size_bytes for file in table.data)
    result = table.rewrite((1,), target_bytes=total // 4)
    result.check()
    assert len(result.files) > 2
    assert all(set(ids(one)).isdisjoint(ids(other)) for one, other in zip(result.files, result.files[1:], strict=False))
    same = Table(tmp_path / "same", PLAIN)
    for _ in range(4):
        same.add(rows_of(PLAIN, [{"id": 1, "name": str(place)} for place in range(3000)]))
    result = same.rewrite((1,), target_bytes=sum(file.size_bytes for file in same.data) // 4)
    result.check()
    assert len(result.files) == 4


@pytest.mark.parametrize("sort_by", [(), (1,), (2, 1)])
def test_several_passes_write_the_same_rows_into_the_same_files_as_one(tmp_path: Path, sort_by: tuple[int, ...]) -> None:
    table = Table(tmp_path, PLAIN)
    for seed in range(6):
        table.add(shuffled(plain(seed * 500, seed * 500 + 1500), seed), sources=((0, "a"), (700, "b")))
    table.delete({file.location: range(seed, 1500, 7) for seed, file in enumerate(table.data)})
    target = sum(file.size_bytes for file in table.data) // 2
    one, many = (table.rewrite(sort_by, target_bytes=target, memory_bytes=size) for size in (1 << 30, 4000))
    one.check()
    many.check()
    assert one.files == many.files
    assert [output.indexed.sources for output in one.rewritten.outputs] == [output.indexed.sources for output in many.rewritten.outputs]
    assert all((one.rewritten.moves[path] == many.rewritten.moves[path]).all() for path in table.tables)


def test_row_groups_that_only_change_places_are_read_whatever_place_the_last_one_gets(tmp_path: Path) -> None:
    table = Table(tmp_path, PLAIN)
    table.add_foreign(pa.concat_tables([plain(200, 300), plain(0, 100), plain(100, 200)]), row_group_size=100)
    table.add(plain(300, 400))
    table.delete({file.location: range(50, 99) for file in table.data})
    result = table.rewrite((1,))
    result.check()
    assert ids(result.rows) == sorted(ids(table.living()))


def test_all_rows_deleted_leave_no_file(tmp_path: Path) -> None:
    table = Table(tmp_path, PLAIN)
    for first in (0, 50):
        table.add(plain(first, first + 50))
    table.delete({file.location: range(50) for file in table.data})
    result = table.rewrite((1,))
    result.check()
    assert (result.rewritten.outputs, result.rewritten.bytes_written) == ((), 0)


def test_deletes_speak_of_files_that_are_no_younger_and_of_rows_that_are_there(tmp_path: Path) -> None:
    table = Table(tmp_path, PLAIN)
    old, young = table.add(plain(0, 10), sequence_number=3), table.add(plain(10, 20), sequence_number=5)
    table.delete({old.location: [1, 2], young.location: [3]}, sequence_number=4)
    table.delete({old.location: [2, 5], young.location: [4]}, sequence_number=5)
    assert table.gone[young.location] == {4}
    table.rewrite().check()
    table.delete({old.location: [10, 1 << 40], "file:///elsewhere": [0]}, sequence_number=6)
    table.gone[old.location] -= {10, 1 << 40}
    result = table.rewrite()
    result.check()
    assert result.rewritten.bytes_read == sum(file.size_bytes for file in (*table.data, *table.deletes))


# -- who wrote the rows


def owners(table: Table) -> dict[int, str]:
    """Source of each row, by its id."""
    found: dict[int, str] = {}
    for file, sources in zip(table.data, SOURCES, strict=True):
        for place, row in enumerate(table.tables[file.location].to_pylist()):
            found[row["id"]] = next((name for first, name in reversed(sources) if first <= place), "")
    return found


SOURCES: list[tuple[tuple[int, str], ...]] = [
    ((0, "a"), (100, "b")),
    ((0, "b"),),
    (),
    ((0, ""), (50, "ü")),
    ((0, "a"), (10, "b"), (20, "a")),
]


@pytest.mark.parametrize("files", [1, 3])
def test_each_file_says_who_wrote_its_rows_in_a_few_ranges(tmp_path: Path, files: int) -> None:
    table = Table(tmp_path, PLAIN)
    for place, sources in enumerate(SOURCES):
        table.add(shuffled(plain(place, 1000, 5), place), sources)
    table.delete({table.data[0].location: range(0, 150, 3)})
    result = table.rewrite((1,), target_bytes=sum(file.size_bytes for file in table.data) // files)
    result.check()
    wrote = owners(table)
    assert len(result.files) == files
    for place, (rows, output) in enumerate(zip(result.files, result.rewritten.outputs, strict=True)):
        stated = output.indexed.sources
        assert result.parquet(place).metadata.metadata[b"dolake.sources"].decode() == str([list(one) for one in stated]).replace("'", '"')
        assert len(stated) == len({name for _, name in stated}) == 4
        found = [next(name for first, name in reversed(stated) if first <= number) for number in range(len(rows))]
        assert found == [wrote[row["id"]] for row in rows]
        for name in set(found):
            mine = [row["id"] for row, owner in zip(rows, found, strict=True) if owner == name]
            assert mine == sorted(mine)
    assert all(max(ids(one)) < min(ids(other)) for one, other in zip(result.files, result.files[1:], strict=False))


def test_a_file_says_of_rows_whose_source_nobody_knew_that_they_have_none(tmp_path: Path) -> None:
    for name, sources in {"unknown": (), "one": ((0, "a"),)}.items():
        table = Table(tmp_path / name, PLAIN)
        table.add(plain(0, 10), sources)
        table.add(plain(10, 20), sources)
        result = table.rewrite((1,))
        assert result.rewritten.outputs[0].indexed.sources == (sources or ((0, ""),))
        assert json.loads((result.parquet().metadata.metadata or {})[b"dolake.sources"]) == [list(sources[0] if sources else (0, ""))]


def test_values_of_deleted_rows_alone_do_not_stay_in_a_dictionary(tmp_path: Path) -> None:
    """Nobody reads them there, and whoever had them deleted wants their bytes gone."""
    schema = schema_of(NestedField(1, "id", LongType(), required=True), NestedField(2, "note", StringType()))
    table = Table(tmp_path, schema)
    texts = ["secret one", None, "stays", "secret two", "stays too"]
    first = table.add(rows_of(schema, [{"id": key, "note": texts[key % 5]} for key in range(1000)]))
    second = table.add(rows_of(schema, [{"id": key, "note": "secret three" if key % 2 else None} for key in range(1000, 2000)]))
    table.delete({first.location: [key for key in range(1000) if key % 5 in (0, 3)], second.location: range(1, 1000, 2)})
    result = table.rewrite((1,))
    result.check()
    assert b"secret" not in b"".join(table.store.get(output.file.location) for output in result.rewritten.outputs)
    assert result.parquet().metadata.row_group(0).column(1).has_dictionary_page
