"""A proxy that understands websocket frames, and breaks a conversation at a message of the protocol's own: after the n-th ack."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from tests.harness.fault_proxy import TcpProxy
from tests.harness.http_faults import read_head
from tests.harness.links import Link, Way

_TEXT, _BINARY = 1, 2
_CONTROL = {8: "close", 9: "ping", 10: "pong"}


@dataclass(frozen=True)
class Frame:
    """One frame as it was sent (`data`, masked) and as it was meant (`payload`). `number` counts its direction's from 1."""

    connection: int
    direction: str
    number: int
    data: bytes
    opcode: int
    payload: bytes

    @cached_property
    def message(self) -> dict[str, Any]:
        """What it says; empty for a control frame, a part of a message, and what is no JSON object."""
        if self.opcode not in (_TEXT, _BINARY) or not self.data[0] & 0x80:
            return {}
        try:
            content = json.loads(self.payload)
        except ValueError:
            return {}
        return content if isinstance(content, dict) else {}

    @property
    def kind(self) -> str:
        """The message's `type`, or the name of a control frame; empty for anything else."""
        return _CONTROL.get(self.opcode) or str(self.message.get("type", ""))


def frames(direction: str = "", kind: str = "", **fields: Any) -> Callable[[Any], bool]:
    """Hits frames of this direction (any) and of this kind (any frame at all) whose message has these fields."""

    def hits(moment: Any) -> bool:
        if not isinstance(moment, Frame) or direction not in ("", moment.direction):
            return False
        if kind not in ("", moment.kind):
            return False
        return all(moment.message.get(name) == value for name, value in fields.items())

    return hits


class WebsocketProxy(TcpProxy):
    """Forwards a handshake and then frames.

    Faults by frame: `cut` (it passes, then both sides are reset), `cut_before` (it does not pass), `lose`, `stall` (it is held, and
    all behind it), `duplicate`, `reorder` (it passes after the next one of its direction).
    """

    FRAME_KINDS = ("cut", "cut_before", "lose", "stall", "duplicate", "reorder")
    KINDS = TcpProxy.KINDS | {*FRAME_KINDS}

    def __init__(self, port: int, *, seed: int = 0) -> None:
        super().__init__(port, seed=seed)
        self.seen: Counter[str] = Counter()  # frames that came to the proxy, by kind, whatever became of them

    async def _carry(self, link: Link, client: asyncio.StreamReader, target: asyncio.StreamReader) -> None:
        await link.up.put(await read_head(client))
        answer = await read_head(target)
        await link.down.put(answer)
        carry = self._carry_frames if answer.split(b" ", 2)[1:2] == [b"101"] else self._copy
        await self._together(carry(client, link.up), carry(target, link.down))

    async def _carry_frames(self, reader: asyncio.StreamReader, way: Way) -> None:
        number, overtaken = 0, b""
        try:
            while (parsed := await read_frame(reader)) is not None:
                number += 1
                frame = Frame(way.link.number, way.direction, number, *parsed)
                self.seen[frame.kind] += 1
                fault = self.faults.biting(frame, *self.FRAME_KINDS)
                kind = fault.fault.kind if fault else ""
                if fault is not None and kind == "stall":
                    await fault.hold()
                if kind == "reorder" and not overtaken:
                    overtaken = frame.data
                    continue
                if kind not in ("lose", "cut_before"):
                    await way.put(frame.data * (2 if kind == "duplicate" else 1) + overtaken)
                    overtaken = b""
                if kind in ("cut", "cut_before"):
                    await way.flush()
                    way.link.abort()
                    return
            await way.end()
        except ConnectionError:
            await way.end(with_reset=True)


async def read_frame(reader: asyncio.StreamReader) -> tuple[bytes, int, bytes] | None:
    """A frame's bytes, its opcode and its unmasked payload; None at the end. RFC 6455 section 5.2."""
    try:
        head = await reader.readexactly(2)
    except asyncio.IncompleteReadError:
        return None
    size = head[1] & 0x7F
    more = await reader.readexactly({126: 2, 127: 8}.get(size, 0))
    size = int.from_bytes(more) if more else size
    mask = await reader.readexactly(4) if head[1] & 0x80 else b""
    payload = await reader.readexactly(size)
    return head + more + mask + payload, head[0] & 0x0F, unmasked(payload, mask) if mask else payload


def unmasked(payload: bytes, mask: bytes) -> bytes:
    key = (mask * (len(payload) // 4 + 1))[: len(payload)]
    return (int.from_bytes(payload) ^ int.from_bytes(key)).to_bytes(len(payload))
