"""A mirror table as it must be: a dict that the log's events are folded into, one after the other, as far as the table is committed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date
from typing import Any, cast

import orjson
from pyiceberg.manifest import DataFile, DataFileContent

from dolake.iceberg.entries import fetch_entries, fetch_manifests, is_live, partition_of
from dolake.iceberg.file_io import StoreFileIO
from dolake.iceberg.metadata import LoadedTable
from dolake.parquet.letters import REPLAYED
from dolake.storage.store import ObjectStore
from dolake.writer.kinds import Counts
from tests.simulation.invariants import Event, Objects, read_rows
from tests.simulation.records import Logged

Values = dict[str, Any]
KEY = "id"
REASONS = ("no_key", "null", "unchanged_without_row", "truncate_of_shared_table")
"""Why a mirror refuses what its changelog takes."""


@dataclass(frozen=True)
class Row:
    """What a key's row may be: mostly one thing; `options` are more where others had put several rows of the key in."""

    options: tuple[Values, ...]
    source: str


@dataclass
class Mirror:
    """`rows`: key → its rows, one but where others have put in more. `strict`: nobody else's events decide what becomes of one.

    `many_logs`: then others' rows may be committed before or after a source's TRUNCATE, and with the next start the other way round: a
    verdict that stands on what came behind it, by an order that never landed, outlives that order (seeds 311938, 342993).
    """

    name: str
    shared_truncate: bool
    strict: bool
    many_logs: bool = False
    kept: set[str] = field(default_factory=set)  # sources a TRUNCATE of which was refused
    rows: dict[Any, list[Row]] = field(default_factory=dict)
    sources: set[str] = field(default_factory=set)
    accepted: int = 0
    seen: Counter[Event] = field(default_factory=Counter)
    last: dict[tuple[Any, str, str], int] = field(default_factory=dict)  # by key (None: all), source and epoch: the last event's number
    is_foreign: bool = False
    delete_count: int = 0

    def take(self, logged: Logged, verdict: Mapping[str, Any] | None) -> Iterator[str]:
        """The next event. `verdict`: the newest that stands on it, if any."""
        self.accepted += 1
        is_out = verdict is not None and verdict["outcome"] != REPLAYED
        if verdict is None:
            self.seen[logged.name] += 1
            if self.seen[logged.name] > 1:
                yield f"I7: {self.name}: {logged.name} is committed twice, now at {logged.spot}"
        if is_out:
            assert verdict is not None
            yield from (f"I13: {self.name}: {logged.event} at {logged.spot} {rule}" for rule in self._wrongly_out(logged, verdict))
            if logged.event["operation"] == "TRUNCATE":
                self.kept.add(logged.source)
        else:
            later = max(self._last(logged, key) for key in (*_keys(logged.event), None))
            if verdict is not None and later > logged.event["sequence"]:
                yield f"I8: {self.name}: {logged.event} was sent again and is applied, event {later} was there before"
            yield from (f"I8: {self.name}: {logged.event} at {logged.spot} {rule}" for rule in self._apply(logged))
            for key in _keys(logged.event) or [None]:
                self.last[key, logged.source, logged.epoch] = max(self._last(logged, key), logged.event["sequence"])
        self.sources.add(logged.source)

    def _last(self, logged: Logged, key: Any) -> int:
        return self.last.get((key, logged.source, logged.epoch), -1)

    def _wrongly_out(self, logged: Logged, verdict: Mapping[str, Any]) -> Iterator[str]:
        """What speaks against a refusal."""
        event, reason = logged.event, verdict["reason"]
        image = event.get("after") or event.get("before") or {}
        if reason == "no_key" and image.get(KEY) is not None:
            yield "is refused for want of a key, and has one"
        if reason == "null" and image.get(verdict["field"]) is not None:
            yield f"is refused for a null, and {verdict['field']} is none"
        is_alone = not self.sources - {logged.source} and not self.many_logs
        if reason == "truncate_of_shared_table" and (self.shared_truncate or is_alone):
            yield "is refused, and nobody else has written the table"
        # What is sent again may come by another log, and in one flush before what it was sent after (seed 452007): it is not applied then.
        is_again = verdict["replayed_log"] is not None
        is_known = self.strict and not (self.many_logs and (logged.source in self.kept or is_again))
        if reason == "unchanged_without_row" and is_known and self.rows.get(_old_key(event)):
            yield f"is refused for want of a row, and there is {self.rows[_old_key(event)]}"

    def _apply(self, logged: Logged) -> Iterator[str]:
        event, operation = logged.event, logged.event["operation"]
        if operation == "TRUNCATE":
            others = {row.source for rows in self.rows.values() for row in rows} - {logged.source, ""}
            if others and not self.shared_truncate:
                yield f"takes rows of {sorted(others)}"
            self.rows.clear()
            return
        key = (event.get("after") or event.get("before") or {}).get(KEY)
        if key is None:
            yield "has no key, and is no dead letter"
            return
        if operation == "DELETE":
            self.rows.pop(key, None)
            return
        options: tuple[Values, ...] = (_without_nulls(event["after"]),)
        if unchanged := (event.get("metadata") or {}).get("unchanged"):
            before = [option for row in self.rows.get(_old_key(event), ()) for option in row.options]
            if not before:
                yield "names unchanged columns, is no dead letter, and there is no row"
            kept = [{name: option[name] for name in unchanged if name in option} for option in before]
            options = tuple({**options[0], **values} for values in kept) or options
        self.rows.pop(_old_key(event), None)
        self.rows[key] = [Row(options, logged.source)]

    def check(self, found: Found) -> Iterator[str]:
        """The table's rows against these."""
        by_key: dict[Any, list[Values]] = {}
        for values in found.rows:
            by_key.setdefault(values.get(KEY), []).append(values)
        for key in sorted(by_key.keys() | self.rows.keys(), key=repr):
            here, wanted = by_key.get(key, []), self.rows.get(key, [])
            if len(here) != len(wanted):
                yield f"I8: {self.name}: key {key!r} has the rows {here}, wanted are {wanted}"
            elif len(here) == 1:
                if here[0] not in wanted[0].options:
                    yield f"I8: {self.name}: the row of {key!r} is {here[0]}, wanted is {wanted[0].options}"
                self.rows[key] = [Row((here[0],), wanted[0].source)]
            elif sorted(map(repr, map(_sorted, here))) != sorted(repr(_sorted(row.options[0])) for row in wanted):
                yield f"I8: {self.name}: the rows of {key!r} are {here}, wanted are {wanted}"

    def check_counts(self, table: LoadedTable, rows: int, dead: int) -> Iterator[str]:
        """I13. `rows` are in the table, `dead` events were kept out of it."""
        counts = Counts.of(table.properties)
        if (counts.accepted, counts.dead) != (self.accepted, dead):
            yield f"I13: {table.name} says {counts}, there were {self.accepted} events and {dead} dead letters"
        if counts.rows != rows or min(counts.folded, counts.removed) < 0 or (counts.foreign and not self.is_foreign):
            yield f"I13: {table.name} says {counts}, that is {counts.rows} rows; it has {rows}"

    def copy(self) -> Mirror:
        """As it is now: what comes later changes only one of the two."""
        return replace(
            self, kept=set(self.kept), rows=dict(self.rows), sources=set(self.sources), seen=self.seen.copy(), last=dict(self.last)
        )

    def go_back(self, then: Mirror, *, rewinds: bool) -> set[Event]:
        """A rollback to what it was `then`. Answers with the events that are out: for good, or to be applied again where it rewinds."""
        out = self.seen.keys() - then.seen.keys()
        self.rows = dict(then.rows)
        if rewinds:
            self.accepted, self.seen, self.last = then.accepted, then.seen.copy(), dict(then.last)
        return out

    def adopt(self, found: Found) -> None:
        """Others have changed the table's rows: that is what it has now."""
        self.is_foreign = True
        owners = {key: row.source for key, rows in self.rows.items() for row in rows}
        self.rows = {}
        for values in found.rows:
            key = values.get(KEY)
            self.rows.setdefault(key, []).append(Row((values,), owners.get(key, "")))


def _keys(event: Mapping[str, Any]) -> list[Any]:
    """The keys that an event speaks of; none for a TRUNCATE."""
    return [image[KEY] for image in (event.get("before"), event.get("after")) if image and image.get(KEY) is not None]


def _old_key(event: Mapping[str, Any]) -> Any:
    """The key that an update takes away; its own where it changes none."""
    before = (event.get("before") or {}).get(KEY) if event["operation"] == "UPDATE" else None
    return before if before is not None else (event.get("after") or {}).get(KEY)


def _without_nulls(values: Mapping[str, Any]) -> Values:
    return {name: value for name, value in values.items() if value is not None}


def _as_sent(values: Values) -> Values:
    """A day as a source says it."""
    return {name: value.isoformat() if isinstance(value, date) else value for name, value in values.items()}


def _sorted(values: Values) -> Values:
    return dict(sorted(values.items()))


@dataclass
class Found:
    """What a reader finds in a table. `breaches`: what is wrong with its files."""

    rows: list[Values] = field(default_factory=list)
    breaches: list[str] = field(default_factory=list)
    row_count: int = 0
    delete_count: int = 0


Scope = tuple[int, tuple[Any, ...]]
"""Partition spec and partition."""


@dataclass
class MirrorReader:
    """Reads tables with position deletes as Iceberg defines them, past every door. Files never change: each is read once."""

    objects: Objects
    _rows: dict[str, list[Values]] = field(default_factory=dict)
    _deletes: dict[str, list[tuple[str, int]]] = field(default_factory=dict)
    _manifests: dict[str, list[tuple[DataFile, int, int]]] = field(default_factory=dict)

    def read(self, table: LoadedTable) -> Found:
        found = Found()
        head = table.head
        if head is None:
            return found
        data: dict[str, tuple[Scope, int]] = {}
        deletes: list[tuple[DataFile, int, int]] = []
        for file, sequence, snapshot_id in self._files(head):
            if file.content == DataFileContent.DATA:
                if file.file_path in data:
                    found.breaches.append(f"{table.name}: {file.file_path} is listed twice")
                data[file.file_path] = (_scope(file), sequence)
            else:
                deletes.append((file, sequence, snapshot_id))
        gone: set[tuple[str, int]] = set()
        fresh: list[tuple[str, int]] = []
        for file, sequence, snapshot_id in deletes:
            found.delete_count += file.record_count if file.content == DataFileContent.POSITION_DELETES else 0
            is_new = snapshot_id == head["snapshot-id"]
            for path, position in self._positions(file):
                known = data.get(path)
                if known is not None and known[0] == _scope(file) and known[1] <= sequence:
                    if is_new:
                        fresh.append((path, position))
                    else:
                        gone.add((path, position))
                elif is_new:
                    found.breaches.append(f"{table.name}: {file.file_path} of {_scope(file)} deletes from {path}, which is {known}")
        twice = [place for place in fresh if place in gone] + [place for place, count in Counter(fresh).items() if count > 1]
        if twice:
            found.breaches.append(f"{table.name}: {twice[0]} is deleted twice")
        gone |= set(fresh)
        for path in data:
            rows = self._data(path)
            found.row_count += len(rows)
            found.rows += [row for place, row in enumerate(rows) if (path, place) not in gone]
        wrong = [place for place in fresh if place[1] >= len(self._data(place[0]))]
        found.breaches += [f"{table.name}: row {position} of {path} is deleted, and there is none" for path, position in wrong]
        return found

    def live(self, table: LoadedTable) -> dict[str, tuple[DataFile, list[tuple[int, Values]]]]:
        """Data files with the places and values of the rows that are left."""
        head = table.head
        assert head is not None
        files = list(self._files(head))
        gone = {place for file, _, _ in files if file.content == DataFileContent.POSITION_DELETES for place in self._positions(file)}
        return {
            file.file_path: (
                file,
                [(place, row) for place, row in enumerate(self._data(file.file_path)) if (file.file_path, place) not in gone],
            )
            for file, _, _ in files
            if file.content == DataFileContent.DATA
        }

    def _files(self, head: Mapping[str, Any]) -> Iterator[tuple[DataFile, int, int]]:
        """Live files, each with its data sequence number and the snapshot that added it."""
        store = StoreFileIO(cast(ObjectStore, self.objects))
        for manifest in fetch_manifests(store, head["manifest-list"]):
            key = f"{manifest.manifest_path} {manifest.sequence_number}"
            if key not in self._manifests:
                entries = [entry for entry in fetch_entries(store, manifest) if is_live(entry)]
                self._manifests[key] = [(entry.data_file, entry.sequence_number or 0, entry.snapshot_id or 0) for entry in entries]
            yield from self._manifests[key]

    def _data(self, path: str) -> list[Values]:
        if path not in self._rows:
            self._rows[path] = [_as_sent(_without_nulls(row)) for row in read_rows(self.objects.get(path))]
        return self._rows[path]

    def _positions(self, file: DataFile) -> list[tuple[str, int]]:
        if file.content != DataFileContent.POSITION_DELETES:
            return []
        if file.file_path not in self._deletes:
            self._deletes[file.file_path] = [(row["file_path"], row["pos"]) for row in read_rows(self.objects.get(file.file_path))]
        return self._deletes[file.file_path]


def _scope(file: DataFile) -> Scope:
    return file.spec_id, partition_of(file)


def check_required(table: LoadedTable, found: Found) -> Iterator[str]:
    """What the table's schema says is never null."""
    required = [column["name"] for column in table.schema["fields"] if column["required"]]
    for values in found.rows:
        if missing := [name for name in required if name not in values]:
            yield f"{table.name}: the row {values} has no {missing}, which the table's schema requires"


def check_totals(table: LoadedTable, found: Found) -> Iterator[str]:
    """What the head's summary says is there."""
    head = table.head
    if head is None or "total-records" not in head["summary"]:
        return
    said = int(head["summary"]["total-records"]), int(head["summary"]["total-position-deletes"])
    if said != (found.row_count, found.delete_count):
        yield f"{table.name}: the summary says {said} rows and position deletes, there are {(found.row_count, found.delete_count)}"


def fold_changes(
    rows: Sequence[Mapping[str, Any]], kept_out: set[tuple[str, int, int]], columns: Sequence[str], *, shared_truncate: bool
) -> dict[Any, Values]:
    """The mirror that a changelog's rows make, those left out that the mirror refused. No other source's events may bear on a key.

    A TRUNCATE that is not shared took its source's rows: others had none when it was committed, whatever stands before it here.
    """
    folded: dict[Any, Values] = {}
    source_of: dict[Any, str] = {}
    for row in sorted(rows, key=lambda row: (row["_cdc_log"], row["_cdc_offset"], row["_cdc_index"])):
        if (row["_cdc_log"], row["_cdc_offset"], row["_cdc_index"]) in kept_out:
            continue
        operation, key = row["_cdc_operation"], row.get(KEY)
        if operation == "TRUNCATE":
            for gone in [one for one in folded if shared_truncate or source_of[one] == row["_cdc_source"]]:
                del folded[gone]
        elif operation == "DELETE":
            folded.pop(key, None)
        else:
            source_of[key] = row["_cdc_source"]
            old = orjson.loads(row["_cdc_key_before"])[KEY] if row["_cdc_key_before"] is not None else key
            before = folded.pop(old, {})
            values = {name: row[name] for name in columns if row.get(name) is not None}
            folded[key] = {**values, **{name: before[name] for name in row["_cdc_unchanged"] or () if name in before}}
    return folded
