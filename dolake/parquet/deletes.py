"""Position-delete files: which rows of which data files are gone (Iceberg v2, "Position Delete Files").

Two columns, sorted by both: `file_path`, the data file's location as its manifest has it, and `pos`, the row in it from 0.
Positions are encoded plainly: every reader knows that, and compressed they take one or two bytes each (deltas would save half).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from dolake.parquet.decode import column_names, read_columns
from dolake.parquet.encode import COMPRESSION, EncodedFile

_GROUP_ROWS = 1024 * 1024
_PATH, _POSITION = "file_path", "pos"
# The ids that Iceberg reserves for them.
_SCHEMA = pa.schema(
    [
        pa.field(_PATH, pa.dictionary(pa.int32(), pa.string()), nullable=False, metadata={"PARQUET:field_id": "2147483546"}),
        pa.field(_POSITION, pa.int64(), nullable=False, metadata={"PARQUET:field_id": "2147483545"}),
    ]
)


def encode_deletes(paths: Sequence[str], file_places: npt.NDArray[np.integer[Any]], positions: npt.NDArray[np.int64]) -> EncodedFile:
    """One file that deletes row `positions[i]` of data file `paths[file_places[i]]`, for every i; in any order, paths distinct.

    Blocks, no I/O, no Python for a row. Raises ValueError where there is nothing to delete, or no such file or row can be.
    """
    if len(positions) != len(file_places) or not len(positions):
        raise ValueError(f"{len(positions)} positions in {len(file_places)} places: there must be as many, and one at least")
    if file_places.min() < 0 or file_places.max() >= len(paths) or positions.min() < 0:
        raise ValueError(f"places must lie in 0..{len(paths) - 1} and positions must not be negative")
    used = sorted(np.unique(file_places).tolist(), key=lambda place: paths[place])  # As their UTF-8 bytes sort.
    ranks = np.empty(len(paths), np.int32)
    ranks[used] = np.arange(len(used), dtype=np.int32)
    ranked = ranks[file_places]
    order = np.lexsort((positions, ranked))
    column = pa.DictionaryArray.from_arrays(pa.array(ranked[order]), pa.array([paths[place] for place in used], pa.string()))
    table = pa.Table.from_arrays([column, pa.array(positions[order].astype(np.int64, copy=False))], schema=_SCHEMA)
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(
        sink,
        _SCHEMA,
        version="2.6",
        **COMPRESSION,
        use_dictionary=[_PATH],
        write_page_checksum=True,
        write_statistics=True,
        store_schema=False,  # Or readers would give back our dictionary instead of strings.
    ) as writer:
        writer.write_table(table, row_group_size=_GROUP_ROWS)
    data = sink.getvalue()
    return EncodedFile(memoryview(data), pq.read_metadata(pa.BufferReader(data)), table.num_rows)


def decode_deletes(data: bytes) -> pa.Table:
    """`file_path` as a dictionary and `pos`, of a file by whatever program. Raises pa.ArrowException, for one without them as well."""
    names = column_names(data)
    if not {_PATH, _POSITION} <= set(names):
        raise pa.ArrowInvalid(f"position deletes have columns `{_PATH}` and `{_POSITION}`; this file has {', '.join(names)}")
    return read_columns(data, [_PATH, _POSITION], dictionaries=[_PATH]).select([_PATH, _POSITION])


def positions_by_file(deletes: Iterable[pa.Table]) -> dict[str, npt.NDArray[np.int64]]:
    """Data file → positions of the rows that are gone from it, rising, each once. `deletes` as `decode_deletes` gives them."""
    found: dict[str, list[npt.NDArray[np.int64]]] = {}
    for table in deletes:
        paths = table.unify_dictionaries().column(_PATH).combine_chunks()
        codes, positions = paths.indices.to_numpy(), table.column(_POSITION).to_numpy()
        if np.any(codes[1:] < codes[:-1]):  # Iceberg wants them by path; only what is not is sorted.
            order = np.argsort(codes, kind="stable")
            codes, positions = codes[order], positions[order]
        bounds = np.searchsorted(codes, np.arange(len(paths.dictionary) + 1))
        for code, path in enumerate(paths.dictionary.to_pylist()):
            found.setdefault(path, []).append(positions[bounds[code] : bounds[code + 1]])
    return {path: _rising(pieces) for path, pieces in found.items()}


def _rising(pieces: Sequence[npt.NDArray[np.int64]]) -> npt.NDArray[np.int64]:
    """All of them in order, each once; mostly they are so already, and sorting them took longer than decoding them."""
    together = np.concatenate(pieces)
    return together if np.all(together[1:] > together[:-1]) else np.unique(together)


def without_rows(table: pa.Table, positions: npt.NDArray[np.int64]) -> pa.Table:
    """The rows of a whole data file that are not at these positions."""
    kept = np.ones(table.num_rows, np.bool_)
    kept[positions[positions < table.num_rows]] = False
    return table.filter(pa.array(kept))
