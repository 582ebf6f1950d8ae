"""Object names say their epoch and digest, and nothing that dolake did not name is taken for its own."""

from __future__ import annotations

import pytest

from dolake.iceberg.names import (
    DataFileName,
    attempt_prefix,
    data_file_location,
    delete_file_location,
    metadata_location,
    metadata_version,
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
