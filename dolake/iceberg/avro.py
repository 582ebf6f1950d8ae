"""Avro files as manifests need them: written in one block each, from a layout that is worked out once; read exactly.

PyIceberg derives an encoder and an Avro schema from the Iceberg schema for every file that it writes, and compresses every
entry as a block of its own. With a commit every few seconds for each table that is most of what a commit costs, and the
blocks hardly compress. And its compiled decoder takes doubles for floats: a partition value of 0.1 comes back as another
(apache/iceberg-python 3808), and a merge would write that. It looks at no bounds either: a flipped bit in a manifest makes it read
what lies behind the file, or end the process. So files are decoded here, to the last byte, whatever they hold.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache
from types import TracebackType
from typing import Any, TypeVar

from pyiceberg.avro.codecs import AVRO_CODEC_KEY, AvroCompressionCodec
from pyiceberg.avro.decoder import BinaryDecoder
from pyiceberg.avro.encoder import BinaryEncoder
from pyiceberg.avro.file import MAGIC, META_SCHEMA, SYNC_SIZE, AvroFileHeader, AvroOutputFile
from pyiceberg.avro.reader import Reader
from pyiceberg.avro.resolver import ReadSchemaResolver, SchemaPartnerAccessor, construct_reader, construct_writer, resolve_writer
from pyiceberg.avro.writer import Writer
from pyiceberg.io import InputFile, OutputFile
from pyiceberg.schema import Schema, visit_with_partner
from pyiceberg.typedef import StructProtocol
from pyiceberg.utils.schema_conversion import AvroSchemaConversion

D = TypeVar("D", bound=StructProtocol)

CODEC: AvroCompressionCodec = "deflate"
_HEADER = construct_writer(META_SCHEMA)
_HEADER_READER = construct_reader(META_SCHEMA, {-1: AvroFileHeader})
_INT_SHIFT_MAX = 63  # Of the tenth group of seven bits, the last that a 64-bit number has.
_READERS_MAX = 256  # Of tables' schemas and partitions that are being read: some kilobytes each.


@dataclass(frozen=True)
class AvroLayout:
    """How records of one schema are written."""

    schema: Schema
    writer: Writer
    avro_schema: str

    @classmethod
    def of(cls, schema: Schema, name: str, record: Schema | None = None) -> AvroLayout:
        """`name` is what the Avro schema calls the record; `record` is the schema of what is given to it, if it has more fields."""
        writer = construct_writer(schema) if record is None else resolve_writer(record, schema)
        return cls(schema, writer, json.dumps(AvroSchemaConversion().iceberg_to_avro(schema, schema_name=name)))


class OneBlockFile(AvroOutputFile[D]):
    """Takes the place of PyIceberg's writer; nothing but the header is written before it is closed in peace."""

    def __init__(self, layout: AvroLayout, output: OutputFile, metadata: dict[str, str]) -> None:
        # Not PyIceberg's own constructor, which is what the layout saves.
        self.output_file, self.file_schema, self.writer = output, layout.schema, layout.writer
        self.metadata = {**metadata, AVRO_CODEC_KEY: CODEC}
        self._avro_schema = layout.avro_schema
        # Avro's block marker: from the file's name, which is unique, not from the system, so that a run can be repeated exactly.
        self.sync_bytes = hashlib.blake2b(output.location.encode(), digest_size=SYNC_SIZE).digest()
        self._records: list[D] = []

    def __enter__(self) -> OneBlockFile[D]:
        self.output_stream = self.output_file.create(overwrite=True)
        self.encoder = BinaryEncoder(self.output_stream)
        header = {**self.metadata, "avro.schema": self._avro_schema}
        _HEADER.write(self.encoder, AvroFileHeader(MAGIC, header, self.sync_bytes))
        return self

    def write_block(self, objects: list[D]) -> None:
        self._records.extend(objects)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        if kind is None:
            super().write_block(self._records)
        self.output_stream.__exit__(kind, error, traceback)


@dataclass(frozen=True, eq=False)
class AvroReading:
    """What is read of files of one kind: the schema wanted, and what its structs and enums become, by field id. One for each kind."""

    schema: Schema
    types: Mapping[int, Callable[..., StructProtocol]]
    enums: Mapping[int, Callable[..., Enum]]


class BoundedDecoder(BinaryDecoder):
    """Decodes what a buffer holds and never anything else. Raises EOFError where it ends too early, ValueError for a number too long."""

    def __init__(self, data: bytes) -> None:
        self._data, self._position = data, 0

    @property
    def is_at_end(self) -> bool:
        return self._position == len(self._data)

    def tell(self) -> int:
        return self._position

    def read(self, n: int) -> bytes:
        start = self._position
        self.skip(n)
        return self._data[start : start + n]

    def skip(self, n: int) -> None:
        if not 0 <= n <= len(self._data) - self._position:
            raise EOFError(f"{n} bytes are to follow byte {self._position} of {len(self._data)}")
        self._position += n

    def read_int(self) -> int:
        data, position = self._data, self._position
        number = shift = 0
        try:
            while True:
                byte = data[position]
                position += 1
                number |= (byte & 0x7F) << shift
                if byte < 0x80:
                    break
                shift += 7
        except IndexError:
            raise EOFError(f"a number is cut short at byte {position}") from None
        if shift > _INT_SHIFT_MAX:
            raise ValueError(f"a number of more than 64 bits ends at byte {position}")
        self._position = position
        return (number >> 1) ^ -(number & 1)

    def skip_int(self) -> None:
        self.read_int()


def read_records(file: InputFile, reading: AvroReading) -> list[Any]:
    """All records of a file. Blocks. Raises what opening it raises; anything else that is raised says that the file is damaged.

    PyIceberg resolves the schemas again for every file, which is most of what a small one costs; and takes a cut file for a shorter one.
    """
    with file.open() as stream:
        decoder = BoundedDecoder(stream.read())
    header = _HEADER_READER.read(decoder)
    if header.magic != MAGIC:
        raise ValueError("it is no Avro file")
    reader = _reader(header.meta.get("avro.schema", ""), reading)
    codec = header.compression_codec()
    records: list[Any] = []
    while not decoder.is_at_end:
        count, packed, sync = decoder.read_int(), decoder.read_bytes(), decoder.read(SYNC_SIZE)
        if sync != header.sync:
            raise ValueError(f"a block does not end where it should, at byte {decoder.tell()}")
        block = BoundedDecoder(packed if codec is None else codec.decompress(packed))
        records += [reader.read(block) for _ in range(count)]
        if not block.is_at_end:
            raise ValueError(f"a block of {count} records holds more than they take")
    return records


@lru_cache(_READERS_MAX)
def _reader(avro_schema: str, reading: AvroReading) -> Reader:
    """Holds nothing of the files that were read with it. Raises ValueError if that is no schema."""
    written = AvroSchemaConversion().avro_to_iceberg(json.loads(avro_schema))
    resolver = ReadSchemaResolver(dict(reading.types), dict(reading.enums))
    reader: Reader = visit_with_partner(written, reading.schema, resolver, SchemaPartnerAccessor())  # type: ignore[misc]  # As PyIceberg does.
    return reader
