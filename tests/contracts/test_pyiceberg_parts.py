"""The inner parts of PyIceberg that `dolake/iceberg` is built from, and those that it replaces because they are wrong or slow."""

from __future__ import annotations

import inspect
import io
import struct
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from pyiceberg.avro import file as avro_file
from pyiceberg.avro import resolver
from pyiceberg.avro.decoder import new_decoder
from pyiceberg.catalog.sql import IcebergTables, SqlCatalog
from pyiceberg.io import pyarrow as arrow_io
from pyiceberg.io.pyarrow import PyArrowFileIO
from pyiceberg.manifest import (
    DATA_FILE_TYPE,
    MANIFEST_LIST_FILE_SCHEMAS,
    DataFile,
    DataFileContent,
    FileFormat,
    ManifestEntry,
    ManifestEntryStatus,
    ManifestFile,
    ManifestListWriterV2,
    ManifestWriterV2,
    data_file_with_partition,
    manifest_entry_schema_with_data_file,
)
from pyiceberg.partitioning import PartitionField, PartitionSpec, partition_record_value
from pyiceberg.schema import Schema, visit_with_partner
from pyiceberg.transforms import IdentityTransform
from pyiceberg.typedef import Record
from pyiceberg.types import DoubleType, IntegerType, ListType, LongType, NestedField, UUIDType
from pyiceberg.utils.schema_conversion import AvroSchemaConversion

from dolake.iceberg.entries import fetch_entries
from dolake.iceberg.file_io import StoreFileIO
from dolake.storage.local import LocalStore

SCHEMA = Schema(NestedField(1, "d", DoubleType(), required=False))
BY_DOUBLE = PartitionSpec(PartitionField(1, 1000, IdentityTransform(), "d"))


def test_its_compiled_decoder_takes_doubles_for_floats() -> None:
    """A partition value of 0.1 comes back as another (`iceberg/avro.py` reads doubles itself)."""
    decoder = new_decoder(struct.pack("<d", 0.1))
    assert type(decoder).__name__ == "CythonBinaryDecoder", "its compiled decoder is not installed: nothing is shown"
    assert decoder.read_double() != 0.1, "it reads doubles right now"


def test_its_compiled_decoder_reads_past_the_end() -> None:
    """A flipped bit in a manifest would read what lies behind it in memory, or end the process (`iceberg/avro.py` decodes itself)."""
    decoder = new_decoder(b"ab")
    assert len(decoder.read(3)) == 3, "it looks at bounds now"


def entry(partition: float, path: str = "file:///a.parquet") -> ManifestEntry:
    file = DataFile.from_args(
        content=DataFileContent.DATA,
        file_path=path,
        file_format=FileFormat.PARQUET,
        partition=Record(partition),
        record_count=1,
        file_size_in_bytes=1,
    )
    return ManifestEntry.from_args(status=ManifestEntryStatus.ADDED, snapshot_id=1, data_file=file)


def write(path: Path, count: int) -> ManifestFile:
    with ManifestWriterV2(BY_DOUBLE, SCHEMA, PyArrowFileIO().new_output(f"file://{path}"), 1, "deflate") as writer:
        for number in range(count):
            writer.add(entry(0.1, f"file:///{number}.parquet"))
    return writer.to_manifest_file()


def test_a_partition_by_double_is_read_wrong_by_it_and_right_by_us(tmp_path: Path) -> None:
    """The same with a whole manifest."""
    manifest = write(tmp_path / "m.avro", 1)
    (theirs,) = manifest.fetch_manifest_entry(PyArrowFileIO())
    (ours,) = fetch_entries(StoreFileIO(LocalStore(f"file://{tmp_path}")), manifest)
    assert theirs.data_file.partition[0] != 0.1
    assert ours.data_file.partition[0] == 0.1


def test_it_writes_every_entry_as_a_block_of_its_own(tmp_path: Path) -> None:
    """Blocks that hardly compress (`iceberg/avro.py` writes one a file)."""
    write(tmp_path / "m.avro", 5)
    data = (tmp_path / "m.avro").read_bytes()
    marker = data[-avro_file.SYNC_SIZE :]
    assert data.count(marker) == 1 + 5, "the header's and one for each entry"


def test_it_declares_equality_ids_as_longs_and_drops_the_referenced_file() -> None:
    """Spark fails on longs, and v2 has no `referenced_data_file` (`iceberg/entries.py` writes its own layout of deletes)."""
    (ids,) = [part for part in DATA_FILE_TYPE[2].fields if part.field_id == 135]
    assert isinstance(ids.field_type, ListType)
    assert isinstance(ids.field_type.element_type, LongType)
    assert 143 not in {part.field_id for part in DATA_FILE_TYPE[2].fields}
    (referenced,) = [part for part in DATA_FILE_TYPE[3].fields if part.field_id == 143]
    assert referenced.name == "referenced_data_file"


def test_it_makes_bytes_of_a_uuid_that_it_does_not_read_back() -> None:
    """A uuid's partition value is written as it is given (`iceberg/partition.py`, `_stored`)."""
    schema = Schema(NestedField(1, "u", UUIDType(), required=False))
    value = uuid.UUID(int=7)
    assert partition_record_value(PartitionField(1, 1000, IdentityTransform(), "u"), value, schema) != value


CALLS: Sequence[tuple[Callable[..., Any], Sequence[str], Sequence[str]]] = [
    # (what, arguments by position, arguments by name)
    (avro_file.AvroFileHeader, ["magic", "meta", "sync"], []),
    (avro_file.AvroFile, ["input_file", "read_schema"], ["read_types", "read_enums"]),
    (avro_file.AvroOutputFile.write_block, ["self", "objects"], []),
    (resolver.construct_writer, ["schema"], []),
    (resolver.resolve_writer, ["record_schema", "file_schema"], []),
    (resolver.ReadSchemaResolver, ["read_types", "read_enums"], []),
    (resolver.ReadSchemaResolver.visit_double, ["self", "double_type", "partner"], []),
    (resolver.SchemaPartnerAccessor, [], []),
    (visit_with_partner, ["schema", "partner", "visitor", "accessor"], []),
    (AvroSchemaConversion.iceberg_to_avro, ["self", "schema"], ["schema_name"]),
    (ManifestWriterV2, ["spec", "schema", "output_file", "snapshot_id", "codec"], []),
    (ManifestListWriterV2, ["output_file", "snapshot_id", "parent_snapshot_id", "sequence_number", "codec"], []),
    (ManifestListWriterV2.prepare_manifest, ["self", "manifest_file"], []),
    (data_file_with_partition, ["partition_type", "format_version"], []),
    (manifest_entry_schema_with_data_file, ["format_version", "data_file"], []),
    (arrow_io.compute_statistics_plan, ["schema", "table_properties"], []),
    (arrow_io.data_file_statistics_from_parquet_metadata, ["parquet_metadata", "stats_columns", "parquet_column_mapping"], []),
    (arrow_io.parquet_path_to_id_mapping, ["schema"], []),
    (SqlCatalog._create_table_row, ["self", "namespace", "table_name", "metadata_location"], []),
]


@pytest.mark.parametrize(("what", "positions", "names"), CALLS, ids=lambda value: getattr(value, "__qualname__", ""))
def test_what_is_called_takes_what_it_is_given(what: Callable[..., Any], positions: Sequence[str], names: Sequence[str]) -> None:
    """Called so in `iceberg/avro.py`, `entries.py`, `manifests.py`, `catalog.py`; some of it is private."""
    signature = inspect.signature(what)
    signature.bind(*positions, **dict.fromkeys(names))
    assert set(names) <= set(signature.parameters)


def test_what_is_overridden_or_read_is_there(tmp_path: Path) -> None:
    """`OneBlockFile`, `read_records`, `_ManifestWriter` and `_ManifestListWriter` take the place of these."""
    for name in ("content", "new_writer", "_meta", "to_manifest_file", "add", "existing", "delete"):
        assert hasattr(ManifestWriterV2, name), name
    text = inspect.getsource(avro_file.AvroOutputFile)
    for name in ("output_file", "sync_bytes", "writer", "encoder", "output_stream", "metadata"):
        assert f"self.{name}" in text or f"{name}:" in text, name
    read = inspect.getsource(avro_file.AvroFile.__enter__)
    for name in ("self.header", "self.schema", "self.read_schema", "self.reader", "self.read_types", "self.read_enums"):
        assert name in read, name
    assert "self._writer" in inspect.getsource(ManifestListWriterV2.__mro__[1].__enter__)
    assert (avro_file.MAGIC, avro_file.SYNC_SIZE) == (b"Obj\x01", 16)
    assert 2 in MANIFEST_LIST_FILE_SCHEMAS


def test_a_block_is_what_a_list_of_records_makes() -> None:
    """`AvroOutputFile.write_block` writes one block of all that it is given, with `self.writer` and `self.encoder`."""
    schema = Schema(NestedField(1, "x", IntegerType(), required=True), schema_id=1)
    sink = io.BytesIO()
    output = object.__new__(avro_file.AvroOutputFile)
    output.output_stream = sink
    output.encoder = avro_file.BinaryEncoder(sink)
    output.sync_bytes, output.metadata, output.writer = b"s" * 16, {"avro.codec": "null"}, resolver.construct_writer(schema)
    output.write_block([Record(1), Record(2)])
    assert sink.getvalue() == bytes([4, 4, 2, 4]) + b"s" * 16, "count 2, size 2, the two, the marker"


def test_its_sql_catalog_keeps_tables_where_we_look_for_them(tmp_path: Path) -> None:
    """`SqlTableCatalog` reads and swaps these columns with statements of its own."""
    assert IcebergTables.__tablename__ == "iceberg_tables"
    columns = {"catalog_name", "table_namespace", "table_name", "metadata_location", "previous_metadata_location"}
    assert columns <= set(IcebergTables.__table__.columns.keys())
    catalog = SqlCatalog("dolake", uri=f"sqlite:///{tmp_path}/c.db", warehouse=f"file://{tmp_path}")
    row = catalog._create_table_row("n", "t", "file:///m.json")
    assert {name: row[name] for name in ("catalog_name", "table_namespace", "table_name", "metadata_location")} == {
        "catalog_name": "dolake",
        "table_namespace": "n",
        "table_name": "t",
        "metadata_location": "file:///m.json",
    }
    catalog.close()
