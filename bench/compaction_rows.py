"""The rows whose files are compacted: values drawn by chance, so that they compress as data does that somebody made."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pyiceberg.schema import Schema
from pyiceberg.types import (
    BooleanType,
    DecimalType,
    DoubleType,
    IcebergType,
    IntegerType,
    LongType,
    NestedField,
    StringType,
    TimestamptzType,
)

from bench.events import COLUMNS, STATUSES
from dolake.parquet.schema import arrow_schema

_BEGAN_US = 1_767_225_600_000_000
_TYPES: dict[str, IcebergType] = {
    "long": LongType(),
    "int": IntegerType(),
    "double": DoubleType(),
    "string": StringType(),
    "boolean": BooleanType(),
}


@dataclass(frozen=True)
class Shape:
    """`short_rows`: to how many short rows one of these is equal in compressed bytes, so that all files are of about one size."""

    schema: Schema
    rows: Callable[[npt.NDArray[np.int64], np.random.Generator], pa.Table]
    short_rows: int

    @property
    def key(self) -> int:
        return self.schema.find_field("id").field_id


def _schema(columns: dict[str, IcebergType]) -> Schema:
    return Schema(*(NestedField(place, name, kind, required=name == "id") for place, (name, kind) in enumerate(columns.items(), 1)))


def _as_table(shape: Schema, columns: dict[str, pa.Array]) -> pa.Table:
    schema = arrow_schema(shape)
    return pa.table([columns[field.name] for field in schema], schema=schema)


def _some(values: Sequence[str], count: int, random: np.random.Generator) -> pa.Array:
    return pa.array(values).take(pa.array(random.integers(0, len(values), count)))


def _times(count: int, random: np.random.Generator) -> pa.Array:
    return pa.array(_BEGAN_US + random.integers(0, 28 * 86_400_000, count) * 1000).cast(pa.timestamp("us", "UTC"))


def _text(numbers: npt.NDArray[np.int64]) -> pa.Array:
    return pa.array(numbers).cast(pa.string())


def _short(keys: npt.NDArray[np.int64], random: np.random.Generator) -> pa.Table:
    """Those of the other benchmarks."""
    count = len(keys)
    columns = {
        "id": pa.array(keys),
        "customer_id": pa.array(random.integers(0, 100_000, count)),
        "status": _some([status.decode() for status in STATUSES], count, random),
        "amount": pa.array(random.integers(0, 1_000_000, count) / 100),
        "note": pc.binary_join_element_wise("left at the door", _text(random.integers(0, 1 << 32, count)), " "),
        "created_at": _times(count, random),
        "qty": pa.array(random.integers(0, 9, count).astype(np.int32)),
        "flag": pa.array(random.integers(0, 2, count) > 0),
    }
    return _as_table(_SHORT, columns)


def _words(count: int) -> list[str]:
    letters = np.random.default_rng(9).integers(ord("a"), ord("z") + 1, (count, 9), np.uint8)
    return [bytes(row[: 3 + place % 7]).decode() for place, row in enumerate(letters)]


def _wide(keys: npt.NDArray[np.int64], random: np.random.Generator) -> pa.Table:
    """Orders as shops have them: names, an address, sums of money, two times, a sentence."""
    count = len(keys)
    words, names = _words(2000), _words(400)
    first, last = _some(names, count, random), _some(names, count, random)
    cents = random.integers(100, 1_000_000, count)
    created = _times(count, random)
    sentence = [_some(words, count, random) for _ in range(18)]
    columns = {
        "id": pa.array(keys),
        "number": pc.binary_join_element_wise("ORD", "2026", _text(random.integers(0, 1 << 32, count)), "-"),
        "customer_id": pa.array(random.integers(0, 100_000, count)),
        "customer": pc.binary_join_element_wise(first, last, " "),
        "email": pc.binary_join_element_wise(first, _text(random.integers(0, 10_000, count)), pa.scalar("@example.com"), ""),
        "status": _some([status.decode() for status in STATUSES], count, random),
        "currency": _some(["EUR", "USD", "GBP", "CHF", "JPY"], count, random),
        "amount": _money(cents),
        "tax": _money(cents * 19 // 100),
        "created_at": created,
        "updated_at": pc.add(created, pa.array(random.integers(0, 86_400_000_000, count)).cast(pa.duration("us"))),
        "comment": pc.binary_join_element_wise(*sentence, " "),
    }
    return _as_table(_WIDE, columns)


def _money(cents: npt.NDArray[np.int64]) -> pa.Array:
    """Hundredths, as what Arrow holds a decimal in: two words, the upper one nothing."""
    halves = np.zeros((len(cents), 2), np.int64)
    halves[:, 0] = cents
    return pa.Array.from_buffers(pa.decimal128(12, 2), len(cents), [None, pa.py_buffer(halves)])


_SHORT = _schema({name: _TYPES.get(kind, TimestamptzType()) for name, kind in COLUMNS.items()})
_WIDE = _schema(
    {
        "id": LongType(),
        "number": StringType(),
        "customer_id": LongType(),
        "customer": StringType(),
        "email": StringType(),
        "status": StringType(),
        "currency": StringType(),
        "amount": DecimalType(12, 2),
        "tax": DecimalType(12, 2),
        "created_at": TimestamptzType(),
        "updated_at": TimestamptzType(),
        "comment": StringType(),
    }
)
SHORT = Shape(_SHORT, _short, 1)
WIDE = Shape(_WIDE, _wide, 5)
