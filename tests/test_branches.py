"""Tags and branches: what others write beside main is not seen until it is published, and published only where main has stood still."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from dolake.cli import run
from dolake.errors import CatalogUnreachable, CommitConflict, Diverged, RefRefused
from dolake.iceberg.lake import open_catalog, open_warehouse
from dolake.iceberg.metadata import MAIN
from dolake.iceberg.points import head_of
from dolake.iceberg.refs import change_ref, diverged, plan_create, plan_delete, plan_publish
from tests.writer.half import Half, half
from tests.writer.test_parking import play
from tests.writer.test_rollback import breaches, head, loaded


def dolake(h: Half, *arguments: str) -> int:
    return run([*arguments, "--data", str(h.path)])


def write_branch(h: Half, name: str, ids: range) -> None:
    table = h.catalog().load_table("default.t")
    rows = pa.table({"id": pa.array(ids, pa.int64()), "note": ["branch"] * len(ids)}, schema=table.schema().as_arrow())
    table.append(rows, branch=name)


async def begun(h: Half) -> None:
    h.hand.declare()
    h.hand.insert(*({"id": number, "note": "main"} for number in range(10)))
    await h.flush()
    assert dolake(h, "branches", "create", "t", "side") == 0
    write_branch(h, "side", range(1000, 2000))


@pytest.mark.acceptance("AT-72")
def test_a_branch_is_published_in_one_step_and_the_writer_goes_on_from_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async def scenario() -> None:
        async with half(tmp_path, mode="mirror") as h:
            await begun(h)
            before = head(h)
            assert len(h.mirrored()) == 10, "main has not moved"
            capsys.readouterr()
            assert dolake(h, "query", "SELECT count(*) AS n FROM t", "--at", "branch:side", "--json") == 0
            assert json.loads(capsys.readouterr().out) == [{"n": 1010}]
            assert dolake(h, "branches", "publish", "t", "side", "--json") == 0
            said = json.loads(capsys.readouterr().out)
            assert (said["before"], said["snapshot"]) == (before, head(h))
            assert head_of(loaded(h), "side") == head(h)
            assert len(h.mirrored()) == 1010
            h.hand.change(
                {"operation": "UPDATE", "rowId": "1", "after": {"id": 1500, "note": "ours"}},
                {"operation": "DELETE", "rowId": "2", "before": {"id": 1501}},
            )
            assert (await h.flush())["success"]
            rows = h.mirrored()
            assert (len(rows), rows[1500]["note"], 1501 in rows) == (1009, "ours", False)
            assert dolake(h, "branches", "publish", "t", "side") == 5, "main has moved on since"
            await h.service.rolling_back.roll_back(next(iter(h.service.tables)), before, False, h.until())
            assert sorted(h.mirrored()) == list(range(10)), "and what was published can be taken back"
        assert breaches(tmp_path, mode="mirror") == []

    play(scenario)


@pytest.mark.acceptance("AT-72")
def test_a_branch_that_main_has_left_behind_is_refused_with_what_each_side_has(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async def scenario() -> None:
        async with half(tmp_path, mode="mirror") as h:
            await begun(h)
            for number in range(2):
                h.hand.change(
                    {"operation": "INSERT", "rowId": "", "after": {"id": 20 + number, "note": "main"}},
                    {"operation": "DELETE", "rowId": "", "before": {"id": number}},
                )
                await h.flush()
            before = loaded(h).metadata_location
            capsys.readouterr()
            assert dolake(h, "branches", "publish", "t", "side") == 5
            said = capsys.readouterr().err
            assert "main alone has 2 snapshots (+2 -2 rows), the branch alone 1 snapshots (+1,000 -0 rows)" in said
            assert "branch made from main now" in said
            assert loaded(h).metadata_location == before, "nothing was changed"
            found = diverged(loaded(h), "side")
            assert (found.main, found.branch) == ((2, 2, 2), (1, 1000, 0))
            assert dolake(h, "branches", "delete", "t", "side") == 0
            assert dolake(h, "branches", "create", "t", "side", "--at", "-1") == 0
            assert dolake(h, "branches", "publish", "t", "side") == 5, "main is ahead of it"
            assert dolake(h, "branches", "delete", "t", "side") == 0
            assert dolake(h, "branches", "create", "t", "side") == 0
            assert dolake(h, "branches", "publish", "t", "side") == 0, "there is nothing to do"
            assert len(h.mirrored()) == 10
        assert breaches(tmp_path, mode="mirror") == []

    play(scenario)


@pytest.mark.acceptance("AT-71", "AT-72")
def test_names_are_refused_by_their_kind(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async def scenario() -> None:
        async with half(tmp_path, mode="mirror") as h:
            await begun(h)
            assert dolake(h, "tags", "create", "t", "good") == 0
            for arguments, code, said in (
                (("tags", "create", "t", "good"), 5, "there is a tag good already"),
                (("branches", "create", "t", "good"), 5, "there is a tag good already"),
                (("branches", "create", "t", "side"), 5, "there is a branch side already"),
                (("branches", "delete", "t", "good"), 5, "there is no branch good; good is a tag"),
                (("tags", "delete", "t", "none"), 5, "there is no tag none"),
                (("branches", "publish", "t", "none"), 5, "there is no branch none"),
                (("branches", "publish", "t", "main"), 5, "main is what branches are published to"),
                (("branches", "delete", "t", "main"), 5, "branch main cannot be deleted: main is the table itself"),
                (("branches", "create", "t", "main"), 5, "main is the table itself"),
                (("tags", "delete", "t", "dolake-hour-20260101T00"), 5, "dolake's own"),
                (("tags", "create", "t", "dolake-x"), 5, "dolake's own"),
                (("tags", "create", "t", "-x y"), 2, "see `dolake tags --help`"),
                (("tags", "create", "t", "a b"), 2, "NAME: must be"),
                (("tags", "create", "t", "later", "--at", "2999-01-01"), 5, "still to come"),
                (("tags", "create", "t", "later", "--keep-days", "0"), 2, "--keep-days"),
                (("tags", "create", "none", "later"), 2, "there is no such table"),
            ):
                assert (dolake(h, *arguments), said in capsys.readouterr().err) == (code, True), arguments
            assert dolake(h, "tags", "list", "t", "--json") == 0
            assert "good" in [one["name"] for one in json.loads(capsys.readouterr().out)]
            assert dolake(h, "branches", "list", "t", "--json") == 0
            assert [one["name"] for one in json.loads(capsys.readouterr().out)] == ["main", "side"]
            assert dolake(h, "branches", "list", "t") == 0
            assert "side" in capsys.readouterr().out
            assert dolake(h, "tags", "delete", "t", "good", "--json") == 0
            assert "good" not in (loaded(h).metadata["refs"])

    play(scenario)


def test_what_tags_and_branches_name_stays_whatever_expires(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with half(tmp_path, mode="mirror", snapshots_kept=3) as h:
            await begun(h)
            tagged = head(h)
            assert dolake(h, "tags", "create", "t", "good") == 0
            assert dolake(h, "tags", "create", "t", "short", "--keep-days", "1") == 0
            for number in range(8):
                h.hand.insert({"id": number, "note": f"later {number}"})
                await h.flush()
            assert len(h.catalog().load_table("default.t").metadata.snapshots) == 3 + 2, "three of main, the tagged one, the branch's"
            assert h.catalog().load_table("default.t").scan(snapshot_id=tagged).to_arrow().num_rows == 10
            assert len(h.catalog().load_table("default.t").scan(snapshot_id=head_of(loaded(h), "side")).to_arrow()) == 1010
            assert "short" in loaded(h).metadata["refs"]
            sequences = h.hand.sequences, h.hand.numbers
        async with half(tmp_path, mode="mirror", snapshots_kept=3, clock_ahead_ms=2 * 86_400_000) as h:
            h.hand.sequences, h.hand.numbers = sequences
            h.hand.insert({"id": 100, "note": "two days later"})
            await h.flush()
            refs = loaded(h).metadata["refs"]
            assert "good" in refs
            assert "short" not in refs
            assert "side" in refs
        assert breaches(tmp_path, mode="mirror") == []

    play(scenario)


class Rival:
    """A catalog in which, before or after a swap of ours, something else happens."""

    def __init__(self, catalog: Any, before: Callable[[], None], error: Exception | None) -> None:
        self._catalog, self._before, self._error = catalog, before, error
        self.swaps = 0

    def load(self, name: Any) -> Any:
        return self._catalog.load(name)

    def swap(self, base: Any, requirements: Any, updates: Any) -> Any:
        self.swaps += 1
        if self.swaps == 1:
            self._before()
        landed = self._catalog.swap(base, requirements, updates)
        if self.swaps == 1 and self._error is not None:
            raise self._error
        return landed


def test_a_change_of_a_ref_comes_between_commits_and_is_made_once(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with half(tmp_path, mode="mirror") as h:
            await begun(h)
            catalog = open_catalog(h.settings, open_warehouse(h.settings), h.runtime)
            base = loaded(h)
            now_ms = h.runtime.clock.now_ms()
            side = head_of(base, "side")
            assert side is not None

            def moves() -> None:
                with h.catalog().load_table("default.t").transaction() as change:
                    change.set_properties({"somebody": "else"})

            rival = Rival(catalog, moves, None)
            after = change_ref(rival, base, lambda table: plan_create(table, "tag", "one", side, None, now_ms))  # type: ignore[arg-type]
            assert (rival.swaps, head_of(after, "one"), after.properties["somebody"]) == (2, side, "else")
            lost = Rival(catalog, lambda: None, CatalogUnreachable("the answer was lost"))
            change_ref(lost, after, lambda table: plan_create(table, "tag", "two", side, None, now_ms))  # type: ignore[arg-type]
            assert (lost.swaps, head_of(loaded(h), "two")) == (1, side), "it had landed, and is not refused as a duplicate"
            lost = Rival(catalog, lambda: None, CommitConflict("answered late"))
            change_ref(lost, loaded(h), lambda table: plan_delete(table, "tag", "two"))  # type: ignore[arg-type]
            assert (lost.swaps, head_of(loaded(h), "two")) == (1, None)

            def main_moves() -> None:
                table = h.catalog().load_table("default.t")
                table.append(table.scan(row_filter="id < 0").to_arrow())

            rival = Rival(catalog, main_moves, None)
            with pytest.raises(Diverged):
                change_ref(rival, loaded(h), lambda table: plan_publish(table, "side"))  # type: ignore[arg-type]
            assert head_of(loaded(h), MAIN) != side
            with pytest.raises(RefRefused, match="there is no branch"):
                plan_publish(loaded(h), "one")
            catalog.close()

    play(scenario)
