"""SIGKILL at random moments: of the ingest half, the writer half, both, the supervisor, everything.

Whatever is killed whenever: every acked event is in the table once, nothing is there that was not sent, and the daemon
serves again. How soon is measured and reported (the bar: 2 s in 95 of 100).
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.harness.daemon import Daemon, clean_environment, dolake_command
from tests.harness.history import assert_lake_equals_oracle
from tests.harness.kills import TARGETS, Killer, percentile
from tests.harness.lake import Lake
from tests.harness.oracle import Oracle, ledger_event
from tests.harness.ports import free_port
from tests.harness.source import Source
from tests.harness.traffic import drain, url_of
from tests.harness.waiting import wait_until
from tests.kills import run_life
from tests.shop import EVENT_COUNTS, STREAM

QUICK = {"DOLAKE_FLUSH_AGE_S": "0.2", "DOLAKE_LOG_SEGMENT_BYTES": "1 MiB"}
SEEDS = range(20)


@pytest.mark.acceptance("AT-01")
@pytest.mark.parametrize("seed", SEEDS)
def test_ten_thousand_acked_events_outlive_a_kill_at_any_moment(
    tmp_path: Path, seed: int, rounds: int, report: Callable[..., None]
) -> None:
    """Each cycle: 10,000 events in batches of 50, everything killed at a random moment, started, resumed from the last ack."""
    cycles = max(1, rounds // 2)  # 10 for `make faults`: 200 over all seeds
    chance = random.Random(seed)
    oracle = Oracle(tmp_path / "journal")
    with Daemon(tmp_path / "data", QUICK) as daemon, Lake(daemon.data) as lake:
        killer = Killer(daemon.start(), chance)

        async def cycle(number: int) -> None:
            source = Source(f"source-{number}", oracle).declare("ledger")
            for batch in range(200):
                source.add([ledger_event(batch * 50 + place) for place in range(50)])
            sending = asyncio.get_running_loop().create_task(source.deliver(url_of(daemon)))
            moment = chance.randrange(1, 200)
            await asyncio.get_running_loop().run_in_executor(
                None, wait_until, lambda: source.acked >= moment or sending.done(), f"{moment} batches to be acked"
            )
            await asyncio.to_thread(killer.kill, ())
            await asyncio.wait_for(sending, 120)
            await drain(daemon)

        for number in range(cycles):
            asyncio.run(cycle(number))
            assert_lake_equals_oracle(lake, oracle)
        assert lake.row_count("ledger") == cycles * 10_000
    report(seed=seed, cycles=cycles, ready_again_s_p95=percentile(killer.recoveries_s, 95), ready_again_s_max=max(killer.recoveries_s))


@pytest.mark.acceptance("AT-01", "AT-56")
@pytest.mark.parametrize("seed", range(2))
def test_killing_every_part_again_and_again_loses_and_repeats_nothing(
    tmp_path: Path, seed: int, rounds: int, report: Callable[..., None]
) -> None:
    """A changelog in the first life, a mirror beside one in the second. `python -m tests.kills` has many more."""
    life = run_life(tmp_path, seed, len(TARGETS) * rounds)
    assert len(life.recoveries_s) == len(TARGETS) * rounds
    report(kills=len(life.recoveries_s), ready_again_s_p95=percentile(life.recoveries_s, 95), ready_again_s_max=max(life.recoveries_s))


# Everything of a row but its place: the batches of another run may be cut elsewhere.
_CONTENT = "SELECT * EXCLUDE (_cdc_log, _cdc_offset, _cdc_index) FROM iceberg_scan('{}')"


@pytest.mark.acceptance("AT-01")
def test_the_shop_stream_with_random_kills_is_the_shop_stream_without(tmp_path: Path, rounds: int, report: Callable[..., None]) -> None:
    """100 runs (5 a round) of a real stream, sent by `dolake send`; the run without kills is checked against the database
    by `test_s3.py` and the tests of the shop."""
    recoveries: list[float] = []
    with Daemon(tmp_path / "calm") as calm, Lake(calm.data) as lake:
        calm.start()
        assert send(calm).wait(300) == 0
        for table in EVENT_COUNTS:
            lake.database().execute(f'CREATE TABLE "{table}" AS ' + _CONTENT.format(lake.metadata_location(f"public.{table}")))
            assert lake.query(f'SELECT count(*) FROM "{table}"')[0][0] == EVENT_COUNTS[table]
        for run in range(rounds * 5):
            recoveries += one_run(tmp_path / f"run-{run}", lake, random.Random(run))
    report(runs=rounds * 5, kills=len(recoveries), ready_again_s_p95=percentile(recoveries, 95), ready_again_s_max=max(recoveries))


def send(daemon: Daemon, rate: int = 0) -> subprocess.Popen[bytes]:
    """`dolake send` of the whole stream, until all of it is committed; so many events a second, or as fast as it goes."""
    ready = daemon.wait_ready()
    command = [
        *dolake_command(),
        "send",
        str(STREAM),
        "--to",
        ready.cdc,
        "--source",
        "shop",
        "--format",
        "wal2json",
        "--wait",
        "persisted",
        "--retry-s",
        "300",
    ]
    command += ["--rate", str(rate)] if rate else []
    with open(daemon.data.parent / f"{daemon.data.name}.send", "wb") as output:
        return subprocess.Popen(command, env=clean_environment(), stdin=subprocess.DEVNULL, stdout=output, stderr=output)


def one_run(directory: Path, reference: Lake, chance: random.Random) -> list[float]:
    with Daemon(directory, QUICK, port=free_port()) as daemon:
        killer = Killer(daemon.start(), chance)
        sender = send(daemon)
        try:
            for _ in range(chance.randrange(1, 4)):
                before = wal_bytes(daemon)
                grown = chance.randrange(1, 6_000_000)
                wait_until(
                    lambda before=before, grown=grown: sender.poll() is not None or wal_bytes(daemon) > before + grown, "traffic", 60
                )
                killer.kill_something()
            assert sender.wait(300) == 0, (directory.parent / f"{directory.name}.send").read_text()
        finally:
            sender.kill()
            sender.wait()
        with Lake(daemon.data) as lake:
            for table in EVENT_COUNTS:
                content = _CONTENT.format(lake.metadata_location(f"public.{table}"))
                for one, other in ((content, f'FROM "{table}"'), (f'FROM "{table}"', content)):
                    differences = reference.query(f"SELECT count(*) FROM (({one}) EXCEPT ALL ({other}))")[0][0]
                    assert differences == 0, f"{table}: {differences} rows of {one} are not in {other}"
        return killer.recoveries_s


def wal_bytes(daemon: Daemon) -> int:
    """Bytes of the log now; it shrinks when it is trimmed, which only makes a kill come later."""
    size_bytes = 0
    for path in (daemon.data / "log").glob("*"):
        with contextlib.suppress(FileNotFoundError):  # trimmed, or sealed under another name, since it was listed
            size_bytes += path.stat().st_size
    return size_bytes
