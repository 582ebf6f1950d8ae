"""The invariants, as functions that speak: one sentence for each breach, nothing when all is well.

They look at what is really there, past every door: the catalog's rows, the warehouse's objects, the platter's bytes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Protocol, cast

import pyarrow as pa
import pyarrow.parquet as pq
from pyiceberg.manifest import DataFile, DataFileContent, ManifestEntryStatus
from pyiceberg.partitioning import PartitionSpec

from dolake.errors import ObjectMissing
from dolake.iceberg.entries import fetch_entries, fetch_manifests, is_live
from dolake.iceberg.file_io import StoreFileIO
from dolake.iceberg.metadata import CUT, CUT_TABLES, EPOCH, GROUP, INSTANCE, LoadedTable, offsets_in, snapshots_by_id
from dolake.iceberg.points import REWIND
from dolake.parquet.align import schema_from_json
from dolake.parquet.letters import REPLAYED
from dolake.storage.store import ObjectStore
from tests.simulation.faults import Breach


class Objects(Protocol):
    """The warehouse past every door."""

    def get(self, location: str) -> bytes: ...

    def durable_size(self, location: str) -> int | None:
        """Bytes as a power cut would leave them; None if the object would be gone or changed."""
        ...


@dataclass
class Committed:
    """One table as the checks have seen it grow: where each row came from, who owned which epoch, what came last."""

    rows: dict[tuple[str, int, int], Mapping[str, Any]] = field(default_factory=dict)
    owners: dict[int, str] = field(default_factory=dict)
    fresh: list[Mapping[str, Any]] = field(default_factory=list)


def check_change(
    history: Committed,
    before: LoadedTable | None,
    after: LoadedTable,
    *,
    objects: Objects,
    synced_end: Callable[[str], int],
) -> Iterator[str]:
    """What the catalog has just accepted; the rows that came with it are `history.fresh`.

    `synced_end` says what of a log would survive a power cut.
    """
    yield from _check_offsets(before, after, synced_end)
    yield from _check_owner(history, before, after)
    if before is not None and before.uuid != after.uuid:
        yield f"{after.name}: the table's uuid changed"
    snapshot = after.head
    if snapshot is None or (before is not None and before.head_id == snapshot["snapshot-id"]):
        return
    if before is not None and before.head is not None and snapshot["timestamp-ms"] < before.head["timestamp-ms"]:
        yield f"I14: {after.name}: snapshot timestamps go back"
    if offsets_in(snapshot["summary"]) != after.offsets():
        yield f"{after.name}: the snapshot's summary says {offsets_in(snapshot['summary'])}, the properties {after.offsets()}"
    yield from _check_new_rows(history, after, snapshot, objects)


def _reader(objects: Objects) -> StoreFileIO:
    return StoreFileIO(cast(ObjectStore, objects))  # Only ever asked for `get`.


def _check_offsets(before: LoadedTable | None, after: LoadedTable, synced_end: Callable[[str], int]) -> Iterator[str]:
    old = before.offsets() if before is not None else {}
    new = after.offsets()
    rewound = _rewound_to(before, after)
    for log in sorted(old.keys() | new.keys()):
        if new.get(log, 0) < old.get(log, 0) and (rewound is None or new.get(log, 0) != rewound.get(log, 0)):
            yield f"I4: {after.name}: offset of log {log} fell from {old.get(log, 0)} to {new.get(log, 0)}"
        if new.get(log, 0) > old.get(log, 0) and new[log] > synced_end(log.rsplit("/", 1)[-1]):  # A letters' bound is of table/log.
            yield f"I5: {after.name}: committed {new[log]} of log {log}, whose durable end is {synced_end(log)}"


def _rewound_to(before: LoadedTable | None, after: LoadedTable) -> Mapping[str, int] | None:
    """Where a rewind of this very commit takes the offsets back to: those of the snapshot that it names."""
    if after.head is None or before is None or before.head_id == after.head_id or REWIND not in after.head["summary"]:
        return None
    return offsets_in(snapshots_by_id(before.metadata)[int(after.head["summary"][REWIND])]["summary"])


def _check_owner(history: Committed, before: LoadedTable | None, after: LoadedTable) -> Iterator[str]:
    if before is not None and after.owner_epoch < before.owner_epoch:
        yield f"I12: {after.name}: epoch fell from {before.owner_epoch} to {after.owner_epoch}"
    if after.owner_epoch and history.owners.setdefault(after.owner_epoch, after.instance) != after.instance:
        yield f"I14: {after.name}: epoch {after.owner_epoch} has two owners"
    snapshot = after.head
    if snapshot is not None and (snapshot["summary"].get(EPOCH), snapshot["summary"].get(INSTANCE)) != (
        str(after.owner_epoch),
        after.instance,
    ):
        yield f"I12: {after.name}: the head's summary names another owner than the properties"


def _check_new_rows(history: Committed, after: LoadedTable, snapshot: Mapping[str, Any], objects: Objects) -> Iterator[str]:
    named = [(snapshot["manifest-list"], None)]
    counted = 0
    for manifest in fetch_manifests(_reader(objects), snapshot["manifest-list"]):
        named.append((manifest.manifest_path, manifest.manifest_length))
        if manifest.added_snapshot_id != snapshot["snapshot-id"]:
            continue
        for entry in fetch_entries(_reader(objects), manifest):
            if entry.status != ManifestEntryStatus.ADDED or entry.snapshot_id != snapshot["snapshot-id"]:
                continue
            file = entry.data_file
            named.append((file.file_path, file.file_size_in_bytes))
            rows = read_rows(objects.get(file.file_path))
            counted += len(rows) if file.content == DataFileContent.DATA else 0
            if len(rows) != file.record_count:
                yield f"I10: {file.file_path} holds {len(rows)} rows, its entry says {file.record_count}"
            if file.content == DataFileContent.DATA:
                history.fresh += rows
                yield from _check_partition(after, manifest.partition_spec_id, file, rows)
    yield from _check_objects(named, objects)
    if counted != int(snapshot["summary"].get("added-records", 0)):
        yield f"I13: {after.name}: the summary says {snapshot['summary'].get('added-records')} rows were added, {counted} were"


def is_rewrite(table: LoadedTable) -> bool:
    """Whether the head is a snapshot of a compaction of ours."""
    return table.head is not None and "dolake.maintenance" in table.head["summary"]


def check_rewrite(history: Committed, after: LoadedTable) -> Iterator[str]:
    """I9: what came with a rewrite was there before; that nothing is missing is seen by whoever looks at the whole table.

    Of a mirror no rows are kept here: its every snapshot is read whole. (What deletes others left behind, of rows that are gone, go
    with a rewrite, so that its counts alone do not add up.)
    """
    for row in history.fresh if history.rows else ():
        place = (row["_cdc_log"], row["_cdc_offset"], row["_cdc_index"])
        before = history.rows.get(place)
        if before is None or any(row.get(name) != value for name, value in before.items()):
            yield f"I9: {after.name}: a rewrite made {row} of {before}"
    summary = after.head["summary"] if after.head is not None else {}
    net = int(summary.get("added-records", 0)) - int(summary.get("deleted-records", 0))
    gone = int(summary.get("added-position-deletes", 0)) - int(summary.get("removed-position-deletes", 0))
    if history.rows and net != gone:
        yield f"I9: {after.name}: a rewrite changed the number of rows by {net - gone}"
    history.fresh.clear()


def named_objects(table: LoadedTable, objects: Objects) -> Iterator[str]:
    """What the retained snapshots of a table need, as far as it can be read: manifest lists, manifests, live files."""
    for snapshot in table.metadata.get("snapshots") or ():
        yield snapshot["manifest-list"]
        try:
            for manifest in fetch_manifests(_reader(objects), snapshot["manifest-list"]):
                yield manifest.manifest_path
                yield from (entry.data_file.file_path for entry in fetch_entries(_reader(objects), manifest) if is_live(entry))
        except ObjectMissing:  # It was purged before, and told.
            continue


def note_rows(history: Committed, before: LoadedTable | None, after: LoadedTable) -> Iterator[str]:
    """Takes the rows that came last into a changelog table's history."""
    old, new = before.offsets() if before is not None else {}, after.offsets()
    for row in history.fresh:
        log, offset, _ = place = (row["_cdc_log"], row["_cdc_offset"], row["_cdc_index"])
        if place in history.rows:
            yield f"I7: {after.name}: the row at {place} is committed twice"
        if not old.get(log, 0) <= offset < new.get(log, 0):
            yield f"I7: {after.name}: a row of offset {offset} came with the range {old.get(log, 0)}..{new.get(log, 0)} of log {log}"
        history.rows[place] = row


def _check_partition(after: LoadedTable, spec_id: int, file: DataFile, rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """New files are of the table's own spec, and every row in one has the partition that the file's entry states."""
    if spec_id != after.spec["spec-id"] and not is_rewrite(after):  # What a rewrite was to write was decided when it began.
        yield f"{after.name}: {file.file_path} is of spec {spec_id}, the table's is {after.spec['spec-id']}"
    stated = next(one for one in after.metadata["partition-specs"] if one["spec-id"] == spec_id)
    schema, spec = schema_from_json(after.schema), PartitionSpec.model_validate(stated)
    for place, part in enumerate(spec.fields):
        source = schema.find_field(part.source_id)
        transform = part.transform.transform(source.field_type)
        found = sorted({repr(transform(row[source.name])) for row in rows})
        if found != [repr(file.partition[place])]:
            yield f"{after.name}: {file.file_path} is said to have {part.name} {file.partition[place]!r}, rows in it have {found}"


def _check_objects(named: Iterable[tuple[str, int | None]], objects: Objects) -> Iterator[str]:
    for location, size_bytes in named:
        found = objects.durable_size(location)
        if found is None:
            yield f"I10: a snapshot names {location}, which a power cut would take away"
        elif size_bytes is not None and found != size_bytes:
            yield f"I10: {location} has {found} durable bytes, its entry says {size_bytes}"


@lru_cache(1024)
def read_rows(data: bytes) -> Sequence[Mapping[str, Any]]:
    """All rows of a Parquet file of these bytes, decoded once; raises if a page's checksum does not match (I15).

    By this thread alone, as `dolake.parquet.decode` has it: of 350 processes that gave Arrow a Python file, on a busy machine, 25 died
    at their end.
    """
    rows: list[dict[str, Any]] = (
        pq.ParquetFile(pa.BufferReader(data), pre_buffer=False, page_checksum_verification=True).read(use_threads=False).to_pylist()
    )
    return rows


def check_table(table: LoadedTable, history: Committed, objects: Objects) -> Iterator[str]:
    """The whole table as a reader finds it: every live file once, every row that was ever committed, none besides."""
    found: Counter[tuple[str, int, int]] = Counter()
    files: Counter[str] = Counter()
    for location, rows in live_rows(table, objects):
        files[location] += 1
        found.update((row["_cdc_log"], row["_cdc_offset"], row["_cdc_index"]) for row in rows)
    for location, count in files.items():
        if count > 1:
            yield f"{table.name}: {location} is listed {count} times"
    for place in sorted(found.keys() | history.rows.keys()):
        if found[place] != (place in history.rows):
            yield f"I7: {table.name}: the row at {place} is in the table {found[place]} times"


def live_rows(table: LoadedTable, objects: Objects) -> Iterator[tuple[str, Sequence[Mapping[str, Any]]]]:
    """Each data file of the head, as often as it is named, with its rows."""
    if table.head is not None:
        for manifest in fetch_manifests(_reader(objects), table.head["manifest-list"]):
            for entry in filter(is_live, fetch_entries(_reader(objects), manifest)):
                yield entry.data_file.file_path, read_rows(objects.get(entry.data_file.file_path))


Event = tuple[str, str, int]
"""Source, epoch, event sequence: an event's name."""
NEVER_OUT = "was never kept out"
"""A verdict on a letter that another table kept out: this one has the event already."""
BESIDE = "__changes"
"""How a mirror's changelog is called."""


def named(row: Mapping[str, Any]) -> Event:
    """The event that a row of a changelog, or of the dead letters, is of."""
    return row["_cdc_source"], row["_cdc_epoch"], row["_cdc_sequence"]


@dataclass
class Journal:
    """What the sources know, kept outside the daemon: what they sent, in which frames, and what was acked."""

    sent: dict[Event, Mapping[str, Any]] = field(default_factory=dict)
    acked: set[Event] = field(default_factory=set)
    frames: dict[tuple[str, str, int], list[bytes]] = field(default_factory=dict)
    whole: dict[Event, frozenset[Event]] = field(default_factory=dict)
    transactions: list[frozenset[tuple[str, Event]]] = field(default_factory=list)  # each event with the table that it is of
    trimmed: set[tuple[str, str, int]] = field(default_factory=set)
    committed: set[Event] = field(default_factory=set)
    committed_in: dict[str, set[Event]] = field(default_factory=dict)  # by table
    rewound: set[Event] = field(default_factory=set)  # once committed, and taken out by somebody who has them read again
    has_beside: Callable[[str], bool] = lambda table: False  # whether a table has its changelog beside it, all the time

    def note_sent(self, source: str, epoch: str, sequence: int, frame: bytes) -> None:
        self.frames.setdefault((source, epoch, sequence), []).append(frame)

    def note_committed(self, table: str, fresh: set[Event]) -> None:
        """What the last snapshot of `table` brought, folded, or passed by as dead letters."""
        self.committed_in.setdefault(table, set()).update(fresh)
        if self.has_beside(table.removesuffix(BESIDE)):
            other = table.removesuffix(BESIDE) if table.endswith(BESIDE) else table + BESIDE
            fresh = fresh & self.committed_in.get(other, set())
        self.committed |= fresh

    def check_whole(self, table: str, fresh: set[Event]) -> Iterator[str]:
        """No snapshot holds a part of a transaction. One whose source went on in another epoch is not waited for."""
        for event in sorted(fresh & self.whole.keys()):
            if not self.whole[event] <= self.committed_in[table]:
                yield f"{event} is committed without the rest of its transaction in {table}, {sorted(self.whole[event])}"

    def check_whole_together(self, tables: set[str], is_in: Callable[[str, Event], bool]) -> Iterator[str]:
        """No cut through these tables goes through a transaction of theirs. `is_in`: whether a table's event keeps to it."""
        committed = {(table, event) for table in tables for event in self.committed_in.get(table, ())}
        for parts in self.transactions:
            missing = parts - committed
            is_torn = missing and missing != parts and all(table in tables for table, _ in parts)
            if is_torn and any(is_in(*part) for part in parts - missing) and any(is_in(*part) for part in missing):
                yield f"{min(missing)} is not committed with the rest of its transaction, {sorted(parts - missing)}"

    def expect_committed(self, events: Iterable[Event], why: str) -> None:
        """Raises Breach if the daemon has said that these are in the lake and they are not."""
        missing = sorted(set(events) - self.committed)
        if missing:
            raise Breach(f"{why}, and {missing[0]} is in no table")

    def expect_persisted(self, events: Iterable[Event], why: str) -> None:
        """As `expect_committed`, of what an ack says. It may have been on its way as some of it was rewound: then it was true."""
        self.expect_committed(set(events) - self.rewound, why)

    def check_durable(self, key: tuple[str, str, int], files: Iterable[bytes], *, status: str) -> Iterator[str]:
        """I1, as an ack leaves: the batch's bytes are on the platter, or were until everything of them was committed."""
        sent = self.frames.get(key, [])
        if key not in self.trimmed and not any(frame in data for data in files for frame in sent):
            yield f"I1: an ack ({status}) leaves for {key}, which is not durable"


def cut_names(tables: Iterable[LoadedTable]) -> set[str]:
    """The cuts that these heads are of."""
    summaries = [table.head["summary"] for table in tables if table.head is not None]
    return {f"{summary[GROUP]}/{summary[CUT]}" for summary in summaries if CUT in summary}


def check_cut(changes: Sequence[tuple[LoadedTable | None, LoadedTable]]) -> Iterator[str]:
    """All tables of a cut say its name and time, and have come to the same place of each log that it moved."""
    heads = [(after, after.head) for _, after in changes]
    said = {
        str(after.name): (head["timestamp-ms"], *(head["summary"].get(key) for key in (GROUP, CUT, CUT_TABLES))) if head else None
        for after, head in heads
    }
    if len(set(said.values())) > 1 or any(one is None or one[-1] != str(len(changes)) for one in said.values()):
        yield f"cut: its tables do not say the same of it: {said}"
    ends: dict[str, set[int]] = {}
    for before, after in changes:
        for log_id, end in after.offsets().items():
            if end != (before.offsets().get(log_id, 0) if before is not None else 0):
                ends.setdefault(log_id, set()).add(end)
    for log_id in ends:
        reached = {str(after.name): after.offsets().get(log_id, 0) for _, after in changes}
        if len(set(reached.values())) > 1:
            yield f"cut: its tables are at different places of log {log_id}: {reached}"


def check_events(
    journal: Journal, name: str, history: Committed, letters: Mapping[Event, Sequence[str]], *, is_whole: bool = True
) -> Iterator[str]:
    """Every acked event is in its changelog once, or a dead letter; nothing is there that was not sent; unacked ones once or not at all.

    `letters`: event → what was decided of it, one after the other. Not `is_whole`: it was not fed all the time.
    """
    found: Counter[Event] = Counter()
    sent_to = name.removesuffix(BESIDE)
    for row in history.rows.values():
        event = named(row)
        found[event] += 1
        if event not in journal.sent:
            yield f"{name}: {event} was never sent"
        else:
            expected = journal.sent[event]
            known = expected["row"] if is_whole else {}  # It may not know what was declared while it was not fed.
            if expected["table"] != sent_to or any(row[key] != value for key, value in known.items()):
                yield f"{name}: {event} is {row}, sent was {expected}"
    acked = {event for event in journal.acked if journal.sent[event]["table"] == sent_to} if is_whole else set()
    for event in sorted(found.keys() | letters.keys() | acked):
        outcomes = [outcome for outcome in letters.get(event, ()) if outcome != NEVER_OUT]
        if not outcomes and event not in found and (is_whole or event not in letters):
            yield f"I1: {event} was acked and is not in {name}"
        elif found[event] != (not outcomes or REPLAYED in outcomes) and (is_whole or found[event]):
            yield f"I7: {event} is in {name} {found[event]} times, verdicts on it are {outcomes}"


def check_order(name: str, table: Committed, late: Collection[tuple[str, int, int]]) -> Iterator[str]:
    """A source's events stand in the order in which it sent them, but for those that came `late`, as letters sent again."""
    last: dict[tuple[str, str], int] = {}
    for place in sorted(table.rows.keys() - late):
        row = table.rows[place]
        key = (row["_cdc_source"], row["_cdc_epoch"])
        if row["_cdc_sequence"] <= last.get(key, -1):
            yield f"{name}: {key} event {row['_cdc_sequence']} stands behind {last[key]}"
        last[key] = row["_cdc_sequence"]
