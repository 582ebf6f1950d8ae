"""One seed: sources, both halves, disk, store and catalog; what befalls them; and whether the invariants held.

The chaotic part lasts until the sources are done or its time is over. Then everything heals: no fault happens any more, zombies
end, halves start again; within a bounded time everything acked must be in the lake, once.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import logging
import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import Context
from dataclasses import dataclass, field, replace
from typing import Any

import orjson
import structlog

from dolake.buffer.record import decode_record
from dolake.buffer.segment import parse_name, scan_segment
from dolake.cli.lake import Lake
from dolake.config import Settings
from dolake.errors import DolakeError, LogCorrupt
from dolake.iceberg.catalog import TableCatalog
from dolake.iceberg.metadata import LoadedTable, Update
from dolake.model import DEAD_LETTERS_TABLE, RecordKind, TableName
from dolake.parquet.letters import REPLAYED
from dolake.storage.local import LocalStore
from dolake.storage.store import ObjectStore
from dolake.verify import verify_lake
from dolake.writer.flight import Stopped
from dolake.writer.kinds import Counts
from tests.simulation.catalog import CatalogServer
from tests.simulation.changes import Changes
from tests.simulation.constants import Patch, idle_waits, in_force, packing
from tests.simulation.disk import Cut, DiskDoor, Inode, SimDisk
from tests.simulation.faults import Chaos, Trace
from tests.simulation.foreign import EQUALITY, KINDS, plan_foreign
from tests.simulation.halves import IngestHalf, Link, WriterHalf, is_expected
from tests.simulation.indexes import IndexFolders, small_indexes
from tests.simulation.invariants import (
    BESIDE,
    Committed,
    Event,
    Journal,
    check_change,
    check_cut,
    check_events,
    check_order,
    check_rewrite,
    check_table,
    cut_names,
    is_rewrite,
    live_rows,
    named,
    named_objects,
    note_rows,
)
from tests.simulation.letters import Letters
from tests.simulation.loop import Process, SimLoop, Stuck
from tests.simulation.mirror import Mirror, MirrorReader, check_required, check_totals, fold_changes
from tests.simulation.network import Wire
from tests.simulation.operator import Operator, parked_on_platter, parked_records
from tests.simulation.polite import PoliteSource, Producing
from tests.simulation.profile import GROUPED, SHORT, Profile, drawn_compaction
from tests.simulation.records import Records
from tests.simulation.replayer import Replayer
from tests.simulation.rough import RoughSource
from tests.simulation.sources import Manners, write_script
from tests.simulation.sqlcatalog import SqlServer
from tests.simulation.store import PlatterStore, StoreDoor, Warehouse

ROOT = "/data"
CHAOS_S_MAX = 60.0
LOOK_S = 0.25
DRAIN_S_MAX = 600.0  # Where beginnings of transactions fill a small backlog, room comes when one is given up, a minute each (seed 301613).
FREEZE_S_MAX = 5.0
TRANSACTION_S_MAX = 60.0
WORLDS_A_FREEZE = 50
_WORLDS = itertools.count()  # those of this process


Source = RoughSource | PoliteSource | Replayer


@dataclass(frozen=True)
class Rules:
    """What a mutant replaces: the disk's door, or attributes (owner, name, value) of the product.

    `profile`: what its worlds are, whatever their seeds draw, where few of them would touch the rule. `scenario`: the one of
    `scenarios` that catches it, where no world would.
    """

    door: Callable[[SimDisk, Process], DiskDoor] = DiskDoor
    patches: tuple[Patch, ...] = ()
    profile: Mapping[str, Any] = field(default_factory=dict)
    scenario: str = ""


@dataclass
class Outcome:
    """What came of one seed."""

    seed: int
    breach: str
    digest: str
    step_count: int
    counts: Counter[str] = field(default_factory=Counter)


class World:
    def __init__(self, seed: int, rules: Rules | None = None, *, changes: Changes | None = None, printed: bool = False) -> None:
        self.seed, self.rules = seed, rules or Rules()
        self.profile, self.random = profile_of(seed, self.rules, changes)
        self.trace = Trace(printed=printed)
        self.loop = SimLoop(f"loop {seed}", trace=self.trace, time_s_max=CHAOS_S_MAX + DRAIN_S_MAX + 60)
        self.chaos = Chaos(f"chaos {seed}", self.profile.chances)
        self.disk = SimDisk(self.chaos, ROOT, self.profile.disk_bytes, self.profile.sync_s)
        self.disk.on_unlink = self._check_unlink
        self.settings = make_settings(self.profile)
        self.snapshots_kept = self.profile.snapshots_kept
        self.warehouse = None if self.profile.local else Warehouse(self.chaos, self.loop, "s3://lake/w", self.note, self._check_purged)
        self.objects = self.warehouse or PlatterStore(self.disk)
        self.catalog: CatalogServer | SqlServer
        if self.profile.catalog_style == "sql":
            self.catalog = SqlServer(self.chaos, self._check_change, self._check_cut)
        else:
            self.catalog = CatalogServer(
                self.chaos, self.loop, style=self.profile.catalog_style, watch=self._check_change, watch_cut=self._check_cut
            )
        self.catalog.latency_s = self.profile.catalog_s
        if self.warehouse is not None:
            self.warehouse.latency_s = self.profile.store_s
            if isinstance(self.catalog, CatalogServer):
                self.catalog.put_foreign = self.warehouse.store
                self.catalog.plan_foreign, self.catalog.heard_foreign = self._plan_foreign, self._hear_foreign
        self.journal = Journal(has_beside=lambda table: self._has_beside(TableName.parse(table)))
        self.records = Records(self.disk, tuple(self.settings.log.directories))
        self.tables: dict[str, Committed] = {}
        self.mirrors: dict[str, Mirror] = {}
        self.reader = MirrorReader(self.objects)
        self.folders = IndexFolders(self.disk, self.chaos, f"{ROOT}/index")
        self.dropped: dict[TableName, dict[str, int]] = {}  # what went with a dropped table: everything below these offsets
        self.equality: set[TableName] = set()  # tables that somebody has written equality deletes to
        self.cuts: set[str] = set()  # those that were committed as one
        self.cuts_said: dict[str, str] = {}  # those that a table says it has, and which table
        self.is_taken_back = False
        self.named: dict[str, tuple[Any, frozenset[str]]] = {}  # by table uuid: metadata, and the objects that it names
        self.ingest: IngestHalf | None = None
        self.writer: WriterHalf | None = None
        self.zombies: list[Process] = []
        self.processes: list[Process] = []
        self.letters = Letters()
        self.operator = Operator(self)
        self.sources: list[Source] = []
        self.breaches: list[str] = []
        self.strikes_left = self.profile.strikes
        self.is_healed = False
        self._failed = asyncio.Event()
        self._gone: dict[str, asyncio.Event] = {"ingest": asyncio.Event(), "writer": asyncio.Event()}

    # -- running

    def run(self) -> Outcome:
        try:
            with in_force(self.constants()):
                self.loop.run_until_complete(self._main())
        except Stuck as error:
            self.note(f"liveness: {error}")
        finally:
            for process in self.processes:
                process.bury()
            for task in asyncio.all_tasks(self.loop):
                task._log_destroy_pending = False
            self.loop.close()
            self.catalog.close()
            gc.collect()  # What nobody asked a dead task for is told when it is collected: now, in every run of this seed.
        for complaint in self.loop.complaints:
            self.note(f"unhandled: {complaint}")
        self.chaos.counts["events committed"] = sum(len(table.rows) for table in self.tables.values())
        self.chaos.counts += self.letters.counts()
        breach = "; ".join(self.breaches[:3])
        return Outcome(self.seed, breach, self.trace.digest(), self.trace.step_count, self.chaos.counts)

    def constants(self) -> list[Patch]:
        draw = random.Random(f"constants {self.seed}")
        return [*small_indexes(draw), *idle_waits(draw), *packing(draw)]

    async def _main(self) -> None:
        halves = [asyncio.ensure_future(self._keep(name)) for name in self._gone]
        for number in range(self.profile.sources):
            script = write_script(f"s{number}", self.random, self.journal, self.profile.batches, self._manners())
            source: Source
            if number < self.profile.polite:
                source = PoliteSource(script, self._process, self.journal, self.dial, self.chaos)
            else:
                source = RoughSource(script, self._process(f"source {number}"), self.journal, self.dial, self.profile.rudeness)
            self.sources.append(source)
        if (self.profile.misfits or self.profile.is_mirrored) and self.profile.replays:
            rounds = self.profile.replays
            senders = tuple(self.sources)
            self.sources.append(
                Replayer(
                    rounds,
                    self._process,
                    self.journal,
                    self.letters,
                    self.dial,
                    self.chaos,
                    self.open_lake,
                    lambda: all(source.is_done for source in senders),
                )
            )
        for source in self.sources:
            source.start(self.note)
        upsets = [asyncio.ensure_future(self._upset())]
        if self.profile.parkings:
            upsets.append(asyncio.ensure_future(self.operator.run()))
        await self._until(lambda: all(source.is_done for source in self.sources), CHAOS_S_MAX)
        await self._until(lambda: False, self.profile.linger_s)
        self._heal()
        await self._until(self._is_drained, DRAIN_S_MAX)
        if not self.breaches:
            self._check_end()
        for task in (*halves, *upsets):
            task.cancel()

    def _manners(self) -> Manners:
        profile = self.profile
        return Manners(
            transactions=profile.transactions,
            misfits=profile.misfits,
            is_mirrored=profile.is_mirrored,
            is_contested=profile.is_contested,
            truncates=profile.truncates,
        )

    async def _until(self, reached: Callable[[], bool], seconds: float) -> None:
        """Returns when that is so, after that long, or at the first breach."""
        end_s = self.loop.time() + seconds
        while not reached() and self.loop.time() < end_s and not self.breaches:  # noqa: ASYNC110 - in virtual time looking costs nothing
            await asyncio.sleep(LOOK_S)

    def _heal(self) -> None:
        self.trace("world", "heals")
        self.is_healed = True
        self.chaos.heal()
        self.disk.capacity = 1 << 40
        self.strikes_left = 0
        for zombie in self.zombies:
            zombie.die()

    def _is_drained(self) -> bool:
        """All is in the lake; and the logs are open, so that what of them is synced has been found out."""
        is_open = self.ingest is not None and self.ingest.service is not None and self.ingest.process.alive
        is_done = all(source.is_done for source in self.sources) and self.operator.is_all_here()
        if not (is_open and is_done and self.journal.acked <= self.journal.committed):
            return False
        return not self.letters.awaits_rows({str(name): row for name, row in self.catalog.rows.items()})

    def note(self, breach: str) -> None:
        """A breach ends the world; the first is the one that counts."""
        self.trace("world", "breach", breach)
        self.breaches.append(breach)

    # -- processes

    def _process(self, name: str) -> Process:
        process = Process(
            self.loop, f"{name}.{len(self.processes)}", f"{self.seed} {name} {len(self.processes)}", self.profile.clocks_off_s
        )
        self.processes.append(process)
        return process

    async def _keep(self, name: str) -> None:
        """The supervisor: starts a half, and again whenever it has gone."""
        while True:
            gone = self._gone[name] = asyncio.Event()
            process = self._process(name)
            process.on_death.append(gone.set)
            process.on_moment = self._strike
            process.steps_left = self._next_strike()
            process.counts = CHANGES if self.profile.strike_at_changes else None
            self.trace(process.name, "starts")
            self.chaos.count(f"{name} starts")
            if name == "writer" and self.random.random() < self.profile.index_faults and not self.is_healed:
                self.folders.upset(self.random)
            if name == "ingest":
                self.ingest = IngestHalf(self, process)
                process.spawn(self.ingest.run())
            else:
                self.writer = WriterHalf(self, process)
                process.spawn(self.writer.run())
            await gone.wait()
            await asyncio.sleep(self.random.choice([0.0, 0.05, 0.5]))

    def _next_strike(self) -> int | None:
        if self.strikes_left <= 0:
            return None
        return 1 + int(self.random.expovariate(1 / self.profile.steps_between_strikes))

    def _strike(self, process: Process) -> None:
        """The moment drawn for this process has come: something happens to it."""
        if self.strikes_left <= 0 or process.detached:
            return
        kind = process.doom or self.random.choice(self.profile.strike_kinds)
        if kind.startswith("zombie") and not process.doom and process.name.startswith("writer"):
            # A zombie is dangerous in the middle of a flush: its disk goes at one of the next steps of one.
            process.doom, process.counts, process.steps_left = kind, FLUSHING, self.random.randint(1, 8)
            return
        if kind == "cut power" and not process.doom and self.random.random() < 0.75:
            # And a power cut between a write and its sync.
            process.doom, process.counts, process.steps_left = kind, SYNCS, self.random.randint(1, 4)
            return
        self.strikes_left -= 1
        self.chaos.count(kind)
        self.trace("world", kind, process.name)
        current = [half.process for half in (self.ingest, self.writer) if half is not None and not half.process.detached]
        if kind == "kill one":
            process.die()
        elif kind == "kill both":
            for half in current:
                half.die()
        elif kind == "cut power":
            for victim in [*current, *self.zombies]:
                victim.die()
            self.disk.cut_power(self.random.choice(CUTS))
        elif kind == "freeze":
            process.frozen_until = self.loop.time() + self.random.uniform(0.0, FREEZE_S_MAX)
        elif kind == "zombie one":
            self._detach([process])
        else:
            self._detach(current)
        if process.alive:
            process.doom, process.steps_left = "", self._next_strike()

    def _detach(self, processes: list[Process]) -> None:
        """A machine that lost its disk to its successor, and does not know. Its unsynced writes may be lost on the way."""
        for process in processes:
            process.detached = True
            process.frozen_until = self.loop.time() + self.random.choice([0.0, 2.0, 2.0 * FREEZE_S_MAX]) * self.random.random()
            self.zombies.append(process)
            self._gone[process.name.split(".")[0]].set()
        half = next(half for half in (self.ingest, self.writer) if half is not None)
        if half.link is not None and len(processes) == 1:
            half.link.cut()
        if len(processes) > 1 and self.random.random() < 0.5:
            self.disk.cut_power(self.random.choice(CUTS))

    async def _upset(self) -> None:
        """Small troubles between the processes, and the end of zombies."""
        while True:
            await asyncio.sleep(self.random.uniform(0.2, 4.0))
            if self.is_healed:
                self.relink()
                continue
            if self.profile.index_faults:
                self.folders.copy()
            draw = self.random.random()
            if draw < 0.3 and self.ingest is not None and self.ingest.link is not None:
                self.chaos.count("control link cut")
                self.ingest.link.cut()
            elif draw < 0.6 and self.zombies:
                self.zombies.pop(0).die()
            elif draw < 0.7 and self.writer is not None and self.strikes_left:
                self.chaos.count("writer stopped in order")
                self.writer.stop.set()
            elif draw < 0.8:
                self._crash_producer()
            self.relink()

    def _crash_producer(self) -> None:
        running = [source for source in self.sources if isinstance(source, Producing) and source.process and source.process.alive]
        if running and self.strikes_left:
            self.chaos.count("producer crash")
            victim = self.random.choice(running).process
            assert victim is not None
            victim.die()

    def writer_settings(self) -> Settings:
        """What a writer finds that starts now: somebody edits them between its starts."""
        return make_settings(self.profile, self.chaos.counts["writer starts"] - 1)

    def relink(self) -> None:
        """Connects the writer to the ingest half if both serve, and neither stands on another machine."""
        ingest, writer = self.ingest, self.writer
        if ingest is None or writer is None or ingest.service is None or writer.service is None:
            return
        if not ingest.process.alive or not writer.process.alive or ingest.process.detached != writer.process.detached:
            return
        if ingest.link is None and writer.link is None:
            Link(writer, ingest)

    def dial(self, client: Process) -> Wire | None:
        """A connection to the daemon as it is now; None if nobody answers. Who is connected to a zombie may stay so."""
        half = self.ingest
        if half is None or half.service is None or not half.process.alive or half.process.detached:
            return None
        wire = Wire(self.chaos, client, half.process, self._check_answer)
        half.process.spawn(half.serve(wire))
        return wire

    def note_exit(self, process: Process, error: Exception) -> None:
        """A half ended by itself."""
        if not process.alive:
            return  # It is being buried.
        self.trace(process.name, "ends", repr(error))
        self.chaos.count(f"{process.name.split('.')[0]} ended by {type(error).__name__}")
        if isinstance(error, LogCorrupt) and not process.detached:
            self.note(f"a log that nobody corrupted: {error}")
        elif not is_expected(error):
            self.note(f"{process.name} crashed: {error!r}")

    def note_stopped(self, half: WriterHalf, name: TableName, stopped: Stopped) -> None:
        """A table that takes no more rows. Fenced by another writer: an operator starts the writer again."""
        self.trace(half.process.name, "stopped", f"{name} {stopped.reason}")
        if half.process.detached and "Input/output error" in stopped.reason:
            return  # A zombie's side log is out of its reach.
        if stopped.reason.startswith(f"{ROOT}/parked/") and "Input/output error" in stopped.reason:
            self.chaos.count("side log unreadable")  # It is parked as it was, and says why; once all is healed it is brought back.
            return
        if "equality deletes" in stopped.reason and name in self.equality:
            if not self.is_taken_back:
                self._take_back_equality(name)
            if not half.process.detached:
                half.stop.set()
        elif "fenced" not in stopped.reason:
            self.note(f"{name} stopped: {stopped.reason}")
        elif not half.process.detached:
            self.chaos.count("writer fenced")
            half.stop.set()

    # -- checking

    def _check_answer(self, wire: Wire, frame: bytes) -> None:
        answer: dict[str, Any] = orjson.loads(frame)
        if answer["type"] == "ack" and answer["status"] != "persisted":
            key = (wire.source, wire.epoch, answer["sequenceNumber"])
            for breach in self.journal.check_durable(key, self._durable_logs(), status=answer["status"]):
                self.note(breach)

    def _durable_logs(self) -> Iterator[bytes]:
        for directory in self.settings.log.directories:
            for path, node in self.disk.durable_names.items():
                if isinstance(node, Inode) and path.startswith(directory + "/"):
                    yield bytes(node.durable)

    def _check_change(self, before: LoadedTable | None, after: LoadedTable) -> None:
        is_letters = after.name == DEAD_LETTERS_TABLE
        history = self.letters.history if is_letters else self.tables.setdefault(str(after.name), Committed())
        history.fresh.clear()
        try:
            for breach in check_change(history, before, after, objects=self.objects, synced_end=self._durable_end):
                self.note(breach)
        except (DolakeError, OSError, ValueError) as error:
            self.note(f"I10: {after.name} cannot be read after a commit: {error!r}")
        self.records.look()
        if is_rewrite(after):
            self.chaos.counts["rewrites committed"] += 1
            if is_letters:
                self._note_letters_rewrite(history.fresh, after)
            for breach in check_rewrite(history, after):
                self.note(breach)
        if self.profile.grouped:
            for breach in self._check_known_cuts(after):
                self.note(breach)
        if is_letters:
            tables = {str(name): row for name, row in self.catalog.rows.items()}
            for breach in self.letters.note(history.fresh, after, self.journal, tables):
                self.note(breach)
        elif self._is_mirror(after.name):
            self._check_mirror(before, after)
        else:
            self._check_rows(history, before, after)

    def _note_letters_rewrite(self, rows: Sequence[Mapping[str, Any]], after: LoadedTable) -> None:
        self.chaos.counts["letters rewritten"] += bool(rows)
        self.chaos.counts["letters expired"] += sum(not row["event"] for row in rows)
        for breach in self.letters.check_rewrite(rows, after):
            self.note(breach)

    def _check_purged(self, location: str) -> None:
        """I11: nothing goes that a snapshot of a table's metadata names. What a later commit names is missed when it lands."""
        for table in self.catalog.rows.values():
            if location in self._named_by(table):
                self.note(f"I11: {location} is purged, and {table.name} needs it")

    def _named_by(self, table: LoadedTable) -> frozenset[str]:
        known = self.named.get(table.uuid)
        if known is None or known[0] is not table.metadata:
            self.named[table.uuid] = known = (table.metadata, frozenset(named_objects(table, self.objects)))
        return known[1]

    def _check_known_cuts(self, after: LoadedTable) -> Iterator[str]:
        """Every cut that a table says was committed whole, but perhaps this one, which is being looked at table by table."""
        for name in set(self.cuts_said) - self.cuts - cut_names([after]):
            yield f"cut: {self.cuts_said[name]} has committed {name} by itself"
        self.cuts_said.update(dict.fromkeys(cut_names([after]), str(after.name)))

    def _check_cut(self, changes: Sequence[tuple[LoadedTable | None, LoadedTable]]) -> None:
        """What several tables have become in one transaction of the catalog: one cut through all that was said of them."""
        self.chaos.counts["cuts committed"] += 1
        self.cuts.update(cut_names(after for _, after in changes))
        for breach in check_cut(changes):
            self.note(breach)
        if self.loop.time() < TRANSACTION_S_MAX:  # As in `_note_committed`.
            for breach in self.journal.check_whole_together({str(after.name) for _, after in changes}, self._is_in_its_transaction):
                self.note(breach)

    def _is_mirror(self, name: TableName) -> bool:
        text = str(name)
        is_ours = name == DEAD_LETTERS_TABLE or text.endswith(BESIDE)
        return self.profile.is_mirrored and not is_ours and text not in self.profile.changelogs

    def _mirror(self, name: str) -> Mirror:
        is_shared = self.profile.shared_truncate
        strict = not self.profile.is_contested and not (is_shared and self.profile.logs > 1)
        return self.mirrors.setdefault(name, Mirror(name, is_shared, strict, self.profile.logs > 1))

    def _check_mirror(self, before: LoadedTable | None, after: LoadedTable) -> None:
        """The rows that a mirror has now, against a fold of the log's events up to its offsets."""
        name, mirror = str(after.name), self._mirror(str(after.name))
        old = {**self.dropped.get(after.name, {}), **(before.offsets() if before is not None else {})}
        fresh = [
            logged for log_id, end in sorted(after.offsets().items()) for logged in self.records.of(name, log_id, old.get(log_id, 0), end)
        ]
        for logged in fresh:
            for breach in mirror.take(logged, self.letters.verdict(name, logged.spot)):
                self.note(breach)
        try:
            found = self.reader.read(after)
        except (DolakeError, OSError, ValueError) as error:
            self.note(f"I10: {name} cannot be read after a commit: {error!r}")
            return
        dead = self.letters.kept_out(after)
        breaches = [*found.breaches, *mirror.check(found), *check_required(after, found), *check_totals(after, found)]
        if any(logged.spot not in dead for logged in fresh):  # A claim, or letters alone, count nothing of what others did.
            breaches += mirror.check_counts(after, len(found.rows), len(dead))
        for breach in breaches:
            self.note(breach)
        self.chaos.counts["mirror commits"] += 1
        self.chaos.counts["mirror rows deleted"] += found.delete_count - mirror.delete_count
        mirror.delete_count = found.delete_count
        self.letters.take_fresh(after)
        self._note_committed(name, {logged.name for logged in fresh})

    def _plan_foreign(self, table: LoadedTable, number: int) -> list[Update]:
        if not self.profile.foreign_rows or not self._is_mirror(table.name) or table.head is None or self.chaos.random.random() < 0.2:
            return []
        kind = self.chaos.random.choice(KINDS)
        if kind == EQUALITY and (self.equality or table.spec["fields"]):
            return []
        assert self.warehouse is not None
        updates = plan_foreign(table, kind, number, self.chaos.random, self.warehouse)
        if updates:
            self.chaos.count(f"foreign: {kind}")
            if kind == EQUALITY:
                self.equality.add(table.name)
        return updates

    def _hear_foreign(self, after: LoadedTable) -> None:
        if self._is_mirror(after.name):
            self._mirror(str(after.name)).adopt(self.reader.read(after))

    def _take_back_equality(self, name: TableName) -> None:
        """Whoever wrote them is told to rewrite the table without."""
        assert isinstance(self.catalog, CatalogServer)
        assert self.warehouse is not None
        warehouse = self.warehouse
        self.is_taken_back = True
        self.catalog.disturb(name, lambda table, number: plan_foreign(table, f"no {EQUALITY}", number, self.random, warehouse))

    def _check_rows(self, history: Committed, before: LoadedTable | None, after: LoadedTable) -> None:
        """What has come to a changelog table, beside the verdicts that stand."""
        is_whole = not str(after.name).endswith(BESIDE) or self.profile.is_beside
        for breach in (*note_rows(history, before, after), *self.letters.check_table(after, history.rows, is_whole=is_whole)):
            self.note(breach)
        dead = len(self.letters.kept_out(after))
        counts = Counts.of(after.properties)
        said = [counts.accepted, counts.dead]
        if said != [len(history.rows) + dead, dead]:
            self.note(
                f"I13: {after.name} says {said} events were accepted and kept out, {len(history.rows)} rows, {dead} letters are there"
            )
        self._note_committed(str(after.name), {named(row) for row in history.fresh} | self.letters.take_fresh(after))

    def _note_committed(self, name: str, fresh: set[Event]) -> None:
        if name.endswith(BESIDE) and not self.profile.is_beside:
            return  # Fed now and then: nothing is promised of it.
        self.journal.note_committed(name, fresh)
        if self.loop.time() < TRANSACTION_S_MAX:  # Later one may have been given up.
            for breach in self.journal.check_whole(name, {event for event in fresh if self._is_in_its_transaction(name, event)}):
                self.note(breach)

    def _is_in_its_transaction(self, table: str, event: Event) -> bool:
        """A letter that was sent again is not: it may come before the rest, where verdicts stood and rows did not (seed 318391)."""
        return self._is_single(event[0]) and REPLAYED not in self.letters.by_event.get(table, {}).get(event, ())

    def _is_single(self, name: str) -> bool:
        """Whether a source has one epoch, and keeps to its batches."""
        source = next(source for source in self.sources if source.name == name)
        return isinstance(source, RoughSource) and len(source.script.epochs) == 1

    def _durable_end(self, log_id: str) -> int:
        return self.records.durable_end(log_id)

    def _check_unlink(self, path: str, node: Inode) -> None:
        """I6: a sealed segment goes only when every table with rows in it has committed past them."""
        name = parse_name(path.rsplit("/", 1)[-1])
        if name is not None and path.startswith(f"{ROOT}/parked/"):
            self._check_unlink_parked(path, node)
        if name is None or name.state != ".log" or path.startswith(f"{ROOT}/parked/"):
            return
        needed: dict[TableName, int] = {}

        def visit(_: object, frame: Any) -> None:
            record = decode_record(frame, "", path)
            self.journal.trimmed.add((record.entry.source, record.entry.epoch, record.entry.sequence))
            if record.entry.kind == RecordKind.BATCH:
                for name in map(TableName.parse, record.entry.tables):
                    for fed in (name, TableName.in_lake(f"{name}{BESIDE}")) if self._has_beside(name) else (name,):
                        needed[fed] = record.offset

        self.records.note_unlinked(path, bytes(node.cached))
        segment = scan_segment(bytes(node.cached), path, name, visit)
        for table, offset in needed.items():
            row = self.catalog.rows.get(table)
            log_id = segment.state.log_id
            committed = max(row.offsets().get(log_id, 0) if row else 0, self.dropped.get(table, {}).get(log_id, 0))
            if committed <= offset and (log_id, offset) not in parked_on_platter(self.disk, ROOT, table):
                self.note(f"I6: {path} is unlinked, {table} is committed up to {committed} and has rows at {offset}, not parked")
        self.chaos.count("segments trimmed")

    def _has_beside(self, name: TableName) -> bool:
        return self.profile.is_beside and self._is_mirror(name)

    def _check_unlink_parked(self, path: str, node: Inode) -> None:
        """I6 for a side log: what is in it is committed, or in another segment of it (recovery copies the last one).

        Or in the log it came from: what an append that failed has left is moved, or read there, once more.
        """
        table = TableName(*path.split("/")[-3:-1])
        row = self.catalog.rows.get(table)
        offsets = row.offsets() if row else {}
        kept = parked_on_platter(self.disk, ROOT, table, besides=path)
        for log_id, offset in parked_records(path, bytes(node.cached)):
            if offset >= offsets.get(log_id, 0) and (log_id, offset) not in kept and not self.records.holds(log_id, offset):
                self.note(f"I6: {path} is unlinked, offset {offset} of {log_id} is in it, {table} is committed up to {offsets}")
                return
        self.chaos.count("side segments unlinked")

    def _check_end(self) -> None:
        if not self._is_drained():
            late = [source.name for source in self.sources if not source.is_done]
            missing = sorted(self.journal.acked - self.journal.committed)
            self.note(
                f"liveness: after {DRAIN_S_MAX} s, sources {late} are not done, {len(missing)} acked events are in no table: {missing[:3]}"
            )
            return
        letters = self.catalog.rows.get(DEAD_LETTERS_TABLE)
        if letters is not None:
            try:
                rows = [row for _, rows in live_rows(letters, self.objects) for row in rows]
            except (DolakeError, OSError, ValueError) as error:
                self.note(f"I10: {DEAD_LETTERS_TABLE} cannot be read: {error!r}")
                return
            for breach in self.letters.check_whole(rows, letters):
                self.note(breach)
        for name, history in sorted(self.tables.items()):
            if not self._is_mirror(TableName.in_lake(name)):
                self._check_changelog(name, history)
        if self.profile.is_beside and not self._is_decided_elsewhere():
            self._check_beside()
        if (
            self.profile.misfits or self.profile.is_mirrored
        ) and not self.profile.foreign_rows:  # The others are looked at closely enough, and it takes its time.
            self._verify()

    def _check_changelog(self, name: str, history: Committed) -> None:
        table, late = self.catalog.rows[TableName.in_lake(name)], self.letters.came_again(name)
        is_whole = not name.endswith(BESIDE) or self.profile.is_beside
        letters = self.letters.by_event.get(name, {})
        try:
            for breach in (
                *check_events(self.journal, name, history, letters, is_whole=is_whole),
                *check_table(table, history, self.objects),
                *check_order(name, history, late),
            ):
                self.note(breach)
        except (DolakeError, OSError, ValueError) as error:
            self.note(f"I10: {name} cannot be read: {error!r}")

    def _is_decided_elsewhere(self) -> bool:
        """Whether a changelog does not say all: commit order counts, others changed rows, or letters came late."""
        profile = self.profile
        return profile.foreign_rows or profile.is_contested or profile.replays > 0 or (profile.logs > 1 and profile.shared_truncate)

    def _check_beside(self) -> None:
        """I8 by the changelog alone: its fold is the mirror."""
        for name, mirror in sorted(self.mirrors.items()):
            if not self._has_beside(TableName.parse(name)):
                continue
            table = self.catalog.rows[TableName.parse(name)]
            columns = [column["name"] for column in table.schema["fields"]]
            rows = list(self.tables[name + BESIDE].rows.values()) if name + BESIDE in self.tables else []
            beside = self.catalog.rows.get(TableName.in_lake(name + BESIDE))
            if beside is None or beside.offsets() != table.offsets():
                continue  # What nobody awaits (it was not acked, and is not sent again) may be in one of them only, by now (seed 331902).
            if self.letters.kept_out(beside) - self.letters.kept_out(table):
                continue  # Each is read under the schema that held when it was: what one took, the other did not.
            kept_out = self.letters.kept_out(table)
            folded = fold_changes(rows, kept_out, columns, shared_truncate=self.profile.shared_truncate)
            wanted = {key: found[0].options[0] for key, found in mirror.rows.items()}
            self.chaos.counts["mirrors folded from changelogs"] += 1
            if folded != wanted:
                self.note(f"I8: {name} has {wanted}, its changelog folds into {folded}")

    def _verify(self) -> None:
        """As `dolake verify` does it."""
        process = self._process("verifier")
        lake = self.open_lake(process)
        assert lake.catalog is not None
        names, disk = lake.catalog.list_tables(), DiskDoor(self.disk, process)
        directories = self.settings.log.directories
        try:
            for breach in verify_lake(disk=disk, data=ROOT, directories=directories, catalog=lake.catalog, store=lake.store, names=names):
                self.note(str(breach))
        except DolakeError as error:
            self.note(f"I10: the dead letters cannot be read: {error!r}")

    def open_lake(self, process: Process) -> Lake:
        return Lake(store := self.open_store(process), self.open_catalog(store, process))

    def open_catalog(self, store: ObjectStore, process: Process) -> TableCatalog:
        return self.catalog.door(store, process)

    def open_store(self, process: Process) -> ObjectStore:
        if self.warehouse is not None:
            return StoreDoor(self.warehouse, process)
        return LocalStore(self.settings.warehouse.uri, self.rules.door(self.disk, process))


# What changes something outside the process: the moments worth dying at.
CHANGES = frozenset(["write", "sync", "rename", "unlink", "create", "sync_directory", "put", "settle", "request", "answer", "report"])
FLUSHING = frozenset(["put", "settle", "request"])
CUTS = (Cut(), Cut(drop_all=True, names="all"), Cut(names="prefix", in_order=True), Cut(block_loss=0.9))
SYNCS = frozenset(["sync"])


def make_settings(profile: Profile, start: int = 0) -> Settings:
    """Of the writer's `start`: the first is 0."""
    directories = tuple(f"{ROOT}/log{number}" for number in range(profile.logs))
    partitions, columns = (choices[start % len(choices)] for choices in (profile.partitions, profile.columns))
    mode, truncate = profile.modes[start % len(profile.modes)], "table" if profile.shared_truncate else "source"
    return Settings.model_validate(
        {
            "data": ROOT,
            "log": {"directories": directories, "segment_bytes": 4096, "backlog_bytes": profile.backlog_bytes},
            "flush": {"age_s": profile.flush_age_s, "rows": profile.flush_rows},
            "compaction": {
                "enabled": profile.compaction_s > 0,
                "interval_s": profile.compaction_s or 1.0,
                "inputs_min": profile.inputs_min,
                "spare_share": profile.spare_share,
                "target_bytes": 1 << 20,
            },
            "maintenance": {
                "enabled": profile.maintenance_s > 0,
                "interval_s": profile.maintenance_s or 1.0,
                "grace_s": 0.0,
                "dead_letters_s": profile.dead_letters_s,
            },
            "tables": {
                "*": {
                    "mode": mode,
                    "partition_by": partitions,
                    "columns": columns,
                    "truncate": truncate,
                    "group": "all" if profile.grouped and profile.catalog_style != "service" else "",
                },
                **{name: {"mode": "changelog"} for name in profile.changelogs},
            },
            "warehouse": {"uri": f"file://{ROOT}/warehouse" if profile.local else "s3://lake/w"},
        }
    )


def profile_of(seed: int, rules: Rules, changes: Changes | None = None) -> tuple[Profile, random.Random]:
    """A seed's profile, and what goes on drawing from where it was drawn."""
    draw = random.Random(f"world {seed}")
    profile = Profile.draw(draw)
    # Drawn by itself: a seed whose tables are not grouped is the world that it always was.
    is_grouped = profile.catalog_style != "service" and random.Random(f"groups {seed}").random() < GROUPED
    said = {**rules.profile, **(changes.values if changes else {})}
    compaction = {} if said.get("compaction_s") == 0.0 else drawn_compaction(random.Random(f"compaction {seed}"))
    size = random.Random(f"size {seed}")
    if said.get("short", size.random() < SHORT):
        profile = profile.shortened(size)
    profile = replace(profile, **{"grouped": is_grouped, **compaction, **rules.profile})
    return (changes.of(profile) if changes else profile), draw


def run_world(seed: int, rules: Rules | None = None, *, changes: Changes | None = None, printed: bool = False) -> Outcome:
    """Runs one seed, with `changes` to its world. The product's log lines are not printed, nor even made."""
    before = structlog.get_config()
    if next(_WORLDS) % WORLDS_A_FREEZE == 0:
        gc.collect()
        gc.freeze()  # Modules, and what worlds before have left in caches: or each collection would go through them again.
    gc.disable()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    try:
        with in_force((rules or Rules()).patches):
            return Context().run(World(seed, rules, changes=changes, printed=printed).run)
    finally:
        structlog.configure(**before)
        gc.enable()
