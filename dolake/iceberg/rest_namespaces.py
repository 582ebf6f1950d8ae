"""What REST requests do to namespaces. Blocking; raises what `rest_errors` makes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from dolake.iceberg.catalog_rows import MARKER, CatalogRows, NameTaken
from dolake.iceberg.identifiers import Namespace
from dolake.iceberg.paging import PageRequest, page_of
from dolake.iceberg.rest_errors import CatalogRefusal, bad_request, exists, no_namespace, not_empty
from dolake.model import RESERVED_NAMESPACE

_KEY_LENGTH_MAX, _VALUE_LENGTH_MAX = 255, 1000  # of the catalog's columns


class RestNamespaces:
    """Namespaces of one catalog."""

    def __init__(self, rows: CatalogRows) -> None:
        self._rows = rows

    def listed(self, parent: Namespace | None, page: PageRequest, sees: Callable[[str], bool]) -> dict[str, Any]:
        """Those directly below `parent`, or at the top."""
        with self._rows.reading() as connection:
            found = self._rows.namespaces(connection)
        if parent is not None and parent not in found:
            raise no_namespace(parent)
        above = parent.levels if parent else ()
        names = [one.levels[-1] for one in found if one.levels[:-1] == above and sees(str(one))]
        shown, token = page_of(sorted(names), f"namespaces {parent or ''}", page)
        return {"namespaces": [[*above, name] for name in shown], "next-page-token": token}

    def require(self, namespace: Namespace) -> None:
        with self._rows.reading() as connection:
            if not self._rows.has_namespace(connection, namespace):
                raise no_namespace(namespace)

    def load(self, namespace: Namespace) -> dict[str, Any]:
        with self._rows.reading() as connection:
            if not self._rows.has_namespace(connection, namespace):
                raise no_namespace(namespace)
            return {"namespace": list(namespace.levels), "properties": self._rows.properties(connection, namespace)}

    def create(self, namespace: Namespace, properties: Mapping[str, str]) -> dict[str, Any]:
        if namespace.levels[0] == RESERVED_NAMESPACE:
            raise bad_request(f"the namespace `{RESERVED_NAMESPACE}` is dolake's own: choose another name")
        _require_storable(properties)
        taken = exists(f"there is a namespace {namespace} already")
        try:
            with self._rows.changing() as connection:
                if self._rows.has_namespace(connection, namespace):
                    raise taken
                self._rows.insert_properties(connection, namespace, {MARKER: "true", **properties})
        except NameTaken:  # Two made it at once.
            raise taken from None
        return {"namespace": list(namespace.levels), "properties": dict(properties)}

    def drop(self, namespace: Namespace) -> None:
        with self._rows.changing() as connection:
            if not self._rows.has_namespace(connection, namespace):
                raise no_namespace(namespace)
            # A table that is made in it at this moment keeps it alive: that it is there is enough.
            self._rows.delete_properties(connection, namespace)
            if self._rows.has_namespace(connection, namespace):
                raise not_empty(f"{namespace} is not empty: drop its tables, and the namespaces below it, first")

    def update(self, namespace: Namespace, removals: Sequence[str], updates: Mapping[str, str]) -> dict[str, Any]:
        if both := sorted(set(removals) & set(updates)):
            raise CatalogRefusal(422, "UnprocessableEntityException", f"{both[0]} is both in `removals` and in `updates`")
        _require_storable(updates)
        with self._rows.changing() as connection:
            if not self._rows.has_namespace(connection, namespace):
                raise no_namespace(namespace)
            before = self._rows.properties(connection, namespace)
            removed = sorted({key for key in removals if key in before})
            # The marker as well, for the namespace outlives the last of its properties.
            self._rows.delete_properties(connection, namespace, [MARKER, *removed, *updates])
            self._rows.insert_properties(connection, namespace, {MARKER: "true", **updates})
        return {"updated": sorted(updates), "removed": removed, "missing": sorted({key for key in removals if key not in before})}


def _require_storable(properties: Mapping[str, str]) -> None:
    for key, value in properties.items():
        if key == MARKER or not 1 <= len(key) <= _KEY_LENGTH_MAX:
            raise bad_request(f"a property's name has 1 to {_KEY_LENGTH_MAX} characters, and is not `{MARKER}` (got {key[:100]!r})")
        if len(value) > _VALUE_LENGTH_MAX:
            raise bad_request(f"{key}: a property's value has at most {_VALUE_LENGTH_MAX} characters (got {len(value)})")
