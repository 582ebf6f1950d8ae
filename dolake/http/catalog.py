"""The Iceberg REST catalog on the HTTP port, under `/v1/`: requests in, what `iceberg.rest` makes of them out.

Reading takes `read`, changing `catalog` as well (see `auth`); a token with `tables` sees only these. Everything that waits for
the database or the store runs beside the loop. Commits to one table take turns in this process: two at once would only undo
each other's work; what other processes do, the compare-and-swap sees.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import WeakValueDictionary

import orjson
import structlog
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from dolake.auth.gate import Gate
from dolake.auth.principal import Principal
from dolake.clock import Runtime
from dolake.config import Settings
from dolake.errors import DolakeError, Forbidden, Unauthorized
from dolake.http.bodies import Bodies
from dolake.http.catalog_actions import ACTIONS, Call
from dolake.http.catalog_routes import route
from dolake.iceberg.paging import PageRequest
from dolake.iceberg.rest_errors import CatalogRefusal, forbidden, state_unknown, unavailable
from dolake.metrics import Metrics

if TYPE_CHECKING:
    from dolake.iceberg.rest import RestCatalog

T = TypeVar("T")
_CHANGING = ("POST", "DELETE")
_MEDIA_TYPE = "application/json"

log = structlog.get_logger("dolake.http")


class CatalogApp:
    """An ASGI app for every path under `/v1/`. The catalog is opened when it is first asked for."""

    def __init__(self, settings: Settings, runtime: Runtime, gate: Gate, metrics: Metrics) -> None:
        self._settings, self._runtime, self._gate, self._metrics = settings, runtime, gate, metrics
        self._catalog: RestCatalog | None = None
        self._opening = asyncio.Lock()
        self._bodies = Bodies()
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def open(self) -> RestCatalog:
        """The catalog. Raises CatalogUnreachable."""
        async with self._opening:
            if self._catalog is None:
                self._catalog = await self._runtime.tasks.run(_open, self._settings, self._runtime)
        return self._catalog

    async def probe(self) -> None:
        """Asks the database. Raises CatalogUnreachable, CatalogRefusal."""
        catalog = await self.open()
        await self._run(catalog.namespaces.listed, None, PageRequest(), lambda name: True)

    def close(self) -> None:
        if self._catalog is not None:
            self._catalog.close()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        try:
            response = await self._answer(request)
        except CatalogRefusal as refusal:
            response = _refused(refusal)
        except ClientDisconnect:
            response = Response(status_code=400)  # Nobody is there to read it.
        except Unauthorized as error:
            self._metrics.add("dolake_http_refused_requests_total", status="401")
            response = _refused(CatalogRefusal(401, "NotAuthorizedException", str(error)), {"WWW-Authenticate": error.challenge})
        except Forbidden as error:
            self._metrics.add("dolake_http_refused_requests_total", status="403")
            response = _refused(forbidden(str(error)))
        except DolakeError as error:
            response = _refused(unavailable(f"{error}; nothing was done: try again"))
        except Exception:  # The supervisor of one request: the next one is not its matter.
            log.exception("a request to the catalog failed")
            words = "the catalog failed: its log says how"
            response = _refused(state_unknown(words) if request.method in _CHANGING else CatalogRefusal(500, "InternalServerError", words))
        await response(scope, receive, send)

    async def _answer(self, request: Request) -> Response:
        if "origin" in request.headers:
            raise forbidden("not for browsers: a page may not ask the catalog")
        found = route(request.method, request.scope["raw_path"].decode("latin-1"))
        principal = self._principal(request)
        async with self._bodies.of(request) as body:
            call = Call(await self.open(), principal, found.parameters, request, body, self._run, self._turn, self._metrics)
            return await ACTIONS[found.action](call)

    def _principal(self, request: Request) -> Principal:
        """Who asks. Raises Unauthorized, Forbidden."""
        principal = self._gate.identify(request.headers.getlist("Authorization"), request.url.query)
        principal.require_reader()
        if request.method in _CHANGING and not request.url.path.endswith("/metrics"):
            principal.require_changer()
        return principal

    async def _run(self, work: Callable[..., T], *arguments: Any) -> T:
        from dolake.iceberg.rest import answered

        return await self._runtime.tasks.run(functools.partial(answered, work), *arguments)

    @contextlib.asynccontextmanager
    async def _turn(self, names: Iterable[str]) -> AsyncIterator[None]:
        """Until the block ends no other request of this process changes these tables."""
        async with contextlib.AsyncExitStack() as held:
            for name in sorted(set(names)):  # In order, so that two never wait for each other.
                await held.enter_async_context(self._turns.setdefault(name, asyncio.Lock()))
            yield


def _open(settings: Settings, runtime: Runtime) -> RestCatalog:
    # Imported here: it takes longer than all the rest of this process, and who never asks for the catalog need not wait.
    from dolake.iceberg.rest import open_rest_catalog

    return open_rest_catalog(settings, runtime)


def _refused(refusal: CatalogRefusal, headers: Mapping[str, str] | None = None) -> Response:
    more = {} if refusal.retry_after_s is None else {"Retry-After": str(refusal.retry_after_s)}
    return Response(orjson.dumps(refusal.body()), refusal.status, {**more, **(headers or {})}, _MEDIA_TYPE)
