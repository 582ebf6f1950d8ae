"""The dead letters' own upkeep: their small files become large ones, and what was kept long enough of an event goes from them.

What was decided of an event stays for good, at its place: the counts of its table rest on it, and so does that nothing is applied
twice. What goes is the event itself and the value that was wrong in it; one that nobody has sent again by then has expired
(`parquet.letters`). Which files hold any is told by their bounds, without looking into them: what has expired, and what has not, never
share a file.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa

from dolake.compaction.sizes import bins_by_class, is_full, packed
from dolake.iceberg.contents import LiveFile
from dolake.iceberg.objects import read_file
from dolake.parquet.align import align_columns
from dolake.parquet.decode import read_columns
from dolake.parquet.letters import EVENT_ID, JUDGED_AT_ID, LETTERS_SCHEMA, expired_apart
from dolake.parquet.schema import arrow_schema
from dolake.storage.store import ObjectStore

# Read whole by whoever asks for letters, and by a writer that starts: no file needs to be larger.
TARGET_BYTES = 32 << 20


@dataclass(frozen=True)
class LettersRewrite:
    """Files of one table's letters, and the rows of each file that they become. `expired_count`: rows that lose their event."""

    files: tuple[LiveFile, ...]
    rows: tuple[pa.Table, ...]
    expired_count: int


def plan_letters(files: Sequence[LiveFile], cutoff_us: int | None, inputs_min: int) -> list[tuple[LiveFile, ...]]:
    """What is rewritten together: files with events from before `cutoff_us` (None: they are kept for good), and small ones by size.

    A partition that somebody has deleted rows of is left alone.
    """
    partitions: dict[tuple[object, ...], list[LiveFile]] = {}
    for file in sorted(files, key=lambda file: (file.sequence_number, file.location)):
        partitions.setdefault((file.spec_id, *file.partition), []).append(file)
    return [
        group for mine in partitions.values() if all(file.kind == "data" for file in mine) for group in _groups(mine, cutoff_us, inputs_min)
    ]


def _groups(files: Sequence[LiveFile], cutoff_us: int | None, inputs_min: int) -> Iterator[tuple[LiveFile, ...]]:
    stale = [file for file in files if cutoff_us is not None and _holds_events(file) and _judged_first_us(file) < cutoff_us]
    yield from map(tuple, packed(stale, _size_bytes, TARGET_BYTES))
    taken = {file.location for file in stale}
    small = [file for file in files if file.location not in taken and not is_full(file.size_bytes, TARGET_BYTES)]
    yield from map(tuple, bins_by_class(small, _size_bytes, TARGET_BYTES, inputs_min))


def _holds_events(file: LiveFile) -> bool:
    return file.upper_bounds.get(EVENT_ID) != b""


def _judged_first_us(file: LiveFile) -> int:
    """Where nobody says, long ago: then it is looked into."""
    bound = file.lower_bounds.get(JUDGED_AT_ID)
    return -1 if bound is None else int.from_bytes(bound, "little", signed=True)


def _size_bytes(file: LiveFile) -> int:
    return file.size_bytes


def rewrite_letters(store: ObjectStore, files: tuple[LiveFile, ...], cutoff_us: int | None) -> LettersRewrite:
    """Blocks. Raises ObjectMissing, ObjectDamaged, StoreUnreachable."""
    wanted = arrow_schema(LETTERS_SCHEMA)
    parts = [align_columns(read_columns(read_file(store, file.location, file.size_bytes)), wanted) for file in files]
    rows = pa.concat_tables(parts).unify_dictionaries().sort_by("judged_at")
    expired, others, count = expired_apart(rows, cutoff_us)
    return LettersRewrite(files, tuple(part for part in (expired, others) if part.num_rows), count)
