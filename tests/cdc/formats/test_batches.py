from __future__ import annotations

from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dolake.cdc.formats import COMMIT, Declare, Event, Item
from dolake.cdc.formats.batches import Batcher, EventBatch
from dolake.model import DeclaredColumn, DeclaredSchema


def schema(table: str, *columns: str) -> DeclaredSchema:
    return DeclaredSchema(table, (), tuple(DeclaredColumn(column, "int") for column in columns))


def events(*numbers: int, table: str = "t", transaction: str = "x") -> list[Event]:
    return [Event(number, table, b"%d" % number, transaction) for number in numbers]


Sent = tuple[list[int], tuple[str, bool] | None] | str


def plan(items: Iterable[Item], *, count: int = 3, size: int = 1_000_000, resume_after: int = -1) -> list[Sent]:
    """What is sent: batches as (numbers, transaction mark), schemas as their table's name."""
    batcher = Batcher(event_count_max=count, size_bytes_max=size, resume_after=resume_after)
    for item in items:
        batcher.push(item)
    batcher.flush()
    return [_sent(message) for message in batcher.take()]


def _sent(message: EventBatch | DeclaredSchema) -> Sent:
    if isinstance(message, DeclaredSchema):
        return message.table
    mark = message.transaction
    return [event.sequence for event in message.events], None if mark is None else (mark.id, mark.last)


def test_a_batch_holds_whole_transactions_up_to_its_limit() -> None:
    items = [*events(1), COMMIT, *events(2), COMMIT, *events(3, 4), COMMIT, *events(5), COMMIT]
    assert plan(items) == [([1, 2], None), ([3, 4, 5], None)]


def test_a_larger_transaction_spans_batches_of_its_own_that_carry_its_mark() -> None:
    items = [*events(1), COMMIT, *events(2, 3, 4, 5, 6, 7, transaction="big"), COMMIT, *events(8), COMMIT]
    assert plan(items) == [([1], None), ([2, 3, 4], ("big", False)), ([5, 6, 7], ("big", True)), ([8], None)]


def test_a_transaction_of_exactly_a_batch_is_not_marked() -> None:
    assert plan([*events(1, 2, 3), COMMIT]) == [([1, 2, 3], None)]


def test_bytes_limit_a_batch_too() -> None:
    items = [item for number in range(10, 16) for item in (*events(number), COMMIT)]
    assert plan(items, count=100, size=5) == [([10, 11], None), ([12, 13], None), ([14, 15], None)]


def test_an_event_larger_than_the_limit_goes_alone() -> None:
    assert plan([*events(1), COMMIT, *events(123456), COMMIT, *events(123457), COMMIT], size=4) == [
        ([1], None),
        ([123456], None),
        ([123457], None),
    ]


def test_a_transaction_under_way_is_not_sent_with_a_pause() -> None:
    assert plan([*events(1), COMMIT, *events(2)]) == [([1], None)]


def test_a_declaration_goes_right_before_the_batch_that_needs_it() -> None:
    items = [Declare(schema("t", "a")), *events(1), COMMIT, Declare(schema("u", "a")), *events(2), COMMIT, *events(3, table="u"), COMMIT]
    assert plan(items) == ["t", "u", ([1, 2, 3], None)]


def test_a_declaration_never_overtakes_events_of_its_table() -> None:
    items = [Declare(schema("t", "a")), *events(1), COMMIT, Declare(schema("t", "a", "b")), *events(2), COMMIT]
    assert plan(items) == ["t", ([1], None), "t", ([2], None)]


def test_a_declaration_inside_a_transaction_splits_it() -> None:
    items = [Declare(schema("t", "a")), *events(1), COMMIT, *events(2), Declare(schema("t", "b")), *events(3), COMMIT]
    assert plan(items) == ["t", ([1], None), ([2], ("x", False)), "t", ([3], ("x", True))]


def test_events_that_are_durable_are_skipped_with_their_declarations() -> None:
    items = [Declare(schema("t", "a")), *events(1, 2), COMMIT, Declare(schema("t", "b")), *events(3), COMMIT]
    assert plan(items, resume_after=3) == []
    assert plan(items, resume_after=2) == ["t", ([3], None)]


def test_resuming_inside_a_transaction_goes_on_with_its_mark() -> None:
    items = [*events(1, 2, 3, 4), COMMIT, *events(5), COMMIT]
    assert plan(items, resume_after=3) == [([4], ("x", True)), ([5], None)]


def test_parts_of_a_nameless_transaction_have_one_name_in_any_run() -> None:
    items = [*events(1, 2, 3, 4, transaction=""), COMMIT]
    assert plan(items) == [([1, 2, 3], ("event-1", False)), ([4], ("event-1", True))]
    assert plan(items, resume_after=3) == [([4], ("event-1", True))]


@given(
    sizes=st.lists(st.integers(0, 9), max_size=20),
    declares=st.sets(st.integers(1, 60)),
    count=st.integers(1, 12),
    cut=st.integers(0, 60),
    again=st.integers(1, 12),
)
@pytest.mark.filterwarnings("ignore")
def test_every_event_goes_once_in_order_also_when_sending_is_resumed_with_other_limits(
    sizes: list[int], declares: set[int], count: int, cut: int, again: int
) -> None:
    """Transactions of `sizes` events; new declarations before some; the first run ends after some batch."""
    items: list[Item] = []
    transaction_of: dict[int, int] = {}
    for index, size in enumerate(sizes):
        for _ in range(size):
            number = len(transaction_of) + 1
            if number in declares:
                items.append(Declare(schema("t", f"c{number}")))
            transaction_of[number] = index
            items += events(number, transaction=f"x{index}")
        items.append(COMMIT)

    first = [message for message in plan(items, count=count) if not isinstance(message, str)]
    durable = first[: cut % (len(first) + 1)]
    resume_after = durable[-1][0][-1] if durable else -1
    rest = [message for message in plan(items, count=again, resume_after=resume_after) if not isinstance(message, str)]
    sent = durable + rest

    assert [number for numbers, _ in sent for number in numbers] == list(transaction_of)
    for position, (numbers, mark) in enumerate(sent):
        assert len(numbers) <= max(count, again)
        transactions = {transaction_of[number] for number in numbers}
        if mark is None:  # Whole transactions only.
            for transaction in transactions:
                assert all(number in numbers for number, owner in transaction_of.items() if owner == transaction)
        else:
            assert len(transactions) == 1
            later = any(transaction_of[number] in transactions for others, _ in sent[position + 1 :] for number in others)
            assert mark == (f"x{transactions.pop()}", not later)
