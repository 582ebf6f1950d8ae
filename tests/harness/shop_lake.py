"""The shop's tables out of their changelog tables: read by anybody, folded by `tests.shop.fold`, equal to the database."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any
from uuid import UUID

import pyarrow as pa

from tests import shop
from tests.harness.lake import Lake


def assert_shop_is_complete(lake: Lake) -> None:
    """Every change is a row, once, and the four tables fold to what the database had; as DuckDB and as PyIceberg read them."""
    for table, count in shop.EVENT_COUNTS.items():
        for read in (lake.read_duckdb, lake.read_pyiceberg):
            rows = read(f"public.{table}")
            assert len(rows) == count, f"{table}: {len(rows)} rows of {count} events, by {read.__name__}"
            shop.assert_equals_final(table, shop.fold(table, changes(table, rows)))


def changes(table: str, rows: pa.Table) -> Iterator[shop.Change]:
    """The rows of a changelog table in the order of its log, as values of the shop's own types."""
    for row in rows.sort_by([("_cdc_log", "ascending"), ("_cdc_offset", "ascending"), ("_cdc_index", "ascending")]).to_pylist():
        assert not row["_cdc_unchanged"], "the shop has no columns that were not sent"
        values = {name: _plain(row.get(name), convert) for name, convert in shop.COLUMNS[table].items()}
        before = None
        if row["_cdc_key_before"] is not None:
            key = json.loads(row["_cdc_key_before"])
            before = tuple(_plain(key[name], shop.COLUMNS[table][name]) for name in shop.KEYS[table])
        yield shop.Change(row["_cdc_operation"], values, before)


def _plain(value: Any, convert: Any) -> Any:
    """Readers differ in how they hand out a uuid; every other type is Python's own."""
    if value is None or convert is not UUID or isinstance(value, UUID):
        return value
    return UUID(bytes=value) if isinstance(value, bytes) else UUID(value)
