"""Schemas, partition specs and sort orders that clients send: whether they are good, and good together.

PyIceberg's classes judge them; the JSON that was sent is what is kept.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import msgspec
from pyiceberg.exceptions import ValidationError
from pyiceberg.partitioning import PartitionSpec, assign_fresh_partition_spec_ids
from pyiceberg.schema import Schema, assign_fresh_schema_ids
from pyiceberg.table.sorting import SortOrder, assign_fresh_sort_order_ids
from pyiceberg.types import NestedField

from dolake.iceberg.metadata import FORMAT_VERSION, field_ids
from dolake.iceberg.rest_errors import bad_request

T = TypeVar("T")
_UNPARTITIONED = {"spec-id": 0, "fields": []}
_UNSORTED = {"order-id": 0, "fields": []}


class _Transformed(msgspec.Struct, rename=lambda name: name.replace("_", "-")):
    source_id: int
    transform: str


class _PartitionField(_Transformed, kw_only=True):
    name: str
    field_id: int | None = None


class _SortField(_Transformed, kw_only=True):
    direction: str
    null_order: str


class _Spec(msgspec.Struct):
    fields: list[_PartitionField]


class _Order(msgspec.Struct):
    fields: list[_SortField]


def checked_schema(sent: Mapping[str, Any]) -> Schema:
    """Raises CatalogRefusal (400) for a schema that no table of format version 2 may have."""
    for kind in ("fields", "type"):
        if kind not in sent:
            raise bad_request(f"schema: `{kind}` is missing")
    schema = judged("schema", lambda: Schema.model_validate(sent))
    twice = [number for number, count in Counter(field_ids(sent["fields"])).items() if count > 1]
    if twice:
        raise bad_request(f"schema: a field id stands for one field only (got {twice[:10]} more than once)")
    for field in _nested(schema):
        if field.initial_default is not None:
            raise bad_request(f"schema: {field.name}: `initial-default` belongs to format version 3: tables here have version 2")
    judged("schema", lambda: schema.check_format_version_compatibility(FORMAT_VERSION))
    judged("schema", lambda: schema.column_names)  # Two columns of one name are found here.
    return schema


def checked_spec(sent: Mapping[str, Any]) -> PartitionSpec:
    """Raises CatalogRefusal (400). Field ids may be left out: all of them, or none."""
    shape = _shaped("partition spec", sent, _Spec)
    if len({field.name for field in shape.fields}) < len(shape.fields):
        raise bad_request("partition spec: two of its fields have one name")
    # What ids the fields get is not judged here; PyIceberg wants some.
    fields = [{"field-id": 1000 + place, **field} for place, field in enumerate(sent["fields"])]
    return judged("partition spec", lambda: PartitionSpec.model_validate({"spec-id": 0, **sent, "fields": fields}))


def checked_order(sent: Mapping[str, Any]) -> SortOrder:
    """Raises CatalogRefusal (400)."""
    _shaped("sort order", sent, _Order)
    return judged("sort order", lambda: SortOrder.model_validate({"order-id": 0, **sent}))


def require_together(metadata: Mapping[str, Any]) -> None:
    """The spec and order in force must fit the schema in force. Raises CatalogRefusal (400)."""
    schema = Schema.model_validate(_of(metadata, "schemas", "schema-id", "current-schema-id"))
    spec = PartitionSpec.model_validate(_of(metadata, "partition-specs", "spec-id", "default-spec-id"))
    order = SortOrder.model_validate(_of(metadata, "sort-orders", "order-id", "default-sort-order-id"))
    judged("the partition spec in force", lambda: spec.check_compatible(schema))
    judged("the sort order in force", lambda: order.check_compatible(schema))


def fresh_structure(
    schema: Mapping[str, Any], spec: Mapping[str, Any] | None, order: Mapping[str, Any] | None
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Schema, spec and sort order of a new table, as JSON: field ids from 1 on, level by level, as every Iceberg catalog gives them.

    Raises CatalogRefusal (400).
    """
    sent_schema = checked_schema(schema)
    sent_spec, sent_order = checked_spec(spec or _UNPARTITIONED), checked_order(order or _UNSORTED)
    new_schema = assign_fresh_schema_ids(sent_schema)
    new_spec = judged("partition spec", lambda: assign_fresh_partition_spec_ids(sent_spec, sent_schema, new_schema))
    new_order = judged("sort order", lambda: assign_fresh_sort_order_ids(sent_order, sent_schema, new_schema))
    judged("partition spec", lambda: new_spec.check_compatible(new_schema))
    judged("sort order", lambda: new_order.check_compatible(new_schema))
    return (
        {**_json(new_schema), "schema-id": 0},
        {**_json(new_spec), "spec-id": 0},
        {**_json(new_order), "order-id": 1 if new_order.fields else 0},
    )


def _json(value: Schema | PartitionSpec | SortOrder) -> dict[str, Any]:
    found: dict[str, Any] = msgspec.json.decode(value.model_dump_json())
    return found


def _nested(schema: Schema) -> list[NestedField]:
    return list(schema._lazy_id_to_field.values())


def _of(metadata: Mapping[str, Any], key: str, id_name: str, current: str) -> Mapping[str, Any]:
    found: Mapping[str, Any] = next(item for item in metadata[key] if item[id_name] == metadata[current])
    return found


def _shaped(what: str, sent: Mapping[str, Any], kind: type[T]) -> T:
    try:
        return msgspec.convert(sent, kind)
    except msgspec.ValidationError as error:
        raise bad_request(f"{what}: {error}") from None


def judged(what: str, judge: Callable[[], T]) -> T:
    """PyIceberg's verdict on what was sent. It says no in many ways; each is a CatalogRefusal (400)."""
    try:
        return judge()
    except (ValidationError, ValueError, TypeError, KeyError, AttributeError, IndexError, RecursionError) as error:
        raise bad_request(f"{what}: {_words(error)}") from None


def _words(error: Exception) -> str:
    errors = getattr(error, "errors", None)
    if callable(errors):  # pydantic's: one line each, without its links
        return "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}".lstrip(": ") for one in errors()[:3])
    return str(error)[:500] or type(error).__name__
