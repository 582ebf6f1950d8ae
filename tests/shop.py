"""The shop stream and what must come of it: a change stream captured from PostgreSQL, and its tables as they ended.

`expected(table)` reads a final CSV with every value exact; `fold` is the reference fold of a changelog: the last event of
a key wins, deletes, key changes and truncates remove. Tests put the same values through both and compare rows.
"""

from __future__ import annotations

import gzip
import json
import struct
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import pyarrow as pa
import pyarrow.csv as pa_csv

SHOP = Path(__file__).parent / "data" / "shop"
STREAM = SHOP / "shop.wal2json.ndjson.gz"
EVENT_COUNT = 71_006  # 71,005 changes and the truncate
EVENT_COUNTS = {"customers": 3_000 + 8_518 + 618, "orders": 7_230 + 15_646, "order_lines": 21_673 + 5_692, "page_views": 8_628 + 1}
ORDERS_BEFORE_CHANNEL = 2_502  # last changed before the column existed: the database filled it in without sending a change

Row = dict[str, Any]
Key = tuple[Any, ...]


def as_float32(value: float | str) -> float:
    """The nearest single-precision number, as a double."""
    (single,) = struct.unpack("f", struct.pack("f", float(value)))
    return float(single)


def _tags(literal: str) -> list[str]:
    return literal.strip("{}").split(",")  # The shop's tags hold no quotes.


def _bytea(text: str) -> bytes:
    return bytes.fromhex(text.removeprefix("\\x"))


_TEXT: Callable[[str], Any] = str
COLUMNS: Mapping[str, Mapping[str, Callable[[str], Any]]] = {
    "customers": {
        "id": int,
        "email": _TEXT,
        "name": _TEXT,
        "tier": int,
        "balance": Decimal,
        "tags": _tags,
        "profile": _TEXT,
        "created_at": datetime.fromisoformat,
        "vip": lambda text: text == "t",
    },
    "orders": {
        "id": UUID,
        "customer_id": int,
        "status": _TEXT,
        "total": Decimal,
        "placed_at": datetime.fromisoformat,
        "ship_date": date.fromisoformat,
        "note": _TEXT,
        "channel": _TEXT,
    },
    "order_lines": {"order_id": UUID, "line_no": int, "sku": _TEXT, "qty": int, "price": float, "weight": as_float32},
    "page_views": {
        "id": int,
        "customer_id": int,
        "url": _TEXT,
        "at": datetime.fromisoformat,
        "ms": int,
        "agent": _bytea,
        "country": _TEXT,
    },
}
KEYS = {"customers": ("id",), "orders": ("id",), "order_lines": ("order_id", "line_no"), "page_views": ("id",)}


def expected(table: str) -> dict[Key, Row]:
    """A table as the database had it at the end, by key."""
    columns = COLUMNS[table]
    with gzip.open(SHOP / f"{table}.final.csv.gz") as file:
        texts = pa_csv.read_csv(
            file,
            parse_options=pa_csv.ParseOptions(newlines_in_values=True),
            convert_options=pa_csv.ConvertOptions(
                column_types=dict.fromkeys(columns, pa.string()),
                strings_can_be_null=True,
                quoted_strings_can_be_null=False,
                null_values=[""],
            ),
        )
    rows = [{name: None if text is None else columns[name](text) for name, text in row.items()} for row in texts.to_pylist()]
    return by_key(table, rows)


def by_key(table: str, rows: Iterable[Row]) -> dict[Key, Row]:
    """Fails when two rows have one key."""
    found: dict[Key, Row] = {}
    for row in rows:
        key = tuple(row[name] for name in KEYS[table])
        assert key not in found, f"{table}: two rows for {key}"
        found[key] = row
    return found


def assert_equals_final(table: str, rows: dict[Key, Row]) -> None:
    """`rows`, folded from the stream, are the final table; `channel` as the README of the data says."""
    final = expected(table)
    assert rows.keys() == final.keys()
    if table == "orders":
        without_channel = [row for row in rows.values() if row["channel"] is None]
        assert len(without_channel) == ORDERS_BEFORE_CHANNEL
        rows = {key: {**row, "channel": "web" if row["channel"] is None else row["channel"]} for key, row in rows.items()}
    differences = [(key, name, rows[key][name], row[name]) for key, row in final.items() for name in row if rows[key][name] != row[name]]
    assert not differences, differences[:5]
    for key, row in final.items():
        kinds = {name: (type(rows[key][name]), type(value)) for name, value in row.items() if type(rows[key][name]) is not type(value)}
        assert not kinds, (key, kinds)  # Decimal("1.5") == 1.5 would pass for exact.


@dataclass(frozen=True)
class Change:
    """One event in the order of its log."""

    operation: str
    row: Row
    key_before: Key | None = None


def fold(table: str, changes: Iterable[Change]) -> dict[Key, Row]:
    """The table as its changes leave it."""
    rows: dict[Key, Row] = {}
    for change in changes:
        step(table, rows, change)
    return rows


def step(table: str, rows: dict[Key, Row], change: Change) -> None:
    """What one change does to the table."""
    if change.operation == "TRUNCATE":
        rows.clear()
        return
    key = tuple(change.row[name] for name in KEYS[table])
    if change.operation == "DELETE":
        del rows[key]
        return
    if change.key_before is not None:
        del rows[change.key_before]
    rows[key] = change.row


def stream_lines() -> list[bytes]:
    with gzip.open(STREAM) as file:
        return file.read().splitlines()


def load_event(raw: bytes) -> Any:
    """An event with decimals for every number that is not an integer: no float has touched it."""
    return json.loads(raw, parse_float=Decimal)


def folded_sql(location: str, key: Mapping[str, str], names: Iterable[str]) -> str:
    """The current rows of a table, these columns of them, from its changelog alone. `key`: the key's columns with their SQL types."""
    keys = ", ".join(key)
    old_key = ", ".join(f"(_cdc_key_before ->> '{name}')::{kind}" for name, kind in key.items())
    columns = ", ".join(f"events.{name}" for name in names)
    return f"""
        WITH events AS (
            SELECT *, row_number() OVER (ORDER BY _cdc_log, _cdc_offset, _cdc_index) AS place FROM iceberg_scan('{location}')
        ),
        touched AS (
            SELECT {keys}, place, 1 AS step, _cdc_operation <> 'DELETE' AS present FROM events WHERE _cdc_operation <> 'TRUNCATE'
            UNION ALL
            SELECT {old_key}, place, 0, false FROM events WHERE _cdc_key_before IS NOT NULL
        ),
        last AS (SELECT * FROM touched QUALIFY row_number() OVER (PARTITION BY {keys} ORDER BY place DESC, step DESC) = 1)
        SELECT {columns} FROM events JOIN last USING (place)
        WHERE present AND place > (SELECT coalesce(max(place), 0) FROM events WHERE _cdc_operation = 'TRUNCATE')
    """
