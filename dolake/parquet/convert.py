"""Columns of JSON strings into columns of their declared types, a column at a time.

pyarrow.json reads some types inexactly or not at all: timestamps (it takes a missing zone for UTC and drops a wrong one),
dates, times, uuids, base64. Those are read as strings and turned here, by the same rules as `values`, which reads them
one by one; the tests hold the two together. Anything doubtful raises Refused or pyarrow's own error.
"""

from __future__ import annotations

import binascii

import pyarrow as pa
import pyarrow.compute as pc

from dolake.column_types import ColumnType, DecimalType, FixedType, ListType, MapType, SimpleType, StructType
from dolake.parquet.types import plain_arrow_type
from dolake.parquet.values import BASE64_PATTERN, TIMESTAMP_MAX, TIMESTAMP_MIN, UUID_PATTERN

_YEAR_ONE_DAYS = -719_162
_READ_AS_STRING = frozenset({"date", "time", "timestamp", "timestamptz", "string", "uuid", "binary", "json"})


class Refused(Exception):
    """Columns whose exact value the fast way is not sure of."""


def read_type(kind: ColumnType) -> pa.DataType | None:
    """The type pyarrow.json is asked for; None where it cannot read the type at all (a map's pairs are of mixed types)."""
    match kind:
        case SimpleType(name):
            return pa.string() if name in _READ_AS_STRING else plain_arrow_type(kind)
        case DecimalType(precision, scale):
            # Arrow multiplies up to `scale` digits onto at most `precision` ones without looking: it needs the room.
            return pa.decimal128(precision, scale) if precision + scale <= 38 else pa.decimal256(precision, scale)
        case FixedType():
            return pa.string()
        case ListType(element):
            inner = read_type(element)
            return None if inner is None else pa.list_(inner)
        case MapType():
            return None
        case StructType(fields):
            children = [(child.name, read_type(child.type)) for child in fields]
            return None if any(inner is None for _, inner in children) else pa.struct(children)


def convert(array: pa.Array, kind: ColumnType, target: pa.DataType) -> pa.Array:
    """An array of `read_type(kind)` as `target`, the column's Arrow type. Raises Refused or pa.ArrowException."""
    match kind:
        case SimpleType(name):
            return _simple(array, name, target)
        case DecimalType():
            array = array if array.type == target else pc.cast(array, target)
            array.validate(full=True)  # pyarrow.json lets a value have more digits than the column: 12345678901 as decimal(12,2).
            return array
        case FixedType():
            return pc.cast(_base64(array), target)  # Refuses other lengths.
        case ListType(element):
            values = convert(array.values, element, target.value_type)
            return pa.ListArray.from_arrays(array.offsets, values, type=target, mask=_mask(array))
        case StructType(fields):
            children = [convert(array.field(place), child.type, target.field(place).type) for place, child in enumerate(fields)]
            return pa.StructArray.from_arrays(children, fields=list(target), mask=_mask(array))
    raise Refused


def _mask(array: pa.Array) -> pa.Array | None:
    return array.is_null() if array.null_count else None


def _simple(array: pa.Array, name: str, target: pa.DataType) -> pa.Array:
    match name:
        case "timestamp" | "timestamptz":
            return _between(pc.cast(array, target), TIMESTAMP_MIN, TIMESTAMP_MAX, pa.int64())
        case "date":
            return _between(pc.cast(array, target), _YEAR_ONE_DAYS, 2_932_896, pa.int32())
        case "time":
            # Arrow has no cast for times; any day will do.
            moments = pc.cast(pc.binary_join_element_wise("1970-01-01T", array, ""), pa.timestamp("us"))
            return moments.view(pa.int64()).view(target)
        case "uuid":
            return pa.ExtensionArray.from_storage(target, _uuid(array))
        case "binary":
            return _base64(array)
    return array


def _between(array: pa.Array, low: int, high: int, storage: pa.DataType) -> pa.Array:
    bounds = pc.min_max(array.view(storage)).as_py()
    if bounds["min"] is not None and not low <= bounds["min"] <= bounds["max"] <= high:
        raise Refused
    return array


def _matches(array: pa.Array, pattern: str) -> None:
    if pc.all(pc.match_substring_regex(array, f"^(?:{pattern})$")).as_py() is False:
        raise Refused


def _values_bytes(array: pa.Array) -> bytes:
    """The values of a string array without nulls, one after the other."""
    offsets = array.buffers()[1]
    ends = pa.Array.from_buffers(pa.int32(), array.offset + len(array) + 1, [None, offsets])
    return bytes(array.buffers()[2] or b"")[ends[array.offset].as_py() : ends[-1].as_py()]


def _uuid(array: pa.Array) -> pa.Array:
    _matches(array, UUID_PATTERN)
    filled = pc.fill_null(array, "00000000-0000-0000-0000-000000000000")
    digits = _values_bytes(filled).translate(None, b"-").decode("ascii")
    found = pa.Array.from_buffers(pa.binary(16), len(array), [None, pa.py_buffer(bytes.fromhex(digits))])
    return found if not array.null_count else pc.if_else(array.is_valid(), found, pa.scalar(None, pa.binary(16)))


def _base64(array: pa.Array) -> pa.Array:
    """Decodes all values in one call: with `A` for the padding each gives whole bytes, of which the padding's are cut off."""
    _matches(array, BASE64_PATTERN)
    filled = pc.fill_null(array, "")
    decoded = binascii.a2b_base64(_values_bytes(filled).replace(b"=", b"A"))
    lengths = pc.multiply(pc.divide(pc.binary_length(filled), 4), 3)
    ends = pc.cumulative_sum(pc.cast(lengths, pa.int64()))
    if len(array) and ends[-1].as_py() >= 1 << 31:
        raise Refused
    offsets = pa.concat_arrays([pa.array([0], pa.int32()), pc.cast(ends, pa.int32())])
    whole = pa.Array.from_buffers(pa.binary(), len(array), [None, offsets.buffers()[1], pa.py_buffer(decoded)])
    one_less = pc.if_else(pc.ends_with(filled, "="), pc.binary_slice(whole, 0, -1), whole)
    found = pc.if_else(pc.ends_with(filled, "=="), pc.binary_slice(whole, 0, -2), one_less)
    return found if not array.null_count else pc.if_else(array.is_valid(), found, pa.scalar(None, pa.binary()))
