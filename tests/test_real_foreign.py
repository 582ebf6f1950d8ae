"""Somebody else writes to the tables that a daemon is writing: both sides' commits land, and both sides' rows are exact."""

from __future__ import annotations

import asyncio
import warnings
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from pyiceberg.exceptions import CommitFailedException, ValidationException
from pyiceberg.expressions import EqualTo
from pyiceberg.table import Table

from tests.harness.daemon import Daemon
from tests.harness.lake import Lake
from tests.harness.oracle import Oracle
from tests.harness.traffic import Traffic, drain, steady_traffic
from tests.harness.waiting import wait_until
from tests.test_real_mirrors import by_key, folded

FIRST_KEY = 1_000_000  # Above every key of the daemon's source.
WRITTEN = {"account": "outside", "note": None, "at": datetime(2026, 1, 1, tzinfo=UTC)}
# What a changelog requires of every row, whoever writes it.
PLACE = {"_cdc_operation": "INSERT", "_cdc_row_id": None, "_cdc_timestamp": WRITTEN["at"], "_cdc_sequence": 0, "_cdc_source": "outside"}
PLACE |= {"_cdc_epoch": "", "_cdc_log": "of no log", "_cdc_offset": 0, "_cdc_index": 0}


def as_written(table: Table, row: dict[str, Any]) -> pa.Table:
    return pa.Table.from_pylist([{**PLACE, **row}], schema=table.schema().as_arrow())


class Outsider:
    """A PyIceberg program that knows nothing of dolake: appends rows of its own, deletes some, and tries again when it was too late."""

    def __init__(self, lake: Lake, table: str) -> None:
        self._catalog = lake.catalog()
        self._table = ("default", table)
        self.rows: dict[int, dict[str, Any]] = {}
        self.commit_count = self.late_count = 0

    def run(self, commits: int) -> None:
        while self.commit_count < commits:
            key = FIRST_KEY + self.commit_count
            if self.commit_count % 10 == 9:
                self._commit(lambda table, key=key: table.delete(EqualTo("id", key - 5)))
                del self.rows[key - 5]
            else:
                self.rows[key] = row = {**WRITTEN, "id": key, "amount": Decimal(key)}
                self._commit(lambda table, row=row: table.append(as_written(table, row)))
            self.commit_count += 1

    def _commit(self, change: Any) -> None:
        while True:
            table: Table = self._catalog.load_table(self._table)
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # It says how it deletes: by rewriting.
                    change(table)
            except (CommitFailedException, ValidationException):
                self.late_count += 1
            else:
                return

    def close(self) -> None:
        self._catalog.close()


@pytest.mark.acceptance("AT-55")
@pytest.mark.parametrize(("mode", "commits"), [("mirror", 100), ("changelog", 20)])
def test_the_commits_of_two_writers_all_land(tmp_path: Path, mode: str, commits: int) -> None:
    """Each of the outsider's commits comes between a load and a swap of the daemon's sooner or later; no source hears of it."""
    oracle = Oracle(tmp_path / "journal")
    # Often enough to meet the outsider's commits, seldom enough for it to get one in: it copies the metadata a dozen times for each.
    settings = {"DOLAKE_FLUSH_AGE_S": "0.3", "DOLAKE_COMMIT_SNAPSHOTS_KEPT": "20"}
    with Daemon(tmp_path / "data", settings, mode=mode) as daemon, Lake(daemon.data) as lake:
        daemon.start()

        async def scenario() -> tuple[Outsider, Traffic]:
            async with steady_traffic(daemon, oracle) as traffic:
                await asyncio.to_thread(wait_until, lambda: lake.snapshots("ledger"), "the first flush")
                outsider = Outsider(lake, "ledger")
                try:
                    await asyncio.to_thread(outsider.run, commits)
                finally:
                    outsider.close()
                await asyncio.to_thread(wait_until, lambda: commit_count(lake) >= 2 * commits, "as many commits of the daemon", 400)
            await drain(daemon)
            return outsider, traffic

        outsider, traffic = asyncio.run(scenario())
        assert traffic.source.nacks == []
        sent = [event for batch in oracle.batches.values() for event in batch.events]
        for read in (lake.read_duckdb, lake.read_pyiceberg):
            rows = read("ledger")
            if mode == "mirror":
                assert by_key(rows) == {**folded(sent), **outsider.rows}
            else:
                check_changelog(rows, len(sent), outsider)
        snapshots = lake.snapshots("ledger")
        parents = [snapshot.get("parent-snapshot-id") for snapshot in snapshots]
        tagged = 1  # The first of the hour; its followers are gone.
        assert parents[1 + tagged :] == [snapshot["snapshot-id"] for snapshot in snapshots[tagged:-1]], "one line of snapshots"
        assert lake.metadata("ledger")["current-snapshot-id"] == snapshots[-1]["snapshot-id"]
        verified = daemon.run("verify", deadline_s=120)
        assert verified.returncode == 0, verified.stdout + verified.stderr


def commit_count(lake: Lake) -> int:
    return int(lake.metadata("ledger")["last-sequence-number"])


def check_changelog(rows: pa.Table, sent_count: int, outsider: Outsider) -> None:
    """Every event once; the outsider's rows have no place in a log."""
    theirs = rows.filter(pc.field("_cdc_source") == "outside")
    assert by_key(theirs.select(["id", "amount", *WRITTEN])) == outsider.rows
    places = [(row["_cdc_offset"], row["_cdc_index"]) for row in rows.to_pylist() if row["_cdc_source"] != "outside"]
    assert len(set(places)) == len(places) == sent_count
