"""What runs by itself to keep tables quick to read and no larger than they need be: `[compaction]`, `[maintenance]`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from dolake.config.section import Section
from dolake.config.values import GIB, KIB, MIB, Bytes, Seconds, a_number


class MaintenanceSettings(Section):
    """When objects go that no snapshot needs any more."""

    enabled: bool = Field(default=True, description="whether the daemon does it by itself; `dolake maintenance` does it in any case")
    interval_s: Seconds = Field(default=3600.0, description="how often each table's folder is looked through")
    grace_s: Annotated[float, BeforeValidator(a_number), Field(ge=0, le=30 * 86_400, allow_inf_nan=False)] = Field(
        default=900.0, description="so long an object stays after nothing needs it any more: a query may still be reading it"
    )


class CompactionSettings(Section):
    """How small files become large ones while tables are written."""

    enabled: bool = Field(default=True, description="whether the daemon compacts tables by itself; `dolake compact` does it in any case")
    interval_s: Seconds = Field(default=10.0, description="how often is looked whether a rewrite is worth it")
    target_bytes: Annotated[Bytes, Field(ge=64 * KIB, le=4 * GIB)] = Field(
        default=128 * MIB, description="size of the data files that are aimed at; files of three quarters of it are left alone"
    )
    inputs_min: Annotated[int, BeforeValidator(a_number), Field(ge=2, le=1000)] = Field(
        default=8, description="files of about one size that are put together, and no fewer while more may come"
    )
    deleted_share_max: Annotated[float, BeforeValidator(a_number), Field(gt=0, le=1, allow_inf_nan=False)] = Field(
        default=0.2, description="share of deleted rows above which even a large file is rewritten"
    )
    jobs: Annotated[int, BeforeValidator(a_number), Field(ge=1, le=16)] = Field(
        default=1, description="rewrites at once, each in a process of its own at the lowest priority"
    )
    memory_bytes: Annotated[Bytes, Field(ge=8 * MIB)] = Field(
        default=192 * MIB,
        description="rows that one rewrite holds at once, or twice as much where that is all; a process takes up to five times as much",
    )
    bytes_per_s: Annotated[Bytes, Field(ge=64 * KIB)] | None = Field(
        default=None, description="bytes that one rewrite reads and writes in a second at most; as fast as it can unless set"
    )
    lag_s_max: Seconds = Field(
        default=30.0, description="no rewrite begins while rows wait longer than this for their flush, or memory is short of room for them"
    )
    engine: Literal["local"] = Field(default="local", description="who rewrites: local, processes on this machine")
