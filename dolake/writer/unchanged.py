"""Columns that an update names as unchanged: values the database did not send keep what the row has.

That is what an earlier event of the same flush says of the row, under its old key where the update changes it, or else the table.
An update of a row that does not exist is refused. Only the events of keys that such an update touches are looked at, one after
the other; all others never come here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from dolake.buffer.fold import Flags
from dolake.parquet.keys import KeyHashes
from dolake.writer.folding import DELETE, TRUNCATE, UPDATE, MirrorRows, Refusal

Hash = tuple[int, int]
REASON = "unchanged_without_row"


@dataclass(frozen=True)
class Kept:
    """Where a value comes from: a row of the flush, or a row of the table by its number."""

    row: int
    committed: bool


@dataclass
class Resolved:
    """By row and column where its unchanged values come from, and the updates of rows that are not there."""

    kept: dict[int, dict[str, Kept]] = field(default_factory=dict)
    refusals: list[Refusal] = field(default_factory=list)

    def committed_rows(self) -> list[int]:
        """Numbers of the table's rows that are needed, once each, rising."""
        return sorted({kept.row for columns in self.kept.values() for kept in columns.values() if kept.committed})


@dataclass(frozen=True)
class _Row:
    """What a key's row is: an event's, apart from the columns that come from elsewhere; or the table's."""

    origin: Kept
    apart: Mapping[str, Kept] = field(default_factory=dict)

    def column(self, name: str) -> Kept:
        return self.apart.get(name, self.origin)


# The numbers of the table's rows of some keys; a key it does not have is absent.
LookUp = Callable[[KeyHashes], Mapping[int, int]]


def resolve(
    rows: MirrorRows, taken: Flags, truncates: Sequence[int], columns_of: Callable[[int], Sequence[str] | None], look_up: LookUp
) -> Resolved:
    """`taken`: events that were not refused; `truncates`: rows of those that hold; `columns_of`: a row's unchanged columns, None where its
    event names none at all; there must be a row even where the table has none of the columns."""
    named = np.asarray(rows.rows["_cdc_unchanged"].combine_chunks().is_valid()) & taken & (rows.operations == UPDATE)
    unchanged = {int(row): found for row in np.flatnonzero(named) if (found := columns_of(int(row))) is not None}
    resolved = Resolved()
    if unchanged:
        _Walk(rows, taken, unchanged, look_up, resolved).run(truncates)
    return resolved


class _Walk:
    """Goes through the events of the keys in question, in their order."""

    def __init__(self, rows: MirrorRows, taken: Flags, unchanged: Mapping[int, Sequence[str]], look_up: LookUp, resolved: Resolved) -> None:
        self.rows, self.unchanged, self.resolved = rows, unchanged, resolved
        self.old = {int(row): place for place, row in enumerate(rows.old_rows.tolist())}
        touches = rows.touches(taken, -1)
        hashes = _hashes(KeyHashes(touches.high, touches.low))
        concerned = {hashes[place] for place, row in enumerate(touches.rows.tolist()) if row in unchanged}
        self.events = sorted({row for place, row in enumerate(touches.rows.tolist()) if hashes[place] in concerned})
        keys = sorted(concerned)
        wanted = KeyHashes(np.array([high for high, _ in keys], np.uint64), np.array([low for _, low in keys], np.uint64))
        self.current: dict[Hash, _Row | None] = dict.fromkeys(keys)
        for place, number in look_up(wanted).items():
            self.current[keys[place]] = _Row(Kept(number, True))

    def run(self, truncates: Sequence[int]) -> None:
        waiting = list(truncates)
        for row in self.events:
            while waiting and waiting[0] < row:
                waiting.pop(0)
                self.current = dict.fromkeys(self.current)
            self.take(row)

    def take(self, row: int) -> None:
        key = (int(self.rows.keys.high[row]), int(self.rows.keys.low[row]))
        old = key
        if (place := self.old.get(row)) is not None:
            old = (int(self.rows.old_keys.high[place]), int(self.rows.old_keys.low[place]))
        after: _Row | None = None if self.rows.operations[row] in (DELETE, TRUNCATE) else _Row(Kept(row, False))
        if (names := self.unchanged.get(row)) is not None:
            before = self.current.get(old)
            if before is None:
                rule = "names columns as unchanged, and there is no row that has them"
                self.resolved.refusals.append(Refusal(row, REASON, "metadata.unchanged", rule))
                return
            kept = {name: before.column(name) for name in names}
            self.resolved.kept[row] = kept
            after = _Row(Kept(row, False), kept)
        if old != key and old in self.current:
            self.current[old] = None
        if key in self.current:
            self.current[key] = after


def fill(rows: pa.Table, kept: Mapping[int, Mapping[str, Kept]], committed: pa.Table, numbers: Sequence[int]) -> pa.Table:
    """`rows` with their unchanged values. `committed` are rows of the table, in the order of their `numbers`."""
    places = {number: place for place, number in enumerate(numbers)}
    by_column: dict[str, list[tuple[int, Kept]]] = {}
    for row, columns in kept.items():
        for name, one in columns.items():
            by_column.setdefault(name, []).append((row, one))
    for name, ones in by_column.items():
        at = rows.schema.get_field_index(name)
        here = rows.column(at)
        take = np.arange(rows.num_rows)
        for row, one in ones:
            take[row] = rows.num_rows + places[one.row] if one.committed else one.row
        both = pa.chunked_array([*here.chunks, *committed.column(name).chunks], here.type)
        rows = rows.set_column(at, rows.schema.field(at), both.take(pa.array(take)))
    return rows


def _hashes(keys: KeyHashes) -> list[Hash]:
    return list(zip(keys.high.tolist(), keys.low.tolist(), strict=True))
