from __future__ import annotations

import asyncio
from typing import Any

from dolake.cdc.session import Slot
from dolake.ingest.desk import _MARKS_MAX
from dolake.model import Entry, RecordKind
from tests.ingest.rig import Peer, serving


class Listener:
    """A client that only notes what it is told is committed."""

    def __init__(self) -> None:
        self.told: list[int] = []
        self.settled_count = 0

    def settled(self, slot: Slot, entry: Entry, *, repeated: bool) -> None:
        self.settled_count += 1

    def refused(self, slot: Slot, reason: Any, message: str) -> None:
        raise AssertionError(message)

    def persisted(self, sequence: int) -> None:
        self.told.append(sequence)


def entry(sequence: int) -> Entry:
    return Entry(RecordKind.BATCH, "s", "", sequence, 1, sequence, b"{}", {"default.t": 1}, sequence)


def test_what_is_remembered_for_persisted_acks_is_bounded_and_its_end_is_exact(tmp_path):
    async def scene() -> None:
        async with serving(tmp_path) as service:
            desk, listener = service.desk("s"), Listener()
            desk.client = listener
            count = 3 * _MARKS_MAX
            for sequence in range(count):
                desk.admit(entry(sequence), listener, Slot(sequence))
            await desk.quiet()
            assert listener.settled_count == count
            assert len(desk._marks) <= _MARKS_MAX
            desk.note_committed(count - 1)
            assert count - 8 <= listener.told[-1] < count - 1
            desk.note_committed(count)
            assert listener.told[-1] == count - 1
            assert not desk.has_unpersisted

    asyncio.run(scene())


def test_a_source_keeps_its_desk_whoever_connects(tmp_path):
    async def scene() -> None:
        async with serving(tmp_path) as service:
            first, second = Peer(service), Peer(service)
            await first.greet("s")
            desk = service.desk("s")
            assert desk.client is first.connection
            await second.greet("s")
            assert service.desk("s") is desk
            assert desk.client is second.connection
            first.connection.closed()
            assert desk.client is second.connection
            second.connection.closed()
            assert desk.client is None

    asyncio.run(scene())
