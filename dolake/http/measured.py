"""Counts what every HTTP request came to, and how long that took."""

from __future__ import annotations

from collections.abc import Callable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dolake.clock import Clock
from dolake.metrics import Metrics

_OTHER = "other"
_GONE = "gone"  # in place of a status: the client left before there was one


class Measured:
    """An app around `app`. `paths` are those that are told apart: anybody can ask for any number of others.

    `template_of` gives a path below `prefix` the name under which it is counted, one of few.
    """

    def __init__(
        self,
        app: ASGIApp,
        metrics: Metrics,
        clock: Clock,
        paths: frozenset[str],
        prefix: str = "",
        template_of: Callable[[str], str] = lambda path: _OTHER,
    ) -> None:
        self._app, self._metrics, self._clock, self._paths = app, metrics, clock, paths
        self._prefix, self._template_of = prefix, template_of

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path = self._name_of(scope["path"], scope["raw_path"].decode("latin-1"))
        began_s, status, gone = self._clock.monotonic_s(), "500", False

        async def note_receive() -> Message:
            nonlocal gone
            message = await receive()
            gone = gone or message["type"] == "http.disconnect"
            return message

        async def note_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = _GONE if gone else str(message["status"])
                # Before the client has it: who has been answered is counted.
                self._count(path, status, began_s)
            await send(message)

        try:
            await self._app(scope, note_receive, note_send)
        except Exception:  # The server's own answer to this is a 500, which nobody here sees.
            self._count(path, status, began_s)
            raise

    def _name_of(self, path: str, raw_path: str) -> str:
        if self._prefix and raw_path.startswith(self._prefix):
            return self._template_of(raw_path)
        return path if path in self._paths else _OTHER

    def _count(self, path: str, status: str, began_s: float) -> None:
        self._metrics.add("dolake_http_requests_total", path=path, status=status)
        self._metrics.observe("dolake_http_request_seconds", self._clock.monotonic_s() - began_s, path=path)
