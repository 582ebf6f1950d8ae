"""The one place of a process that knows who may come in now. A reload swaps what it knows; everybody asks it each time."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from dolake.auth.principal import Principal
from dolake.auth.tls import Certificates, ServerTls
from dolake.auth.tokens import TokenBook, presented_token
from dolake.clock import Clock

RELOADED, REFUSED = "reloaded", "refused"


class Gate:
    """Open unless it is given tokens. `tls` is for the listening socket, if it speaks TLS.

    `on_reload` hears RELOADED or REFUSED each time: whoever counts sets it.
    """

    def __init__(self, clock: Clock, book: TokenBook | None = None, tls: ServerTls | None = None) -> None:
        self._clock = clock
        self.book = book or TokenBook()
        self.tls = tls
        self.on_reload: Callable[[str], None] = lambda outcome: None

    def admit(self, book: TokenBook, certificates: Certificates | None) -> None:
        """From now on these. Who is in stays in until their next message; their TLS stays as it is.

        Raises ValueError, and changes nothing, if the certificates cannot be put to use.
        """
        if certificates is not None and self.tls is not None:
            self.tls.replace(certificates)
        self.book = book
        self.on_reload(RELOADED)

    def identify(self, authorizations: Sequence[str], query: str = "") -> Principal:
        """Who sends a request: from its `Authorization` headers and what stands behind the `?`. Raises Unauthorized."""
        token = None if self.book.is_open else presented_token(authorizations, query)
        return self.book.principal_of(token, self._clock.now_ms())

    def still(self, principal: Principal) -> Principal:
        """What somebody who was identified earlier may do now. Raises Unauthorized if their token expired or was revoked."""
        return self.book.renewed(principal, self._clock.now_ms())
