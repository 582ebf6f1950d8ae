"""How late the event loop is: whatever takes long on it, everybody's acks wait for it."""

from __future__ import annotations

from collections.abc import Callable

from dolake.clock import Clock

PROBE_S = 0.25


async def watch_lag(clock: Clock, note: Callable[[float], None]) -> None:
    """Tells `note` again and again how many seconds late a short sleep ended: the less late of the last two, for ever.

    One long step alone is not overload; what comes in behind it should not be refused.
    """
    before_s = 0.0
    while True:
        began_s = clock.monotonic_s()
        await clock.sleep(PROBE_S)
        late_s = max(0.0, clock.monotonic_s() - began_s - PROBE_S)
        note(min(late_s, before_s))
        before_s = late_s
