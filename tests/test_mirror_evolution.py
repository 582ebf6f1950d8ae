"""A mirror's columns change while sources write it: rows of before and after, by old producers and new ones; and those of its key."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from pyiceberg.table import Table

from tests.test_real_evolution import CHANGES, ID, NOTE, column
from tests.writer.half import Half, half, letters


def event(operation: str, row: Mapping[str, Any], old: Mapping[str, Any] | None = None) -> dict[str, Any]:
    image = "before" if operation == "DELETE" else "after"
    return {"operation": operation, image: dict(row), **({} if old is None else {"before": dict(old)})}


def load(h: Half, number: int) -> None:
    """Every key of a table that no change concerns is written again, in each flush."""
    h.hand.change(*(event("UPDATE", {"id": key, "note": f"{number}"}) for key in range(50)), table="load", source="load")


@pytest.mark.acceptance("AT-61")
def test_a_mirrors_columns_change_and_every_row_reads_right(tmp_path: Path) -> None:
    """By way: rows that stay, that either producer updates, keeps unchanged, and takes away; before the change and after it."""

    async def work() -> None:
        async with half(tmp_path, mode="mirror", snapshots_kept=1000) as h:
            h.hand.declare("load", columns=[ID, NOTE], source="load")
            for name, change in CHANGES.items():
                h.hand.declare(name, columns=change.before, source="old")
                h.hand.change(*(event("INSERT", {"id": key, **change.old}) for key in range(8)), table=name, source="old")
            load(h, 0)
            assert (await h.flush())["success"]
            for name, change in CHANGES.items():
                old_names, new_names = names_of(change.before), names_of(change.after)
                h.hand.declare(name, columns=change.after, source="new")
                h.hand.change(event("UPDATE", {"id": 1, **change.new}), event("DELETE", {"id": 2}), table=name, source="new")
                h.hand.change(event("UPDATE", {"id": 1, **change.old}), table=name, source="old")
                h.hand.change(
                    {**event("UPDATE", {"id": 3}), "metadata": {"unchanged": new_names}},  # As the old row has them,
                    event("UPDATE", {"id": 4, **change.new}),
                    event("INSERT", {"id": 9, **change.new}),
                    table=name,
                    source="new",
                )
                h.hand.change(
                    {**event("UPDATE", {"id": 5}), "metadata": {"unchanged": old_names}},  # by the names that it still uses,
                    event("DELETE", {"id": 6, **change.old}),
                    table=name,
                    source="old",
                )
                h.hand.change(event("UPDATE", {"id": 17, **change.new}, old={"id": 7}), table=name, source="new")
            load(h, 1)
            assert (await h.flush())["success"]
            for name, change in CHANGES.items():
                h.hand.declare(name, columns=change.before, source="old")  # The old producer again, as after a restart.
                h.hand.change({**event("UPDATE", {"id": 9}), "metadata": {"unchanged": names_of(change.before)}}, table=name, source="old")
                h.hand.change(event("UPDATE", {"id": 4, **change.old}), event("INSERT", {"id": 2, **change.old}), table=name, source="old")
                h.hand.change(event("UPDATE", {"id": 0, **change.new}), table=name, source="new")
            h.hand.declare("int_to_long", columns=[ID, column("n", "string")], source="new")
            h.hand.change(event("UPDATE", {"id": 5, "n": "five"}), event("UPDATE", {"id": 3, "n": 3}), table="int_to_long", source="new")
            load(h, 2)
            assert (await h.flush())["success"]
            passed = []
            for name, change in CHANGES.items():
                rows = {key: {of: value for of, value in row.items() if of != "id"} for key, row in h.mirrored(f"default.{name}").items()}
                assert set(rows) == {0, 1, 2, 3, 4, 5, 9, 17}, name
                assert rows.pop(3) == ({"n": 3} if name == "int_to_long" else kept(change.old_reads)), name
                assert rows.pop(9) == kept(change.new_reads), name
                passed += [(name, "forward")] * all(rows[key] == change.old_reads for key in (1, 2, 4, 5))
                passed += [(name, "backward")] * all(rows[key] == change.new_reads for key in (0, 17))
                ids_stay(name, h.catalog().load_table(f"default.{name}"))
                snapshots_read_as_they_were(h.catalog().load_table(f"default.{name}"), change.before, change.old)
            assert len(passed) == 16, passed
            found = [(one["table_name"], one["reason"], one["field"], one["value"]) for one in letters(h)]
            assert found == [("default.int_to_long", "does_not_fit", "n", '"five"')]
            h.service.tell()
            troubles = {name: one["troubles"] for name, one in h.reports[-1]["tables"].items() if one.get("troubles")}
            assert list(troubles) == ["default.int_to_long"]
            assert "long cannot become string" in troubles["default.int_to_long"]["n"]
            assert {key: row["note"] for key, row in h.mirrored("default.load").items()} == dict.fromkeys(range(50), "2")

    asyncio.run(work())


def kept(reads: Mapping[str, Any]) -> Mapping[str, Any]:
    """A row that a producer has kept which does not know the column `more`: it keeps what it names, and the rest is null."""
    return {**reads, "more": None} if "more" in reads else reads


def names_of(columns: Sequence[Mapping[str, Any]]) -> list[str]:
    return [str(one["name"]) for one in columns if one["name"] != "id"]


def ids_stay(name: str, table: Table) -> None:
    called: dict[int, set[str]] = {}
    for schema in table.metadata.schemas:
        for one in schema.fields:
            called.setdefault(one.field_id, set()).add(one.name)
    assert [names for names in called.values() if len(names) > 1] == ([{"note", "remark"}] if name == "renamed" else [])
    assert len({frozenset(names) for names in called.values()}) == len(called), "no name has two ids"


def snapshots_read_as_they_were(table: Table, before: Sequence[Mapping[str, Any]], old: Mapping[str, Any]) -> None:
    first = next(snapshot for snapshot in table.snapshots() if int(snapshot.summary["total-records"] or 0))
    rows = table.scan(snapshot_id=first.snapshot_id).to_arrow().to_pylist()
    assert sorted(row["id"] for row in rows) == list(range(8))
    for row in rows:
        assert {name: str(value) for name, value in row.items() if name != "id"} == {name: str(old[name]) for name in names_of(before)}


def itself(value: Any) -> Any:
    return value


@dataclass(frozen=True)
class KeyChange:
    """How the key column is declared before and after, a key as either producer writes it, and one that only the new one can."""

    before: Mapping[str, Any]
    after: Mapping[str, Any]
    keys: Sequence[Any]
    only_new: Any
    read: Callable[[Any], Any] = itself

    @property
    def names(self) -> tuple[str, str]:
        return str(self.before["name"]), str(self.after["name"])


def key(name: str, kind: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "type": kind, "nullable": False, **more}


WIDE = 1 << 40
KEY_CHANGES = {
    "renamed": KeyChange(key("id", "long"), key("number", "long", renamedFrom="id"), [1, 2, 3, 4, 5, 6, 7], WIDE),
    "int_to_long": KeyChange(key("id", "int"), key("id", "long"), [1, -2, 3, 2**31 - 1, -(2**31), 6, 0], WIDE),
    "both": KeyChange(key("id", "int"), key("number", "long", renamedFrom="id"), [1, 2, 3, 4, 5, 6, 7], WIDE),
    "float_to_double": KeyChange(key("id", "float"), key("id", "double"), [0.5, -0.25, 3.0, 4.0, 5.0, 6.0, 0.0], 0.1),
    "precision": KeyChange(
        key("id", "decimal(6,2)"), key("id", "decimal(20,2)"), [f"{n}.50" for n in range(7)], "123456789012345.67", Decimal
    ),
}


@pytest.mark.acceptance("AT-61")
@pytest.mark.parametrize("restarted", [False, True], ids=["", "restarted"])
@pytest.mark.parametrize("name", list(KEY_CHANGES))
def test_the_key_itself_is_renamed_and_widened(tmp_path: Path, name: str, restarted: bool) -> None:
    change = KEY_CHANGES[name]
    old_name, new_name = change.names
    value = column("v", "string")

    def by(source: str, operation: str, place: int, v: str = "", *, moved_to: Any = None, unchanged: bool = False) -> dict[str, Any]:
        of = old_name if source == "old" else new_name
        row, before = {of: change.keys[place], "v": v}, None
        if moved_to is not None:
            row, before = {**row, of: moved_to}, {of: change.keys[place]}
        if unchanged:
            return {**event(operation, {of: row[of]}, before), "metadata": {"unchanged": ["v"]}}
        return event(operation, row, before)

    async def work() -> None:
        async with half(tmp_path, mode="mirror") as h:
            h.hand.declare(columns=[change.before, value], source="old", key=(old_name,))
            h.hand.change(*(by("old", "INSERT", place, f"v{place}") for place in range(7)), source="old")
            assert (await h.flush())["success"]
            hand = h.hand
            if not restarted:
                await after(h)
        if restarted:
            async with half(tmp_path, mode="mirror") as h:
                h.hand.sequences, h.hand.numbers = hand.sequences, hand.numbers
                await after(h)

    async def after(h: Half) -> None:
        h.hand.declare(columns=[change.after, value], source="new", key=(new_name,))
        h.hand.change(
            by("new", "UPDATE", 0, "new"),
            by("new", "DELETE", 1),
            by("new", "UPDATE", 2, moved_to=change.only_new, unchanged=True),
            source="new",
        )
        h.hand.change(by("old", "UPDATE", 3, "old"), by("old", "DELETE", 4), by("old", "UPDATE", 5, unchanged=True), source="old")
        assert (await h.flush())["success"]
        expected = {change.keys[0]: "new", change.only_new: "v2", change.keys[3]: "old", change.keys[5]: "v5", change.keys[6]: "v6"}
        assert values(h) == expected_of(expected)
        h.hand.change(by("old", "UPDATE", 0, "old again"), by("old", "UPDATE", 5, "moved", moved_to=change.keys[1]), source="old")
        h.hand.change(by("new", "DELETE", 6), source="new")
        assert (await h.flush())["success"]
        expected = {change.keys[0]: "old again", change.only_new: "v2", change.keys[3]: "old", change.keys[1]: "moved"}
        assert values(h) == expected_of(expected)
        schema = h.catalog().load_table("default.t").schema()
        assert [one.field_id for one in schema.fields if one.name == new_name] == [schema.find_field(new_name).field_id]

    def values(h: Half) -> dict[Any, str]:
        return {of: row["v"] for of, row in h.mirrored(key=new_name).items()}

    def expected_of(rows: Mapping[Any, str]) -> dict[Any, str]:
        return {change.read(of): v for of, v in rows.items()}

    asyncio.run(work())
