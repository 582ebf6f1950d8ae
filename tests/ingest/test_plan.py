"""What is refused at which load, and who goes into a group: all cases, no clock, no log."""

from __future__ import annotations

import random

import pytest

from dolake.ingest.plan import Load, Priority, plan_group, plan_refusal

PARTS = ("backlog", "unsynced", "memory", "lag")


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize(
    ("share", "refused", "refused_beside_high"),
    [
        (0.0, set(), set()),
        (0.90, set(), set()),
        (0.901, {"low"}, {"low"}),
        (0.95, {"low"}, {"low"}),
        (0.951, {"low"}, {"low", "normal"}),
        (0.999, {"low"}, {"low", "normal"}),
    ],
)
def test_the_least_important_are_shed_first_whatever_is_short(part, share, refused, refused_beside_high):
    load = Load(**{part: share})
    for keeps_room, expected in ((False, refused), (True, refused_beside_high)):
        found = {priority: plan_refusal(load, priority, keeps_room=keeps_room) for priority in Priority}
        assert {str(priority) for priority, refusal in found.items() if refusal} == expected
        assert {refusal.reason for refusal in found.values() if refusal} <= {"load_shedding"}


def test_a_full_backlog_refuses_everybody_by_its_name():
    for priority in Priority:
        refusal = plan_refusal(Load(backlog=1.0, memory=1.0), priority, keeps_room=False)
        assert refusal is not None
        assert refusal.reason == "buffer_full"


def test_full_memory_sheds_everybody_and_a_late_loop_or_a_slow_sync_only_the_unimportant():
    for priority in Priority:
        refusal = plan_refusal(Load(memory=1.0), priority, keeps_room=False)
        assert refusal is not None
        assert (refusal.reason, "no memory left" in refusal.message) == ("load_shedding", True)
    for load in (Load(lag=7.0), Load(unsynced=1.4)):
        assert plan_refusal(load, Priority.HIGH, keeps_room=True) is None
        assert plan_refusal(load, Priority.NORMAL, keeps_room=False) is None
        assert plan_refusal(load, Priority.LOW, keeps_room=False) is not None


def test_the_refusal_says_what_is_short_and_how_much():
    refusal = plan_refusal(Load(backlog=0.2, unsynced=0.97, lag=0.3), Priority.LOW, keeps_room=False)
    assert refusal is not None
    assert refusal.message == "what waits for its log is at 97% of its bound: sources of priority low have to wait"


def test_everything_that_fits_goes_in_as_it_came():
    waiting = [("a", 10), ("b", 20), ("a", 5)]
    assert list(plan_group(waiting, 35)) == [0, 1, 2]
    assert list(plan_group([], 35)) == []


def test_the_first_goes_in_however_large_it_is():
    assert list(plan_group([("a", 100)], 35)) == [0]
    assert list(plan_group([("a", 100), ("a", 1)], 35)) == [0]


def test_a_source_with_much_leaves_room_for_everybody_else():
    waiting = [("noisy", 10)] * 100 + [("b", 10), ("c", 10), ("c", 10)]
    chosen = list(plan_group(waiting, 100))
    assert {100, 101, 102} <= set(chosen)
    assert [place for place in chosen if place < 100] == list(range(7))


@pytest.mark.parametrize("seed", range(50))
def test_order_holds_within_a_source_and_shares_are_even(seed):
    chance = random.Random(seed)
    waiting = [(chance.choice("abcd"), chance.randint(1, 30)) for _ in range(chance.randint(0, 60))]
    bytes_max = chance.randint(1, 300)
    chosen = list(plan_group(waiting, bytes_max))
    assert len(set(chosen)) == len(chosen)
    assert bool(chosen) is bool(waiting)
    size = sum(waiting[place][1] for place in chosen)
    assert size <= bytes_max or len(chosen) == 1
    shares = {}
    for source in {name for name, _ in waiting}:
        own = [place for place, (name, _) in enumerate(waiting) if name == source]
        taken = [place for place in chosen if waiting[place][0] == source]
        assert taken == own[: len(taken)]
        shares[source] = (sum(waiting[place][1] for place in taken), len(taken) == len(own))
    # Nobody who is left with something had much less than somebody else.
    for share, is_all in shares.values():
        if not is_all and len(chosen) > 1:
            assert share + 30 >= max(other for other, _ in shares.values()) - 30
