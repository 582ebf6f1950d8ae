"""A table's columns change while sources write it: what was written before, what is written after, by old producers and new ones."""

from __future__ import annotations

import asyncio
import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from pyiceberg.table import Table

from tests.harness.daemon import Daemon
from tests.harness.lake import Lake
from tests.harness.source import Conversation, connect_message, conversation
from tests.harness.traffic import drain, url_of

ID = {"name": "id", "type": "long", "nullable": False}


def column(name: str, kind: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "type": kind, "nullable": True, **more}


@dataclass(frozen=True)
class Change:
    """How a table's columns are declared before and after, a row of each, and how both rows read at the end."""

    before: Sequence[Mapping[str, Any]]
    after: Sequence[Mapping[str, Any]]
    old: Mapping[str, Any]
    new: Mapping[str, Any]
    old_reads: Mapping[str, Any]
    new_reads: Mapping[str, Any]


NOTE = column("note", "string")
CHANGES = {
    "added": Change([ID, NOTE], [ID, NOTE, column("more", "string")], {"note": "a"}, {"note": "b", "more": "c"},
                    {"note": "a", "more": None}, {"note": "b", "more": "c"}),
    "dropped": Change([ID, NOTE, column("more", "string")], [ID, NOTE], {"note": "a", "more": "c"}, {"note": "b"},
                      {"note": "a", "more": "c"}, {"note": "b", "more": None}),
    "renamed": Change([ID, NOTE], [ID, column("remark", "string", renamedFrom="note")], {"note": "a"}, {"remark": "b"},
                      {"remark": "a"}, {"remark": "b"}),
    "int_to_long": Change([ID, column("n", "int")], [ID, column("n", "long")], {"n": 7}, {"n": 2**40}, {"n": 7}, {"n": 2**40}),
    "float_to_double": Change([ID, column("x", "float")], [ID, column("x", "double")], {"x": 0.5}, {"x": 0.1}, {"x": 0.5}, {"x": 0.1}),
    "precision": Change([ID, column("d", "decimal(6,2)")], [ID, column("d", "decimal(20,2)")], {"d": "1234.56"},
                        {"d": "123456789012345.67"}, {"d": Decimal("1234.56")}, {"d": Decimal("123456789012345.67")}),
    "reordered": Change([ID, NOTE, column("n", "long")], [column("n", "long"), NOTE, ID], {"note": "a", "n": 1}, {"n": 2, "note": "b"},
                        {"note": "a", "n": 1}, {"note": "b", "n": 2}),
    "nullable": Change([ID, {**NOTE, "nullable": False}], [ID, NOTE], {"note": "a"}, {"note": None}, {"note": "a"}, {"note": None}),
}  # fmt: skip


@dataclass
class Producer:
    """A source with one connection; `send` waits for the ack."""

    name: str
    talk: Conversation
    sequence: int = 0
    events: int = 0

    async def _ask(self, message: dict[str, Any]) -> None:
        answer = await self.talk.ask({**message, "sourceDoId": self.name, "sequenceNumber": self.sequence})
        assert (answer["type"], answer["sequenceNumber"]) == ("ack", self.sequence), answer
        self.sequence += 1

    async def declare(self, table: str, columns: Sequence[Mapping[str, Any]]) -> None:
        await self._ask({"type": "schema", "table": table, "primaryKey": ["id"], "columns": [dict(one) for one in columns]})

    async def send(self, table: str, *rows: Mapping[str, Any]) -> None:
        first = self.events
        self.events += len(rows)
        events = [
            {"sequence": first + n, "timestamp": 1_767_225_600_000, "operation": "INSERT", "table": table, "after": dict(row)}
            for n, row in enumerate(rows)
        ]
        numbers = {"firstEventSequence": first, "lastEventSequence": self.events - 1, "sizeBytes": 1, "isRetry": False, "retryCount": 0}
        await self._ask({"type": "cdc_batch", "timestamp": 1_767_225_600_000, "events": events, **numbers})


@dataclass
class Load:
    """Rows into a table of their own all the while, so that no change happens in silence."""

    producer: Producer
    sent: int = 0
    stopping: bool = False
    columns: list[dict[str, Any]] = field(default_factory=lambda: [ID, NOTE])

    async def run(self) -> None:
        await self.producer.declare("load", self.columns)
        while not self.stopping:
            await self.producer.send("load", *({"id": self.sent + n, "note": "x"} for n in range(20)))
            self.sent += 20


async def scenario(daemon: Daemon) -> int:
    """Every change, each in a table of its own; returns how many rows the load has sent meanwhile."""
    url = url_of(daemon)() or ""
    async with conversation(url) as one, conversation(url) as two, conversation(url) as three:
        old, new, load = Producer("old", one), Producer("new", two), Load(Producer("load", three))
        for producer in (old, new, load.producer):
            await producer.talk.ask(connect_message(producer.name))
        loading = asyncio.get_running_loop().create_task(load.run())
        for table, change in CHANGES.items():
            await old.declare(table, change.before)
            await old.send(table, {"id": 1, **change.old})
        await drain(daemon)
        for table, change in CHANGES.items():
            await new.declare(table, change.after)
            await new.send(table, {"id": 2, **change.new})
            await old.send(table, {"id": 3, **change.old})  # The old producer goes on beside the new one,
            await new.send(table, {"id": 4, **change.new})
        await drain(daemon)
        for table, change in CHANGES.items():  # and declares the same again, as after a restart.
            await old.declare(table, change.before)
            await old.send(table, {"id": 5, **change.old})
            await new.send(table, {"id": 6, **change.new})
        await new.declare("int_to_long", [ID, column("n", "string")])
        await new.send("int_to_long", {"id": 7, "n": "seven"}, {"id": 8, "n": 8})
        load.stopping = True
        await loading
        await drain(daemon)
        return load.sent


def by_id(table: Table, snapshot_id: int | None = None) -> dict[int, dict[str, Any]]:
    rows = table.scan(snapshot_id=snapshot_id).to_arrow().to_pylist()
    return {row["id"]: {name: value for name, value in row.items() if name != "id" and not name.startswith("_cdc_")} for row in rows}


@pytest.mark.acceptance("AT-61")
def test_columns_change_under_load_and_every_row_reads_right_forward_and_backward(tmp_path: Path) -> None:
    """`forward`: the old producer's rows under the new columns; `backward`: the new one's after the old one has come again."""
    with Daemon(tmp_path / "data", {"DOLAKE_FLUSH_AGE_S": "0.3"}) as daemon, Lake(daemon.data) as lake, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Other libraries' deprecations.
        daemon.start()
        sent = asyncio.run(scenario(daemon))
        catalog = lake.catalog()
        passed = []
        for name, change in CHANGES.items():
            table = catalog.load_table(f"default.{name}")
            rows = by_id(table)
            passed += [(name, "forward")] * all(rows[number] == change.old_reads for number in (1, 3, 5))
            passed += [(name, "backward")] * all(rows[number] == change.new_reads for number in (2, 4, 6))
            assert_ids_stay(name, table)
            assert_snapshots_have_schemas_of_their_own(table, change)
        letters = catalog.load_table("dolake.dead_letters").scan().to_arrow().to_pylist()
        widened = by_id(catalog.load_table("default.int_to_long"))
        catalog.close()
        assert len(passed) == 16, passed
        assert widened[8] == {"n": 8}
        assert [(letter["table_name"], letter["reason"], letter["field"], letter["value"]) for letter in letters] == [
            ("default.int_to_long", "does_not_fit", "n", '"seven"')
        ]
        listed = {table["table"]: table for table in json.loads(daemon.run("tables", "--json").stdout)}
        assert "long cannot become string" in listed["default.int_to_long"]["troubles"]["n"]
        assert {name: table["troubles"] for name, table in listed.items() if table["troubles"]}.keys() == {"default.int_to_long"}
        assert lake.query(f"SELECT count(DISTINCT id), count(*) FROM iceberg_scan('{lake.metadata_location('load')}')") == [(sent, sent)]
        verified = daemon.run("verify")
        assert verified.returncode == 0, verified.stdout + verified.stderr


def assert_ids_stay(name: str, table: Table) -> None:
    """A column's field id is its own through all schemas, whatever it is called."""
    columns: dict[int, set[str]] = {}
    for schema in table.metadata.schemas:
        for one in schema.fields:
            columns.setdefault(one.field_id, set()).add(one.name)
    several = [names for names in columns.values() if len(names) > 1]
    assert several == ([{"note", "remark"}] if name == "renamed" else [])
    assert len({frozenset(names) for names in columns.values()}) == len(columns), "no name has two ids"


def assert_snapshots_have_schemas_of_their_own(table: Table, change: Change) -> None:
    """The first snapshot with rows reads as the table was then."""
    first = next(snapshot for snapshot in table.snapshots() if int(snapshot.summary["total-records"] or 0))
    then = {str(one["name"]) for one in change.before if one["name"] != "id"}
    (row,) = by_id(table, first.snapshot_id).values()
    assert set(row) == then
    assert {name: str(value) for name, value in row.items()} == {name: str(change.old[name]) for name in then}
