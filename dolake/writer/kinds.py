"""What kind of table it is, and its running counts: what a table's properties say beside offsets and schemas.

A table is made a mirror or a changelog once, by its first rows, and says which in `dolake.mode`. The setting decides for new tables;
for one that is there it may turn the changelog beside a mirror on and off, and nothing else: a mirror does not know what was before,
and a changelog's rows are no rows of a mirror.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields, replace
from enum import StrEnum

import pyarrow.compute as pc
from pyiceberg.schema import Schema

from dolake.buffer.memtable import Frozen
from dolake.errors import TableStopped
from dolake.iceberg.metadata import LoadedTable
from dolake.iceberg.notes import COUNT_PREFIX
from dolake.model import DEAD_LETTERS_SOURCE, RESERVED_SUFFIX, ROW_ID_COLUMN, TableName
from dolake.parquet.align import schema_from_json
from dolake.parquet.mirror import is_mirror, mirror_schema
from dolake.writer.reading import EventReader

MODE_PROPERTY = "dolake.mode"
# Of a changelog that should have been a mirror, and had no key.
KEYLESS_PROPERTY = "dolake.keyless"
# Sources that have written a mirror, as a JSON array of at most two: more are not asked for.
WRITERS_PROPERTY = "dolake.writers"
COUNTS_KEY = COUNT_PREFIX + "accepted"  # stated wherever the others are
_WRITERS_MAX = 2


class Kind(StrEnum):
    """`UNDECIDED`: a mirror, if its first rows have a key."""

    MIRROR = "mirror"
    CHANGELOG = "changelog"
    UNDECIDED = ""


@dataclass(frozen=True)
class WantedMode:
    """What the settings want a table to be; `said` where somebody has written it down."""

    kind: Kind = Kind.CHANGELOG
    said: bool = False


def wanted_mode(name: TableName, mode: str, said: bool) -> WantedMode:
    """`mode` as the settings have it for `name`; a changelog beside a mirror is one whatever they say."""
    if name.name.endswith(RESERVED_SUFFIX) or mode == Kind.CHANGELOG:
        return WantedMode(Kind.CHANGELOG, said)
    return WantedMode(Kind.MIRROR, said)


def kind_of(table: str, wanted: WantedMode, base: LoadedTable | None) -> Kind:
    """Raises TableStopped where the table cannot become what is wanted, and somebody has said so."""
    there = kind_there(base)
    if there is Kind.UNDECIDED:
        return Kind.UNDECIDED if wanted.kind is Kind.MIRROR else Kind.CHANGELOG
    if there is wanted.kind or not wanted.said:
        return there
    assert base is not None  # Or nothing would be there.
    if there is Kind.CHANGELOG:
        if KEYLESS_PROPERTY in base.properties:
            return there
        reason = (
            f'it is a changelog, and a mirror of it cannot be made in place; set mode = "changelog" for it, or drop it '
            f"(`dolake tables drop {table}`) and send its rows again"
        )
    else:
        reason = (
            'it is a mirror, and what was before is not known; set mode = "both" to have a changelog beside it, or drop it '
            f"(`dolake tables drop {table}`) to begin one"
        )
    raise TableStopped(table, reason, field="mode")


def kind_there(base: LoadedTable | None) -> Kind:
    """What a table is, as it says itself; undecided where there is none."""
    if base is None:
        return Kind.UNDECIDED
    stated = base.properties.get(MODE_PROPERTY, "")
    if stated in (Kind.MIRROR, Kind.CHANGELOG):
        return Kind(stated)
    return Kind.UNDECIDED if is_mirror(schema_from_json(base.schema)) else Kind.CHANGELOG


@dataclass(frozen=True)
class Counts:
    """Of a table's events since it was made. Accepted ones are rows, dead letters, or folded away; some rows were removed.

    `folded`: events that left no row (a later one of their key did, or they are deletes); `removed`: rows taken out again;
    `foreign`: rows that others put in, less those they took out; `contested`: keys that were found written by two sources;
    `rolled_back`: rows that rollbacks took out without taking the offsets back, less those they put in again; `expired`: rows that the
    table's TTL took out.
    """

    accepted: int = 0
    dead: int = 0
    folded: int = 0
    removed: int = 0
    foreign: int = 0
    contested: int = 0
    rolled_back: int = 0
    expired: int = 0

    @classmethod
    def of(cls, properties: Mapping[str, str]) -> Counts:
        return cls(**{one.name: int(properties.get(_property(one.name), "0")) for one in fields(cls)})

    def plus(self, other: Counts) -> Counts:
        return replace(self, **{one.name: getattr(self, one.name) + getattr(other, one.name) for one in fields(self)})

    @property
    def rows(self) -> int:
        """Rows that are in the table."""
        return self.accepted - self.dead - self.folded - self.removed - self.rolled_back - self.expired + self.foreign

    def as_properties(self, before: Counts) -> dict[str, str]:
        """What is nought is left out, unless it was not `before`: what a property said stays until it is said anew.

        What has expired is said only by who changes it: a flush that was planned before a TTL's late commit must not take that back.
        """
        stated = {one.name for one in fields(self) if getattr(self, one.name) or getattr(before, one.name)}
        if self.expired == before.expired:
            stated.discard("expired")
        return {_property(name): str(getattr(self, name)) for name in sorted({"accepted", *stated})}


def _property(name: str) -> str:
    return COUNT_PREFIX + ("dead-lettered" if name == "dead" else name.replace("_", "-"))


def writers_in(properties: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(json.loads(properties.get(WRITERS_PROPERTY, "[]")))


def with_writers(known: Collection[str], more: Collection[str]) -> tuple[str, ...]:
    """As many as tell whether somebody else than any one source writes the table."""
    return tuple(dict.fromkeys([*known, *sorted(more)]))[:_WRITERS_MAX]


def decided(kind: Kind, frozen: Frozen, reading: EventReader) -> tuple[Kind, bool]:
    """What the first rows make of a table that is to be a mirror, and whether it cannot be one for want of a key."""
    if kind is not Kind.UNDECIDED or reading.key.names != (ROW_ID_COLUMN,):
        return Kind.MIRROR if kind is Kind.UNDECIDED and frozen.pieces else kind, False
    rows = [piece for piece in frozen.pieces if pc.any(pc.not_equal(piece["_cdc_operation"], "TRUNCATE")).as_py()]
    if any(piece[ROW_ID_COLUMN].null_count < piece.num_rows for piece in rows):
        return Kind.MIRROR, False
    if not rows or all(record.pin.source == DEAD_LETTERS_SOURCE for record in frozen.records if record.rows):
        return kind, False  # Letters come through a log of their own, perhaps before the key that their source has declared.
    return Kind.CHANGELOG, True


def table_schema(kind: Kind, reading: EventReader, base: LoadedTable | None) -> Schema:
    """What a table of that kind makes of the columns that are read for it."""
    if kind is Kind.CHANGELOG:
        return reading.schema
    ids = {column.name: column.field_id for column in reading.schema.fields}
    required = {*reading.key.ids, *(ids[name] for name in reading.never_null() if name in ids)}
    if base is not None:  # What may be null somewhere stays so.
        required &= {column["id"] for column in base.schema["fields"] if column["required"]}
    return mirror_schema(reading.schema, reading.key, required)
