from __future__ import annotations

import contextlib
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dolake.column_types import (
    SIMPLE_NAMES,
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

STRING, LONG = SimpleType("string"), SimpleType("long")


@pytest.mark.parametrize("name", sorted(SIMPLE_NAMES))
def test_each_plain_type_is_read_by_its_name(name: str) -> None:
    assert parse_type(name) == SimpleType(name)
    assert parse_type(f"  {name} ") == SimpleType(name)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("decimal(12,2)", DecimalType(12, 2)),
        ("decimal( 38 , 38 )", DecimalType(38, 38)),
        ("decimal(1,0)", DecimalType(1, 0)),
        ("fixed(16)", FixedType(16)),
        ("fixed[16]", FixedType(16)),
        ("list<string>", ListType(STRING)),
        ("map<string,long>", MapType(STRING, LONG)),
        ("map<string, list<decimal(4,1)>>", MapType(STRING, ListType(DecimalType(4, 1)))),
        ("struct<a: long, b b: list<struct<ü:string>>>", None),
    ],
)
def test_parameters_and_nesting_are_read(text: str, expected: ColumnType | None) -> None:
    if expected is None:
        inner = ListType(StructType((StructField("ü", STRING),)))
        expected = StructType((StructField("a", LONG), StructField("b b", inner)))
    assert parse_type(text) == expected


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("", "expected one of"),
        ("bigint", "expected one of"),
        ("LONG", "expected one of"),
        ("long long", "nothing more"),
        ("long;", "nothing more"),
        ("decimal", "expected `(`"),
        ("decimal(39,2)", "precision is a number 1..38"),
        ("decimal(0,0)", "precision is a number"),
        ("decimal(4,5)", "scale is a number 0..4"),
        ("decimal(4,-1)", "scale is a number"),
        ("decimal(4)", "expected `,`"),
        ("decimal(99999999999999999999999,1)", "precision"),
        ("fixed(0)", "length is a number"),
        ("fixed(3]", "expected `)`"),
        ("list<>", "expected one of"),
        ("list<long", "expected `>` at the end"),
        ("list<long>>", "nothing more"),
        ("map<string>", "expected `,`"),
        ("map<list<long>, long>", "key is of a plain type"),
        ("struct<>", "name: type"),
        ("struct<long>", "name: type"),
        ("struct<a: long, A: int>", "the same, but for case"),
        ("struct<a: long,>", "name: type"),
        ("list<" * 17 + "long" + ">" * 17, "nest at most"),
        ("list<" * 13_000, "nest at most"),
        (" " * 70_000, "at most 65536 characters"),
        ("long\x00", "nothing more"),
    ],
)
def test_bad_text_is_refused_with_the_rule(text: str, rule: str) -> None:
    with pytest.raises(ValueError, match=re.escape(rule)):
        parse_type(text)


plain = st.one_of(
    st.sampled_from(sorted(SIMPLE_NAMES)).map(SimpleType),
    st.integers(1, 38).flatmap(lambda p: st.integers(0, p).map(lambda s: DecimalType(p, s))),
    st.integers(1, 1000).map(FixedType),
)
names = st.text("abcxyzäß_0 -", min_size=1, max_size=6).map(str.strip).filter(bool)


def _struct(children: st.SearchStrategy[ColumnType]) -> st.SearchStrategy[ColumnType]:
    pairs = st.lists(st.tuples(names, children), min_size=1, max_size=3, unique_by=lambda pair: pair[0].casefold())
    return pairs.map(lambda found: StructType(tuple(StructField(name, kind) for name, kind in found)))


types = st.recursive(
    plain, lambda children: st.one_of(children.map(ListType), st.builds(MapType, plain, children), _struct(children)), max_leaves=6
)


@given(types)
def test_a_type_written_out_reads_back_as_itself(kind: ColumnType) -> None:
    assert parse_type(str(kind)) == kind


@given(st.text("alongdecimstruct<>(),:0123 []", max_size=30))
def test_any_other_text_raises_only_value_error(text: str) -> None:
    with contextlib.suppress(ValueError):
        parse_type(text)
