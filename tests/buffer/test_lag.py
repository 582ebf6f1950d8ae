from __future__ import annotations

from dolake.buffer.lag import _STEPS_MAX, Lag


def test_events_behind_the_bound_are_counted_to_the_record():
    lag = Lag()
    for offset, events in enumerate([5, 0, 7, 1]):
        lag.note(offset, events, now_s=10.0 + offset)
    assert (lag.event_count, lag.age_s(20.0)) == (13, 10.0)
    lag.follow(1)
    assert (lag.event_count, lag.age_s(20.0)) == (8, 9.0)
    lag.follow(3)
    assert (lag.event_count, lag.age_s(20.0)) == (1, 7.0)
    lag.follow(0)  # A bound that falls brings nothing back.
    assert lag.event_count == 1
    lag.follow(99)
    assert (lag.event_count, lag.age_s(20.0)) == (0, 0.0)


def test_a_record_that_is_read_again_counts_once():
    lag = Lag()
    for offset in (4, 5, 4, 5, 6):
        lag.note(offset, 10, now_s=1.0)
    assert lag.event_count == 30


def test_a_bound_that_does_not_move_costs_no_more_memory_and_no_exactness_of_the_sum():
    lag = Lag()
    for offset in range(3 * _STEPS_MAX):
        lag.note(offset, 2, now_s=float(offset))
    assert lag.event_count == 6 * _STEPS_MAX
    assert len(lag._steps) == _STEPS_MAX
    lag.follow(100)
    assert (lag.event_count, lag.age_s(100.0)) == (6 * _STEPS_MAX - 200, 0.0)
    lag.follow(3 * _STEPS_MAX)
    assert lag.event_count == 0
