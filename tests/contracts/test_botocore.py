"""What boto3 sends, repeats and raises, against a server that notes every request (`storage/s3.py`)."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator
from typing import Any

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError

from tests.contracts.notebook import Notebook, noting_server

_NO_SUCH_KEY = b"<Error><Code>NoSuchKey</Code><Message>gone</Message></Error>"


@pytest.fixture
def server() -> Iterator[Notebook]:
    with noting_server() as notes:
        yield notes


# As the store sets it up.
_OURS = {
    "retries": {"total_max_attempts": 2, "mode": "standard"},
    "request_checksum_calculation": "when_required",
    "response_checksum_validation": "when_required",
}


@pytest.fixture
def ours(server: Notebook) -> Iterator[Any]:
    client = connect(server.endpoint, **_OURS)
    yield client
    client.close()


def connect(endpoint: str, **options: Any) -> Any:
    names = {"aws_access_key_id": "k", "aws_secret_access_key": "s", "region_name": "us-east-1"}
    return boto3.client("s3", endpoint_url=endpoint, config=Config(s3={"addressing_style": "path"}, **options), **names)


def md5(body: bytes) -> str:
    return base64.b64encode(hashlib.md5(body, usedforsecurity=False).digest()).decode()


def test_by_itself_it_waits_a_minute_and_tries_again_and_again(server: Notebook) -> None:
    """So `storage/s3.py` sets timeouts and tries."""
    client = connect(server.endpoint)
    config = client.meta.config
    assert (config.connect_timeout, config.read_timeout) == (60, 60)
    server.answers = [(500, b"", 0), (500, b"", 0), (200, b"", 0)]
    client.head_bucket(Bucket="b")
    client.close()
    assert len(server.requests) == 3, "more tries than the two that we allow"


def test_it_tries_as_often_as_it_is_told(server: Notebook, ours: Any) -> None:
    """Two tries in all: the caller's own loop does the rest."""
    server.answers = [(503, b"<Error><Code>SlowDown</Code></Error>", 36)]
    with pytest.raises(ClientError) as raised:
        ours.put_object(Bucket="b", Key="k", Body=b"x", ContentMD5=md5(b"x"))
    assert raised.value.response["Error"]["Code"] == "SlowDown"
    assert len(server.requests) == 2
    assert {request[2] for request in server.requests} == {b"x"}


def test_by_itself_it_adds_checksums_that_older_servers_refuse(server: Notebook, ours: Any) -> None:
    """`when_required` keeps to the MD5 that we send ourselves."""
    client = connect(server.endpoint)
    client.put_object(Bucket="b", Key="k", Body=b"x")
    client.close()
    ours.put_object(Bucket="b", Key="k", Body=b"x", ContentMD5=md5(b"x"))
    (_, default, _), (_, required, body) = server.requests
    assert any(name.startswith(("x-amz-checksum", "x-amz-trailer", "x-amz-sdk-checksum")) for name in default)
    assert not any(name.startswith(("x-amz-checksum", "x-amz-trailer", "x-amz-sdk-checksum")) for name in required)
    assert required["content-md5"] == md5(b"x")
    assert body == b"x", "sent as it is, not in chunks with trailers"


def test_one_put_is_one_request(server: Notebook, ours: Any) -> None:
    """`put_object` never splits (an object of up to 64 MiB is there whole or not at all)."""
    ours.put_object(Bucket="b", Key="k", Body=bytes(9 << 20), ContentMD5=md5(bytes(9 << 20)))
    assert [(method, len(body)) for method, _, body in server.requests] == [("PUT", 9 << 20)]


def test_a_missing_object_has_another_code_without_a_body(server: Notebook, ours: Any) -> None:
    """404 from HEAD, NoSuchKey from GET; 403 likewise (`_MISSING`, `_meaning`)."""
    server.answers = [(404, _NO_SUCH_KEY, len(_NO_SUCH_KEY)), (404, b"", 0), (403, b"", 0)]
    codes = []
    for ask in (ours.get_object, ours.head_object, ours.head_object):
        with pytest.raises(ClientError) as raised:
            ask(Bucket="b", Key="k")
        codes.append(raised.value.response["Error"]["Code"])
    assert codes == ["NoSuchKey", "404", "403"]


def test_a_body_cut_short_is_an_error_of_its_own_kind(server: Notebook, ours: Any) -> None:
    """Raised while it is read, not when it was asked for (`S3Store.get` reads inside its `_ask`)."""
    server.answers = [(200, b"half", 8)]
    answer = ours.get_object(Bucket="b", Key="k")
    with pytest.raises(BotoCoreError):
        answer["Body"].read()


def test_whatever_the_network_does_is_one_of_its_own_errors() -> None:
    """Nothing of urllib3's or the system's comes through (`_ask` catches ClientError and BotoCoreError)."""
    client = connect("http://127.0.0.1:1", **_OURS)
    with pytest.raises(BotoCoreError):
        client.head_bucket(Bucket="b")
    client.close()
    assert issubclass(HTTPClientError, BotoCoreError)
