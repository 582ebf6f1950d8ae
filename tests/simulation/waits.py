"""How long the product waits between its looks where nothing happens: some seeds keep what it ships with, most wait longer.

A world that waits for a late request is otherwise spent on looks that find nothing.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import dolake.writer.moving
import dolake.writer.parking
import dolake.writer.service

Patch = tuple[Any, str, Any]
"""Owner, attribute, value."""

LONGER = (1, 3, 10, 10, 10, 10, 10, 10)
WAITS = (
    (dolake.writer.service, "TICK_S"),
    (dolake.writer.service, "IDLE_S_MAX"),
    (dolake.writer.moving, "TICK_S"),
    (dolake.writer.parking, "TICK_S"),
)


def idle_waits(draw: random.Random) -> list[Patch]:
    longer = draw.choice(LONGER)
    return [(owner, name, longer * getattr(owner, name)) for owner, name in WAITS]


@contextmanager
def in_force(patches: Sequence[Patch]) -> Iterator[None]:
    """These attributes of the product are others, for one world."""
    before = [(owner, name, getattr(owner, name)) for owner, name, _ in patches]
    for owner, name, value in patches:
        setattr(owner, name, value)
    try:
        yield
    finally:
        for owner, name, value in reversed(before):
            setattr(owner, name, value)
