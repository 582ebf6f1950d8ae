"""What one attempt to commit writes before the swap: manifests and their list, under names that no other attempt has."""

from __future__ import annotations

from dataclasses import dataclass, field

from pyiceberg.manifest import ManifestContent, ManifestEntry, ManifestFile, read_manifest_list

from dolake import failpoints
from dolake.clock import Runtime
from dolake.iceberg.entries import TableShape, added_delete_entries, added_entries, count_files, settled_entries
from dolake.iceberg.file_io import StoreFileIO
from dolake.iceberg.manifests import (
    TableMemory,
    head_manifests,
    live_file_count,
    plan_merge,
    plan_removal,
    read_entries,
    write_manifest,
    write_manifest_list,
)
from dolake.iceberg.metadata import LoadedTable, snapshots_by_id
from dolake.iceberg.names import attempt_prefix
from dolake.iceberg.plan import Delta, Replacement, shape_of_files, shape_of_spec
from dolake.iceberg.replace import plan_replacement
from dolake.iceberg.restore import plan_restore
from dolake.iceberg.summary import NO_FILES, FileCounts
from dolake.storage.store import ObjectStore


@dataclass
class Manifests:
    """What one attempt writes: `manifests` in the order of its list, and all `written` objects, to settle before the swap names one."""

    base: LoadedTable
    delta: Delta
    snapshot_id: int
    prefix: str
    memory: TableMemory
    manifests: list[ManifestFile] = field(default_factory=list)
    written: list[str] = field(default_factory=list)
    removed: FileCounts = NO_FILES
    restored: FileCounts = NO_FILES

    @property
    def sequence_number(self) -> int:
        return int(self.base.metadata["last-sequence-number"]) + 1

    @property
    def list_location(self) -> str:
        return f"{self.prefix}-list.avro"

    def next_location(self) -> str:
        self.written.append(f"{self.prefix}-m{len(self.written)}.avro")
        return self.written[-1]


class ManifestWriter:
    """Remembers of each table what it has written and read."""

    def __init__(self, runtime: Runtime, store: ObjectStore) -> None:
        self._runtime = runtime
        self._io = StoreFileIO(store)
        self._memories: dict[str, TableMemory] = {}

    def forget(self, table_uuid: str) -> None:
        self._memories.pop(table_uuid, None)

    async def write(self, base: LoadedTable, delta: Delta) -> Manifests:
        """Everything of the delta's snapshot on top of `base` but the metadata that names it, under names of its own."""
        run, snapshot_id = self._runtime.tasks.run, self._new_snapshot_id(base)
        memory = self._memories.setdefault(base.uuid, TableMemory())
        prefix = attempt_prefix(base.location, delta.epoch, self._runtime.random.uuid())
        made = Manifests(base, delta, snapshot_id, prefix, memory)
        failpoints.hit("commit.before_manifest")
        before = await run(head_manifests, memory, self._io, base)
        if delta.files:
            await run(self._write_added, made)
        for spec_id in sorted({deletes.spec_id for deletes in delta.deletes}):
            await run(self._write_added_deletes, made, spec_id)
        if delta.restores is not None:
            await run(self._write_restored, made, before)
        elif delta.replaces is not None:
            await run(self._write_replaced, made, before, delta.replaces)
        elif delta.removes_all:
            for group in plan_removal(before):
                await run(self._write_removed, made, group)
        else:
            merged = self._plan_merge(base, delta, before)
            if merged:
                await run(self._write_merged, made, merged)
            gone = {manifest.manifest_path for manifest in merged}
            made.manifests += [kept for kept in before if kept.manifest_path not in gone and live_file_count(kept)]
        failpoints.hit("commit.after_manifest")
        made.written.append(made.list_location)
        listed = await run(
            write_manifest_list, self._io, made.list_location, made.snapshot_id, base.head_id, made.sequence_number, made.manifests
        )
        memory.remember_list(made.list_location, listed)
        failpoints.hit("commit.after_list")
        return made

    def _write_added(self, made: Manifests) -> None:
        shape = made.memory.shape_of(*shape_of_files(made.base, made.delta), made.base.properties)
        older = None if made.delta.replaces is None else made.delta.replaces.sequence_number
        self._put_added(made, shape, ManifestContent.DATA, added_entries(shape, made.delta.files, made.snapshot_id, older))

    def _write_added_deletes(self, made: Manifests, spec_id: int) -> None:
        shape = self._shape(made, spec_id)
        files = [deletes for deletes in made.delta.deletes if deletes.spec_id == spec_id]
        self._put_added(made, shape, ManifestContent.DELETES, added_delete_entries(shape, files, made.snapshot_id))

    def _put_added(self, made: Manifests, shape: TableShape, content: ManifestContent, entries: list[ManifestEntry]) -> None:
        manifest = write_manifest(self._io, made.next_location(), shape, made.snapshot_id, content, added=entries)
        made.manifests.append(manifest)
        made.memory.remember_entries(manifest, settled_entries(entries, made.sequence_number))

    def _plan_merge(self, base: LoadedTable, delta: Delta, manifests: tuple[ManifestFile, ...]) -> tuple[ManifestFile, ...]:
        """Manifests of a spec whose columns are gone without a trace stay as they are: nobody knows its values' types."""
        while merged := plan_merge(manifests):
            spec_id = merged[0].partition_spec_id
            if shape_of_spec(base, delta, spec_id) is not None:
                return merged
            manifests = tuple(manifest for manifest in manifests if manifest.partition_spec_id != spec_id)
        return ()

    def _write_merged(self, made: Manifests, merged: tuple[ManifestFile, ...]) -> None:
        shape = self._shape(made, merged[0].partition_spec_id)
        entries = self._read(made, merged)
        manifest = write_manifest(self._io, made.next_location(), shape, made.snapshot_id, merged[0].content, existing=entries)
        made.manifests.append(manifest)
        made.memory.remember_entries(manifest, entries)

    def _write_removed(self, made: Manifests, group: tuple[ManifestFile, ...]) -> None:
        """Records that these manifests' files left the table. Where nobody knows their values' types they just leave the list."""
        self._put_removed(made, group[0].content, group[0].partition_spec_id, self._read(made, group))

    def _put_removed(self, made: Manifests, content: ManifestContent, spec_id: int, entries: list[ManifestEntry]) -> None:
        made.removed += count_files(entries)
        if shape_of_spec(made.base, made.delta, spec_id) is not None:
            shape = self._shape(made, spec_id)
            manifest = write_manifest(self._io, made.next_location(), shape, made.snapshot_id, content, removed=entries)
            made.manifests.append(manifest)

    def _write_restored(self, made: Manifests, before: tuple[ManifestFile, ...]) -> None:
        """The older snapshot's manifests as they are, so that its files keep the numbers by which deletes speak of them."""
        snapshot = snapshots_by_id(made.base.metadata)[made.delta.restores or 0]
        target = tuple(read_manifest_list(self._io.new_input(snapshot["manifest-list"])))
        restore = plan_restore(before, target, lambda manifest: read_entries(made.memory, self._io, manifest))
        made.restored = count_files(restore.back)
        for (content, spec_id), entries in restore.gone:
            self._put_removed(made, content, spec_id, entries)
        made.manifests += restore.kept

    def _write_replaced(self, made: Manifests, before: tuple[ManifestFile, ...], replacement: Replacement) -> None:
        """Manifests that name a removed file are written anew, together, without it; all others stay as they are."""
        planned = plan_replacement(before, replacement, lambda manifest: read_entries(made.memory, self._io, manifest))
        made.manifests += [manifest for manifest in planned.kept if live_file_count(manifest)]
        for (content, spec_id), staying, gone in planned.rewritten:
            made.removed += count_files(gone)
            shape = self._shape(made, spec_id)
            manifest = write_manifest(self._io, made.next_location(), shape, made.snapshot_id, content, existing=staying, removed=gone)
            made.manifests.append(manifest)
            made.memory.remember_entries(manifest, staying)

    def _read(self, made: Manifests, manifests: tuple[ManifestFile, ...]) -> list[ManifestEntry]:
        return [entry for manifest in manifests for entry in read_entries(made.memory, self._io, manifest)]

    def _shape(self, made: Manifests, spec_id: int) -> TableShape:
        found = shape_of_spec(made.base, made.delta, spec_id)
        assert found is not None  # Or there would be nothing to write with it.
        return made.memory.shape_of(*found, made.base.properties)

    def _new_snapshot_id(self, base: LoadedTable) -> int:
        taken = snapshots_by_id(base.metadata)
        while True:
            snapshot_id = self._runtime.random.bits(63)
            if snapshot_id and snapshot_id not in taken:
                return snapshot_id
