"""A table's files made by hand, rewritten, and read back by other means than the rewrite's own."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyiceberg.schema import Schema
from pyiceberg.types import NestedField

from dolake.clock import SystemRandomness
from dolake.compaction.job import GONE, Job, Rewritten
from dolake.compaction.rewrite import rewrite
from dolake.datafiles import encode_file, sources_metadata
from dolake.iceberg.contents import LiveFile
from dolake.iceberg.names import delete_file_location
from dolake.parquet.align import schema_as_json
from dolake.parquet.deletes import encode_deletes
from dolake.parquet.layout import from_storage, storage_type
from dolake.parquet.schema import arrow_schema
from dolake.storage.local import LocalStore

UNPARTITIONED: dict[str, Any] = {"spec-id": 0, "fields": []}
uuid = SystemRandomness().uuid


def schema_of(*columns: NestedField, schema_id: int = 0) -> Schema:
    return Schema(*columns, schema_id=schema_id)


def rows_of(schema: Schema, values: Sequence[Mapping[str, Any]]) -> pa.Table:
    """A table of these rows, nested uuids and all."""
    arrow = arrow_schema(schema)
    columns = []
    for field in arrow:
        stored = pa.array([value.get(field.name) for value in values], storage_type(field.type))
        columns.append(from_storage(stored, field.type))
    return pa.table(columns, schema=arrow)


class Table:
    """Its files, and what is in them by an account of its own."""

    def __init__(self, directory: Path, schema: Schema, spec: Mapping[str, Any] = UNPARTITIONED) -> None:
        self.store = LocalStore(f"file://{directory}")
        self.location = f"file://{directory}/shop/orders"
        self.schema, self.spec = schema, spec
        self.data: list[LiveFile] = []
        self.deletes: list[LiveFile] = []
        self.tables: dict[str, pa.Table] = {}
        self.gone: dict[str, set[int]] = {}

    def add(self, rows: pa.Table, sources: tuple[tuple[int, str], ...] = (), partition: tuple[Any, ...] = (), **other: Any) -> LiveFile:
        """A file that dolake wrote."""
        file = encode_file(self.location, partition, rows, 1, uuid(), sources_metadata(sources))
        return self._put(file.location, bytes(file.data), rows, partition=partition, **other)

    def add_foreign(self, rows: pa.Table, name: str = "part-00000", partition: tuple[Any, ...] = (), **options: Any) -> LiveFile:
        """A file that somebody else wrote, whose name says nothing of its bytes."""
        buffer = io.BytesIO()
        pq.write_table(rows, buffer, **{"write_page_checksum": True, **options})
        location = f"{self.location}/data/00000-{len(self.data)}-{uuid()}-{name}.parquet"
        return self._put(location, buffer.getvalue(), rows, partition=partition)

    def _put(self, location: str, data: bytes, rows: pa.Table, **other: Any) -> LiveFile:
        self.store.put(location, data)
        file = LiveFile(location, "data", len(data), rows.num_rows, **{"spec_id": self.spec["spec-id"], "sequence_number": 1, **other})
        self.data.append(file)
        self.tables[location] = rows
        self.gone[location] = set()
        return file

    @property
    def rows(self) -> dict[str, list[dict[str, Any]]]:
        return {location: rows.to_pylist() for location, rows in self.tables.items()}

    def delete(self, places: Mapping[str, Iterable[int]], sequence_number: int = 2) -> LiveFile:
        """Position deletes of rows of several files, in one file."""
        paths = list(places)
        pairs = [(number, place) for number, path in enumerate(paths) for place in places[path]]
        file = encode_deletes(paths, np.array([number for number, _ in pairs]), np.array([place for _, place in pairs], np.int64))
        data = bytes(file.data)
        location = delete_file_location(self.location, 1, uuid(), google_crc32c.value(data))
        self.store.put(location, data)
        self.deletes.append(LiveFile(location, "position deletes", len(data), len(pairs), sequence_number=sequence_number))
        for path in paths:
            if any(one.location == path and one.sequence_number <= sequence_number for one in self.data):
                self.gone[path] |= set(places[path])
        return self.deletes[-1]

    def job(self, sort_by: tuple[int, ...] = (), **other: Any) -> Job:
        made = Job(
            table="shop.orders",
            location=self.location,
            schema=schema_as_json(self.schema),
            spec=self.spec,
            sort_by=sort_by,
            epoch=7,
            data=tuple(self.data),
            deletes=tuple(self.deletes),
        )
        return replace(made, **other)

    def rewrite(self, sort_by: tuple[int, ...] = (), **other: Any) -> Result:
        job = self.job(sort_by, **other)
        return Result(self, job, rewrite(self.store, job, uuid=uuid))

    def living(self) -> list[dict[str, Any]]:
        """All rows that no delete has taken out, in the order of the files."""
        return [row for path, rows in self.rows.items() for place, row in enumerate(rows) if place not in self.gone[path]]


class Result:
    """What came out: read back with nothing but pyarrow's plain reader."""

    def __init__(self, table: Table, job: Job, rewritten: Rewritten) -> None:
        self.table, self.job, self.rewritten = table, job, rewritten
        self.files = [self._read(output.file.location) for output in rewritten.outputs]
        self.rows = [row for rows in self.files for row in rows]

    def parquet(self, place: int = 0) -> pq.ParquetFile:
        return pq.ParquetFile(
            io.BytesIO(self.table.store.get(self.rewritten.outputs[place].file.location)), page_checksum_verification=True
        )

    def _read(self, location: str) -> list[dict[str, Any]]:
        return pq.read_table(io.BytesIO(self.table.store.get(location)), page_checksum_verification=True).to_pylist()

    def check(self, renamed: Mapping[str, str] | None = None, names: Sequence[str] | None = None) -> None:
        """Every row that lived is there once, and each row went where `moves` says. `renamed`: names in the inputs → now."""
        new = renamed or {}
        kept = names or [field.name for field in self.table.schema.fields]

        def as_now(row: Mapping[str, Any]) -> str:
            values = {new.get(name, name): value for name, value in row.items()}
            return repr([values.get(name) for name in kept])

        assert Counter(map(as_now, self.rows)) == Counter(map(as_now, self.table.living()))
        assert self.rewritten.row_count == len(self.rows)
        assert self.rewritten.moves.keys() == self.table.tables.keys()
        taken = []
        for path, rows in self.table.rows.items():
            moves = self.rewritten.moves[path]
            assert moves.dtype == np.int32
            assert len(moves) == len(rows)
            assert {place for place, number in enumerate(moves.tolist()) if number == GONE} == self.table.gone[path]
            for row, number in zip(rows, moves.tolist(), strict=True):
                if number != GONE:
                    taken.append(number)
                    assert as_now(self.rows[number]) == as_now(row)
        assert sorted(taken) == list(range(len(self.rows)))
