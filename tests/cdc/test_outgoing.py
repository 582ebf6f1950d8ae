from __future__ import annotations

import pytest

from dolake.cdc.answer import Nack, Reason, nack
from dolake.cdc.message import CdcBatch, decode
from dolake.cdc.outgoing import Outgoing, Window, batch_frame, connect_frame, flush_frame, heartbeat_frame, schema_frame
from dolake.cdc.wire import Connect, FlushRequest, Heartbeat
from dolake.errors import AckedBatchesLost, BatchRefused
from dolake.model import DeclaredColumn, DeclaredSchema, TransactionMark
from tests.cdc.samples import raw_events


def window(count: int = 4, *, durable: int = -1, sent: int = 0) -> Window:
    made = Window("s")
    made.connected(durable)
    for index in range(count):
        made.push(Outgoing(made.next_sequence, b"%d" % index, 10))
    for _ in range(sent):
        made.take()
    return made


def taken(made: Window) -> list[int]:
    return [message.sequence for message in iter(made.take, None)]


def full(sequence: int) -> Nack:
    return nack(Reason.BUFFER_FULL, sequence, "")


def test_numbering_goes_on_from_what_the_daemon_has():
    assert taken(window(3, durable=41)) == [42, 43, 44]


def test_an_ack_is_for_everything_before_it_too():
    made = window(4, sent=4)
    assert made.acked(0) == 10
    assert made.acked(2) == 20
    assert [message.sequence for message in made.waiting] == [3]


def test_after_a_nack_nothing_is_sent_until_every_answer_is_here_and_then_all_again():
    made = window(4, sent=3)
    made.acked(0)
    made.nacked(full(1))
    assert made.take() is None
    made.nacked(nack(Reason.INVALID_SEQUENCE, 2, "", expected_sequence=1))
    assert taken(made) == [1, 2, 3]


def test_a_new_connection_sends_what_it_lacks():
    made = window(4, sent=3)
    made.acked(0)
    assert made.connected(1) == 10
    assert taken(made) == [2, 3]


def test_what_will_never_be_taken_ends_it():
    with pytest.raises(BatchRefused) as refused:
        window(1, sent=1).nacked(nack(Reason.INVALID_FORMAT, 0, "events: …"))
    assert (refused.value.reason, refused.value.sequence) == ("invalid_format", 0)


def test_acked_batches_that_the_daemon_lacks_are_reported():
    made = window(4, sent=4)
    made.acked(2)
    with pytest.raises(AckedBatchesLost) as lost:
        made.connected(0)
    assert (lost.value.first, lost.value.last) == (1, 2)
    with pytest.raises(AckedBatchesLost):
        made.nacked(nack(Reason.INVALID_SEQUENCE, 3, "", expected_sequence=1))


def test_a_daemon_that_has_more_than_was_sent_is_fed_by_somebody_else():
    with pytest.raises(BatchRefused, match="another producer"):
        window(2).connected(2)


def test_frames_are_messages_of_the_protocol():
    events = raw_events(5, 3)
    found = decode(batch_frame("s", "e", 9, events, first=5, last=7, transaction=TransactionMark("t", False), now_ms=1))
    assert isinstance(found, CdcBatch)
    assert (found.sequence, found.epoch, found.event_count, found.transaction) == (9, "e", 3, TransactionMark("t", False))
    assert decode(batch_frame("s", "", 0, [], first=-1, last=-1, transaction=None, now_ms=1)).event_count == 0
    schema = DeclaredSchema("a.b", ("id",), (DeclaredColumn("id", "long", False), DeclaredColumn("n", "string", True, '"x"', "m")))
    assert decode(schema_frame("s", "", 3, schema, 1)).schema == schema
    assert isinstance(decode(connect_frame("s", "", -1, 1)), Connect)
    assert isinstance(decode(heartbeat_frame("s", 3, 10, 1)), Heartbeat)
    assert isinstance(decode(flush_frame("s", "manual", "c", 1)), FlushRequest)
