"""Names of a table's objects. Each is used once, and says which epoch may still commit it.

    data/e0000002a-<uuid>-<crc32c of the whole file>.parquet
    data/e0000002a-<uuid>-<crc32c of the whole file>-deletes.parquet
    metadata/e0000002a-<uuid of the attempt>-m0.avro            a manifest: as many as it wrote, counted from 0
    metadata/e0000002a-<uuid of the attempt>-list.avro
    metadata/00017-<uuid>.metadata.json                         as every Iceberg program names it

An object that no metadata names may be removed only once its epoch is over (I11), so the epoch has to be in the name. The
digest is there so that a flipped bit is found without a second file that could be lost.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_UUID = "[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"
_EPOCH = "e(?P<epoch>[0-9a-f]{8})"
_DATA_FILE = re.compile(r"e(?P<epoch>[0-9a-f]{8})-(?P<uuid>[0-9a-f-]{36})-(?P<digest>[0-9a-f]{8})(-deletes)?\.parquet")


# To the letter, below the table's location: what is taken for dolake's own may be purged.
_OBJECTS = {
    "data": re.compile(rf"data/{_EPOCH}-{_UUID}-[0-9a-f]{{8}}\.parquet"),
    "deletes": re.compile(rf"data/{_EPOCH}-{_UUID}-[0-9a-f]{{8}}-deletes\.parquet"),
    "manifest": re.compile(rf"metadata/{_EPOCH}-{_UUID}-m(?:0|[1-9][0-9]*)\.avro"),
    "manifest list": re.compile(rf"metadata/{_EPOCH}-{_UUID}-list\.avro"),
}
METADATA = "metadata"
_METADATA_FILE = re.compile(rf"metadata/(?P<version>[0-9]{{5}}|[1-9][0-9]{{5,}})-{_UUID}\.metadata\.json")


@dataclass(frozen=True)
class ObjectName:
    """`kind` is data, deletes, manifest or manifest list, which have an epoch, or METADATA, which has a version."""

    kind: str
    epoch: int = 0
    version: int = 0


@dataclass(frozen=True)
class DataFileName:
    epoch: int
    uuid: str
    digest: int


def data_file_location(table_location: str, epoch: int, uuid: str, digest: int) -> str:
    """`digest` is the CRC32C of the file's bytes."""
    return f"{table_location}/data/e{epoch:08x}-{uuid}-{digest:08x}.parquet"


def delete_file_location(table_location: str, epoch: int, uuid: str, digest: int) -> str:
    """The same for a file of position deletes."""
    return data_file_location(table_location, epoch, uuid, digest).removesuffix(".parquet") + "-deletes.parquet"


def parse_data_file_location(location: str) -> DataFileName | None:
    """Of a data or delete file; None for one that dolake did not name."""
    match = _DATA_FILE.fullmatch(location.rsplit("/", 1)[-1])
    return DataFileName(int(match["epoch"], 16), match["uuid"], int(match["digest"], 16)) if match else None


def parse_below(path: str) -> ObjectName | None:
    """Of any object by its path below its table's location; None for one whose name is not exactly one that dolake gives there.

    A metadata file's name is everybody's: it says nothing of who wrote it.
    """
    for kind, form in _OBJECTS.items():
        if match := form.fullmatch(path):
            return ObjectName(kind, epoch=int(match["epoch"], 16))
    match = _METADATA_FILE.fullmatch(path)
    return ObjectName(METADATA, version=int(match["version"])) if match else None


def attempt_prefix(table_location: str, epoch: int, uuid: str) -> str:
    """What the names of one commit attempt's manifests begin with."""
    return f"{table_location}/metadata/e{epoch:08x}-{uuid}"


def metadata_location(table_location: str, version: int, uuid: str) -> str:
    return f"{table_location}/metadata/{version:05d}-{uuid}.metadata.json"


def metadata_version(location: str) -> int:
    """The number that a metadata file's name begins with; -1 (so that the next is 0) if another program named it otherwise."""
    number = location.rsplit("/", 1)[-1].split("-", 1)[0]
    return int(number) if number.isdigit() else -1


def lies_within(location: str, folder: str) -> bool:
    return (location.rstrip("/") + "/").startswith(folder.rstrip("/") + "/")
