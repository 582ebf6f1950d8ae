"""`python -m bench`: every benchmark on two cores, a table to read and JSON to keep."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bench.baseline import baseline
from bench.commits import commits
from bench.compaction import compaction
from bench.directories import directories
from bench.fairness import fairness
from bench.hour import hour, real_hour
from bench.machine import machine_id, use_cores
from bench.mirrors import mirrors
from bench.rest import rest
from bench.spark_rewrites import spark_rewrites
from bench.streaming import BATCH_EVENTS, beside_compaction, latency, throughput

RESULTS = Path(__file__).parent.parent / "build" / "bench.json"
CORES = 2


@dataclass(frozen=True)
class Size:
    events: int
    latency_s: float
    beside: tuple[float, float, int]  # events a second, seconds, rounds
    commits: int
    baseline_events: int
    sources: int
    source_bytes: int
    fairness_s: float
    mirror_rows: tuple[int, ...]
    mirror_events: int
    hour: tuple[int, int, int]  # rows before, flushes, events of each
    streamed: tuple[int, int]  # flushes, events of each table in each
    pyiceberg: tuple[int, int, int]  # rows before, batches, events of each
    rest_commits: int
    # Files, rows of each, target and memory in bytes, files that PyIceberg gets, files of a larger table.
    compaction: tuple[int, int, int, int, int, int]
    spark: tuple[int, int, int, int]  # files, rows of each, target and memory in bytes


FULL = Size(
    events=5_000_000,
    latency_s=20,
    beside=(50_000, 20, 5),
    commits=1000,
    baseline_events=200_000,
    sources=100,
    source_bytes=10_000_000,
    fairness_s=30,
    mirror_rows=(1_000_000, 10_000_000),
    mirror_events=2_000_000,
    hour=(1_000_000, 720, 2_000),
    streamed=(720, 10_000),
    pyiceberg=(1_000_000, 4, 10_000),
    rest_commits=10_000,
    compaction=(1000, 50_000, 128 << 20, 192 << 20, 64, 5000),
    spark=(256, 50_000, 128 << 20, 192 << 20),
)
SMALL = Size(
    events=40_000,
    latency_s=0.5,
    beside=(2_000, 0.5, 1),
    commits=20,
    baseline_events=5_000,
    sources=8,
    source_bytes=200_000,
    fairness_s=1,
    mirror_rows=(20_000,),
    mirror_events=10_000,
    hour=(5_000, 5, 1_000),
    streamed=(2, 100),
    pyiceberg=(5_000, 1, 1_000),
    rest_commits=20,
    compaction=(12, 2_000, 200_000, 400_000, 4, 30),
    spark=(12, 2_000, 200_000, 400_000),
)
BENCHMARKS = ("throughput", "latency", "commits", "baseline", "directories", "fairness", "mirrors", "rest", "compaction", "beside", "hour")
WITH_SPARK = "spark"  # only if asked for: it installs Spark
IN_ITS_OWN_TIME = "real-hour"  # only if asked for


def run(size: Size, names: Sequence[str], directory: Path, tell: Callable[[str], None]) -> dict[str, Any]:
    results: dict[str, Any] = {"machine": machine_id()}
    for name in names:
        tell(f"{name} …")
        if name == "throughput":
            results[name] = throughput(directory, size.events)
        elif name == "latency":
            rate = results.get("throughput", {}).get("committed_events_per_s", 250_000) / 2
            results[name] = latency(directory, rate, size.latency_s)
        elif name == "commits":
            results[name] = commits(directory, size.commits)
        elif name == "baseline":
            results[name] = baseline(directory, size.baseline_events, BATCH_EVENTS)
        elif name == "directories":
            results[name] = directories(directory, size.sources, size.source_bytes)
        elif name == "fairness":
            results[name] = fairness(directory, size.fairness_s)
        elif name == "mirrors":
            results[name] = mirrors(directory, size.mirror_rows, size.mirror_events, size.hour, size.pyiceberg)
        elif name == "rest":
            results[name] = rest(directory, size.rest_commits)
        elif name == "compaction":
            results[name] = compaction(directory, *size.compaction)
        elif name == "beside":
            results["beside_compaction"] = beside_compaction(directory, *size.beside)
        elif name == WITH_SPARK:
            results[name] = spark_rewrites(directory, *size.spark)
        elif name == IN_ITS_OWN_TIME:
            results[name] = real_hour(directory, *size.streamed)
        elif name == "hour":
            results[name] = hour(directory, *size.streamed)
    if "throughput" in results and "baseline" in results:
        results["times_the_baseline"] = round(
            results["throughput"]["committed_events_per_s"] / results["baseline"]["committed_events_per_s"], 1
        )
    return results


def table(results: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """(what, figure) line by line; series of samples are left to the JSON."""
    lines: list[tuple[str, str]] = []
    for name, value in results.items():
        if isinstance(value, dict):
            if not name.endswith("_over_time"):
                lines += table(value, f"{prefix}{name} ")
        else:
            lines.append((f"{prefix}{name}".replace("_", " "), f"{value:,}" if isinstance(value, int | float) else str(value)))
    return lines


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--small", action="store_true", help="a few seconds of everything: to see that it runs, not how fast")
    parser.add_argument(
        "--only", action="append", choices=(*BENCHMARKS, WITH_SPARK, IN_ITS_OWN_TIME), help="this benchmark; may be given again"
    )
    parser.add_argument("--events", type=int, help="events of the throughput benchmark")
    parser.add_argument("--directory", type=Path, help="where data goes, on the disk to measure; a temporary one otherwise")
    parser.add_argument("--output", type=Path, default=RESULTS, help="the JSON file")
    options = parser.parse_args(arguments)
    size = SMALL if options.small else FULL
    if options.events:
        size = replace(size, events=options.events)
    use_cores(CORES)
    with tempfile.TemporaryDirectory(prefix="dolake-bench-", dir=options.directory) as directory:
        results = run(size, options.only or BENCHMARKS, Path(directory), lambda text: print(text, file=sys.stderr, flush=True))
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps({"small": options.small, **results}, indent=2) + "\n", encoding="utf-8")
    lines = table(results)
    width = max(len(what) for what, _ in lines)
    for what, figure in lines:
        print(f"{what:<{width}}  {figure:>20}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
