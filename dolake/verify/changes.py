"""A mirror against the changelog beside it, where that has every event of the mirror's, and no other (I8)."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from dolake.iceberg.contents import LiveFile
from dolake.iceberg.metadata import LoadedTable
from dolake.iceberg.objects import read_file
from dolake.iceberg.skipped import skipped_in
from dolake.parquet.align import align_columns
from dolake.parquet.decode import read_columns
from dolake.verify.breach import Breach, Note
from dolake.verify.compare import MirrorComparison
from dolake.verify.events import EventReader, plain_values
from dolake.verify.fold import Event, Fold
from dolake.verify.keys import TableKey
from dolake.verify.rows import ACCEPTED, expired_count
from dolake.verify.tables import Surroundings, TableRows
from dolake.verify.values import RowLoader, no_rows

_NEEDED = ("_cdc_log", "_cdc_offset", "_cdc_index", "_cdc_source", "_cdc_operation", "_cdc_key_before", "_cdc_unchanged")
_BATCH_ROWS = 1 << 16


def may_compare(mirror: TableRows, changes: TableRows) -> bool:
    """Whether the changelog has what the mirror was made of: the same offsets, and as many events accepted from the start."""
    one, other = mirror.table, changes.table
    same_end = one.offsets() == other.offsets() and one.properties.get(ACCEPTED) == other.properties.get(ACCEPTED)
    same_end = same_end and skipped_in(one.properties) == skipped_in(other.properties)
    sound = mirror.whole and changes.whole and mirror.keyed is not None and mirror.key is not None and not mirror.key.moved
    return same_end and sound and other.head is not None and not (changes.strangers is None or changes.strangers.been_here)


def verify_mirror_of(mirror: TableRows, changes: TableRows, around: Surroundings) -> Iterator[Breach | Note]:
    """Only where `may_compare`."""
    assert mirror.key is not None
    assert mirror.keyed is not None
    assert mirror.strangers is not None
    if gone := expired_count(changes.table):
        sentence = f"{gone} of its rows have expired, and what they made of a key is not known any more"
        yield Note(str(mirror.table.name), f"not compared with {changes.table.name}: {sentence}")
        return
    names = {column["name"] for column in changes.table.schema["fields"]}
    if not names >= {*mirror.key.names, *_NEEDED}:
        return
    left_out = frozenset(around.judged.kept_out(mirror.table))
    if alone := frozenset(around.judged.kept_out(changes.table)) - left_out:
        sentence = f"{len(alone)} events are dead letters of it alone: the mirror has read them under another schema"
        yield Note(str(mirror.table.name), f"not compared with {changes.table.name}: {sentence}")
        return
    rows = _Rows(changes, around, mirror.key)
    reader = EventReader(mirror.table, mirror.key, mirror.key.names, None)
    fold = Fold(whole=True, log_count=len(mirror.table.offsets()))
    later = around.judged.came_later(mirror.table, changes.table)
    for event in _events(rows, reader, mirror.key, left_out - later, later):
        if event.operation == "TRUNCATE" and not event.sure:
            yield Note(str(mirror.table.name), f"not compared with {changes.table.name}: a TRUNCATE of it was sent again, and came later")
            return
        fold.take(event)
    loader = RowLoader(around.store, mirror.table)
    reader.unsure_columns |= (unlike := _unlike(mirror.table, changes.table))
    if unlike:
        yield Note(
            str(mirror.table.name), f"not compared with {changes.table.name}, where they are other columns: {', '.join(sorted(unlike))}"
        )
    said_by = str(changes.table.name)
    comparison = MirrorComparison(
        mirror.table, mirror.key, mirror.keyed, mirror.strangers, loader, reader, said_by, lambda number: rows.where(number)
    )
    yield from comparison.run(fold, rows.columns)


def _unlike(mirror: LoadedTable, changes: LoadedTable) -> set[str]:
    """Columns of the mirror that the changelog has not, or of another type: what nobody declares, each infers from what it sees."""
    theirs = {column["name"]: column["type"] for column in changes.schema["fields"]}
    return {column["name"] for column in mirror.schema["fields"] if theirs.get(column["name"]) != column["type"]}


class _Rows:
    """The changelog's rows in the order of its logs; a reference is a row's number in it."""

    def __init__(self, changes: TableRows, around: Surroundings, key: TableKey) -> None:
        assert changes.deleted is not None
        self._loader = RowLoader(around.store, changes.table)
        wanted = pa.schema([self._loader.schema.field(name) for name in dict.fromkeys([*_NEEDED, *key.names])])
        self.files = [file for file in changes.files if file.kind == "data"]
        pieces, codes, positions = [no_rows(wanted)], [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
        for code, file in enumerate(self.files):
            kept = changes.deleted.kept(file.location, file.row_count)
            pieces.append(align_columns(read_columns(read_file(around.store, file.location, file.size_bytes)), wanted).take(pa.array(kept)))
            codes.append(np.full(len(kept), code))
            positions.append(kept)
        table = pa.concat_tables(pieces)
        logs = np.asarray(table["_cdc_log"].combine_chunks().dictionary_encode().indices) if table.num_rows else np.zeros(0)
        order = np.lexsort((np.asarray(table["_cdc_index"]), np.asarray(table["_cdc_offset"]), logs))
        self.table = table.take(pa.array(order))
        self._codes, self._positions = np.concatenate(codes)[order], np.concatenate(positions)[order]

    def place(self, number: int) -> tuple[LiveFile, int]:
        return self.files[int(self._codes[number])], int(self._positions[number])

    def where(self, number: int) -> str:
        return f"event {self.table['_cdc_index'][number]} of offset {self.table['_cdc_offset'][number]}"

    def columns(self, names: Sequence[str], origins: Mapping[str, Sequence[Any]]) -> pa.Table:
        numbers = sorted({number for column in origins.values() for number in column if number is not None})
        loaded = self._loader.rows([self.place(number) for number in numbers])
        at = {number: place for place, number in enumerate(numbers)}
        there = set(loaded.column_names)
        columns = {}
        for name in names:
            taken = pa.array([None if number is None else at[number] for number in origins[name]], pa.int64())
            columns[name] = loaded[name].take(taken) if name in there else pa.nulls(len(taken))
        return pa.table(columns)


def _events(
    rows: _Rows, reader: EventReader, key: TableKey, left_out: Collection[tuple[str, int, int]], later: Collection[tuple[str, int, int]]
) -> Iterator[Event]:
    """Those that came `later` to the mirror leave their keys unsure: what they were applied to is another row there."""
    for start in range(0, rows.table.num_rows, _BATCH_ROWS):
        part = rows.table.slice(start, _BATCH_ROWS)
        columns = [part[name].to_pylist() for name in _NEEDED]
        keys = zip(*(plain_values(part[name]) for name in key.names), strict=True)
        for number, (said, its_key) in enumerate(zip(zip(*columns, strict=True), keys, strict=True), start):
            log, offset, index, source, operation, key_before, unchanged = said
            if (log, offset, index) in left_out:
                continue
            old_key = None if key_before is None else reader.old_key(key_before)
            kept = reader.unchanged(unchanged) if unchanged else ()
            yield Event(log, source, operation, its_key, old_key, kept, number, sure=(log, offset, index) not in later)
