"""Which columns tell the rows of a mirror apart, and the hashes of the keys of all its live rows."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from dolake.datafiles import sources_in
from dolake.iceberg.contents import LiveFile
from dolake.iceberg.metadata import LoadedTable
from dolake.iceberg.objects import read_file
from dolake.model import ROW_ID_COLUMN, TableName
from dolake.parquet.decode import file_metadata, read_fields
from dolake.parquet.keys import KeyHashes, key_hashes
from dolake.storage.store import ObjectStore
from dolake.verify.strangers import is_foreign

MODE = "dolake.mode"
_SCHEMA_PREFIX = "dolake.schema."
_RENAMED = "dolake.renamed"
_SEED = 0

Places = npt.NDArray[np.int64]
# The columns of a table's key, as the settings have it; empty where they do not say.
KeyOf = Callable[[TableName], Sequence[str]]


def is_mirror(table: LoadedTable) -> bool:
    """As the table says itself; one that does not, and has dolake's offsets, by its columns."""
    stated = table.properties.get(MODE)
    if stated is not None:
        return stated == "mirror"
    return bool(table.offsets()) and not any(column["name"] == "_cdc_log" for column in table.schema["fields"])


@dataclass(frozen=True)
class TableKey:
    """Field ids of the key's columns and their names in the table. `moved`: it was another one once, and rows may be older."""

    ids: tuple[int, ...]
    names: tuple[str, ...]
    moved: bool = False

    @classmethod
    def of(cls, table: LoadedTable, set_key: Sequence[str]) -> TableKey | None:
        """The schema's identifier, else what the settings or the sources declare, else the row id. None: the table has no such."""
        names = {column["id"]: column["name"] for column in table.schema["fields"]}
        stated = {tuple(sorted(schema.get("identifier-field-ids") or ())) for schema in table.metadata["schemas"]}
        ids = tuple(table.schema.get("identifier-field-ids") or ()) or _declared(table, names, set_key)
        if not ids or any(field_id not in names for field_id in ids):
            return None
        return cls(ids, tuple(names[field_id] for field_id in ids), moved=len(stated) > 1)


def declared_schemas(table: LoadedTable) -> Iterator[Mapping[str, Any]]:
    """What sources have declared of a table: `source`, `primaryKey`, `columns`."""
    for name, text in table.properties.items():
        if name.startswith(_SCHEMA_PREFIX):
            yield json.loads(text)


def renamed_columns(table: LoadedTable) -> dict[str, int]:
    """Former column name → field id."""
    found: dict[str, int] = json.loads(table.properties.get(_RENAMED, "{}"))
    return found


def _declared(table: LoadedTable, names: Mapping[int, str], set_key: Sequence[str]) -> tuple[int, ...]:
    ids = {name: field_id for field_id, name in names.items()}
    declared = [tuple(one["primaryKey"]) for one in declared_schemas(table)]
    wanted = tuple(set_key) or (declared[-1] if declared else ())
    former = renamed_columns(table)
    found = tuple(ids.get(name, former.get(name, -1)) for name in wanted)
    return found or ((ids[ROW_ID_COLUMN],) if ROW_ID_COLUMN in ids else ())


@dataclass(frozen=True)
class KeyedFile:
    """A data file's live rows: where each stands in it, and the hash of its key; `keyless` are the rows with a null in theirs.

    `foreign`: of every row of the file, whether somebody else has written it, though the file may be a rewrite of dolake's.
    """

    file: LiveFile
    positions: Places
    hashes: KeyHashes
    keyless: Places
    foreign: npt.NDArray[np.bool_]

    @classmethod
    def of(cls, file: LiveFile, data: bytes, kept: Places, key: TableKey) -> KeyedFile:
        """`kept`: the positions of its live rows."""
        columns = read_fields(data, key.ids)
        none = np.zeros(0, np.int64)
        if any(field_id not in columns for field_id in key.ids):
            return cls(file, none, KeyHashes.joined(()), kept, of_strangers(file, data))
        arrays = [_one(columns[field_id]) for field_id in key.ids]
        keyless = np.zeros(file.row_count, np.bool_)
        for array in arrays:
            keyless |= np.asarray(array.is_null())
        whole = kept[~keyless[kept]]
        hashes = hashes_of([array.take(pa.array(whole)) for array in arrays])
        return cls(file, whole, hashes, kept[keyless[kept]], of_strangers(file, data))


@dataclass(frozen=True)
class KeyedRows:
    """All live rows of a mirror with a whole key, in the order of their keys' hashes: row `positions[i]` of `files[codes[i]]`."""

    files: tuple[KeyedFile, ...]
    hashes: KeyHashes
    codes: Places
    positions: Places
    foreign: npt.NDArray[np.bool_]

    @classmethod
    def of(cls, files: Sequence[KeyedFile]) -> KeyedRows:
        hashes = KeyHashes.joined([file.hashes for file in files])
        codes = np.repeat(np.arange(len(files)), [len(file.positions) for file in files])
        positions = np.concatenate([np.zeros(0, np.int64), *(file.positions for file in files)])
        order = np.lexsort((positions, codes, hashes.low, hashes.high))
        foreign = np.concatenate([np.zeros(0, np.bool_), *(file.foreign[file.positions] for file in files)])
        return cls(tuple(files), hashes.take(order), codes[order], positions[order], foreign[order])

    @property
    def live_count(self) -> int:
        return len(self.positions) + sum(len(file.keyless) for file in self.files)

    def doubles(self) -> Iterator[Places]:
        """The rows of each key that has several."""
        same = (self.hashes.high[1:] == self.hashes.high[:-1]) & (self.hashes.low[1:] == self.hashes.low[:-1])
        starts = np.flatnonzero(np.append(True, ~same)) if len(self.positions) else np.zeros(0, np.int64)
        ends = np.append(starts[1:], len(self.positions))
        for start, end in zip(starts[ends - starts > 1].tolist(), ends[ends - starts > 1].tolist(), strict=True):
            yield np.arange(start, end)

    def find(self, hashes: KeyHashes) -> list[list[int]]:
        """For each hash the rows that have it."""
        low = np.searchsorted(self.hashes.high, hashes.high, "left").tolist()
        high = np.searchsorted(self.hashes.high, hashes.high, "right").tolist()
        wanted = hashes.low.tolist()
        return [
            [row for row in range(start, end) if int(self.hashes.low[row]) == low_half]
            for start, end, low_half in zip(low, high, wanted, strict=True)
        ]

    def file_of(self, row: int) -> LiveFile:
        return self.files[int(self.codes[row])].file


def hashes_of(columns: Sequence[pa.Array]) -> KeyHashes:
    return key_hashes(columns, _SEED)


def key_text(store: ObjectStore, file: LiveFile, position: int, key: TableKey) -> str:
    """The key of one row, for a sentence."""
    columns = read_fields(read_file(store, file.location, file.size_bytes), key.ids)
    values = {name: columns[field_id][int(position)].as_py() for field_id, name in zip(key.ids, key.names, strict=True)}
    return json.dumps(values, ensure_ascii=False, default=str)


def of_strangers(file: LiveFile, data: bytes) -> npt.NDArray[np.bool_]:
    """Of each row of a file, whether it may be somebody else's. A rewrite says of rows whose source nobody knew that they have none."""
    if is_foreign(file):
        return np.ones(file.row_count, np.bool_)
    found = np.zeros(file.row_count, np.bool_)
    sources = sources_in(file_metadata(data))
    for (first, source), (stop, _) in pairwise([*sources, (file.row_count, "")]):
        found[first:stop] = not source
    return found


def _one(column: pa.ChunkedArray) -> pa.Array:
    combined = column.combine_chunks()
    return pa.concat_arrays(combined.chunks) if isinstance(combined, pa.ChunkedArray) else combined
