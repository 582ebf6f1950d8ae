"""Column types in Iceberg and in Arrow: what a declared type is in either, and which type holds two others.

Iceberg has no type for JSON text: a column declared with `json` anywhere in its type carries that type in its `doc`, and so
does a column whose type was inferred (`schema` says how).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import pyarrow as pa
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

from dolake.column_types import ColumnType, DecimalType, FixedType, ListType, MapType, SimpleType, StructField, StructType, parse_type

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
    """A plain type as Iceberg's; nested ones need field ids (`schema` gives them)."""
    match kind:
        case SimpleType(name):
            return _SIMPLE[name]
        case DecimalType(precision, scale):
            return IcebergDecimal(precision, scale)
        case FixedType(length):
            return IcebergFixed(length)
    raise ValueError(f"{kind} is nested")


@dataclass(frozen=True)
class Origin:
    """Where a column's type comes from. `beside` names the inferred column whose values of another type this one takes."""

    inferred: bool = False
    beside: str = ""


DECLARED = Origin()
_INFERRED_DOC = re.compile(r"inferred (boolean|long|double|string|json)(?: beside (.+))?", re.DOTALL)


def doc_of(kind: ColumnType, origin: Origin = DECLARED) -> str | None:
    """What a column's `doc` has to say: that its type was inferred, and where JSON text stands in it."""
    if origin.inferred:
        return f"inferred {kind} beside {origin.beside}" if origin.beside else f"inferred {kind}"
    return str(kind) if holds_json(kind) else None


def column_type_of(column: NestedField) -> ColumnType:
    """The type a table's column was declared with, or inferred to have. Raises ValueError for a type dolake does not know."""
    return _read_doc(column)[0]


def origin_of(column: NestedField) -> Origin:
    """Raises ValueError for a type dolake does not know."""
    return _read_doc(column)[1]


def _read_doc(column: NestedField) -> tuple[ColumnType, Origin]:
    """Anybody may write into a doc: it holds only while it fits the column's type."""
    found = _type_of(column.field_type)
    doc = column.doc or ""
    match = _INFERRED_DOC.fullmatch(doc)
    kind, origin = (SimpleType(match[1]), Origin(True, match[2] or "")) if match else (_parsed(doc, found), DECLARED)
    return (kind, origin) if _without_json(kind) == found else (found, DECLARED)


def _parsed(doc: str, otherwise: ColumnType) -> ColumnType:
    try:
        return parse_type(doc) if doc else otherwise
    except ValueError:
        return otherwise


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
