"""Opens the warehouse that a URI names."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dolake.storage.local import LocalStore

if TYPE_CHECKING:
    from dolake.storage.s3 import S3Access, S3Store


def open_store(uri: str, s3: S3Access | None = None, *, tries: int = 1) -> LocalStore | S3Store:
    """`file:///directory` or `s3://bucket/prefix`. Touches nothing yet: `probe` does. Raises ValueError for any other URI.

    `tries`: how often a request to a server is made; more than once is for who has no loop of their own.
    """
    if uri.startswith("s3://"):
        # Imported here: the client takes longer to import than the rest of dolake, and a local warehouse needs none of it.
        from dolake.storage.s3 import S3Access, S3Store

        return S3Store(uri, s3 or S3Access(), tries=tries)
    return LocalStore(uri)
