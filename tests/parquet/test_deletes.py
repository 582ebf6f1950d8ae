"""Position-delete files: sorted, whole, and read by others as they are by us."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dolake.parquet.decode import read_checked
from dolake.parquet.deletes import decode_deletes, encode_deletes, positions_by_file, without_rows

PATHS = ["s3://b/t/ü.parquet", "s3://b/t/\U0001f600.parquet", "s3://b/t/\uffee.parquet", "s3://b/t/a.parquet", "s3://b/t/unused.parquet"]


def deletes(seed: int = 1, count: int = 50_000) -> tuple[np.ndarray, np.ndarray]:
    drawn = np.random.default_rng(seed)
    return drawn.integers(0, 4, count), drawn.permutation(count).astype(np.int64) << 20


def test_rows_come_sorted_by_the_bytes_of_their_path_and_then_by_position(tmp_path: Path) -> None:
    places, positions = deletes()
    file = encode_deletes(PATHS, places, positions)
    wanted = sorted((PATHS[place].encode(), position) for place, position in zip(places.tolist(), positions.tolist(), strict=True))
    found = [(row["file_path"].encode(), row["pos"]) for row in decode_deletes(bytes(file.data)).to_pylist()]
    assert found == wanted
    assert file.row_count == len(wanted)
    (tmp_path / "deletes.parquet").write_bytes(file.data)
    rows = duckdb.sql(f"SELECT file_path, pos FROM '{tmp_path}/deletes.parquet'").fetchall()
    assert [(path.encode(), position) for path, position in rows] == wanted


def test_a_file_is_what_the_specification_asks_for() -> None:
    file = encode_deletes(PATHS, *deletes())
    plain = pq.read_table(BytesIO(file.data))
    assert plain.schema.types == [pa.string(), pa.int64()]
    assert [(field.name, field.nullable, field.metadata) for field in plain.schema] == [
        ("file_path", False, {b"PARQUET:field_id": b"2147483546"}),
        ("pos", False, {b"PARQUET:field_id": b"2147483545"}),
    ]
    columns = [file.metadata.row_group(0).column(place) for place in (0, 1)]
    assert (columns[0].statistics.min, columns[0].statistics.max) == (PATHS[3], PATHS[1])
    assert "RLE_DICTIONARY" in columns[0].encodings
    assert "PLAIN" in columns[1].encodings
    assert {column.compression for column in columns} == {"ZSTD"}
    assert decode_deletes(bytes(file.data)).schema.field("file_path").type == pa.dictionary(pa.int32(), pa.string())


def test_every_page_has_a_checksum() -> None:
    data = bytearray(encode_deletes(PATHS, *deletes()).data)
    data[2000] ^= 1
    with pytest.raises((pa.ArrowException, OSError), match=r"(?i)crc|checksum"):
        list(read_checked(bytes(data)))


def test_a_file_by_another_program_is_read_whatever_else_it_holds() -> None:
    buffer = BytesIO()
    pq.write_table(pa.table({"row": [{"id": 1}], "pos": [7], "file_path": ["x"]}), buffer)
    assert decode_deletes(buffer.getvalue()).to_pylist() == [{"file_path": "x", "pos": 7}]


@pytest.mark.parametrize("columns", [{"id": [1]}, {"file_path": ["x"]}, {"pos": [1]}])
def test_a_file_that_is_none_of_position_deletes_is_refused_and_says_what_it_has(columns: dict[str, list[object]]) -> None:
    buffer = BytesIO()
    pq.write_table(pa.table(columns), buffer)
    with pytest.raises(pa.ArrowInvalid, match=f"this file has {next(iter(columns))}"):
        decode_deletes(buffer.getvalue())


@pytest.mark.parametrize(
    ("places", "positions"),
    [([], []), ([0], [1, 2]), ([5], [1]), ([-1], [1]), ([0], [-1])],
    ids=["none", "uneven", "no file", "below", "no row"],
)
def test_what_cannot_be_deleted_is_refused(places: list[int], positions: list[int]) -> None:
    with pytest.raises(ValueError, match="places"):
        encode_deletes(PATHS, np.array(places, np.int64), np.array(positions, np.int64))


def test_positions_of_several_files_are_gathered_by_data_file_each_once() -> None:
    drawn = [deletes(seed, 1000) for seed in (1, 2, 1)]
    wanted: dict[str, set[int]] = {}
    for places, positions in drawn:
        for place, position in zip(places.tolist(), positions.tolist(), strict=True):
            wanted.setdefault(PATHS[place], set()).add(position)
    found = positions_by_file([decode_deletes(bytes(encode_deletes(PATHS, *one).data)) for one in drawn])
    assert {path: positions.tolist() for path, positions in found.items()} == {path: sorted(gone) for path, gone in wanted.items()}
    assert positions_by_file([]) == {}


def test_rows_at_these_positions_are_left_out() -> None:
    table = pa.table({"n": pa.chunked_array([[0, 1], [2, 3, 4]])})
    assert without_rows(table, np.array([0, 3, 17]))["n"].to_pylist() == [1, 2, 4]
    assert without_rows(table, np.array([], np.int64)) == table
