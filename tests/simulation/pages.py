"""What the canonical course's sources send, page after page: every kind of event there is, few of each."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import orjson

from dolake.model import TableName
from tests.simulation.invariants import Event as Name
from tests.simulation.invariants import Journal
from tests.simulation.sources import LARGE, NARROW, STRICT, WIDE, Batch, Columns, Script, fits_of

ORDERS = TableName("default", "orders")  # a mirror, and its changelog beside it
ITEMS = TableName("shop", "items")  # a changelog
GONE = TableName("default", "gone")  # a mirror that is dropped
PAST = TableName("default", "past")  # a mirror with a TTL, which is rolled back
SHOP, OTHER, LATER = "shop", "other", "later"  # the sources: orders and items, items and gone, past
DAY = {"name": "day", "type": "date"}  # of the last one's rows: by this they expire
LONG_AGO, TO_COME = "1999-12-31", "2999-12-31"

Event = dict[str, Any]


def row(key: int, **values: Any) -> dict[str, Any]:
    return {"id": f"k{key}", "n": key, "small": key, "must": "m", **values}


def insert(key: int, **values: Any) -> Event:
    return {"operation": "INSERT", "after": row(key, **values)}


def update(key: int, *, old: int | None = None, unchanged: tuple[str, ...] = (), **values: Any) -> Event:
    event: Event = {"operation": "UPDATE", "after": row(key, **values)}
    if old is not None:
        event["before"] = {"id": f"k{old}"}
    if unchanged:
        event["metadata"] = {"unchanged": list(unchanged)}
    return event


def delete(key: int) -> Event:
    return {"operation": "DELETE", "before": row(key)}


TRUNCATE: Event = {"operation": "TRUNCATE"}


class Pages:
    """Each page adds batches to a source's script and returns the source's name; the journal knows every event from then on."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._batches: dict[str, list[Batch]] = {SHOP: [], OTHER: [], LATER: []}
        self._next_event = dict.fromkeys(self._batches, 0)
        self._next_key = 100

    def script(self, source: str) -> Script:
        """All that was written so far."""
        return Script(source, [""], transactions=False, batches={"": list(self._batches[source])})

    def first(self) -> str:
        self._declare(SHOP, ORDERS)
        self._declare(SHOP, ITEMS)
        self._add(SHOP, ORDERS, *(insert(key, note="x" * 60) for key in range(6)))
        self._add(SHOP, ITEMS, insert(0), insert(1, note="x"))
        return SHOP

    def other(self) -> str:
        self._declare(OTHER, GONE)
        self._add(OTHER, GONE, insert(0), insert(1), update(1, note="y"), delete(0))
        self._add(OTHER, ITEMS, insert(7), delete(7))
        return OTHER

    def changes(self) -> str:
        """Four dead letters: a value that never fits, one that will, an event without a key, and a row that is not there."""
        self._add(SHOP, ORDERS, update(0, note="new"), delete(1), update(12, old=2), update(3, unchanged=("note",)), insert(4, note="y"))
        self._add(SHOP, ORDERS, insert(20, n="many"), insert(21, small=LARGE), {"operation": "DELETE", "before": {"n": 1}})
        self._add(SHOP, ORDERS, update(40, unchanged=("note",)))
        self._add(SHOP, ITEMS, update(1, note="z"), delete(0), insert(30, small=LARGE), TRUNCATE)
        return SHOP

    def more(self) -> str:
        self._add(SHOP, ORDERS, update(0, note="again"), delete(12), TRUNCATE, insert(3), insert(5))
        self._add(SHOP, ORDERS, update(5, note="z"), insert(6), insert(70, small=LARGE))
        return SHOP

    def wider(self) -> str:
        self._declare(SHOP, ORDERS, wide=True)
        self._declare(SHOP, ITEMS, wide=True)
        self._add(SHOP, ORDERS, insert(50, small=LARGE, extra=1), update(6, extra=2, unchanged=("note",)))
        self._add(SHOP, ITEMS, insert(51, extra=3))
        return SHOP

    def bulk(self) -> str:
        """New rows and changes of old ones, about 1 KiB of them, and an item."""
        for _ in range(2):
            key = self._next_key
            self._next_key += 1
            self._add(SHOP, ORDERS, insert(key, note="y" * 400), update(key - 1, note="x"))
        self._add(SHOP, ITEMS, insert(self._next_key))
        return SHOP

    def again(self) -> str:
        """The table that was dropped is written anew."""
        self._declare(OTHER, GONE)
        self._add(OTHER, GONE, insert(1), insert(2))
        return OTHER

    def aged(self) -> str:
        """Rows that have expired already, and others, in one file."""
        self._declare(LATER, PAST, more=(DAY,))
        self._add(LATER, PAST, insert(0, day=LONG_AGO), insert(1, day=TO_COME), insert(2, day=LONG_AGO), insert(3))
        return LATER

    def older(self) -> str:
        """A file of such rows alone."""
        self._add(LATER, PAST, insert(4, day=LONG_AGO), insert(5, day=LONG_AGO))
        return LATER

    def afterwards(self) -> str:
        """Of keys that have expired, and of some that have not."""
        self._add(LATER, PAST, update(0, day=TO_COME), delete(2), insert(4, note="x"), update(1, day=TO_COME, note="y"))
        return LATER

    def mistaken(self) -> str:
        self._add(LATER, PAST, update(1, note="wrong"), delete(3), insert(6, note="wrong"), update(7, old=4, note="wrong"))
        return LATER

    def corrected(self) -> str:
        """Of keys that a mistake was about, and a new one."""
        self._add(LATER, PAST, update(1, note="right"), insert(6, note="right"), update(4, note="right"), delete(7), insert(8))
        return LATER

    def forget(self, table: str) -> None:
        """Nothing that was sent to a table by now is expected to be anywhere; if a row of it comes back, it was never sent."""
        self.forget_events({event for event, sent in self._journal.sent.items() if sent["table"] == table})

    def forget_events(self, events: Collection[Name]) -> None:
        for event in events:
            del self._journal.sent[event]
            self._journal.acked.discard(event)
            self._journal.committed.add(event)

    def _declare(self, source: str, table: TableName, *, wide: bool = False, more: Columns = ()) -> None:
        columns = [{"nullable": True, **column} for column in (*(WIDE if wide else NARROW), STRICT, *more)]
        batches = self._batches[source]
        batches.append(Batch("", len(batches), orjson.dumps(columns), table=str(table)))

    def _add(self, source: str, table: TableName, *events: Event) -> None:
        """One batch."""
        first, batches = self._next_event[source], self._batches[source]
        numbered = []
        for number, event in enumerate(events, first):
            event = {"sequence": number, "timestamp": 1_767_225_600_000 + number, "table": str(table), **event}
            image = event.get("after") or event.get("before") or {}
            known = {"table": str(table), "row": image, "operation": event["operation"], "fits": fits_of(image), "event": event}
            self._journal.sent[(source, "", number)] = known
            numbered.append(event)
        self._next_event[source] += len(events)
        names = tuple((source, "", event["sequence"]) for event in numbered)
        batches.append(Batch("", len(batches), orjson.dumps(numbered), events=names, first_event=first, last_event=first + len(events) - 1))
