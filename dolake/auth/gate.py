"""The one place of a process that knows who may come in now. A reload swaps what it knows; everybody asks it each time."""

from __future__ import annotations

from collections.abc import Sequence

from dolake.auth.principal import Principal
from dolake.auth.tokens import TokenBook, presented_token
from dolake.clock import Clock


class Gate:
    """Open unless it is given tokens. `book` may be exchanged at any moment."""

    def __init__(self, clock: Clock, book: TokenBook | None = None) -> None:
        self._clock = clock
        self.book = book or TokenBook()

    def identify(self, authorizations: Sequence[str], query: str = "") -> Principal:
        """Who sends a request: from its `Authorization` headers and what stands behind the `?`. Raises Unauthorized."""
        token = None if self.book.is_open else presented_token(authorizations, query)
        return self.book.principal_of(token, self._clock.now_ms())

    def still(self, principal: Principal) -> Principal:
        """What somebody who was identified earlier may do now. Raises Unauthorized if their token expired or was revoked."""
        return self.book.renewed(principal, self._clock.now_ms())
