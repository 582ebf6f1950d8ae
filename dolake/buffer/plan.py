"""Decides when a table is flushed, how far, and what of a log may go. Values in, values out."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class FlushPolicy:
    """When a table is due: the first of these that is reached. `rows` None means no limit on rows."""

    age_s: float
    size_bytes: int
    rows: int | None = None


@dataclass(frozen=True)
class TableBacklog:
    """What waits in memory for one table. `since_s` is the monotonic time of its oldest record; sizes are of log bytes
    (`size_bytes`) and of memory held (`memory_bytes`)."""

    table: str
    policy: FlushPolicy
    rows: int
    size_bytes: int
    memory_bytes: int
    since_s: float
    requested: bool = False


@dataclass(frozen=True)
class FlushPlan:
    """Tables to flush, most urgent first, and why each."""

    due: tuple[tuple[str, str], ...]


def plan_flush(backlogs: Sequence[TableBacklog], memory_bytes_max: int, now_s: float) -> FlushPlan:
    """The tables that are due, oldest first; then the largest until memory fits."""
    due: list[tuple[str, str]] = []
    memory_bytes = sum(backlog.memory_bytes for backlog in backlogs)
    rest = []
    for backlog in sorted(backlogs, key=lambda backlog: (backlog.since_s, backlog.table)):
        reason = _reason(backlog, now_s)
        if reason is None:
            rest.append(backlog)
        else:
            due.append((backlog.table, reason))
            memory_bytes -= backlog.memory_bytes
    for backlog in sorted(rest, key=lambda backlog: (-backlog.memory_bytes, backlog.table)):
        if memory_bytes <= memory_bytes_max:
            break
        due.append((backlog.table, "memory"))
        memory_bytes -= backlog.memory_bytes
    return FlushPlan(tuple(due))


def _reason(backlog: TableBacklog, now_s: float) -> str | None:
    if backlog.requested:
        return "request"
    if backlog.size_bytes >= backlog.policy.size_bytes:
        return "bytes"
    if backlog.policy.rows is not None and backlog.rows >= backlog.policy.rows:
        return "rows"
    if now_s - backlog.since_s >= backlog.policy.age_s:
        return "age"
    return None


@dataclass(frozen=True)
class OpenTransaction:
    """A source transaction whose last batch has not come yet. `since_s` is monotonic time; `tables` those it touches."""

    source: str
    epoch: str
    id: str
    start: int
    size_bytes: int
    since_s: float
    tables: frozenset[str]


@dataclass(frozen=True)
class EndedTransaction:
    """A transaction that was read whole: its first batch is at `start`, its last at `last`, others' batches in between."""

    start: int
    last: int
    tables: frozenset[str]


def plan_cut(position: int, table: str, transactions: Iterable[OpenTransaction], ended: Collection[EndedTransaction] = ()) -> int:
    """Where a flush of `table` may end in a log that was read up to `position`: inside no transaction of it.

    Before every open one, then; and where that is in the midst of one that has ended, before that one too.
    """
    return plan_common_cut(position, (table,), transactions, ended)


def plan_common_cut(
    position: int, tables: Iterable[str], transactions: Iterable[OpenTransaction], ended: Collection[EndedTransaction] = ()
) -> int:
    """The same for a flush of several tables that ends at one place for all of them."""
    flushed = frozenset(tables)
    cut = min([position, *(open_.start for open_ in transactions if not flushed.isdisjoint(open_.tables))])
    while torn := [one.start for one in ended if not flushed.isdisjoint(one.tables) and one.start < cut <= one.last]:
        cut = min(torn)
    return cut


def plan_kept(transactions: Collection[OpenTransaction], ended: Iterable[EndedTransaction]) -> tuple[EndedTransaction, ...]:
    """The ended transactions that a cut before an open one could still fall into, directly or by way of another."""
    kept = []
    if transactions:
        lowest = min(open_.start for open_ in transactions)
        for one in sorted(ended, key=lambda one: one.last, reverse=True):
            if one.last >= lowest:
                kept.append(one)
                lowest = min(lowest, one.start)
    return tuple(kept)


def plan_overdue(
    transactions: Iterable[OpenTransaction], now_s: float, *, age_s_max: float = 60.0, size_bytes_max: int = 256 << 20
) -> list[OpenTransaction]:
    """Transactions that are waited for no longer (design: 60 s or 256 MiB): a flush may cut them."""
    return [open_ for open_ in transactions if now_s - open_.since_s >= age_s_max or open_.size_bytes >= size_bytes_max]


@dataclass(frozen=True)
class Pin:
    """A record of a log that holds rows (or a schema) of a table which are not committed yet.

    `elsewhere`: it is kept in a side log as well, so that its log need not keep it.
    """

    log_id: str
    offset: int
    source: str
    elsewhere: bool = False


def plan_low(positions: Mapping[str, int], pins: Iterable[Pin]) -> tuple[dict[str, int], dict[str, dict[str, int]]]:
    """For each log: the first offset that anybody still needs, and the first one pinned of each source.

    Everything below the first may be trimmed (I6). Returns (low by log, first pinned offset by log and source).
    """
    low = dict(positions)
    pending: dict[str, dict[str, int]] = {log_id: {} for log_id in positions}
    for pin in pins:
        if pin.log_id not in low:
            continue
        if not pin.elsewhere:
            low[pin.log_id] = min(low[pin.log_id], pin.offset)
        first = pending[pin.log_id]
        first[pin.source] = min(first.get(pin.source, pin.offset), pin.offset)
    return low, pending
