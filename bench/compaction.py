"""Small files into few: many of about 1 MB with position deletes, rewritten job after job as they come, in a process of its own.

The files come in three ways: one after the other in the order of their keys (a table that is only appended to), each sorted by key
but all over the same range, and not sorted at all; each way with the short rows of the other benchmarks, and with wide ones. Beside
each the same files by DuckDB: a plain COPY of all rows, and one of the rows that live in the order of their keys, which is what a
rewrite does; one thread, the same compression. Then a few of them by PyIceberg, read and overwritten. `mb` are 10^6 bytes of
compressed input; processor time, since it is what is compared.
"""

from __future__ import annotations

import multiprocessing
import re
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import numpy.typing as npt

from bench.compaction_rows import SHORT, WIDE, Shape
from dolake.clock import SystemRandomness
from dolake.compaction.job import GONE, Job
from dolake.compaction.rewrite import rewrite
from dolake.datafiles import encode_file, sources_metadata
from dolake.iceberg.contents import LiveFile
from dolake.iceberg.names import delete_file_location
from dolake.iceberg.plan import NewDeletes, NewFile
from dolake.parquet.align import schema_as_json
from dolake.parquet.deletes import encode_deletes
from dolake.storage.local import LocalStore
from tests.iceberg.lake import Lake

DELETED_SHARE = 0.1
ORDERS = ("in key order", "each sorted", "unsorted")
LAYOUTS = {**dict.fromkeys(ORDERS, SHORT), **{f"{order}, wide rows": WIDE for order in ORDERS}}
_FILES_A_DELETE_FILE = 16
_UNPARTITIONED: dict[str, Any] = {"spec-id": 0, "fields": []}


@dataclass(frozen=True)
class Files:
    """What lies in the store before."""

    location: str
    shape: Shape
    data: tuple[LiveFile, ...]
    deletes: tuple[LiveFile, ...]
    new_files: tuple[NewFile, ...]
    new_deletes: tuple[NewDeletes, ...]

    @property
    def size_bytes(self) -> int:
        return sum(file.size_bytes for file in self.data)

    def jobs(self, target_bytes: int, memory_bytes: int) -> list[Job]:
        """As many files together as make one of the target size."""
        groups: list[list[LiveFile]] = [[]]
        for file in self.data:
            if sum(one.size_bytes for one in groups[-1]) + file.size_bytes > target_bytes and groups[-1]:
                groups.append([])
            groups[-1].append(file)
        plain = Job("bench.orders", self.location, schema_as_json(self.shape.schema), _UNPARTITIONED, (self.shape.key,), 2, (), ())
        bounded = replace(plain, target_bytes=target_bytes, memory_bytes=memory_bytes)
        return [replace(bounded, data=tuple(group), deletes=self._deletes_of(group)) for group in groups]

    def _deletes_of(self, group: Sequence[LiveFile]) -> tuple[LiveFile, ...]:
        places = {self.data.index(file) // _FILES_A_DELETE_FILE for file in group}
        return tuple(self.deletes[place] for place in sorted(places))


def keys_of(order: str, files: int, rows: int) -> Callable[[int], npt.NDArray[np.int64]]:
    """The keys of a file's rows, by the file's number."""
    if order == "in key order":
        return lambda file: np.arange(file * rows, (file + 1) * rows)
    scattered = np.random.default_rng(3).permutation(files * rows)
    if order == "unsorted":
        return lambda file: scattered[file * rows : (file + 1) * rows]
    return lambda file: np.sort(scattered[file * rows : (file + 1) * rows])


def write_files(store: LocalStore, location: str, order: str, shape: Shape, files: int, rows: int) -> Files:
    random, uuid = np.random.default_rng(4), SystemRandomness().uuid
    keys = keys_of(order, files, rows)
    data, new_files, deletes, new_deletes = [], [], [], []
    for number in range(files):
        file = encode_file(location, (), shape.rows(keys(number), random), 1, uuid(), sources_metadata([(0, "bench")]))
        store.put(file.location, file.data)
        new_files.append(file.as_new_file())
        data.append(LiveFile(file.location, "data", len(file.data), rows, sequence_number=1))
        if number % _FILES_A_DELETE_FILE == _FILES_A_DELETE_FILE - 1 or number == files - 1:
            paths = [one.location for one in data[number // _FILES_A_DELETE_FILE * _FILES_A_DELETE_FILE :]]
            gone = np.flatnonzero(random.random(len(paths) * rows) < DELETED_SHARE)
            encoded = bytes(encode_deletes(paths, gone // rows, gone % rows).data)
            place = delete_file_location(location, 1, uuid(), google_crc32c.value(encoded))
            store.put(place, encoded)
            deletes.append(LiveFile(place, "position deletes", len(encoded), len(gone), sequence_number=2))
            new_deletes.append(NewDeletes(place, len(encoded), len(gone), min(paths), max(paths), 0))
    return Files(location, shape, tuple(data), tuple(deletes), tuple(new_files), tuple(new_deletes))


# -- each in a process of its own, so that its processor time and memory are its own


def measured(work: Callable[..., Mapping[str, Any]], *arguments: Any) -> dict[str, Any]:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as processes:
        return processes.submit(_measure, work, *arguments).result()


def _measure(work: Callable[..., Mapping[str, Any]], *arguments: Any) -> dict[str, Any]:
    before_cpu_s, before_s = time.process_time(), time.monotonic()
    found = work(*arguments)
    figures = {"cpu_s": time.process_time() - before_cpu_s, "seconds": time.monotonic() - before_s}
    peak = re.search(r"^VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    return {**found, **figures, "rss_mib_max": int(peak[1]) // 1024 if peak else 0}


def by_dolake(root: str, jobs: Sequence[Job]) -> dict[str, Any]:
    store, uuid = LocalStore(root), SystemRandomness().uuid
    outputs = rows = written = 0
    for job in jobs:
        done = rewrite(store, job, uuid=uuid)
        outputs, rows, written = outputs + len(done.outputs), rows + done.row_count, written + done.bytes_written
        if sum(int(np.count_nonzero(moves != GONE)) for moves in done.moves.values()) != done.row_count:
            raise AssertionError("rows were lost: the figures are void")
        for output in done.outputs:
            store.delete(output.file.location)
    return {"rows": rows, "output_files": outputs, "written_mb": round(written / 1e6)}


def by_dolake_apart(root: str, jobs: Sequence[Job]) -> dict[str, Any]:
    """Each job in a process of its own, as dolake does large ones: what it takes to start that, most of a second, is not counted."""
    done = [measured(by_dolake, root, [job]) for job in jobs]
    return {name: max(one[name] for one in done) if name == "rss_mib_max" else sum(one[name] for one in done) for name in done[0]}


def by_duckdb(directory: str, jobs: Sequence[Job], columns: Sequence[str], order_by: str) -> dict[str, Any]:
    """`order_by` empty: a plain copy of all rows there are."""
    import duckdb

    out, written, rows = f"{directory}/by-duckdb.parquet", 0, 0
    with duckdb.connect() as connection:
        connection.execute("SET threads = 1; SET enable_progress_bar = false")
        for job in jobs:
            paths = [file.location.removeprefix("file://") for file in job.data]
            deletes = [file.location.removeprefix("file://") for file in job.deletes]
            if order_by:
                source = (
                    f"SELECT {', '.join(columns)} FROM read_parquet({paths}, filename = true, file_row_number = true) AS r ANTI JOIN "
                    f"(SELECT substr(file_path, 8) AS file, pos FROM read_parquet({deletes})) AS d "
                    f"ON r.filename = d.file AND r.file_row_number = d.pos ORDER BY {order_by}"
                )
            else:
                source = f"SELECT * FROM read_parquet({paths})"
            sql = f"COPY ({source}) TO '{out}' (FORMAT parquet, COMPRESSION zstd, COMPRESSION_LEVEL 1)"
            rows += connection.execute(sql).fetchall()[0][0]
            written += Path(out).stat().st_size
            Path(out).unlink()
    return {"rows": rows, "written_mb": round(written / 1e6)}


def by_pyiceberg(uri: str) -> dict[str, Any]:
    from pyiceberg.catalog.sql import SqlCatalog

    catalog = SqlCatalog("dolake", uri=uri)
    table = catalog.load_table("shop.orders")
    rows = table.scan().to_arrow()
    table.overwrite(rows.sort_by("id"))
    catalog.close()
    return {"rows": rows.num_rows}


def speeds(figures: Mapping[str, Any], size_bytes: int) -> dict[str, Any]:
    return {
        **{name: value for name, value in figures.items() if name not in ("cpu_s", "seconds")},
        "mb_per_cpu_s": round(size_bytes / 1e6 / figures["cpu_s"], 1),
        "mb_per_s": round(size_bytes / 1e6 / figures["seconds"], 1),
        "rows_per_cpu_s": round(figures["rows"] / figures["cpu_s"]),
    }


def run_layout(directory: Path, layout: str, files: int, rows: int, target_bytes: int, memory_bytes: int) -> dict[str, Any]:
    store = LocalStore(f"file://{directory}")
    shape = LAYOUTS[layout]
    rows //= shape.short_rows
    made = write_files(store, f"file://{directory}/orders", layout.split(",")[0], shape, files, rows)
    jobs = made.jobs(target_bytes, memory_bytes)
    own = by_dolake_apart(store.root, jobs)
    plain = measured(by_duckdb, str(directory), jobs, shape.schema.column_names, "")
    same = measured(by_duckdb, str(directory), jobs, shape.schema.column_names, "id")
    if own["rows"] != same["rows"]:
        raise AssertionError(f"{own['rows']} rows, DuckDB finds {same['rows']}: the figures are void")
    shutil.rmtree(directory / "orders")
    return {
        "input_files": files,
        "input_mb": round(made.size_bytes / 1e6),
        "bytes_a_row": round(made.size_bytes / (files * rows)),
        "jobs": len(jobs),
        "dolake": speeds(own, made.size_bytes),
        "duckdb_plain_copy": speeds(plain, made.size_bytes),
        "duckdb_same_work": speeds(same, made.size_bytes),
        "times_duckdb_plain_copy": round(plain["cpu_s"] / own["cpu_s"], 2),
        "times_duckdb_same_work": round(same["cpu_s"] / own["cpu_s"], 2),
    }


def run_large(directory: Path, files: int, rows: int, target_bytes: int, memory_bytes: int) -> dict[str, Any]:
    """A table of so many files, by dolake alone: whether what it takes grows with the table."""
    store = LocalStore(f"file://{directory}")
    made = write_files(store, f"file://{directory}/orders", "each sorted", SHORT, files, rows)
    own = by_dolake_apart(store.root, made.jobs(target_bytes, memory_bytes))
    shutil.rmtree(directory / "orders")
    return {"input_files": files, "input_mb": round(made.size_bytes / 1e6), "dolake": speeds(own, made.size_bytes)}


def write_table(directory: Path, files: int, rows: int) -> tuple[Lake, Files]:
    """Files that are each sorted by key and all over the same range, with their deletes, as a table; the catalog is closed."""
    directory.mkdir(parents=True)
    lake = Lake(directory, schema=schema_as_json(SHORT.schema))
    made = write_files(lake.store, lake.table.location, "each sorted", SHORT, files, rows)  # type: ignore[arg-type]
    lake.commit(lake.delta(0, files * rows, rows=[], files=made.new_files))
    lake.commit(lake.delta(files * rows, files * rows + 1, rows=[], deletes=made.new_deletes))
    lake.close()
    return lake, made


def run_pyiceberg(directory: Path, files: int, rows: int, memory_bytes: int) -> dict[str, Any]:
    """The same few files by both."""
    lake, made = write_table(directory, files, rows)
    own = by_dolake_apart(lake.store.root, made.jobs(made.size_bytes, memory_bytes))
    theirs = measured(by_pyiceberg, lake.uri)
    if own["rows"] != theirs["rows"]:
        raise AssertionError(f"{own['rows']} rows, PyIceberg finds {theirs['rows']}: the figures are void")
    return {"pyiceberg": speeds(theirs, made.size_bytes), "times_pyiceberg": round(theirs["cpu_s"] / own["cpu_s"], 1)}


def compaction(
    directory: Path, files: int, rows: int, target_bytes: int, memory_bytes: int, by_pyiceberg: int, large: int
) -> dict[str, Any]:
    """`files` of `rows` each for every layout; `by_pyiceberg`: how many of them it is given; `large`: how many files a large table has."""
    place = directory / "compaction"
    found: dict[str, Any] = {
        layout: run_layout(place / layout.replace(", ", "-").replace(" ", "-"), layout, files, rows, target_bytes, memory_bytes)
        for layout in LAYOUTS
    }
    found["a larger table"] = run_large(place / "large", large, rows, target_bytes, memory_bytes)
    return {**found, **run_pyiceberg(place / "pyiceberg", by_pyiceberg, rows, memory_bytes)}
