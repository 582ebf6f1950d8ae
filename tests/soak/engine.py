"""The world that a soak lives in, and its rounds."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.harness.daemon import HALVES, Daemon
from tests.harness.fault_proxy import TcpProxy
from tests.harness.http_faults import HttpProxy
from tests.harness.lake import Lake
from tests.harness.traffic import drain
from tests.harness.waiting import WaitedTooLong, wait_until_async
from tests.soak.judging import judge, verify
from tests.soak.load import LongOracle, Writer, make_writers
from tests.soak.resources import (
    DESCRIPTORS_MAX,
    GROWN_BYTES_MAX,
    LOG_BYTES_MAX,
    MIB,
    SLOPE_MIB_PER_MIN_MAX,
    Samples,
    folder_bytes,
)
from tests.soak.troubles import Hands, in_order, plan

DRAINED_S_MAX = 60.0  # AT-117: after healing.
WARM_UP_S = 60.0  # Twenty tables have been flushed often enough for every buffer to have had its largest size.
_ACKED_S_MAX = 90.0
_SAMPLE_S = 0.5


@dataclass
class Outcome:
    """What a run found. `breaches` are sentences; none is what a run is for."""

    seed: int
    breaches: list[str] = field(default_factory=list)
    rounds: int = 0
    events: int = 0
    troubles: int = 0
    drained_s: list[float] = field(default_factory=list)
    slopes: dict[str, float] = field(default_factory=dict)
    memory: dict[str, list[tuple[int, float]]] = field(default_factory=dict)
    figures: dict[str, float] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    unnoticed: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0

    def line(self) -> str:
        slopes = ", ".join(f"{role} {slope:+.2f}" for role, slope in sorted(self.slopes.items())) or "not measured"
        return (
            f"seed {self.seed}: {self.rounds} rounds, {self.events:,} events, {self.troubles} troubles of {len(self.counts)} kinds, "
            f"drained in {max(self.drained_s, default=0):.1f} s at most, memory MiB/min {slopes}: {len(self.breaches)} breaches"
        )


class World:
    """A daemon, sources, proxies where there is something to put them before, and a judge."""

    def __init__(
        self, folder: Path, seed: int, daemon: Daemon, lake: Lake, hands: Hands, writers: list[Writer], oracle: LongOracle
    ) -> None:
        self.folder, self.seed, self.daemon, self.lake, self.hands = folder, seed, daemon, lake, hands
        self.writers, self.oracle = writers, oracle
        self.outcome = Outcome(seed)
        self.samples = Samples()
        self.baseline = dict.fromkeys(HALVES, 0)
        self.began_s = time.monotonic()

    def url(self) -> str | None:
        ready = self.daemon.ready()
        if ready is None:
            return None
        return self.hands.network.through(ready.cdc) if self.hands.network else ready.cdc

    async def round(self, seconds: float, *, trouble: bool, number: int = 0) -> None:
        """Load for so long, with or without trouble; then everything is healed, acked, committed and judged."""
        running = [asyncio.get_running_loop().create_task(writer.run(self.url)) for writer in self.writers]
        sampling = asyncio.get_running_loop().create_task(self._sample())
        try:
            if trouble:
                await self._trouble(seconds, number)
            else:
                await asyncio.wait(running, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            healed_s = time.monotonic()
            for writer in self.writers:
                writer.stopping = True
            ended, late = await asyncio.wait(running, timeout=_ACKED_S_MAX)
            for task in ended:
                task.result()  # A source that found an ack taken back, or an answer that is none, says so.
            if late:
                raise WaitedTooLong(f"{len(late)} sources were not acked within {_ACKED_S_MAX:g} s of healing")
            await drain(self.daemon, 4 * DRAINED_S_MAX)
            self._drained(time.monotonic() - healed_s)
        except (AssertionError, WaitedTooLong) as error:
            self.outcome.breaches.append(f"round {self.outcome.rounds}: {error}"[:4000])
            return
        finally:
            for task in (*running, sampling):
                task.cancel()
            await asyncio.gather(*running, sampling, return_exceptions=True)
        await asyncio.to_thread(self._judge)
        self.outcome.rounds += 1

    async def _trouble(self, seconds: float, number: int) -> None:
        planned = plan(self.seed * 1000 + number, seconds, store=self.hands.store is not None, network=self.hands.network is not None)
        began_s, ends = time.monotonic(), {}
        try:
            for at_s, one, begins in in_order(planned):
                await asyncio.sleep(max(0.0, began_s + at_s - time.monotonic()))
                if begins:
                    ends[id(one)] = await asyncio.to_thread(one.trouble.begin, self.hands)
                    self.hands.counts[one.trouble.name] += 1
                else:
                    await asyncio.to_thread(ends.pop(id(one)))
        finally:
            for end in ends.values():
                await asyncio.to_thread(end)
        self.outcome.troubles += len(planned)
        await asyncio.to_thread(self.daemon.wait_ready)

    def _drained(self, seconds: float) -> None:
        self.outcome.drained_s.append(round(seconds, 1))
        if seconds > DRAINED_S_MAX:
            self.outcome.breaches.append(f"drained {seconds:.0f} s after healing; {DRAINED_S_MAX:g} s are allowed")
        size = folder_bytes(self.daemon.data / "log")
        if size > LOG_BYTES_MAX:
            self.outcome.breaches.append(f"the drained log has {size / MIB:.0f} MiB; {LOG_BYTES_MAX / MIB:.0f} are allowed")
        self.outcome.figures["log_mib_max"] = max(self.outcome.figures.get("log_mib_max", 0), round(size / MIB, 1))

    def _judge(self) -> None:
        """What it finds ends the run; what it does not is forgotten, so that a run of hours needs no more memory than one of minutes."""
        self.outcome.breaches += judge(self.lake, self.oracle, self.writers)
        self.outcome.breaches += verify(self.daemon)
        if not self.outcome.breaches:
            for writer in self.writers:
                writer.forget()
            self.oracle.forget()
        self.outcome.events = sum(writer.event_count for writer in self.writers)

    async def _sample(self) -> None:
        while True:
            self.samples.take(self.daemon, time.monotonic() - self.began_s)
            await asyncio.sleep(_SAMPLE_S)

    def note_baseline(self) -> None:
        """Memory before any load to speak of."""
        self.baseline = {role: self.daemon.rss_bytes(role) for role in HALVES}

    async def idle(self) -> None:
        """AT-69: memory comes back when there is nothing to do, within 30 s."""

        def grown() -> dict[str, int]:
            return {role: self.daemon.rss_bytes(role) - self.baseline[role] for role in HALVES}

        try:
            await wait_until_async(lambda: all(size <= GROWN_BYTES_MAX for size in grown().values()), "memory to come back", 30)
        except WaitedTooLong:
            self.outcome.breaches.append(f"after load and 30 s of nothing, memory grew by {grown()} bytes; 64 MiB are allowed")
        self.outcome.figures |= {f"{role}_grown_mib": round(size / MIB, 1) for role, size in grown().items()}

    def measure(self) -> None:
        """Slopes of what lived long enough, and descriptors."""
        self.outcome.memory = self.samples.curves()
        self.outcome.slopes = {role: round(found, 2) for role, found in self.samples.slopes(WARM_UP_S).items()}
        for role, found in self.outcome.slopes.items():
            if found > SLOPE_MIB_PER_MIN_MAX:
                self.outcome.breaches.append(f"memory of {role} grows by {found} MiB a minute; {SLOPE_MIB_PER_MIN_MAX:g} is allowed")
        for role, count in self.samples.descriptors.items():
            self.outcome.figures[f"{role}_descriptors_max"] = count
            if count > DESCRIPTORS_MAX:
                self.outcome.breaches.append(f"{role} had {count} files open; {DESCRIPTORS_MAX} are allowed")


@contextlib.contextmanager
def world(folder: Path, seed: int, *, sources: int = 10, pause_s: float = 0.05, s3: Any = None, proxied: bool = True) -> Iterator[World]:
    """A daemon over `folder`, running; with an S3 server its store is behind a proxy."""
    with contextlib.ExitStack() as stack:
        network = stack.enter_context(TcpProxy(port := free_port(), seed=seed)) if proxied else None
        store = stack.enter_context(HttpProxy(s3.port, seed=seed)) if s3 is not None else None
        direct = s3.settings(prefix=f"soak-{seed}") if s3 is not None else {}
        settings = {
            **direct,
            "DOLAKE_FLUSH_AGE_S": "0.5",
            "DOLAKE_LOG_SEGMENT_BYTES": "1 MiB",
            # So that a table's history, and with it what the writer remembers, has its full length within the warm-up.
            "DOLAKE_COMMIT_SNAPSHOTS_KEPT": "10",
            # And what waits to be purged, whose names it remembers.
            "DOLAKE_MAINTENANCE_INTERVAL_S": "5",
            "DOLAKE_MAINTENANCE_GRACE_S": "30",
        }
        if store is not None:
            settings["DOLAKE_S3_ENDPOINT"] = store.through(direct["DOLAKE_S3_ENDPOINT"])
        daemon = Daemon(folder / "data", settings, mode="both", port=port, spare=True)
        triggers = folder / "failing"
        triggers.mkdir()
        hands = Hands(daemon, triggers, store, network)
        daemon.settings["DOLAKE_FAILPOINTS"] = hands.failpoints()
        stack.enter_context(daemon)
        lake = stack.enter_context(Lake(daemon.data, direct))
        oracle = LongOracle(folder / "journal")
        daemon.start()
        yield World(folder, seed, daemon, lake, hands, make_writers(oracle, seed, sources, pause_s), oracle)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def run_chaos(place: World, seconds: float) -> Outcome:
    """AT-117: trouble for so long, then everything must be as it should."""
    for writer in place.writers:
        writer.declare()
    await place.round(seconds, trouble=True)
    return finish(place)


async def run_soak(place: World, seconds: float) -> Outcome:
    """AT-111: a third of the time trouble, then as long calm again; one schema change; memory measured where it was calm."""
    for writer in place.writers:
        writer.declare()
    await place.round(min(5.0, seconds / 4), trouble=False)
    place.note_baseline()
    end_s, number = time.monotonic() + seconds, 0
    while (number == 0 or time.monotonic() < end_s) and not place.outcome.breaches:
        cycle_s = min(180.0, max(5.0, end_s - time.monotonic()))
        number += 1
        await place.round(cycle_s / 3, trouble=True, number=number)
        if place.outcome.breaches:
            break
        if number == 1:
            for writer in place.writers:
                writer.change_schema()
        await place.round(cycle_s * 2 / 3, trouble=False)
        place.outcome.counts = dict(place.hands.counts)
        print(f"  {time.monotonic() - place.began_s:6.0f} s  {place.outcome.line()}", flush=True)
    if not place.outcome.breaches:
        place.measure()
        await place.idle()
    return finish(place)


def finish(place: World) -> Outcome:
    outcome = place.outcome
    outcome.counts, outcome.unnoticed = dict(sorted(place.hands.counts.items())), dict(place.hands.unnoticed)
    outcome.seconds = round(time.monotonic() - place.began_s, 1)
    if outcome.breaches:
        (place.folder / "breaches.json").write_text(json.dumps(outcome.breaches, indent=1))
    return outcome
