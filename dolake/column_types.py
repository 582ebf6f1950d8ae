"""The types a column can be declared with, and their notation.

Iceberg v2's own notation, as `schema` messages and settings write it:

    boolean int long float double date time timestamp timestamptz string uuid binary json
    decimal(P,S) fixed(N) list<T> map<K, V> struct<name: T, …>

`json` is dolake's: JSON text in a string column. `fixed[N]` is read too. Values in, values out: no I/O, no Arrow.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TypeAlias

PRECISION_MAX = 38
FIXED_LENGTH_MAX = 1 << 20
NESTING_MAX = 16
TYPE_TEXT_MAX = 64 * 1024

SIMPLE_NAMES = frozenset(
    {"boolean", "int", "long", "float", "double", "date", "time", "timestamp", "timestamptz", "string", "uuid", "binary", "json"}
)


@dataclass(frozen=True)
class SimpleType:
    """A type without parameters, told by its name."""

    name: str

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class DecimalType:
    precision: int
    scale: int

    def __str__(self) -> str:
        return f"decimal({self.precision},{self.scale})"


@dataclass(frozen=True)
class FixedType:
    """Binary values of one length in bytes."""

    length: int

    def __str__(self) -> str:
        return f"fixed({self.length})"


@dataclass(frozen=True)
class ListType:
    element: ColumnType

    def __str__(self) -> str:
        return f"list<{self.element}>"


@dataclass(frozen=True)
class MapType:
    """Keys are of a plain type; in JSON a map is `[[key, value], …]`."""

    key: ColumnType
    value: ColumnType

    def __str__(self) -> str:
        return f"map<{self.key}, {self.value}>"


@dataclass(frozen=True)
class StructField:
    name: str
    type: ColumnType


@dataclass(frozen=True)
class StructType:
    fields: tuple[StructField, ...]

    def __str__(self) -> str:
        return "struct<" + ", ".join(f"{field.name}: {field.type}" for field in self.fields) + ">"


ColumnType: TypeAlias = SimpleType | DecimalType | FixedType | ListType | MapType | StructType
NESTED = (ListType, MapType, StructType)

_TOKEN = re.compile(r"\s*([A-Za-z_][A-Za-z0-9_]*|[0-9]+|[<>(),:\[\]])")
# A struct's field may be called anything that does not end its name; `schema` messages do not limit names to ASCII.
_FIELD_NAME = re.compile(r"\s*([^\s:<>(),\[\]\"`][^:<>(),\[\]\"`]{0,127}?)\s*:")


def parse_type(text: str) -> ColumnType:
    """The type that `text` names. Raises ValueError saying what is wrong and where."""
    if len(text) > TYPE_TEXT_MAX:
        raise ValueError(f"a type's text has at most {TYPE_TEXT_MAX} characters")
    reader = _Reader(text)
    found = reader.type(depth=0)
    if text[reader.position :].strip():
        raise reader.wrong("nothing more was expected")
    return found


class _Reader:
    """Recursive descent over one type's text."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.position = 0

    def wrong(self, rule: str) -> ValueError:
        rest = self.text[self.position :].strip()
        return ValueError(f"not a column type: {rule} at {rest[:40]!r}" if rest else f"not a column type: {rule} at the end")

    def token(self) -> str:
        match = _TOKEN.match(self.text, self.position)
        if match is None:
            return ""
        self.position = match.end()
        return match.group(1)

    def expect(self, *tokens: str) -> str:
        before = self.position
        found = self.token()
        if found not in tokens:
            self.position = before
            raise self.wrong("expected " + " or ".join(f"`{token}`" for token in tokens))
        return found

    def number(self, name: str, low: int, high: int) -> int:
        before = self.position
        found = self.token()
        if not found.isdecimal() or len(found) > 9 or not low <= int(found) <= high:
            self.position = before
            raise self.wrong(f"{name} is a number {low}..{high}")
        return int(found)

    def type(self, depth: int) -> ColumnType:
        if depth > NESTING_MAX:
            raise self.wrong(f"types nest at most {NESTING_MAX} deep")
        before = self.position
        name = self.token()
        if name in SIMPLE_NAMES:
            return SimpleType(name)
        if name == "decimal":
            return self.decimal()
        if name == "fixed":
            close = {"(": ")", "[": "]"}[self.expect("(", "[")]
            length = self.number("the length", 1, FIXED_LENGTH_MAX)
            self.expect(close)
            return FixedType(length)
        if name == "list":
            self.expect("<")
            element = self.type(depth + 1)
            self.expect(">")
            return ListType(element)
        if name == "map":
            return self.map(depth)
        if name == "struct":
            return self.struct(depth)
        self.position = before
        raise self.wrong(
            f"expected one of {', '.join(sorted(SIMPLE_NAMES))}, decimal(P,S), fixed(N), list<T>, map<K, V>, struct<name: T, …>"
        )

    def decimal(self) -> DecimalType:
        self.expect("(")
        precision = self.number("the precision", 1, PRECISION_MAX)
        self.expect(",")
        scale = self.number("the scale", 0, precision)
        self.expect(")")
        return DecimalType(precision, scale)

    def map(self, depth: int) -> MapType:
        self.expect("<")
        before = self.position
        key = self.type(depth + 1)
        if isinstance(key, NESTED):
            self.position = before
            raise self.wrong("a map's key is of a plain type")
        self.expect(",")
        value = self.type(depth + 1)
        self.expect(">")
        return MapType(key, value)

    def struct(self, depth: int) -> StructType:
        self.expect("<")
        fields: list[StructField] = []
        while True:
            match = _FIELD_NAME.match(self.text, self.position)
            if match is None:
                raise self.wrong("expected a field's `name: type`")
            name = match.group(1)
            if any(field.name.casefold() == name.casefold() for field in fields):
                raise self.wrong("two fields are called the same, but for case")
            self.position = match.end()
            fields.append(StructField(name, self.type(depth + 1)))
            if self.expect(",", ">") == ">":
                return StructType(tuple(fields))
