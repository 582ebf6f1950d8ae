"""The same small files by dolake and by Spark's `rewrite_data_files`, each told to sort them by key and to leave no deleted row.

Spark works with two threads, after a warm-up on a table of its own; its processor time is that of its JVM, so that both are compared
by what they take of a core and by how long it is until they are done.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench.compaction import by_dolake_apart, speeds, write_table
from bench.rest import catalog
from e2e.services.spark import Spark
from tests.harness.daemon import children_of
from tests.iceberg.lake import TABLE

_WARM_FILES, _WARM_ROWS = 4, 1_000
_TICKS = os.sysconf("SC_CLK_TCK")


def spark_rewrites(directory: Path, files: int, rows: int, target_bytes: int, memory_bytes: int) -> dict[str, Any]:
    """`files` of `rows` each, sorted by key and all over the same range, a tenth of the rows deleted."""
    place = directory / "spark"
    with Spark(place / "session") as spark:
        write_table(place / "warm", _WARM_FILES, _WARM_ROWS)
        _by_spark(spark, place / "warm", target_bytes)
        lake, made = write_table(place / "lake", files, rows)
        own = by_dolake_apart(lake.store.root, made.jobs(target_bytes, memory_bytes))
        theirs = _by_spark(spark, place / "lake", target_bytes)
    if own["rows"] != theirs["rows"]:
        raise AssertionError(f"{own['rows']} rows, Spark finds {theirs['rows']}: the figures are void")
    return {
        "input_files": files,
        "input_mb": round(made.size_bytes / 1e6),
        "dolake": speeds(own, made.size_bytes),
        "spark": speeds(theirs, made.size_bytes),
        "times_spark_by_processor": round(theirs["cpu_s"] / own["cpu_s"], 1),
        "times_spark_by_clock": round(theirs["seconds"] / own["seconds"], 1),
    }


def _by_spark(spark: Spark, folder: Path, target_bytes: int) -> dict[str, Any]:
    with catalog(folder, "dolake") as client:
        name = spark.attach(str(client.base_url))
        options = f"'target-file-size-bytes', '{target_bytes}', 'rewrite-all', 'true'"
        before_cpu_s, before_s = _processor_s(), time.monotonic()
        spark.sql(
            f"CALL {name}.system.rewrite_data_files(table => '{TABLE}', strategy => 'sort', sort_order => 'id', options => map({options}))"
        )
        figures = {"cpu_s": _processor_s() - before_cpu_s, "seconds": time.monotonic() - before_s}
        ((rows, left),) = spark.sql(f"SELECT count(*), (SELECT count(*) FROM {name}.{TABLE}.data_files) FROM {name}.{TABLE}")
    return {"rows": rows, "output_files": left, **figures}


def _processor_s() -> float:
    """Of all processes below this one: Spark's, and a catalog that has next to nothing to do."""
    return sum(_spent_s(process) for process in _below(os.getpid()))


def _below(process: int) -> Iterator[int]:
    for child in children_of(process):
        yield child
        yield from _below(child)


def _spent_s(process: int) -> float:
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except FileNotFoundError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / _TICKS
