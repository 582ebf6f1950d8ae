"""`POST /cdc` in the ingest half: one message, judged and answered as on the source's websocket, and beside it.

A request is a connection that lives for one message: the same desk, numbering, limits and pressure, but it takes nothing
over, and nobody's answers wait behind its own. What a connection remembers from one message to the next is kept by source.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dolake.cdc import message as wire
from dolake.cdc.answer import Ack, Answer, Nack, Reason, encode_answer, invalid
from dolake.cdc.posted import explain_posted, http_status, retry_after_s, try_decode_posted
from dolake.cdc.relay import Meta
from dolake.cdc.session import Slot
from dolake.errors import DolakeError
from dolake.ingest.connection import Connection

if TYPE_CHECKING:
    from dolake.ingest.service import IngestService


@dataclass
class _Memory:
    """What one source's posts have in common: the batch that was refused last, and how often it came back."""

    refused_first: int = -1
    refused_again: int = 0


class PostDesk:
    """Takes what the http process relays: `meta` is what the request says beside its body."""

    def __init__(self, service: IngestService) -> None:
        self._service = service
        self._memories: dict[str, _Memory] = {}

    async def answer(self, meta: Meta, body: bytes) -> tuple[Meta, bytes]:
        """The ack or nack of one body, and `status` and `retryAfterS`: what it is in HTTP."""
        answer = await _Posted(self._service, self._memories).judge(body)
        said: Meta = {"status": http_status(answer)}
        if (seconds := retry_after_s(answer)) is not None:
            said["retryAfterS"] = seconds
        return said, encode_answer(answer)


class _Posted(Connection):
    """A connection for one message."""

    def __init__(self, service: IngestService, memories: dict[str, _Memory]) -> None:
        super().__init__(service, send=lambda frame: None, close=lambda code, reason: None)
        self._memories = memories
        self._answered: asyncio.Future[Ack | Nack] = asyncio.get_running_loop().create_future()

    async def judge(self, body: bytes) -> Ack | Nack:
        clock = self._service.runtime.clock
        received_s = clock.monotonic_s()
        self._service.metrics.add("dolake_cdc_received_bytes_total", len(body))
        limit = self._service.limits.max_payload_bytes
        if len(body) > limit:
            self._refuse_too_large(Slot(*wire.identity_of(body)), Reason.PAYLOAD_TOO_LARGE, "the message", limit, len(body))
            return await self._answered
        message = try_decode_posted(body, clock.now_ms())
        if message is None:
            error = await self._service.runtime.tasks.run(explain_posted, body)
            self._answer(Slot(error.sequence), invalid(error))
            return await self._answered
        memory = self._memories.get(message.source, _Memory())
        self._refused_first, self._refused_again = memory.refused_first, memory.refused_again
        slot = Slot(message.sequence, message.correlation_id, received_s)
        try:
            self.desk = self._service.desk(message.source)
        except DolakeError as error:
            self._answer(slot, self._refusal(slot, Reason.DEGRADED, str(error)))
        else:
            await self._take_batch(message, slot)
        answer = await self._answered
        self._remember(message.source)
        return answer

    def send(self, answer: Answer) -> None:
        super().send(answer)
        if isinstance(answer, Ack | Nack) and not self._answered.done():
            self._answered.set_result(answer)

    def _remember(self, source: str) -> None:
        if self._refused_first < 0:
            self._memories.pop(source, None)
        else:
            self._memories[source] = _Memory(self._refused_first, self._refused_again)
