"""Values that cross the layers: names, ranges, batches, declared schemas. No I/O, no behaviour beyond their own rules."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum

import xxhash

TABLE_PART = re.compile(r"[A-Za-z0-9_]{1,128}")
_PATTERN_PART = re.compile(r"[A-Za-z0-9_*]{1,128}")
DEFAULT_NAMESPACE = "default"
# Refused from sources (design.md §4): dolake's own tables and the changelog twins of mirror tables.
RESERVED_NAMESPACE = "dolake"
RESERVED_SUFFIX = "__changes"
_RESERVED_RULE = f"the namespace `{RESERVED_NAMESPACE}` and names ending in `{RESERVED_SUFFIX}` are dolake's own"
RESERVED_COLUMN_PREFIX = "_cdc_"
ROW_ID_COLUMN = "_cdc_row_id"
# Under this name dead letters are sent again; their tables are already called what they are called in the lake.
DEAD_LETTERS_SOURCE = "_dead_letters"
COLUMN_NAME_MAX = 256
# Columns that Iceberg gives every table beside its own: Spark reads no table that has one of these names itself.
ICEBERG_COLUMNS = ("_deleted", "_file", "_last_updated_sequence_number", "_partition", "_pos", "_row_id", "_spec_id")
ICEBERG_COLUMN_RULE = f"is not one of those that Iceberg gives every table ({', '.join(f'`{name}`' for name in ICEBERG_COLUMNS)})"
COLUMN_NAME_RULE = (
    f"is 1..{COLUMN_NAME_MAX} characters without control characters or lone surrogates, does not begin with "
    f"`{RESERVED_COLUMN_PREFIX}`, and {ICEBERG_COLUMN_RULE}"
)
_NOT_IN_NAMES = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")

TOKEN_PREFIX = "dlk_"  # What every bearer token begins with, so that it is known wherever it must not be.


@dataclass(frozen=True, order=True)
class TableName:
    """`namespace.name`; a bare name is in `default`. Only made by `parse` and `in_lake`, which are the allow-list."""

    namespace: str
    name: str

    @classmethod
    def parse(cls, text: str) -> TableName:
        """A name that a source may use. Raises ValueError with the rule broken; nothing is cleaned up."""
        name = cls.in_lake(text)
        if name.name.endswith(RESERVED_SUFFIX):
            raise ValueError(_RESERVED_RULE)
        return name

    @classmethod
    def in_lake(cls, text: str) -> TableName:
        """The name of any table that has events: a changelog beside a mirror too. Raises ValueError with the rule broken."""
        name = cls.of_any(text)
        if name.namespace == RESERVED_NAMESPACE:
            raise ValueError(_RESERVED_RULE)
        return name

    @classmethod
    def of_any(cls, text: str) -> TableName:
        """The name of any table that dolake keeps: that of the dead letters too. Raises ValueError with the rule broken."""
        parts = text.split(".")
        if len(parts) == 1:
            parts = [DEFAULT_NAMESPACE, *parts]
        if len(parts) != 2 or not all(TABLE_PART.fullmatch(part) for part in parts):
            raise ValueError("a table is `name` or `namespace.name`, each part [A-Za-z0-9_]{1,128}")
        return cls(*parts)

    @property
    def sent(self) -> str:
        """What the sources whose events it has call it: a changelog beside a mirror has its mirror's."""
        return str(self).removesuffix(RESERVED_SUFFIX)

    def __str__(self) -> str:
        return f"{self.namespace}.{self.name}"


DEAD_LETTERS_TABLE = TableName(RESERVED_NAMESPACE, "dead_letters")


def normal_pattern(pattern: str) -> str:
    """`orders` is `default.orders`; a lone `*` is every table. Raises ValueError with the rule broken."""
    if pattern == "*":
        return pattern
    parts = pattern.split(".")
    if len(parts) == 1:
        parts = [DEFAULT_NAMESPACE, *parts]
    if len(parts) != 2 or not all(_PATTERN_PART.fullmatch(part) for part in parts):
        raise ValueError("a table pattern is `name` or `namespace.name`, each part of letters, digits, `_` and `*`")
    return ".".join(parts)


def pattern_expression(pattern: str) -> re.Pattern[str]:
    """What a table pattern matches, as an expression over full names (`namespace.name`). Raises ValueError as `normal_pattern`."""
    return re.compile(".*".join(re.escape(part) for part in normal_pattern(pattern).split("*")))


def namespace_expression(pattern: str) -> re.Pattern[str]:
    """The namespaces that a table which the pattern matches may lie in, and those above them, as an expression over full names."""
    if normal_pattern(pattern) == "*":
        return re.compile(".*", re.DOTALL)
    namespace = ".*".join(re.escape(part) for part in normal_pattern(pattern).partition(".")[0].split("*"))
    return re.compile(rf"{namespace}(\..*)?", re.DOTALL)


class TablesLike(Collection[TableName]):
    """The tables that one of some patterns matches. Which exist it does not know, so that it has none to list."""

    def __init__(self, patterns: Iterable[str]) -> None:
        self._expressions = [pattern_expression(pattern) for pattern in patterns]

    def __contains__(self, name: object) -> bool:
        return any(expression.fullmatch(str(name)) for expression in self._expressions)

    def __iter__(self) -> Iterator[TableName]:
        return iter(())

    def __len__(self) -> int:
        return 0


def is_column_name(text: str) -> bool:
    """Whether a source's column may be called so."""
    good = 1 <= len(text) <= COLUMN_NAME_MAX and _NOT_IN_NAMES.search(text) is None
    return good and not text.lower().startswith(RESERVED_COLUMN_PREFIX) and not is_iceberg_column(text)


def is_iceberg_column(text: str) -> bool:
    """Whether Iceberg gives every table a column of this name. Engines that do not mind case take any case for it."""
    return text.lower() in ICEBERG_COLUMNS


_SHORT_FILE = re.compile(r"file:/(?!/)")


def spelled_out(location: str) -> str:
    """A location as dolake writes it. Hadoop's file system, which Spark uses, makes `file:/x` of `file:///x`."""
    return _SHORT_FILE.sub("file:///", location, count=1) if _SHORT_FILE.match(location) else location


# PostgreSQL's, and behind a `+` how many changes of the transaction that commits there.
LSN_TEXT = re.compile(r"([0-9A-Fa-f]{1,8})/([0-9A-Fa-f]{1,8})(?:\+([0-9]{1,18}))?")


def lsn_number(lsn: str) -> int | None:
    """A database's position as a number that rises: PostgreSQL's as the 64-bit number it stands for; a plain number is one."""
    if pair := LSN_TEXT.fullmatch(lsn):
        return (int(pair[1], 16) << 32) + int(pair[2], 16)
    return int(lsn) if lsn.isascii() and lsn.isdigit() else None


class Operation(StrEnum):
    INSERT = "INSERT"
    UPDATE = "UPDATE"
    DELETE = "DELETE"
    TRUNCATE = "TRUNCATE"


class RecordKind(IntEnum):
    """What a log record holds. Stored as one byte: never renumber."""

    BATCH = 1
    SCHEMA = 2
    TRIM = 3
    SIBLINGS = 4
    PARKED = 5


class Codec(IntEnum):
    """How a record's payload is stored. One byte: never renumber."""

    PLAIN = 0
    ZSTD = 1


@dataclass(frozen=True)
class TransactionMark:
    """A source transaction that spans batches; `last` on its final one."""

    id: str
    last: bool


@dataclass(frozen=True)
class Entry:
    """One accepted message on its way into a log: what the ingest half knows of it, and its bytes as received.

    `content` is xxh3_64 of the raw `events` value (batch) or of the body (schema): what says whether a repeat is the same.
    `tables` counts the events of each table, as named in the message, in order of first appearance.
    """

    kind: RecordKind
    source: str
    epoch: str
    sequence: int
    event_count: int
    content: int
    payload: bytes
    tables: Mapping[str, int] = field(default_factory=dict)
    last_event_sequence: int = -1
    last_lsn: str = ""
    transaction: TransactionMark | None = None


@dataclass(frozen=True)
class Record:
    """An entry as it stands in a log. `offset` is its place in the log.

    `stored_bytes` is its whole length there, `size_bytes` what that would be with the payload plain: what holds it in memory
    counts these, what counts disk the others.
    """

    log_id: str
    offset: int
    entry: Entry
    size_bytes: int
    stored_bytes: int
    codec: Codec = Codec.PLAIN


@dataclass
class SourceState:
    """What one log knows of one source: enough to tell new, repeat and gap apart, without a time window.

    `contents` maps the last batches' sequences to their content checksum (`RECENT_CONTENTS` of them);
    `ended_epochs` holds xxh3_64 hashes of epochs that are over.
    """

    source: str
    epoch: str = ""
    last_sequence: int = -1
    last_event_sequence: int = -1
    last_lsn: str = ""
    contents: dict[int, int] = field(default_factory=dict)
    ended_epochs: set[int] = field(default_factory=set)


def epoch_hash(epoch: str) -> int:
    """How an ended epoch is remembered: xxh3_64 of its name."""
    return xxhash.xxh3_64_intdigest(epoch.encode("utf-8", "surrogatepass"))


RECENT_CONTENTS = 64


@dataclass(frozen=True)
class DeclaredColumn:
    """A column as a `schema` message declares it; `type` in Iceberg's notation (column_types.parse_type).

    `default` is the JSON text of the value that rows without this column have; None where rows have none.
    """

    name: str
    type: str
    nullable: bool = True
    default: str | None = None
    renamed_from: str | None = None


@dataclass(frozen=True)
class DeclaredSchema:
    table: str
    primary_key: tuple[str, ...]
    columns: tuple[DeclaredColumn, ...]


@dataclass(frozen=True)
class OffsetRange:
    """Offsets `start` ≤ o < `end` of one log."""

    start: int
    end: int
