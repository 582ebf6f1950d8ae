"""Mirror tables: one row per key, whatever happens to it within a flush, between flushes, and beside this writer."""

from __future__ import annotations

import asyncio
import json
import random
import shutil
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from dolake.failpoints import REGISTRY
from dolake.model import TableName
from dolake.verify import Compared
from tests.verify.damage import verified
from tests.writer.half import COLUMNS, Half, half, letters, other_writer, until
from tests.writer.test_dead_letters import again, breaches

T = TableName.parse("t")
Event = dict[str, Any]


def run(work: Any) -> None:
    asyncio.run(work)


def insert(key: int, note: str | None = None, **more: Any) -> Event:
    return {"operation": "INSERT", "after": {"id": key, "note": note, **more}}


def update(key: int, note: str | None = None, *, old: int | None = None, **more: Any) -> Event:
    before = {} if old is None else {"before": {"id": old}}
    return {"operation": "UPDATE", "after": {"id": key, "note": note, **more}, **before}


def delete(key: int) -> Event:
    return {"operation": "DELETE", "before": {"id": key}}


TRUNCATE: Event = {"operation": "TRUNCATE"}


def notes(h: Half, table: str = "default.t") -> dict[int, str]:
    return {key: row["note"] for key, row in h.mirrored(table).items()}


def summary(h: Half, table: str = "default.t") -> dict[str, str]:
    snapshot = h.catalog().load_table(table).current_snapshot()
    assert snapshot is not None
    return {"operation": snapshot.summary.operation.value, **snapshot.summary.additional_properties}


def counts(h: Half) -> dict[str, int]:
    properties = h.catalog().load_table("default.t").properties
    return {key.removeprefix("dolake.count."): int(value) for key, value in properties.items() if key.startswith("dolake.count.")}


def test_a_flush_leaves_the_last_of_each_key(tmp_path: Path) -> None:
    async def work() -> None:
        async with half(tmp_path, mode="mirror") as h:
            h.hand.declare()
            h.hand.change(insert(1, "a"), insert(2, "b"), insert(3, "c"))
            await h.flush()
            assert notes(h) == {1: "a", 2: "b", 3: "c"}
            assert summary(h)["operation"] == "append"
            h.hand.change(update(1, "a2"), update(1, "a3"), delete(2), insert(4, "d"), delete(4), insert(5, "e"), delete(9))
            await h.flush()
            assert notes(h) == {1: "a3", 3: "c", 5: "e"}
            found = summary(h)
            assert (found["operation"], found["added-records"], found["added-position-deletes"]) == ("overwrite", "2", "2")
            assert (found["total-records"], found["total-position-deletes"], found["total-delete-files"]) == ("5", "2", "1")
            assert counts(h) == {"accepted": 10, "folded": 5, "removed": 2}
            h.hand.change(delete(1), delete(3), delete(5))
            await h.flush()
            assert notes(h) == {}
            assert summary(h)["operation"] == "delete"
            schema = h.catalog().load_table("default.t").schema()
            assert [(field.name, field.required) for field in schema.fields] == [("id", True), ("note", False)]
            assert schema.identifier_field_names() == {"id"}

    run(work())


def test_a_key_that_changes_takes_its_old_row_away(tmp_path: Path) -> None:
    async def work() -> None:
        async with half(tmp_path, mode="mirror") as h:
            h.hand.declare()
            h.hand.change(insert(1, "a"), insert(2, "b"))
            await h.flush()
            h.hand.change(update(10, "a", old=1), update(11, "a", old=10), insert(1, "new"), update(2, "b2", old=2))
            await h.flush()
            assert notes(h) == {11: "a", 1: "new", 2: "b2"}
            h.hand.change(update(2, "swapped", old=11), update(11, "x", old=1))
            await h.flush()
            assert notes(h) == {2: "swapped", 11: "x"}

    run(work())


def test_a_truncate_empties_in_its_place_in_the_order(tmp_path: Path) -> None:
    async def work() -> None:
        async with half(tmp_path, mode="mirror") as h:
            h.hand.declare()
            h.hand.change(insert(1, "a"), insert(2, "b"))
            await h.flush()
            h.hand.change(insert(3, "c"), TRUNCATE, insert(2, "again"), insert(4, "d"))
            await h.flush()
            assert notes(h) == {2: "again", 4: "d"}
            found = summary(h)
            assert (found["operation"], found["total-records"], found["deleted-records"]) == ("overwrite", "2", "2")
            assert found["total-position-deletes"] == "0"
            h.hand.change(update(2, "once more"), TRUNCATE)
            await h.flush()
            assert notes(h) == {}
            assert (summary(h)["operation"], summary(h)["total-data-files"]) == ("delete", "0")
            h.hand.change(insert(2, "back"))
            await h.flush()
            assert notes(h) == {2: "back"}
            assert counts(h) == {"accepted": 9, "folded": 4, "removed": 4}

    run(work())


def test_a_truncate_of_a_table_that_others_write_is_a_dead_letter(tmp_path: Path) -> None:
    async def work() -> None:
        async with half(tmp_path, mode="mirror") as h:
            h.hand.declare()
            h.hand.change(insert(1, "a"))
            await h.flush()
            h.hand.change(insert(2, "b"), source="other")
            h.hand.change(TRUNCATE)
            await h.flush()
            assert notes(h) == {1: "a", 2: "b"}
            (letter,) = letters(h)
            assert (letter["reason"], letter["_cdc_operation"], letter["_cdc_source"]) == ("truncate_of_shared_table", "TRUNCATE", "s")
            assert json.loads(letter["event"])["operation"] == "TRUNCATE"
        async with half(tmp_path, tables={"*.*": {"mode": "mirror", "truncate": "table"}}) as h:
            h.hand.sequences, h.hand.numbers = {}, {}
            h.hand.change(TRUNCATE, source="third")
            await h.flush()
            assert notes(h) == {}

    run(work())


def test_without_a_primary_key_the_row_id_is_the_key(tmp_path: Path) -> None:
    async def work() -> None:
        async with half(tmp_path, mode="mirror") as h:
            h.hand.change(*({"operation": "INSERT", "rowId": f"r{n}", "after": {"v": n}} for n in range(3)))
            await h.flush()
            h.hand.change(
                {"operation": "UPDATE", "rowId": "r1", "after": {"v": 10}},
                {"operation": "DELETE", "rowId": "r0"},
                {"operation": "INSERT", "after": {"v": 99}},
            )
            await h.flush()
            assert {key: row["v"] for key, row in h.mirrored(key="_cdc_row_id").items()} == {"r1": 10, "r2": 2}
            (letter,) = letters(h)
            assert (letter["reason"], json.loads(letter["event"])["after"]) == ("no_key", {"v": 99})

    run(work())


def test_without_any_key_it_becomes_a_changelog_and_stays_one(tmp_path: Path) -> None:
    async def work() -> None:
        async with half(tmp_path, mode="mirror") as h:
            h.hand.change({"operation": "INSERT", "after": {"v": 1}}, {"operation": "INSERT", "after": {"v": 1}})
            await h.flush()
            assert [(row["v"], row["_cdc_operation"]) for row in h.rows()] == [(1, "INSERT"), (1, "INSERT")]
            assert h.catalog().load_table("default.t").properties["dolake.mode"] == "changelog"
        async with half(tmp_path, mode="mirror") as h:
            h.hand.sequences = {}
            h.hand.change({"operation": "DELETE", "before": {"v": 1}}, source="t")
            await h.flush()
            assert [row["_cdc_operation"] for row in h.rows()] == ["INSERT", "INSERT", "DELETE"]

    run(work())


def test_composite_keys_of_any_type(tmp_path: Path) -> None:
    columns = [
        {"name": "a", "type": "decimal(10,2)", "nullable": False},
        {"name": "b", "type": "uuid", "nullable": False},
        {"name": "c", "type": "list<int>", "nullable": False},
        {"name": "d", "type": "timestamptz", "nullable": False},
        {"name": "e", "type": "string", "nullable": False},
        {"name": "v", "type": "long", "nullable": True},
    ]
    uuid = "00000000-0000-0000-0000-00000000000{}"

    def key(number: int) -> dict[str, Any]:
        moment = f"2026-01-01T00:00:0{number % 2}Z"
        return {"a": f"{number}.50", "b": uuid.format(number % 3), "c": [number, 1], "d": moment, "e": "x" * number}

    async def work() -> None:
        async with half(tmp_path, mode="mirror") as h:
            h.hand.declare(columns=columns, key=("a", "b", "c", "d", "e"))
            h.hand.change(*({"operation": "INSERT", "after": {**key(n), "v": n}} for n in range(6)))
            await h.flush()
            h.hand.change(
                {"operation": "UPDATE", "after": {**key(1), "v": 100}},
                {"operation": "DELETE", "before": key(2)},
                {"operation": "UPDATE", "before": key(3), "after": {**key(7), "v": 3}},
            )
            await h.flush()
            found = h.catalog().load_table("default.t").scan().to_arrow().to_pylist()
            assert sorted((len(row["e"]), row["v"]) for row in found) == [(0, 0), (1, 100), (4, 4), (5, 5), (7, 3)]

    run(work())


def test_both_has_a_mirror_and_every_event_beside_it(tmp_path: Path) -> None:
    async def work() -> None:
        async with half(tmp_path, mode="both") as h:
            h.hand.declare()
            h.hand.change(insert(1, "a"), update(1, "b"), insert(None, "keyless"))  # type: ignore[arg-type]
            h.hand.change(delete(1), insert(2, "c"))
            await h.flush()
            assert notes(h) == {2: "c"}
            assert [(row["_cdc_operation"], row["id"]) for row in h.rows("default.t__changes")] == [
                ("INSERT", 1), ("UPDATE", 1), ("INSERT", None), ("DELETE", 1), ("INSERT", 2)
            ]  # fmt: skip
            assert [letter["table_name"] for letter in letters(h)] == ["default.t"]

    run(work())


def test_what_a_table_is_does_not_change_in_place(tmp_path: Path) -> None:
    async def work() -> None:
        async with half(tmp_path, mode="changelog") as h:
            h.hand.declare()
            h.hand.change(insert(1, "a"))
            await h.flush()
        async with half(tmp_path, mode=None) as h:  # By default nothing changes,
            h.hand.sequences, h.hand.numbers = {}, {}
            h.hand.change(insert(2, "b"), source="two")
            h.hand.declare("n", source="two")
            h.hand.change(insert(1, "m"), table="n", source="two")
            await h.flush()
            assert [row["_cdc_operation"] for row in h.rows()] == ["INSERT", "INSERT"]
        async with half(tmp_path, mode="mirror") as h:  # and where somebody says so it is refused.
            h.hand.change(insert(3, "c"), source="three")
            result = await h.flush("t")
            assert not result["success"]
            assert "it is a changelog" in result["error"]
        async with half(tmp_path, mode="changelog", stop_cleanly=False) as h:
            h.hand.change(insert(2, "m"), table="n", source="four")
            result = await h.flush("n")
            assert 'set mode = "both"' in result["error"]
        async with half(tmp_path, mode="both", tables={"t": {"mode": "changelog"}}) as h:
            await h.flush()
            assert notes(h, "default.n") == {1: "m", 2: "m"}
            assert h.values() == [1, 2, 3]

    run(work())


UNCHANGED = [*({"name": n, "type": t, "nullable": True} for n, t in (("big", "string"), ("n", "long"))), {"name": "id", "type": "long"}]


def keep(key: int, *unchanged: str, old: int | None = None, **values: Any) -> Event:
    event: Event = {"operation": "UPDATE", "after": {"id": key, **values}, "metadata": {"unchanged": list(unchanged)}}
    return event if old is None else {**event, "before": {"id": old}}


def test_unchanged_columns_keep_what_the_row_has(tmp_path: Path) -> None:
    async def work() -> None:
        async with half(tmp_path, mode="mirror") as h:
            h.hand.declare(columns=[{"nullable": True, **column} for column in UNCHANGED])
            h.hand.change(*({"operation": "INSERT", "after": {"id": key, "big": f"big{key}", "n": key}} for key in range(8)))
            await h.flush()
            h.hand.change(
                keep(1, "big", n=10),  # from the table
                keep(2, "big", n=20),
                keep(2, "big", "n"),  # through two updates of one flush
                {"operation": "UPDATE", "after": {"id": 3, "big": "new", "n": 3}},
                keep(3, "big", n=30),  # from the same flush
                keep(40, "big", n=40, old=4),  # by the old key
                keep(41, "big", "n", old=40),
                {"operation": "DELETE", "before": {"id": 5}},
                keep(5, "big", n=50),  # not there any more
                keep(99, "big", n=99),  # never was
                keep(97, "unheard_of", n=97),  # nor that column
                keep(98, "big", n=98, old=99),
                {"operation": "INSERT", "after": {"id": 99, "big": "late", "n": 0}},
                keep(99, "big", n=1),
                {"operation": "UPDATE", "after": {"id": 6, "big": None, "n": 6}},
                keep(6, "big", n=60),  # null is a value
            )
            await h.flush()
            rows = {key: (row["big"], row["n"]) for key, row in h.mirrored().items()}
            assert rows == {
                0: ("big0", 0), 1: ("big1", 10), 2: ("big2", 20), 3: ("new", 30), 41: ("big4", 40), 6: (None, 60), 7: ("big7", 7),
                99: ("late", 1),
            }  # fmt: skip
            kept_out = [letter for letter in letters(h) if letter["outcome"] == "dead"]
            found = [(letter["reason"], json.loads(letter["event"])["after"]["id"]) for letter in kept_out]
            assert found == [("unchanged_without_row", key) for key in (5, 99, 97, 98)]
            h.hand.change(keep(1, "big", n=11), TRUNCATE, keep(7, "big", n=1))
            await h.flush()
            assert h.mirrored() == {}
            assert json.loads(letters(h)[-1]["event"])["after"] == {"id": 7, "n": 1}

    run(work())


def test_declared_not_null_binds_a_mirror(tmp_path: Path) -> None:
    columns = [{"name": "id", "type": "long", "nullable": False}, {"name": "note", "type": "string", "nullable": False}]

    async def work() -> None:
        async with half(tmp_path, mode="mirror") as h:
            h.hand.declare(columns=columns)
            h.hand.change(insert(1, "a"), insert(2, None), delete(1))
            await h.flush()
            assert h.mirrored() == {}
            assert [letter["reason"] for letter in letters(h)] == ["null"]
            h.hand.declare(columns=[columns[0], {**columns[1], "nullable": True}])
            h.hand.change(insert(2, None))
            await h.flush()
            assert notes(h) == {2: None}

    run(work())


@pytest.mark.parametrize("what", ["append", "delete", "all"])
def test_others_commits_are_seen(tmp_path: Path, what: str) -> None:
    async def work() -> None:
        async with half(tmp_path, mode="mirror") as h:
            h.hand.declare()
            h.hand.change(insert(1, "a"), insert(2, "b"), insert(3, "c"))
            await h.flush()
            table = h.catalog().load_table("default.t")
            if what == "append":
                table.append(pa.table({"id": [2, 7], "note": ["foreign", "foreign"]}, schema=table.schema().as_arrow()))
            elif what == "delete":
                table.delete("id = 2")
            else:
                table.overwrite(pa.table({"id": [5], "note": ["foreign"]}, schema=table.schema().as_arrow()))
            h.hand.change(update(2, "mine"), update(3, "mine"))
            await h.flush()
            here = {"append": {1: "a", 7: "foreign"}, "delete": {1: "a"}, "all": {5: "foreign"}}[what]
            assert notes(h) == {**here, 2: "mine", 3: "mine"}
            strangers = {"append": 2, "delete": -1, "all": -2}[what]
            assert counts(h).get("foreign", 0) == strangers

    run(work())


@pytest.mark.parametrize("moved", [True, False])
def test_what_is_missing_of_the_head_stops_the_table_unless_others_have_left_it_behind(tmp_path: Path, moved: bool) -> None:
    """Who commits may let the snapshot before expire and delete its files: this writer had that one for the head."""

    async def work() -> None:
        async with half(tmp_path, mode="mirror") as h:
            h.hand.declare()
            h.hand.change(insert(1, "a"), insert(2, "b"))
            await h.flush()
            table = h.catalog().load_table("default.t")
            head = table.current_snapshot()
            assert head is not None
            if moved:
                table.append(pa.table({"id": [7], "note": ["foreign"]}, schema=table.schema().as_arrow()))
            h.service.flusher.store.delete(head.manifest_list)
            h.service.flusher.indexes.remove(T)  # Or it would have to read nothing of the head.
            h.hand.change(update(2, "mine"))
            assert (await h.flush())["success"] is moved
            stopped = h.service.tables.get(T).stopped
            if moved:
                assert stopped is None
                assert notes(h) == {1: "a", 2: "mine", 7: "foreign"}
            else:
                assert "a file of it cannot be read" in stopped.reason

    run(work())


def test_two_sources_that_write_one_key_are_counted(tmp_path: Path) -> None:
    async def work() -> None:
        async with half(tmp_path, mode="mirror") as h:
            h.hand.declare()
            h.hand.change(insert(1, "a"), insert(2, "b"))
            h.hand.change(insert(3, "c"), source="other")
            await h.flush()
            assert "contested" not in counts(h)
            h.hand.change(update(1, "theirs"), update(3, "theirs"), source="other")
            await h.flush()
            assert notes(h) == {1: "theirs", 2: "b", 3: "theirs"}
            assert counts(h)["contested"] == 1
        shutil.rmtree(tmp_path / "index")
        async with half(tmp_path, mode="mirror") as h:
            h.hand.sequences = {}
            h.hand.change(update(1, "x"), update(2, "x"), source="third")
            await h.flush()
            assert counts(h)["contested"] == 3

    run(work())


def apply(rows: dict[int, tuple[str, int]], event: Event) -> None:
    if event["operation"] == "TRUNCATE":
        rows.clear()
    elif event["operation"] == "DELETE":
        rows.pop(event["before"]["id"], None)
    else:
        after = event["after"]
        unchanged = event.get("metadata", {}).get("unchanged", [])
        old = event.get("before", {}).get("id", after["id"])
        if unchanged and old not in rows:
            return
        big = rows[old][0] if unchanged else after["big"]
        if old != after["id"]:
            rows.pop(old, None)
        rows[after["id"]] = (big, after["n"])


def any_event(chance: random.Random, number: int) -> Event:
    key, other = chance.randrange(30), chance.randrange(30)
    after = {"id": key, "big": f"big{number}", "n": number}
    kind = chance.random()
    if kind < 0.3:
        return {"operation": "INSERT", "after": after}
    if kind < 0.5:
        return {"operation": "UPDATE", "after": after}
    if kind < 0.65:
        return {"operation": "UPDATE", "after": after, "before": {"id": other}}
    if kind < 0.75:
        return keep(key, "big", n=number)
    if kind < 0.82:
        return keep(key, "big", n=number, old=other)
    return delete(key) if kind < 0.98 else TRUNCATE


@pytest.mark.parametrize("seed", range(12))
def test_any_events_leave_what_a_dict_holds(tmp_path: Path, seed: int) -> None:
    """With restarts, lost and damaged indexes, partitions, foreign commits that change no row, and writers that replace one another."""
    chance = random.Random(seed)
    sections: dict[str, Any] = {"tables": {"*.*": {"mode": "both", **({"partition_by": ["bucket(3, id)"]} if seed % 2 else {})}}}

    async def work() -> None:
        rows: dict[int, tuple[str, int]] = {}
        number = 0
        hands: dict[str, Any] = {}
        for _ in range(5):
            async with half(tmp_path, stop_cleanly=chance.random() < 0.5, **sections) as h:
                if hands:
                    h.hand.sequences, h.hand.numbers = hands["sequences"], hands["numbers"]
                else:
                    h.hand.declare(columns=[{"nullable": True, **column} for column in UNCHANGED])
                hands = {"sequences": h.hand.sequences, "numbers": h.hand.numbers}
                for _ in range(chance.randrange(1, 6)):
                    events = [any_event(chance, number := number + 1) for _ in range(chance.randrange(1, 40))]
                    for event in events:
                        apply(rows, event)
                    h.hand.change(*events)
                    if chance.random() < 0.2:
                        async with other_writer(h, **sections) as other:
                            result = await other.flush()
                            if not result["success"]:  # The two began at once, and this one came too late.
                                assert "fenced" in result["error"]
                                break
                            assert {key: (row["big"], row["n"]) for key, row in h.mirrored().items()} == rows
                            if chance.random() < 0.5:
                                break
                    result = await h.flush()
                    if not result["success"]:
                        assert "fenced" in result["error"]
                        break
                    assert {key: (row["big"], row["n"]) for key, row in h.mirrored().items()} == rows
                    found = counts(h)
                    stated = found["accepted"] - found.get("dead-lettered", 0) - found.get("folded", 0) - found.get("removed", 0)
                    assert stated == len(rows)
            index = tmp_path / "index" / "default.t"
            if not index.exists() or not list(index.iterdir()):
                continue
            if chance.random() < 0.3:
                shutil.rmtree(index)
            elif chance.random() < 0.5:
                victim = chance.choice(sorted(index.iterdir()))
                victim.write_bytes(victim.read_bytes()[: chance.randrange(1 + victim.stat().st_size)])

    run(work())
    compared = Compared()
    assert verified(tmp_path, mode="both", against_log=compared).text == ""
    assert compared.events > 0


NARROW = [{"name": "id", "type": "long", "nullable": False}, {"name": "n", "type": "int", "nullable": True}]
WIDE = [NARROW[0], {"name": "n", "type": "long", "nullable": True}]
LARGE = 1 << 40  # No int, so a dead letter; a long later on.


def row(key: int, n: int, operation: str = "INSERT", old: int | None = None) -> Event:
    return {"operation": operation, "after": {"id": key, "n": n}, **({} if old is None else {"before": {"id": old}})}


def states(h: Half) -> dict[int, list[str]]:
    """By the letter's key, what was decided of it, in the order of its verdicts."""
    found: dict[int, list[str]] = {}
    for letter in sorted(letters(h), key=lambda letter: letter["judged_at"]):
        event = json.loads(letter["event"])
        found.setdefault(event.get("after", {}).get("id", 0), []).append(letter["outcome"])
    return found


@pytest.mark.acceptance("AT-62")
def test_a_letter_that_a_later_event_of_its_key_has_overtaken_is_not_applied(tmp_path: Path) -> None:
    async def work() -> None:
        async with half(tmp_path, mode="mirror") as h:
            h.hand.declare(columns=NARROW)
            h.hand.change(row(60, 60))
            h.hand.change(*(row(key, LARGE) for key in range(1, 6)), row(6, LARGE, "UPDATE", old=60), row(7, LARGE), row(7, 7))
            await h.flush()
            dead = ["dead"]
            assert states(h) == {**dict.fromkeys(range(1, 7), dead), 7: ["dead", "superseded"]}
            h.hand.change(row(1, 1), delete(2), row(30, 30, "UPDATE", old=3))
            h.hand.change(row(4, 4), source="other")  # Another source's numbers say nothing.
            await h.flush()
            overtaken = {key: ["dead", "superseded"] for key in (1, 2, 3, 7)}
            assert states(h) == {4: dead, 5: dead, 6: dead, **overtaken}
            sequences, numbers = h.hand.sequences, h.hand.numbers
        async with half(tmp_path, mode="mirror") as h:  # What one writer knew of letters, another reads.
            h.hand.sequences, h.hand.numbers = sequences, numbers
            h.hand.change(row(60, 61, "UPDATE"))  # The old key that letter 6 would take away.
            await h.flush()
            assert states(h)[6] == ["dead", "superseded"]
            h.hand.declare(columns=WIDE)
            again(h, *[letter for letter in letters(h) if letter["outcome"] == "dead"])
            await h.flush()
            assert {key: found["n"] for key, found in h.mirrored().items()} == {1: 1, 30: 30, 4: LARGE, 5: LARGE, 60: 61, 7: 7}
            assert [states(h)[key][-1] for key in range(1, 8)] == [
                "superseded", "superseded", "superseded", "replayed", "replayed", "superseded", "superseded"
            ]  # fmt: skip
            assert breaches(h) == []
            h.hand.change(row(5, 5))
            await h.flush()
            assert h.mirrored()[5]["n"] == 5
            assert states(h)[5] == ["dead", "replayed"], "what was applied is no letter any more"

    run(work())


def test_a_truncate_overtakes_the_letters_of_its_source(tmp_path: Path) -> None:
    async def work() -> None:
        async with half(tmp_path, tables={"*.*": {"mode": "mirror", "truncate": "table"}}) as h:
            h.hand.declare(columns=NARROW)
            h.hand.change(row(1, LARGE), row(2, 2))
            h.hand.change(row(3, LARGE), source="other")
            h.hand.change(TRUNCATE, row(4, LARGE))
            await h.flush()
            assert states(h) == {1: ["dead", "superseded"], 3: ["dead"], 4: ["dead"]}
            h.hand.declare(columns=WIDE)
            again(h, *[letter for letter in letters(h) if letter["outcome"] == "dead" and letter["_cdc_source"] == "s"])
            await h.flush()
            assert {key: found["n"] for key, found in h.mirrored().items()} == {4: LARGE}

    run(work())


def test_a_letter_of_an_event_with_a_row_id_is_watched_too(tmp_path: Path) -> None:
    async def work() -> None:
        async with half(tmp_path, mode="mirror") as h:
            h.hand.declare(columns=NARROW)
            h.hand.change({**row(1, LARGE), "rowId": "r1"}, {**row(2, LARGE), "rowId": "r2"})
            h.hand.change({**row(1, 1), "rowId": "r9"})
            await h.flush()
            assert states(h) == {1: ["dead", "superseded"], 2: ["dead"]}

    run(work())


def test_foreign_rows_that_are_gone_again_count_for_nothing(tmp_path: Path) -> None:
    async def work() -> None:
        async with half(tmp_path, mode="mirror") as h:
            h.hand.declare()
            h.hand.change(insert(1, "a"))
            await h.flush()
            table = h.catalog().load_table("default.t")
            table.append(pa.table({"id": [7], "note": ["foreign"]}, schema=table.schema().as_arrow()))
            h.hand.change(insert(2, "b"))
            await h.flush()
            assert counts(h)["foreign"] == 1
            h.catalog().load_table("default.t").delete("id = 7")
            h.hand.change(insert(3, "c"))
            await h.flush()
            assert notes(h) == {1: "a", 2: "b", 3: "c"}
            assert counts(h)["foreign"] == 0

    run(work())


def test_foreign_rows_are_counted_when_their_snapshot_has_expired(tmp_path: Path) -> None:
    """Between them and the flush that counts them lies a claim, and one snapshot is all that is kept."""

    async def work() -> None:
        async with half(tmp_path, mode="mirror", snapshots_kept=1) as h:
            h.hand.declare()
            h.hand.change(insert(1, "a"))
            await h.flush()
            sequences, numbers = h.hand.sequences, h.hand.numbers
            table = h.catalog().load_table("default.t")
            table.append(pa.table({"id": [7], "note": ["foreign"]}, schema=table.schema().as_arrow()))
        async with half(tmp_path, mode="mirror", snapshots_kept=1) as h:
            h.hand.sequences, h.hand.numbers = sequences, numbers
            h.hand.change({"operation": "INSERT", "after": {"id": "no number"}})  # What claims the table: a letter alone.
            await h.flush()
            h.hand.change(insert(2, "b"))
            await h.flush()
            assert sorted(notes(h)) == [1, 2, 7]
            assert counts(h)["foreign"] == 1

    run(work())


def test_an_index_is_put_away_where_memory_is_short_and_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dolake.writer.indexes._MEMORY_BYTES_MAX", 0)

    async def work() -> None:
        async with half(tmp_path, mode="mirror") as h:
            for table in ("t", "u"):
                h.hand.declare(table)
            for value in ("a", "b", "c"):
                for table in ("t", "u"):
                    h.hand.change(insert(1, value), insert(2, value), table=table)
                    await h.flush(table)
                    assert notes(h, f"default.{table}") == {1: value, 2: value}
            assert (tmp_path / "index" / "default.t" / "index.json").exists()
            for table in ("t", "u"):
                h.hand.change(delete(1), table=table)
            await h.flush()  # Both at once.
            assert notes(h) == notes(h, "default.u") == {2: "c"}

    run(work())


@pytest.mark.parametrize("later", [row(60, 61, "UPDATE"), TRUNCATE])
def test_a_letter_that_is_overtaken_within_the_flush_that_would_apply_it_is_not(tmp_path: Path, later: Event) -> None:
    """By an event that is not of the key it leaves: of the one it would take away, or of all."""

    async def work() -> None:
        async with half(tmp_path, mode="mirror") as h:
            h.hand.declare(columns=NARROW)
            h.hand.change(row(60, 60), row(6, LARGE, "UPDATE", old=60), row(7, LARGE))
            await h.flush()
            h.hand.declare(columns=WIDE)
            h.hand.change(later)
            again(h, *letters(h)[:1])
            h.hand.change(row(7, 7))
            await h.flush()
            assert {key: found["n"] for key, found in h.mirrored().items()} == ({7: 7} if later is TRUNCATE else {60: 61, 7: 7})
            assert states(h)[6] == ["dead", "superseded"]
            assert breaches(h) == []

    run(work())


def test_a_changelog_that_begins_later_than_its_mirror_knows_what_was_declared(tmp_path: Path) -> None:
    columns = [*COLUMNS, {"name": "price", "type": "decimal(10,2)", "nullable": True}]

    async def work() -> None:
        async with half(tmp_path, mode="mirror") as h:
            h.hand.declare(columns=columns)
            h.hand.change(insert(1, "a", price="1.00"))
            await h.flush()
            sequences, numbers = h.hand.sequences, h.hand.numbers
            for place in range(40):  # Until the segment with the declaration is sealed, and another one follows.
                h.hand.change(insert(place, "x" * 200, price="2.00"))
            await h.flush()
            h.log.trim(h.log.synced_end)
        async with half(tmp_path, mode="both") as h:
            h.hand.sequences, h.hand.numbers = sequences, numbers
            h.hand.change(update(50, "moved", old=1, price="3.10"))
            await h.flush()
            last = h.rows("default.t__changes")[-1]
            assert (last["price"], last["_cdc_key_before"]) == (Decimal("3.10"), '{"id":1}')

    run(work())


def test_a_changelog_counts_the_letters_of_events_that_the_log_let_go_of_while_it_was_off(tmp_path: Path) -> None:
    """Seed 101685: its writer dies between its letters and its rows, and when it is on again the log has neither event any more."""
    changes = TableName.in_lake("t__changes")

    async def work() -> None:
        async with half(tmp_path, mode="both", stop_cleanly=False) as h:
            h.hand.declare()
            h.hand.change(insert(1, "a"))
            await h.flush()
            h.hand.change(insert(2, "b"), {"operation": "INSERT", "rowId": "3", "after": {"id": "three"}})
            REGISTRY.arm("flush.after_letters", "raise")
            await until(lambda: h.service.tails[h.log.log_id].position == h.log.synced_end)
            before = REGISTRY.hits["flush.after_letters"]
            h.service.tables[changes].requested = True
            await until(lambda: REGISTRY.hits["flush.after_letters"] > before)
            sequences, numbers = h.hand.sequences, h.hand.numbers
        REGISTRY.disarm()
        async with half(tmp_path, mode="mirror") as h:
            h.hand.sequences, h.hand.numbers = sequences, numbers
            for place in range(40):  # Until the segment with those events is sealed, and another one follows.
                h.hand.change(insert(place, "x" * 200))
            await h.flush()
            h.log.trim(h.log.synced_end)
            assert h.log.first_offset > 2
        async with half(tmp_path, mode="both") as h:
            h.hand.sequences, h.hand.numbers = sequences, numbers
            h.hand.change(insert(50, "z"))
            await h.flush()
            assert [letter["table_name"] for letter in letters(h)] == ["default.t", "default.t__changes"]
            counted = h.catalog().load_table("default.t__changes").properties
            rows = h.rows("default.t__changes")
            assert (rows[0]["id"], rows[-1]["id"]) == (1, 50)
            assert rows[1]["_cdc_offset"] > 2
            assert int(counted["dolake.count.dead-lettered"]) == 1
            assert int(counted["dolake.count.accepted"]) == len(rows) + 1
            assert breaches(h) == []

    run(work())


def test_a_dropped_mirror_takes_its_saved_index_along(tmp_path: Path) -> None:
    index = tmp_path / "index" / "default.t"

    async def work() -> None:
        async with half(tmp_path, mode="mirror") as h:
            h.hand.declare()
            h.hand.change(insert(1, "a"))
            await h.flush()
        assert (index / "index.json").exists()
        async with half(tmp_path, mode="mirror") as h:
            await h.service.dropping.drop(T, h.until())
            assert list(index.iterdir()) == []

    run(work())
