"""What one flush does to a mirror table: the rows it writes, the rows it takes out, the events it refuses.

Planned against the table's head and its key index, and right on top of no other head: where somebody has committed meanwhile it
is planned again. Nothing is changed here; the index follows once the snapshot has landed (`apply`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from dolake.buffer.fold import Flags, Folded, Places
from dolake.datafiles import FileDeletes
from dolake.iceberg.index import IndexedFile, KeyIndex, RowNumbers
from dolake.iceberg.metadata import LoadedTable
from dolake.iceberg.objects import read_file
from dolake.parquet.align import align, align_columns, no_rows
from dolake.parquet.decode import read_fields
from dolake.parquet.keys import KeyHashes
from dolake.parquet.schema import arrow_schema
from dolake.parquet.types import origin_of
from dolake.storage.store import ObjectStore
from dolake.writer.flight import Flight
from dolake.writer.folding import MirrorRows, Refusal, last_truncate, refuse_keyless, refuse_nulls
from dolake.writer.kinds import Counts
from dolake.writer.unchanged import Resolved, fill, resolve


@dataclass(frozen=True)
class MirrorPlan:
    """`rows` are to be written, in this order, with the `hashes` of their keys; `sources` says from which row on they are whose."""

    flight: Flight
    rows: pa.Table
    hashes: KeyHashes
    sources: tuple[tuple[int, str], ...]
    looked_up: int
    deleted: RowNumbers
    removes_all: bool
    refusals: tuple[tuple[Refusal, MirrorRows], ...]
    index: KeyIndex
    head_id: int | None

    def deletes(self) -> list[FileDeletes]:
        """What is taken out, a group for each delete file."""
        groups: dict[tuple[int, tuple[object, ...]], list[tuple[IndexedFile, Places]]] = {}
        for file, places in self.index.located(self.deleted) if len(self.deleted) else ():
            groups.setdefault((file.spec_id, file.partition), []).append((file, places))
        return [_group(spec_id, partition, found) for (spec_id, partition), found in groups.items()]


@dataclass(frozen=True)
class Draft:
    """A plan that may lack values the table has: `needed` are the numbers of the rows they are in."""

    rows: MirrorRows
    taken: Flags
    truncate: int
    refusals: tuple[Refusal, ...]
    resolved: Resolved
    needed: tuple[int, ...]


def draft(
    flight: Flight,
    index: KeyIndex,
    writers: Collection[str],
    shared_truncate: bool,
    aliases: Mapping[str, Mapping[str, str]],
    outrun: Collection[int] = (),
) -> Draft:
    """Everything that the flight's events and the index decide. `aliases`: by source, former column names it still uses. Blocks.

    `outrun` are rows of letters that are not to be applied after all.
    """
    rows = MirrorRows.of([align(piece, flight.schema) for piece in flight.frozen.pieces], flight.schema, flight.key, index.seed)
    taken = np.ones(rows.count, np.bool_)
    taken[list(outrun)] = False
    refusals: list[Refusal] = []

    def refuse(found: Iterable[Refusal]) -> None:
        for refusal in found:
            taken[refusal.row] = False
            refusals.append(refusal)

    refuse(refusal for refusal in refuse_keyless(rows, flight.key) if taken[refusal.row])
    truncate, refused = last_truncate(rows, taken, shared_truncate, writers)
    refuse(refused)
    required = [column.name for column in flight.table_schema.fields if column.required and column.name in rows.rows.column_names]
    refuse(refuse_nulls(rows, required, taken))
    truncates = [row for row in rows.truncates if taken[row]]
    names = _Unchanged(rows, flight, aliases)
    resolved = resolve(rows, taken, truncates, names.of, lambda keys: _living(index, keys))
    refuse(resolved.refusals)
    written = set(rows.fold(taken, truncate).rows.tolist())
    resolved.kept = {row: columns for row, columns in resolved.kept.items() if row in written}
    return Draft(rows, taken, truncate, tuple(refusals), resolved, tuple(resolved.committed_rows()))


def finish(draft: Draft, flight: Flight, index: KeyIndex, committed: pa.Table | None, head_id: int | None) -> MirrorPlan:
    """`committed`: the rows that the draft needs, in the order of `needed`, under the flight's schema. Blocks."""
    rows, folded = draft.rows, draft.rows.fold(draft.taken, draft.truncate)
    written = np.sort(folded.rows[folded.rows >= 0])
    if len(rows.source_names) > 1:
        written = written[np.argsort(rows.sources[written], kind="stable")]
    values = rows.rows
    if draft.resolved.kept:
        missing = no_rows(arrow_schema(flight.schema)) if committed is None else committed
        values = fill(values, draft.resolved.kept, missing, draft.needed)
    ids = {column.field_id for column in flight.table_schema.fields}
    kept = values.select([column.name for column in flight.schema.fields if column.field_id in ids]).take(pa.array(written))
    removes_all = draft.truncate >= 0
    deleted, contested = np.zeros(0, np.int64), int(folded.contested.sum())
    if not removes_all:
        hits = index.lookup(folded.high, folded.low)
        deleted = np.unique(hits.rows)
        contested = _contested(rows, folded, index, hits.keys, hits.rows)
    change = Counts(
        folded=int(draft.taken.sum()) - len(written),
        removed=index.live_count if removes_all else len(deleted),
        contested=contested,
    )
    return MirrorPlan(
        flight=replace(flight, change=change),
        rows=_as_table(kept, flight),
        hashes=rows.keys.take(written),
        sources=_segments(rows, written),
        looked_up=0 if removes_all else len(folded.high),
        deleted=deleted,
        removes_all=removes_all and index.space > 0,
        refusals=tuple((refusal, rows) for refusal in draft.refusals),
        index=index,
        head_id=head_id,
    )


def apply(plan: MirrorPlan, files: Sequence[tuple[IndexedFile, Places]], delete_files: Iterable[str], base: LoadedTable) -> None:
    """The plan's snapshot has landed as `base`'s head: the index follows. `files`: data files with the plan's rows they hold."""
    index = plan.index
    if plan.removes_all:
        index.clear()
    index.delete(plan.deleted)
    index.add_files([(file, plan.hashes.high[rows], plan.hashes.low[rows]) for file, rows in files])
    index.delete_files.update(delete_files)
    index.snapshot_id = base.head_id


def read_rows(store: ObjectStore, index: KeyIndex, numbers: Sequence[int], flight: Flight) -> pa.Table:
    """Rows of the table by their numbers, in the order given (rising), under the flight's schema of events' rows. Blocks."""
    wanted = arrow_schema(flight.schema)
    ids = [column.field_id for column in flight.table_schema.fields]
    pieces = []
    for file, places in index.located(np.array(numbers, np.int64)):
        columns = read_fields(read_file(store, file.location), ids)
        fields = [
            pa.field(str(field_id), values.type, metadata={"PARQUET:field_id": str(field_id)}) for field_id, values in columns.items()
        ]
        read = pa.table(list(columns.values()), schema=pa.schema(fields)).take(pa.array(places))
        pieces.append(align_columns(read, wanted))
    return pa.concat_tables([*pieces, no_rows(wanted)])


class _Unchanged:
    """Which of a mirror's columns a row's event names as unchanged."""

    def __init__(self, rows: MirrorRows, flight: Flight, aliases: Mapping[str, Mapping[str, str]]) -> None:
        self._rows, self._aliases = rows, aliases
        self._names = rows.rows["_cdc_unchanged"].combine_chunks()
        own = {column.name for column in flight.table_schema.fields} - set(flight.key.names)
        # Values of an inferred column that are of another type stand beside it: they belong to it.
        beside = {column.name: origin_of(column).beside for column in flight.schema.fields}
        self._columns = {name: [name, *(other for other in own if beside.get(other) == name)] for name in own}

    def of(self, row: int) -> list[str] | None:
        names = self._aliases.get(self._rows.source_names[self._rows.sources[row]], {})
        given = self._names[row].as_py()
        if not given:
            return None
        return [column for name in given for column in self._columns.get(names.get(name, name), ())]


def _living(index: KeyIndex, keys: KeyHashes) -> dict[int, int]:
    """The newest row of each key that has one."""
    hits = index.lookup(keys.high, keys.low)
    found: dict[int, int] = {}
    for key, row in zip(hits.keys.tolist(), hits.rows.tolist(), strict=True):
        found[key] = max(row, found.get(key, -1))
    return found


def _contested(rows: MirrorRows, folded: Folded, index: KeyIndex, keys: Places, numbers: RowNumbers) -> int:
    """Keys that more than one source has written, as far as their rows tell."""
    contested = folded.contested.copy()
    if len(keys):
        mine = np.array([index.source_code(name) for name in rows.source_names], np.int32)[folded.sources[keys]]
        owners = index.owners(numbers)
        contested[keys[(owners != 0) & (owners != mine)]] = True
    return int(contested.sum())


def _as_table(rows: pa.Table, flight: Flight) -> pa.Table:
    """Only the table's own columns, by field id."""
    return align_columns(rows, arrow_schema(flight.table_schema))


def _segments(rows: MirrorRows, written: Places) -> tuple[tuple[int, str], ...]:
    """`written` stand by source."""
    owners = rows.sources[written]
    starts = np.flatnonzero(np.diff(owners, prepend=-1))
    return tuple((int(start), rows.source_names[owners[start]]) for start in starts)


def _group(spec_id: int, partition: tuple[object, ...], found: Sequence[tuple[IndexedFile, Places]]) -> FileDeletes:
    file_places = np.repeat(np.arange(len(found)), [len(places) for _, places in found])
    places = np.concatenate([places for _, places in found])
    return FileDeletes(spec_id, partition, tuple(file.location for file, _ in found), file_places, places)
