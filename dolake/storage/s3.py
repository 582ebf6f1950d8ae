"""A warehouse in an S3-compatible store.

An object is durable when its PUT is answered, so `settle` has nothing to do. One PUT carries an object of up to 64 MiB,
parts of 32 MiB a larger one; each with its MD5, which every server that speaks S3 checks. Every request has timeouts of
ours and is tried twice: what still fails is for the caller's own loop to repeat, as long as it takes.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import boto3
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectTimeoutError,
    EndpointConnectionError,
    NoCredentialsError,
    PartialCredentialsError,
    ReadTimeoutError,
    SSLError,
)

from dolake.errors import ObjectMissing, StoreUnreachable

T = TypeVar("T")

_SCHEME = "s3://"
_MIB = 1024 * 1024
PUT_SIZE_BYTES_MAX = 64 * _MIB
PART_SIZE_BYTES = 32 * _MIB
_CONNECT_S_MAX = 5
_READ_S_MAX = 30
_CONNECTIONS_MAX = 16
_PROBE = b"dolake was here"
_MISSING = {"NoSuchKey", "404", "NotFound"}

# What an answer's code means for whoever set dolake up. `{…}` are filled in from the store's own settings.
_CODES = {
    "NoSuchBucket": "the bucket {bucket} does not exist: create it, or set warehouse.uri to another",
    "InvalidAccessKeyId": "the server does not know the access key: correct s3.access_key",
    "SignatureDoesNotMatch": "the secret key does not belong to the access key: correct s3.secret_key",
    "ExpiredToken": "the session token has expired: renew s3.access_key, s3.secret_key and s3.session_token",
    "InvalidToken": "the session token is not valid: correct s3.session_token",
    "AccessDenied": "the credentials of s3.access_key may not {verb} objects below {root}: allow {action}",
    "AllAccessDisabled": "the bucket {bucket} is closed: see its owner",
    "RequestTimeTooSkewed": "this machine's clock is too far from the server's: correct it (is NTP running?)",
    "PermanentRedirect": "the bucket {bucket} is in another region: correct s3.region",
    "AuthorizationHeaderMalformed": "the bucket {bucket} is in another region: correct s3.region",
    "IllegalLocationConstraintException": "the bucket {bucket} is in another region: correct s3.region",
    "InvalidBucketName": "{bucket} is not a name that a bucket can have: correct warehouse.uri",
}
_ACTIONS = {"put": "s3:PutObject", "get": "s3:GetObject", "list": "s3:ListBucket", "delete": "s3:DeleteObject"}


@dataclass(frozen=True)
class S3Access:
    """How to reach the store. Unset values are left to the machine's own identity and to AWS's addresses."""

    endpoint: str | None = None
    region: str | None = None
    access_key: str | None = None
    secret_key: str | None = field(default=None, repr=False)
    session_token: str | None = field(default=None, repr=False)


class S3Store:
    """Objects below `s3://bucket/prefix`. Safe to call from several threads."""

    def __init__(self, root: str, access: S3Access) -> None:
        """Opens no connection yet; raises ValueError for a root that is not `s3://bucket[/prefix]`."""
        self.root = root.rstrip("/")
        if not root.startswith(_SCHEME) or not self.root[len(_SCHEME) :].split("/")[0]:
            raise ValueError(f"a warehouse in S3 is s3://bucket/prefix, not {root}")
        self._bucket = self.root[len(_SCHEME) :].split("/")[0]
        self._access = access
        self._client: Any = _connect(access)

    def probe(self, name: str) -> None:
        """Puts, reads, lists and deletes a tiny object called `name`. Raises StoreUnreachable that names the setting at fault."""
        location = f"{self.root}/dolake-probe-{name}"
        self.put(location, _PROBE)
        if self.get(location) != _PROBE:
            raise StoreUnreachable(f"{location} came back with other bytes: {self._where()} does not keep what it accepts")
        if location not in (found for found, _ in self.list(location)):
            raise StoreUnreachable(f"{location} was put but is not listed: {self._where()} lists late, or hides objects")
        self.delete(location)

    def put(self, location: str, data: bytes | memoryview) -> None:
        key, view = self._key(location), memoryview(data).cast("B")
        if len(view) <= PUT_SIZE_BYTES_MAX:
            body = bytes(view)
            self._ask("put", lambda: self._client.put_object(Bucket=self._bucket, Key=key, Body=body, ContentMD5=_md5(body)))
            return
        self._put_in_parts(key, view)

    def settle(self, locations: Sequence[str]) -> None:
        """Nothing: an answered PUT is durable."""

    def get(self, location: str) -> bytes:
        key = self._key(location)
        return self._ask("get", lambda: bytes(self._client.get_object(Bucket=self._bucket, Key=key)["Body"].read()), location)

    def size(self, location: str) -> int:
        key = self._key(location)
        return self._ask("get", lambda: int(self._client.head_object(Bucket=self._bucket, Key=key)["ContentLength"]), location)

    def list(self, prefix: str) -> Iterator[tuple[str, int]]:
        pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self._bucket, Prefix=self._key(prefix))
        turn = iter(pages)
        while (page := self._ask("list", lambda: next(turn, None))) is not None:
            for item in page.get("Contents", ()):
                yield f"{_SCHEME}{self._bucket}/{item['Key']}", int(item["Size"])

    def delete(self, location: str) -> None:
        key = self._key(location)
        self._ask("delete", lambda: self._client.delete_object(Bucket=self._bucket, Key=key))

    def access(self) -> S3Access:
        """How another client reaches this store: where no keys are set, those that the machine's identity gives right now."""
        if self._access.access_key is not None:
            return self._access
        found = boto3.Session().get_credentials()
        if found is None:
            return self._access
        keys = found.get_frozen_credentials()
        return replace(self._access, access_key=keys.access_key, secret_key=keys.secret_key, session_token=keys.token)

    def close(self) -> None:
        self._client.close()

    def _put_in_parts(self, key: str, view: memoryview) -> None:
        names = {"Bucket": self._bucket, "Key": key}
        upload = self._ask("put", lambda: self._client.create_multipart_upload(**names)["UploadId"])
        parts: list[dict[str, Any]] = []
        try:
            for start in range(0, len(view), PART_SIZE_BYTES):
                parts.append(self._put_part({**names, "UploadId": upload}, len(parts) + 1, bytes(view[start : start + PART_SIZE_BYTES])))
        except StoreUnreachable:
            # Not the object, which does not exist yet: only its parts, which would be charged for ever.
            self._ask("put", lambda: self._client.abort_multipart_upload(**names, UploadId=upload))
            raise
        whole = {"Parts": parts}
        self._ask("put", lambda: self._client.complete_multipart_upload(**names, UploadId=upload, MultipartUpload=whole))

    def _put_part(self, upload: dict[str, str], number: int, body: bytes) -> dict[str, Any]:
        answer = self._ask("put", lambda: self._client.upload_part(**upload, PartNumber=number, Body=body, ContentMD5=_md5(body)))
        return {"PartNumber": number, "ETag": answer["ETag"]}

    def _key(self, location: str) -> str:
        """The key of a location. Raises ValueError for one outside the root."""
        inside = location.startswith(self.root + "/")
        if not inside or any(part in (".", "..") for part in location.split("/")):
            raise ValueError(f"{location} does not lie in the warehouse {self.root}")
        return location[len(_SCHEME) + len(self._bucket) + 1 :]

    def _ask(self, verb: str, request: Callable[[], T], location: str = "") -> T:
        try:
            return request()
        except ClientError as error:
            code = str(error.response.get("Error", {}).get("Code", ""))
            if location and code in _MISSING:
                raise ObjectMissing(f"{location} is not in the warehouse") from error
            raise StoreUnreachable(f"{self._where()}: {self._meaning(code, verb, error)}") from error
        except (NoCredentialsError, PartialCredentialsError) as error:
            raise StoreUnreachable(f"{self._where()}: no credentials: set s3.access_key and s3.secret_key") from error
        except (EndpointConnectionError, ConnectTimeoutError) as error:
            raise StoreUnreachable(f"{self._where()} cannot be reached: correct s3.endpoint, or see the network: {error}") from error
        except SSLError as error:
            raise StoreUnreachable(
                f"{self._where()} does not prove who it is: is s3.endpoint https, and its certificate trusted? {error}"
            ) from error
        except ReadTimeoutError as error:
            raise StoreUnreachable(f"{self._where()} did not answer within {_READ_S_MAX} s") from error
        except BotoCoreError as error:
            raise StoreUnreachable(f"{self._where()}: {error}") from error

    def _meaning(self, code: str, verb: str, error: ClientError) -> str:
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        if code in ("403", "Forbidden"):  # HEAD has no body to say more in.
            code = "AccessDenied"
        text = _CODES.get(code)
        if text is None:
            return f"{error} (HTTP {status})"
        return text.format(bucket=self._bucket, root=self.root, verb=verb, action=_ACTIONS[verb])

    def _where(self) -> str:
        return self._access.endpoint or f"S3 in {self._client.meta.region_name}"


def _connect(access: S3Access) -> Any:
    config = Config(
        connect_timeout=_CONNECT_S_MAX,
        read_timeout=_READ_S_MAX,
        retries={"total_max_attempts": 2, "mode": "standard"},
        max_pool_connections=_CONNECTIONS_MAX,
        # A server of one's own rarely has a name for each bucket.
        s3={"addressing_style": "path" if access.endpoint else "auto"},
        # Newer checksums travel as HTTP trailers, which older servers refuse; the MD5 that we send ourselves they all check.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
    )
    return boto3.client(
        "s3",
        endpoint_url=access.endpoint,
        region_name=access.region or "us-east-1",
        aws_access_key_id=access.access_key,
        aws_secret_access_key=access.secret_key,
        aws_session_token=access.session_token,
        config=config,
    )


def _md5(body: bytes) -> str:
    return base64.b64encode(hashlib.md5(body, usedforsecurity=False).digest()).decode()
