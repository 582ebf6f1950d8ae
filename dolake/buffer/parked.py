"""Side logs: where a parked table's records wait, so that the logs they came from can be trimmed for everybody else.

`DIR/parked/<namespace>/<name>/` holds a log like any other: segments, checksums, recovery, a synced end. Its records are of kind
PARKED; source, epoch, sequence, content, lsn and transaction are the original's, `tables` and the event count are this table's
share. The payload:

    u8   kind of the original record
    u64  its offset
    u16  size of its log's id, then the id
    u32  count of places, then a u32 each: where in the original batch each event stood; 0xFFFFFFFF: the payload is the whole one
         the original payload, or `{"events":[…]}` with this table's events alone

The one rule that makes rows come once only: a log's records are parked in its order, and the first offset of it that is not
parked, its *bound*, follows from the side log alone. Below the bound the side log is read, from it on the log itself; a log may be
trimmed up to the bound, since that moves only when the side log is synced.

A table is parked while its side log has segments and no file `done`; the file `feeding` says that it is on its way back.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace

from dolake.buffer.segment import segment_names
from dolake.buffer.tail import LogReader
from dolake.buffer.wal import Log, LogSettings, holds_log
from dolake.clock import Randomness
from dolake.errors import LogCorrupt, LogFailed
from dolake.failpoints import hit
from dolake.model import Codec, Record, RecordKind, TableName
from dolake.storage.disk import Disk

FOLDER = "parked"
_DONE, _FEEDING = "done", "feeding"
_HEAD = struct.Struct("<BQH")
_U32 = struct.Struct("<I")
_WHOLE = 0xFFFFFFFF
READ_BYTES = 4 << 20


@dataclass(frozen=True)
class ParkedRecord:
    """One record's part for the table. `record` is as it stood in its log, but for tables, event count and payload, which are the
    part's; `places` are where its events stood in the batch, None where the payload is the whole one. `position` is its place in
    the side log, -1 before it has one."""

    record: Record
    places: tuple[int, ...] | None = None
    position: int = -1


def encode_parked(parked: ParkedRecord) -> bytes:
    """The payload of a PARKED record."""
    record = parked.record
    log_id = record.log_id.encode()
    places = parked.places
    listed = _U32.pack(_WHOLE) if places is None else struct.pack(f"<I{len(places)}I", len(places), *places)
    return b"".join((_HEAD.pack(record.entry.kind, record.offset, len(log_id)), log_id, listed, record.entry.payload))


def decode_parked(stored: Record, directory: str) -> ParkedRecord:
    """Raises LogCorrupt for what this module did not write."""
    payload = stored.entry.payload
    try:
        kind, offset, size = _HEAD.unpack_from(payload)
        position = _HEAD.size + size
        log_id = payload[_HEAD.size : position].decode()
        (count,) = _U32.unpack_from(payload, position)
        position += _U32.size
        places = None
        if count != _WHOLE:
            places = struct.unpack_from(f"<{count}I", payload, position)
            position += 4 * count
        entry = replace(stored.entry, kind=RecordKind(kind), payload=payload[position:])
    except (struct.error, ValueError) as error:
        raise LogCorrupt(path=directory, position=0, end=0, reason=f"offset {stored.offset} is no parked record: {error}") from None
    return ParkedRecord(Record(log_id, offset, entry, stored.size_bytes, stored.stored_bytes), places, stored.offset)


class SideLog:
    """One parked table's records. Calls block and come one at a time; after LogFailed it must be opened anew."""

    def __init__(self, disk: Disk, data: str, table: TableName, settings: LogSettings, random: Randomness) -> None:
        """Opens the table's side log, or begins one. What an unfinished removal left is removed first.

        Raises LogRefused, LogCorrupt, LogFull, LogFailed.
        """
        self.table, self.directory = table, side_directory(data, table)
        self.bounds: dict[str, int] = {}  # by log: the first offset that is not parked
        self.sources: dict[tuple[str, str], int] = {}  # by log and source: the first offset that is
        self._disk = disk
        finish_removal(disk, self.directory)
        _make_ways(disk, data, table)
        kind = Log.open if holds_log(disk, self.directory) else Log.create
        self._log = kind(disk, self.directory, replace(settings, codec=Codec.ZSTD), random)
        self._first = self._log.first_offset
        with ExitStack() as undone:  # Half open it would keep its lock, and nobody could open it anew.
            undone.callback(self._log.close)
            self._reader = LogReader(disk, self.directory)
            undone.callback(self._reader.close)
            self._find_bounds()
            undone.pop_all()

    @property
    def first(self) -> int:
        """The position of the first record, also of one that has failed: a side log is never trimmed."""
        return self._first

    @property
    def end(self) -> int:
        """The position after the last record; everything below is on disk."""
        return self._log.synced_end

    @property
    def size_bytes(self) -> int:
        return self._log.size_bytes

    @property
    def failed(self) -> bool:
        """Whether it must be opened anew."""
        return self._log.closed

    @property
    def is_feeding(self) -> bool:
        """Whether the table is on its way back: its records are handed out, and more may still be added."""
        return self._disk.exists(f"{self.directory}/{_FEEDING}")

    def append(self, parts: Sequence[ParkedRecord]) -> None:
        """Adds parts in log order; when it returns they are on disk and the bounds have moved.

        Raises ValueError for one below its log's bound (it is here already), LogFull (nothing was kept), LogFailed.
        """
        bounds = dict(self.bounds)
        for part in parts:
            record = part.record
            if record.offset < bounds.get(record.log_id, 0):
                raise ValueError(f"{self.table}: offset {record.offset} of log {record.log_id} is parked already")
            bounds[record.log_id] = record.offset + 1
        hit("park.before_append")
        self._log.append_group([replace(part.record.entry, kind=RecordKind.PARKED, payload=encode_parked(part)) for part in parts])
        hit("park.after_append")
        self._count(parts)

    def read(self, position: int, size_bytes_max: int = READ_BYTES) -> list[ParkedRecord]:
        """The next parts from `position` on, at least one unless it is the end. Raises LogCorrupt."""
        if position >= self.end:
            return []
        return [decode_parked(stored, self.directory) for stored in self._reader.read(position, size_bytes_max)]

    def feed(self, wanted: bool) -> None:
        """Notes, durably, whether the table is on its way back."""
        path = f"{self.directory}/{_FEEDING}"
        if wanted and not self.is_feeding:
            _make(self._disk, path)
        elif not wanted and self.is_feeding:
            self._disk.unlink(path)
        self._disk.sync_directory(self.directory)

    def remove(self) -> None:
        """Ends it: the table has committed everything, or is dropped. A removal that is interrupted is finished by the next start."""
        self.close()
        _make(self._disk, f"{self.directory}/{_DONE}")
        self._disk.sync_directory(self.directory)
        finish_removal(self._disk, self.directory)

    def close(self) -> None:
        self._reader.close()
        self._log.close()

    def _find_bounds(self) -> None:
        position = self._log.first_offset
        while position < self._log.synced_end:
            parts = self.read(position)
            self._count(parts)
            position = parts[-1].position + 1

    def _count(self, parts: Sequence[ParkedRecord]) -> None:
        """Takes durable parts into account. Both are replaced, never changed: another thread may be reading them."""
        bounds, sources = dict(self.bounds), dict(self.sources)
        for part in parts:
            record = part.record
            bounds[record.log_id] = record.offset + 1
            sources.setdefault((record.log_id, record.entry.source), record.offset)
        self.bounds, self.sources = bounds, sources


def side_directory(data: str, table: TableName) -> str:
    """Nested, because both parts together may be longer than a file's name; the parts are letters, digits and `_`."""
    return f"{data}/{FOLDER}/{table.namespace}/{table.name}"


def parked_tables(disk: Disk, data: str) -> list[TableName]:
    """The tables with a side log that is not done."""
    return [table for table, files in _side_logs(disk, data) if _is_parked(files)]


def take_up_parked(disk: Disk, data: str) -> list[TableName]:
    """The same, for the writer that starts: what removals left that were interrupted goes. Raises OSError."""
    found = []
    for table, files in _side_logs(disk, data):
        if _DONE in files:
            finish_removal(disk, side_directory(data, table))
        elif _is_parked(files):
            found.append(table)
    return found


def _side_logs(disk: Disk, data: str) -> Iterator[tuple[TableName, list[str]]]:
    for namespace in _names(disk, f"{data}/{FOLDER}"):
        for name in _names(disk, f"{data}/{FOLDER}/{namespace}"):
            table = TableName(namespace, name)
            yield table, _names(disk, side_directory(data, table))


def _is_parked(files: list[str]) -> bool:
    return bool(segment_names(files)) and _DONE not in files


def finish_removal(disk: Disk, directory: str) -> None:
    """Removes what is left of a side log that is done. `done` goes last: until then nobody takes the rest for a log."""
    files = _names(disk, directory)
    if _DONE not in files:
        return
    for file in files:
        if file != _DONE:
            hit("park.before_unlink")
            disk.unlink(f"{directory}/{file}")
    disk.sync_directory(directory)
    hit("park.before_last_unlink")
    disk.unlink(f"{directory}/{_DONE}")
    disk.sync_directory(directory)


def _make_ways(disk: Disk, data: str, table: TableName) -> None:
    """Each directory's name is synced before anything lies in it."""
    for above, directory in ((data, f"{data}/{FOLDER}"), (f"{data}/{FOLDER}", f"{data}/{FOLDER}/{table.namespace}")):
        try:
            disk.make_directories(directory)
            disk.sync_directory(above)
        except OSError as error:
            raise LogFailed(f"{directory}: {error.strerror}") from error


def _make(disk: Disk, path: str) -> None:
    with suppress(FileExistsError):
        file = disk.create(path)
        try:
            file.sync()
        finally:
            file.close()


def _names(disk: Disk, directory: str) -> list[str]:
    try:
        return disk.list(directory)
    except (FileNotFoundError, NotADirectoryError):
        return []
