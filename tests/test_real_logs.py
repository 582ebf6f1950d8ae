"""The log's files under a real `dolake serve`: packed and plain ones side by side, and one that was damaged."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from tests.harness.daemon import Daemon
from tests.harness.lake import Lake, assert_lake_equals_oracle
from tests.harness.oracle import Oracle, ledger_event
from tests.harness.source import Source
from tests.harness.traffic import drain, url_of

LATE = {"DOLAKE_FLUSH_AGE_S": "3600"}


@pytest.mark.acceptance("AT-11")
def test_a_log_of_packed_and_plain_records_is_read_whatever_the_setting_is_now(tmp_path: Path) -> None:
    oracle = Oracle(tmp_path / "journal")
    source = Source("s", oracle).declare("ledger")
    with Daemon(tmp_path / "data", LATE) as daemon, Lake(daemon.data) as lake:
        for part, compression in enumerate(("zstd", "none", "zstd", "none")):
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
        assert [record["codec"] for record in batches] == (["zstd"] * 10 + ["plain"] * 10) * 2
        assert all((record["stored_bytes"] < record["size_bytes"] / 2) == (record["codec"] == "zstd") for record in batches)
        segments = [segment for segment in shown if "segment" in segment]
        assert sum(segment["plain_bytes"] - segment["size_bytes"] for segment in segments) == sum(
            record["size_bytes"] - record["stored_bytes"] for record in shown if "offset" in record
        )
        words = daemon.run("log", "inspect", "--records").stdout
        assert f"{batches[0]['size_bytes']:,} bytes, zstd {batches[0]['stored_bytes']:,}" in words
        assert f"{segments[0]['size_bytes']:,} bytes ({segments[0]['plain_bytes']:,} plain)" in words
        assert daemon.run("log", "verify").returncode == 0
        daemon.start()
        asyncio.run(drain(daemon))
        assert_lake_equals_oracle(lake, oracle)
        assert lake.row_count("ledger") == 2000
        done = daemon.run("verify")
        assert done.returncode == 0, done.stdout + done.stderr
