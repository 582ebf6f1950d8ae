"""What snapshots say of all their files, against the manifests they name (I10)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping

from dolake.iceberg.contents import Contents, LiveFile
from dolake.iceberg.metadata import EPOCH, LoadedTable
from dolake.verify.breach import Breach, Note
from dolake.verify.rows import SHOWN_MAX

_TOTALS = ("total-data-files", "total-records", "total-delete-files", "total-position-deletes")


def verify_totals(table: LoadedTable, contents: Mapping[int, Contents]) -> Iterator[Breach | Note]:
    """`contents` of every retained snapshot, by its id.

    A total is the one before with what changed. So whoever was the first to be wrong is named, and nobody who went on from there.
    """
    wrong: dict[int, dict[str, int]] = {}
    snapshots = sorted(table.metadata.get("snapshots") or (), key=lambda snapshot: snapshot.get("sequence-number", 0))
    shown = 0
    for snapshot in snapshots:
        number, summary = snapshot["snapshot-id"], snapshot.get("summary") or {}
        held = _held(contents[number].files)
        found = {name: int(summary[name]) - held[name] for name in _TOTALS if name in summary}
        wrong[number] = found
        before = wrong.get(snapshot.get("parent-snapshot-id") or -1, {})
        for name, off in found.items():
            if off and off != before.get(name, 0) and shown < SHOWN_MAX:
                shown += 1
                sentence = f"snapshot {number} says {name} {summary[name]}, and its manifests hold {held[name]}"
                ours = EPOCH in summary
                yield Breach("I10", str(table.name), sentence) if ours else Note(str(table.name), f"{sentence} (somebody else wrote it)")


def _held(files: tuple[LiveFile, ...]) -> Counter[str]:
    held: Counter[str] = Counter()
    for file in files:
        if file.kind == "data":
            held["total-data-files"] += 1
            held["total-records"] += file.row_count
        else:
            held["total-delete-files"] += 1
            held["total-position-deletes"] += file.row_count if file.kind == "position deletes" else 0
    return held
