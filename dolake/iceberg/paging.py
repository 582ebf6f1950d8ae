"""Long lists in pages: `pageToken` and `pageSize` of the Iceberg REST catalog.

    token   base64url( 4 bytes of a checksum | the list's name | 0x00 | the last entry of the page before )

A token belongs to one list and says where to go on, so that pages survive what is created and dropped between them. Its
checksum is not a secret: it tells a made-up token from ours, and nobody gains anything by making one up.
"""

from __future__ import annotations

import base64
import binascii
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

import xxhash

from dolake.iceberg.rest_errors import bad_request

PAGE_SIZE_MAX = 1000
_CHECK_BYTES = 4


@dataclass(frozen=True)
class PageRequest:
    """What a client says of pages. Without a token (an empty one begins) and a size it gets everything."""

    token: str | None = None
    size: int | None = None

    @classmethod
    def of(cls, token: str | None, size: str | None) -> PageRequest:
        """From the query. Raises CatalogRefusal (400)."""
        if size is None:
            return cls(token)
        if not size.isascii() or not size.isdigit() or int(size[:20]) < 1:
            raise bad_request(f"pageSize is a whole number above 0 (got {size[:100]!r})")
        return cls(token, min(int(size[:20]), PAGE_SIZE_MAX))


def page_of(names: Sequence[str], listing: str, request: PageRequest) -> tuple[Sequence[str], str | None]:
    """The page's names and the next token, None on the last page. `names` are sorted and distinct. Raises CatalogRefusal (400)."""
    if request.token is None and request.size is None:
        return names, None
    begin = bisect_right(names, _last_before(request.token, listing)) if request.token else 0
    end = begin + (request.size or PAGE_SIZE_MAX)
    page = names[begin:end]
    return page, _token(listing, page[-1]) if end < len(names) else None


def _token(listing: str, last: str) -> str:
    content = f"{listing}\x00{last}".encode()
    return base64.urlsafe_b64encode(_check(content) + content).decode().rstrip("=")


def _last_before(token: str, listing: str) -> str:
    try:
        raw = base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True)
        check, content = raw[:_CHECK_BYTES], raw[_CHECK_BYTES:]
        name, _, last = content.decode().partition("\x00")
    except (ValueError, binascii.Error):
        check, content, name, last = b"", b"", "", ""
    if check != _check(content) or name != listing:
        raise bad_request("pageToken is none that this list gave: begin again with an empty one")
    return last


def _check(content: bytes) -> bytes:
    return xxhash.xxh3_64_digest(b"dolake page" + content)[:_CHECK_BYTES]
