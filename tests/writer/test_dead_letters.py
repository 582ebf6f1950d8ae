"""Columns nobody declared, and events that fit nowhere: every one in its table or among the dead letters, once."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections import Counter
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from dolake.errors import TableStopped
from dolake.failpoints import REGISTRY
from dolake.iceberg.lake import open_catalog, open_warehouse
from dolake.model import Entry, RecordKind, TableName
from dolake.parquet.letters import Letter, Place
from dolake.storage.disk import LocalDisk
from dolake.verify import verify_lake
from dolake.writer.letters import Verdicts
from dolake.writer.replay import OVERTAKEN, SENT_AGAIN
from tests.writer.half import Half, half, letters, other_writer, until

T = TableName.parse("t")


def run(work: Any) -> None:
    asyncio.run(work)


def schema(h: Half, table: str = "default.t") -> dict[str, str]:
    fields = h.catalog().load_table(table).schema().fields
    return {field.name: str(field.field_type) for field in fields if not field.name.startswith("_cdc_")}


def counts(h: Half, table: str = "default.t") -> tuple[int, int]:
    properties = h.catalog().load_table(table).properties
    return int(properties["dolake.count.accepted"]), int(properties.get("dolake.count.dead-lettered", "0"))


def places(h: Half) -> list[tuple[str, int, int]]:
    return [(letter["table_name"], letter["_cdc_offset"], letter["_cdc_index"]) for letter in letters(h)]


def test_columns_that_nobody_declared_are_inferred_and_grow(tmp_path: Path):
    async def work() -> None:
        async with half(tmp_path) as h:
            h.hand.insert({"id": 1, "name": "a", "ok": True, "empty": None}, {"id": 2, "price": 2}, {"id": 3, "price": 2.5})
            assert (await h.flush())["success"]
            assert schema(h) == {"id": "long", "name": "string", "ok": "boolean", "price": "double"}
            h.hand.insert({"id": "four", "tags": ["x", 1], "name": 5}, {"id": 5, "price": 3})
            await h.flush()
            rows = h.rows()
            assert [row["id"] for row in rows] == [1, 2, 3, None, 5]
            assert [row["price"] for row in rows] == [None, 2.0, 2.5, None, 3.0]
            assert (rows[3]["id__string"], rows[3]["name__long"], rows[3]["tags"]) == ("four", 5, '["x", 1]')
            ids = {field.name: field.field_id for field in h.catalog().load_table("default.t").schema().fields}
        async with half(tmp_path) as again:
            again.hand.insert({"id": 6.5, "id__string": "clash"}, {"id": "seven", "name": True})
            await again.flush()
            later = {field.name: field.field_id for field in again.catalog().load_table("default.t").schema().fields}
            assert {name: later[name] for name in ids} == ids
            assert again.rows()[-1]["id__string"] == "seven"
            (letter,) = letters(again)
            assert (letter["reason"], letter["field"], counts(again)) == ("column_name", "id__string", (7, 1))

    run(work())


def test_an_event_that_becomes_a_letter_leaves_no_column_behind(tmp_path: Path):
    async def work() -> None:
        async with half(tmp_path) as h:
            h.hand.insert({"id": 1, "Id": 1, "more": 1}, {"more": "text", "_cdc_x": 1, "again": 2}, {"id": "three"})
            assert (await h.flush())["success"]
            assert (schema(h), h.values()) == ({"id": "string"}, ["three"])
            assert [letter["field"] for letter in letters(h)] == ["Id", "_cdc_x"]

    run(work())


def test_a_table_that_nobody_declares_is_partitioned_once_the_column_has_come(tmp_path: Path):
    async def work() -> None:
        async with half(tmp_path, tables={"t": {"partition_by": ["region"]}}) as h:
            h.hand.insert({"id": 1})
            assert (await h.flush())["success"]
            h.hand.insert({"id": 2, "region": "eu"}, {"id": 3, "region": "us"})
            assert (await h.flush())["success"]
            assert sorted(h.values()) == [1, 2, 3]
            table = h.catalog().load_table("default.t")
            assert [field.name for field in table.spec().fields] == ["region"]
            tasks = table.scan(row_filter="region == 'eu'").plan_files()
            assert sorted(task.file.record_count for task in tasks if task.file.spec_id == table.spec().spec_id) == [1]

    run(work())


def test_a_table_has_at_most_so_many_columns_by_its_events(tmp_path: Path):
    async def work() -> None:
        async with half(tmp_path, limits={"columns": 3}) as h:
            h.hand.insert({"a": 1, "b": 1, "c": 1}, {"a": 2, "d": 2}, {"a": "x"}, {"a": 3, "d": None})
            assert (await h.flush())["success"]
            assert h.values(column="a") == [1, 3]
            found = [(letter["reason"], letter["field"], letter["value"]) for letter in letters(h)]
            assert found == [("too_many_columns", "d", '"d"'), ("too_many_columns", "a", '"a__string"')]

    run(work())


def test_an_event_that_does_not_fit_is_a_letter_and_holds_up_nobody(tmp_path: Path):
    async def work() -> None:
        async with half(tmp_path) as h:
            h.hand.declare("t")
            h.hand.batch([("t", {"id": 1}), ("u", {"id": 1})])
            h.hand.batch([("t", {"id": 2}), ("t", {"id": "two"}), ("u", {"id": 2})], lsn="0/5")
            h.hand.batch([("t", {"id": 3}), ("u", {"id": 3})])
            result = await h.flush()
            assert (result["success"], result["eventsFlushed"]) == (True, 7)
            assert (h.values("default.t"), h.values("default.u")) == ([1, 2, 3], [1, 2, 3])
            (letter,) = letters(h)
            assert (letter["table_name"], letter["_cdc_log"], letter["_cdc_offset"], letter["_cdc_index"]) == (
                "default.t",
                h.log.log_id,
                2,
                1,
            )
            assert (letter["reason"], letter["field"], letter["value"]) == ("does_not_fit", "id", '"two"')
            assert (letter["rule"], letter["outcome"], letter["_cdc_source"]) == ("a whole number is expected", "dead", "s")
            assert b'"after": {"id": "two"}' in letter["event"]
            assert (letter["_cdc_sequence"], letter["_cdc_operation"], letter["_cdc_row_id"]) == (3, "INSERT", "r")
            h.service.tell()
            assert h.reports[-1]["logs"][h.log.log_id]["low"] == h.log.synced_end
            assert (counts(h), h.reports[-1]["tables"]["default.t"]["dead_letters"]) == ((4, 1), 1)
            bounds = h.catalog().load_table("dolake.dead_letters").properties
            assert bounds[f"dolake.offset.default.t/{h.log.log_id}"] == "4"

    run(work())


def test_a_flush_of_nothing_but_letters_moves_on(tmp_path: Path):
    async def work() -> None:
        async with half(tmp_path) as h:
            h.hand.declare()
            h.hand.insert({"id": "x"})
            assert (await h.flush())["success"]
            h.hand.insert({"id": "y"}, {"id": "z"})
            assert (await h.flush())["success"]
            assert (h.values(), places(h)) == ([], [("default.t", 1, 0), ("default.t", 2, 0), ("default.t", 2, 1)])

    run(work())


@pytest.mark.parametrize(
    "point", ["flush.after_letters", "flush.before_put", "flush.before_commit", "commit.before_swap", "commit.after_swap"]
)
def test_a_writer_that_dies_after_its_verdicts_leaves_them_standing(tmp_path: Path, point: str):
    """Its successor is configured otherwise: what was kept out stays out, what was let in stays in, each once."""

    async def dies() -> None:
        async with half(tmp_path, stop_cleanly=False, limits={"columns": 1}) as h:
            h.hand.insert({"id": 0})
            h.hand.insert({"id": 1}, {"id": 2, "more": 2}, {"id": 3})
            # Both claims and the verdicts are commits too, and pass the commit's points first.
            passes = 3 if point.startswith("commit.") else 0
            before = REGISTRY.hits[point]
            REGISTRY.arm(point, f"{passes}*off->raise" if passes else "raise")
            await until(lambda: h.service.tails and h.service.tails[h.log.log_id].position == 2)
            h.service.tables[T].requested = True
            await until(lambda: REGISTRY.hits[point] > before + passes)
        REGISTRY.disarm()

    async def succeeds() -> None:
        async with half(tmp_path) as h:
            h.hand.insert({"id": 4, "more": 4})
            assert (await h.flush())["success"]
            assert places(h) == [("default.t", 1, 1)]
            assert h.values() == [0, 1, 3, 4]
            assert counts(h) == (5, 1)

    async def work() -> None:
        await dies()
        await succeeds()

    run(work())


def test_declared_defaults_fill_what_is_absent_and_not_what_is_null(tmp_path: Path):
    columns = [
        {"name": "id", "type": "long", "nullable": False},
        {"name": "state", "type": "string", "nullable": True, "default": "new"},
        {"name": "since", "type": "date", "nullable": True, "default": "2026-01-02"},
    ]

    async def work() -> None:
        async with half(tmp_path) as h:
            h.hand.declare()
            h.hand.insert({"id": 1})
            h.hand.declare(columns=columns)
            h.hand.insert(*({"id": n} for n in range(2, 50)))
            h.hand.insert({"id": 50, "state": None, "since": None}, {"id": 51, "state": "old", "since": "2020-01-01"})
            assert (await h.flush())["success"]
            rows = {row["id"]: (row["state"], row["since"]) for row in h.rows()}
            assert rows[1] == (None, None), "rows from before the declaration stay as they were"
            assert {rows[n] for n in range(2, 50)} == {("new", date(2026, 1, 2))}
            assert (rows[50], rows[51]) == ((None, None), ("old", date(2020, 1, 1)))

    run(work())


def test_a_default_that_does_not_fit_keeps_the_rows_out_that_need_it(tmp_path: Path):
    columns = [{"name": "id", "type": "long", "nullable": False}, {"name": "n", "type": "int", "nullable": True, "default": "many"}]

    async def work() -> None:
        async with half(tmp_path) as h:
            h.hand.declare(columns=columns)
            h.hand.insert({"id": 1}, {"id": 2, "n": 2})
            assert (await h.flush())["success"]
            (letter,) = letters(h)
            assert (h.values(), letter["field"], letter["value"]) == ([2], "n", '"\\"many\\""')
            assert "the declared default does not fit" in letter["rule"]

    run(work())


def test_old_and_new_producers_write_one_renamed_column(tmp_path: Path):
    new = [{"name": "id", "type": "long", "nullable": False}, {"name": "remark", "type": "string", "nullable": True, "renamedFrom": "note"}]

    async def work() -> None:
        async with half(tmp_path) as h:
            h.hand.declare(source="old")
            h.hand.insert({"id": 1, "note": "a"}, source="old")
            h.hand.declare(source="new", columns=new)
            h.hand.insert({"id": 2, "remark": "b"}, source="new")
            h.hand.insert({"id": 3, "note": "c"}, source="old")
            h.hand.insert({"id": 4, "note": "d"}, {"id": 5, "remark": "e"}, {"id": 6, "note": "f", "remark": "g"}, source="undeclared")
            await h.flush()
        async with half(tmp_path) as again:
            again.hand.declare(source="old")
            again.hand.insert({"id": 7, "note": "h"}, source="old")
            await again.flush()
            assert [(row["id"], row["remark"]) for row in again.rows()] == [(1, "a"), (2, "b"), (3, "c"), (4, "d"), (5, "e"), (7, "h")]
            assert schema(again) == {"id": "long", "remark": "string"}
            (letter,) = letters(again)
            assert (letter["field"], "given twice" in letter["rule"]) == ("remark", True)

    run(work())


def test_what_is_left_out_or_masked_is_neither_in_the_table_nor_in_a_letter(tmp_path: Path):
    async def work() -> None:
        rules = {"t": {"drop": ["secret"], "mask": ["email"], "columns": {"n": "int"}}}
        async with half(tmp_path, tables=rules, mask_key="0123456789abcdef") as h:
            h.hand.insert({"id": 1, "secret": "hidden", "email": "a@b"}, {"id": 2, "n": "x", "secret": "hidden", "email": "a@b"})
            assert (await h.flush())["success"]
            assert set(schema(h)) == {"n", "id", "email"}
            (row,), (letter,) = h.rows(), letters(h)
            assert len(row["email"]) == 64
            assert (b"hidden" in letter["event"], b"a@b" in letter["event"]) == (False, False)
            assert row["email"].encode() in letter["event"]

    run(work())


def test_a_column_called_as_iceberg_calls_its_own_is_kept_out_by_name_or_left_out_by_setting(tmp_path: Path):
    columns = [{"name": "id", "type": "long", "nullable": False}, {"name": "_pos", "type": "long", "nullable": True}]

    async def work() -> None:
        async with half(tmp_path, tables={"left": {"drop": ["_pos"]}}) as h:
            for table in ("t", "left"):
                h.hand.declare(table, columns)
                h.hand.insert({"id": 1}, {"id": 2, "_pos": 7}, table=table)
            h.hand.insert({"id": 1, "_file": "x"}, {"id": 2}, table="undeclared")
            assert (await h.flush())["success"]
            assert (h.values("default.t"), h.values("default.left"), h.values("default.undeclared")) == ([1], [1, 2], [2])
            assert {str(one) for table in ("t", "left", "undeclared") for one in schema(h, f"default.{table}")} == {"id"}
            found = [(letter["table_name"], letter["reason"], letter["field"]) for letter in letters(h)]
            assert found == [("default.t", "column_name", "_pos"), ("default.undeclared", "column_name", "_file")]
            assert "Iceberg gives every table" in letters(h)[0]["rule"]

    run(work())


def again(h: Half, *found: dict[str, Any]) -> int:
    """Appends dead letters as they are sent again: under their own source's name and numbers."""
    places = [[letter["_cdc_log"], letter["_cdc_offset"], letter["_cdc_index"]] for letter in found]
    letters = {"source": found[0]["_cdc_source"], "epoch": found[0]["_cdc_epoch"], "places": places}
    events = b",".join(letter["event"] for letter in found)
    payload = b'{"type":"cdc_batch","letters":%b,"events":[%b]}' % (json.dumps(letters).encode(), events)
    sequence = next(h.hand.sequences.setdefault("_dead_letters", itertools.count()))
    tables = Counter(json.loads(letter["event"])["table"] for letter in found)
    entry = Entry(RecordKind.BATCH, "_dead_letters", "", sequence, len(found), 0, payload, dict(tables))
    return h.log.append_group([entry]).start


def outcomes(h: Half) -> list[tuple[int, str, str]]:
    """(index of the letter, outcome, rule) in the order they were judged."""
    rows = sorted(letters(h), key=lambda row: (row["replayed_offset"] or -1, row["replayed_index"] or 0))
    return [(row["_cdc_index"], row["outcome"], row["rule"]) for row in rows if row["replayed_log"]]


def breaches(h: Half) -> list[str]:
    store = open_warehouse(h.settings)
    catalog = open_catalog(h.settings, store, h.runtime)
    try:
        found = verify_lake(
            disk=LocalDisk(),
            data=h.settings.data,
            directories=h.settings.log.directories,
            catalog=catalog,
            store=store,
            names=catalog.list_tables(),
        )
        return [str(breach) for breach in found]
    finally:
        catalog.close()


NARROW = [{"name": "id", "type": "long", "nullable": False}, {"name": "n", "type": "int", "nullable": True}]
WIDE = [NARROW[0], {"name": "n", "type": "long", "nullable": True}]
LARGE = 1 << 40


@pytest.mark.acceptance("AT-62")
def test_letters_sent_again_after_the_cause_is_mended_are_rows_of_their_own_source(tmp_path: Path):
    async def work() -> None:
        async with half(tmp_path) as h:
            h.hand.declare(columns=NARROW)
            h.hand.insert({"id": 1, "n": LARGE}, {"id": 2, "n": 2}, {"id": 3, "n": LARGE}, {"id": 4, "n": "x"})
            await h.flush()
            assert (h.values(), len(letters(h))) == ([2], 3)
            h.hand.insert({"id": 3, "n": 3})  # knows better than the letter
            h.hand.declare(columns=WIDE)
            again(h, *letters(h))
            await h.flush()
            rows = {(row["id"], row["n"], row["_cdc_source"], row["_cdc_sequence"]) for row in h.rows()}
            assert rows == {(2, 2, "s", 1), (3, 3, "s", 4), (1, LARGE, "s", 0)}
            assert outcomes(h) == [(0, "replayed", ""), (2, "superseded", OVERTAKEN), (3, "dead", "a whole number is expected")]
            assert counts(h) == (8, 5)
            again(h, *[letter for letter in letters(h) if letter["replayed_log"] is None])
            await h.flush()
            assert [outcome[1:] for outcome in outcomes(h)[3:]] == [
                ("superseded", SENT_AGAIN),
                ("superseded", SENT_AGAIN),
                ("dead", "a whole number is expected"),
            ]
            assert (len(h.rows()), breaches(h)) == (3, [])

    run(work())


def test_letters_sent_again_together_are_of_one_table_though_their_events_spell_it_otherwise(tmp_path: Path):
    async def work() -> None:
        async with half(tmp_path) as h:
            h.hand.declare(columns=NARROW)
            h.hand.batch([("t", {"id": 1, "n": LARGE}), ("default.t", {"id": 2, "n": LARGE})])
            await h.flush()
            h.hand.declare(columns=WIDE)
            again(h, *letters(h))
            await h.flush()
            assert [(row["id"], row["_cdc_source"], row["_cdc_sequence"]) for row in h.rows()] == [(1, "s", 0), (2, "s", 1)]
            assert [outcome[1] for outcome in outcomes(h)] == ["replayed", "replayed"]
            assert (counts(h), breaches(h)) == ((4, 2), [])

    run(work())


def test_letters_sent_again_while_their_table_is_parked_are_its_own_source_s_rows_when_it_is_back(tmp_path: Path):
    async def work() -> None:
        async with half(tmp_path) as h:
            h.hand.declare(columns=NARROW)
            h.hand.insert({"id": 1, "n": LARGE}, {"id": 2, "n": 2}, {"id": 3, "n": "x"})
            await h.flush()
            await h.service.parking.park(T, h.until())
            h.hand.declare(columns=WIDE)
            again(h, *letters(h))
            await h.service.parking.park(T, h.until())
            await h.service.parking.unpark(T)
            await h.flush()
            rows = {(row["id"], row["n"], row["_cdc_source"], row["_cdc_sequence"]) for row in h.rows()}
            assert rows == {(2, 2, "s", 1), (1, LARGE, "s", 0)}
            assert [outcome[1] for outcome in outcomes(h)] == ["replayed", "dead"]
            assert (counts(h), breaches(h)) == ((5, 3), [])

    run(work())


@pytest.mark.parametrize("point", ["flush.after_letters", "commit.before_swap", "commit.after_swap"])
def test_a_letter_sent_again_is_applied_once_though_the_writer_dies_between_verdict_and_row(tmp_path: Path, point: str):
    async def dies() -> None:
        async with half(tmp_path, stop_cleanly=False) as h:
            h.hand.declare(columns=NARROW)
            h.hand.insert({"id": 1, "n": LARGE}, {"id": 2, "n": "x"})
            await h.flush()
            h.hand.declare(columns=WIDE)
            again(h, *letters(h))
            before, passes = REGISTRY.hits[point], 1 if point.startswith("commit.") else 0
            REGISTRY.arm(point, f"{passes}*off->raise" if passes else "raise")
            await until(lambda: h.service.tails[h.log.log_id].position == 4)
            h.service.tables[T].requested = True
            await until(lambda: REGISTRY.hits[point] > before + passes)
        REGISTRY.disarm()

    async def work() -> None:
        await dies()
        async with half(tmp_path) as h:
            h.hand.insert({"id": 3}, source="other")
            assert (await h.flush())["success"]
            assert [(row["id"], row["n"]) for row in h.rows()] == [(1, LARGE), (3, None)]
            assert [outcome[1] for outcome in outcomes(h)] == ["replayed", "dead"]
            assert (counts(h), breaches(h)) == ((5, 3), [])


def test_a_letter_that_no_row_can_be_made_of_after_a_crash_is_dead_again_and_not_lost(tmp_path: Path):
    """It was let in, the writer died before its row was there, and the settings that let it in are gone."""
    wide = {"t": {"columns": {"id": "long", "n": "long"}}}

    async def letter_comes() -> None:
        async with half(tmp_path) as h:
            h.hand.declare(columns=NARROW)
            h.hand.insert({"id": 1, "n": LARGE}, {"id": 2, "n": LARGE})
            await h.flush()

    async def dies() -> None:
        async with half(tmp_path, stop_cleanly=False, tables=wide) as h:
            again(h, *letters(h))
            before = REGISTRY.hits["flush.after_letters"]
            REGISTRY.arm("flush.after_letters", "raise")
            await until(lambda: h.service.tails and h.service.tails[h.log.log_id].position == 3)
            h.service.tables[T].requested = True
            await until(lambda: REGISTRY.hits["flush.after_letters"] > before)
            assert [outcome[1] for outcome in outcomes(h)] == ["replayed", "replayed"]
        REGISTRY.disarm()

    async def work() -> None:
        await letter_comes()
        await dies()
        async with half(tmp_path) as h:
            h.hand.sequences["s"], h.hand.numbers["s"] = itertools.count(2), itertools.count(2)
            h.hand.insert({"id": 3})
            assert (await h.flush())["success"]
            assert (h.values(), counts(h), breaches(h)) == ([3], (5, 4), [])
            assert sorted(outcome[:2] for outcome in outcomes(h)) == [(0, "dead"), (0, "replayed"), (1, "dead"), (1, "replayed")]
            h.hand.declare(columns=WIDE)
            h.hand.sequences["_dead_letters"] = itertools.count(1)
            again(h, *[letter for letter in letters(h) if letter["replayed_log"] is None])
            assert (await h.flush())["success"]
            assert (sorted(h.values()), counts(h), breaches(h)) == ([1, 2, 3], (7, 4), [])

    run(work())


def test_a_letter_is_applied_once_though_the_clock_was_set_back_since_it_was_dead(tmp_path: Path):
    async def work() -> None:
        async with half(tmp_path, clock_ahead_ms=3_600_000) as h:
            h.hand.declare(columns=NARROW)
            h.hand.insert({"id": 1, "n": LARGE})
            await h.flush()
        async with half(tmp_path) as h:
            h.hand.sequences["s"] = itertools.count(2)
            h.hand.declare(columns=WIDE)
            (letter,) = letters(h)
            again(h, letter)
            await h.flush()
            again(h, letter)
            await h.flush()
            assert (h.values(), [outcome[1] for outcome in outcomes(h)]) == ([1], ["replayed", "superseded"])
            judged = sorted(letters(h), key=lambda row: row["judged_at"])
            assert [row["outcome"] for row in judged] == ["dead", "replayed", "superseded"]
            assert (counts(h), breaches(h)) == ((3, 2), [])

    run(work())


def test_a_column_renamed_away_from_its_mask_stops_the_table_until_the_settings_name_it(tmp_path: Path):
    columns = [
        {"name": "id", "type": "long", "nullable": False},
        {"name": "mail", "type": "string", "nullable": True, "renamedFrom": "email"},
    ]
    key = {"mask_key": "0123456789abcdef"}

    async def work() -> None:
        async with half(tmp_path, stop_cleanly=False, tables={"t": {"mask": ["email"]}}, **key) as h:
            h.hand.insert({"id": 1, "email": "ann@example.com"})
            h.hand.declare("t", columns)
            h.hand.insert({"id": 2, "mail": "ann@example.com"})
            result = await h.flush()
            assert result["success"] is False
            assert "column mail was email, which the settings mask: mask the new name as well" in result["error"]
            assert h.values() == [1]
        async with half(tmp_path, tables={"t": {"mask": ["email", "mail"]}}, **key) as again:
            assert (await again.flush())["success"]
            masked = {row["mail"] for row in again.rows()}
            assert len(masked) == 1
            assert "ann@example.com" not in str(again.rows())

    run(work())


def test_a_key_that_nobody_declared_columns_of_is_compared_from_the_first_record_on(tmp_path: Path):
    async def work() -> None:
        async with half(tmp_path, tables={"t": {"primary_key": ["id"]}}) as h:
            image = '{"sequence":%d,"timestamp":1767225600000,"operation":"%s","table":"t","before":{"id":1},"after":{"id":%d}}'
            events = [image % (0, "INSERT", 1), image % (1, "UPDATE", 2), image % (2, "UPDATE", 1)]
            payload = ('{"type":"cdc_batch","events":[' + ",".join(events) + "]}").encode()
            h.log.append_group([Entry(RecordKind.BATCH, "s", "", 0, 3, 0, payload, {"t": 3})])
            assert (await h.flush())["success"]
            assert [(row["id"], row["_cdc_key_before"]) for row in h.rows()] == [(1, None), (2, '{"id":1}'), (1, None)]

    run(work())


def test_what_was_decided_further_on_stands_when_a_shorter_flush_decides_more(tmp_path: Path):
    async def work() -> None:
        async with half(tmp_path) as h:
            h.hand.insert({"id": 1}, {"_cdc_x": 2})
            assert (await h.flush())["success"]
            name, log = h.service.tables[T].name, h.log.log_id
            letter = h.service.flusher.letters  # the writer's own hand on the dead letters
            event = b'{"sequence":7,"timestamp":1767225600000,"operation":"INSERT","table":"t"}'
            late = Letter(Place(log, 3, 0), "s", "", "does_not_fit", "id", "a rule", "", event)
            epoch = await letter.own()
            assert await letter.commit(name, [late], {log: 9}, h.service.tables[T].bounds, epoch) == {log: 9}
            early = Letter(Place(log, 2, 0), "s", "", "does_not_fit", "id", "a rule", "", event)
            assert await letter.commit(name, [early], {log: 3}, {log: 9}, epoch) == {log: 9}
            assert places(h) == [("default.t", 0, 1), ("default.t", 2, 0), ("default.t", 3, 0)]

    run(work())


def test_a_writer_that_was_replaced_puts_no_letter_beside_its_successor_s_row(tmp_path: Path):
    """Nobody had had a letter yet, so that nobody owned the table of letters; and the replaced writer owned its table once."""

    async def work() -> None:
        async with half(tmp_path, stop_cleanly=False) as old:
            old.hand.declare(columns=NARROW)
            old.hand.insert({"id": 1, "n": 1})
            assert (await old.flush())["success"]
            old.hand.insert({"id": 2, "n": LARGE})
            await until(lambda: old.service.tables[T].memtable.rows == 1)
            async with other_writer(old, tables={"t": {"columns": {"n": "long"}}}) as new:
                assert (await new.flush())["success"]
                assert new.values() == [1, 2]
                result = await old.flush()
                assert (result["success"], "fenced" in result["error"]) == (False, True)
                assert letters(old) == []
                new.hand.insert({"id": 3, "n": "x"})
                assert (await new.flush())["success"]
                assert (new.values(), len(letters(new)), counts(new), breaches(new)) == ([1, 2], 1, (3, 1), [])

    run(work())


def test_a_writer_that_looked_before_its_table_was_made_looks_again_at_the_verdicts(tmp_path: Path):
    """Another one, whose settings differ, made and claimed both tables, and died when its verdicts stood and its rows did not."""

    async def work() -> None:
        async with half(tmp_path, tables={"t": {"columns": {"n": "long"}}}) as first:
            first.hand.declare(columns=NARROW)
            first.hand.insert({"id": 1, "n": 1}, {"id": 2, "n": LARGE})
            await until(lambda: T in first.service.tables and first.service.tables[T].memtable.rows == 2)
            before = REGISTRY.hits["flush.after_letters"]
            REGISTRY.arm("flush.after_letters", "raise")
            async with other_writer(first) as other:
                await until(lambda: T in other.service.tables and other.service.tables[T].memtable.rows == 2)
                other.service.tables[T].requested = True
                await until(lambda: REGISTRY.hits["flush.after_letters"] > before)
            REGISTRY.disarm()
            assert places(first) == [("default.t", 1, 1)]
            assert (await first.flush())["success"]
            assert (first.values(), places(first), counts(first), breaches(first)) == ([1], [("default.t", 1, 1)], (2, 1), [])

    run(work())


def test_verdicts_of_another_writer_are_not_taken_for_ours(tmp_path: Path):
    """They reach as far as ours, under other bounds than we know: what we decided is not there, and nothing may go on as if it were."""

    def letter(log: str, offset: int) -> Letter:
        event = b'{"sequence":%d,"timestamp":1767225600000,"operation":"INSERT","table":"t"}' % offset
        return Letter(Place(log, offset, 0), "s", "", "does_not_fit", "id", "a rule", "", event)

    async def work() -> None:
        async with half(tmp_path) as h, other_writer(h) as other:
            log, ours, theirs = h.log.log_id, h.service.flusher.letters, other.service.flusher.letters
            assert await ours.verdicts(T, {}) == Verdicts()
            their_epoch = await theirs.own()
            assert await theirs.commit(T, [letter(log, 2)], {log: 5}, {}, their_epoch) == {log: 5}
            assert await ours.commit(T, [letter(log, 3)], {log: 5}, {}, await ours.own()) is None
            assert places(h) == [("default.t", 2, 0)]
            with pytest.raises(TableStopped, match="fenced"):
                await theirs.commit(T, [letter(log, 4)], {log: 6}, {log: 5}, their_epoch)
            seen = await ours.verdicts(T, {})
            assert (seen.bounds, seen.places) == ({log: 5}, {(log, 2): {0: "dead"}})
            assert await ours.commit(T, [letter(log, 6)], {log: 7}, seen.bounds, await ours.own()) == {log: 7}

    run(work())


def test_who_looks_at_the_verdicts_again_sees_those_of_a_writer_that_came_between(tmp_path: Path):
    async def work() -> None:
        async with half(tmp_path) as h, other_writer(h) as other:
            log, ours, theirs = h.log.log_id, h.service.flusher.letters, other.service.flusher.letters
            epoch = await ours.own()
            assert (await ours.verdicts(T, {})).epoch == epoch
            event = b'{"sequence":2,"timestamp":1767225600000,"operation":"INSERT","table":"t"}'
            late = Letter(Place(log, 2, 0), "s", "", "does_not_fit", "id", "a rule", "", event)
            assert await theirs.commit(T, [late], {log: 5}, {}, await theirs.own()) == {log: 5}
            seen = await ours.verdicts(T, {})
            assert (seen.bounds, seen.places, seen.epoch) == ({log: 5}, {(log, 2): {0: "dead"}}, epoch + 2)
            assert await ours.commit(T, [late], {log: 9}, seen.bounds, epoch) is None, "what was owned then is not owned now"

    run(work())
