"""Dead letters that are sent again: which of them still count.

One is applied at most once, and not at all where a later event of its key, by its own source's numbers, is in the table or
on its way there: that event knew better.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from dolake.iceberg.contents import ContentsReader, LiveFile
from dolake.iceberg.metadata import LoadedTable
from dolake.iceberg.objects import read_file
from dolake.parquet.align import align_columns
from dolake.parquet.decode import read_columns
from dolake.parquet.layout import EventChunk
from dolake.parquet.letters import DEAD, EXPIRED, REPLAYED, SUPERSEDED, Letter, Place
from dolake.parquet.rows import Decoded
from dolake.storage.store import ObjectStore

SENT_AGAIN = "it was sent again before"
NOT_KEPT = "it had expired: nobody watches any longer what comes after it"
NOT_KEPT_OUT = "this table has never kept it out"
OVERTAKEN = "a later event of its key is in the table"
_SEQUENCE_ID = 4  # the field id of `_cdc_sequence`
_ORDER = ["_cdc_source", "_cdc_epoch", "_cdc_sequence"]


@dataclass(frozen=True)
class Judged:
    """The rows of letters that are applied, and a verdict on each of the letters."""

    rows: pa.Table
    letters: tuple[Letter, ...]


def judge_again(
    chunk: EventChunk,
    decoded: Decoded,
    states: Mapping[Place, str],
    settled: Mapping[int, str],
    later: Sequence[pa.Table],
    key: Sequence[str],
) -> Judged:
    """`states`: letter → its newest outcome; `later`: rows of the table (`columns_compared`); `key` may be empty.

    Without a declared key an event's row id is its key; without either nothing overtakes it. `settled`: indexes of events
    that a verdict stands on already, from before a crash: those are applied, and judged no more, unless no row can be made
    of them any more (a setting, or another log's schema, is not what it was): then they are dead letters again.

    What is in no state was not kept out of this table but of the one beside it (a mirror and its changelog hear the same): its row
    is here, or what became of it.
    """
    kept_out = {letter.place.index: letter for letter in decoded.letters}
    overtaken = _overtaken(decoded.rows, later, list(key) or ["_cdc_row_id"])
    letters, applied = [], []
    rows = iter(range(decoded.rows.num_rows))
    for place, index in enumerate(chunk.indexes):
        original = chunk.originals[place]
        row = None if index in kept_out else next(rows)
        if index in settled:
            if row is None:
                letters.append(_dead_again(kept_out[index], original))
            else:
                applied.append(row)
        elif (state := states.get(original)) != DEAD:
            letters.append(_again(chunk, place, SUPERSEDED, _why_not(state)))
        elif row is None:
            letters.append(_dead_again(kept_out[index], original))
        elif row in overtaken:
            letters.append(_again(chunk, place, SUPERSEDED, OVERTAKEN))
        else:
            letters.append(_again(chunk, place, REPLAYED, ""))
            applied.append(row)
    return Judged(decoded.rows.take(pa.array(applied, pa.int64())), tuple(letters))


def _why_not(state: str | None) -> str:
    return NOT_KEPT_OUT if state is None else NOT_KEPT if state == EXPIRED else SENT_AGAIN


def _again(chunk: EventChunk, place: int, outcome: str, rule: str) -> Letter:
    where = Place(chunk.log, chunk.offset, chunk.indexes[place])
    original = chunk.originals[place]
    return Letter(original, chunk.source, chunk.epoch, outcome, "", rule, "", chunk.events[place], outcome, again=where)


def _dead_again(letter: Letter, original: Place) -> Letter:
    return replace(letter, place=original, again=letter.place)


def _overtaken(rows: pa.Table, later: Sequence[pa.Table], key: Sequence[str]) -> set[int]:
    """Which of `rows` have a later event of their key."""
    newest: dict[tuple[Any, ...], int] = {}
    for table in later:
        near = _with_keys_of(table, rows, key)
        for row in near.select([*_ORDER, *key]).to_pylist():
            names = (row["_cdc_source"], row["_cdc_epoch"], *(row[name] for name in key))
            newest[names] = max(newest.get(names, -1), row["_cdc_sequence"])
    found = set()
    for number, row in enumerate(rows.select([*_ORDER, *key]).to_pylist()):
        values = [row[name] for name in key]
        known = newest.get((row["_cdc_source"], row["_cdc_epoch"], *values), -1)
        if all(value is not None for value in values) and known > row["_cdc_sequence"]:
            found.add(number)
    return found


def _with_keys_of(table: pa.Table, rows: pa.Table, key: Sequence[str]) -> pa.Table:
    """The rows of `table` that may have a key of `rows`: column by column, so that few are looked at one by one."""
    for name in key:
        values, wanted = _plain(table[name]), _plain(rows[name])
        table = table.filter(pc.is_in(values, value_set=pc.unique(wanted).drop_null()))
    return table


def _plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """The column in a type that Arrow can look values up in."""
    if isinstance(column.type, pa.BaseExtensionType):
        return pa.chunked_array([chunk.storage for chunk in column.chunks], column.type.storage_type)
    return column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column


def columns_compared(key: Sequence[str]) -> list[str]:
    """The columns that `judge_again` looks at in a table's rows."""
    return [*_ORDER, *(list(key) or ["_cdc_row_id"])]


def read_later(store: ObjectStore, base: LoadedTable | None, wanted: pa.Schema, sequence_min: int) -> list[pa.Table]:
    """The columns `wanted` of what is committed with a sequence above `sequence_min`; a mirror's rows have none. Blocks."""
    if base is None or base.head is None or all(column["id"] != _SEQUENCE_ID for column in base.schema["fields"]):
        return []
    files = [file for file in ContentsReader(store).read(base.head).files if file.kind == "data" and _may_hold(file, sequence_min)]
    found = []
    for file in files:
        rows = align_columns(read_columns(read_file(store, file.location, file.size_bytes)), wanted)
        found.append(rows.filter(pc.greater(rows["_cdc_sequence"], sequence_min)))
    return found


def _may_hold(file: LiveFile, sequence_min: int) -> bool:
    bound = file.upper_bounds.get(_SEQUENCE_ID)
    return bound is None or int.from_bytes(bound, "little", signed=True) > sequence_min
