"""The circuit breaker by itself: what each moment makes of it, and who may try when."""

from __future__ import annotations

from dolake.iceberg.breaker import FAILURES_MAX, Breaker, Circuit


def opened(now_s: float = 0.0) -> Breaker:
    breaker = Breaker()
    for _ in range(FAILURES_MAX):
        assert breaker.admits(now_s)
        breaker.failed("away", "no_answer", now_s, 0, is_step=breaker.enter())
    return breaker


def test_it_opens_after_so_many_failures_in_a_row() -> None:
    breaker = Breaker()
    for _ in range(FAILURES_MAX - 1):
        breaker.failed("away", "", 1, 0, is_step=breaker.enter())
    breaker.answered()
    for number in range(FAILURES_MAX):
        assert breaker.state is Circuit.CLOSED, number
        breaker.failed("away", "", 1, 0, is_step=breaker.enter())
    assert breaker.state is Circuit.OPEN


def test_open_it_admits_one_at_a_time_at_each_step_and_each_step_is_longer() -> None:
    breaker, now_s, waited = opened(), 0.0, []
    for _ in range(8):
        assert not breaker.admits(breaker.next_try_s - 0.001)
        waited.append(breaker.next_try_s - now_s)
        now_s = breaker.next_try_s
        assert breaker.admits(now_s)
        assert breaker.enter()
        assert breaker.state is Circuit.HALF_OPEN
        assert not breaker.admits(now_s + 1000), "a second one goes beside the first"
        breaker.failed("away", "", now_s, 0, is_step=True)
    assert [round(one, 3) for one in waited] == [0.2, 0.4, 0.8, 1.6, 3.2, 4.0, 4.0, 4.0]


def test_an_answer_closes_it_whoever_gets_it() -> None:
    breaker = opened()
    breaker.answered()  # By one that set out before.
    assert (breaker.state, breaker.failure_count, breaker.reason) == (Circuit.CLOSED, 0, "")
    assert breaker.admits(0)
    assert not breaker.enter()


def test_a_failure_that_comes_back_late_is_no_step() -> None:
    breaker = opened()
    before = breaker.failure_count, breaker.next_try_s
    breaker.failed("the same", "", 0.1, 0, is_step=False)
    assert (breaker.failure_count, breaker.next_try_s) == before
    now_s = breaker.next_try_s
    assert breaker.enter()
    breaker.failed("the same", "", now_s, 0, is_step=False)
    assert breaker.state is Circuit.HALF_OPEN, "the one that tries is still under way"


def test_a_try_that_was_cut_short_leaves_the_step_to_another() -> None:
    breaker = opened()
    now_s = breaker.next_try_s
    breaker.left(is_step=breaker.enter())
    assert breaker.state is Circuit.OPEN
    assert breaker.admits(now_s)
    breaker.answered()
    breaker.left(is_step=True)  # Its straggler.
    assert breaker.state is Circuit.CLOSED


def test_it_says_since_when_why_and_when_it_is_tried_next() -> None:
    breaker = opened(10.0)
    assert breaker.describe(10.05) == {
        "state": "open",
        "failures": FAILURES_MAX,
        "failingSeconds": 0.1,
        "nextTrySeconds": 0.1,
        "code": "no_answer",
        "reason": "away",
    }
    breaker.answered()
    said = breaker.describe(20)
    assert (said["state"], said["failures"], said["failingSeconds"], said["nextTrySeconds"], said["reason"]) == ("closed", 0, 0.0, None, "")
