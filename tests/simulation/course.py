"""A canonical day of the daemon's life, the same every time: what one fault, at each moment in turn, is let loose on.

Polite sources, one schedule, no chances. Whatever happens to the halves, each step is asked for again until it is done, as an
operator and a supervisor would; in the end everything heals and the world's checks hold the lake to what was acked.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from contextvars import Context
from typing import Any

import structlog

from dolake.buffer.parked import side_directory
from dolake.cli.replaying import KnownLetter
from dolake.config import Settings
from dolake.errors import CatalogUnreachable, DolakeError, RequestRefused, StoreUnreachable
from dolake.failpoints import FailpointRaised
from dolake.iceberg.metadata import LoadedTable
from dolake.iceberg.points import REWIND, ROLLBACK
from dolake.model import DEAD_LETTERS_TABLE, TableName
from dolake.parquet.letters import DEAD
from dolake.storage.store import ObjectStore
from dolake.writer.flight import Away
from tests.simulation.constants import Patch
from tests.simulation.disk import DiskDoor, SimDisk
from tests.simulation.doors import Door, Operation
from tests.simulation.halves import IngestHalf, WriterHalf
from tests.simulation.indexes import sized_indexes
from tests.simulation.loop import Process
from tests.simulation.mirror import Mirror, Row
from tests.simulation.operator import parked_on_platter
from tests.simulation.pages import GONE, ITEMS, LONG_AGO, ORDERS, PAST, Pages
from tests.simulation.profile import Profile
from tests.simulation.replayer import Replayer
from tests.simulation.rough import RoughSource
from tests.simulation.world import DRAIN_S_MAX, ROOT, Outcome, Rules, World

SEED = 20
STEP_S_MAX = 120.0
_OF_ANOTHER = "the metadata of another table lies in its folder"
PAUSE_S = 0.1
ZOMBIE_S = 8.0
GROUPED = "grouped"
LAKES = {"local": (True, "sql"), "remote": (False, "service"), "shared": (False, "sql"), GROUPED: (False, "sql")}
"""Whether the warehouse is on the daemon's disk, and the kind of catalog. An object store outlives the disk, and serves zombies too.

In the last one all tables are committed together."""


def profile_of(lake: str) -> dict[str, Any]:
    """Every field of a world's profile."""
    local, style = LAKES[lake]
    return vars(
        Profile(
            sources=0,
            polite=0,
            batches=0,
            logs=1,
            local=local,
            catalog_style=style,
            partitions=((),),
            chances={},
            strikes=0,
            strike_kinds=(),
            steps_between_strikes=1,
            strike_at_changes=False,
            rudeness=0.0,
            misfits=1.0,
            columns=({},),
            replays=1,
            transactions=False,
            flush_age_s=0.2,
            flush_rows=1000,
            snapshots_kept=4,
            backlog_bytes=None,
            disk_bytes=1 << 40,
            linger_s=0.0,
            sync_s=0.0,
            store_s=0.0,
            catalog_s=0.0,
            clocks_off_s=0.0,
            parkings=1,
            modes=("both",),
            changelogs=(str(ITEMS),),
            grouped=lake == GROUPED,
        )
    )


class Course(World):
    """One run. What breaks, and when, is a subclass's: it may hand out doors of its own, and hear of failpoints."""

    def __init__(self, lake: str, *, printed: bool = False) -> None:
        super().__init__(SEED, Rules(self.disk_door, profile=profile_of(lake)), printed=printed)
        self.settings = course_settings(self.settings)
        self.pages = Pages(self.journal)
        self._once: set[str] = set()
        self._was: dict[int, Mirror] = {}  # by snapshot: what may be gone back to
        self._went_back: list[str] = []
        self._target: LoadedTable | None = None

    # -- doors

    def disk_door(self, disk: SimDisk, process: Process) -> Any:
        return Door(DiskDoor(disk, process), "disk", self, process)

    def open_store(self, process: Process) -> Any:
        return Door(super().open_store(process), "store", self, process)

    def open_catalog(self, store: ObjectStore, process: Process) -> Any:
        return Door(super().open_catalog(store, process), "catalog", self, process)

    def operate(self, operation: Operation) -> Any:
        """The course's own troubles, once each; and what a drop means to the checks."""
        if (
            operation.name == "settle"
            and any("/default/orders/" in name for name in operation.arguments[0])
            and self._is_due("settling fails", operation)
        ):
            raise StoreUnreachable("the directories could not be synced")
        answer = self.perform(operation)
        if operation.kind == "catalog" and operation.name in ("swap", "swap_together") and self._is_due("an answer is lost", operation):
            raise CatalogUnreachable("no answer")
        return answer

    def perform(self, operation: Operation) -> Any:
        answer = operation.perform(*operation.arguments)
        if operation.kind == "catalog" and operation.name == "drop":
            self._note_dropped(operation.arguments[0])
        return answer

    def _is_due(self, trouble: str, operation: Operation) -> bool:
        due = trouble in self._once and operation.process.name.startswith("writer")
        self._once.discard(trouble if due else "")
        return due

    # -- what the world asks

    def constants(self) -> list[Patch]:
        return sized_indexes(entries=4, growth=4, space=1, chunk=3, unsaved=1 << 19, memory=1 << 28, read=4)

    def writer_settings(self) -> Settings:
        return self.settings

    def _has_beside(self, name: TableName) -> bool:
        return name not in (GONE, PAST) and super()._has_beside(name)

    def note_exit(self, process: Process, error: Exception) -> None:
        if process.alive and isinstance(error, FailpointRaised):
            self.trace(process.name, "ends", repr(error))
            return
        super().note_exit(process, error)

    def _note_dropped(self, base: LoadedTable) -> None:
        """It is out of the catalog, with all that the logs hold of it: nothing was on its way when it was dropped."""
        name = str(base.name)
        self.records.look()
        self.dropped[base.name] = {log_id: self.records.durable_end(log_id) for log_id in base.offsets()}
        self.tables.pop(name, None)
        self.mirrors.pop(name, None)
        self.pages.forget(name)

    def _check_mirror(self, before: LoadedTable | None, after: LoadedTable) -> None:
        if after.name == PAST and before is not None and before.head_id != after.head_id and after.head is not None:
            self._take_out(self._mirror(str(PAST)), after.head["summary"])
        super()._check_mirror(before, after)
        if after.name == PAST and after.head_id is not None:
            self._was[after.head_id] = self._mirror(str(PAST)).copy()

    def _take_out(self, mirror: Mirror, summary: Mapping[str, str]) -> None:
        """Rows that leave a table without an event that says so."""
        if summary.get("dolake.maintenance") == "ttl":
            mirror.rows = {key: rows for key, rows in mirror.rows.items() if not any(_has_expired(row) for row in rows)}
            self.chaos.count("expired")
        if ROLLBACK in summary:
            rewinds = REWIND in summary
            out = mirror.go_back(self._was[int(summary[ROLLBACK])], rewinds=rewinds)
            if rewinds:
                self.journal.committed -= out
                self.journal.rewound |= out
                self.journal.committed_in[str(PAST)] -= out
            else:
                self.pages.forget_events(out)
            self._went_back.append("rewind" if rewinds else "roll back")

    # -- the course

    async def _main(self) -> None:
        halves = [asyncio.ensure_future(self._keep(name)) for name in self._gone]
        relinking = asyncio.ensure_future(self._relink())
        for step in (
            self._begin,
            self._change,
            self._restart,
            self._widen,
            self._replay,
            self._park,
            self._recover,
            self._drop,
            self._tidy,
            self._expire,
            self._rewind,
            self._roll_back,
            self._end,
        ):
            if not self.breaches:
                self.trace("course", step.__name__)
                await step()
        if self.zombies and not self.breaches:  # They come to again, and find what their successors have done.
            await self._until(lambda: False, ZOMBIE_S)
        self._heal()
        await self._until(self._is_drained, DRAIN_S_MAX)
        if not self.breaches:
            self._check_end()
        for task in (*halves, relinking):
            task.cancel()

    async def _begin(self) -> None:
        await self._send(self.pages.first())
        await self._send(self.pages.other())
        await self._committed()

    async def _change(self) -> None:
        """Updates, deletes, other keys, columns that did not change, a TRUNCATE; and events that fit nowhere, or not yet."""
        await self._send(self.pages.changes())
        await self._committed()

    async def _restart(self) -> None:
        """In order: what may be saved is saved."""
        await self._stop("writer")
        await self._stop("ingest")
        await self._send(self.pages.more())
        await self._committed()

    async def _widen(self) -> None:
        self._once.add("an answer is lost")
        await self._send(self.pages.wider())
        await self._committed()

    async def _replay(self) -> None:
        replayer = _EveryLetter(1, self._process, self.journal, self.letters, self.dial, self.chaos, self.open_lake, lambda: True)
        self.sources.append(replayer)
        replayer.start(self.note)
        await self._reach(lambda: replayer.is_done, "the letters to be sent again")
        await self._committed()

    async def _park(self) -> None:
        await self._ask("park", ORDERS)
        for _ in range(3):
            await self._send(self.pages.bulk())
        await self._reach(lambda: len(parked_on_platter(self.disk, ROOT, ORDERS)) >= 6, "records to be parked")
        self._once.add("settling fails")
        await self._ask("unpark", ORDERS, lambda: self._is_away(ORDERS) is False)
        self._once.clear()
        await self._committed()

    async def _recover(self) -> None:
        """Both halves are killed with records in the unsealed segment."""
        await self._send(self.pages.bulk())
        for half in (self.ingest, self.writer):
            if half is not None:
                half.process.die()
        await self._send(self.pages.bulk())
        await self._committed()

    async def _drop(self) -> None:
        await self._ask("park", GONE)
        await self._ask("drop", GONE, lambda: GONE not in self.catalog.rows and not self._is_parked(GONE))
        await self._send(self.pages.again())
        await self._committed()

    async def _tidy(self) -> None:
        """Small files become one, and what only expired snapshots needed goes; then more of the same keys."""
        await self._ask("compact", ORDERS)
        await self._ask("maintain", ORDERS)
        await self._ask("maintain", DEAD_LETTERS_TABLE)
        await self._send(self.pages.bulk())
        await self._committed()

    async def _expire(self) -> None:
        """A file's rows all, and some of another's; then more of the same keys."""
        for page in (self.pages.aged, self.pages.older):
            await self._send(page())
            await self._committed()
        await self._ask("maintain", PAST)
        if not self.breaches and any(_has_expired(row) for rows in self._mirror(str(PAST)).rows.values() for row in rows):
            self.note(f"liveness: what has expired of {PAST} is still there")
        await self._send(self.pages.afterwards())
        await self._committed()

    async def _rewind(self) -> None:
        await self._go_back("rewind")

    async def _roll_back(self) -> None:
        await self._go_back("roll back")

    async def _go_back(self, how: str) -> None:
        """To before a mistake, whose events are applied once more, or are out for good; then what is right."""
        if self.breaches:
            return
        self._target = self.catalog.rows[PAST]
        await self._send(self.pages.mistaken())
        await self._committed()
        await self._ask(how, PAST, lambda: self._went_back[-1:] == [how] or (how == "rewind" and self._is_trimmed(self._target)))
        await self._committed()
        await self._send(self.pages.corrected())
        await self._committed()

    async def _end(self) -> None:
        await self._stop("ingest")
        await self._stop("writer")
        await self._send(self.pages.bulk())
        await self._committed()
        await self._reach(lambda: self.chaos.counts["segments trimmed"] > 0, "a segment to be trimmed")

    # -- its means

    async def _send(self, name: str) -> None:
        """What was written on the pages is sent, until all of it is acked."""
        known = next((source for source in self.sources if source.name == name), None)
        source = RoughSource(self.pages.script(name), self._process(f"source {name}"), self.journal, self.dial, 0.0)
        if isinstance(known, RoughSource):
            source.acked = known.acked
            self.sources.remove(known)
        self.sources.append(source)
        source.start(self.note)
        await self._reach(lambda: source.is_done, f"{name} to be acked")

    async def _committed(self) -> None:
        await self._reach(lambda: self.journal.acked <= self.journal.committed, "what is acked to be committed")

    async def _stop(self, name: str) -> None:
        """In order, as SIGTERM does it; one that died is no different to who asked for it."""
        half = self.writer if name == "writer" else self.ingest
        if half is None or half.service is None or not half.process.alive:
            return
        if isinstance(half, IngestHalf):
            half.process.spawn(self._stop_ingest(half))
        else:
            half.stop.set()
        await self._reach(lambda: not half.process.alive or half.process.detached, f"{name} to stop")

    async def _stop_ingest(self, half: IngestHalf) -> None:
        assert half.service is not None
        try:
            await half.service.stop()
        except Exception as error:
            self.note_exit(half.process, error)
        half.process.die()

    async def _ask(self, what: str, name: TableName, is_done: Callable[[], bool] = lambda: False) -> None:
        """A command, again and again until it is said to be done, or is."""
        end_s = self.loop.time() + STEP_S_MAX
        while not self.breaches and not is_done() and not await self._ask_once(what, name):
            if self.loop.time() > end_s:
                self.note(f"liveness: {what} {name} is not done after {STEP_S_MAX:g} s")
            await asyncio.sleep(PAUSE_S)

    async def _ask_once(self, what: str, name: TableName) -> bool:
        half = self.writer
        if half is None or half.service is None or not half.process.alive or half.process.detached:
            return False
        asked = half.process.spawn(self._command(half, what, name))
        await self._reach(lambda: asked.done() or not half.process.alive or half.process.detached, f"an answer to {what} {name}")
        return asked.done() and not asked.cancelled() and asked.exception() is None and asked.result()

    async def _command(self, half: WriterHalf, what: str, name: TableName) -> bool:
        """Whether it is done, as the answer has it."""
        service = half.service
        assert service is not None
        until = {tail.log_id: tail.position for tail in service.tails.values()}
        half.process.step(what, str(name))
        try:
            if what == "compact":
                runs = (await service.compacting.compact(name, dry_run=False))["runs"]
                return all(run["state"] == "done" for run in runs)
            if what == "maintain":
                expired = (await service.maintaining.maintain(name))["expired"]
                return not (expired and expired["put_off"])
            if what in ("rewind", "roll back"):
                assert self._target is not None
                assert self._target.head_id is not None
                await service.rolling_back.roll_back(name, self._target.head_id, what == "rewind", until)
            elif what == "drop":
                await service.dropping.drop(name, until)
            else:
                await (service.parking.park(name, until) if what == "park" else service.parking.unpark(name))
        except (DolakeError, OSError, FailpointRaised) as error:
            half.process.step(f"{what} refused", repr(error))
            # These catalogs do not say which tables they have: where a table died as it was made, nothing is purged for good.
            return what == "maintain" and isinstance(error, RequestRefused) and _OF_ANOTHER in str(error)
        except Exception as error:
            if half.process.alive:
                self.note(f"{what} {name}: {error!r}")
            return False
        return True

    def _is_away(self, name: TableName) -> bool | None:
        """Whether the running writer has the table parked, side log and all; None where nobody knows."""
        half = self.writer
        table = half.service.tables.get(name) if half is not None and half.service is not None and half.process.alive else None
        return None if table is None else table.away is not Away.HERE or table.side is not None

    def _is_parked(self, name: TableName) -> bool:
        directory = side_directory(ROOT, name)
        return any(path.startswith(directory + "/") for path in self.disk.names)

    def _is_trimmed(self, table: LoadedTable) -> bool:
        """Whether the logs hold no more what came next: after some restarts segments are sealed, and go, sooner."""
        return any(not self.records.holds(log_id, offset) for log_id, offset in table.offsets().items())

    async def _reach(self, reached: Callable[[], bool], what: str) -> None:
        end_s = self.loop.time() + STEP_S_MAX
        await self._until(reached, STEP_S_MAX)
        if not reached() and not self.breaches and self.loop.time() >= end_s:
            self.note(f"liveness: waited {STEP_S_MAX:g} s for {what}")

    async def _relink(self) -> None:
        while True:
            await asyncio.sleep(0.2)
            self.relink()


def _has_expired(row: Row) -> bool:
    return any(values.get("day") == LONG_AGO for values in row.options)


class _EveryLetter(Replayer):
    def pick(self, process: Process, letters: Sequence[KnownLetter]) -> list[KnownLetter]:
        return [letter for letter in letters if letter.state == DEAD]


def course_settings(settings: Settings) -> Settings:
    """The world's, with tables that have no changelog beside them, one of them with a TTL, and flushes that are soon due."""
    made = settings.model_dump()
    made["flush"] |= {"bytes": 2000}
    made["maintenance"] |= {"dead_letters_s": 0.001}
    made["tables"][str(GONE)] = {"mode": "mirror"}
    made["tables"][str(PAST)] = {"mode": "mirror", "group": "", "ttl": {"column": "day", "age": "1 d"}}
    return Settings.model_validate(made)


def run_course(course: Course) -> Outcome:
    """The product's log lines are not printed, nor even made."""
    before = structlog.get_config()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    try:
        return Context().run(course.run)
    finally:
        structlog.configure(**before)
