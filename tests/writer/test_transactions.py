"""Open transactions hold a flush back, within bounds."""

from __future__ import annotations

from dolake.buffer.plan import plan_cut
from dolake.model import Entry, Record, RecordKind, TransactionMark
from dolake.writer.transactions import OpenTransactions


def record(
    offset: int, transaction: str | None, *, last: bool = False, source: str = "s", epoch: str = "", table: str = "t", size: int = 10
) -> Record:
    mark = TransactionMark(transaction, last) if transaction is not None else None
    entry = Entry(RecordKind.BATCH, source, epoch, offset, 1, 0, b"", {table: 1}, transaction=mark)
    return Record("log", offset, entry, size, size)


def starts(transactions: OpenTransactions) -> dict[str, int]:
    return {open_.source: open_.start for open_ in transactions.open()}


def test_a_transaction_is_open_from_its_first_batch_to_its_last():
    transactions = OpenTransactions()
    transactions.note(record(4, "a"), 0)
    transactions.note(record(5, "a", table="public.u"), 1)
    (open_,) = transactions.open()
    assert (open_.start, open_.size_bytes, open_.since_s, open_.tables) == (4, 20, 0, {"default.t", "public.u"})
    transactions.note(record(6, "a", last=True), 2)
    assert starts(transactions) == {}


def test_a_whole_transaction_in_one_batch_never_opens():
    transactions = OpenTransactions()
    transactions.note(record(1, "a", last=True), 0)
    transactions.note(record(2, None), 0)
    assert starts(transactions) == {}


def test_sources_are_apart():
    transactions = OpenTransactions()
    transactions.note(record(1, "a"), 0)
    transactions.note(record(2, "a", source="other"), 0)
    transactions.note(record(3, "a", last=True), 0)
    assert starts(transactions) == {"other": 2}


def test_a_cut_falls_into_no_transaction_that_has_ended_either():
    """Two sources' transactions overlap: the cut before the open one would tear the other."""
    transactions = OpenTransactions()
    transactions.note(record(5, "a"), 0)
    transactions.note(record(11, "b", source="other"), 0)
    transactions.note(record(15, "a", last=True), 0)
    transactions.note(record(16, None), 0)
    assert plan_cut(17, "default.t", transactions.open(), transactions.ended) == 5
    assert plan_cut(17, "default.u", transactions.open(), transactions.ended) == 17
    transactions.note(record(17, "b", source="other", last=True), 0)
    assert plan_cut(18, "default.t", transactions.open(), transactions.ended) == 18
    assert transactions.ended == ()


def test_a_chain_of_overlapping_transactions_is_cut_before_its_first():
    transactions = OpenTransactions()
    for offset, source in ((1, "x"), (3, "y"), (7, "z")):
        transactions.note(record(offset, source, source=source), 0)
    transactions.note(record(4, "x", source="x", last=True), 0)
    transactions.note(record(10, "y", source="y", last=True), 0)
    assert plan_cut(11, "default.t", transactions.open(), transactions.ended) == 1


def test_another_transaction_of_the_source_ends_the_one_before():
    transactions = OpenTransactions()
    transactions.note(record(1, "a"), 0)
    transactions.note(record(2, "b"), 0)
    assert starts(transactions) == {"s": 2}


def test_an_overdue_one_is_given_up_once_and_its_last_is_not_awaited():
    transactions = OpenTransactions()
    transactions.note(record(1, "a"), 0)
    assert transactions.expire(59.9) == []
    assert [open_.id for open_ in transactions.expire(60.0)] == ["a"]
    transactions.note(record(2, "a"), 61)
    assert (starts(transactions), transactions.cut_count) == ({}, 1)
    transactions.note(record(3, "a", last=True), 62)
    transactions.note(record(4, "a"), 63)
    assert starts(transactions) == {"s": 4}


def test_a_large_one_is_given_up():
    transactions = OpenTransactions()
    transactions.note(record(1, "a", size=256 << 20), 0)
    assert len(transactions.expire(0)) == 1


def test_what_was_read_elsewhere_is_open_here_from_its_first_batch_on():
    elsewhere, here = OpenTransactions(), OpenTransactions()
    for offset, name, source in ((1, "a", "x"), (2, "b", "y"), (3, "c", "z")):
        elsewhere.note(record(offset, name, source=source), 0)
    here.note(record(5, "a", source="x"), 0)  # the same one
    here.note(record(6, "d", source="y"), 0)  # gone on from
    here.adopt(elsewhere)
    assert starts(here) == {"x": 1, "y": 6, "z": 3}
    here.note(record(7, "c", source="z", last=True), 0)
    assert plan_cut(8, "default.t", here.open(), here.ended) == 1
    here.note(record(8, "a", source="x", last=True), 0)
    here.note(record(9, "d", source="y", last=True), 0)
    assert plan_cut(10, "default.t", here.open(), here.ended) == 10


def test_one_that_was_given_up_here_is_not_taken_from_elsewhere():
    elsewhere, here = OpenTransactions(), OpenTransactions()
    for transactions in (elsewhere, here):
        transactions.note(record(1, "a"), 0)
    here.expire(60.0)
    here.adopt(elsewhere)
    assert starts(here) == {}


def test_an_ended_epoch_takes_its_open_transaction_along():
    transactions = OpenTransactions()
    transactions.note(record(1, "a", epoch="1"), 0)
    transactions.note(record(2, None, epoch="2"), 0)
    assert (starts(transactions), transactions.cut_count) == ({}, 1)
