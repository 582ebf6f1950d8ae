"""Rows of Debezium's envelopes as JSON members of the wire: by the schema that stands beside them, or as they came."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec

from dolake.cdc.formats.connect import ConnectSchema, Kind, Reading, column_kind
from dolake.cdc.formats.moments import Convert
from dolake.cdc.formats.placeholders import Placeholders
from dolake.members import members_of

_SHAPES_MAX = 1_000
_schema = msgspec.json.Decoder(ConnectSchema).decode
_text = msgspec.json.Decoder(str).decode
_encode = msgspec.json.encode


@dataclass(frozen=True)
class Shape:
    """A table's columns as an envelope's schema has them, in order; for each the JSON before its value and how the value changes."""

    kinds: Mapping[str, Kind]
    names: tuple[str, ...]
    columns: tuple[tuple[bytes, Convert | None], ...]


@dataclass(frozen=True)
class Image:
    """A row as the wire has it, and the columns of which only a placeholder came."""

    text: bytes
    unchanged: tuple[str, ...] = ()


class Images:
    """Schemas repeat in every line, byte for byte: each is read once."""

    def __init__(self, reading: Reading, placeholders: Placeholders) -> None:
        self._reading, self._placeholders = reading, placeholders
        self._shapes: dict[bytes, Shape] = {}

    def shape(self, schema: bytes) -> Shape:
        """Raises ValueError naming the column."""
        shape = self._shapes.get(schema)
        if shape is None:
            if len(self._shapes) >= _SHAPES_MAX:
                self._shapes.clear()
            shape = self._shapes[schema] = self._read(schema)
        return shape

    def _read(self, schema: bytes) -> Shape:
        envelope = _schema(schema)
        row = next((one for name in ("after", "before") for one in envelope.fields if one.field == name), None)
        if row is None or row.type != "struct":
            raise ValueError("schema: has no struct `after` or `before`, so it is none of a change event")
        kinds: dict[str, Kind] = {}
        for column in row.fields:
            if column.field in kinds:
                raise ValueError(f"schema: two columns are called {column.field!r}")
            try:
                kinds[column.field] = column_kind(column, self._reading)
            except ValueError as error:
                raise ValueError(f"schema: column {column.field!r}: {error}") from None
        columns = tuple((_encode(name) + b":", kind.convert) for name, kind in kinds.items())
        return Shape(kinds, tuple(kinds), columns)

    def encode(self, image: bytes, shape: Shape | None) -> Image:
        """Raises ValueError naming the column."""
        if shape is None and not self._placeholders.may_be_in(image):
            members_of(image)
            return Image(image)
        members = members_of(image)
        if shape is not None and tuple(members) == shape.names:
            columns: Sequence[tuple[bytes, Convert | None]] = shape.columns
        else:
            kinds = {} if shape is None else shape.kinds
            columns = [(_encode(name) + b":", kinds[name].convert if name in kinds else None) for name in members]
        is_placeholder = self._placeholders.has
        pieces: list[bytes] = []
        unchanged: list[str] = []
        for (name, raw), (prefix, convert) in zip(members.items(), columns, strict=True):
            value = bytes(raw)
            if is_placeholder(value):
                unchanged.append(name)
            elif convert is None or value == b"null":
                pieces.append(prefix + value)
            else:
                try:
                    pieces.append(prefix + convert(value))
                except (msgspec.MsgspecError, ValueError) as error:
                    raise ValueError(f"column {name!r}: {error}") from error
        return Image(b"{" + b",".join(pieces) + b"}", tuple(unchanged))


def key_values(image: bytes, key: Sequence[str]) -> tuple[bytes, ...] | None:
    """The key's values as the image has them; None where it has not all of them."""
    members = members_of(image)
    found = tuple(bytes(members[name]) for name in key if name in members)
    return found if found and len(found) == len(key) and b"null" not in found else None


def row_id(image: bytes, key: Sequence[str]) -> str:
    """A row's identity in one text: its key's value, or, of several columns, a JSON object. Raises ValueError naming the column."""
    members = members_of(image)
    for name in key:
        if name not in members or bytes(members[name]) == b"null":
            raise ValueError(f"column {name!r} of the key is {'null' if name in members else 'missing'}")
    values = [bytes(members[name]) for name in key]
    if len(key) == 1:
        return _text(values[0]) if values[0].startswith(b'"') else values[0].decode()
    return "{" + ",".join(f"{_encode(name).decode()}:{value.decode()}" for name, value in zip(key, values, strict=True)) + "}"
