"""Groups of tables with one rule broken, as in `mutants`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import dolake.writer.main
import dolake.writer.schedule
from dolake.iceberg.commit import Committer, Landed
from dolake.iceberg.metadata import LoadedTable
from dolake.iceberg.plan import Delta
from dolake.model import TableName
from dolake.writer.cuts import Cuts
from dolake.writer.table import Table
from dolake.writer.tables import Tables
from tests.simulation.world import Rules

_new = Tables.new


class _OneByOne(Committer):
    """Each table of a cut in a transaction of its own."""

    async def _commit_all_once(self, fitting: Sequence[tuple[LoadedTable, Delta]], tries: Any) -> list[Any]:
        outcomes = [await self._commit_once(base, delta) for base, delta in fitting]
        assert all(isinstance(outcome, Landed) for outcome in outcomes)
        return outcomes


class _CutsOfTheFirst(Cuts):
    """A cut ends where the first table of it could end by itself."""

    def ends(self, tables: Iterable[Table]) -> dict[str, int]:
        return super().ends(list(tables)[:1])


def _new_with_its_group(tables: Tables, name: TableName) -> Table:
    """A changelog that is off is committed with the others, as if nothing were said of it."""
    table = _new(tables, name)
    table.group = tables._settings.settings_for(name).group
    return table


_GROUPED: dict[str, Any] = {"grouped": True, "catalog_style": "row", "misfits": 0.0, "parkings": 0}
_OVER_TABLES = {**_GROUPED, "transactions": True, "rudeness": 0.0, "polite": 0}
_RESTARTS = {**_GROUPED, "strikes": 12, "modes": ("mirror", "both"), "columns": ({},), "partitions": ((),), "changelogs": ()}

CUT_MUTANTS: dict[str, Rules] = {
    "a cut's tables swapped one by one": Rules(patches=((dolake.writer.main, "Committer", _OneByOne),), profile=_GROUPED),
    "a cut through another table's transaction": Rules(
        patches=((dolake.writer.schedule, "Cuts", _CutsOfTheFirst),),
        profile={**_GROUPED, "transactions": True, "rudeness": 0.0, "polite": 0},
    ),
    "a changelog that is off moved by a cut": Rules(patches=((Tables, "new", _new_with_its_group),), profile=_RESTARTS),
}
