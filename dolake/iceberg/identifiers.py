"""Names in the catalog: namespaces of one or more levels, and tables in them.

dolake's own names have one level and few letters (`TableName`). The catalog may hold others: any text but what would make
two names one. Levels are joined by a dot in the catalog's rows, as PyIceberg's SqlCatalog joins them, and by the unit
separator (0x1F) in the paths of REST requests, so neither may be part of a level or of a table's name; nor may control
characters. No name ever becomes a path as it is (see `folder_name`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from dolake.iceberg.rest_errors import bad_request
from dolake.model import RESERVED_NAMESPACE, RESERVED_SUFFIX, TableName

LEVEL_SEPARATOR = "\x1f"
_JOINT = "."
_LENGTH_MAX = 255  # of the catalog's columns
_NOT_IN_NAMES = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff.]")
_NOT_IN_FOLDERS = re.compile(r"[^A-Za-z0-9_-]")
_FOLDER_LENGTH_MAX = 100
_NAME_RULE = f"1 to {_LENGTH_MAX} characters without dots and control characters"


@dataclass(frozen=True, order=True)
class Namespace:
    """One or more levels. Made by `of` only."""

    levels: tuple[str, ...]

    @classmethod
    def of(cls, levels: Sequence[str]) -> Namespace:
        """Raises CatalogRefusal (400) for names that cannot be."""
        if not levels:
            raise bad_request("a namespace has one level or more (got none)")
        for level in levels:
            _check("a level of a namespace", level)
        joined = cls(tuple(levels))
        if len(str(joined)) > _LENGTH_MAX:
            raise bad_request(f"a namespace has at most {_LENGTH_MAX} characters, its levels joined by dots (got {len(str(joined))})")
        return joined

    @classmethod
    def in_path(cls, text: str) -> Namespace:
        """As it stands in a path or a query, unquoted: levels joined by 0x1F. Raises CatalogRefusal."""
        return cls.of(text.split(LEVEL_SEPARATOR))

    @classmethod
    def stored(cls, text: str) -> Namespace:
        """As it stands in a row, whoever wrote that."""
        return cls(tuple(text.split(_JOINT)))

    def __str__(self) -> str:
        return _JOINT.join(self.levels)


@dataclass(frozen=True, order=True)
class Identifier:
    """A table's name. Made by `of` only."""

    namespace: Namespace
    name: str

    @classmethod
    def of(cls, namespace: Namespace, name: str) -> Identifier:
        """Raises CatalogRefusal (400) for a name that cannot be."""
        _check("a table's name", name)
        return cls(namespace, name)

    @property
    def row_name(self) -> TableName:
        """As the catalog's rows have it."""
        return TableName(str(self.namespace), self.name)

    def to_json(self) -> dict[str, object]:
        return {"namespace": list(self.namespace.levels), "name": self.name}

    def __str__(self) -> str:
        return f"{self.namespace}.{self.name}"


def require_unreserved(identifier: Identifier) -> None:
    """Raises CatalogRefusal (400) for a name that only dolake gives."""
    if identifier.namespace.levels[0] == RESERVED_NAMESPACE or identifier.name.endswith(RESERVED_SUFFIX):
        raise bad_request(
            f"{identifier}: the namespace `{RESERVED_NAMESPACE}` and names ending in `{RESERVED_SUFFIX}` are dolake's own; "
            "choose another name"
        )


def folder_name(name: str) -> str:
    """What a name looks like in a path: letters that are special anywhere are `_`. Two names may look the same."""
    return _NOT_IN_FOLDERS.sub("_", name)[:_FOLDER_LENGTH_MAX]


def default_location(root: str, identifier: Identifier, uuid: str) -> str:
    """Where a table goes whose creator did not say.

    The end of it is random: after a rename another table may be made under the old name, and two tables in one folder are a
    danger to each other (whoever cleans up after one deletes the other's files).
    """
    folders = "/".join(folder_name(level) for level in identifier.namespace.levels)
    return f"{root}/{folders}/{folder_name(identifier.name)}-{uuid.replace('-', '')[:12]}"


def _check(what: str, text: str) -> None:
    if not 1 <= len(text) <= _LENGTH_MAX or _NOT_IN_NAMES.search(text):
        raise bad_request(f"{what} is {_NAME_RULE} (got {text[:_LENGTH_MAX]!r})")
