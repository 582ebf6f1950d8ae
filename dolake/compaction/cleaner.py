"""One table's maintenance, step by step: what nobody needs is looked for, the table is claimed, and what is left of it then goes."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from dolake import failpoints
from dolake.clock import Runtime
from dolake.compaction.landing import MAINTENANCE
from dolake.compaction.purging import PurgeResult, find_unreferenced, purge
from dolake.compaction.unreferenced import StoredObject, Unreferenced
from dolake.errors import RequestRefused
from dolake.iceberg.access import STORE
from dolake.iceberg.catalog import SqlTableCatalog, TableCatalog
from dolake.iceberg.commit import Committer, Landed
from dolake.iceberg.metadata import LoadedTable
from dolake.iceberg.names import METADATA
from dolake.iceberg.notes import noted_in
from dolake.iceberg.plan import Delta
from dolake.iceberg.points import newest_lsns
from dolake.model import TableName
from dolake.storage.store import ObjectStore


@dataclass(frozen=True)
class Cleaner:
    """The steps; who owns the table decides when each may be done. Blocking work runs in threads, until the store answers."""

    runtime: Runtime
    catalog: TableCatalog
    store: ObjectStore
    committer: Committer

    async def look(self, base: LoadedTable) -> Unreferenced:
        """What could go if the table were claimed now. What is under way just now is among it. Raises as `find_unreferenced`."""
        return await self._find(base, base.owner_epoch + 1, is_claimed=False)

    async def claim(self, base: LoadedTable, *, epoch: int, instance: str) -> LoadedTable:
        """The table under an epoch that nothing is named by: from here on no commit lands that names what was made before.

        By its owner, who has nothing of it in hand. Its snapshot has the rows of the one before; it takes no place among those that
        are kept. Raises TableStopped, RequestRefused.
        """
        failpoints.hit("purge.before_claim")
        delta = Delta(
            table=base.name,
            table_uuid=base.uuid,
            ranges={},
            files=(),
            schema=base.schema,
            base_schema_id=base.schema["schema-id"],
            spec_id=base.spec["spec-id"],
            epoch=epoch,
            instance=instance,
            commit_id=self.runtime.random.uuid(),
            summary={**noted_in(base.properties), **newest_lsns(base, base.head_id), MAINTENANCE: "claim"},
            expires=False,
        )
        outcome = await self.committer.commit(delta)
        if not isinstance(outcome, Landed):
            raise RequestRefused(f"{base.name} is not claimed to be purged: {outcome.reason}")
        return outcome.base

    async def purge(
        self, base: LoadedTable, due: Collection[StoredObject] | None, progress: Callable[[int], None] = lambda done: None
    ) -> tuple[Unreferenced, PurgeResult]:
        """Deletes what nobody needs of the table as it is after a claim, or what of it is `due`. Raises as `find_unreferenced`."""
        found = await self._find(base, base.owner_epoch, is_claimed=True)
        wanted = None if due is None else {one.location for one in due}
        objects = tuple(one for one in found.objects if wanted is None or one.location in wanted)
        return found, await self._until_answered(_purge, self.store, objects, progress)

    async def _find(self, base: LoadedTable, epoch: int, *, is_claimed: bool) -> Unreferenced:
        found: Unreferenced = await self._until_answered(_find, self.store, self.catalog, base, epoch, is_claimed)
        return found

    async def _until_answered(self, work: Callable[..., Any], *arguments: Any) -> Any:
        return await self.committer.access.until_answered(STORE, work, *arguments)


def _find(store: ObjectStore, catalog: TableCatalog, base: LoadedTable, epoch: int, is_claimed: bool) -> Unreferenced:
    own = catalog if isinstance(catalog, SqlTableCatalog) else None
    neighbours = own.neighbours(base.name) if own is not None else None
    return find_unreferenced(store, base, epoch=epoch, owns_metadata=own is not None, neighbours=neighbours, is_claimed=is_claimed)


def _purge(store: ObjectStore, objects: tuple[StoredObject, ...], progress: Callable[[int], None]) -> PurgeResult:
    return purge(store, objects, progress=progress)


def needs_claim(objects: Collection[StoredObject]) -> bool:
    """Metadata files are told by their version: no claim makes more of them purgeable, and each claim leaves one."""
    return any(one.kind != METADATA for one in objects)


def described(name: TableName, found: Unreferenced, purged: PurgeResult | None) -> dict[str, Any]:
    """For whoever asked."""
    kinds: dict[str, list[int]] = {}
    for one in found.objects:
        count = kinds.setdefault(one.kind, [0, 0])
        count[0] += 1
        count[1] += one.size_bytes
    return {
        "table": str(name),
        "unreferenced": {kind: {"objects": count, "bytes": size} for kind, (count, size) in kinds.items()},
        "reachable": found.reachable_count,
        "unfinished": found.unfinished_count,
        "of_others": found.of_others_count,
        "left": found.left_count,
        "purged": None if purged is None else {"objects": purged.objects_count, "bytes": purged.size_bytes},
    }
