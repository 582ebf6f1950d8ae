"""What one commit costs as a table's history grows: the product's own commit, on a local warehouse, one small file each.

Then the same with a file of position deletes beside it, as a mirror table's flush has it: rows of the files before go.

Syncs are timed apart: those of files at `os.fsync`; SQLite's own happen inside it and count as waiting, not as work. So
`cpu_ms` is what a commit costs apart from its syncs, and `wall_ms` is what it takes.
"""

from __future__ import annotations

import asyncio
import io
import os
import statistics
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dolake.clock import real_runtime
from dolake.iceberg.catalog import SqlTableCatalog
from dolake.iceberg.commit import Committer, Landed
from dolake.iceberg.metadata import LoadedTable, new_table
from dolake.iceberg.plan import Delta, NewDeletes, NewFile
from dolake.model import OffsetRange, TableName
from dolake.parquet.deletes import encode_deletes
from dolake.storage.local import LocalStore

COLUMN_COUNT = 20
ROWS = 1000
_FILES_DELETED_FROM = 20
_AROUND = 10  # a commit's cost is the median of the commits this near to it


@dataclass(frozen=True)
class Cost:
    wall_s: float
    sync_s: float
    cpu_s: float


class SyncTimer:
    """Counts the seconds spent in `os.fsync` and `os.fdatasync` while it is entered."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __enter__(self) -> SyncTimer:
        self._fsync, self._fdatasync = os.fsync, os.fdatasync
        os.fsync, os.fdatasync = self._timed(os.fsync), self._timed(os.fdatasync)
        return self

    def _timed(self, sync: Any) -> Any:
        def timed(descriptor: int) -> None:
            began = time.perf_counter()
            sync(descriptor)
            self.seconds += time.perf_counter() - began

        return timed

    def __exit__(self, *_: object) -> None:
        os.fsync, os.fdatasync = self._fsync, self._fdatasync


async def run_commits(directory: Path, count: int, *, deleting: bool = False) -> dict[str, Any]:
    """`count` commits to one table. `deleting`: each also deletes a row of each of the last files, in one delete file."""
    runtime = real_runtime()
    store = LocalStore(f"file://{directory}/warehouse")
    catalog = SqlTableCatalog(f"sqlite:///{directory}/catalog.db", store, runtime)
    committer = Committer(runtime, catalog, store)
    schema = _schema()
    name = TableName("bench", "commits")
    location = f"{store.root}/bench/commits"
    base = catalog.create(name, new_table(uuid=runtime.random.uuid(), location=location, schema=schema, now_ms=runtime.clock.now_ms()))
    data, parquet = _file(schema)
    instance = runtime.random.uuid()
    costs: list[Cost] = []
    places: list[str] = []
    with SyncTimer() as syncs:
        for number in range(count):
            place = f"{location}/data/e000000001-{runtime.random.uuid()}.parquet"
            store.put(place, data)
            delta = _delta(base, name, number, NewFile(place, len(data), ROWS, parquet), schema, instance, runtime.random.uuid())
            if deleting and places:
                deletes = _deletes(store, place.replace(".parquet", "-deletes.parquet"), places[-_FILES_DELETED_FROM:], number)
                delta = replace(delta, deletes=(deletes,), on_head_only=True, head_id=base.head_id)
            wall, sync, cpu = time.perf_counter(), syncs.seconds, time.process_time()
            outcome = await committer.commit(delta)
            costs.append(Cost(time.perf_counter() - wall, syncs.seconds - sync, time.process_time() - cpu))
            assert isinstance(outcome, Landed), outcome
            base = outcome.base
            places.append(place)
    catalog.close()
    tenth, last = _around(costs, 10), _around(costs, count)
    return {
        "commits": count,
        "tenth": tenth,
        "last": last,
        "last_over_tenth_cpu": round(last["cpu_ms"] / tenth["cpu_ms"], 2),
        "last_over_tenth_wall": round(last["wall_ms"] / tenth["wall_ms"], 2),
    }


def _deletes(store: LocalStore, location: str, paths: list[str], position: int) -> NewDeletes:
    numbers = np.arange(len(paths))
    file = encode_deletes(paths, numbers, np.full(len(paths), position % ROWS))
    store.put(location, bytes(file.data))
    return NewDeletes(location, len(file.data), file.row_count, min(paths), max(paths), 0)


def _around(costs: list[Cost], number: int) -> dict[str, float]:
    near = costs[max(0, number - _AROUND // 2 - 1) : number + _AROUND // 2]

    def median_ms(values: list[float]) -> float:
        return round(statistics.median(values) * 1000, 2)

    return {
        "wall_ms": median_ms([cost.wall_s for cost in near]),
        "file_sync_ms": median_ms([cost.sync_s for cost in near]),
        "cpu_ms": median_ms([cost.cpu_s for cost in near]),
    }


def _schema() -> dict[str, Any]:
    fields = [{"id": place + 1, "name": f"column_{place}", "required": False, "type": "long"} for place in range(COLUMN_COUNT)]
    return {"type": "struct", "schema-id": 0, "identifier-field-ids": [], "fields": fields}


def _file(schema: dict[str, Any]) -> tuple[bytes, Any]:
    columns = [pa.field(field["name"], pa.int64(), metadata={"PARQUET:field_id": str(field["id"])}) for field in schema["fields"]]
    rows = pa.table([pa.array(range(ROWS))] * COLUMN_COUNT, schema=pa.schema(columns))
    buffer = io.BytesIO()
    pq.write_table(rows, buffer)
    return buffer.getvalue(), pq.read_metadata(io.BytesIO(buffer.getvalue()))


def _delta(base: LoadedTable, name: TableName, number: int, file: NewFile, schema: dict[str, Any], instance: str, commit_id: str) -> Delta:
    return Delta(
        table=name,
        table_uuid=base.uuid,
        ranges={"bench-log": OffsetRange(number, number + 1)},
        files=(file,),
        schema=schema,
        base_schema_id=base.schema["schema-id"],
        spec_id=base.spec["spec-id"],
        epoch=1,
        instance=instance,
        commit_id=commit_id,
    )


def commits(directory: Path, count: int) -> dict[str, Any]:
    for name in ("commits", "row-deltas"):
        (directory / name).mkdir(parents=True)
    plain = asyncio.run(run_commits(directory / "commits", count))
    return {**plain, "with_deletes": asyncio.run(run_commits(directory / "row-deltas", count, deleting=True))}
