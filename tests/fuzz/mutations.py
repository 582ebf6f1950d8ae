"""Changes of bytes as values, so that a finding can be made smaller by leaving some out. The same for Hypothesis and for the long run."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass

# What decoders stumble over. Put anywhere, or in the place of a number or a string.
TOKENS: tuple[bytes, ...] = (
    *(b"null", b"true", b"-0", b"-1", b"01", b"0.0", b"1.0", b"1e999", b"-1e400", b"1E-400", b"1e-1000000000", b"NaN", b"-Infinity"),
    *(b"2147483648", b"9007199254740993", b"9223372036854775807", b"9223372036854775808", b"18446744073709551616", b"9" * 40, b"9" * 5000),
    *(b"0." + b"0" * 40 + b"1", b"1." + b"1" * 400, b"253402300800000", b"-62135596800001"),
    *(b'"\\ud800"', b'"\\udc00\\ud800"', b'"\\u0000"', b'""', b'"' + b"n" * 300 + b'"', b'"../../evil"', b'"a.b.c"', b'"dolake.x"'),
    *(b'"_cdc_offset"', b'"x__changes"', b'"\xed\xa0\x80"', b'"\xff"', b'"\xc0\x80"', b'"\\x"', b'"\\u12"', b'"2026-02-30"', b'"AA=="'),
    *(b"[]", b"{}", b"[[]]", b"[" * 70, b"[" * 20_000, b'{"a":' * 70, b'{"a":' * 5_000, b"]" * 70, b"[" * 70 + b"]" * 70),
    *(b'"events":[],', b'"type":"cdc_batch",', b'"type":7,', b'"sequence":1,', b'"after":{},', b'"id":1,"id":2,', b'"\\u0069d":3,'),
    *(
        b"{",
        b"}",
        b"[",
        b"]",
        b",",
        b":",
        b'"',
        b"\\",
        b"\n",
        b"\r\n",
        b"\x00",
        b"\xef\xbb\xbf",
        b"\x1f\x8b",
        b"\xff\xff\xff\xff",
        b" " * 100,
    ),
)
_VALUES = re.compile(rb'"(?:[^"\\]|\\.)*"|-?[0-9][0-9.eE+-]*|true|false|null')
_MEMBERS = re.compile(rb'"[A-Za-z_]+" *: *(?:"(?:[^"\\]|\\.)*"|-?[0-9][0-9.eE+-]*|true|false|null) *,?')
SIZE_BYTES_MAX = 1 << 18


@dataclass(frozen=True)
class Mutation:
    """`at` (0..1) is where in the bytes, whatever their length; `size` and `choice` mean what the kind makes of them."""

    kind: str
    at: float
    size: int
    choice: int


def _flip(data: bytes, place: int, change: Mutation, _: Sequence[bytes]) -> bytes:
    if not data:
        return data
    place = min(place, len(data) - 1)
    return data[:place] + bytes([data[place] ^ (1 << change.choice % 8)]) + data[place + 1 :]


def _overwrite(data: bytes, place: int, change: Mutation, _: Sequence[bytes]) -> bytes:
    return data[:place] + bytes([change.choice % 256]) * (change.size % 9) + data[place + change.size % 9 :]


def _remove(data: bytes, place: int, change: Mutation, _: Sequence[bytes]) -> bytes:
    return data[:place] + data[place + 1 + change.size :]


def _cut(data: bytes, place: int, change: Mutation, _: Sequence[bytes]) -> bytes:
    return data[:place] if change.choice % 2 else data[place:]


def _repeat(data: bytes, place: int, change: Mutation, _: Sequence[bytes]) -> bytes:
    piece = data[place : place + 1 + change.size]
    return data[:place] + piece * (1 + change.choice % 4) + data[place:]


def _insert(data: bytes, place: int, change: Mutation, _: Sequence[bytes]) -> bytes:
    return data[:place] + TOKENS[change.choice % len(TOKENS)] + data[place:]


def _splice(data: bytes, place: int, change: Mutation, corpus: Sequence[bytes]) -> bytes:
    other = corpus[change.choice % len(corpus)]
    start = change.size * 7919 % (len(other) + 1)
    return data[:place] + other[start : start + 1 + change.size * 4] + data[place + change.size :]


def _join(data: bytes, place: int, change: Mutation, corpus: Sequence[bytes]) -> bytes:
    other = corpus[change.choice % len(corpus)]
    return data[:place] + other[int(change.at * len(other)) :]


def _value(data: bytes, place: int, change: Mutation, _: Sequence[bytes]) -> bytes:
    """Another value in the place of one: where the structure stays right, decoders look further."""
    found = _VALUES.search(data, place) or _VALUES.search(data)
    return data if found is None else data[: found.start()] + TOKENS[change.choice % len(TOKENS)] + data[found.end() :]


def _member(data: bytes, place: int, change: Mutation, _: Sequence[bytes]) -> bytes:
    """A member of an object left out, or there twice."""
    found = _MEMBERS.search(data, place) or _MEMBERS.search(data)
    if found is None:
        return data
    text = found.group().rstrip(b",")
    return data[: found.start()] + (b"" if change.choice % 2 else text + b"," + found.group()) + data[found.end() :]


_KINDS = {
    "flip": _flip,
    "overwrite": _overwrite,
    "remove": _remove,
    "cut": _cut,
    "repeat": _repeat,
    "insert": _insert,
    "splice": _splice,
    "join": _join,
    "value": _value,
    "member": _member,
}
KINDS = tuple(_KINDS)


def mutated(corpus: Sequence[bytes], base: bytes, changes: Sequence[Mutation]) -> bytes:
    """`base` with the changes made to it, one after the other."""
    data = base
    for change in changes:
        data = _KINDS[change.kind](data, int(change.at * len(data)), change, corpus)[:SIZE_BYTES_MAX]
    return data


def any_mutations(chance: random.Random) -> list[Mutation]:
    """A few; mostly one or two, so that most of what is right stays right."""
    count = 1 + min(int(chance.expovariate(0.9)), 7)
    return [Mutation(chance.choice(KINDS), chance.random(), int(chance.expovariate(0.1)), chance.getrandbits(16)) for _ in range(count)]
