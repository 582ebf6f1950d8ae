from __future__ import annotations

import itertools

import pytest

from dolake.cdc.answer import Reason, nack
from dolake.cdc.message import CdcBatch, SchemaMessage, decode
from dolake.cdc.session import TRANSITIONS, OutOfTurn, Session, Slot, State
from dolake.cdc.wire import Connect, Disconnect, FlushRequest, Heartbeat
from dolake.errors import InvalidMessage
from tests.cdc.samples import CONNECT, DISCONNECT, FLUSH_REQUEST, HEARTBEAT, SCHEMA, batch, frame

SENT = {
    Connect: CONNECT,
    CdcBatch: batch(4),
    SchemaMessage: SCHEMA,
    Heartbeat: HEARTBEAT,
    FlushRequest: FLUSH_REQUEST,
    Disconnect: DISCONNECT,
}


def session_in(state: State) -> Session:
    session = Session()
    if state is not State.GREETING:
        session.accept(decode(frame(CONNECT)))
    if state is State.CLOSED:
        session.accept(decode(frame(DISCONNECT)))
    assert session.state is state
    return session


@pytest.mark.parametrize(("state", "kind"), list(itertools.product(State, SENT)))
def test_each_message_moves_the_session_as_the_table_says_or_is_out_of_turn(state, kind):
    session = session_in(state)
    after = TRANSITIONS.get((state, kind))
    if after is None:
        with pytest.raises(OutOfTurn, match="type: comes "):
            session.accept(decode(frame(SENT[kind])))
        assert session.state is state
    else:
        session.accept(decode(frame(SENT[kind])))
        assert session.state is after


@pytest.mark.parametrize("message", [batch(4), SCHEMA, HEARTBEAT, FLUSH_REQUEST, DISCONNECT], ids=lambda message: message["type"])
def test_a_message_in_another_sources_name_is_refused(message):
    session = session_in(State.STREAMING)
    with pytest.raises(InvalidMessage, match="sourceDoId: is the source that connected") as refused:
        session.accept(decode(frame({**message, "sourceDoId": "somebody"})))
    assert refused.value.sequence == message.get("sequenceNumber", 0)
    assert session.state is State.STREAMING


def test_an_unsupported_version_is_refused_with_the_supported_ones():
    with pytest.raises(OutOfTurn, match="protocolVersion: is one of the supported versions: 1"):
        Session().accept(decode(frame({**CONNECT, "protocolVersion": 2})))


def test_answers_leave_in_the_order_of_the_batches():
    session = Session()
    slots = [session.expect(Slot(number)) for number in range(3)]
    slots[2].answer = nack(Reason.BUFFER_FULL, 2, "")
    slots[1].answer = nack(Reason.BUFFER_FULL, 1, "")
    assert list(session.answers()) == []
    slots[0].answer = nack(Reason.BUFFER_FULL, 0, "")
    assert [answer.sequence_number for answer in session.answers()] == [0, 1, 2]
    assert session.open_count == 0


def test_a_batch_without_an_epoch_is_in_its_connections():
    session = Session()
    session.accept(decode(frame({**CONNECT, "epoch": "e"})))
    assert session.epoch_of(decode(frame(batch(0)))) == "e"
    assert session.epoch_of(decode(frame(batch(0, epoch="f")))) == "f"
    assert session.epoch_of(decode(frame(batch(0, epoch="")))) == ""


def test_the_third_message_above_a_limit_is_one_too_many():
    session = Session()
    assert [session.count_too_large() for _ in range(3)] == [False, False, True]
