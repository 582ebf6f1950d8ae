"""Which source transactions are open in a log: those whose `last` batch has not been read yet. And which ended ones they overlap.

A flush never cuts inside one (design §3), within bounds: one that is open too long, grows too large or whose epoch ended
is given up, and its `last` is awaited no longer.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import replace

from dolake.buffer.plan import EndedTransaction, OpenTransaction, plan_kept, plan_overdue
from dolake.model import Record, TableName


class OpenTransactions:
    """The open transactions of one log, at most one a source."""

    def __init__(self, table_of: Callable[[str, str], TableName] = lambda source, text: TableName.in_lake(text)) -> None:
        """`table_of` says which table a source means by a name."""
        self._table_of = table_of
        self._open: dict[str, OpenTransaction] = {}
        self._given_up: dict[str, str] = {}
        self.ended: tuple[EndedTransaction, ...] = ()
        self.cut_count = 0

    def note(self, record: Record, now_s: float) -> None:
        """Takes a batch record in, in log order."""
        entry = record.entry
        current = self._open.get(entry.source)
        if current is not None and current.epoch != entry.epoch:
            self._give_up(current)
            current = None
        mark = entry.transaction
        if mark is None:
            return
        if current is not None and current.id != mark.id:
            # The source went on without closing it: it is over, whether whole or not.
            del self._open[entry.source]
            current = None
        tables = frozenset(str(self._table_of(entry.source, table)) for table in entry.tables)
        if mark.last:
            self._open.pop(entry.source, None)
            self._given_up.pop(entry.source, None)
            if current is not None:
                self.ended = plan_kept(self.open(), (*self.ended, EndedTransaction(current.start, record.offset, current.tables | tables)))
        elif self._given_up.get(entry.source) != mark.id:
            before = current or OpenTransaction(entry.source, entry.epoch, mark.id, record.offset, 0, now_s, frozenset())
            self._open[entry.source] = replace(
                before,
                size_bytes=before.size_bytes + record.size_bytes,
                tables=before.tables | tables,
            )

    def expire(self, now_s: float) -> list[OpenTransaction]:
        """Gives up those that are overdue; returns them to be logged."""
        overdue = plan_overdue(self._open.values(), now_s)
        for transaction in overdue:
            self._give_up(transaction)
        return overdue

    def _give_up(self, transaction: OpenTransaction) -> None:
        self._open.pop(transaction.source, None)
        self._given_up[transaction.source] = transaction.id
        self.cut_count += 1

    def adopt(self, other: OpenTransactions) -> None:
        """What was read elsewhere of this log, from where it may be trimmed by now: what is open there is open here, from there on.

        One that a source has gone on from is over.
        """
        for theirs in other.open():
            mine = self._open.get(theirs.source)
            if mine is None and self._given_up.get(theirs.source) != theirs.id:
                self._open[theirs.source] = theirs
            elif mine is not None and (mine.epoch, mine.id) == (theirs.epoch, theirs.id):
                self._open[theirs.source] = replace(mine, start=min(mine.start, theirs.start), tables=mine.tables | theirs.tables)
        self.ended = plan_kept(self.open(), (*self.ended, *other.ended))

    def open(self) -> Collection[OpenTransaction]:
        return self._open.values()
