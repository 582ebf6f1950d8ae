"""`[catalog]`: what the REST catalog tells its clients."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from dolake.config.section import Section
from dolake.config.values import require_address


class CatalogSettings(Section):
    """What clients of the REST catalog are given to reach a bucket with. Ignored for a local warehouse."""

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
