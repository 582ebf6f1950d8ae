"""Points in a table's history, as people write them: which snapshot each of them is. No I/O, no clock.

    snapshot:ID        that snapshot
    time:2026-01-01T00:00:00Z   what `main` was at that moment; a time without a zone is UTC, a date alone its first moment
    lsn:0/16B3748      the newest snapshot whose source had come no further; `lsn:SOURCE=0/16B3748` where several sources write
    tag:NAME           the snapshot of a tag
    branch:NAME        the newest snapshot of a branch
    -3, 3 versions ago   three snapshots before the newest of `main`

Without its word a point is told by its form: a number is a snapshot, `-3` a version, a date a time, two hexadecimal numbers with
a slash an lsn, and anything else the name of a tag or a branch. A name that looks like one of the others needs its word.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from dolake.errors import NoSuchPoint
from dolake.iceberg.history import OWN_TAG_PREFIXES
from dolake.iceberg.metadata import MAIN, LoadedTable, ancestry, snapshots_by_id
from dolake.model import LSN_TEXT, lsn_number

LSN_PREFIX = "dolake.lsn."
# Of a snapshot that has the content of an older one: which. One that took the offsets back too carries both.
ROLLBACK, REWIND = "dolake.rollback", "dolake.rewind"
KINDS = ("snapshot", "time", "lsn", "tag", "branch", "versions")
FORMS = "snapshot:ID, time:2026-01-01T00:00:00Z, lsn:0/16B3748, lsn:SOURCE=0/16B3748, tag:NAME, branch:NAME or -3"
_VERSIONS = re.compile(r"-(\d{1,9})|(\d{1,9}) versions? ago")
_DATE = re.compile(r"\d{4}-\d\d-\d\d([T ].*)?")
_SNAPSHOT_ID_MAX = 2**63 - 1

Snapshot = Mapping[str, Any]


@dataclass(frozen=True)
class Point:
    """`kind` is one of KINDS, or `name` for what may be a tag or a branch. `text` is as it was written."""

    kind: str
    text: str
    value: str = ""
    number: int = 0
    source: str | None = None


def parse_point(text: str) -> Point:
    """Raises ValueError with the rule broken."""
    kind, separator, value = text.partition(":")
    if separator and kind in KINDS:
        return _parse(kind, text, value)
    if versions := _VERSIONS.fullmatch(text):
        return Point("versions", text, number=int(versions[1] or versions[2]))
    if text.isascii() and text.isdigit():
        return _parse("snapshot", text, text)
    if _DATE.fullmatch(text):
        return _parse("time", text, text)
    if LSN_TEXT.fullmatch(text):
        return _parse("lsn", text, text)
    if not text or not text.isprintable() or text != text.strip() or text.startswith("-"):
        raise ValueError(f"must be {FORMS}")
    return Point("name", text, text)


def _parse(kind: str, text: str, value: str) -> Point:
    if kind == "snapshot":
        if not (value.isascii() and value.isdigit() and int(value) <= _SNAPSHOT_ID_MAX):
            raise ValueError("must name a snapshot by its number, as in snapshot:5781947118336215154; `dolake snapshots` lists them")
        return Point(kind, text, number=int(value))
    if kind == "time":
        return Point(kind, text, number=_milliseconds(value))
    if kind == "versions":
        raise ValueError("must be a number of versions, as in -3 or `3 versions ago`")
    if kind == "lsn":
        source, separator, lsn = value.rpartition("=")
        if not lsn:
            raise ValueError("must hold a position of the source, as in lsn:0/16B3748 or lsn:orders-db=0/16B3748")
        return Point(kind, text, lsn, source=source if separator else None)
    if not value:
        raise ValueError(f"must name a {kind}, as in {kind}:NAME")
    return Point(kind, text, value)


def _milliseconds(text: str) -> int:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError("must be a date or a time in ISO 8601, as in 2026-01-01 or 2026-01-01T12:00:00.250Z") from None
    return ((moment if moment.tzinfo else moment.replace(tzinfo=UTC)) - datetime.fromtimestamp(0, UTC)) // timedelta(milliseconds=1)


def snapshot_at(table: LoadedTable, point: Point, now_ms: int) -> Snapshot:
    """The table's snapshot that a point means. Raises NoSuchPoint."""
    return _FINDERS[point.kind](table, point, now_ms)


def _by_id(table: LoadedTable, point: Point, now_ms: int) -> Snapshot:
    found = snapshots_by_id(table.metadata).get(point.number)
    named = (table.metadata.get("refs") or {}).get(point.text)
    if found is not None and named is not None and named["snapshot-id"] != point.number:
        raise _none(table, point, "ambiguous", f"it is a snapshot and a {named['type']}: write snapshot:{point.text} or {named['type']}:…")
    if found is None and named is not None:
        return _by_ref(table, Point("name", point.text, point.text), now_ms)
    if found is None:
        raise _none(table, point, "expired", f"there is no such snapshot (any more); {_oldest_in_words(table)}")
    return found


def _by_time(table: LoadedTable, point: Point, now_ms: int) -> Snapshot:
    """By the snapshot log, which says what `main` was at each moment, whatever its ancestry is now."""
    if point.number > now_ms:
        raise _none(table, point, "future", f"that time is still to come; it is {time_in_words(now_ms)} now")
    snapshots = snapshots_by_id(table.metadata)
    log = [entry for entry in table.metadata.get("snapshot-log") or () if entry["snapshot-id"] in snapshots]
    before = [entry for entry in log if entry["timestamp-ms"] <= point.number]
    if before:
        return snapshots[before[-1]["snapshot-id"]]
    first = snapshots[log[0]["snapshot-id"]] if log else None
    if first is None or first.get("parent-snapshot-id") is None:
        began = f"its first snapshot is of {time_in_words(first['timestamp-ms'])}" if first else "it has no snapshot yet"
        raise _none(table, point, "before-first", began)
    raise _none(table, point, "expired", _oldest_in_words(table) + _tag_before(table, point.number))


def _by_lsn(table: LoadedTable, point: Point, now_ms: int) -> Snapshot:
    history = list(effective_history(table))
    source = _source_of(table, point, history)
    stated = [(text, one) for one in history if (text := one["summary"].get(LSN_PREFIX + source)) is not None]
    if not stated:
        raise _none(table, point, "before-first", f"no snapshot of it says an lsn of source {source!r}")
    exact = next((one for text, one in stated if text == point.value), None)
    wanted = lsn_number(point.value)
    numbers = [(lsn_number(text), one) for text, one in stated]
    if wanted is None or any(number is None for number, _ in numbers):
        if exact is not None:
            return exact
        raise _none(table, point, "unknown", f"lsns of source {source!r} have no order that is known here; name one of a snapshot exactly")
    below = [(number, one) for number, one in numbers if number is not None and number <= wanted]
    if max(number for number, _ in numbers if number is not None) < wanted:
        raise _none(table, point, "future", f"it is committed up to {stated[0][0]} of source {source!r} only")
    if not below:
        ended = history[-1]
        if ended.get("parent-snapshot-id") is None:
            raise _none(table, point, "before-first", f"its first snapshot of source {source!r} is at {stated[-1][0]}")
        raise _none(table, point, "expired", f"{_oldest_in_words(table)}, at {stated[-1][0]} of source {source!r}")
    highest = max(number for number, _ in below)
    return next(one for number, one in below if number == highest)  # The newest of these: history comes newest first.


def _source_of(table: LoadedTable, point: Point, history: list[Snapshot]) -> str:
    if point.source is not None:
        return point.source
    sources: list[str] = sorted({key.removeprefix(LSN_PREFIX) for one in history for key in one["summary"] if key.startswith(LSN_PREFIX)})
    if len(sources) == 1:
        return sources[0]
    if not sources:
        raise _none(table, point, "unknown", "no snapshot of it says an lsn of any source")
    raise _none(table, point, "ambiguous", f"it has several sources ({', '.join(sources)}): write lsn:SOURCE={point.value}")


def _by_ref(table: LoadedTable, point: Point, now_ms: int) -> Snapshot:
    refs = table.metadata.get("refs") or {}
    ref = refs.get(point.value)
    what = "tag or branch" if point.kind == "name" else point.kind
    if ref is None or point.kind not in ("name", ref["type"]):
        names = sorted(name for name in refs if point.kind in ("name", refs[name]["type"]) and not name.startswith(OWN_TAG_PREFIXES))
        raise _none(table, point, "unknown", f"it has no {what} of that name" + (f"; it has {', '.join(names)}" if names else ""))
    return snapshots_by_id(table.metadata)[ref["snapshot-id"]]


def _by_versions(table: LoadedTable, point: Point, now_ms: int) -> Snapshot:
    history = list(ancestry(table.metadata, table.head_id))
    if point.number < len(history):
        return history[point.number]
    if history and history[-1].get("parent-snapshot-id") is not None:
        raise _none(table, point, "expired", f"{_oldest_in_words(table)}, {len(history) - 1} versions ago")
    raise _none(table, point, "before-first", f"{len(history)} versions of it are all there ever were")


_FINDERS = {
    "snapshot": _by_id,
    "time": _by_time,
    "lsn": _by_lsn,
    "tag": _by_ref,
    "branch": _by_ref,
    "name": _by_ref,
    "versions": _by_versions,
}


def effective_history(table: LoadedTable, snapshot_id: int | None = None) -> Iterator[Snapshot]:
    """From a snapshot (the head) back through what its content came from, newest first: what was rolled back is passed over."""
    snapshots = snapshots_by_id(table.metadata)
    current = snapshots.get(table.head_id or 0) if snapshot_id is None else snapshots.get(snapshot_id)
    while current is not None:
        yield current
        rolled_back = current["summary"].get(ROLLBACK)
        before = int(rolled_back) if rolled_back is not None else current.get("parent-snapshot-id")
        current = snapshots.get(before or 0)


def newest_lsns(table: LoadedTable, snapshot_id: int | None) -> dict[str, str]:
    """Summary key → lsn, of each source, as far as the content of a snapshot goes and its history tells."""
    found: dict[str, str] = {}
    for snapshot in effective_history(table, snapshot_id):
        for key, lsn in snapshot["summary"].items():
            if key.startswith(LSN_PREFIX):
                found.setdefault(key, lsn)
    return found


def _none(table: LoadedTable, point: Point, kind: str, reason: str) -> NoSuchPoint:
    history = list(ancestry(table.metadata, table.head_id))
    oldest = int(history[-1]["snapshot-id"]) if history else None
    return NoSuchPoint(table=str(table.name), point=point.text, kind=kind, reason=reason, oldest=oldest)


def _oldest_in_words(table: LoadedTable) -> str:
    history = list(ancestry(table.metadata, table.head_id))
    if not history:
        return "it has no snapshot"
    oldest = history[-1]
    return f"the oldest of main that is still there is snapshot {oldest['snapshot-id']} of {time_in_words(oldest['timestamp-ms'])}"


def _tag_before(table: LoadedTable, time_ms: int) -> str:
    snapshots = snapshots_by_id(table.metadata)
    tags = [
        (snapshots[ref["snapshot-id"]]["timestamp-ms"], name)
        for name, ref in (table.metadata.get("refs") or {}).items()
        if ref["type"] == "tag" and ref["snapshot-id"] in snapshots
    ]
    before = [tag for tag in tags if tag[0] <= time_ms]
    return f"; the last tag before that time is {max(before)[1]}, of {time_in_words(max(before)[0])}" if before else ""


def time_in_words(time_ms: int) -> str:
    """UTC, to the millisecond, as it may be given in a point."""
    return datetime.fromtimestamp(time_ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def head_of(table: LoadedTable, name: str = MAIN) -> int | None:
    """The snapshot that a branch or a tag names."""
    ref = (table.metadata.get("refs") or {}).get(name)
    return None if ref is None else int(ref["snapshot-id"])
