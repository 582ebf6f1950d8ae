"""Plain rows: each line a JSON object, inserted into one table as it stands, byte for byte.

Event sequences are line numbers, so that a file that has grown is resumed behind its last line. A line knows no updates and
deletes; with a key each row has an identity, and where its table is a mirror a later row takes an earlier one's place.
Columns may be declared; the daemon finds the types of all others.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import msgspec

from dolake.cdc.formats import COMMIT, Declare, Event, Item
from dolake.cdc.formats.images import row_id
from dolake.cdc.formats.lines import NumberedLines
from dolake.errors import InvalidInput
from dolake.model import DeclaredColumn, DeclaredSchema


class _AnyObject(msgspec.Struct, gc=False):
    """Whatever an object holds must be JSON."""


class Rows:
    """The decoder of one stream."""

    def __init__(self, table: str, *, timestamp_ms: int, key: Sequence[str] = (), types: Mapping[str, str] | None = None) -> None:
        """`timestamp_ms` is the time of every event: rows carry none. `types` are columns to declare, in Iceberg's notation."""
        self._table, self._key, self._types = table, tuple(key), dict(types or {})
        self._head = b',"timestamp":%d,"operation":"INSERT","table":"%b"' % (timestamp_ms, table.encode())
        self._require_object = msgspec.json.Decoder(_AnyObject).decode
        self._lines = NumberedLines()
        self._declared = not self._types

    @property
    def notes(self) -> list[str]:
        return []

    @property
    def passed_over(self) -> Mapping[str, int]:
        return {}

    def pause(self, *, over: bool) -> Iterable[Item]:
        return ()

    def items(self, lines: Iterable[bytes]) -> Iterator[Item]:
        for text in self._lines.of(lines):
            try:
                self._require_object(text)
                if not text.isascii():
                    text.decode()
                identity = b',"rowId":' + msgspec.json.encode(row_id(text, self._key)) if self._key else b""
            except (msgspec.MsgspecError, ValueError, RecursionError) as error:
                reason = "nested too deep" if isinstance(error, RecursionError) else str(error)
                raise InvalidInput(line=self._lines.number, reason=reason) from error
            if not self._declared:
                self._declared = True
                yield Declare(self._declaration())
            number = self._lines.number
            yield Event(number, self._table, b'{"sequence":%d%b%b,"after":%b}' % (number, self._head, identity, text), "")
            yield COMMIT

    def _declaration(self) -> DeclaredSchema:
        """The key is a part of it only where all its columns have types."""
        key = self._key if self._types.keys() >= set(self._key) else ()
        columns = tuple(DeclaredColumn(name, kind, nullable=name not in key) for name, kind in self._types.items())
        return DeclaredSchema(self._table, key, columns)
