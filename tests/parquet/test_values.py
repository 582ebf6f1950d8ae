"""What the exact reader takes, to the last digit, and what it refuses, by rule."""

from __future__ import annotations

import json
from datetime import UTC, date, datetime, time
from decimal import Decimal
from typing import Any
from uuid import UUID

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dolake.parquet.letters import Letter
from dolake.parquet.values import Misfit, unscaled

from .events import SANE, WILD, chunk_of, event, layout_of, read_exactly


def read(kind: str, value: str) -> Any:
    rows, letters = read_exactly(layout_of(x=kind), chunk_of(event({"x": value})))
    assert letters == []
    return rows.column("x")[0].as_py()


def refused(kind: str, value: str) -> tuple[str, str]:
    letter = letter_of(kind, value)
    assert letter.field.startswith("x"), letter
    return letter.field, letter.rule


def letter_of(kind: str, value: str) -> Letter:
    rows, (letter,) = read_exactly(layout_of(x=kind), chunk_of(event({"x": value})))
    assert rows.num_rows == 0
    return letter


UUID_TEXT = "0b5e1f8e-8f7c-4c1e-9a51-0123456789ab"


@pytest.mark.parametrize(
    ("kind", "value", "expected"),
    [
        ("boolean", "true", True),
        ("int", "-2147483648", -(2**31)),
        ("long", "9007199254740993", 2**53 + 1),
        ("long", "3.0", 3),
        ("long", "1e3", 1000),
        ("long", "9223372036854775807", 2**63 - 1),
        ("long", "-9223372036854775808", -(2**63)),
        ("double", '"NaN"', float("nan")),
        ("double", '"-Infinity"', float("-inf")),
        ("float", '"Infinity"', float("inf")),
        ("double", "9007199254740993", 2.0**53),
        ("float", "1.00000017881393432617187499", 1.0000001192092896),
        ("decimal(12,2)", "1.5", Decimal("1.50")),
        ("decimal(12,2)", '"9999999999.99"', Decimal("9999999999.99")),
        ("decimal(12,2)", "1.2300000000000000000000000000000000000000000000000", Decimal("1.23")),
        ("decimal(38,10)", "-1234567890123456789012345678.0123456789", Decimal("-1234567890123456789012345678.0123456789")),
        ("decimal(38,0)", '"99999999999999999999999999999999999999"', Decimal(10**38 - 1)),
        ("decimal(38,38)", "1e-38", Decimal("1e-38")),
        ("date", '"2026-11-20"', date(2026, 11, 20)),
        ("time", '"23:59:59.999999"', time(23, 59, 59, 999999)),
        ("timestamp", '"0001-01-01T00:00:00"', datetime(1, 1, 1)),
        ("timestamp", '"9999-12-31 23:59:59.999999"', datetime(9999, 12, 31, 23, 59, 59, 999999)),
        ("timestamptz", '"2026-11-20 15:30:18.125015+00"', datetime(2026, 11, 20, 15, 30, 18, 125015, UTC)),
        ("timestamptz", '"2026-11-20T15:30:18-03:30"', datetime(2026, 11, 20, 19, 0, 18, tzinfo=UTC)),
        ("string", '"a\\u0000b\\ud83d\\ude80"', "a\0b🚀"),
        ("uuid", f'"{UUID_TEXT.upper()}"', UUID(UUID_TEXT)),
        ("binary", '"AAH/"', b"\0\1\xff"),
        ("fixed(2)", '"AAE="', b"\0\1"),
        ("json", '{"a": [1,  2.50], "a": "\\u00e9"}', '{"a": [1,  2.50], "a": "\\u00e9"}'),
        ("json", ' "{\\"k\\": 1}"', '{"k": 1}'),
        ("json", "1e5", "1e5"),
        ("json", "null", None),
        ("list<string>", '["a",null,""]', ["a", None, ""]),
        ("list<json>", '[{"a": 1},"t",null,2]', ['{"a": 1}', "t", None, "2"]),
        ("list<uuid>", f'["{UUID_TEXT}",null]', [UUID(UUID_TEXT), None]),
        ("map<string, long>", '[["a",1],["b",null]]', [("a", 1), ("b", None)]),
        ("map<uuid, json>", f'[["{UUID_TEXT}",{{"x":1}}]]', [(UUID(UUID_TEXT), '{"x":1}')]),
        ("map<int, map<date, double>>", '[[1,[["2026-11-20","NaN"]]],[2,[]]]', [(1, [(date(2026, 11, 20), float("nan"))]), (2, [])]),
        ("struct<a: long, b: list<decimal(4,1)>>", '{"b":[1.5,"2"]}', {"a": None, "b": [Decimal("1.5"), Decimal("2.0")]}),
        ("struct<a: json, b: timestamp>", '{"a":{"q":[]},"b":null}', {"a": '{"q":[]}', "b": None}),
        ("struct<a: json>", "null", None),
    ],
)
def test_a_value_is_read_exactly(kind: str, value: str, expected: Any) -> None:
    found = read(kind, value)
    assert type(found) is type(expected)
    assert found == expected or repr(found) == repr(expected)


@pytest.mark.parametrize(
    ("kind", "value", "rule"),
    [
        ("boolean", "1", "true or false"),
        ("boolean", '"true"', "true or false"),
        ("int", "2147483648", "out of range for 32 bits"),
        ("long", "9223372036854775808", "out of range"),
        ("long", "-9223372036854775809", "out of range"),
        ("long", "1" * 5000, "out of range"),
        ("long", "1.5", "not a whole number"),
        ("long", "1e-1", "not a whole number"),
        ("long", "1e1000000000000", "exponent"),
        ("long", '"1"', "a whole number is expected"),
        ("long", "true", "a whole number is expected"),
        ("double", "1e999", "out of range"),
        ("double", '"nan"', "a number"),
        ("double", '"1.5"', "a number"),
        ("float", "1e39", "out of range"),
        ("decimal(12,2)", "1.234", "more than 2 digits after the point"),
        ("decimal(12,2)", '"0.001"', "more than 2 digits after the point"),
        ("decimal(12,2)", "12345678901", "more than 10 digits before the point"),
        ("decimal(38,10)", "1e30", "more than 28 digits before the point"),
        ("decimal(12,2)", '"NaN"', "not a number"),
        ("decimal(12,2)", '"1e-1000000000"', "exponent"),
        ("decimal(12,2)", "[1]", "a decimal as a number or a string"),
        ("date", '"2026-02-29"', "no such day"),
        ("date", '"infinity"', "YYYY-MM-DD"),
        ("date", '"0000-01-01"', "no such day"),
        ("time", '"24:00:00"', "no such time"),
        ("time", '"12:00:00+00"', "no zone"),
        ("timestamp", '"2026-11-20 10:00:00Z"', "no zone"),
        ("timestamp", '"2026-11-20 10:00:00.1234567"', "at most 6 digits"),
        ("timestamptz", '"2026-11-20 10:00:00"', "a zone"),
        ("timestamptz", '"9999-12-31 23:59:59-01"', "years 0001 to 9999"),
        ("timestamptz", '"2026-11-20 10:00:00+24"', "no such zone"),
        ("timestamptz", "1767225600990", "a string is expected"),
        ("string", "1", "a string is expected"),
        ("string", '"\\ud83d"', "lone surrogate"),
        ("json", '"\\ud83d"', "lone surrogate"),
        ("uuid", '"0b5e1f8e8f7c4c1e9a510123456789ab"', "8-4-4-4-12"),
        ("binary", '"A"', "base64"),
        ("binary", '"AA==AA=="', "base64"),
        ("fixed(2)", '"AA=="', "2 bytes"),
        ("list<long>", "{}", "an array is expected"),
        ("list<long>", '[1,"a"]', "a whole number is expected"),
        ("list<json>", "{}", "an array is expected"),
        ("struct<a: long>", '{"a":1,"a":1}', "the same key twice"),
        ("struct<a: json>", '{"a":1,"a":1}', "the same key twice"),
        ("struct<a: long>", '{"b":1}', "not declared"),
        ("struct<a: json>", '{"b":1}', "not declared"),
        ("map<string, long>", '{"a":1}', "an array is expected"),
        ("map<string, long>", '[["a"]]', "[[key, value], …]"),
        ("map<string, long>", "[[null,1]]", "never null"),
        ("map<string, long>", '[["a",1],["a",2]]', "same map key twice"),
        ("map<string, json>", '[["a",1],["a",2]]', "same map key twice"),
    ],
)
def test_a_value_that_does_not_fit_is_refused_with_its_rule(kind: str, value: str, rule: str) -> None:
    assert rule in refused(kind, value)[1]


def test_the_place_inside_a_nested_value_is_named() -> None:
    assert refused("list<struct<a: map<string, list<long>>>>", '[null,{"a":[["k",[1,2.5]]]}]')[0] == "x[1].a[0][1][1]"
    assert refused("struct<a: list<struct<b: json, c: long>>>", '{"a":[{"b":{},"c":"1"}]}')[0] == "x.a[0].c"
    assert refused("struct<a: long>", '{"a":1,"q":2}')[0] == "x.q"


@pytest.mark.parametrize("kind", [*SANE, "map<string, long>", "list<json>", "struct<a: json, b: long>"])
def test_any_value_is_read_or_refused_by_name(kind: str) -> None:
    rows, letters = read_exactly(layout_of(x=kind), chunk_of(*(event({"x": value}) for value in WILD)))
    assert rows.num_rows + len(letters) == len(WILD)
    assert all(letter.rule for letter in letters)


def test_json_as_deep_as_it_gets_is_refused_not_a_crash() -> None:
    deep = "[" * 100_000 + "]" * 100_000
    assert letter_of("json", deep).rule == "nested too deep"


@given(st.decimals(allow_nan=False, allow_infinity=False, places=4, min_value=-(10**20), max_value=10**20), st.sampled_from("feE"))
def test_a_decimal_comes_back_from_any_way_of_writing_it(value: Decimal, style: str) -> None:
    text = format(value, style) if style == "f" else format(value, f".30{style}")
    assert unscaled(text, 4, 38) == int(value.scaleb(4))


@given(st.integers(-(10**40), 10**40), st.integers(0, 10))
def test_digits_are_never_lost(number: int, scale: int) -> None:
    text = json.dumps(number)
    try:
        assert unscaled(text, scale, 38) == number * 10**scale
    except Misfit:
        assert abs(number) * 10**scale >= 10**38


def test_a_float_is_rounded_once_from_its_digits() -> None:
    """By way of a double 1.000000178813934326171874999… would become the float above, not the one below."""
    digits = "1.00000017881393432617187499999999999999999999"
    assert read("float", digits) == pa.scalar(1.0000001192092896, pa.float32()).as_py()
