"""Keys of the object store that somebody else renews, in a file: read again whenever it has changed, with no signal and no restart.

The file is JSON, as AWS's own tools write it: `aws configure export-credentials` prints its fields, and so does
`aws sts assume-role --query Credentials`: `AccessKeyId`, `SecretAccessKey`, and `SessionToken` where there is one. Replace it
by a rename; one that is half written, or gone for a moment, leaves the keys as they were.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any

import boto3
from botocore.credentials import CredentialProvider, ReadOnlyCredentials
from botocore.session import Session

from dolake.errors import StoreUnreachable

_FIELDS = ("AccessKeyId", "SecretAccessKey")


class CredentialsFile:
    """What botocore asks for keys, before each request that it signs."""

    method = "dolake-file"

    def __init__(self, path: str) -> None:
        self.path = path
        self._seen: tuple[int, ...] | None = None
        self._keys: ReadOnlyCredentials | None = None

    def get_frozen_credentials(self) -> ReadOnlyCredentials:
        """The keys as they are now. Raises StoreUnreachable where there never were any."""
        try:
            found = os.stat(self.path)
            seen = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)
            if seen != self._seen:
                self._keys, self._seen = _read(self.path), seen
        except (OSError, ValueError) as error:
            if self._keys is None:
                reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
                raise StoreUnreachable(f"{self.path}: no keys of the object store: {reason}", code="no_credentials") from None
        assert self._keys is not None
        return self._keys

    def get_deferred_property(self, name: str) -> Callable[[], Any]:
        """As botocore's own credentials have it: a part of the keys, once it is needed."""
        return lambda: getattr(self.get_frozen_credentials(), name, None)


def session_with(file: CredentialsFile | None) -> Any:
    """A boto3 session with the keys of a file; without one, with those that the machine itself has."""
    session = Session()
    if file is not None:
        session.get_component("credential_provider").insert_before("env", _Provider(file))
    return boto3.Session(botocore_session=session)


class _Provider(CredentialProvider):
    METHOD = CredentialsFile.method

    def __init__(self, file: CredentialsFile) -> None:
        super().__init__()
        self._file = file

    def load(self) -> CredentialsFile:
        return self._file


def _read(path: str) -> ReadOnlyCredentials:
    """Raises OSError, ValueError that shows nothing of what the file holds."""
    with open(path, "rb") as file:
        try:
            values = json.loads(file.read())
        except ValueError:
            raise ValueError("it must be JSON") from None
    if not isinstance(values, dict) or any(not isinstance(values.get(name), str) or not values[name] for name in _FIELDS):
        raise ValueError(f"it must be a JSON object with {' and '.join(_FIELDS)}")
    return ReadOnlyCredentials(access_key=values["AccessKeyId"], secret_key=values["SecretAccessKey"], token=values.get("SessionToken"))
