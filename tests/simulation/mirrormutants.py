"""Mirror tables with one rule broken, as in `mutants`."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa

import dolake.writer.folding
import dolake.writer.main
import dolake.writer.mirroring
from dolake.buffer.fold import Folded, Touches, fold, grouped
from dolake.datafiles import FileDeletes
from dolake.iceberg.index import KeyIndex
from dolake.iceberg.index_files import IndexFolder
from dolake.iceberg.metadata import LoadedTable
from dolake.iceberg.plan import Delta
from dolake.parquet.keys import KeyHashes
from dolake.writer import mirroring
from dolake.writer.flight import Flight
from dolake.writer.flush import Flusher
from dolake.writer.folding import MirrorRows
from dolake.writer.indexes import Indexes
from dolake.writer.mirroring import MirrorPlan
from dolake.writer.mirrors import Mirrors
from dolake.writer.table import Table
from dolake.writer.watch import Watch
from tests.simulation.world import Rules

_bring_to_head = Indexes._bring_to_head
_deletes = MirrorPlan.deletes


def _trust_the_tag(indexes: Indexes, index: KeyIndex, base: LoadedTable) -> None:
    """What the index says is taken for the head's, as long as it says anything."""
    if index.snapshot_id is None:
        _bring_to_head(indexes, index, base)
    index.snapshot_id = base.head_id


class _HastyFlusher(Flusher):
    """The index holds a flush's rows before its snapshot is there."""

    async def prepare(self, table: Table, flight: Flight, base: LoadedTable) -> Any:
        work = await super().prepare(table, flight, base)
        if work is not None and work.plan is not None:
            files = [(file.as_indexed(work.plan.flight.table_schema, work.spec), file.places) for file in work.files]
            mirroring.apply(work.plan, files, [file.location for file in work.deletes], base)
        return work


class _FlusherWithoutDeletes(Flusher):
    async def _encode_deletes(self, plan: MirrorPlan, base: LoadedTable, epoch: int) -> list[Any]:
        return []


class _FlusherOnAnyHead(Flusher):
    """What a flush takes out is right whoever has committed meanwhile, it believes."""

    def _delta(self, *arguments: Any) -> Delta:
        return replace(super()._delta(*arguments), on_head_only=False)


def _fold_all(rows: MirrorRows, taken: Any, after: int) -> Folded:
    """MirrorRows.fold: rows before a TRUNCATE are written too."""
    return fold(rows.touches(taken, -1))


def _fold_first(touches: Touches) -> Folded:
    order, first = grouped(touches.high, touches.low)
    kept = order[first]
    rows = np.where(touches.leaves[kept], touches.rows[kept], -1)
    return Folded(touches.high[kept], touches.low[kept], rows, touches.sources[kept], np.zeros(len(kept), np.bool_))


def _no_old_keys(*_: Any) -> tuple[Any, KeyHashes]:
    return np.zeros(0, np.int64), KeyHashes.joined(())


def _all_alive(folder: IndexFolder, name: str, space: int) -> Any:
    return np.zeros(space, np.bool_)


def _in_one_partition(plan: MirrorPlan) -> list[FileDeletes]:
    found = _deletes(plan)
    return [replace(group, partition=found[0].partition) if group.spec_id == found[0].spec_id else group for group in found]


def _unfilled(rows: pa.Table, kept: Mapping[int, Any], committed: pa.Table, numbers: Sequence[int]) -> pa.Table:
    return rows


async def _no_letters(mirrors: Mirrors, table: Table, plan: MirrorPlan) -> list[Any]:
    return []


def _overtakes_nothing(watch: Watch, *_: Any) -> Collection[Any]:
    return []


_MIRRORS: dict[str, Any] = {"modes": ("mirror",), "columns": ({},), "changelogs": (), "partitions": ((),)}
_RESTARTS = {**_MIRRORS, "strikes": 12, "index_faults": 1.0}
# A dead row's entry outlives the merges only where flushes differ in size.
_QUIET_RESTARTS = {
    **_RESTARTS, "index_faults": 0.0, "chances": {}, "local": True, "catalog_style": "row", "batches": 24, "flush_rows": 10,
    "flush_age_s": 1.0, "transactions": False, "replays": 0, "truncates": 0.0, "misfits": 0.0, "parkings": 0,
}  # fmt: skip
_FOREIGN = {"foreign_change": 0.1, "foreign_change_between": 0.2}
_FOREIGNERS = {**_MIRRORS, "local": False, "catalog_style": "row", "foreign_rows": True, "chances": _FOREIGN}

MIRROR_MUTANTS: dict[str, Rules] = {
    "the index's tag trusted blindly": Rules(patches=((Indexes, "_bring_to_head", _trust_the_tag),), profile=_FOREIGNERS),
    "an older index trusted blindly": Rules(patches=((Indexes, "_bring_to_head", _trust_the_tag),), profile=_RESTARTS),
    "index ahead of the snapshot": Rules(patches=((dolake.writer.main, "Flusher", _HastyFlusher),), profile=_FOREIGNERS),
    "position deletes left out": Rules(patches=((dolake.writer.main, "Flusher", _FlusherWithoutDeletes),), profile=_MIRRORS),
    "a row delta on any head": Rules(patches=((dolake.writer.main, "Flusher", _FlusherOnAnyHead),), profile=_FOREIGNERS),
    "rows before a truncate kept": Rules(patches=((MirrorRows, "fold", _fold_all),), profile={**_MIRRORS, "truncates": 0.1}),
    "the first of a key wins": Rules(patches=((dolake.writer.folding, "fold", _fold_first),), profile=_MIRRORS),
    "old keys left": Rules(patches=((dolake.writer.folding, "_old_keys", _no_old_keys),), profile=_MIRRORS),
    "dead rows alive after a start": Rules(patches=((IndexFolder, "_read_dead", _all_alive),), profile=_QUIET_RESTARTS),
    "deletes of another partition": Rules(
        patches=((MirrorPlan, "deletes", _in_one_partition),), profile={**_MIRRORS, "partitions": (("bucket(2, n)",),)}
    ),
    "unchanged columns null": Rules(patches=((dolake.writer.mirroring, "fill", _unfilled),), profile=_MIRRORS),
    "refusals without letters": Rules(patches=((Mirrors, "_letters", _no_letters),), profile=_MIRRORS),
    "overtaken letters applied": Rules(
        patches=((Watch, "overtaken", _overtakes_nothing),), profile={**_MIRRORS, "misfits": 0.4, "replays": 4}
    ),
}
