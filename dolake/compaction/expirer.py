"""One table's TTL, step by step: what has expired is looked for, and leaves the table in one snapshot. Who owns it decides when."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from dolake import failpoints
from dolake.clock import Runtime
from dolake.compaction.compactor import Done, put_deletes
from dolake.compaction.landing import GivenUp, Lander, Landing, Positions, ToLand
from dolake.compaction.ttl import Holds, Ttl, TtlColumn, expired_in, judge_file
from dolake.errors import ObjectDamaged, TtlRefused
from dolake.iceberg.access import STORE
from dolake.iceberg.commit import Committer, Landed
from dolake.iceberg.contents import ContentsReader, LiveFile
from dolake.iceberg.expired import with_cutoff
from dolake.iceberg.metadata import EPOCH, LoadedTable, ancestry
from dolake.iceberg.objects import read_file
from dolake.iceberg.points import ROLLBACK
from dolake.parquet.decode import read_fields
from dolake.storage.store import ObjectStore

# What a table says of its rows once so many have expired: of the table, how many lived, and how many of these go.
Counted = Callable[[LoadedTable, int, int], Mapping[str, str]]

_NOWHERE: Positions = np.zeros(0, np.int64)


@dataclass(frozen=True)
class Due:
    """What would leave the table now. `live_count`: rows that live until then."""

    landing: Landing
    column: TtlColumn
    cutoff_us: int
    live_count: int

    @property
    def is_nothing(self) -> bool:
        return not self.landing.removed and not self.landing.expired


@dataclass(frozen=True)
class _Read:
    """Of a file's column, by a cutoff: places that have expired, and the lowest value that has not (None: there is none)."""

    cutoff_us: int
    places: Positions
    lowest_us: int | None


@dataclass
class Looker:
    """Finds out what of one table has expired, and remembers between runs which files hold nothing of that for how long. Blocks."""

    store: ObjectStore
    _uuid: str = ""
    _field_id: int = -1
    _head_id: int | None = None
    _contents: ContentsReader | None = None
    _deletes: dict[str, dict[str, Positions]] = field(default_factory=dict)
    _read: dict[str, _Read] = field(default_factory=dict)
    # Files out of which everything below was deleted: their lowest value that lives. What the manifest says is older.
    _lowest_us: dict[str, int | None] = field(default_factory=dict)

    def look(self, base: LoadedTable, ttl: Ttl, cutoff_us: int) -> Due | None:
        """On top of exactly `base`'s head; None where it has none.

        Raises TtlRefused, ObjectMissing, ObjectDamaged, StoreUnreachable.
        """
        column = TtlColumn.of(base, ttl)
        if (self._uuid, self._field_id) != (base.uuid, column.field_id):
            self._uuid, self._field_id, self._contents = base.uuid, column.field_id, None
            self._lowest_us, self._read, self._deletes = {}, {}, {}
        if base.head is None:
            return None
        if not _follows(base, self._head_id):  # Rows that had been deleted may live again.
            self._lowest_us = {}
        self._head_id = base.head_id
        self._contents = self._contents or ContentsReader(self.store)
        contents = self._contents.read(base.head)
        self._contents.keep_only(contents)
        data = [file for file in contents.files if file.kind == "data"]
        deletes = [file for file in contents.files if file.kind != "data"]
        self._forget({file.location for file in contents.files})
        if any(file.kind != "position deletes" for file in deletes):
            rule = "cannot be applied: somebody has written equality deletes, so that nobody here knows which rows live"
            raise TtlRefused(str(base.name), ttl.column, rule)
        specs = {spec["spec-id"]: spec for spec in base.metadata["partition-specs"]}
        judged = [(file, self._judge(file, judge_file(file, specs, column, cutoff_us), column, cutoff_us)) for file in data]
        removed = frozenset(file.location for file, places in judged if places is None)
        expired = {file.location: places for file, places in judged if places is not None and len(places)}
        work = ToLand(base.uuid, int(base.head["sequence-number"]), None, None, removed=removed, expired=expired)
        landing = Lander(self.store, work, self._contents, self._deletes).prepare(base)
        assert isinstance(landing, Landing)  # It is of the very head that the files are of.
        live_count = sum(file.row_count for file in data) - sum(file.row_count for file in deletes)
        return Due(landing, column, cutoff_us, live_count)

    def _judge(self, file: LiveFile, holds: Holds, column: TtlColumn, cutoff_us: int) -> Positions | None:
        """Places of expired rows in a file that stays; None for one that leaves."""
        if holds is Holds.ALL_EXPIRED:
            return None
        if holds is Holds.NOTHING_EXPIRED:
            return _NOWHERE
        if file.location in self._lowest_us:
            lowest_us = self._lowest_us[file.location]
            if lowest_us is None or lowest_us >= cutoff_us:
                return _NOWHERE
        read = self._read.get(file.location)
        if read is None or read.cutoff_us != cutoff_us:
            read = self._read[file.location] = self._read_column(file, column, cutoff_us)
        return None if len(read.places) == file.row_count else read.places

    def _read_column(self, file: LiveFile, column: TtlColumn, cutoff_us: int) -> _Read:
        failpoints.hit("ttl.read")
        try:
            values = read_fields(read_file(self.store, file.location, file.size_bytes), [column.field_id]).get(column.field_id)
            places, lowest_us = (_NOWHERE, None) if values is None else expired_in(values, column, cutoff_us)
        except pa.ArrowException as error:
            raise ObjectDamaged(f"{file.location} cannot be read: {error}; `dolake verify` says more") from error
        return _Read(cutoff_us, places, lowest_us)

    def note_gone(self, due: Due) -> None:
        """It has left the table, or had left it before."""
        for location, read in self._read.items():
            if read.cutoff_us == due.cutoff_us:
                self._lowest_us[location] = read.lowest_us
        self._read = {}

    def _forget(self, live: set[str]) -> None:
        for known in (self._deletes, self._read, self._lowest_us):
            for location in known.keys() - live:
                del known[location]


def _follows(base: LoadedTable, head_id: int | None) -> bool:
    """Whether nothing but dolake's own has come upon that snapshot, and no rollback among it."""
    for snapshot in ancestry(base.metadata, base.head_id):
        if snapshot["snapshot-id"] == head_id:
            return True
        if EPOCH not in snapshot["summary"] or ROLLBACK in snapshot["summary"]:
            return False
    return False


@dataclass(frozen=True)
class Expirer:
    """The steps. Blocking work runs in threads, until the store answers."""

    runtime: Runtime
    store: ObjectStore
    committer: Committer

    async def look(self, looker: Looker, base: LoadedTable, ttl: Ttl, cutoff_us: int) -> Due | None:
        """What has expired; reads beside everybody else. Raises TtlRefused, ObjectMissing, ObjectDamaged."""
        found: Due | None = await self.committer.access.until_answered(STORE, looker.look, base, ttl, cutoff_us)
        return found

    async def expire(
        self, looker: Looker, base: LoadedTable, ttl: Ttl, cutoff_us: int, *, epoch: int, instance: str, counted: Counted
    ) -> Done | GivenUp | None:
        """By the table's owner, between two flushes; None where nothing has expired. Raises as `look` does, and TableStopped."""
        while True:
            due = await self.look(looker, base, ttl, cutoff_us)
            if due is None or due.is_nothing:
                if due is not None:
                    looker.note_gone(due)
                return None
            landing = due.landing
            deletes = await put_deletes(self.runtime, self.store, self.committer, base, landing, epoch)
            properties = {
                **counted(base, due.live_count, landing.expired_count),
                **with_cutoff(due.column.field_id, cutoff_us, base.properties),
            }
            commit_id = self.runtime.random.uuid()
            delta = landing.delta(deletes, epoch=epoch, instance=instance, commit_id=commit_id, maintenance="ttl", properties=properties)
            failpoints.hit("ttl.before_commit")
            outcome = await self.committer.commit(delta)
            if isinstance(outcome, Landed):
                failpoints.hit("ttl.after_commit")
                looker.note_gone(due)
                return Done(outcome.base, landing, deletes)
            if not outcome.moved:
                return GivenUp(outcome.reason)
            base = outcome.base  # Somebody else has committed: what lives is looked up again.
