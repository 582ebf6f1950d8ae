"""How a producer reaches a daemon: the door to the network on the client's side, and its websocket."""

from __future__ import annotations

import re
import ssl
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Any, Protocol

import msgspec
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidMessage, InvalidStatus, InvalidURI

from dolake.auth.tls import client_context, refusal_of
from dolake.auth.tokens import without_tokens
from dolake.errors import CertificateRefused, ConfigurationError, Forbidden, Mistake, Unauthorized

DIAL_S_MAX = 10.0
RETRY_AFTER_S_MAX = 60.0
_WORDS_BYTES_MAX = 2_000


class TransportClosed(Exception):
    """The connection is over, or never came about. `code` is the websocket's, 1006 where there was none."""

    def __init__(self, code: int, reason: str, retry_after_s: float = 0.0, *, answered: bool = False) -> None:
        """`answered`: a daemon is there, and wants to be asked again later: not before `retry_after_s`."""
        super().__init__(f"{code} {reason}".strip())
        self.code, self.reason, self.retry_after_s, self.answered = code, reason, retry_after_s, answered


class Transport(Protocol):
    """One connection. Both directions raise TransportClosed when it is over."""

    async def send(self, frame: bytes) -> None: ...

    async def receive(self) -> bytes: ...

    async def close(self) -> None: ...


Dial = Callable[[str], Awaitable[Transport]]


def websocket_dial(token: str | None = None, tls: ssl.SSLContext | None = None) -> Dial:
    """How a producer with this token connects; over `wss` it trusts and shows what `tls` says, or trusts what the system does.

    The dial raises TransportClosed if nobody answers (it may be tried again), ConfigurationError for an `url` that is none or a
    token that cannot be one, CertificateRefused, and Unauthorized or Forbidden in the daemon's own words.
    """
    headers = {} if token is None else {"Authorization": f"Bearer {_sendable(token)}"}

    async def dial(url: str) -> Transport:
        shown = without_tokens(url)
        secure: dict[str, Any] = {"ssl": tls or client_context()} if url.lower().startswith("wss:") else {}
        try:
            # No pings from here: while the daemon holds us back it does not read them either; see the producer's own watch.
            socket = await _Dialing(
                url,
                compression=None,
                max_size=None,
                ping_interval=None,
                open_timeout=DIAL_S_MAX,
                proxy=None,
                additional_headers=headers,
                **secure,
            )
        except InvalidURI as error:
            raise ConfigurationError([Mistake("url", shown, "is ws://host:port/cdc or wss://host:port/cdc")]) from error
        except InvalidStatus as error:
            raise _refused(error) from error
        except (OSError, TimeoutError, InvalidHandshake, InvalidMessage) as error:
            if (refusal := refusal_of(error, shown)) is not None:
                raise CertificateRefused(refusal) from error
            raise TransportClosed(1006, (str(error) or type(error).__name__) + _hint(error, secure=bool(secure))) from error
        return _Websocket(socket)

    return dial


dial_websocket = websocket_dial()


class _Dialing(connect):
    """Follows nobody elsewhere: a redirect would be shown the token."""

    def process_redirect(self, exc: Exception) -> Exception:
        return exc


def _sendable(token: str) -> str:
    if not re.fullmatch(r"[\x21-\x7e]+", token):  # What a header can hold without a word being cut off it.
        rule = "must be printable ASCII characters without spaces, as `dolake token new` prints it"
        raise ConfigurationError([Mistake("token", "a token, not shown", rule)])
    return token


def _refused(error: InvalidStatus) -> Exception:
    """What an HTTP answer to a handshake says: its own words, whether to come again, and when."""
    status = error.response.status_code
    text = bytes(error.response.body or b"")[:_WORDS_BYTES_MAX].decode("utf-8", "replace").strip()
    try:
        words = str(msgspec.json.decode(text)["error"])
    except (msgspec.MsgspecError, KeyError, TypeError):
        words = text or f"HTTP {status}"
    if status == HTTPStatus.UNAUTHORIZED:
        return Unauthorized(words)
    if status == HTTPStatus.FORBIDDEN:
        return Forbidden(words)
    later = status in (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE)
    wait_s = _seconds(error.response.headers.get("Retry-After"))
    return TransportClosed(1006, f"HTTP {status}: {words}", wait_s, answered=later)


def _seconds(text: str | None) -> float:
    """A `Retry-After` in seconds; the other form, a date, and nonsense count for nothing: there is a backoff anyway."""
    return min(float(text), RETRY_AFTER_S_MAX) if text is not None and re.fullmatch(r"[0-9]{1,9}", text) else 0.0


def _hint(error: Exception, *, secure: bool) -> str:
    """A server that refuses a client's certificate, or hears TLS where it speaks none, mostly says nothing and hangs up."""
    if secure and isinstance(error, InvalidMessage | ConnectionError):
        return "; does it speak TLS, and want no certificate that --certificate and --certificate-key should give?"
    if isinstance(error, InvalidMessage):
        return "; does it speak TLS, so that it is wss://?"
    return ""


class _Websocket:
    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket

    async def send(self, frame: bytes) -> None:
        try:
            await self._socket.send(frame, text=True)
        except ConnectionClosed as error:
            raise _closed(error) from error

    async def receive(self) -> bytes:
        try:
            return await self._socket.recv(decode=False)
        except ConnectionClosed as error:
            raise _closed(error) from error

    async def close(self) -> None:
        await self._socket.close()


def _closed(error: ConnectionClosed) -> TransportClosed:
    received = error.rcvd
    return TransportClosed(1006, "") if received is None else TransportClosed(int(received.code), received.reason)
