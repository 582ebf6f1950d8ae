"""Which column of a table a value goes to, and which columns have to be made for values that have none.

A table's columns are declared or inferred. What an event brings beyond them is inferred: boolean, long, double, string, and
JSON text for objects, arrays and numbers that neither a long nor a double holds. Dates and decimals are never guessed, and no
value is changed to make it fit: one that does not fit an inferred column goes to `<column>__<type>` beside it; one that does
not fit a declared column fits nowhere.

Decides only: values in, columns out.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from decimal import Decimal
from typing import Any

from pyiceberg.schema import Schema

from dolake.column_types import SimpleType
from dolake.model import COLUMN_NAME_RULE, is_column_name
from dolake.parquet.layout import Column, columns_of
from dolake.parquet.schema import InferredColumn, evolve_inferred
from dolake.parquet.values import Misfit, Number, whole

BOOLEAN, LONG, DOUBLE, STRING, JSON = (SimpleType(name) for name in ("boolean", "long", "double", "string", "json"))
# A double's shortest text has at most 17 significant digits (IEEE 754); with more, the text means another number.
DOUBLE_DIGITS_MAX = 17
# Up to here a double holds every whole number.
DOUBLE_WHOLE_MAX = 1 << 53

_WHOLE = re.compile(r"-?[0-9]+")
_DIGITS = re.compile(r"-?0*\.?0*([0-9]*)\.?([0-9]*)")


def inferred_type(value: Any) -> SimpleType:
    """The type of a JSON value (never null) that nobody has declared."""
    if isinstance(value, bool):
        return BOOLEAN
    if isinstance(value, Number):
        return _number_type(value)
    return STRING if isinstance(value, str) else JSON


def fits(kind: SimpleType, value: Any) -> bool:
    """Whether an inferred column of this type holds the value as it is."""
    found = inferred_type(value)
    if kind == DOUBLE and found == LONG:
        return abs(int(value)) <= DOUBLE_WHOLE_MAX
    if kind == LONG and found == DOUBLE:
        return _is_long(value)
    return kind == found


def _number_type(text: Number) -> SimpleType:
    if _WHOLE.fullmatch(text):
        return LONG if _is_long(text) else JSON
    return DOUBLE if _is_double(text) else JSON


def _is_long(text: Number) -> bool:
    try:
        whole(text, 64)
    except Misfit:
        return False
    return True


def _is_double(text: Number) -> bool:
    found = float(text)
    if abs(found) == float("inf") or (found == 0 and re.search("[1-9]", re.split("[eE]", text)[0])):
        return False
    match = _DIGITS.match(text)
    digits = 0 if match is None else len(match[1]) + len(match[2])
    return digits <= DOUBLE_DIGITS_MAX or Decimal(repr(found)) == Decimal(text)


class Columns:
    """A table's columns, growing with the events that are read. `columns_max` bounds those that events may add."""

    def __init__(self, schema: Schema, *, columns_max: int, last_column_id: int = 0, defaults: Mapping[str, str] | None = None) -> None:
        self._schema, self._columns_max, self._last_column_id = schema, columns_max, last_column_id
        self._defaults = defaults or {}
        self._added: list[InferredColumn] = []
        self._doubles: set[str] = set()
        self._learn(schema)

    def schema(self) -> Schema:
        """The table's schema with what events have added so far; the same object as long as that is nothing."""
        if self._added:
            self._schema = evolve_inferred(self._schema, self._added, self._last_column_id)
            self._added = []
        return self._schema

    def _learn(self, schema: Schema) -> None:
        self.by_name: dict[str, Column] = {column.name: column for column in columns_of(schema, self._defaults)}
        self._folded = {column.name.casefold(): column.name for column in schema.fields}

    def prepare(self, images: Iterable[Mapping[str, Any]], called: Callable[[str], str]) -> None:
        """Looks at all of these rows before one of them makes a column: where longs and doubles mix, it will be of doubles."""
        seen: dict[str, list[Any]] = {}
        for image in images:
            for member, value in image.items():
                if value is not None and (name := called(member)) not in self.by_name:
                    seen.setdefault(name, []).append(value)
        for name, values in seen.items():
            kind = inferred_type(values[0])
            if kind == LONG and any(inferred_type(value) == DOUBLE for value in values):
                numbers = [value for value in values if inferred_type(value) in (LONG, DOUBLE)]
                if all(fits(DOUBLE, value) for value in numbers):
                    self._doubles.add(name)

    def of(self, name: str, value: Any) -> Column:
        """The column that a value (never null) of the column called `name` goes to, made if need be. Raises Misfit."""
        column = self.by_name.get(name)
        if column is None:
            kind = inferred_type(value)
            return self._add(name, DOUBLE if kind == LONG and name in self._doubles else kind)
        if column.origin.beside:
            rule = f"a name that dolake needs for values of `{column.origin.beside}` that are no such type; give the column another"
            raise Misfit(rule, value, code="column_name")
        if not column.origin.inferred or fits(SimpleType(str(column.kind)), value):
            return column
        kind = inferred_type(value)
        beside = self.by_name.get(f"{name}__{kind}")
        if beside is None:
            return self._add(f"{name}__{kind}", kind, beside=name)
        if beside.origin.beside != name or beside.kind != kind:
            rule = f"does not fit the inferred {column.kind}, and `{beside.name}`, where it belongs, is a column of its own"
            raise Misfit(rule, value, code="column_name")
        return beside

    @property
    def added_count(self) -> int:
        """How many columns events have added since `schema` was asked for."""
        return len(self._added)

    def take_back(self, added_count: int) -> None:
        """Unmakes the columns after the first so many: the row that brought them has no place in the table."""
        for column in self._added[added_count:]:
            del self.by_name[column.name], self._folded[column.name.casefold()]
        del self._added[added_count:]

    def _add(self, name: str, kind: SimpleType, beside: str = "") -> Column:
        if not is_column_name(name):
            raise Misfit(f"a column's name {COLUMN_NAME_RULE}", name, code="column_name")
        if (other := self._folded.get(name.casefold())) is not None:
            raise Misfit(f"a column's name equal to the table's `{other}` but for case; use one of the two", name, code="column_name")
        if len(self.by_name) >= self._columns_max:
            raise Misfit(f"one column too many: events may bring a table to {self._columns_max}", name, code="too_many_columns")
        added = InferredColumn(name, kind, beside)
        column = Column.inferred(added)
        self._added.append(added)
        self.by_name[name] = column
        self._folded[name.casefold()] = name
        return column
