"""What a rewrite is given, read whole and held against what is said of it, before a single row is written.

A file that dolake named was held against the digest in its name when it was fetched; for that one the checksums of its pages are
not computed as well. Every other file's are, each time a page is decoded.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from dolake import failpoints
from dolake.compaction.job import Job
from dolake.datafiles import sources_in
from dolake.errors import ObjectDamaged, ObjectMissing, RewriteRefused
from dolake.iceberg.contents import LiveFile
from dolake.iceberg.names import parse_data_file_location
from dolake.iceberg.objects import read_file
from dolake.parquet.decode import RowGroups, read_checked
from dolake.parquet.deletes import decode_deletes, positions_by_file
from dolake.parquet.recast import Misfit, by_id, check_fit, field_id, nulls, recast
from dolake.storage.store import ObjectStore

Sources = tuple[tuple[int, str], ...]
Positions = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Input:
    """A data file in memory, as it was put. `first`: the number of its first row among all rows of all inputs.

    `kept` has a flag for each row: whether no delete has taken it out. `constants`: values of columns, by field id, that are not in
    the file since its partition says them (Iceberg, "Column Projection").
    """

    file: LiveFile
    groups: RowGroups
    first: int
    kept: npt.NDArray[np.bool_]
    sources: Sources
    constants: Mapping[int, Any]
    has_digest: bool

    @property
    def stop(self) -> int:
        return self.first + len(self.kept)

    def starts(self) -> Iterator[tuple[int, int, int]]:
        """Each row group: its number, and the first and the end of its rows in the file."""
        start = 0
        for number, count in enumerate(self.groups.row_counts):
            yield number, start, start + count
            start += count

    def read(self, number: int, wanted: pa.Schema) -> pa.Table:
        """One row group as the table has its rows. Raises RewriteRefused."""
        with judged(self.file.location):
            known = by_id(self.groups.schema)
            found = [known.get(field_id(field)) for field in wanted]
            rows = self.groups.read(number, [field.name for field in found if field is not None])
            columns = []
            for field, have in zip(wanted, found, strict=True):
                if have is None:
                    columns.append(self._missing(self.groups.row_counts[number], field))
                else:
                    columns.append(recast(rows.column(have.name), have, field))
            return pa.table(columns, schema=wanted)

    def _missing(self, count: int, field: pa.Field) -> pa.ChunkedArray:
        value = self.constants.get(field_id(field))
        if value is None:
            return nulls(count, field.type)
        plain = field.type.value_type if pa.types.is_dictionary(field.type) else field.type
        column = pa.repeat(_scalar(value, plain), count)
        return pa.chunked_array([column.dictionary_encode().cast(field.type) if plain != field.type else column])

    def may_yet_be_refused(self, wanted: pa.Schema) -> bool:
        """Whether only decoding all of it tells that it is good: its bytes are nobody's promise, or a null may be where none is allowed."""
        known = by_id(self.groups.schema)
        found = [(known.get(field_id(field)), field) for field in wanted]
        return not self.has_digest or any(have is not None and have.nullable and not field.nullable for have, field in found)


@contextlib.contextmanager
def judged(location: str) -> Iterator[None]:
    """What is found wrong with a file inside keeps its job from being done. Raises RewriteRefused."""
    try:
        yield
    except (Misfit, pa.ArrowException, OSError) as error:
        raise RewriteRefused(location, f"it cannot be read: {error}" if not isinstance(error, Misfit) else str(error)) from error


def open_inputs(store: ObjectStore, job: Job, wanted: pa.Schema, spent: Callable[[int], None]) -> list[Input]:
    """All data files, with their deletes. Raises RewriteRefused, StoreUnreachable."""
    deletes = [(file.sequence_number, _read_deletes(store, file, spent)) for file in job.deletes]
    inputs: list[Input] = []
    first = 0
    for file in job.data:
        data = _fetch(store, file, spent)
        has_digest = parse_data_file_location(file.location) is not None
        with judged(file.location):
            groups = RowGroups(data, verified=not has_digest)
            constants = _check(file, groups, wanted, job)
        kept = np.ones(file.row_count, np.bool_)
        for sequence_number, positions in deletes:
            if sequence_number >= file.sequence_number and (gone := positions.get(file.location)) is not None:
                kept[gone[(gone >= 0) & (gone < len(kept))]] = False
        inputs.append(Input(file, groups, first, kept, sources_in(groups.stated()), constants, has_digest))
        first += file.row_count
    return inputs


def _fetch(store: ObjectStore, file: LiveFile, spent: Callable[[int], None]) -> bytes:
    failpoints.hit("compact.read", file.location)
    try:
        data = read_file(store, file.location, file.size_bytes)
    except (ObjectMissing, ObjectDamaged) as error:
        raise RewriteRefused(file.location, str(error)) from error
    spent(len(data))
    return data


def _read_deletes(store: ObjectStore, file: LiveFile, spent: Callable[[int], None]) -> dict[str, Positions]:
    if file.kind != "position deletes":
        raise RewriteRefused(file.location, f"it holds {file.kind}, and dolake applies position deletes only")
    data = _fetch(store, file, spent)
    with judged(file.location):
        if parse_data_file_location(file.location) is None:
            for _ in read_checked(data):
                pass
        return positions_by_file([decode_deletes(data)])


def _check(file: LiveFile, groups: RowGroups, wanted: pa.Schema, job: Job) -> Mapping[int, Any]:
    """Whether the file has the rows it should, and columns that can become the table's. Its `constants`. Raises Misfit."""
    if sum(groups.row_counts) != file.row_count:
        raise Misfit(f"it has {sum(groups.row_counts)} rows, and its manifest says {file.row_count}")
    known = by_id(groups.schema)
    if not known and len(groups.schema):
        raise Misfit("its columns have no field ids, so nobody can tell which of the table's they are")
    for name in groups.schema.names:
        if groups.schema.get_field_index(name) < 0:
            raise Misfit(f"it has several columns that are called {name}")
    missing = []
    for field in wanted:
        if (have := known.get(field_id(field))) is not None:
            check_fit(have, field)
        else:
            missing.append(field)
    constants = _constants(file, missing, job)
    for field in missing:
        if not field.nullable and constants.get(field_id(field)) is None:
            raise Misfit(f"column {field.name} is required, and the file does not have it")
    return constants


def _constants(file: LiveFile, missing: Sequence[pa.Field], job: Job) -> Mapping[int, Any]:
    if not missing or all(value is None for value in file.partition):
        return {}
    if file.spec_id != job.spec["spec-id"]:
        if parse_data_file_location(file.location) is not None:
            return {}  # dolake writes every column that there is.
        raise Misfit(
            f"it lacks column {missing[0].name}, whose values its partition may hold, and spec {file.spec_id} is not the table's any more"
        )
    values = zip(job.spec["fields"], file.partition, strict=True)
    return {part["source-id"]: value for part, value in values if part["transform"] == "identity" and value is not None}


def _scalar(value: Any, kind: pa.DataType) -> pa.Scalar:
    """Of a value as manifests store it: days, microseconds, bytes of a uuid."""
    if isinstance(kind, pa.BaseExtensionType):
        stored = value if isinstance(value, bytes) else value.bytes
        return pa.ExtensionArray.from_storage(kind, pa.array([stored], kind.storage_type))[0]
    if pa.types.is_temporal(kind) and isinstance(value, int):
        return pa.scalar(value, pa.int32() if pa.types.is_date(kind) else pa.int64()).cast(kind)
    return pa.scalar(value, kind)
