"""Rolling a table back: its rows are the older snapshot's, its events are skipped or applied again, each once; whatever is killed."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from dolake import failpoints
from dolake.clock import real_runtime
from dolake.errors import LogRefused, RequestRefused
from dolake.iceberg.lake import open_catalog, open_warehouse
from dolake.iceberg.metadata import LoadedTable
from dolake.iceberg.plan import CommitPolicy
from dolake.model import TableName
from dolake.storage.disk import LocalDisk
from dolake.verify import verify_lake
from dolake.verify.compare import Compared
from dolake.writer.lock import lock_writer
from dolake.writer.rolling_back import roll_back_here
from tests.writer.half import Half, half, letters, settings_of
from tests.writer.test_parking import park, play, state, stop_table

T = TableName.parse("t")


def breaches(path: Path, **sections: Any) -> list[str]:
    """Of everything, with the log's events decoded once more."""
    settings = settings_of(path, **sections)
    store = open_warehouse(settings)
    catalog = open_catalog(settings, store, real_runtime())
    compared = Compared()
    try:
        found = verify_lake(
            disk=LocalDisk(), data=settings.data, directories=settings.log.directories, catalog=catalog, store=store,
            names=catalog.list_tables(), against_log=compared,
        )  # fmt: skip
        return [str(breach) for breach in found]
    finally:
        catalog.close()


def loaded(h: Half, name: TableName = T) -> LoadedTable:
    catalog = open_catalog(h.settings, open_warehouse(h.settings), h.runtime)
    try:
        table = catalog.load(name)
        assert table is not None
        return table
    finally:
        catalog.close()


def head(h: Half) -> int:
    found = loaded(h).head_id
    assert found is not None
    return found


def offset(h: Half) -> int:
    return loaded(h).offsets()[h.log.log_id]


async def roll_back(h: Half, target: int, *, rewind: bool, name: TableName = T) -> dict[str, Any]:
    return await h.service.rolling_back.roll_back(name, target, rewind, h.until())


def summary(h: Half) -> dict[str, str]:
    found = loaded(h).head
    assert found is not None
    return dict(found["summary"])


@pytest.mark.parametrize("rewind", [False, True], ids=["keep", "rewind"])
def test_a_changelog_goes_back_and_its_events_are_skipped_or_applied_again(tmp_path: Path, rewind: bool) -> None:
    async def scenario() -> None:
        async with half(tmp_path) as h:
            h.hand.declare()
            h.hand.insert({"id": 1}, {"id": 2})
            await h.flush()
            good, before = head(h), offset(h)
            h.hand.insert({"id": 3})
            await h.flush()
            bad = h.hand.insert({"id": 4})  # Accepted, and not committed: it goes too, or comes again.
            answer = await roll_back(h, good, rewind=rewind)
            assert (answer["to"], answer["rows"], answer["rewound"]) == (good, 2, rewind)
            stated = summary(h)
            assert stated["dolake.rollback"] == str(good)
            assert ("dolake.rewind" in stated) == rewind
            h.hand.insert({"id": 5})
            assert (await h.flush())["success"]
            assert h.values() == ([1, 2, 3, 4, 5] if rewind else [1, 2, 5])
            assert loaded(h).properties.get(f"dolake.skipped.{h.log.log_id}", "") == ("" if rewind else f"{before}-{bad + 1}")
        assert breaches(tmp_path) == []

    play(scenario)


async def first_rows(h: Half) -> dict[Any, dict[str, Any]]:
    h.hand.declare()
    for start in range(0, 6, 2):
        h.hand.insert({"id": start, "note": "a"}, {"id": start + 1, "note": "a"})
        await h.flush()
    h.hand.change({"operation": "UPDATE", "rowId": "0", "after": {"id": 0, "note": "b"}})
    await h.flush()
    return h.mirrored()


async def bad_rows(h: Half) -> dict[Any, dict[str, Any]]:
    """Updates (position deletes on files of before), deletes, and rows of its own."""
    h.hand.change(
        {"operation": "UPDATE", "rowId": "1", "after": {"id": 1, "note": "bad"}},
        {"operation": "DELETE", "rowId": "2", "before": {"id": 2}},
        {"operation": "INSERT", "rowId": "9", "after": {"id": 9, "note": "bad"}},
    )
    await h.flush()
    h.hand.change({"operation": "UPDATE", "rowId": "0", "after": {"id": 0, "note": "worse"}})
    await h.flush()
    return h.mirrored()


@pytest.mark.parametrize("rewind", [False, True], ids=["keep", "rewind"])
@pytest.mark.parametrize("truncated", [False, True], ids=["", "truncated"])
def test_a_mirror_goes_back_with_its_deletes(tmp_path: Path, rewind: bool, truncated: bool) -> None:
    """Rows that were deleted are back, those that were changed are as they were; what comes then finds exactly these."""

    async def scenario() -> None:
        async with half(tmp_path, mode="mirror") as h:
            good = await first_rows(h)
            target = head(h)
            bad = await bad_rows(h)
            if truncated:
                h.hand.change({"operation": "TRUNCATE"})
                h.hand.insert({"id": 7, "note": "late"})
                await h.flush()
                bad = h.mirrored()
            await roll_back(h, target, rewind=rewind)
            if not rewind:
                assert h.mirrored() == good
            await h.flush()
            assert h.mirrored() == (bad if rewind else good)
            h.hand.change(
                {"operation": "UPDATE", "rowId": "2", "after": {"id": 2, "note": "new"}},
                {"operation": "DELETE", "rowId": "0", "before": {"id": 0}},
            )
            assert (await h.flush())["success"]
            now = {**(bad if rewind else good), 2: {"id": 2, "note": "new"}}
            now.pop(0, None)
            assert h.mirrored() == now
            assert h.service.tables[T].counts.rows == len(now)
        assert breaches(tmp_path, mode="mirror") == []

    play(scenario)


def test_rollbacks_of_rollbacks(tmp_path: Path) -> None:
    """To before an earlier one, to the one itself, and back to what was rolled back: each is what that snapshot was."""

    async def scenario() -> None:
        async with half(tmp_path, mode="both") as h:
            good = await first_rows(h)
            target = head(h)
            bad = await bad_rows(h)
            worst = head(h)
            both = [T, TableName.in_lake("t__changes")]
            changes = {name: [one["snapshot-id"] for one in loaded(h, name).metadata["snapshots"]] for name in both}
            await roll_back(h, target, rewind=False)
            again = head(h)
            h.hand.insert({"id": 20, "note": "c"})
            await h.flush()
            assert h.mirrored() == {**good, 20: {"id": 20, "note": "c"}}
            assert breaches(tmp_path, mode="both") == []
            await roll_back(h, worst, rewind=False)  # What was rolled back is the truth after all; the last event is not.
            await h.flush()
            assert h.mirrored() == bad
            assert breaches(tmp_path, mode="both") == []
            await roll_back(h, again, rewind=True)  # As it was after the first rollback: only the last event comes again.
            await h.flush()
            assert h.mirrored() == {**good, 20: {"id": 20, "note": "c"}}
            await roll_back(h, target, rewind=True)  # Before all that: everything comes.
            await h.flush()
            assert h.mirrored() == {**bad, 20: {"id": 20, "note": "c"}}
            assert breaches(tmp_path, mode="both") == []
            assert changes[T][-1] == worst
        assert breaches(tmp_path, mode="both") == []

    play(scenario)


def test_a_rewind_that_is_undone_before_its_events_are_there_applies_none_twice(tmp_path: Path) -> None:
    found: dict[str, Any] = {}

    async def before() -> None:
        async with half(tmp_path) as h:
            h.hand.declare()
            for number in range(1, 3):
                h.hand.insert({"id": number})
                await h.flush()
                found[f"at {number}"] = head(h)
            found["sequences"] = h.hand.sequences, h.hand.numbers

    async def after() -> None:
        async with half(tmp_path) as h:
            h.hand.sequences, h.hand.numbers = found["sequences"]
            h.hand.insert({"id": 3})
            await h.flush()
            assert h.values() == [1, 2, 3]

    play(before)
    assert here(tmp_path, found["at 1"], rewind=True)["rows"] == 1
    assert here(tmp_path, found["at 2"], rewind=False)["rows"] == 2
    assert breaches(tmp_path) == []
    play(after)
    assert breaches(tmp_path) == []


@pytest.mark.parametrize("rewind", [False, True], ids=["keep", "rewind"])
def test_dead_letters_are_judged_once(tmp_path: Path, rewind: bool) -> None:
    async def scenario() -> None:
        async with half(tmp_path, mode="mirror") as h:
            h.hand.declare(columns=[{"name": "id", "type": "int", "nullable": False}])
            h.hand.insert({"id": 1}, {"id": 1 << 40})
            await h.flush()
            target = head(h)
            h.hand.insert({"id": 2}, {"id": 1 << 41})
            await h.flush()
            h.hand.insert({"id": 1 << 42})
            await roll_back(h, target, rewind=rewind)
            h.hand.insert({"id": 3}, {"id": 1 << 43})
            await h.flush()
            assert sorted(h.mirrored()) == ([1, 2, 3] if rewind else [1, 3])
            assert [letter["value"] for letter in letters(h)] == [str(1 << n) for n in (40, 41, 42, 43)]
        assert breaches(tmp_path, mode="mirror") == []

    play(scenario)


def test_a_rewind_reads_events_under_the_names_that_their_columns_had(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with half(tmp_path, mode="mirror") as h:
            h.hand.declare()
            h.hand.insert({"id": 1, "note": "a"})
            await h.flush()
            target = head(h)
            h.hand.insert({"id": 2, "note": "b"})
            await h.flush()
            columns = [
                {"name": "id", "type": "long", "nullable": False},
                {"name": "text", "type": "string", "nullable": True, "renamedFrom": "note"},
                {"name": "more", "type": "string", "nullable": True},
            ]
            h.hand.declare(columns=columns)
            h.hand.insert({"id": 3, "text": "c", "more": "d"})
            await h.flush()
            wanted = h.mirrored()
            await roll_back(h, target, rewind=True)
            assert (await h.flush())["success"]
            assert h.mirrored() == wanted
            assert state(h) == "following"
        assert breaches(tmp_path, mode="mirror") == []

    play(scenario)


def test_what_others_did_since_is_gone_too_and_a_stopped_table_goes_on(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with half(tmp_path, mode="mirror") as h:
            good = await first_rows(h)
            target = head(h)
            h.catalog().load_table("default.t").delete("id >= 2")
            h.hand.insert({"id": 30, "note": "x"})
            await h.flush()
            assert sorted(h.mirrored()) == [0, 1, 30]
            stop_table(h)
            h.hand.insert({"id": 31, "note": "y"})
            assert not (await h.flush())["success"]
            await roll_back(h, target, rewind=False)
            assert (await h.flush())["success"], "it goes on with what had waited"
            assert h.mirrored() == {**good, 31: {"id": 31, "note": "y"}}
        assert breaches(tmp_path, mode="mirror") == []

    play(scenario)


@pytest.mark.parametrize("rewind", [False, True], ids=["keep", "rewind"])
def test_it_settles_what_somebody_has_taken_back_behind_dolakes_back(tmp_path: Path, rewind: bool) -> None:
    async def scenario() -> None:
        async with half(tmp_path, mode="mirror") as h:
            good = await first_rows(h)
            target = head(h)
            bad = await bad_rows(h)
            with h.catalog().load_table("default.t").manage_snapshots() as change:
                change.rollback_to_snapshot(target)
            h.hand.insert({"id": 40, "note": "z"})
            assert not (await h.flush())["success"]
            await roll_back(h, target, rewind=rewind)
            assert (await h.flush())["success"]
            assert h.mirrored() == {**(bad if rewind else good), 40: {"id": 40, "note": "z"}}
        assert breaches(tmp_path, mode="mirror") == []

    play(scenario)


async def trimmed_log(h: Half) -> tuple[int, int]:
    """A target whose events since are not in the log any more; and the oldest offset that is."""
    h.hand.declare()
    h.hand.insert({"id": 1})
    await h.flush()
    target = head(h)
    for number in range(2, 40):
        h.hand.insert({"id": number, "note": "x" * 500})
    await h.flush()
    h.log.trim(offset(h))
    return target, h.log.first_offset


def test_a_rewind_that_the_log_cannot_serve_is_refused_and_names_the_oldest_there_is(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with half(tmp_path) as h:
            target, oldest = await trimmed_log(h)
            assert oldest > 2
            before = h.values()
            with pytest.raises(RequestRefused, match=rf"the oldest there is {oldest};.*log\.retain_s"):
                await roll_back(h, target, rewind=True)
            h.hand.insert({"id": 100})
            await h.flush()
            assert h.values() == [*before, 100], "nothing has happened"
            await roll_back(h, target, rewind=False)
            assert h.values() == [1]
        assert breaches(tmp_path) == []

    play(scenario)


def test_what_cannot_be_rolled_back_is_refused_and_nothing_changes(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with half(tmp_path) as h:
            h.hand.declare()
            h.hand.insert({"id": 1})
            await h.flush()
            good = head(h)
            h.hand.insert({"id": 2})
            await h.flush()
            with h.catalog().load_table("default.t").manage_snapshots() as change:
                change.create_branch(good, "side")
            rows = h.catalog().load_table("default.t").scan().to_arrow().slice(0, 1)
            h.catalog().load_table("default.t").append(rows, branch="side")
            aside = h.catalog().load_table("default.t").metadata.refs["side"].snapshot_id
            with pytest.raises(RequestRefused, match="is not in the history of main"):
                await roll_back(h, aside, rewind=False)
            with pytest.raises(RequestRefused, match="is not there any more"):
                await roll_back(h, 12345, rewind=False)
            with pytest.raises(RequestRefused, match=r"there is no table default\.u"):
                await roll_back(h, good, rewind=False, name=TableName.parse("u"))
            with pytest.raises(RequestRefused, match="is dolake's own"):
                await roll_back(h, good, rewind=False, name=TableName("dolake", "dead_letters"))
            await park(h)
            with pytest.raises(RequestRefused, match="is parked"):
                await roll_back(h, good, rewind=True)
            await h.service.parking.unpark(T)
            assert h.values() == [1, 2]
        assert breaches(tmp_path) == []

    play(scenario)


def here(path: Path, target: int, *, rewind: bool, **sections: Any) -> dict[str, Any]:
    settings = settings_of(path, **sections)
    store = open_warehouse(settings)
    catalog = open_catalog(settings, store, real_runtime())
    try:
        doors = real_runtime(), LocalDisk(), settings, catalog, store
        done = roll_back_here(*doors, T, target, rewinds=rewind, policy=CommitPolicy(), on_trouble=lambda trouble: None)
        return asyncio.run(done)
    finally:
        catalog.close()


@pytest.mark.parametrize("rewind", [False, True], ids=["keep", "rewind"])
def test_without_a_writer_the_table_is_claimed_with_it(tmp_path: Path, rewind: bool) -> None:
    found: dict[str, Any] = {}

    async def before() -> None:
        async with half(tmp_path, mode="mirror") as h:
            found["good"] = await first_rows(h)
            found["target"] = head(h)
            found["bad"] = await bad_rows(h)
            found["sequences"] = h.hand.sequences, h.hand.numbers

    play(before)
    lock = lock_writer(LocalDisk(), str(tmp_path))
    with pytest.raises(LogRefused):
        here(tmp_path, found["target"], rewind=rewind, mode="mirror")
    lock.release()
    assert here(tmp_path, found["target"], rewind=rewind, mode="mirror")["rows"] == len(found["good"])
    assert breaches(tmp_path, mode="mirror") == []

    async def after() -> None:
        async with half(tmp_path, mode="mirror") as h:
            h.hand.sequences, h.hand.numbers = found["sequences"]
            h.hand.insert({"id": 50, "note": "n"})
            await h.flush()
            assert h.mirrored() == {**(found["bad"] if rewind else found["good"]), 50: {"id": 50, "note": "n"}}

    play(after)
    assert breaches(tmp_path, mode="mirror") == []


POINTS = sorted(name for name in failpoints.POINTS if name.startswith(("rollback.", "commit.", "catalog.")))


@pytest.mark.parametrize("rewind", [False, True], ids=["keep", "rewind"])
@pytest.mark.parametrize("point", POINTS)
def test_killed_anywhere_it_is_as_before_or_as_it_should_be(tmp_path: Path, point: str, rewind: bool) -> None:
    """Dropped with everything in memory at a moment of the rollback; the next writer goes on, and the rollback is asked for again."""
    found: dict[str, Any] = {}

    async def dying() -> None:
        async with half(tmp_path, mode="mirror", stop_cleanly=False) as h:
            found["good"] = await first_rows(h)
            found["target"] = head(h)
            found["bad"] = await bad_rows(h)
            found["sequences"] = h.hand.sequences, h.hand.numbers
            reached = asyncio.Event()
            hit = failpoints.hit

            def die(name: str, path: str = "") -> None:
                if name == point:
                    reached.set()
                    raise _Killed
                hit(name, path)

            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(failpoints, "hit", die)
                asking = asyncio.ensure_future(roll_back(h, found["target"], rewind=rewind))
                watching = asyncio.ensure_future(reached.wait())
                await asyncio.wait([asking, watching], return_when=asyncio.FIRST_COMPLETED, timeout=20)
                asking.cancel()
                watching.cancel()
                h.running.cancel()
                await asyncio.gather(asking, watching, h.running, return_exceptions=True)
            found["reached"] = reached.is_set()

    play(dying)
    skipped = (point.startswith("rollback.before_pin") and not rewind) or point == "commit.resolve"
    assert found["reached"] or skipped

    async def after() -> None:
        async with half(tmp_path, mode="mirror") as h:
            h.hand.sequences, h.hand.numbers = found["sequences"]
            await h.flush()
            done = any("dolake.rollback" in one["summary"] for one in loaded(h).metadata["snapshots"])
            assert h.mirrored() == (found["good"] if done and not rewind else found["bad"])
            if not done:
                await roll_back(h, found["target"], rewind=rewind)
                await h.flush()
            h.hand.insert({"id": 60, "note": "n"})
            await h.flush()
            assert h.mirrored() == {**(found["bad"] if rewind else found["good"]), 60: {"id": 60, "note": "n"}}

    play(after)
    assert breaches(tmp_path, mode="mirror") == []


class _Killed(BaseException):
    pass
