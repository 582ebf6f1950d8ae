"""What a rollback makes of a table, decided from its metadata: rows, offsets, counts. No I/O, no clock.

The new snapshot has the files of an older one. What becomes of the offsets is for whoever asks to say:

    keep the offsets   the events since are not applied again: their offsets are noted as skipped, the rows that went as rolled back
    rewind             offsets and counts are the older snapshot's again, and the events since are read from the log once more

Dead letters stay as they are either way: verdicts on events that are read again hold, so none of these is judged twice.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from dolake.errors import RequestRefused
from dolake.iceberg.metadata import EPOCH, LoadedTable, ancestry, offsets_in, snapshots_by_id
from dolake.iceberg.notes import noted_in
from dolake.iceberg.plan import Delta
from dolake.iceberg.points import REWIND, ROLLBACK, newest_lsns
from dolake.iceberg.skipped import Ranges, as_skipped, skipped_in, with_skipped
from dolake.writer.declared import SCHEMA_PROPERTY
from dolake.writer.kinds import COUNTS_KEY, Counts

_CHANGES = ("added-", "deleted-", "removed-")


@dataclass(frozen=True)
class Rollback:
    """`offsets`, `counts` and `skipped` are what the table will say of itself; `before` how far it had applied its logs."""

    target: int
    rewinds: bool
    before: Mapping[str, int]
    offsets: Mapping[str, int]
    counts: Counts
    skipped: Mapping[str, Ranges]

    def read_again(self) -> dict[str, int]:
        """Of each log whose events are to be applied again, the first offset of them."""
        return {log_id: offset for log_id, offset in self.offsets.items() if offset < self.before.get(log_id, 0)}


def target_of(base: LoadedTable, snapshot_id: int) -> Mapping[str, Any]:
    """The snapshot to go back to. Raises RequestRefused where it is not one of `main`'s."""
    if snapshot_id not in snapshots_by_id(base.metadata):
        raise RequestRefused(f"{base.name}: snapshot {snapshot_id} is not there any more; `dolake snapshots {base.name}` lists what is")
    found = next((one for one in ancestry(base.metadata, base.head_id) if one["snapshot-id"] == snapshot_id), None)
    if found is None:
        reason = "is not in the history of main: a table goes back along its own; `dolake branches publish` takes it forward to a branch"
        raise RequestRefused(f"{base.name}: snapshot {snapshot_id} {reason}")
    return found


def plan_rollback(base: LoadedTable, target: int, live_rows: int, *, rewinds: bool) -> Rollback:
    """`live_rows`: rows that the target holds, as a reader counts them. Raises RequestRefused."""
    stated, begins = _offsets_at(base, target), base.begins()
    # Where somebody has taken back the snapshot or the property, the other still says how far it was.
    now = highest(base.offsets(), _offsets_at(base, base.head_id))
    then = {log_id: max(stated.get(log_id, 0), begins.get(log_id, 0)) for log_id in {*now, *stated}}
    # After a rewind the target may hold more than the table does now: it is what it was then, or events would be in it twice.
    ahead = any(offset > now.get(log_id, 0) for log_id, offset in then.items())
    if ahead and not rewinds and any(offset < now.get(log_id, 0) for log_id, offset in then.items()):
        raise RequestRefused(f"{base.name}: snapshot {target} holds more of one log than the table does now, and less of another; --rewind")
    noted = _noted_at(base, target, needed=rewinds or ahead)
    skipped = skipped_in(noted)
    if rewinds or ahead:
        counts = Counts.of(noted)
        return Rollback(target, rewinds, now, then, replace(counts, foreign=counts.foreign + live_rows - counts.rows), skipped)
    for log_id, offset in now.items():
        skipped = with_skipped(skipped, log_id, then[log_id], offset)
    counts = Counts.of(base.properties)
    return Rollback(target, False, now, now, replace(counts, rolled_back=counts.rolled_back + counts.rows - live_rows), skipped)


def metadata_of(base: LoadedTable, target: int) -> str | None:
    """The location of the table's metadata as it was when a snapshot was its newest; None where that is not known any more."""
    if base.head_id == target:
        return base.metadata_location
    time_ms = snapshots_by_id(base.metadata)[target]["timestamp-ms"]
    log = base.metadata.get("metadata-log") or ()
    return next((str(entry["metadata-file"]) for entry in log if entry["timestamp-ms"] == time_ms), None)


def plan_declared(base: LoadedTable, target: int, metadata: Mapping[str, Any] | None) -> dict[str, str]:
    """What sources had declared at a snapshot, as properties: their events since are read anew from there on.

    `metadata` is that of `metadata_of`. A source that came later declares itself again. Raises RequestRefused where it is not known.
    """
    if metadata is not None and metadata.get("current-snapshot-id") == target:
        properties: Mapping[str, str] = metadata.get("properties") or {}
        return {key: value for key, value in properties.items() if key.startswith(SCHEMA_PROPERTY)}
    if snapshots_by_id(base.metadata)[target].get("schema-id") == base.schema["schema-id"]:
        return {}
    reason = "its schema has changed since, and what sources had declared then is not known any more"
    raise RequestRefused(f"{base.name}: snapshot {target} cannot be rewound to: {reason}; choose a newer one, or --keep-offset")


def rollback_delta(base: LoadedTable, plan: Rollback, declared: Mapping[str, str], *, epoch: int, instance: str, commit_id: str) -> Delta:
    """The commit, right on top of `base`'s head alone. `declared` as properties."""
    before = Counts.of(base.properties)
    properties = {**declared, **plan.counts.as_properties(before), **as_skipped(plan.skipped, skipped_in(base.properties))}
    marks = {ROLLBACK: str(plan.target)} | ({REWIND: str(plan.target)} if plan.rewinds else {})
    return Delta(
        table=base.name,
        table_uuid=base.uuid,
        ranges={},
        files=(),
        schema=base.schema,
        base_schema_id=base.schema["schema-id"],
        spec_id=base.spec["spec-id"],
        epoch=epoch,
        instance=instance,
        commit_id=commit_id,
        known=base.offsets(),
        properties=properties,
        summary={**newest_lsns(base, plan.target if plan.rewinds else base.head_id), **noted_in(properties), **marks},
        restores=plan.target,
        offsets=plan.offsets,
        on_head_only=True,
        head_id=base.head_id,
    )


def highest(one: Mapping[str, int], other: Mapping[str, int]) -> dict[str, int]:
    """Of each log the higher offset."""
    return {log_id: max(one.get(log_id, 0), other.get(log_id, 0)) for log_id in {*one, *other}}


def _offsets_at(base: LoadedTable, snapshot_id: int | None) -> dict[str, int]:
    """As dolake's newest commit under the snapshot says: others' leave them as they are."""
    oldest: Mapping[str, Any] = {}
    for oldest in ancestry(base.metadata, snapshot_id):
        if EPOCH in oldest["summary"]:
            return offsets_in(oldest["summary"])
    if oldest.get("parent-snapshot-id") is not None:
        raise RequestRefused(f"{base.name}: which events snapshot {snapshot_id} holds is not known any more; choose a newer one")
    return {}


def _noted_at(base: LoadedTable, snapshot_id: int, *, needed: bool) -> dict[str, str]:
    """Counts and skipped offsets as of a snapshot. Raises RequestRefused where they are `needed` and an older dolake has not noted them."""
    oldest: Mapping[str, Any] = {}
    for oldest in ancestry(base.metadata, snapshot_id):
        summary = oldest["summary"]
        if COUNTS_KEY in summary:
            return noted_in(summary)
        if EPOCH in summary and any(key.startswith(_CHANGES) for key in summary):
            break
    else:
        if oldest.get("parent-snapshot-id") is None:
            return {}
    if needed:
        reason = "its counts were not noted, or are gone with older snapshots: it cannot be rewound to"
        raise RequestRefused(f"{base.name}: snapshot {snapshot_id}: {reason}; choose a newer one, or --keep-offset")
    return {}
