from __future__ import annotations

import json

import pytest
from msgspec import UNSET

from dolake.cdc.answer import (
    SHOULD_RETRY,
    Ack,
    AckDetails,
    AckStatus,
    BufferStats,
    Limits,
    Lost,
    Reason,
    Status,
    decode_answer,
    encode_answer,
    invalid,
    nack,
)
from dolake.errors import InvalidMessage, Mistake

STATUS = Status(
    state="idle",
    buffer=BufferStats(batch_count=0, event_count=0, total_size_bytes=0, utilization=0.0),
    connected_sources=1,
    last_sequence=-1,
    last_event_sequence=-1,
    epoch="",
    limits=Limits(max_payload_bytes=1, max_event_bytes=2, max_batch_events=3),
    lost=Lost(first=4, last=9),
)


def test_optional_fields_are_omitted_and_never_null():
    status = json.loads(encode_answer(STATUS))
    assert status["lost"] == {"from": 4, "to": 9}
    assert "lastLsn" not in status
    assert "correlationId" not in status
    assert "suggestedDelayMs" not in json.loads(encode_answer(_ack()))["details"]
    assert json.loads(encode_answer(_ack(25)))["details"]["suggestedDelayMs"] == 25


def _ack(delay_ms: int | None = None) -> Ack:
    details = AckDetails(
        events_processed=1, buffer_utilization=0.5, time_until_flush=1, suggested_delay_ms=UNSET if delay_ms is None else delay_ms
    )
    return Ack(sequence_number=1, status=AckStatus.OK, details=details)


@pytest.mark.parametrize("answer", [STATUS, _ack(), nack(Reason.DEGRADED, 3, "x", "c", retry_delay_ms=5)])
def test_answers_are_read_back_as_they_were_said(answer):
    assert decode_answer(encode_answer(answer)) == answer


@pytest.mark.parametrize("reason", Reason)
def test_whether_to_send_again_follows_from_the_reason(reason):
    again = {"buffer_full", "storage_full", "degraded", "internal_error", "shutting_down"}
    again |= {"rate_limited", "load_shedding", "connection_limit", "ip_limit"}
    assert nack(reason, 1, "").should_retry is (reason in again) is (reason in SHOULD_RETRY)


def test_a_gap_alone_is_an_invalid_sequence_to_be_sent_again():
    assert nack(Reason.INVALID_SEQUENCE, 9, "", expected_sequence=4).should_retry
    assert not nack(Reason.INVALID_SEQUENCE, 9, "").should_retry


def test_as_many_mistakes_are_told_as_a_person_will_read():
    mistakes = [Mistake(f"events.{number}.operation", "0", "is one of …") for number in range(10_000)]
    told = invalid(InvalidMessage(mistakes, 8, "c"))
    assert (told.sequence_number, told.correlation_id, told.should_retry) == (8, "c", False)
    assert "events.99.operation" in told.error_message
    assert told.error_message.endswith("; and 9900 more mistakes")


@pytest.mark.parametrize("field", ["\ud800", "n" * 1_000_000])
def test_a_field_with_a_name_that_no_answer_could_carry_is_told_all_the_same(field):
    """A source may call a field by a lone surrogate, or by a megabyte: found by fuzzing, where it ended the connection."""
    answer = encode_answer(invalid(InvalidMessage([Mistake(field, "7", "comes once")])))
    assert len(answer) < 2000
    told = decode_answer(answer)
    assert told.reason == "invalid_format"
    assert told.error_message.startswith(("\\ud800: comes once", "nnn"))
