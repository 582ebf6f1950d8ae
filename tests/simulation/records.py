"""What the logs hold, read off the platter: the events of a table in a range of offsets, whatever the daemon makes of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson
import xxhash

from dolake.buffer.record import decode_record
from dolake.buffer.segment import parse_name, scan_segment
from dolake.errors import LogCorrupt
from dolake.model import Entry, RecordKind, TableName
from tests.simulation.disk import Inode, SimDisk

Spot = tuple[str, int, int]
"""Log, offset, index: where an event lies."""


@dataclass(frozen=True)
class Logged:
    """One event of one record: who sent it first, and the event as it was received."""

    spot: Spot
    source: str
    epoch: str
    event: Mapping[str, Any]

    @property
    def name(self) -> tuple[str, str, int]:
        return self.source, self.epoch, self.event["sequence"]


@dataclass(frozen=True)
class _Segment:
    log_id: str
    end: int
    entries: tuple[tuple[int, Entry], ...]


@dataclass
class Records:
    """Of one world's logs. What is trimmed is remembered."""

    disk: SimDisk
    directories: tuple[str, ...]
    found: dict[tuple[str, int], Entry] = field(default_factory=dict)
    _scanned: dict[str, _Segment | None] = field(default_factory=dict)

    def durable_end(self, log_id: str) -> int:
        """The end of a log as a power cut would leave it now."""
        ends = [segment.end for segment in self._segments() if segment.log_id == log_id]
        return max(ends, default=0)

    def holds(self, log_id: str, offset: int) -> bool:
        """Whether a log would have the record after a power cut now."""
        return any(segment.log_id == log_id and any(offset == place for place, _ in segment.entries) for segment in self._segments())

    def look(self) -> None:
        for segment in self._segments():
            self.found.update({(segment.log_id, offset): entry for offset, entry in segment.entries})

    def note_unlinked(self, path: str, data: bytes) -> None:
        if (segment := self._scan(path, data)) is not None:
            for offset, entry in segment.entries:
                self.found.setdefault((segment.log_id, offset), entry)

    def of(self, table: str, log_id: str, start: int, end: int) -> Iterator[Logged]:
        """The events of `table` (as its source calls it) at these offsets, in their order."""
        for offset in range(start, end):
            entry = self.found.get((log_id, offset))
            if entry is None or entry.kind != RecordKind.BATCH or all(str(TableName.parse(text)) != table for text in entry.tables):
                continue
            message = orjson.loads(entry.payload)
            letters = message.get("letters")
            source, epoch = (letters["source"], letters["epoch"]) if letters else (entry.source, entry.epoch)
            for index, event in enumerate(message["events"]):
                if str(TableName.parse(event["table"])) == table:
                    yield Logged((log_id, offset, index), source, epoch, event)

    def _segments(self) -> Iterator[_Segment]:
        for path in sorted(self.disk.durable_names):
            node = self.disk.durable_names[path]
            if isinstance(node, Inode) and path.startswith(tuple(directory + "/" for directory in self.directories)):
                segment = self._scan(path, bytes(node.durable))
                if segment is not None:
                    yield segment

    def _scan(self, path: str, data: bytes) -> _Segment | None:
        name = parse_name(path.rsplit("/", 1)[-1])
        if name is None:
            return None
        key = f"{path} {xxhash.xxh3_128_hexdigest(data)}"
        if key not in self._scanned:
            entries: list[tuple[int, Entry]] = []

            def visit(_: object, frame: Any) -> None:
                record = decode_record(frame, "", path)
                entries.append((record.offset, record.entry))

            try:
                segment = scan_segment(data, path, name, visit)
                self._scanned[key] = _Segment(segment.state.log_id, segment.end, tuple(entries))
            except LogCorrupt:
                self._scanned[key] = None
        return self._scanned[key]
