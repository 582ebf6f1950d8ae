"""What pyarrow does not check, reads wrong, or dies of. More of its JSON reader, value by value, is in `tests/parquet/test_fast.py`."""

from __future__ import annotations

import signal
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json
import pyarrow.parquet as pq
import pytest

from tests.contracts.child import run

NUMBERS = pa.table({"x": pa.array(range(1000), pa.int64())})


def parquet_with_a_flipped_bit(path: Path) -> Path:
    """500 has become 501; the page's checksum is that of 500."""
    pq.write_table(NUMBERS, path, compression="none", use_dictionary=False, write_page_checksum=True)
    data = bytearray(path.read_bytes())
    data[data.index((500).to_bytes(8, "little"))] ^= 1
    path.write_bytes(data)
    return path


def test_page_checksums_are_not_looked_at_unless_asked(tmp_path: Path) -> None:
    """A flipped bit is read as a value (I15: `parquet/decode.py` asks, and so does whoever rewrites)."""
    path = parquet_with_a_flipped_bit(tmp_path / "f.parquet")
    assert pq.read_table(path).column("x")[500].as_py() == 501, "checksums are verified by default now"
    with pytest.raises(OSError, match="CRC"):
        pq.ParquetFile(path, page_checksum_verification=True).read()


def test_page_checksums_are_not_written_unless_asked(tmp_path: Path) -> None:
    """`parquet/encode.py` asks."""
    sizes = []
    for asked in ({}, {"write_page_checksum": False}, {"write_page_checksum": True}):
        pq.write_table(NUMBERS, tmp_path / "f.parquet", compression="none", use_dictionary=False, **asked)
        sizes.append((tmp_path / "f.parquet").stat().st_size)
    assert sizes[0] == sizes[1] < sizes[2], "a checksum takes a few bytes"


def test_a_dictionary_comes_back_as_one_where_arrows_schema_is_stored(tmp_path: Path) -> None:
    """`parquet/encode.py` writes without it, so that readers see the table's types."""
    table = pa.table({"x": pa.array(["a", "b", "a"]).dictionary_encode()})
    found = []
    for stored in (True, False):
        pq.write_table(table, tmp_path / "f.parquet", store_schema=stored)
        found.append(pq.read_table(tmp_path / "f.parquet").schema.field("x").type)
    assert [pa.types.is_dictionary(kind) for kind in found] == [True, False]


def test_extension_types_cannot_be_grouped_by() -> None:
    """`parquet/encode.py` groups by what they are stored as."""
    table = pa.table({"u": pa.array([bytes(16)], pa.uuid())})
    with pytest.raises(pa.ArrowNotImplementedError):
        table.group_by("u", use_threads=False).aggregate([])


def test_there_is_no_cast_from_text_to_a_time() -> None:
    """`parquet/convert.py` puts a day in front and casts to a timestamp."""
    with pytest.raises(pa.ArrowNotImplementedError):
        pc.cast(pa.array(["12:00:00"]), pa.time64("us"))


_READ = """
import sys
import pyarrow as pa, pyarrow.json
options = pyarrow.json.ParseOptions(explicit_schema=pa.schema([("x", {kind})]), unexpected_field_behavior="error")
print(pyarrow.json.read_json(pa.BufferReader(sys.argv[1].encode()), parse_options=options).column("x").to_pylist())
"""


@pytest.mark.parametrize(
    ("kind", "text"),
    [("pa.int64()", 'null\n{"x":1}'), ("pa.decimal128(12, 2)", '{"x":1e-1000000000}'), ("pa.decimal128(12, 2)", '{"x":"1e-1000000000"}')],
    ids=["a leading null", "a tiny decimal", "a tiny decimal in quotes"],
)
def test_its_json_reader_dies_of_this(kind: str, text: str) -> None:
    """Not an exception: the process ends (`_begins_as_object` and `_decimals_are_tame` in `parquet/fast.py` keep it away)."""
    done = run(_READ.format(kind=kind), text)
    assert done.returncode in (-signal.SIGSEGV, -signal.SIGABRT, -signal.SIGBUS), f"it lives: {done.stdout} {done.stderr}"


def read(kind: pa.DataType, *values: bytes) -> list[object]:
    options = pyarrow.json.ParseOptions(explicit_schema=pa.schema([("x", kind)]), unexpected_field_behavior="error")
    text = b"\n".join(b'{"x":%b}' % value for value in values)
    return list(pyarrow.json.read_json(pa.BufferReader(text), parse_options=options).column("x").to_pylist())


def test_it_takes_bytes_that_are_no_text() -> None:
    """And hands them on as a string (`_is_utf8` in `parquet/fast.py`)."""
    options = pyarrow.json.ParseOptions(explicit_schema=pa.schema([("x", pa.string())]))
    column = pyarrow.json.read_json(pa.BufferReader(b'{"x":"\xff"}'), parse_options=options).column("x")
    with pytest.raises(pa.ArrowInvalid, match="UTF8"):
        column.validate(full=True)


def test_it_passes_over_a_byte_order_mark() -> None:
    """Which no decoder of ours does (`_begins_as_object`)."""
    assert pyarrow.json.read_json(pa.BufferReader(b'\xef\xbb\xbf{"x":1}')).column("x").to_pylist() == [1]


def test_it_takes_words_that_are_no_json_for_numbers() -> None:
    """`_refuse_non_finite` in `parquet/fast.py`."""
    found = read(pa.float64(), b"NaN", b"Infinity", b"-Inf")
    assert [str(value) for value in found] == ["nan", "inf", "-inf"]


def test_it_lets_decimals_have_more_digits_than_their_column() -> None:
    """`convert` in `parquet/convert.py` validates them."""
    assert [str(value) for value in read(pa.decimal128(12, 2), b"12345678901")] == ["12345678901.00"]


def test_it_multiplies_decimals_past_their_width() -> None:
    """1e30 comes out as another number (`read_type` in `parquet/convert.py` gives it room)."""
    assert read(pa.decimal128(38, 10), b"1e30") != [10**30]
    assert read(pa.decimal256(38, 10), b"1e28") == [10**28]


def test_it_loses_the_digits_of_a_tiny_decimal() -> None:
    """1e-77 is read as 0.00 instead of refused (`_decimals_are_tame`)."""
    assert [str(value) for value in read(pa.decimal128(12, 2), b"1e-77")] == ["0.00"]


def test_it_moves_a_timestamp_by_a_zone_that_its_type_does_not_have() -> None:
    """And takes a missing zone for UTC (`parquet/convert.py` reads moments as text)."""
    moved, same = read(pa.timestamp("us"), b'"2026-11-20 10:00:00+05:00"', b'"2026-11-20 05:00:00"')
    assert moved == same
    assert read(pa.timestamp("us", "UTC"), b'"2026-11-20 10:00:00"') != [None]
