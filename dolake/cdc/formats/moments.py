"""Moments counted from an epoch, or written as Kafka Connect and Debezium write them, as the wire's ISO 8601.

Nothing is rounded and nothing bent: a count that has no such text (a year beyond 9999, the far ends that stand for infinity, a
time of 24:00 or below zero) and a text with more digits than microseconds pass as they came, to be refused by name.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from datetime import date, datetime, timedelta

Convert = Callable[[bytes], bytes]

_EPOCH = datetime(1970, 1, 1)
_EPOCH_DAYS = date(1970, 1, 1).toordinal()
_DAY_US = 86_400_000_000
_MOMENT_US_MIN, _MOMENT_US_MAX = -62_135_596_800_000_000, 253_402_300_799_999_999
_INTEGER = re.compile(rb"-?[0-9]{1,19}")
# Digits after the seventh place on, all of them 0: the same moment without them.
_IDLE_DIGITS = re.compile(rb"(\.[0-9]{6})0+(?![0-9])")


def _whole(raw: bytes) -> int:
    if _INTEGER.fullmatch(raw) is None:
        raise ValueError(f"a whole number is expected (got {raw[:40].decode(errors='replace')})")
    return int(raw)


@functools.lru_cache(maxsize=16_384)
def date_of_days(raw: bytes) -> bytes:
    """Days since 1970-01-01."""
    ordinal = _whole(raw) + _EPOCH_DAYS
    return f'"{date.fromordinal(ordinal).isoformat()}"'.encode() if 1 <= ordinal <= 3_652_059 else raw


def timestamp_of(unit_ns: int) -> Convert:
    """Counts of `unit_ns` nanoseconds since 1970-01-01T00:00:00, without zone."""

    def convert(raw: bytes) -> bytes:
        microseconds, rest = divmod(_whole(raw) * unit_ns, 1000)
        if rest or not _MOMENT_US_MIN <= microseconds <= _MOMENT_US_MAX:
            return raw
        return f'"{(_EPOCH + timedelta(microseconds=microseconds)).isoformat()}"'.encode()

    return convert


def time_of(unit_ns: int) -> Convert:
    """Counts of `unit_ns` nanoseconds since midnight."""

    def convert(raw: bytes) -> bytes:
        microseconds, rest = divmod(_whole(raw) * unit_ns, 1000)
        if rest or not 0 <= microseconds < _DAY_US:
            return raw
        return f'"{(_EPOCH + timedelta(microseconds=microseconds)).time().isoformat()}"'.encode()

    return convert


def iso_without_zone(raw: bytes) -> bytes:
    """`"2026-11-20T15:30:18.5Z"` of a column that has no zone: the `Z` says nothing."""
    return iso_with_zone(raw[:-2] + b'"' if raw.endswith(b'Z"') else raw)


def iso_with_zone(raw: bytes) -> bytes:
    return _IDLE_DIGITS.sub(rb"\1", raw) if b"." in raw else raw
