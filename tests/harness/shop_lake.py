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


def assert_mirrors_are_the_database(lake: Lake, namespace: str = "public") -> None:
    """The four mirrors are what the database had in the end; as DuckDB and as PyIceberg read them."""
    for table in shop.KEYS:
        for read in (lake.read_duckdb, lake.read_pyiceberg):
            shop.assert_equals_final(table, shop.by_key(table, mirror_rows(table, read(f"{namespace}.{table}"))))


def assert_every_snapshot_is_the_fold(lake: Lake, table: str, namespace: str = "public") -> int:
    """Each retained snapshot of a mirror holds what its changelog folds to below the snapshot's own offset; how many there are.

    The table has one log, and its changelog beside it holds every event from the first.
    """
    name = f"{namespace}.{table}"
    log_of = lake.read_duckdb(f"{name}__changes").sort_by([("_cdc_offset", "ascending"), ("_cdc_index", "ascending")])
    offsets = log_of.column("_cdc_offset").to_pylist()
    events = list(changes(table, log_of))
    place, rows = 0, {}
    location = lake.metadata_location(name)
    snapshots = sorted(lake.snapshots(name), key=lambda snapshot: snapshot["sequence-number"])
    for snapshot in snapshots:
        (offset,) = [int(value) for key, value in snapshot["summary"].items() if key.startswith("dolake.offset.")]
        while place < len(events) and offsets[place] < offset:
            shop.step(table, rows, events[place])
            place += 1
        scan = f"SELECT * FROM iceberg_scan('{location}', snapshot_from_id => {snapshot['snapshot-id']})"
        found = shop.by_key(table, mirror_rows(table, lake.database().execute(scan).to_arrow_table()))
        assert found == rows, f"{name} at snapshot {snapshot['snapshot-id']}, below offset {offset}"
    assert place == len(events), f"{name}: {len(events) - place} events lie beyond its newest snapshot"
    return len(snapshots)


def mirror_rows(table: str, rows: pa.Table) -> Iterator[shop.Row]:
    """A mirror's rows as values of the shop's own types. A column that an older snapshot does not have yet is null."""
    for row in rows.to_pylist():
        yield {name: _plain(row.get(name), convert) for name, convert in shop.COLUMNS[table].items()}


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
