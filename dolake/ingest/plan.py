"""What is refused when there is too much of everything: the sources that matter least, first.

Each thing there can be too much of is a share of its bound: the backlog of the source's log, bytes that wait for its sync,
messages in memory, and how late the event loop is. The largest of them is the load.

    load above   refused
    90 %         sources of priority `low`: load_shedding
    95 %         those of priority `normal` as well, if the configuration names any of priority `high`: there is room kept for it
    100 %        everybody: buffer_full for the backlog, load_shedding for memory; the loop and the sync only make others wait
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from dolake.cdc.answer import Reason

SHED_LOW_ABOVE, SHED_NORMAL_ABOVE = 0.90, 0.95
LAG_S_MAX = 2.0


class Priority(StrEnum):
    HIGH = "high"
    NORMAL = "normal"
    LOW = "low"


@dataclass(frozen=True)
class Load:
    """Shares of bounds, 1 = at the bound: the log's backlog, its unsynced bytes, messages in memory, the loop's lag."""

    backlog: float = 0.0
    unsynced: float = 0.0
    memory: float = 0.0
    lag: float = 0.0


@dataclass(frozen=True)
class Refusal:
    """Why a batch is not taken now, as a nack says it."""

    reason: Reason
    message: str


def plan_refusal(load: Load, priority: Priority, *, keeps_room: bool) -> Refusal | None:
    """None if a source of this priority may go on. `keeps_room`: whether any source's priority is `high`."""
    if load.backlog >= 1:
        text = "the backlog is full: batches arrive faster than they are committed, or nothing is committed"
        return Refusal(Reason.BUFFER_FULL, text)
    if load.memory >= 1:
        return Refusal(Reason.LOAD_SHEDDING, "messages arrive faster than the log takes them: there is no memory left for more")
    shares = {
        "its log's backlog": load.backlog,
        "what waits for its log": load.unsynced,
        "messages in memory": load.memory,
        "the event loop's lag": load.lag,
    }
    what, share = max(shares.items(), key=lambda one: one[1])
    if share > _line(priority, keeps_room):
        text = f"{what} is at {share:.0%} of its bound: sources of priority {priority} have to wait"
        return Refusal(Reason.LOAD_SHEDDING, text)
    return None


def _line(priority: Priority, keeps_room: bool) -> float:
    if priority is Priority.LOW:
        return SHED_LOW_ABOVE
    return SHED_NORMAL_ABOVE if priority is Priority.NORMAL and keeps_room else float("inf")


def plan_group(waiting: Sequence[tuple[str, int]], bytes_max: int) -> Sequence[int]:
    """Which of the batches that wait go into the next group commit: their places, in the order in which they are written.

    `waiting` is (source, size in bytes) of each, oldest first. All of them while they fit, and the oldest always; otherwise
    the sources take turns, the one that has the least in the group so far first, so that nobody waits for more than one
    group behind somebody else's batches. A source's own batches stay in their order.
    """
    if sum(size for _, size in waiting) <= bytes_max:
        return range(len(waiting))
    queues: dict[str, deque[int]] = {}
    for place, (source, _) in enumerate(waiting):
        queues.setdefault(source, deque()).append(place)
    chosen: list[int] = []
    left_bytes = bytes_max
    taken = [(0, queue[0], queue) for queue in queues.values()]  # bytes in the group, the next place, the rest
    while taken:
        size_so_far, place, queue = heapq.heappop(taken)
        size = waiting[place][1]
        if chosen and size > left_bytes:  # This source's next has no room; a smaller one of another may.
            continue
        chosen.append(queue.popleft())
        left_bytes -= size
        if queue:
            heapq.heappush(taken, (size_so_far + size, queue[0], queue))
    return chosen
