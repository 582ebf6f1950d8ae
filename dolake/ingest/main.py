"""The ingest process: its doors, its sockets, and how it ends."""

from __future__ import annotations

import asyncio
import os
import resource
import socket
from collections.abc import Callable
from typing import Any

import structlog

from dolake.auth.gate import Gate
from dolake.cdc.admission import UNDECIDED_TIMES_MAX, ConnectionLimits
from dolake.cdc.relay import RelayServer
from dolake.cdc.server import CdcServer, ServerPolicy
from dolake.clock import Runtime, real_runtime
from dolake.config import Settings
from dolake.control import ControlHub
from dolake.ingest.asks import Asks
from dolake.ingest.lag import watch_lag
from dolake.ingest.posting import PostDesk
from dolake.ingest.service import IngestService
from dolake.storage.disk import LocalDisk

FILES_BESIDE_CONNECTIONS = 512  # Logs, sockets that are on their way out, and what libraries open.
FRAME_PAYLOADS_MAX = 4  # A frame above this many times the payload limit closes the connection unread.

logger = structlog.get_logger("dolake.ingest")


async def run_ingest(
    settings: Settings,
    *,
    listen: socket.socket,
    ready: Callable[[], None],
    stop: asyncio.Event,
    runtime: Runtime | None = None,
    gate: Gate | None = None,
) -> int:
    """Takes batches on `listen` into the logs until `stop`, or raises why no log is left. Says `ready` when it can ack.

    `gate` knows who may come in; unless given, the settings say it once and for all.
    """
    runtime = runtime or real_runtime()
    os.makedirs(settings.data, exist_ok=True)
    service = IngestService(runtime, LocalDisk(), settings, gate)
    await service.start()
    hub = ControlHub(settings.control_path, runtime=runtime, receive=service.hear, answer=Asks(service).answer)
    limits = settings.limits
    frame_bytes_max = FRAME_PAYLOADS_MAX * limits.payload_bytes
    sockets = _allow_sockets(limits.connections)
    connections = ConnectionLimits(limits.connections, limits.connections_per_address, limits.connections_per_s, sockets)
    policy = ServerPolicy(frame_bytes_max, idle_s_max=limits.idle_s, pong_s_max=limits.idle_s, connections=connections)
    server = CdcServer(runtime, service.connect, policy, service.gate, service.metrics)
    relay = RelayServer(settings.relay_path, runtime, PostDesk(service).answer, frame_bytes_max)
    service.held_bytes, service.held_bytes_max = server.held_bytes, policy.held_bytes_max
    watching = runtime.tasks.spawn("lag", watch_lag(runtime.clock, service.note_lag))
    try:
        await hub.start()
        service.writer_line = hub
        await relay.start()
        await server.start(listen)
        ready()
        await _first(stop, service.ended)
    finally:
        watching.cancel()
        server.stop_accepting()
        await service.stop()
        await relay.close()
        await server.close()
        await hub.close()
    return 0


def _allow_sockets(connections: int) -> int:
    """How many sockets there may be at once. Each is an open file, and the usual limit is for programs that open a few.

    A log must always be able to begin another segment: where the system allows too few files, clients find no room.
    """
    wanted = UNDECIDED_TIMES_MAX * connections + FILES_BESIDE_CONNECTIONS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if allowed < connections + FILES_BESIDE_CONNECTIONS:
        needed = connections + FILES_BESIDE_CONNECTIONS
        logger.warning("the system allows fewer open files than limits.connections needs", allowed=allowed, needed=needed)
    if soft != resource.RLIM_INFINITY and soft < allowed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    return max(1, allowed - FILES_BESIDE_CONNECTIONS)


async def _first(stop: asyncio.Event, ended: asyncio.Future[None]) -> None:
    """Returns when asked to stop; raises why the service has ended by itself."""
    stopping = asyncio.create_task(stop.wait())
    try:
        waiting: set[asyncio.Future[Any]] = {stopping, ended}
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    finally:
        stopping.cancel()
    if ended.done():
        ended.result()
