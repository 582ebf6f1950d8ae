"""Whether the lake is what was sent, by DuckDB, PyIceberg and `dolake verify`: the changelog since the last time, the mirror whole."""

from __future__ import annotations

import datetime
import decimal
import warnings
from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from tests.harness.daemon import Daemon
from tests.harness.lake import Lake
from tests.harness.oracle import Oracle, breaches
from tests.soak.load import Writer


def judge(lake: Lake, oracle: Oracle, writers: list[Writer]) -> Iterator[str]:
    """One sentence for each breach. Everything that was added is acked and committed."""
    for writer in writers:
        if writer.event_count == 0:
            continue
        changes = f"{writer.table}__changes"
        sent = oracle.as_arrow(writer.table)
        for reader in ("DuckDB", "PyIceberg"):
            found = _since(lake, reader, changes, writer.judged_count)
            yield from (f"{changes} read by {reader}: {breach}" for breach in breaches(found, sent))
            yield from _mirror(_whole(lake, reader, writer.table), writer, reader)
        yield from _numbers(lake, changes, writer)


def verify(daemon: Daemon) -> Iterator[str]:
    done = daemon.run("verify", deadline_s=300)
    if done.returncode != 0:
        yield f"dolake verify ends with {done.returncode}: {done.stdout[-2000:]} {done.stderr[-1000:]}"


def _since(lake: Lake, reader: str, table: str, sequence: int) -> pa.Table:
    if reader == "DuckDB":
        location = lake.metadata_location(table)
        return lake.database().execute(f"SELECT * FROM iceberg_scan('{location}') WHERE _cdc_sequence >= {sequence}").to_arrow_table()
    return _scan(lake, table, f"_cdc_sequence >= {sequence}")


def _whole(lake: Lake, reader: str, table: str) -> pa.Table:
    return lake.read_duckdb(table) if reader == "DuckDB" else _scan(lake, table)


def _scan(lake: Lake, table: str, row_filter: str | None = None) -> pa.Table:
    catalog = lake.catalog()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Its own libraries' deprecations are not ours to judge.
            loaded = catalog.load_table(f"default.{table}")
            return (loaded.scan(row_filter=row_filter) if row_filter else loaded.scan()).to_arrow()
    finally:
        catalog.close()


def _numbers(lake: Lake, table: str, writer: Writer) -> Iterator[str]:
    """All rows ever, by their numbers: each once, from the first to the last."""
    location = lake.metadata_location(table)
    query = f"SELECT count(*), count(DISTINCT _cdc_sequence), min(_cdc_sequence), max(_cdc_sequence) FROM iceberg_scan('{location}')"
    (found,) = lake.query(query)
    expected = (writer.event_count, writer.event_count, 0, writer.event_count - 1)
    if found != expected:
        yield f"{table}: (rows, sequences, first, last) are {found}, not {expected}"


def _mirror(found: pa.Table, writer: Writer, reader: str) -> Iterator[str]:
    rows: dict[int, dict[str, Any]] = {}
    for row in found.to_pylist():
        if row["id"] in rows:
            yield f"{writer.table} read by {reader}: key {row['id']} is there twice"
        rows[row["id"]] = row
    expected = {key: {name: _value(name, value) for name, value in row.items()} for key, row in writer.rows.items()}
    for key in sorted(rows.keys() | expected.keys()):
        if key not in expected or key not in rows:
            yield f"{writer.table} read by {reader}: key {key} is {'there' if key in rows else 'missing'}"
        elif wrong := [name for name, value in expected[key].items() if rows[key][name] != value]:
            yield f"{writer.table} read by {reader}: key {key} has {rows[key]}, not {expected[key]} ({', '.join(wrong)})"


def _value(name: str, value: Any) -> Any:
    if value is None:
        return None
    return {"amount": decimal.Decimal, "at": datetime.datetime.fromisoformat}.get(name, lambda same: same)(value)
