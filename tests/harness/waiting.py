"""Waiting for a condition, never for a time: looks often, says what it waited for when the deadline passes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

_PAUSE_S = 0.005


class WaitedTooLong(AssertionError):
    """What was waited for did not come. A test's failure, not its skip."""


def wait_until(condition: Callable[[], T], what: str | Callable[[], str], deadline_s: float = 30.0) -> T:
    """The first true value of `condition`; raises WaitedTooLong after `deadline_s`. `what` is asked for only then."""
    end = time.monotonic() + deadline_s
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            raise _too_long(what, deadline_s)
        time.sleep(_PAUSE_S)


async def wait_until_async(condition: Callable[[], T], what: str | Callable[[], str], deadline_s: float = 30.0) -> T:
    """As `wait_until`, beside other tasks of the loop."""
    end = time.monotonic() + deadline_s
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            raise _too_long(what, deadline_s)
        await asyncio.sleep(_PAUSE_S)


async def wait_until_still(measure: Callable[[], T], still_s: float, deadline_s: float = 30.0) -> T:
    """What `measure` gives once that has not changed for `still_s`: something has come to an end, or does not begin."""
    end = time.monotonic() + deadline_s
    value, since = measure(), time.monotonic()
    while time.monotonic() < since + still_s:
        if time.monotonic() > end:
            raise _too_long(f"{value!r} to stay as it is", deadline_s)
        await asyncio.sleep(_PAUSE_S)
        if (now := measure()) != value:
            value, since = now, time.monotonic()
    return value


def _too_long(what: str | Callable[[], str], deadline_s: float) -> WaitedTooLong:
    return WaitedTooLong(f"waited {deadline_s:g} s for {what if isinstance(what, str) else what()}")
