from __future__ import annotations

from dolake.metrics import Metrics
from dolake.model import TableName
from dolake.writer.lag import TableLags

A, B = TableName.parse("a"), TableName.parse("b")


def test_each_tables_events_are_counted_from_what_it_has_committed_of_each_log():
    lags, metrics = TableLags(), Metrics()
    lags.note(A, "x", 0, 10, now_s=1.0)
    lags.note(A, "y", 0, 3, now_s=2.0)
    lags.note(B, "x", 0, 5, now_s=3.0)
    lags.note(B, "x", 1, 6, now_s=4.0)
    assert lags.observe(metrics, {A: {"x": 1}, B: {}}, now_s=11.0) == {"x": 11, "y": 3}
    shown = metrics.values()
    assert shown["dolake_table_uncommitted_events_count"] == [[["default.a"], 3], [["default.b"], 11]]
    assert shown["dolake_table_uncommitted_age_seconds"] == [[["default.a"], 9.0], [["default.b"], 8.0]]
    assert shown["dolake_table_committed_offset"] == [[["default.a", "x"], 1]]
    assert lags.observe(metrics, {A: {"x": 1, "y": 1}, B: {"x": 2}}, now_s=11.0) == {"x": 0, "y": 0}
    assert [value for _, value in metrics.values()["dolake_table_uncommitted_age_seconds"]] == [0, 0]


def test_what_was_last_observed_of_a_table_can_be_asked():
    lags = TableLags()
    lags.note(A, "x", 0, 10, now_s=1.0)
    lags.note(A, "y", 0, 3, now_s=2.0)
    assert lags.of(A) == (0, 0.0)
    lags.observe(Metrics(), {A: {}}, now_s=5.0)
    assert lags.of(A) == (13, 4.0)
    lags.observe(Metrics(), {A: {"x": 1}}, now_s=6.0)
    assert lags.of(A) == (3, 4.0)
    lags.observe(Metrics(), {}, now_s=7.0)
    assert lags.of(A) == (0, 0.0)


def test_a_table_that_is_gone_is_shown_no_more():
    lags, metrics = TableLags(), Metrics()
    lags.note(A, "x", 0, 10, now_s=1.0)
    lags.observe(metrics, {A: {"x": 0}, B: {"x": 4}}, now_s=1.0)
    assert lags.observe(metrics, {B: {"x": 4}}, now_s=1.0) == {}
    for name in ("dolake_table_uncommitted_events_count", "dolake_table_uncommitted_age_seconds", "dolake_table_committed_offset"):
        assert [labels[0] for labels, _ in metrics.values()[name]] == ["default.b"]
