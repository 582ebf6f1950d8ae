"""Maintenance where no daemon runs: the table is claimed, and then what nobody needs goes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from dolake.clock import Runtime
from dolake.compaction.cleaner import Cleaner, described
from dolake.config import Settings
from dolake.errors import RequestRefused
from dolake.iceberg.catalog import TableCatalog
from dolake.iceberg.commit import Committer, Trouble
from dolake.iceberg.metadata import LoadedTable
from dolake.iceberg.plan import CommitPolicy
from dolake.model import TableName
from dolake.storage.disk import Disk
from dolake.storage.store import ObjectStore
from dolake.writer.lock import lock_writer


@dataclass(frozen=True)
class Cleaning:
    """What is at hand where no daemon runs."""

    runtime: Runtime
    disk: Disk
    settings: Settings
    catalog: TableCatalog
    store: ObjectStore
    commit_policy: CommitPolicy
    on_trouble: Callable[[Trouble], None]

    def cleaner(self) -> Cleaner:
        committer = Committer(self.runtime, self.catalog, self.store, self.commit_policy, self.on_trouble)
        return Cleaner(self.runtime, self.catalog, self.store, committer)

    def load(self, name: TableName) -> LoadedTable:
        base = self.catalog.load(name)
        if base is None:
            raise RequestRefused(f"there is no table {name}; `dolake tables` lists them")
        if not base.owner_epoch:
            raise RequestRefused(f"{name} is not dolake's: no writer of it has ever committed to it")
        return base


async def look_here(cleaning: Cleaning, name: TableName) -> dict[str, Any]:
    """What could go. Reads only, whoever works on the table meanwhile. Raises RequestRefused, DolakeError."""
    return described(name, await cleaning.cleaner().look(cleaning.load(name)), None)


async def purge_here(cleaning: Cleaning, name: TableName) -> dict[str, Any]:
    """Raises LogRefused (a writer runs), RequestRefused, TableStopped, DolakeError."""
    lock = lock_writer(cleaning.disk, cleaning.settings.data)
    try:
        cleaner, base = cleaning.cleaner(), cleaning.load(name)
        claimed = await cleaner.claim(base, epoch=base.owner_epoch + 1, instance=cleaning.runtime.random.uuid())
        found, purged = await cleaner.purge(claimed, None)
        return described(name, found, purged)
    finally:
        lock.release()
