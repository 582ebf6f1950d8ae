"""A mirror's rows against what a dict has made of events (I8), and a changelog's against the events themselves (I7)."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from dolake.iceberg.contents import LiveFile
from dolake.iceberg.expired import ExpiredBelow
from dolake.iceberg.metadata import LoadedTable
from dolake.verify.breach import Breach, Note
from dolake.verify.events import EventReader, column_of, plain_values
from dolake.verify.fold import UNKNOWN, Entry, Fold
from dolake.verify.keys import KeyedRows, TableKey, hashes_of
from dolake.verify.rows import SHOWN_MAX, expired_count
from dolake.verify.strangers import Strangers, is_foreign
from dolake.verify.values import RowLoader, differing

_SLICE_ROWS = 1 << 16

# The rows that references stand for: columns by name, in the order of the references; a None is any row.
RowsOf = Callable[[Sequence[str], Mapping[str, Sequence[Any]]], pa.Table]


@dataclass
class Compared:
    """How much was looked at, so that nothing found is not taken for nothing wrong."""

    events: int = 0
    keys: int = 0
    rows: int = 0
    dead_letters: int = 0
    contested_keys: int = 0
    foreign_keys: int = 0
    unsure_keys: int = 0
    unknown_values: int = 0
    expired_rows: int = 0

    def __iadd__(self, other: Compared) -> Compared:
        for name, count in vars(other).items():
            setattr(self, name, getattr(self, name) + count)
        return self


@dataclass
class MirrorComparison:
    """One mirror, once its events are folded. `said_by` names what they were read from; `where` an event, by its reference."""

    table: LoadedTable
    key: TableKey
    rows: KeyedRows
    strangers: Strangers
    loader: RowLoader
    reader: EventReader
    said_by: str
    where: Callable[[Any], str]
    counts: Compared = field(default_factory=Compared)
    _shown: int = 0
    _missing: int = 0

    def run(self, fold: Fold, rows_of: RowsOf) -> Iterator[Breach | Note]:
        entries: list[Entry] = []
        apart: list[Entry] = []
        for entry in fold.entries():
            self.counts.contested_keys += entry.contested
            self.counts.unsure_keys += entry.unsure and not entry.contested
            (apart if entry.contested or entry.unsure else entries).append(entry)
        known: set[int] = set()
        for start in range(0, len(apart), _SLICE_ROWS):
            known.update(row for rows in self._find(apart[start : start + _SLICE_ROWS]) for row in rows)
        for start in range(0, len(entries), _SLICE_ROWS):
            part = entries[start : start + _SLICE_ROWS]
            found = self._find(part)
            known.update(row for rows in found for row in rows)
            yield from self._compare(part, found, rows_of)
        if fold.whole:
            yield from self._strays(known)
        if self._missing:
            sentence = f"{self._missing} keys have no row and should by {self.said_by}; others have taken rows out of the table"
            yield Note(str(self.table.name), sentence)

    def _find(self, entries: Sequence[Entry]) -> list[list[int]]:
        kinds = [self.reader.arrow.field(name).type for name in self.key.names]
        columns = [column_of([entry.key[place] for entry in entries], kind) for place, kind in enumerate(kinds)]
        return self.rows.find(hashes_of(columns))

    def _compare(self, entries: Sequence[Entry], found: Sequence[Sequence[int]], rows_of: RowsOf) -> Iterator[Breach | Note]:
        pairs: list[tuple[Entry, int]] = []
        absent: list[Entry] = []
        for entry, rows in zip(entries, found, strict=True):
            if any(is_foreign(self.rows.file_of(row)) for row in rows):
                self.counts.foreign_keys += 1
                continue
            self.counts.keys += 1
            if entry.row is None and rows:
                yield from self._breach(f"key {self._text(entry)} has a row, and {self.said_by} has none left of it")
            elif entry.row is not None and not rows:
                absent.append(entry)
            elif entry.row is not None:
                pairs.append((entry, rows[0]))
        for entry in self._not_expired(absent, rows_of):
            yield from self._absent(entry)
        yield from self._compare_values(pairs, rows_of)

    def _not_expired(self, absent: Sequence[Entry], rows_of: RowsOf) -> Sequence[Entry]:
        """Those whose rows cannot have expired: by the value that they should have, and there were not as many that did."""
        below = ExpiredBelow.of(self.table.properties)
        if not absent or below is None:
            return absent
        name = _ttl_column(self.table, below, self.reader)
        may_have = [True] * len(absent)
        if name is not None:
            origins = [_known(entry.origin(name)) for entry in absent]
            values = plain_values(rows_of([name], {name: origins})[name])
            may_have = [origin is None or below.may_have(value) for origin, value in zip(origins, values, strict=True)]
        left = expired_count(self.table) - self.counts.expired_rows
        gone = set([number for number, may in enumerate(may_have) if may][: max(0, left)])
        self.counts.expired_rows += len(gone)
        return [entry for number, entry in enumerate(absent) if number not in gone]

    def _absent(self, entry: Entry) -> Iterator[Breach]:
        if self.strangers.been_here:
            self._missing += 1
            return
        yield from self._breach(f"key {self._text(entry)} has no row, and {self._where(entry)} leaves one")

    def _compare_values(self, pairs: Sequence[tuple[Entry, int]], rows_of: RowsOf) -> Iterator[Breach]:
        if not pairs:
            return
        names = self.loader.schema.names
        origins = {name: [_known(entry.origin(name)) for entry, _ in pairs] for name in names}
        self.counts.unknown_values += sum(origin is None for column in origins.values() for origin in column)
        expected = rows_of(names, origins)
        there = self.loader.rows([(self.rows.file_of(row), int(self.rows.positions[row])) for _, row in pairs])

        def skipped(number: int, name: str) -> bool:
            if origins[name][number] is None or name in self.reader.unsure_columns:
                return True
            return name in self.reader.defaulted and expected[name][number].as_py() is None

        wrong: dict[int, list[str]] = {}
        for number, name in differing(expected, there, skipped, once_floats(self.table)):
            wrong.setdefault(number, []).append(name)
        for number, names in wrong.items():
            entry = pairs[number][0]
            yield from self._breach(f"key {self._text(entry)}: {', '.join(names)} {_is(names)} not what {self._where(entry)} leaves")

    def _strays(self, known: set[int]) -> Iterator[Breach]:
        unknown = np.setdiff1d(np.arange(len(self.rows.positions)), np.fromiter(known, np.int64, len(known)))
        for row in unknown.tolist():
            if self._shown == SHOWN_MAX:
                return
            if not is_foreign(self.rows.file_of(row)):
                where = f"row {self.rows.positions[row]} of {self.rows.file_of(row).location}"
                yield from self._breach(f"{where}: {self.said_by} has no event that leaves it")

    def _breach(self, sentence: str) -> Iterator[Breach]:
        self._shown += 1
        if self._shown <= SHOWN_MAX:
            yield Breach("I8", str(self.table.name), sentence)

    def _text(self, entry: Entry) -> str:
        return json.dumps(dict(zip(self.key.names, entry.key, strict=True)), ensure_ascii=False, default=_shown)

    def _where(self, entry: Entry) -> str:
        return f"{self.said_by}" if entry.row is UNKNOWN else f"{self.where(entry.row)} of {self.said_by}"


@dataclass
class ChangelogComparison:
    """A changelog's rows of records that the logs still have. `places`: where its rows stand, by log, offset and index."""

    table: LoadedTable
    loader: RowLoader
    reader: EventReader
    places: Mapping[tuple[str, int, int], tuple[LiveFile, int]]
    counts: Compared = field(default_factory=Compared)
    _waiting: list[Mapping[str, Any]] = field(default_factory=list)
    _shown: int = 0

    def take(self, row: Mapping[str, Any], place: tuple[str, int, int], sure: bool) -> Iterator[Breach]:
        """`row` as the reader gives it, with the columns of its record; `sure` is false where its old key may not have been known."""
        if place not in self.places:
            yield from self._absent(row, place)
            return
        self._waiting.append({**row, "\0sure": sure, "\0at": place})
        if len(self._waiting) >= _SLICE_ROWS:
            yield from self.finish()

    def _absent(self, row: Mapping[str, Any], place: tuple[str, int, int]) -> Iterator[Breach]:
        """Where rows have expired one may be missing by its value alone; where none has, the counts of its record tell."""
        below = ExpiredBelow.of(self.table.properties)
        if below is None:
            return
        name = _ttl_column(self.table, below, self.reader)
        if name is None or below.may_have(plain_values(self.reader.table_of([row], [name])[name])[0]):
            self.counts.expired_rows += 1
            return
        self._shown += 1
        if self._shown <= SHOWN_MAX:
            where = f"event {place[2]} of offset {place[1]} of log {place[0]}"
            yield Breach("I7", str(self.table.name), f"{where} has no row, and {name} is too young to have expired")

    def finish(self) -> Iterator[Breach]:
        """Compares what waits."""
        rows, self._waiting = self._waiting, []
        if not rows:
            return
        self.counts.rows += len(rows)
        expected = self.reader.table_of(rows, self.loader.schema.names)
        there = self.loader.rows([self.places[row["\0at"]] for row in rows])

        def skipped(number: int, name: str) -> bool:
            if name in self.reader.unsure_columns or (name == "_cdc_key_before" and not rows[number]["\0sure"]):
                return True
            return name in self.reader.defaulted and expected[name][number].as_py() is None

        wrong: dict[int, list[str]] = {}
        for number, name in differing(expected, there, skipped, once_floats(self.table)):
            wrong.setdefault(number, []).append(name)
        for number, names in wrong.items():
            self._shown += 1
            if self._shown > SHOWN_MAX:
                return
            log, offset, index = rows[number]["\0at"]
            where = f"event {index} of offset {offset} of log {log}"
            yield Breach("I7", str(self.table.name), f"{where}: {', '.join(names)} {_is(names)} not what the log says")


def _ttl_column(table: LoadedTable, below: ExpiredBelow, reader: EventReader) -> str | None:
    """The column whose values tell whether a row may have expired; None where any may have."""
    name = next((column["name"] for column in table.schema["fields"] if column["id"] == below.field_id), None)
    return None if name in reader.unsure_columns or name in reader.defaulted else name


def once_floats(table: LoadedTable) -> set[str]:
    """Columns of doubles that were floats once."""
    narrow = {column["id"] for schema in table.metadata["schemas"] for column in schema["fields"] if column["type"] == "float"}
    return {column["name"] for column in table.schema["fields"] if column["id"] in narrow and column["type"] == "double"}


def _known(origin: Any) -> Any:
    return None if origin is UNKNOWN else origin


def _is(names: Sequence[str]) -> str:
    return "is" if len(names) == 1 else "are"


def _shown(value: Any) -> str:
    return value.hex() if isinstance(value, bytes) else str(value)
