"""`POST /cdc` in the ingest half: one message, judged and answered as on the source's websocket, and beside it.

A request is a connection that lives for one message: the same desk, numbering, limits and pressure, but it takes nothing
over, and nobody's answers wait behind its own. What a connection remembers from one message to the next is kept by source.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dolake.auth.principal import Principal
from dolake.cdc import message as wire
from dolake.cdc.answer import Ack, Answer, Nack, Reason, encode_answer, invalid, nack
from dolake.cdc.message import CdcBatch, SchemaMessage
from dolake.cdc.posted import explain_posted, http_status, retry_after_s, try_decode_posted
from dolake.cdc.rates import Rates
from dolake.cdc.relay import Meta
from dolake.cdc.session import Slot
from dolake.errors import DolakeError, Forbidden, Unauthorized
from dolake.ingest.connection import Connection

if TYPE_CHECKING:
    from dolake.ingest.service import IngestService


@dataclass
class _Memory:
    """What one source's posts have in common: how fast they may come, the batch that was refused last, how often it came back."""

    rates: Rates
    refused_first: int = -1
    refused_again: int = 0


class PostDesk:
    """Takes what the http process relays. `meta` says who sends it: `authorization` (a list) and `query`, as in the request."""

    def __init__(self, service: IngestService) -> None:
        self._service = service
        self._memories: dict[str, _Memory] = {}

    async def answer(self, meta: Meta, body: bytes) -> tuple[Meta, bytes]:
        """The ack or nack of one body; `status` and `headers` say what it is in HTTP."""
        headers: dict[str, str] = {}
        try:
            principal = self._service.gate.identify(meta["authorization"], meta["query"])
        except Unauthorized as error:
            sequence, correlation_id = wire.identity_of(body)
            answer: Ack | Nack = nack(Reason.UNAUTHORIZED, sequence, str(error), correlation_id)
            self._service.metrics.add("dolake_cdc_nacks_total", reason=Reason.UNAUTHORIZED)
            headers["WWW-Authenticate"] = error.challenge
        else:
            answer = await _Posted(self._service, principal, self._memories).judge(body)
        if (seconds := retry_after_s(answer)) is not None:
            headers["Retry-After"] = str(seconds)
        return {"status": http_status(answer), "headers": headers}, encode_answer(answer)


class _Posted(Connection):
    """A connection for one message."""

    def __init__(self, service: IngestService, principal: Principal, memories: dict[str, _Memory]) -> None:
        super().__init__(service, send=lambda frame: None, close=lambda code, reason: None, principal=principal)
        self._memories = memories
        self._answered: asyncio.Future[Ack | Nack] = asyncio.get_running_loop().create_future()

    async def judge(self, body: bytes) -> Ack | Nack:
        clock = self._service.runtime.clock
        received_s = clock.monotonic_s()
        self._service.metrics.add("dolake_cdc_received_bytes_total", len(body))
        limit = self._service.limits.max_payload_bytes
        if len(body) > limit:
            self._refuse_too_large(Slot(*wire.identity_of(body)), Reason.PAYLOAD_TOO_LARGE, "the message", limit, len(body))
        elif (message := try_decode_posted(body, clock.now_ms())) is not None:
            await self._take_posted(message, Slot(message.sequence, message.correlation_id, received_s))
        else:
            error = await self._service.runtime.tasks.run(explain_posted, body)
            self._answer(Slot(error.sequence), invalid(error))
        return await self._answered

    def send(self, answer: Answer) -> None:
        super().send(answer)
        if isinstance(answer, Ack | Nack) and not self._answered.done():
            self._answered.set_result(answer)

    async def _take_posted(self, message: CdcBatch | SchemaMessage, slot: Slot) -> None:
        """What a websocket asks of its connect, then of each batch, and the batch."""
        try:
            self._principal.require_source(message.source)
            self.desk = self._service.desk(message.source)
        except Forbidden as error:
            self._answer(slot, nack(Reason.FORBIDDEN, slot.sequence, str(error), slot.correlation_id))
            return
        except DolakeError as error:
            self._answer(slot, self._refusal(slot, Reason.DEGRADED, str(error)))
            return
        memory = self._memories.setdefault(message.source, _Memory(self._rates))
        self._rates, self._refused_first, self._refused_again = memory.rates, memory.refused_first, memory.refused_again
        messages = memory.rates.messages
        if messages.take(1, slot.received_s):
            await self._take_batch(message, slot)
            await self._answered
        else:
            text = f"this source may post {messages.per_s} messages a second"
            self._answer(slot, self._refusal(slot, Reason.RATE_LIMITED, text, messages))
        memory.refused_first, memory.refused_again = self._refused_first, self._refused_again
