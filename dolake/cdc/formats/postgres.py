"""PostgreSQL's types and texts: what each becomes in a declared schema, and how its values go on the wire.

Values pass through as the text PostgreSQL wrote: a number keeps its digits, nothing goes through a float. What changes is
only notation: timestamps get ISO 8601's `T` and minutes of offset, bytea becomes base64, an array literal a JSON array.
What Iceberg cannot hold (`infinity`, years BC, NaN in a decimal) is passed on as written, to be refused by name, not bent.
"""

from __future__ import annotations

import binascii
import re
from collections.abc import Callable
from dataclasses import dataclass

import msgspec

Convert = Callable[[bytes], bytes]

DECIMAL_PRECISION_MAX = 38
_QUOTE = ord('"')
_SPECIAL_FLOATS = frozenset({"NaN", "Infinity", "-Infinity"})
_BOOLEANS = {"t": b"true", "f": b"false"}
_INTEGER = re.compile(rb"-?(?:0|[1-9][0-9]*)")
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?", re.ASCII)
_MODIFIER = re.compile(r"\(([-\d, ]+)\)")
_encode = msgspec.json.encode
_decode_text = msgspec.json.Decoder(str).decode


@dataclass(frozen=True)
class ColumnType:
    """`name` in Iceberg's notation; `convert` turns a value's JSON into the wire's (None: it is already right).

    `toastable`: PostgreSQL may store it out of line, so an update may leave it out.
    """

    name: str
    convert: Convert | None
    toastable: bool


def column_type(declared: str, first_value: bytes = b"null") -> ColumnType:
    """What a column of PostgreSQL type `declared` (as format_type prints it) is declared as.

    PostgreSQL's array types do not say how many dimensions a value has; `first_value`, the column's first on the wire,
    decides: one of several dimensions makes the column a string of literals.
    """
    if declared.endswith("[]"):
        element = declared.removesuffix("[]")
        # box is the one built-in type whose arrays are not separated by commas.
        if element == "box" or _is_multidimensional(first_value):
            return ColumnType("string", quoted, True)
        return _array_type(scalar_type(element))
    return scalar_type(declared)


def scalar_type(declared: str) -> ColumnType:
    base = _MODIFIER.sub("", declared, count=1)
    if base == "numeric":
        return ColumnType(_numeric(declared), quoted if _numeric(declared) == "string" else None, True)
    return _SCALARS.get(base, _UNKNOWN)


def _numeric(declared: str) -> str:
    """PostgreSQL allows a scale below 0 (rounds to tens) and above the precision; Iceberg does not, both still fit."""
    match = _MODIFIER.search(declared)
    if match is None:
        return "string"
    precision, _, scale_text = match.group(1).partition(",")
    scale = int(scale_text or 0)
    digits, scale = (int(precision) - scale, 0) if scale < 0 else (max(int(precision), scale), scale)
    return f"decimal({digits},{scale})" if digits <= DECIMAL_PRECISION_MAX else "string"


def quoted(value: bytes) -> bytes:
    """Any scalar as a JSON string of the same text."""
    return value if value[0] == _QUOTE else _encode(value.decode())


def unquoted(value: bytes) -> bytes:
    """An integer, which a plugin may be told to send as a string. Raises ValueError for any other string."""
    if value[0] != _QUOTE:
        return value
    if _INTEGER.fullmatch(value, 1, len(value) - 1) is None:
        raise ValueError(f"must be an integer (got {value.decode()})")
    return value[1:-1]


def iso_timestamp(value: bytes) -> bytes:
    return value.replace(b" ", b"T", 1) if not value.endswith(b'BC"') else value


def iso_timestamptz(value: bytes) -> bytes:
    """`"2026-11-20 15:30:18.12+00"` → `"2026-11-20T15:30:18.12+00:00"`. What is no string is not touched."""
    if value[0] != _QUOTE or value.endswith(b'BC"'):
        return value
    value = value.replace(b" ", b"T", 1)
    return value[:-1] + b':00"' if value[-4:-3] in (b"+", b"-") else value


def base64_of_hex(value: bytes) -> bytes:
    if value[0] != _QUOTE:
        raise ValueError(f"must be a string of hex digits (got {value.decode()})")
    digits = value[1:-1].removeprefix(b"\\\\x").removeprefix(b"\\x")
    return b'"' + binascii.b2a_base64(binascii.unhexlify(digits), newline=False) + b'"'


def _array_type(element: ColumnType) -> ColumnType:
    def convert(value: bytes) -> bytes:
        literal = _decode_text(value)
        items = parse_array(literal)
        if items is None:
            return value  # Several dimensions in a column declared with one: passed on as text, which the table will name.
        return b"[" + b",".join([b"null" if item is None else _element(item, element) for item in items]) + b"]"

    return ColumnType(f"list<{element.name}>", convert, True)


def _element(text: str, element: ColumnType) -> bytes:
    """One element of an array literal, as the wire has it."""
    if element.name == "boolean":
        if text not in _BOOLEANS:
            raise ValueError(f"holds {text!r}, which is no boolean")
        return _BOOLEANS[text]
    if (element.name in _NUMBERS or element.name.startswith("decimal")) and text not in _SPECIAL_FLOATS:
        if _NUMBER.fullmatch(text) is None:
            raise ValueError(f"holds {text!r}, which is no number")
        return text.encode()
    value: bytes = _encode(text)
    return element.convert(value) if element.convert is not None else value


# An element: quoted with backslash escapes, or bare up to a comma or brace (bare ones may hold escapes too).
_ELEMENT = re.compile(r'"((?:[^"\\]|\\.)*)"|((?:[^",{}\\]|\\.)+)', re.DOTALL)
_ESCAPE = re.compile(r"\\(.)", re.DOTALL)
_BOUNDS = re.compile(r"\[[-\d]+:[-\d]+\]=")


def parse_array(literal: str) -> list[str | None] | None:
    """The elements of a one-dimensional array literal; None when it has several dimensions.

    Raises ValueError when it is no array literal.
    """
    text = _BOUNDS.sub("", literal, count=1) if literal.startswith("[") else literal
    if text.startswith("["):
        return None
    if len(text) < 2 or text[0] != "{" or text[-1] != "}":
        raise ValueError(f"not an array literal: {literal!r}")
    if text[1] == "{":
        return None
    body = text[1:-1]
    if not body:
        return []
    if '"' not in body and "\\" not in body and "{" not in body:
        return [None if item == "NULL" else item for item in body.split(",")]
    items: list[str | None] = []
    position = 0
    while True:
        match = _ELEMENT.match(body, position)
        if match is None:
            raise ValueError(f"not an array literal: {literal!r}")
        quoted_text, bare = match.groups()
        # Only the bare word is null: "NULL" in quotes is a text of four letters.
        items.append(None if bare == "NULL" else _ESCAPE.sub(r"\1", bare if quoted_text is None else quoted_text))
        position = match.end()
        if position == len(body):
            return items
        if body[position] != ",":
            raise ValueError(f"not an array literal: {literal!r}")
        position += 1


def _is_multidimensional(value: bytes) -> bool:
    if value[0] != _QUOTE:
        return False
    literal: str = _decode_text(value)
    return literal.startswith("{{") or "][" in literal.partition("=")[0]


_NUMBERS = frozenset({"int", "long", "float", "double"})
_STRING = ColumnType("string", None, True)
_UNKNOWN = ColumnType("string", quoted, True)
_SCALARS = {
    "bigint": ColumnType("long", unquoted, False),
    "integer": ColumnType("int", unquoted, False),
    "smallint": ColumnType("int", unquoted, False),
    "real": ColumnType("float", None, False),
    "double precision": ColumnType("double", None, False),
    "boolean": ColumnType("boolean", None, False),
    "text": _STRING,
    "character varying": _STRING,
    "character": _STRING,
    "json": ColumnType("json", None, True),
    "jsonb": ColumnType("json", None, True),
    "bytea": ColumnType("binary", base64_of_hex, True),
    "uuid": ColumnType("uuid", None, False),
    "date": ColumnType("date", None, False),
    "timestamp without time zone": ColumnType("timestamp", iso_timestamp, False),
    "timestamp with time zone": ColumnType("timestamptz", iso_timestamptz, False),
    "time without time zone": ColumnType("time", None, False),
}
