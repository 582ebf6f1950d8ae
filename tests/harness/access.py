"""Tokens as an operator has them: the secret, and the section that makes it good. Shares no code with the product."""

from __future__ import annotations

import hashlib
import json
import secrets
from typing import Any


def new_token() -> str:
    return "dlk_" + secrets.token_urlsafe(32)


def hash_of(token: str) -> str:
    return "sha256:" + hashlib.sha256(token.encode()).hexdigest()


def section(name: str, token: str, **grants: Any) -> str:
    """One [tokens.NAME] of a configuration, as TOML."""
    lines = [f"[tokens.{name}]", f'hash = "{hash_of(token)}"', *(f"{key} = {json.dumps(value)}" for key, value in grants.items())]
    return "\n".join(lines) + "\n"


def grant(token: str, **grants: Any) -> dict[str, Any]:
    """The same as a value for `Settings`."""
    return {"hash": hash_of(token), **grants}
