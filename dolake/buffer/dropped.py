"""Notes of dropped tables: below which offsets of the logs a table's events are not wanted any more.

Dropping a table takes it out of the catalog, and with it the offsets that say what of the logs it has. Its events may still lie
in the logs; so that they do not come back as a table of that name, `DIR/dropped.json` keeps, for each dropped table, the first
offset of each log that counts again. The note is on disk before the catalog is touched. A drop that did not happen after it (the
table is still there, with the same uuid) makes it void.

The sources' declarations are kept in it too: a source declares its tables when it connects, not when somebody drops one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

from dolake.errors import LogCorrupt, LogFailed
from dolake.failpoints import hit
from dolake.model import TableName
from dolake.storage.disk import Disk

FILE = "dropped.json"


@dataclass(frozen=True)
class Dropped:
    """`uuid` of the table that was dropped, empty for one that was never committed; `floors` by log; `declared` as table properties."""

    uuid: str = ""
    floors: Mapping[str, int] = field(default_factory=dict)
    declared: Mapping[str, str] = field(default_factory=dict)

    def begins(self, uuid: str | None) -> Mapping[str, int]:
        """The first offset of each log that counts for the table of today, None where there is none."""
        return {} if uuid is not None and uuid == self.uuid else self.floors


def dropped_tables(disk: Disk, data: str) -> dict[TableName, Dropped]:
    """All notes. Blocks. Raises LogCorrupt for a file that this module did not write."""
    path = f"{data}/{FILE}"
    if not disk.exists(path):
        return {}
    file = disk.open(path)
    try:
        size = file.size()
        content = file.read_at(0, size)
    finally:
        file.close()
    try:
        notes: dict[str, dict[str, Any]] = orjson.loads(content)
        return {TableName.in_lake(name): _dropped(note) for name, note in notes.items()}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        reason = f"this is no list of dropped tables ({error}); without it the events of dropped tables would come back: restore it"
        raise LogCorrupt(path=path, position=0, end=size, reason=reason) from None


def note_dropped(disk: Disk, data: str, table: TableName, dropped: Dropped) -> Dropped:
    """Adds a note; on disk when this returns. What an older note of the table said still holds. Blocks. Raises LogFailed, LogCorrupt."""
    notes = dropped_tables(disk, data)
    before = notes.get(table, Dropped())
    floors = {log_id: max(before.floors.get(log_id, 0), dropped.floors.get(log_id, 0)) for log_id in {*before.floors, *dropped.floors}}
    notes[table] = Dropped(dropped.uuid, floors, {**before.declared, **dropped.declared})
    content = orjson.dumps(
        {str(name): {"uuid": note.uuid, "floors": note.floors, "declared": note.declared} for name, note in notes.items()}
    )
    path = f"{data}/{FILE}"
    try:
        hit("drop.before_note")
        _replace(disk, data, path, content)
        hit("drop.after_note")
    except OSError as error:
        raise LogFailed(f"{path}: {error.strerror}") from error
    return notes[table]


def _replace(disk: Disk, data: str, path: str, content: bytes) -> None:
    beside = f"{path}.new"
    if disk.exists(beside):
        disk.unlink(beside)
    file = disk.create(beside)
    try:
        file.write_at(0, [content])
        file.sync()
    finally:
        file.close()
    disk.rename(beside, path)
    disk.sync_directory(data)


def _dropped(note: Mapping[str, Any]) -> Dropped:
    return Dropped(str(note["uuid"]), {str(log): int(offset) for log, offset in note["floors"].items()}, dict(note["declared"]))
