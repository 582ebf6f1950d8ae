"""How a table's schema comes about: dolake's own columns first, then what sources declare and what events bring along.

A changelog table has `RESERVED` and every other column optional. A field's id never changes; a column that is no longer
declared stays; where sources disagree the widest type wins, and where no type holds both the table's stays: values are
judged by it. A column is declared (by a `schema` message or the configuration) or inferred from the events; a declaration
that fits takes an inferred one over. `renamed` remembers former names for sources that still use them, by field id.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import pyarrow as pa
from pyiceberg.schema import Schema
from pyiceberg.types import IcebergType, IntegerType, LongType, NestedField, StringType, TimestamptzType
from pyiceberg.types import ListType as IcebergList
from pyiceberg.types import MapType as IcebergMap
from pyiceberg.types import StructType as IcebergStruct

from dolake.column_types import ColumnType, ListType, MapType, SimpleType, StructType, parse_type
from dolake.errors import SchemaRejected
from dolake.model import ICEBERG_COLUMN_RULE, RESERVED_COLUMN_PREFIX, DeclaredColumn, DeclaredSchema, is_iceberg_column
from dolake.parquet.types import DECLARED, Origin, arrow_field, column_type_of, doc_of, iceberg_type, origin_of, widest

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


_RESERVED_TYPES = {column.name: str(column.field_type) for column in RESERVED}


@dataclass(frozen=True)
class Evolved:
    """What a table's schema has become. `troubles` are declared columns that could not be had: the table goes on without."""

    schema: Schema
    renamed: Mapping[str, int] = field(default_factory=dict)
    troubles: tuple[SchemaRejected, ...] = ()


@dataclass(frozen=True)
class InferredColumn:
    """A column that events brought along. `beside` names the inferred column whose values of another type it takes."""

    name: str
    kind: SimpleType
    beside: str = ""


def evolve_declared(
    declared: Sequence[DeclaredSchema], current: Schema | None, *, renamed: Mapping[str, int] | None = None, last_column_id: int = 0
) -> Evolved:
    """The schema that `declared` (one for each source of the table) and the table's `current` one make together.

    `current` itself when nothing changes. `last_column_id` is the table's, so that the id of a column somebody else has
    dropped is not given again. Raises ValueError where `current` has a column of ours that is of another type.
    """
    for there in current.fields if current is not None else ():
        if (wanted := _RESERVED_TYPES.get(there.name)) is not None and str(there.field_type) != wanted:
            raise ValueError(f"{there.name} is of type {there.field_type}, and dolake writes {wanted}; give it another name")
    table = _Evolution(declared[0].table if declared else "", current, last_column_id, dict(renamed or {}))
    # Renames first, for every source: what another source still calls by the old name is the renamed column.
    for schema in declared:
        for column in schema.columns:
            table.attempt(table.rename, column)
    for schema in declared:
        names = {column.name for column in schema.columns}
        for column in schema.columns:
            table.attempt(table.take, column, names)
    return Evolved(table.schema(), table.renamed, tuple(table.troubles))


def evolve_inferred(current: Schema, columns: Iterable[InferredColumn], last_column_id: int = 0) -> Schema:
    """`current` with columns added whose names the caller has found to be free."""
    table = _Evolution("", current, last_column_id, {})
    for column in columns:
        table.add(column.name, column.kind, Origin(True, column.beside))
    return table.schema()


def aliases_of(declared: DeclaredSchema | None, schema: Schema, renamed: Mapping[str, int]) -> dict[str, str]:
    """Former column names that a source still uses → the columns' names now. `declared` is what the source has declared.

    A source that declares the new name means by the old one another column, if it uses it at all.
    """
    names = {column.field_id: column.name for column in schema.fields}
    taken = set(names.values())
    declares = {column.name for column in declared.columns} if declared else set()
    found = {}
    for old, field_id in renamed.items():
        new = names.get(field_id, old)
        if new != old and new not in declares and (old in declares or old not in taken):
            found[old] = new
    return found


def _reserved_ids() -> list[int]:
    return [*(column.field_id for column in RESERVED), _UNCHANGED_ELEMENT_ID]


class _Evolution:
    """A table's fields while columns are brought in."""

    def __init__(self, table: str, current: Schema | None, last_column_id: int, renamed: dict[str, int]) -> None:
        self.table, self.current, self.renamed = table, current, renamed
        self.fields: list[NestedField] = list(current.fields if current is not None else RESERVED)
        self.last_id = max(last_column_id, current.highest_field_id if current is not None else max(_reserved_ids()))
        self.troubles: list[SchemaRejected] = []
        self._places = {column.name: place for place, column in enumerate(self.fields)}

    def schema(self) -> Schema:
        if self.current is not None and list(self.current.fields) == self.fields:
            return self.current
        return Schema(*self.fields, schema_id=0 if self.current is None else self.current.schema_id + 1)

    def attempt(self, step: Callable[..., None], column: DeclaredColumn, *more: object) -> None:
        """One column that cannot be had keeps no other from its table."""
        try:
            step(column, *more)
        except SchemaRejected as trouble:
            if not any(known.field == trouble.field and known.rule == trouble.rule for known in self.troubles):
                self.troubles.append(trouble)

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
        self.check_name(column.name, apart_from=old)
        place = self._places.pop(old)
        self.fields[place] = self.fields[place].model_copy(update={"name": column.name})
        self._places[column.name] = place
        self.renamed[old] = self.fields[place].field_id

    def check_name(self, name: str, apart_from: str = "") -> None:
        if name.startswith(RESERVED_COLUMN_PREFIX):
            raise self.wrong(name, f"names beginning with `{RESERVED_COLUMN_PREFIX}` are dolake's own")
        if is_iceberg_column(name):
            raise self.wrong(name, f"a column's name {ICEBERG_COLUMN_RULE}; have the source call it otherwise, or leave it out (`drop`)")
        for other in self._places:
            if other.casefold() == name.casefold() and other != apart_from:
                raise self.wrong(name, f"equal to the table's `{other}` but for case")

    def take(self, column: DeclaredColumn, declares: set[str]) -> None:
        """Adds a column, or widens the one there is."""
        try:
            kind = parse_type(column.type)
        except ValueError as error:
            raise self.wrong(column.name, str(error)) from None
        place = self._place_of(column.name, declares)
        if place is None:
            self.check_name(column.name)
            self.add(column.name, kind, DECLARED)
            return
        if column.name.startswith(RESERVED_COLUMN_PREFIX):
            raise self.wrong(column.name, f"names beginning with `{RESERVED_COLUMN_PREFIX}` are dolake's own")
        there = self.fields[place]
        if beside := origin_of(there).beside:
            raise self.wrong(column.name, f"has the values of `{beside}` that are no such type; give the new one another name")
        try:
            merged = widest(column_type_of(there), kind)
        except ValueError as error:
            raise self.wrong(column.name, str(error)) from None
        if merged != column_type_of(there) or origin_of(there).inferred:
            self.fields[place] = self.field(there.field_id, there.name, merged, DECLARED, there.field_type)

    def _place_of(self, name: str, declares: set[str]) -> int | None:
        """Where the column stands; one that was renamed, for a source that does not know its new name."""
        field_id = self.renamed.get(name)
        for place, there in enumerate(self.fields):
            if there.field_id == field_id and there.name != name and there.name not in declares:
                return place
        return self._places.get(name)

    def add(self, name: str, kind: ColumnType, origin: Origin) -> None:
        field_id = self.new_id()
        self._places[name] = len(self.fields)
        self.fields.append(self.field(field_id, name, kind, origin, None))

    def field(self, field_id: int, name: str, kind: ColumnType, origin: Origin, there: IcebergType | None) -> NestedField:
        return NestedField(field_id, name, self.numbered(kind, there), required=False, doc=doc_of(kind, origin))

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
                    self.field(ids[child.name], child.name, child.type, DECLARED, old[child.name].field_type if child.name in old else None)
                    for child in kind.fields
                )
            )
        return iceberg_type(kind)


def arrow_schema(schema: Schema) -> pa.Schema:
    """The Arrow schema of a table's rows; field ids in each field's metadata (`PARQUET:field_id`), nested ones too.

    The reserved columns of few values (`DICTIONARY_NAMES`) are dictionaries.
    """
    fields = [arrow_field(column) for column in schema.fields]
    return pa.schema([one.with_type(_DICTIONARY) if one.name in DICTIONARY_NAMES else one for one in fields])
