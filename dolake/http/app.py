"""The `http` process: the REST catalog, batches by POST, health, readiness and metrics on one port.

It never touches logs; tables only where somebody asks the catalog for one.

It owns no state: each request is answered from what the ingest half (the hub of the control socket) says at that moment.

    GET /health        200 as long as this process lives
    GET /ready         200 when batches can be acked, else 503 with the reasons
    GET /ready/writer  200 when flushes can be committed, else 503 with the reasons; names the tables that have stopped, and how the
                       store and the catalog are asked (`circuits`: closed, open or half-open, since when, why, the next try)
    GET /metrics       Prometheus text
    POST /cdc          one batch or schema for the ingest half (see `posting`)
    /v1/…              the Iceberg REST catalog (see `catalog`)

Where there are tokens, `/metrics` asks for one with `read`. Health and readiness stay open, for load balancers have none; the
reasons, which name tables and directories, are only for who may read.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Callable, Iterator
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from dolake.auth.gate import Gate
from dolake.auth.tokens import TokenBook
from dolake.cdc.relay import RelayClient
from dolake.clock import Runtime, real_runtime
from dolake.config import Settings
from dolake.control import ControlClient
from dolake.errors import DaemonUnreachable, DolakeError, Forbidden, Unauthorized
from dolake.http.catalog import CatalogApp
from dolake.http.catalog_routes import PREFIX, template_of
from dolake.http.connection import BoundedProtocol
from dolake.http.entrance import Entrance
from dolake.http.measured import Measured
from dolake.http.posting import BODY_PAYLOADS_MAX, Posting, PostPolicy
from dolake.metrics import Metrics, observe_process, prepare_to_render, render

# The library warns of each request that is none; a client that sends such is not news.
_LIBRARY_LOGGER = logging.getLogger("uvicorn.error")
_ANSWER_S_MAX = 2.0
_RETRY_AFTER_S = "1"
_ABSENT_S_MAX = 5.0  # A killed ingest half is back in a fraction of it: requests that meet the gap are served all the same.
_POST_S_MAX = 60.0
_BODIES_BYTES = 128 << 20


def build_app(
    client: ControlClient, relay: RelayClient, runtime: Runtime, gate: Gate, policy: PostPolicy, catalog: CatalogApp, own: Metrics
) -> ASGIApp:
    """The routes over a control client that somebody else keeps connected, and a relay. `gate` knows who may do what."""
    prepare_to_render()
    entrance = Entrance(gate, own)
    posting = Posting(relay, runtime, gate, own, policy)
    own.set("dolake_process_started_seconds", runtime.clock.now_ms() / 1000, process="http")

    async def ask(what: str) -> dict[str, Any]:
        return await client.ask(what, timeout_s=_ANSWER_S_MAX)

    async def health(_: Request) -> Response:
        return JSONResponse({"alive": True})

    async def ready(request: Request) -> Response:
        try:
            answer = await ask("ready")
        except DolakeError as error:
            return _readiness(False, [_absence(error)])
        return _readiness(bool(answer.get("ready")), entrance.told(request, answer.get("reasons", [])))

    async def ready_writer(request: Request) -> Response:
        try:
            answer = (await ask("ready")).get("writer") or {}
        except DolakeError as error:
            return _readiness(False, [_absence(error)], stopped=[], circuits={})
        may_read = entrance.may_read(request)
        more = {name: answer.get(name, none) if may_read else none for name, none in (("stopped", []), ("circuits", {}))}
        return _readiness(bool(answer.get("ready")), entrance.told(request, answer.get("reasons", [])), **more)

    async def metrics(request: Request) -> Response:
        entrance.require_reader(request)
        observe_process(own, "http")
        processes: dict[str, Any] = {}
        with contextlib.suppress(DolakeError):
            processes = (await ask("metrics")).get("metrics", {})
        for process in ("ingest", "writer"):
            own.set("dolake_process_up_count", 1 if processes.get(process) else 0, process=process)
        own.set("dolake_process_up_count", 1, process="http")
        known = {process: values for process, values in processes.items() if values}
        text = await runtime.tasks.run(render, {"http": own.values(), **known})
        return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")

    routes = [
        Route("/health", health),
        Route("/ready", ready),
        Route("/ready/writer", ready_writer),
        Route("/metrics", metrics),
        Route("/cdc", posting.post, methods=["POST"]),
    ]
    app = Starlette(routes=routes, exception_handlers={HTTPException: refusal, Unauthorized: entrance.refused, Forbidden: entrance.refused})
    paths = frozenset(route.path for route in routes)
    return Measured(beside(catalog, app), own, runtime.clock, paths, PREFIX, template_of)


def beside(catalog: ASGIApp, app: ASGIApp) -> ASGIApp:
    """Both, by path: the catalog reads its own, for names in it may hold anything."""

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        below = scope["type"] == "http" and scope["raw_path"].startswith(PREFIX.encode())
        await (catalog if below else app)(scope, receive, send)

    return serve


def _readiness(ready: bool, reasons: list[str], **more: Any) -> Response:
    headers = {} if ready else {"Retry-After": _RETRY_AFTER_S}
    return JSONResponse({"ready": ready, "reasons": reasons, **more}, status_code=200 if ready else 503, headers=headers)


def _absence(error: DolakeError) -> str:
    return "the ingest half does not answer" if isinstance(error, DaemonUnreachable) else str(error)


async def refusal(_: Request, error: Exception) -> Response:
    """What the routing library says no to, as JSON."""
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": error.detail}, status_code=error.status_code, headers=error.headers)


class _Server(uvicorn.Server):
    """Uvicorn without its signal handlers: whoever runs it says when to stop. Tells when it serves."""

    def __init__(self, config: uvicorn.Config, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._ready = ready

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._ready()


async def run_http(
    settings: Settings,
    *,
    listen: socket.socket,
    ready: Callable[[], None],
    stop: asyncio.Event,
    runtime: Runtime | None = None,
    gate: Gate | None = None,
) -> int:
    """Serves on `listen` until `stop`; calls `ready` once requests are answered. Returns the exit code.

    `gate` knows who may read; unless given, the settings say it once and for all.
    """
    runtime = runtime or real_runtime()
    gate = gate or Gate(runtime.clock, TokenBook(settings.tokens))
    client = ControlClient(settings.control_path, role="http", runtime=runtime)
    client.start()
    relay = RelayClient(settings.relay_path, runtime, absent_s_max=_ABSENT_S_MAX, answer_s_max=_POST_S_MAX)
    payload_bytes_max = settings.limits.payload_bytes
    bodies_bytes_max = max(_BODIES_BYTES, 2 * BODY_PAYLOADS_MAX * payload_bytes_max)
    own = Metrics()
    catalog = CatalogApp(settings, runtime, gate, own)
    app = build_app(client, relay, runtime, gate, PostPolicy(payload_bytes_max, bodies_bytes_max), catalog, own)
    await serve_until(stop, app, listen=listen, ready=ready, runtime=runtime, gate=gate)
    await relay.close()
    await client.close()
    catalog.close()
    return 0


async def serve_until(
    stop: asyncio.Event, app: ASGIApp, *, listen: socket.socket, ready: Callable[[], None], runtime: Runtime, gate: Gate
) -> None:
    """Serves `app` on `listen`, with the gate's TLS if it has any, until `stop`."""
    tls = gate.tls
    config = uvicorn.Config(
        app,
        http=BoundedProtocol,
        ws="none",  # Sources have a port of their own.
        log_config=None,
        access_log=False,
        lifespan="off",
        timeout_graceful_shutdown=1,
        server_header=False,
        ssl_context_factory=None if tls is None else lambda _, __: tls,
    )
    _LIBRARY_LOGGER.setLevel(logging.ERROR)
    server = _Server(config, ready)
    serving = runtime.tasks.spawn("http-server", server.serve(sockets=[listen]))
    stopping = runtime.tasks.spawn("http-stop", stop.wait())
    await asyncio.wait((serving, stopping), return_when=asyncio.FIRST_COMPLETED)
    server.should_exit = True
    await serving
    stopping.cancel()
