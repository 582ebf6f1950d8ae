"""The shop stream through the wal2json decoder alone: every change an event, and folded they are the final tables."""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Mapping
from datetime import date, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest

from dolake.cdc.formats import Commit, Declare, Event, Item
from dolake.cdc.formats.wal2json import Wal2json
from dolake.model import DeclaredSchema
from tests.shop import COLUMNS, EVENT_COUNT, EVENT_COUNTS, KEYS, Change, as_float32, assert_equals_final, fold, load_event, stream_lines

FROM_WIRE: Mapping[str, Any] = {
    "float": as_float32,
    "double": float,
    "uuid": UUID,
    "date": date.fromisoformat,
    "timestamp": datetime.fromisoformat,
    "timestamptz": datetime.fromisoformat,
    "binary": base64.b64decode,
}


@pytest.fixture(scope="module")
def items() -> list[Item]:
    return list(Wal2json().items(stream_lines()))


def _row(values: Mapping[str, Any] | None, schema: DeclaredSchema, table: str) -> dict[str, Any]:
    row = dict.fromkeys(COLUMNS[table])
    for column in schema.columns:
        value = (values or {}).get(column.name)
        convert = Decimal if column.type.startswith("decimal") else FROM_WIRE.get(column.type, lambda value: value)
        row[column.name] = None if value is None else convert(value)
    return row


def changes_of(items: list[Item], table: str) -> list[Change]:
    """Events of one table as the reference fold wants them."""
    changes = []
    schema: DeclaredSchema | None = None
    for item in items:
        if isinstance(item, Declare) and item.schema.table == f"public.{table}":
            schema = item.schema
        if isinstance(item, Event) and item.table == f"public.{table}":
            assert schema is not None
            event = load_event(item.raw)
            before, after = _row(event.get("before"), schema, table), _row(event.get("after"), schema, table)
            operation = event["operation"]
            old, new = (tuple(row[name] for name in KEYS[table]) for row in (before, after))
            moved = operation == "UPDATE" and event.get("before") is not None and old != new
            changes.append(Change(operation, before if operation == "DELETE" else after, old if moved else None))
    return changes


def test_every_change_is_one_event_numbered_from_one(items: list[Item]) -> None:
    events = [item for item in items if isinstance(item, Event)]
    assert [event.sequence for event in events] == list(range(1, EVENT_COUNT + 1))
    assert Counter(event.table for event in events) == {f"public.{table}": count for table, count in EVENT_COUNTS.items()}
    assert all(load_event(event.raw)["sequence"] == event.sequence for event in events[:100])


def test_transactions_end_where_the_stream_says(items: list[Item]) -> None:
    assert sum(isinstance(item, Commit) for item in items) == 22_210


@pytest.mark.parametrize("table", list(KEYS))
def test_the_folded_events_are_the_final_table(items: list[Item], table: str) -> None:
    changes = changes_of(items, table)
    if table == "customers":
        assert sum(change.key_before is not None for change in changes) == 492
    assert_equals_final(table, fold(table, changes))


def test_each_change_of_columns_is_declared_once_in_its_place(items: list[Item]) -> None:
    declared = [item.schema for item in items if isinstance(item, Declare)]
    assert Counter(schema.table for schema in declared) == {
        "public.customers": 1,
        "public.orders": 2,
        "public.order_lines": 2,
        "public.page_views": 2,
    }
    types = {schema.table: {column.name: column.type for column in schema.columns} for schema in declared}
    assert types["public.orders"]["channel"] == "string"
    assert types["public.order_lines"]["qty"] == "long"
    assert types["public.page_views"]["country"] == "string"
    assert types["public.customers"] == {
        "id": "long",
        "email": "string",
        "name": "string",
        "tier": "int",
        "balance": "decimal(12,2)",
        "tags": "list<string>",
        "profile": "json",
        "created_at": "timestamptz",
        "vip": "boolean",
    }
