"""Keys in a file that somebody else renews."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from dolake.errors import StoreUnreachable
from dolake.storage.credentials import CredentialsFile, session_with


def put(path: Path, text: str) -> None:
    fresh = path.with_suffix(".new")
    fresh.write_text(text)
    os.replace(fresh, path)


def keys(number: int, token: str | None = None) -> str:
    return json.dumps({"AccessKeyId": f"AK{number}", "SecretAccessKey": f"secret {number}", "SessionToken": token, "Expiration": "ignored"})


def test_each_request_is_signed_with_the_keys_of_that_moment(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    put(path, keys(1, "token 1"))
    file = CredentialsFile(str(path))
    client = session_with(file).client("s3", region_name="us-east-1", endpoint_url="http://127.0.0.1:1")
    signed = []
    for number in (1, 2, 3):
        put(path, keys(number, f"token {number}"))
        url = client.generate_presigned_url("get_object", {"Bucket": "lake", "Key": "x"})
        signed.append((f"=AK{number}&" in url or f"=AK{number}%2F" in url, f"token%20{number}" in url))
    assert signed == [(True, True)] * 3
    put(path, keys(4))
    assert file.get_frozen_credentials() == ("AK4", "secret 4", None, None)


@pytest.mark.parametrize("spoilt", ["", "{", "[]", '{"AccessKeyId": "AK9"}', '{"AccessKeyId": "AK9", "SecretAccessKey": ""}', None])
def test_a_file_that_is_spoilt_or_gone_leaves_the_keys_as_they_were(tmp_path: Path, spoilt: str | None) -> None:
    path = tmp_path / "keys.json"
    put(path, keys(1))
    file = CredentialsFile(str(path))
    assert file.get_frozen_credentials().access_key == "AK1"
    path.unlink() if spoilt is None else put(path, spoilt)
    assert file.get_frozen_credentials().access_key == "AK1"
    put(path, keys(2))
    assert file.get_frozen_credentials().access_key == "AK2"


@pytest.mark.parametrize(
    ("text", "said"),
    [(None, "No such file"), ("oh", "must be JSON"), ('{"SecretAccessKey": "hush hush"}', "AccessKeyId and SecretAccessKey")],
)
def test_without_keys_from_the_start_the_file_is_named_and_no_secret(tmp_path: Path, text: str | None, said: str) -> None:
    path = tmp_path / "keys.json"
    if text is not None:
        put(path, text)
    with pytest.raises(StoreUnreachable, match=said) as caught:
        CredentialsFile(str(path)).get_frozen_credentials()
    assert str(path) in str(caught.value)
    assert "hush" not in str(caught.value)
    assert caught.value.code == "no_credentials"
