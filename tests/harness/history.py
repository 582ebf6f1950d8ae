"""`lake == oracle`: what was sent and acked against the tables, as two readers read them, and every snapshot in their history."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa

from tests.harness.lake import Lake
from tests.harness.oracle import LEDGER_COLUMNS, Oracle, breaches

CHANGES = "__changes"
PYICEBERG_SNAPSHOTS = 10
"""So many of a table's, the newest among them, are read by PyIceberg too; DuckDB reads them all."""
_COLUMNS = ", ".join(f'"{name}"' for name in LEDGER_COLUMNS)
_PLACE = "hash(_cdc_log::VARCHAR, _cdc_offset, _cdc_index)"


def assert_lake_equals_oracle(lake: Lake, oracle: Oracle, *, mode: str = "changelog") -> None:
    """For every table that was written, as DuckDB and as PyIceberg read it, and for every snapshot that is retained.

    `mode` is that of the tables: `changelog`, or `both`, where the changelog holds what was sent and the mirror is its fold.
    """
    for table in oracle.tables():
        sent, changelog = oracle.as_arrow(table), table + CHANGES if mode == "both" else table
        for reader, rows in (("DuckDB", lake.read_duckdb(changelog)), ("PyIceberg", lake.read_pyiceberg(changelog))):
            found = list(breaches(rows, sent))
            assert not found, f"{changelog} read by {reader}, journal {oracle.path}:\n" + "\n".join(found)
        history = [*changelog_breaches(lake, changelog), *(mirror_breaches(lake, table) if mode == "both" else ())]
        assert not history, f"{table}, journal {oracle.path}:\n" + "\n".join(history)


def changelog_breaches(lake: Lake, table: str) -> Iterator[str]:
    """One sentence for each snapshot of a changelog that does not hold exactly the head's events below its offsets."""
    location, snapshots = _snapshots(lake, table)
    lake.database().execute(f"CREATE OR REPLACE TEMP TABLE head AS SELECT * FROM iceberg_scan('{location}')")
    for snapshot, is_read_twice in snapshots:
        name, below = snapshot["snapshot-id"], _below(snapshot)
        wanted = lake.query(f"SELECT count(*), bit_xor({_PLACE}) FROM head WHERE {below}")
        for reader, rows in _readers(lake, table, location, name, ("_cdc_log", "_cdc_offset", "_cdc_index"), twice=is_read_twice):
            found = lake.query(f"SELECT count(*), bit_xor({_PLACE}) FROM {rows}")
            if found != wanted:
                yield f"{table} at snapshot {name} has {found[0][0]} events by {reader}, below {below} there are {wanted[0][0]}"


def mirror_breaches(lake: Lake, table: str) -> Iterator[str]:
    """One sentence for each snapshot of a mirror that is not the fold of its changelog below its offset. For tables of one log."""
    location, snapshots = _snapshots(lake, table)
    changes = lake.metadata_location(table + CHANGES)
    lake.database().execute(
        f"CREATE OR REPLACE TEMP TABLE events AS SELECT *, _cdc_operation::VARCHAR AS operation FROM iceberg_scan('{changes}')"
    )
    logs = lake.query("SELECT DISTINCT _cdc_log::VARCHAR FROM events")
    assert len(logs) <= 1, f"{table} is fed by {len(logs)} logs: their order is that of the commits, which no changelog tells"
    for snapshot, is_read_twice in snapshots:
        name, below = snapshot["snapshot-id"], _below(snapshot)
        lake.database().execute(
            f"CREATE OR REPLACE TEMP TABLE fold AS SELECT {_COLUMNS} FROM (SELECT *, row_number() OVER "
            f"(PARTITION BY id ORDER BY _cdc_offset DESC, _cdc_index DESC) AS age FROM events WHERE {below}) "
            "WHERE age = 1 AND operation <> 'DELETE'"
        )
        for reader, rows in _readers(lake, table, location, name, tuple(LEDGER_COLUMNS), twice=is_read_twice):
            here = f"SELECT {_COLUMNS} FROM {rows}"
            for one, other, what in ((here, "FROM fold", "that the fold has not"), ("FROM fold", here, "too few")):
                found = lake.query(f"({one}) EXCEPT ALL ({other})")
                if found:
                    yield f"{table} at snapshot {name}, by {reader}: {len(found)} rows {what}, the first: {found[0]}"


def _snapshots(lake: Lake, table: str) -> tuple[str, list[tuple[dict[str, Any], bool]]]:
    """The head's metadata, and every retained snapshot of dolake's, oldest first; and whether PyIceberg reads it too."""
    loaded = lake.load_pyiceberg(table)
    metadata = loaded.metadata.model_dump(by_alias=True)
    ours = [
        snapshot
        for snapshot in sorted(metadata["snapshots"], key=lambda snapshot: snapshot["sequence-number"])
        if any(name.startswith("dolake.offset.") for name in _summary(snapshot))
    ]
    step = max(1, len(ours) // PYICEBERG_SNAPSHOTS)
    return loaded.metadata_location, [(snapshot, (len(ours) - 1 - place) % step == 0) for place, snapshot in enumerate(ours)]


def _summary(snapshot: dict[str, Any]) -> dict[str, str]:
    return snapshot["summary"] or {}


def _below(snapshot: dict[str, Any]) -> str:
    ends = {name.removeprefix("dolake.offset."): int(end) for name, end in _summary(snapshot).items() if name.startswith("dolake.offset.")}
    return (
        "(" + (" OR ".join(f"(_cdc_log::VARCHAR = '{log}' AND _cdc_offset < {end})" for log, end in sorted(ends.items())) or "false") + ")"
    )


def _readers(lake: Lake, table: str, location: str, snapshot: int, columns: Sequence[str], *, twice: bool) -> Iterator[tuple[str, str]]:
    """What to select from: by DuckDB, and perhaps by PyIceberg."""
    yield "DuckDB", f"iceberg_scan('{location}', snapshot_from_id => {snapshot})"
    if twice:
        rows: pa.Table = lake.load_pyiceberg(table).scan(snapshot_id=snapshot, selected_fields=tuple(columns)).to_arrow()
        lake.database().register("by_pyiceberg", rows)
        yield "PyIceberg", "by_pyiceberg"
        lake.database().unregister("by_pyiceberg")
