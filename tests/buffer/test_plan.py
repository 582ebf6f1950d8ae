"""Each case of the flush plan is one line: what waits, and what is due."""

from __future__ import annotations

from dolake.buffer.plan import FlushPolicy, OpenTransaction, Pin, TableBacklog, plan_cut, plan_flush, plan_low, plan_overdue

POLICY = FlushPolicy(age_s=5, size_bytes=1000, rows=50)


def backlog(table: str, *, rows: int = 1, size: int = 1, memory: int = 1, since: float = 100.0, requested: bool = False) -> TableBacklog:
    return TableBacklog(table, POLICY, rows, size, memory, since, requested)


def due(*backlogs: TableBacklog, memory: int = 10**9, now: float = 101.0) -> list[tuple[str, str]]:
    return list(plan_flush(backlogs, memory, now).due)


def test_nothing_is_due_below_every_bound():
    assert due(backlog("a"), backlog("b", rows=49, size=999, since=96.1)) == []


def test_each_bound_makes_a_table_due_and_names_itself():
    assert due(backlog("a", size=1000)) == [("a", "bytes")]
    assert due(backlog("a", rows=50)) == [("a", "rows")]
    assert due(backlog("a", since=96.0)) == [("a", "age")]
    assert due(backlog("a", requested=True)) == [("a", "request")]


def test_the_oldest_goes_first():
    assert due(backlog("young", size=1000, since=100.5), backlog("old", size=1000, since=100.1)) == [("old", "bytes"), ("young", "bytes")]


def test_memory_takes_the_largest_until_it_fits_and_counts_what_is_due_anyway():
    small, middle, large = backlog("s", memory=10), backlog("m", memory=20), backlog("l", memory=30)
    assert due(small, middle, large, memory=30) == [("l", "memory")]
    assert due(small, middle, large, memory=29) == [("l", "memory"), ("m", "memory")]
    assert due(small, middle, backlog("l", memory=30, size=1000), memory=30) == [("l", "bytes")]


def transaction(source: str, start: int, tables: set[str], *, since: float = 0.0, size: int = 0) -> OpenTransaction:
    return OpenTransaction(source, "", "t", start, size, since, frozenset(tables))


def test_a_cut_is_before_every_open_transaction_of_the_table():
    open_ = [transaction("s", 7, {"a", "b"}), transaction("t", 5, {"b"})]
    assert plan_cut(9, "a", open_) == 7
    assert plan_cut(9, "b", open_) == 5
    assert plan_cut(9, "c", open_) == 9


def test_a_transaction_is_overdue_by_age_or_size():
    young, old, large = (
        transaction("y", 0, set(), since=50),
        transaction("o", 0, set()),
        transaction("l", 0, set(), since=50, size=256 << 20),
    )
    assert plan_overdue([young, old, large], 60.0) == [old, large]


def test_low_is_the_first_pin_of_each_log_else_where_reading_is():
    pins = [Pin("x", 5, "s"), Pin("x", 3, "t"), Pin("x", 4, "t"), Pin("gone", 1, "s")]
    low, pending = plan_low({"x": 9, "y": 2}, pins)
    assert low == {"x": 3, "y": 2}
    assert pending == {"x": {"s": 5, "t": 3}, "y": {}}
