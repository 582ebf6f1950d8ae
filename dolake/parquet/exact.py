"""Events into rows, one by one, by the letter: what an event means, and every reason to refuse it.

This path is slow and complete. `fast` is quick, and gives way to it whenever it is not sure. A row holds the before image
of a DELETE, the after image of an INSERT or UPDATE, and nothing of a TRUNCATE. An UPDATE's before image is only looked
at for its key; unknown members of the event and its metadata are ignored.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import msgspec
import pyarrow as pa

from dolake.column_types import SimpleType
from dolake.errors import RowRejected
from dolake.parquet.layout import EventChunk, Layout, from_storage, storage_type
from dolake.parquet.schema import holds_json
from dolake.parquet.values import TIMESTAMP_MAX, TIMESTAMP_MIN, Misfit, Number, Repeated, inside, members, parsed, reader, string, whole
from dolake.parquet.values import raw_reader as raw_reader_of

OPERATIONS = ("INSERT", "UPDATE", "DELETE", "TRUNCATE")
OPERATION_VALUES = pa.array(OPERATIONS, pa.string())


class _RawImages(msgspec.Struct, gc=False):
    before: dict[str, msgspec.Raw] | None = None
    after: dict[str, msgspec.Raw] | None = None


_RAW_IMAGES = msgspec.json.Decoder(_RawImages)


class ExactDecoder:
    """Decodes chunks of one table."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.names = {column.name: column for column in layout.columns}
        self.readers: dict[str, Callable[[Any], Any]] = {}
        self.raw_readers: dict[str, Callable[[bytes], Any]] = {}
        for column in layout.columns:
            if holds_json(column.kind):
                self.raw_readers[column.name] = raw_reader_of(column.kind)
            else:
                self.readers[column.name] = reader(column.kind)

    def decode(self, chunk: EventChunk) -> pa.Table:
        """The chunk's rows, of `layout.event_schema`. Raises RowRejected for the first event that cannot be read or does not fit."""
        rows = []
        for place, raw in enumerate(chunk.events):
            try:
                rows.append(self.row(raw))
            except Misfit as misfit:
                raise RowRejected(
                    table=self.layout.table,
                    log=chunk.log,
                    offset=chunk.offset,
                    index=chunk.indexes[place],
                    field=misfit.field or "event",
                    rule=misfit.rule,
                    value=misfit.value,
                ) from None
        arrays = [self.array(field, [row.get(field.name) for row in rows]) for field in self.layout.event_schema]
        return pa.Table.from_arrays(arrays, schema=self.layout.event_schema)

    def array(self, field: pa.Field, values: list[Any]) -> pa.Array:
        if field.name == "_cdc_operation":
            return pa.DictionaryArray.from_arrays(pa.array(values, pa.int32()), OPERATION_VALUES)
        if pa.types.is_dictionary(field.type):
            return pa.array(values, field.type.value_type).dictionary_encode().cast(field.type)
        return from_storage(pa.array(values, storage_type(field.type)), field.type)

    def row(self, raw: bytes) -> dict[str, Any]:
        """The event's columns by name; absent ones are null. Raises Misfit."""
        event = _object(parsed(raw))
        operation = inside("operation", _operation, event.get("operation"))
        metadata = inside("metadata", _optional_object, event.get("metadata")) or {}
        row = {
            "_cdc_operation": operation,
            "_cdc_sequence": inside("sequence", _sequence, event.get("sequence")),
            "_cdc_timestamp": inside("timestamp", _timestamp_ms, event.get("timestamp")),
            "_cdc_row_id": inside("rowId", _optional_text, event.get("rowId")),
            "_cdc_lsn": inside("metadata.lsn", _position, metadata.get("lsn")),
            "_cdc_transaction": inside("metadata.transactionId", _position, metadata.get("transactionId")),
            "_cdc_unchanged": inside("metadata.unchanged", _names, metadata.get("unchanged")),
        }
        image = {0: "after", 1: "after", 2: "before"}.get(operation)
        values = event.get(image) if image else None
        if image and values is not None:
            if not isinstance(values, dict):
                raise Misfit("an object is expected", values, field=image)
            for name in members(values, self.names):
                row[name] = self.column(name, values[name], raw, image)
        if operation == 1 and self.layout.primary_key and values is not None and event.get("before") is not None:
            row["_cdc_key_before"] = inside("before", lambda before: self.old_key(_object(before), row, raw), event["before"])
        return row

    def column(self, name: str, value: Any, raw: bytes, image: str) -> Any:
        if value is None:
            return None
        if name in self.readers:
            return inside(name, self.readers[name], value)
        if self.names[name].kind == SimpleType("json") and isinstance(value, str) and not isinstance(value, Number):
            return inside(name, string, value)
        try:
            pieces = getattr(_RAW_IMAGES.decode(raw), image)
        except (msgspec.DecodeError, RecursionError):
            raise Misfit("nested too deep", field=name) from None
        return inside(name, self.raw_readers[name], bytes(pieces[name]).strip())

    def old_key(self, before: dict[str, Any], row: dict[str, Any], raw: bytes) -> str | None:
        """The key before an update, where it has it all and some of it differs."""
        key = self.layout.primary_key
        if any(before.get(name) is None for name in key):
            return None
        changed = [row.get(name) is not None and self.column(name, before[name], raw, "before") != row[name] for name in key]
        return key_text(raw, key) if any(changed) else None


def key_text(raw: bytes, key: tuple[str, ...]) -> str:
    """The key in an event's before image as JSON text: its columns in the key's order, each value as the source wrote it."""
    before = _RAW_IMAGES.decode(raw).before or {}
    return "{" + ",".join(f"{json.dumps(name, ensure_ascii=False)}:{bytes(before[name]).decode().strip()}" for name in key) + "}"


def _object(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise Misfit("an object is expected", value)
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
