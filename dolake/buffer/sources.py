"""What a log knows after each record: its sources, its siblings, its bound. Pure, so that writing and recovering cannot differ.

The payload of a trim record is `{"bound": offset, "tables_end": offset}`, of a siblings record
`{"siblings": [{"log": id, "directory": path}]}`, the whole list each time.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

from dolake.buffer.segment import LogState, Sibling
from dolake.model import RECENT_CONTENTS, Entry, RecordKind, SourceState, epoch_hash


def trim_entry(bound: int, tables_end: int | None = None) -> Entry:
    """The record that says: nothing below `bound` is needed any more. What goes holds events of tables below `tables_end`, if any."""
    return _own_entry(RecordKind.TRIM, {"bound": bound} if tables_end is None else {"bound": bound, "tables_end": tables_end})


def trimmed_tables_end(entry: Entry) -> int | None:
    """What a trim record says of the tables' events that went; None where there were none, or it is an older one."""
    end = json.loads(entry.payload).get("tables_end")
    return end if isinstance(end, int) else None


def siblings_entry(siblings: Sequence[Sibling]) -> Entry:
    """The record that names the other logs of this daemon, all of them."""
    return _own_entry(RecordKind.SIBLINGS, {"siblings": [{"log": one.log_id, "directory": one.directory} for one in siblings]})


def _own_entry(kind: RecordKind, value: object) -> Entry:
    return Entry(kind, source="", epoch="", sequence=-1, event_count=0, content=0, payload=json.dumps(value).encode())


def apply_entries(state: LogState, entries: Iterable[Entry]) -> None:
    """Moves a log's state on by durable entries, in their order."""
    entries = list(entries)
    for entry in entries:
        if entry.kind is RecordKind.TRIM:
            state.bound = max(state.bound, int(json.loads(entry.payload)["bound"]))
        elif entry.kind is RecordKind.SIBLINGS:
            listed = json.loads(entry.payload)["siblings"]
            state.siblings = tuple(Sibling(one["log"], one["directory"]) for one in listed)
    advance(state.sources, entries)


def advance(sources: dict[str, SourceState], entries: Iterable[Entry]) -> None:
    """Applies durable entries. Each state touched is replaced by a new one: who holds the old one sees no change."""
    touched: dict[str, SourceState] = {}
    for entry in entries:
        if entry.kind not in (RecordKind.BATCH, RecordKind.SCHEMA):
            continue
        state = touched.get(entry.source)
        if state is None:
            known = sources.get(entry.source)
            state = touched[entry.source] = _copy(known) if known else SourceState(entry.source, entry.epoch)
        if entry.epoch != state.epoch:
            ended = state.ended_epochs | {epoch_hash(state.epoch)}
            state = touched[entry.source] = SourceState(entry.source, entry.epoch, ended_epochs=ended)
        _note(state, entry)
    sources.update(touched)


def _note(state: SourceState, entry: Entry) -> None:
    state.last_sequence = entry.sequence
    state.last_event_sequence = max(state.last_event_sequence, entry.last_event_sequence)
    state.last_lsn = entry.last_lsn or state.last_lsn
    state.contents[entry.sequence] = entry.content
    while len(state.contents) > RECENT_CONTENTS:
        del state.contents[next(iter(state.contents))]


def _copy(state: SourceState) -> SourceState:
    return SourceState(
        state.source,
        state.epoch,
        state.last_sequence,
        state.last_event_sequence,
        state.last_lsn,
        dict(state.contents),
        state.ended_epochs,
    )
