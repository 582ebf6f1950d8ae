"""What a plain dict makes of a table's events: the last of each key, and from which events its row's values are.

Written apart from the writer's fold on purpose, and slow: no hashes, no arrays, one event after the other. Rows are only referred to
here (`Event.row`); whoever made the events knows what a reference means.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Final

Key = tuple[Any, ...]


class _Unknown(Enum):
    UNKNOWN = "not known"


UNKNOWN: Final = _Unknown.UNKNOWN


@dataclass(frozen=True)
class Event:
    """`old_key` where an update changed it; `unchanged`: columns that keep what the row has; `sure` is false where `old_key` may not
    have been known to the writer, or the event came later to the table than it stands here."""

    log: str
    source: str
    operation: str
    key: Key
    old_key: Key | None
    unchanged: Sequence[str]
    row: Any
    sure: bool = True


@dataclass
class Entry:
    """What is left of a key. `row` is the reference of the event that left it, None where no row is left; `apart` are columns whose
    values another event brought (UNKNOWN: one that is not among the events). `contested`: other sources had a hand in it, or a dead
    letter that was sent again through another log: in what order they came is not known here."""

    key: Key
    log: str
    source: str
    row: Any
    apart: Mapping[str, Any] = field(default_factory=dict)
    contested: bool = False
    unsure: bool = False

    def origin(self, column: str) -> Any:
        """The reference of the row that its value in a column is from, or UNKNOWN."""
        return self.apart.get(column, self.row)


class Fold:
    """`whole`: before the first event there was nothing, so that what is no key here has no row. `logs`: how many feed the table."""

    def __init__(self, *, whole: bool, log_count: int) -> None:
        self.whole, self._log_count = whole, log_count
        self._entries: dict[Key, Entry] = {}
        self._truncated: set[str] = set()  # logs with a TRUNCATE

    def entries(self) -> Iterator[Entry]:
        yield from self._entries.values()

    def take(self, event: Event) -> None:
        """The next event in the order of its log."""
        if event.operation == "TRUNCATE":
            self._truncate(event)
            return
        moved = event.old_key is not None and _plain(event.old_key) != _plain(event.key)
        before = self._entries.get(_plain(event.old_key if moved and event.old_key is not None else event.key))
        row, apart = (None, {}) if event.operation == "DELETE" else (event.row, _apart(before, event))
        if moved and event.old_key is not None:
            self._put(Entry(event.old_key, event.log, event.source, None, unsure=not event.sure))
        self._put(Entry(event.key, event.log, event.source, row, apart, unsure=not event.sure))

    def _put(self, entry: Entry) -> None:
        before = self._entries.get(_plain(entry.key))
        if before is not None:
            entry.contested = before.contested or (before.source, before.log) != (entry.source, entry.log)
            entry.unsure = entry.unsure or before.unsure
        entry.contested = entry.contested or bool(self._truncated - {entry.log})
        self._entries[_plain(entry.key)] = entry

    def _truncate(self, event: Event) -> None:
        """Everything that this log has brought is gone; when what others bring goes, the order of commits decides."""
        self._truncated.add(event.log)
        for entry in self._entries.values():
            if entry.log == event.log:
                entry.row, entry.apart = None, {}
            else:
                entry.contested = True
        self.whole = self.whole or self._log_count == 1


def _apart(before: Entry | None, event: Event) -> Mapping[str, Any]:
    """The columns that the event leaves as they were in `before`, and where their values are from."""
    if not event.unchanged:
        return {}
    if before is None or before.row is None or before.contested or before.unsure:
        return dict.fromkeys(event.unchanged, UNKNOWN)
    if (before.source, before.log) != (event.source, event.log):  # Which of the rows that were there came first is not known.
        return dict.fromkeys(event.unchanged, UNKNOWN)
    return {name: before.origin(name) for name in event.unchanged}


def _plain(value: Any) -> Any:
    """What compares as the values do: there is one NaN, and lists and structs can be looked up too."""
    if isinstance(value, tuple | list):
        return tuple(_plain(one) for one in value)
    if isinstance(value, dict):
        return tuple((name, _plain(one)) for name, one in value.items())
    return "NaN" if value != value else value  # Only NaN differs from itself.
