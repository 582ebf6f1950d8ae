"""Tables against what the logs still hold: `dolake verify --against log`.

Every event below a table's offsets is decoded once more, and what a dict makes of them is compared with the table: for a mirror the
row (or no row) of each key that they touch, for a changelog its row of each event. What is at or above the offsets is not looked at;
what is a dead letter is left out; what cannot be known from what is left of the logs is not compared, and counted.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from dolake.errors import DolakeError
from dolake.iceberg.contents import LiveFile
from dolake.iceberg.objects import read_file
from dolake.iceberg.skipped import is_skipped, skipped_in
from dolake.model import DeclaredSchema, TableName
from dolake.parquet.decode import column_names, read_columns
from dolake.parquet.layout import EventChunk
from dolake.parquet.redact import Redactor
from dolake.storage.disk import Disk
from dolake.verify.breach import Breach, Note
from dolake.verify.compare import ChangelogComparison, Compared, MirrorComparison
from dolake.verify.events import PLACE, EventReader, EventsLost
from dolake.verify.fold import UNKNOWN, Fold
from dolake.verify.keys import declared_schemas
from dolake.verify.logs import LogView, TableOf
from dolake.verify.replayed import LogTrimmed, read_events
from dolake.verify.rows import PLACE as PLACE_NAMES
from dolake.verify.tables import Surroundings, TableRows
from dolake.verify.values import RowLoader

_OFFSET_ID = 12  # the field id of `_cdc_offset`
THE_LOG = "the log"
# What is left out of a table's events, or masked: the settings as they are.
RedactorOf = Callable[[TableName, Sequence[str]], Redactor | None]


@dataclass
class _Table(ABC):
    """One table while its events pass. `first_declared`: by log the first declaration that is still there."""

    found: TableRows
    around: Surroundings
    redactor_of: RedactorOf
    first_declared: Mapping[str, int]
    first_offsets: Mapping[str, int]
    counts: Compared = field(default_factory=Compared)
    lost: str = ""

    def __post_init__(self) -> None:
        table, key = self.found.table, self.found.key
        self.offsets, self.begins, self.skipped = table.offsets(), table.begins(), skipped_in(table.properties)
        self.out = frozenset(self.around.judged.kept_out(table))
        primary_key = self._primary_key() if key is None else key.names
        self.reader = EventReader(table, key, primary_key, self.redactor_of(table.name, primary_key))
        self.loader = RowLoader(self.around.store, table)

    def _primary_key(self) -> tuple[str, ...]:
        """Of a changelog: what decides whether an update has changed the key."""
        table = self.found.table
        declared = [tuple(one["primaryKey"]) for one in declared_schemas(table)]
        return tuple(self.around.key_of(table.name)) or (declared[-1] if declared else ())

    def declare(self, declared: DeclaredSchema) -> None:
        self.reader.declare(declared)

    def take(self, chunk: EventChunk) -> Iterator[Breach]:
        """A record's events; those that are not committed or were rolled back, and dead letters, are passed over."""
        if is_skipped(self.skipped, chunk.log, chunk.offset):
            return
        if not self.begins.get(chunk.log, 0) <= chunk.offset < self.offsets.get(chunk.log, 0) or self.lost:
            return
        kept = [place for place, index in enumerate(chunk.indexes) if (chunk.log, chunk.offset, index) not in self.out]
        self.counts.dead_letters += len(chunk.events) - len(kept)
        self.counts.events += len(kept)
        if not kept:
            return
        try:
            yield from self.take_kept(chunk.only(kept))
        except EventsLost as lost:
            self.lost = f"events of offset {chunk.offset} of log {chunk.log} cannot be read any more: {lost}"

    @abstractmethod
    def take_kept(self, chunk: EventChunk) -> Iterator[Breach]: ...

    @abstractmethod
    def finish(self) -> Iterator[Breach | Note]:
        """What has come of it."""

    def note(self, sentence: str) -> Note:
        return Note(str(self.found.table.name), f"not compared with {THE_LOG}: {sentence}")


class _Mirror(_Table):
    def __post_init__(self) -> None:
        super().__post_init__()
        self.fold = Fold(whole=False, log_count=len(self.offsets))

    def take_kept(self, chunk: EventChunk) -> Iterator[Breach]:
        for one in self.reader.read(chunk, self.first_declared.get(chunk.log)):
            self.fold.take(one.event)
        yield from ()

    def finish(self) -> Iterator[Breach | Note]:
        found = self.found
        if self.lost:
            yield self.note(self.lost)
            return
        assert found.key is not None
        assert found.keyed is not None
        assert found.strangers is not None
        comparison = MirrorComparison(
            found.table, found.key, found.keyed, found.strangers, self.loader, self.reader, THE_LOG, _where_of, self.counts
        )
        yield from comparison.run(self.fold, self._columns)

    def _columns(self, names: Sequence[str], origins: Mapping[str, Sequence[Any]]) -> pa.Table:
        count = max((len(column) for column in origins.values()), default=0)
        rows = [{name: (origins[name][number] or {}).get(name) for name in names} for number in range(count)]
        return self.reader.table_of(rows, names)


class _Changelog(_Table):
    def __post_init__(self) -> None:
        super().__post_init__()
        self.comparison = ChangelogComparison(self.found.table, self.loader, self.reader, self._places(), self.counts)

    def _places(self) -> dict[tuple[str, int, int], tuple[LiveFile, int]]:
        """Rows of records that the logs still have, and where they stand; a file that ends before the first of those is not read."""
        places: dict[tuple[str, int, int], tuple[LiveFile, int]] = {}
        first = min(self.first_offsets.values(), default=0)
        assert self.found.deleted is not None
        for file in self.found.files:
            bound = file.upper_bounds.get(_OFFSET_ID)
            if file.kind != "data" or (bound is not None and int.from_bytes(bound, "little", signed=True) < first):
                continue
            data = read_file(self.around.store, file.location, file.size_bytes)
            if not set(PLACE_NAMES) <= set(column_names(data)):
                continue
            read = read_columns(data, PLACE_NAMES)
            columns = [read[name].to_pylist() for name in PLACE_NAMES]
            for position in self.found.deleted.kept(file.location, file.row_count).tolist():
                log, offset, index = (column[position] for column in columns)
                if offset >= self.first_offsets.get(log, 0):
                    places[log, offset, index] = (file, position)
        return places

    def take_kept(self, chunk: EventChunk) -> Iterator[Breach]:
        for one in self.reader.read(chunk, self.first_declared.get(chunk.log)):
            if one.row is UNKNOWN:
                self.counts.unknown_values += 1
                continue
            place = one.row[PLACE]
            record = dict(zip((*PLACE_NAMES, "_cdc_source", "_cdc_epoch"), (*place, chunk.source, chunk.epoch), strict=True))
            yield from self.comparison.take({**one.row, **record}, place, one.event.sure)

    def finish(self) -> Iterator[Breach | Note]:
        yield from self.comparison.finish()
        if self.lost:
            yield self.note(self.lost)


def verify_against_logs(
    disk: Disk,
    data: str,
    tables: Sequence[TableRows],
    around: Surroundings,
    table_of: TableOf,
    redactor_of: RedactorOf,
    counts: Compared,
    progress: Callable[[str], None] = lambda subject: None,
) -> Iterator[Breach | Note]:
    """`tables` are verified already. Adds to `counts` what was looked at."""
    comparing: dict[TableName, _Table] = {}
    for found in tables:
        made = _comparison(found, around, redactor_of)
        if isinstance(made, Note):
            yield made
        elif made is not None:
            comparing[found.table.name] = made
    try:
        for item in read_events(disk, data, around.views, comparing.keys(), table_of, progress):
            table = comparing[item.table]
            if item.declared is not None:
                table.declare(item.declared)
            if item.chunk is not None:
                yield from table.take(item.chunk)
    except (LogTrimmed, DolakeError) as error:
        yield Note(THE_LOG, f"nothing was compared with it: {error}")
        return
    for name, table in comparing.items():
        progress(f"{name} against {THE_LOG}")
        yield from table.finish()
        counts += table.counts


def _comparison(found: TableRows, around: Surroundings, redactor_of: RedactorOf) -> _Table | Note | None:
    """None for what no log feeds: the dead letters, other programs' tables."""
    table = found.table
    about = str(table.name)
    if not table.offsets() or table.name.namespace == "dolake" or found.deleted is None:
        return None
    if not found.whole:
        return Note(about, f"not compared with {THE_LOG}: files of it cannot be trusted")
    sent = table.name.sent
    views: dict[str, LogView] = {view.log_id: view for view in around.views}
    declared: dict[str, int] = {}
    for log_id, view in views.items():
        offsets = [offset for (name, offset), count in view.events.items() if name == sent and not count]
        if offsets:
            declared[log_id] = min(offsets)
    first = {log_id: view.first for log_id, view in views.items()}
    if found.keyed is None and found.key is None and any(column["name"] == "_cdc_log" for column in table.schema["fields"]):
        return _Changelog(found, around, redactor_of, declared, first)
    if found.key is None or found.keyed is None:
        return None
    if found.key.moved:
        return Note(about, f"not compared with {THE_LOG}: its key was another one before")
    return _Mirror(found, around, redactor_of, declared, first)


def _where_of(row: Mapping[str, Any]) -> str:
    _, offset, index = row[PLACE]
    return f"event {index} of offset {offset}"
