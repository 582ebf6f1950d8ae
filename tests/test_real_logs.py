"""The log's files under a real `dolake serve`: packed and plain ones side by side, and one that was damaged."""

from __future__ import annotations

import asyncio
import json
import os
import random
from pathlib import Path

import pytest

from tests.harness.daemon import Daemon, said
from tests.harness.history import assert_lake_equals_oracle
from tests.harness.lake import Lake
from tests.harness.oracle import Oracle, ledger_event
from tests.harness.source import Source, connect_message, conversation, flush
from tests.harness.traffic import drain, url_of
from tests.harness.waiting import wait_until

LATE = {"DOLAKE_FLUSH_AGE_S": "3600"}


@pytest.mark.acceptance("AT-11")
def test_a_log_of_packed_and_plain_records_is_read_whatever_the_setting_is_now(tmp_path: Path) -> None:
    oracle = Oracle(tmp_path / "journal")
    source = Source("s", oracle).declare("ledger")
    with Daemon(tmp_path / "data", LATE) as daemon, Lake(daemon.data) as lake:
        for part, compression in enumerate(("zstd", "none", "zstd")):
            daemon.settings["DOLAKE_LOG_COMPRESSION"] = compression
            daemon.start()
            for batch in range(10):
                first = (part * 10 + batch) * 50
                source.add([ledger_event(first + place) for place in range(50)])
            asyncio.run(asyncio.wait_for(source.deliver(url_of(daemon)), 60))
            daemon.kill()
        done = daemon.run("log", "inspect", "--json", "--records")
        assert done.returncode == 0, done.stdout + done.stderr
        shown = [json.loads(line) for line in done.stdout.splitlines()]
        batches = [record for record in shown if record.get("kind") == "batch"]
        assert [record["codec"] for record in batches] == ["zstd"] * 10 + ["plain"] * 10 + ["zstd"] * 10
        assert all((record["stored_bytes"] < record["size_bytes"] / 2) == (record["codec"] == "zstd") for record in batches)
        segments = [segment for segment in shown if "segment" in segment]
        assert sum(segment["plain_bytes"] - segment["size_bytes"] for segment in segments) == sum(
            record["size_bytes"] - record["stored_bytes"] for record in shown if "offset" in record
        )
        words = daemon.run("log", "inspect", "--records").stdout
        assert f"{batches[0]['size_bytes']:,} bytes, zstd {batches[0]['stored_bytes']:,}" in words
        assert f"{segments[0]['size_bytes']:,} bytes ({segments[0]['plain_bytes']:,} plain)" in words
        assert daemon.run("log", "verify").returncode == 0
        daemon.settings["DOLAKE_LOG_COMPRESSION"] = "none"
        daemon.start()
        asyncio.run(drain(daemon))
        assert_lake_equals_oracle(lake, oracle)
        assert lake.row_count("ledger") == 1500
        done = daemon.run("verify")
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.acceptance("AT-04")
def test_a_damaged_log_stops_at_the_place_and_the_other_serves_on(tmp_path: Path) -> None:
    """A byte of a sealed segment, twice, each time put right again as an operator would: a good copy in its place."""
    disks = [tmp_path / "disk-0", tmp_path / "disk-1"]
    settings = {**LATE, "DOLAKE_LOG_SEGMENT_BYTES": "4 KiB", "DOLAKE_LOG_DIRECTORIES": os.pathsep.join(map(str, disks))}
    chance = random.Random(4)
    oracle = Oracle(tmp_path / "journal")
    sources = [Source(f"source-{number}", oracle, window=2).declare("ledger") for number in range(2)]

    def feed(which: list[Source]) -> None:
        async def deliver() -> None:
            await asyncio.wait_for(asyncio.gather(*(source.deliver(url_of(daemon)) for source in which)), 60)

        for source in which:
            for _ in range(20):
                first = 10 * len(source.frames)
                source.add([ledger_event(first + place) for place in range(10)])
        asyncio.run(deliver())

    with Daemon(tmp_path / "data", settings) as daemon, Lake(daemon.data) as lake:
        daemon.start()
        feed(sources)
        daemon.kill()
        homes = {source.name: disk for disk in disks for source in sources if holds(daemon, disk, source.name)}
        assert len(set(homes.values())) == 2
        hurt = homes["source-0"]
        sealed = sorted(hurt.glob("*.log"))
        good = {path: path.read_bytes() for path in sealed}
        assert len(sealed) > 3
        committed = -1
        for number in range(2):
            path = chance.choice(sealed)
            position = chance.randrange(len(good[path]))
            flip(path, position)
            daemon.start(wait=False)
            wait_until(lambda path=path: path.with_name(path.name + ".quarantine").exists(), lambda: f"quarantine\n{daemon.tail()}", 60)
            feed(sources[1:])
            assert asyncio.run(greeting(daemon, "source-0"))["reason"] == "degraded"
            ready = daemon.ready()
            assert ready is not None
            wait_until(
                lambda ready=ready: said(ready.http + "/ready/writer")[1]["circuits"],
                lambda: f"the writer half to connect\n{daemon.tail()}",
                60,
            )
            assert asyncio.run(flush(ready.cdc, "source-1"))["success"] is True  # A new source may live in the log that is down.
            done = daemon.run("flush")
            assert (done.returncode, "not known to be committed" in done.stdout + done.stderr) == (6, True), done.stdout + done.stderr
            done = daemon.run("log", "verify")
            assert done.returncode == 4, done.stdout + done.stderr
            (told,) = [line for line in done.stdout.splitlines() if path.name in line]
            start, end = (int(figure) for figure in told.split("bytes ")[1].split(":")[0].split(".."))
            assert start <= position < end
            assert told.startswith(f"{path}.quarantine: ")
            hole = offset_at(daemon, path, start)
            rows = lake.query(
                f"SELECT _cdc_source, max(_cdc_offset), count(*) FROM iceberg_scan('{lake.metadata_location('ledger')}') GROUP BY ALL"
            )
            found = {source: (last, count) for source, last, count in rows}
            assert found["source-1"][1] == 200 * (number + 2)
            # The second hole may lie below what was committed when the first was mended.
            assert found.get("source-0", (-1, 0))[0] <= max(committed, hole - 1)
            committed = found.get("source-0", (-1, 0))[0]
            daemon.kill()
            path.with_name(path.name + ".quarantine").unlink()
            path.write_bytes(good[path])
        daemon.start()
        feed(sources)
        asyncio.run(drain(daemon))
        assert_lake_equals_oracle(lake, oracle)
        assert lake.row_count("ledger") == 10 * 20 * (2 + 2 + 2)
        assert daemon.run("verify").returncode == 0


def holds(daemon: Daemon, disk: Path, source: str) -> bool:
    done = daemon.run("log", "inspect", "--json", "--records")
    shown, here = [json.loads(line) for line in done.stdout.splitlines()], False
    for line in shown:
        if "segment" in line:
            here = line["segment"].startswith(str(disk) + "/")
        elif here and line["source"] == source:
            return True
    return False


def flip(path: Path, position: int) -> None:
    with path.open("r+b") as file:
        file.seek(position)
        (byte,) = file.read(1)
        file.seek(position)
        file.write(bytes([byte ^ 1]))


def offset_at(daemon: Daemon, path: Path, position: int) -> int:
    """The first offset that cannot be read, as `dolake log inspect` shows the damaged segment."""
    done = daemon.run("log", "inspect", "--json")
    assert done.returncode == 4
    (segment,) = [segment for line in done.stdout.splitlines() if (segment := json.loads(line))["segment"] == f"{path}.quarantine"]
    assert segment["state"] == "quarantined"
    assert f"bytes {position}.." in segment["problem"]
    return int(segment["end"])


async def greeting(daemon: Daemon, source: str) -> dict[str, object]:
    ready = daemon.ready()
    assert ready is not None
    async with conversation(ready.cdc) as talk:
        answer: dict[str, object] = await talk.ask(connect_message(source))
        return answer
