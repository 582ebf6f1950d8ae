"""A mirror kept by hand, in tests: rows by key, where each of them lies, and what every snapshot should therefore read as."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import google_crc32c
import numpy as np
import pyarrow as pa

from dolake.clock import SystemRandomness
from dolake.iceberg.commit import CommitOutcome, Committer, Landed, Replan
from dolake.iceberg.contents import ContentsReader, LiveFile
from dolake.iceberg.metadata import LoadedTable, snapshots_by_id
from dolake.iceberg.names import delete_file_location
from dolake.iceberg.partition import stored_partition
from dolake.iceberg.plan import Delta, NewDeletes, NewFile
from dolake.parquet.decode import read_columns
from dolake.parquet.deletes import decode_deletes, encode_deletes
from dolake.storage.store import ObjectStore
from tests.iceberg.lake import Lake, put_file

Rows = dict[int, str]
UNPARTITIONED: dict[str, Any] = {"spec-id": 0, "fields": []}


@dataclass(frozen=True)
class Place:
    """Where a row lies."""

    location: str
    position: int
    spec_id: int
    partition: tuple[Any, ...]


def put_deletes(store: ObjectStore, table: LoadedTable, places: Sequence[Place], *, epoch: int = 1) -> tuple[NewDeletes, ...]:
    """One file of position deletes for each spec and partition."""
    kinds: dict[tuple[int, tuple[Any, ...]], list[Place]] = {}
    for place in places:
        kinds.setdefault((place.spec_id, place.partition), []).append(place)
    return tuple(_put_one(store, table, found, epoch) for found in kinds.values())


def _put_one(store: ObjectStore, table: LoadedTable, places: Sequence[Place], epoch: int) -> NewDeletes:
    paths = list({place.location: None for place in places})
    numbers = np.array([paths.index(place.location) for place in places])
    file = encode_deletes(paths, numbers, np.array([place.position for place in places], np.int64))
    data = bytes(file.data)
    location = delete_file_location(table.location, epoch, SystemRandomness().uuid(), google_crc32c.value(data))
    store.put(location, data)
    return NewDeletes(location, len(data), len(places), min(paths), max(paths), places[0].spec_id, places[0].partition)


class Mirror:
    """Keeps a table's rows by `id`. `partition_of` gives a row's partition values (Python's) under a spec."""

    def __init__(
        self, lake: Lake, *, spec: Mapping[str, Any] | None = None, partition_of: Callable[[int, str], tuple[Any, ...]] = lambda *_: ()
    ) -> None:
        self.lake, self.spec, self.partition_of = lake, spec, partition_of
        self.rows: Rows = {}
        self.places: dict[int, Place] = {}
        self.offset = 0
        self.at: dict[int, Rows] = {}  # Snapshot id → rows.

    def delta(self, upserts: Mapping[int, str], deletes: Iterable[int] = (), *, truncate: bool = False, **other: Any) -> Delta:
        """What makes the table hold these too, and not those. `self` knows nothing of it before it has landed (`took`)."""
        base = self.lake.current()
        epoch = other.get("epoch", 1)
        spec = self.spec or base.spec
        known = next((one for one in base.metadata["partition-specs"] if one["fields"] == spec["fields"]), None)
        self.spec_id = known["spec-id"] if known else 1 + max(one["spec-id"] for one in base.metadata["partition-specs"])
        gone = [] if truncate else [self.places[key] for key in {**dict.fromkeys(deletes), **upserts} if key in self.places]
        settings: dict[str, Any] = {
            "rows": [],
            "files": self._files(base, upserts, epoch),
            "deletes": put_deletes(self.lake.store, base, gone, epoch=epoch),
            "removes_all": truncate,
            "on_head_only": True,
            "head_id": base.head_id,
            "spec": self.spec,
            "spec_id": base.spec["spec-id"],
        }
        return self.lake.delta(self.offset, self.offset + 1, **{**settings, **other})

    def _files(self, base: LoadedTable, upserts: Mapping[int, str], epoch: int) -> tuple[NewFile, ...]:
        kinds: dict[tuple[Any, ...], list[int]] = {}
        for key, name in upserts.items():
            kinds.setdefault(self.partition_of(key, name), []).append(key)
        files = []
        self.placed: dict[int, Place] = {}
        for partition, keys in kinds.items():
            file = put_file(self.lake.store, base, [{"id": key, "name": upserts[key]} for key in keys], partition=partition, epoch=epoch)
            stored = stored_partition(base.schema, self.spec or base.spec, partition)
            self.placed |= {key: Place(file.location, row, self.spec_id, stored) for row, key in enumerate(keys)}
            files.append(file)
        return tuple(files)

    def change(
        self, upserts: Mapping[int, str], deletes: Iterable[int] = (), *, committer: Committer | None = None, **other: Any
    ) -> Landed:
        deletes = list(deletes)
        outcome = self.lake.commit(self.delta(upserts, deletes, **other), committer)
        assert isinstance(outcome, Landed), outcome
        self.took(upserts, deletes, truncate=other.get("truncate", False))
        return outcome

    def took(self, upserts: Mapping[int, str], deletes: Iterable[int] = (), *, truncate: bool = False) -> None:
        """The last delta is in the table."""
        for kept in (self.rows, self.places):
            for key in list(kept) if truncate else deletes:
                kept.pop(key, None)
        self.rows |= upserts
        self.places |= self.placed
        self.offset += 1
        self.note()

    def note(self) -> None:
        head_id = self.lake.current().head_id
        assert head_id is not None
        self.at[head_id] = dict(self.rows)

    def took_in(self) -> None:
        """Somebody else wrote: the rows are what the files say, read as dolake would."""
        base = self.lake.current()
        assert base.head is not None
        self.rows, self.places = read_rows(self.lake.store, ContentsReader(self.lake.store).read(base.head).files)
        self.note()

    def breaches(self, among: Collection[int] | None = None) -> list[str]:
        """Every snapshot that is left, as PyIceberg and as DuckDB read it, against what was noted; and its totals against its files."""
        base = self.lake.current()
        plain = self.lake.plain_table()
        reader = ContentsReader(self.lake.store)
        said = []
        for number, snapshot in snapshots_by_id(base.metadata).items():
            if among is not None and number not in among:
                continue
            wanted = sorted(self.at[number].items())
            found = plain.scan(snapshot_id=number).to_arrow()
            if sorted(zip(found["id"].to_pylist(), found["name"].to_pylist(), strict=True)) != wanted:
                said.append(f"PyIceberg reads snapshot {snapshot['sequence-number']} as {found.to_pylist()}, not {wanted}")
            if (
                rows := self.lake.query(f"SELECT id, name FROM iceberg_scan('{{table}}', snapshot_from_id = {number}) ORDER BY id")
            ) != wanted:
                said.append(f"DuckDB reads snapshot {snapshot['sequence-number']} as {rows}, not {wanted}")
            files = reader.read(snapshot).files
            totals = {key: int(value) for key, value in snapshot["summary"].items() if key.startswith("total-")}
            if totals != (counted := totals_of(files)):
                said.append(f"snapshot {snapshot['sequence-number']} says {totals} of {counted}")
        return said


def read_rows(store: ObjectStore, files: Sequence[LiveFile]) -> tuple[Rows, dict[int, Place]]:
    """A snapshot's rows, with position deletes applied as the specification says."""
    gone: set[tuple[str, int]] = set()
    for file in files:
        if file.kind == "position deletes":
            gone |= {(row["file_path"], row["pos"]) for row in decode_deletes(store.get(file.location)).to_pylist()}
    rows, places = {}, {}
    for file in files:
        if file.kind != "data":
            continue
        table: pa.Table = read_columns(store.get(file.location))
        for position, row in enumerate(table.to_pylist()):
            if (file.location, position) not in gone:
                assert row["id"] not in rows, f"{row['id']} is there twice"
                rows[row["id"]] = row["name"]
                places[row["id"]] = Place(file.location, position, file.spec_id, file.partition)
    return rows, places


def totals_of(files: Sequence[LiveFile]) -> dict[str, int]:
    """What a summary should say of a snapshot with these files."""
    data, deletes = [file for file in files if file.kind == "data"], [file for file in files if file.kind != "data"]
    return {
        "total-data-files": len(data),
        "total-records": sum(file.row_count for file in data),
        "total-files-size": sum(file.size_bytes for file in files),
        "total-delete-files": len(deletes),
        "total-position-deletes": sum(file.row_count for file in deletes if file.kind == "position deletes"),
        "total-equality-deletes": sum(file.row_count for file in deletes if file.kind == "equality deletes"),
    }


def replanned(outcome: CommitOutcome) -> Replan:
    assert isinstance(outcome, Replan), outcome
    return outcome
