"""Who somebody is once their token is known, and what they may do. A value: it waits for nothing and looks nothing up."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from dolake.errors import Forbidden
from dolake.model import DEFAULT_NAMESPACE, namespace_expression, pattern_expression

_SHOWN_MAX = 10  # Names and patterns in one sentence.


@dataclass(frozen=True)
class Principal:
    """The bearer of one token. `sources` and `tables` are patterns in which `*` stands for anything; no pattern allows nothing.

    `digest` is what the token is known by (see `tokens`); `expires_ms` is the first moment at which it is no longer good.
    """

    name: str
    sources: tuple[str, ...] = ()
    tables: tuple[str, ...] = ()
    can_read: bool = False
    can_change: bool = False
    is_admin: bool = False
    expires_ms: int | None = None
    digest: bytes = field(default=b"", repr=False)

    def may_send_as(self, source: str) -> bool:
        """Whether batches may come in the name of this `sourceDoId`."""
        return any(expression.fullmatch(source) for expression in self._source_expressions)

    def may_write(self, table: str) -> bool:
        """Whether rows may go into this table, `namespace.name` or a bare name of `default`."""
        name = table if "." in table else f"{DEFAULT_NAMESPACE}.{table}"
        return any(expression.fullmatch(name) for expression in self._table_expressions)

    def may_see(self, table: str) -> bool:
        """Whether this table, `namespace.name`, is there for them in the catalog: all are, unless they have `tables`."""
        return not self.tables or any(expression.fullmatch(table) for expression in self._table_expressions)

    def may_see_namespace(self, namespace: str) -> bool:
        """Whether a table that they see may lie in this namespace or below it; levels are joined by dots."""
        return not self.tables or any(expression.fullmatch(namespace) for expression in self._namespace_expressions)

    def require_visible(self, table: str) -> None:
        """Raises Forbidden naming the table and the scope."""
        if not self.may_see(table):
            raise Forbidden(f"table: the token {self.name!r} sees {_listed(self.tables)} only (got {table[:300]})")

    def require_visible_namespace(self, namespace: str) -> None:
        """Raises Forbidden naming the namespace and the scope."""
        if not self.may_see_namespace(namespace):
            raise Forbidden(f"namespace: the token {self.name!r} sees {_listed(self.tables)} only (got {namespace[:300]})")

    def require_changer(self) -> None:
        """Raises Forbidden without `catalog`."""
        if not self.can_change:
            raise Forbidden(f"the token {self.name!r} may not change the catalog: it has no `catalog`")

    @property
    def may_send(self) -> bool:
        """Whether there is any source it may send as."""
        return bool(self.sources)

    def require_sender(self) -> None:
        """Raises Forbidden for a token that may send as nobody."""
        if not self.may_send:
            raise Forbidden(f"the token {self.name!r} may not send: it has no `sources`")

    def require_source(self, source: str) -> None:
        """Raises Forbidden naming the source and the scope."""
        if not self.may_send_as(source):
            raise Forbidden(f"sourceDoId: the token {self.name!r} may send as {_listed(self.sources)} only (got {source[:256]!r})")

    def require_tables(self, tables: Iterable[str]) -> None:
        """One look at each table of a batch, never at its events. Raises Forbidden naming the tables and the scope."""
        outside = [table for table in tables if not self.may_write(table)]
        if outside:
            raise Forbidden(f"table: the token {self.name!r} may write {_listed(self.tables)} only (got {_listed(outside)})")

    def require_reader(self) -> None:
        """Raises Forbidden without `read`."""
        if not self.can_read:
            raise Forbidden(f"the token {self.name!r} may not read: it has no `read`")

    def require_admin(self) -> None:
        """Raises Forbidden without `admin`."""
        if not self.is_admin:
            raise Forbidden(f"the token {self.name!r} may not do that: it has no `admin`")

    @functools.cached_property
    def _source_expressions(self) -> list[re.Pattern[str]]:
        return [re.compile(".*".join(map(re.escape, pattern.split("*"))), re.DOTALL) for pattern in self.sources]

    @functools.cached_property
    def _table_expressions(self) -> list[re.Pattern[str]]:
        return [pattern_expression(pattern) for pattern in self.tables]

    @functools.cached_property
    def _namespace_expressions(self) -> list[re.Pattern[str]]:
        return [namespace_expression(pattern) for pattern in self.tables]


# Where no tokens are configured: everybody who reaches the loopback address.
ANYBODY = Principal("anybody", sources=("*",), tables=("*",), can_read=True, can_change=True, is_admin=True)


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(f"`{name}`" for name in names[:_SHOWN_MAX]) or "nothing"
    return f"{shown} and {len(names) - _SHOWN_MAX} more" if len(names) > _SHOWN_MAX else shown
