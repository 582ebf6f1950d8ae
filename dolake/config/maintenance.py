"""What runs by itself to keep tables quick to read and no larger than they need be: `[compaction]`, `[maintenance]`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import BeforeValidator, Field, field_validator

from dolake.config.section import Section
from dolake.config.values import GIB, KIB, MIB, Bytes, LongSeconds, Seconds, a_map, a_number

_SPARK_OURS = {"spark.master": "compaction.spark_master", "spark.remote": "compaction.spark_remote"}
_SECRET = re.compile(r"token|secret|passw|credential|key|authorization", re.IGNORECASE)


class MaintenanceSettings(Section):
    """When objects go that no snapshot needs any more."""

    enabled: bool = Field(default=True, description="whether the daemon does it by itself; `dolake maintenance` does it in any case")
    interval_s: Seconds = Field(default=3600.0, description="how often each table's folder is looked through")
    grace_s: Annotated[float, BeforeValidator(a_number), Field(ge=0, le=30 * 86_400, allow_inf_nan=False)] = Field(
        default=900.0, description="so long an object stays after nothing needs it any more: a query may still be reading it"
    )
    dead_letters_s: LongSeconds | None = Field(
        default=None,
        description="so long the event of a dead letter is kept, to be sent again, and the value that was wrong; for good unless set",
    )
    ttl_interval_s: Seconds = Field(default=60.0, description="how often rows that have expired by their table's ttl are removed")


class CompactionSettings(Section):
    """How small files become large ones while tables are written."""

    enabled: bool = Field(default=True, description="whether the daemon compacts tables by itself; `dolake compact` does it in any case")
    interval_s: Seconds = Field(
        default=10.0, description="how often is looked whether a rewrite is worth it; also as soon as one has landed"
    )
    target_bytes: Annotated[Bytes, Field(ge=64 * KIB, le=4 * GIB)] = Field(
        default=128 * MIB, description="size of the data files that are aimed at; files of three quarters of it are left alone"
    )
    inputs_min: Annotated[int, BeforeValidator(a_number), Field(ge=2, le=1000)] = Field(
        default=4, description="files of about one size that are put together, and no fewer while more may come"
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
    spare_share: Annotated[float, BeforeValidator(a_number), Field(ge=0, le=1, allow_inf_nan=False)] = Field(
        default=0.1,
        description="share of the time in which, while nothing else is worth a rewrite, files are rewritten only so that reads get "
        "shorter, without waiting for more of them; 0 for none",
    )
    lag_s_max: Seconds = Field(
        default=30.0, description="no rewrite begins while rows wait longer than this for their flush, or memory is short of room for them"
    )
    engine: Literal["local", "spark"] = Field(
        default="local", description="who rewrites: `local`, processes on this machine; `spark`, a cluster, by Iceberg's own procedures"
    )
    spark_catalog: str | None = Field(
        default=None, description="what Spark calls the catalog that the tables are in, as in spark.sql.catalog.NAME; required by `spark`"
    )
    spark_remote: str | None = Field(
        default=None,
        repr=False,
        description="Spark Connect server, as sc://host:15002 (its parameters may follow, as in /;token=…); a session that lives in the "
        "rewriting process unless set",
    )
    spark_master: str | None = Field(default=None, description="master of such a session of its own; local[*] unless set")
    spark: Mapping[str, Any] = Field(
        default={},
        repr=False,
        description="`spark.*` settings of the session, names in quotes: its catalog, and for one of its own its jars; in the environment "
        "a JSON object",
    )

    @field_validator("spark_catalog")
    @classmethod
    def _one_word(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,127}", value):
            raise ValueError("must be one name of letters, digits and `_`, as in lake of spark.sql.catalog.lake")
        return value

    @field_validator("spark_remote")
    @classmethod
    def _connect_address(cls, value: str | None) -> str | None:
        if value is not None and not _is_connect_address(value):
            raise ValueError("must be sc://host:port, perhaps with parameters as in sc://host:15002/;use_ssl=true;token=…")
        return value

    @field_validator("spark_master")
    @classmethod
    def _a_master(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"local(\[[^\]\s]+\])?|yarn|(spark|k8s)://\S+", value):
            raise ValueError("must be what Spark takes as its master: local[2], spark://host:7077, yarn, k8s://https://host")
        return value

    @field_validator("spark", mode="before")
    @classmethod
    def _from_text(cls, value: object) -> object:
        return a_map(value, '{"spark.jars": "…"}')

    @field_validator("spark")
    @classmethod
    def _as_spark_takes_them(cls, value: Mapping[str, Any]) -> Mapping[str, str]:
        for name, one in value.items():
            if isinstance(one, dict):
                raise ValueError(f'{name} must be text; a dotted name is written in quotes, as in "{name}.{next(iter(one), "x")}" = …')
            if name in _SPARK_OURS:
                raise ValueError(f"{name} must not be set: it is {_SPARK_OURS[name]}")
            if not name.startswith("spark.") or not isinstance(one, str | int | float | bool):
                raise ValueError(f"{name} must be a setting of Spark, with a name that begins with `spark.`, and text")
        return {name: str(one).lower() if isinstance(one, bool) else str(one) for name, one in value.items()}

    @property
    def spark_secrets(self) -> tuple[str, ...]:
        """What must not be seen in a message: values of settings that are secret going by their names, the server's parameters."""
        found = {str(value) for name, value in self.spark.items() if _SECRET.search(name) and value}
        parameters = urlsplit(self.spark_remote or "").path.split(";")
        found |= {part.partition("=")[2] for part in parameters if _SECRET.search(part.partition("=")[0])} - {""}
        return tuple(sorted(found, key=len, reverse=True))


def _is_connect_address(value: str) -> bool:
    try:
        address = urlsplit(value)
        port_stands = address.port is None or address.port > 0
    except ValueError:  # A port that is no number, half of an IPv6 address.
        return False
    plain = value.isprintable() and " " not in value and not address.query and not address.fragment and address.username is None
    return address.scheme == "sc" and bool(address.hostname) and port_stands and plain and address.path[:2] in ("", "/", "/;")
