from __future__ import annotations

import pyarrow as pa
import pytest

from dolake.model import DeclaredColumn, DeclaredSchema
from dolake.parquet.align import align, schema_as_json, schema_from_json
from dolake.parquet.encode import encode_parquet
from dolake.parquet.rows import ChangelogDecoder
from dolake.parquet.schema import arrow_schema, evolve_declared

from .events import TABLE, chunk_of, event, schema_of

UUID_TEXT = '"0b5e1f8e-8f7c-4c1e-9a51-0123456789ab"'


@pytest.mark.parametrize(
    ("before", "after", "value"),
    [
        ("int", "long", "7"),
        ("float", "double", "0.5"),
        ("decimal(9,2)", "decimal(38,2)", "1.25"),
        ("list<int>", "list<long>", "[1,null]"),
        ("map<int, float>", "map<long, double>", "[[1,0.5]]"),
        ("struct<a: int>", "struct<a: long, b: string>", '{"a":1}'),
        ("struct<a: uuid>", "struct<a: uuid, b: list<uuid>>", f'{{"a":{UUID_TEXT}}}'),
        ("list<struct<a: int, u: uuid>>", "list<struct<a: long, u: uuid, c: json>>", f'[{{"a":1,"u":{UUID_TEXT}}},null,{{}}]'),
        ("map<string, struct<u: uuid>>", "map<string, struct<u: uuid, n: list<int>>>", f'[["k",{{"u":{UUID_TEXT}}}],["l",null]]'),
        ("list<map<uuid, int>>", "list<map<uuid, long>>", f"[[[{UUID_TEXT},1]],[],null]"),
        ("string", "json", '"{}"'),
    ],
)
def test_rows_of_an_older_schema_are_what_the_newer_one_would_have_read(before: str, after: str, value: str) -> None:
    old = schema_of(x=before, y="string")
    new = evolve_declared([DeclaredSchema(TABLE, (), (DeclaredColumn("x", after), DeclaredColumn("z", "list<uuid>")))], old).schema
    chunks = [chunk_of(event({"x": value}), event(), event({"x": "null", "y": '"a"'}))]
    aligned = align(ChangelogDecoder(TABLE, old).decode(chunks).rows, new)
    expected = ChangelogDecoder(TABLE, new).decode(chunks).rows
    assert aligned.schema.equals(arrow_schema(new), check_metadata=True)
    aligned.validate(full=True)
    assert repr(aligned.to_pylist()) == repr(expected.to_pylist())
    assert encode_parquet(pa.concat_tables([aligned, expected])).row_count == 6


def test_a_renamed_column_keeps_its_values() -> None:
    old = schema_of(note="string")
    new = evolve_declared([DeclaredSchema(TABLE, (), (DeclaredColumn("remark", "string", renamed_from="note"),))], old).schema
    rows = align(ChangelogDecoder(TABLE, old).decode([chunk_of(event({"note": '"a"'}))]).rows, new)
    assert rows.column("remark").to_pylist() == ["a"]


def test_a_schema_survives_json_with_its_ids_and_docs() -> None:
    schema = schema_of(x="list<struct<a: json>>", u="uuid")
    assert schema_from_json(schema_as_json(schema)) == schema
    assert [one.doc for one in schema_from_json(schema_as_json(schema)).fields] == [one.doc for one in schema.fields]
