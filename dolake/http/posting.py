"""`POST /cdc` in the http process: takes a body in, within bounds, and hands it to the ingest half, which answers.

Nothing is judged here but what can be told without reading the body: who sends it (a page in a browser may not), what it
claims to be, how large it is. All of it, or nothing: a client that goes away in mid-body has sent nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import zstandard
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from dolake.auth.gate import Gate
from dolake.cdc.answer import Nack, Reason, encode_answer, invalid, nack
from dolake.cdc.posted import http_status
from dolake.cdc.relay import Meta, RelayClient
from dolake.clock import Runtime
from dolake.errors import DaemonUnreachable, DolakeError, Forbidden, InvalidMessage, Mistake, Unauthorized
from dolake.metrics import Metrics

BODY_PAYLOADS_MAX = 4  # A body above this many times the payload limit is not read to its end.
_PIECE_BYTES = 256 * 1024
_LINGER_S_MAX = 1.0
_MEDIA_TYPE = "application/json"
_ENCODINGS = ("gzip", "zstd")
_RETRY_SOON = {"Retry-After": "1"}


@dataclass(frozen=True)
class PostPolicy:
    """Bounds of one process. `bodies_bytes_max` is for all bodies under way together."""

    payload_bytes_max: int
    bodies_bytes_max: int
    body_s_max: float = 60.0


class _Refused(DolakeError):
    """Answered from here, with what there is of the body unread."""

    def __init__(self, answer: Nack, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(answer.error_message)
        self.answer, self.headers = answer, dict(headers or {})


class _Room:
    """What the bodies under way may take together."""

    def __init__(self, bytes_max: int) -> None:
        self.free_bytes = bytes_max


class _Held:
    """What one request's body takes of it."""

    def __init__(self, room: _Room) -> None:
        self._room, self._size_bytes = room, 0

    def take(self, size_bytes: int) -> None:
        """Raises _Refused if there is no room."""
        if size_bytes > self._room.free_bytes:
            raise _Refused(nack(Reason.BUFFER_FULL, 0, "too many bodies are under way at once", retry_delay_ms=1000), _RETRY_SOON)
        self._room.free_bytes -= size_bytes
        self._size_bytes += size_bytes

    def give_back(self) -> None:
        self._room.free_bytes += self._size_bytes
        self._size_bytes = 0


class Posting:
    """The endpoint. `metrics` counts the nacks that are given here; the ingest half counts its own."""

    def __init__(self, relay: RelayClient, runtime: Runtime, gate: Gate, metrics: Metrics, policy: PostPolicy) -> None:
        self._relay, self._runtime, self._gate, self._metrics, self._policy = relay, runtime, gate, metrics, policy
        self._room = _Room(policy.bodies_bytes_max)

    async def post(self, request: Request) -> Response:
        held = _Held(self._room)
        try:
            encoding = self._checked(request)
            body = await self._read(request, held)
            if encoding:
                body = await self._runtime.tasks.run(_unpacked, body, encoding, self._policy.payload_bytes_max)
            said, answer = await self._relay.ask(_meta_of(request), body)
        except _Refused as refused:
            self._metrics.add("dolake_cdc_nacks_total", reason=refused.answer.reason)
            return _Unread(refused.answer, refused.headers)
        except DaemonUnreachable as error:
            answered = nack(Reason.DEGRADED, 0, f"{error}; send it again", retry_delay_ms=1000)
            self._metrics.add("dolake_cdc_nacks_total", reason=answered.reason)
            return _response(encode_answer(answered), http_status(answered), _RETRY_SOON)
        except ClientDisconnect:
            return Response(status_code=400)  # Nobody is there to read it.
        finally:
            held.give_back()
        return _response(answer, said["status"], said["headers"])

    def _checked(self, request: Request) -> str:
        """The body's encoding, empty if it has none. Raises _Refused for what its headers rule out."""
        headers = request.headers
        if "origin" in headers:
            raise _Refused(nack(Reason.FORBIDDEN, 0, "not for browsers: a page may not write here"))
        self._require_sender(request)
        media_type = headers.get("content-type", _MEDIA_TYPE)
        if media_type.partition(";")[0].strip().lower() != _MEDIA_TYPE:
            raise _wrong("Content-Type", media_type, f"is {_MEDIA_TYPE}, or left out")
        encoding = headers.get("content-encoding", "identity").strip().lower()
        if encoding not in ("identity", *_ENCODINGS):
            raise _wrong("Content-Encoding", encoding, "is one of " + ", ".join(_ENCODINGS) + ", or left out")
        self._require_readable(int(headers.get("content-length", 0)))
        return "" if encoding == "identity" else encoding

    def _require_sender(self, request: Request) -> None:
        """The ingest half decides, for its tokens are those that count; but nobody's body is read who has none."""
        try:
            self._gate.identify(request.headers.getlist("authorization"), request.url.query).require_sender()
        except Unauthorized as error:
            raise _Refused(nack(Reason.UNAUTHORIZED, 0, str(error)), {"WWW-Authenticate": error.challenge}) from None
        except Forbidden as error:
            raise _Refused(nack(Reason.FORBIDDEN, 0, str(error))) from None

    def _require_readable(self, size_bytes: int) -> None:
        limit = self._policy.payload_bytes_max
        if size_bytes > BODY_PAYLOADS_MAX * limit:
            text = f"the message holds at most {limit} bytes (got {size_bytes} or more)"
            raise _Refused(nack(Reason.PAYLOAD_TOO_LARGE, 0, text, max_size=limit, actual_size=size_bytes))

    async def _read(self, request: Request, held: _Held) -> bytes:
        """The whole body. Raises _Refused, ClientDisconnect."""
        pieces: list[bytes] = []
        size_bytes = 0
        try:
            async with asyncio.timeout(self._policy.body_s_max):
                async for piece in request.stream():
                    size_bytes += len(piece)
                    self._require_readable(size_bytes)
                    held.take(len(piece))
                    pieces.append(piece)
        except TimeoutError:
            text = f"the body did not come within {self._policy.body_s_max:g} s ({size_bytes} bytes did); send smaller batches"
            raise _Refused(nack(Reason.INTERNAL_ERROR, 0, text, retry_delay_ms=1000), _RETRY_SOON) from None
        return b"".join(pieces)


class _Unread(Response):
    """An answer to a request that is not read to its end: the connection closes behind it.

    What still comes is read for a moment and thrown away: closed at once, the system would reset the connection, and the
    client lose the answer before it had finished sending.
    """

    def __init__(self, answer: Nack, headers: Mapping[str, str]) -> None:
        super().__init__(encode_answer(answer), http_status(answer), {**headers, "Connection": "close"}, _MEDIA_TYPE)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": self.body, "more_body": True})
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LINGER_S_MAX):
                while (message := await receive())["type"] == "http.request" and message.get("more_body"):
                    pass
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def _response(answer: bytes, status: int, headers: Mapping[str, str]) -> Response:
    return Response(answer, status, headers, _MEDIA_TYPE)


def _wrong(field: str, value: str, rule: str) -> _Refused:
    return _Refused(invalid(InvalidMessage([Mistake(field, repr(value[:256]), rule)])))


def _meta_of(request: Request) -> Meta:
    """What the ingest half must know beside the body: by whom it was sent."""
    return {
        "authorization": request.headers.getlist("authorization"),
        "query": request.url.query,
    }


def _unpacked(body: bytes, encoding: str, limit: int) -> bytes:
    """The body without its encoding. Raises _Refused above `limit` bytes, with no more than that ever in memory."""
    pieces: list[bytes] = []
    size_bytes = 0
    try:
        for piece in _gunzipped(body) if encoding == "gzip" else _unzstd(body):
            pieces.append(piece)
            size_bytes += len(piece)
            if size_bytes > limit:
                text = f"the message holds at most {limit} bytes (got more, once unpacked)"
                raise _Refused(nack(Reason.PAYLOAD_TOO_LARGE, 0, text, max_size=limit))
    except (zlib.error, zstandard.ZstdError, EOFError):
        raise _wrong("Content-Encoding", encoding, "is what the body is packed with") from None
    return b"".join(pieces)


def _gunzipped(body: bytes) -> Iterator[bytes]:
    rest = body
    while rest:  # A gzip file may consist of several.
        unpacker = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)
        while not unpacker.eof:
            piece = unpacker.decompress(rest, _PIECE_BYTES)
            rest = unpacker.unconsumed_tail
            if not piece and not rest and not unpacker.eof:
                raise EOFError
            yield piece
        rest = unpacker.unused_data


def _unzstd(body: bytes) -> Iterator[bytes]:
    unpacker = zstandard.ZstdDecompressor(max_window_size=8 << 20).stream_reader(body, read_across_frames=True)
    while piece := unpacker.read(_PIECE_BYTES):
        yield piece
