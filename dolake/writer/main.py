"""The writer process: its doors, its lock, its line to the ingest half."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable
from functools import partial
from typing import Any

import structlog

from dolake.clock import Runtime, real_runtime
from dolake.compaction.compactor import Rewriter, SparkCaller, rewriter_here
from dolake.compaction.process import RewriteProcesses
from dolake.compaction.spark_process import call_spark
from dolake.compaction.within import Within
from dolake.config import Settings
from dolake.control import ControlClient, Message, asking
from dolake.errors import DolakeError
from dolake.iceberg.catalog import TableCatalog
from dolake.iceberg.commit import Committer
from dolake.iceberg.lake import commit_policy, open_catalog, open_warehouse
from dolake.iceberg.plan import CommitPolicy
from dolake.metrics import Metrics, observe_process
from dolake.model import TableName, TablesLike
from dolake.storage.disk import Disk, LocalDisk
from dolake.storage.store import ObjectStore
from dolake.writer.allocation import give_back_regularly
from dolake.writer.flush import Flusher
from dolake.writer.indexes import Indexes
from dolake.writer.lock import lock_writer
from dolake.writer.probing import Probe
from dolake.writer.service import WriterService

REPORT_S = 1.0
REQUESTS = ("flush", "park", "unpark", "drop", "rollback", "compact", "maintain")
_HUB_S_MAX = 1.0
# Sources wait for acks, nobody for a flush: where cores are short the ingest half goes first (measured: slow acks come twice as soon).
NICENESS = 5

logger = structlog.get_logger("dolake.writer")


async def run_writer(settings: Settings, *, ready: Callable[[], None], stop: asyncio.Event, runtime: Runtime | None = None) -> int:
    """Follows the logs into the lake until `stop`, then flushes what it has read. Raises DolakeError for what a restart cannot mend."""
    runtime = runtime or real_runtime()
    disk = LocalDisk()
    os.makedirs(settings.data, exist_ok=True)
    lock = lock_writer(disk, settings.data)
    try:
        try:
            store, catalog = await _open(runtime, settings)
        except DolakeError as error:
            await _leave_trouble(runtime, settings, error)
            raise
        processes = RewriteProcesses(settings)
        service = make_service(runtime, disk, catalog, store, commit_policy(settings), settings, rewriter=processes.rewrite)
        service.metrics.set("dolake_process_started_seconds", runtime.clock.now_ms() / 1000, process="writer")
        link = _Link(runtime, settings, service)
        probe = Probe(runtime, store, catalog, service.flusher.access, service.observe_probe)
        line = runtime.tasks.spawn("link", service.guard(link.client.start))
        beside = [
            runtime.tasks.spawn("give back", service.guard(partial(give_back_regularly, runtime))),
            runtime.tasks.spawn("report", service.guard(link.report_regularly)),
            runtime.tasks.spawn("probe", service.guard(probe.run)),
        ]
        ready()
        os.nice(NICENESS)
        try:
            await service.run(stop)
        finally:
            for task in beside:
                task.cancel()
            await processes.close()
            await asyncio.gather(*beside, return_exceptions=True)
            link.report()
            await link.client.close()
            await asyncio.gather(line, return_exceptions=True)
    finally:
        lock.release()
    return 0


async def _open(runtime: Runtime, settings: Settings) -> tuple[ObjectStore, TableCatalog]:
    store = await runtime.tasks.run(open_warehouse, settings)
    await runtime.tasks.run(store.probe, runtime.random.uuid())
    return store, await runtime.tasks.run(open_catalog, settings, store, runtime)


async def _leave_trouble(runtime: Runtime, settings: Settings, error: DolakeError) -> None:
    """Says why this writer does not come up to the ingest half, if there is one, which is asked whether commits go on."""
    with contextlib.suppress(DolakeError):
        async with asking(settings.control_path, runtime=runtime) as hub:
            await hub.ask("writer_trouble", timeout_s=_HUB_S_MAX, reason=str(error))


def make_service(
    runtime: Runtime,
    disk: Disk,
    catalog: TableCatalog,
    store: ObjectStore,
    policy: CommitPolicy,
    settings: Settings,
    rewriter: Rewriter | None = None,
    spark: SparkCaller | None = None,
) -> WriterService:
    """A writer half over the doors it is handed; a new instance, which claims each table that it writes.

    Files are rewritten by `rewriter`, or in this process; where the settings say so by `spark`, or the one that they name.
    """
    metrics = Metrics()
    committer = Committer(runtime, catalog, store, policy, on_trouble=lambda trouble: flusher.note_trouble(trouble))
    indexes = Indexes(runtime, disk, settings.data, store, metrics)
    flusher = Flusher(runtime, catalog, store, committer, instance=runtime.random.uuid(), indexes=indexes, metrics=metrics)
    return WriterService(
        runtime,
        disk=disk,
        flusher=flusher,
        settings=settings,
        rewriter=rewriter or rewriter_here(runtime, store),
        spark=spark or partial(call_spark, settings),
        metrics=metrics,
    )


class _Link:
    """The line to the hub: reports go up, requests come down. All advisory, so nothing waits for it."""

    def __init__(self, runtime: Runtime, settings: Settings, service: WriterService) -> None:
        self._runtime, self._service = runtime, service
        self.client = ControlClient(settings.control_path, role="writer", runtime=runtime, receive=self._receive, connected=self.report)
        self._requests: set[asyncio.Task[Any]] = set()
        service.report = lambda state: self.client.send({"type": "progress", **state})

    def report(self) -> None:
        observe_process(self._service.metrics, "writer")
        self._service.tell()

    async def report_regularly(self) -> None:
        while True:
            await self._runtime.clock.sleep(REPORT_S)
            self.report()

    def _receive(self, message: Message) -> None:
        if message.get("type") in REQUESTS:
            task = self._runtime.tasks.spawn(f"{message['type']} request", self._answer(message))
            self._requests.add(task)
            task.add_done_callback(self._requests.discard)

    async def _answer(self, message: Message) -> None:
        try:
            answer: Message = {"result": await self._do(message)}
        except DolakeError as error:
            answer = {"error": str(error), "exit_code": error.exit_code}
        except Exception as error:  # Whoever asks must not wait for ever because of a mistake of ours.
            logger.exception("request failed", kind=message["type"])
            answer = {"error": f"the writer failed to answer: {type(error).__name__}: {error}", "exit_code": 1}
        self.client.send({"type": f"{message['type']}_result", "id": message["id"], **answer})

    async def _do(self, message: Message) -> dict[str, Any]:
        until = {log_id: int(end) for log_id, end in message.get("until", {}).items()}
        if message["type"] == "flush":
            names, patterns = message.get("tables"), message.get("patterns")
            wanted = (
                TablesLike(patterns) if patterns is not None else None if names is None else [TableName.in_lake(name) for name in names]
            )
            return await self._service.flush(wanted, until)
        if message["type"] == "maintain":
            return await self._service.maintaining.maintain(TableName.of_any(message["table"]))
        name = TableName.in_lake(message["table"])
        match message["type"]:
            case "park":
                return await self._service.parking.park(name, until)
            case "unpark":
                return await self._service.parking.unpark(name)
            case "compact":
                within = Within(message["partition"]) if message.get("partition") else None
                return await self._service.compacting.compact(name, dry_run=bool(message["dryRun"]), within=within)
            case "rollback":
                return await self._service.rolling_back.roll_back(name, int(message["snapshot"]), bool(message["rewind"]), until)
            case _:
                return await self._service.dropping.drop(name, until)
