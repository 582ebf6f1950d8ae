from __future__ import annotations

import json

import pytest

from dolake.cdc.formats.postgres import column_type, parse_array


@pytest.mark.parametrize(
    ("declared", "name"),
    [
        ("bigint", "long"),
        ("integer", "int"),
        ("smallint", "int"),
        ("real", "float"),
        ("double precision", "double"),
        ("boolean", "boolean"),
        ("numeric", "string"),
        ("numeric(12,2)", "decimal(12,2)"),
        ("numeric(5,0)", "decimal(5,0)"),
        ("numeric(38,10)", "decimal(38,10)"),
        ("numeric(39,2)", "string"),
        ("numeric(3,-2)", "decimal(5,0)"),
        ("numeric(3,5)", "decimal(5,5)"),
        ("text", "string"),
        ("character varying(32)", "string"),
        ("character(2)", "string"),
        ("order_status", "string"),
        ("money", "string"),
        ("interval", "string"),
        ("time with time zone", "string"),
        ("time without time zone", "time"),
        ("time(3) without time zone", "time"),
        ("timestamp without time zone", "timestamp"),
        ("timestamp(3) without time zone", "timestamp"),
        ("timestamp with time zone", "timestamptz"),
        ("timestamp(0) with time zone", "timestamptz"),
        ("date", "date"),
        ("uuid", "uuid"),
        ("json", "json"),
        ("jsonb", "json"),
        ("bytea", "binary"),
        ("text[]", "list<string>"),
        ("numeric(12,2)[]", "list<decimal(12,2)>"),
        ("timestamp(3) with time zone[]", "list<timestamptz>"),
        ("order_status[]", "list<string>"),
        ("box[]", "string"),
    ],
)
def test_each_type_is_declared_as_what_holds_its_values(declared: str, name: str) -> None:
    assert column_type(declared).name == name


@pytest.mark.parametrize(
    ("declared", "sent", "wire"),
    [
        ("integer", b"7", b"7"),
        ("integer", b'"7"', b"7"),
        ("numeric(12,2)", b"986.29", b"986.29"),
        ("numeric(20,2)", b"123456789012345678.90", b"123456789012345678.90"),
        ("numeric(12,2)", b'"NaN"', b'"NaN"'),
        ("numeric", b"0.10", b'"0.10"'),
        ("numeric", b'"Infinity"', b'"Infinity"'),
        ("double precision", b"9.14076218238231", b"9.14076218238231"),
        ("double precision", b'"-Infinity"', b'"-Infinity"'),
        ("oid", b"26", b'"26"'),
        ("text", '"🚀 \\n"'.encode(), '"🚀 \\n"'.encode()),
        ("jsonb", rb'"{\"a\": 1.50}"', rb'"{\"a\": 1.50}"'),
        ("bytea", b'"c4ca"', b'"xMo="'),
        ("bytea", rb'"\\xc4ca"', b'"xMo="'),
        ("bytea", b'""', b'""'),
        ("timestamp without time zone", b'"2026-11-20 15:30:18.587677"', b'"2026-11-20T15:30:18.587677"'),
        ("timestamp with time zone", b'"2026-11-20 15:30:18.12+00"', b'"2026-11-20T15:30:18.12+00:00"'),
        ("timestamp with time zone", b'"2026-11-20 15:30:18-03"', b'"2026-11-20T15:30:18-03:00"'),
        ("timestamp with time zone", b'"2026-11-20 15:30:18+05:30"', b'"2026-11-20T15:30:18+05:30"'),
        ("timestamp with time zone", b'"infinity"', b'"infinity"'),
        ("timestamp with time zone", b'"0044-03-15 12:00:00+00 BC"', b'"0044-03-15 12:00:00+00 BC"'),
        ("text[]", b'"{}"', b"[]"),
        ("text[]", b'"{a,NULL,\\"NULL\\",\\"\\"}"', b'["a",null,"NULL",""]'),
        ("boolean[]", b'"{t,f,NULL}"', b"[true,false,null]"),
        ("integer[]", b'"{1,-2}"', b"[1,-2]"),
        ("integer[]", b'"[0:1]={1,-2}"', b"[1,-2]"),
        ("numeric(12,2)[]", b'"{1.50,986.29}"', b"[1.50,986.29]"),
        ("numeric[]", b'"{1.50,NaN}"', b'["1.50","NaN"]'),
        ("double precision[]", b'"{1.5,NaN,Infinity}"', b'[1.5,"NaN","Infinity"]'),
        ("bytea[]", rb'"{\"\\\\xc4ca\"}"', b'["xMo="]'),
        ("timestamp with time zone[]", rb'"{\"2026-11-20 15:30:18+00\"}"', b'["2026-11-20T15:30:18+00:00"]'),
        ("jsonb[]", rb'"{\"{\\\"a\\\": [1, 2]}\"}"', rb'["{\"a\": [1, 2]}"]'),
        ("integer[]", b'"{{1,2},{3,4}}"', b'"{{1,2},{3,4}}"'),
    ],
)
def test_values_keep_their_digits_and_change_only_notation(declared: str, sent: bytes, wire: bytes) -> None:
    convert = column_type(declared).convert
    converted = sent if convert is None else convert(sent)
    assert converted == wire
    json.loads(converted)


@pytest.mark.parametrize(
    ("literal", "elements"),
    [
        ("{}", []),
        ("{a}", ["a"]),
        ("{a,b}", ["a", "b"]),
        ('{"a,b","{c}"}', ["a,b", "{c}"]),
        (r'{"say \"hi\"","back\\slash"}', ['say "hi"', "back\\slash"]),
        ('{"line\nbreak",NULL}', ["line\nbreak", None]),
        ('{"NULL",null}', ["NULL", "null"]),
        ('{""}', [""]),
        ("{🚀,ü}", ["🚀", "ü"]),
        ("[-1:0]={x,y}", ["x", "y"]),
        ("{{a},{b}}", None),
        ("[1:1][2:2]={{a}}", None),
    ],
)
def test_array_literals_give_their_elements(literal: str, elements: list[str | None] | None) -> None:
    assert parse_array(literal) == elements


@pytest.mark.parametrize("literal", ["", "{", "a,b", '{"a}', '{"a"b}', "{a,{b}}", '{"a",}'])
def test_what_is_no_array_literal_is_refused(literal: str) -> None:
    with pytest.raises(ValueError, match="not an array literal"):
        parse_array(literal)


def test_an_array_column_whose_first_value_has_two_dimensions_is_text() -> None:
    column = column_type("integer[]", b'"{{1,2},{3,4}}"')
    assert column.name == "string"
    assert column.convert is not None
    assert column.convert(b'"{5}"') == b'"{5}"'
    assert column_type("integer[]", b'"[1:1][1:2]={{1,2}}"').name == "string"


@pytest.mark.parametrize(
    ("declared", "value"),
    [
        *(("bigint", value) for value in ('""', '"1,2"', '"{}"', '"007"', '"0-"', '"NaN"', '"1.0"', '" 1"')),
        *(("integer[]", value) for value in ('"{1,abc}"', '"{007}"', '"{1.}"', r'"{\"1],[2\"}"')),
        ("boolean[]", '"{t,banana}"'),
        ("bytea", "1234"),
    ],
)
def test_what_is_not_of_its_type_is_refused_and_never_becomes_something_else(declared: str, value: str) -> None:
    """Each made an event that is no JSON, or another value: found by fuzzing."""
    convert = column_type(declared).convert
    assert convert is not None
    with pytest.raises(ValueError, match=r"."):
        convert(value.encode())


@pytest.mark.parametrize("value", ["1e-105", "-1", "null"])
def test_a_moment_that_is_no_string_is_passed_on_as_it_is(value: str) -> None:
    convert = column_type("timestamp with time zone").convert
    assert convert is not None
    assert convert(value.encode()) == value.encode()


def test_integers_may_come_as_strings() -> None:
    convert = column_type("bigint").convert
    assert convert is not None
    assert [convert(value) for value in (b'"-9223372036854775808"', b'"0"', b"7")] == [b"-9223372036854775808", b"0", b"7"]
