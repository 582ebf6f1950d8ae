"""Where a table reads on in each log, also in one that is opened later than the table was read again."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

from dolake.buffer.dropped import Dropped
from dolake.buffer.plan import FlushPolicy
from dolake.iceberg.metadata import LoadedTable, new_table
from dolake.model import TableName
from dolake.parquet.align import schema_as_json
from dolake.parquet.schema import evolve_declared
from dolake.writer.letters import Verdicts
from dolake.writer.table import Table
from tests.writer.half import COLUMNS, half, until
from tests.writer.test_dead_letters import breaches
from tests.writer.test_parking import play, said

NAME = TableName.parse("t")


def table_with(offsets: dict[str, int], dropped: Dropped | None = None) -> tuple[Table, LoadedTable]:
    schema = schema_as_json(evolve_declared([], None).schema)
    metadata = new_table(uuid="new", location="memory://t", schema=schema, spec={"spec-id": 0, "fields": []}, now_ms=1)
    metadata["properties"] = {**metadata.get("properties", {}), **{f"dolake.offset.{log}": str(offset) for log, offset in offsets.items()}}
    return Table(NAME, FlushPolicy(1, 1, 1), dropped=dropped or Dropped()), LoadedTable(NAME, metadata, "memory://t/v1")


def test_read_again_it_knows_how_far_it_is_in_a_log_that_is_not_open_yet() -> None:
    table, base = table_with({"here": 5, "later": 7})
    table.rewind(base, Verdicts(), {"here": 9, "new": 3})
    assert table.consumed == {"here": 5, "later": 7, "new": 3}
    assert not table.wants("later", 6)


def test_what_a_dropped_table_had_is_passed_over_in_every_log() -> None:
    table, base = table_with({"here": 5}, Dropped("old", {"here": 8, "later": 7}))
    table.rewind(base, Verdicts(), {"here": 9})
    assert (table.consumed, table.begins) == ({"here": 8, "later": 7}, {"here": 8, "later": 7})
    table.rewind(None, Verdicts(), {"here": 9})
    assert table.consumed == {"here": 8, "later": 7}
    table, base = table_with({"here": 5}, Dropped("new", {"here": 8}))
    table.rewind(base, Verdicts(), {"here": 9})
    assert (table.consumed, table.begins) == ({"here": 5}, {}), "the note of a drop that did not happen"


def test_a_log_that_opens_while_a_table_is_read_again_is_read_from_its_start(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with half(tmp_path) as h:
            h.hand.declare()
            h.hand.insert({"id": 1})
            await h.flush()
            table = h.service.tables[NAME]
            tail = h.service.tails.pop(h.log.log_id)
            table.behind = True
            table.consumed.pop(h.log.log_id)
            tail.position = 0
            h.service.parking.note_tail(tail)
            assert table.consumed[h.log.log_id] == 0
            h.service.tails[h.log.log_id] = tail
            await h.service.catch_up(table)
            assert said(h)["tables"]["default.t"]["state"] == "following"

    play(scenario)


def test_a_table_that_is_read_again_while_a_schema_is_taken_in_gets_everything_once(tmp_path: Path) -> None:
    """The rows before the schema are with a thread when the flush of those before them fails: nothing of it may be noted after that."""

    async def scenario() -> None:
        async with half(tmp_path) as h:
            h.hand.declare()
            h.hand.insert({"id": 1, "note": "a"})
            await h.flush()
            table, log_id = h.service.tables[NAME], h.log.log_id
            at_work, go_on = threading.Event(), threading.Event()
            read = table.reading.read

            def slow_read(chunks: Any) -> Any:
                at_work.set()
                go_on.wait(20)
                return read(chunks)

            table.reading.read = slow_read  # type: ignore[method-assign]
            h.hand.insert({"id": 2, "note": "b"})
            await until(lambda: table.memtable.records)
            go_on.set()
            assert await table.freeze(h.runtime, lambda: {log_id: h.log.synced_end}) is not None
            at_work.clear()
            go_on.clear()
            h.hand.insert({"id": 3, "note": "c"})
            h.hand.declare(columns=[*COLUMNS, {"name": "more", "type": "long", "nullable": True}])
            h.hand.insert({"id": 4, "note": "d", "more": 4})
            await asyncio.to_thread(at_work.wait, 20)
            assert table.declaring
            table.rewind(table.base, Verdicts(), {log_id: h.service.tails[log_id].position})
            go_on.set()
            await until(lambda: not table.declaring)
            await h.service.read_up(table)
            table.behind = False
            await h.flush()
            assert [(row["id"], row["more"]) for row in h.rows()] == [(1, None), (2, None), (3, None), (4, 4)]
            assert breaches(h) == []

    play(scenario)
