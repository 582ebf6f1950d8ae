"""Bodies of POST: short, and the same to dolake as the frames they stand for."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dolake.cdc import message as wire
from dolake.cdc import validation
from dolake.cdc.answer import Ack, AckDetails, AckStatus, Reason, nack
from dolake.cdc.message import CdcBatch, SchemaMessage
from dolake.cdc.posted import explain_posted, http_status, retry_after_s, try_decode_posted
from tests.cdc.samples import NOW_MS, SCHEMA, batch, event, frame
from tests.cdc.test_validation import ABSENT, BATCH, CASES, JSON, MESSAGES, WRONG, changed

LATER_MS = NOW_MS + 10**9
SAME = ("source", "epoch", "sequence", "first_event_sequence", "last_event_sequence", "event_count", "content", "tables", "last_lsn")
POSTED_CASES = [
    (kind, path, value)
    for kind, path, value in CASES
    if kind in ("schema", "cdc_batch") and not (value is ABSENT and path in validation.FILLED)
]
POSTED_PATHS = [(kind, path) for kind, fields in WRONG.items() if kind in ("schema", "cdc_batch") for path in fields]


def short(message: dict[str, Any]) -> dict[str, Any]:
    """The batch with nothing in it that may be left out."""
    return {name: value for name, value in message.items() if name not in (*validation.FILLED, "type")}


def decoded(body: bytes) -> CdcBatch:
    found = try_decode_posted(body, LATER_MS)
    assert isinstance(found, CdcBatch), explain_posted(body)
    return found


@pytest.mark.parametrize("message", [batch(4, first=100, count=3), BATCH, batch(1, events=[])], ids=["plain", "every field", "empty"])
def test_a_short_batch_is_to_the_log_what_the_long_one_is(message):
    long, posted = wire.decode(frame(message)), decoded(frame(short(message)))
    assert isinstance(long, CdcBatch)
    same = [name for name in SAME if message["events"] or "event_sequence" not in name]
    assert {name: getattr(posted, name) for name in same} == {name: getattr(long, name) for name in same}
    assert (posted.transaction, posted.correlation_id) == (long.transaction, long.correlation_id)
    assert wire.split_events(posted.payload) == wire.split_events(long.payload)
    assert wire.event_tables(posted.payload) == wire.event_tables(long.payload)


def test_what_is_left_out_is_filled_from_the_events_and_what_is_not_named_is_left_out():
    body = frame({**short(batch(4, first=100, count=3)), "extra": {"deep": [1]}, "epoch": "e"})
    assert json.loads(decoded(body).payload) == {
        **batch(4, first=100, count=3),
        "timestamp": NOW_MS + 102,
        "sizeBytes": len(frame(batch(4, first=100, count=3)["events"])),
        "epoch": "e",
    }
    empty = json.loads(decoded(frame(short(batch(1, events=[])))).payload)
    assert (empty["timestamp"], empty["firstEventSequence"], empty["lastEventSequence"]) == (LATER_MS, -1, -1)


def test_what_is_given_stays():
    given_ = {"timestamp": 5, "sizeBytes": 7, "isRetry": True, "retryCount": 3, "sourceShardName": "eu", "correlationId": "c"}
    body = frame({**short(batch(4)), **given_, "transaction": {"id": "tx", "last": False}})
    assert json.loads(decoded(body).payload).items() >= given_.items()


def test_rows_stay_the_bytes_that_were_sent():
    odd = b'[ {"sequence":1,"timestamp":2,"operation":"INSERT","table":"t" , "after":{"x":1.50e0,"x":18446744073709551616}}\n]'
    posted = decoded(b'{"sequenceNumber":1,"events":%b,"sourceDoId":"s"}' % odd)
    assert odd in posted.payload
    framed = b'{"type":"cdc_batch","timestamp":2,"sourceDoId":"s","events":%b,"sequenceNumber":1,"firstEventSequence":1,' % odd
    long = wire.decode(framed + b'"lastEventSequence":1,"sizeBytes":1,"isRetry":false,"retryCount":0}')
    assert isinstance(long, CdcBatch)
    assert posted.content == long.content


def test_a_body_is_read_whatever_its_names_need_for_escapes():
    posted = decoded(frame({**short(batch(1)), "sourceDoId": 'sch\\wie"rig ü', "correlationId": '"events":[]'}))
    assert (posted.source, posted.correlation_id, posted.event_count) == ('sch\\wie"rig ü', '"events":[]', 2)


def test_a_schema_is_posted_as_it_is_framed():
    posted = try_decode_posted(frame(SCHEMA), LATER_MS)
    assert isinstance(posted, SchemaMessage)
    assert posted == wire.decode(frame(SCHEMA))


@pytest.mark.acceptance("AT-106")
@pytest.mark.parametrize(("kind", "path", "value"), POSTED_CASES, ids=lambda part: repr(part)[:40])
def test_each_field_is_refused_and_named_when_wrong(kind, path, value):
    body = frame(changed(MESSAGES[kind], path, value))
    assert try_decode_posted(body, LATER_MS) is None
    found = {mistake.field: mistake for mistake in explain_posted(body).mistakes}
    assert path in found, found
    if value is ABSENT:
        assert (found[path].value, found[path].rule) == ("nothing", "is required")


@pytest.mark.parametrize("kind", ["connect", "heartbeat", "flush_request", "disconnect", "status", "CDC_BATCH", "", None, 7, ["cdc_batch"]])
def test_only_batches_and_schemas_are_posted(kind):
    body = frame({**MESSAGES.get(str(kind), batch(1)), "type": kind})
    assert try_decode_posted(body, LATER_MS) is None
    (mistake,) = [one for one in explain_posted(body).mistakes if one.field == "type"]
    assert (mistake.rule, mistake.value) == ("is one of cdc_batch, schema", json.dumps(kind))


@pytest.mark.parametrize(
    ("body", "field", "rule"),
    [
        (b"", "frame", "is one JSON object"),
        (b"[]", "frame", "is one JSON object"),
        (b"{}", "sourceDoId", "is required"),
        (b"\xff", "frame", "is UTF-8"),
        (frame(short(batch(1))) + b"{}", "frame", "is one JSON object"),
        (frame(short(batch(1))).replace(b'"events":', b'"events":[],"events":'), "events", "comes once"),
        (frame(short(batch(1))).replace(b'"events":', b'"sequenceNumber":9,"events":'), "sequenceNumber", "comes once"),
        (frame({**short(batch(1)), "more": 1}).replace(b'"more":1', b'"more":"\xff"'), "frame", "is UTF-8"),
        (frame({**short(batch(1)), "more": 1}).replace(b'"more":1', b'"more":{"a":1,"a":2}'), "more.a", "comes once"),
        (frame({**short(batch(1)), "timestamp": None}), "timestamp", "is an integer"),
        (frame(short(batch(1, events=[event(3), event(3)]))), "events.1.sequence", "is above"),
        (frame({**short(batch(1)), "firstEventSequence": 1}), "firstEventSequence", "is the sequence of the first event (0)"),
    ],
)
def test_what_is_no_such_message_is_refused_and_says_why(body, field, rule):
    assert try_decode_posted(body, LATER_MS) is None
    found = [mistake for mistake in explain_posted(body).mistakes if mistake.field == field]
    assert found, explain_posted(body)
    assert found[0].rule.startswith(rule)


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(POSTED_PATHS), JSON)
def test_the_fast_and_the_slow_reading_agree(where, value):
    kind, path = where
    body = json.dumps(changed(MESSAGES[kind], path, value)).encode()
    assert (try_decode_posted(body, LATER_MS) is None) == bool(explain_posted(body).mistakes)


@settings(max_examples=300, deadline=None)
@given(st.integers(0, len(frame(BATCH)) - 1), st.binary(min_size=0, max_size=3))
def test_no_damaged_body_does_more_than_being_refused(position, damage):
    body = frame(BATCH)
    body = body[:position] + damage + body[position + 1 :]
    if try_decode_posted(body, LATER_MS) is None:
        assert explain_posted(body).mistakes, body


@pytest.mark.parametrize(
    ("reason", "numbers", "status", "retry_s"),
    [
        (Reason.INVALID_FORMAT, {}, 400, None),
        (Reason.INVALID_SEQUENCE, {}, 400, None),
        (Reason.INVALID_SEQUENCE, {"expected_sequence": 4}, 409, None),
        (Reason.PAYLOAD_TOO_LARGE, {"max_size": 4}, 413, None),
        (Reason.EVENT_TOO_LARGE, {}, 413, None),
        (Reason.UNAUTHORIZED, {}, 401, None),
        (Reason.FORBIDDEN, {}, 403, None),
        (Reason.RATE_LIMITED, {"retry_delay_ms": 100}, 429, 1),
        (Reason.CONNECTION_LIMIT, {}, 429, 1),
        (Reason.IP_LIMIT, {}, 429, 1),
        (Reason.LOAD_SHEDDING, {"retry_delay_ms": 5000}, 503, 5),
        (Reason.BUFFER_FULL, {"retry_delay_ms": 0}, 503, 1),
        (Reason.STORAGE_FULL, {"retry_delay_ms": 1000}, 503, 1),
        (Reason.DEGRADED, {"retry_delay_ms": 1001}, 503, 2),
        (Reason.INTERNAL_ERROR, {}, 503, 1),
        (Reason.SHUTTING_DOWN, {"retry_delay_ms": 45_000}, 503, 45),
    ],
)
def test_a_nack_has_one_http_status(reason, numbers, status, retry_s):
    answer = nack(reason, 1, "because", **numbers)
    assert (http_status(answer), retry_after_s(answer)) == (status, retry_s)


def test_every_reason_has_been_thought_of_and_an_ack_is_200():
    for reason in Reason:
        status = http_status(nack(reason, 1, "because"))
        assert (status in (429, 503)) == nack(reason, 1, "because").should_retry, reason
    for status in AckStatus:
        ack = Ack(sequence_number=1, status=status, details=AckDetails(events_processed=0, buffer_utilization=0, time_until_flush=1))
        assert (http_status(ack), retry_after_s(ack)) == (200, None)
