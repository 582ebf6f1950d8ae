"""SIGKILL at every failpoint, with a reader polling throughout (AT-53): a changelog; and a mirror with its changelog beside it.

Each failpoint is armed as `kill(file)`, with a file of its own: whichever process reaches it while the file is there takes the
file away and dies. The supervisor starts it again, with the same failpoints armed and no file, so that the next round begins by
putting a file back. That the file is gone, and the hit is counted in DOLAKE_FAILPOINT_HITS, proves that the failpoint was reached.

The moments of one part are tried one after the other in one data directory, which is checked as a whole at the end.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path

import orjson
import pytest

from dolake.failpoints import POINTS
from tests.harness.daemon import Daemon
from tests.harness.history import assert_lake_equals_oracle
from tests.harness.kills import percentile
from tests.harness.lake import Lake
from tests.harness.oracle import Oracle, ledger_event
from tests.harness.reader import PollingReader
from tests.harness.source import Source, batch_message
from tests.harness.traffic import drain, steady_traffic, url_of
from tests.harness.waiting import WaitedTooLong, wait_until

PARTS = ("ingest", "wal", "recover", "trim", "flush", "commit", "catalog", "index", "park", "drop", "compact", "purge", "letters")
# Moments of a mirror's own, or that mean something else for it: the others of the log are as they are whoever reads it.
MIRRORED = ("index", "flush", "commit")
# A flush that does not land in the middle of what comes back: the simulation's canonical course brings it about.
UNREACHED = ("park.feed_again",)
# tests/writer/test_rollback.py, tests/cli/test_rollback.py and tests/writer/test_ttl.py break off at each of these.
ELSEWHERE = ("rollback.", "ttl.")
# Moments of a process that rewrites: it is the writer's child, which notices and goes on.
OF_A_REWRITE = ("compact.read", "compact.before_put", "compact.after_put")
REACHED = sorted(name for name in POINTS if name not in UNREACHED and not name.startswith(ELSEWHERE))
MATRIX = [
    *((name, "changelog") for name in REACHED if not name.startswith("index.")),
    *((name, "both") for name in REACHED if name.split(".")[0] in MIRRORED),
]
# Small segments and quick flushes: every moment of a log's life comes by a few times a second.
SETTINGS = {
    "DOLAKE_FLUSH_AGE_S": "0.1",
    "DOLAKE_LOG_SEGMENT_BYTES": "16 KiB",
    "DOLAKE_COMMIT_SNAPSHOTS_KEPT": "20",
    "DOLAKE_COMPACTION_INTERVAL_S": "0.2",
    "DOLAKE_COMPACTION_INPUTS_MIN": "3",
    "DOLAKE_MAINTENANCE_INTERVAL_S": "0.5",
    "DOLAKE_MAINTENANCE_GRACE_S": "2",  # The reader's queries are quicker.
    "DOLAKE_MAINTENANCE_DEAD_LETTERS_S": "0.2",
}
# Moments that ordinary traffic does not bring about: another failpoint that does.
ALSO_ARMED = {"commit.resolve": "catalog.after_swap=50%raise"}
# A life: the moments of one part for tables of one mode. What another failpoint brings about has one to itself.
LIVES = sorted({(name if name in ALSO_ARMED else name.split(".")[0], mode) for name, mode in MATRIX})
# AT-53 asks for these twice as often: before a PUT, after it, before the commit, after it, after the bound is stated.
MORE = ("flush.before_put", "flush.after_put", "catalog.before_swap", "catalog.after_swap", "trim.before_unlink")
# The supervisor restarts at once what lived this long; what dies sooner than that again and again, it starts later.
HEALTHY_S = 1.1


def test_the_matrix_covers_every_part_that_can_lose_something() -> None:
    names = {name for name, _ in MATRIX}
    assert {name.split(".")[0] for name in names} == set(PARTS)
    assert names == set(REACHED)
    assert not set(MORE) - names
    assert sorted(MATRIX) == sorted((point, mode) for life, mode in LIVES for point in moments(life, mode))


def moments(life: str, mode: str) -> list[str]:
    of_life = [name for name, of_mode in MATRIX if of_mode == mode and life in (name, name.split(".")[0])]
    return [name for name in of_life if name == life or name not in ALSO_ARMED]


@pytest.mark.acceptance("AT-53", "AT-01")
@pytest.mark.parametrize(("life", "mode"), LIVES)
def test_a_kill_at_any_moment_of_this_part_loses_nothing_and_shows_no_half_flush(
    tmp_path: Path, life: str, mode: str, rounds: int, report: Callable[..., None]
) -> None:
    kills = {point: rounds * 2 if point in MORE else rounds for point in moments(life, mode)}
    triggers, hits = {point: tmp_path / point for point in kills}, tmp_path / "hits"
    arms = [*(f"{point}=kill({trigger})" for point, trigger in triggers.items()), *([ALSO_ARMED[life]] if life in ALSO_ARMED else [])]
    armed = {"DOLAKE_FAILPOINTS": ";".join(arms), "DOLAKE_FAILPOINT_HITS": str(hits)}
    oracle = Oracle(tmp_path / "journal")
    recoveries: dict[str, list[float]] = {point: [] for point in kills}
    with (
        Daemon(tmp_path / "data", {**SETTINGS, **armed}, mode=mode) as daemon,
        Lake(daemon.data) as lake,
        PollingReader(daemon.data, "ledger__changes" if mode == "both" else "ledger", oracle) as reader,
    ):
        daemon.start()

        async def scenario() -> None:
            async with steady_traffic(daemon, oracle) as traffic:
                await asyncio.to_thread(wait_until, lambda: lake.metadata_location("ledger") is not None, "the first flush")
                for number, point in enumerate(point for point, count in kills.items() for _ in range(count)):
                    recoveries[point].append(await one_round(daemon, point, triggers[point], oracle, number))
                    acked, ready_s = traffic.source.acked, time.monotonic()
                    await asyncio.to_thread(wait_until, lambda acked=acked: traffic.source.acked > acked, "acks after the restart")
                    if number % 3 == 2 or point.startswith("recover."):
                        await asyncio.to_thread(wait_until, lambda since=ready_s: time.monotonic() > since + HEALTHY_S, "a healthy life")
            await asyncio.to_thread(unpark, daemon)
            await drain(daemon)

        asyncio.run(scenario())
        assert daemon.stop() == 0  # What the history is read of must not expire meanwhile.
        assert_lake_equals_oracle(lake, oracle, mode=mode)
        assert reader.close() == []
        assert reader.poll_count > 0
    counts = Counter(hits.read_text().split())
    for point, times in recoveries.items():
        assert counts[point] >= kills[point], (point, counts)
        report(point=point, kills=kills[point], hits=counts[point], ready_again_s_p95=percentile(times, 95))


async def one_round(daemon: Daemon, point: str, trigger: Path, oracle: Oracle, number: int) -> float:
    """Until the failpoint has killed its process and the daemon serves again; seconds from the kill to that."""
    before = await asyncio.to_thread(daemon.wait_ready)
    await asyncio.to_thread(trigger.touch)
    provoking = provocations(point)
    for provoke in provoking:
        await provoke(daemon, oracle, number)
        # A recovery begins when the process is up again, which takes longer where many others want to be; and what is provoked once
        # only has all the time there is, on a machine that is busy with its two hundredth table too.
        slow = point.startswith(("recover.", "compact.", "purge.", "letters.")) or len(provoking) == 1
        if await asyncio.to_thread(went_off, trigger, 30 if slow else 10):
            break
    else:
        raise AssertionError(f"{point} was never reached\n{daemon.tail()}")
    started = time.monotonic()
    if point in OF_A_REWRITE:
        return 0.0

    def replaced() -> bool:
        now = daemon.ready()
        return now is not None and now.pids != before.pids

    await asyncio.to_thread(wait_until, replaced, "the killed process to be replaced")
    await asyncio.to_thread(daemon.wait_ready)
    return time.monotonic() - started


def provocations(point: str) -> list[Callable[[Daemon, Oracle, int], Awaitable[None]]]:
    """What may bring a moment about, the likeliest first."""
    if point.startswith("recover."):
        return [restart_ingest_with_something_to_recover] * 3 + [restart_everything]
    if point in ("flush.before_create", "flush.after_create"):
        return [declare_another_table]
    if point in ("flush.after_claim", "flush.after_letters") or point.startswith("letters."):
        return [send_what_does_not_fit] * 3
    if point == "index.save":
        return [stop_writer] * 3
    if point.startswith("index."):
        return [nothing, restart_writer, restart_writer]
    if point.startswith("park."):
        return [park_and_unpark] * 3
    if point.startswith("drop."):
        return [drop_a_table] * 3
    return [nothing, declare_another_table, restart_ingest, restart_writer]


def went_off(trigger: Path, within_s: float) -> bool:
    try:
        wait_until(lambda: not trigger.exists(), "the failpoint to be reached", within_s)
    except WaitedTooLong:
        return False
    return True


async def nothing(daemon: Daemon, oracle: Oracle, number: int) -> None:
    """Ordinary traffic reaches most moments by itself."""


async def declare_another_table(daemon: Daemon, oracle: Oracle, number: int) -> None:
    """A table is created once, so each round needs a new one."""
    table = f"another_{number}"
    source = Source(f"source-of-{table}", oracle).declare(table).add([ledger_event(0, table)])
    await asyncio.wait_for(source.deliver(url_of(daemon)), 60)


async def send_what_does_not_fit(daemon: Daemon, oracle: Oracle, number: int) -> None:
    """A dead letter, in a table that this writer has not claimed yet. The oracle knows nothing of it: it is in no table."""
    table = f"misfits_{number}_{time.monotonic_ns()}"
    source = Source(f"source-of-{table}", oracle).declare(table)
    event = {"sequence": 0, "timestamp": 1_767_225_600_000, "operation": "INSERT", "table": table, "after": {"id": "fits nowhere"}}
    sequence = source.first_sequence + 1
    numbers = {"sequenceNumber": sequence, "firstEventSequence": event["sequence"], "lastEventSequence": event["sequence"]}
    frame = orjson.dumps({**batch_message(source.name, sequence, []), **numbers, "events": [event]})
    source.frames.append((sequence, frame, []))
    await asyncio.wait_for(source.deliver(url_of(daemon)), 60)


async def restart_ingest(daemon: Daemon, oracle: Oracle, number: int) -> None:
    await asyncio.to_thread(daemon.kill, "ingest")


async def restart_ingest_with_something_to_recover(daemon: Daemon, oracle: Oracle, number: int) -> None:
    """Only once the unsealed segment holds records: there is nothing to copy else."""
    acked = sum(batch.acked for batch in list(oracle.batches.values()))
    enough = acked + 3
    await asyncio.to_thread(wait_until, lambda: sum(batch.acked for batch in list(oracle.batches.values())) >= enough, "acks")
    await asyncio.to_thread(daemon.kill, "ingest")


async def restart_writer(daemon: Daemon, oracle: Oracle, number: int) -> None:
    await asyncio.to_thread(daemon.kill, "writer")


async def stop_writer(daemon: Daemon, oracle: Oracle, number: int) -> None:
    """In order: what its key indexes hold is saved. The supervisor starts another."""
    os.kill(daemon.wait_ready().pids["writer"], signal.SIGTERM)


async def park_and_unpark(daemon: Daemon, oracle: Oracle, number: int) -> None:
    """Records are moved meanwhile: traffic goes on. A command that a kill cuts off is asked for again in the next round."""
    await asyncio.to_thread(daemon.run, "tables", "park", "ledger", deadline_s=180)
    enough = sum(batch.acked for batch in list(oracle.batches.values())) + 20
    await asyncio.to_thread(wait_until, lambda: sum(batch.acked for batch in list(oracle.batches.values())) >= enough, "acks")
    await asyncio.to_thread(daemon.run, "tables", "unpark", "ledger", deadline_s=180)


def unpark(daemon: Daemon) -> None:
    """Until nothing is parked any more."""

    def is_here() -> bool:
        daemon.wait_ready()
        daemon.run("tables", "unpark", "ledger", deadline_s=180)
        found = json.loads(daemon.run("tables", "--json").stdout)
        return not any(one["parked"] for one in found)

    if (daemon.data / "parked").exists():
        wait_until(is_here, "the table to be back", 60)


async def drop_a_table(daemon: Daemon, oracle: Oracle, number: int) -> None:
    """One that the oracle knows nothing of."""
    table = f"dropped_{number}_{time.monotonic_ns()}"
    source = Source(f"source-of-{table}", oracle).declare(table)
    sequence = source.first_sequence + 1
    source.frames.append((sequence, orjson.dumps(batch_message(source.name, sequence, [ledger_event(0, table)])), []))
    await asyncio.wait_for(source.deliver(url_of(daemon)), 60)
    await asyncio.to_thread(daemon.run, "tables", "drop", table, "--yes")


async def restart_everything(daemon: Daemon, oracle: Oracle, number: int) -> None:
    """The whole daemon, as after a reboot: recovery with a torn tail."""
    await asyncio.to_thread(daemon.kill)
    await asyncio.to_thread(daemon.start, wait=False)
