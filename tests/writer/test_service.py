"""The writer half over real files: what it commits, what it holds back, where it stops, what it may let go."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from dolake.model import TableName, TablesLike, TransactionMark
from tests.writer.half import COLUMNS, Half, half, letters, until

T = TableName.parse("t")


def run(work: Any) -> None:
    asyncio.run(work)


def low(half: Half) -> int:
    half.service.tell()
    return half.reports[-1]["logs"][half.log.log_id]["low"]


def offset(half: Half, table: str = "default.t") -> int:
    return int(half.catalog().load_table(table).properties[f"dolake.offset.{half.log.log_id}"])


def test_a_flush_commits_the_rows_and_the_offset_after_them(tmp_path: Path):
    async def work() -> None:
        async with half(tmp_path) as h:
            h.hand.declare()
            h.hand.insert({"id": 1, "note": "a"}, {"id": 2}, lsn="0/9")
            result = await h.flush()
            assert (result["success"], result["eventsFlushed"], result["batchesFlushed"]) == (True, 2, 2)
            assert [(row["id"], row["note"], row["_cdc_offset"], row["_cdc_index"]) for row in h.rows()] == [
                (1, "a", 1, 0),
                (2, None, 1, 1),
            ]
            table = h.catalog().load_table("default.t")
            assert (offset(h), low(h)) == (2, 2)
            summary = table.current_snapshot().summary
            assert (summary[f"dolake.offset.{h.log.log_id}"], summary["dolake.lsn.s"]) == ("2", "0/9")
            assert table.properties["dolake.count.accepted"] == "2"

    run(work())


def test_a_flush_may_be_for_the_tables_that_match_and_no_others(tmp_path: Path):
    async def work() -> None:
        async with half(tmp_path) as h:
            for table in ("t", "public.orders"):
                h.hand.declare(table)
                h.hand.insert({"id": 1}, table=table)
            result = await h.service.flush(TablesLike(["public.*", "absent"]), h.until(), timeout_s=10)
            assert (result["success"], result["eventsFlushed"], len(result["paths"])) == (True, 1, 1)
            assert h.values("public.orders") == [1]
            assert not h.catalog().table_exists("default.t")

    run(work())


def test_nothing_is_flushed_before_it_is_due_and_low_stays_at_the_first_row(tmp_path: Path):
    async def work() -> None:
        async with half(tmp_path, stop_cleanly=False) as h:
            h.hand.declare()
            h.hand.insert({"id": 1})
            await until(lambda: h.service.tails and h.service.tails[h.log.log_id].position == 2)
            assert h.catalog().list_namespaces() == []
            assert low(h) == 0

    run(work())


@pytest.mark.acceptance("AT-50")
@pytest.mark.parametrize(("section", "rows"), [({"rows": 3}, 3), ({"bytes": 2000}, 12), ({"age_s": 0.05}, 1)])
def test_rows_bytes_and_age_make_a_table_due(tmp_path: Path, section: dict[str, Any], rows: int):
    async def work() -> None:
        async with half(tmp_path, stop_cleanly=False, flush={"age_s": 3600, **section}) as h:
            h.hand.declare()
            for n in range(rows):
                h.hand.insert({"id": n, "note": "x" * 50})
            await until(lambda: T in h.service.tables and h.service.tables[T].committed)
            await until(lambda: "rows" in section or low(h) == h.log.synced_end or "bytes" in section)
            assert h.values()[:1] == [0]

    run(work())


@pytest.mark.acceptance("AT-51")
def test_flushing_one_table_leaves_the_others_in_the_log(tmp_path: Path):
    async def work() -> None:
        async with half(tmp_path, stop_cleanly=False) as h:
            for table in ("t", "u", "v"):
                h.hand.declare(table)
            h.hand.batch([("t", {"id": 1}), ("u", {"id": 2}), ("v", {"id": 3}), ("t", {"id": 4})])
            result = await h.flush("t")
            assert (result["success"], result["eventsFlushed"]) == (True, 2)
            assert h.values("default.t") == [1, 4]
            assert [identifier[1] for identifier in h.catalog().list_tables("default")] == ["t"]
            assert low(h) == 1  # the schema of u, which has made no table yet

    run(work())


def test_one_name_written_two_ways_is_one_table_in_the_order_of_the_batch(tmp_path: Path):
    async def work() -> None:
        async with half(tmp_path) as h:
            h.hand.declare("default.t")
            h.hand.batch([("t", {"id": 1}), ("default.t", {"id": 2}), ("t", {"id": 3})])
            await h.flush()
            assert [(row["id"], row["_cdc_index"]) for row in h.rows()] == [(1, 0), (2, 1), (3, 2)]

    run(work())


def test_stopping_commits_what_was_read(tmp_path: Path):
    async def work() -> None:
        async with half(tmp_path) as h:
            h.hand.declare()
            h.hand.insert({"id": 1})
            await until(lambda: h.service.tails and h.service.tails[h.log.log_id].position == 2)
        assert h.values() == [1]

    run(work())


def test_a_writer_that_vanished_is_followed_by_one_that_reads_on_from_what_is_committed(tmp_path: Path):
    async def work() -> None:
        async with half(tmp_path, stop_cleanly=False) as first:
            first.hand.declare()
            first.hand.insert({"id": 1})
            await first.flush()
            first.hand.insert({"id": 2})
            await until(lambda: first.service.tails[first.log.log_id].position == 3)
        async with half(tmp_path) as second:
            second.hand.insert({"id": 3})
            await second.flush()
            assert second.values() == [1, 2, 3]
            properties = second.catalog().load_table("default.t").properties
            assert (properties["dolake.epoch"], properties["dolake.count.accepted"]) == ("2", "3")

    run(work())


def test_a_schema_that_changes_applies_to_the_rows_after_it(tmp_path: Path):
    renamed = [
        {"name": "id", "type": "long", "nullable": False},
        {"name": "remark", "type": "string", "nullable": True, "renamedFrom": "note"},
        {"name": "at", "type": "date", "nullable": True},
    ]

    async def work() -> None:
        async with half(tmp_path) as h:
            h.hand.declare()
            h.hand.insert({"id": 1, "note": "old"})
            h.hand.declare(columns=renamed)
            h.hand.insert({"id": 2, "remark": "new", "at": "2026-01-02"})
            assert (await h.flush())["success"]
            assert [(row["id"], row["remark"], str(row["at"])) for row in h.rows()] == [(1, "old", "None"), (2, "new", "2026-01-02")]
            field = h.catalog().load_table("default.t").schema().find_field("remark").field_id
            h.hand.insert({"id": 3, "remark": "later"})
            await h.flush()
            assert h.catalog().load_table("default.t").schema().find_field("remark").field_id == field
        async with half(tmp_path) as again:
            again.hand.insert({"id": 4, "remark": "after a restart"})
            await again.flush()
            assert again.values(column="remark") == ["old", "new", "later", "after a restart"]

    run(work())


def test_a_schema_that_cannot_be_leaves_the_column_as_it_is_and_says_so(tmp_path: Path):
    async def work() -> None:
        async with half(tmp_path) as h:
            h.hand.declare()
            h.hand.insert({"id": 1})
            h.hand.declare(columns=[{"name": "id", "type": "boolean", "nullable": False}, {"name": "x", "type": "date", "nullable": True}])
            h.hand.insert({"id": True}, {"id": 2, "x": "2026-01-02"})
            assert (await h.flush())["success"]
            assert [(row["id"], str(row["x"])) for row in h.rows()] == [(1, "None"), (2, "2026-01-02")]
            h.service.tell()
            assert "boolean" in h.reports[-1]["tables"]["default.t"]["troubles"]["id"]
            assert [(letter["field"], letter["value"]) for letter in letters(h)] == [("id", "true")]

    run(work())


@pytest.mark.acceptance("AT-58")
def test_no_flush_cuts_inside_a_source_transaction(tmp_path: Path):
    async def work() -> None:
        async with half(tmp_path) as h:
            h.hand.declare("t")
            h.hand.declare("u")
            h.hand.insert({"id": 1})
            h.hand.insert({"id": 2}, transaction=TransactionMark("x", False))
            h.hand.insert({"id": 9}, source="other")
            h.hand.insert({"id": 1}, table="u")
            assert (await h.flush())["success"]
            assert (h.values("default.t"), h.values("default.u")) == ([1], [1])
            assert (offset(h), low(h)) == (3, 3)
            h.hand.insert({"id": 3}, transaction=TransactionMark("x", True))
            assert (await h.flush())["success"]
            assert (h.values("default.t"), low(h)) == ([1, 2, 9, 3], 7)
            snapshots = h.catalog().load_table("default.t").snapshots()
            assert [snapshot.summary["added-records"] for snapshot in snapshots] == ["1", "3"]

    run(work())


def test_a_schema_behind_an_open_transaction_holds_its_table_back_whole(tmp_path: Path):
    async def work() -> None:
        async with half(tmp_path) as h:
            h.hand.declare()
            h.hand.insert({"id": 1})
            await h.flush()
            h.hand.insert({"id": 2})
            h.hand.insert({"id": 3, "note": "n"}, transaction=TransactionMark("x", False))
            h.hand.declare(columns=[COLUMNS[0]])
            await h.flush()
            assert (h.values(), offset(h)) == ([1], 2)
            h.hand.insert({"id": 4}, transaction=TransactionMark("x", True))
            await h.flush()
            assert h.values() == [1, 2, 3, 4]

    run(work())


def test_rows_of_each_identity_partition_go_into_files_of_their_own(tmp_path: Path):
    async def work() -> None:
        tables = {"t": {"partition_by": ["note", "id"]}}
        async with half(tmp_path, tables=tables) as h:
            h.hand.declare()
            h.hand.insert({"id": 1, "note": "a"}, {"id": 2, "note": "b"}, {"id": 1, "note": "a"}, {"id": 1, "note": None})
            await h.flush()
            table = h.catalog().load_table("default.t")
            partitions = table.inspect.partitions().to_pylist()
            found = {(p["partition"]["note"], p["partition"]["id"]): p["record_count"] for p in partitions}
            assert found == {("a", 1): 2, ("b", 2): 1, (None, 1): 1}
            assert len(table.scan(row_filter="note = 'b'").to_arrow()) == 1

    run(work())


def test_a_partition_column_that_nobody_declares_stops_the_table_with_the_remedy(tmp_path: Path):
    async def work() -> None:
        async with half(tmp_path, tables={"t": {"partition_by": ["nope"]}}) as h:
            h.hand.declare()
            h.hand.insert({"id": 1})
            result = await h.flush()
            assert "partition_by names nope" in result["error"]
            assert low(h) == 0

    run(work())


def test_a_foreign_append_in_between_stays_and_ours_lands_on_top(tmp_path: Path):
    async def work() -> None:
        async with half(tmp_path) as h:
            h.hand.declare()
            h.hand.insert({"id": 1})
            await h.flush()
            table = h.catalog().load_table("default.t")
            table.append(table.scan().to_arrow())
            h.hand.insert({"id": 2})
            assert (await h.flush())["success"]
            assert sorted(h.values()) == [1, 1, 2]

    run(work())


def test_a_foreign_schema_change_is_planned_again_from_the_log(tmp_path: Path):
    async def work() -> None:
        async with half(tmp_path) as h:
            h.hand.declare()
            h.hand.insert({"id": 1})
            await h.flush()
            from pyiceberg.types import StringType

            with h.catalog().load_table("default.t").update_schema() as update:
                update.add_column("theirs", StringType())
            h.hand.insert({"id": 2})
            h.hand.declare(columns=[*COLUMNS, {"name": "ours", "type": "int", "nullable": True}])
            h.hand.insert({"id": 3, "ours": 7})
            assert (await h.flush())["success"]
            assert [(row["id"], row["theirs"], row["ours"]) for row in h.rows()] == [(1, None, None), (2, None, None), (3, None, 7)]
            ids = [field.field_id for field in h.catalog().load_table("default.t").schema().fields]
            assert len(set(ids)) == len(ids)
            assert low(h) == h.log.synced_end

    run(work())


def test_no_flush_begins_before_one_that_did_not_land_is_read_again(tmp_path: Path):
    """The catalog is slow to say where the table stands, and more rows are due meanwhile."""

    async def work() -> None:
        async with half(tmp_path, flush={"age_s": 3600, "rows": 1}) as h:
            h.hand.declare()
            h.hand.insert({"id": 1})
            await until(lambda: h.service.tables and h.service.tables[T].committed.get(h.log.log_id) == 2)
            load = h.service.flusher.load

            async def slowly(name: TableName) -> Any:
                h.hand.insert({"id": 3})
                await h.runtime.clock.sleep(0.2)
                return await load(name)

            h.service.flusher.load = slowly  # type: ignore[method-assign]
            from pyiceberg.types import StringType

            with h.catalog().load_table("default.t").update_schema() as update:
                update.add_column("theirs", StringType())
            h.hand.declare(columns=[*COLUMNS, {"name": "ours", "type": "int", "nullable": True}])
            h.hand.insert({"id": 2})
            await until(lambda: h.service.tables[T].committed.get(h.log.log_id, 0) >= 5)
            assert h.values() == [1, 2, 3]

    run(work())


def test_a_flush_request_that_ends_takes_no_other_with_it(tmp_path: Path):
    async def work() -> None:
        async with half(tmp_path) as h:
            h.hand.declare()
            h.hand.insert({"id": 1})
            whole, missing = await asyncio.gather(h.flush(), h.flush("missing"))
            assert (whole["success"], whole["eventsFlushed"], missing["success"]) == (True, 1, False)
            h.hand.insert({"id": 2})
            assert (await h.flush())["success"]
            assert h.values() == [1, 2]

    run(work())


def test_another_writer_that_claimed_the_table_fences_this_one(tmp_path: Path):
    async def work() -> None:
        async with half(tmp_path, stop_cleanly=False) as h:
            h.hand.declare()
            h.hand.insert({"id": 1})
            await h.flush()
            table = h.catalog().load_table("default.t")
            with table.transaction() as change:
                change.set_properties({"dolake.epoch": "7", "dolake.instance": "another"})
            h.hand.insert({"id": 2})
            result = await h.flush()
            assert "fenced" in result["error"]
            assert (h.values(), low(h)) == ([1], 2)

    run(work())


def test_a_table_that_claims_more_than_the_log_has_stops_that_log(tmp_path: Path):
    async def work() -> None:
        async with half(tmp_path) as h:
            h.hand.declare()
            h.hand.insert({"id": 1})
            await h.flush()
            with h.catalog().load_table("default.t").transaction() as change:
                change.set_properties({f"dolake.offset.{h.log.log_id}": "50"})
        async with half(tmp_path, stop_cleanly=False) as again:
            again.hand.insert({"id": 2})
            await until(lambda: again.service.tails and again.service.tails[again.log.log_id].trouble)
            assert "older copy" in again.service.tails[again.log.log_id].trouble
            assert again.values() == [1]

    run(work())
