"""Names every mistake of a message that did not decode: slow, strict, and only run when something is wrong.

`mistakes_of(frame)` reads the frame with a plain JSON parser and holds each field against the table of rules below; with
`posted`, against those of a body sent by POST, where most of a batch's envelope may be left out.
Fields are named as `events.3.operation`; what a row holds (`before`, `after`) is only required to be JSON.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from dolake.column_types import parse_type
from dolake.errors import Mistake
from dolake.model import RESERVED_COLUMN_PREFIX, Operation, TableName

INT64_MAX = 2**63 - 1
TIME_MS_MAX = 253_402_300_799_999  # the last millisecond of the year 9999: later ones fit no timestamp type
NAME_MAX = 256
COLUMNS_MAX = 2000
VALUE_TEXT_MAX = 256
PATH_SHOWN_MAX = 64
FLUSH_REASONS = ("manual", "shutdown", "buffer_full", "time_threshold")
PROTOCOL_VERSIONS = (1,)

_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f]")
_SURROGATE = re.compile("[\ud800-\udfff]")
_ROWS = ("before", "after")

Rule = Callable[[Any], str | None]


@dataclass(frozen=True)
class _NotJson:
    """A token that Python's parser would take and JSON does not have, or a number too long to be one."""

    text: str


class _Object(dict[str, Any]):
    """A parsed object that remembers which keys came twice, and their `earlier` values."""

    repeated: tuple[str, ...] = ()
    earlier: tuple[tuple[str, Any], ...] = ()

    @classmethod
    def of(cls, pairs: list[tuple[str, Any]]) -> _Object:
        found = cls(pairs)
        if len(found) != len(pairs):
            last = {key: place for place, (key, _) in enumerate(pairs)}
            found.earlier = tuple(pair for place, pair in enumerate(pairs) if last[pair[0]] != place)
            found.repeated = tuple(dict.fromkeys(key for key, _ in found.earlier))
        return found


class Field(NamedTuple):
    rule: Rule
    required: bool = True


def is_source_name(text: str) -> bool:
    return 1 <= len(text) <= NAME_MAX and _CONTROL.search(text) is None


def mistake(field: str, value: object, rule: str) -> Mistake:
    return Mistake(field, shown(value), rule)


def shown(value: object) -> str:
    """A value as a mistake shows it: JSON, cut short."""
    text = value.text if isinstance(value, _NotJson) else json.dumps(value, ensure_ascii=True, default=_shown_inside)
    return text if len(text) <= VALUE_TEXT_MAX else text[: VALUE_TEXT_MAX - 1] + "…"


def mistakes_of(frame: bytes, *, posted: bool = False) -> list[Mistake]:
    """Everything that is wrong with a frame, or with the body of a POST; empty if nothing is."""
    try:
        text = frame.decode()
    except UnicodeDecodeError as error:
        return [Mistake("frame", repr(frame[error.start : error.start + 16]), f"is UTF-8 (byte {error.start} is not)")]
    try:
        return _mistakes_in(text, POSTED if posted else MESSAGES, "cdc_batch" if posted else None)
    except RecursionError:
        return [Mistake("frame", repr(text[:VALUE_TEXT_MAX]), "nests less deep")]


def _mistakes_in(text: str, messages: Mapping[str, Callable[[_Object], Iterator[Mistake]]], usual: str | None) -> list[Mistake]:
    """Raises RecursionError where it nests deeper than Python's parser goes, which is about as deep as the daemon's does."""
    try:
        message = json.loads(text, object_pairs_hook=_Object.of, parse_constant=_NotJson, parse_int=_integer_or_text)
    except ValueError as error:
        return [Mistake("frame", shown(text), f"is one JSON object: {error}")]
    if not isinstance(message, _Object):
        return [Mistake("frame", shown(message), "is one JSON object")]
    kind = message.get("type", usual)
    if not isinstance(kind, str) or kind not in messages:
        return [*_outside_json(message), Mistake("type", _shown_field(message, "type"), "is one of " + ", ".join(messages))]
    return [*_outside_json(message), *messages[kind](message)]


def _integer_or_text(text: str) -> int | _NotJson:
    # Python refuses to read integers of thousands of digits; nothing here may be longer than 64 bits anyway.
    return int(text) if len(text) <= 4000 else _NotJson(text)


def _shown_inside(value: object) -> str:
    return value.text if isinstance(value, _NotJson) else str(value)


def _shown_field(message: _Object, name: str) -> str:
    return shown(message[name]) if name in message else "nothing"


class _Value(NamedTuple):
    """A value of a message. `place` leads back to the message: (that of what it is in, its own key there); None for the message itself."""

    place: Any
    value: Any
    top: str = ""  # the field of the message that it lies in
    in_row: bool = False

    @property
    def path(self) -> str:
        """As far as somebody would read it."""
        parts, place = [], self.place
        while place is not None:
            place, key = place
            parts.append(key)
        return ".".join(parts[: -PATH_SHOWN_MAX - 1 : -1]) + ("" if len(parts) <= PATH_SHOWN_MAX else ".…")


def _outside_json(message: _Object) -> Iterator[Mistake]:
    """What Python's parser lets pass though it is no JSON or no message, however deep: NaN, lone surrogates, equal keys outside rows."""
    ahead: list[Iterator[_Value]] = [iter([_Value(None, message)])]
    while ahead:
        found = next(ahead[-1], None)
        if found is None:
            ahead.pop()
            continue
        value = found.value
        if isinstance(value, _NotJson):
            if not value.text.lstrip("-").isdigit():
                yield Mistake(found.path, shown(value), "is a JSON value")
        elif isinstance(value, str):
            if _SURROGATE.search(value):
                yield Mistake(found.path, shown(value), "holds no lone surrogates")
        elif isinstance(value, list):
            ahead.append(_items(found))
        elif isinstance(value, _Object):
            if value.repeated and not found.in_row:
                yield from (Mistake(_Value((found.place, key), None).path, shown(value[key]), "comes once") for key in value.repeated)
            ahead.append(_members(found))


def _items(array: _Value) -> Iterator[_Value]:
    for index, item in enumerate(array.value):
        yield _Value((array.place, str(index)), item, array.top, array.in_row)


def _members(owner: _Value) -> Iterator[_Value]:
    """Keys are values too, each by its own name."""
    is_within_event = owner.top == "events" and owner.place[0] is not None
    for key, item in (*owner.value.items(), *owner.value.earlier):
        yield _Value((None, key), key, owner.top, owner.in_row)
        yield _Value((owner.place, key), item, owner.top or key, owner.in_row or (is_within_event and key in _ROWS))


def integer(low: int, high: int = INT64_MAX) -> Rule:
    rule = f"is an integer {low}..{'2^63-1' if high == INT64_MAX else high}"

    def check(value: Any) -> str | None:
        return None if isinstance(value, int) and not isinstance(value, bool) and low <= value <= high else rule

    return check


def text(low: int, high: int = NAME_MAX) -> Rule:
    rule = f"is a string of {low}..{high} characters"
    return lambda value: None if isinstance(value, str) and low <= len(value) <= high else rule


def one_of(*values: str) -> Rule:
    rule = "is one of " + ", ".join(values)
    return lambda value: None if isinstance(value, str) and value in values else rule


def any_text(value: Any) -> str | None:
    return None if isinstance(value, str) else "is a string"


def boolean(value: Any) -> str | None:
    return None if isinstance(value, bool) else "is true or false"


def an_object(value: Any) -> str | None:
    return None if isinstance(value, _Object) else "is an object"


def an_array(value: Any) -> str | None:
    return None if isinstance(value, list) else "is an array"


def row(value: Any) -> str | None:
    return None if value is None or isinstance(value, _Object) else "is an object or null"


def source_name(value: Any) -> str | None:
    good = isinstance(value, str) and is_source_name(value)
    return None if good else f"is a string of 1..{NAME_MAX} characters without control characters"


def table_name(value: Any) -> str | None:
    if not isinstance(value, str):
        return "is a string"
    try:
        TableName.parse(value)
    except ValueError as error:
        return str(error)
    return None


def column_name(value: Any) -> str | None:
    if not isinstance(value, str) or not is_source_name(value):
        return f"is a string of 1..{NAME_MAX} characters without control characters"
    return f"does not begin with `{RESERVED_COLUMN_PREFIX}`" if value.lower().startswith(RESERVED_COLUMN_PREFIX) else None


def column_type(value: Any) -> str | None:
    if not isinstance(value, str):
        return "is a string"
    try:
        parse_type(value)
    except ValueError as error:
        return str(error)
    return None


def not_null(value: Any) -> str | None:
    return "is left out rather than null" if value is None else None


def position(value: Any) -> str | None:
    good = (isinstance(value, str) and len(value) <= NAME_MAX) or (isinstance(value, int) and not isinstance(value, bool))
    return None if good else f"is a string of at most {NAME_MAX} characters, or an integer"


_COMMON = {"correlationId": Field(text(0), required=False)}
_TIME = {"timestamp": Field(integer(0, TIME_MS_MAX))}
_SOURCE = {"sourceDoId": Field(source_name)}
_EPOCH = {"epoch": Field(text(0), required=False)}
_SHARD = {"sourceShardName": Field(text(0), required=False)}
_LAST_ACK = {"lastAckSequence": Field(integer(-1))}
CONNECT = {
    **_TIME, **_SOURCE, **_LAST_ACK, **_COMMON, **_EPOCH, **_SHARD,
    "protocolVersion": Field(integer(0)), "capabilities": Field(an_object), "ackPersisted": Field(boolean, required=False),
}  # fmt: skip
CAPABILITIES = {
    "binaryProtocol": Field(boolean), "compression": Field(boolean), "batching": Field(boolean),
    "maxBatchSize": Field(integer(1)), "maxMessageSize": Field(integer(1)),
}  # fmt: skip
HEARTBEAT = {**_TIME, **_SOURCE, **_LAST_ACK, **_COMMON, "pendingEvents": Field(integer(0))}
FLUSH_REQUEST = {**_TIME, **_SOURCE, **_COMMON, "reason": Field(one_of(*FLUSH_REASONS))}
DISCONNECT = {**_TIME, **_COMMON, "sourceDoId": Field(source_name, required=False), "reason": Field(text(0), required=False)}
BATCH = {
    **_TIME, **_SOURCE, **_COMMON, **_EPOCH, **_SHARD,
    "events": Field(an_array), "sequenceNumber": Field(integer(0)), "firstEventSequence": Field(integer(-1)),
    "lastEventSequence": Field(integer(-1)), "sizeBytes": Field(integer(0)), "isRetry": Field(boolean), "retryCount": Field(integer(0)),
    "transaction": Field(an_object, required=False),
}  # fmt: skip
FILLED = ("timestamp", "firstEventSequence", "lastEventSequence", "sizeBytes", "isRetry", "retryCount")  # where a POST left them out
POSTED_BATCH = {name: Field(field.rule, field.required and name not in FILLED) for name, field in BATCH.items()}
TRANSACTION = {"id": Field(text(1)), "last": Field(boolean)}
EVENT = {
    "sequence": Field(integer(0)), **_TIME, "operation": Field(one_of(*Operation)), "table": Field(table_name),
    "rowId": Field(any_text, required=False), "before": Field(row, required=False), "after": Field(row, required=False),
    "metadata": Field(an_object, required=False),
}  # fmt: skip
METADATA = {
    "lsn": Field(position, required=False),
    "transactionId": Field(position, required=False),
    "unchanged": Field(an_array, required=False),
}
SCHEMA = {
    **_SOURCE, **_COMMON, **_EPOCH, "timestamp": Field(integer(0, TIME_MS_MAX), required=False), "sequenceNumber": Field(integer(0)),
    "table": Field(table_name), "primaryKey": Field(an_array), "columns": Field(an_array),
}  # fmt: skip
COLUMN = {
    "name": Field(column_name), "type": Field(column_type), "nullable": Field(boolean),
    "default": Field(not_null, required=False), "renamedFrom": Field(column_name, required=False),
}  # fmt: skip


def _fields(path: str, message: Any, rules: dict[str, Field]) -> Iterator[Mistake]:
    for name, field in rules.items():
        if name not in message:
            if field.required:
                yield Mistake(path + name, "nothing", "is required")
            continue
        rule = field.rule(message[name])
        if rule is not None:
            yield Mistake(path + name, shown(message[name]), rule)


def _inside(path: str, message: _Object, name: str, rules: dict[str, Field]) -> Iterator[Mistake]:
    value = message.get(name)
    if isinstance(value, _Object):
        yield from _fields(f"{path}{name}.", value, rules)


def _connect(message: _Object) -> Iterator[Mistake]:
    yield from _fields("", message, CONNECT)
    yield from _inside("", message, "capabilities", CAPABILITIES)


def _plain(rules: dict[str, Field]) -> Callable[[_Object], Iterator[Mistake]]:
    return lambda message: _fields("", message, rules)


def _batch(message: _Object, rules: dict[str, Field] = BATCH) -> Iterator[Mistake]:
    yield from _fields("", message, rules)
    yield from _inside("", message, "transaction", TRANSACTION)
    events = message.get("events")
    if not isinstance(events, list):
        return
    before = -1
    for index, event in enumerate(events):
        if not isinstance(event, _Object):
            yield Mistake(f"events.{index}", shown(event), "is an object")
            continue
        yield from _event(f"events.{index}.", event)
        sequence = event.get("sequence")
        if isinstance(sequence, int) and not isinstance(sequence, bool):
            if index and sequence <= before:
                yield Mistake(f"events.{index}.sequence", shown(sequence), f"is above the event's before it ({before})")
            before = sequence
    for name, index in (("firstEventSequence", 0), ("lastEventSequence", -1)):
        if not events or not isinstance(events[index], _Object):
            continue
        claimed, sequence = message.get(name), events[index].get("sequence")
        if isinstance(claimed, int) and isinstance(sequence, int) and claimed != sequence:
            yield Mistake(name, shown(claimed), f"is the sequence of the {'first' if index == 0 else 'last'} event ({sequence})")


def _event(path: str, event: _Object) -> Iterator[Mistake]:
    yield from _fields(path, event, EVENT)
    yield from _inside(path, event, "metadata", METADATA)
    metadata = event.get("metadata")
    unchanged = metadata.get("unchanged") if isinstance(metadata, _Object) else None
    for index, name in enumerate(unchanged if isinstance(unchanged, list) else ()):
        if not isinstance(name, str):
            yield Mistake(f"{path}metadata.unchanged.{index}", shown(name), "is a string")


def _schema(message: _Object) -> Iterator[Mistake]:
    yield from _fields("", message, SCHEMA)
    columns, key = message.get("columns"), message.get("primaryKey")
    if not isinstance(columns, list):
        return
    if not 1 <= len(columns) <= COLUMNS_MAX:
        yield Mistake("columns", f"{len(columns)} columns", f"holds 1..{COLUMNS_MAX} columns")
        return
    names: dict[str, str] = {}
    for index, column in enumerate(columns):
        if not isinstance(column, _Object):
            yield Mistake(f"columns.{index}", shown(column), "is an object")
            continue
        yield from _fields(f"columns.{index}.", column, COLUMN)
        name = column.get("name")
        if isinstance(name, str):
            if name.casefold() in names:
                yield Mistake(f"columns.{index}.name", shown(name), f"differs from `{names[name.casefold()]}` by more than case")
            names.setdefault(name.casefold(), name)
    seen = set()
    for index, name in enumerate(key if isinstance(key, list) else ()):
        if not isinstance(name, str) or name not in names.values():
            yield Mistake(f"primaryKey.{index}", shown(name), "is one of the columns")
        elif name in seen:
            yield Mistake(f"primaryKey.{index}", shown(name), "is named once")
        seen.add(name if isinstance(name, str) else shown(name))


MESSAGES: dict[str, Callable[[_Object], Iterator[Mistake]]] = {
    "connect": _connect,
    "schema": _schema,
    "cdc_batch": _batch,
    "heartbeat": _plain(HEARTBEAT),
    "flush_request": _plain(FLUSH_REQUEST),
    "disconnect": _plain(DISCONNECT),
}
POSTED: dict[str, Callable[[_Object], Iterator[Mistake]]] = {
    "cdc_batch": lambda message: _batch(message, POSTED_BATCH),
    "schema": _schema,
}
