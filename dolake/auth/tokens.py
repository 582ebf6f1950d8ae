"""Bearer tokens: how they look, how they are kept, and whose one is.

    token   dlk_<43 characters>     256 random bits, base64url without padding
    hash    sha256:<64 hex digits>  of the whole token's UTF-8 bytes: all that is ever stored

A plain SHA-256 is enough here, where a password would need a slow, salted hash: slowness and salt protect what people make
up, against guessing; nobody guesses 256 random bits, however fast. `new_token` is the only maker, and a token of another
shape is never good, so that nobody can put the hash of a word there. A look-up compares the hash of what was presented with
every hash that is known, each in constant time: how long it takes tells neither which token it was nearly, nor which it is.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import urllib.parse
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Protocol

from dolake.auth.principal import ANYBODY, Principal
from dolake.clock import Randomness
from dolake.errors import Unauthorized
from dolake.model import TOKEN_PREFIX

HASH_PREFIX = "sha256:"
_TOKEN = re.compile(TOKEN_PREFIX + r"[A-Za-z0-9_-]{43}")
_HASH = re.compile(r"sha256:[0-9a-f]{64}")
_TOKEN_ANYWHERE = re.compile(TOKEN_PREFIX + r"[A-Za-z0-9_%-]+")
_QUERY_NAME = "token"


class Grant(Protocol):
    """What a configuration says of one token."""

    @property
    def hash(self) -> str: ...
    @property
    def sources(self) -> Sequence[str]: ...
    @property
    def tables(self) -> Sequence[str]: ...
    @property
    def read(self) -> bool: ...
    @property
    def catalog(self) -> bool: ...
    @property
    def admin(self) -> bool: ...
    @property
    def expires_ms(self) -> int | None: ...


class TokenBook:
    """Every token that is good, by name. Never changed: a reload makes another one.

    Without any token the book is *open*: whoever asks is `ANYBODY`, and the daemon listens on loopback only.
    """

    def __init__(self, grants: Mapping[str, Grant] | None = None) -> None:
        self._principals = {
            digest_of_hash(grant.hash): Principal(
                name=name,
                sources=tuple(grant.sources),
                tables=tuple(grant.tables),
                can_read=grant.read,
                can_change=grant.catalog,
                is_admin=grant.admin,
                expires_ms=grant.expires_ms,
                digest=digest_of_hash(grant.hash),
            )
            for name, grant in (grants or {}).items()
        }

    def __len__(self) -> int:
        return len(self._principals)

    @property
    def is_open(self) -> bool:
        return not self._principals

    def principal_of(self, token: str | None, now_ms: int) -> Principal:
        """Whose token this is. Raises Unauthorized if there is none, nobody's, or one that has expired."""
        if self.is_open:
            return ANYBODY
        if token is None:
            raise Unauthorized(
                "a token is needed: send `Authorization: Bearer TOKEN`, or ?token=TOKEN where headers cannot be set", presented=False
            )
        presented = hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()
        found: Principal | None = None
        for digest, principal in self._principals.items():  # All of them, whichever it is.
            if hmac.compare_digest(digest, presented):
                found = principal
        if found is None or not is_token(token):
            raise Unauthorized("this token is not known here: it is wrong, or it was revoked")
        return _unexpired(found, now_ms)

    def renewed(self, principal: Principal, now_ms: int) -> Principal:
        """What somebody who came in earlier may do now. Raises Unauthorized if their token has expired or was revoked since."""
        if self.is_open:
            return ANYBODY
        found = self._principals.get(principal.digest)
        if found is None:
            raise Unauthorized(
                f"the token {principal.name!r} was revoked" if principal.digest else "a token is needed now: connect with one"
            )
        return _unexpired(found, now_ms)


def new_token(random: Randomness) -> str:
    """A token of 256 random bits. It is shown once; what is kept is its hash."""
    return TOKEN_PREFIX + base64.urlsafe_b64encode(random.bits(256).to_bytes(32, "big")).rstrip(b"=").decode()


def is_token(text: str) -> bool:
    """Whether it looks like one that `new_token` made."""
    return _TOKEN.fullmatch(text) is not None


def hash_of(token: str) -> str:
    """What a configuration keeps of a token."""
    return HASH_PREFIX + hashlib.sha256(token.encode()).hexdigest()


def digest_of_hash(text: str) -> bytes:
    """The 32 bytes of `sha256:…`. Raises ValueError with the rule broken."""
    if not _HASH.fullmatch(text):
        raise ValueError(f"must be {HASH_PREFIX} and 64 hex digits, as `dolake token new` prints it")
    return bytes.fromhex(text.removeprefix(HASH_PREFIX))


def presented_token(authorizations: Sequence[str], query: str) -> str | None:
    """The token a request carries: its `Authorization` headers, and the part of its target behind the `?`; None without one.

    Raises Unauthorized for several, and for a header of another kind (RFC 6750, section 2).
    """
    found = [_bearer(value) for value in authorizations]
    found += [value for name, value in urllib.parse.parse_qsl(query, errors="surrogateescape") if name == _QUERY_NAME]
    if len(found) > 1:
        raise Unauthorized("one token is needed, and more than one was sent")
    return found[0] if found else None


def without_tokens(text: str) -> str:
    """The text with every token in it, and every `token=` of a URL, replaced: for what people or log files get to see."""
    return _TOKEN_ANYWHERE.sub(TOKEN_PREFIX + "***", re.sub(r"([?&]token=)[^&#\s\"']+", r"\1***", text))


def _bearer(value: str) -> str:
    scheme, _, token = value.strip().partition(" ")
    if scheme.lower() != "bearer" or not token.strip():
        raise Unauthorized("the Authorization header must be `Bearer TOKEN`")
    return token.strip()


def _unexpired(principal: Principal, now_ms: int) -> Principal:
    if principal.expires_ms is not None and now_ms >= principal.expires_ms:
        moment = datetime.fromtimestamp(principal.expires_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%SZ")
        raise Unauthorized(f"the token {principal.name!r} expired at {moment}")
    return principal
