from __future__ import annotations

from dolake.ingest.progress import SILENT_S_MAX, WriterView


def test_a_writer_that_never_spoke_has_committed_nothing_and_is_not_ready():
    view = WriterView()
    assert view.low("a") is None
    assert view.committed_bound("a", "s") == 0
    assert not view.is_down
    assert view.reasons(0.0) == ["the writer half is not connected"]


def test_what_is_committed_of_a_source_ends_at_its_first_pending_record_or_where_the_writer_reads():
    view = WriterView()
    view.hear({"type": "progress", "logs": {"a": {"low": 3, "read": 9, "pending": {"s": 5}}}, "store": "ok", "catalog": "ok"}, 1.0)
    assert (view.low("a"), view.committed_bound("a", "s"), view.committed_bound("a", "other"), view.committed_bound("b", "s")) == (
        3,
        5,
        9,
        0,
    )
    assert view.reasons(1.0) == []


def test_nothing_is_committed_beyond_what_was_read_though_a_parked_table_was_looked_through_further():
    """A writer has just started: it has not read what lies between, where others' rows may be."""
    view = WriterView()
    view.hear(
        {"type": "progress", "logs": {"a": {"low": 22, "read": 22, "pending": {"": 31, "parked": 1}}}, "store": "ok", "catalog": "ok"}, 1.0
    )
    assert (view.committed_bound("a", "other"), view.committed_bound("a", "parked")) == (22, 1)


def test_what_is_down_is_said_and_a_silent_writer_is_not_ready():
    view = WriterView()
    view.hear({"type": "progress", "logs": {}, "store": "down", "catalog": "ok", "reason": "connection refused"}, 5.0)
    assert view.is_down
    assert view.reasons(5.0) == ["the store does not answer", "connection refused"]
    view.hear({"type": "progress", "logs": {}, "store": "ok", "catalog": "ok", "reason": ""}, 6.0)
    assert view.reasons(6.0) == []
    assert "has said nothing" in view.reasons(6.0 + SILENT_S_MAX + 1)[0]
    view.hear({"type": "gone"}, 7.0)
    assert not view.is_down
    assert view.reasons(7.0) == ["the writer half is not connected"]
