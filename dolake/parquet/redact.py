"""Columns that are left out of a table, or masked: events rewritten before anything else looks into them.

A masked value becomes the HMAC-SHA-256 of its text under the operator's key, 64 hexadecimal digits: equal values stay equal,
in every column and table, so that they can be counted and joined, and nobody without the key can try values out. The text
of a JSON string is the string itself; any other value's is its JSON as the source wrote it (`1` and `1.0` differ). null
stays null. Names are compared without case: `EMAIL` is not a way past `email`.

What is left out or masked never comes out of here. Members that dolake does not read (of an event, of its metadata) are
left out too, for nobody knows what they hold. An event that cannot be rewritten for certain keeps only its number, time,
operation and table, and is named in `Redacted.refused`. Everything else keeps its exact bytes.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import msgspec

from dolake.errors import SchemaRejected, TableStopped
from dolake.members import RepeatedKey, members_of, names_of
from dolake.model import ROW_ID_COLUMN, DeclaredColumn, DeclaredSchema

_KEPT = ("sequence", "timestamp", "operation", "table")
_ALWAYS_THERE = frozenset(_KEPT)
_METADATA = frozenset({"lsn", "transactionId"})
_UNREADABLE = "cannot be read far enough to redact it"
_SHAPES_MAX = 1_000
_DIGEST = re.compile(rb'"[0-9a-f]{64}"')

_names = msgspec.json.Decoder(list[str]).decode
_text = msgspec.json.Decoder(str).decode
_encode = msgspec.json.encode


@dataclass(frozen=True)
class Redacted:
    """As many events as were given. `refused` says for some, by their place, why they are without their row."""

    events: list[bytes]
    refused: Mapping[int, str]


@dataclass(frozen=True)
class _Shape:
    """Images with the same columns in the same order. `kept` are those that stay: the JSON before
    the value, its place, and whether it is masked.
    """

    kept: tuple[tuple[bytes, int, bool], ...]
    sensitive: bool


class Redactor:
    """What is left out and masked in one table. Values in, values out; keeps nothing of what it has seen but column names."""

    def __init__(self, drop: Collection[str], mask: Collection[str], key: str, primary_key: Sequence[str] = ()) -> None:
        """`drop` wins where both name a column. Row ids are masked where `mask` names them, or a key column: they are made of it."""
        self._drop = {name.casefold() for name in drop}
        self._mask = {name.casefold() for name in mask} - self._drop
        self._masks_row_id = ROW_ID_COLUMN in self._mask or any(name.casefold() in self._mask for name in primary_key)
        self._key = key.encode()
        self._replayed = False
        self._shapes: dict[tuple[str, ...], _Shape] = {}

    def events(self, events: Sequence[bytes], *, replayed: bool = False) -> Redacted:
        """The events of one table (JSON, as the ingest half accepted them) without what must not be seen.

        `replayed`: they come out of the dead letters, where they may have been masked before; 64 hexadecimal digits stay.
        """
        self._replayed = replayed
        found: list[bytes] = []
        refused: dict[int, str] = {}
        for place, raw in enumerate(events):
            try:
                found.append(self._event(raw))
            except (msgspec.MsgspecError, ValueError, RecursionError) as error:
                # Only sentences of our own: a library's may quote the value.
                refused[place] = str(error) if isinstance(error, RepeatedKey) else _UNREADABLE
                found.append(_bare(raw))
        return Redacted(found, refused)

    def schema(self, declared: DeclaredSchema) -> DeclaredSchema:
        """The declaration of what is left: dropped columns are gone, masked ones are strings.

        Raises SchemaRejected for a key column that is dropped and a table without columns. Raises TableStopped for a column
        that was renamed away from its redaction: until the settings name it anew, its rows must not be read at all.
        """
        columns = []
        for column in declared.columns:
            verdict = self._verdict(column.name)
            before = verdict if column.renamed_from is None else self._verdict(column.renamed_from)
            if before not in ("keep", verdict):
                rule = f"column {column.name} was {column.renamed_from}, which the settings {before}: {before} the new name as well"
                raise TableStopped(declared.table, rule, field=column.name)
            if verdict != "drop":
                columns.append(self._masked_column(column) if verdict == "mask" else column)
            elif column.name in declared.primary_key:
                rule = "is a key column: the settings may mask it, not drop it"
                raise SchemaRejected(table=declared.table, field=column.name, rule=rule)
        if not columns:
            raise SchemaRejected(table=declared.table, field="*", rule="the settings drop every column")
        return replace(declared, columns=tuple(columns))

    def _masked_column(self, column: DeclaredColumn) -> DeclaredColumn:
        default = None if column.default is None else self._masked(msgspec.Raw(column.default.encode())).decode()
        return replace(column, type="string", default=default)

    def _event(self, raw: bytes) -> bytes:
        event = members_of(raw)
        if not event.keys() >= _ALWAYS_THERE:
            raise ValueError(_UNREADABLE)
        pieces: list[bytes | msgspec.Raw] = [
            b'{"sequence":', event["sequence"], b',"timestamp":', event["timestamp"],
            b',"operation":', event["operation"], b',"table":', event["table"],
        ]  # fmt: skip
        if "rowId" in event:
            row_id = event["rowId"]
            pieces += (b',"rowId":', self._masked(row_id) if self._masks_row_id else row_id)
        if "before" in event:
            pieces += (b',"before":', self._image(event["before"]))
        if "after" in event:
            pieces += (b',"after":', self._image(event["after"]))
        if "metadata" in event:
            pieces += (b',"metadata":', self._metadata(event["metadata"]))
        pieces.append(b"}")
        return b"".join(pieces)

    def _image(self, image: msgspec.Raw) -> bytes | msgspec.Raw:
        raw = bytes(image).strip()
        if raw == b"null":
            return raw
        shape = self._shape(names_of(raw))
        if not shape.sensitive:
            return image
        columns = members_of(raw)
        values = list(columns.values())
        pieces: list[bytes | msgspec.Raw] = [b"{"]
        for prefix, place, masked in shape.kept:
            pieces += (prefix, self._masked(values[place]) if masked else values[place])
        pieces.append(b"}")
        return b"".join(pieces)

    def _metadata(self, metadata: msgspec.Raw) -> bytes | msgspec.Raw:
        members = members_of(metadata)
        if members.keys() <= _METADATA:
            return metadata
        kept = [b'"%b":%b' % (name.encode(), bytes(value)) for name, value in members.items() if name in _METADATA]
        names = _names(members["unchanged"]) if "unchanged" in members else []
        names = [name for name in names if self._verdict(name) != "drop"]
        if names:
            kept.append(b'"unchanged":' + _encode(names))
        return b"{" + b",".join(kept) + b"}"

    def _verdict(self, name: str) -> str:
        folded = name.casefold()
        return "drop" if folded in self._drop else "mask" if folded in self._mask else "keep"

    def _shape(self, names: tuple[str, ...]) -> _Shape:
        shape = self._shapes.get(names)
        if shape is None:
            kept: list[tuple[bytes, int, bool]] = []
            for place, name in enumerate(names):
                prefix, verdict = _encode(name) + b":", self._verdict(name)
                if verdict != "drop":
                    kept.append((b"," + prefix if kept else prefix, place, verdict == "mask"))
            sensitive = any(self._verdict(name) != "keep" for name in names)
            shape = _Shape(tuple(kept), sensitive)
            if len(self._shapes) < _SHAPES_MAX:
                self._shapes[names] = shape
        return shape

    def _masked(self, value: msgspec.Raw) -> bytes:
        raw = bytes(value).strip()
        if raw == b"null" or (self._replayed and _DIGEST.fullmatch(raw)):
            return raw
        return b'"%b"' % self._digest(_text(raw) if raw.startswith(b'"') else raw.decode()).encode()

    def _digest(self, text: str) -> str:
        return hmac.digest(self._key, text.encode(), "sha256").hex()


class _Head(msgspec.Struct, gc=False):
    """What an event is sure to have, for the ingest half has checked it; none of it is of the row."""

    sequence: int = 0
    timestamp: int = 0
    operation: str = ""
    table: str = ""


_head = msgspec.json.Decoder(_Head).decode


def _bare(raw: bytes) -> bytes:
    """An event without all that could be sensitive."""
    try:
        head: Any = _head(raw)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        head = _Head()
    return b"{" + b",".join(b'"%b":%b' % (name.encode(), _encode(getattr(head, name))) for name in _KEPT) + b"}"
