"""The key indexes of the writer's mirror tables: loaded when a table is first flushed, brought to its head, saved now and then.

An index is never waited for to be saved: it is made again from what the table's snapshot names. What the disk has of it is checked
whole when it is loaded; whatever is wrong with it means that it is made anew.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import structlog

from dolake import failpoints
from dolake.clock import Runtime
from dolake.datafiles import sources_in
from dolake.errors import ObjectMissing, TableStopped, unreadable
from dolake.iceberg.contents import ContentsReader, LiveFile
from dolake.iceberg.index import IndexedFile, KeyIndex, Moves
from dolake.iceberg.index_files import IndexDamaged, IndexFolder
from dolake.iceberg.metadata import LoadedTable
from dolake.iceberg.objects import read_file
from dolake.metrics import Metrics
from dolake.model import TableName
from dolake.parquet.decode import file_metadata, read_fields
from dolake.parquet.deletes import decode_deletes
from dolake.parquet.keys import KeyHashes, key_hashes
from dolake.storage.disk import Disk
from dolake.storage.store import ObjectStore

FOLDER = "index"
# Rows that are read before they become a run: few enough to hold, enough to keep runs from being merged often.
_READ_ROWS = 1 << 20
# An index is saved when so many rows, or this share of it, are not on disk yet: what a crash makes it read again.
_UNSAVED_ROWS_MAX = 1 << 19
_UNSAVED_SHARE = 8
# What the indexes of all tables may take of memory before those that were not used for longest are put away.
_MEMORY_BYTES_MAX = 256 << 20

Positions = np.ndarray[tuple[int], np.dtype[np.int64]]

logger = structlog.get_logger("dolake.writer")


@dataclass
class _Open:
    index: KeyIndex
    folder: IndexFolder
    saved_space: int = 0
    saved_dead: int = 0

    @property
    def unsaved_rows(self) -> int:
        return abs(self.index.space - self.saved_space) + abs(self.index.dead_count - self.saved_dead)

    def note_saved(self) -> None:
        self.saved_space, self.saved_dead = self.index.space, self.index.dead_count


@dataclass(frozen=True)
class ReplacedFiles:
    """What maintenance made of a table's files: where the rows of each old one are now (`KeyIndex.move`), and the delete files.

    `removed`: files that left with their rows; `dead`: rows that were deleted in files that stay.
    """

    moves: Moves
    files: tuple[IndexedFile, ...]
    deletes_gone: frozenset[str]
    deletes_new: frozenset[str]
    removed: frozenset[str] = frozenset()
    dead: Mapping[str, Positions] = field(default_factory=dict)


class Indexes:
    """Those of one writer half. All blocks; a table's index is for one thread at a time (`Mirrors.lock`), different tables' for several."""

    def __init__(self, runtime: Runtime, disk: Disk, data: str, store: ObjectStore, metrics: Metrics) -> None:
        self._runtime, self._disk, self._store, self._metrics = runtime, disk, store, metrics
        self._data = data
        # The one used last stands last. A plain dict: a copy of its items is made at once, whatever other threads do to it.
        self._open: dict[TableName, _Open] = {}

    def at_head(self, base: LoadedTable, key: Sequence[int]) -> KeyIndex:
        """The table's index as of `base`'s head; `key` are the field ids of the key's columns.

        Raises TableStopped where nobody can index the table, StoreUnreachable to be tried again.
        """
        opened = self._open.pop(base.name, None)
        if opened is None or (opened.index.table_uuid, opened.index.key) != (base.uuid, tuple(key)):
            opened = self._load(base, tuple(key))
        self._open[base.name] = opened
        if opened.index.snapshot_id != base.head_id:
            self._bring_to_head(opened.index, base)
        return opened.index

    def follow(self, base: LoadedTable) -> None:
        """The head has the rows of the snapshot before it."""
        opened = self._open.get(base.name)
        if opened is None or base.head is None or opened.index.table_uuid != base.uuid:
            return
        if opened.index.snapshot_id == base.head.get("parent-snapshot-id"):
            opened.index.snapshot_id = base.head_id

    def move(self, base: LoadedTable, replaced: ReplacedFiles) -> None:
        """The head has rows of the snapshot before it in other files, or fewer: the index of that one follows without reading any."""
        opened = self._open.get(base.name)
        if opened is None or base.head is None or opened.index.table_uuid != base.uuid:
            return
        index = opened.index
        if index.snapshot_id is None or index.snapshot_id != base.head.get("parent-snapshot-id"):
            return
        index.snapshot_id = None
        index.move(replaced.moves, replaced.files)
        index.remove(location for location in replaced.removed if location in index.files)
        for location, places in replaced.dead.items():
            index.delete(index.numbers_of(location, places))
        index.delete_files = (index.delete_files - replaced.deletes_gone) | replaced.deletes_new
        index.snapshot_id = base.head_id

    def settle(self, name: TableName) -> None:
        """After a flush: what is due is saved."""
        opened = self._open.get(name)
        if opened is None:
            return
        index = opened.index
        self._metrics.set("dolake_index_rows_count", index.live_count, table=str(name))
        self._metrics.set("dolake_index_bytes", index.size_bytes, table=str(name))
        if index.unspilled:
            logger.warning("key index grows in memory", table=str(name), reason=index.unspilled)
        if opened.unsaved_rows > max(_UNSAVED_ROWS_MAX, index.live_count // _UNSAVED_SHARE):
            self._save(opened)

    def surplus(self) -> list[TableName]:
        """Those used longest ago, as many as take what of memory is too much; never the one used last."""
        known = list(self._open.items())
        memory_bytes = sum(opened.index.memory_bytes for _, opened in known)
        found = []
        for name, opened in known[:-1]:
            if memory_bytes <= _MEMORY_BYTES_MAX:
                break
            memory_bytes -= opened.index.memory_bytes
            found.append(name)
        return found

    def put_away(self, name: TableName) -> None:
        """Saves one, and lets go of it."""
        opened = self._open.pop(name, None)
        if opened is not None:
            self._save(opened)

    def close(self) -> None:
        """Saves them all."""
        for opened in list(self._open.values()):
            if opened.unsaved_rows or opened.index.snapshot_id is not None:
                self._save(opened)
        self._open.clear()

    def remove(self, name: TableName) -> None:
        """The table is gone."""
        self._open.pop(name, None)
        remove_index(self._disk, self._data, name)

    # -- the disk

    def _directory(self, name: TableName) -> str:
        return index_directory(self._data, name)

    def _load(self, base: LoadedTable, key: tuple[int, ...]) -> _Open:
        folder = IndexFolder(self._disk, self._directory(base.name))
        index: KeyIndex | None = None
        try:
            failpoints.hit("index.load")
            index = folder.load()
        except (IndexDamaged, OSError) as error:
            self._say_rebuild(base.name, str(error))
        if index is not None and (index.table_uuid, index.key) != (base.uuid, key):
            self._say_rebuild(base.name, "it is of another table, or of another key")
            index = None
        if index is None:
            with contextlib.suppress(OSError):
                folder.remove()
            index = KeyIndex(base.uuid, key, self._runtime.random.bits(63), spill=folder.spill)
        opened = _Open(index, folder)
        opened.note_saved()
        return opened

    def _say_rebuild(self, name: TableName, reason: str) -> None:
        logger.warning("key index is made anew", table=str(name), reason=reason)

    def _save(self, opened: _Open) -> None:
        """One that cannot be saved stays in memory; without it a start takes longer, and that is all."""
        try:
            failpoints.hit("index.save")
            opened.folder.save(opened.index)
        except OSError as error:
            logger.warning("key index not saved", directory=opened.folder.directory, reason=error.strerror or str(error))
        else:
            opened.note_saved()

    # -- the table

    def _bring_to_head(self, index: KeyIndex, base: LoadedTable) -> None:
        """By the files that its snapshot and the head do not share. Cut short it goes on from where it was."""
        began_s = self._runtime.clock.monotonic_s()
        index.snapshot_id = None
        files = () if base.head is None else ContentsReader(self._store).read(base.head).files
        data = {file.location: file for file in files if file.kind == "data"}
        deletes = {file.location: file for file in files if file.kind != "data"}
        if any(file.kind != "position deletes" for file in deletes.values()):
            reason = (
                "somebody has written equality deletes to it, which dolake does not apply; rewrite its data files without them "
                "(in Spark: rewrite_data_files)"
            )
            raise TableStopped(str(base.name), reason, field="delete-files")
        index.remove([location for location in index.files if location not in data])
        if index.delete_files - deletes.keys() and index.files and self._has_undeleted(index, base.name, deletes.values()):
            self._say_rebuild(base.name, "delete files have left the table, and rows that they spoke of live again")
            index.clear()
        rebuilt = not index.files and bool(data)
        added = [data[location] for location in data if location not in index.files]
        if added:  # What may speak of files that came (back) only now is read again, also by who goes on where this was cut short.
            oldest = min(file.sequence_number for file in added)
            index.delete_files -= {file.location for file in deletes.values() if file.sequence_number >= oldest}
        try:
            rows = self._add(index, base.name, added)
            self._delete(index, [file for file in deletes.values() if file.location not in index.delete_files])
        except (ObjectMissing, pa.ArrowException) as error:
            raise TableStopped(str(base.name), unreadable(error), field="files") from error
        index.delete_files = set(deletes)
        index.snapshot_id = base.head_id
        if rebuilt:
            self._metrics.add("dolake_index_rebuilds_total")
        elif added:
            self._metrics.add("dolake_index_repairs_total")
        if added:
            seconds = round(self._runtime.clock.monotonic_s() - began_s, 3)
            logger.info("key index brought to the table's head", table=str(base.name), files=len(added), rows=rows, seconds=seconds)

    def _has_undeleted(self, index: KeyIndex, name: TableName, deletes: Iterable[LiveFile]) -> bool:
        """Whether a row that the index has as deleted is so no more: its entry may be gone. Merged delete files speak of the same."""
        dead = np.zeros(index.space, np.bool_)
        try:
            for file in deletes:
                for location, places in by_path(decode_deletes(read_file(self._store, file.location, file.size_bytes))):
                    dead[index.numbers_of(location, places)] = True
        except (ObjectMissing, pa.ArrowException) as error:
            raise TableStopped(str(name), unreadable(error), field="files") from error
        spans = [slice(file.first, file.first + file.row_count) for file in index.files.values()]
        return any((index.dead[span] & ~dead[span]).any() for span in spans)

    def _add(self, index: KeyIndex, name: TableName, files: Sequence[LiveFile]) -> int:
        rows = 0
        for group in _groups(files):
            failpoints.hit("index.read")
            index.add_files([(_indexed(file, read), read.hashes.high, read.hashes.low) for file, read in self._read(index, group)])
            rows += sum(file.row_count for file in group)
            if rows > _READ_ROWS:
                logger.info("key index reads the table", table=str(name), rows=rows, of=sum(file.row_count for file in files))
        return rows

    def _read(self, index: KeyIndex, files: Iterable[LiveFile]) -> Iterator[tuple[LiveFile, _Read]]:
        for file in files:
            data = read_file(self._store, file.location, file.size_bytes)
            columns = read_fields(data, index.key)
            yield file, _Read(_known_hashes(columns, index, file.row_count), sources_in(file_metadata(data)))

    def _delete(self, index: KeyIndex, deletes: Sequence[LiveFile]) -> None:
        for file in deletes:
            for location, places in by_path(decode_deletes(read_file(self._store, file.location, file.size_bytes))):
                index.delete(index.numbers_of(location, places))


def index_directory(data: str, name: TableName) -> str:
    """Where a table's saved index lies, below the data directory."""
    return os.path.join(data, FOLDER, str(name))


def remove_index(disk: Disk, data: str, name: TableName) -> None:
    """What is saved of a table that is gone; what cannot be removed does no harm, as it names its table's uuid. Blocks."""
    with contextlib.suppress(OSError):
        IndexFolder(disk, index_directory(data, name)).remove()


@dataclass(frozen=True)
class _Read:
    hashes: KeyHashes
    sources: tuple[tuple[int, str], ...]


def _known_hashes(columns: Mapping[int, pa.ChunkedArray], index: KeyIndex, row_count: int) -> KeyHashes:
    """Rows without a whole key (from before one of its columns, or somebody else's) are never found: nothing replaces them."""
    none = np.zeros(row_count, np.uint64)
    if any(field_id not in columns for field_id in index.key):
        return KeyHashes(none, none)
    found = key_hashes([columns[field_id] for field_id in index.key], index.seed)
    keyless = [np.asarray(column.combine_chunks().is_null()) for column in columns.values() if column.null_count]
    if not keyless:
        return found
    missing = np.logical_or.reduce(keyless)
    return KeyHashes(np.where(missing, none, found.high), np.where(missing, none, found.low))


def _indexed(file: LiveFile, read: _Read) -> IndexedFile:
    return IndexedFile(file.location, file.row_count, file.spec_id, file.partition, read.sources)


def _groups(files: Sequence[LiveFile]) -> Iterator[list[LiveFile]]:
    group: list[LiveFile] = []
    for file in files:
        group.append(file)
        if sum(one.row_count for one in group) >= _READ_ROWS:
            yield group
            group = []
    if group:
        yield group


def by_path(deletes: pa.Table) -> Iterator[tuple[str, Positions]]:
    """A file of position deletes, by the data file they speak of."""
    table = deletes.unify_dictionaries().combine_chunks()
    if not table.num_rows:
        return
    paths = table["file_path"].chunk(0)
    codes = np.asarray(paths.indices)
    positions = np.asarray(table["pos"].chunk(0))
    order = np.argsort(codes, kind="stable")
    starts = np.flatnonzero(np.diff(codes[order], prepend=-1))
    for start, part in zip(starts, np.split(order, starts[1:]), strict=True):
        yield paths.dictionary[int(codes[order[start]])].as_py(), positions[part].astype(np.int64)
