"""Where one source is served, whatever connection it comes by: its numbering, its lane, its connection of the moment."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Protocol

from dolake.cdc.answer import Reason
from dolake.cdc.numbering import Numbering
from dolake.cdc.session import Slot
from dolake.ingest.lane import Lane
from dolake.ingest.plan import Priority
from dolake.model import Entry, SourceState

_MARKS_MAX = 1024


class Client(Protocol):
    """What a desk tells a connection."""

    def settled(self, slot: Slot, entry: Entry, *, repeated: bool) -> None: ...

    def refused(self, slot: Slot, reason: Reason, message: str) -> None: ...

    def persisted(self, sequence: int) -> None: ...


@dataclass(eq=False)
class Admitted:
    """A batch in flight, and the place its answer goes to."""

    entry: Entry
    desk: SourceDesk
    client: Client
    slot: Slot

    def durable(self, offset: int, state: SourceState) -> None:
        self.desk.settle(self, offset, state)

    def failed(self, reason: Reason, message: str) -> None:
        self.desk.fail(self, reason, message)


class SourceDesk:
    """One source in the ingest half: its numbering, its log, and the connection that speaks for it now."""

    def __init__(self, source: str, lane: Lane, priority: Priority = Priority.NORMAL) -> None:
        self.source, self.lane, self.priority = source, lane, priority
        self.numbering = Numbering(SourceState(source))
        self.client: Client | None = None
        self.persisted_sequence = -1
        # (offset, sequence) of durable batches that may not be committed yet: sparse, the newest always there.
        self._marks: deque[tuple[int, int]] = deque()
        self._repeats: dict[tuple[str, int], list[tuple[Client, Slot]]] = {}
        self.reload()

    def reload(self) -> None:
        """Takes up what the log says: at first, and after its recovery has found out what became of the batches in flight."""
        log = self.lane.log
        state = log.sources.get(self.source)
        if state is not None and state.epoch != self.numbering.durable.epoch:
            self._forget_marks()
        self.numbering.abandon(state or SourceState(self.source))
        if state is not None and (not self._marks or self._marks[-1][1] < state.last_sequence):
            self._marks.append((log.synced_end - 1, state.last_sequence))

    @property
    def has_unpersisted(self) -> bool:
        return bool(self._marks)

    def admit(self, entry: Entry, client: Client, slot: Slot) -> None:
        self.numbering.admit(entry)
        self.lane.submit(Admitted(entry, self, client, slot))

    def repeat(self, epoch: str, sequence: int, client: Client, slot: Slot) -> None:
        """A repeat of a batch in flight is answered with it."""
        self._repeats.setdefault((epoch, sequence), []).append((client, slot))

    async def quiet(self) -> None:
        """Waits until nothing of the source is in flight: what its log says of it is all there is."""
        while self.numbering.in_flight:
            await self.lane.turn()

    def settle(self, admitted: Admitted, offset: int, state: SourceState) -> None:
        entry = admitted.entry
        if entry.epoch != self.numbering.durable.epoch:
            self._forget_marks()
        self.numbering.settle(state)
        self._mark(offset, entry.sequence)
        admitted.client.settled(admitted.slot, entry, repeated=False)
        for client, slot in self._repeats.pop((entry.epoch, entry.sequence), ()):
            client.settled(slot, entry, repeated=True)

    def fail(self, admitted: Admitted, reason: Reason, message: str) -> None:
        """Nothing more is in flight: its lane fails everything that waits."""
        self.numbering.abandon()
        admitted.client.refused(admitted.slot, reason, message)
        for client, slot in self._repeats.pop((admitted.entry.epoch, admitted.entry.sequence), ()):
            client.refused(slot, reason, message)

    def note_committed(self, bound: int) -> None:
        """Everything of this source below offset `bound` is in committed snapshots."""
        before = self.persisted_sequence
        while self._marks and self._marks[0][0] < bound:
            self.persisted_sequence = self._marks.popleft()[1]
        if self.persisted_sequence > before and self.client is not None:
            self.client.persisted(self.persisted_sequence)

    def _mark(self, offset: int, sequence: int) -> None:
        if len(self._marks) >= _MARKS_MAX:  # A `persisted` ack is cumulative: it may come in coarser steps.
            self._marks = deque(list(self._marks)[1::2])
        self._marks.append((offset, sequence))

    def _forget_marks(self) -> None:
        """They belong to an epoch that is over."""
        self._marks.clear()
        self.persisted_sequence = -1
