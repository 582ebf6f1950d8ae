"""Kafka Connect's types and Debezium's meanings: what each is declared as, and every value exact."""

from __future__ import annotations

import base64
import json
from decimal import Context, Decimal
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dolake.cdc.formats.connect import ConnectSchema, Kind, Reading, column_kind, decimal_text
from dolake.column_types import parse_type

TIME, DATA, CONNECT = "io.debezium.time.", "io.debezium.data.", "org.apache.kafka.connect.data."
EXACT = Context(prec=100)
STRINGS = {"type": "string", "optional": True}
POINT = {
    "type": "struct",
    "name": "io.debezium.data.geometry.Point",
    "fields": [{"type": kind, "field": name} for name, kind in (("x", "double"), ("y", "double"), ("wkb", "bytes"), ("srid", "int32"))],
}


def kind(schema: dict[str, Any], **reading: str) -> Kind:
    found = column_kind(msgspec.convert(schema, ConnectSchema), Reading(**reading))
    parse_type(found.name)
    return found


def sent(found: Kind, raw: str) -> str:
    return (raw.encode() if found.convert is None else found.convert(raw.encode())).decode()


def base64_of(number: int) -> str:
    return json.dumps(base64.b64encode(number.to_bytes(number.bit_length() // 8 + 1, "big", signed=True)).decode())


def decimal(scale: int, precision: int | None = None) -> dict[str, Any]:
    parameters = {"scale": str(scale)} | ({} if precision is None else {"connect.decimal.precision": str(precision)})
    return {"type": "bytes", "name": CONNECT + "Decimal", "parameters": parameters}


@pytest.mark.parametrize(
    ("schema", "declared", "values"),
    [
        ({"type": "int8"}, "int", {"-128": "-128"}),
        ({"type": "int16"}, "int", {"1": "1"}),
        ({"type": "int32", "name": TIME + "Year"}, "int", {"2026": "2026"}),
        ({"type": "int64"}, "long", {"9223372036854775807": "9223372036854775807"}),
        ({"type": "float"}, "float", {"0.1": "0.1", '"NaN"': '"NaN"'}),
        ({"type": "double"}, "double", {"1e-7": "1e-7"}),
        ({"type": "boolean"}, "boolean", {"true": "true"}),
        (STRINGS, "string", {'"\\u00fc\\/"': '"\\u00fc\\/"'}),
        ({"type": "bytes"}, "binary", {'"AAE="': '"AAE="'}),
        ({"type": "bytes", "name": DATA + "Bits", "parameters": {"length": "12"}}, "binary", {'"AQA="': '"AQA="'}),
        ({"type": "string", "name": DATA + "Json"}, "json", {'"{\\"a\\": 1}"': '"{\\"a\\": 1}"'}),
        ({"type": "string", "name": DATA + "Uuid"}, "uuid", {}),
        ({"type": "string", "name": DATA + "Enum", "parameters": {"allowed": "a,b"}}, "string", {'"a"': '"a"'}),
        ({"type": "string", "name": DATA + "EnumSet"}, "string", {}),
        ({"type": "string", "name": DATA + "Xml"}, "string", {}),
        ({"type": "string", "name": TIME + "Interval"}, "string", {'"P1Y2M3DT4H5M6.78S"': '"P1Y2M3DT4H5M6.78S"'}),
        ({"type": "string", "name": TIME + "ZonedTime"}, "string", {'"10:00:00Z"': '"10:00:00Z"'}),
        ({"type": "int64", "name": TIME + "MicroDuration"}, "long", {"1": "1"}),
        ({"type": "int32", "name": TIME + "Date"}, "date", {"0": '"1970-01-01"', "-719162": '"0001-01-01"', "2932896": '"9999-12-31"'}),
        ({"type": "int32", "name": CONNECT + "Date"}, "date", {"20412": '"2025-11-20"', "2932897": "2932897", "-719163": "-719163"}),
        ({"type": "int32", "name": TIME + "Time"}, "time", {"0": '"00:00:00"', "86399999": '"23:59:59.999000"', "86400000": "86400000"}),
        ({"type": "int32", "name": CONNECT + "Time"}, "time", {"1500": '"00:00:01.500000"', "-1": "-1"}),
        ({"type": "int64", "name": TIME + "MicroTime"}, "time", {"3723000004": '"01:02:03.000004"', "86400000000": "86400000000"}),
        (
            {"type": "int64", "name": TIME + "Timestamp"},
            "timestamp",
            {"0": '"1970-01-01T00:00:00"', "-1": '"1969-12-31T23:59:59.999000"', "253402300799999": '"9999-12-31T23:59:59.999000"'},
        ),
        ({"type": "int64", "name": CONNECT + "Timestamp"}, "timestamp", {"253402300800000": "253402300800000"}),
        (
            {"type": "int64", "name": TIME + "MicroTimestamp"},
            "timestamp",
            {
                "1529507596945104": '"2018-06-20T15:13:16.945104"',
                "-62135596800000000": '"0001-01-01T00:00:00"',
                "9223372036825200000": "9223372036825200000",
                "-9223372036832400000": "-9223372036832400000",
            },
        ),
        ({"type": "int64", "name": TIME + "NanoTimestamp"}, "long", {"1529507596945104123": "1529507596945104123"}),
        ({"type": "int64", "name": TIME + "NanoTime"}, "long", {"1": "1"}),
        ({"type": "string", "name": TIME + "IsoDate"}, "date", {'"2005-05-12Z"': '"2005-05-12"'}),
        ({"type": "string", "name": TIME + "IsoTime"}, "time", {'"01:02:03.123456Z"': '"01:02:03.123456"', '"01:02:03Z"': '"01:02:03"'}),
        (
            {"type": "string", "name": TIME + "IsoTimestamp"},
            "timestamp",
            {'"1969-12-31T23:59:59.123456000Z"': '"1969-12-31T23:59:59.123456"', '"2026-01-01T00:00:00Z"': '"2026-01-01T00:00:00"'},
        ),
        (
            {"type": "string", "name": TIME + "ZonedTimestamp"},
            "timestamptz",
            {
                '"2026-11-20T15:30:18.125015Z"': '"2026-11-20T15:30:18.125015Z"',
                '"2026-11-20T15:30:18.1234560+02:00"': '"2026-11-20T15:30:18.123456+02:00"',
                '"2026-11-20T15:30:18.1234567Z"': '"2026-11-20T15:30:18.1234567Z"',
            },
        ),
        (decimal(2, 12), "decimal(12,2)", {base64_of(98629): "986.29", base64_of(-1): "-0.01", base64_of(0): "0.00", "1.50": "1.50"}),
        (decimal(0), "decimal(38,0)", {base64_of(2**64): "18446744073709551616"}),
        (decimal(-2, 5), "decimal(7,0)", {base64_of(-123): "-12300", base64_of(0): "0"}),
        (decimal(5, 3), "decimal(5,5)", {base64_of(7): "0.00007"}),
        (decimal(2, 40), "string", {base64_of(10**40): '"' + "1" + "0" * 38 + '.00"'}),
        (decimal(40), "string", {base64_of(1): '"0.' + "0" * 39 + '1"', "1.5": '"1.5"'}),
        (
            {"type": "struct", "name": DATA + "VariableScaleDecimal", "fields": []},
            "string",
            {
                f'{{"scale":3,"value":{base64_of(-1500)}}}': '"-1.500"',
                f'{{ "value" : {base64_of(12)} , "scale" : -3 }}': '"12000"',
                f'{{"scale":0,"value":{base64_of(-(10**9000))}}}': '"-1' + "0" * 9000 + '"',
            },
        ),
        ({"type": "array", "items": STRINGS}, "list<string>", {'["a", null]': '["a", null]'}),
        ({"type": "array", "items": decimal(1, 4)}, "list<decimal(4,1)>", {f"[{base64_of(15)}, null]": "[1.5,null]", "[]": "[]"}),
        (
            {"type": "array", "items": {"type": "array", "items": {"type": "int32", "name": TIME + "Date"}}},
            "list<list<date>>",
            {"[[0],null,[]]": '[["1970-01-01"],null,[]]'},
        ),
        (
            {"type": "map", "keys": STRINGS, "values": STRINGS},
            "map<string, string>",
            {'{"a":"1","b":null}': '[["a","1"],["b",null]]', "{}": "[]"},
        ),
        (
            {"type": "map", "keys": {"type": "int32"}, "values": decimal(1, 4)},
            "map<int, decimal(4,1)>",
            {f"[[1,{base64_of(5)}]]": "[[1,0.5]]"},
        ),
        (POINT, "struct<x: double, y: double, wkb: binary, srid: int>", {'{"x":1.5,"y":2,"wkb":null}': '{"x":1.5,"y":2,"wkb":null}'}),
        (
            {"type": "struct", "fields": [{**decimal(1, 4), "field": "d"}, {"type": "int32", "field": "n"}]},
            "struct<d: decimal(4,1), n: int>",
            {f'{{"n":1,"d":{base64_of(15)},"other":2}}': '{"n":1,"d":1.5,"other":2}'},
        ),
        ({"type": "struct", "fields": [{"type": "int32", "field": "a<b"}]}, "json", {'{"a<b":1}': '{"a<b":1}'}),
        ({"type": "struct", "fields": []}, "json", {"{}": "{}"}),
        ({"type": "map", "keys": {"type": "array", "items": STRINGS}, "values": STRINGS}, "json", {}),
    ],
)  # fmt: skip
def test_a_column_is_declared_and_its_values_are_exact(schema: dict[str, Any], declared: str, values: dict[str, str]) -> None:
    found = kind(schema)
    assert found.name == declared
    assert {raw: sent(found, raw) for raw in values} == values


def test_nanoseconds_become_moments_only_if_asked_and_only_whole_microseconds() -> None:
    stamp = kind({"type": "int64", "name": TIME + "NanoTimestamp"}, nanoseconds="timestamp")
    assert stamp.name == "timestamp"
    assert sent(stamp, "1529507596945104000") == '"2018-06-20T15:13:16.945104"'
    assert sent(stamp, "1529507596945104001") == "1529507596945104001"
    time = kind({"type": "int64", "name": TIME + "NanoTime"}, nanoseconds="timestamp")
    assert (time.name, sent(time, "3723000004000"), sent(time, "1")) == ("time", '"01:02:03.000004"', "1")


def propagated(source: str, **more: str) -> dict[str, Any]:
    return {"type": "string", "parameters": {f"__debezium.source.column.{name}": value for name, value in {"type": source, **more}.items()}}


@pytest.mark.parametrize(
    ("schema", "mode", "declared", "raw", "text"),
    [
        (propagated("NUMERIC", length="12", scale="2"), "", "decimal(12,2)", '"986.29"', '"986.29"'),
        (propagated("DECIMAL", length="5"), "", "decimal(5,0)", '"7"', '"7"'),
        (propagated("NUMERIC", length="131089", scale="0"), "", "string", '"1"', '"1"'),
        (propagated("NUMERIC"), "", "string", '"NaN"', '"NaN"'),
        (propagated("VARCHAR", length="10"), "hex", "string", '"00ff"', '"00ff"'),
        (propagated("BYTEA"), "", "string", '"00ff"', '"00ff"'),
        (propagated("BYTEA"), "hex", "binary", '"00ff"', '"AP8="'),
        (propagated("bytea"), "base64", "binary", '"AP8="', '"AP8="'),
        (propagated("VARBINARY(16)"), "base64-url-safe", "binary", '"-_8"', '"+/8="'),
        (propagated("BLOB"), "base64-url-safe", "binary", '"-_8="', '"+/8="'),
    ],
)
def test_a_string_that_was_something_else_becomes_that_again(schema: dict[str, Any], mode: str, declared: str, raw: str, text: str) -> None:
    found = kind(schema, binary_mode=mode)
    assert (found.name, sent(found, raw)) == (declared, text)


@pytest.mark.parametrize(
    ("schema", "raw", "rule"),
    [
        (decimal(2, 12), '"%%"', "not base64"),
        (decimal(2, 12), "true", "base64 of its unscaled value, or a number"),
        ({"type": "int32", "name": TIME + "Date"}, '"2026-01-01"', "a whole number is expected"),
        ({"type": "int64", "name": TIME + "MicroTimestamp"}, "1.5", "a whole number is expected"),
        ({"type": "struct", "name": DATA + "VariableScaleDecimal"}, '{"scale":1}', "'value' is missing"),
        ({"type": "struct", "name": DATA + "VariableScaleDecimal"}, '{"scale":200001,"value":"AQ=="}', "scale beyond"),
        ({"type": "map", "keys": {"type": "int32"}, "values": STRINGS}, "[[1]]", "pairs"),
        ({"type": "map", "keys": STRINGS, "values": STRINGS}, '{"a":"1","a":"2"}', "the same key twice"),
        (propagated("BYTEA"), '"0g"', "not hexadecimal"),
    ],
)
def test_a_value_that_is_not_of_its_schema_is_refused(schema: dict[str, Any], raw: str, rule: str) -> None:
    with pytest.raises(ValueError, match=rule):
        sent(kind(schema, binary_mode="hex"), raw)


@pytest.mark.parametrize(
    ("schema", "rule"),
    [
        ({"type": "int128"}, "'int128' is none of Kafka Connect's"),
        ({"type": "array"}, "items: is missing"),
        ({"type": "map", "keys": STRINGS}, "values: is missing"),
        ({"type": "bytes", "name": CONNECT + "Decimal"}, "a Decimal has a scale"),
        ({"type": "bytes", "name": CONNECT + "Decimal", "parameters": {"scale": "x"}}, "a Decimal has a scale"),
    ],
)
def test_what_is_no_schema_is_refused(schema: dict[str, Any], rule: str) -> None:
    with pytest.raises(ValueError, match=rule):
        kind(schema)


@given(st.integers(-(10**40), 10**40), st.integers(-5, 45))
def test_a_decimal_is_its_unscaled_value_and_scale(unscaled: int, scale: int) -> None:
    text = decimal_text(base64_of(unscaled).encode(), scale)
    found = Decimal(text)
    assert found.as_tuple().sign == (unscaled < 0)
    assert Decimal(unscaled).scaleb(-scale, context=EXACT) == found
    assert len(text.partition(".")[2]) == max(scale, 0)
