"""The sections that say who may come in: `[auth]`, `[tokens.NAME]`."""

from __future__ import annotations

import re
from datetime import datetime
from typing import Annotated

from pydantic import Field, field_validator

from dolake.config.section import Section
from dolake.model import normal_pattern

TOKEN_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_HASH = re.compile(r"sha256:[0-9a-f]{64}")
_SOURCE_LENGTH_MAX = 256

_Truth = Annotated[bool, Field(strict=True)]


class AuthSettings(Section):
    tokens_file: str | None = Field(
        default=None, description="a TOML file of further [tokens.NAME] sections; read again, as they are, on SIGHUP"
    )


class TlsSettings(Section):
    """TLS on both ports, websockets and HTTP: all of it read again on SIGHUP."""

    certificate: str | None = Field(default=None, description="PEM file of the server's certificate and its chain; without it no TLS")
    key: str | None = Field(default=None, description="PEM file of the certificate's key, not encrypted")
    client_ca: str | None = Field(default=None, description="PEM file of the CA whose certificates clients must show, if they must any")


class TokenSettings(Section):
    """One `[tokens.NAME]`: what the bearer of this token may do. What is not said is not allowed."""

    hash: str = Field(repr=False, description="of the token, as `dolake token new` prints it; never the token itself")
    sources: tuple[str, ...] = Field(default=(), description="patterns of the sourceDoIds that it may send as; `*` stands for anything")
    tables: tuple[str, ...] = Field(
        default=(),
        description="patterns of the tables that it may write, and of those that it sees in the REST catalog, as in `public.*`, by their "
        "names in the lake; without any it writes none and sees all",
    )
    read: _Truth = Field(default=False, description="it may read metrics, why the daemon is not ready, and the REST catalog")
    catalog: _Truth = Field(default=False, description="it may also change the REST catalog: commit, create, rename, drop; takes `read`")
    admin: _Truth = Field(default=False, description="it may flush every table, not only those that it writes")
    expires: datetime | None = Field(default=None, description="when it stops being good, with offset; never unless set")

    @field_validator("hash")
    @classmethod
    def _hashed(cls, value: str) -> str:
        if not _HASH.fullmatch(value):
            raise ValueError("must be sha256: and 64 hex digits, as `dolake token new` prints it")
        return value

    @field_validator("sources")
    @classmethod
    def _source_patterns(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for pattern in value:
            if not 1 <= len(pattern) <= _SOURCE_LENGTH_MAX or not pattern.isprintable():
                raise ValueError(f"a source pattern is 1 to {_SOURCE_LENGTH_MAX} characters without control characters; `*` is any source")
        return value

    @field_validator("tables")
    @classmethod
    def _table_patterns(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for pattern in value:
            normal_pattern(pattern)
        return value

    @field_validator("expires", mode="before")
    @classmethod
    def _moment(cls, value: object) -> object:
        rule = "must be a date and time with its offset, as in 2027-01-31T00:00:00Z"
        if isinstance(value, str):
            try:
                value = datetime.fromisoformat(value)
            except ValueError:
                raise ValueError(rule) from None
        if value is not None and (not isinstance(value, datetime) or value.tzinfo is None):
            raise ValueError(rule)
        return value

    @property
    def expires_ms(self) -> int | None:
        """The first moment at which it is no longer good, in ms since the epoch."""
        return None if self.expires is None else round(self.expires.timestamp() * 1000)
