"""The benchmarks run, at their small size, and measure what they say they measure. No times are asserted."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import orjson
import pytest

from bench import events
from bench.__main__ import table
from bench.machine import Memory
from tests.harness.daemon import clean_environment

ROOT = Path(__file__).parent.parent


@pytest.mark.acceptance("AT-39")
def test_every_benchmark_runs_and_leaves_its_figures(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "bench", "--small", "--directory", str(tmp_path), "--output", str(tmp_path / "bench.json")]
    done = subprocess.run(command, cwd=ROOT, env=clean_environment(), capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    results = json.loads((tmp_path / "bench.json").read_text())
    assert results["throughput"]["committed_events_per_s"] > 0
    assert 0 < results["throughput"]["ingest_rss_mib_max"] < 4096
    assert 0 < results["throughput"]["writer_rss_mib_max"] < 4096
    assert results["latency"]["ack_p50_ms"] <= results["latency"]["ack_p99_ms"]
    assert results["commits"]["commits"] == results["commits"]["with_deletes"]["commits"] == 20
    assert results["times_the_baseline"] > 0
    for name in ("one", "four"):
        assert 0.85 <= results["directories"][name]["share_of_mean_min"] <= results["directories"][name]["share_of_mean_max"] <= 1.15
    assert results["directories"]["four_to_one"] > 0
    assert results["fairness"]["beside_noisy"]["ack_p99_times_alone"] > 0
    assert results["fairness"]["beside_hostile"]["ack_p99_times_alone"] > 0
    assert results["fairness"]["noisy_answers"]["ok"] > 0
    mirrored = results["mirrors"]["20,000 rows zipf"]
    assert (mirrored["rows_before"], mirrored["events"]) == (20_000, 10_000)
    assert 20_000 < mirrored["rows_after"] < 30_000
    assert results["mirrors"]["times_pyiceberg"] > 0
    assert results["mirrors"]["read cost"]["delete_files"] == 5
    assert (results["rest"]["commits"], results["rest"]["all_kept"]["snapshots"]) == (20, 20)
    orders = ("in key order", "each sorted", "unsorted")
    for layout, rows in {**dict.fromkeys(orders, 2_000), **dict.fromkeys((f"{order}, wide rows" for order in orders), 400)}.items():
        compacted = results["compaction"][layout]
        assert compacted["jobs"] > 1
        assert 12 * rows * 0.8 < compacted["dolake"]["rows"] == compacted["duckdb_same_work"]["rows"] < 12 * rows
        assert compacted["dolake"]["output_files"] < compacted["input_files"] == 12
        assert 0 < compacted["dolake"]["rss_mib_max"] < 4096
        assert compacted["times_duckdb_plain_copy"] > 0
    assert results["compaction"]["times_pyiceberg"] > 0
    assert "committed events per s" in done.stdout
    assert list(tmp_path.iterdir()) == [tmp_path / "bench.json"]  # The data is gone with the run.


def test_the_events_are_as_large_as_the_figures_say_and_each_is_valid() -> None:
    messages = [orjson.loads(events.batch(2, first, 1000)) for first in (0, 4_999_000)]
    for message in messages:
        assert len(message["events"]) == 1000
        assert [event["sequence"] for event in message["events"][:2]] == [message["firstEventSequence"], message["firstEventSequence"] + 1]
        assert {name for event in message["events"] for name in event["after"]} == set(events.COLUMNS)
    size = len(b"".join(events.event(sequence) for sequence in range(1_000_000, 1_001_000))) / 1000
    assert 260 <= size <= 285


def test_memory_that_is_flat_has_not_grown_however_it_swings() -> None:
    swinging = [(float(at), 100 + at % 3) for at in range(30)]
    growing = [(float(at), 100 + at) for at in range(30)]
    memory = Memory({"writer": swinging, "ingest": growing, "http": [(0.0, 5)]})
    assert (memory.grown_bytes("writer"), memory.grown_bytes("ingest"), memory.grown_bytes("http")) == (0, 10, 0)
    assert (memory.bytes_max("ingest"), memory.bytes_max("nobody")) == (129, 0)


def test_the_table_names_each_figure_and_leaves_series_out() -> None:
    assert table({"a": {"b_c": 1234.5, "x_over_time": {"y": [1]}}, "d": "e"}) == [("a b c", "1,234.5"), ("d", "e")]
