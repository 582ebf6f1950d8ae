"""Scopes: what a token's patterns let through, and what the refusal says."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from dolake.auth.principal import ANYBODY, Principal
from dolake.errors import Forbidden

SHOP = Principal("shop", sources=("orders-db-*", "exact"), tables=("public.*", "audit.orders_*", "plain"))


@pytest.mark.acceptance("AT-98")
@pytest.mark.parametrize(
    ("source", "allowed"),
    [
        ("orders-db-3", True),
        ("orders-db-", True),
        ("orders-db-\n3", True),
        ("exact", True),
        ("exactly", False),
        ("an exact", False),
        ("Orders-db-3", False),
        ("orders.db-3", False),
        ("", False),
    ],
)
def test_a_source_pattern_means_what_it_says(source: str, allowed: bool) -> None:
    assert SHOP.may_send_as(source) is allowed
    if not allowed:
        with pytest.raises(Forbidden, match=r"sourceDoId: the token 'shop' may send as `orders-db-\*`, `exact` only") as refusal:
            SHOP.require_source(source)
        assert repr(source) in str(refusal.value)


@pytest.mark.acceptance("AT-98")
@pytest.mark.parametrize(
    ("table", "allowed"),
    [
        ("public.orders", True),
        ("audit.orders_2026", True),
        ("audit.order", False),
        ("plain", True),
        ("default.plain", True),
        ("public.plain", True),
        ("other.plain", False),
        ("orders", False),
        ("publicXorders", False),
        ("xpublic.orders", False),
    ],
)
def test_a_table_pattern_means_what_it_says(table: str, allowed: bool) -> None:
    assert SHOP.may_write(table) is allowed


def test_all_tables_outside_are_named_and_not_those_inside() -> None:
    with pytest.raises(Forbidden) as refusal:
        SHOP.require_tables({"public.orders": 3, "secret.salaries": 1, "secret.names": 2})
    assert str(refusal.value) == (
        "table: the token 'shop' may write `public.*`, `audit.orders_*`, `plain` only (got `secret.salaries`, `secret.names`)"
    )
    SHOP.require_tables({"public.orders": 3, "plain": 1})
    SHOP.require_tables([])


def test_a_long_list_of_tables_is_cut_and_counted() -> None:
    with pytest.raises(Forbidden, match=r"got `a.t0`, .*`a.t9` and 2 more\)$"):
        SHOP.require_tables([f"a.t{number}" for number in range(12)])


DENIED: dict[str, Callable[[Principal], None]] = {
    "sources": Principal.require_sender,
    "read": Principal.require_reader,
    "admin": Principal.require_admin,
}


@pytest.mark.parametrize("scope", DENIED)
def test_no_pattern_and_no_word_allow_nothing(scope: str) -> None:
    with pytest.raises(Forbidden, match=rf"the token 'nobody' may not .*`{scope}`"):
        DENIED[scope](Principal("nobody"))
    assert not Principal("nobody").may_send_as("x")
    assert not Principal("nobody").may_write("x")


def test_anybody_may_do_anything() -> None:
    assert ANYBODY.may_send_as("any\nthing")
    ANYBODY.require_tables(["a.b", "c"])
    for require in DENIED.values():
        require(ANYBODY)


def test_a_digest_is_not_printed() -> None:
    assert "31337" not in repr(Principal("x", digest=b"31337"))


def test_who_has_tables_sees_these_and_their_namespaces_and_who_has_none_sees_all() -> None:
    some = Principal("some", tables=("shop.o*", "eu*.north", "orders"))
    assert [some.may_see(name) for name in ("shop.orders", "shop.lines", "europe.north", "default.orders", "bank.x")] == [
        *(True, False, True, True, False)
    ]
    assert [some.may_see_namespace(name) for name in ("shop", "shop.deeper", "europe", "default", "bank", "shopping")] == [
        *(True, True, True, True, False, False)
    ]
    assert Principal("all").may_see("bank.x")
    assert Principal("star", tables=("*",)).may_see_namespace("anything.at.all")
    with pytest.raises(Forbidden, match=r"sees `shop\.o\*`"):
        some.require_visible("bank.x")
    with pytest.raises(Forbidden, match="has no `catalog`"):
        Principal("all", can_read=True).require_changer()
