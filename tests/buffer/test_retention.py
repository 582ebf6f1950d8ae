"""How long a log keeps what is committed: never shorter than it says, a little longer, and never what is needed again."""

from __future__ import annotations

import random

import pytest

from dolake.buffer.retention import Retention


def test_without_a_time_everything_that_nobody_needs_may_go() -> None:
    assert Retention(0).allowed(17, 0.0) == 17


def test_an_offset_may_go_once_it_was_not_needed_for_the_time() -> None:
    kept = Retention(64.0)
    assert [kept.allowed(10, 0.0), kept.allowed(20, 10.0), kept.allowed(20, 63.9)] == [0, 0, 0]
    assert kept.allowed(20, 64.0) == 10
    assert kept.allowed(30, 73.9) == 10
    assert kept.allowed(30, 74.0) == 20


def test_what_is_needed_again_stays() -> None:
    kept = Retention(64.0)
    kept.allowed(100, 0.0)
    assert kept.allowed(100, 64.0) == 100
    assert kept.allowed(40, 65.0) == 40
    assert kept.allowed(90, 66.0) == 90


@pytest.mark.parametrize("seed", range(20))
def test_nothing_goes_early_and_nothing_stays_for_long(seed: int) -> None:
    dice = random.Random(seed)
    retain_s = dice.choice([1.0, 60.0, 3600.0])
    kept, low, now_s = Retention(retain_s), 0, 0.0
    said: list[tuple[float, int]] = []
    for _ in range(2000):
        now_s += dice.random() * retain_s / 50
        low += dice.randrange(3)
        said.append((now_s, low))
        allowed = kept.allowed(low, now_s)
        assert all(allowed <= older for then_s, older in said if then_s > now_s - retain_s), "early"
        slack_s = retain_s * (1 + 1 / 64 + 2 / 50)
        assert all(allowed >= older for then_s, older in said if then_s < now_s - slack_s), "late"
        assert len(kept._noted) <= 66
