"""What verdicts say of the order in which a mirror and its changelog took an event."""

from __future__ import annotations

from typing import Any

from dolake.iceberg.metadata import LoadedTable
from dolake.model import TableName
from dolake.verify.letters import JudgedEvents

MIRROR, CHANGES = "default.orders", "default.orders__changes"


def verdict(table: str, first: int, outcome: str, at: int, replayed: int | None = None) -> dict[str, Any]:
    again = {"replayed_log": None if replayed is None else "log", "replayed_offset": replayed, "replayed_index": replayed and 0}
    return {"table_name": table, "_cdc_log": "log", "_cdc_offset": first, "_cdc_index": 0, "outcome": outcome, "judged_at": at, **again}


def came_later(*rows: dict[str, Any]) -> set[tuple[str, int, int]]:
    mirror, changes = (LoadedTable(TableName.in_lake(name), {}, "") for name in (MIRROR, CHANGES))
    return JudgedEvents.of(rows).came_later(mirror, changes)


def test_an_event_that_only_the_mirror_had_refused_came_later_to_it() -> None:
    refused = [verdict(MIRROR, 21, "dead", 1), verdict(MIRROR, 25, "dead", 2)]
    assert came_later(*refused) == set()
    taken = [verdict(MIRROR, 21, "replayed", 3, 29), verdict(CHANGES, 21, "superseded", 3, 29)]
    assert came_later(*refused, *taken) == {("log", 21, 0), ("log", 29, 0)}


def test_an_event_that_both_had_refused_and_both_take_comes_to_both_in_one_order() -> None:
    refused = [verdict(MIRROR, 21, "dead", 1), verdict(CHANGES, 21, "dead", 1)]
    assert came_later(*refused, verdict(MIRROR, 21, "replayed", 2, 29), verdict(CHANGES, 21, "replayed", 2, 29)) == set()


def test_an_event_that_the_changelog_took_at_an_earlier_try_came_later_from_every_place_where_it_was() -> None:
    refused = [verdict(MIRROR, 21, "dead", 1), verdict(CHANGES, 21, "dead", 1)]
    first = [verdict(MIRROR, 21, "dead", 2, 29), verdict(CHANGES, 21, "replayed", 2, 29)]
    second = [verdict(MIRROR, 21, "replayed", 3, 35), verdict(CHANGES, 21, "superseded", 3, 35)]
    assert came_later(*refused, *first, *second) == {("log", 21, 0), ("log", 29, 0), ("log", 35, 0)}
