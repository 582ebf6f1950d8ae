"""Mirror tables in tests, and what may happen to them: commits under dolake's own name that dolake would not make, and foreign ones."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dolake.clock import real_runtime
from dolake.iceberg.catalog import TableCatalog
from dolake.iceberg.commit import Committer, Landed
from dolake.iceberg.contents import ContentsReader, LiveFile
from dolake.iceberg.lake import open_catalog, open_warehouse
from dolake.iceberg.metadata import LoadedTable
from dolake.iceberg.names import data_file_location, delete_file_location
from dolake.iceberg.plan import Delta, NewDeletes, NewFile
from dolake.model import TableName
from dolake.parquet.align import schema_from_json
from dolake.parquet.decode import read_columns
from dolake.parquet.deletes import encode_deletes
from dolake.parquet.encode import encode_parquet
from dolake.parquet.schema import arrow_schema
from dolake.storage.disk import LocalDisk
from dolake.storage.store import ObjectStore
from dolake.verify import Breach, Note, verify_lake
from tests.writer.half import Half, half, settings_of


@dataclass
class Found:
    """What verifying says of a lake."""

    breaches: list[Breach] = field(default_factory=list)
    notes: list[Note] = field(default_factory=list)

    @property
    def invariants(self) -> list[tuple[str, str]]:
        return sorted({(breach.invariant, breach.subject) for breach in self.breaches})

    @property
    def text(self) -> str:
        return "\n".join(map(str, [*self.breaches, *self.notes]))


def verified(path: Path, *, mode: str | None = "mirror", **more: Any) -> Found:
    settings = settings_of(path, mode=mode)
    found = Found()
    with opened(path) as (store, catalog):
        found.breaches += verify_lake(
            disk=LocalDisk(),
            data=settings.data,
            directories=settings.log.directories,
            catalog=catalog,
            store=store,
            names=catalog.list_tables(),
            note=found.notes.append,
            **more,
        )
    return found


@contextlib.contextmanager
def opened(path: Path) -> Iterator[tuple[ObjectStore, TableCatalog]]:
    settings = settings_of(path)
    store = open_warehouse(settings)
    catalog = open_catalog(settings, store, real_runtime())
    try:
        yield store, catalog
    finally:
        catalog.close()


def lake(path: Path, work: Callable[[Half], Any], **sections: Any) -> Half:
    """What `work`, a coroutine function, makes with a writer half."""
    made: list[Half] = []

    async def run() -> None:
        async with half(path, **{"mode": "mirror", **sections}) as h:
            made.append(h)
            await work(h)

    asyncio.run(run())
    return made[0]


class Hands:
    """One table in the hands of somebody who commits under the name of its owner."""

    def __init__(self, store: ObjectStore, catalog: TableCatalog, name: str = "default.t") -> None:
        self.store, self.catalog, self.name = store, catalog, TableName.in_lake(name)
        self.runtime = real_runtime()

    @property
    def base(self) -> LoadedTable:
        base = self.catalog.load(self.name)
        assert base is not None
        return base

    def files(self, kind: str = "data") -> list[LiveFile]:
        head = self.base.head
        assert head is not None
        return sorted((file for file in ContentsReader(self.store).read(head).files if file.kind == kind), key=lambda file: file.location)

    def rows(self) -> list[tuple[LiveFile, int, dict[str, Any]]]:
        """Every row of every data file, deleted or not, with where it stands."""
        return [
            (file, position, row)
            for file in self.files()
            for position, row in enumerate(read_columns(self.store.get(file.location)).to_pylist())
        ]

    def put_rows(self, rows: Sequence[Mapping[str, Any]], partition: tuple[Any, ...] = ()) -> NewFile:
        schema = arrow_schema(schema_from_json(self.base.schema))
        nullable = pa.schema([one.with_nullable(True) for one in schema])
        file = encode_parquet(pa.Table.from_pylist(list(rows), schema=nullable), None)
        location = data_file_location(self.base.location, 1, self.runtime.random.uuid(), google_crc32c.value(bytes(file.data)))
        self.store.put(location, file.data)
        return NewFile(location, len(file.data), len(rows), file.metadata, partition)

    def again(self, file: LiveFile) -> NewFile:
        """A file that is there already, as a new one."""
        return NewFile(file.location, file.size_bytes, file.row_count, pq.read_metadata(file.location.removeprefix("file://")))

    def put_deletes(self, location: str, *positions: int, like: LiveFile | None = None) -> NewDeletes:
        """Of rows of one data file; `like` is the file whose partition they are said to be of."""
        file = encode_deletes([location], np.zeros(len(positions), np.int64), np.array(positions, np.int64))
        put = delete_file_location(self.base.location, 1, self.runtime.random.uuid(), google_crc32c.value(bytes(file.data)))
        self.store.put(put, file.data)
        spec_id, partition = (0, ()) if like is None else (like.spec_id, like.partition)
        return NewDeletes(put, len(file.data), len(positions), location, location, spec_id, partition)

    def commit(self, *files: NewFile, deletes: Sequence[NewDeletes] = (), removes_all: bool = False) -> None:
        base = self.base
        delta = Delta(
            table=self.name, table_uuid=base.uuid, ranges={}, files=files, schema=base.schema, base_schema_id=base.schema["schema-id"],
            spec_id=base.spec["spec-id"], epoch=base.owner_epoch, instance=base.instance, commit_id=self.runtime.random.uuid(),
            deletes=tuple(deletes), removes_all=removes_all,
        )  # fmt: skip
        outcome = asyncio.run(Committer(self.runtime, self.catalog, self.store).commit(delta))
        assert isinstance(outcome, Landed), outcome

    def change_metadata(self, change: Callable[[dict[str, Any]], Any]) -> None:
        """As a program does that writes a metadata file of its own and names it in the catalog."""
        base = self.base
        metadata = json.loads(self.store.get(base.metadata_location))
        change(metadata)
        theirs = base.metadata_location.replace(".metadata.json", "-theirs.metadata.json")
        self.store.put(theirs, json.dumps(metadata).encode())
        path = settings_of(Path(base.location.removeprefix("file://")).parents[2]).catalog_path
        with contextlib.closing(sqlite3.connect(path)) as catalog:
            sql = "UPDATE iceberg_tables SET metadata_location = ? WHERE table_namespace = ? AND table_name = ?"
            catalog.execute(sql, (theirs, self.name.namespace, self.name.name))
            catalog.commit()
