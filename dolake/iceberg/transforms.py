"""Rows' partition values, a column at a time, as Iceberg's specification defines each transform."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from pyiceberg.partitioning import PartitionField, PartitionSpec
from pyiceberg.schema import Schema
from pyiceberg.transforms import IdentityTransform, TruncateTransform, VoidTransform
from pyiceberg.types import DecimalType, IcebergType, IntegerType, LongType

from dolake.errors import TableStopped
from dolake.iceberg.partition import source_of


def partition_values(table: str, rows: pa.Table, schema: Schema, spec: Mapping[str, Any]) -> list[pa.ChunkedArray]:
    """For each field of `spec` its value in every row; `rows` are under `schema`, and the spec is one of `next_spec`'s.

    Raises TableStopped for a number that has no truncated value in its type.
    """
    return [_values(table, rows, schema, field) for field in PartitionSpec.model_validate(spec).fields]


def _values(table: str, rows: pa.Table, schema: Schema, field: PartitionField) -> pa.ChunkedArray:
    if isinstance(field.transform, VoidTransform):
        return pa.chunked_array([pa.nulls(rows.num_rows, pa.int32())])
    path = source_of(schema, field.source_id)
    assert path is not None  # Or the spec would have been refused.
    column = rows.column(path[0].name)
    if len(path) > 1:
        column = pa.chunked_array([_child(chunk, [part.name for part in path[1:]]) for chunk in column.chunks])
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if isinstance(field.transform, IdentityTransform):
        return column
    values = field.transform.pyarrow_transform(path[-1].field_type)(column)
    if isinstance(field.transform, TruncateTransform):
        _check_truncated(table, field, path[-1].field_type, column, values)
    return values


def _child(struct: pa.StructArray, names: list[str]) -> pa.Array:
    """A field inside; null where any struct above it is."""
    return pc.struct_field(struct, names)


def _check_truncated(table: str, field: PartitionField, kind: IcebergType, before: pa.ChunkedArray, after: pa.ChunkedArray) -> None:
    """Numbers are rounded down. Next to a type's lowest one that leaves the type, and readers would look for the row elsewhere."""
    if isinstance(kind, IntegerType | LongType):
        outside = pc.greater(after, before)  # It came out at the other end.
    elif isinstance(kind, DecimalType):
        outside = pc.less(after, pa.scalar(_lowest(kind), after.type))
    else:
        return
    wrong = before.filter(outside)
    if len(wrong):
        reason = "no value of its partition field {} for a row: {} rounds {} down below every {}; change partition_by"
        in_words, unsaid = (reason.format(field.name, field.transform, value, kind) for value in (wrong[0].as_py(), "it"))
        raise TableStopped(table, in_words, field="partition_by", rule=unsaid)


def _lowest(kind: DecimalType) -> Decimal:
    return Decimal((1, (9,) * kind.precision, -kind.scale))
