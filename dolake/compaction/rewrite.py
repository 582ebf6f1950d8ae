"""Data files in, fewer out: deletes applied, rows sorted, and where each row went.

    read all → decode the keys → place the rows → for each slice of the new order: decode, gather, encode → put

Keys are decoded first, and tell how much has to be held: nothing of rows that stay in the order they have, all of them at once
where they fit into memory, else as much of the new order at a time as does. Blocks, and is meant for a process of its own: memory
that Arrow has had goes back to the system when that ends.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from pyiceberg.schema import Schema

from dolake import failpoints
from dolake.compaction.gathering import Piece, arrow_bytes, pieces_of, slices, with_dictionaries, without_unused
from dolake.compaction.job import Job, OutputFile, Rewritten
from dolake.compaction.placing import Partitions, PlacedFile, Placing, place_rows
from dolake.compaction.reading import open_inputs
from dolake.datafiles import named_file, sources_metadata, split_rows
from dolake.errors import RewriteRefused, TableStopped
from dolake.iceberg.partition import source_of, stored_partition
from dolake.parquet.align import schema_from_json
from dolake.parquet.encode import EncodedFile, Encoding
from dolake.parquet.schema import arrow_schema
from dolake.storage.memory import GrownBytes
from dolake.storage.store import ObjectStore

# Texts in one array of Arrow's have 2 GiB together at most; no slice of the rows comes near that.
_MEMORY_BYTES_MAX = 1 << 30
# Where all rows are decoded in one pass, inputs are not held beside them; a second pass would cost a fifth of all time (measured).
_ONE_PASS_TIMES = 2


def rewrite(store: ObjectStore, job: Job, *, uuid: Callable[[], str], spent: Callable[[int], None] = lambda _: None) -> Rewritten:
    """Reads the job's files, puts what they become, and says where each row went.

    `uuid` makes the new files' names unique; `spent` hears of the bytes of each file that was read or put. Raises RewriteRefused
    before anything is put, and StoreUnreachable at any time: what was put by then is of `job.epoch`, and named by nobody.
    """
    with _memory_kept():
        return _rewrite(store, job, uuid, spent)


@contextlib.contextmanager
def _memory_kept() -> Iterator[None]:
    """Arrow's memory from an allocator that keeps what it is given back for the next column.

    The usual one returns it to the system at once, and a third of the time went into getting it anew (measured).
    """
    usual = pa.default_memory_pool()
    if "jemalloc" in pa.supported_memory_backends():
        pa.set_memory_pool(pa.jemalloc_memory_pool())
    try:
        yield
    finally:
        pa.set_memory_pool(usual)


def _rewrite(store: ObjectStore, job: Job, uuid: Callable[[], str], spent: Callable[[int], None]) -> Rewritten:
    schema = schema_from_json(job.schema)
    wanted = arrow_schema(schema)
    inputs = open_inputs(store, job, wanted, spent)
    wanted = with_dictionaries(wanted, inputs)
    pieces = pieces_of(inputs)
    passes = _passes(sum(arrow_bytes(one, wanted) for one in inputs), job)
    keys = _read_keys(pieces, wanted, _key_names(job, schema), held=passes == 1)
    sort_by = [_joined(keys, wanted.field(name)) for name in _sort_names(job, schema)]
    placing = place_rows(inputs, sort_by, _partitions(job, schema, pieces, keys), job.target_bytes)
    del keys, sort_by
    outputs = []
    for placed, file in _encoded(slices(pieces, placing, wanted, passes), placing):
        outputs.append(_put(store, job, schema, placed, file, uuid()))
        spent(outputs[-1].file.size_bytes)
    return Rewritten(
        outputs=tuple(outputs),
        moves={one.file.location: placing.numbers[one.first : one.stop] for one in inputs},
        bytes_read=sum(file.size_bytes for file in (*job.data, *job.deletes)),
        bytes_written=sum(output.file.size_bytes for output in outputs),
    )


def _passes(arrow_bytes_all: int, job: Job) -> int:
    """How often inputs are decoded. Once up to `_ONE_PASS_TIMES` the memory: the inputs' own bytes are given back meanwhile."""
    memory_bytes = max(1, min(job.memory_bytes, _MEMORY_BYTES_MAX))
    return 1 if arrow_bytes_all <= _ONE_PASS_TIMES * memory_bytes else math.ceil(arrow_bytes_all / memory_bytes)


def _joined(parts: Sequence[pa.Table], field: pa.Field) -> pa.ChunkedArray:
    return pa.chunked_array([chunk for rows in parts for chunk in rows[field.name].chunks], field.type)


def _sort_names(job: Job, schema: Schema) -> list[str]:
    names = {column.field_id: column.name for column in schema.fields}
    return [names[column] for column in job.sort_by]


def _key_names(job: Job, schema: Schema) -> list[str]:
    """Of the columns that tell where a row goes: those to sort by, and those to partition by."""
    names = dict.fromkeys(_sort_names(job, schema))
    for part in job.spec["fields"]:
        if part["transform"] == "void":
            continue
        path = source_of(schema, part["source-id"])
        if path is None:
            reason = f"partition field {part['name']} is of a column that the table does not have any more"
            raise RewriteRefused(job.data[0].location, reason)
        names[path[0].name] = None
    return list(names)


def _read_keys(pieces: Sequence[Piece], wanted: pa.Schema, names: Sequence[str], *, held: bool) -> list[pa.Table]:
    """The key columns of each piece's rows that are kept.

    Of what may yet be refused all is decoded, before anything is put; and `held`, where there is room for all.
    """
    only_keys = pa.schema([wanted.field(name) for name in names])
    found: list[pa.Table] = []
    for piece in pieces:
        if piece.source.may_yet_be_refused(wanted):
            rows = piece.read(wanted)
            piece.rows = rows if held else None
            rows = rows.select(names)
        elif names:
            rows = piece.read(only_keys)
        if names:
            found.append(rows if piece.kept.all() else rows.filter(pa.array(piece.kept)))
            piece.keys = found[-1] if held else None
    return found


def _partitions(job: Job, schema: Schema, pieces: Sequence[Piece], keys: Sequence[pa.Table]) -> Partitions:
    """Those that the rows are of under the table's spec. Where that is the inputs' own, it is one, and the first row tells."""
    if not pieces or all(part["transform"] == "void" for part in job.spec["fields"]):
        return Partitions([(None,) * len(job.spec["fields"])])
    same = job.data[0].spec_id == job.spec["spec-id"]
    known: dict[object, int] = {}
    values: list[tuple[Any, ...]] = []
    codes = []
    for piece, rows in zip(pieces[:1] if same else pieces, keys, strict=False):
        try:
            parts = split_rows(job.table, rows.slice(0, 1) if same else rows, schema, job.spec)
        except TableStopped as error:
            raise RewriteRefused(piece.source.file.location, error.rule) from error
        mine = np.zeros(rows.num_rows, np.int32)
        for partition, _, places in parts:
            name = tuple("NaN" if value != value else value for value in partition)  # No NaN equals another.
            mine[places] = known.setdefault(name, len(known))
            if len(known) > len(values):
                values.append(partition)
        codes.append(mine)
    if same:
        stored = stored_partition(job.schema, job.spec, values[0])
        said = pieces[0].source.file.partition
        if any(one != other and (one == one or other == other) for one, other in zip(stored, said, strict=True)):
            raise RewriteRefused(pieces[0].source.file.location, f"its rows are of partition {stored}, and its manifest says {said}")
    return Partitions(values, None if len(values) == 1 else np.concatenate(codes))


def _encoded(parts: Iterator[tuple[int, pa.Table]], placing: Placing) -> Iterator[tuple[PlacedFile, EncodedFile]]:
    """The files one after the other; one that reaches over several slices is encoded slice by slice."""
    files = iter(placing.files)
    placed = next(files, None)
    encoding: Encoding | None = None
    for start, rows in parts:
        done = 0
        while placed is not None and done < rows.num_rows:
            part = rows.slice(done, placed.stop - start - done)
            done += part.num_rows
            encoding = encoding or Encoding(part, GrownBytes())
            encoding.write(without_unused(part))
            if start + done == placed.stop:
                yield placed, encoding.finish(sources_metadata(placed.sources))
                placed, encoding = next(files, None), None
        del rows


def _put(store: ObjectStore, job: Job, schema: Schema, placed: PlacedFile, encoded: EncodedFile, unique: str) -> OutputFile:
    file = named_file(job.location, placed.partition, encoded, job.epoch, unique, placed.sources)
    failpoints.hit("compact.before_put", file.location)
    store.put(file.location, file.data)
    failpoints.hit("compact.after_put", file.location)
    return OutputFile(file.as_new_file(), file.as_indexed(schema, job.spec))
