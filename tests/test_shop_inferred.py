"""The shop's stream without a single declared column: sensible ones are inferred, and folded in SQL no value is lost.

The keys stand in the configuration, as an operator would put them who has events and no schemas: without them nobody could
tell which change of a key belongs to which row.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator, Mapping
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from dolake.cdc.formats import Event
from dolake.cdc.formats.wal2json import Wal2json
from tests.harness.daemon import Daemon
from tests.harness.lake import Lake
from tests.shop import COLUMNS, EVENT_COUNT, KEYS, as_float32, assert_equals_final, by_key, folded_sql, stream_lines

TABLES = "".join(f'[tables."public.{table}"]\nprimary_key = {json.dumps(key)}\n' for table, key in KEYS.items())
INFERRED = {
    "customers": {
        "id": "long", "email": "string", "name": "string", "tier": "long", "balance": "double", "tags": "string",
        "profile": "string", "created_at": "string", "vip": "boolean",
    },
    "orders": {
        "id": "string", "customer_id": "long", "status": "string", "total": "double", "placed_at": "string", "ship_date": "string",
        "note": "string", "channel": "string",
    },
    "order_lines": {"order_id": "string", "line_no": "long", "sku": "string", "qty": "long", "price": "double", "weight": "double"},
    "page_views": {
        "id": "long", "customer_id": "long", "url": "string", "at": "string", "ms": "long", "agent": "string",
    },
}  # fmt: skip


def _decimal(value: float) -> Decimal:
    return Decimal(repr(value))


# What the text or number of an inferred column stands for, by the type that the database has.
MEANING: Mapping[str, Callable[[Any], Any]] = {
    "balance": _decimal,
    "total": _decimal,
    "tags": json.loads,
    "created_at": datetime.fromisoformat,
    "placed_at": datetime.fromisoformat,
    "at": datetime.fromisoformat,
    "ship_date": date.fromisoformat,
    "order_id": UUID,
    "weight": as_float32,
    "agent": base64.b64decode,
}


def meaning(table: str, name: str, value: Any) -> Any:
    if value is None:
        return None
    return UUID(value) if (table, name) == ("orders", "id") else MEANING.get(name, lambda same: same)(value)


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lake]:
    """What the stream has become, sent as bare events in dolake's own format."""
    directory: Path = tmp_path_factory.mktemp("inferred")
    events = [item.raw for item in Wal2json().items(stream_lines()) if isinstance(item, Event)]
    assert len(events) == EVENT_COUNT
    (directory / "events.ndjson").write_bytes(b"\n".join(events))
    with Daemon(directory / "data", {"DOLAKE_FLUSH_AGE_S": "0.5"}, table_settings=TABLES) as daemon, Lake(daemon.data) as lake:
        daemon.start()
        sent = daemon.run("send", str(directory / "events.ndjson"), "--source", "shop", "--wait", "persisted", "--json", deadline_s=300)
        assert sent.returncode == 0, sent.stderr + daemon.tail()
        assert json.loads(sent.stdout)["events"] == EVENT_COUNT
        verified = daemon.run("verify", deadline_s=300)
        assert verified.returncode == 0, verified.stdout + verified.stderr
        yield lake


@pytest.mark.parametrize("table", list(KEYS))
def test_sensible_columns_are_inferred(lake: Lake, table: str) -> None:
    assert lake.metadata_location("dolake.dead_letters") is None, "nothing was kept out"
    metadata = lake.metadata(f"public.{table}")
    fields = next(schema for schema in metadata["schemas"] if schema["schema-id"] == metadata["current-schema-id"])["fields"]
    assert {field["name"]: field["type"] for field in fields if not field["name"].startswith("_cdc_")} == INFERRED[table]


@pytest.mark.parametrize("table", list(KEYS))
def test_folded_in_sql_no_value_is_lost(lake: Lake, table: str) -> None:
    kinds = {"long": "BIGINT", "string": "VARCHAR"}
    key = {name: kinds[INFERRED[table][name]] for name in KEYS[table]}
    folded = folded_sql(lake.metadata_location(f"public.{table}"), key, INFERRED[table])
    rows = lake.database().execute(folded).to_arrow_table().to_pylist()
    # What is null in every event, `country`, nobody can infer.
    found = [{name: meaning(table, name, row.get(name)) for name in COLUMNS[table]} for row in rows]
    assert_equals_final(table, by_key(table, found))
