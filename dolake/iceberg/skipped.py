"""Offsets whose events a rollback has taken out of a table and that stay out (`dolake.skipped.<log id>`: `40-100,120-150`).

A table's rows are what its events make of it, but for those in these ranges (each up to, not with, its end).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

SKIPPED_PREFIX = "dolake.skipped."
Ranges = tuple[tuple[int, int], ...]


def skipped_in(properties: Mapping[str, str]) -> dict[str, Ranges]:
    """By log, in rising order, from a table's properties or a snapshot's summary."""
    found = {key.removeprefix(SKIPPED_PREFIX): _ranges(text) for key, text in properties.items() if key.startswith(SKIPPED_PREFIX)}
    return {log_id: ranges for log_id, ranges in found.items() if ranges}


def with_skipped(known: Mapping[str, Ranges], log_id: str, start: int, end: int) -> dict[str, Ranges]:
    """One more range, joined with those that it touches."""
    ranges: list[tuple[int, int]] = []
    for first, last in sorted([*known.get(log_id, ()), (start, end)] if start < end else known.get(log_id, ())):
        if ranges and first <= ranges[-1][1]:
            ranges[-1] = (ranges[-1][0], max(ranges[-1][1], last))
        else:
            ranges.append((first, last))
    return {**known, log_id: tuple(ranges)} if ranges else dict(known)


def as_skipped(skipped: Mapping[str, Ranges], before: Iterable[str] = ()) -> dict[str, str]:
    """As properties. What is not skipped any more is stated as nothing for the logs `before`: a property stays until it is said anew."""
    return {
        SKIPPED_PREFIX + log_id: ",".join(f"{first}-{last}" for first, last in skipped.get(log_id, ()))
        for log_id in sorted({*skipped, *before})
    }


def is_skipped(skipped: Mapping[str, Ranges], log_id: str, offset: int) -> bool:
    return any(first <= offset < last for first, last in skipped.get(log_id, ()))


def _ranges(text: str) -> Ranges:
    pairs = (part.partition("-") for part in text.split(",") if part)
    return tuple((int(first), int(last)) for first, _, last in pairs)
