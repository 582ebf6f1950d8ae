"""Events into rows by the column: one pyarrow.json call for thousands of events, then compute on whole columns.

Never different from `exact`: where it is not sure it gives no answer (None), and the caller asks `exact`. It makes no
columns: a value that a table has no column for is not its to judge, but a null is nothing to have a column for. What
pyarrow.json 26 does was tried out, value by value (tests/parquet/test_fast.py): it refuses equal keys, unknown members
(`unexpected_field_behavior="error"`), lone surrogate escapes, integers out of range or with a fraction, and JSON of
another kind; it takes bytes that are not UTF-8, bare NaN and Infinity, and decimals that do not fit. A leading `null`
kills it, and so may a decimal with many digits after the point, or read wrong: `_decimals_are_tame` keeps those from it.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json

from dolake.column_types import NESTED, ColumnType, DecimalType, ListType, StructType
from dolake.parquet.columns import DOUBLE, DOUBLE_WHOLE_MAX, JSON
from dolake.parquet.convert import Refused, convert, read_type
from dolake.parquet.exact import OPERATION_VALUES, default_array, key_text
from dolake.parquet.layout import Column, Layout
from dolake.parquet.values import TIMESTAMP_MAX, TIMESTAMP_MIN, Misfit

# How much of the events is looked at to guess which optional parts they have; a wrong guess costs a second try.
_SAMPLE_BYTES = 64 * 1024
_STRING = pa.string()
# What a `cdc_batch` message holds beside its events.
_ENVELOPE = (
    ("type", pa.string()),
    ("timestamp", pa.int64()),
    ("sourceDoId", pa.string()),
    ("sourceShardName", pa.string()),
    ("epoch", pa.string()),
    ("sequenceNumber", pa.int64()),
    ("firstEventSequence", pa.int64()),
    ("lastEventSequence", pa.int64()),
    ("sizeBytes", pa.int64()),
    ("isRetry", pa.bool_()),
    ("retryCount", pa.int64()),
    ("correlationId", pa.string()),
    ("transaction", pa.struct([("id", pa.string()), ("last", pa.bool_())])),
)
_UPDATE, _DELETE, _TRUNCATE = 1, 2, 3
# Arrow divides by powers of ten up to 10**38 and looks no further: digits after the point and the exponent together must
# stay below. A number is wild with an exponent of -19 or less, with 20 digits after the point and an exponent, with 39
# digits after the point, or where an escape may hide one of these.
_SMALL = r"-0*(?:19|[2-9][0-9]|[1-9][0-9]{2,9})[\"\s,}\]\\]"
_WILD_DECIMALS = ("e" + _SMALL, "E" + _SMALL, r"\.[0-9]{20,38}[eE]", r"\.[0-9]{39}", r"\\u00(?:3[0-9]|[46]5|2[dDeE])")
# The first two as part of a number: uuids end in such things too.
_WILD_EXPONENT = r"[:\[\",\s][+-]?[0-9.]+[eE]" + _SMALL

# Numbers that a double may not hold by their text: of 18 significant digits, and very small ones. Large ones show by their value.
_NO_DOUBLES = (
    r"[:\[,\s]-?[1-9][0-9.]{18}",
    r"[:\[,\s]-?[1-9][0-9]{17}[eE]",
    r"[:\[,\s]-?0\.0{300}",
    r"[:\[,\s]-?0\.0*[1-9][0-9]{17}",
    r"[:\[,\s]-?[0-9.]+[eE]-0*[1-9][0-9]{2}",
)


@dataclass(frozen=True)
class _Reading:
    """What pyarrow.json is asked for; narrowed down by what it complains about."""

    before: bool
    metadata: bool
    lsn: pa.DataType = _STRING
    transaction: pa.DataType = _STRING
    unexpected: str = "error"

    def after(self, complaint: str) -> _Reading | None:
        """The next thing to try, if there is one."""
        if "unexpected field" in complaint and self.unexpected == "error":
            # Something optional beyond the sample, or a member to ignore: infer it, and look afterwards where it was.
            return replace(self, before=True, metadata=True, unexpected="infer")
        for name in ("lsn", "transactionId"):
            part = "lsn" if name == "lsn" else "transaction"
            if f"Column(/metadata/{name}) changed from string to number" in complaint and getattr(self, part) == _STRING:
                return replace(self, **{part: pa.int64()})
        return None


class FastDecoder:
    """Decodes events of one table, of sources that call its columns by these names (`aliases`: former name → name now)."""

    def __init__(self, layout: Layout, aliases: Mapping[str, str] | None = None) -> None:
        self.layout = layout
        former = {now: old for old, now in (aliases or {}).items()}
        # Values of columns beside an inferred one come under that one's name: only the exact way can tell them.
        self.members = {former.get(column.name, column.name): column for column in layout.columns if not column.origin.beside}
        self.key = tuple(former.get(name, name) for name in layout.primary_key)
        types = [(member, read_type(column.kind)) for member, column in self.members.items()]
        # Keys of nested types cannot be compared by the column.
        nested_key = any(isinstance(column.kind, NESTED) for column in layout.columns if column.name in layout.primary_key)
        self.able = bool(types) and not nested_key and all(kind is not None for _, kind in types)
        self.image = pa.struct(types if self.able else [])
        self.decimals = any(_holds_decimal(column.kind) for column in layout.columns)
        self.doubles = any(column.origin.inferred and column.kind == DOUBLE for column in layout.columns)
        self._unexpected = "error"
        self._defaults: dict[str, pa.Array] = {}

    def decode(self, events: Sequence[bytes]) -> pa.Table | None:
        """The events' rows, of `layout.event_schema`; None when only the exact way can tell."""
        if not self.able or not events:
            return None
        return self._decode(b"\n".join(events), events, self.read)

    def decode_batches(self, batches: Sequence[bytes], events: Sequence[bytes]) -> pa.Table | None:
        """The same from the messages that the events came in, whole; None also where taking them out first would do."""
        if not self.able or not batches or any(b"\n" in batch for batch in batches):
            return None  # A line must be a message.
        return self._decode(b"\n".join(batches), events, self.read_batches)

    def _decode(self, text: bytes, events: Sequence[bytes], read_text: Callable[[bytes], pa.Table | None]) -> pa.Table | None:
        try:
            if not _begins_as_object(text) or not _is_utf8(text) or (self.decimals and not _decimals_are_tame(text)):
                return None
            if self.doubles and not _doubles_are_tame(text):
                return None
            read = read_text(text)
            if read is None or read.num_rows != len(events):
                return None
            return self.table(read, events)
        except (Refused, pa.ArrowException):
            return None

    def read(self, text: bytes) -> pa.Table | None:
        guess = _guess(text)
        reading: _Reading | None = guess if self._unexpected == "error" else replace(guess, before=True, metadata=True, unexpected="infer")
        while reading is not None:
            try:
                found = _read_json(text, self.fields(reading), reading.unexpected)
            except pa.ArrowInvalid as complaint:
                reading = reading.after(str(complaint))
            else:
                # Members that are always null come again and again: no need to be surprised by them every time.
                self._unexpected = reading.unexpected
                return found
        return None

    def read_batches(self, text: bytes) -> pa.Table | None:
        """The events of messages, one a line. Only the plain case: for any other the events are read by themselves."""
        if self._unexpected != "error":
            return None
        event = pa.struct(self.fields(_guess(text)))
        read = _read_json(text, [*_ENVELOPE, ("events", pa.list_(event))], "error")
        lists = _one_array(read.column("events"))
        events = lists.flatten()
        if lists.null_count or events.null_count:
            return None
        return pa.Table.from_arrays(events.flatten(), names=event.names)

    def fields(self, reading: _Reading) -> list[tuple[str, pa.DataType]]:
        fields = [("sequence", pa.int64()), ("timestamp", pa.int64()), ("operation", pa.string()), ("table", pa.string())]
        fields += [("rowId", pa.string()), ("after", self.image)]
        if reading.before:
            fields.append(("before", self.image))
        if reading.metadata:
            unchanged = pa.list_(pa.string())
            kinds = [("lsn", reading.lsn), ("transactionId", reading.transaction), ("unchanged", unchanged)]
            fields.append(("metadata", pa.struct(kinds)))
        return fields

    def table(self, read: pa.Table, events: Sequence[bytes]) -> pa.Table:
        columns = {name: _one_array(read.column(name)) for name in read.schema.names}
        after = self.members_of(columns["after"])
        before = self.members_of(columns["before"]) if "before" in columns else {}
        _refuse_non_finite(list(columns.values()))
        operation = pc.index_in(columns["operation"], value_set=OPERATION_VALUES)
        if operation.null_count or columns["sequence"].null_count or columns["timestamp"].null_count:
            raise Refused
        found = {
            "_cdc_operation": pa.DictionaryArray.from_arrays(operation, OPERATION_VALUES),
            "_cdc_sequence": columns["sequence"],
            "_cdc_timestamp": _timestamps(columns["timestamp"]),
            "_cdc_row_id": columns["rowId"],
            **_metadata(columns.get("metadata")),
        }
        images = _selected(operation, after, before)
        for member, column in self.members.items():
            _refuse_what_is_not_inferred(column, images[member])
            found[column.name] = convert(images[member], column.kind, column.type)
            if column.default is not None:
                there = pc.and_(columns["after"].is_valid(), pc.less(operation, _DELETE))
                missing = pc.and_(there, images[member].is_null())
                found[column.name] = self.filled(column, member, found[column.name], missing, events)
        if before and self.layout.primary_key:
            found["_cdc_key_before"] = self.keys_before(operation, before, found, events)
        nulls = functools.partial(pa.nulls, len(events))
        arrays = [found[field.name] if field.name in found else nulls(field.type) for field in self.layout.event_schema]
        return pa.Table.from_arrays(arrays, schema=self.layout.event_schema)

    def members_of(self, images: pa.Array) -> dict[str, pa.Array]:
        """The images' columns by the name the source gives them."""
        found = dict(zip(images.type.names, images.flatten(), strict=True))
        for member, values in found.items():
            expected = self.image.field(member).type if member in self.members else pa.null()
            if values.type != expected:
                raise Refused  # A member that no column or field is for.
        return {member: found[member] for member in self.members}

    def filled(self, column: Column, member: str, values: pa.Array, missing: pa.Array, events: Sequence[bytes]) -> pa.Array:
        """The values with the column's default where the event does not have it; a null that is written there stays."""
        places = pc.indices_nonzero(missing).to_pylist()
        if not places:
            return values
        texts = pa.array([events[place] for place in places], pa.binary())
        for sign in (json.dumps(member, ensure_ascii=False), "\\u"):  # Null, unchanged, or perhaps the name in other letters.
            if pc.any(pc.match_substring(texts, sign)).as_py():
                raise Refused
        if column.name not in self._defaults:
            try:
                self._defaults[column.name] = default_array(column)
            except Misfit:
                raise Refused from None
        both = pa.concat_arrays([values, self._defaults[column.name]])
        return both.take(pc.if_else(missing, len(values), pa.arange(0, len(values))))

    def keys_before(
        self, operation: pa.Array, before: dict[str, pa.Array], found: dict[str, pa.Array], events: Sequence[bytes]
    ) -> pa.Array:
        """The old key where an update's before image has it all and some of it differs; row by row only for those."""
        update = pc.equal(operation, _UPDATE)
        complete, differs = update, pa.scalar(False)
        for member in self.key:
            column = self.members[member]
            # Only updates' keys are compared; other rows' before images may hold anything.
            there = pc.if_else(update, before[member], pa.scalar(None, before[member].type))
            old, new = (_comparable(array) for array in (convert(there, column.kind, column.type), found[column.name]))
            complete = pc.and_(complete, pc.is_valid(old))
            differs = pc.or_(differs, pc.fill_null(pc.not_equal(old, new), False))
        changed = pc.and_(complete, differs)
        places = pc.indices_nonzero(changed).to_pylist()
        keys = pa.array([key_text(events[place], self.key) for place in places], pa.string())
        return pc.replace_with_mask(pa.nulls(len(events), pa.string()), changed, keys)


def _guess(text: bytes) -> _Reading:
    head = text[:_SAMPLE_BYTES]
    return _Reading(before=b'"before"' in head, metadata=b'"metadata"' in head)


def _read_json(text: bytes, fields: Sequence[tuple[str, pa.DataType]], unexpected: str) -> pa.Table:
    return pyarrow.json.read_json(
        pa.BufferReader(text),
        read_options=pyarrow.json.ReadOptions(use_threads=False, block_size=len(text) + 1),
        parse_options=pyarrow.json.ParseOptions(explicit_schema=pa.schema(fields), unexpected_field_behavior=unexpected),
    )


def _holds_decimal(kind: ColumnType) -> bool:
    match kind:
        case DecimalType():
            return True
        case ListType(element):
            return _holds_decimal(element)
        case StructType(fields):
            return any(_holds_decimal(child.type) for child in fields)
        case _:
            return False


def _whole(text: bytes, kind: pa.DataType) -> pa.Array:
    """The text as an array of one value, not copied."""
    return pa.Array.from_buffers(kind, 1, [None, pa.array([0, len(text)], pa.int64()).buffers()[1], pa.py_buffer(text)])


def _begins_as_object(text: bytes) -> bool:
    """pyarrow.json dies of a `null` before the first object, and skips a byte order mark."""
    return text[:_SAMPLE_BYTES].lstrip().startswith(b"{")


def _is_utf8(text: bytes) -> bool:
    try:
        _whole(text, pa.large_string()).validate(full=True)
    except pa.ArrowInvalid:
        return False
    return True


def _decimals_are_tame(text: bytes) -> bool:
    """Whether no number in the text can lead Arrow's decimal parser astray."""
    array = _whole(text, pa.large_binary())
    hits = [pattern for pattern in _WILD_DECIMALS if pc.match_substring_regex(array, pattern)[0].as_py()]
    if any(not pattern.startswith(("e", "E")) for pattern in hits):
        return False
    return not hits or not pc.match_substring_regex(array, _WILD_EXPONENT)[0].as_py()


def _one_array(column: pa.ChunkedArray) -> pa.Array:
    return column.chunk(0) if column.num_chunks == 1 else pa.concat_arrays(column.chunks)


def _doubles_are_tame(text: bytes) -> bool:
    """Whether every number in the text is one that a double holds, as far as its digits tell (`columns`)."""
    array = _whole(text, pa.large_binary())
    return not any(pc.match_substring_regex(array, pattern)[0].as_py() for pattern in _NO_DOUBLES)


def _refuse_what_is_not_inferred(column: Column, values: pa.Array) -> None:
    """An inferred column of JSON text is read as one of strings, which it has none of; one of doubles may have got larger numbers."""
    if not column.origin.inferred:
        return
    if column.kind == JSON and values.null_count < len(values):
        raise Refused
    if column.kind == DOUBLE and pc.any(pc.greater_equal(pc.abs(values), float(DOUBLE_WHOLE_MAX))).as_py():
        raise Refused


def _refuse_non_finite(waiting: list[pa.Array]) -> None:
    """Refuses NaN and infinities wherever they were read: in JSON they can only be bare words or numbers out of range."""
    while waiting:
        array = waiting.pop()
        if pa.types.is_floating(array.type):
            if pc.all(pc.is_finite(array)).as_py() is False:
                raise Refused
        elif pa.types.is_struct(array.type):
            waiting += array.flatten()
        elif pa.types.is_list(array.type):
            waiting.append(array.flatten())


def _timestamps(milliseconds: pa.Array) -> pa.Array:
    bounds = pc.min_max(milliseconds).as_py()
    if not TIMESTAMP_MIN // 1000 <= bounds["min"] <= bounds["max"] <= TIMESTAMP_MAX // 1000:
        raise Refused
    return pc.multiply(milliseconds, 1000).view(pa.timestamp("us", "UTC"))


def _metadata(metadata: pa.Array | None) -> dict[str, pa.Array]:
    if metadata is None:
        return {}
    parts = dict(zip(metadata.type.names, metadata.flatten(), strict=True))
    if parts["unchanged"].flatten().null_count:
        raise Refused
    return {
        "_cdc_lsn": pc.cast(parts["lsn"], pa.string()),
        "_cdc_transaction": pc.cast(parts["transactionId"], pa.string()),
        "_cdc_unchanged": parts["unchanged"],
    }


def _selected(operation: pa.Array, after: dict[str, pa.Array], before: dict[str, pa.Array]) -> dict[str, pa.Array]:
    """Each column of the image its row stands for: before for a DELETE, after for an INSERT or UPDATE, none for a TRUNCATE."""
    if not pc.any(pc.greater_equal(operation, _DELETE)).as_py():
        return after
    delete, truncate = pc.equal(operation, _DELETE), pc.equal(operation, _TRUNCATE)
    images = {}
    for name, array in after.items():
        none = pa.scalar(None, array.type)
        images[name] = pc.if_else(delete, before.get(name, none), pc.if_else(truncate, none, array))
    return images


def _comparable(array: pa.Array) -> pa.Array:
    return array.storage if isinstance(array, pa.ExtensionArray) else array
