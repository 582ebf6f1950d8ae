"""How a producer reaches a daemon: the door to the network on the client's side, and its websocket."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidMessage, InvalidURI

from dolake.errors import ConfigurationError, Mistake

DIAL_S_MAX = 10.0


class TransportClosed(Exception):
    """The connection is over, or never came about. `code` is the websocket's, 1006 where there was none."""

    def __init__(self, code: int, reason: str, *, answered: bool = False) -> None:
        """`answered`: a daemon is there, and wants to be asked again later."""
        super().__init__(f"{code} {reason}".strip())
        self.code, self.reason, self.answered = code, reason, answered


class Transport(Protocol):
    """One connection. Both directions raise TransportClosed when it is over."""

    async def send(self, frame: bytes) -> None: ...

    async def receive(self) -> bytes: ...

    async def close(self) -> None: ...


Dial = Callable[[str], Awaitable[Transport]]


async def dial_websocket(url: str) -> Transport:
    """Raises TransportClosed if nobody answers there, ConfigurationError if `url` is none."""
    try:
        # No pings from here: while the daemon holds us back it does not read them either; see the producer's own watch.
        socket = await connect(url, compression=None, max_size=None, ping_interval=None, open_timeout=DIAL_S_MAX, proxy=None)
    except InvalidURI as error:
        raise ConfigurationError([Mistake("url", url, "is ws://host:port/cdc or wss://host:port/cdc")]) from error
    except (OSError, TimeoutError, InvalidHandshake, InvalidMessage) as error:
        raise TransportClosed(1006, str(error) or type(error).__name__) from error
    return _Websocket(socket)


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
