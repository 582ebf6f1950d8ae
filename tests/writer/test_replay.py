"""Letters sent again where a mirror and the changelog beside it hear the same events: each takes them by its own letters."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from dolake.model import TableName
from dolake.writer.replay import NOT_KEPT_OUT, OVERTAKEN
from tests.writer.half import Half, half, letters, until
from tests.writer.test_dead_letters import LARGE, NARROW, WIDE, again, breaches

CHANGES = "default.t__changes"


def run(work: Any) -> None:
    asyncio.run(work)


def outcomes(h: Half, table: str) -> list[tuple[int, str, str]]:
    """(index of the letter, outcome, rule) of one table's letters that were sent again, in the order they were judged."""
    rows = [row for row in letters(h) if row["replayed_log"] and row["table_name"] == table]
    return [(row["_cdc_index"], row["outcome"], row["rule"]) for row in sorted(rows, key=lambda row: row["judged_at"])]


def changed(h: Half, column: str) -> list[tuple[str, Any]]:
    return [(row["_cdc_operation"], row[column]) for row in h.rows(CHANGES)]


def test_an_event_kept_out_of_both_becomes_one_row_in_each(tmp_path: Path) -> None:
    async def work() -> None:
        async with half(tmp_path, mode="both") as h:
            h.hand.declare(columns=NARROW)
            h.hand.change({"operation": "INSERT", "after": {"id": 1, "n": LARGE}}, {"operation": "INSERT", "after": {"id": 2, "n": 2}})
            await h.flush()
            assert sorted(letter["table_name"] for letter in letters(h)) == ["default.t", CHANGES]
            h.hand.declare(columns=WIDE)
            (letter,) = [letter for letter in letters(h) if letter["table_name"] == "default.t"]
            again(h, letter)
            await h.flush()
            assert {key: row["n"] for key, row in h.mirrored().items()} == {1: LARGE, 2: 2}
            assert changed(h, "id") == [("INSERT", 2), ("INSERT", 1)]
            for table in ("default.t", CHANGES):
                assert outcomes(h, table) == [(0, "replayed", "")]
            again(h, letter)
            await h.flush()
            assert len(h.rows(CHANGES)) == len(h.mirrored()) == 2
            assert breaches(h) == []

    run(work())


@pytest.mark.parametrize("restart", [False, True])
def test_an_event_kept_out_of_the_mirror_alone_is_no_second_row_beside_it(tmp_path: Path, restart: bool) -> None:
    async def begin(h: Half) -> None:
        h.hand.change(
            {"operation": "INSERT", "rowId": "r1", "after": {"id": 1}},
            {"operation": "INSERT", "after": {"id": 2}},
        )
        await h.flush()
        assert [(letter["table_name"], letter["reason"]) for letter in letters(h)] == [("default.t", "no_key")]
        assert changed(h, "id") == [("INSERT", 1), ("INSERT", 2)]

    async def send_again(h: Half) -> None:
        again(h, *letters(h))
        await h.flush()
        assert changed(h, "id") == [("INSERT", 1), ("INSERT", 2)]
        assert outcomes(h, CHANGES) == [(1, "superseded", NOT_KEPT_OUT)]
        ((index, outcome, rule),) = outcomes(h, "default.t")
        assert (index, outcome) == (1, "dead")
        assert "names its row" in rule
        assert breaches(h) == []

    async def work() -> None:
        async with half(tmp_path, mode="both") as h:
            await begin(h)
            if not restart:
                await send_again(h)
                return
        async with half(tmp_path, mode="both") as h:
            await send_again(h)

    run(work())


def test_what_is_overtaken_in_one_is_judged_so_in_the_other(tmp_path: Path) -> None:
    """While the later event is still on its way, both see it."""

    async def work() -> None:
        async with half(tmp_path, mode="both") as h:
            h.hand.declare(columns=NARROW)
            h.hand.change({"operation": "INSERT", "after": {"id": 1, "n": LARGE}})
            await h.flush()
            h.hand.declare(columns=WIDE)
            h.hand.change({"operation": "INSERT", "after": {"id": 1, "n": 5}})
            again(h, *[letter for letter in letters(h) if letter["table_name"] == "default.t"])
            await h.flush()
            assert {key: row["n"] for key, row in h.mirrored().items()} == {1: 5}
            assert changed(h, "n") == [("INSERT", 5)]
            for table in ("default.t", CHANGES):
                assert outcomes(h, table) == [(0, "superseded", OVERTAKEN)]

    run(work())


@pytest.mark.parametrize(
    ("columns", "later", "rows"),
    [
        (NARROW, {"operation": "INSERT", "after": {"id": 1, "n": 5}}, {1: 5, 2: 2}),
        (WIDE, {"operation": "TRUNCATE"}, {}),
        (WIDE, {"operation": "UPDATE", "before": {"id": 1}, "after": {"id": 7, "n": 7}}, {2: 2, 7: 7}),
    ],
    ids=["the same key, and it does not fit still", "all keys", "away from the key"],
)
def test_what_is_read_again_while_a_later_event_is_on_its_way_is_judged_once_that_is_known(
    tmp_path: Path, columns: Any, later: dict[str, Any], rows: dict[int, int]
) -> None:
    """Seed 316317: the flush on its way had not yet decided that it overtakes the letter when the letter was read again."""

    async def work() -> None:
        async with half(tmp_path, mode="mirror") as h:
            h.hand.declare(columns=NARROW)
            h.hand.change({"operation": "INSERT", "after": {"id": 1, "n": LARGE}}, {"operation": "INSERT", "after": {"id": 2, "n": 2}})
            await h.flush()
            (letter,) = letters(h)
            table, mirrors = h.service.tables[TableName.parse("t")], h.service.flusher.mirrors
            planning, goes_on, waiting = asyncio.Event(), asyncio.Event(), mirrors.waiting
            table.watch = None  # As after a start.

            async def wait_for_test(name: TableName) -> Any:
                planning.set()
                await goes_on.wait()
                return await waiting(name)

            mirrors.waiting = wait_for_test
            h.hand.change(later)
            flushing = asyncio.ensure_future(h.flush())
            await planning.wait()
            if columns is WIDE:
                h.hand.declare(columns=WIDE)
            again(h, letter)
            await until(lambda: table.waiting)
            await table.decode(h.runtime)
            assert [one.outcome for one in table.letters] == ["dead" if columns is NARROW else "replayed"]
            goes_on.set()
            await flushing
            assert (await h.flush())["success"]
            assert [outcome for _, outcome, _ in outcomes(h, "default.t")] == ["superseded"]
            if columns is NARROW:
                h.hand.declare(columns=WIDE)
            again(h, letter)
            assert (await h.flush())["success"]
            assert {key: row["n"] for key, row in h.mirrored().items()} == rows
            assert [outcome for _, outcome, _ in outcomes(h, "default.t")] == ["superseded", "superseded"]
            assert breaches(h) == []

    run(work())
