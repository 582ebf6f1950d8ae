"""One table's compaction, step by step: what is worth it, the rewrite, the landing. Who owns the table decides when each may be done.

The rewrite runs elsewhere (`Rewriter`), for as long as it takes, while the table is written; the landing is one short commit between
two flushes.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from dolake import failpoints
from dolake.clock import Runtime
from dolake.compaction.job import Job, Rewritten
from dolake.compaction.landing import GivenUp, Lander, Landing, ToLand
from dolake.compaction.plan import Choice, CompactionPolicy, Plan, plan_compaction
from dolake.compaction.rewrite import rewrite
from dolake.compaction.spark import SparkRewrite, plan_for_spark, spark_rewrite
from dolake.compaction.within import Within
from dolake.datafiles import EncodedDeletes, encode_delete_file
from dolake.iceberg.access import STORE
from dolake.iceberg.commit import Committer, Landed
from dolake.iceberg.contents import ContentsReader, LiveFile
from dolake.iceberg.metadata import LoadedTable
from dolake.storage.store import ObjectStore

Rewriter = Callable[[Job], Awaitable[Rewritten]]
SparkCaller = Callable[[Sequence[str]], Awaitable[None]]  # Runs statements one after the other. Raises SparkMissing, RewriteFailed.
# A partition that nothing has come to for so long has come to rest: its small files are put together, though they are few.
REST_S = 900.0
_UNSORTED = 0


def rewriter_here(runtime: Runtime, store: ObjectStore) -> Rewriter:
    """Rewrites in a thread of this process."""

    async def rewrite_here(job: Job) -> Rewritten:
        return await runtime.tasks.run(partial(rewrite, store, job, uuid=runtime.random.uuid))

    return rewrite_here


@dataclass(frozen=True)
class Done:
    """A landing that is the table's head, `base`, with the files of what it deletes."""

    base: LoadedTable
    landing: Landing
    deletes: tuple[EncodedDeletes, ...]


@dataclass(frozen=True)
class Compactor:
    """`rewriter` does a job somewhere. With a `spark_catalog` Spark does it, which knows the tables' catalog by that name, and commits."""

    runtime: Runtime
    store: ObjectStore
    committer: Committer
    rewriter: Rewriter
    policy: CompactionPolicy
    memory_bytes: int
    spark_catalog: str | None = None

    async def plan(
        self, base: LoadedTable, policy: CompactionPolicy, reader: ContentsReader | None = None, within: Within | None = None
    ) -> Plan:
        """What of the table's head is worth it, or of its partitions `within`. Raises ObjectMissing, ObjectDamaged, RequestRefused."""
        failpoints.hit("compact.plan")
        files = await self.files(base, reader)
        resting = at_rest(base, files, self.runtime.clock.now_ms())
        plan = await self.runtime.tasks.run(_planned, files, policy, base.spec["spec-id"], resting)
        if within is not None:
            plan = await self.runtime.tasks.run(within.narrowed, plan, base, files)
        return plan if self.spark_catalog is None else plan_for_spark(plan, policy)

    async def files(self, base: LoadedTable, reader: ContentsReader | None = None) -> tuple[LiveFile, ...]:
        """The live files of the table's head. Raises ObjectMissing, ObjectDamaged."""
        if base.head is None:
            return ()
        reader = reader or ContentsReader(self.store)
        contents = await self._until_answered(reader.read, base.head)
        reader.keep_only(contents)  # Or who looks again and again would remember every manifest there ever was.
        return tuple(contents.files)

    def works(self, base: LoadedTable, choices: Sequence[Choice], policy: CompactionPolicy) -> Sequence[Choice | SparkRewrite]:
        """What is carried out at once: one choice after the other, or all of them by Spark. `choices` are of a plan of `base`."""
        if self.spark_catalog is None or not choices:
            return choices
        return [spark_rewrite(self.spark_catalog, base, choices, policy)]

    async def rewrite(self, base: LoadedTable, choice: Choice, epoch: int) -> ToLand:
        """Does the choice's job, with files named for `epoch`. Raises RewriteRefused where an input cannot be read."""
        assert base.head is not None  # Or nothing would have been chosen.
        sequence_number = int(base.head["sequence-number"])
        if not choice.data:
            merges = frozenset(file.location for file in choice.deletes)
            return ToLand(base.uuid, sequence_number, None, None, merges)
        job = Job(
            table=str(base.name),
            location=base.location,
            schema=base.schema,
            spec=base.spec,
            sort_by=sort_order(base),
            epoch=epoch,
            data=choice.data,
            deletes=choice.deletes,
            target_bytes=self.policy.target_bytes,
            memory_bytes=self.memory_bytes,
        )
        failpoints.hit("compact.before_rewrite")
        rewritten = await self.rewriter(job)
        failpoints.hit("compact.after_rewrite")
        return ToLand(base.uuid, sequence_number, job, rewritten)

    async def look_ahead(self, lander: Lander, base: LoadedTable) -> None:
        """Reads what a landing will need, before anybody has to wait for it."""
        await self._until_answered(lander.prepare, base)

    async def land(self, lander: Lander, base: LoadedTable, epoch: int, instance: str) -> Done | GivenUp:
        """By the table's owner, between two flushes. Raises TableStopped, ObjectMissing, ObjectDamaged."""
        while True:
            found: Landing | GivenUp = await self._until_answered(lander.prepare, base)
            if isinstance(found, GivenUp):
                return found
            deletes = await put_deletes(self.runtime, self.store, self.committer, base, found, epoch)
            delta = found.delta(deletes, epoch=epoch, instance=instance, commit_id=self.runtime.random.uuid(), maintenance="compaction")
            failpoints.hit("compact.before_commit")
            outcome = await self.committer.commit(delta)
            if isinstance(outcome, Landed):
                failpoints.hit("compact.after_commit")
                return Done(outcome.base, found, deletes)
            if not outcome.moved:
                return GivenUp(outcome.reason)
            base = outcome.base  # Somebody else has committed: what has been deleted by now is looked up again.

    async def _until_answered(self, work: Callable[..., Any], *arguments: Any) -> Any:
        return await self.committer.access.until_answered(STORE, work, *arguments)


async def put_deletes(
    runtime: Runtime, store: ObjectStore, committer: Committer, base: LoadedTable, landing: Landing, epoch: int
) -> tuple[EncodedDeletes, ...]:
    """What a landing deletes, encoded and put, until the store answers."""
    put = []
    for group in landing.deletes:
        encoded = await runtime.tasks.run(encode_delete_file, base.location, group, epoch, runtime.random.uuid())
        await committer.access.until_answered(STORE, store.put, encoded.location, encoded.data)
        put.append(encoded)
    return tuple(put)


def _planned(files: tuple[LiveFile, ...], policy: CompactionPolicy, spec_id: int, resting: Collection[Any]) -> Plan:
    return plan_compaction(files, policy, spec_id=spec_id, resting=resting)


def at_rest(base: LoadedTable, files: Collection[LiveFile], now_ms: int) -> frozenset[tuple[int, tuple[Any, ...]]]:
    """Spec id and partition of those that nothing has come to for `REST_S`; of what came before the oldest snapshot no time is known."""
    young = min(
        (one["sequence-number"] for one in base.metadata.get("snapshots") or () if now_ms - one["timestamp-ms"] < REST_S * 1000),
        default=base.metadata["last-sequence-number"] + 1,
    )
    written = {(file.spec_id, file.partition) for file in files if file.sequence_number >= young}
    return frozenset({(file.spec_id, file.partition) for file in files} - written)


def sort_order(base: LoadedTable) -> tuple[int, ...]:
    """Field ids that rows are sorted by: the table's own sort order where it has a plain one, else its key. None: as they came."""
    order = next((one for one in base.metadata["sort-orders"] if one["order-id"] == base.metadata["default-sort-order-id"]), None)
    top = {column["id"] for column in base.schema["fields"]}
    if order is not None and order["order-id"] != _UNSORTED:
        fields = order["fields"]
        if all(one["transform"] == "identity" and one["direction"] == "asc" and one["source-id"] in top for one in fields):
            return tuple(one["source-id"] for one in fields)
    return tuple(base.schema.get("identifier-field-ids") or ())
