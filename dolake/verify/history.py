"""A table's history: offsets never fall (I4), one owner an epoch (I12, I14), time and epochs never go back (I14)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from dolake.iceberg.metadata import EPOCH, INSTANCE, LoadedTable, ancestry, offsets_in
from dolake.iceberg.points import REWIND
from dolake.verify.breach import Breach


def verify_history(table: LoadedTable) -> Iterator[Breach]:
    """Along `main`, oldest first, over what is retained. Snapshots of other writers carry no offsets and are passed over.

    A rewind may take offsets back, to those of the snapshot that it names and no others.
    """
    snapshots = list(ancestry(table.metadata, table.head_id))[::-1]
    owners: dict[int, str] = {}
    offsets: dict[str, int] = {}
    epoch, time_ms = 0, 0
    at: dict[str, dict[str, int]] = {}
    for snapshot in snapshots:
        at[str(snapshot["snapshot-id"])] = offsets
        where = f"snapshot {snapshot['snapshot-id']}"
        subject = str(table.name)
        if snapshot["timestamp-ms"] < time_ms:
            yield Breach("I14", subject, f"{where} is dated {snapshot['timestamp-ms']} ms, before its parent at {time_ms} ms")
        time_ms = snapshot["timestamp-ms"]
        summary: Mapping[str, Any] = snapshot.get("summary") or {}
        if EPOCH not in summary:
            continue
        if int(summary[EPOCH]) < epoch:
            yield Breach(
                "I14", subject, f"{where} was committed under epoch {summary[EPOCH]} after epoch {epoch}: a writer that was replaced"
            )
        epoch = int(summary[EPOCH])
        owner = owners.setdefault(epoch, str(summary.get(INSTANCE, "")))
        if owner != summary.get(INSTANCE, ""):
            yield Breach("I12", subject, f"{where}: epoch {epoch} belongs to writer {owner}, not to {summary.get(INSTANCE)}")
        if REWIND in summary:
            yield from _verify_rewind(table, where, offsets_in(summary), at.get(summary[REWIND]))
            offsets = {}
        offsets = dict(offsets)
        for log_id, offset in offsets_in(summary).items():
            if offset < offsets.get(log_id, 0):
                yield Breach("I4", subject, f"{where} takes log {log_id} back from offset {offsets[log_id]} to {offset}")
            offsets[log_id] = offset
        at[str(snapshot["snapshot-id"])] = offsets
    yield from _verify_head(table, offsets, epoch)


def _verify_rewind(table: LoadedTable, where: str, stated: Mapping[str, int], then: Mapping[str, int] | None) -> Iterator[Breach]:
    """`then` are the offsets of the snapshot it goes back to; None where that is gone."""
    if not then:  # Or it is others' from before anything that tells.
        return
    begins = table.begins()
    for log_id, offset in stated.items():
        if offset != max(then.get(log_id, 0), begins.get(log_id, 0)):
            sentence = f"{where} rewinds log {log_id} to offset {offset}, and the snapshot it names is at {then.get(log_id, 0)}"
            yield Breach("I4", str(table.name), sentence)


def _verify_head(table: LoadedTable, offsets: Mapping[str, int], epoch: int) -> Iterator[Breach]:
    """The properties say what the newest of our snapshots says: else somebody took one of the two back."""
    if not offsets:
        return
    for log_id, offset in table.offsets().items():
        if offsets.get(log_id, offset) != offset:
            yield Breach("I4", str(table.name), f"property says offset {offset} of log {log_id}, the newest snapshot {offsets[log_id]}")
    if table.owner_epoch != epoch:
        yield Breach("I14", str(table.name), f"property says epoch {table.owner_epoch}, the newest snapshot {epoch}")
