"""Where a stream's source transactions end, as far as the stream tells.

With transaction metadata an END says how many events there are, and it may come before the last of them or long after:
topics are read one by one. Without, a transaction is over when another begins, or the stream pauses. Events that name none
stand alone.
"""

from __future__ import annotations

from dataclasses import dataclass

from dolake.cdc.formats.envelope import Boundary

_REMEMBERED_MAX = 10_000


@dataclass
class _Known:
    """What has come of one transaction. `parts`: how often it was taken for over."""

    seen: int = 0
    expected: int | None = None
    parts: int = 0

    @property
    def is_torn(self) -> bool:
        return self.expected is not None and self.seen > 0 and (self.seen != self.expected or self.parts > 1)


class SourceTransactions:
    """Values in, values out: True means that what came so far is a whole, to be committed."""

    def __init__(self) -> None:
        self._current = ""  # "": none is open
        self._has_boundaries = False
        self._torn_count = 0
        self._known: dict[str, _Known] = {}

    @property
    def torn_count(self) -> int:
        """Transactions of which an END said that there is more, or that came in pieces."""
        return self._torn_count + sum(one.is_torn for one in self._known.values())

    def begin(self, name: str) -> bool:
        """An event of transaction `name` (or of none, "") follows. Whether the one before is over by that."""
        over = self._current not in ("", name)
        if over:
            self._close()
        self._current = name
        return over

    def count(self, block: str) -> bool:
        """An event has come, in transaction `block` as its metadata names it ("" where there is none). Whether that was the last."""
        if not block:
            return False
        known = self._of(block)
        known.seen += 1
        return self._close_if_complete(block)

    def boundary(self, boundary: Boundary) -> bool:
        """A BEGIN or END has come. Whether what came so far is a whole."""
        self._has_boundaries = True
        if boundary.status != "END":
            return False
        known = self._of(boundary.id)
        known.expected = boundary.event_count or 0
        if boundary.id != self._current and known.seen >= known.expected:
            self._forget(boundary.id)
        return self._close_if_complete(boundary.id)

    def pause(self, *, over: bool) -> bool:
        """The stream is quiet, or `over`. Whether what came so far may be taken for a whole.

        At the end an END that promised more events waits in vain: they are of tables that are not in this stream.
        """
        if not self._current:
            return False
        known = self._known.get(self._current)
        if self._has_boundaries and not (over and known is not None and known.expected is not None):
            return False
        self._close()
        return True

    def _close_if_complete(self, name: str) -> bool:
        known = self._known.get(name)
        if known is None or name != self._current or known.seen != known.expected:
            return False
        self._close()
        self._forget(name)
        return True

    def _close(self) -> None:
        known = self._known.get(self._current)
        if known is not None:
            known.parts += 1
        self._current = ""

    def _forget(self, name: str) -> None:
        self._torn_count += self._known.pop(name).is_torn

    def _of(self, name: str) -> _Known:
        known = self._known.get(name)
        if known is None:
            while len(self._known) >= _REMEMBERED_MAX:
                self._forget(next(iter(self._known)))
            known = self._known[name] = _Known()
        return known
