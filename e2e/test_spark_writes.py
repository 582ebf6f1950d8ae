"""Spark writes to a mirror that a daemon is writing: inserts, deletes, rewrites. Both sides' rows are exact, to every engine."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import ExitStack
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from e2e.engines import Engines
from e2e.services.s3 import S3Server
from e2e.services.spark import Spark, SparkError
from tests.harness.daemon import Daemon
from tests.harness.oracle import Oracle
from tests.harness.traffic import drain, steady_traffic
from tests.harness.waiting import wait_until
from tests.test_real_mirrors import by_key, folded

FIRST_KEY = 1_000_000  # Above every key of the daemon's source.
LEDGER = "{lake}.public.ledger"
TRIES_MAX = 20
LATE = ("CommitFailedException", "ValidationException", "CommitStateUnknownException")


class SparkWriter:
    """Statements that are tried again when the daemon was first, as users do. `rows` are those it has put in and not taken out."""

    def __init__(self, engines: Engines) -> None:
        self._engines = engines
        self.rows: dict[int, dict[str, Any]] = {}
        self.late_count = 0

    def commit(self, statement: str) -> list[tuple[Any, ...]]:
        said = ""
        for _ in range(TRIES_MAX):
            try:
                return self._engines.by_spark(statement)
            except SparkError as error:
                said = str(error)
                if not any(name in said for name in LATE):
                    raise
                self.late_count += 1
        raise AssertionError(f"Spark was late {TRIES_MAX} times: {statement}: {said}")

    def insert(self, first: int, count: int) -> None:
        keys = range(FIRST_KEY + first, FIRST_KEY + first + count)
        values = ", ".join(f"({key}, 'spark', {key}.5, NULL, TIMESTAMP '2026-01-01 00:00:00')" for key in keys)
        self.commit(f"INSERT INTO {LEDGER} (id, account, amount, note, `at`) VALUES {values}")
        written = {"account": "spark", "note": None, "at": datetime(2026, 1, 1, tzinfo=UTC)}
        self.rows |= {key: {"id": key, "amount": Decimal(f"{key}.5000"), **written} for key in keys}

    def delete(self, *keys: int) -> None:
        self.commit(f"DELETE FROM {LEDGER} WHERE id IN ({', '.join(str(FIRST_KEY + key) for key in keys)})")
        for key in keys:
            del self.rows[FIRST_KEY + key]

    def update(self, *keys: int) -> None:
        self.commit(f"UPDATE {LEDGER} SET note = 'updated by Spark' WHERE id IN ({', '.join(str(FIRST_KEY + key) for key in keys)})")
        for key in keys:
            self.rows[FIRST_KEY + key] = {**self.rows[FIRST_KEY + key], "note": "updated by Spark"}

    def set(self, how: str) -> None:
        """`copy-on-write` rewrites the files whose rows it deletes; `merge-on-read` writes position deletes."""
        self.commit(f"ALTER TABLE {LEDGER} SET TBLPROPERTIES ('write.delete.mode' = '{how}', 'write.update.mode' = '{how}')")

    def rewrite(self) -> None:
        # Statements that name the table make Spark look at it anew, a call does not.
        self._engines.by_spark(f"SELECT count(*) FROM {LEDGER}")
        rewritten = self.commit("CALL {lake}.system.rewrite_data_files(table => 'public.ledger', options => map('rewrite-all', 'true'))")
        assert rewritten[0][0] > 0
        self.commit("CALL {lake}.system.rewrite_manifests(table => 'public.ledger')")


@pytest.mark.acceptance("AT-55")
@pytest.mark.parametrize("place", ["bucket", "folder"])
def test_what_spark_writes_and_what_dolake_writes_is_all_there(
    tmp_path: Path, s3_server: S3Server, spark: Spark, place: str, report: Callable[..., None]
) -> None:
    oracle = Oracle(tmp_path / "journal")
    settings = {"DOLAKE_FLUSH_AGE_S": "4"} | (s3_server.settings(prefix=tmp_path.name) if place == "bucket" else {})
    with ExitStack() as open_:
        daemon = open_.enter_context(Daemon(tmp_path / "data", settings, mode=None))
        daemon.start()
        engines = open_.enter_context(Engines(daemon, s3_server if place == "bucket" else None, spark))
        writer = SparkWriter(engines)

        def work() -> None:
            writer.insert(0, 20)
            for first, how in ((20, "copy-on-write"), (40, "merge-on-read")):
                writer.set(how)
                writer.insert(first, 20)
                writer.delete(first - 20, first + 1)
                writer.update(first - 18, first + 2)
                writer.rewrite()
            writer.delete(59)

        async def scenario() -> list[Any]:
            async with steady_traffic(daemon, oracle, table="public.ledger", interval_s=0.05) as traffic:
                exists = lambda: engines.pyiceberg.table_exists("public.ledger")  # noqa: E731
                await asyncio.to_thread(wait_until, exists, "the first flush")
                await asyncio.to_thread(work)
                acked = traffic.source.acked
                await asyncio.to_thread(wait_until, lambda: traffic.source.acked > acked + 20, "traffic after Spark's last commit")
            await drain(daemon)
            return traffic.source.nacks

        assert asyncio.run(scenario()) == []
        wanted = {**folded([event for batch in oracle.batches.values() for event in batch.events]), **writer.rows}
        assert by_key(engines.scan("public.ledger")) == wanted
        columns = "SELECT id, account, amount, note, l.at FROM {lake}.public.ledger l ORDER BY id"
        rows = [tuple(wanted[key][name] for name in ("id", "account", "amount", "note", "at")) for key in sorted(wanted)]
        for engine, found in engines.ask(columns).items():
            assert found == rows, engine
        verified = daemon.run("verify", deadline_s=120)
        assert verified.returncode == 0, verified.stdout + verified.stderr
        report(rows=len(rows), of_spark=len(writer.rows), tried_again=writer.late_count)
