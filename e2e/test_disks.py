"""Disks that fail alone, and disks that fill up, under a real daemon: real file systems where this machine lets one mount them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from e2e.services.disks import LoopDisk, tmpfs
from tests.harness.daemon import Daemon
from tests.harness.history import CHANGES, assert_lake_equals_oracle
from tests.harness.kills import percentile
from tests.harness.lake import Lake
from tests.harness.oracle import Oracle, ledger_event
from tests.harness.source import Source
from tests.harness.traffic import Traffic, drain, url_of
from tests.harness.waiting import wait_until_async

QUICK = {"DOLAKE_FLUSH_AGE_S": "0.5", "DOLAKE_LOG_SEGMENT_BYTES": "1 MiB"}
ACKS_A_PHASE = 300


class FailpointDisk:
    """A directory whose writes, syncs and reads by recovery fail while a file is there: for where nothing can be mounted."""

    POINTS = ("wal.before_write", "wal.before_sync", "wal.roll_create", "recover.scan", "recover.copy")

    def __init__(self, directory: Path, flag: Path) -> None:
        self.mountpoint, self._flag = directory, flag
        self.failpoints = ";".join(f"{point}@{directory}=errno(EIO, {flag})" for point in self.POINTS)

    def fail(self) -> None:
        self._flag.touch()

    def mend(self) -> None:
        self._flag.unlink()


@pytest.fixture
def weak_disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[FailpointDisk | LoopDisk]:
    if request.param == "failpoint":
        yield FailpointDisk(tmp_path / "disk-1", tmp_path / "broken")
        return
    with LoopDisk(tmp_path / "image", tmp_path / "disk-1") as disk:
        yield disk


@pytest.mark.acceptance("AT-37")
@pytest.mark.parametrize(
    ("weak_disk", "mode"), [("failpoint", "changelog"), ("device", "changelog"), ("failpoint", "both")], indirect=["weak_disk"]
)
def test_a_disk_that_fails_under_load_degrades_its_own_sources_and_is_taken_back(
    tmp_path: Path, weak_disk: FailpointDisk | LoopDisk, mode: str, report: Callable[..., None]
) -> None:
    """Six sources over three directories; one directory fails, is mended, and nothing acked is missing or there twice.

    They write one changelog; or each a mirror of its own, so that one log decides what is in it, with its changelog beside it.
    """
    disks = [tmp_path / f"disk-{number}" / "log" for number in range(3)]
    settings = {**QUICK, "DOLAKE_LOG_DIRECTORIES": os.pathsep.join(map(str, disks))}
    if isinstance(weak_disk, FailpointDisk):
        settings["DOLAKE_FAILPOINTS"] = weak_disk.failpoints
    oracle = Oracle(tmp_path / "journal")
    figures: dict[str, float] = {}

    async def scenario(daemon: Daemon) -> None:
        async with contextlib.AsyncExitStack() as stack:
            crowd = [
                Traffic(
                    Source(f"source-{number}", oracle, window=4), url_of(daemon), table="ledger" if mode == "changelog" else f"of_{number}"
                )
                for number in range(6)
            ]
            for traffic in crowd:
                running = asyncio.get_running_loop().create_task(traffic.run())
                stack.push_async_callback(finish, traffic, running)

            async def acked(sources: list[Source], what: str) -> float:
                """Until each has so many acks more; the p99 of those, in seconds."""
                before = [len(source.latencies_s) for source in sources]
                await wait_until_async(
                    lambda: all(len(source.latencies_s) >= count + ACKS_A_PHASE for source, count in zip(sources, before, strict=True)),
                    lambda: f"{what}\n{daemon.tail()}",
                    120,
                )
                return percentile([s for source, count in zip(sources, before, strict=True) for s in source.latencies_s[count:]], 99)

            sources = [traffic.source for traffic in crowd]
            await acked(sources, "traffic to begin")
            figures["ack_p99_ms_before"] = 1000 * await acked(sources, "traffic before the failure")
            await asyncio.to_thread(weak_disk.fail)
            await wait_until_async(lambda: sum(is_degraded(source) for source in sources) == 2, "two sources to be told", 60)
            healthy = [source for source in sources if not is_degraded(source)]
            hurt = [source for source in sources if is_degraded(source)]
            counts = [len(source.latencies_s) for source in hurt]
            figures["ack_p99_ms_meanwhile"] = 1000 * await acked(healthy, "the others to serve on")
            assert [len(source.latencies_s) for source in hurt] == counts
            await asyncio.to_thread(weak_disk.mend)
            began = time.monotonic()
            await wait_until_async(
                lambda: all(len(source.latencies_s) > count for source, count in zip(hurt, counts, strict=True)),
                lambda: "the mended disk to be taken back\n" + said_of(weak_disk.mountpoint, daemon),
                120,
            )
            figures["back_after_s"] = time.monotonic() - began
            await acked(sources, "traffic on all three again")
            assert {nack["reason"] for source in hurt for nack in source.nacks} == {"degraded"}
            assert all(nack["shouldRetry"] for source in hurt for nack in source.nacks)
            assert [source.nacks for source in healthy] == [[]] * 4
            assert [source.connection_count for source in healthy] == [1] * 4
        await drain(daemon)

    with Daemon(tmp_path / "data", settings, mode=mode) as daemon, Lake(daemon.data) as lake:
        before = daemon.start().wait_ready()
        asyncio.run(scenario(daemon))
        assert_lake_equals_oracle(lake, oracle, mode=mode)
        assert len({log for table in oracle.tables() for log in logs_of(lake, table if mode == "changelog" else table + CHANGES)}) == 3
        assert daemon.wait_ready().pids == before.pids  # Nobody had to be started again.
        done = daemon.run("verify")
        assert done.returncode == 0, done.stdout + done.stderr
        assert daemon.stop() == 0
    figures["ratio"] = figures["ack_p99_ms_meanwhile"] / figures["ack_p99_ms_before"]
    report(**{name: round(value, 2) for name, value in figures.items()})


def logs_of(lake: Lake, changelog: str) -> list[str]:
    return [str(log) for (log,) in lake.query(f"SELECT DISTINCT _cdc_log FROM iceberg_scan('{lake.metadata_location(changelog)}')")]


def said_of(directory: Path, daemon: Daemon) -> str:
    """The last that the daemon printed about it: the end alone is of flushes."""
    return "\n".join([line for line in daemon.tail(1 << 26).splitlines() if str(directory) in line][-50:])


async def finish(traffic: Traffic, running: asyncio.Task[None]) -> None:
    traffic.stop()
    await asyncio.wait_for(running, 120)


def is_degraded(source: Source) -> bool:
    return any(nack["reason"] == "degraded" for nack in source.nacks)


DISK_BYTES = 64 << 20
NOTE_BYTES = 20_000


@pytest.mark.acceptance("AT-38")
@pytest.mark.parametrize("segment", ["4 MiB", "64 MiB"])
def test_a_full_disk_is_refused_survived_and_freed_by_what_is_committed(tmp_path: Path, segment: str, report: Callable[..., None]) -> None:
    """The writer stands still until the log's disk is full; halves and the whole daemon are killed on it; then it goes on alone."""
    oracle = Oracle(tmp_path / "journal")
    sources = [Source(f"source-{number}", oracle, window=4).declare("ledger") for number in range(3)]
    for number in range(170):
        for source in sources:
            source.add([ledger_event(10 * number + place, note_size=NOTE_BYTES) for place in range(10)])
    assert sum(len(frame) for source in sources for _, frame, _ in source.frames) > 1.4 * DISK_BYTES

    with tmpfs(tmp_path / "wal", DISK_BYTES) as disk:
        settings = {
            "DOLAKE_LOG_DIRECTORIES": str(disk / "log"),
            "DOLAKE_LOG_SEGMENT_BYTES": segment,
            "DOLAKE_LOG_BACKLOG_BYTES": "1 GiB",  # The disk is to be the bound, not the backlog.
            "DOLAKE_FLUSH_AGE_S": "1",
        }

        async def scenario(daemon: Daemon) -> None:
            sending = [asyncio.get_running_loop().create_task(source.deliver(url_of(daemon))) for source in sources]

            async def refused() -> None:
                before = [len(source.nacks) for source in sources]
                await wait_until_async(
                    lambda: all(len(source.nacks) > count for source, count in zip(sources, before, strict=True)),
                    lambda: f"the disk to be full\n{daemon.tail()}",
                    120,
                )

            pids = daemon.wait_ready().pids
            os.kill(pids["writer"], signal.SIGSTOP)
            await refused()
            statistics = os.statvfs(disk)
            report(segment=segment, used_share_when_full=round(1 - statistics.f_bavail / statistics.f_blocks, 3))
            await asyncio.to_thread(daemon.kill, "ingest")
            ready = await asyncio.to_thread(daemon.wait_ready, roles=("ingest",))
            assert ready.pids["ingest"] != pids["ingest"]
            await refused()
            assert daemon.wait_ready(roles=("ingest",)).pids == ready.pids
            await asyncio.to_thread(daemon.kill)
            await asyncio.to_thread(daemon.start)
            began = time.monotonic()
            await asyncio.wait_for(asyncio.gather(*sending), 300)
            report(segment=segment, all_acked_after_s=round(time.monotonic() - began, 1))
            await drain(daemon)

        with Daemon(tmp_path / "data", settings) as daemon, Lake(daemon.data) as lake:
            daemon.start()
            asyncio.run(scenario(daemon))
            reasons = {nack["reason"] for source in sources for nack in source.nacks}
            assert reasons <= {"storage_full", "degraded", "invalid_sequence", "shutting_down"}
            assert "storage_full" in reasons
            assert all(nack["shouldRetry"] for source in sources for nack in source.nacks)
            assert_lake_equals_oracle(lake, oracle)
            assert lake.row_count("ledger") == 3 * 1700
            done = daemon.run("verify")
            assert done.returncode == 0, done.stdout + done.stderr
            assert daemon.stop() == 0
