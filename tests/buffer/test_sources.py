"""What a record changes in what the log knows."""

from __future__ import annotations

from dolake.buffer.segment import LogState, Sibling
from dolake.buffer.sources import advance, apply_entries, epoch_hash, siblings_entry, trim_entry
from dolake.model import RECENT_CONTENTS, Entry, RecordKind, SourceState
from tests.buffer.logtools import entry


def test_a_new_epoch_starts_afresh_and_ends_the_old_one_for_good() -> None:
    sources: dict[str, SourceState] = {}
    advance(sources, [entry(7), entry(8), entry(0, epoch="b"), entry(4, epoch="c")])
    state = sources["orders-db"]
    assert (state.epoch, state.last_sequence, state.last_event_sequence, state.last_lsn) == ("c", 4, 14, "0/4")
    assert state.ended_epochs == {epoch_hash(""), epoch_hash("b")}
    assert state.contents == {4: entry(4, epoch="c").content}


def test_states_that_were_handed_out_never_change() -> None:
    sources: dict[str, SourceState] = {}
    advance(sources, [entry(0)])
    before = sources["orders-db"]
    advance(sources, [entry(1), entry(0, epoch="b")])
    assert (before.last_sequence, before.epoch, before.contents, before.ended_epochs) == (0, "", {0: entry(0).content}, set())


def test_the_oldest_contents_are_forgotten_first() -> None:
    sources: dict[str, SourceState] = {}
    advance(sources, [entry(number) for number in range(RECENT_CONTENTS + 5)])
    assert list(sources["orders-db"].contents) == list(range(5, RECENT_CONTENTS + 5))


def test_an_empty_batch_and_a_schema_keep_the_position_of_events() -> None:
    sources: dict[str, SourceState] = {}
    empty = Entry(RecordKind.BATCH, "orders-db", "", 1, 0, 9, b"")
    schema = Entry(RecordKind.SCHEMA, "orders-db", "", 2, 0, 8, b"")
    advance(sources, [entry(0), empty, schema])
    state = sources["orders-db"]
    assert (state.last_sequence, state.last_event_sequence, state.last_lsn) == (2, 2, "0/0")


def test_the_logs_own_records_are_no_source() -> None:
    state = LogState("log-1")
    apply_entries(state, [trim_entry(9), siblings_entry([Sibling("a", "/a")]), trim_entry(4), siblings_entry([Sibling("b", "/b")])])
    assert (state.sources, state.bound, state.siblings) == ({}, 9, (Sibling("b", "/b"),))
