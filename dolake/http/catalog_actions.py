"""What each REST catalog request does: from a call to its response, one function for each action of `catalog_routes`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import orjson
import structlog
from starlette.requests import Request
from starlette.responses import Response

from dolake.auth.principal import Principal
from dolake.http.catalog_routes import ENDPOINTS
from dolake.iceberg.identifiers import Identifier, Namespace
from dolake.iceberg.metadata import to_bytes
from dolake.iceberg.paging import PageRequest
from dolake.iceberg.rest_errors import CatalogRefusal, bad_request
from dolake.iceberg.rest_requests import (
    CommitReport,
    CommitTable,
    CreateNamespace,
    CreateTable,
    RegisterTable,
    RenameTable,
    Report,
    TableIdentifier,
    UpdateNamespaceProperties,
    decode,
    decode_commit,
    decode_transaction,
)
from dolake.metrics import Metrics

if TYPE_CHECKING:
    from dolake.iceberg.rest import RestCatalog

_MEDIA_TYPE = "application/json"
_WAREHOUSE_NAME = "dolake"
_DELEGATION = "X-Iceberg-Access-Delegation"
_VENDED = "vended-credentials"

log = structlog.get_logger("dolake.http")


@dataclass(frozen=True)
class Call:
    """One request, by somebody who may ask. `run` does blocking work beside the loop; `turn` holds others off some tables."""

    catalog: RestCatalog
    principal: Principal
    parameters: Mapping[str, str]
    request: Request
    body: bytes
    run: Callable[..., Awaitable[Any]]
    turn: Callable[[Iterable[str]], AbstractAsyncContextManager[None]]
    metrics: Metrics

    def namespace(self) -> Namespace:
        """That of the path. Raises CatalogRefusal, Forbidden."""
        return self.seen(Namespace.in_path(self.parameters["namespace"]))

    def table(self) -> Identifier:
        """That of the path. Raises CatalogRefusal, Forbidden."""
        return self.visible(Identifier.of(Namespace.in_path(self.parameters["namespace"]), self.parameters["table"]))

    def named(self, sent: TableIdentifier) -> Identifier:
        """That of a body. Raises CatalogRefusal, Forbidden."""
        return self.visible(Identifier.of(Namespace.of(sent.namespace), sent.name))

    def visible(self, identifier: Identifier) -> Identifier:
        self.principal.require_visible(str(identifier))
        return identifier

    def seen(self, namespace: Namespace) -> Namespace:
        self.principal.require_visible_namespace(str(namespace))
        return namespace

    def page(self) -> PageRequest:
        query = self.request.query_params
        return PageRequest.of(query.get("pageToken"), query.get("pageSize"))

    def wants_credentials(self) -> bool:
        said = ",".join(self.request.headers.getlist(_DELEGATION))
        return _VENDED in (part.strip().lower() for part in said.split(","))


async def _config(call: Call) -> Response:
    warehouse = call.request.query_params.get("warehouse", "").rstrip("/")
    if warehouse not in ("", _WAREHOUSE_NAME, call.catalog.root):
        message = f"there is no warehouse {warehouse[:200]!r}: leave it out, or say `{_WAREHOUSE_NAME}`"
        raise CatalogRefusal(404, "NoSuchWarehouseException", message)
    return _json({"defaults": {}, "overrides": {}, "endpoints": list(ENDPOINTS)})


async def _list_namespaces(call: Call) -> Response:
    sent = call.request.query_params.get("parent", "")
    parent = call.seen(Namespace.in_path(sent)) if sent else None
    return _json(await call.run(call.catalog.namespaces.listed, parent, call.page(), call.principal.may_see_namespace))


async def _create_namespace(call: Call) -> Response:
    request: CreateNamespace = decode(call.body, CreateNamespace)
    return _json(await call.run(call.catalog.namespaces.create, call.seen(Namespace.of(request.namespace)), request.properties or {}))


async def _load_namespace(call: Call) -> Response:
    return _json(await call.run(call.catalog.namespaces.load, call.namespace()))


async def _namespace_exists(call: Call) -> Response:
    await call.run(call.catalog.namespaces.require, call.namespace())
    return _done()


async def _drop_namespace(call: Call) -> Response:
    await call.run(call.catalog.namespaces.drop, call.namespace())
    return _done()


async def _update_namespace(call: Call) -> Response:
    request: UpdateNamespaceProperties = decode(call.body, UpdateNamespaceProperties)
    return _json(await call.run(call.catalog.namespaces.update, call.namespace(), request.removals or [], request.updates or {}))


async def _list_tables(call: Call) -> Response:
    return _json(await call.run(call.catalog.reading.listed, call.namespace(), call.page(), call.principal.may_see))


async def _create_table(call: Call) -> Response:
    request: CreateTable = decode(call.body, CreateTable)
    namespace = call.namespace()
    identifier = call.visible(Identifier.of(namespace, request.name))
    async with call.turn([str(identifier)]):
        planned = await call.run(call.catalog.tables.plan_create, namespace, request)
        if request.stage_create:
            data = to_bytes(planned.metadata)
            return Response(call.catalog.reading.result(data, None, call.wants_credentials()), media_type=_MEDIA_TYPE)
        location = await call.run(call.catalog.tables.create, planned)
    return await _loaded(call, location)


async def _register_table(call: Call) -> Response:
    request: RegisterTable = decode(call.body, RegisterTable)
    namespace = call.namespace()
    identifier = call.visible(Identifier.of(namespace, request.name))
    async with call.turn([str(identifier)]):
        location = await call.run(call.catalog.tables.register, namespace, request)
    return await _loaded(call, location)


async def _load_table(call: Call) -> Response:
    snapshots = call.request.query_params.get("snapshots", "all")
    if snapshots not in ("all", "refs"):
        raise bad_request(f"snapshots is `all` or `refs` (got {snapshots[:50]!r})")
    location = await call.run(call.catalog.reading.require, call.table())
    return await _loaded(call, location, "refs" if snapshots == "refs" else "all")


async def _loaded(call: Call, location: str, snapshots: Literal["all", "refs"] = "all") -> Response:
    delegated = call.wants_credentials()
    tag = call.catalog.reading.etag(location, snapshots, delegated)
    known = [one.strip().removeprefix("W/") for one in ",".join(call.request.headers.getlist("If-None-Match")).split(",")]
    if call.request.method == "GET" and (tag in known or "*" in known):
        return Response(status_code=304, headers={"ETag": tag})
    return Response(
        await call.run(call.catalog.reading.load_result, location, snapshots, delegated), headers={"ETag": tag}, media_type=_MEDIA_TYPE
    )


async def _table_exists(call: Call) -> Response:
    await call.run(call.catalog.reading.require, call.table())
    return _done()


async def _commit_table(call: Call) -> Response:
    identifier, commit = call.table(), decode_commit(call.body)
    if commit.identifier is not None and call.named(commit.identifier) != identifier:
        raise bad_request(f"identifier: the path says {identifier}, and the body another")
    location = (await _commit(call, [(identifier, commit)]))[0]
    reading = call.catalog.reading
    content = {"metadata-location": location, "metadata": orjson.Fragment(await call.run(reading.metadata, location))}
    return Response(orjson.dumps(content), headers={"ETag": reading.etag(location, "all", False)}, media_type=_MEDIA_TYPE)


async def _commit_transaction(call: Call) -> Response:
    commits = decode_transaction(call.body)
    named = [(call.named(commit.identifier), commit) for commit in commits if commit.identifier is not None]
    if named:
        await _commit(call, named)
    return _done()


async def _commit(call: Call, commits: Sequence[tuple[Identifier, CommitTable]]) -> Sequence[str]:
    async with call.turn(str(identifier) for identifier, _ in commits):
        locations: Sequence[str] = await call.run(call.catalog.commits.commit, commits)
    return locations


async def _drop_table(call: Call) -> Response:
    identifier = call.table()
    purging = call.request.query_params.get("purgeRequested", "false").lower()
    if purging not in ("true", "false"):
        raise bad_request(f"purgeRequested is true or false (got {purging[:50]!r})")
    async with call.turn([str(identifier)]):
        dropped = await call.run(call.catalog.tables.drop, identifier)
    if purging == "true" and (left := await call.run(call.catalog.tables.purge, dropped)):
        log.warning("a dropped table was not purged to the end: files of it are left", table=str(identifier), reason=left)
    return _done()


async def _rename_table(call: Call) -> Response:
    request: RenameTable = decode(call.body, RenameTable)
    source, destination = call.named(request.source), call.named(request.destination)
    async with call.turn([str(source), str(destination)]):
        await call.run(call.catalog.tables.rename, source, destination)
    return _done()


async def _load_credentials(call: Call) -> Response:
    await call.run(call.catalog.reading.require, call.table())
    return _json({"storage-credentials": call.catalog.reading.credentials()})


async def _report_metrics(call: Call) -> Response:
    report = decode(call.body, Report)
    await call.run(call.catalog.reading.require, call.table())
    kind = "commit" if isinstance(report, CommitReport) else "scan"
    call.metrics.add("dolake_http_catalog_reports_total", kind=kind)
    return _done()


def _json(value: Mapping[str, Any]) -> Response:
    return Response(orjson.dumps(value), media_type=_MEDIA_TYPE)


def _done() -> Response:
    return Response(status_code=204)


ACTIONS: dict[str, Callable[[Call], Awaitable[Response]]] = {
    "config": _config,
    "list_namespaces": _list_namespaces,
    "create_namespace": _create_namespace,
    "load_namespace": _load_namespace,
    "namespace_exists": _namespace_exists,
    "drop_namespace": _drop_namespace,
    "update_namespace": _update_namespace,
    "list_tables": _list_tables,
    "create_table": _create_table,
    "register_table": _register_table,
    "load_table": _load_table,
    "table_exists": _table_exists,
    "commit_table": _commit_table,
    "commit_transaction": _commit_transaction,
    "drop_table": _drop_table,
    "rename_table": _rename_table,
    "load_credentials": _load_credentials,
    "report_metrics": _report_metrics,
}
