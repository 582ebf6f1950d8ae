"""Cuts: what the tables of a group have in common where they were committed together (I16)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from dolake.iceberg.metadata import CUT, CUT_TABLES, GROUP, LoadedTable, ancestry, offsets_in
from dolake.iceberg.points import LSN_PREFIX
from dolake.verify.breach import Breach


@dataclass(frozen=True)
class _Part:
    """One table's snapshot of a cut. `moved`: the logs that it has come further in, as far as the snapshot before tells."""

    table: str
    time_ms: int
    lsns: Mapping[str, str]
    offsets: Mapping[str, int]
    moved: frozenset[str]
    table_count: int


def verify_cuts(tables: Iterable[LoadedTable]) -> Iterator[Breach]:
    """Over all retained snapshots of `main`. A cut may be known to fewer tables than it had: others have expired it, or are gone."""
    cuts: dict[tuple[str, str], list[_Part]] = {}
    for table in tables:
        for cut, part in _parts(table):
            cuts.setdefault(cut, []).append(part)
    for (group, number), parts in sorted(cuts.items(), key=lambda item: (item[0][0], int(item[0][1]))):
        for sentence in _compare(parts):
            yield Breach("I16", f"group {group}", f"cut {number}: {sentence}")


def _parts(table: LoadedTable) -> Iterator[tuple[tuple[str, str], _Part]]:
    before: Mapping[str, int] | None = None
    for snapshot in list(ancestry(table.metadata, table.head_id))[::-1]:
        summary = snapshot.get("summary") or {}
        offsets = offsets_in(summary)
        if CUT in summary:
            moved = () if before is None else (log for log in offsets if offsets[log] != before.get(log, 0))
            lsns = {key: lsn for key, lsn in summary.items() if key.startswith(LSN_PREFIX)}
            count = int(summary.get(CUT_TABLES, "0"))
            yield (
                (str(summary.get(GROUP, "")), str(summary[CUT])),
                _Part(str(table.name), snapshot["timestamp-ms"], lsns, offsets, frozenset(moved), count),
            )
        before = offsets or before


def _compare(parts: list[_Part]) -> Iterator[str]:
    first = parts[0]
    if len(parts) > first.table_count:
        names = ", ".join(part.table for part in parts)
        yield f"it was committed with {first.table_count} tables, and {len(parts)} have it: {names}"
    for part in parts[1:]:
        for what, here, there in (
            ("the number of its tables", first.table_count, part.table_count),
            ("its time", first.time_ms, part.time_ms),
            ("its lsns", dict(first.lsns), dict(part.lsns)),
        ):
            if here != there:
                yield f"{first.table} and {part.table} do not say the same of {what}: {here} and {there}"
    for log_id in sorted({log for part in parts for log in part.moved}):
        ends = {part.table: part.offsets.get(log_id, 0) for part in parts}
        if len(set(ends.values())) > 1:
            said = ", ".join(f"{table} at {end}" for table, end in ends.items())
            yield f"its tables are at different places of log {log_id}: {said}"
