"""Rows of a query as text, every value exact: JSON, CSV, and what a table on the screen shows.

Decimals and integers are JSON numbers with all their digits, floats the shortest digits that give them back. Dates and times
are ISO 8601, a `timestamptz` in UTC; binary is base64; maps are arrays of pairs; NaN and the infinities are strings: the
notation in which sources send them. Text is never escaped beyond what JSON requires.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pyarrow as pa

Clean = Callable[[Any], Any]

_encode = msgspec.json.Encoder(decimal_format="number").encode
_decode_text = msgspec.json.Decoder(str).decode


def column_names(schema: pa.Schema) -> list[str]:
    """As the query calls them; one that comes twice gets a number, so that no object has a key twice."""
    names: list[str] = []
    for name in schema.names:
        candidate, number = name, 1
        while candidate in names:
            candidate, number = f"{name}_{number}", number + 1
        names.append(candidate)
    return names


def rows(batch: pa.RecordBatch) -> Iterator[tuple[Any, ...]]:
    """Values that `as_json` can write."""
    return zip(*(_values(column) for column in batch.columns), strict=True)


def as_json(value: Any) -> str:
    return _encode(value).decode()


def json_object(names: list[str], row: tuple[Any, ...]) -> str:
    return as_json(dict(zip(names, row, strict=True)))


def as_text(value: Any) -> str:
    """A value outside JSON: text without quotes, everything else as JSON has it."""
    if isinstance(value, str):
        return value
    encoded = _encode(value)
    return _decode_text(encoded) if encoded.startswith(b'"') else encoded.decode()


def csv_line(row: tuple[Any, ...]) -> str:
    """As PostgreSQL's `COPY … CSV`: null is nothing, an empty text is `""`."""
    return ",".join("" if value is None else _csv_field(as_text(value)) for value in row)


def _csv_field(text: str) -> str:
    if text == "" or any(character in text for character in ',"\r\n'):
        return '"' + text.replace('"', '""') + '"'
    return text


def _values(column: pa.Array) -> list[Any]:
    kind = column.type
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        # As text from Arrow: Python's datetimes know neither nanoseconds nor years outside 1 to 9999.
        return [None if text is None else text.replace(" ", "T", 1) for text in column.cast(pa.string()).to_pylist()]
    clean = _cleaner(kind)
    values = column.to_pylist()
    return values if clean is None else [None if value is None else clean(value) for value in values]


def _cleaner(kind: pa.DataType) -> Clean | None:
    """What makes values of a type fit for JSON; None where they are."""
    if pa.types.is_float64(kind):
        return _finite
    if pa.types.is_float32(kind):
        return _single
    if pa.types.is_interval(kind):
        return _interval
    if pa.types.is_timestamp(kind):
        return _moment
    if pa.types.is_map(kind):
        key, item = _cleaner(kind.key_type), _cleaner(kind.item_type)
        return lambda pairs: [[_apply(key, name), _apply(item, value)] for name, value in pairs]
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        element = _cleaner(kind.value_type)
        return None if element is None else lambda values: [_apply(element, value) for value in values]
    if pa.types.is_struct(kind):
        fields = {field.name: _cleaner(field.type) for field in kind}
        return lambda value: {name: _apply(fields[name], item) for name, item in value.items()}
    return None


def _apply(clean: Clean | None, value: Any) -> Any:
    return value if value is None or clean is None else clean(value)


def _finite(value: float) -> float | str:
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def _single(value: float) -> float | str:
    """A single-precision number by its own shortest digits: 0.1, not 0.10000000149011612."""
    if not math.isfinite(value):
        return _finite(value)
    for digits in range(6, 9):
        short = float(f"{value:.{digits}g}")
        if abs(short) < 3.4e38 and struct.unpack("f", struct.pack("f", short))[0] == value:
            return short
    return float(f"{value:.9g}")


def _interval(value: Any) -> str:
    """ISO 8601: P1M2DT3.5S."""
    seconds, nanoseconds = divmod(abs(value.nanoseconds), 1_000_000_000)
    fraction = f".{nanoseconds:09d}".rstrip("0") if nanoseconds else ""
    sign = "-" if value.nanoseconds < 0 else ""
    return f"P{value.months}M{value.days}DT{sign}{seconds}{fraction}S"


def _moment(value: Any) -> str:
    text: str = value.isoformat()
    return text.replace("+00:00", "Z")
