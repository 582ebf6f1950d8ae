"""The dead-letter table as the writer half keeps it: verdicts on events, committed before the rows of their table.

Beside the letters it holds, for each table and log, an offset (`dolake.offset.<table>/<log>`): below it, what was decided
stands. A writer that finds a table's own offset behind that one (it died between the two commits) takes its verdicts from
here, so that a letter is neither lost nor doubled even if the schema has moved meanwhile.

Its own owner epoch fences writers that were replaced, as any table's does.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from dolake import failpoints
from dolake.clock import Runtime
from dolake.compaction.landing import MAINTENANCE
from dolake.compaction.letters import LettersRewrite
from dolake.datafiles import encode_file
from dolake.errors import CommitConflict, ObjectMissing, TableStopped
from dolake.iceberg.access import CATALOG, STORE
from dolake.iceberg.catalog import TableCatalog
from dolake.iceberg.commit import Committer, Landed
from dolake.iceberg.contents import ContentsReader
from dolake.iceberg.metadata import LoadedTable, new_table
from dolake.iceberg.objects import read_file
from dolake.iceberg.plan import Delta, NewFile, Replacement
from dolake.model import DEAD_LETTERS_TABLE, OffsetRange, TableName
from dolake.parquet.align import schema_as_json
from dolake.parquet.decode import read_columns
from dolake.parquet.letters import LETTERS_SCHEMA, REPLAYED, Letter, Place, letters_table
from dolake.storage.store import ObjectStore
from dolake.writer.watch import open_letters

_SPEC = {"spec-id": 0, "fields": [{"name": "table_name", "transform": "identity", "source-id": 1, "field-id": 1000}]}
Found = TypeVar("Found")
_LETTER_COLUMNS = ["_cdc_log", "_cdc_offset", "_cdc_index", "_cdc_source", "_cdc_epoch", "outcome", "event"]
_PLACE_COLUMNS = ["_cdc_log", "_cdc_offset", "_cdc_index", "replayed_log", "replayed_offset", "replayed_index", "outcome"]


@dataclass(frozen=True)
class Verdicts:
    """What has been decided of one table's events, and may not be in the table yet.

    `bounds`: log id → first offset that nothing was decided of. `places`: (log id, offset) → indexes → outcome, of records at
    or above the table's own offsets. `epoch`: that of this writer as the letters' owner when it looked; None where there were none.
    """

    bounds: Mapping[str, int] = field(default_factory=dict)
    places: Mapping[tuple[str, int], Mapping[int, str]] = field(default_factory=dict)
    epoch: int | None = None

    def of(self, log_id: str, offset: int) -> Mapping[int, str]:
        """Of one record's events, those that are decided."""
        return self.places.get((log_id, offset), {})

    def kept_out(self, log_id: str, offset: int) -> set[int]:
        """Those that make no row. What was sent again and applied does: its verdict was committed first, its row was not."""
        return {index for index, outcome in self.of(log_id, offset).items() if outcome != REPLAYED}

    def split(self, cuts: Mapping[str, int]) -> tuple[Verdicts, Verdicts]:
        """Those on records below these offsets, and the others."""
        below = {place: decided for place, decided in self.places.items() if place[1] < cuts.get(place[0], 0)}
        above = {place: decided for place, decided in self.places.items() if place not in below} if below else self.places
        return replace(self, places=below), replace(self, places=above)


class DeadLetters:
    """`until_answered(part, work, *arguments)` calls the store or the catalog until it answers."""

    def __init__(
        self,
        runtime: Runtime,
        catalog: TableCatalog,
        store: ObjectStore,
        committer: Committer,
        *,
        instance: str,
        until_answered: Callable[..., Any],
    ) -> None:
        self._runtime, self._catalog, self._store, self._committer = runtime, catalog, store, committer
        self._instance, self._until_answered = instance, until_answered
        self._lock = asyncio.Lock()
        self._base: LoadedTable | None = None
        self._epoch: int | None = None

    async def verdicts(self, table: TableName, committed: Mapping[str, int]) -> Verdicts:
        """What stands of `table`, for a writer that is about to read on from `committed`."""
        async with self._lock:
            await self._forget_lost()

            def read(base: LoadedTable) -> Verdicts:
                bounds = _bounds(base, table)
                behind = {log_id: committed.get(log_id, 0) for log_id, bound in bounds.items() if bound > committed.get(log_id, 0)}
                return Verdicts(bounds, self._read_places(base, table, behind) if behind else {})

            found = await self._read(read)
            return Verdicts() if found is None else replace(found, epoch=self._epoch)

    async def states(self, table: TableName) -> dict[Place, str]:
        """The newest outcome of each of the table's letters."""
        async with self._lock:
            rows = await self._read(lambda base: read_letters(self._store, base, table, _PLACE_COLUMNS)) or []
        return {Place(row["_cdc_log"], row["_cdc_offset"], row["_cdc_index"]): row["outcome"] for row in rows}

    async def waiting(self, table: TableName) -> list[Letter]:
        """The table's letters that were neither sent again nor overtaken."""
        async with self._lock:
            return open_letters(await self._read(lambda base: read_letters(self._store, base, table, _LETTER_COLUMNS)) or [])

    async def own(self) -> int:
        """The epoch of this writer as the letters' owner: from here on verdicts of others stand already, or never land.

        A table that is claimed after this, and verdicts that are committed under this epoch, cannot be in anybody's way: a
        writer that did not see them has loaded the table before, and is fenced. Raises TableStopped.
        """
        async with self._lock:
            if await self._claimed() is None:
                await self._create()
                if await self._claimed() is None:
                    raise TableStopped(str(DEAD_LETTERS_TABLE), "it was dropped while it was being created; restart the writer")
            assert self._epoch is not None  # It goes with the base.
            return self._epoch

    async def commit(
        self, table: TableName, letters: Sequence[Letter], ends: Mapping[str, int], bounds: Mapping[str, int], epoch: int
    ) -> Mapping[str, int] | None:
        """Commits verdicts on events of `table` below `ends`, as the owner that `own` said; the bounds as they are then.

        None if others than `bounds` stand, or the epoch is over: somebody may have decided first, and the table has to be read
        again. Raises TableStopped.
        """
        async with self._lock:
            base = await self._claimed()
            if base is None or self._epoch != epoch:
                return None
            # Later than all before, whatever the clock does: the newest verdict is the one that holds.
            judged_at_ms = max(self._runtime.clock.now_ms(), base.metadata["last-updated-ms"] + 1)
            rows = letters_table(str(table), letters, judged_at_ms)
            encoded = await self._runtime.tasks.run(encode_file, base.location, (str(table),), rows, epoch, self._runtime.random.uuid())
            await self._until_answered(STORE, self._store.put, encoded.location, encoded.data)
            # A predecessor may have decided of more than this flush holds: that stands, and the bound never goes back.
            starts = {log_id: bounds.get(log_id, 0) for log_id in ends}
            ranges = {_pair(table, log_id): OffsetRange(starts[log_id], max(starts[log_id], end)) for log_id, end in ends.items()}
            landed = await self._commit(base, epoch, (encoded.as_new_file(),), ranges)
            return None if landed is None else _bounds(landed, table)

    async def base(self) -> LoadedTable | None:
        """The table as it is, owned by this writer."""
        async with self._lock:
            return await self._claimed()

    async def claim_anew(self) -> LoadedTable | None:
        """The same, under an epoch that none of its objects is named by."""
        async with self._lock:
            base = await self._claimed()
            if base is not None:
                await self._commit(base, base.owner_epoch + 1, (), {}, expires=False)
                base = await self._claimed()
            return base

    async def rewrite(self, work: LettersRewrite) -> bool:
        """Commits it in place of its files, and says whether it could: not where one of them is gone. Raises TableStopped."""
        async with self._lock:
            base = await self._claimed()
            if base is None or base.head is None or self._epoch is None:
                return False
            live = {file.location for file in (await self._until_answered(STORE, ContentsReader(self._store).read, base.head)).files}
            if not live.issuperset(file.location for file in work.files):
                return False
            partition, epoch = work.files[0].partition, self._epoch
            files = []
            for rows in work.rows:
                encoded = await self._runtime.tasks.run(encode_file, base.location, partition, rows, epoch, self._runtime.random.uuid())
                await self._until_answered(STORE, self._store.put, encoded.location, encoded.data)
                files.append(encoded.as_new_file())
            replacement = Replacement(
                removed=frozenset(file.location for file in work.files),
                removed_sequence_max=max(file.sequence_number for file in work.files),
                sequence_number=int(base.head["sequence-number"]),
                schema=base.schema,
                spec_id=work.files[0].spec_id,
                same_rows=not work.expired_count,
            )
            failpoints.hit("letters.before_rewrite")
            landed = await self._commit(base, epoch, tuple(files), {}, replaces=replacement)
            failpoints.hit("letters.after_rewrite")
            return landed is not None

    async def _claimed(self) -> LoadedTable | None:
        """The table, owned by this writer from its first look at it on: what another wrote is there to be seen, or never lands."""
        while self._base is None:
            base: LoadedTable | None = await self._until_answered(CATALOG, self._catalog.load, DEAD_LETTERS_TABLE)
            if base is None:
                return None
            await self._commit(base, base.owner_epoch + 1, (), {})
        return self._base

    async def _read(self, read: Callable[[LoadedTable], Found]) -> Found | None:
        """Reads the table as it is, `read` in a thread; None if there is none.

        The lock is held: nothing of it is rewritten here, and purged, meanwhile. Another writer may have done so. Raises ObjectMissing.
        """
        while True:
            base = await self._claimed()
            if base is None:
                return None
            try:
                found: Found = await self._until_answered(STORE, read, base)
                return found
            except ObjectMissing:
                await self._forget_lost()
                if self._base is base:
                    raise

    async def _forget_lost(self) -> None:
        """Lets go of what we own no more: its verdicts are not all that stand."""
        if self._base is not None:
            base: LoadedTable | None = await self._until_answered(CATALOG, self._catalog.load, DEAD_LETTERS_TABLE)
            if base is None or (base.uuid, base.owner_epoch, base.instance) != (self._base.uuid, self._epoch, self._instance):
                self._base, self._epoch = None, None

    async def _create(self) -> None:
        metadata = new_table(
            uuid=self._runtime.random.uuid(),
            location=f"{self._store.root}/{DEAD_LETTERS_TABLE.namespace}/{DEAD_LETTERS_TABLE.name}",
            schema=schema_as_json(LETTERS_SCHEMA),
            spec=_SPEC,
            now_ms=self._runtime.clock.now_ms(),
        )
        with contextlib.suppress(CommitConflict):  # It is there: ours, with its answer lost, or another writer's.
            await self._until_answered(CATALOG, self._catalog.create, DEAD_LETTERS_TABLE, metadata)

    async def _commit(
        self,
        base: LoadedTable,
        epoch: int,
        files: tuple[NewFile, ...],
        ranges: Mapping[str, OffsetRange],
        *,
        replaces: Replacement | None = None,
        expires: bool = True,
    ) -> LoadedTable | None:
        delta = Delta(
            table=DEAD_LETTERS_TABLE,
            table_uuid=base.uuid,
            ranges=ranges,
            files=files,
            schema=schema_as_json(LETTERS_SCHEMA),
            base_schema_id=base.schema["schema-id"],
            spec_id=base.spec["spec-id"],
            spec=_SPEC,  # Whatever somebody made of it: verdicts are found by it.
            epoch=epoch,
            instance=self._instance,
            commit_id=self._runtime.random.uuid(),
            only_as_named=True,
            expires=expires,
            summary={} if replaces is None else {MAINTENANCE: "dead letters"},
            replaces=replaces,
            on_head_only=replaces is not None,
            head_id=base.head_id,
        )
        outcome = await self._committer.commit(delta)
        if isinstance(outcome, Landed):
            self._base, self._epoch = outcome.base, epoch
            return outcome.base
        self._base, self._epoch = None, None
        return None

    def _read_places(self, base: LoadedTable, table: TableName, since: Mapping[str, int]) -> dict[tuple[str, int], dict[int, str]]:
        """Reads the letters of `table` for records from `since` on. Blocks."""
        places: dict[tuple[str, int], dict[int, str]] = {}
        for row in read_letters(self._store, base, table, _PLACE_COLUMNS):
            first = (row["_cdc_log"], row["_cdc_offset"], row["_cdc_index"])
            again = (row["replayed_log"], row["replayed_offset"], row["replayed_index"])
            log_id, offset, index = first if again[0] is None else again
            if log_id in since and offset >= since[log_id]:
                places.setdefault((log_id, offset), {})[index] = row["outcome"]
        return places


def read_letters(store: ObjectStore, base: LoadedTable, table: TableName | None, columns: Sequence[str]) -> list[dict[str, Any]]:
    """These columns, and `judged_at`, of one table's letters (all tables' for None), in the order they were judged. Blocks."""
    if base.head is None:
        return []
    wanted = list(dict.fromkeys([*columns, "judged_at"]))
    rows: list[dict[str, Any]] = []
    for file in ContentsReader(store).read(base.head).files:
        if file.kind == "data" and (table is None or file.partition == (str(table),)):
            rows += read_columns(read_file(store, file.location, file.size_bytes), wanted).to_pylist()
    return sorted(rows, key=lambda row: row["judged_at"])


def _pair(table: TableName, log_id: str) -> str:
    return f"{table}/{log_id}"


def _bounds(base: LoadedTable, table: TableName) -> dict[str, int]:
    start = f"{table}/"
    return {pair[len(start) :]: offset for pair, offset in base.offsets().items() if pair.startswith(start)}
