"""One table of a PostgreSQL stream: what its lines have told of its columns, and its rows as JSON.

A `Shape` is a list of columns as some line carried it, compiled once; a relation's columns are what its shapes add up to.
An insert carries all columns, so what it lacks was dropped. An update may lack unchanged out-of-line values, so what it
lacks was dropped only if its type is never stored out of line. A replica identity is any subset and shrinks nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import Enum

import msgspec

from dolake.cdc.formats.postgres import ColumnType, Convert, column_type
from dolake.model import DeclaredColumn, DeclaredSchema

_NULL = msgspec.Raw(b"null")


class Column(msgspec.Struct, gc=False):
    """A column of one line. `value` stays the JSON it was."""

    name: str
    type: str = ""
    value: msgspec.Raw = _NULL


class Role(Enum):
    """What a shape says about the columns it lacks."""

    INSERT = "they were dropped"
    UPDATE = "they were dropped, or out of line and unchanged"
    IDENTITY = "nothing"


class Shape:
    """Columns as a line carries them: for each its name, type, the JSON before its value, and how the value changes."""

    __slots__ = ("columns", "names")

    def __init__(self, columns: Sequence[tuple[str, str, bytes, Convert | None]]) -> None:
        self.columns = columns
        self.names = frozenset(name for name, *_ in columns)


class Relation:
    """`columns` maps each column to its PostgreSQL type, in order; `heads` are the bytes before a row, by action."""

    def __init__(self, table: str, heads: Mapping[str, bytes]) -> None:
        self.table = table
        self.heads = heads
        self.columns: dict[str, str] = {}
        self.primary_key: tuple[str, ...] = ()
        self.key_known = False
        self.declared = False
        self.is_whole = False  # something has carried every column there is
        self.withheld: list[bytes] = []  # events, but for their number, that wait for the first columns
        self._types: dict[tuple[str, str], ColumnType] = {}
        self._shapes: dict[tuple[str, ...], Shape] = {}
        self._last: dict[int, Shape] = {}
        self._known_roles: set[tuple[Shape, Role]] = set()
        self._key: list[tuple[str, str]] | None = None

    def encode(self, columns: list[Column]) -> tuple[Shape, list[bytes | msgspec.Raw]]:
        """The shape of `columns`, and their JSON members in pieces. Raises ValueError naming the column."""
        shape = self._last.get(len(columns))
        pieces = None if shape is None else _members(shape, columns)
        if shape is None or pieces is None:
            shape = self._last[len(columns)] = self._shape(columns)
            pieces = _members(shape, columns)
            assert pieces is not None
        return shape, pieces

    def observe_key(self, key: list[Column]) -> bool:
        """Whether `key`, as the line names it, is new. Its columns count as known even if no row has carried them yet."""
        named = [(column.name, column.type) for column in key]
        if named == self._key:
            return False
        self._key, self.key_known = named, True
        self.primary_key = tuple(name for name, _ in named)
        self.columns |= dict(named)
        self._known_roles.clear()
        return True

    def observe(self, shape: Shape, role: Role) -> bool:
        """Whether `shape` changes what is known of the table."""
        if (shape, role) in self._known_roles:
            return False
        carried = {name: declared for name, declared, *_ in shape.columns}
        if role is Role.INSERT:
            columns, self.is_whole = carried, True
        else:
            kept = {
                name: declared
                for name, declared in self.columns.items()
                if name in carried or role is Role.IDENTITY or self._type(name, declared).toastable
            }
            columns = kept | carried
        changed = list(columns.items()) != list(self.columns.items())
        if changed:
            self.columns = columns
            self._known_roles.clear()
        self._known_roles.add((shape, role))
        return changed

    def declare(self) -> DeclaredSchema:
        """The schema as it is known now: PostgreSQL's stream says nothing of nullability, so only keys are required."""
        self.declared = True
        return DeclaredSchema(
            table=self.table,
            primary_key=self.primary_key,
            columns=tuple(
                DeclaredColumn(name=name, type=self._type(name, declared).name, nullable=name not in self.primary_key)
                for name, declared in self.columns.items()
            ),
        )

    def _shape(self, columns: list[Column]) -> Shape:
        identity = tuple(part for column in columns for part in (column.name, column.type))
        shape = self._shapes.get(identity)
        if shape is None:
            compiled = []
            for position, column in enumerate(columns):
                if not column.type:
                    raise ValueError(f"column {column.name!r} carries no type: capture with include-types=true")
                prefix = (b"," if position else b"") + msgspec.json.encode(column.name) + b":"
                compiled.append((column.name, column.type, prefix, self._type(column.name, column.type, column.value).convert))
            shape = self._shapes[identity] = Shape(compiled)
        return shape

    def _type(self, name: str, declared: str, first_value: msgspec.Raw = _NULL) -> ColumnType:
        """Decided once for each column and PostgreSQL type, so that the declared type does not waver."""
        known = self._types.get((name, declared))
        if known is None:
            known = self._types[name, declared] = column_type(declared, bytes(first_value))
        return known


def _members(shape: Shape, columns: list[Column]) -> list[bytes | msgspec.Raw] | None:
    """`"a":1,"b":2` in pieces; None when the columns are not of this shape."""
    pieces: list[bytes | msgspec.Raw] = []
    for column, (name, declared, prefix, convert) in zip(columns, shape.columns, strict=True):
        if column.name != name or column.type != declared:
            return None
        pieces.append(prefix)
        if convert is None:
            pieces.append(column.value)
        else:
            value = bytes(column.value)
            try:
                pieces.append(value if value == b"null" else convert(value))
            except ValueError as error:
                raise ValueError(f"column {name!r} ({declared}): {error}") from error
    return pieces
