"""Request bodies within bounds: how large one may be, how much all of them may take together, how long one may take."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.requests import Request

from dolake.iceberg.rest_errors import CatalogRefusal, bad_request, unavailable

BODY_BYTES_MAX = 16 << 20
BODIES_BYTES_MAX = 128 << 20
_BODY_S_MAX = 30.0


class Bodies:
    """The bodies of one process that are under way."""

    def __init__(self, bytes_max: int = BODIES_BYTES_MAX) -> None:
        self._free_bytes = bytes_max

    @asynccontextmanager
    async def of(self, request: Request) -> AsyncIterator[bytes]:
        """The whole body, which counts until the block ends. Raises CatalogRefusal, ClientDisconnect."""
        taken: list[bytes] = []
        try:
            yield await self._read(request, taken)
        finally:
            self._free_bytes += sum(map(len, taken))

    async def _read(self, request: Request, taken: list[bytes]) -> bytes:
        if request.headers.get("content-encoding", "identity").lower() != "identity":
            raise bad_request("Content-Encoding: bodies are taken as they are, not packed")
        _require_size(int(request.headers.get("content-length", 0)))
        size_bytes = 0
        try:
            async with asyncio.timeout(_BODY_S_MAX):
                async for piece in request.stream():
                    size_bytes += len(piece)
                    _require_size(size_bytes)
                    if len(piece) > self._free_bytes:
                        raise unavailable("too many bodies are under way at once: try again")
                    self._free_bytes -= len(piece)
                    taken.append(piece)
        except TimeoutError:
            raise CatalogRefusal(408, "RequestTimeoutException", f"the body did not come within {_BODY_S_MAX:g} s") from None
        return b"".join(taken)


def _require_size(size_bytes: int) -> None:
    if size_bytes > BODY_BYTES_MAX:
        raise CatalogRefusal(413, "BadRequestException", f"a body has at most {BODY_BYTES_MAX} bytes (got {size_bytes} or more)")
