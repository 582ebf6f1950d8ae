"""Object names say their epoch and digest, and nothing that dolake did not name is taken for its own."""

from __future__ import annotations

import pytest

from dolake.iceberg.names import (
    DataFileName,
    ObjectName,
    attempt_prefix,
    data_file_location,
    delete_file_location,
    metadata_location,
    metadata_version,
    parse_below,
    parse_data_file_location,
)

UUID = "6f1b0a52-3c0d-4f53-9b1e-0a1b2c3d4e5f"


def test_a_data_files_name_carries_its_epoch_and_digest() -> None:
    location = data_file_location("s3://b/p/t", 42, UUID, 0xDEADBEEF)
    assert location == f"s3://b/p/t/data/e0000002a-{UUID}-deadbeef.parquet"
    assert parse_data_file_location(location) == DataFileName(epoch=42, uuid=UUID, digest=0xDEADBEEF)


def test_so_does_a_delete_files() -> None:
    location = delete_file_location("s3://b/p/t", 42, UUID, 0xDEADBEEF)
    assert location == f"s3://b/p/t/data/e0000002a-{UUID}-deadbeef-deletes.parquet"
    assert parse_data_file_location(location) == DataFileName(epoch=42, uuid=UUID, digest=0xDEADBEEF)


@pytest.mark.parametrize(
    "name",
    [
        f"e0000002a-{UUID}-deadbeef-other.parquet",
        f"{UUID}.parquet",
        f"e0000002a-{UUID}.parquet",
        f"e2a-{UUID}-deadbeef.parquet",
        "",
        "data/",
    ],
)
def test_a_foreign_files_name_is_not_parsed(name: str) -> None:
    assert parse_data_file_location(f"s3://b/p/t/data/{name}") is None


def test_metadata_files_are_named_as_every_iceberg_program_does() -> None:
    assert metadata_location("s3://b/t", 17, UUID) == f"s3://b/t/metadata/00017-{UUID}.metadata.json"
    assert metadata_version(metadata_location("s3://b/t", 17, UUID)) == 17
    assert metadata_version("s3://b/t/metadata/v3.metadata.json") == -1
    assert attempt_prefix("s3://b/t", 42, UUID) == f"s3://b/t/metadata/e0000002a-{UUID}"


def test_every_name_that_dolake_gives_is_known_below_its_table() -> None:
    given = {
        data_file_location("", 42, UUID, 0xDEADBEEF): ObjectName("data", epoch=42),
        delete_file_location("", 42, UUID, 0xDEADBEEF): ObjectName("deletes", epoch=42),
        attempt_prefix("", 42, UUID) + "-m0.avro": ObjectName("manifest", epoch=42),
        attempt_prefix("", 42, UUID) + "-m12.avro": ObjectName("manifest", epoch=42),
        attempt_prefix("", 42, UUID) + "-list.avro": ObjectName("manifest list", epoch=42),
        metadata_location("", 17, UUID): ObjectName("metadata", version=17),
        metadata_location("", 1234567, UUID): ObjectName("metadata", version=1234567),
    }
    assert {path: parse_below(path.removeprefix("/")) for path in given} == given


@pytest.mark.parametrize(
    "path",
    [
        f"data/e0000002a-{UUID}-deadbeef.parquet\n",
        f"/data/e0000002a-{UUID}-deadbeef.parquet",
        f"x/data/e0000002a-{UUID}-deadbeef.parquet",
        f"data/x/e0000002a-{UUID}-deadbeef.parquet",
        f"data/e0000002A-{UUID}-deadbeef.parquet",
        f"data/e0000002a-{UUID.upper()}-deadbeef.parquet",
        f"data/e0000002a-{'-' * 36}-deadbeef.parquet",
        f"data/e0000002a-{UUID}.parquet",
        f"metadata/e0000002a-{UUID}-m00.avro",
        f"metadata/e0000002a-{UUID}-m\u0661.avro",
        f"metadata/e0000002a-{UUID}-m.avro",
        f"metadata/e0000002a-{UUID}-list.avro.crc",
        f"metadata/{UUID}-m0.avro",
        f"metadata/snap-1-0-{UUID}.avro",
        f"metadata/017-{UUID}.metadata.json",
        f"metadata/000017-{UUID}.metadata.json",
        f"metadata/00017-{UUID}-theirs.metadata.json",
        f"metadata/00017-{UUID}.gz.metadata.json",
        "metadata/v3.metadata.json",
        "",
    ],
)
def test_no_other_name_is_taken_for_one_of_dolakes(path: str) -> None:
    assert parse_below(path) is None
