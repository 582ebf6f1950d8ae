"""Events into rows, one by one, by the letter: what an event means, and every reason to keep it out.

This path is slow and complete. `fast` is quick, and gives way to it whenever it is not sure. A row holds the before image
of a DELETE, the after image of an INSERT or UPDATE, and nothing of a TRUNCATE. An UPDATE's before image is only looked
at for its key; unknown members of the event and its metadata are ignored. An event that cannot be read, or a value that
fits nowhere, becomes a dead letter.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import pyarrow as pa

from dolake.column_types import ColumnType, SimpleType
from dolake.parquet.columns import JSON, Columns, fits
from dolake.parquet.layout import Column, EventChunk, from_storage, storage_type
from dolake.parquet.letters import Letter, Place
from dolake.parquet.types import holds_json
from dolake.parquet.values import (
    TIMESTAMP_MAX,
    TIMESTAMP_MIN,
    Misfit,
    Number,
    Repeated,
    inside,
    parsed,
    raw_reader,
    reader,
    string,
    whole,
)

OPERATIONS = ("INSERT", "UPDATE", "DELETE", "TRUNCATE")
OPERATION_VALUES = pa.array(OPERATIONS, pa.string())
_UPDATE = 1


class _RawImages(msgspec.Struct, gc=False):
    before: dict[str, msgspec.Raw] | None = None
    after: dict[str, msgspec.Raw] | None = None


_RAW_IMAGES = msgspec.json.Decoder(_RawImages)


@dataclass(frozen=True)
class Readings:
    """What one chunk's events say: rows by column name, with their places in the chunk, and those that no row can be made of."""

    rows: list[dict[str, Any]]
    places: list[int]
    letters: list[Letter]


class ExactDecoder:
    """Decodes chunks of one table. `columns` grows with what events bring; arrays are made for the layout of the end."""

    def __init__(self, columns: Columns, primary_key: tuple[str, ...]) -> None:
        self.columns, self.primary_key = columns, primary_key
        self._readers: dict[ColumnType, Callable[[Any], Any]] = {}
        self._raw_readers: dict[ColumnType, Callable[[bytes], Any]] = {}

    def read(self, chunk: EventChunk, aliases: Mapping[str, str]) -> Readings:
        """Each event a row or a letter. `aliases`: former column names this source still uses → names now."""
        found = Readings([], [], [])
        parsed_events = [_parse(raw) for raw in chunk.events]
        images = [image for event in parsed_events if isinstance(event, _Event) and (image := event.image) is not None]
        self.columns.prepare(images, lambda name: aliases.get(name, name))
        for place, event in enumerate(parsed_events):
            added_count = self.columns.added_count
            try:
                if isinstance(event, Misfit):
                    raise event
                row = self.row(event, aliases)
            except Misfit as misfit:
                self.columns.take_back(added_count)
                found.letters.append(_letter(chunk, place, misfit))
            else:
                found.rows.append(row)
                found.places.append(place)
        return found

    def row(self, event: _Event, aliases: Mapping[str, str]) -> dict[str, Any]:
        """The event's columns by name; absent ones are null. Raises Misfit."""
        row, image = dict(event.described), event.image
        if image is not None:
            given = {name: aliases.get(name, name) for name in image}
            for name, value in image.items():
                if value is None:
                    continue
                column = inside(name, functools.partial(self.columns.of, given[name]), value)
                if column.name in row:
                    raise Misfit(f"`{column.name}` is given twice, under its former name too", value, field=name)
                row[column.name] = self.column(column, name, value, event)
            if event.image_name == "after":
                self._fill(row, {*given.values(), *(row["_cdc_unchanged"] or ())})
        if event.described["_cdc_operation"] == _UPDATE and self.primary_key and image is not None and event.before is not None:
            names = {now: name for name, now in aliases.items()}
            key = tuple(names.get(name, name) for name in self.primary_key)
            row["_cdc_key_before"] = inside("before", lambda before: self.old_key(_object(before), key, row, event), event.before)
        return row

    def _differs(self, column: Column, name: str, before: Any, now: Any, event: _Event) -> bool:
        """Whether a key column has changed. What an inferred column would not hold was another value."""
        if column.origin.inferred and not fits(SimpleType(str(column.kind)), before):
            return True
        return bool(self.column(column, name, before, event, "before") != now)

    def _fill(self, row: dict[str, Any], given: set[str]) -> None:
        """Declared defaults for the columns that the event does not have."""
        for column in self.columns.by_name.values():
            if column.default is not None and column.name not in given:
                row[column.name] = inside(column.name, default_of, column)

    def column(self, column: Column, name: str, value: Any, event: _Event, image: str = "") -> Any:
        if not holds_json(column.kind):
            return inside(name, self._reader(column), value)
        if column.kind == JSON and isinstance(value, str) and not isinstance(value, Number):
            return inside(name, string, value)
        try:
            pieces = getattr(_RAW_IMAGES.decode(event.raw), image or event.image_name)
        except (msgspec.DecodeError, RecursionError):
            raise Misfit("nested too deep", field=name, code="not_readable") from None
        return inside(name, self._raw_reader(column), bytes(pieces[name]).strip())

    def _reader(self, column: Column) -> Callable[[Any], Any]:
        if column.kind not in self._readers:
            self._readers[column.kind] = reader(column.kind)
        return self._readers[column.kind]

    def _raw_reader(self, column: Column) -> Callable[[bytes], Any]:
        if column.kind not in self._raw_readers:
            self._raw_readers[column.kind] = raw_reader(column.kind)
        return self._raw_readers[column.kind]

    def old_key(self, before: dict[str, Any], key: tuple[str, ...], row: dict[str, Any], event: _Event) -> str | None:
        """The key before an update, where it has it all and some of it differs. `key` as the event calls its columns."""
        if any(before.get(name) is None for name in key):
            return None
        changed = [
            row.get(now) is not None and self._differs(self.columns.by_name[now], name, before[name], row[now], event)
            for now, name in zip(self.primary_key, key, strict=True)
        ]
        return key_text(event.raw, key) if any(changed) else None


def default_of(column: Column) -> Any:
    """What rows without this column get. Raises Misfit where the declared default is no value of its type."""
    raw = (column.default or "null").encode()
    try:
        if holds_json(column.kind):
            return raw_reader(column.kind)(raw)
        return reader(column.kind)(parsed(raw))
    except Misfit as misfit:
        raise Misfit(f"the declared default does not fit: {misfit.rule}", column.default) from None


def default_array(column: Column) -> pa.Array:
    """The same as an array of one value."""
    return from_storage(pa.array([default_of(column)], storage_type(column.type)), column.type)


def arrays_of(rows: Sequence[Mapping[str, Any]], schema: pa.Schema) -> pa.Table:
    """Rows as a table of a layout's `event_schema`."""
    return pa.Table.from_arrays([_array(field, [row.get(field.name) for row in rows]) for field in schema], schema=schema)


def _array(field: pa.Field, values: list[Any]) -> pa.Array:
    if field.name == "_cdc_operation":
        return pa.DictionaryArray.from_arrays(pa.array(values, pa.int32()), OPERATION_VALUES)
    if pa.types.is_dictionary(field.type):
        return pa.array(values, field.type.value_type).dictionary_encode().cast(field.type)
    return from_storage(pa.array(values, storage_type(field.type)), field.type)


@dataclass(frozen=True)
class _Event:
    """An event that could be read: what it says of itself, and the image that its row holds."""

    raw: bytes
    described: Mapping[str, Any]
    image_name: str
    image: dict[str, Any] | None
    before: Any


def _parse(raw: bytes) -> _Event | Misfit:
    try:
        return _parsed_event(raw)
    except Misfit as misfit:
        misfit.code = "not_readable"
        return misfit


def _parsed_event(raw: bytes) -> _Event:
    event = _object(parsed(raw))
    operation = inside("operation", _operation, event.get("operation"))
    metadata = inside("metadata", _optional_object, event.get("metadata")) or {}
    described = {
        "_cdc_operation": operation,
        "_cdc_sequence": inside("sequence", _sequence, event.get("sequence")),
        "_cdc_timestamp": inside("timestamp", _timestamp_ms, event.get("timestamp")),
        "_cdc_row_id": inside("rowId", _optional_text, event.get("rowId")),
        "_cdc_lsn": inside("metadata.lsn", _position, metadata.get("lsn")),
        "_cdc_transaction": inside("metadata.transactionId", _position, metadata.get("transactionId")),
        "_cdc_unchanged": inside("metadata.unchanged", _names, metadata.get("unchanged")),
    }
    image_name = {0: "after", 1: "after", 2: "before"}.get(operation, "")
    image = event.get(image_name) if image_name else None
    if image is not None:
        image = _object(image, field=image_name)
    return _Event(raw, described, image_name, image, event.get("before"))


def _letter(chunk: EventChunk, place: int, misfit: Misfit) -> Letter:
    return Letter(
        place=Place(chunk.log, chunk.offset, chunk.indexes[place]),
        source=chunk.source,
        epoch=chunk.epoch,
        reason=misfit.code,
        field=misfit.field or "event",
        rule=misfit.rule,
        value=misfit.value,
        event=chunk.events[place],
    )


def key_text(raw: bytes, key: tuple[str, ...]) -> str:
    """The key in an event's before image as JSON text: its columns in the key's order, each value as the source wrote it."""
    before = _RAW_IMAGES.decode(raw).before or {}
    return "{" + ",".join(f"{json.dumps(name, ensure_ascii=False)}:{bytes(before[name]).decode().strip()}" for name in key) + "}"


def _object(value: Any, field: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        raise Misfit("an object is expected", value, field=field)
    if isinstance(value, Repeated):
        raise Misfit("the same key twice", field=value.key)
    return value


def _optional_object(value: Any) -> dict[str, Any] | None:
    return None if value is None else _object(value)


def _operation(value: Any) -> int:
    if value not in OPERATIONS:
        raise Misfit("INSERT, UPDATE, DELETE or TRUNCATE is expected", value)
    return OPERATIONS.index(value)


def _sequence(value: Any) -> int:
    return whole(value, 64)


def _timestamp_ms(value: Any) -> int:
    microseconds = whole(value, 64) * 1000
    if not TIMESTAMP_MIN <= microseconds <= TIMESTAMP_MAX:
        raise Misfit("milliseconds since the epoch, years 0001 to 9999", value)
    return microseconds


def _optional_text(value: Any) -> str | None:
    return None if value is None else string(value)


def _position(value: Any) -> str | None:
    """A source's own position or transaction: a string, or a whole number by its digits."""
    if isinstance(value, Number) and value.lstrip("-").isdigit():
        return "0" if value == "-0" else str(value)
    return _optional_text(value)


def _names(value: Any) -> list[str] | None:
    if value is None:
        return None
    if not isinstance(value, list):
        raise Misfit("an array of column names is expected", value)
    return [inside(f"[{place}]", string, name) for place, name in enumerate(value)]
