"""Who may connect: each limit at L and at L + 1, and nobody shut out by somebody else."""

from __future__ import annotations

import random

import pytest

from dolake.cdc.admission import Admission, ConnectionLimits, counted_address
from dolake.cdc.answer import Reason


def come(admission: Admission, address: str | None, now_s: float) -> object:
    """A socket arrives and asks; one that is refused leaves again."""
    assert admission.arrived(address, now_s)
    refused = admission.admit(address, now_s)
    if refused is not None:
        admission.left(address, was_admitted=False)
    return refused


@pytest.mark.acceptance("AT-105")
def test_twenty_in_any_second_of_one_address_and_not_one_more():
    admission = Admission(ConnectionLimits())
    assert [come(admission, "a", 10 + 0.01 * number) for number in range(20)] == [None] * 20
    refused = come(admission, "a", 10.5)
    assert (refused.reason, refused.message) == (
        Reason.CONNECTION_LIMIT,
        "at most 20 new connections of one address are taken in a second (yours is a)",
    )
    assert refused.retry_s == pytest.approx(0.5)
    assert refused.retry_after_s == 1
    assert come(admission, "b", 10.5) is None  # another address has its own
    assert come(admission, "a", 10.999) is not None
    assert come(admission, "a", 11.0) is None  # as told, and what was refused cost nothing
    assert come(admission, "a", 11.005) is not None
    assert come(admission, "a", 11.01) is None


@pytest.mark.acceptance("AT-105")
def test_a_hundred_of_one_address_and_one_more_when_one_leaves():
    admission = Admission(ConnectionLimits(new_per_s=10**6))
    for _ in range(100):
        assert come(admission, "a", 0) is None
    refused = come(admission, "a", 0)
    assert (refused.reason, refused.message) == (
        Reason.IP_LIMIT,
        "at most 100 connections of one address are served at once (yours is a)",
    )
    assert come(admission, "b", 0) is None
    admission.left("a", was_admitted=True)
    assert come(admission, "a", 0) is None
    assert come(admission, "a", 0).reason is Reason.IP_LIMIT


@pytest.mark.acceptance("AT-105")
def test_so_many_in_all_and_one_more_when_one_leaves():
    admission = Admission(ConnectionLimits(total=3))
    for address in ("a", "b", None):
        assert come(admission, address, 0) is None
    for address in ("a", "c", None):
        refused = come(admission, address, 0)
        assert (refused.reason, refused.message) == (Reason.CONNECTION_LIMIT, "at most 3 connections are served at once")
        assert refused.retry_after_s == 5
    admission.left(None, was_admitted=True)
    assert come(admission, "c", 0) is None


def test_a_socket_without_an_address_is_held_to_no_address_s_limits():
    admission = Admission(ConnectionLimits(per_address=1, new_per_s=1))
    assert [come(admission, None, 0) for _ in range(500)] == [None] * 500


def test_who_connects_again_and_again_in_spite_of_refusals_is_cut_off_for_the_rest_of_the_second():
    admission = Admission(ConnectionLimits(new_per_s=2))
    assert [admission.arrived("a", 5.1) for _ in range(25)] == [True] * 20 + [False] * 5
    assert admission.arrived("b", 5.9)
    assert not admission.arrived("a", 5.9)
    assert admission.arrived("a", 6.0)


def test_handshakes_that_never_end_take_no_place_from_others_and_are_bounded():
    admission = Admission(ConnectionLimits(per_address=10, total=50))
    assert [admission.arrived("a", 0) for _ in range(21)] == [True] * 20 + [False]
    assert come(admission, "b", 0) is None
    assert admission.admit("a", 0) is None  # ten of them may still be let in
    others = [admission.arrived(f"{number // 20}", 0) for number in range(200)]
    assert others.count(True) == 100 - 21
    for _ in range(19):
        admission.left("a", was_admitted=False)
    admission.left("a", was_admitted=True)
    assert admission.arrived("a", 0)


@pytest.mark.parametrize(("sockets", "taken"), [(7, 7), (100, 100), (1000, 100), (None, 100)])
def test_never_more_sockets_than_the_system_can_carry(sockets, taken):
    admission = Admission(ConnectionLimits(per_address=10, total=50, sockets=sockets))
    assert sum(admission.arrived(f"{number // 20}", 0) for number in range(200)) == taken
    admission.left("0", was_admitted=False)
    assert [admission.arrived("late", 0) for _ in range(2)] == [True, False]


@pytest.mark.parametrize("seed", range(10))
def test_the_counts_come_back_to_nothing_and_never_above_the_limits(seed):
    chance = random.Random(seed)
    admission = Admission(ConnectionLimits(total=20, per_address=5, new_per_s=3))
    sockets: list[tuple[str | None, bool]] = []
    admitted_s: dict[str, list[float]] = {}
    now_s = 0.0
    for _ in range(3000):
        now_s += chance.choice((0.0, 0.01, 0.3))
        if sockets and chance.random() < 0.45:
            address, was_admitted = sockets.pop(chance.randrange(len(sockets)))
            admission.left(address, was_admitted=was_admitted)
            continue
        address = chance.choice(("a", "b", "c", "d", "e", "f", None))
        if admission.arrived(address, now_s):
            is_in = chance.random() < 0.8 and admission.admit(address, now_s) is None
            if is_in and address is not None:
                admitted_s.setdefault(address, []).append(now_s)
            sockets.append((address, is_in))
        assert sum(is_in for _, is_in in sockets) == admission.admitted_count <= 20
        for name in ("a", "b", "c", "d", "e", "f"):
            assert sum(is_in for address, is_in in sockets if address == name) <= 5
    for times in admitted_s.values():
        assert all(later - earlier >= 1.0 - 1e-9 for earlier, later in zip(times, times[3:], strict=False))
    for address, was_admitted in sockets:
        admission.left(address, was_admitted=was_admitted)
    assert (admission.socket_count, admission.admitted_count) == (0, 0)
    assert not admission._sockets_of
    assert not admission._admitted_of


def test_nothing_is_kept_of_addresses_that_have_gone():
    admission = Admission(ConnectionLimits())
    for number in range(1000):
        assert come(admission, f"10.0.{number // 256}.{number % 256}", number / 10) is None
        admission.left(f"10.0.{number // 256}.{number % 256}", was_admitted=True)
    assert len(admission._recent_s) <= 11
    assert not admission._sockets_of


@pytest.mark.parametrize(
    ("peer", "address"),
    [
        (("127.0.0.1", 5), "127.0.0.1"),
        (("::1", 5, 0, 0), "::1"),
        (("::ffff:10.1.2.3", 5, 0, 0), "10.1.2.3"),
        (("2001:db8:1:2:3:4:5:6", 5, 0, 0), "2001:db8:1:2::/64"),
        (("2001:db8:1:2::", 5, 0, 0), "2001:db8:1:2::/64"),
        (("fe80::1%eth0", 5, 0, 2), "fe80::/64"),
        ("", None),
        (b"", None),
        (None, None),
    ],
)
def test_what_a_peer_counts_as(peer, address):
    assert counted_address(peer) == address
