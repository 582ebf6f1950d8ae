"""Maintenance where no daemon runs: what has expired leaves the table, it is claimed, and then what nobody needs goes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from dolake.clock import Runtime
from dolake.compaction.cleaner import Cleaner, described
from dolake.compaction.expirer import Expirer, Looker
from dolake.compaction.landing import GivenUp
from dolake.compaction.ttl import Ttl, cutoff_us, why_put_off
from dolake.config import Settings
from dolake.errors import RequestRefused, TtlRefused
from dolake.iceberg.catalog import TableCatalog
from dolake.iceberg.commit import Committer, Trouble
from dolake.iceberg.metadata import LoadedTable
from dolake.iceberg.plan import CommitPolicy
from dolake.model import DEAD_LETTERS_TABLE, TableName
from dolake.storage.disk import Disk
from dolake.storage.store import ObjectStore
from dolake.writer import expiring
from dolake.writer.kinds import kind_there
from dolake.writer.letters import DeadLetters
from dolake.writer.lock import lock_writer
from dolake.writer.tidying import Tidying


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
        return Cleaner(self.runtime, self.catalog, self.store, self._committer())

    def expirer(self) -> Expirer:
        return Expirer(self.runtime, self.store, self._committer())

    def tidying(self) -> Tidying:
        return Tidying(self.runtime, self.settings, self.store, self._committer().access)

    def letters(self, instance: str) -> DeadLetters:
        committer = self._committer()
        until_answered = committer.access.until_answered
        return DeadLetters(self.runtime, self.catalog, self.store, committer, instance=instance, until_answered=until_answered)

    def _committer(self) -> Committer:
        return Committer(self.runtime, self.catalog, self.store, self.commit_policy, self.on_trouble)

    def load(self, name: TableName) -> LoadedTable:
        base = self.catalog.load(name)
        if base is None:
            raise RequestRefused(f"there is no table {name}; `dolake tables` lists them")
        if not base.owner_epoch:
            raise RequestRefused(f"{name} is not dolake's: no writer of it has ever committed to it")
        return base


async def look_here(cleaning: Cleaning, name: TableName) -> dict[str, Any]:
    """What could go. Reads only, whoever works on the table meanwhile. Raises RequestRefused, DolakeError."""
    base = cleaning.load(name)
    is_letters = name == DEAD_LETTERS_TABLE
    expired = await cleaning.tidying().look(base) if is_letters else await _look_expired(cleaning, base)
    return {**described(name, await cleaning.cleaner().look(base), None), "expired": expired}


async def purge_here(cleaning: Cleaning, name: TableName) -> dict[str, Any]:
    """Raises LogRefused (a writer runs), RequestRefused, TableStopped, DolakeError."""
    lock = lock_writer(cleaning.disk, cleaning.settings.data)
    try:
        cleaner, base = cleaning.cleaner(), cleaning.load(name)
        instance = cleaning.runtime.random.uuid()
        if name == DEAD_LETTERS_TABLE:
            expired: dict[str, Any] | None = await cleaning.tidying().tidy(cleaning.letters(instance))
            base = cleaning.load(name)
        else:
            base, expired = await _expire(cleaning, base, instance)
        claimed = await cleaner.claim(base, epoch=base.owner_epoch + 1, instance=instance)
        found, purged = await cleaner.purge(claimed, None)
        return {**described(name, found, purged), "expired": expired}
    finally:
        lock.release()


async def _look_expired(cleaning: Cleaning, base: LoadedTable) -> dict[str, Any] | None:
    """What would expire; None for a table without a TTL."""
    ttl, now_ms = _ttl_of(cleaning, base), cleaning.runtime.clock.now_ms()
    if ttl is None:
        return None
    try:
        due = await cleaning.expirer().look(Looker(cleaning.store), base, ttl, cutoff_us(ttl, now_ms, exact=True))
    except TtlRefused as refused:
        return expiring.described(None, put_off=str(refused))
    return expiring.described(due, put_off=why_put_off(base, ttl, now_ms))


async def _expire(cleaning: Cleaning, base: LoadedTable, instance: str) -> tuple[LoadedTable, dict[str, Any] | None]:
    """The table without what has expired, and what that was."""
    ttl, now_ms = _ttl_of(cleaning, base), cleaning.runtime.clock.now_ms()
    if ttl is None:
        return base, None
    if reason := why_put_off(base, ttl, now_ms):
        return base, expiring.described(None, put_off=reason)
    looker, cutoff, epoch = Looker(cleaning.store), cutoff_us(ttl, now_ms, exact=True), base.owner_epoch + 1
    try:
        done = await cleaning.expirer().expire(looker, base, ttl, cutoff, epoch=epoch, instance=instance, counted=expiring.counted)
    except TtlRefused as refused:
        return base, expiring.described(None, put_off=str(refused))
    if isinstance(done, GivenUp):
        return cleaning.load(base.name), expiring.described(None, put_off=done.reason)
    return base if done is None else done.base, expiring.described(done)


def _ttl_of(cleaning: Cleaning, base: LoadedTable) -> Ttl | None:
    return expiring.ttl_of(cleaning.settings, base.name, kind_there(base))
