"""The commit: one delta lands in its table once, whatever happens to requests and answers.

    load → judge → manifests → list → settle → swap, and on any trouble look again

Every round judges a freshly loaded table and swaps against that same table. A lost answer, a conflict and a crash are one
case: the next round's judgement says whether the rows are in the table. Nothing here deletes a file: one that a failed
attempt left behind may be named by a swap that is still under way.

Every step that waits is one `tasks.run`, so that whatever else runs may come between any two of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pyiceberg.manifest import ManifestFile

from dolake import failpoints
from dolake.clock import Runtime
from dolake.errors import CommitConflict, ObjectMissing, StoreUnreachable, TableStopped
from dolake.iceberg.catalog import TableCatalog
from dolake.iceberg.file_io import StoreFileIO
from dolake.iceberg.manifests import (
    TableMemory,
    added_entries,
    head_manifests,
    live_file_count,
    plan_merge,
    read_entries,
    settled_entries,
    write_manifest,
    write_manifest_list,
)
from dolake.iceberg.metadata import LoadedTable, snapshots_by_id
from dolake.iceberg.names import attempt_prefix
from dolake.iceberg.partition import schema_of_spec
from dolake.iceberg.plan import CommitPlan, CommitPolicy, Delta, Verdict, judge, plan_commit, plan_schema, plan_spec
from dolake.model import TableName
from dolake.storage.store import ObjectStore

_BACKOFF_FIRST_S = 0.05
_BACKOFF_MAX_S = 4.0  # Readiness must come back within 5 s of what was away.
# Somebody else's commit is over when we hear of it: no reason to wait long.
_CONFLICT_PAUSE_S = 0.05


@dataclass(frozen=True)
class Landed:
    """The delta's rows are in the table. `base` is the table as it was then."""

    base: LoadedTable


@dataclass(frozen=True)
class Replan:
    """The delta does not fit the table any more: drop it and its files, read on from `base`'s offsets."""

    base: LoadedTable
    reason: str


CommitOutcome = Landed | Replan


@dataclass(frozen=True)
class Trouble:
    """A round that came to nothing, for whoever watches: the loop goes on after `pause_s`."""

    table: TableName
    error: Exception
    attempt: int
    pause_s: float


def _unwatched(_trouble: Trouble) -> None:
    return None


@dataclass
class _Manifests:
    """What one attempt wrote, in the order of its list: everything to settle before the swap names it."""

    list_location: str
    manifests: list[ManifestFile]
    written: list[str] = field(default_factory=list)


class Committer:
    """Commits deltas, one at a time for each table; different tables may be committed side by side."""

    def __init__(
        self,
        runtime: Runtime,
        catalog: TableCatalog,
        store: ObjectStore,
        policy: CommitPolicy | None = None,
        on_trouble: Callable[[Trouble], None] = _unwatched,
    ) -> None:
        self._runtime, self._catalog, self._store = runtime, catalog, store
        self._policy = policy or CommitPolicy()
        self._on_trouble = on_trouble
        self._io = StoreFileIO(store)
        self._memories: dict[str, TableMemory] = {}

    async def commit(self, delta: Delta) -> CommitOutcome:
        """Returns when the delta's fate is known. Raises TableStopped if the table is not this writer's to change."""
        files_checked = False
        attempt = 0
        while True:
            try:
                if attempt:
                    failpoints.hit("commit.resolve")
                base = await self._load(delta.table)
                verdict = self._judge(base, delta)
                assert base is not None  # Or the judgement had stopped the table.
                if verdict is Verdict.LANDED:
                    return Landed(base)
                if verdict is Verdict.REPLAN:
                    return Replan(base, verdict.value)
                if not files_checked and (reason := await self._runtime.tasks.run(self._check_files, delta)):
                    return Replan(base, reason)
                files_checked = True
                return await self._commit_once(base, delta)
            except TableStopped:
                raise
            except Exception as error:  # Any failure is an unknown outcome: look again; the judgement tells which it was.
                attempt += 1
                pause_s = self._pause_s(error, attempt)
                self._on_trouble(Trouble(delta.table, error, attempt, pause_s))
                await self._runtime.clock.sleep(pause_s)

    def forget(self, table_uuid: str) -> None:
        """Drops what is remembered of a table that is not written any more."""
        self._memories.pop(table_uuid, None)

    async def _load(self, table: TableName) -> LoadedTable | None:
        failpoints.hit("commit.load")
        return await self._runtime.tasks.run(self._catalog.load, table)

    def _judge(self, base: LoadedTable | None, delta: Delta) -> Verdict:
        return judge(base, delta)

    def _check_files(self, delta: Delta) -> str:
        """What is wrong with the delta's files in the store: an upload cut short must not get into a snapshot."""
        for file in delta.files:
            try:
                size_bytes = self._store.size(file.location)
            except ObjectMissing:
                return f"{file.location} is not in the store"
            if size_bytes != file.size_bytes:
                return f"{file.location} has {size_bytes} bytes in the store, not {file.size_bytes}"
        return ""

    async def _commit_once(self, base: LoadedTable, delta: Delta) -> CommitOutcome:
        """One attempt on top of exactly `base`, under names of its own."""
        run = self._runtime.tasks.run
        snapshot_id = self._new_snapshot_id(base)
        written = await self._write_manifests(base, delta, snapshot_id)
        plan = self._plan(base, delta, snapshot_id, written.list_location)
        failpoints.hit("commit.before_settle")
        try:
            await run(self._store.settle, [file.location for file in delta.files])
        except StoreUnreachable as error:
            # Their names may be lost, and a second sync that succeeds would not prove the contrary: write them anew.
            return Replan(base, str(error))
        await run(self._store.settle, written.written)
        failpoints.hit("commit.before_swap")
        landed = await self._swap(base, plan)
        failpoints.hit("commit.after_swap")
        return Landed(landed)

    def _plan(self, base: LoadedTable, delta: Delta, snapshot_id: int, manifest_list: str) -> CommitPlan:
        now_ms = self._runtime.clock.now_ms()
        return plan_commit(base, delta, snapshot_id=snapshot_id, manifest_list=manifest_list, now_ms=now_ms, policy=self._policy)

    async def _swap(self, base: LoadedTable, plan: CommitPlan) -> LoadedTable:
        return await self._runtime.tasks.run(self._catalog.swap, base, plan.requirements, plan.updates)

    async def _write_manifests(self, base: LoadedTable, delta: Delta, snapshot_id: int) -> _Manifests:
        run = self._runtime.tasks.run
        memory = self._memories.setdefault(base.uuid, TableMemory())
        attempt = attempt_prefix(base.location, delta.epoch, self._runtime.random.uuid())
        result = _Manifests(f"{attempt}-list.avro", [])
        failpoints.hit("commit.before_manifest")
        before = await run(head_manifests, memory, self._io, base)
        if delta.files:
            result.written.append(f"{attempt}-m0.avro")
            result.manifests.append(await run(self._write_added, memory, base, delta, snapshot_id, result.written[-1]))
        merged = self._plan_merge(base, delta, before)
        if merged:
            result.written.append(f"{attempt}-m1.avro")
            result.manifests.append(await run(self._write_merged, memory, base, delta, snapshot_id, result.written[-1], merged))
        failpoints.hit("commit.after_manifest")
        gone = {manifest.manifest_path for manifest in merged}
        result.manifests += [kept for kept in before if kept.manifest_path not in gone and live_file_count(kept)]
        sequence_number = base.metadata["last-sequence-number"] + 1
        result.written.append(result.list_location)
        listed = await run(
            write_manifest_list, self._io, result.list_location, snapshot_id, base.head_id, sequence_number, result.manifests
        )
        memory.remember_list(result.list_location, listed)
        failpoints.hit("commit.after_list")
        return result

    def _write_added(self, memory: TableMemory, base: LoadedTable, delta: Delta, snapshot_id: int, location: str) -> ManifestFile:
        schema, _ = plan_schema(base, delta)
        spec, _ = plan_spec(base, delta)
        shape = memory.shape_of(schema, spec, base.properties)
        entries = added_entries(shape, delta.files, snapshot_id)
        manifest = write_manifest(self._io, location, shape, snapshot_id, added=entries)
        memory.remember_entries(manifest, settled_entries(entries, base.metadata["last-sequence-number"] + 1))
        return manifest

    def _plan_merge(self, base: LoadedTable, delta: Delta, manifests: tuple[ManifestFile, ...]) -> tuple[ManifestFile, ...]:
        """Manifests of a spec whose columns are gone without a trace stay as they are: nobody knows its values' types."""
        while merged := plan_merge(manifests):
            spec_id = merged[0].partition_spec_id
            if self._shape_to_merge(base, delta, spec_id) is not None:
                return merged
            manifests = tuple(manifest for manifest in manifests if manifest.partition_spec_id != spec_id)
        return ()

    def _shape_to_merge(self, base: LoadedTable, delta: Delta, spec_id: int) -> tuple[Mapping[str, Any], Mapping[str, Any]] | None:
        """Schema and spec."""
        spec = next(spec for spec in base.metadata["partition-specs"] if spec["spec-id"] == spec_id)
        schema = schema_of_spec(base.metadata, spec, plan_schema(base, delta)[0])
        return None if schema is None else (schema, spec)

    def _write_merged(
        self, memory: TableMemory, base: LoadedTable, delta: Delta, snapshot_id: int, location: str, merged: tuple[ManifestFile, ...]
    ) -> ManifestFile:
        found = self._shape_to_merge(base, delta, merged[0].partition_spec_id)
        assert found is not None  # Or they would not have been chosen.
        shape = memory.shape_of(*found, base.properties)
        entries = [entry for manifest in merged for entry in read_entries(memory, self._io, manifest)]
        manifest = write_manifest(self._io, location, shape, snapshot_id, existing=entries)
        memory.remember_entries(manifest, entries)
        return manifest

    def _new_snapshot_id(self, base: LoadedTable) -> int:
        taken = snapshots_by_id(base.metadata)
        while True:
            snapshot_id = self._runtime.random.bits(63)
            if snapshot_id and snapshot_id not in taken:
                return snapshot_id

    def _pause_s(self, error: Exception, attempt: int) -> float:
        """Exponential with full jitter, so that writers that fell over together do not come back together."""
        if isinstance(error, CommitConflict):
            return self._runtime.random.uniform(0, _CONFLICT_PAUSE_S)
        longest_s = min(_BACKOFF_MAX_S, _BACKOFF_FIRST_S * 2 ** min(attempt, 10))
        return self._runtime.random.uniform(longest_s / 2, longest_s)
