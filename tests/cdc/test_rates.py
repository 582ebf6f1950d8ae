"""The token bucket by itself: what passes, what does not, and what is said of it."""

from __future__ import annotations

import random

import pytest

from dolake.cdc.answer import RateLimit
from dolake.cdc.rates import Bucket, Rates


def test_two_seconds_of_the_rate_may_come_at_once_and_not_one_more():
    bucket = Bucket(1000, 5.0)
    assert all(bucket.take(1, 5.0) for _ in range(2000))
    assert not bucket.take(1, 5.0)
    assert not bucket.take(1, 5.0009)
    assert bucket.take(1, 5.0011)
    assert not bucket.take(1, 5.0011)


def test_what_was_refused_costs_nothing():
    bucket = Bucket(10, 0.0)
    assert bucket.take(20, 0.0)
    assert not any(bucket.take(1, 0.05) for _ in range(100))
    assert bucket.take(1, 0.1)


def test_what_was_dearer_than_thought_is_paid_for_afterwards_but_not_for_ever():
    bucket = Bucket(10, 0.0)
    bucket.charge(25, 0.0)
    assert not bucket.take(1, 0.55)
    assert bucket.take(1, 0.65)
    bucket.charge(1000, 0.65)
    assert bucket.wait_s(1, 0.65) == pytest.approx(2.1)


def test_an_idle_bucket_holds_no_more_than_its_burst():
    bucket = Bucket(10, 0.0)
    assert bucket.take(20, 1e6)
    assert not bucket.take(1, 1e6)


def test_more_than_a_burst_passes_when_the_bucket_is_full_and_is_paid_for_afterwards():
    bucket = Bucket(10, 0.0)
    assert bucket.take(100, 0.0)  # 8 seconds of debt
    assert not bucket.take(1, 8.0)
    assert bucket.take(1, 8.11)
    assert not bucket.take(100, 8.2)
    assert bucket.take(100, 10.2)


@pytest.mark.parametrize("seed", range(20))
def test_over_any_time_no_more_passes_than_the_rate_and_a_burst(seed):
    chance, bucket, now_s, passed = random.Random(seed), Bucket(100, 0.0), 0.0, 0
    for _ in range(5000):
        now_s += chance.expovariate(100)
        cost = chance.randint(1, 5)
        passed += cost if bucket.take(cost, now_s) else 0
        assert passed <= 200 + now_s * 100 + 1e-6
    assert passed > 0.95 * now_s * 100  # and it is used up when more is offered


def test_the_wait_it_names_is_enough_and_not_too_long():
    bucket = Bucket(4, 0.0)
    assert bucket.wait_s(1, 0.0) == 0
    assert bucket.take(8, 0.0)
    assert bucket.wait_s(2, 0.0) == 0.5
    assert not bucket.take(2, 0.49)
    assert bucket.take(2, 0.5)
    assert bucket.wait_s(100, 0.5) == 2.0  # more than it can hold: until it is full


def test_a_delay_is_suggested_below_a_fifth_and_grows_to_the_emptiness():
    bucket = Bucket(100, 0.0)
    assert bucket.suggested_delay_ms(0.0) is None
    assert bucket.take(160, 0.0)
    assert bucket.suggested_delay_ms(0.0) is None
    assert bucket.take(20, 0.0)
    assert bucket.suggested_delay_ms(0.0) == 200
    assert bucket.take(20, 0.0)
    assert bucket.suggested_delay_ms(0.0) == 400
    assert bucket.suggested_delay_ms(0.3) == 100
    assert bucket.suggested_delay_ms(0.4) is None


def test_it_says_what_is_left_and_when_it_is_whole_again():
    bucket = Bucket(100, 0.0)
    assert bucket.state(0.0, 5_000) == RateLimit(limit=200, remaining=200, reset_at=5)
    assert bucket.take(150, 0.0)
    assert bucket.state(0.0, 5_000) == RateLimit(limit=200, remaining=50, reset_at=7)  # 6.5, said in whole seconds
    assert bucket.take(50, 0.0)
    assert bucket.take(1, 0.01)
    assert bucket.state(0.01, 5_010).remaining == 0


def test_the_limit_that_will_refuse_first_is_the_one_spoken_of():
    rates = Rates(1000, 100, 0.0)
    assert rates.tightest(0.0) is rates.messages
    assert rates.events is not None
    assert rates.events.take(150, 0.0)
    assert rates.tightest(0.0) is rates.events
    assert rates.messages.take(1900, 0.0)
    assert rates.tightest(0.0) is rates.messages
    assert Rates(1000, None, 0.0).tightest(0.0).per_s == 1000
