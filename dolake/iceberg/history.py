"""How much history a commit leaves a table: the newest snapshots of `main`, one tagged snapshot an hour, what tags and branches keep.

A ref goes only when it has an age (`max-ref-age-ms`) and its snapshot is older; Iceberg counts that age from the snapshot.

The snapshot to come is dolake's and always stays, so that whatever expires, the nearest of dolake's under the head is there to be
held against the table's properties (`judging.rewound`).
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from dolake.iceberg.metadata import MAIN, LoadedTable, Update, ancestry, snapshots_by_id

HOUR_TAG_PREFIX = "dolake-hour-"
# Of snapshots that several tables have in common. Such a tag keeps nothing: it goes with the snapshot, when that has had its time.
CUT_TAG_PREFIX = "dolake-cut-"
OWN_TAG_PREFIXES = (HOUR_TAG_PREFIX, CUT_TAG_PREFIX)
_HOUR_TAG_FORMAT = HOUR_TAG_PREFIX + "%Y%m%dT%H"
_DAY_MS = 24 * 60 * 60 * 1000


def plan_history(
    base: LoadedTable,
    snapshot: Mapping[str, Any],
    *,
    snapshots_kept: int,
    tags_kept_days: int,
    age_s_max: int = 0,
    tags: bool = True,
) -> list[Update]:
    """Tags the first snapshot of an hour, if `tags`; removes tags that are too old, then the snapshots that nothing keeps.

    Ages are counted to `snapshot`'s own time, not to now: a clock that jumps takes no history with it twice.
    """
    refs: dict[str, Mapping[str, Any]] = {name: ref for name, ref in (base.metadata.get("refs") or {}).items() if name != MAIN}
    updates: list[Update] = []
    oldest_ms = snapshot["timestamp-ms"] - tags_kept_days * _DAY_MS
    hour = _hour_tag(snapshot["timestamp-ms"])
    if tags and tags_kept_days > 0 and hour not in refs:
        tag = {"type": "tag", "snapshot-id": snapshot["snapshot-id"], "max-ref-age-ms": tags_kept_days * _DAY_MS}
        updates.append({"action": "set-snapshot-ref", "ref-name": hour, **tag})
    times = {number: known["timestamp-ms"] for number, known in snapshots_by_id(base.metadata).items()}
    kept_from_ms = snapshot["timestamp-ms"] - age_s_max * 1000 if age_s_max > 0 else None
    newest = {one["snapshot-id"] for one in _newest(base, snapshots_kept) if not _is_before(one, kept_from_ms)}
    for name in sorted(refs):
        age_ms = snapshot["timestamp-ms"] - times.get(refs[name]["snapshot-id"], snapshot["timestamp-ms"])
        if name.startswith(CUT_TAG_PREFIX):
            is_over = refs[name]["snapshot-id"] not in newest
        elif name.startswith(HOUR_TAG_PREFIX):
            is_over = name < _hour_tag(oldest_ms)
        else:
            is_over = age_ms > refs[name].get("max-ref-age-ms", age_ms)
        if is_over:
            updates.append({"action": "remove-snapshot-ref", "ref-name": name})
            del refs[name]
    if expired := _expired(base, refs, snapshots_kept, kept_from_ms):
        updates.append({"action": "remove-snapshots", "snapshot-ids": expired})
    return updates


def _expired(base: LoadedTable, refs: Mapping[str, Mapping[str, Any]], snapshots_kept: int, kept_from_ms: int | None) -> list[int]:
    """Snapshots that neither the newest of `main` (with the one to come) nor any other ref keeps.

    One that is on no branch is somebody's (staged, or rolled back): it goes only once it is older than everything that is kept of
    `main` for being among the newest, or too old by itself.
    """
    newest = _newest(base, snapshots_kept)
    kept = {snapshot["snapshot-id"] for snapshot in newest if not _is_before(snapshot, kept_from_ms)}
    for ref in refs.values():
        if ref["type"] == "tag":
            kept.add(ref["snapshot-id"])
        else:
            kept.update(snapshot["snapshot-id"] for snapshot in ancestry(base.metadata, ref["snapshot-id"]))
    kept_since_ms = min((snapshot["timestamp-ms"] for snapshot in newest), default=base.metadata["last-updated-ms"] + 1)
    return [
        snapshot_id
        for snapshot_id, snapshot in snapshots_by_id(base.metadata).items()
        if snapshot_id not in kept and (snapshot["timestamp-ms"] < kept_since_ms or _is_before(snapshot, kept_from_ms))
    ]


def _newest(base: LoadedTable, snapshots_kept: int) -> list[Mapping[str, Any]]:
    """Those of `main` that are kept with the one to come, newest first."""
    return list(ancestry(base.metadata, base.head_id))[: snapshots_kept - 1]


def _is_before(snapshot: Mapping[str, Any], moment_ms: int | None) -> bool:
    return moment_ms is not None and snapshot["timestamp-ms"] < moment_ms


def _hour_tag(timestamp_ms: int) -> str:
    return datetime.fromtimestamp(timestamp_ms / 1000, UTC).strftime(_HOUR_TAG_FORMAT)
