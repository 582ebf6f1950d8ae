"""The members of a JSON object with their values as raw text, none of them lost.

Every decoder keeps the last of two equal keys and says nothing. Here the lengths must add up: those of the members found
and of what stands between them are the object's, unless it is written with spaces or escapes; then it is read once more.
"""

from __future__ import annotations

import functools
import json

import msgspec

Members = dict[str, msgspec.Raw]

_decode = msgspec.json.Decoder(Members).decode


class RepeatedKey(ValueError):
    """An object with the same key twice: which of the values is meant, nobody knows."""

    def __init__(self) -> None:
        super().__init__("the same key twice")


def members_of(raw: bytes | msgspec.Raw) -> Members:
    """The members of an object, in order. Raises RepeatedKey; ValueError or RecursionError where it is no object at all."""
    text = bytes(raw).strip()
    members = _decode(text)
    if len(b"".join(members.values())) + overhead(tuple(members)) != len(text) and _count(text) != len(members):
        raise RepeatedKey
    return members


def names_of(raw: bytes) -> tuple[str, ...]:
    """The names of an object's members, equal ones once."""
    return tuple(_decode(raw))


@functools.lru_cache(maxsize=4096)
def overhead(names: tuple[str, ...]) -> int:
    """The length of an object with these members but for their values, written without spaces or escapes."""
    return 2 + max(len(names) - 1, 0) + sum(len(msgspec.json.encode(name)) + 1 for name in names)


def _count(text: bytes) -> int:
    """How many members an object has, equal keys counted each."""
    counts: list[int] = []
    json.loads(text, object_pairs_hook=lambda pairs: counts.append(len(pairs)), parse_int=str, parse_float=str)
    return counts[-1]  # The outermost object ends last.
