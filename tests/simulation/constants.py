"""Constants of the product that a seed may have otherwise: how long it waits where nothing happens, how it packs files.

Some seeds keep what it ships with. But a world that waits for a late request is mostly looks that find nothing, and one of small
files is mostly the making of zstd's contexts, one for each column of each.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import dolake.parquet.deletes
import dolake.parquet.encode
import dolake.writer.moving
import dolake.writer.parking
import dolake.writer.schedule
import dolake.writer.service

Patch = tuple[Any, str, Any]
"""Owner, attribute, value."""

LONGER = (1, 4, 10, *[20] * 13)
WAITS = (
    (dolake.writer.schedule, "TICK_S"),
    (dolake.writer.service, "TICK_S"),
    (dolake.writer.service, "IDLE_S"),
    (dolake.writer.service, "IDLE_S_MAX"),
    (dolake.writer.moving, "TICK_S"),
    (dolake.writer.parking, "TICK_S"),
)


def idle_waits(draw: random.Random) -> list[Patch]:
    longer = draw.choice(LONGER)
    return [(owner, name, longer * getattr(owner, name)) for owner, name in WAITS]


def packing(draw: random.Random) -> list[Patch]:
    if draw.random() < 0.2:
        return []
    return [(owner, "COMPRESSION", {"compression": "none"}) for owner in (dolake.parquet.encode, dolake.parquet.deletes)]


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
