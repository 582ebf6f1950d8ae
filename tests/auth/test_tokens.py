"""Tokens: made, hashed, found, refused, and never shown."""

from __future__ import annotations

import hmac
import random
from dataclasses import dataclass

import pytest

from dolake.auth import tokens
from dolake.auth.gate import Gate
from dolake.auth.principal import ANYBODY
from dolake.auth.tokens import TokenBook, hash_of, is_token, new_token, presented_token, without_tokens
from dolake.clock import SystemClock, SystemRandomness
from dolake.errors import Unauthorized

NOW_MS = 1_800_000_000_000


@dataclass(frozen=True)
class Grant:
    hash: str
    sources: tuple[str, ...] = ("*",)
    tables: tuple[str, ...] = ("*",)
    read: bool = False
    catalog: bool = False
    admin: bool = False
    expires_ms: int | None = None


TOKENS = {name: new_token(SystemRandomness()) for name in ("shop", "brief", "reader", "gone")}
BOOK = TokenBook(
    {
        "shop": Grant(hash_of(TOKENS["shop"]), sources=("orders",)),
        "brief": Grant(hash_of(TOKENS["brief"]), expires_ms=NOW_MS),
        "reader": Grant(hash_of(TOKENS["reader"]), sources=(), tables=(), read=True),
        "word": Grant(hash_of("password")),
    }
)


class Fixed:
    """Randomness of which every draw is known."""

    def bits(self, count: int) -> int:
        return random.Random(count).getrandbits(count)

    def uniform(self, low: float, high: float) -> float:
        raise AssertionError

    def uuid(self) -> str:
        raise AssertionError


def test_a_token_holds_256_bits_of_the_randomness_it_is_given() -> None:
    assert new_token(Fixed()) == new_token(Fixed())
    assert is_token(new_token(Fixed()))
    assert len({new_token(SystemRandomness()) for _ in range(100)}) == 100


def test_a_hash_is_plain_sha256_of_the_text() -> None:
    assert hash_of("abc") == "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


@pytest.mark.acceptance("AT-98")
def test_a_token_is_known_by_its_hash_with_its_scopes() -> None:
    shop, reader = BOOK.principal_of(TOKENS["shop"], NOW_MS), BOOK.principal_of(TOKENS["reader"], NOW_MS)
    assert (shop.name, shop.may_send_as("orders"), shop.may_send_as("other"), shop.can_read) == ("shop", True, False, False)
    assert (reader.name, reader.may_send, reader.can_read, reader.is_admin) == ("reader", False, True, False)
    assert BOOK.principal_of(TOKENS["brief"], NOW_MS - 1).name == "brief"


@pytest.mark.acceptance("AT-98")
@pytest.mark.parametrize(
    ("token", "words"),
    [
        (None, "a token is needed"),
        ("", "not known"),
        (TOKENS["gone"], "wrong, or it was revoked"),
        (TOKENS["shop"] + "x", "not known"),
        (TOKENS["shop"][:-1], "not known"),
        ("dlk_\ud800ä", "not known"),
        ("password", "not known"),
        (TOKENS["brief"], "the token 'brief' expired at 2027-01-15 08:00:00Z"),
    ],
    ids=["none", "empty", "revoked", "longer", "shorter", "odd", "a word whose hash is there", "expired"],
)
def test_what_is_not_good_is_refused_with_its_reason_and_never_shown(token: str | None, words: str) -> None:
    with pytest.raises(Unauthorized, match=words) as refusal:
        BOOK.principal_of(token, NOW_MS)
    assert not token or token not in str(refusal.value)
    assert refusal.value.challenge == ('Bearer realm="dolake"' if token is None else 'Bearer realm="dolake", error="invalid_token"')


@pytest.mark.acceptance("AT-98")
@pytest.mark.parametrize("token", [TOKENS["shop"], TOKENS["reader"], TOKENS["gone"]], ids=["first", "third", "unknown"])
def test_every_hash_is_compared_whichever_token_it_is(token: str, monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[bytes] = []

    def compare(one: bytes, other: bytes) -> bool:
        compared.append(one)
        return hmac.compare_digest(one, other)

    class Watched:
        compare_digest = staticmethod(compare)

    monkeypatch.setattr(tokens, "hmac", Watched)
    try:
        BOOK.principal_of(token, NOW_MS)
    except Unauthorized:
        assert token == TOKENS["gone"]
    assert len(compared) == len(BOOK) == 4


@pytest.mark.parametrize(
    ("headers", "query", "token"),
    [
        ([], "", None),
        (["Bearer dlk_a"], "", "dlk_a"),
        (["bearer   dlk_a "], "x=1", "dlk_a"),
        ([], "token=dlk_a", "dlk_a"),
        ([], "x=1&token=dlk%5Fa&y", "dlk_a"),
        ([], "token=", None),
        ([], "tokens=dlk_a", None),
    ],
)
def test_a_token_comes_in_a_header_or_in_the_query(headers: list[str], query: str, token: str | None) -> None:
    assert presented_token(headers, query) == token


@pytest.mark.parametrize(
    ("headers", "query"),
    [
        (["Basic dXNlcjpwYXNz"], ""),
        (["Bearer"], ""),
        (["Bearer "], ""),
        ([""], ""),
        (["Bearer a", "Bearer a"], ""),
        (["Bearer a"], "token=a"),
        ([], "token=a&token=b"),
    ],
)
def test_several_tokens_and_other_schemes_are_refused(headers: list[str], query: str) -> None:
    with pytest.raises(Unauthorized):
        presented_token(headers, query)


@pytest.mark.acceptance("AT-98")
def test_a_gate_says_after_a_reload_what_somebody_may_do_now() -> None:
    gate = Gate(SystemClock(), BOOK)
    shop = gate.identify([f"Bearer {TOKENS['shop']}"])
    assert gate.identify([], f"token={TOKENS['shop']}") == shop
    assert gate.still(shop) == shop
    gate.book = TokenBook({"renamed": Grant(hash_of(TOKENS["shop"]), sources=("other",))})
    assert gate.still(shop).sources == ("other",)
    gate.book = TokenBook({"shop": Grant(hash_of(TOKENS["gone"]))})
    with pytest.raises(Unauthorized, match="the token 'shop' was revoked"):
        gate.still(shop)
    gate.book = TokenBook({"shop": Grant(hash_of(TOKENS["shop"]), expires_ms=1)})
    with pytest.raises(Unauthorized, match="the token 'shop' expired at 1970"):
        gate.still(shop)


def test_without_tokens_everybody_is_anybody_until_there_are_some() -> None:
    gate = Gate(SystemClock())
    assert gate.book.is_open
    somebody = gate.identify(["Basic whatever"], "token=nonsense")
    assert somebody is ANYBODY
    assert gate.still(somebody) is ANYBODY
    gate.book = BOOK
    with pytest.raises(Unauthorized, match="a token is needed now"):
        gate.still(somebody)


@pytest.mark.parametrize(
    "text",
    ["", "sha256:", "sha256:" + "A" * 64, "sha256:" + "0" * 63, "md5:" + "0" * 64, pytest.param(TOKENS["shop"], id="the token itself")],
)
def test_a_hash_of_another_form_is_refused_and_not_shown(text: str) -> None:
    with pytest.raises(ValueError, match="dolake token new") as refusal:
        TokenBook({"x": Grant(text)})
    assert len(text) < 10 or text not in str(refusal.value)


@pytest.mark.acceptance("AT-98")
def test_tokens_are_taken_out_of_what_people_see() -> None:
    token = TOKENS["shop"]
    for text in (
        f"wss://h/cdc?token={token}",
        f"wss://h/cdc?x=1&token={token}&y=2",
        f"Authorization: Bearer {token}",
        f"'{token}' twice {token}",
    ):
        assert token not in without_tokens(text)
        assert "***" in without_tokens(text)
    assert without_tokens("ws://h/cdc?token=hunter2&y=2") == "ws://h/cdc?token=***&y=2"
    assert without_tokens("ws://h:1/cdc?tokens=2") == "ws://h:1/cdc?tokens=2"
