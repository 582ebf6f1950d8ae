"""The daemon's two halves as processes of the simulated machine: the product's services over simulated doors."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import orjson

from dolake.errors import DaemonUnreachable, DolakeError
from dolake.iceberg.plan import CommitPolicy
from dolake.ingest.service import IngestService
from dolake.model import TableName
from dolake.writer.main import make_service
from dolake.writer.service import WriterService
from tests.simulation.loop import Process
from tests.simulation.network import Disconnected, Pipe, Wire

if TYPE_CHECKING:
    from tests.simulation.world import World

REPORT_S = 1.0


class IngestHalf:
    """`service` is there once it serves. Ends as the product's process would: by dying, or with an error that ends it."""

    def __init__(self, world: World, process: Process) -> None:
        self.world, self.process = world, process
        self.service: IngestService | None = None
        self.link: Link | None = None

    async def run(self) -> None:
        try:
            door = self.world.rules.door(self.world.disk, self.process)
            service = IngestService(self.process.runtime, door, self.world.settings)
            service.writer_line = self
            await service.start()
            self.service = service
            self.world.relink()
            await service.ended
        except Exception as error:
            self.world.note_exit(self.process, error)
        self.process.die()

    async def request(self, role: str, message: dict[str, Any]) -> dict[str, Any]:
        """ingest.service.WriterLine."""
        if self.link is None:
            raise DaemonUnreachable(f"no {role} is connected")
        return await self.link.request(message)

    async def serve(self, wire: Wire) -> None:
        """One client's frames, one at a time."""
        assert self.service is not None
        connection = self.service.connect(wire.answer, wire.close)
        try:
            while True:
                await connection.receive(await wire.take())
        except Disconnected:
            connection.closed()
        except Exception as error:
            self.world.note_exit(self.process, error)


class WriterHalf:
    def __init__(self, world: World, process: Process) -> None:
        self.world, self.process = world, process
        self.service: WriterService | None = None
        self.link: Link | None = None
        self.stop = asyncio.Event()

    async def run(self) -> None:
        world, runtime = self.world, self.process.runtime
        try:
            disk = world.rules.door(world.disk, self.process)
            disk.lock(f"{world.settings.data}/writer.lock")
            store = world.open_store(self.process)
            await runtime.tasks.run(store.probe, runtime.random.uuid())
            catalog = world.open_catalog(store, self.process)
            settings = world.writer_settings()
            service = make_service(runtime, disk, catalog, store, CommitPolicy(snapshots_kept=world.snapshots_kept), settings)
            service.report = self._report
            self.service = service
            world.relink()
            runtime.tasks.spawn("report", service.guard(self._report_regularly))
            await service.run(self.stop)
        except Exception as error:
            self.world.note_exit(self.process, error)
        self.process.die()

    def _report(self, state: dict[str, Any]) -> None:
        self.process.step("report")
        if self.link is not None:
            self.link.tell(state)
        stopped = [(table.name, table.stopped) for table in self.service.tables.values() if table.stopped] if self.service else []
        if stopped:
            self.world.note_stopped(self, *stopped[0])

    async def _report_regularly(self) -> None:
        assert self.service is not None
        while True:
            await self.process.runtime.clock.sleep(REPORT_S)
            self.service.tell()


class Link:
    """The control socket between a writer and an ingest half: in order, advisory, cut at any moment."""

    def __init__(self, writer: WriterHalf, ingest: IngestHalf) -> None:
        self._writer, self._ingest = writer, ingest
        self._up, self._down = Pipe(), Pipe()
        self._waiting: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self.is_cut = False
        writer.link = ingest.link = self
        writer.process.on_death.append(self.cut)
        ingest.process.on_death.append(self.cut)
        ingest.process.spawn(self._hear_writer())
        assert writer.service is not None
        writer.process.spawn(writer.service.guard(self._hear_ingest))

    def cut(self) -> None:
        if not self.is_cut:
            self.is_cut = True
            self._writer.link = self._ingest.link = None
            for pipe in (self._up, self._down):
                pipe.cut(self._ingest.world.chaos.random.randint(0, len(pipe)))

    def tell(self, state: dict[str, Any]) -> None:
        self._up.put(orjson.dumps({"type": "progress", **state}, option=orjson.OPT_NON_STR_KEYS))

    async def request(self, message: dict[str, Any]) -> dict[str, Any]:
        number = len(self._waiting)
        self._waiting[number] = asyncio.get_running_loop().create_future()
        self._down.put(orjson.dumps({**message, "id": number}))
        return await self._waiting[number]

    async def _hear_writer(self) -> None:
        service = self._ingest.service
        assert service is not None
        service.hear("writer", {"type": "hello", "role": "writer", "pid": 1})
        try:
            while True:
                message = orjson.loads(await self._up.get())
                await self._ingest.process.runtime.clock.sleep(self._ingest.process.loop.pause_s())
                if message["type"] == "flush_result":
                    future = self._waiting[message["id"]]
                    if not future.done():  # Whoever asked may have gone.
                        future.set_result(message)
                else:
                    service.hear("writer", message)
        except Disconnected:
            for future in self._waiting.values():
                if not future.done():
                    future.set_exception(DaemonUnreachable("the writer has gone"))
            service.hear("writer", {"type": "gone"})

    async def _hear_ingest(self) -> None:
        assert self._writer.service is not None
        self._writer.service.tell()
        try:
            while True:
                message = orjson.loads(await self._down.get())
                self._writer.process.runtime.tasks.spawn("flush request", self._flush(message))
        except Disconnected:
            pass

    async def _flush(self, message: dict[str, Any]) -> None:
        assert self._writer.service is not None
        names = message["tables"]
        parsed = None if names is None else [TableName.parse(name) for name in names]
        result = await self._writer.service.flush(parsed, message["until"], timeout_s=5.0)
        self._up.put(orjson.dumps({"type": "flush_result", "id": message["id"], "result": result}))


def is_expected(error: Exception) -> bool:
    """Whether the product ends a process so on purpose: with an error that it can name, or the system's."""
    return isinstance(error, DolakeError | OSError)
