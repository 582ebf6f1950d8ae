"""Damage to what a table is made of is found and named, whatever it is; the writer half goes on with every other table."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pytest
from pyiceberg.catalog.sql import SqlCatalog

import dolake.iceberg.access
import dolake.iceberg.commit
import dolake.iceberg.contents
from dolake.cli import run
from dolake.iceberg.contents import ContentsReader
from dolake.verify import Breach
from tests.verify.bits import FLIPS, MADE_OF, T, U, files_of_rows, flipped, flips_in_descriptions, flips_in_rows, made_of, two_tables
from tests.verify.damage import lake, opened, verified
from tests.writer.half import half, settings_of
from tests.writer.test_mirrors import insert, update


@pytest.fixture
def data(tmp_path: Path) -> Path:
    lake(tmp_path, two_tables)
    return tmp_path


HOW: dict[str, Callable[[bytes], bytes | None]] = {
    "gone": lambda content: None,
    "cut": lambda content: content[: len(content) // 2],
    "zero": lambda content: bytes(len(content)),
    "empty": lambda content: b"",
    "garbage": lambda content: b"this is something else",
}


def damage(path: Path, how: str) -> None:
    content = HOW[how](path.read_bytes())
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)


def set_row(data: Path, location: str | None) -> None:
    with contextlib.closing(sqlite3.connect(settings_of(data).catalog_path)) as catalog:
        catalog.execute("UPDATE iceberg_tables SET metadata_location = ? WHERE table_name = 't'", (location,))
        catalog.commit()


def test_every_flipped_bit_in_data_and_delete_files_is_found_and_named(data: Path) -> None:
    assert len(files_of_rows(data)) > 4
    assert [flip for flip in flips_in_rows(data, FLIPS) if flip.complaint] == []
    assert verified(data).breaches == []


@pytest.mark.acceptance("AT-109")
@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("what", MADE_OF)
def test_damage_ends_verify_with_4_and_names_the_file(data: Path, what: str, how: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = made_of(data, what)
    damage(path, how)
    capsys.readouterr()
    assert run(["verify", "--data", str(data)]) == 4
    said = capsys.readouterr().out
    assert [line for line in said.splitlines() if line.startswith("I10 default.t: ")]
    assert path.name in said
    assert "default.u" not in said
    assert run(["verify", "default.u", "--data", str(data)]) == 0


@pytest.mark.acceptance("AT-109")
@pytest.mark.parametrize("location", [None, "", "no location", "s3://elsewhere/x.metadata.json", "file:///etc/passwd", "file://{}/x.json"])
def test_a_damaged_row_of_the_catalog_ends_verify_with_4_and_is_named(
    data: Path, location: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    set_row(data, location and location.format(data / "warehouse"))
    capsys.readouterr()
    assert run(["verify", "--data", str(data)]) == 4
    said = capsys.readouterr().out
    assert "I10 default.t: cannot be loaded: " in said
    assert "catalog" in said
    assert "default.u" not in said
    assert run(["verify", "default.t", "--data", str(data)]) == 4
    assert "default.t" in capsys.readouterr().err


def test_a_table_of_others_in_a_shared_catalog_is_passed_over_and_hides_nothing(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nor does it keep anybody from looking whether the logs were trimmed too far (I6)."""
    elsewhere = SqlCatalog("dolake", uri=f"sqlite:///{settings_of(data).catalog_path}", warehouse=f"file://{data}/elsewhere")
    elsewhere.create_table("default.stranger", schema=pa.schema([("id", pa.int64())]))
    elsewhere.close()
    capsys.readouterr()
    assert run(["verify", "--data", str(data)]) == 0
    assert "note default.stranger: not verified: the catalog keeps its files at " in capsys.readouterr().out
    assert run(["tables", "--data", str(data)]) == 0
    listed = capsys.readouterr().out
    assert "default.u" in listed
    assert "stranger" not in listed
    assert run(["verify", "default.stranger", "--data", str(data)]) == 5
    assert "set warehouse.uri to a folder that holds both" in capsys.readouterr().err

    def trimmed(*_: object) -> Iterator[Breach]:
        yield Breach("I6", "log", "looked at")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dolake.verify.lake.verify_trimmed", trimmed)
        assert verified(data).invariants == [("I6", "log")]


@pytest.mark.parametrize("what", MADE_OF)
def test_whatever_bit_is_flipped_in_what_describes_a_table_nobody_falls_over(data: Path, what: str) -> None:
    flips = list(flips_in_descriptions(data, what, FLIPS))
    assert [flip for flip in flips if flip.complaint] == []
    assert sum(flip.is_found for flip in flips) > FLIPS // 2
    assert verified(data).breaches == []


@pytest.mark.parametrize("of", ["current-schema-id", "default-spec-id", "default-sort-order-id"])
def test_metadata_that_names_what_it_does_not_have_is_damage(data: Path, of: str) -> None:
    """A flipped bit of the number is enough for that: PyIceberg refuses it with an error of its own kind."""
    path = made_of(data, "metadata")
    metadata = json.loads(path.read_bytes())
    path.write_text(json.dumps({**metadata, of: metadata[of] + 64}))
    assert [breach for breach in verified(data).breaches if "cannot be loaded" in str(breach) and path.name in str(breach)]


@pytest.mark.parametrize(("kind", "code"), [("data", 0), ("position deletes", 1)])
def test_a_manifest_that_takes_one_kind_of_file_for_another_is_found(
    data: Path, kind: str, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A single bit of it is enough for that."""
    monkeypatch.setitem(dolake.iceberg.contents._KINDS, 1 - code, kind)  # Whatever is of the other kind is taken for this one.
    assert ("I10", "default.t") in verified(data).invariants


@contextlib.contextmanager
def nothing_put_away(data: Path) -> Iterator[None]:
    """The writer that starts has no key index, and reads what the table is made of."""
    for path in sorted((data / "index").rglob("*"), reverse=True):
        if path.is_file():
            path.unlink()
    yield


@pytest.mark.acceptance("AT-109")
@pytest.mark.parametrize("what", [*MADE_OF, "catalog row"])
def test_a_writer_stops_the_damaged_table_names_the_object_and_serves_the_others(
    data: Path, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (dolake.iceberg.access, dolake.iceberg.commit):
        monkeypatch.setattr(module, "DAMAGED_TRIES_MAX", 2)  # What came damaged is read again for half a minute before it is believed.
    named = "the row of default.t"
    if what == "catalog row":
        set_row(data, "nonsense")
    else:
        path = made_of(data, what)
        named = path.name
        damage(path, "cut")

    async def work() -> None:
        async with half(data, mode="mirror", stop_cleanly=False) as h:
            h.hand.change(update(5, "late"), table="t", source="late")
            h.hand.change(insert(7, "late"), table="u", source="late")
            answer = await h.flush("u")
            assert answer["success"], answer
            assert h.mirrored("default.u").keys() == {0, 1, 2, 7}
            answer = await h.flush("t")
            assert not answer["success"]
            assert named in answer["error"], answer
            stopped = h.service.tables[T].stopped
            assert stopped is not None
            assert named in stopped.reason
            assert not h.running.done()

    with nothing_put_away(data):
        asyncio.run(work())


@pytest.mark.acceptance("AT-109")
def test_a_damaged_key_index_is_made_anew(data: Path) -> None:
    """It is derived: nobody has to bring it back, and no row comes out wrong."""
    saved = [path for path in sorted((data / "index").rglob("*")) if path.is_file() and path.stat().st_size]
    assert saved
    for path in saved:
        path.write_bytes(flipped(path.read_bytes(), 4 * path.stat().st_size))

    async def work() -> None:
        async with half(data, mode="mirror") as h:
            h.hand.change(update(5, "late"), insert(99), table="t", source="late")
            answer = await h.flush("t")
            assert answer["success"], answer
            rows = h.mirrored()
            assert rows[5]["note"] == "late"
            assert 3 not in rows

    asyncio.run(work())
    assert verified(data).breaches == []


def test_a_contents_reader_reads_what_is_whole(data: Path) -> None:
    with opened(data) as (store, catalog):
        table = catalog.load(U)
        assert table is not None
        assert table.head is not None
        assert [file.row_count for file in ContentsReader(store).read(table.head).files] == [3]
