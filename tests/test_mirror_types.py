"""Every type through a mirror: written, kept where an update names it as unchanged, and as the key."""

from __future__ import annotations

import asyncio
import math
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pytest

from dolake.verify import Compared
from tests.iceberg.lake import duckdb_with_iceberg
from tests.parquet.test_encode import plain
from tests.test_real_types import ALL, COLUMN, READ_AS_EMPTY
from tests.verify.damage import verified
from tests.writer.half import Half, half, letters

READERS = ("DuckDB", "PyIceberg")
STEP = 1000
# What becomes of the row that a case was inserted with; its id is the case's place behind the way's.
WAYS = (
    "inserted",
    "updated to it",
    "kept from the table",
    "kept from the table by an old key",
    "kept without an index",
    "kept from the same flush",
    "kept twice",
)


def at(way: str, name: str) -> int:
    return WAYS.index(way) * STEP + list(ALL).index(name)


def value_of(name: str) -> dict[str, Any]:
    return {COLUMN[name]: orjson.Fragment(ALL[name][1])}


def insert(key: int, **values: Any) -> dict[str, Any]:
    return {"operation": "INSERT", "after": {"id": key, **values}}


def keep(key: int, name: str, old: int | None = None) -> dict[str, Any]:
    event = {"operation": "UPDATE", "after": {"id": key, "tick": 1}, "metadata": {"unchanged": [COLUMN[name]]}}
    return event if old is None else {**event, "before": {"id": old}}


async def write(path: Path, mode: str = "mirror") -> dict[str, pa.Table]:
    columns = [{"name": "id", "type": "long", "nullable": False}, {"name": "tick", "type": "int", "nullable": True}]
    columns += [{"name": COLUMN[name], "type": kind, "nullable": True} for name, (kind, _, _) in ALL.items()]
    async with half(path, mode=mode) as h:
        h.hand.declare(columns=columns)
        for name in ALL:
            h.hand.change(insert(at("inserted", name), **value_of(name)), insert(at("updated to it", name), tick=0))
            for way in ("kept from the table", "kept without an index", "kept twice"):
                h.hand.change(insert(at(way, name), **value_of(name)))
            h.hand.change(insert(-1 - at("kept from the table by an old key", name), **value_of(name)))
            gone = len(WAYS) * STEP + at("inserted", name)
            h.hand.change(insert(gone, **value_of(name)), {"operation": "DELETE", "before": {"id": gone, **value_of(name)}})
        assert (await h.flush())["success"]
        for name in ALL:
            h.hand.change({"operation": "UPDATE", "after": {"id": at("updated to it", name), "tick": 1, **value_of(name)}})
            h.hand.change(keep(at("kept from the table", name), name))
            key = at("kept from the table by an old key", name)
            h.hand.change(keep(key, name, old=-1 - key))
            h.hand.change(insert(at("kept from the same flush", name), **value_of(name)), keep(at("kept from the same flush", name), name))
            h.hand.change(keep(at("kept twice", name), name))
        assert (await h.flush())["success"]
        hand = h.hand
    shutil.rmtree(path / "index")
    async with half(path, mode=mode) as h:
        h.hand.sequences, h.hand.numbers = hand.sequences, hand.numbers
        for name in ALL:
            h.hand.change(keep(at("kept without an index", name), name), keep(at("kept twice", name), name))
        assert (await h.flush())["success"]
        assert letters_of(h) == []
        return {reader: rows.sort_by("id") for reader, rows in next(read(h, "t")).items()}


def read(h: Half, *tables: str) -> Iterator[dict[str, pa.Table]]:
    """Each table's rows by reader."""
    catalog, database = h.catalog(), duckdb_with_iceberg()
    database.execute("SET arrow_lossless_conversion = true")  # uuids as uuids
    for name in tables:
        table = catalog.load_table(f"default.{name}")
        by_duckdb = database.execute(f"SELECT * FROM iceberg_scan('{table.metadata_location}')").to_arrow_table()
        yield {"DuckDB": by_duckdb, "PyIceberg": table.scan().to_arrow()}


def letters_of(h: Half) -> list[Any]:
    return letters(h) if h.catalog().table_exists("dolake.dead_letters") else []


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, pa.Table]:
    """The mirror as each reader has it, by id."""
    return asyncio.run(write(tmp_path_factory.mktemp("types")))


@pytest.mark.acceptance("AT-13")
@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("name", list(ALL))
def test_a_value_is_in_the_mirror_as_it_was_sent(found: dict[str, pa.Table], name: str, reader: str) -> None:
    """Whichever way it came there; and nothing of it is in another column."""
    rows = found[reader]
    assert rows["id"].to_pylist() == sorted(at(way, other) for way in WAYS for other in ALL)
    places = [WAYS.index(way) * len(ALL) + list(ALL).index(name) for way in WAYS]
    here = rows.take(places)
    assert here["id"].to_pylist() == [at(way, name) for way in WAYS]
    assert here["tick"].to_pylist() == [None] + [1] * (len(WAYS) - 1)
    expected = plain(ALL[name][2])
    values = [plain(value) for value in here[COLUMN[name]].to_pylist()]
    assert values == [expected] * len(WAYS)
    assert [type(value) for value in values] == [type(expected)] * len(WAYS)
    if isinstance(expected, float):
        assert {math.copysign(1, value) for value in values} == {math.copysign(1, expected)}
    strangers = {other for other, column in COLUMN.items() if other != name and here[column].null_count < len(WAYS)}
    assert strangers == (READ_AS_EMPTY - {name} if reader == "PyIceberg" else set())


def test_every_type_is_compared_with_the_changelog_and_the_log(tmp_path: Path) -> None:
    asyncio.run(write(tmp_path, mode="both"))
    compared = Compared()
    assert verified(tmp_path, mode="both", against_log=compared).text == ""
    assert (compared.keys, compared.rows, compared.unknown_values) == (len(ALL) * (len(WAYS) + 2), compared.events // 2, 0)


# Another value of each type, so that a row of every table takes another's key.
OTHERS: Mapping[str, str] = {
    "string": '"another"',
    "boolean": "true",
    "int": "5",
    "long": "5",
    "float": "5.5",
    "double": "5.5",
    "date": '"2026-01-01"',
    "time": '"12:00:00"',
    "timestamp": '"2026-01-01T00:00:00"',
    "timestamptz": '"2026-01-01T00:00:00+01:00"',
    "uuid": '"00000000-0000-0000-0000-000000000001"',
    "binary": '"AQID"',
    "fixed(3)": '"AQID"',
    "json": '{"b": [1]}',
    "decimal(9,2)": "1.50",
    "decimal(18,4)": "1.50",
    "decimal(38,0)": "15",
    "decimal(38,10)": "1.50",
    "decimal(38,38)": "0.5",
    "list<string>": '["x"]',
    "list<decimal(4,1)>": "[2.5]",
    "list<uuid>": "[]",
    "list<timestamptz>": "[]",
    "list<list<int>>": "[[9]]",
    "list<struct<k: string, v: decimal(9,2)>>": '[{"k":"b","v":"1.1"}]',
    "map<string, double>": '[["c",1.5]]',
    "map<long, struct<at: date>>": '[[1,{"at":null}]]',
    "struct<a: long, b: list<date>>": '{"a":1,"b":[]}',
    "struct<a: struct<b: uuid, c: binary>>": '{"a":{"b":null,"c":"AQID"}}',
}
KINDS = {kind: [name for name, (other, _, value) in ALL.items() if other == kind and value is not None] for kind, _, _ in ALL.values()}
TABLE = {kind: f"k{place}" for place, kind in enumerate(KINDS)}


def keys_of(h: Half) -> dict[str, list[tuple[str, int]]]:
    """By type the keys, as text, and `v` of each row of its table, as both readers have them."""
    found = {}
    for kind, tables in zip(KINDS, read(h, *TABLE.values()), strict=True):
        by_duckdb, by_pyiceberg = (sorted((repr(plain(row["k"])), row["v"]) for row in tables[reader].to_pylist()) for reader in READERS)
        assert by_duckdb == by_pyiceberg, kind
        found[kind] = by_duckdb
    return found


@pytest.mark.acceptance("AT-13")
def test_every_type_is_a_key(tmp_path: Path) -> None:
    """Updates replace, a changed key takes the old row away, deletes remove: after restarts, and with the index lost."""

    def event(operation: str, image: str, text: str, v: int = 0, **more: Any) -> dict[str, Any]:
        return {"operation": operation, image: {"k": orjson.Fragment(text), "v": v}, **more}

    def expected(kind: str, v: int) -> list[tuple[str, int]]:
        return sorted({(repr(plain(ALL[name][2])), v) for name in KINDS[kind]})

    async def step(sequences: Any, events: Any) -> tuple[Any, dict[str, list[tuple[str, int]]]]:
        async with half(tmp_path, mode="mirror") as h:
            if sequences is None:
                for kind, table in TABLE.items():
                    columns = [{"name": "k", "type": kind, "nullable": False}, {"name": "v", "type": "long", "nullable": True}]
                    h.hand.declare(table, columns=columns, key=("k",))
            else:
                h.hand.sequences, h.hand.numbers = sequences
            for kind, table in TABLE.items():
                h.hand.change(*events(kind), table=table)
            assert (await h.flush())["success"]
            assert letters_of(h) == []
            found = keys_of(h)
            sequences = (h.hand.sequences, h.hand.numbers)
        shutil.rmtree(tmp_path / "index")
        return sequences, found

    async def work() -> None:
        def inserts(kind: str) -> list[dict[str, Any]]:
            return [*(event("INSERT", "after", ALL[name][1]) for name in KINDS[kind]), event("INSERT", "after", OTHERS[kind])]

        def updates(kind: str) -> list[dict[str, Any]]:
            return [event("UPDATE", "after", ALL[name][1], 1) for name in KINDS[kind]]

        def moves(kind: str) -> list[dict[str, Any]]:
            first = ALL[KINDS[kind][0]][1]
            return [event("UPDATE", "after", first, 1, before={"k": orjson.Fragment(OTHERS[kind])})]

        def deletes(kind: str) -> list[dict[str, Any]]:
            # One row stays: PyIceberg cannot read an empty table with uuids in lists or structs.
            return [event("INSERT", "after", OTHERS[kind], 7), *(event("DELETE", "before", ALL[name][1]) for name in KINDS[kind])]

        sequences, found = await step(None, inserts)
        assert {kind: len(rows) for kind, rows in found.items()} == {kind: len(expected(kind, 0)) + 1 for kind in KINDS}
        others = {kind: sorted({*rows} - {*expected(kind, 0)}) for kind, rows in found.items()}
        sequences, found = await step(sequences, updates)
        assert found == {kind: sorted([*expected(kind, 1), *others[kind]]) for kind in KINDS}
        sequences, found = await step(sequences, moves)
        assert found == {kind: expected(kind, 1) for kind in KINDS}
        _, found = await step(sequences, deletes)
        assert found == {kind: [(other, 7) for other, _ in others[kind]] for kind in KINDS}

    asyncio.run(work())
    compared = Compared()
    assert verified(tmp_path, against_log=compared).text == ""
    assert compared.keys == sum(len({*expected(kind, 0)}) + 1 for kind in KINDS)
