"""Columns of a data file as the table's schema has them now: whatever program wrote it, under whichever schema.

Everything is found by field id, in nested types too: what was renamed keeps its values, what was added is null, what was dropped
is gone, and what was widened is cast as Iceberg promotes types (v2, "Schema Evolution"). Other programs hold the same values in
other Arrow types (long strings, milliseconds); a value that does not fit exactly is an error, never changed.
"""

from __future__ import annotations

from collections.abc import Iterable

import pyarrow as pa

_FIELD_ID = b"PARQUET:field_id"
_NO_ID = -1


class Misfit(ValueError):
    """A column cannot become what the table's schema has. The sentence names it."""


def field_id(field: pa.Field) -> int:
    """-1 where it has none."""
    return int((field.metadata or {}).get(_FIELD_ID, _NO_ID))


def by_id(fields: Iterable[pa.Field]) -> dict[int, pa.Field]:
    return {number: field for field in fields if (number := field_id(field)) != _NO_ID}


def check_fit(have: pa.Field, wanted: pa.Field, path: str = "") -> None:
    """Whether `have`'s type may become `wanted`'s. Raises Misfit."""
    path = f"{path}.{wanted.name}" if path else wanted.name
    there, kind = _value_type(have.type), _value_type(wanted.type)
    if pa.types.is_struct(kind) and pa.types.is_struct(there):
        known = by_id(there)
        for child in kind:
            if (found := known.get(field_id(child))) is not None:
                check_fit(found, child, path)
            elif not child.nullable:
                raise Misfit(f"column {path}.{child.name} is required, and the file does not have it")
    elif pa.types.is_map(kind) and pa.types.is_map(there):
        _check_inner(there.key_field, kind.key_field, path)
        _check_inner(there.item_field, kind.item_field, path)
    elif _is_list(kind) and _is_list(there):
        _check_inner(there.value_field, kind.value_field, path)
    elif not _may_become(there, kind):
        raise Misfit(f"column {path} is {have.type} in the file, and {kind} in the table")


def is_as(have: pa.Field, wanted: pa.Field) -> bool:
    """Whether values need nothing done to them: equal types, and equal ids in nested ones."""
    there, kind = have.type, wanted.type
    if have.nullable and not wanted.nullable:
        return False
    if pa.types.is_struct(kind) and pa.types.is_struct(there):
        named = [(field.name, field_id(field)) for field in there] == [(field.name, field_id(field)) for field in kind]
        return named and all(is_as(one, other) for one, other in zip(there, kind, strict=True))
    if pa.types.is_map(kind) and pa.types.is_map(there):
        return _is_inner_as(there.key_field, kind.key_field) and _is_inner_as(there.item_field, kind.item_field)
    if pa.types.is_list(kind) and pa.types.is_list(there):
        return _is_inner_as(there.value_field, kind.value_field)
    return bool(there == kind)


def _is_inner_as(have: pa.Field, wanted: pa.Field) -> bool:
    """What a list calls its elements is nobody's business."""
    return field_id(have) == field_id(wanted) and is_as(have, wanted)


def recast(column: pa.ChunkedArray, have: pa.Field, wanted: pa.Field) -> pa.ChunkedArray:
    """Values of `have` as `wanted` holds them, which `check_fit` has allowed.

    Raises Misfit or pa.ArrowInvalid for a value that does not fit.
    """
    if is_as(have, wanted) and column.type == wanted.type:
        return column
    return pa.chunked_array([_recast(chunk, wanted, wanted.name) for chunk in column.chunks], wanted.type)


def nulls(count: int, kind: pa.DataType) -> pa.ChunkedArray:
    return pa.chunked_array([pa.nulls(count, kind)])


def _recast(array: pa.Array, wanted: pa.Field, path: str) -> pa.Array:
    if not wanted.nullable and array.null_count:
        raise Misfit(f"column {path} is required, and {array.null_count} rows of the file have no value")
    kind = wanted.type
    if pa.types.is_dictionary(kind):
        return _as_dictionary(array, kind)
    if pa.types.is_dictionary(array.type):
        array = array.cast(array.type.value_type)
    if pa.types.is_nested(kind):
        return _recast_nested(_unsliced(array), kind, path)
    if array.type == kind:
        return array
    if isinstance(kind, pa.BaseExtensionType):
        plain = array.storage if isinstance(array, pa.ExtensionArray) else array
        return pa.ExtensionArray.from_storage(kind, plain.cast(kind.storage_type))
    return array.cast(kind)


def _recast_nested(array: pa.Array, kind: pa.DataType, path: str) -> pa.Array:
    gone = array.is_null() if array.null_count else None
    if pa.types.is_struct(kind):
        places = {field_id(child): place for place, child in enumerate(array.type)}
        children = []
        for child in kind:
            place = places.get(field_id(child))
            if place is None:
                children.append(pa.nulls(len(array), child.type))
                continue
            inner = f"{path}.{child.name}"
            if not child.nullable and array.field(place).null_count and array.filter(array.is_valid()).field(place).null_count:
                raise Misfit(f"column {inner} is required, and rows of the file have no value")
            children.append(_recast(array.field(place), child.with_nullable(True), inner))
        return pa.StructArray.from_arrays(children, fields=list(kind), mask=gone)
    if pa.types.is_map(kind):
        keys, items = _recast(array.keys, kind.key_field, f"{path}.key"), _recast(array.items, kind.item_field, f"{path}.value")
        return pa.MapArray.from_arrays(array.offsets, keys, items, type=kind, mask=gone)
    if not pa.types.is_list(array.type):
        array = array.cast(pa.list_(array.type.value_field))
        return _recast_nested(array, kind, path)
    return pa.ListArray.from_arrays(array.offsets, _recast(array.values, kind.value_field, f"{path}.element"), type=kind, mask=gone)


def _as_dictionary(array: pa.Array, kind: pa.DictionaryType) -> pa.Array:
    if array.type == kind:
        return array
    if not pa.types.is_dictionary(array.type):
        return array.cast(kind.value_type).dictionary_encode().cast(kind)
    return pa.DictionaryArray.from_arrays(array.indices.cast(kind.index_type), array.dictionary.cast(kind.value_type))


def _unsliced(array: pa.Array) -> pa.Array:
    """Offsets of a slice cannot be given a mask."""
    return array.take(pa.arange(0, len(array))) if array.offset else array


def _check_inner(have: pa.Field, wanted: pa.Field, path: str) -> None:
    if field_id(have) != field_id(wanted):
        raise Misfit(f"column {path}: what is in it has field id {field_id(have)} in the file, and {field_id(wanted)} in the table")
    check_fit(have, wanted, path)


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _value_type(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _may_become(there: pa.DataType, kind: pa.DataType) -> bool:
    """Iceberg's promotions, and what Parquet files of other programs hold the same values in."""
    types = pa.types
    if there == kind:
        return True
    if isinstance(kind, pa.BaseExtensionType):
        return bool(there == kind.storage_type)
    if types.is_integer(kind):
        return bool(types.is_integer(there) and there.bit_width + types.is_unsigned_integer(there) <= kind.bit_width)
    if types.is_decimal(kind):
        return bool(types.is_decimal(there) and there.scale == kind.scale and there.precision <= kind.precision)
    if types.is_string(kind):
        return _is_text(there) or _is_bytes(there)
    if types.is_binary(kind):
        return _is_bytes(there)
    if types.is_timestamp(kind):
        return bool(types.is_timestamp(there) and (there.tz is None) == (kind.tz is None))
    if types.is_time(kind):
        return bool(types.is_time(there))
    return bool(types.is_float64(kind) and types.is_float32(there))


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _is_bytes(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind))
