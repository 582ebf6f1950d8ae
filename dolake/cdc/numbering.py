"""One source's numbering: what is durable, what is on its way into the log, and what a batch that arrives is, then (I3).

Pure. Batches that were admitted but are not durable yet count for what comes next, and never for what is acked.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from dolake.model import RECENT_CONTENTS, Entry, SourceState, epoch_hash


@dataclass(frozen=True)
class New:
    """The next batch: append it."""


@dataclass(frozen=True)
class Repeat:
    """Here already. `in_flight`: admitted, but an ack must wait until it is durable."""

    in_flight: bool


@dataclass(frozen=True)
class Gap:
    """Batches before this one are missing."""

    expected: int


@dataclass(frozen=True)
class Refused:
    """Must never be appended, whenever it is sent again: another life's, or another batch under a used number."""

    rule: str


Verdict = New | Repeat | Gap | Refused


class Numbering:
    """`durable` is what the source's log says; `in_flight` what was admitted since, oldest first."""

    def __init__(self, durable: SourceState) -> None:
        self.durable = durable
        self.in_flight: deque[Entry] = deque()

    @property
    def epoch(self) -> str:
        return self.in_flight[-1].epoch if self.in_flight else self.durable.epoch

    @property
    def last_sequence(self) -> int:
        """The highest admitted; -1 before the first of all."""
        return self.in_flight[-1].sequence if self.in_flight else self.durable.last_sequence

    def judge(self, epoch: str, sequence: int, content: int, begin: int | None = None) -> Verdict:
        """`begin`: the first number that came in this epoch by this connection, None if any may begin it.

        A source never seen, or in a new epoch, may begin with any sequence, but not behind one that was refused: the batches
        that were sent after it would be taken for the beginning, and it for a repeat of what is nowhere.
        """
        last = self.last_sequence
        if last >= 0 and epoch != self.epoch and self.is_over(epoch):
            return Refused(f"epoch: `{epoch}` is over, the source goes on in `{self.epoch}`; start a new epoch")
        if last < 0 or epoch != self.epoch:
            return New() if begin is None or sequence == begin else Gap(expected=begin)
        if sequence == last + 1:
            return New()
        if sequence > last + 1:
            return Gap(expected=last + 1)
        waiting = next((entry for entry in self.in_flight if entry.sequence == sequence and entry.epoch == epoch), None)
        contents = self.durable.contents if epoch == self.durable.epoch else {}
        if waiting is None and sequence not in contents and len(contents) < RECENT_CONTENTS:
            # All that ever came in this epoch is remembered, and this is not among it: `duplicate` would be a lie.
            first = min([*contents, *(entry.sequence for entry in self.in_flight if entry.epoch == epoch)], default=last)
            return Refused(f"sequenceNumber: {sequence} is below {first}, with which this source's numbering began; start a new epoch")
        known = waiting.content if waiting else contents.get(sequence, content)
        if known != content:
            return Refused(f"sequenceNumber: {sequence} was used for other events before; continue from {last + 1} or start a new epoch")
        return Repeat(in_flight=waiting is not None)

    def is_over(self, epoch: str) -> bool:
        """Whether an epoch that is not the current one has been before."""
        if epoch == self.epoch:
            return False
        if any(entry.epoch == epoch for entry in self.in_flight) or (epoch == self.durable.epoch and self.durable.last_sequence >= 0):
            return True
        return epoch_hash(epoch) in self.durable.ended_epochs

    def admit(self, entry: Entry) -> None:
        self.in_flight.append(entry)

    def settle(self, durable: SourceState) -> Entry:
        """The oldest in flight is durable; `durable` is what the log says of the source by now, perhaps of later ones too."""
        self.durable = durable
        return self.in_flight.popleft()

    def abandon(self, durable: SourceState | None = None) -> None:
        """Nothing is in flight any more: it left no trace, or what became of it is in `durable` (recovery has looked)."""
        self.in_flight.clear()
        if durable is not None:
            self.durable = durable
