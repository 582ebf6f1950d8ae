"""A table with any history, in tests: made with the Committer and by others, with all that attempts leave behind; and what must be
left of its folder after a purge, found out by PyIceberg and from names alone."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyiceberg.io.pyarrow import PyArrowFileIO
from pyiceberg.table import StaticTable
from pyiceberg.table.snapshots import Snapshot
from sqlalchemy import event

from dolake.clock import SystemRandomness
from dolake.compaction.purging import find_unreferenced
from dolake.compaction.unreferenced import Unreferenced
from dolake.iceberg.catalog import SqlTableCatalog
from dolake.iceberg.commit import Landed
from dolake.iceberg.metadata import LoadedTable, snapshots_by_id, to_bytes
from dolake.iceberg.names import attempt_prefix, data_file_location, delete_file_location, metadata_location, metadata_version
from dolake.iceberg.plan import CommitPlan, CommitPolicy, Delta
from dolake.iceberg.refs import BRANCH, TAG, change_ref, plan_create, plan_delete
from dolake.storage.disk import LocalDisk, LocalFile
from dolake.storage.local import LocalStore
from tests.iceberg import foreign
from tests.iceberg.lake import TABLE, Lake, hand_runtime, make_metadata, put_file
from tests.iceberg.mirror import Mirror, Rows


class _UnsyncedFile(LocalFile):
    def sync(self) -> None:
        """Nothing is unplugged here."""


class _UnsyncedDisk(LocalDisk):
    def create(self, path: str) -> LocalFile:
        return _UnsyncedFile(super().create(path).detach())

    def sync_directory(self, path: str) -> None:
        """As above."""


class QuickLake(Lake):
    """A real directory and a real SQLite file, of which no power cut is expected."""

    def __init__(self, directory: Path) -> None:
        self.runtime = hand_runtime()
        self.uri = f"sqlite:///{directory}/catalog.db"
        self.store = LocalStore(f"file://{directory}/warehouse", _UnsyncedDisk())
        self.catalog = SqlTableCatalog(self.uri, self.store, self.runtime)
        event.listen(self.catalog.engine, "connect", lambda connection, _: connection.execute("PRAGMA synchronous=OFF"))
        self.catalog.engine.dispose()
        self.named: dict[str, set[str]] = {}  # Manifest lists, with themselves, and manifests → what they name.
        self.table = self.catalog.create(TABLE, make_metadata(self.store, self.runtime))

    @property
    def folder(self) -> Path:
        return Path(self.table.location.removeprefix("file://"))

    def objects(self) -> set[str]:
        """Paths of everything below the table's location."""
        found = (os.path.relpath(os.path.join(parent, name), self.folder) for parent, _, names in os.walk(self.folder) for name in names)
        return set(found)

    def claim(self, policy: CommitPolicy | None = None) -> LoadedTable:
        """The table, right after an empty snapshot under the next epoch."""
        base = self.current()
        offsets = base.offsets()
        delta = self.delta(0, 0, rows=[], epoch=base.owner_epoch + 1, ranges={})
        outcome = self.commit(delta, self.committer(policy=policy))
        assert isinstance(outcome, Landed)
        assert outcome.base.offsets() == offsets
        return self.current()

    def find(self, base: LoadedTable, **other: Any) -> Unreferenced:
        settings: dict[str, Any] = {"epoch": base.owner_epoch, "owns_metadata": True, "neighbours": self.catalog.neighbours(TABLE)}
        return find_unreferenced(self.store, base, **{**settings, **other})

    def prepared(self, delta: Delta) -> tuple[LoadedTable, CommitPlan]:
        """A commit that has done everything but the swap."""
        base = self.current()
        plan = asyncio.run(self.committer()._prepare(base, delta, self.runtime.clock.now_ms))
        assert isinstance(plan, CommitPlan)
        return base, plan


@dataclass(frozen=True)
class Left:
    """Paths of objects that nobody needs, by whether the next purge may take them."""

    over: set[str]
    stay: set[str]


class History:
    """One table's, from a seed."""

    def __init__(self, directory: Path, seed: int) -> None:
        self.draw = random.Random(seed)
        self.lake = QuickLake(directory)
        self.mirror = Mirror(self.lake)
        self.epoch = 1
        self.policy = CommitPolicy(
            snapshots_kept=self.draw.choice([1, 2, 4, 100]),
            tags_kept_days=self.draw.choice([0, 7]),
            snapshots_age_s_max=self.draw.choice([0, 0, 60]),
        )
        self.foreign: set[str] = set()

    def run(self, steps: int) -> None:
        for _ in range(steps):
            self.lake.runtime.clock.ms += self.draw.choice([10, 1_000, 50_000, 4_000_000])  # type: ignore[attr-defined]
            getattr(self, "_" + self.draw.choice(_STEPS))()
        self._leave_behind()

    # -- what happens to a table

    def _write(self, **other: Any) -> None:
        keys = self.draw.sample(range(12), self.draw.randint(1, 4))
        gone = self.draw.sample(sorted(self.mirror.rows), min(len(self.mirror.rows), self.draw.randint(0, 2)))
        upserts = {key: f"n{self.draw.randrange(1000)}" for key in keys if key not in gone}
        self.mirror.change(upserts, gone, committer=self.lake.committer(policy=self.policy), epoch=self.epoch, **other)

    def _truncate(self) -> None:
        self._write(truncate=True)

    def _restart(self) -> None:
        self.epoch = self.lake.current().owner_epoch + 1
        self._write()

    def _roll_back(self) -> None:
        base = self.lake.current()
        known = [number for number in snapshots_by_id(base.metadata) if number in self.mirror.at]
        if base.head is None or not known:
            return
        target = self.draw.choice(known)
        self.epoch = base.owner_epoch + 1
        delta = self.lake.delta(0, 0, rows=[], ranges={}, epoch=self.epoch, restores=target, offsets=base.offsets())
        assert isinstance(self.lake.commit(delta, self.lake.committer(policy=self.policy)), Landed)
        self.mirror.took_in()

    def _tag(self) -> None:
        self._ref(TAG)

    def _branch(self) -> None:
        self._ref(BRANCH)

    def _ref(self, kind: str) -> None:
        base = self.lake.current()
        known = list(snapshots_by_id(base.metadata))
        name = f"{kind}{self.draw.randrange(3)}"
        if name in (base.metadata.get("refs") or {}):
            change_ref(self.lake.catalog, base, lambda table: plan_delete(table, kind, name))
        elif known:
            target = self.draw.choice(known)
            change_ref(
                self.lake.catalog, base, lambda table: plan_create(table, kind, name, target, None, self.lake.runtime.clock.now_ms())
            )

    def _others_write(self) -> None:
        """PyIceberg does, under names of its own."""
        if self.lake.current().head is None:
            return
        before = self.lake.objects()
        foreign.append(self.lake, {self.draw.randrange(100, 10**9): "theirs"})
        self.foreign |= {path for path in self.lake.objects() - before if not path.endswith(".metadata.json")}
        self.mirror.took_in()

    # -- what nobody ever committed

    def _leave_behind(self) -> None:
        for path in ("data/theirs.parquet", "metadata/version-hint.text", f"data/x/e00000001-{_uuid()}-00000000.parquet", "README"):
            self._put_foreign(path)
        # A table nested in the folder, with names like ours.
        for path in (f"data/data/e00000001-{_uuid()}-00000000.parquet", f"data/metadata/00000-{_uuid()}.metadata.json"):
            self._put_foreign(path)
        # Nearly ours.
        for path in (
            f"data/e00000001-{'-' * 36}-00000000.parquet",
            f"metadata/e00000001-{_uuid()}-m01.avro",
            f"e00000001-{_uuid()}-list.avro",
        ):
            self._put_foreign(path)

    def leave_attempts(self) -> Left:
        """Files of attempts that came to nothing, of epochs that are over and of the table's own; metadata of lost swaps."""
        base = self.lake.current()
        left = Left(set(), set())
        for epoch in range(1, base.owner_epoch + 3):
            for path in self._attempt(base, epoch):
                (left.over if epoch < base.owner_epoch else left.stay).add(path)
        version = metadata_version(base.metadata_location)
        for number in {0, version - 1, version, version + 1, version + 7} - {-1}:
            path = self._put(metadata_location(base.location, number, _uuid()), to_bytes(base.metadata))
            (left.over if number <= version else left.stay).add(path)
        return left

    def _attempt(self, base: LoadedTable, epoch: int) -> Iterator[str]:
        yield self._put(data_file_location(base.location, epoch, _uuid(), 7), b"rows")
        yield self._put(delete_file_location(base.location, epoch, _uuid(), 7), b"deletes")
        prefix = attempt_prefix(base.location, epoch, _uuid())
        for end in ("-m0.avro", "-m17.avro", "-list.avro"):
            yield self._put(prefix + end, b"half a manif")

    def _put_foreign(self, path: str) -> None:
        self.foreign.add(self._put(f"{self.lake.table.location}/{path}", b"theirs"))

    def _put(self, location: str, data: bytes) -> str:
        self.lake.store.put(location, data)
        return location.removeprefix(self.lake.table.location + "/")

    # -- what must be true

    def breaches(self) -> list[str]:
        """Of everything that the table retains: whether it is there, and whether PyIceberg reads from it what it always did."""
        if missing := reachable(self.lake) - self.lake.objects():
            return [f"{path} is gone, and a retained snapshot names it" for path in sorted(missing)]
        said, plain = [], self.lake.plain_table()
        for number in snapshots_by_id(self.lake.current().metadata):
            found = plain.scan(snapshot_id=number).to_arrow()
            rows = dict(zip(found["id"].to_pylist(), found["name"].to_pylist(), strict=True))
            if rows != self.mirror.at[number]:
                said.append(f"snapshot {number} reads as {rows}, and was {self.mirror.at[number]}")
        return said


_STEPS = [*["write"] * 8, *["restart"] * 2, "truncate", "roll_back", "tag", "branch", "others_write"]


def reachable(lake: QuickLake) -> set[str]:
    """Paths of what the current metadata and its snapshots name, as PyIceberg reads them: files that are live in one.

    What a snapshot names is read once and remembered, so that it is known also when it is gone.
    """
    metadata = StaticTable.from_metadata(lake.current().metadata_location).metadata
    found = {lake.current().metadata_location, *(entry.metadata_file for entry in metadata.metadata_log)}
    for snapshot in metadata.snapshots:
        if snapshot.manifest_list not in lake.named:
            lake.named[snapshot.manifest_list] = set(_named(lake, snapshot))
        found |= lake.named[snapshot.manifest_list]
    return {location.removeprefix(lake.table.location + "/") for location in found}


def _named(lake: QuickLake, snapshot: Snapshot) -> Iterator[str]:
    """As far as it can be read: what stands in the way of the rest is named."""
    io = PyArrowFileIO()
    yield snapshot.manifest_list
    with suppress(FileNotFoundError):
        for manifest in snapshot.manifests(io):
            yield manifest.manifest_path
            if manifest.manifest_path not in lake.named:
                entries = manifest.fetch_manifest_entry(io, discard_deleted=True)
                lake.named[manifest.manifest_path] = {entry.data_file.file_path for entry in entries}
            yield from lake.named[manifest.manifest_path]


def _uuid() -> str:
    return SystemRandomness().uuid()


def put_rows(lake: QuickLake, epoch: int, rows: Rows, offset: int) -> Delta:
    """A delta whose file lies in the store, which nothing names yet."""
    file = put_file(lake.store, lake.current(), [{"id": key, "name": name} for key, name in rows.items()], epoch=epoch)
    return lake.delta(offset, offset + 1, rows=[], files=(file,), epoch=epoch)
