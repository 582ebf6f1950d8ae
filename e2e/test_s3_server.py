"""The S3-compatible server that the other tests rely on: does it answer as S3 does, and keep what it acknowledged?

A test of what we test with: where these fail, nothing that `make e2e` says about dolake on S3 counts.
"""

from __future__ import annotations

import base64
import concurrent.futures
import os
import subprocess
import zlib
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError

from e2e.services.s3 import SCRIPTS, S3Server

MIB = 1024 * 1024


def client(server: S3Server, **other: str) -> Any:
    options = {"aws_access_key_id": server.access_key, "aws_secret_access_key": server.secret_key, **other}
    config = Config(s3={"addressing_style": "path"}, retries={"max_attempts": 1})
    return boto3.client("s3", endpoint_url=server.endpoint, region_name=server.region, config=config, **options)


def refusal(call: Any, **arguments: Any) -> tuple[str, int]:
    with pytest.raises(ClientError) as caught:
        call(**arguments)
    return caught.value.response["Error"]["Code"], caught.value.response["ResponseMetadata"]["HTTPStatusCode"]


def test_what_is_put_is_read_back_whole_and_in_ranges(s3_server: S3Server) -> None:
    s3 = client(s3_server)
    body = os.urandom(3 * MIB + 7)
    s3.put_object(Bucket="lake", Key="objects/a=b/c d+%25é.parquet", Body=body)
    assert s3.get_object(Bucket="lake", Key="objects/a=b/c d+%25é.parquet")["Body"].read() == body
    assert s3.get_object(Bucket="lake", Key="objects/a=b/c d+%25é.parquet", Range="bytes=5-9")["Body"].read() == body[5:10]
    assert s3.head_object(Bucket="lake", Key="objects/a=b/c d+%25é.parquet")["ContentLength"] == len(body)
    s3.delete_object(Bucket="lake", Key="objects/a=b/c d+%25é.parquet")
    s3.delete_object(Bucket="lake", Key="objects/a=b/c d+%25é.parquet")  # None there is fine.
    assert refusal(s3.get_object, Bucket="lake", Key="objects/a=b/c d+%25é.parquet") == ("NoSuchKey", 404)


def test_listing_pages_through_every_object_in_order(s3_server: S3Server) -> None:
    s3 = client(s3_server)
    names = [f"listing/{number:03d}" for number in range(25)]
    for name in names:
        s3.put_object(Bucket="lake", Key=name, Body=name.encode())
    pages = s3.get_paginator("list_objects_v2").paginate(Bucket="lake", Prefix="listing/", PaginationConfig={"PageSize": 10})
    sizes = [(entry["Key"], entry["Size"]) for page in pages for entry in page["Contents"]]
    assert sizes == [(name, len(name)) for name in names]


def test_multipart_uploads_become_one_object(s3_server: S3Server) -> None:
    s3 = client(s3_server)
    upload = s3.create_multipart_upload(Bucket="lake", Key="big")["UploadId"]
    parts = []
    for number in (1, 2, 3):
        answer = s3.upload_part(Bucket="lake", Key="big", UploadId=upload, PartNumber=number, Body=bytes([number]) * 5 * MIB)
        parts.append({"PartNumber": number, "ETag": answer["ETag"]})
    s3.complete_multipart_upload(Bucket="lake", Key="big", UploadId=upload, MultipartUpload={"Parts": parts})
    assert s3.get_object(Bucket="lake", Key="big")["Body"].read() == b"".join(bytes([number]) * 5 * MIB for number in (1, 2, 3))


def test_checksums_are_checked_not_just_stored(s3_server: S3Server) -> None:
    s3 = client(s3_server)
    right = base64.b64encode(zlib.crc32(b"abc").to_bytes(4, "big")).decode()
    wrong = base64.b64encode(zlib.crc32(b"abd").to_bytes(4, "big")).decode()
    assert s3.put_object(Bucket="lake", Key="sum", Body=b"abc", ChecksumCRC32=right)["ChecksumCRC32"] == right
    code, status = refusal(s3.put_object, Bucket="lake", Key="sum-wrong", Body=b"abc", ChecksumCRC32=wrong)
    assert (code, status) in {("BadDigest", 400), ("InvalidRequest", 400)}
    assert refusal(s3.get_object, Bucket="lake", Key="sum-wrong")[0] == "NoSuchKey"


def test_only_one_of_many_writers_creates_an_object(s3_server: S3Server) -> None:
    s3 = client(s3_server)

    def create(number: int) -> bool:
        try:
            s3.put_object(Bucket="lake", Key=key, Body=str(number).encode(), IfNoneMatch="*")
        except ClientError as error:
            if error.response["Error"]["Code"] == "PreconditionFailed":
                return False
            raise
        return True

    for attempt in range(10):
        key = f"race/{attempt}"
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            assert sum(pool.map(create, range(8))) == 1


@pytest.mark.parametrize(
    ("other", "bucket", "expected"),
    [
        ({}, "nobody-made-it", ("NoSuchBucket", 404)),
        ({"aws_access_key_id": "AKunknown"}, "lake", ("InvalidAccessKeyId", 403)),
        ({"aws_secret_access_key": "wrong"}, "lake", ("SignatureDoesNotMatch", 403)),
    ],
)
def test_refusals_carry_the_codes_of_s3(s3_server: S3Server, other: dict[str, str], bucket: str, expected: tuple[str, int]) -> None:
    s3 = client(s3_server, **other)
    assert refusal(s3.put_object, Bucket=bucket, Key="x", Body=b"") == expected
    assert refusal(s3.list_objects_v2, Bucket=bucket) == expected


def test_everything_acknowledged_survives_a_kill(tmp_path: Path) -> None:
    bodies = {f"durable/{number}": os.urandom(1 + number * 997) for number in range(100)}
    with S3Server(tmp_path / "s3") as server:
        for name, body in bodies.items():
            client(server).put_object(Bucket="lake", Key=name, Body=body)
        before = server.endpoint
        server.kill()
        server.start()
        assert server.endpoint == before
        assert {name: client(server).get_object(Bucket="lake", Key=name)["Body"].read() for name in bodies} == bodies


def test_without_go_the_installation_says_what_is_missing(tmp_path: Path) -> None:
    done = subprocess.run(
        [SCRIPTS / "install_s3.sh", tmp_path / "fresh"], env={"PATH": "/usr/bin:/bin"}, capture_output=True, text=True, check=False
    )
    if done.returncode == 0:
        assert os.access(done.stdout.strip(), os.X_OK)  # This machine has Go where every machine has its programs.
    else:
        assert (done.returncode, "Go 1.26" in done.stderr) == (3, True), done.stderr
