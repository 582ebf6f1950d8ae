"""Dead letters against their tables: each event judged once, and nowhere twice (I7, I13)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from dolake.iceberg.metadata import LoadedTable
from dolake.verify.breach import Breach

LETTER_COLUMNS = [
    "table_name", "_cdc_log", "_cdc_offset", "_cdc_index", "outcome", "judged_at", "replayed_log", "replayed_offset", "replayed_index",
]  # fmt: skip
DEAD_COUNT = "dolake.count.dead-lettered"
SHOWN_MAX = 5
_REPLAYED, _DEAD, _EXPIRED = "replayed", "dead", "expired"
# No row could be made of it any more when a writer that died had decided that it is one, and had not committed that.
_TAKEN_BACK = [_REPLAYED, _DEAD]
# A later event of its key has come to a mirror.
_OVERTAKEN = [_DEAD, "superseded"]

Place = tuple[str, int, int]


@dataclass(frozen=True)
class JudgedEvents:
    """Table → the places of its events that verdicts are on (where they were sent last), each with what was decided, oldest first.

    What has expired was decided to be dead.

    `firsts`: table → each such place → where the event was sent first.
    """

    by_table: Mapping[str, Mapping[Place, Sequence[str]]] = field(default_factory=dict)
    firsts: Mapping[str, Mapping[Place, Place]] = field(default_factory=dict)

    @classmethod
    def of(cls, rows: Sequence[Mapping[str, Any]]) -> JudgedEvents:
        found: dict[str, dict[Place, list[str]]] = {}
        firsts: dict[str, dict[Place, Place]] = {}
        for row in sorted(rows, key=lambda row: row["judged_at"]):
            first = (row["_cdc_log"], row["_cdc_offset"], row["_cdc_index"])
            place = first if row["replayed_log"] is None else (row["replayed_log"], row["replayed_offset"], row["replayed_index"])
            outcome = _DEAD if row["outcome"] == _EXPIRED else row["outcome"]
            found.setdefault(row["table_name"], {}).setdefault(place, []).append(outcome)
            firsts.setdefault(row["table_name"], {})[place] = first
        return cls(found, firsts)

    def kept_out(self, table: LoadedTable) -> list[Place]:
        """Places below the table's own offsets whose events make no row of it; those of one that was dropped are not its."""
        offsets, begins = table.offsets(), table.begins()
        judged = self.by_table.get(str(table.name), {})
        return [
            place
            for place, outcomes in judged.items()
            if outcomes[-1] != _REPLAYED and begins.get(place[0], 0) <= place[1] < offsets.get(place[0], 0)
        ]

    def replayed(self, table: LoadedTable) -> set[Place]:
        """Places of its rows that were dead letters once."""
        judged = self.by_table.get(str(table.name), {})
        return {place for place, outcomes in judged.items() if outcomes[-1] == _REPLAYED}

    def came_later(self, mirror: LoadedTable, changes: LoadedTable) -> set[Place]:
        """Places of events that the mirror has taken when they were sent again, and its changelog had taken before: another order."""
        firsts = self.firsts.get(str(mirror.name), {})
        again = {firsts[place] for place in self.replayed(mirror) - self.replayed(changes)}
        return {place for place, first in firsts.items() if first in again}


def verify_letters(letters: LoadedTable, judged: JudgedEvents) -> Iterator[Breach]:
    """The table of dead letters by itself."""
    subject, bounds = str(letters.name), letters.offsets()
    shown = 0
    for table, places in judged.by_table.items():
        for (log, offset, index), outcomes in places.items():
            if shown == SHOWN_MAX:
                return
            where = f"event {index} of offset {offset} of log {log}, of table {table},"
            if len(outcomes) > 1 and outcomes not in (_TAKEN_BACK, _OVERTAKEN):
                shown += 1
                yield Breach("I13", subject, f"{where} is there {len(outcomes)} times")
            if offset >= bounds.get(f"{table}/{log}", 0):
                shown += 1
                yield Breach("I7", subject, f"{where} lies at or above the offset below which verdicts stand")


def verify_against_letters(table: LoadedTable, rows: pa.Table, judged: JudgedEvents) -> Iterator[Breach]:
    """No event both in its table and among the dead letters, and as many of those as the table says."""
    subject = str(table.name)
    out = judged.kept_out(table)
    wanted = set(out)
    logs, offsets, indexes = (rows[name].to_pylist() if wanted else [] for name in ("_cdc_log", "_cdc_offset", "_cdc_index"))
    both = [place for place in zip(logs, offsets, indexes, strict=True) if place in wanted]
    for log, offset, index in both[:SHOWN_MAX]:
        yield Breach("I13", subject, f"event {index} of offset {offset} of log {log} is a row of it, and a dead letter too")
    yield from verify_letter_count(table, judged)


def verify_letter_count(table: LoadedTable, judged: JudgedEvents) -> Iterator[Breach]:
    """As many dead letters as the table says."""
    stated, count = int(table.properties.get(DEAD_COUNT, "0")), len(judged.kept_out(table))
    if stated != count:
        yield Breach("I13", str(table.name), f"{stated} of its events were kept out as dead letters, and {count} are there")


def count_by_record(places: Sequence[Place]) -> Counter[tuple[str, int]]:
    return Counter((log, offset) for log, offset, _ in places)
