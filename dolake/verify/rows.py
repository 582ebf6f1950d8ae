"""Rows of a changelog table: each event once, below the committed offsets, in its source's order (I3, I7), none missing (I13)."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

import pyarrow as pa
import pyarrow.compute as pc

from dolake.iceberg.metadata import LoadedTable
from dolake.iceberg.skipped import is_skipped, skipped_in
from dolake.verify.breach import Breach, Note

PLACE = ["_cdc_log", "_cdc_offset", "_cdc_index"]
PLACE_COLUMNS = [*PLACE, "_cdc_source", "_cdc_epoch", "_cdc_sequence"]
ACCEPTED, ROLLED_BACK_COUNT, EXPIRED_COUNT = "dolake.count.accepted", "dolake.count.rolled-back", "dolake.count.expired"
SHOWN_MAX = 5  # A broken table breaks everywhere: the first few places say it.


def verify_rows(
    table: LoadedTable,
    rows: pa.Table,
    dead_count: int = 0,
    replayed: Collection[tuple[str, int, int]] = (),
    *,
    others_were_here: bool = False,
) -> Iterator[Breach | Note]:
    """`rows` holds PLACE_COLUMNS of every row of the head snapshot; `dead_count` events were kept out of it.

    `replayed`: places of rows that were dead letters and came again, late, under the numbers they had.
    """
    subject = str(table.name)
    yield from _verify_once(subject, rows)
    yield from _verify_below_committed(subject, rows, table.offsets())
    yield from _verify_source_order(subject, _without(rows, replayed))
    accepted = table.properties.get(ACCEPTED)
    rolled_back, expired = int(table.properties.get(ROLLED_BACK_COUNT, "0")), expired_count(table)
    if accepted is not None and int(accepted) - rolled_back - expired != rows.num_rows + dead_count:
        letters = f" and {dead_count} dead letters" if dead_count else ""
        less = (f", {rolled_back} of them rolled back" if rolled_back else "") + (f", {expired} rows of it expired" if expired else "")
        sentence = f"{accepted} events were accepted for it up to its offsets{less}, and {rows.num_rows} rows{letters} are there"
        if expired and others_were_here:  # Rows of theirs have expired with its own, and both are counted as one.
            yield Note(subject, f"{sentence}; others have written it too: whose rows have expired is not known")
        else:
            yield Breach("I13", subject, sentence)


def expired_count(table: LoadedTable) -> int:
    """Rows that its TTL has removed."""
    return int(table.properties.get(EXPIRED_COUNT, "0"))


def _without(rows: pa.Table, places: Collection[tuple[str, int, int]]) -> pa.Table:
    if not places:
        return rows
    found = zip(*(rows[name].to_pylist() for name in PLACE), strict=True)
    return rows.filter(pa.array([place not in places for place in found], pa.bool_()))


def _verify_once(subject: str, rows: pa.Table) -> Iterator[Breach]:
    counts = rows.group_by(PLACE).aggregate([([], "count_all")])
    for place in counts.filter(pc.greater(counts["count_all"], 1)).slice(0, SHOWN_MAX).to_pylist():
        yield Breach("I7", subject, f"event {place['_cdc_index']} of {_where(place)} is there {place['count_all']} times")


def _verify_below_committed(subject: str, rows: pa.Table, offsets: Mapping[str, int]) -> Iterator[Breach]:
    last = rows.group_by(["_cdc_log"]).aggregate([("_cdc_offset", "max")])
    for log in last.to_pylist():
        committed = offsets.get(log["_cdc_log"], 0)
        if log["_cdc_offset_max"] >= committed:
            yield Breach(
                "I7",
                subject,
                f"has rows of offset {log['_cdc_offset_max']} of log {log['_cdc_log']}, committed is only what is below {committed}",
            )


def _verify_source_order(subject: str, rows: pa.Table) -> Iterator[Breach]:
    """In the order of a log, the sequences of one source and epoch rise: none came twice, none came late."""
    ordered = rows.select(PLACE_COLUMNS).sort_by([(name, "ascending") for name in ["_cdc_source", "_cdc_epoch", *PLACE]]).combine_chunks()
    if ordered.num_rows < 2:
        return
    before, after = ordered.slice(0, ordered.num_rows - 1), ordered.slice(1)
    same = None
    for name in ("_cdc_source", "_cdc_epoch", "_cdc_log"):
        equal = pc.equal(before[name], after[name])
        same = equal if same is None else pc.and_(same, equal)
    broken = pc.and_(same, pc.greater_equal(before["_cdc_sequence"], after["_cdc_sequence"]))
    for row in after.filter(broken).slice(0, SHOWN_MAX).to_pylist():
        yield Breach(
            "I3",
            subject,
            f"event {row['_cdc_index']} of {_where(row)}: sequence {row['_cdc_sequence']} of source {row['_cdc_source']!r} does not rise",
        )


def verify_against_log(
    table: LoadedTable, rows: pa.Table, logged: pa.Table, dead: Mapping[tuple[str, int], int] | None = None
) -> Iterator[Breach | Note]:
    """`logged` counts this table's events by `log`, `offset` for every record that the logs still hold; `dead` its letters.

    Of a record that a rollback has taken out nothing but its letters is there. As many rows may be missing as have expired.
    """
    subject, offsets, begins = str(table.name), table.offsets(), table.begins()
    here = rows.group_by(["_cdc_log", "_cdc_offset"]).aggregate([([], "count_all")])
    found = {(row["_cdc_log"], row["_cdc_offset"]): row["count_all"] for row in here.to_pylist()}
    skipped = skipped_in(table.properties)
    shown = missing = 0
    expired = expired_count(table)
    for record in logged.to_pylist():
        if not begins.get(record["log"], 0) <= record["offset"] < offsets.get(record["log"], 0) or shown == SHOWN_MAX:
            continue
        letters = (dead or {}).get((record["log"], record["offset"]), 0)
        count = found.get((record["log"], record["offset"]), 0) + letters
        if is_skipped(skipped, record["log"], record["offset"]):
            if count > letters and (shown := shown + 1) <= SHOWN_MAX:
                sentence = f"offset {record['offset']} of log {record['log']} was rolled back, and {count - letters} rows of it are there"
                yield Breach("I7", subject, sentence)
        elif count < record["events"] and expired:
            missing += record["events"] - count
        elif count != record["events"]:
            shown += 1
            yield Breach(
                "I7",
                subject,
                f"offset {record['offset']} of log {record['log']} holds {record['events']} events of it, committed are {count}",
            )
    if missing > expired:
        yield Breach("I7", subject, f"{missing} events of it in the logs have no row, and {expired} rows of it have expired")
    elif missing:
        yield Note(subject, f"{missing} events of it in the logs have no row: as many rows may have expired, which --against log tells")


def _where(place: Mapping[str, object]) -> str:
    return f"offset {place['_cdc_offset']} of log {place['_cdc_log']}"
