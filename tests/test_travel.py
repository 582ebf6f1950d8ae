"""Time travel: a table at any point of its history is what its source was then, by every form a point has, for every reader."""

from __future__ import annotations

import json
import random
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from dolake.cli import run
from dolake.cli.lake import open_lake
from dolake.errors import NoSuchPoint, QueryRefused
from dolake.iceberg.points import parse_point, snapshot_at
from dolake.query import open_connection, run_query
from tests.iceberg.lake import duckdb_with_iceberg
from tests.writer.half import Half, half
from tests.writer.test_parking import play

Rows = dict[int, str]


def text_of(time_ms: int) -> str:
    return (datetime.fromtimestamp(0, UTC) + timedelta(milliseconds=time_ms)).isoformat()


async def write(h: Half, flushes: int, seed: int) -> list[tuple[dict[str, Any], Rows]]:
    """Each flush's snapshot, and what the table holds at it. Every flush has an lsn of its own."""
    dice, rows, made = random.Random(seed), dict[int, str](), []
    h.hand.declare()
    for number in range(flushes):
        changed = {dice.randrange(60): f"{number}-{place}" for place in range(dice.randrange(1, 6))}
        h.hand.insert(*({"id": key, "note": note} for key, note in changed.items()), lsn=f"0/{number * 256:X}")
        gone = [key for key in rows if dice.random() < 0.05 and key not in changed]
        if gone:
            h.hand.change(*({"operation": "DELETE", "rowId": str(key), "before": {"id": key}} for key in gone))
        rows = {key: note for key, note in (rows | changed).items() if key not in gone}
        assert (await h.flush())["success"]
        metadata = h.catalog().load_table("default.t").metadata
        snapshot = metadata.snapshot_by_id(metadata.current_snapshot_id)
        made.append((snapshot.model_dump(), dict(rows)))
    return made


def by_duckdb(h: Half, at: str) -> Rows:
    lake = open_lake(h.settings)
    connection = open_connection(lake.catalog, lake.store, parse_point(at), h.runtime.clock.now_ms())
    try:
        batches = run_query(connection, "SELECT id, note FROM t").batches()
        return {row["id"]: row["note"] for batch in batches for row in batch.to_pylist()}
    finally:
        connection.close()


class OneDuck:
    """DuckDB's own reader, opened once: a point is found by us, and read by it."""

    def __init__(self, h: Half) -> None:
        self._h, self._duck, (self._table,) = h, duckdb_with_iceberg(), open_lake(h.settings).tables()

    def rows(self, at: str) -> Rows:
        snapshot = snapshot_at(self._table, parse_point(at), self._h.runtime.clock.now_ms())
        scan = f"iceberg_scan('{self._table.metadata_location}', snapshot_from_id => {snapshot['snapshot-id']})"
        return dict(self._duck.execute(f"SELECT id, note FROM {scan}").fetchall())


def by_pyiceberg(h: Half, form: str, value: Any) -> Rows:
    table = h.catalog().load_table("default.t")
    if form == "time":
        value = table.snapshot_as_of_timestamp(value).snapshot_id
    elif form in ("tag", "branch"):
        value = table.snapshot_by_name(value).snapshot_id
    elif form == "versions":
        value = table.history()[-1 - value].snapshot_id
    elif form == "lsn":
        value = next(one.snapshot_id for one in table.snapshots() if one.summary["dolake.lsn.s"] == value)
    return {row["id"]: row["note"] for row in table.scan(snapshot_id=value).to_arrow().to_pylist()}


@pytest.mark.acceptance("AT-70")
def test_twenty_random_points_by_each_form(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with half(tmp_path, mode="mirror") as h:
            made = await write(h, 50, 70)
            dice = random.Random(71)
            points = [dice.randrange(len(made)) for _ in range(20)]
            for number in sorted(set(points)):
                id_ = str(made[number][0]["snapshot-id"])
                for kind in ("tags", "branches"):
                    assert run([kind, "create", "t", f"{kind}-{number}", "--at", f"snapshot:{id_}", "--data", str(tmp_path)]) == 0
            duck = OneDuck(h)
            for place, number in enumerate(points):
                snapshot, rows = made[number]
                until_ms = made[number + 1][0]["timestamp-ms"] if number + 1 < len(made) else snapshot["timestamp-ms"] + 1
                moment = dice.randrange(snapshot["timestamp-ms"], until_ms)
                lsn = f"0/{number * 256 + (dice.randrange(256) if number + 1 < len(made) else 0):X}"  # not one of any snapshot, mostly
                forms: list[tuple[list[str], str, Any]] = [
                    ([f"snapshot:{snapshot['snapshot-id']}", str(snapshot["snapshot-id"])], "snapshot", snapshot["snapshot-id"]),
                    ([f"time:{text_of(moment)}", text_of(moment)], "time", moment),
                    ([f"lsn:{lsn}", f"lsn:s={lsn}", lsn], "lsn", f"0/{number * 256:X}"),
                    ([f"tag:tags-{number}", f"tags-{number}"], "tag", f"tags-{number}"),
                    ([f"branch:branches-{number}", f"branches-{number}"], "branch", f"branches-{number}"),
                    ([f"-{49 - number}", f"{49 - number} versions ago"], "versions", 49 - number),
                ]
                for written, form, value in forms:
                    for at in written:
                        assert duck.rows(at) == rows, at
                    if place == 0:
                        assert by_duckdb(h, written[-1]) == rows, written[-1]
                    assert by_pyiceberg(h, form, value) == rows, (form, value)

    play(scenario)


def refusal(h: Half, at: str) -> NoSuchPoint:
    (table,) = open_lake(h.settings).tables()
    with pytest.raises(NoSuchPoint) as refused:
        snapshot_at(table, parse_point(at), h.runtime.clock.now_ms())
    return refused.value


@pytest.mark.acceptance("AT-70")
def test_points_that_are_not_there_say_why_and_what_is_the_oldest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async def scenario() -> None:
        async with half(tmp_path, mode="mirror", snapshots_kept=10) as h:
            made = await write(h, 5, 1)
            first = made[0][0]["timestamp-ms"]
            for at, kind in (
                (text_of(first - 1), "before-first"),
                ("-5", "before-first"),
                ("2999-01-01", "future"),
                ("lsn:0/FFFFFF", "future"),
                ("lsn:other=0/1", "before-first"),
                ("tag:none", "unknown"),
                ("branch:none", "unknown"),
                ("none", "unknown"),
                ("snapshot:17", "expired"),
            ):
                assert refusal(h, at).kind == kind, at
            for number in range(20):
                h.hand.insert({"id": number, "note": "later"}, lsn=f"1/{number:X}")
                await h.flush()
            snapshots = h.catalog().load_table("default.t").metadata.snapshots
            oldest = sorted(snapshots, key=lambda one: one.sequence_number)[-10]
            for at in (text_of(first), "-10", "lsn:0/100"):
                error = refusal(h, at)
                assert (error.kind, error.oldest) == ("expired", oldest.snapshot_id), at
                assert str(oldest.snapshot_id) in str(error)
            assert "dolake-hour-" in str(refusal(h, text_of(first)))
            assert by_duckdb(h, "tag:dolake-hour-" + datetime.fromtimestamp(first / 1000, UTC).strftime("%Y%m%dT%H")) == made[0][1]
            assert by_duckdb(h, "-9")
            h.hand.insert({"id": 1, "note": "other"}, source="two", lsn="7")
            await h.flush()
            assert refusal(h, "lsn:1/0").kind == "ambiguous"
            assert by_duckdb(h, "lsn:two=7")[1] == "other"
            code = run(["query", "SELECT 1 FROM t", "--at", "-4000", "--data", str(tmp_path)])
            assert (code, "expired" in capsys.readouterr().err) == (5, True)
            assert run(["query", "SELECT 1", "--at", "-4000", "--data", str(tmp_path)]) == 0, "no table of it is named"
            for wrong in ("", "snapshot:x", "time:soon", "lsn:", "tag:", "versions:3", "-x", "2026-13-01"):
                assert run(["query", "SELECT 1", "--at", wrong, "--data", str(tmp_path)]) == 2, wrong
                assert "--at: must" in capsys.readouterr().err

    play(scenario)


def test_every_table_is_read_at_the_point_of_its_own_history(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with half(tmp_path, mode="mirror") as h:
            for table in ("t", "u"):
                h.hand.declare(table)
            for number in range(3):
                h.hand.batch([("t", {"id": number}), ("u", {"id": number})], lsn=f"0/{number}")
                await h.flush()
            h.hand.declare("late")
            h.hand.insert({"id": 1}, table="late", lsn="0/9")
            await h.flush()
            lake = open_lake(h.settings)
            connection = open_connection(lake.catalog, lake.store, parse_point("lsn:0/1"), h.runtime.clock.now_ms())
            sql = 'SELECT (SELECT count(*) FROM t) AS t, (SELECT max(id) FROM "default".u) AS u'
            (found,) = [row for batch in run_query(connection, sql).batches() for row in batch.to_pylist()]
            assert found == {"t": 2, "u": 1}
            for named in ("late", '"default".late', '"late"'):
                with pytest.raises(NoSuchPoint, match=r"default\.late has nothing at lsn:0/1 \(before-first\)"):
                    run_query(connection, f"SELECT 1 FROM t JOIN {named} USING (id)")
            with pytest.raises(QueryRefused):
                run_query(connection, "SELECT * FROM lately")
            connection.close()

    play(scenario)


def test_a_snapshot_is_read_with_the_columns_that_it_had(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with half(tmp_path, mode="mirror") as h:
            h.hand.declare()
            h.hand.insert({"id": 1, "note": "a"})
            await h.flush()
            columns = [{"name": "id", "type": "long", "nullable": False}, {"name": "text", "type": "string", "nullable": True}]
            h.hand.declare(columns=[columns[0], {**columns[1], "renamedFrom": "note"}])
            h.hand.insert({"id": 2, "text": "b"})
            await h.flush()
            assert by_duckdb(h, "-1") == {1: "a"}
            table = h.catalog().load_table("default.t")
            assert table.scan(snapshot_id=table.history()[0].snapshot_id).to_arrow().to_pylist() == [{"id": 1, "note": "a"}]

    play(scenario)


def test_what_was_rolled_back_is_no_state_of_an_lsn_any_more(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with half(tmp_path, mode="mirror") as h:
            made = await write(h, 6, 3)
            target = int(made[2][0]["snapshot-id"])
            await h.service.rolling_back.roll_back(next(iter(h.service.tables)), target, False, h.until())
            assert by_duckdb(h, "lsn:0/400") == made[2][1], "the fourth and fifth never happened"
            assert by_duckdb(h, "lsn:0/500") == made[2][1]
            assert by_duckdb(h, "lsn:0/100") == made[1][1]
            assert by_duckdb(h, text_of(made[4][0]["timestamp-ms"])) == made[4][1], "but at that time they were there"
            assert by_duckdb(h, "-1") == made[5][1]

    play(scenario)


def test_snapshots_are_listed_newest_first_with_what_names_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async def scenario() -> None:
        async with half(tmp_path, mode="mirror") as h:
            made = await write(h, 3, 5)
            data = ["--data", str(tmp_path)]
            assert run(["tags", "create", "t", "good", "--at", "-1", "--keep-days", "3", *data]) == 0
            h.catalog().load_table("default.t").delete("id >= 0")
            h.hand.insert({"id": 1, "note": "n"}, lsn="0/900")
            await h.flush()
            await h.service.rolling_back.roll_back(next(iter(h.service.tables)), int(made[1][0]["snapshot-id"]), True, h.until())
            await h.flush()
            capsys.readouterr()
            assert run(["snapshots", "default.t", "--json", *data]) == 0
            listed = json.loads(capsys.readouterr().out)
            assert [one["mark"] for one in listed] == ["", f"rewind to {made[1][0]['snapshot-id']}", "", "foreign", "", "", ""]
            assert [one["time"] for one in listed] == sorted((one["time"] for one in listed), reverse=True)
            assert [ref["name"] for ref in listed[0]["refs"]] == ["main"]
            assert {"name": "good", "type": "tag"} in listed[-2]["refs"]
            assert listed[-3]["lsns"] == {"s": "0/200"}
            assert [one["totalRows"] for one in listed[-3:]] == [len(rows) for _, rows in reversed(made)]
            assert listed[1]["operation"] == "overwrite"
            assert listed[1]["offsets"] == listed[-2]["offsets"]
            assert run(["snapshots", "t", "--limit", "2", *data]) == 0
            shown = capsys.readouterr().out
            assert str(listed[0]["id"]) in shown
            assert str(listed[2]["id"]) not in shown
            assert run(["snapshots", "none", *data]) == 2
            assert run(["tags", "list", "t", "--json", *data]) == 0
            (good,) = [one for one in json.loads(capsys.readouterr().out) if one["name"] == "good"]
            assert good["snapshot"] == made[1][0]["snapshot-id"]
            assert 2.9 * 86_400_000 < good["goesAt"] - h.runtime.clock.now_ms() < 3.1 * 86_400_000

    play(scenario)
