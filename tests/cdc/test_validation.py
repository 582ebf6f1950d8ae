"""Each field of each message wrong in turn: refused on the fast path, and named with its value and its rule by the slow one."""

from __future__ import annotations

import copy
import json
from enum import Enum
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dolake.cdc import message as wire
from dolake.cdc import validation
from tests.cdc.samples import CONNECT, DISCONNECT, FLUSH_REQUEST, HEARTBEAT, SCHEMA, batch, frame


class Left(Enum):
    """What a field may be besides a value. Its name is the same in every run, and so are those of the tests."""

    OUT = "out"


ABSENT = Left.OUT
NOT_TEXT: tuple[Any, ...] = (None, 7, True, [], {})
NOT_INTEGER: tuple[Any, ...] = (None, "7", 1.5, 1.0, True, [], {}, 2**63, -(2**63) - 1)
NOT_BOOLEAN: tuple[Any, ...] = (None, 0, 1, "true", [], {})
NOT_OBJECT: tuple[Any, ...] = (7, "x", True, [])
NOT_ARRAY: tuple[Any, ...] = (None, 7, "x", True, {})
BAD_SOURCES = (*NOT_TEXT, ABSENT, "", "x" * 257, "a\nb", "a\x00b", "\x7f")
BAD_TABLES = (*NOT_TEXT, ABSENT, "", "a/b", "../../evil", "..", "a..b", ".a", "a.", "a.b.c", 'a"b', "a'b", "a b", "täble", "表", "x" * 129)
RESERVED = ("dolake.dead_letters", "orders__changes")
BAD_TIMES = (*NOT_INTEGER, ABSENT, -1, 253_402_300_800_000)
TOO_LONG = "x" * 257

BATCH = batch(3, metadata=None)
del BATCH["metadata"]
BATCH["events"][0].update(before={"id": 1}, metadata={"lsn": "0/1", "transactionId": 5, "unchanged": ["note"]})
BATCH.update(transaction={"id": "tx", "last": False}, epoch="e", sourceShardName="s", correlationId="c")
MESSAGES: dict[str, dict[str, Any]] = {
    "connect": {**CONNECT, "sourceShardName": "s", "epoch": "e", "ackPersisted": True, "correlationId": "c"},
    "heartbeat": {**HEARTBEAT, "correlationId": "c"},
    "flush_request": {**FLUSH_REQUEST, "correlationId": "c"},
    "disconnect": {**DISCONNECT, "correlationId": "c"},
    "schema": {**SCHEMA, "epoch": "e", "correlationId": "c", "timestamp": 1},
    "cdc_batch": BATCH,
}

WRONG: dict[str, dict[str, tuple[Any, ...]]] = {
    "connect": {
        "timestamp": BAD_TIMES,
        "sourceDoId": BAD_SOURCES,
        "lastAckSequence": (*NOT_INTEGER, ABSENT, -2),
        "protocolVersion": (*NOT_INTEGER, ABSENT, -1),
        "capabilities": (*NOT_OBJECT, None, ABSENT),
        "capabilities.binaryProtocol": (*NOT_BOOLEAN, ABSENT),
        "capabilities.compression": (*NOT_BOOLEAN, ABSENT),
        "capabilities.batching": (*NOT_BOOLEAN, ABSENT),
        "capabilities.maxBatchSize": (*NOT_INTEGER, ABSENT, 0, -1),
        "capabilities.maxMessageSize": (*NOT_INTEGER, ABSENT, 0, -1),
        "sourceShardName": (*NOT_TEXT, TOO_LONG),
        "epoch": (*NOT_TEXT, TOO_LONG),
        "ackPersisted": NOT_BOOLEAN,
        "correlationId": (*NOT_TEXT, TOO_LONG),
    },
    "heartbeat": {
        "timestamp": BAD_TIMES,
        "sourceDoId": BAD_SOURCES[:-3],
        "lastAckSequence": (*NOT_INTEGER, ABSENT, -2),
        "pendingEvents": (*NOT_INTEGER, ABSENT, -1),
        "correlationId": NOT_TEXT,
    },
    "flush_request": {
        "timestamp": BAD_TIMES,
        "sourceDoId": BAD_SOURCES[:-3],
        "reason": (*NOT_TEXT, ABSENT, "", "because", "MANUAL"),
        "correlationId": NOT_TEXT,
    },
    "disconnect": {
        "timestamp": BAD_TIMES,
        "sourceDoId": (*NOT_TEXT, ""),
        "reason": (*NOT_TEXT, TOO_LONG),
        "correlationId": NOT_TEXT,
    },
    "schema": {
        "timestamp": BAD_TIMES[:-3],
        "sourceDoId": BAD_SOURCES,
        "sequenceNumber": (*NOT_INTEGER, ABSENT, -1),
        "epoch": (*NOT_TEXT, TOO_LONG),
        "correlationId": NOT_TEXT,
        "table": (*BAD_TABLES, *RESERVED),
        "primaryKey": (*NOT_ARRAY, ABSENT),
        "primaryKey.0": (*NOT_TEXT, "nothing_like_it", "ID"),
        "columns": (*NOT_ARRAY, ABSENT, []),
        "columns.0": (*NOT_OBJECT, None),
        "columns.1.name": (*NOT_TEXT, ABSENT, "", TOO_LONG, "_cdc_offset", "_CDC_x", "ID", "id", "a\nb"),
        "columns.1.type": (*NOT_TEXT, ABSENT, "", "number", "decimal(39,2)", "list<", "struct<>", "Long"),
        "columns.1.nullable": (*NOT_BOOLEAN, ABSENT),
        "columns.1.default": (None,),
        "columns.2.renamedFrom": (*NOT_TEXT, "", TOO_LONG),
    },
    "cdc_batch": {
        "timestamp": BAD_TIMES,
        "sourceDoId": BAD_SOURCES,
        "events": (*NOT_ARRAY, ABSENT),
        "sequenceNumber": (*NOT_INTEGER, ABSENT, -1),
        "firstEventSequence": (*NOT_INTEGER, ABSENT, -2, 1),
        "lastEventSequence": (*NOT_INTEGER, ABSENT, -2, 0, 2),
        "sizeBytes": (*NOT_INTEGER, ABSENT, -1),
        "isRetry": (*NOT_BOOLEAN, ABSENT),
        "retryCount": (*NOT_INTEGER, ABSENT, -1),
        "sourceShardName": (*NOT_TEXT, TOO_LONG),
        "epoch": (*NOT_TEXT, TOO_LONG),
        "correlationId": (*NOT_TEXT, TOO_LONG),
        "transaction": (*NOT_OBJECT, None),
        "transaction.id": (*NOT_TEXT, ABSENT, "", TOO_LONG),
        "transaction.last": (*NOT_BOOLEAN, ABSENT),
        "events.1": (*NOT_OBJECT, None),
        "events.1.sequence": (*NOT_INTEGER, ABSENT, -1, 0),
        "events.1.timestamp": BAD_TIMES,
        "events.1.operation": (*NOT_TEXT, ABSENT, "", "insert", "UPSERT", "READ"),
        "events.1.table": (*BAD_TABLES, *RESERVED),
        "events.1.rowId": NOT_TEXT,
        "events.1.before": NOT_OBJECT,
        "events.1.after": NOT_OBJECT,
        "events.1.metadata": (*NOT_OBJECT, None),
        "events.0.metadata.lsn": (None, True, 1.5, [], {}, TOO_LONG),
        "events.0.metadata.transactionId": (None, True, 1.5, [], {}, TOO_LONG),
        "events.0.metadata.unchanged": NOT_ARRAY,
        "events.0.metadata.unchanged.0": NOT_TEXT,
    },
}
CASES = [(kind, path, value) for kind, fields in WRONG.items() for path, values in fields.items() for value in values]


def changed(message: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """A copy of `message` with the field at `path` set, or taken away."""
    message = copy.deepcopy(message)
    target: Any = message
    *parents, name = [int(part) if part.isdecimal() else part for part in path.split(".")]
    for part in parents:
        target = target[part]
    if value is ABSENT:
        del target[name]
    else:
        target[name] = value
    return message


@pytest.mark.parametrize("kind", MESSAGES)
def test_the_messages_to_be_spoiled_are_right(kind):
    assert wire.try_decode(frame(MESSAGES[kind])) is not None
    assert validation.mistakes_of(frame(MESSAGES[kind])) == []


@pytest.mark.acceptance("AT-106")
@pytest.mark.parametrize(("kind", "path", "value"), CASES, ids=lambda part: repr(part)[:40])
def test_each_field_of_each_message_is_refused_and_named_when_wrong(kind, path, value):
    sent = frame(changed(MESSAGES[kind], path, value))
    assert wire.try_decode(sent) is None
    found = {mistake.field: mistake for mistake in validation.mistakes_of(sent)}
    assert path in found, found
    assert found[path].rule
    if value is ABSENT:
        assert (found[path].value, found[path].rule) == ("nothing", "is required")
    elif path != "columns":
        assert found[path].value == validation.shown(value)


def test_every_field_that_has_a_rule_is_among_the_cases():
    named = {(kind, path.rpartition(".")[2]) for kind, fields in WRONG.items() for path in fields}
    tables: dict[str, list[dict[str, Any]]] = {
        "connect": [validation.CONNECT, validation.CAPABILITIES],
        "heartbeat": [validation.HEARTBEAT],
        "flush_request": [validation.FLUSH_REQUEST],
        "disconnect": [validation.DISCONNECT],
        "schema": [validation.SCHEMA, validation.COLUMN],
        "cdc_batch": [validation.BATCH, validation.TRANSACTION, validation.EVENT, validation.METADATA],
    }
    missing = [(kind, name) for kind, rules in tables.items() for table in rules for name in table if (kind, name) not in named]
    assert missing == []


def test_all_mistakes_are_found_at_once():
    message = changed(changed(batch(0), "isRetry", 1), "events.1.table", "../evil")
    message = changed(changed(message, "events.0.operation", ABSENT), "retryCount", "0")
    fields = [mistake.field for mistake in validation.mistakes_of(frame(message))]
    assert fields == ["isRetry", "retryCount", "events.0.operation", "events.1.table"]


DEEP = b"[" * 200 + b"]" * 200


@pytest.mark.parametrize(
    ("sent", "field", "rule"),
    [
        (b"", "frame", "is one JSON object"),
        (b"{", "frame", "is one JSON object"),
        (b"[]", "frame", "is one JSON object"),
        (b'"connect"', "frame", "is one JSON object"),
        (b"null", "frame", "is one JSON object"),
        (b"pong", "frame", "is one JSON object"),
        (b"ARW1\x04\x00\x00\x00{}", "frame", "is one JSON object"),
        (b"\xef\xbb\xbf{}", "frame", "is one JSON object"),
        (b'{"type":"heartbeat"} {}', "frame", "is one JSON object"),
        (b'{"type":"heartb\xff"}', "frame", "is UTF-8"),
        (b"\xc0\x80", "frame", "is UTF-8"),
        # However deep something lies, what is wrong elsewhere is named, and what is wrong there.
        (b'{"type":"heartbeat","extra":' + DEEP + b"}", "sourceDoId", "is required"),
        (frame(HEARTBEAT)[:-1] + b',"extra":' + DEEP.replace(b"[]", b"[NaN]") + b"}", "extra" + 63 * ".0" + ".…", "is a JSON value"),
        (b"[" * 100_000, "frame", "nests less deep"),
        (b"{}", "type", "is one of connect"),
        (b'{"type":7}', "type", "is one of connect"),
        (b'{"type":"CONNECT"}', "type", "is one of connect"),
        (b'{"type":"status"}', "type", "is one of connect"),
        (frame(HEARTBEAT).replace(b":0}", b":NaN}"), "pendingEvents", "is a JSON value"),
        (frame(HEARTBEAT).replace(b":0}", b":-Infinity}"), "pendingEvents", "is a JSON value"),
        (frame(HEARTBEAT).replace(b":0}", b":" + b"9" * 5000 + b"}"), "pendingEvents", "is an integer"),
        (frame(HEARTBEAT).replace(b":0}", b":01}"), "frame", "is one JSON object"),
        (frame(HEARTBEAT).replace(b":0}", b':0,"pendingEvents":1}'), "pendingEvents", "comes once"),
        (frame(HEARTBEAT).replace(b"orders", b"\\ud83d"), "sourceDoId", "holds no lone surrogates"),
        (frame(batch(0)).replace(b"12.5", b"NaN", 1), "events.0.after.total", "is a JSON value"),
        (frame(batch(0)).replace(b'"retryCount":0', b'"retryCount":0,"sequenceNumber":9'), "sequenceNumber", "comes once"),
        (frame(batch(0)).replace(b'"events":', b'"events":[],"events":'), "events", "comes once"),
        (frame(batch(0)).replace(b"o-0", b"o-\xff", 1), "frame", "is UTF-8"),
        (frame(SCHEMA).replace(b'"name":"id"', b'"name":"id","name":"jd"'), "columns.0.name", "comes once"),
        # Of equal keys of a row the last counts, and the others are JSON too (found by fuzzing: refused without a word).
        (frame(batch(0)).replace(b'"total":', b'"total":"\\ude00","total":', 1), "events.0.after.total", "holds no lone surrogates"),
    ],
)
def test_what_is_not_a_message_at_all_is_refused_and_says_why(sent, field, rule):
    assert wire.try_decode(sent) is None
    found = [mistake for mistake in validation.mistakes_of(sent) if mistake.field == field]
    assert found, validation.mistakes_of(sent)
    assert found[0].rule.startswith(rule)


def test_what_nests_deep_is_no_mistake():
    """It was taken, and told to nest at most 64 deep where something else was wrong with it (found by fuzzing)."""
    sent = frame(batch(0)).replace(b"12.5", DEEP, 1)
    assert isinstance(wire.decode(sent), wire.CdcBatch)
    assert validation.mistakes_of(sent) == []


@pytest.mark.parametrize("sent", [frame(SCHEMA), frame(HEARTBEAT), frame(batch(0))])
def test_a_number_of_thousands_of_digits_that_nobody_reads_is_no_mistake(sent):
    """It was refused without a word (found by fuzzing)."""
    sent = sent[:-1] + b',"unknown":' + b"9" * 5000 + b"}"
    assert wire.try_decode(sent) is not None
    assert validation.mistakes_of(sent) == []


def test_a_value_is_shown_cut_short():
    mistakes = validation.mistakes_of(frame({**HEARTBEAT, "sourceDoId": "x" * 10_000}))
    assert len(mistakes[0].value) == validation.VALUE_TEXT_MAX


def test_more_columns_than_a_table_may_have_are_refused():
    columns = [{"name": f"c{index}", "type": "long", "nullable": True} for index in range(validation.COLUMNS_MAX + 1)]
    assert validation.mistakes_of(frame({**SCHEMA, "columns": columns}))[0].field == "columns"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**65), 2**65) | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["id", "last", "lsn", "name", "x"]), inner, max_size=3),
    max_leaves=5,
)
PATHS = [(kind, path) for kind, fields in WRONG.items() for path in fields]


@settings(max_examples=400, deadline=None)
@example(("flush_request", "sourceDoId"), "\x1f")
@example(("heartbeat", "sourceDoId"), "\x1f")
@example(("disconnect", "sourceDoId"), "\x1f")
@given(st.sampled_from(PATHS), JSON)
def test_the_fast_and_the_slow_reading_agree(where, value):
    kind, path = where
    sent = json.dumps(changed(MESSAGES[kind], path, value)).encode()
    assert (wire.try_decode(sent) is None) == bool(validation.mistakes_of(sent))


@settings(max_examples=300, deadline=None)
@given(st.integers(0, len(frame(BATCH)) - 1), st.binary(min_size=0, max_size=3))
def test_no_damaged_frame_does_more_than_being_refused(position, damage):
    sent = frame(BATCH)
    sent = sent[:position] + damage + sent[position + 1 :]
    if wire.try_decode(sent) is None:
        error = wire.explain(sent)
        assert error.mistakes, sent
