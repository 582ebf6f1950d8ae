"""What can be set for tables: `[tables."pattern"]`, and what comes of all patterns that match one."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, ValidationInfo, field_validator

from dolake.column_types import parse_type
from dolake.config.section import Section
from dolake.config.values import Age, Bytes, Count, Seconds
from dolake.model import COLUMN_NAME_RULE, RESERVED_COLUMN_PREFIX, ROW_ID_COLUMN, is_column_name
from dolake.partitioning import PARTITION_FORMS, parse_partition, parse_partition_by

_GROUP = re.compile(r"[A-Za-z0-9_-]{1,64}")


def _partition(value: str) -> str:
    parse_partition(value)
    return value


class FlushOverrides(Section):
    age_s: Seconds | None = Field(default=None, description="a row of this table waits at most this long for its flush to begin")
    bytes: Bytes | None = Field(default=None, description="this table is flushed when it holds this many bytes")
    rows: Count | None = Field(default=None, description="this table is flushed when it holds this many rows")


class TtlOverrides(Section):
    column: str | None = Field(
        default=None,
        description="rows of which this column (a date, timestamp or timestamptz) is older than `age` are removed; a row with nothing "
        "in it stays. One of dolake's own, as _cdc_timestamp, concerns changelogs alone. empty takes a table out of a wider pattern's ttl",
    )
    age: Age | None = Field(default=None, description='how old: a number of s, min, h or d, as in "30 d"; required with `column`')


ColumnName = Annotated[str, Field(min_length=1)]


class TableOverrides(Section):
    """One `[tables."pattern"]`. What is absent is left to less specific patterns, then to [flush]."""

    mode: Literal["mirror", "changelog", "both"] | None = Field(
        default=None,
        description="`mirror`: the current row of each key, and a changelog where there is no key; `changelog`: every event is a row; "
        "`both`: a mirror, and beside it a changelog whose name ends in `__changes`. mirror unless set; a table that is there stays what "
        "it is, but for the changelog beside it",
    )
    group: str | None = Field(
        default=None,
        description="a name: all tables that have it are committed together, so that readers of several see the same transactions of the "
        "sources in each (a consistent cut); needs a sql catalog. none unless set; empty takes a table out of a wider pattern's group",
    )
    truncate: Literal["source", "table"] | None = Field(
        default=None,
        description="what a TRUNCATE of a mirror may empty: `source`: a table that only its own source writes, and it is a dead letter "
        "otherwise; `table`: any. source unless set",
    )
    flush: FlushOverrides = FlushOverrides()
    ttl: TtlOverrides = TtlOverrides()
    partition_by: tuple[Annotated[str, AfterValidator(_partition)], ...] | None = Field(
        default=None,
        description=f"by what files are kept apart, anew when it changes; as the table itself says unless set: {PARTITION_FORMS}",
    )
    drop: tuple[ColumnName, ...] = Field(default=(), description="columns left out of the table; adds up over all patterns that match")
    mask: tuple[ColumnName, ...] = Field(
        default=(),
        description="columns of which only the HMAC-SHA-256 under `mask_key` is kept; adds up over all patterns that match",
    )
    columns: Mapping[ColumnName, str] = Field(
        default={}, description="declared columns and their types, as in a schema message; add up over all patterns"
    )
    primary_key: tuple[ColumnName, ...] | None = Field(default=None, description="the key's columns; what sources declare unless set")

    @field_validator("group")
    @classmethod
    def _named(cls, value: str | None) -> str | None:
        if value and not _GROUP.fullmatch(value):
            raise ValueError("must be a name of 1 to 64 letters, digits, `_` and `-`")
        return value

    @field_validator("columns")
    @classmethod
    def _declared(cls, value: Mapping[str, str]) -> Mapping[str, str]:
        for name, kind in value.items():
            if not is_column_name(name):
                raise ValueError(f"must name columns; a name {COLUMN_NAME_RULE} (got {name!r})")
            try:
                parse_type(kind)
            except ValueError as error:
                raise ValueError(f"must give each column a type: {name}: {error}") from None
        return value

    @field_validator("primary_key")
    @classmethod
    def _distinct(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if value is not None and len(set(value)) != len(value):
            raise ValueError("must name each column once")
        return value

    @field_validator("partition_by")
    @classmethod
    def _together(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        parse_partition_by(value or ())
        return value

    @field_validator("drop", "mask")
    @classmethod
    def _of_the_source(cls, value: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        for name in value:
            if name.casefold().startswith(RESERVED_COLUMN_PREFIX) and not (info.field_name == "mask" and name == ROW_ID_COLUMN):
                raise ValueError(f"must name columns of the source, not dolake's own; only {ROW_ID_COLUMN} may be masked")
        return value


class TableSettings(Section):
    """What holds for one table, every value decided."""

    mode: Literal["mirror", "changelog", "both"]
    mode_is_said: bool  # by somebody, not by default
    group: str  # empty for none
    truncate: Literal["source", "table"]
    flush_age_s: float
    flush_bytes: int
    flush_rows: int
    partition_by: tuple[str, ...] | None  # None leaves it to the table
    drop: tuple[str, ...]
    mask: tuple[str, ...]
    columns: Mapping[str, str]
    primary_key: tuple[str, ...]
    ttl_column: str = ""  # empty: its rows stay
    ttl_age_s: float = 0.0
