"""What of the logs waits elsewhere, or went with a dropped table: side logs on their own (I2, I3), and how far they reach."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from dolake.buffer.dropped import dropped_tables
from dolake.buffer.inspect import verify_log
from dolake.buffer.parked import decode_parked, parked_tables, side_directory
from dolake.buffer.tail import LogReader
from dolake.errors import DolakeError
from dolake.model import TableName
from dolake.storage.disk import Disk
from dolake.verify.breach import Breach

READ_BYTES = 16 << 20


@dataclass(frozen=True)
class Elsewhere:
    """By log, the offset below which a table needs nothing of it."""

    table: TableName
    bounds: dict[str, int]


def verify_elsewhere(disk: Disk, data: str) -> Iterator[Breach | Elsewhere]:
    """Breaches as they are found, and how far each parked or dropped table has left the logs."""
    try:
        notes = dropped_tables(disk, data)
    except DolakeError as error:
        yield Breach("I2", data, str(error))
        notes = {}
    for table, note in notes.items():
        yield Elsewhere(table, dict(note.floors))
    for table in parked_tables(disk, data):
        found = list(_verify_side(disk, table, side_directory(data, table)))
        if table in parked_tables(disk, data):  # Else it came back meanwhile: its side log is going, or gone.
            yield from found


def _verify_side(disk: Disk, table: TableName, directory: str) -> Iterator[Breach | Elsewhere]:
    bounds: dict[str, int] = {}
    try:
        for sentence in verify_log(disk, directory):
            yield Breach("I2", str(table), sentence)
        reader = LogReader(disk, directory)
        try:
            position, end = reader.first_offset(), reader.synced_end()
            while position < end and (records := reader.read(position, READ_BYTES)):
                for stored in records:
                    part = decode_parked(stored, directory).record
                    if part.offset < bounds.get(part.log_id, 0):
                        sentence = f"{directory}: offset {part.offset} of log {part.log_id} is parked after {bounds[part.log_id] - 1}"
                        yield Breach("I3", str(table), sentence)
                    bounds[part.log_id] = part.offset + 1
                position = records[-1].offset + 1
        finally:
            reader.close()
    except (DolakeError, OSError) as error:
        yield Breach("I2", str(table), str(error))
    yield Elsewhere(table, bounds)
