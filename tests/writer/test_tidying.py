"""Upkeep of the dead letters beside the writer: few files, events that go after a time, and no verdict ever changed or lost."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from dolake.clock import SystemClock
from dolake.failpoints import REGISTRY, FailpointRaised
from dolake.iceberg.lake import open_catalog, open_warehouse
from dolake.iceberg.plan import CommitPolicy
from dolake.model import DEAD_LETTERS_TABLE
from dolake.storage.disk import LocalDisk
from dolake.writer.maintain_here import Cleaning, look_here, purge_here
from dolake.writer.replay import NOT_KEPT, OVERTAKEN, SENT_AGAIN
from tests.iceberg.lake import duckdb_with_iceberg
from tests.writer.half import Half, half, letters, other_writer, settings_of
from tests.writer.test_dead_letters import LARGE, NARROW, WIDE, again, breaches
from tests.writer.test_replay import outcomes, run

QUIET: dict[str, Any] = {"compaction": {"enabled": False}, "maintenance": {"enabled": False}}
KEPT_S = 60.0
KEEPING: dict[str, Any] = {**QUIET, "maintenance": {"enabled": False, "dead_letters_s": KEPT_S}}


@dataclass
class Ahead(SystemClock):
    """Set ahead while somebody works by it."""

    seconds: float = 0.0

    def now_ms(self) -> int:
        return super().now_ms() + round(self.seconds * 1000)


def files(h: Half) -> int:
    return h.catalog().load_table(str(DEAD_LETTERS_TABLE)).inspect.data_files().num_rows


def said(rows: list[dict[str, Any]]) -> Counter[tuple[Any, ...]]:
    """Everything but what expires."""
    return Counter(tuple(value for name, value in row.items() if name not in ("event", "value", "outcome")) for row in rows)


async def misfits(h: Half, *numbers: int) -> None:
    for number in numbers:
        h.hand.insert({"id": number, "n": LARGE + number})
        assert (await h.flush())["success"]


async def tidy(h: Half) -> dict[str, Any]:
    return await h.service.maintaining.maintain(DEAD_LETTERS_TABLE)


def test_small_files_become_one_with_the_very_verdicts(tmp_path: Path) -> None:
    async def main() -> None:
        async with half(tmp_path, **QUIET) as h:
            h.hand.declare(columns=NARROW)
            await misfits(h, *range(9))
            before = letters(h)
            assert (len(before), files(h)) == (9, 9)
            done = await tidy(h)
            assert done["expired"] == {"rows": 0, "files": 0, "put_off": ""}
            assert files(h) == 1
            assert letters(h) == before
            by_duckdb = duckdb_with_iceberg().execute(
                f"SELECT _cdc_offset, event FROM iceberg_scan('{h.catalog().load_table('dolake.dead_letters').metadata_location}')"
            )
            assert sorted(by_duckdb.fetchall()) == [(row["_cdc_offset"], row["event"]) for row in before]
            snapshots = [one.summary for one in h.catalog().load_table("dolake.dead_letters").metadata.snapshots]
            told = [one.operation.value for one in snapshots if one is not None and one["dolake.maintenance"] == "dead letters"]
            assert told == ["replace"]
            assert breaches(h) == []
            h.hand.declare(columns=WIDE)
            again(h, before[4])
            await h.flush()
            assert (outcomes(h, "default.t"), h.values()) == ([(0, "replayed", "")], [4])
            assert breaches(h) == []

    run(main())


def test_what_was_received_goes_after_its_time_and_nothing_else(tmp_path: Path) -> None:
    async def main() -> None:
        clock = Ahead()
        async with half(tmp_path, clock=clock, snapshots_kept=1, **KEEPING) as h:
            h.hand.declare(columns=NARROW)
            await misfits(h, 1, 2)
            assert (await tidy(h))["expired"]["rows"] == 0
            clock.seconds = KEPT_S + 30
            await misfits(h, 3)
            before = letters(h)
            assert all(row["event"] for row in before)
            assert (await tidy(h))["expired"] == {"rows": 2, "files": 0, "put_off": ""}
            after = letters(h)
            assert said(after) == said(before)
            assert [(row["outcome"], row["event"], row["value"]) for row in after] == [
                ("expired", b"", ""),
                ("expired", b"", ""),
                ("dead", before[2]["event"], before[2]["value"]),
            ]
            # The first is in a snapshot with an hour's tag.
            on_disk = b"".join(path.read_bytes() for path in (h.path / "warehouse" / "dolake").rglob("*.parquet"))
            assert (str(LARGE + 3).encode() in on_disk, str(LARGE + 2).encode() in on_disk) == (True, False)
            assert breaches(h) == []
            assert (await tidy(h))["expired"]["rows"] == 0
            assert files(h) == 2

    run(main())


@pytest.mark.parametrize("restart", [False, True])
def test_what_has_expired_is_not_applied_if_it_is_sent_again(tmp_path: Path, restart: bool) -> None:
    """Whoever sends it has read it before; what came after it since, nobody has watched."""

    async def send(h: Half, letter: dict[str, Any]) -> None:
        h.hand.declare(columns=WIDE)
        h.hand.insert({"id": 1, "n": 5})
        again(h, letter)
        await h.flush()
        assert [rule for _, _, rule in outcomes(h, "default.t")] in ([NOT_KEPT], [SENT_AGAIN], [OVERTAKEN])
        assert {key: row["n"] for key, row in h.mirrored().items()} == {1: 5}
        assert breaches(h) == []

    async def main() -> None:
        clock = Ahead()
        async with half(tmp_path, mode="mirror", clock=clock, **KEEPING) as h:
            h.hand.declare(columns=NARROW)
            await misfits(h, 1)
            (letter,) = letters(h)
            clock.seconds = KEPT_S + 1
            assert (await tidy(h))["expired"]["rows"] == 1
            sequences = h.hand.sequences
            if not restart:
                await send(h, letter)
        if restart:
            async with half(tmp_path, mode="mirror", clock=clock, **KEEPING) as h:
                h.hand.sequences = sequences
                await send(h, letter)
                assert [rule for _, _, rule in outcomes(h, "default.t")] == [NOT_KEPT]

    run(main())


def test_events_may_be_kept_for_years() -> None:
    """Thirty days is what the operations guide gives as its example."""
    kept_s = [settings_of(Path("/data"), maintenance={"dead_letters_s": days * 86_400}).maintenance.dead_letters_s for days in (30, 3650)]
    assert kept_s == [30 * 86_400, 3650 * 86_400]


def test_a_clock_that_was_set_ahead_is_not_believed(tmp_path: Path) -> None:
    async def main() -> None:
        clock = Ahead()
        async with half(tmp_path, clock=clock, **KEEPING) as h:
            h.hand.declare(columns=NARROW)
            await misfits(h, 1)
            clock.seconds = 7 * 86_400
            expired = (await tidy(h))["expired"]
            assert (expired["rows"], "the clock was set ahead" in expired["put_off"]) == (0, True)
            assert letters(h)[0]["event"]

    run(main())


@pytest.mark.parametrize("point", ["letters.before_rewrite", "letters.after_rewrite"])
def test_nothing_is_lost_where_it_is_broken_off(tmp_path: Path, point: str) -> None:
    async def main() -> None:
        clock = Ahead()
        async with half(tmp_path, clock=clock, **KEEPING) as h:
            h.hand.declare(columns=NARROW)
            await misfits(h, 1, 2)
            before = letters(h)
            clock.seconds = KEPT_S + 1
            REGISTRY.arm(point, "1*raise")
            try:
                with pytest.raises(FailpointRaised, match=point):
                    await tidy(h)
            finally:
                REGISTRY.disarm()
            assert said(letters(h)) == said(before)
            await tidy(h)
            assert said(letters(h)) == said(before)
            assert [row["event"] for row in letters(h)] == [b"", b""]
            assert breaches(h) == []

    run(main())


def test_without_a_daemon_it_is_told_first_and_done_when_asked(tmp_path: Path) -> None:
    async def main() -> None:
        clock = Ahead()
        async with half(tmp_path, clock=clock, **KEEPING) as h:
            h.hand.declare(columns=NARROW)
            await misfits(h, 1, 2)
            before, runtime, settings = letters(h), h.runtime, h.settings
        clock.seconds = KEPT_S + 1
        store = open_warehouse(settings)
        catalog = open_catalog(settings, store, runtime)
        cleaning = Cleaning(runtime, LocalDisk(), settings, catalog, store, CommitPolicy(), on_trouble=lambda trouble: None)
        told = await look_here(cleaning, DEAD_LETTERS_TABLE)
        assert (told["expired"]["rows"], letters(h)) == (2, before)
        done = await purge_here(cleaning, DEAD_LETTERS_TABLE)
        assert done["expired"] == {"rows": 2, "files": 0, "put_off": ""}
        assert (said(letters(h)), {row["event"] for row in letters(h)}) == (said(before), {b""})
        assert breaches(h) == []
        catalog.close()

    run(main())


def test_a_writer_whose_letters_another_has_rewritten_and_purged_reads_them_anew(tmp_path: Path) -> None:
    """It would have taken the files that are gone for damage, and stopped the table."""

    async def main() -> None:
        async with half(tmp_path, snapshots_kept=1, stop_cleanly=False, **QUIET) as h:
            h.hand.declare(columns=NARROW)
            await misfits(h, *range(9))
            known = next(iter(h.service.tables.values())).name
            async with other_writer(h, snapshots_kept=1, **QUIET) as successor:
                done = await tidy(successor)
                assert done["purged"]["objects"] >= 9
            states = await asyncio.wait_for(h.service.flusher.letters.states(known), 10)
            assert list(states.values()) == ["dead"] * 9

    run(main())
