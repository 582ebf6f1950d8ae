"""Dead letters as the checks see them come about: each event judged before its row could be there, once, and never otherwise."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import orjson

from dolake.iceberg.metadata import LoadedTable
from dolake.parquet.letters import DEAD, EXPIRED, REPLAYED, SUPERSEDED
from dolake.writer.replay import NOT_KEPT_OUT, OVERTAKEN
from tests.simulation.invariants import BESIDE, NEVER_OUT, Committed, Event, Journal, named
from tests.simulation.mirror import REASONS
from tests.simulation.sources import Fits

Spot = tuple[str, int, int]
"""Log, offset, index: where an event lies."""
Key = tuple[str, Spot, Spot, datetime, str]
"""Of a row: table, where the event was sent first and where last, when it was judged and how."""
EMPTIED = {"event": b"", "value": ""}


@dataclass
class Letters:
    """All verdicts in the order in which they were committed. `seen`: table → where the event lay that was judged → the verdict."""

    history: Committed = field(default_factory=Committed)
    seen: dict[str, dict[Spot, Mapping[str, Any]]] = field(default_factory=dict)
    outcomes: dict[tuple[str, Spot], list[str]] = field(default_factory=dict)
    by_event: dict[str, dict[Event, list[str]]] = field(default_factory=dict)
    counted: dict[str, set[Spot]] = field(default_factory=dict)
    rows: dict[Key, Mapping[str, Any]] = field(default_factory=dict)

    def note(
        self, rows: Sequence[Mapping[str, Any]], after: LoadedTable, journal: Journal, tables: Mapping[str, LoadedTable]
    ) -> Iterator[str]:
        """What the last commit brought; `tables` are as committed by now."""
        for row in rows:
            table, spot = row["table_name"], _spot(row)
            self.rows[_key(row)] = row
            known = self.seen.setdefault(table, {})
            where = f"{after.name}: {table} {spot}"
            if row["rule"] == OVERTAKEN and row["replayed_log"] is None and row["outcome"] == SUPERSEDED:
                yield from self._note_overtaken(where, row, spot)
                continue
            taken_back = spot in known and (known[spot]["outcome"], row["outcome"]) == (REPLAYED, DEAD)  # No row could be made of it.
            if spot in known and not taken_back:
                yield f"I13: {where} is judged twice: {known[spot]['outcome']}, {row['outcome']}"
            if spot[1] >= after.offsets().get(f"{table}/{spot[0]}", 0):
                yield f"I7: {where} lies at or above the bound below which verdicts stand"
            if table in tables and spot[1] < (committed := tables[table].offsets().get(spot[0], 0)):
                yield f"I13: {where} is judged when {table} has committed up to {committed}"
            known[spot] = row
            yield from self._note_outcome(where, row, journal, taken_back=taken_back)

    def check_rewrite(self, rows: Sequence[Mapping[str, Any]], after: LoadedTable) -> Iterator[str]:
        """I9 for the letters: what came with a rewrite is what there was, or that without what was received."""
        for row in rows:
            before = self.rows.get(_key(row))
            expired = {**before, **EMPTIED, "outcome": row["outcome"]} if before is not None else None
            if row not in (before, expired):
                yield f"I9: {after.name}: a rewrite made {row} of {before}"
        summary = after.head["summary"] if after.head is not None else {}
        if summary.get("added-records") != summary.get("deleted-records") and rows:
            yield f"I9: {after.name}: a rewrite made {summary.get('added-records')} rows of {summary.get('deleted-records')}"

    def check_whole(self, rows: Sequence[Mapping[str, Any]], after: LoadedTable) -> Iterator[str]:
        """Every verdict is there, once; `rows` are all of the table's."""
        found, wanted = Counter(map(_key, rows)), Counter(self.rows.keys())
        if found != wanted:
            yield f"I9: {after.name}: missing are {list(wanted - found)}, too many {list(found - wanted)}"

    def _note_overtaken(self, where: str, row: Mapping[str, Any], spot: Spot) -> Iterator[str]:
        """A later event of its key is about to come to a mirror: it is not to be sent again."""
        before = self.outcomes.setdefault((row["table_name"], spot), [])
        if before[-1:] != [DEAD]:
            yield f"I13: {where} is overtaken after {before}"
        before.append(SUPERSEDED)
        self.seen[row["table_name"]][spot] = row

    def _note_outcome(self, where: str, row: Mapping[str, Any], journal: Journal, *, taken_back: bool) -> Iterator[str]:
        event, outcome = named(row), row["outcome"]
        first = (row["_cdc_log"], row["_cdc_offset"], row["_cdc_index"])
        before = self.outcomes.setdefault((row["table_name"], first), [])
        self.by_event.setdefault(row["table_name"], {})[event] = before
        if taken_back:
            before.remove(REPLAYED)
        if before == [NEVER_OUT]:  # So it was said of a letter from another table before this one came to judge its event.
            if row["replayed_log"] is not None:
                return
            before.clear()
        if row["rule"] == NOT_KEPT_OUT and outcome == SUPERSEDED and not before:
            before.append(NEVER_OUT)
            return
        if (row["replayed_log"] is None) == bool(before):
            yield f"I13: {where}: {outcome} comes after {before}"
        if outcome == REPLAYED and before[-1:] != [DEAD]:
            yield f"I13: {where} is applied again after {before}"
        before.append(outcome)
        sent = journal.sent.get(event)
        if sent is None:
            yield f"I13: {where}: {event} was never sent"
            return
        raw = orjson.loads(row["event"])
        if sent["table"] != row["table_name"].removesuffix(BESIDE) or {**raw, "table": ""} != {**sent["event"], "table": ""}:
            yield f"I13: {where} is said to be {raw}, sent was {sent}"
        if (
            row["reason"] not in REASONS
            and sent["fits"] is (Fits.ALWAYS if outcome == DEAD else Fits.NEVER)
            and outcome in (DEAD, REPLAYED)
        ):
            yield f"I13: {where} is {outcome}: {row['rule']}; it fits {sent['fits'].value}"

    def kept_out(self, table: LoadedTable) -> set[Spot]:
        """Of what the table has committed, the events that make no row of it."""
        offsets = table.offsets()
        judged = self.seen.get(str(table.name), {})
        return {spot for spot, row in judged.items() if row["outcome"] != REPLAYED and spot[1] < offsets.get(spot[0], 0)}

    def check_table(self, table: LoadedTable, rows: Mapping[Spot, Any], *, is_whole: bool) -> Iterator[str]:
        """After a commit of `table`: rows and letters are apart, and what was sent again and applied is a row.

        `is_whole` False: of a changelog that is off at times, when its log may let go of what was to become a row (seed 441168).
        """
        offsets = table.offsets()
        for spot, row in self.seen.get(str(table.name), {}).items():
            is_row, is_below = spot in rows, spot[1] < offsets.get(spot[0], 0)
            wanted = is_below and row["outcome"] == REPLAYED
            if is_row != wanted and (is_row or is_whole):
                yield f"I13: {table.name}: {spot} is {row['outcome']} and {'a row' if is_row else 'no row'}, committed is {offsets}"

    def awaits_rows(self, tables: Mapping[str, LoadedTable]) -> bool:
        """Whether an event was let in that its table has not committed past: the verdict stands before the row."""
        for name, judged in self.seen.items():
            offsets = tables[name].offsets() if name in tables else {}
            if any(row["outcome"] == REPLAYED and spot[1] >= offsets.get(spot[0], 0) for spot, row in judged.items()):
                return True
        return False

    def take_fresh(self, table: LoadedTable) -> set[Event]:
        """The events that the last commit of `table` has passed and that are dead letters."""
        counted = self.counted.setdefault(str(table.name), set())
        fresh = self.kept_out(table) - counted
        counted |= fresh
        rows = [self.seen[str(table.name)][spot] for spot in fresh]
        return {named(row) for row in rows}

    def verdict(self, table: str, spot: Spot) -> Mapping[str, Any] | None:
        """The newest on the event that lies there."""
        return self.seen.get(table, {}).get(spot)

    def is_judged_again(self, table: str, first: Spot) -> bool:
        """Whether something was decided of it since, if only that it was another table's letter."""
        outcomes = self.outcomes.get((table, first), ())
        return len(outcomes) > 1 or NEVER_OUT in outcomes

    def came_again(self, table: str) -> set[Spot]:
        """Places of rows that were dead letters once."""
        return {spot for spot, row in self.seen.get(table, {}).items() if row["outcome"] == REPLAYED}

    def counts(self) -> Counter[str]:
        return Counter(f"verdicts: {row['outcome']}" for known in self.seen.values() for row in known.values())


def _key(row: Mapping[str, Any]) -> Key:
    first = (row["_cdc_log"], row["_cdc_offset"], row["_cdc_index"])
    return row["table_name"], first, _spot(row), row["judged_at"], DEAD if row["outcome"] == EXPIRED else row["outcome"]


def _spot(row: Mapping[str, Any]) -> Spot:
    """Where the event lay that was judged: where it was sent last."""
    if row["replayed_log"] is None:
        return (row["_cdc_log"], row["_cdc_offset"], row["_cdc_index"])
    return (row["replayed_log"], row["replayed_offset"], row["replayed_index"])
