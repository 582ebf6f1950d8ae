"""A PostgreSQL connection that never waits for ever.

The server's own `statement_timeout` does not help where the server, or a proxy before it, takes bytes and answers nothing;
TCP's timeouts do not where a proxy confirms them. Imported only where a catalog is in PostgreSQL.
"""

from __future__ import annotations

from typing import Any, TypeVar

import psycopg
from psycopg.abc import PQGen

# The server gives up first (see `database.WAIT_S_MAX`), and says why.
ANSWER_S_MAX = 15.0
_CHECK_S = 0.1

Answer = TypeVar("Answer")


class BoundedConnection(psycopg.Connection[Any]):
    """Every wait for the server ends after `ANSWER_S_MAX`, and with it the connection: what it had begun is unknown."""

    def wait(self, gen: PQGen[Answer], interval: float = _CHECK_S, timeout: float | None = None) -> Answer:
        try:
            return super().wait(gen, interval, ANSWER_S_MAX if timeout is None else timeout)
        except psycopg.OperationalError:
            self.pgconn.finish()  # A rollback would wait just as long.
            raise
