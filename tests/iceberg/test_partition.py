"""Which spec comes next, case by case: ids kept for good, names apart, and what cannot be said no to with its reason."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from pyiceberg.schema import Schema
from pyiceberg.types import (
    BinaryType,
    BooleanType,
    DateType,
    DecimalType,
    DoubleType,
    FixedType,
    FloatType,
    IcebergType,
    IntegerType,
    ListType,
    LongType,
    MapType,
    NestedField,
    StringType,
    StructType,
    TimestampType,
    TimestamptzType,
    TimeType,
    UUIDType,
)

from dolake.errors import TableStopped
from dolake.iceberg.metadata import LoadedTable, apply_updates, new_table
from dolake.iceberg.partition import first_spec, next_spec, same_spec, schema_of_spec, source_of, spec_fits
from dolake.parquet.align import schema_as_json
from dolake.partitioning import parse_partition_by
from tests.iceberg.lake import START_MS, TABLE

COLUMNS: dict[str, IcebergType] = {
    "boolean": BooleanType(),
    "int": IntegerType(),
    "long": LongType(),
    "float": FloatType(),
    "double": DoubleType(),
    "decimal": DecimalType(9, 2),
    "date": DateType(),
    "time": TimeType(),
    "timestamp": TimestampType(),
    "timestamptz": TimestamptzType(),
    "string": StringType(),
    "uuid": UUIDType(),
    "fixed": FixedType(4),
    "binary": BinaryType(),
    "list": ListType(element_id=101, element_type=LongType(), element_required=False),
    "map": MapType(key_id=102, key_type=StringType(), value_id=103, value_type=LongType(), value_required=False),
    "struct": StructType(NestedField(104, "at", DateType()), NestedField(105, "in.side", StructType(NestedField(106, "id", LongType())))),
}
SCHEMA = Schema(*(NestedField(place, name, kind) for place, (name, kind) in enumerate(COLUMNS.items(), start=1)))
ID = {field.name: field.field_id for field in SCHEMA.fields}


def table_of(*partition_by: str, schema: Schema = SCHEMA) -> LoadedTable:
    spec = first_spec(str(TABLE), schema, parse_partition_by(partition_by))
    metadata = new_table(uuid="u", location="file:///w/t", schema=schema_as_json(schema), spec=spec, now_ms=START_MS)
    return LoadedTable(TABLE, metadata, "file:///w/t/metadata/00000-u.metadata.json")


def evolved(base: LoadedTable, *partition_by: str, schema: Schema = SCHEMA) -> LoadedTable:
    """As a commit makes it: the next spec added and set, or an older one set."""
    spec = next_spec(base, schema, parse_partition_by(partition_by))
    known = any(same_spec(one, spec) for one in base.metadata["partition-specs"])
    added: list[dict[str, Any]] = [] if known else [{"action": "add-spec", "spec": spec}]
    chosen = {"action": "set-default-spec", "spec-id": spec["spec-id"] if known else -1}
    return replace(base, metadata=apply_updates(base, [*added, chosen], now_ms=0))


def fields_of(table: LoadedTable) -> list[tuple[int, str, str, int]]:
    return [(one["field-id"], one["name"], one["transform"], one["source-id"]) for one in table.spec["fields"]]


def test_a_new_table_has_its_fields_in_order_under_their_usual_names() -> None:
    table = table_of("day(timestamptz)", "bucket(16, long)", "string", "truncate(4, string)", "void(uuid)", "hour(timestamp)", "struct.at")
    assert fields_of(table) == [
        (1000, "timestamptz_day", "day", ID["timestamptz"]),
        (1001, "long_bucket_16", "bucket[16]", ID["long"]),
        (1002, "string", "identity", ID["string"]),
        (1003, "string_trunc_4", "truncate[4]", ID["string"]),
        (1004, "uuid_null", "void", ID["uuid"]),
        (1005, "timestamp_hour", "hour", ID["timestamp"]),
        (1006, "struct.at", "identity", 104),
    ]
    assert (table.spec["spec-id"], table.metadata["last-partition-id"]) == (0, 1006)
    assert first_spec("t", SCHEMA, None) is first_spec("t", SCHEMA, ()) is None


def test_what_the_configuration_says_already_changes_nothing() -> None:
    table = table_of("day(date)", "bucket(4, int)")
    assert next_spec(table, SCHEMA, parse_partition_by(["day(date)", "bucket(4, int)"])) is table.spec
    assert next_spec(table, SCHEMA, parse_partition_by(["bucket(4, int)", "day(date)"])) is table.spec, "in whatever order"
    assert next_spec(table, SCHEMA, None) is table.spec


def test_a_field_keeps_its_id_through_every_spec_and_new_ones_count_on() -> None:
    table = evolved(table_of("day(date)"), "day(date)", "bucket(4, int)")
    assert fields_of(table) == [(1000, "date_day", "day", ID["date"]), (1001, "int_bucket_4", "bucket[4]", ID["int"])]
    table = evolved(table, "bucket(8, int)")
    assert fields_of(table) == [(1002, "int_bucket_8", "bucket[8]", ID["int"])]
    table = evolved(table, "month(date)", "day(timestamp)", "bucket(4, int)")
    assert [field_id for field_id, *_ in fields_of(table)] == [1003, 1004, 1001]
    assert [spec["spec-id"] for spec in table.metadata["partition-specs"]] == [0, 1, 2, 3]
    assert (table.metadata["default-spec-id"], table.metadata["last-partition-id"]) == (3, 1004)


def test_back_to_an_older_spec_sets_it_again() -> None:
    table = evolved(
        evolved(
            evolved(table_of("day(date)"), "bucket(4, int)"),
        ),
        "day(date)",
    )
    assert (table.metadata["default-spec-id"], len(table.metadata["partition-specs"])) == (0, 3)
    unpartitioned = evolved(table)
    assert unpartitioned.metadata["default-spec-id"] == 2
    assert unpartitioned.spec["fields"] == []


def test_no_partitions_at_all_is_a_spec_too() -> None:
    table = evolved(table_of("day(date)"))
    assert table.spec == {"spec-id": 1, "fields": []}
    assert evolved(table).metadata["partition-specs"] == table.metadata["partition-specs"]


def test_a_name_that_a_column_or_another_field_has_is_made_different() -> None:
    schema = Schema(NestedField(1, "ts", DateType()), NestedField(2, "ts_day", StringType()), NestedField(3, "x", DateType()))
    assert fields_of(table_of("day(ts)", schema=schema)) == [(1000, "ts_day_1000", "day", 1)]
    assert fields_of(table_of("ts_day", "day(ts)", schema=schema)) == [(1000, "ts_day", "identity", 2), (1001, "ts_day_1001", "day", 1)]
    again = Schema(NestedField(4, "x", DateType()))  # Dropped, and declared anew: another column.
    table = evolved(table_of("day(x)", schema=schema), "day(x)", schema=again)
    assert fields_of(table) == [(1001, "x_day_1001", "day", 4)]


def test_a_renamed_column_is_known_by_either_name() -> None:
    table = table_of("day(date)", "string")
    renamed = Schema(*(field.model_copy(update={"name": f"new {field.name}"}) for field in SCHEMA.fields))
    for names in (("day(date)", "string"), ('day("new date")', "new string")):
        assert next_spec(table, renamed, parse_partition_by(names)) is table.spec
    other = Schema(*renamed.fields, NestedField(200, "date", DateType()))
    assert next_spec(table, other, parse_partition_by(["day(date)"]))["fields"][0]["source-id"] == 200, "the one that has the name now"


ALL = set(COLUMNS) - {"list", "map", "struct"}
MOMENTS = {"date", "timestamp", "timestamptz"}
ALLOWED = {
    "{}": ALL,
    "void({})": ALL,
    "year({})": MOMENTS,
    "month({})": MOMENTS,
    "day({})": MOMENTS,
    "hour({})": MOMENTS - {"date"},
    "bucket(16, {})": ALL - {"boolean", "float", "double"},
    "truncate(4, {})": {"int", "long", "decimal", "string", "binary"},
}


@pytest.mark.parametrize("column", COLUMNS)
@pytest.mark.parametrize("form", ALLOWED)
def test_every_pair_of_transform_and_type_is_taken_or_refused_by_name(form: str, column: str) -> None:
    text = form.format(column)
    if column in ALLOWED[form]:
        assert len(table_of(text).spec["fields"]) == 1
        return
    for table, work in ((str(TABLE), lambda: table_of(text)), (str(TABLE), lambda: evolved(table_of("long"), text))):
        with pytest.raises(TableStopped) as stopped:
            work()
        assert stopped.value.table == table
        for part in (f"partition_by holds {text}", f"column {column} is {COLUMNS[column]}", "works on", "change partition_by"):
            assert part in stopped.value.reason


@pytest.mark.parametrize("name", ["nope", "struct.nope", "string.at", "list.element", "map.value", '"struct.at"', "struct.in.side.id"])
def test_a_column_that_is_not_there_is_named(name: str) -> None:
    with pytest.raises(TableStopped, match=r"partition_by names .* is no column"):
        table_of(f"bucket(4, {name})")


def test_fields_of_structs_are_found_by_their_path() -> None:
    assert fields_of(table_of('bucket(4, struct."in.side".id)')) == [(1000, "struct.in.side.id_bucket_4", "bucket[4]", 106)]
    path = source_of(SCHEMA, 106)
    assert path is not None
    assert [part.name for part in path] == ["struct", "in.side", "id"]
    assert source_of(SCHEMA, 101) is source_of(SCHEMA, 103) is None, "what a list or a map holds is many values"


def foreign(**field: Any) -> LoadedTable:
    """A table whose spec somebody else made."""
    table = table_of()
    spec = {"spec-id": 7, "fields": [{"field-id": 1000, "name": "theirs", **field}]}
    metadata = {
        **table.metadata,
        "partition-specs": [*table.metadata["partition-specs"], spec],
        "default-spec-id": 7,
        "last-partition-id": 1000,
    }
    return replace(table, metadata=metadata)


@pytest.mark.parametrize(
    ("field", "reason"),
    [
        ({"source-id": 2, "transform": "zorder"}, "zorder, which dolake does not know"),
        ({"source-id": 2, "transform": "bucket[0]"}, "does not know"),
        ({"source-ids": [2, 3], "transform": "bucket[4]"}, "does not know"),
        ({"source-id": 999, "transform": "day"}, "of a column that is gone .id 999."),
        ({"source-id": 101, "transform": "identity"}, "of a column that is gone .id 101."),
        ({"source-id": ID["string"], "transform": "day"}, "column string is string, and day works on"),
    ],
)
def test_somebody_elses_spec_that_cannot_be_written_stops_the_table_until_partition_by_rules(field: dict[str, Any], reason: str) -> None:
    table = foreign(**field)
    with pytest.raises(TableStopped, match=f"partition field theirs is .*{reason}.*partition_by"):
        next_spec(table, SCHEMA, None)
    assert fields_of(evolved(table, "day(date)")) == [(1001, "date_day", "day", ID["date"])]
    assert evolved(table).spec["spec-id"] == 0


def test_somebody_elses_spec_that_can_be_written_is_written() -> None:
    for field in ({"source-id": ID["date"], "transform": "day"}, {"source-id": 999, "transform": "void"}):
        table = foreign(**field)
        assert next_spec(table, SCHEMA, None) is table.spec
    table = foreign(**{"source-id": ID["date"], "transform": "day"})
    assert fields_of(evolved(table, "day(date)", "int")) == [(1000, "theirs", "day", ID["date"]), (1001, "int", "identity", ID["int"])]


def test_a_spec_fits_while_its_ids_mean_the_same_or_nothing_yet() -> None:
    table = table_of("day(date)")
    spec = next_spec(table, SCHEMA, parse_partition_by(["day(date)", "int"]))
    assert spec_fits(table.metadata, spec)
    assert spec_fits(evolved(table, "int", "day(date)").metadata, spec)
    assert not spec_fits(evolved(table, "long").metadata, spec)
    assert not spec_fits({**table.metadata, "last-partition-id": 1001}, spec), "given once, and gone"


def test_a_specs_schema_is_the_newest_that_has_its_columns() -> None:
    table = table_of("day(date)", "void(int)")
    now = schema_as_json(SCHEMA)
    without = {**now, "schema-id": 1, "fields": [field for field in now["fields"] if field["name"] not in ("date", "int")]}
    assert schema_of_spec(table.metadata, table.spec, now) is now
    dropped = {**table.metadata, "schemas": [*table.metadata["schemas"], without]}
    assert schema_of_spec(dropped, table.spec, without) is table.metadata["schemas"][0]
    assert schema_of_spec({**dropped, "schemas": [without]}, table.spec, without) is None
    assert schema_of_spec(foreign(**{"source-id": 2, "transform": "zorder"}).metadata, {"fields": [{"transform": "zorder"}]}, now) is None
