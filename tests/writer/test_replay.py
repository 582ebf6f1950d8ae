"""Letters sent again where a mirror and the changelog beside it hear the same events: each takes them by its own letters."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from dolake.writer.replay import NOT_KEPT_OUT, OVERTAKEN
from tests.writer.half import Half, half, letters
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
