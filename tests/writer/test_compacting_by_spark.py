"""With the engine spark: the plan says when, somebody else commits, and the writer goes on from there."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from dolake.clock import real_runtime
from dolake.compaction.compactor import SparkCaller
from dolake.errors import RewriteFailed, SparkMissing
from dolake.iceberg.lake import open_catalog, open_warehouse
from dolake.iceberg.plan import CommitPolicy
from dolake.storage.disk import LocalDisk
from dolake.writer.compact_here import Offline, compact_here
from tests.writer.half import Half, half, settings_of, until
from tests.writer.test_compacting import T, compact, flushed
from tests.writer.test_dead_letters import breaches
from tests.writer.test_mirrors import delete, insert, notes, run, update

SPARK = {"engine": "spark", "spark_catalog": "lake", "inputs_min": 4}
ASKED: dict[str, Any] = {"compaction": {**SPARK, "enabled": False}}


def rewritten_by_somebody(h: Half) -> None:
    """All rows in one file, in a commit of PyIceberg's: as Spark's, it says nothing of dolake."""
    table = h.catalog().load_table("default.t")
    table.overwrite(table.scan().to_arrow())


def calls(said: list[Sequence[str]], work: Callable[[Half], Awaitable[None]] | None = None) -> Callable[[Half], SparkCaller]:
    """Notes the statements; what Spark does is done by another."""

    def spark(h: Half) -> SparkCaller:
        async def call(statements: Sequence[str]) -> None:
            said.append(statements)
            if work is not None:
                await work(h)
            await asyncio.to_thread(rewritten_by_somebody, h)

        return call

    return spark


def test_what_spark_has_committed_is_what_is_written_on(tmp_path: Path) -> None:
    async def meanwhile(h: Half) -> None:
        await flushed(h, insert(100, "meanwhile"), delete(0))

    async def main() -> None:
        said: list[Sequence[str]] = []
        async with half(tmp_path, mode="mirror", spark=calls(said, meanwhile), **ASKED) as h:
            h.hand.declare()
            for number in range(6):
                await flushed(h, *(insert(key, f"at {number}") for key in range(number, number + 5)))
            rows = {key: note for key, note in notes(h).items() if key} | {100: "meanwhile"}
            done = await compact(h)
            ran, *more = done["runs"]  # This one leaves delete files that speak of nothing: they are worth being asked for once more.
            assert (ran["state"], ran["files_after"]) == ("done", 1)
            assert ran["files_before"] >= 6
            assert said[0][0] == "REFRESH TABLE lake.`default`.`t`"
            assert "CALL lake.system.rewrite_data_files" in said[0][-1]
            assert len(more) <= 2
            assert notes(h) == rows
            await flushed(h, update(5, "later"), delete(6), insert(1000, "new"))
            assert notes(h) == {key: note for key, note in rows.items() if key != 6} | {5: "later", 1000: "new"}
            assert breaches(h) == []

    run(main())


def test_it_is_called_by_itself_and_after_a_failure_not_at_once(tmp_path: Path) -> None:
    said: list[Sequence[str]] = []

    def spark(h: Half) -> SparkCaller:
        async def call(statements: Sequence[str]) -> None:
            said.append(statements)
            raise RewriteFailed("Cannot commit, found new delete for replaced data file")

        return call

    async def main() -> None:
        async with half(tmp_path, mode="mirror", spark=spark, compaction={**SPARK, "interval_s": 0.02}) as h:
            h.hand.declare()
            for number in range(4):
                await flushed(h, insert(number, "x"))
            await until(lambda: h.service.compacting.runs and h.service.compacting.runs[-1].state == "failed")
            assert "found new delete" in h.service.compacting.runs[-1].reason
            for number in range(4, 12):  # More than enough files for another choice.
                await flushed(h, insert(number, "x"))
            await asyncio.sleep(0.1)
            assert len(said) == 1
            done = await compact(h)  # Who asks does not wait.
            assert [one["state"] for one in done["runs"]] == ["failed"]
            assert len(said) == 2
            assert notes(h) == dict.fromkeys(range(12), "x")

    run(main())


def test_a_spark_that_finds_nothing_is_not_asked_again_and_again(tmp_path: Path) -> None:
    said: list[Sequence[str]] = []

    def spark(h: Half) -> SparkCaller:
        async def call(statements: Sequence[str]) -> None:
            said.append(statements)

        return call

    async def main() -> None:
        async with half(tmp_path, mode="mirror", spark=spark, compaction={**SPARK, "interval_s": 0.02}) as h:
            h.hand.declare()
            for number in range(4):
                await flushed(h, insert(number, "x"))
            await until(lambda: h.service.compacting.runs and h.service.compacting.runs[-1].state == "given_up")
            await asyncio.sleep(0.1)
            assert len(said) == 1
            done = await compact(h)
            assert [(one["state"], one["reason"]) for one in done["runs"]] == [("given_up", "Spark found nothing to rewrite")]

    run(main())


def test_a_table_that_is_gone_by_then_is_given_up(tmp_path: Path) -> None:
    def spark(h: Half) -> SparkCaller:
        async def call(statements: Sequence[str]) -> None:
            h.catalog().drop_table("default.t")

        return call

    async def main() -> None:
        async with half(tmp_path, mode="mirror", spark=spark, stop_cleanly=False, **ASKED) as h:
            h.hand.declare()
            for number in range(3):
                await flushed(h, insert(number, "x"))
            done = await compact(h)
            assert [(one["state"], one["reason"]) for one in done["runs"]] == [("given_up", "the table was dropped")]

    run(main())


def test_without_a_daemon_too_it_is_spark_that_is_asked(tmp_path: Path) -> None:
    """There is none here, and that is said at once instead of table by table."""

    async def main() -> None:
        async with half(tmp_path, mode="mirror", compaction={"enabled": False}) as h:
            h.hand.declare()
            for number in range(3):
                await flushed(h, insert(number, "x"))
        settings = settings_of(tmp_path, mode="mirror", compaction=SPARK)
        store, runtime = open_warehouse(settings), real_runtime()
        catalog = open_catalog(settings, store, runtime)
        offline = Offline(runtime, LocalDisk(), settings, catalog, store, CommitPolicy(), lambda trouble: None)
        with pytest.raises(SparkMissing, match="pip install"):
            await compact_here(offline, T)
        catalog.close()

    run(main())
