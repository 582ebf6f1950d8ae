"""Declared schemas into Iceberg schemas and Arrow schemas, and how a table's schema may change.

A changelog table has dolake's own columns first (`RESERVED`), then the declared ones, every one of them optional. A
field's id never changes; a column that is no longer declared stays; where sources disagree the widest type wins.
Iceberg has no type for JSON text: a column declared with `json` anywhere in its type carries that type in its `doc`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import pyarrow as pa
from pyiceberg.schema import Schema
from pyiceberg.types import (
    BinaryType,
    BooleanType,
    DateType,
    DoubleType,
    FloatType,
    IcebergType,
    IntegerType,
    LongType,
    NestedField,
    StringType,
    TimestampType,
    TimestamptzType,
    TimeType,
    UUIDType,
)
from pyiceberg.types import DecimalType as IcebergDecimal
from pyiceberg.types import FixedType as IcebergFixed
from pyiceberg.types import ListType as IcebergList
from pyiceberg.types import MapType as IcebergMap
from pyiceberg.types import StructType as IcebergStruct

from dolake.column_types import (
    ColumnType,
    DecimalType,
    FixedType,
    ListType,
    MapType,
    SimpleType,
    StructField,
    StructType,
    parse_type,
)
from dolake.errors import SchemaRejected
from dolake.model import RESERVED_COLUMN_PREFIX, DeclaredColumn, DeclaredSchema

_SIMPLE: dict[str, IcebergType] = {
    "boolean": BooleanType(),
    "int": IntegerType(),
    "long": LongType(),
    "float": FloatType(),
    "double": DoubleType(),
    "date": DateType(),
    "time": TimeType(),
    "timestamp": TimestampType(),
    "timestamptz": TimestamptzType(),
    "string": StringType(),
    "uuid": UUIDType(),
    "binary": BinaryType(),
    "json": StringType(),
}
_SIMPLE_NAMES = {str(kind): name for name, kind in _SIMPLE.items() if name != "json"}
_ARROW: dict[str, pa.DataType] = {
    "boolean": pa.bool_(),
    "int": pa.int32(),
    "long": pa.int64(),
    "float": pa.float32(),
    "double": pa.float64(),
    "date": pa.date32(),
    "time": pa.time64("us"),
    "timestamp": pa.timestamp("us"),
    "timestamptz": pa.timestamp("us", "UTC"),
    "string": pa.string(),
    "uuid": pa.uuid(),
    "binary": pa.binary(),
    "json": pa.string(),
}
_UNCHANGED_ELEMENT_ID = 14
# Field ids are for good: add to the end, never renumber.
RESERVED: tuple[NestedField, ...] = (
    NestedField(1, "_cdc_operation", StringType(), required=True, doc="INSERT, UPDATE, DELETE or TRUNCATE"),
    NestedField(2, "_cdc_row_id", StringType(), doc="the row's id as the source sent it"),
    NestedField(3, "_cdc_timestamp", TimestamptzType(), required=True, doc="when the source changed the row"),
    NestedField(4, "_cdc_sequence", LongType(), required=True, doc="the event's sequence at its source"),
    NestedField(5, "_cdc_source", StringType(), required=True, doc="the source that sent the event"),
    NestedField(6, "_cdc_epoch", StringType(), required=True, doc="the life of the source's numbering; empty when it names none"),
    NestedField(7, "_cdc_lsn", StringType(), doc="the source database's own position"),
    NestedField(8, "_cdc_transaction", StringType(), doc="the source's transaction"),
    NestedField(9, "_cdc_key_before", StringType(), doc="the old key as JSON text, where an update changed it"),
    NestedField(
        10,
        "_cdc_unchanged",
        IcebergList(element_id=_UNCHANGED_ELEMENT_ID, element_type=StringType(), element_required=False),
        doc="columns that did not change and were not sent",
    ),
    NestedField(11, "_cdc_log", StringType(), required=True, doc="with offset and index: the event's place, and the order"),
    NestedField(12, "_cdc_offset", LongType(), required=True, doc="the record's offset in its log"),
    NestedField(13, "_cdc_index", IntegerType(), required=True, doc="the event's place in its record"),
)
RESERVED_NAMES = frozenset(column.name for column in RESERVED)
# Held as dictionaries in Arrow: a handful of values for any number of rows.
DICTIONARY_NAMES = frozenset({"_cdc_operation", "_cdc_source", "_cdc_epoch", "_cdc_log"})
_DICTIONARY = pa.dictionary(pa.int32(), pa.string())


def changelog_schema(declared: Sequence[DeclaredSchema], current: Schema | None, last_column_id: int = 0) -> Schema:
    """The schema that `declared` (one for each source of the table) and the table's `current` one make together.

    `current` itself when nothing changes. `last_column_id` is the table's, so that the id of a column somebody else has
    dropped is not given again. Raises SchemaRejected naming the column and the rule.
    """
    taken = max(last_column_id, current.highest_field_id if current is not None else max(_reserved_ids()))
    table = _Evolution(declared[0].table if declared else "", list(current.fields if current is not None else RESERVED), taken)
    # Renames first, for every source: another source's column of the old name is then a new column, not the renamed one.
    for schema in declared:
        for column in schema.columns:
            table.rename(column)
    for schema in declared:
        for column in schema.columns:
            table.take(column)
    if current is not None and list(current.fields) == table.fields:
        return current
    return Schema(*table.fields, schema_id=0 if current is None else current.schema_id + 1)


def _reserved_ids() -> list[int]:
    return [*(column.field_id for column in RESERVED), _UNCHANGED_ELEMENT_ID]


@dataclass
class _Evolution:
    """A table's fields while declared columns are brought in."""

    table: str
    fields: list[NestedField]
    last_id: int
    _places: dict[str, int] = field(init=False)

    def __post_init__(self) -> None:
        self._places = {column.name: place for place, column in enumerate(self.fields)}

    def wrong(self, name: str, rule: str) -> SchemaRejected:
        return SchemaRejected(table=self.table, field=name, rule=rule)

    def new_id(self) -> int:
        self.last_id += 1
        return self.last_id

    def rename(self, column: DeclaredColumn) -> None:
        """Gives a column its new name, once: a table that has the new name already has been through it."""
        old = column.renamed_from
        if old is None or column.name in self._places or old not in self._places:
            return
        if old.startswith(RESERVED_COLUMN_PREFIX):
            raise self.wrong(column.name, f"`{old}` is dolake's own and keeps its name")
        place = self._places.pop(old)
        self.check_name(column.name)
        self.fields[place] = self.fields[place].model_copy(update={"name": column.name})
        self._places[column.name] = place

    def check_name(self, name: str) -> None:
        if name.startswith(RESERVED_COLUMN_PREFIX):
            raise self.wrong(name, f"names beginning with `{RESERVED_COLUMN_PREFIX}` are dolake's own")
        for other in self._places:
            if other.casefold() == name.casefold():
                raise self.wrong(name, f"equal to the table's `{other}` but for case")

    def take(self, column: DeclaredColumn) -> None:
        """Adds a column, or widens the one there is."""
        try:
            kind = parse_type(column.type)
        except ValueError as error:
            raise self.wrong(column.name, str(error)) from None
        place = self._places.get(column.name)
        if place is None:
            self.check_name(column.name)
            field_id = self.new_id()
            self._places[column.name] = len(self.fields)
            self.fields.append(self.field(field_id, column.name, kind, None))
            return
        if column.name.startswith(RESERVED_COLUMN_PREFIX):
            raise self.wrong(column.name, f"names beginning with `{RESERVED_COLUMN_PREFIX}` are dolake's own")
        there = self.fields[place]
        try:
            merged = widest(column_type_of(there), kind)
        except ValueError as error:
            raise self.wrong(column.name, str(error)) from None
        if merged != column_type_of(there):
            self.fields[place] = self.field(there.field_id, there.name, merged, there.field_type)

    def field(self, field_id: int, name: str, kind: ColumnType, there: IcebergType | None) -> NestedField:
        doc = str(kind) if holds_json(kind) else None
        return NestedField(field_id, name, self.numbered(kind, there), required=False, doc=doc)

    def numbered(self, kind: ColumnType, there: IcebergType | None) -> IcebergType:
        """`kind` as an Iceberg type; nested fields keep the ids they have in `there`."""
        if isinstance(kind, ListType):
            element = there if isinstance(there, IcebergList) else None
            element_id = element.element_id if element else self.new_id()
            return IcebergList(
                element_id=element_id, element_type=self.numbered(kind.element, element and element.element_type), element_required=False
            )
        if isinstance(kind, MapType):
            entry = there if isinstance(there, IcebergMap) else None
            key_id, value_id = (entry.key_id, entry.value_id) if entry else (self.new_id(), self.new_id())
            return IcebergMap(
                key_id=key_id,
                key_type=self.numbered(kind.key, entry and entry.key_type),
                value_id=value_id,
                value_type=self.numbered(kind.value, entry and entry.value_type),
                value_required=False,
            )
        if isinstance(kind, StructType):
            old = {child.name: child for child in there.fields} if isinstance(there, IcebergStruct) else {}
            ids = {child.name: old[child.name].field_id if child.name in old else self.new_id() for child in kind.fields}
            return IcebergStruct(
                *(
                    self.field(ids[child.name], child.name, child.type, old[child.name].field_type if child.name in old else None)
                    for child in kind.fields
                )
            )
        return iceberg_type(kind)


def widest(there: ColumnType, declared: ColumnType) -> ColumnType:
    """The type that holds both, going only where Iceberg lets a column go. Raises ValueError with the rule."""
    if there == declared:
        return there
    match there, declared:
        case SimpleType(a), SimpleType(b) if {a, b} in ({"int", "long"}, {"float", "double"}, {"string", "json"}):
            return SimpleType({"int": "long", "float": "double", "string": "json"}.get(a, a))
        case DecimalType(_, a), DecimalType(_, b) if a == b:
            return DecimalType(max(there.precision, declared.precision), a)
        case ListType(), ListType():
            return ListType(widest(there.element, declared.element))
        case MapType(), MapType():
            return MapType(widest(there.key, declared.key), widest(there.value, declared.value))
        case StructType(), StructType():
            old, new = ({child.name: child.type for child in kind.fields} for kind in (there, declared))
            for name in new.keys() - old.keys():
                for other in old:
                    if other.casefold() == name.casefold():
                        raise ValueError(f"field `{name}` is equal to `{other}` but for case")
            kept = [StructField(name, widest(kind, new[name]) if name in new else kind) for name, kind in old.items()]
            return StructType((*kept, *(child for child in declared.fields if child.name not in old)))
    raise ValueError(
        f"{there} cannot become {declared}: a column only goes from int to long, float to double, or to more decimal digits"
        " before the point; give the new one another name"
    )


def holds_json(kind: ColumnType) -> bool:
    """Whether JSON text stands anywhere in a value of this type."""

    match kind:
        case SimpleType(name):
            return name == "json"
        case ListType(element):
            return holds_json(element)
        case MapType(key, value):
            return holds_json(key) or holds_json(value)
        case StructType(fields):
            return any(holds_json(child.type) for child in fields)
        case _:
            return False


def iceberg_type(kind: ColumnType) -> IcebergType:
    """A plain type as Iceberg's; nested ones need field ids (`changelog_schema`)."""
    match kind:
        case SimpleType(name):
            return _SIMPLE[name]
        case DecimalType(precision, scale):
            return IcebergDecimal(precision, scale)
        case FixedType(length):
            return IcebergFixed(length)
    raise ValueError(f"{kind} is nested")


def column_type_of(column: NestedField) -> ColumnType:
    """The type a table's column was declared with. Raises ValueError for a type dolake does not know."""
    found = _type_of(column.field_type)
    if column.doc:
        try:
            declared = parse_type(column.doc)
        except ValueError:
            return found
        # Anybody may write into a doc: it only says which strings are JSON text, and only while it fits the type.
        if _without_json(declared) == found:
            return declared
    return found


def _type_of(kind: IcebergType) -> ColumnType:
    match kind:
        case IcebergDecimal():
            return DecimalType(kind.precision, kind.scale)
        case IcebergFixed():
            return FixedType(len(kind))
        case IcebergList():
            return ListType(_type_of(kind.element_type))
        case IcebergMap():
            return MapType(_type_of(kind.key_type), _type_of(kind.value_type))
        case IcebergStruct():
            return StructType(tuple(StructField(child.name, _type_of(child.field_type)) for child in kind.fields))
    name = _SIMPLE_NAMES.get(str(kind))
    if name is None:
        raise ValueError(f"columns of type {kind} are not written by dolake")
    return SimpleType(name)


def _without_json(kind: ColumnType) -> ColumnType:
    match kind:
        case SimpleType("json"):
            return SimpleType("string")
        case ListType(element):
            return ListType(_without_json(element))
        case MapType(key, value):
            return MapType(_without_json(key), _without_json(value))
        case StructType(fields):
            return StructType(tuple(StructField(child.name, _without_json(child.type)) for child in fields))
    return kind


def arrow_schema(schema: Schema) -> pa.Schema:
    """The Arrow schema of a table's rows; field ids in each field's metadata (`PARQUET:field_id`), nested ones too.

    The reserved columns of few values (`DICTIONARY_NAMES`) are dictionaries.
    """
    fields = [arrow_field(column) for column in schema.fields]
    return pa.schema([one.with_type(_DICTIONARY) if one.name in DICTIONARY_NAMES else one for one in fields])


def arrow_field(column: NestedField) -> pa.Field:
    metadata = {"PARQUET:field_id": str(column.field_id)}
    return pa.field(column.name, arrow_type(column.field_type), nullable=not column.required, metadata=metadata)


def arrow_type(kind: IcebergType) -> pa.DataType:
    match kind:
        case IcebergList():
            return pa.list_(arrow_field(kind.element_field))
        case IcebergMap():
            return pa.map_(arrow_field(kind.key_field), arrow_field(kind.value_field))
        case IcebergStruct():
            return pa.struct([arrow_field(child) for child in kind.fields])
    return plain_arrow_type(_type_of(kind))


def plain_arrow_type(kind: ColumnType) -> pa.DataType:
    match kind:
        case SimpleType(name):
            return _ARROW[name]
        case DecimalType(precision, scale):
            return pa.decimal128(precision, scale)
        case FixedType(length):
            return pa.binary(length)
    raise ValueError(f"{kind} is nested")
