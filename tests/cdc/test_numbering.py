from __future__ import annotations

import pytest

from dolake.cdc.numbering import Gap, New, Numbering, Refused, Repeat
from dolake.model import Entry, RecordKind, SourceState, epoch_hash


def state(last: int = -1, epoch: str = "", *, contents: dict[int, int] | None = None, ended: tuple[str, ...] = ()) -> SourceState:
    return SourceState("s", epoch, last, contents=contents or {}, ended_epochs={epoch_hash(one) for one in ended})


def entry(sequence: int, epoch: str = "", content: int = 0) -> Entry:
    return Entry(RecordKind.BATCH, "s", epoch, sequence, 1, content, b"")


KNOWN = state(9, "b", contents={8: 80, 9: 90}, ended=("a",))
LONG = state(99, contents={number: number * 10 for number in range(36, 100)})
IN_FLIGHT = [entry(10, "b", 100), entry(11, "b", 110)]


@pytest.mark.parametrize(
    ("durable", "in_flight", "epoch", "sequence", "content", "verdict"),
    [
        (state(), [], "", 0, 1, New()),
        (state(), [], "", 500, 1, New()),
        (state(), [], "any", 500, 1, New()),
        (KNOWN, [], "b", 10, 1, New()),
        (KNOWN, [], "b", 11, 1, Gap(expected=10)),
        (KNOWN, [], "b", 9, 90, Repeat(in_flight=False)),
        (LONG, [], "", 3, 7, Repeat(in_flight=False)),  # its content is not remembered any more
        (KNOWN, [], "c", 0, 1, New()),
        (KNOWN, [], "c", 77, 1, New()),
        (KNOWN, [], "", 77, 1, New()),  # no name is a name like any other
        (KNOWN, IN_FLIGHT, "b", 12, 1, New()),
        (KNOWN, IN_FLIGHT, "b", 13, 1, Gap(expected=12)),
        (KNOWN, IN_FLIGHT, "b", 10, 100, Repeat(in_flight=True)),
        (KNOWN, IN_FLIGHT, "b", 9, 90, Repeat(in_flight=False)),
        (KNOWN, [entry(0, "c")], "c", 1, 1, New()),
    ],
)
@pytest.mark.acceptance("AT-05", "AT-06")
def test_what_a_batch_is_follows_from_what_came_before(durable, in_flight, epoch, sequence, content, verdict):
    numbering = Numbering(durable)
    for one in in_flight:
        numbering.admit(one)
    assert numbering.judge(epoch, sequence, content) == verdict


@pytest.mark.parametrize(("durable", "epoch"), [(state(), "a"), (KNOWN, "c")])
def test_what_was_sent_behind_a_refused_beginning_is_not_taken_for_the_beginning(durable, epoch):
    """Else the refused batch, sent again, would be acked as a repeat of what is nowhere."""
    numbering = Numbering(durable)
    assert numbering.judge(epoch, 500, 1, begin=500) == New()
    numbering.admit(entry(500, epoch))
    numbering.abandon()
    assert numbering.judge(epoch, 501, 2, begin=500) == Gap(expected=500)
    assert numbering.judge(epoch, 500, 1, begin=500) == New()


@pytest.mark.parametrize(
    ("in_flight", "epoch", "sequence", "content", "words"),
    [
        ([], "b", 9, 91, "was used for other events"),
        (IN_FLIGHT, "b", 11, 1, "was used for other events"),
        ([], "a", 10, 1, "is over"),
        ([entry(0, "c")], "b", 10, 1, "is over"),
        ([entry(0, "c"), entry(0, "d")], "c", 1, 1, "is over"),
    ],
)
def test_other_content_and_ended_epochs_are_refused_for_good(in_flight, epoch, sequence, content, words):
    numbering = Numbering(KNOWN)
    for one in in_flight:
        numbering.admit(one)
    verdict = numbering.judge(epoch, sequence, content)
    assert isinstance(verdict, Refused)
    assert words in verdict.rule


def test_what_settled_is_durable_and_what_was_abandoned_never_was():
    numbering = Numbering(KNOWN)
    for one in IN_FLIGHT:
        numbering.admit(one)
    later = state(10, "b", contents={10: 100})
    assert numbering.settle(later) == IN_FLIGHT[0]
    assert numbering.judge("b", 10, 100) == Repeat(in_flight=False)
    numbering.abandon()
    assert numbering.judge("b", 12, 1) == Gap(expected=11)
    assert numbering.judge("b", 11, 999) == New()


def test_after_recovery_what_it_found_counts():
    numbering = Numbering(KNOWN)
    numbering.admit(IN_FLIGHT[0])
    numbering.abandon(state(10, "b", contents={10: 100}))
    assert numbering.judge("b", 10, 100) == Repeat(in_flight=False)
    assert numbering.judge("b", 11, 5) == New()


@pytest.mark.parametrize(
    ("durable", "in_flight", "epoch", "sequence"),
    [
        (KNOWN, [], "b", 7),
        (KNOWN, IN_FLIGHT, "b", 7),
        (KNOWN, [entry(7, "c"), entry(8, "c")], "c", 6),
        (KNOWN, [entry(9, "c")], "c", 8),  # 8 was used, but in the epoch before
        (state(), [entry(5)], "", 4),
    ],
)
def test_what_never_came_is_no_repeat(durable, in_flight, epoch, sequence):
    numbering = Numbering(durable)
    for one in in_flight:
        numbering.admit(one)
    verdict = numbering.judge(epoch, sequence, 1)
    assert isinstance(verdict, Refused)
    assert verdict.rule.startswith(f"sequenceNumber: {sequence} is below {sequence + 1}, with which this source's numbering began")
