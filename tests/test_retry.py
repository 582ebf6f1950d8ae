"""The one retry policy: it grows, it is bounded, and chance keeps those who failed together apart."""

from __future__ import annotations

import itertools

from dolake.retry import RETRY, RetryPolicy


def test_delays_double_up_to_the_longest() -> None:
    assert [RETRY.delay_s(attempt, 0) for attempt in range(1, 10)] == [0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 4.0, 4.0]


def test_chance_takes_up_to_its_share_of_a_delay() -> None:
    for attempt, random in itertools.product((1, 3, 8, 50), (0.0, 0.25, 0.999)):
        whole_s = RETRY.delay_s(attempt, 0)
        assert RETRY.delay_s(attempt, random) == whole_s * (1 - 0.5 * random)
        assert whole_s / 2 < RETRY.delay_s(attempt, random) <= whole_s


def test_a_million_failures_wait_as_long_as_forty() -> None:
    assert RetryPolicy(longest_s=1e6).delay_s(10**6, 0) == RetryPolicy(longest_s=1e6).delay_s(40, 0) == 1e6
