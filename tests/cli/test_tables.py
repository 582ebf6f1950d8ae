"""`dolake tables` and `dolake inspect` without a daemon, over a lake that plain PyIceberg wrote."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pytest
from pyiceberg.catalog.sql import SqlCatalog
from pyiceberg.schema import Schema
from pyiceberg.types import ListType, LongType, NestedField, StringType

from dolake.cli import run
from tests.iceberg.lake import Lake
from tests.iceberg.mirror import Mirror
from tests.verify.damage import lake
from tests.verify.test_mirrors import three_flushes


@pytest.fixture
def data(tmp_path: Path) -> Path:
    catalog = SqlCatalog("dolake", uri=f"sqlite:///{tmp_path}/catalog.db", warehouse=f"file://{tmp_path}/warehouse")
    catalog.create_namespace("public")
    schema = Schema(NestedField(1, "n", LongType()), NestedField(2, "tags", ListType(3, StringType(), False)))
    table = catalog.create_table("public.things", schema, properties={"dolake.offset.log-a": "12", "dolake.epoch": "3"})
    table.append(pa.table({"n": [1, 2], "tags": [["a"], None]}), snapshot_properties={"dolake.commit-id": "c1"})
    table.append(pa.table({"n": [3], "tags": [None]}, schema=pa.schema({"n": pa.int64(), "tags": pa.list_(pa.string())})))
    catalog.engine.dispose()
    return tmp_path


def test_tables_says_how_far_each_is_committed(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["tables", "--data", str(data), "--json"]) == 0
    (table,) = json.loads(capsys.readouterr().out)
    assert table.pop("bytes") > 0
    assert table.pop("lastCommitTime") > 0
    assert table == {
        "table": "public.things",
        "mode": "mirror",
        "rows": 3,
        "snapshots": 2,
        "files": 2,
        "deleteFiles": 0,
        "deletedRows": 0,
        "offsets": {"log-a": 12},
        "ownerEpoch": 3,
        "cut": None,
        "pendingRows": None,
        "state": None,
        "stopped": None,
        "deadLetters": 0,
        "troubles": None,
        "parked": None,
    }
    assert run(["tables", "--data", str(data)]) == 0
    shown = capsys.readouterr().out
    assert "public.things: committed log log-a below offset 12" in shown
    assert "no writer runs" in shown


def test_inspect_shows_schema_snapshots_and_files(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["inspect", "public.things", "--data", str(data), "--json"]) == 0
    table = json.loads(capsys.readouterr().out)
    assert [(column["name"], column["type"]) for column in table["columns"]] == [("n", "long"), ("tags", "list<string>")]
    assert [(snapshot["addedRows"], snapshot["totalRows"]) for snapshot in table["snapshots"]] == [(2, 2), (1, 3)]
    assert table["snapshots"][0]["dolake"] == {"commit-id": "c1"}
    assert sorted(file["rows"] for file in table["files"]) == [1, 2]
    assert table["offsets"] == {"log-a": 12}
    assert run(["inspect", "public.things", "--data", str(data)]) == 0
    shown = capsys.readouterr().out
    for part in ("list<string>", "commit-id=c1", "append", "data/", "epoch 3"):
        assert part in shown


def test_inspecting_what_is_not_there_is_refused(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["inspect", "public.nope", "--data", str(data)]) == 2
    assert "no such table" in capsys.readouterr().err


def test_rows_that_are_deleted_are_not_counted_and_delete_files_are_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lake = Lake(tmp_path)
    mirror = Mirror(lake)
    mirror.change({1: "a", 2: "b", 3: "c"})
    mirror.change({1: "d"}, [3])
    mirror.change({7: "e"}, truncate=True)
    mirror.change({}, [7])
    lake.close()
    assert run(["tables", "--data", str(tmp_path), "--json"]) == 0
    (table,) = json.loads(capsys.readouterr().out)
    assert (table["rows"], table["files"], table["deleteFiles"]) == (0, 1, 1)
    assert run(["inspect", "shop.orders", "--data", str(tmp_path), "--json"]) == 0
    table = json.loads(capsys.readouterr().out)
    counts = [(one["operation"], one["addedRows"], one["deletedRows"], one["totalRows"]) for one in table["snapshots"]]
    assert counts == [("append", 3, 0, 3), ("overwrite", 1, 2, 2), ("overwrite", 1, 2, 1), ("delete", 0, 1, 0)]
    assert [(file["kind"], file["rows"]) for file in table["files"]] == [("position deletes", 1), ("data", 1)]
    assert run(["inspect", "shop.orders", "--data", str(tmp_path)]) == 0
    assert "position deletes" in capsys.readouterr().out


def test_a_mirror_and_the_changelog_beside_it_are_listed_as_what_they_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lake(tmp_path, three_flushes, mode="both")
    capsys.readouterr()
    assert run(["tables", "--data", str(tmp_path), "--json"]) == 0
    listed = {table["table"]: table for table in json.loads(capsys.readouterr().out)}
    assert {name: (table["mode"], table["rows"]) for name, table in listed.items()} == {
        "default.t": ("mirror", 19),
        "default.t__changes": ("changelog", 28),
        "dolake.dead_letters": (None, 1),
    }
    assert (listed["default.t"]["deletedRows"], listed["default.t"]["deleteFiles"]) == (5, 2)
    assert run(["tables", "--data", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "default.t: 5 deleted rows are still in its files, 2 files say which" in shown
    assert "default.t__changes: committed log" in shown
