"""A warehouse in an S3-compatible store.

An object is durable when its PUT is answered, so `settle` has nothing to do. One PUT carries an object of up to 64 MiB,
parts of 32 MiB a larger one; each with its MD5, which every server that speaks S3 checks. The CRC32C of the whole object goes
along as its metadata, and what comes back is held against that, whatever server or proxy is in between.

Every request ends: a connection may be silent for 15 s, and an object may take as long as 8 KiB/s take. Nothing is repeated
here unless `tries` says so: what failed is for the caller's own loop, which has one policy for all.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import boto3
import google_crc32c
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectionClosedError,
    ConnectTimeoutError,
    EndpointConnectionError,
    NoCredentialsError,
    PartialCredentialsError,
    ReadTimeoutError,
    SSLError,
)

from dolake.clock import Clock, SystemClock
from dolake.errors import ObjectDamaged, ObjectMissing, StoreUnreachable
from dolake.storage.credentials import CredentialsFile, session_with

T = TypeVar("T")

_SCHEME = "s3://"
_MIB = 1024 * 1024
PUT_SIZE_BYTES_MAX = 64 * _MIB
PART_SIZE_BYTES = 32 * _MIB
# For either direction: what is being sent waits no longer than a connection may take (urllib3), and a slow link comes in bursts.
_SILENCE_S_MAX = 15
_WHOLE_S_MAX = 30  # of an object of no size; a large one gets as long as the slowest link that is any use takes.
_RATE_BYTES_PER_S_MIN = 8 * 1024
_READ_BYTES = 1 << 20
_CONNECTIONS_MAX = 16
_PROBE = b"dolake was here"
_DIGEST = "dolake-crc32c"
_MISSING = {"NoSuchKey", "404", "NotFound"}
NO_ANSWER, NO_CONNECTION, NO_CREDENTIALS = "no_answer", "no_connection", "no_credentials"

# What an answer's code means for whoever set dolake up. `{…}` are filled in from the store's own settings.
_CODES = {
    "NoSuchBucket": "the bucket {bucket} does not exist: create it, or set warehouse.uri to another",
    "InvalidAccessKeyId": "the server does not know the access key: correct {access_key}",
    "SignatureDoesNotMatch": "the secret key does not belong to the access key: correct {secret_key}",
    "ExpiredToken": "the session token has expired: renew {keys}",
    "InvalidToken": "the session token is not valid: correct {session_token}",
    "SlowDown": "the server asks for fewer requests: dolake waits",
    "AccessDenied": "the credentials of {access_key} may not {verb} objects below {root}: allow {action}",
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
    """How to reach the store. Unset values are left to the machine's own identity and to AWS's addresses.

    `credentials_file` is read again whenever it has changed; it is given instead of keys.
    """

    endpoint: str | None = None
    region: str | None = None
    access_key: str | None = None
    secret_key: str | None = field(default=None, repr=False)
    session_token: str | None = field(default=None, repr=False)
    credentials_file: str | None = None


class S3Store:
    """Objects below `s3://bucket/prefix`. Safe to call from several threads."""

    def __init__(self, root: str, access: S3Access, *, tries: int = 1, clock: Clock | None = None) -> None:
        """Opens no connection yet; raises ValueError for a root that is not `s3://bucket[/prefix]`.

        `tries` is for who asks once and has no loop of its own.
        """
        self._clock = clock or SystemClock()
        self.root = root.rstrip("/")
        if not root.startswith(_SCHEME) or not self.root[len(_SCHEME) :].split("/")[0]:
            raise ValueError(f"a warehouse in S3 is s3://bucket/prefix, not {root}")
        self._bucket = self.root[len(_SCHEME) :].split("/")[0]
        self._access = access
        self._file = None if access.credentials_file is None else CredentialsFile(access.credentials_file)
        self._client: Any = _connect(access, self._file, tries)

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
            names = {"Bucket": self._bucket, "Key": key, "ContentMD5": _md5(body), "Metadata": {_DIGEST: _crc32c(body)}}
            self._ask("put", lambda: self._client.put_object(**names, Body=self._within(body)))
            return
        self._put_in_parts(key, view)

    def settle(self, locations: Sequence[str]) -> None:
        """Nothing: an answered PUT is durable."""

    def get(self, location: str) -> bytes:
        """Raises ObjectMissing, StoreUnreachable, and ObjectDamaged where it is not what was put."""
        key = self._key(location)
        answer, data = self._ask("get", lambda: self._receive(self._client.get_object(Bucket=self._bucket, Key=key)), location)
        digest = answer["Metadata"].get(_DIGEST)  # None: somebody else has put it, or a copy has lost it.
        if digest is not None and digest != _crc32c(data):
            raise ObjectDamaged(
                f"{location} came back with other bytes than were put ({len(data)} of them): something on the way spoils it, "
                "or it must be restored"
            )
        return data

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
        found = self._file or boto3.Session().get_credentials()
        if found is None:
            return self._access
        keys = found.get_frozen_credentials()
        return replace(self._access, access_key=keys.access_key, secret_key=keys.secret_key, session_token=keys.token)

    def close(self) -> None:
        self._client.close()

    def _put_in_parts(self, key: str, view: memoryview) -> None:
        names = {"Bucket": self._bucket, "Key": key}
        metadata = {_DIGEST: _crc32c(view)}
        upload = self._ask("put", lambda: self._client.create_multipart_upload(**names, Metadata=metadata)["UploadId"])
        parts: list[dict[str, Any]] = []
        try:
            for start in range(0, len(view), PART_SIZE_BYTES):
                parts.append(self._put_part({**names, "UploadId": upload}, len(parts) + 1, bytes(view[start : start + PART_SIZE_BYTES])))
        except StoreUnreachable as error:
            # Not the object, which does not exist yet: only its parts, which would be charged for. Who does not answer is not asked more.
            if error.code not in (NO_ANSWER, NO_CONNECTION):
                with contextlib.suppress(StoreUnreachable):
                    self._ask("put", lambda: self._client.abort_multipart_upload(**names, UploadId=upload))
            raise
        whole = {"Parts": parts}
        self._ask("put", lambda: self._client.complete_multipart_upload(**names, UploadId=upload, MultipartUpload=whole))

    def _put_part(self, upload: dict[str, str], number: int, body: bytes) -> dict[str, Any]:
        names = {**upload, "PartNumber": number, "ContentMD5": _md5(body)}
        answer = self._ask("put", lambda: self._client.upload_part(**names, Body=self._within(body)))
        return {"PartNumber": number, "ETag": answer["ETag"]}

    def _within(self, body: bytes) -> _Body:
        return _Body(body, self._clock, _longest_s(len(body)))

    def _receive(self, answer: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
        """The answer and all of its body; botocore holds its length against what the server has announced."""
        end_s = self._clock.monotonic_s() + _longest_s(int(answer["ContentLength"]))
        pieces = []
        while piece := answer["Body"].read(_READ_BYTES):
            pieces.append(piece)
            if self._clock.monotonic_s() > end_s:
                raise _TooSlow
        return answer, b"".join(pieces)

    def _key(self, location: str) -> str:
        """The key of a location. Raises ValueError for one outside the root."""
        inside = location.startswith(self.root + "/")
        if not inside or any(part in (".", "..") for part in location.split("/")):
            raise ValueError(f"{location} does not lie in the warehouse {self.root}")
        return location[len(_SCHEME) + len(self._bucket) + 1 :]

    def _ask(self, verb: str, request: Callable[[], T], location: str = "") -> T:
        where = self._where()
        try:
            return request()
        except ClientError as error:
            code = str(error.response.get("Error", {}).get("Code", ""))
            if location and code in _MISSING:
                raise ObjectMissing(f"{location} is not in the warehouse") from error
            raise StoreUnreachable(f"{where}: {self._meaning(code, verb, error)}", code=code) from error
        except (NoCredentialsError, PartialCredentialsError) as error:
            said = f"{where}: no credentials: set s3.access_key and s3.secret_key, or s3.credentials_file"
            raise StoreUnreachable(said, code=NO_CREDENTIALS) from error
        except (EndpointConnectionError, ConnectTimeoutError) as error:
            said = f"{where} cannot be reached: correct s3.endpoint, or see the network: {error}"
            raise StoreUnreachable(said, code=NO_CONNECTION) from error
        except SSLError as error:
            said = f"{where} does not prove who it is: is s3.endpoint https, and its certificate trusted? {error}"
            raise StoreUnreachable(said, code=NO_CONNECTION) from error
        except (ReadTimeoutError, ConnectionClosedError, _TooSlow, BotoCoreError) as error:
            raise StoreUnreachable(f"{where} {_silence(error)}", code=NO_ANSWER) from error

    def _meaning(self, code: str, verb: str, error: ClientError) -> str:
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        if code in ("403", "Forbidden"):  # HEAD has no body to say more in.
            code = "AccessDenied"
        text = _CODES.get(code)
        if text is None:
            return f"{error} (HTTP {status})"
        settings = {name: f"s3.{name}" for name in ("access_key", "secret_key", "session_token")}
        settings["keys"] = "s3.access_key, s3.secret_key and s3.session_token"
        if self._file is not None:
            settings = dict.fromkeys(settings, f"the keys in {self._file.path}")
        return text.format(bucket=self._bucket, root=self.root, verb=verb, action=_ACTIONS[verb], **settings)

    def _where(self) -> str:
        return self._access.endpoint or f"S3 in {self._client.meta.region_name}"


class _TooSlow(Exception):
    """An object took longer than the slowest link that is any use."""


class _Body(io.BytesIO):
    """What is sent, until it has taken too long: a timeout of the socket only sees silence."""

    def __init__(self, data: bytes, clock: Clock, longest_s: float) -> None:
        super().__init__(data)
        self._clock, self._end_s = clock, clock.monotonic_s() + longest_s

    def read(self, size: int | None = -1) -> bytes:
        if self._clock.monotonic_s() > self._end_s:
            raise _TooSlow
        return super().read(size)


def _longest_s(size_bytes: int) -> float:
    return _WHOLE_S_MAX + size_bytes / _RATE_BYTES_PER_S_MIN


def _silence(error: Exception) -> str:
    """What somebody did who did not answer."""
    causes: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None:
        causes.append(cause)
        cause = cause.__cause__ or cause.__context__
    if any(isinstance(one, _TooSlow) for one in causes):
        return f"takes or gives less than {_RATE_BYTES_PER_S_MIN // 1024} KiB/s"
    if any(isinstance(one, TimeoutError | ReadTimeoutError) for one in causes):
        return f"was silent for {_SILENCE_S_MAX} s"
    return f"broke off: {error}"


def _connect(access: S3Access, file: CredentialsFile | None, tries: int) -> Any:
    config = Config(
        connect_timeout=_SILENCE_S_MAX,
        read_timeout=_SILENCE_S_MAX,
        retries={"total_max_attempts": tries, "mode": "standard"},
        max_pool_connections=_CONNECTIONS_MAX,
        # A server of one's own rarely has a name for each bucket.
        s3={"addressing_style": "path" if access.endpoint else "auto"},
        # Newer checksums travel as HTTP trailers, which older servers refuse; the MD5 that we send ourselves they all check.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
    )
    return session_with(file).client(
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


def _crc32c(data: bytes | memoryview) -> str:
    digest = 0
    for start in range(0, len(data), _READ_BYTES):  # The library takes only bytes, and an object may be large.
        digest = google_crc32c.extend(digest, bytes(data[start : start + _READ_BYTES]))
    return f"{digest:08x}"
