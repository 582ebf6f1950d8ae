"""Cuts made by hand: each thing that the tables of one have to have in common flags its own breach."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from dolake.cli import run
from dolake.iceberg.metadata import LoadedTable
from dolake.model import TableName
from dolake.verify.cuts import verify_cuts
from tests.writer.half import half


def snapshot(
    number: int, cut: int | None = None, *, group: str = "g", tables: int = 2, time: int = 0, lsn: str = "", **offsets: int
) -> Any:
    summary = {"operation": "append", "dolake.epoch": "1", **{f"dolake.offset.{log}": str(offset) for log, offset in offsets.items()}}
    if cut is not None:
        summary |= {"dolake.group": group, "dolake.cut": str(cut), "dolake.cut.tables": str(tables)}
    if lsn:
        summary["dolake.lsn.s"] = lsn
    return {"snapshot-id": number, "parent-snapshot-id": number - 1, "timestamp-ms": time or number, "summary": summary}


def table(name: str, *snapshots: Any) -> LoadedTable:
    metadata = {"snapshots": list(snapshots), "current-snapshot-id": snapshots[-1]["snapshot-id"], "properties": {}}
    return LoadedTable(TableName("default", name), metadata, f"file:///{name}.json")


def found(*tables: LoadedTable) -> list[str]:
    return [str(breach) for breach in verify_cuts(tables)]


def test_tables_that_say_the_same_are_sound():
    one = table("one", snapshot(1, 1, x=3, lsn="0/1"), snapshot(2, 2, x=5, lsn="0/2"))
    assert found(one, table("other", snapshot(1, 1, x=3, lsn="0/1"), snapshot(2, 2, x=5, lsn="0/2"))) == []


def test_a_log_that_the_cut_did_not_move_may_be_anywhere():
    """A table that came back was committed by itself, in the log that it came back with."""
    one = table("one", snapshot(1, 1, x=3, y=1), snapshot(2, 2, x=5, y=1))
    assert found(one, table("other", snapshot(1, 1, x=3, y=1), snapshot(2, x=3, y=9, time=1), snapshot(3, 2, x=5, y=9, time=2))) == []


def test_a_table_that_has_expired_a_cut_or_was_left_behind_is_not_missed():
    one = table("one", snapshot(1, 1, x=3), snapshot(2, 2, tables=1, x=5), snapshot(3, 3, x=6))
    assert found(one, table("other", snapshot(3, 3, x=6))) == []


@pytest.mark.parametrize(
    ("mine", "sentence"),
    [
        ({"x": 4}, "cut 2: its tables are at different places of log x: default.one at 5, default.other at 4"),
        ({"x": 5, "time": 7}, "cut 2: default.one and default.other do not say the same of its time: 2 and 7"),
        (
            {"x": 5, "lsn": "0/9"},
            "cut 2: default.one and default.other do not say the same of its lsns: {} and {'dolake.lsn.s': '0/9'}",
        ),
        ({"x": 5, "tables": 3}, "cut 2: default.one and default.other do not say the same of the number of its tables: 2 and 3"),
    ],
    ids=["end", "time", "lsn", "count"],
)
def test_what_they_do_not_have_in_common_is_i16(mine: dict[str, Any], sentence: str):
    one = table("one", snapshot(1, 1, x=3), snapshot(2, 2, x=5))
    assert found(one, table("other", snapshot(1, 1, x=3), snapshot(2, 2, **mine))) == [f"I16 group g: {sentence}"]


def test_more_tables_than_were_committed_are_i16():
    parts = [table(name, snapshot(1, 1, x=3)) for name in ("a", "b", "c")]
    assert found(*parts) == ["I16 group g: cut 1: it was committed with 2 tables, and 3 have it: default.a, default.b, default.c"]


def test_cuts_of_two_groups_are_two_cuts():
    assert found(table("a", snapshot(1, 1, x=3)), table("b", snapshot(1, 1, group="h", x=9))) == []


def test_verify_holds_them_against_each_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """From end to end: a table of a cut whose newest snapshot somebody dates anew."""

    async def work() -> None:
        async with half(tmp_path, tables={"shop.*": {"group": "shop"}}) as h:
            h.hand.batch([("shop.orders", {"id": 1}), ("shop.lines", {"id": 10})])
            assert (await h.flush())["success"]

    asyncio.run(work())
    assert run(["verify", "--data", str(tmp_path)]) == 0
    (newest,) = sorted((tmp_path / "warehouse/shop/lines/metadata").glob("00001-*.json"))
    text = newest.read_text()
    assert '"dolake.cut.tables":"2"' in text
    newest.write_text(text.replace('"dolake.cut.tables":"2"', '"dolake.cut.tables":"3"'))
    capsys.readouterr()
    assert run(["verify", "--data", str(tmp_path)]) == 1
    assert "I16 group shop: cut 1: shop.lines and shop.orders do not say the same of the number of its tables: 3 and 2" in (
        capsys.readouterr().out
    )
