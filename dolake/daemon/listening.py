"""The sockets of a daemon: bound once by whoever starts it, handed down to the children, kept while they come and go."""

from __future__ import annotations

import errno
import select
import socket

from dolake.config import Settings
from dolake.errors import ConfigurationError, Mistake

# Children of a daemon that was killed hold its port until they notice, those that are just starting a little longer.
_TAKEN_TRIES, _TAKEN_PAUSE_S = 60, 0.05
_BACKLOG = 1024  # Connections that arrive while a child restarts wait here.


def bind(settings: Settings, *, key: str) -> socket.socket:
    """A listening socket on the host and the port under `key` (`port`, `http_port`); 0 takes a free one.

    Raises ConfigurationError if that cannot be: taken, or not an address of this machine.
    """
    port = getattr(settings, key)
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(settings.host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except socket.gaierror as error:
        raise ConfigurationError([Mistake("host", settings.host, f"must be an address of this machine: {error.strerror}")]) from None
    for tries_left in reversed(range(_TAKEN_TRIES)):
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(_BACKLOG)
            listener.setblocking(False)
        except OSError as error:
            listener.close()
            if error.errno == errno.EADDRINUSE and tries_left:
                select.select([], [], [], _TAKEN_PAUSE_S)
                continue
            rule = f"must be free on {settings.host}: {(error.strerror or str(error)).lower()}"
            raise ConfigurationError([Mistake(key, str(port), rule)]) from None
        break
    return listener


def address_of(listener: socket.socket) -> str:
    """`host:port` as it stands in a URL."""
    host, port = listener.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
