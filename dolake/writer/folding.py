"""Rows of one flush of a mirror table: in their order, with the hashes of their keys, and what of them is left when they are folded.

Values in, values out. What needs the table's present rows (`unchanged` columns) is in `writer.unchanged`, and what the flush does
to the table in `writer.mirroring`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pyiceberg.schema import Schema

from dolake.buffer.fold import Flags, Folded, Places, Touches, fold
from dolake.parquet.exact import OPERATION_VALUES
from dolake.parquet.keys import KeyHashes, key_hashes
from dolake.parquet.letters import Place
from dolake.parquet.mirror import MirrorKey, old_key_columns

INSERT, UPDATE, DELETE, TRUNCATE = range(4)


@dataclass(frozen=True)
class Refusal:
    """An event (by its row) that makes no row of a mirror, and why: a dead letter."""

    row: int
    reason: str
    field: str
    rule: str


@dataclass(frozen=True)
class MirrorRows:
    """Events of one flush as rows, in the order in which they hold. `old_rows` are those whose key changed, `old_keys` from what."""

    rows: pa.Table
    operations: npt.NDArray[np.int64]
    keys: KeyHashes
    keyless: Flags
    old_rows: Places
    old_keys: KeyHashes
    sources: npt.NDArray[np.int32]
    source_names: tuple[str, ...]

    @classmethod
    def of(cls, pieces: Iterable[pa.Table], schema: Schema, key: MirrorKey, seed: int) -> MirrorRows:
        """`pieces` are under `schema`, that of the events' rows. Blocks."""
        rows = _ordered(pa.concat_tables(pieces).unify_dictionaries())
        operations = np.asarray(pc.index_in(_one(rows["_cdc_operation"].cast(pa.string())), value_set=OPERATION_VALUES)).astype(np.int64)
        columns = [_one(rows[name]) for name in key.names]
        keyless = np.zeros(rows.num_rows, np.bool_)
        for column in columns:
            if column.null_count:
                keyless |= np.asarray(column.is_null())
        keyless &= operations != TRUNCATE
        old_rows, old_keys = _old_keys(rows, schema, key, seed, operations, keyless)
        sources = _one(rows["_cdc_source"].combine_chunks())
        names = tuple(sources.dictionary.to_pylist())
        codes = np.asarray(sources.indices).astype(np.int32)
        return cls(rows, operations, key_hashes(columns, seed), keyless, old_rows, old_keys, codes, names)

    @property
    def count(self) -> int:
        return int(self.rows.num_rows)

    @cached_property
    def truncates(self) -> list[int]:
        return [int(row) for row in np.flatnonzero(self.operations == TRUNCATE)]

    def place(self, row: int) -> Place:
        return Place(*(self.rows[name][row].as_py() for name in ("_cdc_log", "_cdc_offset", "_cdc_index")))

    def touches(self, taken: Flags, after: int) -> Touches:
        """What the events that are `taken`, and come after row `after`, do to keys."""
        wanted = taken & (self.operations != TRUNCATE)
        wanted[: after + 1] = False
        new = np.flatnonzero(wanted)
        old = np.flatnonzero(wanted[self.old_rows]) if len(self.old_rows) else np.zeros(0, np.int64)
        rows = np.concatenate([self.old_rows[old], new])
        # An update of a key first takes the old one away.
        order = np.argsort(rows, kind="stable")
        high = np.concatenate([self.old_keys.high[old], self.keys.high[new]])[order]
        low = np.concatenate([self.old_keys.low[old], self.keys.low[new]])[order]
        leaves = np.concatenate([np.zeros(len(old), np.bool_), self.operations[new] != DELETE])[order]
        rows = rows[order]
        return Touches(high, low, rows, leaves, self.sources[rows])

    def fold(self, taken: Flags, after: int) -> Folded:
        return fold(self.touches(taken, after))


def refuse_keyless(rows: MirrorRows, key: MirrorKey) -> list[Refusal]:
    rule = "an event of a mirror table names its row: by {}"
    named = "`rowId`" if key.names == ("_cdc_row_id",) else f"the key ({', '.join(key.names)}), a delete by its before image"
    return [Refusal(int(row), "no_key", ", ".join(key.names), rule.format(named)) for row in np.flatnonzero(rows.keyless)]


def refuse_nulls(rows: MirrorRows, required: Collection[str], taken: Flags) -> list[Refusal]:
    """Rows that would be left without a value that the source has declared to be there."""
    writes = taken & (rows.operations < DELETE)
    rule = "declared `nullable: false`, so a value is expected"
    refusals = []
    for name in required:
        column = _one(rows.rows[name])
        if column.null_count:
            missing = np.asarray(column.is_null()) & writes & ~_names(rows.rows, name)
            refusals += [Refusal(int(row), "null", name, rule) for row in np.flatnonzero(missing)]
    return refusals


def last_truncate(rows: MirrorRows, taken: Flags, shared: bool, writers: Collection[str]) -> tuple[int, list[Refusal]]:
    """The row of the last TRUNCATE that holds, -1 where none does; one of a table that others write too is refused, unless `shared`.

    `writers`: sources that have written the table before this flush.
    """
    last, refusals = -1, []
    for row in filter(taken.__getitem__, rows.truncates):
        mine = rows.source_names[rows.sources[row]]
        before = {rows.source_names[code] for code in np.unique(rows.sources[:row]).tolist()}
        others = (set(writers) | before) - {mine}
        if others and not shared:
            rule = 'other sources write this table too, and a TRUNCATE would take their rows; `truncate = "table"` allows it'
            refusals.append(Refusal(row, "truncate_of_shared_table", "operation", rule))
        else:
            last = row
    return last, refusals


def _names(rows: pa.Table, name: str) -> Flags:
    """Whether a row's event names the column as unchanged."""
    unchanged = _one(rows["_cdc_unchanged"])
    found = np.zeros(rows.num_rows, np.bool_)
    if unchanged.null_count < len(unchanged):
        hits = pc.equal(unchanged.flatten(), name)
        parents = np.asarray(pc.list_parent_indices(unchanged))
        found[parents[np.asarray(pc.fill_null(hits, False))]] = True
    return found


def _old_keys(
    rows: pa.Table, schema: Schema, key: MirrorKey, seed: int, operations: npt.NDArray[np.int64], keyless: Flags
) -> tuple[Places, KeyHashes]:
    texts = _one(rows["_cdc_key_before"])
    none = np.zeros(0, np.int64)
    if texts.null_count == len(texts):
        return none, KeyHashes.joined(())
    places = np.flatnonzero(np.asarray(texts.is_valid()) & (operations == UPDATE) & ~keyless)
    readable, columns = old_key_columns(texts.take(pa.array(places)).to_pylist(), key.names, schema)
    if not readable:
        return none, KeyHashes.joined(())
    return places[np.array(readable, np.int64)], key_hashes(columns, seed)


def _ordered(rows: pa.Table) -> pa.Table:
    """By log, offset and index. Within one log they are."""
    logs = _one(rows["_cdc_log"].combine_chunks())
    names: Sequence[str] = logs.dictionary.to_pylist()
    codes = np.asarray(logs.indices)
    if len(codes) == 0 or codes.min() == codes.max():
        return rows
    ranks = np.argsort(np.argsort(np.array(names)))[codes]
    order = np.lexsort((np.asarray(_one(rows["_cdc_index"])), np.asarray(_one(rows["_cdc_offset"])), ranks))
    return rows.take(pa.array(order))


def _one(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    if not isinstance(column, pa.ChunkedArray):
        return column
    if column.num_chunks == 0:
        return pa.nulls(0, column.type)
    return column.chunk(0) if column.num_chunks == 1 else pa.concat_arrays(column.chunks)
