"""Files read back by DuckDB, PyIceberg and pyarrow, every value exact."""

from __future__ import annotations

import json
import math
import mmap
import random
import zlib
from datetime import UTC, date, datetime, time
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import google_crc32c
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyiceberg.schema import Schema

from dolake.iceberg.names import data_file_location
from dolake.iceberg.plan import NewFile
from dolake.parquet.align import schema_as_json
from dolake.parquet.encode import Encoding, encode_parquet, split_by_partition
from dolake.parquet.rows import ChangelogDecoder
from dolake.storage.memory import GrownBytes
from tests.iceberg.lake import TABLE, Lake, duckdb_with_iceberg

from .events import chunk_of, event, schema_of

TEXT_1_MB = "ä🚀" * 170_000
# AT-13: column type, JSON as a source sends it, the value that every reader must find.
CASES: dict[str, tuple[str, str, Any]] = {
    "null": ("string", "null", None),
    "empty": ("string", '""', ""),
    "unicode of 4 bytes": ("string", '"🚀\\ud83d\\ude80"', "🚀🚀"),
    "right to left": ("string", '"שלום عالم"', "שלום عالم"),
    "NUL": ("string", '"a\\u0000b"', "a\0b"),
    "quotes and newlines": ("string", '"\\"\\\\\\n\\t\'"', "\"\\\n\t'"),
    "10 KB": ("string", json.dumps("x" * 10_240), "x" * 10_240),
    "1 MB": ("string", json.dumps(TEXT_1_MB, ensure_ascii=False), TEXT_1_MB),
    "boolean": ("boolean", "false", False),
    "int": ("int", "-2147483648", -(2**31)),
    "long min": ("long", "-9223372036854775808", -(2**63)),
    "long max": ("long", "9223372036854775807", 2**63 - 1),
    "2^53+1": ("long", "9007199254740993", 2**53 + 1),
    "decimal(9,2)": ("decimal(9,2)", "-1234567.89", Decimal("-1234567.89")),
    "decimal(18,4)": ("decimal(18,4)", '"12345678901234.5678"', Decimal("12345678901234.5678")),
    "decimal(38,10)": ("decimal(38,10)", "1234567890123456789012345678.0123456789", Decimal("1234567890123456789012345678.0123456789")),
    "double NaN": ("double", '"NaN"', math.nan),
    "double inf": ("double", '"-Infinity"', -math.inf),
    "float": ("float", "0.1", 0.10000000149011612),
    "date": ("date", '"0001-01-01"', date(1, 1, 1)),
    "time": ("time", '"23:59:59.999999"', time(23, 59, 59, 999999)),
    "timestamp": ("timestamp", '"9999-12-31 23:59:59.999999"', datetime(9999, 12, 31, 23, 59, 59, 999999)),
    "timestamptz": ("timestamptz", '"2026-11-20 15:30:18.125015+05:30"', datetime(2026, 11, 20, 10, 0, 18, 125015, UTC)),
    "uuid": ("uuid", '"0b5e1f8e-8f7c-4c1e-9a51-0123456789ab"', UUID("0b5e1f8e-8f7c-4c1e-9a51-0123456789ab")),
    "binary": ("binary", '"AP8Q"', b"\x00\xff\x10"),
    "fixed": ("fixed(3)", '"AP8Q"', b"\x00\xff\x10"),
    "json": ("json", '{"k":[1, 2.50,"🚀"]}', '{"k":[1, 2.50,"🚀"]}'),
    "list": ("list<decimal(4,1)>", "[1.5,null]", [Decimal("1.5"), None]),
    "list of uuids": ("list<uuid>", '["0b5e1f8e-8f7c-4c1e-9a51-0123456789ab"]', [UUID("0b5e1f8e-8f7c-4c1e-9a51-0123456789ab")]),
    "struct": ("struct<a: long, b: list<date>>", '{"a":null,"b":["2026-11-20"]}', {"a": None, "b": [date(2026, 11, 20)]}),
    "timestamptz in a list": ("list<timestamptz>", '["2026-11-20T10:00Z"]', [datetime(2026, 11, 20, 10, tzinfo=UTC)]),
    "map": ("map<string, double>", '[["a",1],["b",null]]', {"a": 1.0, "b": None}),
}


def columns_of(rows: pa.Table, *names: str) -> list[pa.ChunkedArray]:
    return [rows.column(name) for name in names]


def lake_of(tmp_path: Path, schema: Schema, rows: pa.Table, partition_by: tuple[str, ...] = ()) -> Lake:
    fields = [
        {"source-id": schema.find_field(name).field_id, "field-id": 1000 + place, "name": name, "transform": "identity"}
        for place, name in enumerate(partition_by)
    ]
    lake = Lake(tmp_path, schema=schema_as_json(schema), spec={"spec-id": 0, "fields": fields} if fields else None)
    files = []
    for number, (values, part) in enumerate(split_by_partition(rows, columns_of(rows, *partition_by))):
        file = encode_parquet(part)
        data = bytes(file.data)
        location = data_file_location(lake.table.location, 1, f"{number:032x}", google_crc32c.value(data))
        lake.store.put(location, data)
        files.append(NewFile(location, len(data), file.row_count, file.metadata, values))
    lake.commit(lake.delta(0, 5, rows=[], files=tuple(files)))
    return lake


def by_duckdb_from(lake: Lake) -> pa.Table:
    # As Arrow: DuckDB needs another package to make Python's moments with a zone.
    duck = duckdb_with_iceberg()
    duck.execute("SET arrow_lossless_conversion = true")  # uuids as uuids
    found = duck.execute(f"SELECT * FROM iceberg_scan('{lake.current().metadata_location}')")
    return found.to_arrow_table()


def plain(value: Any) -> Any:
    """Readers differ in how they show maps, uuids and bytes; not in what they are."""
    if isinstance(value, list) and value and isinstance(value[0], tuple):
        return {key: plain(one) for key, one in value}
    if isinstance(value, list):
        return [plain(one) for one in value]
    if isinstance(value, dict):
        return {key: plain(one) for key, one in value.items()}
    if isinstance(value, datetime) and value.tzinfo is not None:
        return value.astimezone(UTC)
    if isinstance(value, float) and math.isnan(value):
        return "NaN"
    return bytes(value) if isinstance(value, bytearray | memoryview) else value


@pytest.fixture(scope="module")
def read_back(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, list[Any]]]:
    """Every case as a column of one table, read by each reader; a row with the values, one with nulls."""
    names = {f"c{place}": name for place, name in enumerate(CASES)}
    schema = schema_of(**{column: CASES[name][0] for column, name in names.items()})
    chunk = chunk_of(event({column: CASES[name][1] for column, name in names.items()}), event())
    rows = ChangelogDecoder(str(TABLE), schema).decode([chunk]).rows
    lake = lake_of(tmp_path_factory.mktemp("lake"), schema, rows)
    try:
        by_pyiceberg = lake.plain_table().scan().to_arrow().to_pydict()
        by_duckdb = by_duckdb_from(lake).to_pydict()
        (file,) = Path(lake.store.root.removeprefix("file://")).rglob("*.parquet")
        by_pyarrow = pq.read_table(file).to_pydict()
    finally:
        lake.close()
    readers = {"pyiceberg": by_pyiceberg, "duckdb": by_duckdb, "pyarrow": by_pyarrow}
    return {reader: {name: columns[column] for column, name in names.items()} for reader, columns in readers.items()}


@pytest.mark.acceptance("AT-13")
@pytest.mark.parametrize("reader", ["pyiceberg", "duckdb", "pyarrow"])
@pytest.mark.parametrize("case", list(CASES))
def test_every_type_comes_back_exactly(read_back: dict[str, dict[str, list[Any]]], case: str, reader: str) -> None:
    expected = plain(CASES[case][2])
    found = [plain(value) for value in read_back[reader][case]]
    assert found == [expected, None]
    assert type(found[0]) is type(expected)


def rows_of(*values: str, kind: str = "string", **more: str) -> tuple[Schema, pa.Table]:
    schema = schema_of(x=kind, n="int")
    events = [event({"x": value, "n": str(place)}, **more) for place, value in enumerate(values)]
    return schema, ChangelogDecoder(str(TABLE), schema).decode([chunk_of(*events)]).rows


def test_the_file_is_what_iceberg_asks_for() -> None:
    schema = schema_of(u="uuid", small="decimal(9,2)", large="decimal(18,2)", huge="decimal(38,2)", at="timestamptz", l="list<int>")
    values = {
        "u": '"0b5e1f8e-8f7c-4c1e-9a51-0123456789ab"',
        "small": "1",
        "large": "1",
        "huge": "1",
        "at": '"2026-11-20 10:00Z"',
        "l": "[1]",
    }
    file = encode_parquet(ChangelogDecoder(str(TABLE), schema).decode([chunk_of(event(values))]).rows)
    parquet = pq.ParquetFile(pa.BufferReader(file.data)).schema
    columns = {parquet.column(place).path: parquet.column(place) for place in range(len(parquet))}
    assert (columns["u"].physical_type, columns["u"].length, str(columns["u"].logical_type)) == ("FIXED_LEN_BYTE_ARRAY", 16, "UUID")
    assert [columns[name].physical_type for name in ("small", "large", "huge")] == ["INT32", "INT64", "FIXED_LEN_BYTE_ARRAY"]
    assert "timeUnit=microseconds" in str(columns["at"].logical_type)
    assert "isAdjustedToUTC=true" in str(columns["at"].logical_type)
    assert "_cdc_unchanged.list.element" in columns
    ids = {int(field.metadata[b"PARQUET:field_id"]) for field in parquet.to_arrow_schema()}
    assert ids == {field.field_id for field in schema.fields}
    assert file.metadata.num_rows == file.row_count == 1
    assert file.metadata.row_group(0).column(0).statistics.has_min_max
    assert pq.ParquetFile(pa.BufferReader(file.data)).metadata.metadata is None


def test_every_page_carries_a_checksum_that_notices_a_flipped_bit() -> None:
    _, rows = rows_of(*(f'"{zlib.crc32(str(n).encode())}"' for n in range(2000)))
    file = encode_parquet(rows)
    column = next(c for c in (file.metadata.row_group(0).column(i) for i in range(file.metadata.num_columns)) if c.path_in_schema == "x")
    flipped = bytearray(file.data)
    flipped[column.data_page_offset + column.total_compressed_size - 5] ^= 1
    with pytest.raises(OSError, match="CRC checksum verification failed"):
        pq.read_table(pa.BufferReader(bytes(flipped)), page_checksum_verification=True)


def test_dictionaries_are_where_values_repeat() -> None:
    def encodings(*values: str, kind: str) -> bool:
        file = encode_parquet(rows_of(*values, kind=kind)[1])
        group = file.metadata.row_group(0)
        columns = [group.column(place) for place in range(group.num_columns)]
        assert "RLE_DICTIONARY" in next(one for one in columns if one.path_in_schema == "_cdc_operation").encodings
        return "RLE_DICTIONARY" in next(one for one in columns if one.path_in_schema == "x").encodings

    assert encodings(*(f'"{n % 7}"' for n in range(5000)), kind="string")
    assert not encodings(*(f'"{n}"' for n in range(5000)), kind="string")
    assert not encodings(*(str(n % 7) for n in range(5000)), kind="long")
    assert encodings(*["null"] * 100, kind="string")


def test_large_rows_make_small_row_groups() -> None:
    _, rows = rows_of(*[json.dumps("x" * 1_000_000)] * 130)
    file = encode_parquet(rows)
    assert file.metadata.num_row_groups == 4
    assert sum(file.metadata.row_group(place).num_rows for place in range(4)) == 130


@pytest.mark.parametrize("can_be_moved", [True, False])
def test_a_large_file_has_the_same_bytes_however_it_grows(can_be_moved: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chance's bytes, which no codec makes smaller: the room is grown again and again."""
    room = mmap.mmap

    class Fixed(mmap.mmap):
        def resize(self, _: int) -> None:
            raise SystemError("mmap: resizing not available--no mremap()")

    monkeypatch.setattr(mmap, "mmap", room if can_be_moved else Fixed)
    rows = pa.table({"x": [random.Random(number).randbytes(50_000) for number in range(100)]})
    files = []
    for into in (GrownBytes(), None):
        encoding = Encoding(rows, into)
        for start in range(0, 100, 10):
            encoding.write(rows.slice(start, 10))
        files.append(encoding.finish({"of": "chance"}))
    assert bytes(files[0].data) == bytes(files[1].data)
    assert len(files[0].data) > 5_000_000
    assert files[0].metadata.equals(files[1].metadata)
    assert pq.read_table(pa.BufferReader(files[0].data)).equals(rows)


def test_no_rows_are_a_file_too() -> None:
    _, rows = rows_of('"a"')
    file = encode_parquet(rows.slice(0, 0))
    assert (file.row_count, pq.read_table(pa.BufferReader(file.data)).num_rows) == (0, 0)


def test_rows_from_different_calls_are_one_file() -> None:
    schema = schema_of(x="long")
    chunks = [chunk_of(event({"x": "1"}, operation=kind), source=name, log=name) for kind, name in (("INSERT", "a"), ("DELETE", "b"))]
    rows = pa.concat_tables([ChangelogDecoder(str(TABLE), schema).decode([chunk]).rows for chunk in chunks])
    found = pq.read_table(pa.BufferReader(encode_parquet(rows).data))
    assert found.column("_cdc_source").to_pylist() == ["a", "b"]
    assert found.column("_cdc_operation").to_pylist() == ["INSERT", "DELETE"]


def test_a_column_of_few_values_stays_small_over_many_calls() -> None:
    schema = schema_of(x="long")
    pieces = [
        ChangelogDecoder(str(TABLE), schema).decode([chunk_of(*[event({"x": "1"})] * 1000, source=f"database-{n}")]).rows for n in range(4)
    ]
    file = encode_parquet(pa.concat_tables(pieces))
    group = file.metadata.row_group(0)
    (source,) = (one for one in (group.column(place) for place in range(group.num_columns)) if one.path_in_schema == "_cdc_source")
    assert source.total_uncompressed_size < file.row_count


def test_partitions_keep_the_order_of_their_rows() -> None:
    schema = schema_of(day="date", n="int")
    days = ["2026-11-20", "2026-11-21", None, "2026-11-20", None]
    events = [event({"day": json.dumps(day), "n": str(place)}) for place, day in enumerate(days)]
    rows = ChangelogDecoder(str(TABLE), schema).decode([chunk_of(*events)]).rows
    found = split_by_partition(rows, columns_of(rows, "day"))
    assert [(values, part.column("n").to_pylist()) for values, part in found] == [((20777,), [0, 3]), ((20778,), [1]), ((None,), [2, 4])]
    assert all(part.schema.equals(rows.schema, check_metadata=True) for _, part in found)


def test_many_partitions_of_many_pieces_are_gathered_at_once() -> None:
    """Pieces with dictionaries of their own; a thousand partitions, each a stretch of one table, its rows in their order."""
    schema = schema_of(key="int", n="int")
    pieces = []
    for number in range(4):
        events = [event({"key": str(place * 7 % 1000), "n": str(number * 1000 + place)}) for place in range(1000)]
        pieces.append(ChangelogDecoder(str(TABLE), schema).decode([chunk_of(*events, source=f"database-{number}")]).rows)
    rows = pa.concat_tables(pieces)
    found = split_by_partition(rows, columns_of(rows, "key"))
    assert [values[0] for values, _ in found] == [place * 7 % 1000 for place in range(1000)]
    for place, (_, part) in enumerate(found):
        assert part.column("n").to_pylist() == [number * 1000 + place for number in range(4)]
        assert part.column("_cdc_source").to_pylist() == [f"database-{number}" for number in range(4)]
    buffers = {part.column("n").chunk(0).buffers()[1].address for _, part in found}
    assert len(buffers) == 1


def test_one_partition_is_the_table_itself() -> None:
    _, rows = rows_of('"a"', '"a"')
    assert split_by_partition(rows, []) == [((), rows)]
    ((values, part),) = split_by_partition(rows, columns_of(rows, "x", "_cdc_source"))
    assert values == ("a", "db")
    assert part is rows
    assert split_by_partition(rows.slice(0, 0), columns_of(rows.slice(0, 0), "x")) == []


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        ("string", ['"a"', '""', "null", '"ä/b=c"']),
        ("long", ["1", "-9223372036854775808", "null"]),
        ("boolean", ["true", "false"]),
        ("date", ['"2026-11-20"', '"0001-01-01"']),
        ("timestamp", ['"2026-11-20 10:00:00.000001"', '"0001-01-01 00:00:00"']),
        ("timestamptz", ['"2026-11-20 10:00:00.000001+00"', "null"]),
        ("time", ['"10:00:00.000001"']),
        ("uuid", ['"0b5e1f8e-8f7c-4c1e-9a51-0123456789ab"', "null"]),
        ("decimal(12,2)", ["1.50", "-0.01"]),
        ("binary", ['"AP8="', '""']),
        ("double", ["1.5", "-0.0"]),
    ],
)
def test_partitions_of_every_type_can_be_committed_and_found(tmp_path: Path, kind: str, values: list[str]) -> None:
    schema, rows = rows_of(*values, *values, kind=kind)
    lake = lake_of(tmp_path, schema, rows, ("x",))
    try:
        assert len(split_by_partition(rows, columns_of(rows, "x"))) == len(values)
        found = lake.plain_table().scan().to_arrow()
        assert sorted(found.column("n").to_pylist()) == list(range(2 * len(values)))
        expected = {row["n"]: plain(row["x"]) for row in rows.to_pylist()}
        assert {row["n"]: plain(row["x"]) for row in found.to_pylist()} == expected
        assert {row["n"]: plain(row["x"]) for row in by_duckdb_from(lake).to_pylist()} == expected
    finally:
        lake.close()
