"""The check of the commit loop: what a loaded table means for a delta. No I/O, no clock, no randomness.

Landed, to be committed, to be planned anew, or never to be. The swap is to be made against the same `LoadedTable` (`plan`).
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Any

from dolake.errors import TableStopped
from dolake.iceberg.metadata import (
    COMMIT_ID,
    EPOCH,
    FORMAT_VERSION,
    INSTANCE,
    OFFSET_PREFIX,
    LoadedTable,
    ancestry,
    offsets_in,
    same_schema,
    snapshots_by_id,
)
from dolake.iceberg.partition import same_spec, spec_fits
from dolake.iceberg.plan import Delta, find_spec, shape_of_spec


class Verdict(Enum):
    """What a loaded table means for a delta."""

    LANDED = "its rows are in the table"
    COMMIT = "the table is where the delta expects it"
    REPLAN = "the table has moved under the delta: read on from the table's offsets"
    MOVED = "somebody else committed to it meanwhile: plan again on top of that"


def judge(base: LoadedTable | None, delta: Delta) -> Verdict:
    """Raises TableStopped if this writer may not, or nobody should, commit to the table as it is."""
    name = str(delta.table)
    if base is None:
        raise TableStopped(
            name,
            f"it was dropped from the catalog; register it again, or let later events make it anew: `dolake tables drop {name}`",
        )
    if base.uuid != delta.table_uuid:
        raise TableStopped(
            name,
            f"another table took its name (uuid {base.uuid}, not {delta.table_uuid}); restart the daemon to use it",
            field="table-uuid",
        )
    if base.metadata["format-version"] != FORMAT_VERSION:
        raise TableStopped(
            name, f"its format version is {base.metadata['format-version']}; dolake writes version {FORMAT_VERSION}", field="format-version"
        )
    _refuse_fenced(base, delta)
    if delta.restores is None and (breach := rewound(base)):  # A rollback is how an operator settles just that.
        raise TableStopped(name, breach, field="snapshots")
    offsets = base.offsets()
    moving = {log: span for log, span in delta.ranges.items() if span.end > span.start}
    by_name = _latest_summary(base).get(COMMIT_ID) == delta.commit_id
    if not moving or delta.only_as_named:
        if by_name:
            return Verdict.LANDED  # Without offsets (a claim, a schema) only its name tells.
    elif all(offsets.get(log, 0) >= span.end for log, span in moving.items()):
        return Verdict.LANDED
    for log, span in delta.ranges.items():
        if (offset := offsets.get(log, 0)) < span.start:
            raise TableStopped(
                name,
                f"somebody took it back: its offset in log {log} is {offset}, and {span.start} was committed",
                field=OFFSET_PREFIX + log,
            )
    if any(offsets.get(log, 0) != span.start for log, span in delta.ranges.items()):
        return Verdict.REPLAN
    if delta.known is not None and any(offsets.get(log, 0) != delta.known.get(log, 0) for log in offsets.keys() | delta.known):
        return Verdict.REPLAN  # A predecessor's commit came late, from another log.
    if delta.restores is not None and delta.restores not in snapshots_by_id(base.metadata):
        return Verdict.REPLAN
    if not same_schema(base.schema, delta.schema) and base.schema["schema-id"] != delta.base_schema_id:
        return Verdict.REPLAN
    if not _spec_stands(base, delta) or not _has_specs_of_deletes(base, delta):
        return Verdict.REPLAN
    return Verdict.MOVED if delta.on_head_only and base.head_id != delta.head_id else Verdict.COMMIT


def _spec_stands(base: LoadedTable, delta: Delta) -> bool:
    """Whether the files' partitions are what the table's spec asks for, or what the flush meant to make of it."""
    if delta.spec is not None and same_spec(base.spec, delta.spec):
        return True
    return bool(base.spec["spec-id"] == delta.spec_id) and (delta.spec is None or spec_fits(base.metadata, delta.spec))


def _has_specs_of_deletes(base: LoadedTable, delta: Delta) -> bool:
    """Whether the table has every spec that deletes are of: somebody may have dropped one that no file is left of."""
    needed = {deletes.spec_id for deletes in delta.deletes} | ({delta.replaces.spec_id} if delta.replaces else set())
    for spec_id in needed:
        if find_spec(base, delta, spec_id) is None:
            return False
        if shape_of_spec(base, delta, spec_id) is None:
            reason = f"files of its partition spec {spec_id} are to be written, whose columns no schema of it has any more"
            raise TableStopped(str(delta.table), f"{reason}; rewrite these files (Spark: rewrite_data_files)", field="partition-specs")
    return True


def _refuse_fenced(base: LoadedTable, delta: Delta) -> None:
    name = str(delta.table)
    if base.owner_epoch > delta.epoch:
        raise TableStopped(name, f"fenced: a newer writer owns it (epoch {base.owner_epoch}, ours is {delta.epoch})", field=EPOCH)
    if base.owner_epoch == delta.epoch and base.instance != delta.instance:
        raise TableStopped(name, f"fenced: writer {base.instance} claimed epoch {delta.epoch} first", field=INSTANCE)
    if base.owner_epoch < delta.epoch - 1:
        raise TableStopped(name, f"somebody took it back: its epoch is {base.owner_epoch}, ours is {delta.epoch}", field=EPOCH)


def rewound(base: LoadedTable) -> str:
    """How the table's history contradicts its offsets, or nothing.

    Properties survive a rollback of `main`, a snapshot's summary does not: if the nearest dolake snapshot under the head says
    other offsets than the properties, rows were taken out (or put back) behind dolake's back.
    """
    stated = base.offsets()
    oldest: Mapping[str, Any] | None = None
    for snapshot in ancestry(base.metadata, base.head_id):
        oldest = snapshot
        if EPOCH in snapshot["summary"]:
            found = offsets_in(snapshot["summary"])
            if found == stated:
                return ""
            return f"somebody rewound it: its properties say {stated}, snapshot {snapshot['snapshot-id']} says {found}"
    if oldest is not None and oldest.get("parent-snapshot-id") is not None:
        return ""  # Foreign commits all the way down to where history was expired: nothing to compare with.
    return f"somebody rewound it: its properties say {stated}, and no snapshot of dolake is left under its head" if stated else ""


def _latest_summary(base: LoadedTable) -> Mapping[str, str]:
    summaries: list[Mapping[str, str]] = [snapshot["summary"] for snapshot in ancestry(base.metadata, base.head_id)]
    return next((summary for summary in summaries if EPOCH in summary), {})
