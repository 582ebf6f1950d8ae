"""Groups: tables that are committed together, in one transaction of the catalog, at one place of the log."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from pyiceberg.table import Table

from dolake.cli import run as cli
from dolake.iceberg.lake import open_catalog, open_warehouse
from dolake.iceberg.points import parse_point, snapshot_at
from dolake.model import TableName, TransactionMark
from dolake.query import open_connection, run_query
from tests.writer.half import COLUMNS, Half, half, other_writer, until

GROUPED: dict[str, Any] = {"shop.*": {"group": "shop"}}
OFFSETS = "dolake.offset."


def run(work: Any) -> None:
    asyncio.run(work)


def table(h: Half, name: str) -> Table:
    return h.catalog().load_table(f"shop.{name}")


def summary(h: Half, name: str) -> Mapping[str, str]:
    snapshot = table(h, name).current_snapshot()
    assert snapshot is not None
    assert snapshot.summary is not None
    return snapshot.summary.additional_properties


def shared(h: Half, *names: str) -> dict[str, str]:
    """What the heads of these tables say of their cut; fails where they differ in it, in time, offsets or lsns."""
    found = []
    for name in names:
        said = {
            key: value for key, value in summary(h, name).items() if key.startswith((OFFSETS, "dolake.lsn.", "dolake.cut", "dolake.group"))
        }
        snapshot = table(h, name).current_snapshot()
        assert snapshot is not None
        found.append({**said, "time": str(snapshot.timestamp_ms)})
    assert all(one == found[0] for one in found), found
    return found[0]


def at_tag(h: Half, name: str, tag: str) -> list[int]:
    loaded = table(h, name)
    snapshot = loaded.snapshot_by_name(tag)
    assert snapshot is not None
    return sorted(loaded.scan(snapshot_id=snapshot.snapshot_id).to_arrow()["id"].to_pylist())


def ids(h: Half, name: str) -> list[int]:
    return sorted(table(h, name).scan().to_arrow()["id"].to_pylist())


async def two_tables(h: Half) -> None:
    for name in ("orders", "lines"):
        h.hand.declare(f"shop.{name}")
    h.hand.batch([("shop.orders", {"id": 1}), ("shop.lines", {"id": 10})], lsn="0/A")
    assert (await h.flush())["success"]


@pytest.mark.parametrize("mode", ["changelog", "mirror", "both"])
def test_the_tables_of_a_group_are_committed_with_one_number_time_and_end(tmp_path: Path, mode: str):
    async def work() -> None:
        async with half(tmp_path, mode=mode, tables=GROUPED) as h:
            await two_tables(h)
            names = ["orders", "lines", *(["orders__changes", "lines__changes"] if mode == "both" else [])]
            said = shared(h, *names)
            assert (said["dolake.group"], said["dolake.cut"], said["dolake.cut.tables"]) == ("shop", "1", str(len(names)))
            assert (said[f"{OFFSETS}{h.log.log_id}"], said["dolake.lsn.s"]) == ("3", "0/A")
            h.hand.insert({"id": 11}, table="shop.lines", lsn="0/B")
            result = await h.flush("shop.lines")
            assert result["success"], result
            said = shared(h, *names)
            assert (said["dolake.cut"], said["dolake.lsn.s"], said[f"{OFFSETS}{h.log.log_id}"]) == ("2", "0/B", "4")
            assert (ids(h, "orders"), ids(h, "lines")) == ([1], [10, 11])
            assert (at_tag(h, "lines", "dolake-cut-1"), at_tag(h, "lines", "dolake-cut-2")) == ([10], [10, 11])

    run(work())


def test_a_table_of_which_nothing_was_said_gets_a_snapshot_without_rows(tmp_path: Path):
    async def work() -> None:
        async with half(tmp_path, mode="mirror", tables=GROUPED) as h:
            await two_tables(h)
            before = table(h, "orders")
            indexes = h.service.flusher.mirrors.indexes
            for number in range(3):
                h.hand.insert({"id": 20 + number}, table="shop.lines")
                assert (await h.flush())["success"]
                # Its index is the head's still: nothing has to be looked at for it, however long nothing is said.
                opened = indexes._open[TableName.parse("shop.orders")]
                assert opened.index.snapshot_id == table(h, "orders").metadata.current_snapshot_id
            after = table(h, "orders")
            assert len(after.snapshots()) == len(before.snapshots()) + 3
            assert [file["file_path"] for file in after.inspect.files().to_pylist()] == [
                file["file_path"] for file in before.inspect.files().to_pylist()
            ]
            said = summary(h, "orders")
            assert "added-records" not in said
            assert said["total-records"] == "1"
            h.hand.change({"operation": "UPDATE", "rowId": "r", "after": {"id": 1, "note": "new"}}, table="shop.orders")
            assert (await h.flush())["success"]
            assert h.mirrored("shop.orders")[1]["note"] == "new"

    run(work())


def test_a_transaction_over_two_tables_is_in_both_or_in_neither(tmp_path: Path):
    async def work() -> None:
        async with half(tmp_path, tables=GROUPED) as h:
            await two_tables(h)
            h.hand.insert({"id": 2}, table="shop.orders", transaction=TransactionMark("x", False))
            h.hand.insert({"id": 30}, table="shop.lines", source="other", lsn="0/C")
            assert (await h.flush())["success"]
            # Of its own the table of lines would have gone on: no transaction of it is open.
            assert (ids(h, "orders"), ids(h, "lines"), shared(h, "orders", "lines")["dolake.cut"]) == ([1], [10], "1")
            h.hand.insert({"id": 20}, table="shop.lines", transaction=TransactionMark("x", True))
            assert (await h.flush())["success"]
            assert (ids(h, "orders"), ids(h, "lines"), shared(h, "orders", "lines")["dolake.cut"]) == ([1, 2], [10, 20, 30], "2")

    run(work())


def test_a_table_without_a_group_goes_on_by_itself(tmp_path: Path):
    async def work() -> None:
        async with half(tmp_path, tables=GROUPED) as h:
            await two_tables(h)
            h.hand.insert({"id": 2}, table="shop.orders", transaction=TransactionMark("x", False))
            h.hand.declare("t")
            h.hand.insert({"id": 7}, table="t")
            assert (await h.flush())["success"]
            assert h.values("default.t") == [7]
            assert "dolake.cut" not in h.catalog().load_table("default.t").properties

    run(work())


def test_a_pattern_takes_a_table_out_of_a_wider_ones_group(tmp_path: Path):
    async def work() -> None:
        async with half(tmp_path, tables={**GROUPED, "shop.audit": {"group": ""}}) as h:
            await two_tables(h)
            h.hand.declare("shop.audit")
            h.hand.insert({"id": 1}, table="shop.audit")
            assert (await h.flush())["success"]
            assert "dolake.cut" not in summary(h, "audit")
            assert shared(h, "orders", "lines")["dolake.cut"] == "1"

    run(work())


def test_a_writer_that_starts_knows_the_members_that_nothing_is_said_of(tmp_path: Path):
    async def work() -> None:
        async with half(tmp_path, tables=GROUPED) as h:
            await two_tables(h)
        async with half(tmp_path, tables=GROUPED) as h:
            h.hand.insert({"id": 11}, table="shop.lines")
            assert (await h.flush())["success"]
            said = shared(h, "orders", "lines")
            assert (said["dolake.cut"], said["dolake.cut.tables"]) == ("2", "2")

    run(work())


def test_what_is_grouped_later_is_numbered_on_and_shares_the_next_cut(tmp_path: Path):
    async def work() -> None:
        async with half(tmp_path, tables={}) as h:
            await two_tables(h)
            h.hand.insert({"id": 2}, table="shop.orders")
            assert (await h.flush())["success"]
        async with half(tmp_path, tables=GROUPED) as h:
            h.hand.insert({"id": 11}, table="shop.lines")
            assert (await h.flush())["success"]
            assert shared(h, "orders", "lines")["dolake.cut"] == "1"
            assert (ids(h, "orders"), ids(h, "lines")) == ([1, 2], [10, 11])
        async with half(tmp_path, tables={"shop.*": {"group": "other"}}) as h:
            h.hand.insert({"id": 3}, table="shop.orders")
            assert (await h.flush())["success"]
            said = shared(h, "orders", "lines")
            assert (said["dolake.group"], said["dolake.cut"]) == ("other", "2")

    run(work())


def test_a_member_that_stops_is_left_behind_and_is_one_again_when_it_is_back(tmp_path: Path):
    async def work() -> None:
        async with half(tmp_path, tables=GROUPED) as h:
            await two_tables(h)
            foreign = table(h, "lines")
            with foreign.transaction() as change:  # Somebody takes its offsets back.
                change.set_properties({f"{OFFSETS}{h.log.log_id}": "0"})
            h.hand.batch([("shop.orders", {"id": 2}), ("shop.lines", {"id": 11})])
            result = await h.flush()
            assert "shop.lines has stopped" in result["error"]
            assert ids(h, "orders") == [1, 2]
            assert (summary(h, "orders")["dolake.cut"], summary(h, "orders")["dolake.cut.tables"]) == ("2", "1")
            with table(h, "lines").transaction() as change:
                change.set_properties({f"{OFFSETS}{h.log.log_id}": "3"})
        async with half(tmp_path, tables=GROUPED) as h:
            assert (await h.flush())["success"]
            assert ids(h, "lines") == [10, 11]
            h.hand.insert({"id": 3}, table="shop.orders")
            assert (await h.flush())["success"]
            assert shared(h, "orders", "lines")["dolake.cut.tables"] == "2"

    run(work())


def test_a_member_that_is_parked_is_left_behind_and_comes_back(tmp_path: Path):
    async def work() -> None:
        async with half(tmp_path, tables=GROUPED) as h:
            await two_tables(h)
            lines = TableName.parse("shop.lines")
            await h.service.parking.park(lines, h.until())
            h.hand.batch([("shop.orders", {"id": 2}), ("shop.lines", {"id": 11})])
            await h.flush("shop.orders")
            assert (ids(h, "orders"), ids(h, "lines")) == ([1, 2], [10])
            await h.service.parking.unpark(lines)
            assert (await h.flush())["success"]
            assert ids(h, "lines") == [10, 11]
            await until(lambda: h.service.tables[lines].side is None)
            h.hand.insert({"id": 3}, table="shop.orders")
            assert (await h.flush())["success"]
            assert shared(h, "orders", "lines")["dolake.cut.tables"] == "2"

    run(work())


def test_the_number_of_a_cut_that_a_table_was_left_behind_in_is_not_given_again(tmp_path: Path):
    """One after the other is left behind: each comes back to a number that neither has had."""

    async def without(h: Half, name: str, other: str, number: int) -> None:
        await h.service.parking.park(TableName.parse(f"shop.{name}"), h.until())
        h.hand.insert({"id": number}, table=f"shop.{other}")
        await h.flush(f"shop.{other}")
        await h.service.parking.unpark(TableName.parse(f"shop.{name}"))
        await until(lambda: h.service.tables[TableName.parse(f"shop.{name}")].side is None)

    async def work() -> None:
        async with half(tmp_path, tables=GROUPED) as h:
            await two_tables(h)
            await without(h, "orders", "lines", 50)
            await without(h, "lines", "orders", 60)
            assert [summary(h, name)["dolake.cut"] for name in ("orders", "lines")] == ["3", "2"]
            assert [summary(h, name)["dolake.cut.tables"] for name in ("orders", "lines")] == ["1", "1"]

    run(work())


def test_the_tag_of_an_hour_is_one_cut_in_all_tables(tmp_path: Path):
    """Also where one of them was claimed before it, for a dead letter: that snapshot is of this table alone."""

    async def work() -> None:
        async with half(tmp_path, tables=GROUPED) as h:
            for name in ("orders", "lines"):
                h.hand.declare(f"shop.{name}")
            h.hand.batch([("shop.orders", {"id": 2}), ("shop.lines", {"id": "no number"}), ("shop.lines", {"id": 12})])
            assert (await h.flush())["success"]
            assert len(table(h, "lines").snapshots()) == 2
            for name in ("orders", "lines"):
                refs = table(h, name).refs()
                hours = [ref.snapshot_id for tag, ref in refs.items() if tag.startswith("dolake-hour-")]
                assert hours == [refs["dolake-cut-1"].snapshot_id]

    run(work())


def test_a_dead_letter_of_one_member_keeps_nothing_from_the_others(tmp_path: Path):
    async def work() -> None:
        async with half(tmp_path, mode="mirror", tables=GROUPED) as h:
            await two_tables(h)
            h.hand.batch([("shop.orders", {"id": 2}), ("shop.lines", {"id": "no number"}), ("shop.lines", {"id": 12})])
            assert (await h.flush())["success"]
            assert (ids(h, "orders"), ids(h, "lines")) == ([1, 2], [10, 12])
            assert shared(h, "orders", "lines")["dolake.cut"] == "2"

    run(work())


@pytest.mark.parametrize("mode", ["mirror", "changelog"])
def test_somebody_else_s_commit_in_between_is_planned_around(tmp_path: Path, mode: str):
    async def work() -> None:
        async with half(tmp_path, mode=mode, tables=GROUPED) as h:
            await two_tables(h)
            foreign = table(h, "orders").scan().to_arrow()
            h.hand.batch([("shop.orders", {"id": 1, "note": "mine"}), ("shop.lines", {"id": 11})])
            await until(lambda: h.service.tables[TableName.parse("shop.lines")].memtable.records)
            row = foreign.set_column(foreign.schema.get_field_index("id"), foreign.schema.field("id"), [[99]])
            table(h, "orders").append(row)
            assert (await h.flush())["success"]
            assert (ids(h, "orders"), ids(h, "lines")) == ([1, 99] if mode == "mirror" else [1, 1, 99], [10, 11])
            assert shared(h, "orders", "lines")["dolake.cut"] == "2"

    run(work())


def test_a_member_that_was_committed_further_by_itself_is_waited_for(tmp_path: Path):
    async def work() -> None:
        async with half(tmp_path, tables={}) as h:
            await two_tables(h)
            h.hand.insert({"id": 2}, table="shop.orders", transaction=TransactionMark("x", False))
            h.hand.insert({"id": 11}, table="shop.lines", source="other")
            assert (await h.flush())["success"]
            assert ids(h, "lines") == [10, 11]
        async with half(tmp_path, tables=GROUPED) as h:
            h.hand.insert({"id": 12}, table="shop.lines", source="other")
            await h.flush()
            assert (ids(h, "orders"), ids(h, "lines")) == ([1], [10, 11])
            h.hand.insert({"id": 3}, table="shop.orders", transaction=TransactionMark("x", True))
            assert (await h.flush())["success"]
            assert (ids(h, "orders"), ids(h, "lines")) == ([1, 2, 3], [10, 11, 12])
            shared(h, "orders", "lines")

    run(work())


def test_where_the_writer_before_has_committed_one_member_the_others_make_no_cut_without_it(tmp_path: Path):
    """That member is found landed; the others would have said that it is of their cut, and it has no such tag."""

    async def work() -> None:
        async with half(tmp_path, tables={}, stop_cleanly=False) as h:
            await two_tables(h)
            async with other_writer(h, mode="changelog", tables=GROUPED) as successor:
                h.hand.batch([("shop.orders", {"id": 2}), ("shop.lines", {"id": 11})])
                tables = successor.service.tables
                await until(lambda: [len(member.memtable.records) for member in tables.values()] == [1, 1])
                assert (await h.flush("shop.lines"))["success"]
                assert (await successor.flush())["success"]
                assert shared(h, "orders", "lines")["dolake.cut.tables"] == "2"
                assert (ids(h, "orders"), ids(h, "lines")) == ([1, 2], [10, 11])

    run(work())


def test_a_writer_that_another_has_taken_one_member_from_cuts_none_of_the_others(tmp_path: Path):
    """Both would give the next number: the one to that member, this one to the rest."""

    async def work() -> None:
        async with half(tmp_path, tables=GROUPED, stop_cleanly=False) as h:
            await two_tables(h)
            async with other_writer(h, mode="changelog", tables=GROUPED) as successor:
                await successor.service.maintaining.maintain(TableName.parse("shop.orders"))
                h.hand.batch([("shop.orders", {"id": 2}), ("shop.lines", {"id": 11})])
                lines = h.service.tables[TableName.parse("shop.lines")]
                await h.flush()
                await until(lambda: lines.stopped is not None)
                assert lines.stopped is not None
                assert lines.stopped.reason.startswith("its group's shop.orders is fenced: ")
                assert ids(h, "lines") == [10]
                assert (await successor.flush())["success"]
                said = shared(h, "orders", "lines")
                assert (said["dolake.cut"], said["dolake.cut.tables"]) == ("2", "2")
                assert (ids(h, "orders"), ids(h, "lines")) == ([1, 2], [10, 11])

    run(work())


def test_tags_of_cuts_go_with_their_snapshots(tmp_path: Path):
    async def work() -> None:
        async with half(tmp_path, tables=GROUPED, snapshots_kept=3) as h:
            await two_tables(h)
            for number in range(6):
                h.hand.insert({"id": 20 + number}, table="shop.lines")
                assert (await h.flush())["success"]
            for name in ("orders", "lines"):
                cuts = sorted(ref for ref in table(h, name).refs() if ref.startswith("dolake-cut-"))
                assert cuts == ["dolake-cut-5", "dolake-cut-6", "dolake-cut-7"]
                assert {ref for ref in table(h, name).refs() if not ref.startswith("dolake-cut-")} >= {"main"}
            assert (at_tag(h, "lines", "dolake-cut-5"), at_tag(h, "orders", "dolake-cut-5")) == ([10, 20, 21, 22, 23], [1])

    run(work())


def test_a_schema_that_an_open_transaction_keeps_back_keeps_back_the_group(tmp_path: Path):
    async def work() -> None:
        async with half(tmp_path, tables=GROUPED) as h:
            await two_tables(h)
            h.hand.insert({"id": 2}, table="shop.orders", transaction=TransactionMark("x", False))
            h.hand.declare("shop.lines", columns=[COLUMNS[0]])
            h.hand.insert({"id": 11}, table="shop.lines", source="other")
            await h.flush()
            assert (ids(h, "orders"), ids(h, "lines")) == ([1], [10])
            h.hand.insert({"id": 3}, table="shop.orders", transaction=TransactionMark("x", True))
            assert (await h.flush())["success"]
            assert (ids(h, "orders"), ids(h, "lines")) == ([1, 2, 3], [10, 11])

    run(work())


def test_a_query_sees_all_tables_of_a_group_at_one_moment(tmp_path: Path):
    """A cut lands between the looks at two of them: they are looked at again."""

    class Moving:
        """The catalog, in which something happens before a table is looked at for the n-th time."""

        def __init__(self, catalog: Any, moves: list[Any]) -> None:
            self._catalog, self._moves = catalog, moves

        def list_tables(self) -> Any:
            return self._catalog.list_tables()

        def load(self, name: TableName) -> Any:
            if self._moves and (move := self._moves.pop(0)) is not None:
                move()
            return self._catalog.load(name)

    async def work() -> None:
        async with half(tmp_path, tables=GROUPED) as h:
            await two_tables(h)
            loop, store = asyncio.get_running_loop(), open_warehouse(h.settings)
            catalog = open_catalog(h.settings, store, h.runtime)
            ids_sent = itertools.count(100)

            async def next_cut() -> None:
                number = next(ids_sent)
                h.hand.batch([("shop.orders", {"id": number}), ("shop.lines", {"id": number})])
                assert (await h.flush())["success"]

            def move() -> None:
                asyncio.run_coroutine_threadsafe(next_cut(), loop).result(20)

            def counts(moves: list[Any]) -> tuple[Any, ...]:
                connection = open_connection(Moving(catalog, moves), store)  # type: ignore[arg-type]
                try:
                    sql = "SELECT (SELECT count(*) FROM shop.lines), (SELECT count(*) FROM shop.orders)"
                    (row,) = [row for batch in run_query(connection, sql).batches() for row in batch.to_pylist()]
                    return tuple(row.values())
                finally:
                    connection.close()

            assert await asyncio.to_thread(counts, [None, move]) == (2, 2)
            assert await asyncio.to_thread(counts, [None, move, None, move, move, None]) == (5, 5)
            catalog.close()  # type: ignore[attr-defined]

    run(work())


def test_a_position_of_the_source_is_one_cut_in_all_tables(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Also in one of which nothing was said since."""

    async def work() -> None:
        async with half(tmp_path, tables=GROUPED) as h:
            await two_tables(h)
            for number, lsn in ((11, "0/B"), (12, "0/C")):
                h.hand.insert({"id": number}, table="shop.lines", lsn=lsn)
                assert (await h.flush())["success"]
            h.hand.insert({"id": 2}, table="shop.orders", lsn="0/D")
            assert (await h.flush())["success"]
            names = {
                name: {ref.snapshot_id: tag for tag, ref in table(h, name).refs().items() if "cut" in tag} for name in ("orders", "lines")
            }
            for at, cut in (("lsn:0/A", 1), ("lsn:0/B", 2), ("lsn:0/C", 3), ("lsn:0/D", 4)):
                for name, tags in names.items():
                    base = await h.service.flusher.load(TableName.parse(f"shop.{name}"))
                    assert base is not None
                    found = snapshot_at(base, parse_point(at), h.runtime.clock.now_ms())
                    assert tags[found["snapshot-id"]] == f"dolake-cut-{cut}", (at, name)

    run(work())
    sql = "SELECT (SELECT count(*) FROM shop.orders), (SELECT count(*) FROM shop.lines)"
    for at, counts in (("lsn:0/A", "1,1"), ("tag:dolake-cut-3", "1,3"), ("lsn:0/D", "2,3")):
        assert cli(["query", sql, "--at", at, "--csv", "--data", str(tmp_path)]) == 0
        assert capsys.readouterr().out.splitlines()[-1] == counts
    assert cli(["snapshots", "shop.orders", "--json", "--data", str(tmp_path)]) == 0
    marks = [(one["mark"], [ref["name"] for ref in one["refs"] if "cut" in ref["name"]]) for one in json.loads(capsys.readouterr().out)]
    assert marks[:4] == [("", ["dolake-cut-4"]), ("cut", ["dolake-cut-3"]), ("cut", ["dolake-cut-2"]), ("", ["dolake-cut-1"])]
