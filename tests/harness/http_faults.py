"""A proxy that understands HTTP/1.1, and breaks requests by method and path: in front of an object store, or of the daemon's HTTP port."""

from __future__ import annotations

import asyncio
import dataclasses
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tests.harness.fault_proxy import TcpProxy
from tests.harness.faults import Installed
from tests.harness.links import Link

_CHECKSUM = re.compile(rb'(?im)^(etag|x-amz-checksum-[a-z0-9]+|content-md5)(: *"?)([^\r\n])')


@dataclass(frozen=True)
class Message:
    """A request or an answer. `raw` is its body as it is sent, `body` without the framing of chunks."""

    head: bytes
    raw: bytes
    body: bytes

    @property
    def first_line(self) -> list[str]:
        return self.head.split(b"\r\n", 1)[0].decode("latin-1").split(" ", 2)

    def header(self, name: str) -> str:
        """Empty if there is none."""
        found = re.search(rb"(?im)^" + re.escape(name.encode()) + rb": *([^\r\n]*)", self.head)
        return found[1].decode("latin-1").strip() if found else ""

    @property
    def data(self) -> bytes:
        return self.head + self.raw

    def with_body(self, body: bytes) -> Message:
        """The same with another body, of which the head says the true length."""
        head = re.sub(rb"(?im)^(content-length|transfer-encoding):[^\n]*\n", b"", self.head)
        return Message(head[:-2] + b"Content-Length: %d\r\n\r\n" % len(body), body, body)


@dataclass(frozen=True)
class Request(Message):
    """`number` counts the proxy's requests from 1."""

    connection: int
    number: int

    @property
    def method(self) -> str:
        return self.first_line[0]

    @property
    def path(self) -> str:
        """With its query."""
        return self.first_line[1]


def requests(method: str = "", path: str = "") -> Callable[[Any], bool]:
    """Hits requests of this method (any) whose path matches this regular expression somewhere."""
    return lambda moment: isinstance(moment, Request) and method in ("", moment.method) and re.search(path, moment.path) is not None


class HttpProxy(TcpProxy):
    """Forwards requests, one after another on each connection.

    Faults by request: `status` (`status`, and `code` as S3 says it; it is not forwarded), `reset_before`, `hold_request`, `late`
    (504 now, forwarded after `seconds` or when removed), `twice` (the client gets the second answer), `flip_request` (one bit of
    its body); by its answer: `lose_answer` (the request passes, then the connection is reset), `hold_answer`, `truncate` (half of
    it, or `size_bytes`, then a reset), `truncate_clean` (the same, of a length that agrees), `flip_answer`, `wrong_checksum`.
    """

    REQUEST_KINDS = ("status", "reset_before", "hold_request", "late", "twice", "flip_request")
    ANSWER_KINDS = ("lose_answer", "hold_answer", "truncate", "truncate_clean", "flip_answer", "wrong_checksum")
    KINDS = TcpProxy.KINDS | {*REQUEST_KINDS, *ANSWER_KINDS}

    def __init__(self, port: int, *, seed: int = 0) -> None:
        super().__init__(port, seed=seed)
        self.request_count = 0
        self.requests: list[tuple[str, str]] = []  # (method, path) of each
        self.late_statuses: list[int] = []  # what the target answered to requests that were forwarded late

    async def _carry(self, link: Link, client: asyncio.StreamReader, target: asyncio.StreamReader) -> None:
        """Until the client has asked its last, or the target has closed."""
        while (message := await self._next_request(link, client, target)) is not None:
            self.request_count += 1
            request = Request(**_fields(message), connection=link.number, number=self.request_count)
            self.requests.append((request.method, request.path))
            await self._serve_request(link, request, target)
        await link.up.end()
        await link.down.end()

    async def _next_request(self, link: Link, client: asyncio.StreamReader, target: asyncio.StreamReader) -> Message | None:
        """None when the client or, while nothing is asked, the target has ended the connection."""
        asked = self._loop.create_task(read_head(client))
        closed = self._loop.create_task(target.read(1))  # Nothing but an end comes unasked.
        try:
            await asyncio.wait((asked, closed), return_when=asyncio.FIRST_COMPLETED)
            if not asked.done():
                return None
            head = asked.result()
            if not head:
                return None
            if re.search(rb"(?im)^expect: *100-continue", head):  # Answered here: the body is wanted before anything is decided.
                head = re.sub(rb"(?im)^expect:[^\n]*\n", b"", head)
                await link.down.put(b"HTTP/1.1 100 Continue\r\n\r\n")
            return await read_body(head, client, until_end=False)
        finally:
            for task in (asked, closed):
                task.cancel()
            await asyncio.gather(asked, closed, return_exceptions=True)

    async def _serve_request(self, link: Link, request: Request, target: asyncio.StreamReader) -> None:
        fault = self.faults.biting(request, *self.REQUEST_KINDS)
        kind = fault.fault.kind if fault else ""
        if fault is not None and kind in ("status", "late"):
            if kind == "late":
                self._spawn(self._forward_late(request, fault))
            await link.down.put(_refusal(request, fault))
            return
        if kind == "reset_before":
            link.abort()
            return
        if fault is not None and kind == "hold_request":
            await fault.hold()
        if kind == "flip_request":
            request = dataclasses.replace(request, raw=_flipped(request.raw))
        answer = await self._ask(link, request, target)
        if kind == "twice":
            answer = await self._ask(link, request, target)
        await self._answer(link, request, answer)

    async def _ask(self, link: Link, request: Message, target: asyncio.StreamReader) -> Message:
        await link.up.put(request.data)
        return await read_answer(request, target)

    async def _answer(self, link: Link, request: Request, answer: Message) -> None:
        fault = self.faults.biting(request, *self.ANSWER_KINDS)
        kind = fault.fault.kind if fault else ""
        if fault is not None and kind == "hold_answer":
            await fault.hold()
        elif fault is not None and kind in ("truncate", "truncate_clean"):
            kept = answer.body[: fault.fault.size_bytes or len(answer.body) // 2]
            if kind == "truncate_clean":
                answer = answer.with_body(kept)
            else:
                whole = answer.with_body(answer.body)
                answer = Message(whole.head, kept, kept)
        elif kind == "flip_answer":
            answer = answer.with_body(_flipped(answer.body))
        elif kind == "wrong_checksum":
            answer = dataclasses.replace(answer, head=_CHECKSUM.sub(_other_first, answer.head))
        if kind != "lose_answer":
            await link.down.put(answer.data)
        if kind in ("lose_answer", "truncate"):
            await link.down.flush()
            link.abort()

    async def _forward_late(self, request: Request, fault: Installed) -> None:
        """On a connection of its own; nobody hears the answer."""
        await fault.hold()
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", self.target_port)
        except OSError:
            self.late_statuses.append(0)
            return
        try:
            writer.write(request.data)
            await writer.drain()
            self.late_statuses.append(int((await read_answer(request, reader)).first_line[1]))
        except (OSError, EOFError):
            self.late_statuses.append(0)
        finally:
            writer.close()


async def read_head(reader: asyncio.StreamReader) -> bytes:
    """Through the empty line; empty if nothing more comes."""
    try:
        return await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError as error:
        if error.partial:
            raise
        return b""


async def read_answer(request: Message, reader: asyncio.StreamReader) -> Message:
    """The answer proper, without interim ones before it. Raises EOFError if none comes."""
    while True:
        head = await read_head(reader)
        if not head:
            raise EOFError
        status = head.split(b" ", 2)[1]
        if status.startswith(b"1"):
            continue
        if request.first_line[0] == "HEAD" or status in (b"204", b"304"):
            return Message(head, b"", b"")
        return await read_body(head, reader, until_end=True)


async def read_body(head: bytes, reader: asyncio.StreamReader, *, until_end: bool) -> Message:
    """A whole message. `until_end`: without a length it goes on to the end of the connection."""
    message = Message(head, b"", b"")
    if "chunked" in message.header("Transfer-Encoding").lower():
        raw, body = bytearray(), bytearray()
        while True:
            line = await reader.readuntil(b"\r\n")
            size = int(line.split(b";")[0], 16)
            raw += line
            if not size:
                break
            chunk = await reader.readexactly(size + 2)
            raw += chunk
            body += chunk[:-2]
        while line != b"\r\n":  # Trailers, up to the empty line.
            line = await reader.readuntil(b"\r\n")
            raw += line
        return Message(head, bytes(raw), bytes(body))
    length = message.header("Content-Length")
    body_bytes = await reader.readexactly(int(length)) if length else await reader.read() if until_end else b""
    return Message(head, body_bytes, body_bytes)


def _fields(message: Message) -> dict[str, bytes]:
    return {"head": message.head, "raw": message.raw, "body": message.body}


def _refusal(request: Request, fault: Installed) -> bytes:
    status = 504 if fault.fault.kind == "late" else fault.fault.status
    code = fault.fault.code or "InternalError"
    body = f'<?xml version="1.0"?><Error><Code>{code}</Code><Message>as a test asked</Message></Error>'.encode()
    head = f"HTTP/1.1 {status} {code}\r\nContent-Type: application/xml\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    return head if request.method == "HEAD" else head + body


def _flipped(body: bytes) -> bytes:
    """With the lowest bit of its middle byte changed."""
    changed = bytearray(body)
    if changed:
        changed[len(changed) // 2] ^= 1
    return bytes(changed)


def _other_first(found: re.Match[bytes]) -> bytes:
    return found[1] + found[2] + (b"1" if found[3] != b"1" else b"2")
