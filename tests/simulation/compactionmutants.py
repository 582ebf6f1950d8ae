"""Compaction with one rule broken, as in `mutants`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import dolake.compaction.compactor
import dolake.writer.compacting
from dolake.compaction.cleaner import Cleaner
from dolake.compaction.job import Job, Rewritten
from dolake.compaction.landing import GivenUp, Lander, Landing
from dolake.compaction.rewrite import rewrite
from dolake.compaction.unreferenced import Unreferenced
from dolake.iceberg.metadata import LoadedTable
from dolake.iceberg.plan import Delta
from dolake.writer.indexes import ReplacedFiles
from tests.simulation.world import Rules

_delta, _replaced, _find = Landing.delta, dolake.writer.compacting.replaced_files, Cleaner._find


class _ForgetfulLander(Lander):
    """What was deleted while the rewrite ran is not deleted in the new files."""

    def prepare(self, base: LoadedTable) -> Landing | GivenUp:
        found = super().prepare(base)
        inputs = self._work.inputs
        if isinstance(found, GivenUp) or not inputs:
            return found
        outputs = {output.file.location for output in self._work.rewritten.outputs} if self._work.rewritten else set()
        return replace(found, deletes=tuple(group for group in found.deletes if not outputs.intersection(group.files)))


def _keeping_the_inputs(landing: Landing, *arguments: Any, **more: Any) -> Delta:
    """The new files come, one of the old ones stays."""
    delta = _delta(landing, *arguments, **more)
    assert delta.replaces is not None
    data = sorted(landing.work.inputs)
    return replace(delta, replaces=replace(delta.replaces, removed=delta.replaces.removed - set(data[:1])))


def _rewritten_without_deletes(store: Any, job: Job, **more: Any) -> Rewritten:
    """Rows that are deleted come back."""
    return rewrite(store, replace(job, deletes=()), **more)


def _one_row_off(work: Any, done: Any) -> ReplacedFiles:
    """The key index finds each row where the next one is."""
    found = _replaced(work, done)
    count = sum(file.row_count for file in found.files)
    return replace(found, moves={path: (numbers + (numbers >= 0)) % max(1, count) for path, numbers in found.moves.items()})


async def _unclaimed(cleaner: Cleaner, base: LoadedTable, **more: Any) -> LoadedTable:
    """What the writer before had under way is purged while it may still land."""
    return base


async def _find_with_the_last(cleaner: Cleaner, base: LoadedTable, epoch: int, *, is_claimed: bool) -> Unreferenced:
    """Also what was made under the epoch that a table has, which was not claimed for this."""
    return await _find(cleaner, base, base.owner_epoch + 1, is_claimed=False)


_PURGING = {"compaction_s": 0.1, "maintenance_s": 0.3, "flush_rows": 3, "flush_age_s": 0.2, "local": False, "catalog_style": "row"}
_MIRRORS = {"modes": ("mirror",), "compaction_s": 0.02, "inputs_min": 2, "flush_rows": 3, "flush_age_s": 0.2, "batches": 12, "misfits": 0.0}
_CHANGELOGS = {**_MIRRORS, "modes": ("changelog",)}

COMPACTION_MUTANTS: dict[str, Rules] = {
    "deletes that landed during a rewrite forgotten": Rules(
        patches=((dolake.writer.compacting, "Lander", _ForgetfulLander),), profile={**_MIRRORS, "partitions": ((),), "catalog_s": 0.2}
    ),
    "an input of a rewrite kept beside its output": Rules(patches=((Landing, "delta", _keeping_the_inputs),), profile=_CHANGELOGS),
    "a rewrite without the deletes": Rules(
        patches=((dolake.compaction.compactor, "rewrite", _rewritten_without_deletes),), profile=_MIRRORS
    ),
    "purged without a claim": Rules(
        patches=((Cleaner, "claim", _unclaimed), (Cleaner, "_find", _find_with_the_last)),
        profile={**_PURGING, "strikes": 12, "strike_kinds": ("zombie one", "zombie both", "freeze"), "catalog_s": 0.2, "snapshots_kept": 1},
    ),
    "key index not where a rewrite put the rows": Rules(
        patches=((dolake.writer.compacting, "replaced_files", _one_row_off),), profile={**_MIRRORS, "strikes": 0, "index_faults": 0.0}
    ),
}
