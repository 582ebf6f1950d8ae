"""What each rule of the commit is for: a mutant without it fails the very checks that the loop passes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from pyiceberg.manifest import read_manifest_list

from dolake.errors import CatalogUnreachable, ObjectMissing, TableStopped
from dolake.iceberg.catalog import SqlTableCatalog
from dolake.iceberg.commit import Committer
from dolake.iceberg.file_io import StoreFileIO
from dolake.iceberg.judging import Verdict
from dolake.iceberg.metadata import LoadedTable, Update
from dolake.iceberg.plan import CommitPlan, Delta
from tests.iceberg.lake import TABLE, Lake, hand_runtime, make_delta, make_metadata
from tests.iceberg.mirror import Place, put_deletes
from tests.iceberg.unreliable import UnreliableCatalog, breaches, commit_meanwhile
from tests.storage.power import PowerCutStore


class TakesUnknownForFailed(Committer):
    """Commits again after any error without looking whether the first one landed."""

    def _judge(self, base: LoadedTable | None, delta: Delta) -> Verdict:
        return Verdict.COMMIT


class ChecksAndSwapsDifferentTables(Committer):
    """Loads once more before the swap, as PyIceberg's own commit does."""

    async def _swap(self, base: LoadedTable, plan: CommitPlan) -> LoadedTable:
        fresh = self._catalog.load(base.name)
        assert fresh is not None
        rebased = [_on_top_of(fresh, update) for update in plan.updates]
        return await self._runtime.tasks.run(self._catalog.swap, fresh, [], rebased)


def _on_top_of(fresh: LoadedTable, update: Update) -> Update:
    if update["action"] != "add-snapshot":
        return update
    sequence = fresh.metadata["last-sequence-number"] + 1
    return {**update, "snapshot": {**update["snapshot"], "parent-snapshot-id": fresh.head_id, "sequence-number": sequence}}


class NeitherFencesNorComparesOffsets(Committer):
    def _judge(self, base: LoadedTable | None, delta: Delta) -> Verdict:
        return Verdict.COMMIT


def answer_lost(lake: Lake, kind: type[Committer]) -> list[str]:
    lake.commit(lake.delta(0, 5))
    lake.commit(lake.delta(5, 9), lake.committer(catalog=UnreliableCatalog(lake.catalog, ["answer lost"]), kind=kind))
    return breaches(lake, list(range(9)))


def overtaken_between_check_and_swap(lake: Lake, kind: type[Committer]) -> list[str]:
    lake.commit(lake.delta(0, 5))
    successor = lake.delta(5, 9, epoch=2, instance="writer-2")
    catalog = UnreliableCatalog(lake.catalog, between=lambda: commit_meanwhile(lake, lake.committer(), successor))
    with suppress(TableStopped):
        lake.commit(lake.delta(5, 9), lake.committer(catalog=catalog, kind=kind))
    return breaches(lake, list(range(9)))


def zombie_returns(lake: Lake, kind: type[Committer]) -> list[str]:
    lake.commit(lake.delta(0, 5))
    lake.commit(lake.delta(5, 9, epoch=2, instance="writer-2"))
    with suppress(TableStopped):
        lake.commit(lake.delta(5, 9), lake.committer(kind=kind))
    return breaches(lake, list(range(9)))


@pytest.mark.parametrize(
    ("scenario", "mutant"),
    [
        (answer_lost, TakesUnknownForFailed),
        (overtaken_between_check_and_swap, ChecksAndSwapsDifferentTables),
        (zombie_returns, NeitherFencesNorComparesOffsets),
    ],
)
def test_without_its_rule_the_loop_would_double_rows(
    tmp_path: Path, scenario: Callable[[Lake, type[Committer]], list[str]], mutant: type[Committer]
) -> None:
    for kind, caught in ((Committer, False), (mutant, True)):
        (tmp_path / kind.__name__).mkdir()
        lake = Lake(tmp_path / kind.__name__)
        assert bool(scenario(lake, kind)) is caught
        lake.close()


class ForgetsToSettle(PowerCutStore):
    def settle(self, locations: Sequence[str]) -> None:
        return None


class ForgetsToSettleData(PowerCutStore):
    def settle(self, locations: Sequence[str]) -> None:
        super().settle([location for location in locations if not location.endswith(".parquet")])


class ForgetsToSettleDeletes(PowerCutStore):
    def settle(self, locations: Sequence[str]) -> None:
        super().settle([location for location in locations if not location.endswith("-deletes.parquet")])


class ForgetsToSettleManifests(PowerCutStore):
    def settle(self, locations: Sequence[str]) -> None:
        super().settle([location for location in locations if not location.endswith(".avro")])


class ForgetsToSettleMetadata(PowerCutStore):
    def settle(self, locations: Sequence[str]) -> None:
        super().settle([location for location in locations if not location.endswith(".json")])


@pytest.mark.parametrize(
    ("kind", "lost"),
    [
        (PowerCutStore, False),
        (ForgetsToSettle, True),
        (ForgetsToSettleData, True),
        (ForgetsToSettleDeletes, True),
        (ForgetsToSettleManifests, True),
        (ForgetsToSettleMetadata, True),
    ],
)
def test_all_that_a_landed_commit_names_survives_a_power_cut(tmp_path: Path, kind: type[PowerCutStore], lost: bool) -> None:
    runtime, store = hand_runtime(), kind()
    catalog = SqlTableCatalog(f"sqlite:///{tmp_path}/catalog.db", store, runtime)
    table = catalog.create(TABLE, make_metadata(store, runtime))
    committer = Committer(runtime, catalog, store)
    for start in range(12):  # Far enough for merged manifests, and for all that leaves the table again.
        delta = make_delta(store, table, start, start + 1, rows=[{"id": start, "name": ""}])
        deletes = put_deletes(store, table, [Place(delta.files[0].location, 0, 0, ())])
        asyncio.run(committer.commit(replace(delta, deletes=deletes, removes_all=start == 11)))
    catalog.close()
    store.cut_power()
    after = SqlTableCatalog(f"sqlite:///{tmp_path}/catalog.db", store, runtime)
    assert bool(list(missing(store, after))) is lost
    after.close()


def missing(store: PowerCutStore, catalog: SqlTableCatalog) -> Iterator[str]:
    try:
        table = catalog.load(TABLE)
        assert table is not None
        for snapshot in table.metadata["snapshots"]:
            for manifest in read_manifest_list(StoreFileIO(store).new_input(snapshot["manifest-list"])):
                for entry in manifest.fetch_manifest_entry(StoreFileIO(store)):
                    store.size(entry.data_file.file_path)
    except (ObjectMissing, CatalogUnreachable) as error:
        yield str(error)
