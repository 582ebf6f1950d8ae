"""Small files into few: many of about 1 MB with position deletes, rewritten job after job as they come, in a process of its own.

The files come in three ways: one after the other in the order of their keys (a table that is only appended to), each sorted by key
but all over the same range, and not sorted at all. Beside each the same files by DuckDB: a plain COPY of all rows, and one of the
rows that live in the order of their keys, which is what a rewrite does; one thread, the same compression. Then a few of them by
PyIceberg, read and overwritten. `mb` are 10^6 bytes of compressed input; processor time, since it is what is compared.
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
import pyarrow as pa
import pyarrow.compute as pc
from pyiceberg.schema import Schema
from pyiceberg.types import BooleanType, DoubleType, IntegerType, LongType, NestedField, StringType, TimestamptzType

from bench.events import COLUMNS, STATUSES
from dolake.clock import SystemRandomness
from dolake.compaction.job import GONE, Job
from dolake.compaction.rewrite import rewrite
from dolake.datafiles import encode_file, sources_metadata
from dolake.iceberg.contents import LiveFile
from dolake.iceberg.names import delete_file_location
from dolake.iceberg.plan import NewDeletes, NewFile
from dolake.parquet.align import schema_as_json
from dolake.parquet.deletes import encode_deletes
from dolake.parquet.schema import arrow_schema
from dolake.storage.local import LocalStore
from tests.iceberg.lake import Lake

DELETED_SHARE = 0.1
LAYOUTS = ("in key order", "each sorted", "unsorted")
_FILES_A_DELETE_FILE = 16
_TYPES = {"long": LongType(), "int": IntegerType(), "double": DoubleType(), "string": StringType(), "boolean": BooleanType()}
SCHEMA = Schema(
    *(
        NestedField(place, name, _TYPES.get(kind, TimestamptzType()), required=name == "id")
        for place, (name, kind) in enumerate(COLUMNS.items(), 1)
    )
)
_KEY = SCHEMA.find_field("id").field_id
_UNPARTITIONED: dict[str, Any] = {"spec-id": 0, "fields": []}


@dataclass(frozen=True)
class Files:
    """What lies in the store before."""

    location: str
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
        plain = Job("bench.orders", self.location, schema_as_json(SCHEMA), _UNPARTITIONED, (_KEY,), 2, (), ())
        bounded = replace(plain, target_bytes=target_bytes, memory_bytes=memory_bytes)
        return [replace(bounded, data=tuple(group), deletes=self._deletes_of(group)) for group in groups]

    def _deletes_of(self, group: Sequence[LiveFile]) -> tuple[LiveFile, ...]:
        places = {self.data.index(file) // _FILES_A_DELETE_FILE for file in group}
        return tuple(self.deletes[place] for place in sorted(places))


def rows_of(keys: npt.NDArray[np.int64], random: np.random.Generator) -> pa.Table:
    """Rows like those of the other benchmarks, with values drawn by chance: they compress as data does that somebody made."""
    count = len(keys)
    numbers = random.integers(0, 1 << 32, count)
    times = 1_767_225_600_000_000 + random.integers(0, 28 * 86_400_000, count) * 1000
    columns = {
        "id": pa.array(keys),
        "customer_id": pa.array(random.integers(0, 100_000, count)),
        "status": pa.array([status.decode() for status in STATUSES]).take(pa.array(random.integers(0, len(STATUSES), count))),
        "amount": pa.array(random.integers(0, 1_000_000, count) / 100),
        "note": pc.binary_join_element_wise("left at the door", pa.array(numbers).cast(pa.string()), " "),
        "created_at": pa.array(times).cast(pa.timestamp("us", "UTC")),
        "qty": pa.array(random.integers(0, 9, count).astype(np.int32)),
        "flag": pa.array(random.integers(0, 2, count) > 0),
    }
    return pa.table([columns[field.name] for field in arrow_schema(SCHEMA)], schema=arrow_schema(SCHEMA))


def keys_of(layout: str, files: int, rows: int) -> Callable[[int], npt.NDArray[np.int64]]:
    """The keys of a file's rows, by the file's number."""
    if layout == "in key order":
        return lambda file: np.arange(file * rows, (file + 1) * rows)
    scattered = np.random.default_rng(3).permutation(files * rows)
    if layout == "unsorted":
        return lambda file: scattered[file * rows : (file + 1) * rows]
    return lambda file: np.sort(scattered[file * rows : (file + 1) * rows])


def write_files(store: LocalStore, location: str, layout: str, files: int, rows: int) -> Files:
    random, uuid = np.random.default_rng(4), SystemRandomness().uuid
    keys = keys_of(layout, files, rows)
    data, new_files, deletes, new_deletes = [], [], [], []
    for number in range(files):
        file = encode_file(location, (), rows_of(keys(number), random), 1, uuid(), sources_metadata([(0, "bench")]))
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
    return Files(location, tuple(data), tuple(deletes), tuple(new_files), tuple(new_deletes))


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


def by_duckdb(directory: str, jobs: Sequence[Job], order_by: str) -> dict[str, Any]:
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
                    f"SELECT {', '.join(COLUMNS)} FROM read_parquet({paths}, filename = true, file_row_number = true) AS r ANTI JOIN "
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
    made = write_files(store, f"file://{directory}/orders", layout, files, rows)
    jobs = made.jobs(target_bytes, memory_bytes)
    own = measured(by_dolake, store.root, jobs)
    plain = measured(by_duckdb, str(directory), jobs, "")
    same = measured(by_duckdb, str(directory), jobs, "id")
    if own["rows"] != same["rows"]:
        raise AssertionError(f"{own['rows']} rows, DuckDB finds {same['rows']}: the figures are void")
    shutil.rmtree(directory / "orders")
    return {
        "input_files": files,
        "input_mb": round(made.size_bytes / 1e6),
        "jobs": len(jobs),
        "dolake": speeds(own, made.size_bytes),
        "duckdb_plain_copy": speeds(plain, made.size_bytes),
        "duckdb_same_work": speeds(same, made.size_bytes),
        "times_duckdb_plain_copy": round(plain["cpu_s"] / own["cpu_s"], 2),
        "times_duckdb_same_work": round(same["cpu_s"] / own["cpu_s"], 2),
    }


def run_pyiceberg(directory: Path, files: int, rows: int, memory_bytes: int) -> dict[str, Any]:
    """The same few files by both."""
    directory.mkdir(parents=True)
    lake = Lake(directory, schema=schema_as_json(SCHEMA))
    made = write_files(lake.store, lake.table.location, "each sorted", files, rows)  # type: ignore[arg-type]
    lake.commit(lake.delta(0, files * rows, rows=[], files=made.new_files))
    lake.commit(lake.delta(files * rows, files * rows + 1, rows=[], deletes=made.new_deletes))
    lake.close()
    own = measured(by_dolake, lake.store.root, made.jobs(made.size_bytes, memory_bytes))
    theirs = measured(by_pyiceberg, lake.uri)
    if own["rows"] != theirs["rows"]:
        raise AssertionError(f"{own['rows']} rows, PyIceberg finds {theirs['rows']}: the figures are void")
    return {"pyiceberg": speeds(theirs, made.size_bytes), "times_pyiceberg": round(theirs["cpu_s"] / own["cpu_s"], 1)}


def compaction(directory: Path, files: int, rows: int, target_bytes: int, memory_bytes: int, by_pyiceberg: int) -> dict[str, Any]:
    """`files` of `rows` each for every layout; `by_pyiceberg`: how many of them it is given."""
    place = directory / "compaction"
    found: dict[str, Any] = {
        layout: run_layout(place / layout.replace(" ", "-"), layout, files, rows, target_bytes, memory_bytes) for layout in LAYOUTS
    }
    return {**found, **run_pyiceberg(place / "pyiceberg", by_pyiceberg, rows, memory_bytes)}
