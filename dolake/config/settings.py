"""What can be set: frozen values, one class for each section of `dolake.toml`.

A `Settings` knows nothing of where its values came from (see `sources`) and holds only what each field can check by
itself; what fields owe each other is in `rules`. It goes to the child processes as JSON (`to_json`, `from_json`).
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from dolake.config.access import AuthSettings, TlsSettings, TokenSettings
from dolake.config.catalog import CatalogSettings
from dolake.config.limits import LimitSettings
from dolake.config.maintenance import CompactionSettings, MaintenanceSettings
from dolake.config.section import Section
from dolake.config.tables import TableOverrides, TableSettings, TtlOverrides
from dolake.config.values import GIB, KIB, MIB, Bytes, Count, Port, Seconds, a_number, require_address
from dolake.model import (
    RESERVED_NAMESPACE,
    RESERVED_SUFFIX,
    TableName,
    normal_pattern,
    pattern_expression,
)

_NO_TTL = TtlOverrides()
_PATTERN_PART = re.compile(r"[A-Za-z0-9_*]{1,128}")
MASK_KEY_LENGTH_MIN = 16
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")


class LogSettings(Section):
    """Where the log lies and how it is stored."""

    directories: tuple[str, ...] = Field(default=(), description="the log's directories, one disk each; DIR/log unless set")
    segment_bytes: Annotated[Bytes, Field(ge=4 * KIB, le=GIB)] = Field(default=64 * MIB, description="size at which a segment is sealed")
    backlog_bytes: Bytes | None = Field(
        default=None, description="unflushed bytes of one log, as stored, above which batches are refused; 20 % of its disk unless set"
    )
    compression: Literal["none", "zstd"] = Field(
        default="none", description="how new batches are stored in the log: none, or zstd (a tenth of the disk for some processor time)"
    )

    retain_s: Annotated[float, BeforeValidator(a_number), Field(ge=0, le=90 * 86_400, allow_inf_nan=False)] = Field(
        default=0.0,
        description="segments of which everything is committed are kept so long after that, as far as the disk has room: so far back "
        "reaches `dolake rollback --rewind`. A writer that starts reads over them",
    )

    @field_validator("directories", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return tuple(part for part in value.split(os.pathsep) if part) if isinstance(value, str) else value


class FlushSettings(Section):
    age_s: Seconds = Field(default=5.0, description="a row waits at most this long for its flush to begin")
    bytes: Bytes = Field(default=128 * MIB, description="a table is flushed when it holds this many bytes")
    rows: Count = Field(default=1_000_000, description="a table is flushed when it holds this many rows")
    memory_bytes: Bytes = Field(default=384 * MIB, description="rows of all tables in memory; the largest tables are flushed to stay below")


class WarehouseSettings(Section):
    """Where the tables are."""

    uri: str = Field(default="", description="where the tables are: file:///path or s3://bucket/prefix; file://DIR/warehouse unless set")

    @field_validator("uri")
    @classmethod
    def _known(cls, value: str) -> str:
        scheme, separator, rest = value.partition("://")
        if not separator or scheme not in ("file", "s3"):
            raise ValueError("must be file:///path or s3://bucket/prefix")
        if scheme == "file" and (not rest.startswith("/") or rest.rstrip("/") == ""):
            raise ValueError("must hold an absolute path, as in file:///var/lib/dolake/warehouse")
        if scheme == "s3" and not _BUCKET.fullmatch(rest.split("/")[0]):
            raise ValueError("must name a bucket: 3 to 63 small letters, digits, dots and hyphens, as in s3://lake/prefix")
        if any(part in (".", "..") for part in rest.split("/")) or any(letter in value for letter in "?#"):
            raise ValueError("must not hold `.` or `..` parts, `?` or `#`")
        return value.rstrip("/")


class S3Settings(Section):
    """How the bucket is reached. Ignored for a local warehouse."""

    endpoint: str | None = Field(default=None, description="address of an S3-compatible server; AWS itself unless set")
    region: str | None = Field(default=None, description="region of the bucket; us-east-1 unless set")
    access_key: str | None = Field(default=None, description="access key; the machine's own identity unless set")
    secret_key: str | None = Field(default=None, repr=False, description="secret key that belongs to the access key")
    session_token: str | None = Field(default=None, repr=False, description="session token of temporary keys")
    credentials_file: str | None = Field(
        default=None,
        description="file of keys that expire and are renewed, instead of the three above: JSON with AccessKeyId, SecretAccessKey and "
        "SessionToken, as `aws sts assume-role --query Credentials` prints it; read again whenever it has changed (replace it by a "
        "rename), with no signal and no restart",
    )

    @field_validator("endpoint")
    @classmethod
    def _address(cls, value: str | None) -> str | None:
        return require_address(value)


class CommitSettings(Section):
    """The history that a commit leaves its table."""

    snapshots_kept: Annotated[int, BeforeValidator(a_number), Field(ge=1, le=10_000)] = Field(
        default=100, description="snapshots kept on each table's main branch"
    )
    tags_kept_days: Annotated[int, BeforeValidator(a_number), Field(ge=0, le=3650)] = Field(
        default=7, description="days for which an hourly tag of each table is kept"
    )
    snapshots_age_s: Annotated[int, BeforeValidator(a_number), Field(ge=0, le=315_360_000)] = Field(
        default=0,
        description="snapshots of a table older than this go with its next commit, even where fewer than commit.snapshots_kept are left; "
        "the newest one always stays, and what a tag or branch names. 0: whatever their age",
    )


class SourceOverrides(Section):
    """One `[sources."pattern"]`. What is absent is left to less specific patterns."""

    namespace: str | None = Field(
        default=None,
        description="where the source's tables live, its own namespaces unless set; a `*` in it stands for the source's own. Without one, "
        "tables of one name in several of its schemas are one table. Rows still in the log follow a change of this setting",
    )

    priority: Literal["high", "normal", "low"] | None = Field(
        default=None,
        description="who is refused first when there is too much to do: `low` at 90 % of any bound, `normal` at 95 % where any source is "
        "`high`; normal unless set",
    )

    @field_validator("namespace")
    @classmethod
    def _one_namespace(cls, value: str | None) -> str | None:
        if value is not None and (value.count("*") > 1 or not _PATTERN_PART.fullmatch(value) or value == RESERVED_NAMESPACE):
            raise ValueError(
                "must be 1 to 128 letters, digits and `_`, at most one `*` among them for the source's own namespace; not `dolake`"
            )
        return value


class SourceSettings(Section):
    """What holds for one source. `namespace` None: its tables are called as it calls them."""

    namespace: str | None
    priority: Literal["high", "normal", "low"] = "normal"


class Settings(Section):
    """Everything that can be set. Paths are absolute once loaded."""

    data: str = Field(description="the data directory, DIR below: log, warehouse, catalog and control files; required")
    host: str = Field(default="127.0.0.1", description="address to listen on; only loopback while there are no tokens")
    port: Port = Field(default=8765, description="websocket port for sources; 0 takes a free one")
    http_port: Port = Field(default=8181, description="port of the REST catalog, health and metrics; 0 takes a free one")
    log_level: Literal["debug", "info", "warning", "error"] = Field(default="info", description="the least that is put on stderr")
    log_format: Literal["auto", "console", "json"] = Field(
        default="auto", description="lines on stderr: for people, or JSON; auto is for people on a terminal, JSON otherwise"
    )
    log: LogSettings = LogSettings()
    flush: FlushSettings = FlushSettings()
    warehouse: WarehouseSettings = Field(default_factory=WarehouseSettings.model_construct)
    s3: S3Settings = S3Settings()
    catalog: CatalogSettings = CatalogSettings()
    commit: CommitSettings = CommitSettings()
    compaction: CompactionSettings = CompactionSettings()
    maintenance: MaintenanceSettings = MaintenanceSettings()
    limits: LimitSettings = LimitSettings()
    auth: AuthSettings = AuthSettings()
    tls: TlsSettings = TlsSettings()
    mask_key: str | None = Field(
        default=None, repr=False, description="secret of at least 16 characters under which masked columns are hashed"
    )
    tables: Mapping[str, TableOverrides] = Field(default={}, description="settings for the tables that a pattern matches")
    sources: Mapping[str, SourceOverrides] = Field(default={}, description="settings for the sources that a pattern matches")
    tokens: Mapping[str, TokenSettings] = Field(default={}, description="the tokens that are good, by name")

    @model_validator(mode="before")
    @classmethod
    def _defaults_under_data(cls, raw: Any) -> Any:
        """What lives under DIR unless set: the log, the warehouse."""
        data = raw.get("data") if isinstance(raw, dict) else None
        if not isinstance(data, str) or not data:
            return raw
        raw = dict(raw)
        for section, key, default in (
            ("log", "directories", (os.path.join(data, "log"),)),
            ("warehouse", "uri", file_uri(os.path.join(os.path.abspath(data), "warehouse"))),
        ):
            values = raw.get(section, {})
            if isinstance(values, dict) and key not in values:
                raw[section] = {**values, key: default}
        return raw

    @field_validator("data")
    @classmethod
    def _given(cls, value: str) -> str:
        if not value or "\0" in value:
            raise ValueError("must be a path")
        return value

    @field_validator("mask_key")
    @classmethod
    def _long_enough(cls, value: str | None) -> str | None:
        if value is not None and len(value) < MASK_KEY_LENGTH_MIN:
            raise ValueError(f"must have at least {MASK_KEY_LENGTH_MIN} characters, so that it cannot be guessed")
        return value

    @property
    def control_path(self) -> str:
        """Where the halves talk (see dolake.control)."""
        return os.path.join(self.data, "control.sock")

    @property
    def relay_path(self) -> str:
        """Where bodies of `POST /cdc` go to the ingest half (see dolake.cdc.relay)."""
        return os.path.join(self.data, "cdc.sock")

    @property
    def catalog_path(self) -> str:
        """The catalog's file unless `catalog.uri` names another."""
        return os.path.join(self.data, "catalog.db")

    @property
    def catalog_uri(self) -> str:
        """The database of a `sql` catalog; holds its password."""
        return self.catalog.uri or f"sqlite:///{self.catalog_path}"

    @property
    def ready_path(self) -> str:
        return os.path.join(self.data, "ready.json")

    def settings_for(self, table: TableName | str) -> TableSettings:
        """Each setting comes from the most specific pattern that sets it: the exact name, then the longest literal prefix.

        A changelog beside a mirror has the settings of its mirror: what is hidden there is hidden here.
        """
        name = (str(table) if isinstance(table, TableName) else normal_pattern(table)).removesuffix(RESERVED_SUFFIX)
        chosen = [self.tables[pattern] for pattern in sorted(self.tables, key=_specificity) if _matches(pattern, name)]
        return TableSettings(
            mode=_first("mirror", *(table.mode for table in chosen)),
            mode_is_said=any(table.mode is not None for table in chosen),
            group=_first("", *(table.group for table in chosen)),
            truncate=_first("source", *(table.truncate for table in chosen)),
            flush_age_s=_first(self.flush.age_s, *(table.flush.age_s for table in chosen)),
            flush_bytes=_first(self.flush.bytes, *(table.flush.bytes for table in chosen)),
            flush_rows=_first(self.flush.rows, *(table.flush.rows for table in chosen)),
            partition_by=_first(None, *(table.partition_by for table in chosen)),
            # These add up: a pattern that says nothing of a column never uncovers what a wider one hides.
            drop=tuple(dict.fromkeys(name for table in chosen for name in table.drop)),
            mask=tuple(dict.fromkeys(name for table in chosen for name in table.mask)),
            columns={name: kind for table in reversed(chosen) for name, kind in table.columns.items()},
            primary_key=_first((), *(table.primary_key for table in chosen)),
            ttl_column=(ttl := _first(_NO_TTL, *(table.ttl for table in chosen if table.ttl.column is not None))).column or "",
            ttl_age_s=ttl.age or 0.0,
        )

    def source_settings_for(self, source: str) -> SourceSettings:
        """The same for a source. Its name may hold anything, so `*` is all that a pattern of sources knows."""
        matching = [pattern for pattern in self.sources if re.fullmatch(_any_for_stars(pattern), source, re.DOTALL)]
        chosen = [self.sources[pattern] for pattern in sorted(matching, key=_literal_specificity)]
        return SourceSettings(
            namespace=_first(None, *(one.namespace for one in chosen)), priority=_first("normal", *(one.priority for one in chosen))
        )

    def to_json(self) -> str:
        """Everything, secrets too: for a child process's pipe, never for a log."""
        return self.model_dump_json()

    @classmethod
    def from_json(cls, text: str | bytes) -> Settings:
        return cls.model_validate_json(text)


def file_uri(path: str) -> str:
    """An absolute path as a `file://` URI; spaces and other odd letters are kept as they are, as the FileIOs expect."""
    return "file://" + path


def _matches(pattern: str, name: str) -> bool:
    return pattern_expression(pattern).fullmatch(name) is not None


def _specificity(pattern: str) -> tuple[bool, int, int, str]:
    """Sorts the most specific first; equal ones by name, so that the choice never depends on the order in the file."""
    return _literal_specificity(normal_pattern(pattern))


def _literal_specificity(pattern: str) -> tuple[bool, int, int, str]:
    return ("*" in pattern, -len(pattern.split("*")[0]), -len(pattern.replace("*", "")), pattern)


def _any_for_stars(pattern: str) -> str:
    return ".*".join(re.escape(part) for part in pattern.split("*"))


def _first(default: Any, *values: Any) -> Any:
    return next((value for value in values if value is not None), default)
