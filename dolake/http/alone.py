"""`dolake catalog`: the REST catalog without a daemon, over the same database and warehouse.

GET /health    200 as long as this process lives
GET /ready     200 when the catalog answers, else 503
GET /metrics   Prometheus text, of this process
/v1/…          the Iceberg REST catalog
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from dolake.auth.gate import Gate
from dolake.auth.tokens import TokenBook
from dolake.clock import Runtime, real_runtime
from dolake.config import Settings
from dolake.errors import DolakeError, Forbidden, Unauthorized
from dolake.http.app import beside, refusal, serve_until
from dolake.http.catalog import CatalogApp
from dolake.http.catalog_routes import PREFIX, template_of
from dolake.http.entrance import Entrance
from dolake.http.measured import Measured
from dolake.metrics import Metrics, observe_process, prepare_to_render, render


def build_catalog_app(catalog: CatalogApp, runtime: Runtime, gate: Gate, own: Metrics) -> ASGIApp:
    """The catalog, and what watches over this process ask for."""
    prepare_to_render()
    entrance = Entrance(gate, own)
    own.set("dolake_process_started_seconds", runtime.clock.now_ms() / 1000, process="http")

    async def health(_: Request) -> Response:
        return JSONResponse({"alive": True})

    async def ready(request: Request) -> Response:
        try:
            await catalog.probe()
        except DolakeError as error:
            reasons = entrance.told(request, [str(error)])
            return JSONResponse({"ready": False, "reasons": reasons}, status_code=503, headers={"Retry-After": "1"})
        return JSONResponse({"ready": True, "reasons": []})

    async def metrics(request: Request) -> Response:
        entrance.require_reader(request)
        observe_process(own, "http")
        own.set("dolake_process_up_count", 1, process="http")
        text = await runtime.tasks.run(render, {"http": own.values()})
        return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")

    routes = [Route("/health", health), Route("/ready", ready), Route("/metrics", metrics)]
    handlers = {HTTPException: refusal, Unauthorized: entrance.refused, Forbidden: entrance.refused}
    app = Starlette(routes=routes, exception_handlers=handlers)
    return Measured(beside(catalog, app), own, runtime.clock, frozenset(route.path for route in routes), PREFIX, template_of)


async def run_catalog(
    settings: Settings,
    *,
    listen: socket.socket,
    ready: Callable[[], None],
    stop: asyncio.Event,
    runtime: Runtime | None = None,
    gate: Gate | None = None,
) -> int:
    """Serves on `listen` until `stop`; calls `ready` once requests are answered. Returns the exit code. Raises CatalogUnreachable."""
    runtime = runtime or real_runtime()
    gate = gate or Gate(runtime.clock, TokenBook(settings.tokens))
    own = Metrics()
    catalog = CatalogApp(settings, runtime, gate, own)
    await catalog.open()
    app = build_catalog_app(catalog, runtime, gate, own)
    await serve_until(stop, app, listen=listen, ready=ready, runtime=runtime, gate=gate)
    catalog.close()
    return 0
