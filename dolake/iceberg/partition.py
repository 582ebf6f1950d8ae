"""Which partition spec a table's next files are written with: the one the configuration asks for, else the table's own.

A spec is never changed: partitioning otherwise means another spec beside it, and files that are there keep theirs. A partition
field keeps its id for good; one of the same source column and transform gets the id it had in any spec before (Iceberg v2,
"Partition Evolution").
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

import orjson
from pyiceberg.partitioning import PartitionField, PartitionSpec, partition_record_value
from pyiceberg.schema import Schema
from pyiceberg.transforms import IdentityTransform, TruncateTransform, VoidTransform, parse_transform
from pyiceberg.types import NestedField, StructType, UUIDType

from dolake.errors import TableStopped
from dolake.iceberg.metadata import LoadedTable, Metadata, field_ids
from dolake.partitioning import TIMES, Partition

Spec = Mapping[str, Any]
_FIRST_FIELD_ID = 1000
_KNOWN = re.compile(rf"identity|void|{'|'.join(TIMES)}|(bucket|truncate)\[[1-9]\d*\]")
_MOMENTS, _PLAIN = "date, timestamp and timestamptz", "every type but list, map and struct"
_WORKS_ON = {
    "identity": _PLAIN,
    "void": _PLAIN,
    "year": _MOMENTS,
    "month": _MOMENTS,
    "day": _MOMENTS,
    "hour": "timestamp and timestamptz",
    "bucket": "int, long, decimal, date, time, timestamp, timestamptz, string, uuid, fixed and binary",
    "truncate": "int, long, decimal, string and binary",
}


def first_spec(table: str, schema: Schema, partition_by: Sequence[Partition] | None) -> Spec | None:
    """The spec of a table that is to be created; None is unpartitioned. Raises TableStopped where the columns do not allow it."""
    return _Specs(table, schema, ()).plan(partition_by) if partition_by else None


def next_spec(base: LoadedTable, schema: Schema, partition_by: Sequence[Partition] | None) -> Spec:
    """The spec to write `base`'s next files with, under `schema`: one of the table's, or a new one with the next id.

    `partition_by` None leaves it to the table. Raises TableStopped, naming column, type and transform, where that cannot be.
    """
    specs = _Specs(str(base.name), schema, base.metadata["partition-specs"], base.metadata["last-partition-id"], base.spec)
    if partition_by is None:
        specs.check_own(base.spec)
        return base.spec
    return specs.plan(partition_by)


def same_spec(one: Spec, other: Spec) -> bool:
    """Equal apart from the id that a table gave it."""
    return [_identity(field) for field in one["fields"]] == [_identity(field) for field in other["fields"]]


def spec_fits(metadata: Metadata, spec: Spec) -> bool:
    """Whether `spec`'s field ids mean in this table what they mean in `spec`, or nothing yet."""
    known = {field["field-id"]: (field.get("source-id"), field["transform"]) for field in _fields(metadata["partition-specs"])}
    return all(
        known.get(field["field-id"]) == (field["source-id"], field["transform"])
        or (field["field-id"] not in known and field["field-id"] > metadata["last-partition-id"])
        for field in spec["fields"]
    )


def schema_of_spec(metadata: Metadata, spec: Spec, schema: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """`schema`, or else the newest of the table's that has every source column of `spec`: without it partition values have no type."""
    if not all(_is_known(field) for field in spec["fields"]):
        return None
    sources = {field["source-id"] for field in spec["fields"]}
    return next((known for known in (schema, *reversed(metadata["schemas"])) if sources <= set(field_ids(known))), None)


def stored_partition(schema: Mapping[str, Any], spec: Spec, values: Sequence[Any]) -> tuple[Any, ...]:
    """Partition values as manifests store them, a date as days, a timestamp as microseconds: what a `LiveFile` will say.

    `schema` and `spec` as Iceberg JSON, `values` as a `NewFile` has them. Raises ValueError where there are not as many as fields.
    """
    if not spec["fields"] and not values:
        return ()
    return stored_values(*parsed(schema, spec), values)


def stored_values(schema: Schema, spec: PartitionSpec, values: Sequence[Any]) -> tuple[Any, ...]:
    """The same for parsed ones."""
    if len(values) != len(spec.fields):
        raise ValueError(f"{len(values)} partition values for a spec of {len(spec.fields)} fields")
    return tuple(_stored(schema, part, value) for part, value in zip(spec.fields, values, strict=True))


def parsed(schema: Mapping[str, Any], spec: Spec) -> tuple[Schema, PartitionSpec]:
    """Of Iceberg JSON. The same objects for the same text: PyIceberg derives much from them, and keeps it there."""
    return _parsed(orjson.dumps(schema), orjson.dumps(spec))


@lru_cache(maxsize=64)
def _parsed(schema: bytes, spec: bytes) -> tuple[Schema, PartitionSpec]:
    return Schema.model_validate_json(schema), PartitionSpec.model_validate_json(spec)


def _stored(schema: Schema, part: PartitionField, value: Any) -> Any:
    """Values of these two are of the source column's type; the others' are integers, or nothing."""
    if not isinstance(part.transform, IdentityTransform | TruncateTransform):
        return value
    if isinstance(schema.find_field(part.source_id).field_type, UUIDType):
        return value  # It is read back as it is given, and not as the bytes that PyIceberg would make of it.
    return partition_record_value(part, value, schema)


def texts_of_partitions(
    base: LoadedTable, places: Iterable[tuple[int, tuple[Any, ...]]]
) -> dict[tuple[int, tuple[Any, ...]], dict[str, str]]:
    """What engines show of partitions, given as spec id and stored values: each field's name and value. Void fields are none of it.

    Values whose column is in no schema of the table any more have no type, and are left out.
    """
    specs = {spec["spec-id"]: spec for spec in base.metadata["partition-specs"]}
    return {(spec_id, values): _texts(base, specs[spec_id], values) for spec_id, values in places}


def _texts(base: LoadedTable, spec: Spec, values: Sequence[Any]) -> dict[str, str]:
    known = schema_of_spec(base.metadata, spec, base.schema)
    if known is None or not spec["fields"]:
        return {}
    schema, parts = parsed(known, spec)
    shown = [(part, value) for part, value in zip(parts.fields, values, strict=True) if not isinstance(part.transform, VoidTransform)]
    return {part.name: part.transform.to_human_string(schema.find_type(part.source_id), value) for part, value in shown}


def source_of(schema: Schema, field_id: int) -> tuple[NestedField, ...] | None:
    """The column of this id, after the structs that it stands in, outermost first; None if it is gone, or in a list or map."""
    return next((path for path in _paths(schema.fields) if path[-1].field_id == field_id), None)


class _Specs:
    """What one table has been partitioned by, and what it can be by."""

    def __init__(self, table: str, schema: Schema, specs: Sequence[Spec], last_id: int = _FIRST_FIELD_ID - 1, current: Spec | None = None):
        self.table, self.schema, self.specs, self.last_id, self.current = table, schema, specs, last_id, current
        # Of equal ones the current spec's comes last, and is the one that is taken.
        every = [*_fields(specs), *_fields([current] if current else [])]
        self.known = {(field.get("source-id"), field["transform"]): field for field in every}
        self.taken = {field["name"]: field["field-id"] for field in every}

    def stopped(self, reason: str) -> TableStopped:
        return TableStopped(self.table, reason, field="partition_by")

    def plan(self, partition_by: Sequence[Partition]) -> Spec:
        """The current spec if it says the same, else an older one that does, else a new one."""
        wanted = {(self.source(one), one.iceberg_transform): one for one in partition_by}
        for spec in ([self.current] if self.current else []) + list(reversed(self.specs)):
            if {(field.get("source-id"), field["transform"]) for field in spec["fields"]} == set(wanted):
                return spec
        fields = [self.field(source_id, transform, one) for (source_id, transform), one in wanted.items()]
        return {"spec-id": max((spec["spec-id"] for spec in self.specs), default=-1) + 1, "fields": fields}

    def field(self, source_id: int, transform: str, one: Partition) -> dict[str, Any]:
        known = self.known.get((source_id, transform))
        if known is None:
            self.last_id += 1
        field_id = self.last_id if known is None else known["field-id"]
        name = one.usual_name if known is None else known["name"]
        if self.is_taken(name, field_id, source_id if transform in ("identity", "void") else None):
            name = f"{name}_{field_id}"
        self.taken[name] = field_id
        return {"source-id": source_id, "field-id": field_id, "name": name, "transform": transform}

    def is_taken(self, name: str, field_id: int, own_source: int | None) -> bool:
        """A partition field is not called like another one, in any spec, nor like a column that it is not the value of."""
        if self.taken.get(name, field_id) != field_id:
            return True
        return any(name == ".".join(part.name for part in path) and path[-1].field_id != own_source for path in _paths(self.schema.fields))

    def source(self, one: Partition) -> int:
        """Id of the column that `one` names. Raises TableStopped if it is not there, or its type does not allow the transform."""
        by_name = {tuple(part.name for part in path): path[-1] for path in _paths(self.schema.fields)}
        column = by_name.get(one.column) or self.renamed(one)
        if column is None:
            name = ".".join(one.column)
            raise self.stopped(
                f"partition_by names {name}, which is no column of it (nor of a struct in it); declare it, or change the setting"
            )
        self.check(one.iceberg_transform, column, f"partition_by holds {one}")
        return column.field_id

    def renamed(self, one: Partition) -> NestedField | None:
        """A column that was called so when the table was first partitioned by it: its partitions go on under the old name."""
        for field in _fields([self.current] if self.current else []):
            if (field["name"], field["transform"]) == (one.usual_name, one.iceberg_transform):
                path = source_of(self.schema, field.get("source-id", -1))
                return path[-1] if path else None
        return None

    def check(self, transform: str, column: NestedField, said: str) -> None:
        parsed, kind = parse_transform(transform), column.field_type
        if not parsed.can_transform(kind) or (isinstance(parsed, VoidTransform) and not kind.is_primitive):
            name = transform.split("[", 1)[0]
            rule = f"{said}, but column {column.name} is {kind}, and {name} works on {_WORKS_ON[name]}"
            raise self.stopped(f"{rule}; declare the column as one of these, or change partition_by")

    def check_own(self, spec: Spec) -> None:
        """Whether files can be written with a spec that somebody else made."""
        for field in spec["fields"]:
            said = f"its partition field {field['name']} is {field['transform']}"
            if not _is_known(field):
                raise self.stopped(f"{said}, which dolake does not know; set partition_by for this table")
            if field["transform"] == "void":
                continue
            path = source_of(self.schema, field["source-id"])
            if path is None:
                raise self.stopped(f"{said} of a column that is gone (id {field['source-id']}); set partition_by for this table")
            self.check(field["transform"], path[-1], said)


def _is_known(field: Mapping[str, Any]) -> bool:
    """A transform of one column (version 3 has some of several) that dolake can compute."""
    return _KNOWN.fullmatch(field["transform"]) is not None and "source-id" in field


def _identity(field: Mapping[str, Any]) -> tuple[Any, ...]:
    return (field.get("source-id"), field["transform"], field["field-id"], field["name"])


def _fields(specs: Sequence[Spec]) -> Iterator[Mapping[str, Any]]:
    for spec in specs:
        yield from spec["fields"]


def _paths(fields: Sequence[NestedField], above: tuple[NestedField, ...] = ()) -> Iterator[tuple[NestedField, ...]]:
    """Every column and every field of a struct, each behind the structs that it stands in."""
    for field in fields:
        path = (*above, field)
        yield path
        if isinstance(field.field_type, StructType):
            yield from _paths(field.field_type.fields, path)
