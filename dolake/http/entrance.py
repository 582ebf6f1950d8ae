"""Who may ask the HTTP port for what, and how those are answered who may not."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from dolake.auth.gate import Gate
from dolake.errors import Forbidden, Unauthorized
from dolake.metrics import Metrics

HIDDEN_REASON = "why is only told to a token that has `read`"


class Entrance:
    """A gate as the routes use it. `metrics` counts the refusals."""

    def __init__(self, gate: Gate, metrics: Metrics) -> None:
        self._gate, self._metrics = gate, metrics

    def require_reader(self, request: Request) -> None:
        """Raises Unauthorized, Forbidden: for `refused` to answer."""
        self._gate.identify(request.headers.getlist("Authorization"), request.url.query).require_reader()

    def may_read(self, request: Request) -> bool:
        """Whether this asker may see what names tables and directories."""
        try:
            self.require_reader(request)
        except (Unauthorized, Forbidden):
            return False
        return True

    def told(self, request: Request, reasons: list[str]) -> list[str]:
        """The reasons as this asker may know them."""
        return reasons if self.may_read(request) or not reasons else [HIDDEN_REASON]

    async def refused(self, _: Request, error: Exception) -> Response:
        """401 with a challenge (RFC 6750), or 403."""
        status, headers = (401, {"WWW-Authenticate": error.challenge}) if isinstance(error, Unauthorized) else (403, {})
        self._metrics.add("dolake_http_refused_requests_total", status=str(status))
        return JSONResponse({"error": str(error)}, status_code=status, headers=headers)
