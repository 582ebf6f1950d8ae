"""`[catalog]`: which catalog the tables are in, and what dolake's REST catalog tells its clients."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator

from dolake.config.section import Section
from dolake.config.values import a_map, require_address

# PyIceberg's own names of those it can commit to, and which of its properties each cannot do without.
CatalogType = Literal["sql", "rest", "glue", "hive"]
PROPERTIES_NEEDED: Mapping[str, tuple[str, ...]] = {"rest": ("uri",), "hive": ("uri",)}
# Properties that hold properties; every other one is a word.
_SECTIONS = ("auth", "ssl")
_OURS = {
    "type": "is catalog.type",
    "py-catalog-impl": "must not be set: catalog.type says which catalog it is",
    "py-io-impl": "must not be set: dolake reads and writes files itself, so that they are synced",
}
_SECRET = re.compile(r"token|secret|passw|credential|key|authorization", re.IGNORECASE)
_SQLITE = re.compile(r"sqlite:///(?P<path>/[^?#]+)")


class CatalogSettings(Section):
    """Which catalog says what a table's current metadata is; and what clients of the REST catalog are given to reach a bucket with.

    The latter is ignored for a local warehouse.
    """

    type: CatalogType = Field(
        default="sql",
        description="`sql`: the database that `catalog.uri` names; any other is opened by PyIceberg with `catalog.properties`, whose own "
        "libraries some need (`pip install 'pyiceberg[hive]'`)",
    )
    uri: str | None = Field(
        default=None,
        repr=False,
        description="database of a `sql` catalog: sqlite:////absolute/path or postgresql://user:password@host:port/database (libpq's "
        "parameters may follow, as in ?sslmode=verify-full); the file DIR/catalog.db unless set",
    )
    name: str = Field(
        default="dolake",
        description="name of the catalog, by which a `sql` database keeps it apart from others; PyIceberg opens it by the same",
    )
    properties: Mapping[str, Any] = Field(
        default={},
        repr=False,
        description="what PyIceberg is told of a catalog that is not `sql`, as they are: `uri`, `token`, `warehouse`, … in the environment "
        "a JSON object",
    )

    vend: Literal["nothing", "endpoint", "credentials"] = Field(
        default="nothing",
        description="what is told with each table: `nothing`; `endpoint`: the bucket's address and region; `credentials`: the keys as "
        "well, to whoever may read the table and asks for vended credentials",
    )
    endpoint: str | None = Field(default=None, description="address of the bucket's server as clients reach it; [s3]'s unless set")
    access_key: str | None = Field(default=None, description="access key for clients; [s3]'s, which may write, unless set")
    secret_key: str | None = Field(default=None, repr=False, description="secret key that belongs to it")

    @field_validator("endpoint")
    @classmethod
    def _address(cls, value: str | None) -> str | None:
        return require_address(value)

    @field_validator("name")
    @classmethod
    def _one_word(cls, value: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9_-]{1,128}", value):
            raise ValueError("must be 1 to 128 letters, digits, `_` and `-`")
        return value

    @field_validator("uri")
    @classmethod
    def _known(cls, value: str | None) -> str | None:
        if value is None or _SQLITE.fullmatch(value):
            return value
        if not value.startswith("postgresql://") or not value.isprintable():
            rule = "must be sqlite:////absolute/path or postgresql://user:password@host:port/database"
            raise ValueError(rule + ("; another kind of catalog is opened by catalog.type" if "://" in value else ""))
        try:
            address = urlsplit(value)
            whole = len(address.path) > 1 and (address.port is None or address.port > 0)
        except ValueError:  # A port that is no number, half of an IPv6 address.
            whole = False
        if not whole:
            raise ValueError("must name a database, as in postgresql://user:password@host:5432/lake")
        return value

    @field_validator("properties", mode="before")
    @classmethod
    def _from_text(cls, value: object) -> object:
        return a_map(value, '{"uri": "https://…", "token": "…"}')

    @field_validator("properties")
    @classmethod
    def _as_pyiceberg_takes_them(cls, value: Mapping[str, Any]) -> Mapping[str, Any]:
        if found := list(_mistaken(value)):
            raise ValueError("; ".join(found))
        return {name: inner if isinstance(inner, dict) else _word(inner) for name, inner in value.items()}

    @property
    def secrets(self) -> tuple[str, ...]:
        """The values of properties that must not be seen in a message, going by their names."""
        return tuple(sorted({word for name, word in _words(self.properties) if _SECRET.search(name)}, key=len, reverse=True))


def _mistaken(properties: Mapping[str, Any]) -> Iterator[str]:
    """One rule for each property that cannot stand, never its value."""
    for name, value in properties.items():
        if name in _OURS:
            yield f"{name} {_OURS[name]}"
        elif isinstance(value, dict) and name not in _SECTIONS:
            inner = next(iter(value), "x")
            yield f'{name} must be text; a dotted name is written in quotes, as in "{name}.{inner}" = …'
        elif not isinstance(value, dict | str | int | float | bool):
            yield f"{name} must be text"


def _word(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _words(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """(dotted name, value) of every property, however deep."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _words(inner, f"{name}.{key}")
    elif str(value):
        yield name, str(value)
