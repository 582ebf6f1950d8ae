"""Which table is meant by the name that a source uses: `[sources."pattern"] namespace` keeps equal names of two databases apart.

The log keeps what the source sent, so this is asked wherever a record meets tables, and the answer must be the same
everywhere: in the writer, in the ingest half (which refuses what no table can be called) and in `dolake verify`.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable

from dolake.config.settings import Settings
from dolake.errors import Mistake
from dolake.model import DEAD_LETTERS_SOURCE, RESERVED_SUFFIX, TableName


def mapped_name(text: str, namespace: str | None) -> TableName:
    """The table that `text` names for a source whose tables live in `namespace`; a `*` in it stands for the source's own.

    Without a `*` all namespaces of a source become one. Raises ValueError with the rule broken, by `text` or by the result.
    """
    name = TableName.parse(text)
    if namespace is None:
        return name
    mapped = f"{namespace.replace('*', name.namespace)}.{name.name}"
    try:
        return TableName.parse(mapped)
    except ValueError as error:
        raise ValueError(f"{error}; this source's tables live in the namespace {namespace!r}, so it is {mapped!r}") from None


class TableNames:
    """`mapped_name` by source, as the settings say. Dead letters that are sent again name their table as it is."""

    def __init__(self, settings: Settings) -> None:
        self.any_mapped = any(one.namespace is not None for one in settings.sources.values())
        self._settings = settings
        self._namespace = functools.lru_cache(maxsize=4096)(self._find_namespace)
        self.of = functools.lru_cache(maxsize=16_384)(self._find)
        self.fed_by = functools.lru_cache(maxsize=16_384)(self._find_fed)

    def mistakes(self, source: str, tables: Iterable[str]) -> list[Mistake]:
        """Tables of a message that the settings give no name that a table can have."""
        if not self.any_mapped:
            return []
        found = []
        for text in tables:
            try:
                self.of(source, text)
            except ValueError as error:
                found.append(Mistake("table", text, str(error)))
        return found

    def _find_fed(self, name: TableName) -> tuple[TableName, ...]:
        """The tables that a table's events go to: itself, and with `mode = "both"` the changelog beside it."""
        if self._settings.settings_for(name).mode != "both":
            return (name,)
        try:
            return (name, TableName.in_lake(f"{name}{RESERVED_SUFFIX}"))
        except ValueError:  # Too long a name for another one.
            return (name,)

    def _find(self, source: str, text: str) -> TableName:
        return mapped_name(text, self._namespace(source))

    def _find_namespace(self, source: str) -> str | None:
        return None if source == DEAD_LETTERS_SOURCE else self._settings.source_settings_for(source).namespace
