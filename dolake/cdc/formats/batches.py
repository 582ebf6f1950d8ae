"""Cuts a stream of items into batches of whole transactions. Decides only: items in, batches and schemas out.

A batch holds whole source transactions, up to its limits; a transaction larger than that spans batches of its own, which
carry its mark. A declaration goes out right before the batch with the first event that needs it, so a stream whose events
are all durable already sends nothing. It never overtakes events of its own table.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from dolake.cdc.formats import Declare, Event, Item
from dolake.errors import OtherStream
from dolake.model import DeclaredSchema, TransactionMark, lsn_number


@dataclass(frozen=True)
class EventBatch:
    """Events for one `cdc_batch`; `transaction` is set when it is a part of a larger transaction."""

    events: list[Event]
    transaction: TransactionMark | None = None

    @property
    def first_sequence(self) -> int:
        return self.events[0].sequence

    @property
    def last_sequence(self) -> int:
        return self.events[-1].sequence


class _Position(msgspec.Struct, gc=False):
    lsn: str | int | None = None


class _Placed(msgspec.Struct, gc=False):
    metadata: _Position | None = None


_PLACED = msgspec.json.Decoder(_Placed).decode


class Batcher:
    """Events numbered up to `resume_after` are durable already and are passed over, and counted in `skipped`.

    They are numbered by their place in the stream, so the stream has to be the one they came from: where events say their place
    in the database's own log, the last of them has to be at `resume_lsn`.

    `_whole` holds events of complete transactions, `_open` those of the one under way; `_spanning` says that a part of it
    has gone already, in this run or in the one before.
    """

    def __init__(self, *, event_count_max: int, size_bytes_max: int, resume_after: int = -1, resume_lsn: str = "") -> None:
        self.skipped = 0
        self._event_count_max = event_count_max
        self._size_bytes_max = size_bytes_max
        self._resume_after, self._resume_lsn = resume_after, resume_lsn
        self._passed_over: Event | None = None  # the last one
        self._declarations: dict[str, DeclaredSchema] = {}
        self._whole: list[Event] = []
        self._open: list[Event] = []
        self._size_bytes = 0
        self._spanning = False
        self._first_sequence: int | None = None  # of the transaction under way, sent or not
        self._out: list[EventBatch | DeclaredSchema] = []

    def push(self, item: Item) -> None:
        if isinstance(item, Event):
            self._event(item)
        elif isinstance(item, Declare):
            self._declarations[item.schema.table] = item.schema
        else:
            self._commit()

    def take(self) -> list[EventBatch | DeclaredSchema]:
        """What is ready to be sent, in order."""
        ready, self._out = self._out, []
        return ready

    def flush(self) -> None:
        """Makes the whole transactions at hand ready, though they do not fill a batch: the stream pauses, or is over."""
        if self._whole:
            self._out.append(EventBatch(self._whole))
            self._size_bytes -= sum(len(event.raw) for event in self._whole)
            self._whole = []

    @property
    def unfinished(self) -> list[Event]:
        """Events of a transaction whose end has not come."""
        return self._open

    def _event(self, event: Event) -> None:
        if self._first_sequence is None:
            self._first_sequence = event.sequence
        if event.sequence <= self._resume_after:
            self.skipped += 1
            self._passed_over = event
            if self._resume_lsn and event.sequence == self._resume_after and (lsn := lsn_of(event)) not in ("", self._resume_lsn):
                raise self._other_stream(lsn, f"which stands at {self._resume_lsn}")
            self._spanning = True  # Until its commit: what is left of this transaction is a later part of it.
            return
        if event.table in self._declarations:
            self._declare(event.table)
        size_bytes = self._size_bytes + len(event.raw) + 1
        if len(self._whole) + len(self._open) >= self._event_count_max or size_bytes > self._size_bytes_max:
            self.flush()
            size_bytes = self._size_bytes + len(event.raw) + 1
            if len(self._open) >= self._event_count_max or (self._open and size_bytes > self._size_bytes_max):
                self._part(last=False)
        self._open.append(event)
        self._size_bytes += len(event.raw)

    def require_same_stream(self) -> None:
        """The stream pauses, or is over: raises OtherStream where what was passed over so far is newer than all that is durable.

        (Events of transactions that overlap are not in the order of their places; their last one may be.)
        """
        last = self._passed_over
        if last is None or last.sequence >= self._resume_after or not self._resume_lsn:
            return
        there, known = lsn_number(lsn_of(last)), lsn_number(self._resume_lsn)
        if there is not None and known is not None and there > known:
            raise self._other_stream(lsn_of(last), f"and the last that is durable, event {self._resume_after}, at {self._resume_lsn}")

    def _other_stream(self, lsn: str, known: str) -> OtherStream:
        assert self._passed_over is not None
        return OtherStream(
            f"event {self._passed_over.sequence} of the input stands at {lsn}, {known}: this is not the stream that the source was "
            "sent so far. Send that from its beginning on; or send this one as the source's next life (--epoch NAME)"
        )

    def _declare(self, table: str) -> None:
        """Makes the waiting declaration of `table` ready, after what was declared differently and before its next event."""
        if any(event.table == table for event in self._open):
            self.flush()
            self._part(last=False)
        elif any(event.table == table for event in self._whole):
            self.flush()
        self._out.append(self._declarations.pop(table))

    def _commit(self) -> None:
        if self._open and self._spanning:
            self._part(last=True)
        elif self._open:
            self._whole += self._open
            self._open = []
            if len(self._whole) >= self._event_count_max:
                self.flush()
        self._spanning, self._first_sequence = False, None

    def _part(self, *, last: bool) -> None:
        """Makes the open transaction's events ready as one part of it."""
        name = self._open[0].transaction or f"event-{self._first_sequence}"  # Every part, in any run, has the same name.
        self._out.append(EventBatch(self._open, TransactionMark(name, last)))
        self._size_bytes -= sum(len(event.raw) for event in self._open)
        self._open = []
        self._spanning = True


def lsn_of(event: Event) -> str:
    """Its place in the database's own log; empty where it says none."""
    metadata = _PLACED(event.raw).metadata
    return "" if metadata is None or metadata.lsn is None else str(metadata.lsn)
