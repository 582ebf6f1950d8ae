"""One connection's side of the protocol, without the connection: what may come when, and answers in order.

    GREETING ──connect──▶ STREAMING ──disconnect──▶ CLOSED

TRANSITIONS is the whole of it; what is absent is illegal, is nacked and closes the connection.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from dolake.cdc import validation
from dolake.cdc.answer import Ack, Answer, Nack
from dolake.cdc.message import CdcBatch, Message, SchemaMessage
from dolake.cdc.wire import Connect, Disconnect, FlushRequest, Heartbeat
from dolake.errors import InvalidMessage

TOO_LARGE_MAX = 3  # The third message above a limit closes the connection.


class State(enum.Enum):
    GREETING = "greeting"
    STREAMING = "streaming"
    CLOSED = "closed"


class CloseCode(enum.IntEnum):
    """Why the server closes a connection."""

    NORMAL = 1000
    GOING_AWAY = 1001
    PROTOCOL_ERROR = 1002
    POLICY = 1008
    INTERNAL_ERROR = 1011
    TRY_AGAIN_LATER = 1013
    TAKEN_OVER = 4409


TRANSITIONS: dict[tuple[State, type[Message]], State] = {
    (State.GREETING, Connect): State.STREAMING,
    (State.GREETING, Disconnect): State.CLOSED,
    (State.STREAMING, CdcBatch): State.STREAMING,
    (State.STREAMING, SchemaMessage): State.STREAMING,
    (State.STREAMING, Heartbeat): State.STREAMING,
    (State.STREAMING, FlushRequest): State.STREAMING,
    (State.STREAMING, Disconnect): State.CLOSED,
}


@dataclass(eq=False)
class Slot:
    """The place of one batch's answer among the answers; filled when the answer is known."""

    sequence: int
    correlation_id: str | None = None
    received_s: float = 0.0
    answer: Ack | Nack | None = None


class OutOfTurn(InvalidMessage):
    """A message that may not come now: nack it and close."""


class Session:
    """One source's connection, without the connection. Every batch gets one answer, in order."""

    def __init__(self) -> None:
        self.state = State.GREETING
        self.source = ""
        self.epoch = ""
        self.ack_persisted = False
        self._begin = ("", -1)
        self._slots: deque[Slot] = deque()
        self._too_large_count = 0

    def accept(self, message: Message) -> None:
        """Moves on by a message. Raises OutOfTurn, and InvalidMessage for one in another source's name or of an unknown version."""
        after = TRANSITIONS.get((self.state, type(message)))
        sequence = message.sequence if isinstance(message, CdcBatch | SchemaMessage) else 0
        if after is None:
            rule = "comes after connect" if self.state is State.GREETING else "comes once, first"
            raise OutOfTurn([validation.mistake("type", _wire_name(message), rule)], sequence, correlation_id_of(message))
        if isinstance(message, Connect):
            self._greet(message)
        else:
            self._require_same_source(message, sequence)
        self.state = after

    def expect(self, slot: Slot) -> Slot:
        """Takes the next place among the answers."""
        self._slots.append(slot)
        return slot

    def answers(self) -> Iterator[Answer]:
        """The answers whose turn has come: filled, with none open before them."""
        while self._slots and self._slots[0].answer is not None:
            answer = self._slots.popleft().answer
            assert answer is not None
            yield answer

    @property
    def open_count(self) -> int:
        """Batches without an answer, or with one that waits its turn."""
        return len(self._slots)

    def count_too_large(self) -> bool:
        """Notes a message above a limit; True when it was one too many."""
        self._too_large_count += 1
        return self._too_large_count >= TOO_LARGE_MAX

    def begin_of(self, epoch: str, sequence: int) -> int:
        """The first number that came in an epoch by this connection, which `sequence` may be; of the newest epoch only."""
        if self._begin[1] < 0 or self._begin[0] != epoch:
            self._begin = (epoch, sequence)
        return self._begin[1]

    def epoch_of(self, message: CdcBatch | SchemaMessage) -> str:
        """A batch that names no epoch is in its connection's."""
        return self.epoch if message.epoch is None else message.epoch

    def _greet(self, connect: Connect) -> None:
        versions = validation.PROTOCOL_VERSIONS
        if connect.protocol_version not in versions:
            rule = "is one of the supported versions: " + ", ".join(map(str, versions))
            mistake = validation.mistake("protocolVersion", connect.protocol_version, rule)
            raise OutOfTurn([mistake], 0, correlation_id_of(connect))
        self.source, self.epoch, self.ack_persisted = connect.source_do_id, connect.epoch, connect.ack_persisted

    def _require_same_source(self, message: CdcBatch | SchemaMessage | Heartbeat | FlushRequest | Disconnect, sequence: int) -> None:
        named = message.source if isinstance(message, CdcBatch | SchemaMessage) else message.source_do_id
        if isinstance(named, str) and self.source and named != self.source:
            mistake = validation.mistake("sourceDoId", named, f"is the source that connected, {validation.shown(self.source)}")
            raise InvalidMessage([mistake], sequence, correlation_id_of(message))


def correlation_id_of(message: Message) -> str | None:
    return message.correlation_id if isinstance(message.correlation_id, str) else None


def _wire_name(message: Message) -> str:
    if isinstance(message, CdcBatch | SchemaMessage):
        return "cdc_batch" if isinstance(message, CdcBatch) else "schema"
    return str(type(message).__struct_config__.tag)
