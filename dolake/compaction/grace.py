"""How long an object that nobody needs any more stays: somebody may be in the middle of reading a snapshot that has just expired.

Time is counted from when it was first seen unreferenced, not from when it was made: the oldest file of a table may have been live
until a moment ago. It is kept in memory alone. A restart begins to count anew, and objects then stay longer, never shorter.
"""

from __future__ import annotations

from collections.abc import Sequence

from dolake.compaction.unreferenced import StoredObject

_OBJECTS_MAX = 100_000


class Grace:
    """Of one table. What is handed in is all that is unreferenced at that time; `objects_max` of it are remembered, the first seen first.

    Those above wait until there is room: then their time begins.
    """

    def __init__(self, grace_s: float, *, objects_max: int = _OBJECTS_MAX) -> None:
        self._grace_s, self._objects_max = grace_s, objects_max
        self._since_s: dict[str, float] = {}

    def due(self, objects: Sequence[StoredObject], now_s: float) -> tuple[StoredObject, ...]:
        """Those that have been seen for long enough, in the order given. `now_s` is monotonic.

        One that is not among `objects` is gone, or needed again, and its time begins anew should it come back.
        """
        if self._grace_s <= 0:
            return tuple(objects)
        seen = {one.location for one in objects}
        self._since_s = {location: since_s for location, since_s in self._since_s.items() if location in seen}
        for one in objects:
            if len(self._since_s) >= self._objects_max:
                break
            self._since_s.setdefault(one.location, now_s)
        # One that is not remembered has been seen for no time.
        return tuple(one for one in objects if now_s - self._since_s.get(one.location, now_s) >= self._grace_s)

    @property
    def waiting_count(self) -> int:
        return len(self._since_s)
