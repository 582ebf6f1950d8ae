"""Tables against what the logs still hold, and a mirror against the changelog beside it: a wrong value, row or absence is found."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from dolake.model import TableName
from dolake.verify import Compared
from tests.verify.damage import Found, Hands, lake, opened, verified
from tests.verify.test_mirrors import hands_table, live, three_flushes
from tests.writer.half import Half
from tests.writer.test_dead_letters import LARGE, NARROW, WIDE, again, letters
from tests.writer.test_mirrors import TRUNCATE, UNCHANGED, delete, insert, keep, update

T, CHANGES = "default.t", "default.t__changes"


def against_log(path: Path, **more: Any) -> tuple[Found, Compared]:
    compared = Compared()
    return verified(path, against_log=compared, **more), compared


def rewritten(hands: Hands, key: int, **values: Any) -> None:
    """Puts other values into the row of a key, in a file of dolake's own; the old row is deleted, so that every count is right."""
    file, position = live(hands, key)
    (row,) = [row for one, place, row in hands.rows() if (one.location, place) == (file.location, position)]
    hands.commit(hands.put_rows([{**row, **values}]), deletes=[hands.put_deletes(file.location, position, like=file)])


def test_a_sound_lake_is_what_its_log_says(tmp_path: Path) -> None:
    lake(tmp_path, three_flushes, mode="both")
    found, compared = against_log(tmp_path)
    assert found.text == ""
    # Keys 0..19, 40 and 50; the event without a key is a dead letter of the mirror, and a row of the changelog.
    assert vars(compared) == {
        **vars(Compared()), "events": 27 + 28, "keys": 22, "rows": 28, "dead_letters": 1,
    }  # fmt: skip


def test_where_there_is_nothing_to_compare_that_shows(tmp_path: Path) -> None:
    async def work(h: Half) -> None:
        await three_flushes(h)
        h.log.trim(h.log.synced_end)
        h.hand.change(insert(1000))  # not committed: nobody looks at it

    lake(tmp_path, work, stop_cleanly=False)
    found, compared = against_log(tmp_path)
    assert found.text == ""
    assert compared.keys <= 22


@pytest.mark.parametrize("mode", ["mirror", "both"])
def test_a_wrong_value_is_i8_though_every_count_is_right(tmp_path: Path, mode: str) -> None:
    lake(tmp_path, three_flushes, mode=mode)
    with opened(tmp_path) as (store, catalog):
        rewritten(Hands(store, catalog), 7, note="wrong")
    alone = verified(tmp_path)
    found, _ = against_log(tmp_path)
    assert found.invariants == [("I8", T)]
    assert 'key {"id": 7}: note is not what event 7 of offset 1 of the log leaves' in found.text
    assert alone.invariants == ([] if mode == "mirror" else [("I8", T)])
    assert mode == "mirror" or 'key {"id": 7}: note is not what event 7 of offset 1 of default.t__changes leaves' in alone.text


def test_a_row_that_is_not_there_is_i8(tmp_path: Path) -> None:
    lake(tmp_path, three_flushes, mode="both")
    with opened(tmp_path) as (store, catalog):
        hands = Hands(store, catalog)
        file, position = live(hands, 40)
        hands.commit(deletes=[hands.put_deletes(file.location, position, like=file)])
    found, _ = against_log(tmp_path)
    assert found.invariants == [("I13", T), ("I8", T)]
    assert 'key {"id": 40} has no row, and event 2 of offset 2 of the log leaves one' in found.text
    assert 'key {"id": 40} has no row, and event 2 of offset 2 of default.t__changes leaves one' in found.text


def test_a_row_that_should_be_gone_is_i8(tmp_path: Path) -> None:
    lake(tmp_path, three_flushes, mode="both")
    with opened(tmp_path) as (store, catalog):
        hands = Hands(store, catalog)
        hands.commit(hands.put_rows([{"id": 3, "note": "back"}, {"id": 4, "note": "back"}, {"id": 777, "note": "from nowhere"}]))
    found, _ = against_log(tmp_path)
    assert found.invariants == [("I13", T), ("I8", T)]
    for key in (3, 4):
        assert f'key {{"id": {key}}} has a row, and the log has none left of it' in found.text
    assert "default.t__changes has no event that leaves it" in found.text


def test_after_a_truncate_the_log_tells_every_row(tmp_path: Path) -> None:
    async def work(h: Half) -> None:
        await three_flushes(h)
        h.hand.change(TRUNCATE, insert(1, "again"))
        await h.flush()

    lake(tmp_path, work)
    assert against_log(tmp_path)[0].text == ""
    with opened(tmp_path) as (store, catalog):
        Hands(store, catalog).commit(Hands(store, catalog).put_rows([{"id": 777, "note": "from nowhere"}]))
    found, _ = against_log(tmp_path)
    assert "the log has no event that leaves it" in found.text


def test_a_wrong_value_in_a_changelog_is_i7(tmp_path: Path) -> None:
    lake(tmp_path, three_flushes, mode="changelog")
    with opened(tmp_path) as (store, catalog):
        hands = Hands(store, catalog)
        (file, position, row), *_ = [one for one in hands.rows() if one[2]["id"] == 9]
        wrong = {**row, "note": "wrong", "_cdc_timestamp": row["_cdc_timestamp"].replace(year=2001)}
        hands.commit(hands.put_rows([wrong]), deletes=[hands.put_deletes(file.location, position, like=file)])
    assert verified(tmp_path).breaches == []
    found, compared = against_log(tmp_path)
    assert found.invariants == [("I7", T)]
    assert "event 9 of offset 1 of log" in found.text
    assert "_cdc_timestamp, note are not what the log says" in found.text
    assert compared.rows == 28


def test_values_from_before_the_log_begins_are_not_compared(tmp_path: Path) -> None:
    async def work(h: Half) -> None:
        h.hand.declare(columns=[{"nullable": True, **column} for column in UNCHANGED])
        for key in range(20):
            h.hand.change({"operation": "INSERT", "after": {"id": key, "big": f"b{key}" * 200, "n": key}})
        await h.flush()
        h.log.trim(15)
        assert 5 < h.log.first_offset <= 15
        h.hand.change(keep(1, "big", n=10), keep(40, "big", n=20, old=2), keep(41, "big", "n", old=40))
        h.hand.change({"operation": "UPDATE", "after": {"id": 3, "big": "new", "n": 3}}, keep(3, "big", n=30), delete(4))
        await h.flush()

    lake(tmp_path, work)
    found, compared = against_log(tmp_path)
    assert found.text == ""
    assert compared.unknown_values == 2
    assert 6 + 5 < compared.keys < 6 + 15
    with opened(tmp_path) as (store, catalog):
        rewritten(Hands(store, catalog), 1, big="nobody can tell")
        assert against_log(tmp_path)[0].text == ""
        rewritten(Hands(store, catalog), 3, big="wrong")
        rewritten(Hands(store, catalog), 41, n=7)
    found, _ = against_log(tmp_path)
    assert 'key {"id": 3}: big is not what' in found.text
    assert 'key {"id": 41}: n is not what' in found.text
    assert len(found.breaches) == 2


def test_contested_keys_and_files_of_others_are_left_out_and_counted(tmp_path: Path) -> None:
    async def work(h: Half) -> None:
        h.hand.declare()
        h.hand.change(insert(1, "a"), insert(2, "b"), insert(3, "c"))
        await h.flush()
        h.hand.change(update(2, "theirs"), source="other")
        await h.flush()

    lake(tmp_path, work)
    with opened(tmp_path) as (store, catalog):
        rewritten(Hands(store, catalog), 2, note="anything")
    table = hands_table(tmp_path)
    table.append(pa.table({"id": [3], "note": ["foreign"]}, schema=table.schema().as_arrow()))
    found, compared = against_log(tmp_path)
    assert found.breaches == []
    assert (compared.keys, compared.contested_keys, compared.foreign_keys) == (1, 1, 1)


def test_letters_that_came_back_count_and_those_that_did_not_are_left_out(tmp_path: Path) -> None:
    async def work(h: Half) -> None:
        h.hand.declare(columns=NARROW)
        h.hand.change(*({"operation": "INSERT", "after": {"id": key, "n": LARGE if key < 3 else key}} for key in range(6)))
        await h.flush()
        h.hand.change({"operation": "UPDATE", "after": {"id": 1, "n": 7}})
        await h.flush()
        h.hand.declare(columns=WIDE)
        again(h, *[letter for letter in letters(h) if letter["table_name"] == T and letter["outcome"] == "dead"][:2])
        await h.flush()

    lake(tmp_path, work, mode="both")
    found, compared = against_log(tmp_path)
    assert found.text == ""
    assert compared.dead_letters >= 6
    with opened(tmp_path) as (store, catalog):
        rewritten(Hands(store, catalog), 0, n=1)
    assert 'key {"id": 0}: n is not what event 0 of offset 4 of the log leaves' in against_log(tmp_path)[0].text


def test_a_parked_tables_records_are_looked_for_in_its_side_log(tmp_path: Path) -> None:
    async def work(h: Half) -> None:
        await three_flushes(h)
        name = TableName.parse("t")
        await h.service.parking.park(name, h.until())
        h.hand.change(update(1, "parked"), insert(60, "parked"))
        await h.service.parking.park(name, h.until())

    lake(tmp_path, work)
    found, compared = against_log(tmp_path)
    assert found.text == ""
    assert compared.keys == 22


def test_widened_columns_and_declared_defaults_are_no_breach(tmp_path: Path) -> None:
    narrow = [{"name": "id", "type": "int", "nullable": False}, {"name": "x", "type": "float", "nullable": True}]
    wide = [
        {"name": "id", "type": "long", "nullable": False},
        {"name": "x", "type": "double", "nullable": True},
        {"name": "state", "type": "string", "nullable": True, "default": "new"},
    ]

    async def work(h: Half) -> None:
        h.hand.declare(columns=narrow)
        h.hand.change(*({"operation": "INSERT", "after": {"id": key, "x": 0.1}} for key in range(4)))
        await h.flush()
        h.hand.declare(columns=wide)
        h.hand.change({"operation": "UPDATE", "after": {"id": 1, "x": 0.1}}, {"operation": "UPDATE", "after": {"id": 2, "x": 0.2}})
        await h.flush()

    lake(tmp_path, work, mode="both")
    found, compared = against_log(tmp_path)
    assert (found.text, compared.keys) == ("", 4)
    with opened(tmp_path) as (store, catalog):
        rewritten(Hands(store, catalog), 0, x=0.25)
    assert 'key {"id": 0}: x is not what' in against_log(tmp_path)[0].text


def test_what_nobody_declared_is_compared_in_the_columns_where_it_went(tmp_path: Path) -> None:
    async def work(h: Half) -> None:
        def row(key: str, **values: Any) -> dict[str, Any]:
            return {"operation": "INSERT", "rowId": key, "after": values}

        h.hand.change(row("a", v=1, tags=["x", 1]), row("b", v="text"), row("c", v=2.0), row("d", v=None, w=float(1 << 60)))
        await h.flush()
        h.hand.change({"operation": "UPDATE", "rowId": "a", "after": {"tags": {"y": None}}, "metadata": {"unchanged": ["v"]}})
        await h.flush()

    lake(tmp_path, work, mode="both")
    found, compared = against_log(tmp_path)
    assert (found.text, compared.keys, compared.rows) == ("", 4, 5)
    with opened(tmp_path) as (store, catalog):
        hands = Hands(store, catalog)
        assert "v__string" in {column["name"] for column in hands.base.schema["fields"]}
        file, position, row = next(one for one in hands.rows() if one[2]["_cdc_row_id"] == "b")
        hands.commit(hands.put_rows([{**row, "v__string": "wrong"}]), deletes=[hands.put_deletes(file.location, position, like=file)])
    assert 'key {"_cdc_row_id": "b"}: v__string is not what' in against_log(tmp_path)[0].text
