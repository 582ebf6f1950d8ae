from __future__ import annotations

import json

import pytest
import xxhash

from dolake.cdc import message as wire
from dolake.cdc.wire import Connect, Disconnect, FlushRequest, Heartbeat
from dolake.errors import InvalidMessage
from dolake.model import DeclaredColumn, DeclaredSchema, RecordKind, TransactionMark
from tests.cdc.samples import CONNECT, DISCONNECT, FLUSH_REQUEST, HEARTBEAT, SCHEMA, batch, event, frame


def test_a_batch_is_what_its_fields_say_and_keeps_its_bytes():
    events = [event(4), event(7, table="public.lines"), event(9, metadata={"lsn": "0/16B", "transactionId": 77})]
    sent = frame(batch(3, events=events, firstEventSequence=4, lastEventSequence=9, epoch="b", transaction={"id": "tx", "last": True}))
    found = wire.decode(sent)
    assert isinstance(found, wire.CdcBatch)
    assert (found.source, found.epoch, found.sequence, found.event_count) == ("orders-db-3", "b", 3, 3)
    assert (found.first_event_sequence, found.last_event_sequence, found.last_lsn) == (4, 9, "0/16B")
    assert found.tables == {"orders": 2, "public.lines": 1}
    assert found.transaction == TransactionMark("tx", True)
    assert found.payload == sent
    entry = found.entry("b")
    assert (entry.kind, entry.payload, entry.content, entry.tables) == (RecordKind.BATCH, sent, found.content, found.tables)


def test_content_is_the_raw_events_whatever_the_envelope_says():
    message = batch(3)
    raw = frame({"events": message["events"]})[len('{"events":') : -1]
    content = xxhash.xxh3_64_intdigest(raw)
    rearranged = {"events": message["events"], **message, "isRetry": True, "retryCount": 4, "later": [1], "timestamp": 5}
    assert wire.decode(frame(message)).content == content
    assert wire.decode(frame(rearranged)).content == content
    assert wire.decode(frame(batch(3, count=1))).content != content


@pytest.mark.parametrize(
    "shape",
    [
        lambda message: json.dumps(message, indent=2).encode(),
        lambda message: frame({"unknown": '"events":[', **message}),
        lambda message: frame({"events": message["events"], **message, "after": {"events": [1, 2]}}),
        lambda message: frame({"first": {"events": [0]}, **message, "last": "]"}),
        lambda message: b"\n " + frame(message) + b" \n",
        lambda message: frame(message).replace(b'"events"', b'"\\u0065vents"'),
        lambda message: frame({"padding": "x" * 10_000, **message, "more": "]" * 9000}),
    ],
)
def test_every_honest_layout_of_a_batch_is_understood(shape):
    message = batch(3, first=5, count=4)
    found = wire.decode(shape(message))
    assert (found.sequence, found.event_count, found.first_event_sequence) == (3, 4, 5)
    assert [json.loads(raw) for raw in wire.split_events(shape(message))] == message["events"]


def test_only_the_events_of_the_message_itself_count():
    events = frame({"events": [event(5)]})[len('{"events":') : -1]
    empty = batch(3, events=[], firstEventSequence=5, lastEventSequence=5)
    for spelled in (b'"events"', b'"\\u0065vents"'):
        sent = frame(empty).replace(b'"events"', spelled)[:-1] + b',"x":{"events":' + events + b"}}"
        found = wire.decode(sent)
        assert (found.event_count, wire.split_events(sent)) == (0, [])
        sent = b'{"x":{"events":' + events + b"}," + frame(empty).replace(b'"events"', spelled)[1:]
        assert wire.decode(sent).event_count == 0


def test_an_empty_batch_moves_no_event_sequence():
    found = wire.decode(frame(batch(3, events=[], firstEventSequence=10, lastEventSequence=9)))
    assert (found.event_count, found.tables, found.entry("").last_event_sequence) == (0, {}, -1)


def test_unknown_fields_and_null_rows_are_fine():
    found = wire.decode(frame(batch(0, count=1, events=[event(0, before=None, after=None, colour="red")], colour="blue")))
    assert found.event_count == 1


def test_rows_are_not_looked_into():
    row = b'{"a":1,"a":2,"big":99999999999999999999999999999,"deep":' + b"[" * 200 + b"]" * 200 + b',"x":1e999}'
    sent = frame(batch(0, count=1)).replace(frame(event(0)["after"]), row)
    assert wire.split_events(sent)[0].count(row) == 1
    assert wire.decode(sent).event_count == 1


def test_events_of_a_logged_payload_are_found_again():
    events = [event(0), event(1, table="b"), event(2, table="ns.c")]
    payload = frame(batch(0, count=3, events=events))
    assert [json.loads(raw) for raw in wire.split_events(payload)] == events
    assert wire.event_tables(payload) == ["orders", "b", "ns.c"]
    assert wire.largest_event_size_bytes(payload) == max(len(frame(one)) for one in events)


def test_a_schema_is_declared_as_it_was_written():
    found = wire.decode(frame(SCHEMA))
    expected = DeclaredSchema(
        "public.orders",
        ("id",),
        (
            DeclaredColumn("id", "long", nullable=False),
            DeclaredColumn("total", "decimal(12,2)", default='"0.00"'),
            DeclaredColumn("tags", "list<string>", renamed_from="labels"),
        ),
    )
    assert isinstance(found, wire.SchemaMessage)
    assert found.schema == expected == wire.decode_schema(frame(SCHEMA))
    assert found.entry("").tables == {"public.orders": 0}
    assert wire.decode(frame({**SCHEMA, "correlationId": "7", "timestamp": 4})).content == found.content
    assert wire.decode(frame({**SCHEMA, "primaryKey": []})).content != found.content


def test_decode_schema_takes_nothing_else():
    with pytest.raises(InvalidMessage, match="type: is `schema`"):
        wire.decode_schema(frame(batch()))


def test_the_other_messages_decode_to_their_values():
    connect = wire.decode(frame({**CONNECT, "epoch": "e", "ackPersisted": True, "correlationId": "c"}))
    assert isinstance(connect, Connect)
    assert (connect.epoch, connect.ack_persisted, connect.correlation_id, connect.capabilities.max_batch_size) == ("e", True, "c", 1000)
    assert isinstance(wire.decode(frame(HEARTBEAT)), Heartbeat)
    assert isinstance(wire.decode(frame(FLUSH_REQUEST)), FlushRequest)
    assert isinstance(wire.decode(frame(DISCONNECT)), Disconnect)


def test_a_refused_frame_says_which_one_it_was_as_far_as_it_can():
    error = wire.explain(frame(batch(41, isRetry="no", correlationId="c-9")))
    assert (error.sequence, error.correlation_id) == (41, "c-9")
    assert (wire.explain(b"{").sequence, wire.explain(b'{"sequenceNumber":-4}').sequence) == (0, 0)


def test_one_bad_event_of_ten_thousand_refuses_the_whole_batch_and_is_named():
    message = batch(0, count=10_000)
    message["events"][7_123]["operation"] = "UPSERT"
    with pytest.raises(InvalidMessage) as refused:
        wire.decode(frame(message))
    assert [(mistake.field, mistake.value) for mistake in refused.value.mistakes] == [("events.7123.operation", '"UPSERT"')]


@pytest.mark.acceptance("AT-106")
@pytest.mark.parametrize("kind", [CONNECT, HEARTBEAT, FLUSH_REQUEST, DISCONNECT, SCHEMA, batch()], ids=lambda message: message["type"])
def test_a_message_without_a_type_is_none(kind):
    without = {name: value for name, value in kind.items() if name != "type"}
    for message in (without, {**without, "transaction": {"id": "type", "last": True, "type": "cdc_batch"}}):
        assert wire.try_decode(frame(message)) is None
        assert [mistake.field for mistake in wire.explain(frame(message)).mistakes] == ["type"]
