"""JSON read to the letter, by Python's own parser and by nobody that is tested: numbers stay text, equal keys are seen."""

from __future__ import annotations

import json
from typing import Any


class NotJson(ValueError):
    """Python would take it, JSON has no such thing."""


class Digits(str):
    """A number as it is written."""


class Members(dict[str, Any]):
    """An object, which remembers whether a key came twice."""

    repeated = False


def _members(pairs: list[tuple[str, Any]]) -> Members:
    found = Members(pairs)
    found.repeated = len(found) != len(pairs)
    return found


def _refuse(word: str) -> None:
    raise NotJson(word)


def exactly(text: bytes) -> Any:
    """Raises ValueError or RecursionError."""
    return json.loads(text.decode(), parse_int=Digits, parse_float=Digits, parse_constant=_refuse, object_pairs_hook=_members)
