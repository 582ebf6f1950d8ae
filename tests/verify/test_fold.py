"""The fold that `dolake verify` holds mirrors to."""

from __future__ import annotations

from dataclasses import replace

from dolake.verify.fold import UNKNOWN, Event, Fold


def event(log: str, operation: str, key: int, row: int) -> Event:
    return Event(log, f"source of {log}", operation, (key,), None, (), row)


def test_what_a_truncate_of_another_log_takes_is_decided_by_the_order_of_commits() -> None:
    """Whichever of the two logs is folded first."""
    truncating = [event("a", "INSERT", 1, 0), event("a", "TRUNCATE", 0, 1), event("a", "INSERT", 2, 2)]
    other = [event("b", "INSERT", 3, 3)]
    for events in ([*truncating, *other], [*other, *truncating]):
        fold = Fold(whole=True, log_count=2)
        for one in events:
            fold.take(one)
        found = {entry.key[0]: (entry.row, entry.contested) for entry in fold.entries()}
        assert found == {1: (None, False), 2: (2, False), 3: (3, True)}


def test_what_one_source_has_in_two_logs_came_in_an_order_that_is_not_known() -> None:
    """A dead letter that was sent again lies where the letters' own source has its log."""
    own = [event("a", "INSERT", 1, 0), event("a", "INSERT", 2, 1)]
    again = [replace(event("b", "UPDATE", 1, 2), source="source of a"), replace(event("b", "INSERT", 3, 3), source="source of a")]
    for events in ([*own, *again], [*again, *own]):
        fold = Fold(whole=True, log_count=2)
        for one in events:
            fold.take(one)
        assert {entry.key[0]: entry.contested for entry in fold.entries()} == {1: True, 2: False, 3: False}


def test_what_a_change_of_key_sent_again_leaves_out_is_not_known() -> None:
    """The old key's row that it had in view may have been followed by another before it came to the other log, or not."""
    own = event("a", "INSERT", 1, 0)
    again = replace(event("b", "UPDATE", 2, 1), source="source of a", old_key=(1,), unchanged=("note",))
    origins = []
    for moving in (again, replace(again, log="a")):
        fold = Fold(whole=True, log_count=2)
        fold.take(own)
        fold.take(moving)
        origins += [entry.origin("note") for entry in fold.entries() if entry.key == (2,)]
    assert origins == [UNKNOWN, 0]
