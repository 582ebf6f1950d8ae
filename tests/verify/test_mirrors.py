"""Mirror tables: a sound one has no breach; each kind of damage is found, and said of the right invariant."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyiceberg.catalog.sql import SqlCatalog

from tests.verify.damage import Hands, lake, opened, verified
from tests.writer.half import Half, settings_of
from tests.writer.test_mirrors import TRUNCATE, delete, insert, update

T = "default.t"


async def three_flushes(h: Half) -> None:
    """Rows 0..19 of which 3 are gone, 4 has another key, and 5 and 6 were changed; one event is a dead letter."""
    h.hand.declare()
    h.hand.change(*(insert(key, f"n{key}") for key in range(20)))
    await h.flush()
    h.hand.change(update(5, "five"), delete(3), update(40, "four", old=4), {"operation": "DELETE", "before": {"id": None}})
    await h.flush()
    h.hand.change(update(6, "six"), update(5, "again"), insert(50, "x"), delete(50))
    await h.flush()


@pytest.fixture
def hands(tmp_path: Path) -> Iterator[Hands]:
    lake(tmp_path, three_flushes)
    with opened(tmp_path) as (store, catalog):
        yield Hands(store, catalog)


def test_a_sound_mirror_has_no_breach_and_nothing_to_note(tmp_path: Path, hands: Hands) -> None:
    found = verified(tmp_path)
    assert (found.breaches, found.notes) == ([], [])
    assert hands.base.properties["dolake.count.dead-lettered"] == "1"


def test_truncates_partitions_and_widening_are_sound(tmp_path: Path) -> None:
    async def work(h: Half) -> None:
        await three_flushes(h)
        h.hand.change(insert(1, "b"), TRUNCATE, insert(2, "c"))
        await h.flush()
        h.hand.change(insert(1, "b"), update(2, "d"))
        await h.flush()

    lake(tmp_path, work, tables={"*.*": {"mode": "mirror", "partition_by": ["bucket(3, id)"]}})
    assert verified(tmp_path).text == ""


def live(hands: Hands, key: int) -> tuple[Any, int]:
    """Where the row of a key stands; the newest is the one that counts."""
    return [(file, position) for file, position, row in sorted(hands.rows(), key=lambda one: one[0].sequence_number) if row["id"] == key][
        -1
    ]


def test_a_key_that_has_two_rows_is_i8(tmp_path: Path, hands: Hands) -> None:
    hands.commit(hands.put_rows([{"id": 7, "note": "twice"}]))
    found = verified(tmp_path)
    assert found.invariants == [("I13", T), ("I8", T)]
    assert 'key {"id": 7} has 2 rows' in found.text
    assert "that makes 19 rows, and 20 are there" in found.text


def test_a_key_that_others_doubled_is_said_and_no_breach(tmp_path: Path, hands: Hands) -> None:
    table = hands_table(tmp_path)
    table.append(pa.table({"id": [7, 99], "note": ["theirs", "theirs"]}, schema=table.schema().as_arrow()))
    found = verified(tmp_path)
    assert found.breaches == []
    assert "1 keys have several rows, some of them in files of others" in found.text
    assert "others have changed it since dolake did: +2 rows" in found.text


def hands_table(path: Path) -> Any:
    """The table as PyIceberg has it."""
    settings = settings_of(path)
    return SqlCatalog("dolake", uri=f"sqlite:///{settings.catalog_path}", warehouse=settings.warehouse.uri).load_table(T)


@pytest.mark.parametrize("how", ["append", "delete", "overwrite"])
def test_what_others_did_before_the_last_flush_is_counted(tmp_path: Path, how: str) -> None:
    async def work(h: Half) -> None:
        await three_flushes(h)
        table = h.catalog().load_table(T)
        if how == "append":
            table.append(pa.table({"id": [7, 99], "note": ["theirs", "theirs"]}, schema=table.schema().as_arrow()))
        elif how == "delete":
            table.delete("id = 5")
        else:
            table.overwrite(pa.table({"id": [99], "note": ["theirs"]}, schema=table.schema().as_arrow()))
        h.hand.change(update(8, "eight"))
        await h.flush()

    lake(tmp_path, work)
    assert verified(tmp_path).breaches == []


def test_rows_that_come_back_from_the_dead_are_i8_and_i13(tmp_path: Path, hands: Hands) -> None:
    """The position deletes are gone, the data files are not."""
    hands.commit(*(hands.again(file) for file in hands.files()), removes_all=True)
    found = verified(tmp_path)
    assert found.invariants == [("I13", T), ("I8", T)]
    assert 'key {"id": 5} has 3 rows' in found.text


def test_a_row_deleted_that_no_event_deleted_is_i13(tmp_path: Path, hands: Hands) -> None:
    file, position = live(hands, 7)
    hands.commit(deletes=[hands.put_deletes(file.location, position, like=file)])
    found = verified(tmp_path)
    assert found.invariants == [("I13", T)]
    assert "that makes 19 rows, and 18 are there" in found.text


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda h, file: h.put_deletes(file.location, 500, like=file), "deletes 1 rows that"),
        (lambda h, file: h.put_deletes(file.location.replace("/e0", "/e1"), 0, like=file), "which the snapshot does not name"),
        (lambda h, file: h.put_deletes(file.location, 5, 5, like=file), "deletes 1 rows twice"),
        (lambda h, file: h.put_deletes(file.location, 5, like=file), "deletes 1 rows of"),
    ],
)
def test_a_position_delete_that_speaks_of_nothing_is_i8(tmp_path: Path, hands: Hands, damage: Callable[..., Any], said: str) -> None:
    (file,) = {file.location: file for file, _, row in hands.rows() if row["id"] == 12}.values()
    hands.commit(deletes=[damage(hands, file)])
    found = verified(tmp_path)
    assert ("I8", T) in found.invariants
    assert said in found.text


def test_a_position_delete_under_another_partition_is_i8(tmp_path: Path) -> None:
    lake(tmp_path, three_flushes, tables={"*.*": {"mode": "mirror", "partition_by": ["bucket(3, id)"]}})
    with opened(tmp_path) as (store, catalog):
        hands = Hands(store, catalog)
        assert len({file.partition for file in hands.files()}) == 3
        file = hands.files()[0]
        other = next(one for one in hands.files() if one.partition != file.partition)
        hands.commit(deletes=[hands.put_deletes(file.location, 0, like=other)])
        found = verified(tmp_path)
        assert found.invariants == [("I8", T)], "and no row is gone by it"
        assert "readers pass that over: it is of another partition" in found.text


def test_a_row_without_a_key_is_i8(tmp_path: Path, hands: Hands) -> None:
    hands.commit(hands.put_rows([{"id": None, "note": "who"}]))
    found = verified(tmp_path)
    assert found.invariants == [("I13", T), ("I8", T)]
    assert "1 rows have no value in their key (id), row 0" in found.text


@pytest.mark.parametrize("name", ["accepted", "folded", "removed", "dead-lettered", "foreign"])
def test_a_count_that_was_changed_is_i13(tmp_path: Path, hands: Hands, name: str) -> None:
    stated = int(hands.base.properties.get(f"dolake.count.{name}", "0"))
    with hands_table(tmp_path).transaction() as change:
        change.set_properties({f"dolake.count.{name}": str(stated + 1)})
    found = verified(tmp_path)
    assert found.invariants == [("I13", T)]


@pytest.mark.parametrize("name", ["total-records", "total-position-deletes", "total-data-files", "total-delete-files"])
def test_a_total_that_is_not_what_the_manifests_hold_is_i10_of_the_snapshot_that_says_it(tmp_path: Path, hands: Hands, name: str) -> None:
    wrong: list[int] = []

    def change(metadata: dict[str, Any]) -> None:
        ordered = sorted(metadata["snapshots"], key=lambda snapshot: snapshot["sequence-number"])
        wrong.append(ordered[1]["snapshot-id"])
        for snapshot in ordered[1:]:  # Who goes on from a wrong total is not wrong itself.
            snapshot["summary"][name] = str(int(snapshot["summary"][name]) + 3)

    hands.change_metadata(change)
    (breach,) = verified(tmp_path).breaches
    assert (breach.invariant, breach.subject) == ("I10", T)
    assert f"snapshot {wrong[0]} says {name}" in breach.sentence


def test_delete_files_are_held_to_their_bytes_too(tmp_path: Path, hands: Hands) -> None:
    path = Path(hands.files("position deletes")[0].location.removeprefix("file://"))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    assert verified(tmp_path).invariants == [("I15", T)]
    path.unlink()
    assert verified(tmp_path).invariants == [("I10", T)]


def test_the_key_is_found_where_the_schema_cannot_say_it(tmp_path: Path) -> None:
    """A key of floats is no identifier of Iceberg's; and a table that declares none goes by the row id."""
    columns = [{"name": "x", "type": "double", "nullable": False}, {"name": "note", "type": "string", "nullable": True}]

    async def work(h: Half) -> None:
        h.hand.declare(columns=columns, key=("x",))
        h.hand.change(*({"operation": "INSERT", "after": {"x": n / 2, "note": "a"}} for n in range(5)))
        h.hand.change(*({"operation": "INSERT", "rowId": f"r{n}", "after": {"v": n}} for n in range(5)), table="u")
        await h.flush()

    lake(tmp_path, work)
    assert verified(tmp_path).text == ""
    with opened(tmp_path) as (store, catalog):
        Hands(store, catalog).commit(Hands(store, catalog).put_rows([{"x": 1.5, "note": "twice"}]))
        hands = Hands(store, catalog, "default.u")
        hands.commit(hands.put_rows([{"_cdc_row_id": "r3", "v": 9}]))
    found = verified(tmp_path)
    assert 'key {"x": 1.5} has 2 rows' in found.text
    assert 'key {"_cdc_row_id": "r3"} has 2 rows' in found.text
