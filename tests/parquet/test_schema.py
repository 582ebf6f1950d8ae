from __future__ import annotations

import pyarrow as pa
import pytest
from pyiceberg.schema import Schema

from dolake.column_types import SimpleType
from dolake.model import DeclaredColumn, DeclaredSchema
from dolake.parquet.schema import (
    RESERVED,
    RESERVED_NAMES,
    Evolved,
    InferredColumn,
    aliases_of,
    arrow_schema,
    evolve_declared,
    evolve_inferred,
)
from dolake.parquet.types import column_type_of, origin_of


def declared(*columns: tuple[str, str] | DeclaredColumn) -> DeclaredSchema:
    return DeclaredSchema(
        "default.orders", ("id",), tuple(one if isinstance(one, DeclaredColumn) else DeclaredColumn(*one) for one in columns)
    )


def changelog_schema(declarations: list[DeclaredSchema], current: Schema | None, last_column_id: int = 0) -> Schema:
    found = evolve_declared(declarations, current, last_column_id=last_column_id)
    assert found.troubles == ()
    return found.schema


def types(schema: Schema) -> dict[str, str]:
    return {field.name: str(field.field_type) for field in schema.fields if field.name not in RESERVED_NAMES}


def ids(schema: Schema) -> dict[str, int]:
    return {field.name: field.field_id for field in schema.fields}


def test_the_reserved_columns_come_first_and_declared_ones_are_optional() -> None:
    schema = changelog_schema([declared(("id", "long"), ("total", "decimal(12,2)"))], None)
    assert [field.name for field in schema.fields] == [*(field.name for field in RESERVED), "id", "total"]
    assert types(schema) == {"id": "long", "total": "decimal(12, 2)"}
    assert all(field.optional for field in schema.fields if field.name not in RESERVED_NAMES)
    required = {field.name for field in schema.fields if field.required}
    assert required == {f"_cdc_{name}" for name in ("operation", "timestamp", "sequence", "source", "epoch", "log", "offset", "index")}


def test_field_ids_are_all_different_and_the_reserved_ones_fixed() -> None:
    schema = changelog_schema([declared(("a", "list<struct<x: long, y: map<string, int>>>"), ("b", "string"))], None)
    every = list(schema._lazy_id_to_field)
    assert len(set(every)) == len(every) == 14 + 2 + 5
    assert [ids(schema)[name] for name in ("_cdc_operation", "_cdc_index")] == [1, 13]


def test_the_same_declaration_again_changes_nothing() -> None:
    orders = declared(("id", "long"), ("doc", "json"), ("tags", "list<json>"), ("s", "struct<a: json>"))
    schema = changelog_schema([orders], None)
    assert changelog_schema([orders], schema) is schema
    assert changelog_schema([], schema) is schema


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ("int", "long", "long"),
        ("long", "int", "long"),
        ("float", "double", "double"),
        ("double", "float", "double"),
        ("decimal(10,2)", "decimal(12,2)", "decimal(12, 2)"),
        ("decimal(12,2)", "decimal(10,2)", "decimal(12, 2)"),
        ("list<int>", "list<long>", "list<long>"),
        ("map<int, float>", "map<long, double>", "map<long, double>"),
        ("struct<a: int>", "struct<b: string, a: long>", "struct<17: a: optional long, 19: b: optional string>"),
    ],
)
def test_a_column_takes_the_wider_type_and_keeps_its_ids(before: str, after: str, expected: str) -> None:
    schema = changelog_schema([declared(("id", "long"), ("x", before), ("last", "string"))], None)
    wider = changelog_schema([declared(("x", after))], schema)
    kept = {one: field.name for one, field in schema._lazy_id_to_field.items()}
    assert ids(wider) == ids(schema)
    assert kept.items() <= {one: field.name for one, field in wider._lazy_id_to_field.items()}.items()
    assert types(wider)["x"] == expected


def test_where_sources_disagree_the_widest_type_wins_whatever_their_order() -> None:
    first, second = declared(("id", "int"), ("x", "decimal(9,2)")), declared(("id", "long"), ("x", "decimal(4,2)"), ("y", "string"))
    for order in ([first, second], [second, first]):
        assert types(changelog_schema(order, None)) == {"id": "long", "x": "decimal(9, 2)", "y": "string"}


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("long", "string"),
        ("string", "long"),
        ("int", "float"),
        ("decimal(10,2)", "decimal(12,3)"),
        ("timestamp", "timestamptz"),
        ("list<long>", "list<string>"),
        ("list<long>", "long"),
        ("fixed(4)", "fixed(5)"),
        ("struct<a: long>", "struct<A: long>"),
    ],
)
def test_a_change_iceberg_does_not_allow_leaves_the_column_and_says_why(before: str, after: str) -> None:
    schema = changelog_schema([declared(("x", before))], None)
    for declarations, current in ([[declared(("x", after))], schema], [[declared(("x", before)), declared(("x", after))], None]):
        found = evolve_declared(declarations, current)
        assert types(found.schema) == types(schema)
        (trouble,) = found.troubles
        assert (trouble.table, trouble.field) == ("default.orders", "x")
        assert "column x: " in str(trouble)


def test_a_new_column_gets_a_new_id_and_a_dropped_one_stays() -> None:
    schema = changelog_schema([declared(("id", "long"), ("old", "string"))], None)
    later = changelog_schema([declared(("id", "long"), ("new", "string"))], schema)
    assert types(later) == {"id": "long", "old": "string", "new": "string"}
    assert ids(later) == {**ids(schema), "new": 17}
    assert later.schema_id == schema.schema_id + 1
    assert ids(changelog_schema([declared(("newer", "string"))], schema, last_column_id=40))["newer"] == 41


def test_a_rename_keeps_the_id_and_is_done_once() -> None:
    schema = changelog_schema([declared(("id", "long"), ("note", "string"))], None)
    renamed = declared(DeclaredColumn("remark", "string", renamed_from="note"))
    later = evolve_declared([renamed], schema)
    assert types(later.schema) == {"id": "long", "remark": "string"}
    assert ids(later.schema)["remark"] == ids(schema)["note"] == later.renamed["note"]
    assert evolve_declared([renamed], later.schema, renamed=later.renamed) == later


def renamed_twice() -> Evolved:
    schema = changelog_schema([declared(("note", "string"))], None)
    once = evolve_declared([declared(DeclaredColumn("remark", "string", renamed_from="note"))], schema)
    return evolve_declared([declared(DeclaredColumn("comment", "string", renamed_from="remark"))], once.schema, renamed=once.renamed)


def test_a_source_that_does_not_know_a_new_name_means_the_renamed_column() -> None:
    now = renamed_twice()
    for old in ("note", "remark"):
        older = declared((old, "string"), ("extra", "long"))
        both = evolve_declared([declared(("comment", "string")), older], now.schema, renamed=now.renamed)
        assert types(both.schema) == {"comment": "string", "extra": "long"}
        assert both.troubles == ()
        assert aliases_of(older, both.schema, both.renamed) == {"note": "comment", "remark": "comment"}
    assert aliases_of(None, now.schema, now.renamed) == {"note": "comment", "remark": "comment"}


def test_a_source_that_knows_the_new_name_may_have_another_column_of_the_old_one() -> None:
    now = renamed_twice()
    newer = declared(("comment", "string"), ("note", "long"))
    both = evolve_declared([newer], now.schema, renamed=now.renamed)
    assert types(both.schema) == {"comment": "string", "note": "long"}
    assert aliases_of(newer, both.schema, both.renamed) == {}
    assert aliases_of(declared(("note", "string")), both.schema, both.renamed)["note"] == "comment"
    assert "note" not in aliases_of(None, both.schema, both.renamed)


def test_inferred_columns_say_so_and_a_declaration_that_fits_takes_them_over() -> None:
    brought = [
        InferredColumn("n", SimpleType("long")),
        InferredColumn("n__string", SimpleType("string"), "n"),
        InferredColumn("j", SimpleType("json")),
    ]
    schema = evolve_inferred(changelog_schema([], None), brought, last_column_id=30)
    assert types(schema) == {"n": "long", "n__string": "string", "j": "string"}
    assert [ids(schema)[name] for name in ("n", "n__string", "j")] == [31, 32, 33]
    assert [origin_of(schema.find_field(name)).beside for name in ("n", "n__string", "j")] == ["", "n", ""]
    assert all(origin_of(schema.find_field(name)).inferred for name in ("n", "n__string", "j"))
    assert str(column_type_of(schema.find_field("j"))) == "json"
    taken = changelog_schema([declared(("n", "int"), ("j", "string"))], schema)
    assert types(taken) == types(schema)
    assert ids(taken) == ids(schema)
    assert [origin_of(taken.find_field(name)).inferred for name in ("n", "n__string", "j")] == [False, True, False]
    other = evolve_declared([declared(("n", "date"), ("n__string", "string"))], schema)
    assert types(other.schema) == types(schema)
    assert [trouble.field for trouble in other.troubles] == ["n", "n__string"]
    assert origin_of(other.schema.find_field("n")).inferred


@pytest.mark.parametrize(
    ("column", "rule"),
    [
        (DeclaredColumn("Total", "long"), "`total` but for case"),
        (DeclaredColumn("_cdc_log", "long"), "dolake's own"),
        (DeclaredColumn("_cdc_new", "long"), "dolake's own"),
        (DeclaredColumn("x", "long", renamed_from="_cdc_lsn"), "dolake's own"),
        (DeclaredColumn("_pos", "long"), "Iceberg gives every table"),
        (DeclaredColumn("_Row_Id", "long"), "Iceberg gives every table"),
        (DeclaredColumn("_file", "long", renamed_from="total"), "Iceberg gives every table"),
        (DeclaredColumn("x", "bigint"), "not a column type"),
    ],
)
def test_a_column_that_cannot_be_is_left_out_by_name_and_keeps_no_other_out(column: DeclaredColumn, rule: str) -> None:
    schema = changelog_schema([declared(("total", "long"))], None)
    found = evolve_declared([declared(column, ("good", "date"))], schema)
    assert types(found.schema)["good"] == "date"
    assert found.troubles[0].field == column.name
    assert rule in found.troubles[0].rule


@pytest.mark.parametrize("kind", ["json", "list<json>", "map<string, json>", "struct<a: long, b: list<json>>"])
def test_json_text_is_told_from_strings_by_the_doc(kind: str) -> None:
    schema = changelog_schema([declared(("x", kind), ("s", "string"))], None)
    assert str(column_type_of(schema.find_field("x"))) == kind
    assert str(column_type_of(schema.find_field("s"))) == "string"
    foreign = schema.find_field("s").model_copy(update={"doc": "long"})
    assert str(column_type_of(foreign)) == "string", "a doc that does not fit the type says nothing"


def test_arrow_fields_carry_the_ids_at_every_level() -> None:
    schema = changelog_schema([declared(("u", "uuid"), ("x", "list<struct<a: map<string, uuid>>>"))], None)
    arrow = arrow_schema(schema)

    def found(field: pa.Field) -> list[tuple[str, int]]:
        kind = field.type
        children = [kind.key_field, kind.item_field] if pa.types.is_map(kind) else [kind.field(i) for i in range(kind.num_fields)]
        return [(field.name, int(field.metadata[b"PARQUET:field_id"])), *(one for child in children for one in found(child))]

    pairs = [one for field in arrow for one in found(field)]
    assert len({number for _, number in pairs}) == len(pairs)
    assert {number: name for name, number in pairs} == {one: field.name for one, field in schema._lazy_id_to_field.items()}
    assert arrow.field("u").type == pa.uuid()
    assert not arrow.field("_cdc_log").nullable
